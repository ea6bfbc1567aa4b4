//! The log of changes, read on from where this node was, so that no notification that it missed stays missed.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tenancy::StoreChange;
use tokio::time::Instant;

use super::db;
use crate::cx::Cx;
use crate::master::MasterError;

/// How long reading on may take.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// Whoever looked last before this cannot read on: the log is kept for a day.
const KEPT: Duration = Duration::from_secs(20 * 3600);
/// Changes read at one time.
const PAGE: i64 = 1000;

/// How a change was heard of.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    Notification,
    Log,
}

/// One entry of the log.
#[derive(Debug, Clone)]
pub struct LoggedChange {
    pub seq: i64,
    pub change: StoreChange,
    /// When it was made, by master's clock.
    pub at: DateTime<Utc>,
}

/// Reads the log.
#[derive(Default)]
pub struct Reader {
    /// How much later it is at master.
    ahead: TimeDelta,
}

/// Where this node is in the log, once it was read; or where the process before it was.
#[derive(Default)]
pub struct LogPlace(Mutex<Option<Place>>);

/// A place in the log.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The oldest transaction that was under way when the log was last read: what is missing is of this one or a later one.
    pub horizon: i64,
    pub read: Instant,
}

impl LogPlace {
    pub fn get(&self) -> Option<Place> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set(&self, place: Place) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
    }
}

impl Reader {
    /// Takes note of what was committed since this was last called. Who cannot know what that was forgets every route.
    ///
    /// # Errors
    /// When master does not answer in time; then it is as if this had not been called.
    pub async fn catch_up(&mut self, cx: &Cx) -> Result<(), MasterError> {
        let reading = async {
            let mut master = cx.master.acquire().await?;
            let (read, before) = (Instant::now(), cx.clock.now());
            // Asked for first: what is committed between this and the reading is read now, and once more next time.
            let (horizon, at_master) = db::change_horizon(&mut master).await?;
            self.ahead = at_master - (before + (cx.clock.now() - before) / 2);
            match cx.log_place.get().filter(|place| place.read.elapsed() < KEPT && place.horizon <= horizon) {
                Some(place) => {
                    let mut last = 0;
                    loop {
                        let page = db::store_changes_since(&mut master, place.horizon, last, PAGE).await?;
                        let is_last = page.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
                        for LoggedChange { seq, change, at } in page {
                            last = seq;
                            self.apply(cx, change, Some(at), Way::Log);
                        }
                        if is_last {
                            break;
                        }
                    }
                }
                None => cx.stores.forget_all(),
            }
            cx.log_place.set(Place { horizon, read });
            cx.stores.note_followed(read);
            metrics::counter!("tenantry_change_log_reads_total").increment(1);
            Ok::<_, MasterError>(())
        };
        match tokio::time::timeout(READ_LIMIT, reading).await {
            Ok(outcome) => outcome,
            Err(_) => Err(MasterError::Db(sqlx::Error::PoolTimedOut)),
        }
    }

    /// Takes note of one change, and of how long it took to get here, if it is news.
    pub fn apply(&self, cx: &Cx, change: StoreChange, at: Option<DateTime<Utc>>, way: Way) {
        let (store, version) = (change.store_id, change.route_version);
        if !cx.stores.apply(change) {
            return;
        }
        tracing::debug!(store.id = %store, "route of store {store} is now at version {version}");
        let Some(at) = at else { return };
        let took = (cx.clock.now() + self.ahead - at).to_std().unwrap_or_default();
        let way = match way {
            Way::Notification => "notification",
            Way::Log => "log",
        };
        metrics::histogram!("tenantry_route_change_seconds", "way" => way).record(took.as_secs_f64());
    }
}
