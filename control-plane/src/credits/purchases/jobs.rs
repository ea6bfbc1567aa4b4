//! What happens to purchases by themselves: missed events are looked for, failed ones tried again, unfinished purchases and
//! refunds looked at, and the books compared. Each reads what is due and makes steps that bear being made twice.

use chrono::Duration;
use kernel::{PurchaseId, PurchaseRefundId};

use super::events::{self, EventSource};
use super::{CHECK_PERIOD, Payments, PurchaseError, PurchaseState, db, recon, refunds};
use crate::credits::{CreditError, topups};
use crate::cx::OpsCx;

/// How much is done in one go; what is left comes with the next.
const BATCH: i64 = 100;
/// Events that nobody took are looked for so far back: webhooks are tried for three days.
const SWEEP_BACK: Duration = Duration::days(4);
/// A purchase that the provider knows nothing of after so long comes to nothing.
const GIVE_UP: Duration = Duration::hours(25);

/// Looks for everything that was missed.
pub async fn sweep(cx: &OpsCx) -> Result<(), sqlx::Error> {
    let Some(payments) = &cx.payments else { return Ok(()) };
    let now = cx.clock.now();
    let due = db::events_due(&mut *cx.master.acquire().await?, now, BATCH).await?;
    for id in due {
        events::retry(cx, &id).await?;
    }
    told("looking for missed events", sweep_events(cx, payments).await)?;
    let purchases = db::purchases_to_check(&mut *cx.master.acquire().await?, now, BATCH).await?;
    for id in purchases {
        told("looking at a purchase", check_purchase(cx, payments, id).await)?;
    }
    let refunds = db::refunds_to_check(&mut *cx.master.acquire().await?, now, BATCH).await?;
    for (purchase, refund) in refunds {
        told("looking at a refund", check_refund(cx, payments, purchase, refund).await)?;
    }
    Ok(())
}

/// Compares the books.
pub async fn reconcile(cx: &OpsCx) -> Result<(), sqlx::Error> {
    let Some(payments) = &cx.payments else { return Ok(()) };
    told("comparing the books", recon::reconcile(cx, payments).await.map(drop))
}

/// The provider may be away, and one purchase may be odd: neither keeps the others from being looked at.
fn told(what: &str, outcome: Result<(), PurchaseError>) -> Result<(), sqlx::Error> {
    match outcome {
        Ok(()) => Ok(()),
        Err(PurchaseError::Credits(CreditError::Db(error))) => Err(error),
        Err(error) => {
            tracing::warn!(error = crate::http::errors::chain(&error), "{what} failed and is tried again");
            Ok(())
        }
    }
}

async fn sweep_events(cx: &OpsCx, payments: &Payments) -> Result<(), PurchaseError> {
    let since = cx.clock.now() - SWEEP_BACK;
    for (event, bytes) in recon::events_since(payments, since, true).await?.into_iter().rev() {
        match events::ingest(cx, &bytes, EventSource::Sweep).await {
            Ok(_) => {}
            Err(events::EventError::Db(error)) => return Err(error.into()),
            Err(error) => tracing::warn!(stripe.event = event.id, "event {} is not followed: {error}", event.id),
        }
    }
    Ok(())
}

async fn check_purchase(cx: &OpsCx, payments: &Payments, id: PurchaseId) -> Result<(), PurchaseError> {
    if super::find(cx, id).await?.is_auto {
        return topups::take_up(cx, payments, id).await;
    }
    // First, so that one that cannot be asked about does not hold up the others for ever.
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let mut purchase = db::purchase_lock(&mut tx, id).await?.ok_or(PurchaseError::NotFound)?;
    purchase.next_check_at = Some(now + CHECK_PERIOD).filter(|_| purchase.state.is_unfinished());
    db::purchase_save(&mut tx, &purchase).await?;
    tx.commit().await?;
    if !purchase.state.is_unfinished() {
        return Ok(());
    }
    let is_unknown = match super::check(cx, payments, id).await {
        Ok(known) => known.state == PurchaseState::Created,
        Err(PurchaseError::Provider(error)) if error.is_missing() => true,
        Err(error) => return Err(error),
    };
    if is_unknown && purchase.created_at + GIVE_UP < now {
        super::learn_nothing(cx, id).await?;
    }
    Ok(())
}

async fn check_refund(
    cx: &OpsCx,
    payments: &Payments,
    purchase: PurchaseId,
    id: PurchaseRefundId,
) -> Result<(), PurchaseError> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let purchase = db::purchase_lock(&mut tx, purchase).await?.ok_or(PurchaseError::NotFound)?;
    let refund = refunds::refund_of(&mut tx, purchase.id, id).await?;
    let is_unknown = refund.state == refunds::RefundState::Requested;
    let next = Some(now + refunds::CHECK).filter(|_| is_unknown);
    db::refund_save(&mut tx, &refund, next, now).await?;
    tx.commit().await?;
    if is_unknown {
        refunds::refund_proceed(cx, payments, &purchase, refund).await?;
    }
    Ok(())
}
