//! Facts about a purchase, and the books that follow them. The caller holds the purchase's row.
//!
//! Learning a fact again, or after another that came later, changes nothing: completed stays completed, a refund only ever
//! goes from pending to succeeded to failed, a closed dispute stays closed. [`settle`] then takes the steps that the ledger
//! lacks: the difference between what should be booked and what is.

use chrono::{DateTime, Duration, Utc};
use kernel::{CreditTransactionId, PurchaseRefundId};
use serde_json::json;
use sqlx::PgConnection;

use super::recon::{CashEntry, CashKind};
use super::refunds::{self, PurchaseRefund, RefundState};
use super::{Dispute, DisputeState, Purchase, PurchaseState, db};
use crate::audit::{self, Actor, Subject};
use crate::credits::packs;
use crate::credits::stripe::objects::{self, Charge, PaymentIntent, Reference, Session};
use crate::credits::topups::{self, OffReason, cards};
use crate::credits::{CreditError, LotKind, NewLot, TransactionKind, db as ledger, request_hash};
use crate::webhooks::events::{DisputeClosed, DisputeOpened, PurchaseCompleted, PurchaseEnded, PurchaseRefunded};
use crate::webhooks::tell_of;

/// Why a fact is not followed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The provider says something else than what was ordered. People have to look.
    #[error("{0}")]
    Mismatch(String),
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

fn mismatch<T>(what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Mismatch(what.into()))
}

/// What has been paid, as one of the provider's objects says it.
struct Payment<'a> {
    intent: &'a str,
    charge: Option<&'a str>,
    amount_minor: i64,
    currency: &'a str,
    customer: Option<&'a str>,
    method: Option<&'a str>,
    tax_minor: Option<i64>,
}

/// `part` of `whole`, of this amount, rounded down. All of it for all of it.
pub fn share(amount: i64, part: i64, whole: i64) -> i64 {
    if whole <= 0 || part >= whole {
        return amount;
    }
    let share = i128::from(amount) * i128::from(part.max(0)) / i128::from(whole);
    i64::try_from(share).unwrap_or(amount)
}

/// A Checkout Session of the purchase.
pub async fn learn_session(
    tx: &mut PgConnection,
    purchase: &mut Purchase,
    session: &Session,
    now: DateTime<Utc>,
) -> Result<(), Fault> {
    match &purchase.checkout_session {
        Some(known) if *known != session.id => {
            return mismatch(format!("session {} where {known} was opened", session.id));
        }
        Some(_) => {}
        None => purchase.checkout_session = Some(session.id.clone()),
    }
    if session.status.as_deref() == Some("open") {
        purchase.checkout_url.clone_from(&session.url);
    }
    if session.payment_status == "paid" {
        let Some(intent) = session.payment_intent.as_ref().map(Reference::id) else {
            return mismatch("a paid session without a payment");
        };
        let (Some(amount_minor), Some(currency)) = (session.amount_total, session.currency.as_deref()) else {
            return mismatch("a paid session without an amount");
        };
        let paid = Payment {
            intent,
            charge: None,
            amount_minor,
            currency,
            customer: session.customer.as_ref().map(Reference::id),
            method: None,
            tax_minor: session.total_details.as_ref().and_then(|total| total.amount_tax),
        };
        return learn_paid(tx, purchase, &paid, now).await;
    }
    match session.status.as_deref() {
        Some("open") if purchase.state == PurchaseState::Created => purchase.state = PurchaseState::Open,
        Some("complete") if matches!(purchase.state, PurchaseState::Created | PurchaseState::Open) => {
            purchase.state = PurchaseState::Processing;
        }
        Some("expired") if purchase.state.is_unfinished() => end(tx, purchase, PurchaseState::Expired, now).await?,
        _ => {}
    }
    save(tx, purchase, now).await
}

/// The money that was to come later did not.
pub async fn learn_session_failed(
    tx: &mut PgConnection,
    purchase: &mut Purchase,
    now: DateTime<Utc>,
) -> Result<(), Fault> {
    if purchase.state.is_unfinished() {
        purchase.failure.get_or_insert_with(|| "payment_failed".to_owned());
        end(tx, purchase, PurchaseState::Failed, now).await?;
    }
    save(tx, purchase, now).await
}

/// The provider has never heard of it.
pub async fn learn_nothing(tx: &mut PgConnection, purchase: &mut Purchase, now: DateTime<Utc>) -> Result<(), Fault> {
    if purchase.state.is_unfinished() {
        end(tx, purchase, PurchaseState::Expired, now).await?;
    }
    save(tx, purchase, now).await
}

/// The payment of the purchase.
pub async fn learn_intent(
    tx: &mut PgConnection,
    purchase: &mut Purchase,
    intent: &PaymentIntent,
    now: DateTime<Utc>,
) -> Result<(), Fault> {
    if intent.status == "succeeded" {
        let paid = Payment {
            intent: &intent.id,
            charge: intent.latest_charge.as_ref().map(Reference::id),
            amount_minor: intent.amount_received.unwrap_or(intent.amount),
            currency: &intent.currency,
            customer: intent.customer.as_ref().map(Reference::id),
            method: intent.payment_method.as_ref().map(Reference::id),
            tax_minor: None,
        };
        return learn_paid(tx, purchase, &paid, now).await;
    }
    if purchase.state.is_unfinished() || purchase.state == PurchaseState::Failed {
        let failed = intent.last_payment_error.clone();
        let why = failed.and_then(|failed| objects::failure_code(failed.code, failed.decline_code));
        if why.is_some() {
            purchase.failure = why;
        }
    }
    // Behind a Checkout page a card that fails is tried again; without one, that was it.
    if purchase.is_auto && purchase.state.is_unfinished() {
        if intent.amount == purchase.amount_minor
            && intent.customer.as_ref().map(Reference::id) == purchase.customer_ref.as_deref()
        {
            purchase.payment_intent.get_or_insert_with(|| intent.id.clone());
        }
        match intent.status.as_str() {
            "requires_action" => {
                purchase.state = PurchaseState::RequiresAction;
                purchase.failure = Some(objects::AUTHENTICATION_REQUIRED.to_owned());
            }
            "processing" => purchase.state = PurchaseState::Processing,
            "requires_payment_method" | "canceled" => end(tx, purchase, PurchaseState::Failed, now).await?,
            _ => {}
        }
    }
    save(tx, purchase, now).await
}

/// The provider refused a payment that nobody is there to try again.
pub async fn learn_refusal(
    tx: &mut PgConnection,
    purchase: &mut Purchase,
    why: &str,
    intent: Option<&str>,
    now: DateTime<Utc>,
) -> Result<(), Fault> {
    if purchase.is_auto && purchase.state.is_unfinished() {
        if let Some(intent) = intent {
            purchase.payment_intent.get_or_insert_with(|| intent.to_owned());
        }
        purchase.failure = Some(why.to_owned());
        end(tx, purchase, PurchaseState::Failed, now).await?;
    }
    save(tx, purchase, now).await
}

/// The money that moved for the purchase.
pub async fn learn_charge(
    tx: &mut PgConnection,
    purchase: &mut Purchase,
    charge: &Charge,
    now: DateTime<Utc>,
) -> Result<(), Fault> {
    let Some(intent) = charge.payment_intent.as_ref().map(Reference::id) else {
        return mismatch("a charge without a payment");
    };
    if !charge.paid {
        return Ok(());
    }
    purchase.charge_refunded_minor = purchase.charge_refunded_minor.max(charge.amount_refunded);
    let paid = Payment {
        intent,
        charge: Some(&charge.id),
        amount_minor: charge.amount,
        currency: &charge.currency,
        customer: charge.customer.as_ref().map(Reference::id),
        method: charge.payment_method.as_ref().map(Reference::id),
        tax_minor: None,
    };
    learn_paid(tx, purchase, &paid, now).await
}

/// It is paid: what was paid must be what was ordered; then it is granted, once.
async fn learn_paid(
    tx: &mut PgConnection,
    purchase: &mut Purchase,
    paid: &Payment<'_>,
    now: DateTime<Utc>,
) -> Result<(), Fault> {
    if paid.amount_minor != purchase.amount_minor {
        return mismatch(format!("{} was paid where {} was ordered", paid.amount_minor, purchase.amount_minor));
    }
    if !paid.currency.eq_ignore_ascii_case(&purchase.currency) {
        return mismatch(format!("it was paid in {:.3} where it was ordered in {}", paid.currency, purchase.currency));
    }
    if purchase.customer_ref.is_none() || paid.customer != purchase.customer_ref.as_deref() {
        return mismatch("another customer paid than the one who ordered");
    }
    match &purchase.payment_intent {
        Some(known) if known != paid.intent => {
            return mismatch(format!("payment {} where {known} was made", paid.intent));
        }
        Some(_) => {}
        None => purchase.payment_intent = Some(paid.intent.to_owned()),
    }
    if let Some(tax) = paid.tax_minor {
        purchase.tax_minor = tax.max(0);
    }
    if purchase.state != PurchaseState::Completed {
        grant(tx, purchase, paid.intent, now).await?;
        if purchase.is_auto {
            topups::follow_success(tx, purchase, now).await?;
        }
    }
    if purchase.saves_card
        && let Some(method) = paid.method
    {
        cards::keep(tx, purchase, method, now).await?;
    }
    if let Some(charge) = paid.charge {
        match &purchase.charge_ref {
            Some(known) if known != charge => return mismatch(format!("charge {charge} where {known} was made")),
            Some(_) => {}
            None => purchase.charge_ref = Some(charge.to_owned()),
        }
        let entry = CashEntry {
            kind: CashKind::Charge,
            amount_minor: purchase.amount_minor,
            currency: purchase.currency.clone(),
            external_ref: charge.to_owned(),
            purchase_id: Some(purchase.id),
        };
        db::cash_insert(tx, &entry, now).await?;
    }
    save(tx, purchase, now).await?;
    settle(tx, purchase, now).await
}

fn hash_of(operation: &'static str, body: &impl serde::Serialize) -> Result<[u8; 32], sqlx::Error> {
    request_hash(operation, body).map_err(|error| match error {
        CreditError::Db(error) => error,
        error => sqlx::Error::Protocol(error.to_string()),
    })
}

async fn grant(tx: &mut PgConnection, purchase: &mut Purchase, intent: &str, now: DateTime<Utc>) -> Result<(), Fault> {
    let pack = packs::db::pack_find(tx, purchase.pack_id).await?.ok_or(sqlx::Error::RowNotFound)?;
    let mut lots = vec![NewLot {
        kind: LotKind::Paid,
        amount: purchase.credits,
        priority: LotKind::Paid.default_priority(),
        expires_at: None,
        unit_cost_minor: purchase.amount_minor / purchase.credits,
    }];
    if purchase.bonus_credits > 0 {
        lots.push(NewLot {
            kind: LotKind::Promotional,
            amount: purchase.bonus_credits,
            priority: LotKind::Promotional.default_priority(),
            expires_at: pack.bonus_expires_days.map(|days| now + Duration::days(i64::from(days))),
            unit_cost_minor: 0,
        });
    }
    let hash = hash_of("purchase", &(purchase.id, purchase.pack_id, purchase.credits, purchase.bonus_credits))?;
    let why = format!("{} pack", pack.name);
    let decision = ledger::grant(
        tx,
        purchase.organization_id,
        &ledger::Grant {
            id: CreditTransactionId::new(now),
            key: &purchase.idempotency_key,
            hash: &hash,
            kind: TransactionKind::Purchase,
            actor: purchase.user_id,
            store: None,
            why: Some(&why),
            reference: Some(intent),
            lots: &lots,
            purchase: Some(purchase.id.as_uuid()),
            currency: Some(&purchase.currency),
        },
        now,
    )
    .await?;
    let granted = ledger::lots_of_purchase(tx, purchase.id.as_uuid()).await?;
    let lot = |kind: LotKind| granted.iter().find(|lot| lot.kind == kind).map(|lot| lot.id);
    purchase.transaction_id = Some(decision.transaction.id);
    (purchase.paid_lot_id, purchase.bonus_lot_id) = (lot(LotKind::Paid), lot(LotKind::Promotional));
    purchase.state = PurchaseState::Completed;
    purchase.completed_at = Some(now);
    (purchase.failure, purchase.next_check_at, purchase.checkout_url) = (None, None, None);
    let completed = PurchaseCompleted {
        purchase_id: purchase.id,
        pack_id: purchase.pack_id,
        credits: purchase.credits,
        bonus_credits: purchase.bonus_credits,
        amount_minor: purchase.amount_minor,
        currency: purchase.currency.clone(),
        is_automatic: purchase.is_auto,
    };
    tell_of(tx, purchase.organization_id, &completed, &format!("purchase:{}", purchase.id), now).await?;
    let subject = Subject::organization(purchase.organization_id);
    let data = json!({ "purchaseId": purchase.id, "transactionId": decision.transaction.id });
    audit::record(tx, now, Actor::System, "purchase_complete", subject, data).await?;
    Ok(())
}

/// It comes to nothing.
async fn end(
    tx: &mut PgConnection,
    purchase: &mut Purchase,
    state: PurchaseState,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    purchase.state = state;
    (purchase.next_check_at, purchase.checkout_url) = (None, None);
    let ended = PurchaseEnded { purchase_id: purchase.id, state, failure: purchase.failure.clone() };
    tell_of(tx, purchase.organization_id, &ended, &format!("purchase-ended:{}", purchase.id), now).await?;
    if purchase.is_auto && state == PurchaseState::Failed {
        topups::follow_failure(tx, purchase, now).await?;
    }
    Ok(())
}

async fn save(tx: &mut PgConnection, purchase: &mut Purchase, now: DateTime<Utc>) -> Result<(), Fault> {
    purchase.updated_at = now;
    Ok(db::purchase_save(tx, purchase).await?)
}

/// A refund of the purchase: ours, by the id that we gave it, or one of the provider's dashboard.
pub async fn learn_refund(
    tx: &mut PgConnection,
    purchase: &mut Purchase,
    theirs: &objects::Refund,
    now: DateTime<Utc>,
) -> Result<(), Fault> {
    if !theirs.currency.eq_ignore_ascii_case(&purchase.currency) {
        return mismatch("a refund in another currency");
    }
    let state = match theirs.status.as_deref() {
        Some("succeeded") => RefundState::Succeeded,
        Some("failed" | "canceled") => RefundState::Failed,
        _ => RefundState::Pending,
    };
    let ours: Option<PurchaseRefundId> =
        theirs.metadata.as_ref().and_then(|metadata| metadata.get(refunds::POINTER)).and_then(|id| id.parse().ok());
    let known = db::refunds_of(tx, purchase.id).await?;
    let known = known.into_iter().find(|refund| {
        refund.refund_ref.as_deref() == Some(&theirs.id) || (refund.refund_ref.is_none() && Some(refund.id) == ours)
    });
    match known {
        Some(mut refund) => {
            if refund.amount_minor != theirs.amount {
                return mismatch(format!("refund {} is of {}, not {}", theirs.id, theirs.amount, refund.amount_minor));
            }
            // One that we took for refused, and that was made after all, counts.
            if state > refund.state || refund.refund_ref.is_none() {
                refund.state = state;
                refund.refund_ref = Some(theirs.id.clone());
                refund.failure.clone_from(&theirs.failure_reason);
                db::refund_save(tx, &refund, None, now).await?;
            }
        }
        None => {
            let refund = PurchaseRefund {
                id: PurchaseRefundId::new(now),
                purchase_id: purchase.id,
                refund_ref: Some(theirs.id.clone()),
                amount_minor: theirs.amount,
                state,
                reason: theirs.reason.clone(),
                failure: theirs.failure_reason.clone(),
                request_hash: None,
                idempotency_key: None,
                called_at: None,
                created_at: now,
            };
            db::refund_insert(tx, &refund, None, None, None).await?;
        }
    }
    let mut entry = CashEntry {
        kind: CashKind::Refund,
        amount_minor: -theirs.amount,
        currency: purchase.currency.clone(),
        external_ref: theirs.id.clone(),
        purchase_id: Some(purchase.id),
    };
    db::cash_insert(tx, &entry, now).await?;
    if state == RefundState::Failed {
        entry.amount_minor = theirs.amount;
        entry.external_ref = format!("{}:failed", theirs.id);
        db::cash_insert(tx, &entry, now).await?;
    }
    settle(tx, purchase, now).await
}

/// A dispute of the purchase; what is only an inquiry yet is none.
pub async fn learn_dispute(
    tx: &mut PgConnection,
    purchase: &mut Purchase,
    theirs: &objects::Dispute,
    now: DateTime<Utc>,
) -> Result<(), Fault> {
    let state = match theirs.status.as_str() {
        "won" => DisputeState::Won,
        "lost" => DisputeState::Lost,
        "needs_response" | "under_review" => DisputeState::Open,
        _ => return Ok(()),
    };
    if !theirs.currency.eq_ignore_ascii_case(&purchase.currency) || theirs.amount < 1 {
        return mismatch("a dispute about another amount or currency");
    }
    let dispute = Dispute {
        id: theirs.id.clone(),
        purchase_id: purchase.id,
        amount_minor: theirs.amount,
        reason: theirs.reason.clone(),
        state,
        opened_credits: None,
        opening_id: None,
        closing_id: None,
    };
    db::dispute_learn(tx, &dispute, now).await?;
    let mut entry = CashEntry {
        kind: CashKind::Dispute,
        amount_minor: -theirs.amount,
        currency: purchase.currency.clone(),
        external_ref: theirs.id.clone(),
        purchase_id: Some(purchase.id),
    };
    db::cash_insert(tx, &entry, now).await?;
    if state == DisputeState::Won {
        entry.amount_minor = theirs.amount;
        entry.external_ref = format!("{}:reinstated", theirs.id);
        db::cash_insert(tx, &entry, now).await?;
    }
    settle(tx, purchase, now).await
}

/// Books what the facts say and the ledger does not yet: the difference, never the whole again.
pub async fn settle(tx: &mut PgConnection, purchase: &mut Purchase, now: DateTime<Utc>) -> Result<(), Fault> {
    if purchase.state != PurchaseState::Completed {
        return Ok(());
    }
    // Nobody spends between looking into the lots and taking out of them.
    ledger::expire(tx, purchase.organization_id, now).await?;
    settle_refunds(tx, purchase, now).await?;
    for mut dispute in db::disputes_of(tx, purchase.id).await? {
        settle_dispute(tx, purchase, &mut dispute, now).await?;
    }
    save(tx, purchase, now).await
}

async fn settle_refunds(tx: &mut PgConnection, purchase: &mut Purchase, now: DateTime<Utc>) -> Result<(), Fault> {
    let refunds = db::refunds_of(tx, purchase.id).await?;
    let of = |is_failed: bool| -> i64 {
        let counts = |refund: &&PurchaseRefund| (refund.state == RefundState::Failed) == is_failed;
        // One that the provider never made is in none of its sums.
        let is_theirs = |refund: &&PurchaseRefund| !is_failed || refund.refund_ref.is_some();
        refunds.iter().filter(counts).filter(is_theirs).map(|refund| refund.amount_minor).sum()
    };
    let money = of(false).max(purchase.charge_refunded_minor - of(true)).clamp(0, purchase.amount_minor);
    let due = share(purchase.credits, money, purchase.amount_minor);
    let due_bonus = share(purchase.bonus_credits, money, purchase.amount_minor);
    let before = (purchase.refunded_credits, purchase.refunded_minor);
    if due > purchase.refunded_credits {
        let wanted = due - purchase.refunded_credits;
        take_back(tx, purchase, LotKind::Paid, wanted, true, now).await?;
        purchase.refunded_credits = due;
    } else if due < purchase.refunded_credits {
        let given = purchase.refunded_credits - due;
        give_back(tx, purchase, LotKind::Paid, given, now).await?;
        purchase.refunded_credits = due;
    }
    if due_bonus > purchase.refunded_bonus {
        let wanted = due_bonus - purchase.refunded_bonus;
        // What was given and is spent is not owed.
        purchase.refunded_bonus += take_back(tx, purchase, LotKind::Promotional, wanted, false, now).await?;
    } else if due_bonus < purchase.refunded_bonus {
        let given = purchase.refunded_bonus - due_bonus;
        give_back(tx, purchase, LotKind::Promotional, given, now).await?;
        purchase.refunded_bonus = due_bonus;
    }
    purchase.refunded_minor = money;
    if before != (purchase.refunded_credits, purchase.refunded_minor) {
        let refunded = PurchaseRefunded {
            purchase_id: purchase.id,
            refunded_minor: money,
            currency: purchase.currency.clone(),
            refunded_credits: due,
        };
        let dedupe = format!("refund:{}:{}:{money}", purchase.id, purchase.refund_steps);
        tell_of(tx, purchase.organization_id, &refunded, &dedupe, now).await?;
    }
    if purchase.is_auto && money > before.1 {
        topups::follow_reversal(tx, purchase, OffReason::Refunded, now).await?;
    }
    Ok(())
}

/// A name for the next booking of a purchase.
fn step(purchase: &mut Purchase) -> i32 {
    purchase.refund_steps += 1;
    purchase.refund_steps
}

/// Takes credits out of a purchase's lots of one kind; what is not there any more is owed, or left. How much was taken.
async fn take_back(
    tx: &mut PgConnection,
    purchase: &mut Purchase,
    kind: LotKind,
    wanted: i64,
    may_owe: bool,
    now: DateTime<Utc>,
) -> Result<i64, Fault> {
    let lots: Vec<_> =
        ledger::lots_of_purchase(tx, purchase.id.as_uuid()).await?.into_iter().filter(|lot| lot.kind == kind).collect();
    let Some(last) = lots.len().checked_sub(1) else { return Ok(0) };
    let mut need = wanted;
    for (at, lot) in lots.iter().enumerate() {
        let is_owing = may_owe && at == last;
        let take = if is_owing { need } else { need.min(lot.remaining) };
        if take == 0 {
            continue;
        }
        let step = step(purchase);
        let key = format!("refund:{}:{step}", purchase.id);
        let reference = format!("{}:{step}", purchase.payment_intent.as_deref().unwrap_or_default());
        let hash = hash_of("purchase_take_back", &(purchase.id, step, lot.id, take))?;
        let take_back = ledger::TakeBack {
            id: CreditTransactionId::new(now),
            key: &key,
            hash: &hash,
            lot: lot.id,
            wanted: take,
            may_owe: is_owing,
            actor: None,
            why: Some("Money of a purchase went back"),
            reference: Some(&reference),
        };
        ledger::refund(tx, purchase.organization_id, &take_back, now).await?;
        need -= take;
    }
    Ok(wanted - need)
}

/// Money that was to go back did not: the credits for it come back, as a lot of the same purchase.
async fn give_back(
    tx: &mut PgConnection,
    purchase: &mut Purchase,
    kind: LotKind,
    amount: i64,
    now: DateTime<Utc>,
) -> Result<(), Fault> {
    let step = step(purchase);
    let key = format!("refund:{}:{step}", purchase.id);
    let reference = format!("{}:{step}", purchase.payment_intent.as_deref().unwrap_or_default());
    let pack = packs::db::pack_find(tx, purchase.pack_id).await?.ok_or(sqlx::Error::RowNotFound)?;
    let bonus_until = pack.bonus_expires_days.zip(purchase.completed_at);
    let lot = NewLot {
        kind,
        amount,
        priority: kind.default_priority(),
        expires_at: bonus_until
            .filter(|_| kind == LotKind::Promotional)
            // One that is over by now is given for a day.
            .map(|(days, since)| (since + Duration::days(i64::from(days))).max(now + Duration::days(1))),
        unit_cost_minor: if kind == LotKind::Paid { purchase.amount_minor / purchase.credits } else { 0 },
    };
    let grant = ledger::Grant {
        id: CreditTransactionId::new(now),
        key: &key,
        hash: &hash_of("purchase_give_back", &(purchase.id, step, amount))?,
        kind: TransactionKind::Purchase,
        actor: None,
        store: None,
        why: Some("A refund failed: its credits came back"),
        reference: Some(&reference),
        lots: std::slice::from_ref(&lot),
        purchase: Some(purchase.id.as_uuid()),
        currency: Some(&purchase.currency),
    };
    ledger::grant(tx, purchase.organization_id, &grant, now).await?;
    Ok(())
}

/// Freezes what is disputed, frees it again when that is won, and writes it off when it is lost.
async fn settle_dispute(
    tx: &mut PgConnection,
    purchase: &mut Purchase,
    dispute: &mut Dispute,
    now: DateTime<Utc>,
) -> Result<(), Fault> {
    let organization = purchase.organization_id;
    if dispute.opened_credits.is_none() {
        let left = purchase.credits - purchase.refunded_credits;
        let credits = share(purchase.credits, dispute.amount_minor, purchase.amount_minor).min(left);
        dispute.opened_credits = Some(credits);
        let lots = ledger::lots_of_purchase(tx, purchase.id.as_uuid()).await?;
        let lot = lots.iter().filter(|lot| lot.kind == LotKind::Paid).max_by_key(|lot| lot.remaining);
        if let Some(lot) = lot.filter(|_| credits > 0) {
            let key = format!("dispute:{}:open", dispute.id);
            let hash = hash_of("dispute_open", &(purchase.id, &dispute.id, credits))?;
            let open = ledger::OpenDispute {
                id: CreditTransactionId::new(now),
                key: &key,
                hash: &hash,
                lot: lot.id,
                disputed: credits,
                why: Some("The payment is disputed"),
                reference: &dispute.id,
            };
            let decision = ledger::dispute_open(tx, organization, &open, now).await?;
            dispute.opening_id = Some(decision.transaction.id);
        }
        db::dispute_save(tx, dispute, now).await?;
        let opened =
            DisputeOpened { purchase_id: purchase.id, disputed_minor: dispute.amount_minor, disputed_credits: credits };
        tell_of(tx, organization, &opened, &format!("dispute:{}:open", dispute.id), now).await?;
        if purchase.is_auto {
            topups::follow_reversal(tx, purchase, OffReason::Disputed, now).await?;
        }
    }
    let (Some(opening), None) = (dispute.opening_id, dispute.closing_id) else { return Ok(()) };
    if dispute.state == DisputeState::Open {
        return Ok(());
    }
    let is_won = dispute.state == DisputeState::Won;
    let key = format!("dispute:{}:close", dispute.id);
    let hash = hash_of("dispute_close", &(purchase.id, &dispute.id, is_won))?;
    let close = ledger::CloseDispute {
        id: CreditTransactionId::new(now),
        key: &key,
        hash: &hash,
        opening,
        is_won,
        reference: &dispute.id,
    };
    let decision = ledger::dispute_close(tx, organization, &close, now).await?;
    dispute.closing_id = Some(decision.transaction.id);
    db::dispute_save(tx, dispute, now).await?;
    if !is_won {
        let wanted = share(purchase.bonus_credits, dispute.amount_minor, purchase.amount_minor)
            .min(purchase.bonus_credits - purchase.refunded_bonus);
        // Not counted as refunded: no money went back by our hand.
        take_back(tx, purchase, LotKind::Promotional, wanted, false, now).await?;
    }
    let closed = DisputeClosed { purchase_id: purchase.id, is_won };
    tell_of(tx, organization, &closed, &format!("dispute:{}:close", dispute.id), now).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn a_share_is_rounded_down_and_all_of_it_is_all() {
        assert_eq!(share(500, 1250, 2500), 250);
        assert_eq!(share(500, 1, 2500), 0);
        assert_eq!(share(500, 2499, 2500), 499);
        assert_eq!(share(500, 2500, 2500), 500);
        assert_eq!(share(500, 9999, 2500), 500);
        assert_eq!(share(i64::MAX, i64::MAX - 1, i64::MAX), i64::MAX - 1);
        assert_eq!(share(500, 0, 2500), 0);
    }
}
