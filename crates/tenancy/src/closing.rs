//! How connections go: one by one in tasks of their own, each with its permit until the server has seen it go.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kernel::StoreStatus;
use tokio::time::Instant;

use crate::error::{Cause, ConnectError, LeaseError};
use crate::node::lock;
use crate::pool::{Phase, Physical, Pool};
use crate::session::{Backend, Ping};

/// How a connection is got rid of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// It is at rest, or broken: say good-bye.
    Polite,
    /// The server may still work for it: wait for that to end, because until then the server counts it.
    Drain,
}

impl Pool {
    /// Gets rid of a connection that was lent.
    pub(crate) fn retire(self: &Arc<Self>, physical: Box<Physical>, farewell: Farewell) {
        lock(&self.state).lose_one(self, Instant::now());
        self.finish(physical, farewell);
    }

    /// Closes a connection that is no longer counted as established, apart from the request.
    pub(crate) fn finish(self: &Arc<Self>, physical: Box<Physical>, farewell: Farewell) {
        let pool = Arc::clone(self);
        // Counted before the task runs, so that no second connection is given up for the same need. What is drained may
        // take long: nobody should count on it yet.
        let at_once = (farewell != Farewell::Drain).then(|| self.server.budget.closing());
        self.node.spawn(async move {
            let Physical { mut session, backend, permit, .. } = *physical;
            let config = &pool.node.config;
            if farewell == Farewell::Drain {
                // The statement ends by itself or by `statement_timeout`; what it returns is read and thrown away.
                session.ping(config.statement_timeout + config.query_margin).await;
            }
            let closing = at_once.unwrap_or_else(|| pool.server.budget.closing());
            // From the good-bye on a pooler in session mode may give the server's side to the next connection.
            pool.forget(&backend);
            session.close_within(config.close_timeout).await;
            tokio::time::sleep(config.close_linger).await;
            drop(permit);
            drop(closing);
            let mut state = lock(&pool.state);
            state.open -= 1;
            pool.open_for_waiters(&mut state, Instant::now());
        });
    }

    /// The server's side of a connection that is open no longer.
    fn forget(&self, backend: &Backend) {
        let mut state = lock(&self.state);
        if let Some(place) = state.backends.iter().position(|known| known == backend) {
            state.backends.swap_remove(place);
        }
    }

    /// Notes the server's side of a new connection. Two that are open share it behind a transaction pooler only; so one that
    /// was idle is asked whether it is open at all, before that is said: a server that was restarted counts its sessions anew,
    /// and a pooler in session mode deals out again what it has closed.
    pub(crate) async fn admit(self: &Arc<Self>, backend: &Backend) -> Result<(), ConnectError> {
        loop {
            let twin = {
                let mut state = lock(&self.state);
                if !state.backends.contains(backend) {
                    // Looked up and noted at once: of two that open together the second must find the first.
                    state.backends.push(backend.clone());
                    return Ok(());
                }
                let place = state.idle.iter().position(|physical| physical.backend == *backend);
                let twin = place.map(|place| state.idle.remove(place));
                state.established -= usize::from(twin.is_some());
                twin
            };
            let Some(mut twin) = twin else { return Err(ConnectError::new(Cause::TransactionPooler)) };
            let is_open = twin.session.ping(self.node.config.ping_timeout).await == Ping::Alive;
            self.forget(backend);
            twin.backend = Backend::gone();
            self.finish(twin, Farewell::Polite);
            if is_open {
                return Err(ConnectError::new(Cause::TransactionPooler));
            }
        }
    }

    /// What was unused until now is asked before it is lent again.
    pub(crate) fn suspect_idle(&self) {
        lock(&self.state).suspect_before = Some(Instant::now());
    }

    pub(crate) fn close_idle(self: &Arc<Self>) {
        self.close_idle_where(|_| true);
    }

    /// Closes what was unused for too long, or lived long enough; ends a drain whose time is over.
    pub(crate) fn reap(self: &Arc<Self>, now: Instant) -> usize {
        let drained = matches!(lock(&self.state).phase, Phase::Draining { until } if now >= until);
        if drained {
            self.close(LeaseError::Draining);
        }
        let idle_timeout = self.node.config.idle_timeout;
        self.close_idle_where(|physical| {
            now.saturating_duration_since(physical.since) > idle_timeout || now >= physical.expires
        })
    }

    fn close_idle_where(self: &Arc<Self>, mut goes: impl FnMut(&Physical) -> bool) -> usize {
        let gone: Vec<_> = {
            let mut state = lock(&self.state);
            let gone: Vec<_> = state.idle.extract_if(.., |physical| goes(physical)).collect();
            state.established -= gone.len();
            gone
        };
        let count = gone.len();
        for physical in gone {
            self.finish(physical, Farewell::Polite);
        }
        count
    }

    pub(crate) fn oldest_idle(&self) -> Option<Instant> {
        lock(&self.state).idle.first().map(|physical| physical.since)
    }

    pub(crate) fn close_oldest_idle(self: &Arc<Self>) -> bool {
        let mut state = lock(&self.state);
        if state.idle.is_empty() {
            return false;
        }
        let physical = state.idle.remove(0);
        state.established -= 1;
        drop(state);
        self.finish(physical, Farewell::Polite);
        true
    }

    /// A newer route of the same database says what the store is now.
    pub(crate) fn set_status(self: &Arc<Self>, status: StoreStatus) {
        let is_served = status == StoreStatus::Active;
        {
            let mut state = lock(&self.state);
            state.status = status;
            if !is_served {
                state.refuse_visitors(status);
            }
        }
        self.closes_when_unused.store(!is_served, Ordering::SeqCst);
        if !is_served {
            self.close_idle();
        }
    }

    /// Lets the leases that are out go on for `grace`, with the connections that are there: none is opened any more. Then, or when the last is dropped, everything closes.
    pub(crate) fn drain(self: &Arc<Self>, grace: Duration) {
        {
            let mut state = lock(&self.state);
            if state.phase == Phase::Open {
                state.phase = Phase::Draining { until: Instant::now() + grace };
                if state.established == 0 {
                    state.fail_waiters(LeaseError::Draining);
                }
            }
        }
        self.closes_when_unused.store(true, Ordering::SeqCst);
        if self.leases() == 0 {
            self.close_idle();
        }
    }

    /// Gives no more connections, for the reason `why`; those that are lent are closed when they come back.
    pub(crate) fn close(self: &Arc<Self>, why: LeaseError) {
        {
            let mut state = lock(&self.state);
            state.phase = Phase::Closed(why);
            state.fail_waiters(why);
        }
        self.closes_when_unused.store(true, Ordering::SeqCst);
        self.close_idle();
    }
}
