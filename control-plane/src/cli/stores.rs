//! Commands about stores and what is in them.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Subcommand;
use kernel::{Engine, Hostname, Slug, StoreId};

use super::failure::Failure;
use super::output::{self, Printed};
use super::pools::NodeArgs;
use super::{Needs, Operation, OpsArgs};
use crate::audit::Actor;
use crate::catalog;
use crate::cx::OpsCx;
use crate::http::errors::chain;
use crate::ops::OpsError;
use crate::ops::routes::OpsStoreView;
use crate::provisioning::{self, NewDatabase, ProvisioningError};
use crate::{master, ops, servers, stores};

#[derive(Subcommand)]
pub(super) enum Stores {
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
        /// postgresql, or mysql for MySQL and MariaDB
        #[arg(long, value_parser = super::engine, default_value = "postgresql")]
        engine: Engine,
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
pub(super) enum Products {
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
pub(super) enum Explain {
    /// What a request with this Host header gets, and what a node that is running knows of the store
    Host {
        name: String,
        #[command(flatten)]
        node: NodeArgs,
        #[command(flatten)]
        ops: OpsArgs,
    },
}

/// A store, as somebody at a terminal names it.
#[derive(Debug, Clone)]
pub(super) enum StoreName {
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
    pub(super) async fn id(self, cx: &OpsCx) -> Result<StoreId, stores::StoreError> {
        match self {
            Self::Id(id) => Ok(id),
            Self::Slug(slug) => stores::find_by_slug(cx, &slug).await.map(|store| store.id),
        }
    }
}

impl Operation for Stores {
    fn needs(&self) -> Needs<'_> {
        match self {
            Self::Provision { ops, .. } => Needs::of(ops).key(),
            Self::List { ops, .. } | Self::Show { ops, .. } | Self::Suspend { ops, .. } | Self::Resume { ops, .. } => {
                Needs::of(ops)
            }
        }
    }

    async fn run(self, cx: &OpsCx) -> Result<Printed, Failure> {
        match self {
            Self::List { limit, cursor, .. } => {
                let (stores, next) = stores::list_all(cx, None, cursor.as_deref(), limit).await?;
                let stores: Vec<OpsStoreView> = stores.into_iter().map(Into::into).collect();
                output::stores(&stores, next.as_deref())
            }
            Self::Show { store, .. } => {
                let store = store.id(cx).await?;
                let view = OpsStoreView::from(stores::find(cx, store).await?);
                let run = provisioning::latest(cx, store).await.ok();
                output::store(&view, run.map(provisioning::routes::RunView::from))
            }
            Self::Provision { store, engine, region, .. } => provision(cx, store.id(cx).await?, engine, region).await,
            Self::Suspend { store, reason, .. } => {
                let store = store.id(cx).await?;
                output::store(&OpsStoreView::from(stores::suspend(cx, Actor::Cli, store, &reason).await?), None)
            }
            Self::Resume { store, .. } => {
                let store = store.id(cx).await?;
                output::store(&OpsStoreView::from(stores::resume(cx, Actor::Cli, store).await?), None)
            }
        }
    }
}

impl Operation for Products {
    fn needs(&self) -> Needs<'_> {
        let Self::Import { ops, .. } = self;
        Needs::of(ops).key()
    }

    async fn run(self, cx: &OpsCx) -> Result<Printed, Failure> {
        let Self::Import { store, file, dry_run, .. } = self;
        let store = store.id(cx).await?;
        import(cx, store, &file, dry_run).await
    }
}

impl Explain {
    /// Without master a running node's view is all there is.
    pub(super) async fn run(self) -> Result<Printed, Failure> {
        let Self::Host { name, node, ops } = self;
        match master::check(&ops.master).await {
            Ok(()) => {}
            Err(error) if error.is_outage() => {
                let host = Hostname::from_authority(name.trim()).map_err(|_| OpsError::Hostname(name))?;
                let why = chain(&error);
                let seen = node.get(&format!("/internal/hosts/{host}")).await.map_err(|node| node.after(&why))?;
                return Ok(output::explanation_without_master(&why, &host, &seen));
            }
            Err(error) => return Err(error.into()),
        }
        let cx = ops.context(true, None)?;
        let explained = Self::explain(&cx, &name, &node).await;
        cx.close().await;
        explained
    }

    async fn explain(cx: &OpsCx, name: &str, node: &NodeArgs) -> Result<Printed, Failure> {
        let explanation = ops::explain_host(cx, name).await?;
        // The command itself has served nothing: it is the node's view that tells.
        let seen = match &explanation.store {
            Some(store) => Some(node.get(&format!("/internal/stores/{}", store.id)).await),
            None => None,
        };
        output::explanation(&explanation, seen)
    }
}

/// Gives a store a managed database, or tries again what has failed.
async fn provision(cx: &OpsCx, store: StoreId, engine: Engine, region: Option<String>) -> Result<Printed, Failure> {
    let latest = provisioning::latest(cx, store).await.ok().map(|latest| latest.run.state);
    let run = if latest == Some(provisioning::RunState::Failed) {
        provisioning::retry(cx, Actor::Cli, store).await?
    } else {
        let managed = NewDatabase::Managed { engine, region: region.clone() };
        match provisioning::connect(cx, Actor::Cli, store, managed, false).await {
            Err(ProvisioningError::NoCapacity { .. }) => {
                let servers = servers::list(cx).await?;
                let why = servers::explain_room(&servers, Some(engine), region.as_deref());
                return Err(anyhow::anyhow!("no server has room: {why}").into());
            }
            outcome => outcome?,
        }
    };
    let line = format!("run {} is {}; a serving node works it off", run.run.id, run.run.state.as_str());
    Ok(Printed::new(serde_json::to_value(provisioning::routes::RunView::from(run))?).line(line))
}

async fn import(cx: &OpsCx, store: StoreId, path: &Path, dry_run: bool) -> Result<Printed, Failure> {
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
