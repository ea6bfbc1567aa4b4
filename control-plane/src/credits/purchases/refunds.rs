//! Money that goes back: asked for by ops, or made at the provider.
//!
//! The credits are taken before the provider is asked, so that nobody spends them meanwhile; when it refuses they come back. A
//! refund whose outcome nobody heard of is looked for before it is asked for again.

use chrono::{DateTime, Utc};
use kernel::{PurchaseId, PurchaseRefundId, UserId};
use serde::Serialize;

use super::{DisputeState, Payments, Purchase, PurchaseError, PurchaseState, books, db, find, payments};
use crate::audit::{self, Actor, Subject};
use crate::credits::stripe::{StripeError, objects};
use crate::credits::{CreditError, LotKind, check_line, db as ledger, invalid, request_hash};
use crate::cx::OpsCx;

/// Under this name our id is in the provider's refunds.
pub(super) const POINTER: &str = "refund_id";
/// A refund whose outcome is not known is looked at so soon.
pub(super) const CHECK: chrono::Duration = chrono::Duration::minutes(2);

/// How a refund stands; a later one is never followed by an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum RefundState {
    /// We asked for it; the provider has not answered yet.
    Requested,
    Pending,
    Succeeded,
    Failed,
}

impl RefundState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Pending => "pending",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

/// Money of a purchase that went back.
#[derive(Debug, Clone)]
pub struct PurchaseRefund {
    pub id: PurchaseRefundId,
    pub purchase_id: PurchaseId,
    /// The provider's id, once it has one.
    pub refund_ref: Option<String>,
    pub amount_minor: i64,
    pub state: RefundState,
    pub reason: Option<String>,
    pub failure: Option<String>,
    pub request_hash: Option<Vec<u8>>,
    pub idempotency_key: Option<String>,
    pub called_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
}

/// What ops give back.
#[derive(Debug, Clone)]
pub struct NewRefund {
    /// As much as the unspent credits were worth, when left out.
    pub amount_minor: Option<i64>,
    pub reason: Option<String>,
    /// Whether credits that are spent already may become debt.
    pub may_owe: bool,
}

/// Gives money of a purchase back, once per key, and takes the credits for it: out of what is left of them, first, so that
/// nobody spends them while the provider is asked. True when it is new.
pub async fn refund_create(
    cx: &OpsCx,
    actor: UserId,
    id: PurchaseId,
    new: &NewRefund,
    key: Option<&str>,
) -> Result<(PurchaseRefund, Purchase, bool), PurchaseError> {
    let payments = payments(cx)?;
    let key = key.map(|key| format!("ops:{key}")).ok_or(CreditError::KeyMissing)?;
    let reason = check_line(new.reason.as_deref(), "/reason", 500)?;
    if new.amount_minor.is_some_and(|amount| amount < 1) {
        return Err(invalid("/amountMinor", "range", "must be 1 or more").into());
    }
    let hash = request_hash("purchase_refund", &(id, new.amount_minor, &reason, new.may_owe))?;
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let mut purchase = db::purchase_lock(&mut tx, id).await?.ok_or(PurchaseError::NotFound)?;
    if let Some(known) = db::refund_of_key(&mut tx, id, &key).await? {
        let known = refund_of(&mut tx, id, known).await?;
        tx.commit().await?;
        if known.request_hash.as_deref() != Some(hash.as_slice()) {
            return Err(CreditError::KeyReused.into());
        }
        let refund = refund_proceed(cx, payments, &purchase, known).await?;
        return Ok((refund, find(cx, id).await?, false));
    }
    if purchase.state != PurchaseState::Completed {
        return Err(PurchaseError::NotPaid { state: purchase.state });
    }
    let disputes = db::disputes_of(&mut tx, id).await?;
    if disputes.iter().any(|dispute| dispute.state == DisputeState::Lost) {
        return Err(PurchaseError::DisputeLost);
    }
    if disputes.iter().any(|dispute| dispute.state == DisputeState::Open) {
        return Err(PurchaseError::Disputed);
    }
    // From here on nobody spends: what is left stays left.
    ledger::expire(&mut tx, purchase.organization_id, now).await?;
    let lots = ledger::lots_of_purchase(&mut tx, id.as_uuid()).await?;
    let unspent: i64 = lots.iter().filter(|lot| lot.kind == LotKind::Paid).map(|lot| lot.remaining).sum();
    let left_minor = purchase.amount_minor - purchase.refunded_minor;
    let refundable_minor = books::share(purchase.amount_minor, unspent, purchase.credits).min(left_minor);
    let amount_minor = new.amount_minor.unwrap_or(refundable_minor);
    if amount_minor > left_minor || left_minor == 0 {
        return Err(PurchaseError::ExceedsPaid { left_minor });
    }
    let money = purchase.refunded_minor + amount_minor;
    let wanted = books::share(purchase.credits, money, purchase.amount_minor) - purchase.refunded_credits;
    if amount_minor < 1 || (wanted > unspent && !new.may_owe) {
        return Err(PurchaseError::ExceedsUnspent { unspent, wanted, refundable_minor });
    }
    let refund_id = PurchaseRefundId::new(now);
    let refund = PurchaseRefund {
        id: refund_id,
        purchase_id: id,
        refund_ref: None,
        amount_minor,
        state: RefundState::Requested,
        reason,
        failure: None,
        request_hash: Some(hash.to_vec()),
        idempotency_key: Some(format!("refund:{refund_id}")),
        called_at: Some(now),
        created_at: now,
    };
    db::refund_insert(&mut tx, &refund, Some(actor), Some(&key), Some(now + CHECK)).await?;
    books::settle(&mut tx, &mut purchase, now).await?;
    let subject = Subject::organization(purchase.organization_id);
    let data = serde_json::json!({ "purchaseId": id, "refundId": refund_id, "amountMinor": amount_minor });
    audit::record(&mut tx, now, Actor::User(actor), "purchase_refund", subject, data).await?;
    tx.commit().await?;
    let refund = refund_ask(cx, payments, &purchase, refund).await?;
    Ok((refund, find(cx, id).await?, true))
}

pub(super) async fn refund_of(
    conn: &mut sqlx::PgConnection,
    purchase: PurchaseId,
    id: PurchaseRefundId,
) -> Result<PurchaseRefund, sqlx::Error> {
    let refunds = db::refunds_of(conn, purchase).await?;
    refunds.into_iter().find(|refund| refund.id == id).ok_or(sqlx::Error::RowNotFound)
}

/// Finds out what became of a refund that was asked for, and asks again when nothing did.
pub(super) async fn refund_proceed(
    cx: &OpsCx,
    payments: &Payments,
    purchase: &Purchase,
    refund: PurchaseRefund,
) -> Result<PurchaseRefund, PurchaseError> {
    if refund.state != RefundState::Requested {
        return Ok(refund);
    }
    let name = refund.id.to_string();
    let intent = purchase.payment_intent.as_deref().unwrap_or_default();
    let theirs = payments
        .stripe
        .refunds_of(intent)
        .await?
        .data
        .into_iter()
        .find(|theirs| theirs.metadata.as_ref().is_some_and(|metadata| metadata.get(POINTER) == Some(&name)));
    match theirs {
        Some(theirs) => refund_learn(cx, purchase.id, refund.id, &theirs).await,
        None => refund_ask(cx, payments, purchase, refund).await,
    }
}

async fn refund_ask(
    cx: &OpsCx,
    payments: &Payments,
    purchase: &Purchase,
    mut refund: PurchaseRefund,
) -> Result<PurchaseRefund, PurchaseError> {
    let form = [
        ("payment_intent", purchase.payment_intent.clone().unwrap_or_default()),
        ("amount", refund.amount_minor.to_string()),
        ("metadata[refund_id]", refund.id.to_string()),
    ];
    let key = refund.idempotency_key.clone().unwrap_or_default();
    match payments.stripe.refund_create(&key, &form).await {
        Ok(theirs) => refund_learn(cx, purchase.id, refund.id, &theirs).await,
        Err(StripeError::Unknown { why }) => {
            tracing::warn!(refund.id = %refund.id, "the outcome of refund {} is not known yet: {why}", refund.id);
            Ok(refund)
        }
        Err(error @ (StripeError::Refused { .. } | StripeError::Declined { .. })) => {
            let now = cx.clock.now();
            let mut tx = cx.master.begin().await?;
            let mut purchase = db::purchase_lock(&mut tx, purchase.id).await?.ok_or(PurchaseError::NotFound)?;
            refund = refund_of(&mut tx, purchase.id, refund.id).await?;
            if refund.state == RefundState::Requested {
                refund.state = RefundState::Failed;
                refund.failure = Some(error.to_string());
                db::refund_save(&mut tx, &refund, None, now).await?;
                books::settle(&mut tx, &mut purchase, now).await?;
            }
            tx.commit().await?;
            Err(error.into())
        }
        Err(error @ StripeError::Malformed { .. }) => Err(error.into()),
    }
}

async fn refund_learn(
    cx: &OpsCx,
    purchase: PurchaseId,
    refund: PurchaseRefundId,
    theirs: &objects::Refund,
) -> Result<PurchaseRefund, PurchaseError> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let mut purchase = db::purchase_lock(&mut tx, purchase).await?.ok_or(PurchaseError::NotFound)?;
    books::learn_refund(&mut tx, &mut purchase, theirs, now).await?;
    let refund = refund_of(&mut tx, purchase.id, refund).await?;
    tx.commit().await?;
    Ok(refund)
}
