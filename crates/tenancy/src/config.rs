//! Every limit of the connection manager, with defaults that suit one node in front of a few servers.

use std::time::Duration;

use kernel::Ident;

use crate::reach::Reach;

/// How a node opens, keeps and closes connections to store databases.
#[derive(Debug, Clone)]
pub struct TenancyConfig {
    /// Physical connections of this node to databases that are at no server of ours, over all their stores.
    pub max_connections: usize,
    /// Physical connections of this node to one server, over all its stores, until [`Tenancy::set_server_limit`] says
    /// otherwise. Zero, where the servers' connections are dealt out among nodes: then nobody connects before.
    ///
    /// [`Tenancy::set_server_limit`]: crate::Tenancy::set_server_limit
    pub max_connections_per_server: usize,
    /// Physical connections of one store on this node.
    pub max_connections_per_store: usize,
    /// How many of these work apart from requests may use; at least one. See [`Lane::Job`](crate::Lane::Job).
    pub max_job_connections_per_store: usize,
    /// Pools that are open at once; the least recently leased idle one makes room.
    pub max_pools: usize,
    /// Leases of one store that are out for its storefront; the next is refused at once, so that a flood on one store leaves
    /// the node's memory and time to others.
    pub max_leases_per_store: usize,
    /// Requests of one store that wait for a connection; the next is refused at once.
    pub max_waiting_per_store: usize,
    /// How long a request waits for a connection.
    pub acquire_timeout: Duration,
    /// How long opening one connection may take, with TLS, login and session setup.
    pub connect_timeout: Duration,
    /// A connection unused for longer is closed.
    pub idle_timeout: Duration,
    /// A pool that no lease asked for in this time is dropped.
    pub pool_idle: Duration,
    /// A connection older than this is closed when it is free; each draws up to a tenth less, so they do not go together.
    pub max_lifetime: Duration,
    /// A connection unused for longer is asked whether it lives before it is handed out.
    pub ping_after: Duration,
    /// How long that answer may take.
    pub ping_timeout: Duration,
    /// How long saying good-bye to the server may take.
    pub close_timeout: Duration,
    /// How long a permit outlasts the good-bye, because the server's side needs a moment to go.
    pub close_linger: Duration,
    /// How long leases given before a rotation keep their old pool.
    pub drain_grace: Duration,
    /// While other stores wait for a connection of the node, one that has served this long is given up for them.
    pub tenure: Duration,
    /// How often the reaper looks.
    pub reap_interval: Duration,
    /// Where databases may be that owners brought; servers that ops registered may be anywhere.
    pub owners_reach: Reach,
    /// Schemas of the session's `search_path`, first to last; none leaves the server's default.
    pub search_path: Vec<Ident>,
    /// The server ends a statement that runs longer; our side gives up [`TenancyConfig::query_margin`] later.
    pub statement_timeout: Duration,
    /// The server ends a statement that waits longer for a lock.
    pub lock_timeout: Duration,
    /// The server ends a session that idles longer in a transaction.
    pub idle_in_transaction_timeout: Duration,
    /// How much longer than `statement_timeout` an answer is awaited.
    pub query_margin: Duration,
    /// When to stop asking a database that does not answer.
    pub breaker: BreakerConfig,
    /// What is remembered of routes.
    pub directory: DirectoryConfig,
}

/// When to stop asking a database that does not answer.
#[derive(Debug, Clone)]
pub struct BreakerConfig {
    /// The pause after the first failure; each further one doubles it. A pause is drawn between half of it and all of it.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// Connects that fail one after the other, of whichever stores, before a server counts as down. It answers for itself:
    /// that it cannot be reached, does not answer in time, or is not ready.
    pub server_strikes: u32,
    /// The pause after a refusal that only a change can heal, such as a missing database. A wrong password is not tried again
    /// at all, and this is what askers are told.
    pub latched_pause: Duration,
}

/// What is remembered of routes, and how long.
#[derive(Debug, Clone)]
pub struct DirectoryConfig {
    /// Known hostnames, and known stores, kept at most.
    pub max_routes: u64,
    /// Unknown hostnames remembered at most.
    pub max_unknown: u64,
    /// A route is at most this old while the directory answers.
    pub refresh: Duration,
    /// An unknown hostname is not asked for again in this time.
    pub unknown_ttl: Duration,
    /// While the directory does not answer, a route is served for so long since it was known to hold: since it was read, or since
    /// [`crate::Tenancy::note_followed`].
    pub max_stale: Duration,
    /// How long one look-up may take.
    pub lookup_timeout: Duration,
    /// Look-ups under way at once.
    pub max_lookups: usize,
    /// Distinct unknown names that may reach the directory per second ...
    pub unknown_per_second: u32,
    /// ... and in one burst.
    pub unknown_burst: u32,
}

impl Default for TenancyConfig {
    fn default() -> Self {
        let ident = |name: &str| Ident::new(name).expect("a plain name is an identifier");
        Self {
            max_connections: 200,
            max_connections_per_server: 200,
            max_connections_per_store: 8,
            max_job_connections_per_store: 2,
            max_pools: 1000,
            max_leases_per_store: 4096,
            max_waiting_per_store: 1024,
            acquire_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(3),
            idle_timeout: Duration::from_secs(60),
            pool_idle: Duration::from_secs(300),
            max_lifetime: Duration::from_secs(1800),
            ping_after: Duration::from_secs(1),
            ping_timeout: Duration::from_millis(500),
            close_timeout: Duration::from_secs(1),
            close_linger: Duration::from_millis(10),
            drain_grace: Duration::from_secs(30),
            tenure: Duration::from_millis(50),
            reap_interval: Duration::from_secs(1),
            owners_reach: Reach::Public,
            search_path: vec![ident("tenantry"), ident("pg_catalog")],
            statement_timeout: Duration::from_secs(10),
            lock_timeout: Duration::from_secs(3),
            idle_in_transaction_timeout: Duration::from_secs(15),
            query_margin: Duration::from_secs(2),
            breaker: BreakerConfig::default(),
            directory: DirectoryConfig::default(),
        }
    }
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
            server_strikes: 3,
            latched_pause: Duration::from_secs(60),
        }
    }
}

impl Default for DirectoryConfig {
    fn default() -> Self {
        Self {
            max_routes: 100_000,
            max_unknown: 10_000,
            refresh: Duration::from_secs(30),
            unknown_ttl: Duration::from_secs(5),
            max_stale: Duration::from_secs(600),
            lookup_timeout: Duration::from_secs(2),
            max_lookups: 64,
            unknown_per_second: 50,
            unknown_burst: 200,
        }
    }
}
