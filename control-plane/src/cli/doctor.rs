//! Commands that look for what is wrong.

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand};
use kernel::{Engine, StoreId};
use secrecy::SecretString;

use super::OpsArgs;
use super::failure::Failure;
use super::output::{self, Printed};
use super::stores::StoreName;
use crate::cx::OpsCx;
use crate::doctor::{self, Report};
use crate::provisioning::target::{Target, TargetError};
use crate::{master, ops};

/// The longest connection string that is read.
const MAX_INPUT: u64 = 64 * 1024;

/// Without a word more, everything is looked at.
pub(super) enum Doctor {
    All(Box<OpsArgs>),
    Database(Box<DatabaseArgs>),
}

// By hand: derived, the options of the whole would be needed beside those of a part.
impl FromArgMatches for Doctor {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        if let Some((_, of_database)) = matches.subcommand() {
            // One that stands in the environment anyway gives way to the one that is piped in.
            let is_typed = of_database.value_source("url") == Some(ValueSource::CommandLine);
            if is_typed && of_database.get_flag("url_stdin") {
                let what = "the argument '--url <URL>' cannot be used with '--url-stdin'\n";
                return Err(clap::Error::raw(ErrorKind::ArgumentConflict, what));
            }
            let What::Database(args) = What::from_arg_matches(matches)?;
            return Ok(Self::Database(args));
        }
        Ok(Self::All(Box::new(OpsArgs::from_arg_matches(matches)?)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Doctor {
    fn augment_args(command: Command) -> Command {
        What::augment_subcommands(OpsArgs::augment_args(command))
            .subcommand_required(false)
            .arg_required_else_help(false)
            .args_conflicts_with_subcommands(true)
            .subcommand_negates_reqs(true)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[derive(Subcommand)]
enum What {
    /// Look at one database: whether a store can live there, and if not, why. Changes nothing
    Database(Box<DatabaseArgs>),
}

#[derive(Args)]
pub(super) struct DatabaseArgs {
    /// postgres://user:password@host:5432/database, or mysql://…. Better given as the variable, or with --url-stdin: arguments
    /// show in the list of processes
    #[arg(long, env = "DATABASE_TEST_URL", hide_env_values = true)]
    url: Option<SecretString>,
    /// Read the connection string from standard input, whatever the variable says
    #[arg(long)]
    url_stdin: bool,
    /// postgresql, or mysql for MySQL and MariaDB, where the connection string does not say it
    #[arg(long, value_parser = super::engine)]
    engine: Option<Engine>,
    /// The CA that signed the server's certificate, as a file of PEM
    #[arg(long)]
    ca_file: Option<PathBuf>,
    /// The store whose own database is looked at; with a connection string, the one for which that is meant. Id or slug
    #[arg(long)]
    store: Option<StoreName>,
    #[command(flatten)]
    ops: OpsArgs,
}

impl Doctor {
    pub(super) async fn run(self) -> Result<Printed, Failure> {
        match self {
            Self::Database(args) => database(*args).await,
            Self::All(args) => {
                let cx = args.context(true, None)?;
                let findings = ops::doctor(&cx).await;
                cx.close().await;
                output::findings(&findings?)
            }
        }
    }
}

async fn database(args: DatabaseArgs) -> Result<Printed, Failure> {
    let DatabaseArgs { url, url_stdin, engine, ca_file, store, ops } = args;
    let url = match (url, url_stdin) {
        (_, true) => Some(from_stdin()?),
        (url, false) => url,
    };
    if url.is_none() && store.is_none() {
        return Err(
            anyhow::anyhow!("say which: a connection string (DATABASE_TEST_URL, --url-stdin) or --store").into()
        );
    }
    let ca = super::read_ca(ca_file.as_deref())?;
    let candidate = url.map(|url| Target::from_url(&url, engine, None, ca).and_then(Target::for_store));
    if store.is_some() {
        master::check(&ops.master).await?;
    }
    // Without a store nothing of master is read, and nothing is opened.
    let cx = ops.context(store.is_some(), None)?;
    let report = examine(&cx, store, candidate).await;
    cx.close().await;
    output::database_report(&report?)
}

async fn examine(
    cx: &OpsCx,
    store: Option<StoreName>,
    candidate: Option<Result<Target, TargetError>>,
) -> Result<Report, Failure> {
    match (store, candidate) {
        (Some(name), candidate) => {
            let store: StoreId = name.id(cx).await?;
            Ok(doctor::examine_store(cx, store, candidate).await?)
        }
        (None, Some(candidate)) => Ok(doctor::examine(cx, candidate).await),
        (None, None) => Err(anyhow::anyhow!("there is nothing to look at").into()),
    }
}

fn from_stdin() -> Result<SecretString, anyhow::Error> {
    let mut text = String::new();
    if std::io::stdin().is_terminal() {
        anyhow::bail!("--url-stdin reads what is piped to it, e.g. from a password manager");
    }
    std::io::stdin().lock().take(MAX_INPUT).read_to_string(&mut text)?;
    Ok(SecretString::from(text))
}
