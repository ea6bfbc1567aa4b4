//! The stores that this node has or had to do with: their pools and breakers.
//!
//! Admission rules of pools:
//! - a store has one current pool; a lease takes it when it fits the route (engine, server, credential version, schema
//!   version) and otherwise replaces it, unless the route is older than one that was seen before: then the route is read
//!   again, so an old route never brings an old credential back;
//! - a replaced pool serves the leases that it gave until they are dropped, or `drain_grace` is over;
//! - when `max_pools` are open, the one that was leased longest ago and has no lease out is closed for the next.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dashmap::DashMap;
use kernel::{StoreId, StoreStatus};
use tokio::time::Instant;

use crate::breaker::Breaker;
use crate::error::LeaseError;
use crate::lease::Lease;
use crate::meter::{Eviction, count_evictions};
use crate::node::{Node, lock};
use crate::pool::Pool;
use crate::route::{DatabaseRoute, Route};
use crate::stats::{Stats, StoreLoad};

/// How long a breaker that is closed again keeps its last error for `explain`.
const KEEP_ERRORS: Duration = Duration::from_secs(600);

/// One store on this node.
pub(crate) struct Slot {
    /// The lowest route version that still counts, shared with the directory's cache.
    floor: Arc<AtomicI64>,
    /// The highest route version that was leased.
    version: AtomicI64,
    pub(crate) breaker: Arc<Mutex<Breaker>>,
    pools: Mutex<Pools>,
}

#[derive(Default)]
struct Pools {
    current: Option<Arc<Pool>>,
    draining: Vec<Arc<Pool>>,
    /// Set when the slot was taken out of the map: who still holds it must look again.
    is_gone: bool,
}

pub(crate) struct Stores {
    slots: DashMap<StoreId, Arc<Slot>>,
    pools: AtomicUsize,
    is_closed: AtomicBool,
}

/// The route is older than what is known: read it again.
pub(crate) struct Outdated;

impl Stores {
    pub(crate) fn new() -> Self {
        Self { slots: DashMap::new(), pools: AtomicUsize::new(0), is_closed: AtomicBool::new(false) }
    }

    pub(crate) fn slot(&self, store: StoreId) -> Option<Arc<Slot>> {
        self.slots.get(&store).map(|slot| Arc::clone(&slot))
    }

    fn all(&self) -> Vec<Arc<Slot>> {
        self.slots.iter().map(|slot| Arc::clone(&slot)).collect()
    }

    /// Whoever is refused without being asked is asked by one again.
    pub(crate) fn try_all_again(&self) {
        let now = Instant::now();
        self.all().iter().for_each(|slot| lock(&slot.breaker).try_again(now));
    }

    /// Stores with a pool.
    pub(crate) fn with_pools(&self) -> Vec<StoreId> {
        self.slots.iter().filter(|slot| lock(&slot.pools).current.is_some()).map(|slot| *slot.key()).collect()
    }

    /// A lease on the pool that fits `route`. `floor` is asked for only when the store is new here.
    pub(crate) fn lease(
        &self,
        node: &Arc<Node>,
        route: &Arc<Route>,
        is_served: bool,
        floor: &dyn Fn() -> Arc<AtomicI64>,
    ) -> Result<Result<Lease, LeaseError>, Outdated> {
        if self.is_closed.load(Ordering::SeqCst) {
            return Ok(Err(LeaseError::ShuttingDown));
        }
        let slot = match self.slot(route.store_id) {
            Some(slot) => slot,
            None => self.new_slot(route.store_id, floor()),
        };
        if route.version < slot.floor.load(Ordering::SeqCst) {
            return Err(Outdated);
        }
        if is_served && !route.is_served() {
            return Ok(Err(LeaseError::NotServing { status: route.status }));
        }
        let Some(database) = &route.database else { return Ok(Err(LeaseError::NoDatabase)) };
        let mut pools = lock(&slot.pools);
        if pools.is_gone {
            return Err(Outdated);
        }
        if let Some(pool) = &pools.current
            && slot.version.load(Ordering::SeqCst) == route.version
            && pool.fits(database)
        {
            return Ok(Self::lease_on(node, pool, route, is_served));
        }
        slot.confirm(&mut pools, node, route, Some(database)).ok_or(Outdated)?;
        if let Some(pool) = &pools.current {
            return Ok(Self::lease_on(node, pool, route, is_served));
        }
        drop(pools);
        if !self.reserve_pool(node.config.max_pools) {
            return Ok(Err(LeaseError::Busy { retry_after: Duration::from_secs(1) }));
        }
        let mut pools = lock(&slot.pools);
        if pools.is_gone || pools.current.is_some() {
            // Somebody was quicker; the second look finds what they made.
            self.pools.fetch_sub(1, Ordering::SeqCst);
            drop(pools);
            return self.lease(node, route, is_served, floor);
        }
        if slot.is_overtaken(route) {
            self.pools.fetch_sub(1, Ordering::SeqCst);
            return Err(Outdated);
        }
        let pool = Arc::new(Pool::new(Arc::clone(node), route, database, Arc::clone(&slot.breaker)));
        pools.current = Some(Arc::clone(&pool));
        Ok(Self::lease_on(node, &pool, route, is_served))
    }

    /// A lease, unless too many requests of the store's visitors have one.
    fn lease_on(node: &Node, pool: &Arc<Pool>, route: &Arc<Route>, is_served: bool) -> Result<Lease, LeaseError> {
        let lease = Lease::new(Arc::clone(pool), Arc::clone(route), is_served);
        if is_served && pool.leases() > node.config.max_leases_per_store.max(1) {
            return Err(LeaseError::Busy { retry_after: Duration::from_secs(1) });
        }
        Ok(lease)
    }

    /// Counts one more pool, closing another for it when needed and possible.
    fn reserve_pool(&self, limit: usize) -> bool {
        let one_more = |count: usize| (count < limit.max(1)).then_some(count + 1);
        while self.pools.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).is_err() {
            if !self.close_idlest_pool() {
                return false;
            }
        }
        true
    }

    fn new_slot(&self, store: StoreId, floor: Arc<AtomicI64>) -> Arc<Slot> {
        let slot = self.slots.entry(store).or_insert_with(|| {
            Arc::new(Slot {
                floor,
                version: AtomicI64::new(i64::MIN),
                breaker: Arc::new(Mutex::new(Breaker::new())),
                pools: Mutex::new(Pools::default()),
            })
        });
        Arc::clone(&slot)
    }

    /// What a route that was read anew means for the store's pools.
    pub(crate) fn reconcile(&self, node: &Arc<Node>, store: StoreId, route: Option<&Route>) {
        let Some(slot) = self.slot(store) else { return };
        let mut pools = lock(&slot.pools);
        match route {
            Some(route) => {
                slot.confirm(&mut pools, node, route, route.database.as_ref());
            }
            None => slot.replace(&mut pools, node, Some(LeaseError::NoDatabase)),
        }
    }

    fn close_idlest_pool(&self) -> bool {
        let mut idlest: Option<(Instant, Arc<Slot>)> = None;
        for slot in &self.slots {
            let pools = lock(&slot.pools);
            let Some(pool) = pools.current.as_ref().filter(|pool| pool.leases() == 0) else { continue };
            if idlest.as_ref().is_none_or(|(known, _)| pool.last_leased() < *known) {
                idlest = Some((pool.last_leased(), Arc::clone(slot.value())));
            }
        }
        let Some((_, slot)) = idlest else { return false };
        let mut pools = lock(&slot.pools);
        if let Some(pool) = pools.current.take_if(|pool| pool.leases() == 0) {
            self.pools.fetch_sub(1, Ordering::SeqCst);
            pool.drain(Duration::ZERO);
            pools.draining.push(pool);
            count_evictions(Eviction::PoolLimit, 1);
        }
        true
    }

    /// One round of the reaper.
    pub(crate) fn reap(&self, node: &Node, now: Instant) {
        let mut reaped = 0;
        for slot in self.all() {
            let mut pools = lock(&slot.pools);
            reaped += pools.iter().map(|pool| pool.reap(now)).sum::<usize>();
            let is_unused = |pool: &mut Arc<Pool>| {
                pool.leases() == 0 && now.saturating_duration_since(pool.last_leased()) > node.config.pool_idle
            };
            if let Some(pool) = pools.current.take_if(is_unused) {
                self.pools.fetch_sub(1, Ordering::SeqCst);
                pool.drain(Duration::ZERO);
                pools.draining.push(pool);
                count_evictions(Eviction::PoolIdle, 1);
            }
            pools.draining.retain(|pool| pool.explain().open > 0 || pool.leases() > 0);
        }
        self.slots.retain(|_, slot| {
            let mut pools = lock(&slot.pools);
            pools.is_gone = pools.iter().next().is_none() && lock(&slot.breaker).is_forgettable(now, KEEP_ERRORS);
            !pools.is_gone
        });
        count_evictions(Eviction::Reaped, reaped);
        // What was owed while its last connections were lent.
        node.servers.known().iter().for_each(|(_, server)| server.shrink());
    }

    /// Gives no more leases; those that are out may go on until [`Stores::close`].
    pub(crate) fn drain(&self, grace: Duration) {
        self.is_closed.store(true, Ordering::SeqCst);
        for slot in self.all() {
            for pool in lock(&slot.pools).iter() {
                pool.drain(grace);
            }
        }
    }

    /// Closes every pool for good.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        for slot in self.all() {
            for pool in lock(&slot.pools).iter() {
                pool.close(LeaseError::ShuttingDown);
            }
        }
        self.slots.clear();
        self.pools.store(0, Ordering::SeqCst);
    }

    pub(crate) fn leases(&self) -> usize {
        self.slots.iter().map(|slot| lock(&slot.pools).iter().map(|pool| pool.leases()).sum::<usize>()).sum()
    }

    /// The pools with requests that wait, then those with many connections; no more than `most`.
    pub(crate) fn busiest(&self, most: usize) -> Vec<StoreLoad> {
        let now = Instant::now();
        let load = |store_id: StoreId, slot: &Slot| {
            let (pool, draining) = slot.pools();
            let pool = pool?;
            let breaker = lock(&slot.breaker).explain(now).0;
            Some(StoreLoad { store_id, server_id: pool.database.server, pool: pool.explain(), draining, breaker })
        };
        let mut loads: Vec<StoreLoad> = self.slots.iter().filter_map(|slot| load(*slot.key(), slot.value())).collect();
        loads.sort_unstable_by_key(|load| {
            Reverse((load.pool.waiting, load.pool.open - load.pool.idle, load.pool.open, load.store_id))
        });
        loads.truncate(most);
        loads
    }

    pub(crate) fn stats(&self, node: &Node) -> Stats {
        let mut stats = Stats { open: node.servers.in_use(), limit: node.servers.limit(), ..Stats::default() };
        for slot in &self.slots {
            let pools = lock(&slot.pools);
            stats.pools += usize::from(pools.current.is_some());
            stats.draining += pools.draining.len();
            for state in pools.iter().map(|pool| pool.explain()) {
                stats.leases += state.leases;
                stats.idle += state.idle;
                stats.waiting += state.waiting;
                let is_full = state.open >= node.config.max_connections_per_store.max(1);
                stats.saturated += usize::from(is_full && state.waiting > 0);
            }
        }
        stats
    }
}

impl Slot {
    /// Whether no route of this version or a later one was confirmed yet.
    pub(crate) fn is_behind(&self, version: i64) -> bool {
        self.version.load(Ordering::SeqCst) < version
    }

    /// Whether a newer route was seen, or announced, since `route` was confirmed.
    fn is_overtaken(&self, route: &Route) -> bool {
        route.version < self.version.load(Ordering::SeqCst) || route.version < self.floor.load(Ordering::SeqCst)
    }

    /// Brings the current pool in line with `route`; `None` when the route is older than one that was seen before.
    fn confirm(
        &self,
        pools: &mut Pools,
        node: &Arc<Node>,
        route: &Route,
        database: Option<&DatabaseRoute>,
    ) -> Option<()> {
        if self.is_overtaken(route) {
            return None;
        }
        let is_newer = route.version > self.version.load(Ordering::SeqCst);
        if is_newer {
            self.version.store(route.version, Ordering::SeqCst);
        }
        match (&pools.current, database) {
            (Some(pool), Some(database)) if pool.fits(database) => pool.set_status(route.status),
            (Some(_), Some(_)) => self.replace(pools, node, None),
            (Some(_), None) => self.replace(pools, node, Some(LeaseError::NoDatabase)),
            (None, _) => {}
        }
        // After the pool that led to where the route led before is drained: what it still reports does not count.
        if is_newer {
            lock(&self.breaker).route_changed();
        }
        // A store that is served no more is so for leases of an older pool, too.
        if route.status != StoreStatus::Active {
            for pool in &pools.draining {
                pool.set_status(route.status);
            }
        }
        Some(())
    }

    fn replace(&self, pools: &mut Pools, node: &Node, at_once: Option<LeaseError>) {
        let Some(pool) = pools.current.take() else { return };
        node.stores.pools.fetch_sub(1, Ordering::SeqCst);
        count_evictions(Eviction::Replaced, 1);
        match at_once {
            Some(why) => pool.close(why),
            None => pool.drain(node.config.drain_grace),
        }
        pools.draining.push(pool);
    }

    /// The current pool, and how many drain.
    pub(crate) fn pools(&self) -> (Option<Arc<Pool>>, usize) {
        let pools = lock(&self.pools);
        (pools.current.clone(), pools.draining.len())
    }
}

impl Pools {
    fn iter(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.current.iter().chain(&self.draining)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use kernel::{Clock as _, Engine, StoreId, StoreStatus, SystemClock};
    use vault::KeyRing;

    use super::Slot;
    use crate::config::TenancyConfig;
    use crate::credential::{Credential, TlsMode};
    use crate::node::{Node, lock};
    use crate::route::{DatabaseRoute, Route};

    fn node() -> Arc<Node> {
        let keys = KeyRing::parse("test:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").expect("valid");
        Arc::new(Node::new(Arc::new(keys), TenancyConfig { max_pools: 1, ..TenancyConfig::default() }))
    }

    fn route(node: &Node, store_id: StoreId) -> Route {
        let credential = Credential {
            engine: Engine::Postgresql,
            host: "127.0.0.1".to_owned(),
            port: 1,
            username: "u".to_owned(),
            password: "p".to_owned().into(),
            database: "d".to_owned(),
            tls: TlsMode::Disable,
            ca_pem: None,
        };
        let database = DatabaseRoute {
            engine: Engine::Postgresql,
            server: None,
            schema_version: 1,
            sealed: credential.seal(&node.keys, store_id, 1),
            credential_version: 1,
        };
        Route { store_id, status: StoreStatus::Active, version: 1, is_read_only: false, database: Some(database) }
    }

    fn floor() -> Arc<AtomicI64> {
        Arc::new(AtomicI64::new(i64::MIN))
    }

    /// Leases while another store's pool has to make room, and overtakes the route in between.
    async fn lease_while(overtake: impl FnOnce(&Arc<Node>, &Slot, &Route)) {
        let node = node();
        let [mine, other] = [(); 2].map(|()| Arc::new(route(&node, StoreId::new(SystemClock.now()))));
        drop(node.stores.lease(&node, &other, true, &floor));
        let in_the_way = node.stores.slot(other.store_id).expect("it was leased");
        // Who makes room looks at every pool, and so waits here.
        let held = lock(&in_the_way.pools);
        let leasing = tokio::task::spawn_blocking({
            let (node, mine) = (Arc::clone(&node), Arc::clone(&mine));
            move || node.stores.lease(&node, &mine, true, &floor).is_err()
        });
        let slot = loop {
            match node.stores.slot(mine.store_id) {
                Some(slot) if slot.version.load(Ordering::SeqCst) == mine.version => break slot,
                _ => std::thread::yield_now(),
            }
        };
        overtake(&node, &slot, &mine);
        drop(held);
        assert!(leasing.await.expect("it ends"), "a pool was made from an overtaken route");
        assert_eq!(node.stores.stats(&node).pools, 0);
        assert_eq!(node.stores.pools.load(Ordering::SeqCst), 0, "the place was given back");
    }

    #[tokio::test]
    async fn a_route_that_is_overtaken_while_room_is_made_makes_no_pool() {
        lease_while(|node, _, mine| {
            let suspended = Route { version: 2, status: StoreStatus::Suspended, ..mine.clone() };
            node.stores.reconcile(node, mine.store_id, Some(&suspended));
        })
        .await;
    }

    #[tokio::test]
    async fn a_change_that_is_announced_while_room_is_made_counts() {
        lease_while(|_, slot, _| slot.floor.store(2, Ordering::SeqCst)).await;
    }
}
