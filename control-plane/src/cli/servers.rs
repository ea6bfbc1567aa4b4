//! Commands about the servers on which store databases are created.

use std::path::PathBuf;

use clap::Subcommand;
use kernel::Engine;
use secrecy::SecretString;

use super::failure::Failure;
use super::output::{self, Printed};
use super::{Needs, Operation, OpsArgs};
use crate::audit::Actor;
use crate::cx::OpsCx;
use crate::ops::routes::{ServerView, default_max_connections, default_max_stores};
use crate::servers::{self, Limits, NewServer};

#[derive(Subcommand)]
pub(super) enum Servers {
    /// Register a server
    Add {
        /// What you call it; unlike any other
        name: String,
        /// postgresql, or mysql for MySQL and MariaDB; left out, the URL says it
        #[arg(long, value_parser = super::engine)]
        engine: Option<Engine>,
        /// The administrator's: postgres://admin:password@host:5432/postgres, or mysql://…:3306/mysql. Without ?sslmode=, a host at a private address is
        /// spoken to without TLS, and any other as with sslmode=verify-full. Better given as the variable: arguments show in
        /// the list of processes
        #[arg(long, env = "SERVER_URL", hide_env_values = true)]
        url: SecretString,
        /// The CA that signed the server's certificate, as a file of PEM
        #[arg(long)]
        ca_file: Option<PathBuf>,
        /// Where it is; who creates a store may ask for it
        #[arg(long)]
        region: Option<String>,
        /// The most stores that are placed on it
        #[arg(long, default_value_t = default_max_stores())]
        max_stores: i32,
        /// The most connections of all nodes together
        #[arg(long, default_value_t = default_max_connections())]
        max_connections: i32,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// List the servers
    List(OpsArgs),
    /// Change what a server bears
    #[command(group(clap::ArgGroup::new("limits").required(true).multiple(true)))]
    Update {
        /// Name or id
        server: String,
        /// The most stores that are placed on it; those that are there stay
        #[arg(long, group = "limits")]
        max_stores: Option<i32>,
        /// The most connections of all nodes together; what is too much is closed as soon as it is not in use
        #[arg(long, group = "limits")]
        max_connections: Option<i32>,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Stop placing new stores on a server
    Drain {
        /// Name or id
        server: String,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Place new stores on a drained server again
    Activate {
        /// Name or id
        server: String,
        #[command(flatten)]
        ops: OpsArgs,
    },
}

impl Operation for Servers {
    fn needs(&self) -> Needs<'_> {
        match self {
            Self::Add { ops, .. } => Needs::of(ops).key(),
            Self::List(ops) | Self::Update { ops, .. } | Self::Drain { ops, .. } | Self::Activate { ops, .. } => {
                Needs::of(ops)
            }
        }
    }

    async fn run(self, cx: &OpsCx) -> Result<Printed, Failure> {
        match self {
            Self::Add { name, engine, url, ca_file, region, max_stores, max_connections, .. } => {
                let ca_pem = super::read_ca(ca_file.as_deref())?;
                let new = NewServer { name, engine, url, ca_pem, region, max_stores, max_connections };
                output::server(&ServerView::from(servers::add(cx, Actor::Cli, new).await?))
            }
            Self::List(_) => {
                let servers: Vec<ServerView> = servers::list(cx).await?.into_iter().map(Into::into).collect();
                output::servers(&servers)
            }
            Self::Update { server, max_stores, max_connections, .. } => {
                let limits = Limits { max_stores, max_connections };
                output::server(&ServerView::from(servers::update(cx, Actor::Cli, &server, limits).await?))
            }
            Self::Drain { server, .. } => {
                output::server(&ServerView::from(servers::drain(cx, Actor::Cli, &server).await?))
            }
            Self::Activate { server, .. } => {
                output::server(&ServerView::from(servers::activate(cx, Actor::Cli, &server).await?))
            }
        }
    }
}
