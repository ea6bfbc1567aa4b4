//! Routes that this node remembers, in front of a [`Directory`].
//!
//! Invariants:
//! - while the directory answers, a route that is served is at most `refresh` old; one in use is read again in the
//!   background before that, so nobody waits for it. While it does not answer, a route is served for `max_stale` since it
//!   was known to hold: since it was read, or since every change was applied that was made before a moment
//!   ([`Versions::note_followed`]). That it does not answer is known from a look-up that failed within a second, or from who was
//!   asking for something else ([`Versions::note_down`]), and holds until one is answered: the first request after that asks in the
//!   background and is served as in the outage;
//! - a route older than a change that was announced ([`Versions::raise`]) is never served, whether it was remembered
//!   before or its look-up was under way; nor is a name remembered as unknown across a change that names it;
//! - however many ask for a name at once, one look-up is under way for it;
//! - what an earlier process remembered ([`Routes::remember`]) counts only while the directory does not answer;
//! - distinct unknown names reach the directory at a limited rate; names that are remembered, known or not, do not pay.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{Hash, RandomState};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use kernel::{Hostname, StoreId};
use quick_cache::UnitWeighter;
use quick_cache::sync::{Cache, DefaultLifecycle};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use crate::breaker::millis;
use crate::config::DirectoryConfig;
use crate::error::ResolveError;
use crate::limiter::Limiter;
use crate::meter::{Lookup, lookup_counter};
use crate::node::{Node, lock};
use crate::route::{Directory, DirectoryError, Route};
use crate::stats::RouteState;
use crate::unknown::Unknown;
use crate::versions::Versions;

/// What another process read is of no epoch of this one.
const NO_EPOCH: u64 = u64::MAX;

/// A look-up that meets a change is repeated this often before it gives up.
const ATTEMPTS: usize = 4;

/// What a route is asked for by.
pub(crate) trait Key: Hash + Eq + Clone + Send + Sync + 'static {
    const UNKNOWN: ResolveError;

    fn find<D: Directory>(&self, directory: &D) -> impl Future<Output = Result<Option<Route>, DirectoryError>> + Send;
}

impl Key for Hostname {
    const UNKNOWN: ResolveError = ResolveError::UnknownHost;

    fn find<D: Directory>(&self, directory: &D) -> impl Future<Output = Result<Option<Route>, DirectoryError>> + Send {
        directory.find_by_hostname(self)
    }
}

impl Key for StoreId {
    const UNKNOWN: ResolveError = ResolveError::UnknownStore;

    fn find<D: Directory>(&self, directory: &D) -> impl Future<Output = Result<Option<Route>, DirectoryError>> + Send {
        directory.find_by_store(*self)
    }
}

struct Known {
    route: Arc<Route>,
    read: Instant,
    epoch: u64,
    floor: Arc<AtomicI64>,
    is_refreshing: AtomicBool,
}

impl Known {
    /// Whether a change that is newer than this was announced.
    fn is_outdated(&self) -> bool {
        self.route.version < self.floor.load(Ordering::SeqCst)
    }
}

/// A name, where it leads, and as of when that was so.
#[derive(Debug, Clone)]
pub struct Remembered {
    /// The name.
    pub hostname: Hostname,
    /// Where it leads, whatever the store's status.
    pub route: Arc<Route>,
    /// As of when.
    pub held: Instant,
    /// Whether changes of it have been followed since: then it also held at
    /// [`Tenancy::followed_until`](crate::Tenancy::followed_until), unless there was news of its store.
    pub is_followed: bool,
}

type Answer = Result<Option<Arc<Route>>, ResolveError>;

/// The routes of one kind of key.
pub(crate) struct Routes<K, D> {
    node: Arc<Node>,
    directory: Arc<D>,
    versions: Arc<Versions>,
    known: Cache<K, Arc<Known>, UnitWeighter, RandomState>,
    unknown: Unknown<K>,
    flights: Mutex<HashMap<K, watch::Receiver<Option<Answer>>>>,
    /// Where what was read by hostname is remembered by store, too.
    by_store: Option<Arc<Routes<StoreId, D>>>,
    lookups: Semaphore,
    limiter: Limiter,
    hits: metrics::Counter,
}

/// A memory of so many. Names come from outside, so their hashes have a secret.
fn bounded<K: Key>(most: u64) -> Cache<K, Arc<Known>, UnitWeighter, RandomState> {
    let items = usize::try_from(most).unwrap_or(usize::MAX);
    Cache::with(items, most, UnitWeighter, RandomState::new(), DefaultLifecycle::default())
}

impl<K: Key, D: Directory> Routes<K, D> {
    pub(crate) fn new(
        node: Arc<Node>,
        directory: Arc<D>,
        versions: Arc<Versions>,
        by_store: Option<Arc<Routes<StoreId, D>>>,
    ) -> Self {
        let config = &node.config.directory;
        Self {
            known: bounded(config.max_routes),
            unknown: Unknown::new(config.max_unknown, config.unknown_ttl),
            flights: Mutex::new(HashMap::new()),
            lookups: Semaphore::new(config.max_lookups.max(1)),
            limiter: Limiter::new(config.unknown_per_second, config.unknown_burst),
            by_store,
            hits: lookup_counter(Lookup::Hit),
            node,
            directory,
            versions,
        }
    }

    /// The route, from memory if that is fresh enough.
    pub(crate) async fn resolve(self: &Arc<Self>, key: &K) -> Result<Arc<Route>, ResolveError> {
        let now = Instant::now();
        let Some(known) = self.known.get(key) else {
            if self.unknown.contains(key, now) {
                lookup_counter(Lookup::Negative).increment(1);
                return Err(K::UNKNOWN);
            }
            return self.look_up(key, true).await?.ok_or(K::UNKNOWN);
        };
        let config: &DirectoryConfig = &self.node.config.directory;
        let age = now.saturating_duration_since(known.read);
        let is_suspect = known.epoch != self.versions.epoch.load(Ordering::SeqCst);
        let is_outdated = known.is_outdated();
        if !is_suspect && !is_outdated && age < config.refresh {
            if age >= config.refresh / 4 * 3 && !known.is_refreshing.swap(true, Ordering::Relaxed) {
                drop(self.flight(key, false));
            }
            self.hits.increment(1);
            return Ok(Arc::clone(&known.route));
        }
        let held = self.versions.held(known.epoch, known.read);
        let may_be_stale = !is_outdated && now.saturating_duration_since(held) < config.max_stale;
        if may_be_stale && self.versions.is_in_trouble(now) {
            drop(self.flight(key, false));
            lookup_counter(Lookup::Stale).increment(1);
            return Ok(Arc::clone(&known.route));
        }
        match self.look_up(key, false).await {
            Ok(route) => route.ok_or(K::UNKNOWN),
            // It may have been outdated while we waited: a suspended store stays suspended.
            Err(ResolveError::DirectoryUnavailable) if may_be_stale && !known.is_outdated() => {
                lookup_counter(Lookup::Stale).increment(1);
                Ok(Arc::clone(&known.route))
            }
            Err(error) => Err(error),
        }
    }

    /// The directory's answer, shared with everybody who asks meanwhile.
    pub(crate) async fn look_up(self: &Arc<Self>, key: &K, is_limited: bool) -> Answer {
        let mut flight = self.flight(key, is_limited);
        match flight.wait_for(Option::is_some).await {
            Ok(answer) => answer.clone().unwrap_or(Err(ResolveError::DirectoryUnavailable)),
            // The task died with its sender.
            Err(_) => Err(ResolveError::DirectoryUnavailable),
        }
    }

    fn flight(self: &Arc<Self>, key: &K, is_limited: bool) -> watch::Receiver<Option<Answer>> {
        let mut flights = lock(&self.flights);
        // A flight whose sender is gone without an answer was a task that died.
        if let Some(flight) = flights.get(key).filter(|flight| flight.has_changed().is_ok()) {
            return flight.clone();
        }
        let (sender, flight) = watch::channel(None);
        flights.insert(key.clone(), flight.clone());
        drop(flights);
        let (routes, key) = (Arc::clone(self), key.clone());
        self.node.spawn(async move {
            let answer = routes.read(&key, is_limited).await;
            lock(&routes.flights).remove(&key);
            drop(sender.send(Some(answer)));
        });
        flight
    }

    async fn read(&self, key: &K, is_limited: bool) -> Answer {
        let config = &self.node.config.directory;
        let Ok(Ok(_turn)) = timeout(config.lookup_timeout, self.lookups.acquire()).await else {
            return self.failed(key);
        };
        if is_limited && let Err(retry_after) = self.limiter.take() {
            lookup_counter(Lookup::Limited).increment(1);
            return Err(ResolveError::TooManyUnknown { retry_after });
        }
        lookup_counter(Lookup::Miss).increment(1);
        for _ in 0..ATTEMPTS {
            let changes = self.versions.changes.load(Ordering::SeqCst);
            let epoch = self.versions.epoch.load(Ordering::SeqCst);
            let read = Instant::now();
            let found = timeout(config.lookup_timeout, key.find(&*self.directory)).await;
            if let Ok(Ok(_)) = &found {
                self.versions.note_answer();
            }
            match found {
                Ok(Ok(Some(route))) => {
                    let floor = self.versions.floor(route.store_id);
                    if route.version < floor.load(Ordering::SeqCst) {
                        continue;
                    }
                    // What is known anywhere of the store is at least this new from now on.
                    let before = self.known_version(key, route.store_id);
                    self.versions.found(&floor, route.store_id, route.version, before);
                    if is_limited {
                        self.limiter.give_back();
                    }
                    let route = Arc::new(route);
                    let known = self.known.get(key);
                    let lost = known.clone().filter(|known| known.route.store_id != route.store_id);
                    let is_as_known = known.is_some_and(|known| known.epoch == epoch && known.route == route);
                    let is_refreshing = AtomicBool::new(false);
                    let known = Known { route: Arc::clone(&route), read, epoch, floor, is_refreshing };
                    self.known.insert(key.clone(), Arc::new(known));
                    self.unknown.remove(key);
                    // After it is not known any more: whoever hears of it finds the name gone from there.
                    if let Some(lost) = lost {
                        self.versions.lost_name(&lost.route);
                    }
                    if let Some(by_store) = &self.by_store {
                        if !is_as_known {
                            self.versions.note_learned();
                        }
                        by_store.learn(&route, read, epoch);
                    }
                    return Ok(Some(route));
                }
                Ok(Ok(None)) => {
                    if self.versions.changes.load(Ordering::SeqCst) != changes {
                        continue;
                    }
                    if let Some((_, known)) = self.known.remove(key) {
                        self.versions.lost_name(&known.route);
                        self.versions.note_learned();
                    }
                    self.unknown.insert(key.clone(), Instant::now());
                    // A change between the check and the insert would otherwise be missed for the whole TTL.
                    if self.versions.changes.load(Ordering::SeqCst) != changes {
                        self.unknown.remove(key);
                    }
                    return Ok(None);
                }
                Ok(Err(error)) => {
                    if self.versions.may_tell_trouble() {
                        let error: &dyn std::error::Error = &error;
                        tracing::warn!(error, "the directory did not answer: {error}");
                    }
                    break;
                }
                Err(_) => {
                    if self.versions.may_tell_trouble() {
                        tracing::warn!("the directory did not answer in time");
                    }
                    break;
                }
            }
        }
        if is_limited {
            self.limiter.give_back();
        }
        self.failed(key)
    }

    /// The version that is remembered of a store, by its id or by this name of it.
    fn known_version(&self, key: &K, store: StoreId) -> Option<i64> {
        let by_store = self.by_store.as_ref().and_then(|by_store| by_store.known.get(&store));
        let by_key = self.known.get(key).filter(|known| known.route.store_id == store);
        by_store.into_iter().chain(by_key).map(|known| known.route.version).min()
    }

    fn failed(&self, key: &K) -> Answer {
        self.versions.note_trouble();
        lookup_counter(Lookup::Failed).increment(1);
        if let Some(known) = self.known.get(key) {
            known.is_refreshing.store(false, Ordering::Relaxed);
        }
        Err(ResolveError::DirectoryUnavailable)
    }

    pub(crate) fn forget_unknown(&self, key: &K) {
        self.unknown.remove(key);
    }

    pub(crate) fn forget_all_unknown(&self) {
        self.unknown.clear();
    }

    pub(crate) fn len(&self) -> u64 {
        self.known.len() as u64
    }

    /// What is remembered, without asking anybody.
    pub(crate) fn peek(&self, key: &K) -> Option<(Arc<Route>, RouteState)> {
        let known = self.known.get(key)?;
        let held = self.versions.held(known.epoch, known.read);
        let stale_for = self.node.config.directory.max_stale.saturating_sub(held.elapsed());
        let is_overtaken = known.is_outdated();
        let state = RouteState {
            status: known.route.status,
            version: known.route.version,
            age_ms: millis(known.read.elapsed()),
            is_overtaken,
            stale_for_ms: if is_overtaken { 0 } else { millis(stale_for) },
            is_outdated: known.is_outdated() || known.epoch != self.versions.epoch.load(Ordering::SeqCst),
        };
        Some((Arc::clone(&known.route), state))
    }
}

impl<D: Directory> Routes<Hostname, D> {
    /// What would be served while the directory does not answer.
    pub(crate) fn remembered(&self) -> Vec<Remembered> {
        let (now, max_stale) = (Instant::now(), self.node.config.directory.max_stale);
        let remembered = self.known.iter().filter(|(_, known)| !known.is_outdated()).map(|(hostname, known)| {
            let held = self.versions.held(known.epoch, known.read);
            let is_followed = known.epoch == self.versions.epoch.load(Ordering::SeqCst);
            Remembered { hostname, route: Arc::clone(&known.route), held, is_followed }
        });
        remembered.filter(|of| now.saturating_duration_since(of.held) < max_stale).collect()
    }

    /// Takes note of what an earlier process remembered, unless more is known by now. Whether it is of use.
    pub(crate) fn remember(&self, Remembered { hostname, route, held, .. }: &Remembered) -> bool {
        let floor = self.versions.floor(route.store_id);
        let is_old = held.elapsed() >= self.node.config.directory.max_stale;
        if is_old || route.version < floor.load(Ordering::SeqCst) || self.known.contains_key(hostname) {
            return false;
        }
        // It is read again before it counts, if that can be.
        let epoch = NO_EPOCH;
        let is_refreshing = AtomicBool::new(false);
        let known = Known { route: Arc::clone(route), read: *held, epoch, floor, is_refreshing };
        self.known.insert(hostname.clone(), Arc::new(known));
        if let Some(by_store) = &self.by_store {
            by_store.learn(route, *held, epoch);
        }
        true
    }
}

impl<D: Directory> Routes<StoreId, D> {
    /// Remembers what was read by hostname, so that a store known by its hostname is known by its id in an outage.
    fn learn(&self, route: &Arc<Route>, read: Instant, epoch: u64) {
        let is_newer = |known: Arc<Known>| (known.route.version, known.read) >= (route.version, read);
        if self.known.get(&route.store_id).is_some_and(is_newer) {
            return;
        }
        let floor = self.versions.floor(route.store_id);
        let is_refreshing = AtomicBool::new(false);
        let known = Known { route: Arc::clone(route), read, epoch, floor, is_refreshing };
        self.known.insert(route.store_id, Arc::new(known));
        self.unknown.remove(&route.store_id);
    }
}
