//! What was announced of changes, for all caches of a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use kernel::StoreId;
use tokio::time::Instant;

use crate::breaker::millis;

/// After a look-up failed, routes past their time are served without waiting for the next, this long.
const TROUBLE: Duration = Duration::from_secs(1);

pub(crate) struct Versions {
    /// The lowest version of each store's route that still counts. An entry is some 60 bytes and is kept.
    floors: DashMap<StoreId, Arc<AtomicI64>>,
    /// Counts announcements, so that a look-up knows whether one came while it was under way.
    pub(crate) changes: AtomicU64,
    /// Counts gaps: what was read before the last one is read again.
    pub(crate) epoch: AtomicU64,
    /// When a look-up last failed, in milliseconds since `start`, plus one.
    trouble_ms: AtomicU64,
    start: Instant,
}

impl Versions {
    pub(crate) fn new() -> Self {
        Self {
            floors: DashMap::new(),
            changes: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            trouble_ms: AtomicU64::new(0),
            start: Instant::now(),
        }
    }

    pub(crate) fn floor(&self, store: StoreId) -> Arc<AtomicI64> {
        Arc::clone(&self.floors.entry(store).or_insert_with(|| Arc::new(AtomicI64::new(i64::MIN))))
    }

    /// Whether it is news.
    pub(crate) fn raise(&self, store: StoreId, version: i64) -> bool {
        let before = self.floor(store).fetch_max(version, Ordering::SeqCst);
        self.changes.fetch_add(1, Ordering::SeqCst);
        before < version
    }

    pub(crate) fn forget_all(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// A look-up failed just now.
    pub(crate) fn note_trouble(&self) {
        self.trouble_ms.store(millis(self.start.elapsed()) + 1, Ordering::Relaxed);
    }

    pub(crate) fn is_in_trouble(&self, now: Instant) -> bool {
        let failed = self.trouble_ms.load(Ordering::Relaxed);
        failed > 0 && millis(now.saturating_duration_since(self.start)) < failed + millis(TROUBLE)
    }
}
