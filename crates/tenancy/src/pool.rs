//! The pool of one store's database, for one version of its credential and schema.
//!
//! Invariants, each kept under the one lock and never across an await:
//! - `open` counts every physical connection from before its first packet until after its good-bye, and never passes
//!   `max_connections_per_store`; each of them also holds a permit of its server's [`crate::budget`];
//! - idle connections exist only while nobody waits, and who waits is served in order: nobody overtakes;
//! - connections are opened by tasks of their own: a request that goes away wastes no connect, and one that comes back serves
//!   the first in line, whichever is sooner;
//! - who has a connection opens a further one only for who has waited as long as that takes, or when that is waited for over and
//!   over ([`Pool::patience`]): what comes back sooner costs nothing, and whoever opens for each overlap of two requests spends the
//!   server on connects;
//! - while the pool has no connection, one connect goes ahead and the others wait for its verdict;
//! - only a connection that is known to be clean becomes idle: see [`crate::connection`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kernel::{StoreId, StoreStatus};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::breaker::{Breaker, millis};
use crate::budget::Permit;
use crate::closing::Farewell;
use crate::connection::Connection;
use crate::error::{Cause, LeaseError};
use crate::gate::Gate;
use crate::node::{Node, lock};
use crate::opening;
use crate::route::{DatabaseRoute, Route};
use crate::server::Server;
use crate::session::{Backend, Ping, Session};
use crate::stats::PoolState;

/// An open connection with everything that it holds.
pub(crate) struct Physical {
    pub(crate) session: Session,
    pub(crate) backend: Backend,
    pub(crate) permit: Permit,
    pub(crate) opened: Instant,
    pub(crate) expires: Instant,
    pub(crate) since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    Draining { until: Instant },
    Closed(LeaseError),
}

/// So many times as long as connecting takes is waited for what is lent, by all together, before another one is opened for that.
const OVER_AND_OVER: u32 = 8;

type Delivery = Result<Connection, LeaseError>;

/// Somebody who waits for a connection.
pub(crate) struct Waiter {
    since: Instant,
    /// Whether it asks for a visitor of the store.
    is_served: bool,
    to: oneshot::Sender<Delivery>,
}

impl Waiter {
    /// Whether it went away.
    pub(crate) fn is_closed(&self) -> bool {
        self.to.is_closed()
    }
}

pub(crate) struct State {
    #[expect(clippy::vec_box, reason = "a pointer moves between here and the borrower, not the whole connection")]
    pub(crate) idle: Vec<Box<Physical>>,
    pub(crate) waiters: VecDeque<Waiter>,
    /// How long connecting has taken.
    pub(crate) connect_time: Duration,
    /// How long was waited since one was last opened, by those who do not wait any more; less each time that one was idle.
    waited: Duration,
    /// When that was.
    last_opened: Instant,
    /// Whether somebody looks again when the next has waited long enough.
    is_looked_after: bool,
    pub(crate) open: usize,
    pub(crate) opening: usize,
    pub(crate) established: usize,
    pub(crate) backends: Vec<Backend>,
    pub(crate) phase: Phase,
    pub(crate) status: StoreStatus,
    /// A pooler was found out: what is lent is not kept when it comes back.
    pub(crate) is_pooled: bool,
    /// Connections unused since before this moment may have died with another.
    pub(crate) suspect_before: Option<Instant>,
}

pub(crate) struct Pool {
    pub(crate) node: Arc<Node>,
    pub(crate) store: StoreId,
    pub(crate) database: DatabaseRoute,
    /// Where the database is.
    pub(crate) server: Arc<Server>,
    /// Whether it is being asked.
    pub(crate) gate: Gate,
    pub(crate) state: Mutex<State>,
    /// This pool's places in the server's line for permits.
    pub(crate) line: AtomicUsize,
    /// The connections that jobs may use.
    jobs: Arc<Semaphore>,
    /// Whether the server's list of idle connections knows of this pool.
    pub(crate) is_listed: AtomicBool,
    created: Instant,
    leases: AtomicUsize,
    last_leased_ms: AtomicU64,
    pub(crate) closes_when_unused: AtomicBool,
}

enum Taken {
    Sound(Box<Physical>),
    Doubtful(Box<Physical>),
    Wait(oneshot::Receiver<Delivery>),
}

impl Pool {
    pub(crate) fn new(node: Arc<Node>, route: &Route, database: &DatabaseRoute, breaker: Arc<Mutex<Breaker>>) -> Self {
        let server = node.servers.get(database.server);
        let jobs = node.config.max_job_connections_per_store.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            jobs: Arc::new(Semaphore::new(jobs)),
            node,
            store: route.store_id,
            database: database.clone(),
            gate: Gate::new(breaker, server.breaker.clone()),
            server,
            state: Mutex::new(State {
                idle: Vec::new(),
                waiters: VecDeque::new(),
                connect_time: Duration::ZERO,
                waited: Duration::ZERO,
                last_opened: Instant::now(),
                is_looked_after: false,
                open: 0,
                opening: 0,
                established: 0,
                backends: Vec::new(),
                phase: Phase::Open,
                status: route.status,
                is_pooled: false,
                suspect_before: None,
            }),
            line: AtomicUsize::new(0),
            is_listed: AtomicBool::new(false),
            created: Instant::now(),
            leases: AtomicUsize::new(0),
            last_leased_ms: AtomicU64::new(0),
            closes_when_unused: AtomicBool::new(route.status != StoreStatus::Active),
        }
    }

    /// Whether connections of this pool are right for `database`. The seal itself does not count: sealing again under a
    /// new key changes nothing for the server.
    pub(crate) fn fits(&self, database: &DatabaseRoute) -> bool {
        self.database.engine == database.engine
            && self.database.server == database.server
            && self.database.credential_version == database.credential_version
            && self.database.schema_version == database.schema_version
    }

    pub(crate) fn leased(&self) {
        self.leases.fetch_add(1, Ordering::SeqCst);
        self.last_leased_ms.store(millis(self.created.elapsed()), Ordering::Relaxed);
    }

    pub(crate) fn unleased(self: &Arc<Self>) {
        if self.leases.fetch_sub(1, Ordering::SeqCst) == 1 && self.closes_when_unused.load(Ordering::SeqCst) {
            self.close_idle();
        }
    }

    pub(crate) fn leases(&self) -> usize {
        self.leases.load(Ordering::SeqCst)
    }

    pub(crate) fn last_leased(&self) -> Instant {
        self.created + Duration::from_millis(self.last_leased_ms.load(Ordering::Relaxed))
    }

    /// A connection: an idle one, or the next that comes back or opens.
    pub(crate) async fn acquire(self: &Arc<Self>, is_served: bool) -> Result<Connection, LeaseError> {
        loop {
            let now = Instant::now();
            match self.take(now, is_served)? {
                Taken::Sound(physical) => return Ok(Connection::new(Arc::clone(self), physical)),
                Taken::Doubtful(physical) => {
                    let mut connection = Connection::new(Arc::clone(self), physical);
                    match connection.ping().await {
                        Ping::Alive => return Ok(connection),
                        Ping::Dead => {}
                        Ping::Late => self.close_idle(),
                    }
                }
                Taken::Wait(delivery) => {
                    let deadline = now + self.node.config.acquire_timeout;
                    return match timeout_at(deadline, delivery).await {
                        Ok(Ok(delivery)) => delivery,
                        Ok(Err(_)) => Err(LeaseError::Draining),
                        Err(_) => Err(self.waited_too_long()),
                    };
                }
            }
        }
    }

    /// A connection for a job, which has its turn among the jobs first.
    pub(crate) async fn acquire_for_job(self: &Arc<Self>, is_served: bool) -> Result<Connection, LeaseError> {
        let turn = timeout(self.node.config.acquire_timeout, Arc::clone(&self.jobs).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Err(LeaseError::Busy { retry_after: Duration::from_secs(1) }) };
        let mut connection = self.acquire(is_served).await?;
        connection.keep_turn(turn);
        Ok(connection)
    }

    fn take(self: &Arc<Self>, now: Instant, is_served: bool) -> Result<Taken, LeaseError> {
        let config = &self.node.config;
        let mut state = lock(&self.state);
        if let Phase::Closed(why) = state.phase {
            return Err(why);
        }
        if is_served && state.status != StoreStatus::Active {
            return Err(LeaseError::NotServing { status: state.status });
        }
        if let Some(physical) = state.idle.pop() {
            let is_suspect = state.suspect_before.is_some_and(|moment| physical.since < moment);
            let is_rested = now.saturating_duration_since(physical.since) > config.ping_after;
            return Ok(if is_suspect || is_rested { Taken::Doubtful(physical) } else { Taken::Sound(physical) });
        }
        if state.established == 0
            && state.opening > 0
            && let Some(refusal) = self.gate.refusal(now)
        {
            return Err(refusal);
        }
        if state.waiters.len() >= config.max_waiting_per_store {
            state.waiters.retain(|waiter| !waiter.is_closed());
            if state.waiters.len() >= config.max_waiting_per_store {
                return Err(LeaseError::Busy { retry_after: config.acquire_timeout });
            }
        }
        let (to, delivery) = oneshot::channel();
        state.waiters.push_back(Waiter { since: now, is_served, to });
        self.open_for_waiters(&mut state, now);
        Ok(Taken::Wait(delivery))
    }

    fn waited_too_long(&self) -> LeaseError {
        let retry_after = Duration::from_secs(1);
        let state = lock(&self.state);
        // Without any connection and without a place in line for a permit, it is the database that keeps us waiting.
        if state.established == 0 && state.opening > 0 && self.line.load(Ordering::SeqCst) == 0 {
            LeaseError::Unavailable { cause: Cause::Timeout, retry_after }
        } else {
            LeaseError::Busy { retry_after }
        }
    }

    /// How long it is until another connection is opened for the first of those who wait that has no connect under way: nothing,
    /// when its time has come.
    ///
    /// It waits for what is lent to come back as long as connecting takes, so that it never waits twice as long as the better of
    /// the two would have made it; twice as long when another store has to give a connection up, which it will open again. Where
    /// there is room, what is waited for over and over counts together: a connection is opened once, and used for long.
    fn patience(&self, state: &State, now: Instant) -> Duration {
        let price = state.connect_time.min(self.node.config.acquire_timeout / 4);
        let waited = |waiter: &Waiter| now.saturating_duration_since(waiter.since);
        let first = waited(&state.waiters[state.opening]);
        if !self.server.budget.has_room() {
            return (price * 2).saturating_sub(first);
        }
        let since = |waiter: &Waiter| now.saturating_duration_since(waiter.since.max(state.last_opened));
        let waiting = state.waiters.iter().skip(state.opening);
        let together = state.waited + waiting.clone().map(since).sum::<Duration>();
        let count = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
        price.saturating_sub(first).min((price * OVER_AND_OVER).saturating_sub(together) / count)
    }

    /// Sees to it that who waits is looked at again after this time.
    fn look_again(self: &Arc<Self>, state: &mut State, after: Duration) {
        if std::mem::replace(&mut state.is_looked_after, true) {
            return;
        }
        let pool = Arc::clone(self);
        self.node.spawn(async move {
            tokio::time::sleep(after).await;
            let mut state = lock(&pool.state);
            state.is_looked_after = false;
            pool.open_for_waiters(&mut state, Instant::now());
        });
    }

    /// Starts as many connects as there are requests that have waited for long enough, limits and breaker allow.
    pub(crate) fn open_for_waiters(self: &Arc<Self>, state: &mut State, now: Instant) {
        // Each connect under way is for one of them, in their order.
        state.waiters.retain(|waiter| !waiter.is_closed());
        match state.phase {
            Phase::Open => {}
            // What a route led to before is not entered any more: only what is there still serves.
            Phase::Draining { .. } if state.established == 0 => return state.fail_waiters(LeaseError::Draining),
            Phase::Draining { .. } | Phase::Closed(_) => return,
        }
        let wanted = if state.established == 0 { state.waiters.len().min(1) } else { state.waiters.len() };
        while state.opening < wanted && state.open < self.node.config.max_connections_per_store.max(1) {
            if state.established > 0 {
                let patience = self.patience(state, now);
                if !patience.is_zero() {
                    return self.look_again(state, patience);
                }
            }
            let probe_limit = self.node.config.acquire_timeout + self.node.config.connect_timeout * 2;
            if let Err(refusal) = self.gate.admit(now, probe_limit) {
                if state.established == 0 && state.opening == 0 {
                    state.fail_waiters(refusal);
                }
                return;
            }
            state.open += 1;
            state.opening += 1;
            (state.waited, state.last_opened) = (Duration::ZERO, now);
            self.node.spawn(opening::open(Arc::clone(self)));
        }
    }

    /// Takes a clean connection back: for the first who waits, for another store, or for later.
    pub(crate) fn release(self: &Arc<Self>, mut physical: Box<Physical>) {
        let now = Instant::now();
        let config = &self.node.config;
        let budget = &self.server.budget;
        loop {
            let mut state = lock(&self.state);
            let is_over = match state.phase {
                Phase::Closed(_) => true,
                Phase::Draining { .. } => self.leases() == 0,
                Phase::Open => state.status != StoreStatus::Active && self.leases() == 0,
            };
            let is_lent_long = now.saturating_duration_since(physical.opened) >= config.tenure;
            let is_for_others = budget.is_pressed()
                && (budget.excess() > 0
                    || budget.others_lack(&self.line) && (is_lent_long || state.waiters.iter().all(Waiter::is_closed)));
            if is_over || is_for_others || state.is_pooled || now >= physical.expires {
                state.lose_one(self, now);
                drop(state);
                return self.finish(physical, Farewell::Polite);
            }
            let Some(waiter) = state.waiters.pop_front() else {
                physical.since = now;
                state.idle.push(physical);
                state.waited /= 2;
                break;
            };
            let since = waiter.since.max(state.last_opened);
            state.waited += now.saturating_duration_since(since);
            drop(state);
            match waiter.to.send(Ok(Connection::new(Arc::clone(self), physical))) {
                Err(Ok(connection)) => match connection.into_physical() {
                    Some(back) => physical = back,
                    None => return,
                },
                _ => return,
            }
        }
        self.server.list(self, now);
        // Somebody may have joined the line after we looked and before the connection was there to be found.
        if budget.is_pressed() && (budget.excess() > 0 || budget.others_lack(&self.line)) {
            self.close_oldest_idle();
        }
    }

    pub(crate) fn explain(&self) -> PoolState {
        let state = lock(&self.state);
        PoolState {
            age_ms: millis(self.created.elapsed()),
            leases: self.leases(),
            open: state.open,
            idle: state.idle.len(),
            opening: state.opening,
            waiting: state.waiters.iter().filter(|waiter| !waiter.is_closed()).count(),
        }
    }
}

impl State {
    /// The store is not served any more: visitors wait for nothing.
    pub(crate) fn refuse_visitors(&mut self, status: StoreStatus) {
        for waiter in std::mem::take(&mut self.waiters) {
            if waiter.is_served {
                drop(waiter.to.send(Err(LeaseError::NotServing { status })));
            } else {
                self.waiters.push_back(waiter);
            }
        }
    }

    /// One that was established is not any more. Who waits for the last one waits for nothing.
    pub(crate) fn lose_one(&mut self, pool: &Arc<Pool>, now: Instant) {
        self.established -= 1;
        if self.established == 0 {
            pool.open_for_waiters(self, now);
        }
    }

    pub(crate) fn fail_waiters(&mut self, why: LeaseError) {
        for waiter in self.waiters.drain(..) {
            drop(waiter.to.send(Err(why)));
        }
    }
}
