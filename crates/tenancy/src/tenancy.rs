//! The front door: names to routes, routes to leases.

use std::sync::Arc;
use std::time::Duration;

use kernel::{Hostname, ServerId, StoreId};
use tokio::sync::broadcast;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tokio_util::sync::CancellationToken;
use vault::KeyRing;

use crate::config::TenancyConfig;
use crate::directory::{Remembered, Routes};
use crate::error::{LeaseError, ResolveError};
use crate::lease::Lease;
use crate::meter;
use crate::node::{Node, lock};
use crate::reservation::Reservation;
use crate::route::{Directory, Route, StoreChange};
use crate::stats::{BreakerState, Explanation, RouteState, ServerLoad, Stats, StoreLoad};
use crate::versions::{RouteNews, Versions};

/// How often a lease looks again when the store changes under it.
const ATTEMPTS: usize = 4;

/// The connection manager of one node. Cheap to clone.
///
/// Dropping the last clone closes the idle connections without waiting; [`Tenancy::shutdown`] waits.
pub struct Tenancy<D> {
    inner: Arc<Inner<D>>,
}

struct Inner<D> {
    node: Arc<Node>,
    versions: Arc<Versions>,
    hosts: Arc<Routes<Hostname, D>>,
    stores: Arc<Routes<StoreId, D>>,
    stop: CancellationToken,
}

impl<D> Drop for Inner<D> {
    fn drop(&mut self) {
        self.stop.cancel();
        self.node.stores.close();
    }
}

impl<D> Clone for Tenancy<D> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<D: Directory> Tenancy<D> {
    /// Starts it, with its one reaper task. Call it inside a Tokio runtime, after the metrics recorder was installed.
    #[must_use]
    pub fn new(directory: D, keys: Arc<KeyRing>, config: TenancyConfig) -> Self {
        meter::describe_metrics();
        let node = Arc::new(Node::new(keys, config));
        let directory = Arc::new(directory);
        let versions = Arc::new(Versions::new());
        let stores = Arc::new(Routes::new(Arc::clone(&node), Arc::clone(&directory), Arc::clone(&versions), None));
        let by_store = Some(Arc::clone(&stores));
        let hosts = Arc::new(Routes::new(Arc::clone(&node), directory, Arc::clone(&versions), by_store));
        let stop = CancellationToken::new();
        node.spawn(reap(Arc::clone(&node), stop.clone()));
        Self { inner: Arc::new(Inner { node, versions, hosts, stores, stop }) }
    }

    /// The route of the store that has this hostname, whatever the store's status.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn resolve_host(&self, host: &Hostname) -> Result<Arc<Route>, ResolveError> {
        self.inner.hosts.resolve(host).await
    }

    /// The route of this store, whatever its status.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn resolve_store(&self, store: StoreId) -> Result<Arc<Route>, ResolveError> {
        self.inner.stores.resolve(&store).await
    }

    /// A lease on a store that is served.
    ///
    /// # Errors
    /// [`LeaseError`]; no database is touched before the first connection is acquired.
    pub async fn lease(&self, route: &Arc<Route>) -> Result<Lease, LeaseError> {
        self.lease_as(route, true).await
    }

    /// A lease on a store whatever its status: for its owner, for provisioning and for ops, never for a storefront.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub async fn lease_unserved(&self, route: &Arc<Route>) -> Result<Lease, LeaseError> {
        self.lease_as(route, false).await
    }

    async fn lease_as(&self, route: &Arc<Route>, is_served: bool) -> Result<Lease, LeaseError> {
        let Inner { node, versions, stores, .. } = &*self.inner;
        let floor = || versions.floor(route.store_id);
        if let Ok(lease) = node.stores.lease(node, route, is_served, &floor) {
            return lease;
        }
        for _ in 0..ATTEMPTS {
            let newer = match stores.look_up(&route.store_id, false).await {
                Ok(Some(newer)) => newer,
                Ok(None) => return Err(LeaseError::NoDatabase),
                Err(_) => return Err(LeaseError::DirectoryUnavailable),
            };
            if let Ok(lease) = node.stores.lease(node, &newer, is_served, &floor) {
                return lease;
            }
        }
        Err(LeaseError::Draining)
    }

    /// Takes note of a change: routes older than it no longer count, from now on and whatever is under way. The store's
    /// pool is brought in line at once, if it has one. Whether it is news.
    pub fn apply(&self, change: StoreChange) -> bool {
        let StoreChange { store_id, route_version, hostnames } = change;
        let Inner { node, versions, hosts, stores, .. } = &*self.inner;
        let is_news = versions.raise(store_id, route_version);
        for host in &hostnames {
            hosts.forget_unknown(host);
        }
        stores.forget_unknown(&store_id);
        if node.stores.slot(store_id).is_some_and(|slot| slot.is_behind(route_version)) {
            let (node, stores) = (Arc::clone(node), Arc::clone(stores));
            self.inner.node.spawn(async move { reconcile(&node, &stores, store_id).await });
        }
        is_news
    }

    /// Takes note that somebody saw the store's database well, after it was in trouble: the next request tries it, however
    /// long nobody was to; and in a session that begins now, as what was mended may be set for those that begin.
    pub fn try_again(&self, store: StoreId) {
        let Some(slot) = self.inner.node.stores.slot(store) else { return };
        match slot.pools().0 {
            Some(pool) => {
                pool.gate.try_again(Instant::now());
                pool.close_idle();
            }
            None => lock(&slot.breaker).try_again(Instant::now()),
        }
    }

    /// As [`Tenancy::try_again`] for every store: somebody may have said so while nobody heard it.
    pub fn try_all_again(&self) {
        self.inner.node.stores.try_all_again();
    }

    /// Takes note that changes may have been missed: every route is read again before it counts, while the directory
    /// answers.
    pub fn forget_all(&self) {
        let Inner { node, versions, hosts, stores, .. } = &*self.inner;
        versions.forget_all();
        hosts.forget_all_unknown();
        stores.forget_all_unknown();
        let (node, stores) = (Arc::clone(node), Arc::clone(stores));
        self.inner.node.spawn(async move {
            for store in node.stores.with_pools() {
                reconcile(&node, &stores, store).await;
            }
        });
    }

    /// Takes note that every change that was made before `at` has been applied: what is remembered held then, but for what a
    /// change has outdated, and is served for [`DirectoryConfig::max_stale`](crate::DirectoryConfig::max_stale) from then when
    /// the directory does not answer. To be called by who reads a log of changes, for what it read to its end since
    /// [`Tenancy::forget_all`].
    pub fn note_followed(&self, at: Instant) {
        self.inner.versions.note_followed(at);
    }

    /// Takes note that the directory was asked in vain since then. Until somebody sees it answer, what may be served without it is
    /// served at once, and not after one has waited for it in vain; every such request looks whether it answers, in the background.
    /// Of no account when it was seen to answer since then.
    pub fn note_directory_down(&self, since: Instant) {
        self.inner.versions.note_down(since);
    }

    /// Up to when changes have been followed since the last gap in them.
    #[must_use]
    pub fn followed_until(&self) -> Option<Instant> {
        self.inner.versions.followed_until()
    }

    /// What is remembered of hostnames and would be served now if the directory did not answer: for a process that follows
    /// this one.
    #[must_use]
    pub fn remembered(&self) -> Vec<Remembered> {
        self.inner.hosts.remembered()
    }

    /// Takes note of what an earlier process remembered. It counts while the directory does not answer, and until it is too old
    /// ([`DirectoryConfig::max_stale`](crate::DirectoryConfig::max_stale)); otherwise it is read anew. Returns of how many
    /// hostnames that was news.
    pub fn remember(&self, remembered: impl IntoIterator<Item = Remembered>) -> usize {
        remembered.into_iter().filter(|one| self.inner.hosts.remember(one)).count()
    }

    /// Another number than before when [`Tenancy::remembered`] has something new to say.
    #[must_use]
    pub fn learned(&self) -> u64 {
        self.inner.versions.learned()
    }

    /// Hears of every store whose older routes do not count any more, from now on.
    #[must_use]
    pub fn news(&self) -> broadcast::Receiver<RouteNews> {
        self.inner.versions.news()
    }

    /// The right to one connection to a server that the caller opens outside every pool. It counts as those of the pools do, and
    /// has its turn as theirs have.
    ///
    /// # Errors
    /// [`LeaseError::Busy`] when there is none for as long as a request would wait ([`TenancyConfig::acquire_timeout`]) or `limit`,
    /// whichever is longer; [`LeaseError::ShuttingDown`].
    pub async fn reserve(&self, server: ServerId, limit: Duration) -> Result<Reservation, LeaseError> {
        let Inner { node, stop, .. } = &*self.inner;
        let limit = limit.max(node.config.acquire_timeout);
        let server = node.servers.get(Some(server));
        match stop.run_until_cancelled(server.reserve(Instant::now() + limit)).await {
            Some(Some(permit)) => Ok(Reservation::new(Arc::clone(node), permit)),
            Some(None) => Err(LeaseError::Busy { retry_after: Duration::from_secs(1) }),
            None => Err(LeaseError::ShuttingDown),
        }
    }

    /// What this node may have open at a server from now on. A higher limit serves those who wait at once; after a lower one
    /// nothing is opened until what is open fits it, idle connections are closed at once, and those that are lent when they
    /// come back: [`Tenancy::server_fits`] waits for that.
    pub fn set_server_limit(&self, server: ServerId, limit: usize) {
        let server = self.inner.node.servers.get(Some(server));
        server.budget.set_limit(limit);
        server.shrink();
    }

    /// Returns once this node has no more connections at a server than it may have.
    pub async fn server_fits(&self, server: ServerId) {
        let server = self.inner.node.servers.get(Some(server));
        server.budget.at_most(server.budget.limit()).await;
    }

    /// What this node has open, and needs, at each server that it had to do with.
    #[must_use]
    pub fn server_loads(&self) -> Vec<ServerLoad> {
        let load = |(server_id, server): (ServerId, Arc<crate::server::Server>)| ServerLoad {
            server_id,
            limit: server.budget.limit(),
            open: server.budget.in_use(),
            waiting: server.budget.waiting(),
            peak: server.budget.peak(),
            breaker: server.breaker.as_ref().map_or(BreakerState::Closed, |of| lock(of).explain(Instant::now()).0),
        };
        self.inner.node.servers.known().into_iter().map(load).collect()
    }

    /// What was needed most is counted anew from now on.
    pub fn forget_server_peaks(&self) {
        self.inner.node.servers.known().iter().for_each(|(_, server)| server.budget.forget_peak());
    }

    /// Returns when somebody has had to wait for a connection to a server since this was last asked. For one who asks.
    pub async fn server_wanted(&self) {
        self.inner.node.servers.wanted.notified().await;
    }

    /// The whole node in numbers.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let Inner { node, hosts, stores, .. } = &*self.inner;
        Stats { routes: hosts.len() + stores.len(), ..node.stores.stats(node) }
    }

    /// The pools of this node, `most` of them: those with requests that wait first, then those with many connections.
    #[must_use]
    pub fn pools(&self, most: usize) -> Vec<StoreLoad> {
        self.inner.node.stores.busiest(most)
    }

    /// What this node knows of a store, without asking the directory; `None` when it knows nothing.
    pub fn explain(&self, store: StoreId) -> Option<Explanation> {
        self.explain_with(store, self.inner.stores.peek(&store))
    }

    /// What this node knows of the store that has this hostname, without asking the directory.
    pub fn explain_host(&self, host: &Hostname) -> Option<Explanation> {
        let (route, state) = self.inner.hosts.peek(host)?;
        self.explain_with(route.store_id, Some((route, state)))
    }

    fn explain_with(&self, store_id: StoreId, known: Option<(Arc<Route>, RouteState)>) -> Option<Explanation> {
        let server = known.as_ref().and_then(|(route, _)| route.database.as_ref()?.server);
        let loads = self.server_loads();
        let server_limit = loads.iter().find(|load| Some(load.server_id) == server).map(|load| load.limit);
        let route = known.map(|(_, state)| state);
        let Some(slot) = self.inner.node.stores.slot(store_id) else {
            let breaker = BreakerState::Closed;
            return route.map(|route| Explanation {
                store_id,
                route: Some(route),
                pool: None,
                draining: 0,
                breaker,
                server_breaker: None,
                server_limit,
                last_error: None,
            });
        };
        let (pool, draining) = slot.pools();
        let now = Instant::now();
        let (breaker, last_error) = lock(&slot.breaker).explain(now);
        let server_breaker =
            pool.as_ref().and_then(|pool| pool.server.breaker.as_ref()).map(|of| lock(of).explain(now).0);
        let pool = pool.map(|pool| pool.explain());
        Some(Explanation { store_id, route, pool, draining, breaker, server_breaker, server_limit, last_error })
    }

    /// Gives no more leases, waits up to `grace` for those that are out, then closes every connection for real.
    /// Returns the number of connections that were still in use and could not be closed.
    pub async fn shutdown(&self, grace: Duration) -> usize {
        let Inner { node, stop, .. } = &*self.inner;
        let deadline = Instant::now() + grace;
        node.stores.drain(grace);
        let mut look = interval(Duration::from_millis(10));
        while node.stores.leases() > 0 && Instant::now() < deadline {
            look.tick().await;
        }
        stop.cancel();
        node.stores.close();
        let config = &node.config;
        let last_words = Instant::now() + config.close_timeout + config.close_linger * 2 + Duration::from_millis(100);
        let is_closed = timeout_at(deadline.max(last_words), node.servers.all_closed()).await.is_ok();
        node.tracker.close();
        if is_closed {
            drop(timeout_at(last_words, node.tracker.wait()).await);
        }
        node.servers.in_use()
    }
}

/// Reads a store's route anew and brings its pools in line with it.
async fn reconcile<D: Directory>(node: &Arc<Node>, stores: &Arc<Routes<StoreId, D>>, store: StoreId) {
    // Without an answer nothing is done: a lease finds its route outdated, and asks again.
    if let Ok(route) = stores.look_up(&store, false).await {
        node.stores.reconcile(node, store, route.as_deref());
    }
}

/// The one reaper: closes what is unused, and publishes the gauges.
async fn reap(node: Arc<Node>, stop: CancellationToken) {
    let mut tick = interval(node.config.reap_interval.max(Duration::from_millis(1)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        node.stores.reap(&node, Instant::now());
        meter::publish(&node.stores.stats(&node));
    }
}
