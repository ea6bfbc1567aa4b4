//! The commands, by theme. A command and its route share one operation; what a script would read comes as `--json` on stdout, log
//! lines go to stderr. Exit codes: 0 done, 1 failed, 2 not understood, 3 the doctor, the verification or the reconciliation
//! found something, 4 some of an import's products were refused.

mod admin;
mod credits;
mod dev;
mod doctor;
mod failure;
mod nodes;
mod output;
mod payments;
mod pools;
mod serve;
mod servers;
mod stores;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use kernel::{Engine, SystemClock};
use secrecy::ExposeSecret as _;
use serde::Serialize;

use crate::config::{Config, HostArgs, KeyArgs, LimitArgs, LogArgs, MasterArgs, PaymentArgs};
use crate::cx::{OpsCx, Services};
use crate::{master, telemetry};

use admin::Admin;
use credits::Credits;
use failure::{Failure, Options};
use nodes::Nodes;
pub use output::refuse;
use output::{Printed, print};
use payments::Payments;
use servers::Servers;
use stores::{Explain, Products, Stores};

/// The control plane for database-per-store commerce.
#[derive(Parser)]
#[command(name = "tenantry", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogArgs,
    /// Answer with JSON on stdout
    #[arg(long, global = true)]
    json: bool,
    /// What the options of the command are called.
    #[arg(skip)]
    options: Options,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything on this machine: a private PostgreSQL and a demo store
    Dev(dev::DevArgs),
    /// Serve the API, the storefronts and the jobs
    Serve(Box<Config>),
    /// Bring a database up to date
    #[command(subcommand)]
    Migrate(Migrate),
    /// Keys that seal credentials, and secrets that sign tokens
    #[command(subcommand)]
    Keys(Keys),
    /// People who run the platform
    #[command(subcommand)]
    Admin(Admin),
    /// Servers on which store databases are created
    #[command(subcommand)]
    Servers(Servers),
    /// Processes that have connections to database servers, and their shares
    #[command(subcommand)]
    Nodes(Nodes),
    /// Stores
    #[command(subcommand)]
    Stores(Stores),
    /// Products of a store
    #[command(subcommand)]
    Products(Products),
    /// What organizations have bought and spent
    #[command(subcommand)]
    Credits(Credits),
    /// Whether the payment provider's books agree with ours
    #[command(subcommand)]
    Payments(Payments),
    /// Why something is as it is
    #[command(subcommand)]
    Explain(Explain),
    /// Connections of a running node, by server, and its busiest stores
    Pools(pools::Pools),
    /// Look for what is wrong or left behind; changes nothing
    Doctor(Box<doctor::Doctor>),
    /// Print the API description
    Openapi,
}

/// Reads the name of an engine, as the API does.
fn engine(text: &str) -> Result<Engine, String> {
    match text {
        "postgresql" | "postgres" => Ok(Engine::Postgresql),
        "mysql" | "mariadb" => Ok(Engine::Mysql),
        _ => Err("must be postgresql or mysql".to_owned()),
    }
}

/// Reads the certificate of an authority.
fn read_ca(file: Option<&Path>) -> Result<Option<String>, anyhow::Error> {
    file.map(|path| std::fs::read_to_string(path).map_err(|error| anyhow::anyhow!("{}: {error}", path.display())))
        .transpose()
}

#[derive(Subcommand)]
enum Migrate {
    /// The master database
    Master(MasterArgs),
}

#[derive(Subcommand)]
enum Keys {
    /// Make a key for ENCRYPTION_KEY and a secret for JWT_SECRET
    Generate,
}

/// What a command needs to act.
#[derive(Args, Clone)]
pub struct OpsArgs {
    #[command(flatten)]
    master: MasterArgs,
    #[command(flatten)]
    keys: KeyArgs,
    #[command(flatten, next_help_heading = "Hosts")]
    hosts: HostArgs,
    #[command(flatten, next_help_heading = "Limits")]
    limits: LimitArgs,
    /// Lets owners connect databases at private and loopback addresses, and without TLS
    #[arg(long, env = "ALLOW_PRIVATE_DATABASES", default_value_t = false, action = clap::ArgAction::Set)]
    allow_private_databases: bool,
}

impl OpsArgs {
    /// Without a key, a command that opens no credential gets one that opens none.
    fn context(self, needs_key: bool, payments: Option<&PaymentArgs>) -> Result<OpsCx, anyhow::Error> {
        let keys = if needs_key || self.keys.is_given() { self.keys } else { KeyArgs::throwaway() };
        Ok(OpsCx::new(
            self.master,
            &keys,
            self.hosts,
            self.limits,
            Services { payments, ..Services::default() },
            self.allow_private_databases,
            Arc::new(SystemClock),
        )?)
    }
}

/// A command that acts on master: it does what its route does, by the same function of the domain, and prints it. Each theme
/// has its own.
trait Operation {
    fn needs(&self) -> Needs<'_>;

    async fn run(self, cx: &OpsCx) -> Result<Printed, Failure>;
}

/// What an operation acts with.
struct Needs<'a> {
    ops: &'a OpsArgs,
    /// Whether it seals or opens a credential.
    opens_credentials: bool,
    /// The payment provider, where it is spoken to.
    payments: Option<&'a PaymentArgs>,
}

impl<'a> Needs<'a> {
    fn of(ops: &'a OpsArgs) -> Self {
        Self { ops, opens_credentials: false, payments: None }
    }

    fn key(self) -> Self {
        Self { opens_credentials: true, ..self }
    }

    fn payments(self, payments: &'a PaymentArgs) -> Self {
        Self { payments: Some(payments), ..self }
    }
}

/// Runs a command to its end.
pub fn run(cli: Cli) -> ExitCode {
    let json = cli.json;
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return refuse(json, "another TLS provider is installed");
    }
    // The database driver would take these up for every connection, also to servers of strangers.
    for name in ["PGOPTIONS", "PGSSLCERT", "PGSSLKEY", "PGSSLROOTCERT"] {
        if std::env::var_os(name).is_some() {
            return refuse(json, &format!("{name} is set, and would apply to every store's database: unset it"));
        }
    }
    if let Err(error) = telemetry::init_logs(&cli.log) {
        return refuse(json, &format!("LOG is not valid: {error}"));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(json, &format!("the runtime cannot start: {error}")),
    };
    let options = cli.options.clone();
    match runtime.block_on(act(cli)) {
        Ok(code) => code,
        Err(failure) => output::failed(json, &failure, &options),
    }
}

/// Reads the command line, or says what of it was not understood. Options that nearly every command takes, and nearly nobody
/// gives there, are left out of its help: they are variables of `.env`. A variable that is set to nothing is not set, as `.env`
/// and whatever starts containers write it.
///
/// # Errors
/// What to exit with: also when help was asked for, and was given.
pub fn parse() -> Result<Cli, ExitCode> {
    let mut command = without_blanks(shorten(Cli::command(), ""));
    let parsed = command.try_get_matches_from_mut(std::env::args_os()).and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches)?;
        Ok(Cli { options: Options::of(&command, &matches), ..cli })
    });
    parsed.map_err(|error| output::misunderstood(wants_json(), &error))
}

/// Whether errors are wanted as JSON, before anything else is understood.
pub fn wants_json() -> bool {
    std::env::args_os().any(|argument| argument == "--json")
}

fn without_blanks(command: clap::Command) -> clap::Command {
    let is_blank = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let command = command.mut_args(|argument| match argument.get_env() {
        Some(name) if is_blank(name) => argument.env(None::<&'static str>),
        _ => argument,
    });
    command.mut_subcommands(without_blanks)
}

fn shorten(command: clap::Command, above: &str) -> clap::Command {
    let name = command.get_name().to_owned();
    if above == "tenantry" && name == "serve" {
        return command;
    }
    let command = command.mut_args(|argument| match argument.get_help_heading() {
        Some("Hosts" | "Limits") => argument.hide(true),
        _ => argument,
    });
    command.mut_subcommands(|below| shorten(below, &name))
}

async fn act(cli: Cli) -> Result<ExitCode, Failure> {
    let json = cli.json;
    let done = match cli.command {
        Command::Dev(args) => return Ok(dev::run(args).await?),
        Command::Serve(config) => return Ok(serve::until_signal(*config).await?),
        Command::Migrate(Migrate::Master(args)) => {
            let applied = master::migrate(&args).await?;
            Printed::new(serde_json::json!({ "applied": applied, "version": master::wanted_version() })).line(format!(
                "applied {applied} migrations; the master database is at version {}",
                master::wanted_version()
            ))
        }
        Command::Keys(Keys::Generate) => {
            let (key, secret) = (vault::generate_key(), kernel::random::token());
            let key = key.expose_secret();
            Printed::new(serde_json::json!({ "ENCRYPTION_KEY": key, "JWT_SECRET": secret }))
                .line(format!("ENCRYPTION_KEY={key}"))
                .line(format!("JWT_SECRET={secret}"))
        }
        Command::Openapi => {
            let document = crate::http::openapi::document().to_pretty_json()?;
            print(json, &Printed::text(document))?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Pools(command) => command.run(json).await?,
        Command::Doctor(command) => command.run().await?,
        Command::Admin(command) => operate(command).await?,
        Command::Servers(command) => operate(command).await?,
        Command::Nodes(command) => operate(command).await?,
        Command::Stores(command) => operate(command).await?,
        Command::Products(command) => operate(command).await?,
        Command::Credits(command) => operate(command).await?,
        Command::Payments(command) => operate(command).await?,
        Command::Explain(command) => command.run().await?,
    };
    print(json, &done)?;
    Ok(ExitCode::from(done.code))
}

/// Runs a command on master, and closes what it opened.
async fn operate(command: impl Operation) -> Result<Printed, Failure> {
    let Needs { ops, opens_credentials, payments } = command.needs();
    // Says what is wrong with master before a statement of the command fails of it.
    master::check(&ops.master).await?;
    let cx = ops.clone().context(opens_credentials, payments)?;
    let done = command.run(&cx).await;
    cx.close().await;
    done
}

/// A value as JSON.
fn json_of<T: Serialize>(value: &T) -> Result<serde_json::Value, serde_json::Error> {
    serde_json::to_value(value)
}
