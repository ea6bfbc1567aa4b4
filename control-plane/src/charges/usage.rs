//! What a node counts of stores while it answers: in memory, by store and UTC day, written to master now and then and when the
//! node drains.
//!
//! What is counted is taken out in numbered batches, one after the other. A batch whose outcome is not known is sent again as it
//! was, under its number, and added once; the next one is made when it is known to be in. What a process that is killed has not
//! sent is lost: this is a metric, and what is lost is not charged. What comes after its day was settled, because master was
//! away, is shown and need not be charged.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::NaiveDate;
use dashmap::DashMap;
use kernel::StoreId;
use uuid::Uuid;

use super::{REQUESTS, db};
use crate::cx::OpsCx;
use crate::http::errors::chain;

/// The most stores, or days of them, that are counted between two batches.
const MAX_COUNTED: usize = 100_000;
/// The most of them in one batch.
const MAX_BATCH: usize = 5000;
/// The longest that draining waits for what is left to be written.
const LAST_LIMIT: Duration = Duration::from_secs(3);

/// The counts of this process.
pub struct UsageMeter {
    /// Names the process in master.
    node: String,
    requests: DashMap<(StoreId, NaiveDate), AtomicI64>,
    sending: Mutex<Sending>,
}

#[derive(Default)]
struct Sending {
    last_number: i64,
    /// Taken out, and not known to be in.
    batch: Option<Arc<Batch>>,
}

/// What is sent at one time, column by column.
#[derive(Debug)]
pub struct Batch {
    pub number: i64,
    pub stores: Vec<Uuid>,
    pub days: Vec<NaiveDate>,
    pub quantities: Vec<i64>,
}

impl Default for UsageMeter {
    fn default() -> Self {
        Self { node: kernel::random::token(), requests: DashMap::new(), sending: Mutex::default() }
    }
}

impl UsageMeter {
    /// Counts a request that was answered: one look-up, unless it is the store's first of the day.
    pub fn count_request(&self, store: StoreId, day: NaiveDate) {
        let key = (store, day);
        if let Some(count) = self.requests.get(&key) {
            count.fetch_add(1, Ordering::Relaxed);
        } else if self.requests.len() < MAX_COUNTED {
            self.requests.entry(key).or_default().fetch_add(1, Ordering::Relaxed);
        } else {
            metrics::counter!("tenantry_usage_counts_lost_total").increment(1);
        }
    }

    /// The batch to be sent: the one that was taken out before, or a new one; none when nothing was counted.
    fn batch(&self, today: NaiveDate) -> Option<Arc<Batch>> {
        let mut sending = self.sending();
        if sending.batch.is_none() {
            sending.batch = self.take(sending.last_number + 1, today).map(Arc::new);
            sending.last_number += i64::from(sending.batch.is_some());
        }
        sending.batch.clone()
    }

    fn take(&self, number: i64, today: NaiveDate) -> Option<Batch> {
        let mut batch = Batch { number, stores: Vec::new(), days: Vec::new(), quantities: Vec::new() };
        // Who counts holds the entry's shard meanwhile, so nothing is counted on an entry that goes.
        self.requests.retain(|&(store, day), count| {
            if batch.stores.len() == MAX_BATCH {
                return true;
            }
            let quantity = count.swap(0, Ordering::Relaxed);
            if quantity > 0 {
                batch.stores.push(store.as_uuid());
                batch.days.push(day);
                batch.quantities.push(quantity);
            }
            quantity > 0 && day >= today
        });
        (!batch.stores.is_empty()).then_some(batch)
    }

    /// The batch is known to be in.
    fn sent(&self, batch: &Batch) {
        let mut sending = self.sending();
        if sending.batch.as_ref().is_some_and(|waiting| waiting.number == batch.number) {
            sending.batch = None;
        }
    }

    fn sending(&self) -> MutexGuard<'_, Sending> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what was counted to master. It may be dropped at any point, and several may run at once.
pub async fn flush(cx: &OpsCx) -> Result<(), sqlx::Error> {
    // What is counted while this runs is left for the next time, so that it ends.
    let most = cx.usage.requests.len() / MAX_BATCH + 2;
    for _ in 0..most {
        let now = cx.clock.now();
        let Some(batch) = cx.usage.batch(now.date_naive()) else { break };
        db::usage_flush(&mut *cx.master.acquire().await?, &cx.usage.node, &batch, REQUESTS, now).await?;
        cx.usage.sent(&batch);
    }
    Ok(())
}

/// Writes what is left when the node ends.
pub async fn flush_last(cx: &OpsCx) {
    match tokio::time::timeout(LAST_LIMIT, flush(cx)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(error = chain(&error), "the last counts of requests are lost"),
        Err(_) => tracing::warn!("the last counts of requests are lost: master did not take them in time"),
    }
}
