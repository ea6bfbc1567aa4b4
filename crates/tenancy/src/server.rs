//! What a node has to do with one database server: its budget of connections there, which of them are idle, and its breaker.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use dashmap::DashMap;
use kernel::ServerId;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::breaker::Breaker;
use crate::budget::{Budget, Permit};
use crate::config::TenancyConfig;
use crate::meter::{Eviction, count_evictions};
use crate::node::lock;
use crate::pool::Pool;

/// A database server as this node sees it. One is kept for as long as the process lives: some 300 bytes.
pub(crate) struct Server {
    pub(crate) budget: Arc<Budget>,
    /// Nothing for databases that are at no server of ours: what one of them does says nothing of the others.
    pub(crate) breaker: Option<Arc<Mutex<Breaker>>>,
    idle: Idle,
    /// The places in the line of those who ask for no pool.
    line: AtomicUsize,
}

/// The pools that have idle connections, by when the oldest of these was used: exact at its least end, which is all that is
/// asked for. A pool is listed once, under a time that its oldest idle connection is not older than; whoever looks puts
/// those right that come first. So a connection that goes to and fro costs no more than a look at the pool's own mark.
#[derive(Default)]
struct Idle {
    pools: Mutex<BTreeMap<(Instant, u64), Weak<Pool>>>,
    next: AtomicU64,
}

impl Server {
    fn new(limit: usize, wanted: Arc<Notify>, has_breaker: bool) -> Self {
        Self {
            budget: Arc::new(Budget::new(limit, wanted)),
            breaker: has_breaker.then(|| Arc::new(Mutex::new(Breaker::new()))),
            idle: Idle::default(),
            line: AtomicUsize::new(0),
        }
    }

    /// A permit for who asks for no pool, in turn with the pools; nothing when `deadline` comes first.
    pub(crate) async fn reserve(&self, deadline: Instant) -> Option<Permit> {
        if let Some(permit) = self.budget.try_take() {
            return Some(permit);
        }
        let make_room = || {
            self.close_one_idle(None);
        };
        self.budget.wait(&self.line, deadline, make_room).await
    }

    /// Notes that `pool` has an idle connection, which was used at `since`.
    pub(crate) fn list(&self, pool: &Arc<Pool>, since: Instant) {
        if !pool.is_listed.swap(true, Ordering::SeqCst) {
            self.idle.put(since, Arc::downgrade(pool));
        }
    }

    /// Closes the least recently used idle connection of any pool but `asking`; whether there was one.
    pub(crate) fn close_one_idle(&self, asking: Option<&Arc<Pool>>) -> bool {
        let mut put_aside = None;
        let is_closed = loop {
            let Some((since, pool)) = self.idle.take_first() else { break false };
            let Some(pool) = pool.upgrade() else { continue };
            // Taken off before it is looked at: what becomes idle after the look lists it anew.
            pool.is_listed.store(false, Ordering::SeqCst);
            let Some(oldest) = pool.oldest_idle() else { continue };
            if asking.is_some_and(|asking| Arc::ptr_eq(asking, &pool)) {
                put_aside = Some((oldest, pool));
                continue;
            }
            if oldest > since {
                self.list(&pool, oldest);
                continue;
            }
            let is_closed = pool.close_oldest_idle();
            if let Some(next) = pool.oldest_idle() {
                self.list(&pool, next);
            }
            if is_closed {
                break true;
            }
        };
        if let Some((since, pool)) = put_aside {
            self.list(&pool, since);
        }
        if is_closed {
            count_evictions(Eviction::MadeRoom, 1);
        }
        is_closed
    }

    /// Closes idle connections until nothing is owed, or none is idle.
    pub(crate) fn shrink(&self) {
        while self.budget.excess() > 0 && self.close_one_idle(None) {}
    }
}

impl Idle {
    fn put(&self, since: Instant, pool: Weak<Pool>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.pools).insert((since, number), pool);
    }

    fn take_first(&self) -> Option<(Instant, Weak<Pool>)> {
        lock(&self.pools).pop_first().map(|((since, _), pool)| (since, pool))
    }
}

/// The servers that this node has had to do with.
pub(crate) struct Servers {
    known: DashMap<ServerId, Arc<Server>>,
    /// Where databases are that are at no server of ours.
    elsewhere: Arc<Server>,
    limit: usize,
    /// Rung when somebody has to wait for a connection to any of them.
    pub(crate) wanted: Arc<Notify>,
}

impl Servers {
    pub(crate) fn new(config: &TenancyConfig) -> Self {
        let wanted = Arc::new(Notify::new());
        Self {
            known: DashMap::new(),
            elsewhere: Arc::new(Server::new(config.max_connections, Arc::clone(&wanted), false)),
            limit: config.max_connections_per_server,
            wanted,
        }
    }

    /// The server with this id, or where databases without one are.
    pub(crate) fn get(&self, id: Option<ServerId>) -> Arc<Server> {
        let Some(id) = id else { return Arc::clone(&self.elsewhere) };
        let server =
            self.known.entry(id).or_insert_with(|| Arc::new(Server::new(self.limit, Arc::clone(&self.wanted), true)));
        Arc::clone(&server)
    }

    /// Those with an id.
    pub(crate) fn known(&self) -> Vec<(ServerId, Arc<Server>)> {
        self.known.iter().map(|server| (*server.key(), Arc::clone(&server))).collect()
    }

    /// Permits that are out, at all of them.
    pub(crate) fn in_use(&self) -> usize {
        self.all().iter().map(|server| server.budget.in_use()).sum()
    }

    /// What may be out, at all of them.
    pub(crate) fn limit(&self) -> usize {
        self.all().iter().map(|server| server.budget.limit()).sum()
    }

    fn all(&self) -> Vec<Arc<Server>> {
        self.known.iter().map(|server| Arc::clone(&server)).chain([Arc::clone(&self.elsewhere)]).collect()
    }

    /// Returns once every permit came back, which none does before its connection is closed.
    pub(crate) async fn all_closed(&self) {
        for server in self.all() {
            server.budget.at_most(0).await;
        }
    }
}
