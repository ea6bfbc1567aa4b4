//! Metrics. Labels come from fieldless enums; no store is ever in a label.

use crate::error::Cause;
use crate::stats::Stats;

/// What came of opening a connection, for the counter's label.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ConnectResult {
    Ok,
    Failed(Cause),
}

/// Why a connection or a pool was closed, for the counter's label.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Eviction {
    /// Unused or old connections.
    Reaped,
    /// A connection for another store's need.
    MadeRoom,
    /// A pool that nobody leased for long.
    PoolIdle,
    /// A pool for another store's pool.
    PoolLimit,
    /// A pool whose route changed.
    Replaced,
}

/// What came of asking for a route, for the counter's label.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lookup {
    Hit,
    Miss,
    Negative,
    Stale,
    Limited,
    Failed,
}

pub(crate) fn describe_metrics() {
    use metrics::{describe_counter, describe_gauge};
    describe_gauge!("tenantry_pools_open", "Pools that new leases use");
    describe_gauge!(
        "tenantry_connections_open",
        "Physical connections to store databases, with those opening or closing"
    );
    describe_gauge!("tenantry_connections_idle", "Connections to store databases that nobody uses");
    describe_gauge!("tenantry_connections_waiting", "Requests that wait for a connection to a store's database");
    describe_gauge!(
        "tenantry_stores_saturated",
        "Stores that have as many connections as a store may, and requests that wait for one more"
    );
    describe_counter!("tenantry_connects_total", "Connections opened, by result");
    describe_counter!(
        "tenantry_answers_cut_total",
        "Connections ended because the server said more than an answer may take"
    );
    describe_counter!("tenantry_evictions_total", "Connections and pools closed early, by reason");
    describe_counter!("tenantry_directory_lookups_total", "Routes asked for, by where the answer came from");
}

pub(crate) fn publish(stats: &Stats) {
    use metrics::gauge;
    let float = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    gauge!("tenantry_pools_open").set(float(stats.pools));
    gauge!("tenantry_connections_open").set(float(stats.open));
    gauge!("tenantry_connections_idle").set(float(stats.idle));
    gauge!("tenantry_connections_waiting").set(float(stats.waiting));
    gauge!("tenantry_stores_saturated").set(float(stats.saturated));
}

pub(crate) fn count_connect(result: ConnectResult) {
    let result = match result {
        ConnectResult::Ok => "ok",
        ConnectResult::Failed(cause) => cause.as_str(),
    };
    metrics::counter!("tenantry_connects_total", "result" => result).increment(1);
}

pub(crate) fn count_evictions(reason: Eviction, count: usize) {
    if count == 0 {
        return;
    }
    let reason = match reason {
        Eviction::Reaped => "reaped",
        Eviction::MadeRoom => "made_room",
        Eviction::PoolIdle => "pool_idle",
        Eviction::PoolLimit => "pool_limit",
        Eviction::Replaced => "replaced",
    };
    metrics::counter!("tenantry_evictions_total", "reason" => reason).increment(count as u64);
}

pub(crate) fn lookup_counter(result: Lookup) -> metrics::Counter {
    let result = match result {
        Lookup::Hit => "hit",
        Lookup::Miss => "miss",
        Lookup::Negative => "negative",
        Lookup::Stale => "stale",
        Lookup::Limited => "limited",
        Lookup::Failed => "failed",
    };
    metrics::counter!("tenantry_directory_lookups_total", "result" => result)
}
