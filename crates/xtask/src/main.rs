#![doc = include_str!("../README.md")]

mod apt;
mod generated;
mod peers;
mod ready;
mod run;
mod structure;
mod workspace;

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::ready::Server;
use crate::run::{run, say};
use crate::workspace::Workspace;

/// The chores of the project.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Start the product on this machine: everything that is missing is installed first.
    Dev {
        /// Handed to `tenantry dev`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run every test.
    Test {
        /// Handed to the test programs: a part of a test's name, or their options.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run the long tests: kills, hammers, large imports.
    Soak {
        /// Handed to the test program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Check everything that can be checked without running it.
    Check,
    /// Check who depends on whom and where things stand.
    Structure,
    /// Describe control-plane's queries anew, for builds without a database.
    Sqlx {
        /// Only compare with the committed files.
        #[arg(long)]
        check: bool,
    },
    /// Write control-plane/openapi.json anew.
    Openapi {
        /// Only compare with the committed file.
        #[arg(long)]
        check: bool,
    },
    /// Run the benchmarks.
    Bench {
        /// Handed to the benchmark program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    let began = Instant::now();
    let done = Workspace::load().and_then(|workspace| match Cli::parse().chore {
        Chore::Dev { args } => dev(&workspace, &args),
        Chore::Test { args } => test(&workspace, &args),
        Chore::Soak { args } => soak(&workspace, &args),
        Chore::Check => check(&workspace),
        Chore::Structure => structure::check(&workspace),
        Chore::Sqlx { check } => {
            generated::sqlx(&workspace, check, workspace.cargo(&["check", "-p", "control-plane", "--all-targets"]))
        }
        Chore::Openapi { check } => generated::openapi(&workspace, check),
        Chore::Bench { args } => bench(&workspace, &args),
    });
    let seconds = began.elapsed().as_secs();
    match done {
        Ok(()) => {
            say(&format!("xtask: done in {seconds} s"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("xtask: failed after {seconds} s: {error:#}"));
            // What a tool answered is our answer, so that scripts can tell a failed test from a failed build.
            run::exit_code_of(&error).map_or(ExitCode::FAILURE, ExitCode::from)
        }
    }
}

fn dev(workspace: &Workspace, args: &[String]) -> anyhow::Result<()> {
    let server = ready::server(workspace)?;
    let tenantry = workspace.build_tenantry()?;
    let mut command = Command::new(&tenantry);
    command.arg("dev").args(args);
    server.tell(&mut command);
    // Signals and the exit code are between the caller and the product from here on.
    let error = command.exec();
    Err(error).with_context(|| format!("starting {}", tenantry.display()))
}

fn test(workspace: &Workspace, args: &[String]) -> anyhow::Result<()> {
    let (server, peers) = (ready::server(workspace)?, peers::peers(workspace)?);
    ready::test_servers()?;
    let mut command = tests(workspace, &server, &["--no-fail-fast"])?;
    peers.tell(&mut command);
    command.arg("--").args(args);
    run(command)
}

fn soak(workspace: &Workspace, args: &[String]) -> anyhow::Result<()> {
    ready::test_servers()?;
    let mut command = tests(workspace, &ready::server(workspace)?, &["--test", "it"])?;
    command.args(["--", "--ignored"]);
    // What is named is run instead of all of it.
    if args.iter().all(|arg| arg.starts_with('-')) {
        command.arg("soak::");
    }
    command.args(args);
    run(command)
}

/// `cargo test` over the whole workspace, whose features are the same for every command: nothing is built twice.
fn tests(workspace: &Workspace, server: &Server, args: &[&str]) -> anyhow::Result<Command> {
    let tenantry = workspace.build_tests()?;
    let mut command = workspace.cargo(&["test", "--workspace"]);
    command.args(args).env("TENANTRY_BIN", tenantry);
    server.tell(&mut command);
    Ok(command)
}

fn bench(workspace: &Workspace, args: &[String]) -> anyhow::Result<()> {
    let server = ready::server(workspace)?;
    let packages = ["-p", "control-plane", "-p", "bench", "--bin", "tenantry", "--bin", "bench"];
    let mut build = workspace.cargo(&["build", "--release"]);
    build.args(packages);
    run(build)?;
    let mut command = Command::new(workspace.built("release", "bench"));
    command.args(args).env("TENANTRY_BIN", workspace.built("release", "tenantry")).current_dir(&workspace.root);
    server.tell(&mut command);
    run(command)
}

/// The cheap failures first.
fn check(workspace: &Workspace) -> anyhow::Result<()> {
    let phase = |name: &str, work: &dyn Fn() -> anyhow::Result<()>| {
        say(&format!("--- {name}"));
        let began = Instant::now();
        work().with_context(|| name.to_owned())?;
        say(&format!("--- {name}: {} s", began.elapsed().as_secs()));
        anyhow::Ok(())
    };
    phase("format", &|| run(workspace.cargo(&["fmt", "--all", "--check"])))?;
    phase("structure", &|| structure::check(workspace))?;
    // One compilation serves both: clippy's, with the macros asking a database that has this tree's migrations.
    phase("clippy and sqlx", &|| {
        let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        generated::sqlx(workspace, true, workspace.cargo(&clippy))
    })?;
    phase("openapi", &|| generated::openapi(workspace, true))
}

/// The path as the reader would type it.
fn shown<'a>(workspace: &Workspace, path: &'a Path) -> std::path::Display<'a> {
    path.strip_prefix(&workspace.root).unwrap_or(path).display()
}
