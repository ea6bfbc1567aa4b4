//! The commands. A command and its route share one operation; what a script would read comes as `--json` on stdout, log
//! lines go to stderr. Exit codes: 0 done, 1 failed, 2 not understood, 3 the doctor, the verification or the reconciliation
//! found something, 4 some of an import's products were refused.

mod dev;
mod output;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, NaiveDate, Utc};
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use kernel::{OrganizationId, Slug, StoreId, SystemClock};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;

use crate::audit::Actor;
use crate::catalog;
use crate::charges::routes::PriceView;
use crate::charges::{self, NewPrice};
use crate::config::{Config, HostArgs, KeyArgs, LimitArgs, LogArgs, MasterArgs, PaymentArgs};
use crate::credits::packs::routes::OpsPackView;
use crate::credits::packs::{self, NewPack};
use crate::credits::review::routes::{DifferenceView, ReconciledView};
use crate::credits::review::{self, DifferenceState};
use crate::credits::routes::{BalanceView, TransactionView};
use crate::credits::{self, GrantTo, LotKind, prices};
use crate::cx::OpsCx;
use crate::http::errors::chain;
use crate::ops::routes::{OpsStoreView, ServerView, default_max_connections, default_max_stores};
use crate::provisioning::{self, NewDatabase, ProvisioningError};
use crate::servers::{self, NewServer};
use crate::{identity, master, ops, serve, stores, telemetry};

pub use output::refuse;
use output::{Printed, print};

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
    /// Look for what is wrong or left behind; changes nothing
    Doctor(OpsArgs),
    /// Print the API description
    Openapi,
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

#[derive(Subcommand)]
enum Admin {
    /// Give the platform role to somebody who is registered
    Grant {
        email: String,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Take the platform role from somebody; the last one who has it keeps it
    Revoke {
        email: String,
        #[command(flatten)]
        ops: OpsArgs,
    },
}

#[derive(Subcommand)]
enum Servers {
    /// Register a server
    Add {
        name: String,
        /// The administrator's: postgres://admin:password@host:5432/postgres. Without ?sslmode=, a host at a private address is
        /// spoken to without TLS, and any other as with sslmode=verify-full. Better given as the variable: arguments show in
        /// the list of processes
        #[arg(long, env = "SERVER_URL", hide_env_values = true)]
        url: SecretString,
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

#[derive(Subcommand)]
enum Stores {
    /// List the stores, newest first
    List {
        /// 1 to 100
        #[arg(long)]
        limit: Option<u8>,
        /// `nextCursor` of the page before
        #[arg(long)]
        cursor: Option<String>,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Show a store
    Show {
        /// Id or slug
        store: StoreName,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Give a store a managed database, or retry its failed run
    Provision {
        /// Id or slug
        store: StoreName,
        #[arg(long)]
        region: Option<String>,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Close a store; its storefront answers 503
    Suspend {
        /// Id or slug
        store: StoreName,
        /// Kept in the audit trail and shown to the owner
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Open a suspended store again
    Resume {
        /// Id or slug
        store: StoreName,
        #[command(flatten)]
        ops: OpsArgs,
    },
}

#[derive(Subcommand)]
enum Products {
    /// Import a Shopify product CSV; exit code 4 when some of its products were refused
    Import {
        /// Id or slug
        store: StoreName,
        file: PathBuf,
        /// Only say what would happen
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        ops: OpsArgs,
    },
}

#[derive(Subcommand)]
enum Credits {
    /// Give credits to an organization
    Grant {
        #[command(flatten)]
        to: CreditsOf,
        /// Whole credits
        #[arg(long)]
        amount: i64,
        /// Kept in the audit trail and shown on the statement
        #[arg(long)]
        reason: String,
        /// `promotional`, `compensation` or `paid`
        #[arg(long, default_value = "promotional", value_parser = lot_kind)]
        kind: LotKind,
        /// When what is left of them is gone, as 2027-01-31T00:00:00Z; never when left out
        #[arg(long)]
        expires_at: Option<DateTime<Utc>>,
        /// Granting again with the same key grants nothing
        #[arg(long)]
        key: Option<String>,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// What an organization has, lot by lot
    Balance {
        #[command(flatten)]
        of: CreditsOf,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Set what a service costs by itself from a day on that has not begun
    Price {
        /// store-day, or metric: and the name of what is counted
        service: String,
        /// Credits; 0 ends it
        #[arg(long)]
        amount: i64,
        /// For so many units
        #[arg(long)]
        per: Option<i64>,
        /// As 2027-01-31; tomorrow when left out
        #[arg(long)]
        valid_from: Option<NaiveDate>,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Set what a service costs from a moment on that is not past
    PriceSet {
        /// Such as translation; a new one is a new service
        service: String,
        #[arg(long)]
        name: String,
        /// What is counted
        #[arg(long)]
        unit: String,
        /// Whole credits
        #[arg(long)]
        credits: i64,
        /// For so many units, begun ones in full; 1 when left out
        #[arg(long)]
        per: Option<i64>,
        /// As 2027-01-31T00:00:00Z; now when left out
        #[arg(long)]
        valid_from: Option<DateTime<Utc>>,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Put a new version of a pack on sale, and take the one before off it
    PackSet {
        /// Such as growth; a new one is a new pack
        code: String,
        #[arg(long)]
        name: String,
        /// Whole credits
        #[arg(long)]
        credits: i64,
        /// Given on top; none when left out
        #[arg(long)]
        bonus_credits: Option<i64>,
        /// How long those are good for; they do not expire when left out
        #[arg(long)]
        bonus_expires_days: Option<i32>,
        /// In minor units of the currency, taxes included
        #[arg(long)]
        price_minor: i64,
        /// As EUR
        #[arg(long)]
        currency: String,
        /// What it is for taxes; txcd_10103001 when left out
        #[arg(long)]
        tax_code: Option<String>,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Check every invariant of the ledger and every sealed root; exit code 3 when something does not hold
    Verify {
        /// Only this organization
        #[arg(long)]
        org: Option<OrganizationId>,
        #[command(flatten)]
        ops: OpsArgs,
    },
}

#[derive(Subcommand)]
enum Payments {
    /// Compare the books now; exit code 3 when something differs
    Reconcile {
        #[command(flatten, next_help_heading = "Payments")]
        payments: Box<PaymentArgs>,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// What differed, newest first
    Differences {
        /// Only those that somebody has noted, or has not
        #[arg(long)]
        state: Option<DifferenceState>,
        /// 1 to 100
        #[arg(long)]
        limit: Option<u8>,
        /// `nextCursor` of the page before
        #[arg(long)]
        cursor: Option<String>,
        #[command(flatten)]
        ops: OpsArgs,
    },
}

/// Whose credits.
#[derive(Args, Clone)]
#[group(required = true, multiple = false)]
struct CreditsOf {
    /// The organization
    #[arg(long)]
    org: Option<OrganizationId>,
    /// The organization of this store: its id or slug
    #[arg(long)]
    store: Option<StoreName>,
}

impl CreditsOf {
    async fn target(self, cx: &OpsCx) -> Result<GrantTo, stores::StoreError> {
        Ok(match (self.org, self.store) {
            (Some(organization), _) => GrantTo::Organization(organization),
            (None, Some(store)) => GrantTo::Store(store.id(cx).await?),
            (None, None) => unreachable!("the argument group needs one of them"),
        })
    }
}

fn lot_kind(text: &str) -> Result<LotKind, String> {
    [LotKind::Promotional, LotKind::Compensation, LotKind::Paid]
        .into_iter()
        .find(|kind| kind.as_str() == text)
        .ok_or_else(|| "expected promotional, compensation or paid".to_owned())
}

#[derive(Subcommand)]
enum Explain {
    /// What a request with this Host header gets
    Host {
        name: String,
        #[command(flatten)]
        ops: OpsArgs,
    },
}

/// A store, as somebody at a terminal names it.
#[derive(Debug, Clone)]
enum StoreName {
    Id(StoreId),
    Slug(Slug),
}

impl FromStr for StoreName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let id = text.parse().map(Self::Id);
        id.or_else(|_| Slug::parse(text).map(Self::Slug)).map_err(|_| "expected a store's id (sto_...) or its slug")
    }
}

impl StoreName {
    async fn id(self, cx: &OpsCx) -> Result<StoreId, stores::StoreError> {
        match self {
            Self::Id(id) => Ok(id),
            Self::Slug(slug) => stores::find_by_slug(cx, &slug).await.map(|store| store.id),
        }
    }
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
    /// Lets owners connect databases at private addresses and without TLS
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
            payments,
            self.allow_private_databases,
            Arc::new(SystemClock),
        )?)
    }
}

/// Runs a command to its end.
pub fn run(cli: Cli) -> ExitCode {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return refuse("another TLS provider is installed");
    }
    // The database driver would take these up for every connection, also to servers of strangers.
    for name in ["PGOPTIONS", "PGSSLCERT", "PGSSLKEY", "PGSSLROOTCERT"] {
        if std::env::var_os(name).is_some() {
            return refuse(&format!("{name} is set, and would apply to every store's database: unset it"));
        }
    }
    if let Err(error) = telemetry::init_logs(&cli.log) {
        return refuse(&format!("LOG is not valid: {error}"));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&format!("the runtime cannot start: {error}")),
    };
    let json = cli.json;
    match runtime.block_on(act(cli)) {
        Ok(code) => code,
        Err(error) => output::failed(json, &error),
    }
}

/// Reads the command line. Options that nearly every command takes, and nearly nobody gives there, are left out of its help:
/// they are variables of `.env`.
pub fn parse() -> Cli {
    let matches = shorten(Cli::command(), "").get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
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

async fn act(cli: Cli) -> Result<ExitCode, anyhow::Error> {
    let json = cli.json;
    let done = match cli.command {
        Command::Dev(args) => return dev::run(args).await,
        Command::Serve(config) => return serve_until_signal(*config).await,
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
            return print(json, &Printed::text(document)).map(|()| ExitCode::SUCCESS);
        }
        Command::Doctor(args) => {
            let cx = args.context(true, None)?;
            let findings = ops::doctor(&cx).await;
            cx.close().await;
            let findings = findings?;
            let is_well = findings.iter().all(|finding| finding.is_ok);
            print(json, &output::findings(&findings)?)?;
            return Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::from(3) });
        }
        other => operate(other).await?,
    };
    print(json, &done).map(|()| ExitCode::from(done.code))
}

/// The commands that act on master and close what they opened.
async fn operate(command: Command) -> Result<Printed, anyhow::Error> {
    let (args, command) = match command {
        Command::Admin(Admin::Grant { email, ops }) => (ops, Operation::AdminGrant { email }),
        Command::Admin(Admin::Revoke { email, ops }) => (ops, Operation::AdminRevoke { email }),
        Command::Servers(Servers::Add { name, url, region, max_stores, max_connections, ops }) => {
            (ops, Operation::ServerAdd(NewServer { name, url, region, max_stores, max_connections }))
        }
        Command::Servers(Servers::List(ops)) => (ops, Operation::ServerList),
        Command::Servers(Servers::Drain { server, ops }) => (ops, Operation::ServerDrain { server }),
        Command::Servers(Servers::Activate { server, ops }) => (ops, Operation::ServerActivate { server }),
        Command::Stores(Stores::List { limit, cursor, ops }) => (ops, Operation::StoreList { limit, cursor }),
        Command::Stores(Stores::Show { store, ops }) => (ops, Operation::StoreShow { store }),
        Command::Stores(Stores::Provision { store, region, ops }) => (ops, Operation::StoreProvision { store, region }),
        Command::Stores(Stores::Suspend { store, reason, ops }) => (ops, Operation::StoreSuspend { store, reason }),
        Command::Stores(Stores::Resume { store, ops }) => (ops, Operation::StoreResume { store }),
        Command::Products(Products::Import { store, file, dry_run, ops }) => {
            (ops, Operation::ProductImport { store, file, dry_run })
        }
        Command::Explain(Explain::Host { name, ops }) => (ops, Operation::ExplainHost { name }),
        Command::Credits(Credits::Grant { to, amount, reason, kind, expires_at, key, ops }) => {
            (ops, Operation::CreditGrant { to, amount, reason, kind, expires_at, key })
        }
        Command::Credits(Credits::Balance { of, ops }) => (ops, Operation::CreditBalance { of }),
        Command::Credits(Credits::Price { service, amount, per, valid_from, ops }) => {
            (ops, Operation::ChargePrice(NewPrice { service, amount, per, valid_from }))
        }
        Command::Credits(Credits::PriceSet { service, name, unit, credits, per, valid_from, ops }) => {
            (ops, Operation::CreditPrice(prices::NewPrice { service, name, unit, credits, per, valid_from }))
        }
        Command::Credits(Credits::PackSet {
            code,
            name,
            credits,
            bonus_credits,
            bonus_expires_days,
            price_minor,
            currency,
            tax_code,
            ops,
        }) => {
            let new =
                NewPack { code, name, credits, bonus_credits, bonus_expires_days, price_minor, currency, tax_code };
            (ops, Operation::CreditPack(new))
        }
        Command::Payments(Payments::Reconcile { payments, ops }) => (ops, Operation::PaymentsReconcile { payments }),
        Command::Payments(Payments::Differences { state, limit, cursor, ops }) => {
            (ops, Operation::PaymentDifferences { state, limit, cursor })
        }
        Command::Credits(Credits::Verify { org, ops }) => (ops, Operation::CreditVerify { org }),
        Command::Dev(_)
        | Command::Serve(_)
        | Command::Migrate(_)
        | Command::Keys(_)
        | Command::Doctor(_)
        | Command::Openapi => {
            unreachable!("`act` runs these itself")
        }
    };
    // Says what is wrong with master before a statement of the command fails of it.
    master::check(&args.master).await?;
    let cx = args.context(command.needs_key(), command.payments())?;
    let done = command.run(&cx).await;
    cx.close().await;
    done
}

enum Operation {
    AdminGrant {
        email: String,
    },
    AdminRevoke {
        email: String,
    },
    ServerAdd(NewServer),
    ServerList,
    ServerDrain {
        server: String,
    },
    ServerActivate {
        server: String,
    },
    StoreList {
        limit: Option<u8>,
        cursor: Option<String>,
    },
    StoreShow {
        store: StoreName,
    },
    StoreProvision {
        store: StoreName,
        region: Option<String>,
    },
    StoreSuspend {
        store: StoreName,
        reason: String,
    },
    StoreResume {
        store: StoreName,
    },
    ProductImport {
        store: StoreName,
        file: PathBuf,
        dry_run: bool,
    },
    ExplainHost {
        name: String,
    },
    CreditGrant {
        to: CreditsOf,
        amount: i64,
        reason: String,
        kind: LotKind,
        expires_at: Option<DateTime<Utc>>,
        key: Option<String>,
    },
    CreditBalance {
        of: CreditsOf,
    },
    CreditVerify {
        org: Option<OrganizationId>,
    },
    ChargePrice(NewPrice),
    CreditPrice(prices::NewPrice),
    CreditPack(NewPack),
    PaymentsReconcile {
        payments: Box<PaymentArgs>,
    },
    PaymentDifferences {
        state: Option<DifferenceState>,
        limit: Option<u8>,
        cursor: Option<String>,
    },
}

impl Operation {
    /// Whether it seals or opens a credential.
    fn needs_key(&self) -> bool {
        match self {
            Self::ServerAdd(_)
            | Self::StoreProvision { .. }
            | Self::ProductImport { .. }
            | Self::ExplainHost { .. }
            | Self::CreditVerify { .. } => true,
            Self::AdminGrant { .. }
            | Self::AdminRevoke { .. }
            | Self::ServerList
            | Self::ServerDrain { .. }
            | Self::ServerActivate { .. }
            | Self::StoreList { .. }
            | Self::StoreShow { .. }
            | Self::StoreSuspend { .. }
            | Self::StoreResume { .. }
            | Self::CreditGrant { .. }
            | Self::ChargePrice(_)
            | Self::CreditPrice(_)
            | Self::CreditPack(_)
            | Self::CreditBalance { .. }
            | Self::PaymentsReconcile { .. }
            | Self::PaymentDifferences { .. } => false,
        }
    }

    /// The payment provider, where it is spoken to.
    fn payments(&self) -> Option<&PaymentArgs> {
        match self {
            Self::PaymentsReconcile { payments } => Some(payments),
            _ => None,
        }
    }

    async fn run(self, cx: &OpsCx) -> Result<Printed, anyhow::Error> {
        Ok(match self {
            Self::AdminGrant { email } => {
                let user = identity::admin_grant(cx, Actor::Cli, &email).await?;
                let line = format!("{} is now a platform admin", user.email);
                Printed::new(serde_json::to_value(identity::routes::UserView::from(user))?).line(line)
            }
            Self::AdminRevoke { email } => {
                let user = identity::admin_revoke(cx, Actor::Cli, &email).await?;
                let line = format!("{} is no platform admin", user.email);
                Printed::new(serde_json::to_value(identity::routes::UserView::from(user))?).line(line)
            }
            Self::ServerAdd(new) => output::server(&ServerView::from(servers::add(cx, Actor::Cli, new).await?))?,
            Self::ServerList => {
                let servers: Vec<ServerView> = servers::list(cx).await?.into_iter().map(Into::into).collect();
                output::servers(&servers)?
            }
            Self::ServerDrain { server } => {
                output::server(&ServerView::from(servers::drain(cx, Actor::Cli, &server).await?))?
            }
            Self::ServerActivate { server } => {
                output::server(&ServerView::from(servers::activate(cx, Actor::Cli, &server).await?))?
            }
            Self::StoreList { limit, cursor } => {
                let (stores, next) = stores::list_all(cx, None, cursor.as_deref(), limit).await?;
                let stores: Vec<OpsStoreView> = stores.into_iter().map(Into::into).collect();
                output::stores(&stores, next.as_deref())?
            }
            Self::StoreShow { store } => {
                let store = store.id(cx).await?;
                let view = OpsStoreView::from(stores::find(cx, store).await?);
                let run = provisioning::latest(cx, store).await.ok();
                output::store(&view, run.map(provisioning::routes::RunView::from))?
            }
            Self::StoreProvision { store, region } => {
                let store = store.id(cx).await?;
                let latest = provisioning::latest(cx, store).await.ok().map(|latest| latest.run.state);
                let run = if latest == Some(provisioning::RunState::Failed) {
                    provisioning::retry(cx, Actor::Cli, store).await?
                } else {
                    let managed = NewDatabase::Managed { region: region.clone() };
                    match provisioning::connect(cx, Actor::Cli, store, managed, false).await {
                        Err(ProvisioningError::NoCapacity) => {
                            let servers = servers::list(cx).await?;
                            let why = servers::explain_room(&servers, region.as_deref());
                            anyhow::bail!("no server has room: {why}");
                        }
                        outcome => outcome?,
                    }
                };
                let line = format!("run {} is {}; a serving node works it off", run.run.id, run.run.state.as_str());
                Printed::new(serde_json::to_value(provisioning::routes::RunView::from(run))?).line(line)
            }
            Self::StoreSuspend { store, reason } => {
                let store = store.id(cx).await?;
                output::store(&OpsStoreView::from(stores::suspend(cx, Actor::Cli, store, &reason).await?), None)?
            }
            Self::StoreResume { store } => {
                let store = store.id(cx).await?;
                output::store(&OpsStoreView::from(stores::resume(cx, Actor::Cli, store).await?), None)?
            }
            Self::ProductImport { store, file, dry_run } => {
                let store = store.id(cx).await?;
                import(cx, store, &file, dry_run).await?
            }
            Self::ExplainHost { name } => output::explanation(&ops::explain_host(cx, &name).await?)?,
            Self::CreditGrant { to, amount, reason, kind, expires_at, key } => {
                let new = credits::NewGrant { to: to.target(cx).await?, kind, amount, expires_at, reason };
                let decision = credits::grant(cx, Actor::Cli, &new, key.as_deref()).await?;
                output::credit_transaction(&TransactionView::from(decision.transaction), decision.is_new)?
            }
            Self::CreditBalance { of } => {
                let organization = match of.target(cx).await? {
                    GrantTo::Organization(id) => id,
                    GrantTo::Store(id) => stores::find(cx, id).await?.organization_id,
                };
                output::credit_balance(&BalanceView::read(cx, organization).await?)?
            }
            Self::CreditVerify { org } => output::credit_verification(&credits::verify::verify(cx, org).await?)?,
            Self::ChargePrice(new) => {
                let price = charges::price_set(cx, Actor::Cli, &new).await?;
                output::charge_price(&PriceView::from(price))?
            }
            Self::CreditPrice(new) => {
                let (price, is_new) = prices::price_set(cx, Actor::Cli, &new).await?;
                output::credit_price(&price, is_new)?
            }
            Self::CreditPack(new) => {
                let (pack, is_new) = packs::pack_set(cx, Actor::Cli, &new).await?;
                output::credit_pack(&OpsPackView::from(pack), is_new)?
            }
            Self::PaymentsReconcile { .. } => {
                let runs = review::reconcile(cx, Actor::Cli).await?;
                let runs: Vec<ReconciledView> = runs.into_iter().map(Into::into).collect();
                output::reconciliation(&runs)?
            }
            Self::PaymentDifferences { state, limit, cursor } => {
                let (found, next) = review::differences(cx, state, cursor.as_deref(), limit).await?;
                let found: Vec<DifferenceView> = found.into_iter().map(Into::into).collect();
                output::differences(&found, next.as_deref())?
            }
        })
    }
}

async fn import(cx: &OpsCx, store: StoreId, path: &PathBuf, dry_run: bool) -> Result<Printed, anyhow::Error> {
    let file = tokio::fs::File::open(path)
        .await
        .map_err(|error| anyhow::anyhow!("cannot read {}: {error}", path.display()))?;
    let show = std::io::stderr().is_terminal();
    let mut shown = 0;
    let progress = |at: tenant_schema::import::ImportProgress| {
        if show && at.rows >= shown + 1000 {
            shown = at.rows;
            tracing::info!("{} rows, {} products", at.rows, at.products);
        }
    };
    let report = catalog::import(cx, Actor::Cli, store, file, dry_run, progress).await?;
    output::import(&report, dry_run)
}

/// Serves until SIGINT or SIGTERM, then drains.
async fn serve_until_signal(config: Config) -> Result<ExitCode, anyhow::Error> {
    let mut signals = Signals::listen()?;
    let metrics = telemetry::init_metrics()?;
    let node = tokio::select! {
        started = serve::Node::start(config, Arc::new(SystemClock), metrics) => started?,
        () = signals.asked_to_stop() => return Ok(ExitCode::SUCCESS),
    };
    signals.asked_to_stop().await;
    tracing::info!("shutting down");
    node.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// SIGINT and SIGTERM, heard from the moment this is made: before the process says that it listens.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self, std::io::Error> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for either.
    async fn asked_to_stop(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The message of an error with its sources, for people.
fn explain_error(error: &anyhow::Error) -> String {
    chain(error.as_ref())
}

/// A value as JSON.
fn json_of<T: Serialize>(value: &T) -> Result<serde_json::Value, anyhow::Error> {
    Ok(serde_json::to_value(value)?)
}
