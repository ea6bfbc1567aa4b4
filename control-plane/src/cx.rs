//! What operations work with: [`OpsCx`] for everything a command or a job needs, [`Cx`] for a serving node on top of it.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use kernel::{Clock, RunId, StoreId};
use sqlx::PgPool;
use tenancy::config::DirectoryConfig;
use tenancy::{Reach, StoreChange, Tenancy, TenancyConfig};
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vault::KeyRing;

use crate::catalog::Imports;
use crate::charges::usage::{self, UsageMeter};
use crate::config::{Config, ConfigError, HostArgs, KeyArgs, LimitArgs, MasterArgs, PaymentArgs, SupabaseArgs, reach};
use crate::credits::batch::Batcher;
use crate::credits::purchases::Payments;
use crate::directory::MasterDirectory;
use crate::directory::changes::LogPlace;
use crate::doctor::limits::DoctorLimits;
use crate::identity::limits::AuthLimits;
use crate::identity::passwords::Passwords;
use crate::identity::tokens::Signer;
use crate::master::warm::Warm;
use crate::master::{self, MasterError};
use crate::node_data::NodeData;
use crate::provisioning::DatabaseKind;
use crate::shares::{self, Place};
use crate::supabase::Supabase;

/// The connection manager over master's directory.
pub type Stores = Tenancy<MasterDirectory>;

/// How the services of others are reached that what is built speaks to, and where it is spoken to itself.
#[derive(Default, Clone, Copy)]
pub struct Services<'a> {
    /// Where storefronts are answered, if they are.
    pub serves_at: Option<SocketAddr>,
    /// The folder of a node's own, if it has one.
    pub node_data: Option<&'a Path>,
    pub payments: Option<&'a PaymentArgs>,
    pub supabase: Option<&'a SupabaseArgs>,
}

/// What commands, jobs and requests have in common.
#[derive(Clone)]
pub struct OpsCx(Arc<OpsParts>);

pub struct OpsParts {
    pub master: PgPool,
    /// A few of its connections, for spends and balances.
    pub warm: Warm,
    pub master_args: MasterArgs,
    pub clock: Arc<dyn Clock>,
    pub keys: Arc<KeyRing>,
    pub stores: Stores,
    pub hosts: HostArgs,
    pub limits: LimitArgs,
    /// Where this process runs.
    pub place: Place,
    /// Whether storefronts are answered here.
    pub is_serving: bool,
    /// What is kept for the process that follows this one.
    pub node_data: Option<Arc<NodeData>>,
    /// Where databases may be that owners bring.
    pub owners_reach: Reach,
    /// Product imports that run in this process.
    pub imports: Imports,
    /// Spends that wait for the commit before theirs.
    pub credits: Batcher,
    /// What this process counts of stores.
    pub usage: UsageMeter,
    /// Rung when other nodes need, or gave back, connections to a database server.
    pub share_news: Notify,
    /// Servers that are needed here while all of their connections are other nodes'.
    pub servers_lacking: AtomicUsize,
    /// Done when the stores' pools are closed.
    pub pools_closed: CancellationToken,
    /// Rung when there is something to deliver before the outbox is looked at again.
    pub outbox_news: Notify,
    /// The payment provider, where there is one.
    pub payments: Option<Payments>,
    /// Supabase, where owners can sign in there.
    pub supabase: Option<Supabase>,
    /// Everything spawned, so that shutting down waits for it.
    pub tasks: TaskTracker,
    pub shutdown: CancellationToken,
}

impl Deref for OpsCx {
    type Target = OpsParts;

    fn deref(&self) -> &OpsParts {
        &self.0
    }
}

impl OpsCx {
    /// Builds the parts; connects to nothing yet.
    ///
    /// # Errors
    /// When an option cannot be used.
    pub fn new(
        master_args: MasterArgs,
        keys: &KeyArgs,
        hosts: HostArgs,
        limits: LimitArgs,
        services: Services<'_>,
        allow_private_databases: bool,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, MasterError> {
        let payments = services.payments.map(|args| Payments::new(args, &hosts)).transpose()?.flatten();
        let supabase = services.supabase.map(|args| Supabase::new(args, &hosts)).transpose()?.flatten();
        let master = master::pool(&master_args)?;
        let keys = Arc::new(keys.ring()?);
        let node_data = services.node_data.map(|folder| NodeData::open(folder, Arc::clone(&keys), Arc::clone(&clock)));
        let node_data = node_data.transpose()?.map(Arc::new);
        let owners_reach = reach(allow_private_databases);
        let config = TenancyConfig { owners_reach, ..pools(&limits) };
        let stores = Tenancy::new(MasterDirectory::new(master.clone()), Arc::clone(&keys), config);
        let imports = Imports::new(limits.max_imports);
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let cx = Self(Arc::new(OpsParts {
            warm: Warm::new(master.clone()),
            master,
            master_args,
            clock,
            keys,
            stores,
            hosts,
            limits,
            place: Place::here(services.serves_at),
            is_serving: services.serves_at.is_some(),
            node_data,
            owners_reach,
            imports,
            credits: Batcher::default(),
            usage: UsageMeter::default(),
            share_news: Notify::new(),
            servers_lacking: AtomicUsize::new(0),
            pools_closed: CancellationToken::new(),
            outbox_news: Notify::new(),
            payments,
            supabase,
            tasks,
            shutdown,
        }));
        cx.tasks.spawn(shares::run(cx.clone()));
        Ok(cx)
    }

    /// Where a database of this kind may be.
    pub fn reach(&self, kind: DatabaseKind) -> Reach {
        match kind {
            DatabaseKind::Managed => Reach::Anywhere,
            DatabaseKind::Brought => self.owners_reach,
        }
    }

    /// Tells this process of a change that was just committed, ahead of the notification that all processes get.
    pub fn announce(&self, store_id: StoreId, route_version: i64) {
        self.stores.apply(StoreChange { store_id, route_version, hostnames: Vec::new() });
    }

    /// Closes what is open, within the grace period.
    pub async fn close(&self) {
        self.shutdown.cancel();
        self.stores.shutdown(self.limits.shutdown_grace).await;
        self.pools_closed.cancel();
        self.tasks.close();
        if tokio::time::timeout(self.limits.shutdown_grace, self.tasks.wait()).await.is_err() {
            tracing::warn!("{} tasks were still running when the grace period ended", self.tasks.len());
        }
        usage::flush_last(self).await;
        self.warm.clear();
        // A statement that was left may wait for a lock, or for a master that does not answer.
        if tokio::time::timeout(self.limits.shutdown_grace, self.master.close()).await.is_err() {
            tracing::warn!("connections to master were still at work when the grace period ended");
        }
    }
}

/// How the pools of stores are set up.
pub fn pools(limits: &LimitArgs) -> TenancyConfig {
    TenancyConfig {
        max_connections_per_store: limits.store_max_connections,
        max_job_connections_per_store: limits.store_job_connections,
        max_connections: limits.node_max_connections,
        // Dealt out among the nodes: see `shares`.
        max_connections_per_server: 0,
        max_pools: limits.max_open_pools,
        max_leases_per_store: limits.store_max_requests,
        acquire_timeout: limits.store_acquire_timeout,
        connect_timeout: limits.store_connect_timeout,
        statement_timeout: limits.store_statement_timeout,
        idle_timeout: limits.store_idle_timeout,
        directory: DirectoryConfig {
            refresh: limits.route_ttl,
            max_stale: limits.route_max_stale,
            lookup_timeout: limits.route_lookup_timeout,
            unknown_per_second: limits.unknown_hosts_per_second,
            unknown_burst: limits.unknown_hosts_burst,
            ..DirectoryConfig::default()
        },
        ..TenancyConfig::default()
    }
}

/// A serving node.
#[derive(Clone)]
pub struct Cx(Arc<Parts>);

pub struct Parts {
    ops: OpsCx,
    pub config: Config,
    pub passwords: Passwords,
    pub signer: Signer,
    pub limits: AuthLimits,
    pub database_tests: DoctorLimits,
    pub platform: crate::http::authority::PlatformHosts,
    /// Where this node is in the log of changes.
    pub log_place: LogPlace,
    /// Runs whose event log has grown; a watcher that lags reads the table anyway.
    pub run_events: broadcast::Sender<RunId>,
}

impl Deref for Cx {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Deref for Parts {
    type Target = OpsCx;

    fn deref(&self) -> &OpsCx {
        &self.ops
    }
}

impl Cx {
    /// Builds a node; connects to nothing yet.
    ///
    /// # Errors
    /// When an option cannot be used.
    pub fn new(config: Config, clock: Arc<dyn Clock>) -> Result<Self, MasterError> {
        let signer = Signer::new(&config.jwt_secret, config.access_token_ttl)?;
        let platform = crate::http::authority::PlatformHosts::new(&config.hosts)?;
        let limits = AuthLimits::new(config.limits.auth_requests_per_minute);
        let database_tests = DoctorLimits::new(&config.limits.doctor);
        let passwords = Passwords::new(config.limits.password_hashers)
            .map_err(|error| ConfigError::Invalid { name: "PASSWORD_HASHERS", why: error.to_string() })?;
        let ops = OpsCx::new(
            config.master.clone(),
            &config.keys,
            config.hosts.clone(),
            config.limits.clone(),
            Services {
                serves_at: Some(config.hosts.listen),
                node_data: config.node_data.as_deref(),
                payments: Some(&config.payments),
                supabase: Some(&config.supabase),
            },
            config.allow_private_databases,
            clock,
        )?;
        let run_events = broadcast::Sender::new(1024);
        let log_place = LogPlace::default();
        let parts = Parts { ops, config, passwords, signer, limits, database_tests, platform, log_place, run_events };
        Ok(Self(Arc::new(parts)))
    }

    /// The part that commands and jobs use.
    pub fn ops(&self) -> &OpsCx {
        &self.ops
    }
}
