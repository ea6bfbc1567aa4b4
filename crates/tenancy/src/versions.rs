//! What was announced of changes, for all caches of a node.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dashmap::DashMap;
use kernel::StoreId;
use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::breaker::millis;
use crate::node::lock;
use crate::route::Route;

/// After a look-up failed, routes past their time are served without waiting for the next, this long.
const TROUBLE: Duration = Duration::from_secs(1);

/// That look-ups fail is said this often at most.
const TOLD: Duration = Duration::from_secs(60);

/// Of so many gaps it is known up to when what was read before them held; of what is older only when it was read.
const EPOCHS: usize = 16;
/// So much news waits for a listener; one that falls behind is told that it did.
const NEWS: usize = 1024;

/// A store's route at an older version does not count any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteNews {
    /// Whose.
    pub store_id: StoreId,
    /// The lowest version that counts.
    pub version: i64,
}

pub(crate) struct Versions {
    /// The lowest version of each store's route that still counts. An entry is some 60 bytes and is kept.
    floors: DashMap<StoreId, Arc<AtomicI64>>,
    /// Counts announcements, so that a look-up knows whether one came while it was under way.
    pub(crate) changes: AtomicU64,
    /// Counts gaps: what was read before the last one is read again.
    pub(crate) epoch: AtomicU64,
    /// Of an epoch, up to when every change was applied: what was read in it and is not outdated held then.
    followed: Mutex<VecDeque<(u64, Instant)>>,
    /// Counts names that lead elsewhere than was remembered.
    learned: AtomicU64,
    news: broadcast::Sender<RouteNews>,
    /// When a look-up last failed, in milliseconds since `start`, plus one.
    trouble_ms: AtomicU64,
    /// When that was last said, likewise.
    told_ms: AtomicU64,
    /// Since when somebody has asked the directory in vain, and when it was last seen to answer, likewise.
    down_ms: AtomicU64,
    answered_ms: AtomicU64,
    start: Instant,
}

impl Versions {
    pub(crate) fn new() -> Self {
        Self {
            floors: DashMap::new(),
            changes: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            followed: Mutex::default(),
            learned: AtomicU64::new(0),
            news: broadcast::Sender::new(NEWS),
            trouble_ms: AtomicU64::new(0),
            told_ms: AtomicU64::new(0),
            down_ms: AtomicU64::new(0),
            answered_ms: AtomicU64::new(0),
            start: Instant::now(),
        }
    }

    pub(crate) fn floor(&self, store: StoreId) -> Arc<AtomicI64> {
        Arc::clone(&self.floors.entry(store).or_insert_with(|| Arc::new(AtomicI64::new(i64::MIN))))
    }

    /// Whether it is news.
    pub(crate) fn raise(&self, store: StoreId, version: i64) -> bool {
        let is_news = self.floor(store).fetch_max(version, Ordering::SeqCst) < version;
        self.changes.fetch_add(1, Ordering::SeqCst);
        if is_news {
            self.tell(store, version);
        }
        is_news
    }

    /// As [`Versions::raise`], where the directory said so itself, and what was known of the store was this. A store of which
    /// nothing was known is no news.
    pub(crate) fn found(&self, floor: &AtomicI64, store: StoreId, version: i64, known: Option<i64>) {
        let before = floor.fetch_max(version, Ordering::SeqCst);
        if (i64::MIN < before && before < version) || known.is_some_and(|known| known < version) {
            self.tell(store, version);
        }
    }

    /// A name does not lead to this store any more, so the store is at a later version.
    pub(crate) fn lost_name(&self, route: &Route) {
        self.tell(route.store_id, route.version.saturating_add(1));
    }

    fn tell(&self, store_id: StoreId, version: i64) {
        // Nobody has to listen.
        drop(self.news.send(RouteNews { store_id, version }));
    }

    pub(crate) fn forget_all(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.note_learned();
    }

    pub(crate) fn news(&self) -> broadcast::Receiver<RouteNews> {
        self.news.subscribe()
    }

    pub(crate) fn note_learned(&self) {
        self.learned.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn learned(&self) -> u64 {
        self.learned.load(Ordering::Relaxed)
    }

    /// Every change that was made before `at` was applied.
    pub(crate) fn note_followed(&self, at: Instant) {
        self.note_answer();
        let epoch = self.epoch.load(Ordering::SeqCst);
        let mut followed = lock(&self.followed);
        match followed.back_mut() {
            Some((last, until)) if *last == epoch => *until = at.max(*until),
            _ => {
                if followed.len() == EPOCHS {
                    followed.pop_front();
                }
                followed.push_back((epoch, at));
            }
        }
    }

    /// Up to when every change since the last gap was applied.
    pub(crate) fn followed_until(&self) -> Option<Instant> {
        let epoch = self.epoch.load(Ordering::SeqCst);
        lock(&self.followed).back().filter(|(last, _)| *last == epoch).map(|(_, until)| *until)
    }

    /// As of when what was read at `read` in this epoch held, if nothing newer was announced.
    pub(crate) fn held(&self, epoch: u64, read: Instant) -> Instant {
        let followed = lock(&self.followed);
        followed.iter().rev().find(|(known, _)| *known == epoch).map_or(read, |(_, until)| read.max(*until))
    }

    /// A look-up failed just now.
    pub(crate) fn note_trouble(&self) {
        self.trouble_ms.store(millis(self.start.elapsed()) + 1, Ordering::Relaxed);
    }

    /// Whether it is time to say that look-ups fail.
    pub(crate) fn may_tell_trouble(&self) -> bool {
        let now = millis(self.start.elapsed()) + 1;
        let told = self.told_ms.load(Ordering::Relaxed);
        let is_due = told == 0 || now >= told + millis(TOLD);
        is_due && self.told_ms.compare_exchange(told, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// The directory was asked in vain since then; it counts as down until somebody sees it answer, unless somebody has meanwhile.
    pub(crate) fn note_down(&self, since: Instant) {
        let since = millis(since.saturating_duration_since(self.start)) + 1;
        self.down_ms.fetch_max(since, Ordering::Relaxed);
    }

    /// It answered just now.
    pub(crate) fn note_answer(&self) {
        self.answered_ms.fetch_max(millis(self.start.elapsed()) + 1, Ordering::Relaxed);
    }

    pub(crate) fn is_in_trouble(&self, now: Instant) -> bool {
        if self.down_ms.load(Ordering::Relaxed) > self.answered_ms.load(Ordering::Relaxed) {
            return true;
        }
        let failed = self.trouble_ms.load(Ordering::Relaxed);
        failed > 0 && millis(now.saturating_duration_since(self.start)) < failed + millis(TROUBLE)
    }
}
