//! Holds a private PostgreSQL server: prints one line of JSON once it answers, and stops it when our input ends, when we are
//! told to stop, or, with `-- COMMAND`, when the command has ended (it finds the URL in `DATABASE_URL`).

use std::path::PathBuf;
use std::process::ExitCode;

use devkit::{Postgres, PostgresOptions, Profile};
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "devkit-hold --data-dir DIR [--profile dev|test|bench] [--port N] [--bin-dir DIR] \
                     [--setting NAME=VALUE]... [-- COMMAND ARGUMENTS...]";

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let code = runtime.map_err(Failure::from).and_then(|runtime| {
        let code = runtime.block_on(hold());
        // A read of our input cannot be taken back, and must not hold us.
        runtime.shutdown_background();
        code
    });
    code.unwrap_or_else(|error| {
        complain(error.as_ref());
        ExitCode::FAILURE
    })
}

async fn hold() -> Result<ExitCode, Failure> {
    let (options, command) = parse(std::env::args().skip(1))?;
    let mut terminated = signal(SignalKind::terminate())?;
    let server = Postgres::start(options).await?;
    let pid = server.pid().unwrap_or(0);
    say(&format!(r#"{{"url":"{}","port":{},"pid":{pid}}}"#, server.url("postgres"), server.port()));

    let ending = async {
        if let Some((program, arguments)) = command.split_first() {
            let mut command = tokio::process::Command::new(program);
            let status = command.args(arguments).env("DATABASE_URL", server.url("postgres")).status().await?;
            return Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
        }
        let ended = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
        ended.await.map_err(std::io::Error::other)??;
        Ok::<u8, std::io::Error>(0)
    };
    let code = tokio::select! {
        code = ending => code?,
        _ = terminated.recv() => 0,
        _ = tokio::signal::ctrl_c() => 130,
    };
    server.stop().await?;
    Ok(ExitCode::from(code))
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<(PostgresOptions, Vec<String>), Failure> {
    let mut options = PostgresOptions::new(PathBuf::new(), Profile::Dev);
    while let Some(arg) = args.next() {
        if arg == "--" {
            break;
        }
        let value = args.next().ok_or_else(|| format!("{arg} wants a value\nusage: {USAGE}"))?;
        match arg.as_str() {
            "--data-dir" => options.data_dir = value.into(),
            "--profile" => {
                let profile = match value.as_str() {
                    "dev" => Profile::Dev,
                    "test" => Profile::Test,
                    "bench" => Profile::Bench,
                    _ => return Err(format!("no profile `{value}`\nusage: {USAGE}").into()),
                };
                options = PostgresOptions { profile, ..options };
            }
            "--port" => options.port = Some(value.parse()?),
            "--bin-dir" => options.bin_dir = Some(value.into()),
            "--setting" => {
                let (name, value) = value.split_once('=').ok_or("--setting wants NAME=VALUE")?;
                options.settings.push((name.to_owned(), value.to_owned()));
            }
            _ => return Err(format!("no option {arg}\nusage: {USAGE}").into()),
        }
    }
    if options.data_dir.as_os_str().is_empty() {
        return Err(format!("usage: {USAGE}").into());
    }
    Ok((options, args.collect()))
}

#[expect(clippy::print_stdout, reason = "the one line that callers wait for")]
fn say(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "a program's last words")]
fn complain(error: &dyn std::error::Error) {
    eprintln!("devkit-hold: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
}
