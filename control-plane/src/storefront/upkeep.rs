//! What a store's database needs done now and then. A store that is used looks after itself: a cart in so many starts a bounded
//! batch in the background, so no sweep has to open thousands of idle databases.

use tenancy::{Lane, Lease};
use tenant_schema::upkeep::{carts_expire, idempotency_keys_purge};

use crate::cx::Cx;
use crate::http::errors::chain;

/// One cart in this many.
const ONE_IN: u64 = 50;
/// More than what expires between two batches at an even rate.
const BATCH: u64 = 200;

/// Starts a batch on the store of `lease`, once in so many calls.
pub(super) fn maybe_start(cx: &Cx, lease: &Lease) {
    if kernel::random::below(ONE_IN) != 0 {
        return;
    }
    let (lease, now) = (lease.clone().in_lane(Lane::Job), cx.clock.now());
    cx.tasks.spawn(async move {
        let Ok(mut connection) = lease.acquire().await else { return };
        let done = async {
            carts_expire(&mut connection, now, BATCH).await?;
            idempotency_keys_purge(&mut connection, now, BATCH).await
        };
        if let Err(error) = done.await {
            tracing::warn!(error = chain(&error), store.id = %lease.store_id(), "looking after store {} failed", lease.store_id());
        }
    });
}
