//! What nodes do by themselves in stores' own databases, store by store: they write what the store may still spend into its
//! copy there, and count the orders of days that are over.
//!
//! A reconciler on every node looks for stores where there is a difference, a bounded number in a round, and visits them by a
//! lease like anybody else.
//!
//! - The copy is written and never read. It tells what is left of the store's own hard budget while its organization has as
//!   much, and no number otherwise: a client's database must not tell an agency's balance.
//! - What stands in a store's database may have been restored or changed by its owner. That is not looked at: the next visit
//!   overwrites it, which comes when there is something else to write or to count, and a day after the last one at the latest.
//!   Until then it says what its owner made it say, to nobody but themselves: nothing is decided by it.
//! - A node claims a store by the moment that the visit speaks of; of a store every such moment is later than the one before.
//!   The copy takes no older moment than it has, so that a node that was held up overwrites nothing newer.
//! - Orders are counted out of the orders themselves when their day is over, in the commit that says so: none is lost and none
//!   counted twice, whoever dies; and whatever becomes of the copy.
//! - A database that does not answer is left alone for longer and longer, and costs others one visit's time limit at most. One
//!   whose schema is older than the copy is left out until it is migrated; its orders are counted.

pub mod db;

use std::time::Duration;

use chrono::{DateTime, Datelike as _, Days, NaiveDate, Utc};
use futures_util::{StreamExt as _, stream};
use kernel::StoreId;
use tenancy::{Connection, Lane, LeaseError, ResolveError};
use tenant_schema::credit_copy::{self, CreditCopy, CreditState};
use tenant_schema::order;

use crate::charges;
use crate::cx::OpsCx;
use crate::http::errors::chain;

/// How many stores a node visits at one time: a small part of the connections that it may have.
const AT_ONCE: usize = 4;
/// How many it claims at one time: looking for them costs as much as visiting some.
const CLAIMED: u8 = 32;
/// How often it claims in one round.
const MAX_CLAIMS: usize = 8;
/// The longest that one visit may take.
const VISIT_LIMIT: Duration = Duration::from_secs(10);
/// A claim that is so old is a dead node's: more than all that are claimed together take at their slowest.
const CLAIM: chrono::Duration = chrono::Duration::seconds(120);
/// The copy is written again after so long, whatever it should say.
const REWRITE_AFTER: chrono::Duration = chrono::Duration::hours(24);
/// The most days whose orders are counted in one visit.
const CATCH_UP_DAYS: usize = 31;
/// The pause after the first failure. Each one after it doubles it, up to the longest.
const FIRST_PAUSE: chrono::Duration = chrono::Duration::seconds(30);
const LONGEST_PAUSE: chrono::Duration = chrono::Duration::hours(1);

/// A store that this node has claimed.
#[derive(Debug, Clone)]
pub struct Visit {
    pub store_id: StoreId,
    /// Whether its database has a copy.
    pub has_copy: bool,
    pub state: CreditState,
    pub spendable: Option<i64>,
    /// The first day of the month that it is about.
    pub month: NaiveDate,
    /// When that was true, and the name of the claim.
    pub as_of: DateTime<Utc>,
    pub orders_counted_until: NaiveDate,
    pub failures: i32,
}

/// What there is to be done, seen at a moment.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub now: DateTime<Utc>,
    pub month: NaiveDate,
    /// Orders of days before it can be counted.
    pub over_until: NaiveDate,
    /// A copy that was written before is written again.
    pub rewrite_before: DateTime<Utc>,
    pub claimed_until: DateTime<Utc>,
}

impl Wanted {
    fn at(now: DateTime<Utc>) -> Self {
        let today = now.date_naive();
        Self {
            now,
            month: today.with_day(1).unwrap_or(today),
            over_until: charges::days_over(now),
            rewrite_before: now - REWRITE_AFTER,
            claimed_until: now + CLAIM,
        }
    }
}

/// Why a visit did not come to its end.
#[derive(Debug, thiserror::Error)]
enum VisitError {
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Lease(#[from] LeaseError),
    #[error("the store's database does not take it")]
    Store(#[source] sqlx::Error),
    #[error("it took more than {} s", VISIT_LIMIT.as_secs())]
    Late,
    #[error("database error")]
    Master(#[from] sqlx::Error),
}

impl VisitError {
    /// A stable word for what was in the way.
    const fn code(&self) -> &'static str {
        match self {
            Self::Resolve(_) => "not-resolved",
            Self::Lease(LeaseError::Unavailable { cause, .. }) => cause.as_str(),
            Self::Lease(LeaseError::Sealed) => "sealed",
            Self::Lease(_) => "no-lease",
            Self::Store(_) => "refused",
            Self::Late => "late",
            Self::Master(_) => "master",
        }
    }
}

/// Visits stores where there is something to do. Takes no input and may run on any number of nodes at once.
pub async fn round(cx: &OpsCx) -> Result<(), sqlx::Error> {
    for _ in 0..MAX_CLAIMS {
        let wanted = Wanted::at(cx.clock.now());
        let claimed = db::visits_claim(&mut *cx.master.acquire().await?, &wanted, CLAIMED.into()).await?;
        let was_all = claimed.len() < usize::from(CLAIMED);
        let mut visits = stream::iter(claimed).map(|visit| visit_within_limit(cx, visit)).buffer_unordered(AT_ONCE);
        while let Some(ended) = visits.next().await {
            ended?;
        }
        if was_all {
            break;
        }
    }
    report(cx).await
}

/// Errors are master's alone; what the store's database does is written down.
async fn visit_within_limit(cx: &OpsCx, visit: Visit) -> Result<(), sqlx::Error> {
    let id = visit.store_id;
    let done = tokio::time::timeout(VISIT_LIMIT, make_visit(cx, &visit)).await.unwrap_or(Err(VisitError::Late));
    let error = match done {
        Ok(()) => {
            metrics::counter!("tenantry_store_visits_total", "result" => "done").increment(1);
            return Ok(());
        }
        // The claim runs out by itself.
        Err(VisitError::Master(error)) => return Err(error),
        Err(error) => error,
    };
    metrics::counter!("tenantry_store_visits_total", "result" => "failed").increment(1);
    let pause = pause_after(visit.failures);
    if visit.failures == 0 {
        tracing::warn!(store.id = %id, error = chain(&error), "visiting store {id} failed and is tried again");
    } else {
        tracing::debug!(store.id = %id, error = chain(&error), "visiting store {id} failed again");
    }
    db::visit_failed(&mut *cx.master.acquire().await?, &visit, error.code(), cx.clock.now() + pause).await
}

fn pause_after(failures: i32) -> chrono::Duration {
    let doublings = failures.clamp(0, 16);
    (FIRST_PAUSE * (1 << doublings)).min(LONGEST_PAUSE)
}

async fn make_visit(cx: &OpsCx, visit: &Visit) -> Result<(), VisitError> {
    let route = cx.stores.resolve_store(visit.store_id).await?;
    let lease = cx.stores.lease(&route).await?.in_lane(Lane::Job);
    let mut connection = lease.acquire().await?;
    let written_at = cx.clock.now();
    // A copy that cannot be written, because its table is locked or was dropped, keeps no order from being counted.
    let copied = if visit.has_copy {
        match write_copy(cx, &mut connection, visit, written_at).await {
            Ok(false) => return Ok(()),
            Err(error @ VisitError::Master(_)) => return Err(error),
            outcome => outcome.map(drop),
        }
    } else {
        Ok(())
    };
    let (orders, counted_until) = match count_orders(cx, &mut connection, visit).await {
        Ok(counted) => counted,
        // What was in the way first says more.
        Err(error) => return copied.and(Err(VisitError::Store(error))),
    };
    drop(connection);
    let now = cx.clock.now();
    // Nobody comes back for the next change at once: what a busy store may spend changes all the time.
    let next = now + chrono::Duration::from_std(cx.limits.store_visit_poll).unwrap_or(LONGEST_PAUSE);
    let mut tx = cx.master.begin().await?;
    let is_last = match copied {
        Ok(()) => db::visit_done(&mut tx, visit, written_at, counted_until, next).await?,
        Err(_) => db::visit_counted(&mut tx, visit, counted_until).await?,
    };
    if !is_last {
        return Ok(());
    }
    for (day, quantity) in orders {
        let key = format!("{}:{day}", charges::ORDERS);
        charges::usage_add_in(&mut tx, visit.store_id, day, charges::ORDERS, quantity, &key, now).await?;
    }
    tx.commit().await?;
    copied
}

/// Writes the copy; false when a later visit has been there.
async fn write_copy(
    cx: &OpsCx,
    connection: &mut Connection,
    visit: &Visit,
    copied_at: DateTime<Utc>,
) -> Result<bool, VisitError> {
    let Visit { state, spendable, month, as_of, .. } = *visit;
    let copy = CreditCopy { state, spendable, month, as_of, copied_at };
    let found = credit_copy::credit_copy_write(connection, &copy).await.map_err(VisitError::Store)?;
    let Some(found) = found else { return Ok(true) };
    // A moment that is not earlier than ours is a later visit's, or nobody's: restored, or made up by the database's owner.
    if !db::visit_is_last(&mut *cx.master.acquire().await?, visit).await? {
        return Ok(false);
    }
    credit_copy::credit_copy_replace(connection, &copy, &found).await.map_err(VisitError::Store)
}

/// The orders of days that are over, and the first day that is not counted with them.
async fn count_orders(
    cx: &OpsCx,
    connection: &mut Connection,
    visit: &Visit,
) -> Result<(Vec<(NaiveDate, i64)>, NaiveDate), sqlx::Error> {
    let over_until = charges::days_over(cx.clock.now());
    let mut counted = Vec::new();
    let mut next = visit.orders_counted_until;
    for day in next.iter_days().take_while(|day| *day < over_until).take(CATCH_UP_DAYS) {
        next = day + Days::new(1);
        let quantity = order::orders_count(connection, midnight(day), midnight(next)).await?;
        if quantity > 0 {
            counted.push((day, quantity));
        }
    }
    Ok((counted, next))
}

fn midnight(day: NaiveDate) -> DateTime<Utc> {
    day.and_time(chrono::NaiveTime::MIN).and_utc()
}

/// How many stores are left out, and how many cannot be reached.
async fn report(cx: &OpsCx) -> Result<(), sqlx::Error> {
    let found = db::visits_count(&mut *cx.master.acquire().await?).await?;
    if found.without_copy > 0 {
        let count = found.without_copy;
        tracing::debug!(
            count,
            "{count} stores have no copy of what they may spend before their databases are migrated"
        );
    }
    #[expect(clippy::cast_precision_loss, reason = "counts for gauges")]
    {
        metrics::gauge!("tenantry_store_copies_left_out").set(found.without_copy as f64);
        metrics::gauge!("tenantry_store_visits_failing").set(found.failing as f64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{FIRST_PAUSE, LONGEST_PAUSE, pause_after};

    #[test]
    fn pauses_double_up_to_the_longest() {
        let pauses = [0, 1, 2, 7, i32::MAX].map(pause_after);
        assert_eq!(pauses, [FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4, LONGEST_PAUSE, LONGEST_PAUSE]);
    }
}
