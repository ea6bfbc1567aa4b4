//! How a connection comes: a task of its own takes a permit, unseals the credential, connects, and hands over.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::budget::Permit;
use crate::closing::Farewell;
use crate::credential::Credential;
use crate::error::{Cause, ConnectError};
use crate::meter::{ConnectResult, count_connect};
use crate::node::lock;
use crate::pool::{Phase, Physical, Pool, Waiter};
use crate::reach::Reach;
use crate::session::{Backend, Session};

/// Gives the place in the pool's counts back, also when the task dies.
struct Place {
    pool: Arc<Pool>,
    is_kept: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let now = Instant::now();
        let mut state = lock(&self.pool.state);
        state.open -= 1;
        state.opening -= 1;
        self.pool.gate.abandoned(now);
        self.pool.open_for_waiters(&mut state, now);
    }
}

/// Opens one connection for `pool`, which has counted it already.
pub(crate) async fn open(pool: Arc<Pool>) {
    let mut place = Place { pool: Arc::clone(&pool), is_kept: false };
    let Some(permit) = wait_for_permit(&pool).await else { return };
    let deadline = Instant::now() + pool.node.config.connect_timeout;
    let result = timeout_at(deadline, connect(&pool)).await.unwrap_or(Err(ConnectError::new(Cause::Timeout)));
    let result = match result {
        Ok((session, backend, took)) => match pool.admit(&backend).await {
            Ok(()) => Ok((session, backend, took)),
            Err(error) => {
                session.close_within(pool.node.config.close_timeout).await;
                Err(error)
            }
        },
        Err(error) => Err(error),
    };
    match result {
        Ok((session, backend, took)) => {
            place.is_kept = true;
            hand_over(&pool, session, backend, permit, took);
        }
        Err(error) => {
            count_connect(ConnectResult::Failed(error.cause));
            let id = pool.store;
            let cause = error.cause.as_str();
            tracing::warn!(store.id = %id, cause, "the database of store {id} could not be reached: {cause}");
            refuse(&pool, error);
            // A server that refuses counts us a moment longer.
            sleep(pool.node.config.close_linger).await;
            drop(permit);
        }
    }
}

/// A permit, for as long as somebody waits for a connection.
async fn wait_for_permit(pool: &Arc<Pool>) -> Option<Permit> {
    let budget = &pool.server.budget;
    if let Some(permit) = budget.try_take() {
        return Some(permit);
    }
    loop {
        let deadline = Instant::now() + pool.node.config.acquire_timeout;
        let make_room = || {
            pool.server.close_one_idle(Some(pool));
        };
        let permit = budget.wait(&pool.line, deadline, make_room).await;
        if lock(&pool.state).waiters.iter().all(Waiter::is_closed) {
            return None;
        }
        if permit.is_some() {
            return permit;
        }
    }
}

/// A session, and how long connecting took at last.
async fn connect(pool: &Pool) -> Result<(Session, Backend, Duration), ConnectError> {
    let database = &pool.database;
    let reach = match database.server {
        Some(_) => Reach::Anywhere,
        None => pool.node.config.owners_reach,
    };
    let mut pause = Duration::from_millis(10);
    let mut was_ended = false;
    loop {
        let began = Instant::now();
        let opened = {
            // Opened here and dropped here: nothing keeps the secret beyond the connecting.
            let keys = &pool.node.keys;
            let credential = Credential::open(keys, &database.sealed, pool.store, database.credential_version)
                .map_err(|_| ConnectError::new(Cause::Sealed))?;
            Session::open(&credential, reach, &pool.node.setup).await
        };
        match opened {
            // The server may not have noticed yet that another connection of ours has gone.
            Err(error) if error.cause == Cause::TooManyConnections && pause < Duration::from_millis(200) => {
                sleep(pause).await;
                pause *= 2;
            }
            // Somebody ended this one session, which says nothing of the server: one that stops refuses the next.
            Err(error) if matches!(error.code.as_deref(), Some("57P01" | "1927")) && !was_ended => was_ended = true,
            other => return other.map(|(session, backend)| (session, backend, began.elapsed())),
        }
    }
}

fn hand_over(pool: &Arc<Pool>, session: Session, backend: Backend, permit: Permit, took: Duration) {
    count_connect(ConnectResult::Ok);
    let now = Instant::now();
    let lifetime = pool.node.config.max_lifetime;
    let spread = u64::try_from((lifetime / 10).as_millis()).unwrap_or(u64::MAX);
    let expires = now + lifetime.saturating_sub(Duration::from_millis(kernel::random::below(spread)));
    let physical = Box::new(Physical { session, backend, permit, opened: now, expires, since: now });
    let is_wanted = {
        let mut state = lock(&pool.state);
        state.opening -= 1;
        // One that took long by chance is not remembered for long.
        state.connect_time =
            if state.connect_time.is_zero() { took } else { took.min((state.connect_time + took) / 2) };
        // Behind a pooler that was found out while this one was opened, it is no session of the server either.
        let counts = pool.gate.succeeded();
        state.is_pooled &= !counts;
        let is_wanted = counts && state.phase == Phase::Open;
        state.established += usize::from(is_wanted);
        is_wanted
    };
    if is_wanted {
        pool.release(physical);
    } else {
        // The route has changed while it was opened, or it is refused by now.
        pool.finish(physical, Farewell::Polite);
    }
    let mut state = lock(&pool.state);
    pool.open_for_waiters(&mut state, now);
}

/// Tells the breaker, and whoever has nothing left to wait for.
fn refuse(pool: &Arc<Pool>, error: ConnectError) {
    let now = Instant::now();
    let is_pooler = error.cause == Cause::TransactionPooler;
    let mut state = lock(&pool.state);
    state.is_pooled |= is_pooler;
    if state.phase == Phase::Open || !error.cause.needs_change() {
        pool.gate.failed(error, now, &pool.node.config.breaker);
    } else {
        // It was refused what the route said before: that is no word about what it says now.
        pool.gate.abandoned(now);
    }
    if let Some(refusal) = pool.gate.refusal(now)
        && (is_pooler || state.established == 0 && state.opening == 1)
    {
        state.fail_waiters(refusal);
    }
    drop(state);
    if is_pooler {
        pool.close_idle();
    }
}
