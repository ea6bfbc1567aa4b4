//! The node's budget of physical connections.
//!
//! Admission rules:
//! 1. A physical connection holds a permit from before its first packet until after its good-bye (and
//!    `close_linger`, because the server's side needs a moment to go). So connections never outnumber permits.
//! 2. Who finds no permit first has the least recently used idle connection of another store closed, then waits. Waiting
//!    is first come, first served; a store has at most `max_connections_per_store` places in the line, so a flood on one
//!    store delays another by that much and no more.
//! 3. A connection that comes back while other stores wait is closed for them, when its own store does not need it, or
//!    when it has served its `tenure`. Never more are closed than wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

pub(crate) struct Budget {
    permits: Arc<Semaphore>,
    limit: usize,
    waiting: AtomicUsize,
    closing: AtomicUsize,
}

/// The right to one physical connection.
pub(crate) struct Permit {
    _permit: OwnedSemaphorePermit,
}

/// Counts a connection that is about to give its permit back.
pub(crate) struct Closing(Arc<Budget>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.closing.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Counts one place in the line.
struct Waiting<'a>(&'a Budget, &'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self {
            permits: Arc::new(Semaphore::new(limit)),
            limit,
            waiting: AtomicUsize::new(0),
            closing: AtomicUsize::new(0),
        }
    }

    pub(crate) const fn limit(&self) -> usize {
        self.limit
    }

    /// Permits that are out: every physical connection, with those being opened or closed.
    pub(crate) fn in_use(&self) -> usize {
        self.limit.saturating_sub(self.permits.available_permits())
    }

    pub(crate) fn try_take(&self) -> Option<Permit> {
        Arc::clone(&self.permits).try_acquire_owned().ok().map(|permit| Permit { _permit: permit })
    }

    /// A permit, in turn. `own` counts the places of the asking pool; `make_room` is called once in the line.
    pub(crate) async fn wait(
        &self,
        own: &AtomicUsize,
        deadline: Instant,
        make_room: impl FnOnce() + Send,
    ) -> Option<Permit> {
        own.fetch_add(1, Ordering::SeqCst);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _place = Waiting(self, own);
        make_room();
        let permit = timeout_at(deadline, Arc::clone(&self.permits).acquire_owned()).await.ok()?.ok()?;
        Some(Permit { _permit: permit })
    }

    /// Whether anybody at all waits: one load, for the way that every request takes.
    pub(crate) fn has_waiters(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Whether pools other than the one with `own` places wait for more permits than are on their way.
    pub(crate) fn others_lack(&self, own: &AtomicUsize) -> bool {
        let waiting = self.waiting.load(Ordering::SeqCst);
        waiting > own.load(Ordering::SeqCst) && waiting > self.closing.load(Ordering::SeqCst)
    }

    /// To be held while a connection closes, and dropped after its permit.
    pub(crate) fn closing(self: &Arc<Self>) -> Closing {
        self.closing.fetch_add(1, Ordering::SeqCst);
        Closing(Arc::clone(self))
    }

    /// Returns once every permit came back, which none does before its connection is closed.
    pub(crate) async fn all_closed(&self) {
        let all = u32::try_from(self.limit).expect("the limit was clamped to 32 bits");
        if let Ok(permits) = self.permits.acquire_many(all).await {
            drop(permits);
        }
    }
}
