//! Other programs, our environment, and our voice.

use std::fmt;
use std::process::{Command, ExitStatus};

use anyhow::Context as _;

/// A program that ran and did not succeed.
#[derive(Debug)]
struct Failed {
    program: String,
    status: ExitStatus,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` failed ({})", self.program, self.status)
    }
}

impl std::error::Error for Failed {}

/// Runs a program to its end, with our input and output.
pub(crate) fn run(mut command: Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("starting `{}`", words(&command)))?;
    if status.success() { Ok(()) } else { Err(Failed { program: words(&command), status }.into()) }
}

/// Runs a program to its end and returns what it printed.
pub(crate) fn output(mut command: Command) -> anyhow::Result<String> {
    command.stderr(std::process::Stdio::inherit());
    let output = command.output().with_context(|| format!("starting `{}`", words(&command)))?;
    if output.status.success() {
        Ok(String::from_utf8(output.stdout)?)
    } else {
        Err(Failed { program: words(&command), status: output.status }.into())
    }
}

/// The exit code of the program whose failure `error` is.
pub(crate) fn exit_code_of(error: &anyhow::Error) -> Option<u8> {
    let failed = error.chain().find_map(|cause| cause.downcast_ref::<Failed>())?;
    failed.status.code().and_then(|code| u8::try_from(code).ok())
}

/// Whether a program is on the path and answers.
pub(crate) fn has(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdin(std::process::Stdio::null());
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A variable of the environment.
#[expect(clippy::disallowed_methods, reason = "the one site: cargo's variables, PATH and PG_BINDIR are our arguments")]
pub(crate) fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Tells the person at the terminal.
#[expect(clippy::print_stdout, reason = "the one site: talking is what a chore does")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}

fn words(command: &Command) -> String {
    let args = command.get_args().map(|arg| arg.to_string_lossy());
    std::iter::once(command.get_program().to_string_lossy()).chain(args).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_of_a_tool_is_ours_and_the_error_says_what_ran() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 42"]);
        let error = run(command).unwrap_err().context("testing");
        assert_eq!(exit_code_of(&error), Some(42));
        assert!(format!("{error:#}").contains("sh -c exit 42"), "{error:#}");
        assert_eq!(exit_code_of(&anyhow::anyhow!("other")), None);
    }
}
