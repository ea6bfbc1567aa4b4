//! What the connection manager tells about itself: numbers for dashboards, and one store's case for `explain`.

use kernel::{ServerId, StoreId, StoreStatus};
use serde::Serialize;

use crate::error::Cause;

/// The whole node in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Pools that new leases use.
    pub pools: usize,
    /// Pools that older leases still use.
    pub draining: usize,
    /// Leases that are out.
    pub leases: usize,
    /// Physical connections, with those being opened or closed: each holds a permit.
    pub open: usize,
    /// Connections that nobody uses now.
    pub idle: usize,
    /// Requests that wait for a connection.
    pub waiting: usize,
    /// Stores that have as many connections as a store may, and requests that wait for one more.
    pub saturated: usize,
    /// The most physical connections that this node may have, at all servers together.
    pub limit: usize,
    /// Hostnames and stores that are remembered.
    pub routes: u64,
}

/// What this node has to do with one database server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ServerLoad {
    /// Which.
    pub server_id: ServerId,
    /// The most physical connections that this node may have there.
    pub limit: usize,
    /// Those that it has, with those being opened or closed.
    pub open: usize,
    /// Connects that wait for their turn.
    pub waiting: usize,
    /// The most that was open or waited for since [`Tenancy::forget_server_peaks`](crate::Tenancy::forget_server_peaks).
    pub peak: usize,
    /// Whether it is being asked.
    pub breaker: BreakerState,
}

/// One store's pool, in a list of pools.
#[derive(Debug, Clone, Serialize)]
pub struct StoreLoad {
    /// The store.
    pub store_id: StoreId,
    /// Where its database is, if that is a server of ours.
    pub server_id: Option<ServerId>,
    /// The pool that new leases use.
    pub pool: PoolState,
    /// Pools that older leases still use.
    pub draining: usize,
    /// Whether its database is being asked.
    pub breaker: BreakerState,
}

/// One store as this node sees it, without a secret, a host or a user.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// The store.
    pub store_id: StoreId,
    /// The remembered route; none when the store was never asked for, or was forgotten.
    pub route: Option<RouteState>,
    /// The pool that new leases would use.
    pub pool: Option<PoolState>,
    /// Pools that older leases still use.
    pub draining: usize,
    /// Whether its database is being asked.
    pub breaker: BreakerState,
    /// Whether its server is being asked at all; none without a pool, and for a database that is at no server of ours.
    pub server_breaker: Option<BreakerState>,
    /// What this node may have open at the server of its database; none for a database that is at no server of ours, and for a
    /// server that this node has had nothing to do with.
    pub server_limit: Option<usize>,
    /// The last time that a connection could not be opened.
    pub last_error: Option<LastError>,
}

/// A remembered route.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct RouteState {
    /// Where the store is in its life.
    pub status: StoreStatus,
    /// The route's version.
    pub version: i64,
    /// How long ago the directory said so.
    pub age_ms: u64,
    /// Whether it must be read again before it counts, while the directory answers.
    pub is_outdated: bool,
    /// Whether a later change was announced, so that it does not count at all.
    pub is_overtaken: bool,
    /// How much longer it is served when the directory does not answer.
    pub stale_for_ms: u64,
}

/// A pool in numbers.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct PoolState {
    /// Since when it is open.
    pub age_ms: u64,
    /// Leases that are out.
    pub leases: usize,
    /// Physical connections, with those being opened or closed.
    pub open: usize,
    /// Connections that nobody uses now.
    pub idle: usize,
    /// Connections being opened.
    pub opening: usize,
    /// Requests that wait for a connection.
    pub waiting: usize,
}

/// Whether a store's database is being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum BreakerState {
    /// As usual.
    Closed,
    /// It failed; nobody asks until the pause is over.
    Paused {
        /// Why.
        cause: Cause,
        /// What is left of the pause.
        retry_after_ms: u64,
    },
    /// One request is trying it; the others are refused.
    Probing {
        /// Why it was paused.
        cause: Cause,
    },
    /// It refused us for a reason that trying again does not heal.
    Latched {
        /// Why.
        cause: Cause,
        /// When it is tried again, if the route does not change before.
        retry_after_ms: u64,
    },
    /// It refused our password, which is not tried again until the route changes or somebody sees the database well.
    Barred {
        /// Why.
        cause: Cause,
    },
}

/// Trouble with opening a connection.
#[derive(Debug, Clone, Serialize)]
pub struct LastError {
    /// What kind.
    pub cause: Cause,
    /// The server's code, when it gave one.
    pub code: Option<String>,
    /// How long ago.
    pub ago_ms: u64,
}
