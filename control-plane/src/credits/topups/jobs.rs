//! What happens to top-ups by themselves. Each takes no input, reads what is due, and makes steps that bear being made twice, on
//! any number of nodes at once.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{StreamExt as _, stream};

use super::{Month, TopUpError, cards, db};
use crate::credits::CreditError;
use crate::credits::purchases::{Payments, PurchaseError};
use crate::credits::stripe::StripeError;
use crate::cx::OpsCx;

/// How much is done in one go; what is left comes with the next.
const BATCH: i64 = 100;
/// How many payments of one node are asked for at one time.
const AT_ONCE: usize = 4;

/// Takes up what is under way, buys where credits are short, and does to cards what the provider had no time for.
pub async fn top_up(cx: &OpsCx) -> Result<(), sqlx::Error> {
    let Some(payments) = &cx.payments else { return Ok(()) };
    let now = cx.clock.now();
    let under_way = db::top_ups_to_check(&mut *cx.master.acquire().await?, now, BATCH).await?;
    each(under_way, |id| async move { Ok(super::take_up(cx, payments, id).await?) }).await?;
    let declined_before = payments.top_up_backoffs.map(|backoff| now - backoff);
    let mut connection = cx.master.acquire().await?;
    let due =
        db::rules_due(&mut connection, now, declined_before, Month::of(now).first, now.date_naive(), BATCH).await?;
    drop(connection);
    each(due, |organization| super::buy(cx, payments, organization)).await?;
    tend_cards(cx, payments).await
}

/// Does something for each of many, a few at a time. One that is odd does not keep the others from their turn; when the
/// provider does not answer, the others wait for the next round.
async fn each<T, F>(all: Vec<T>, work: impl Fn(T) -> F) -> Result<(), sqlx::Error>
where
    F: Future<Output = Result<(), TopUpError>>,
{
    let (is_away, work) = (&AtomicBool::new(false), &work);
    let mut outcomes = stream::iter(all)
        .map(|one| async move {
            if is_away.load(Ordering::Relaxed) {
                return Ok(());
            }
            let outcome = work(one).await;
            if let Err(TopUpError::Purchase(PurchaseError::Provider(StripeError::Unknown { .. }))) = &outcome {
                is_away.store(true, Ordering::Relaxed);
            }
            outcome
        })
        .buffer_unordered(AT_ONCE);
    let mut broken = Ok(());
    while let Some(outcome) = outcomes.next().await {
        match outcome {
            Ok(()) => {}
            Err(TopUpError::Purchase(PurchaseError::Credits(CreditError::Db(error)))) => broken = Err(error),
            Err(error) => {
                tracing::warn!(error = crate::http::errors::chain(&error), "a top-up failed and is tried again");
            }
        }
    }
    broken
}

async fn tend_cards(cx: &OpsCx, payments: &Payments) -> Result<(), sqlx::Error> {
    cards::describe(cx, payments, BATCH).await?;
    cards::removals_do(cx, payments, BATCH).await
}
