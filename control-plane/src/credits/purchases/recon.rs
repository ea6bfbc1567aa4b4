//! Two sets of books compared: the provider's events with those that we have, and what moved its account's money with what
//! we booked. What differs is written down and never deleted; a later run says whether it is still so.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use kernel::{PurchaseId, ReconRunId};
use serde::Serialize;
use serde_json::{Value, json};

use super::events::{self, EventSource, EventState, StoredEvent};
use super::{Payments, PurchaseError, db};
use crate::credits::stripe::objects::{BalanceTransaction, Event, Reference};
use crate::cx::OpsCx;

/// The provider keeps events so long.
pub const EVENTS_KEPT: chrono::Duration = chrono::Duration::days(29);
/// What is younger may still be on its way to us.
pub const GRACE: chrono::Duration = chrono::Duration::minutes(15);
/// Runs overlap by so much: clocks differ, and what was late in one is seen by the next.
pub const OVERLAP: chrono::Duration = chrono::Duration::hours(2);
/// The most pages of one list that one run reads; the next goes on from there.
const MAX_PAGES: usize = 200;

/// What moved money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum CashKind {
    Charge,
    Refund,
    Dispute,
    Fee,
}

impl CashKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Charge => "charge",
            Self::Refund => "refund",
            Self::Dispute => "dispute",
            Self::Fee => "fee",
        }
    }
}

/// A movement of money as we booked it; above zero is what came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CashEntry {
    pub kind: CashKind,
    pub amount_minor: i64,
    pub currency: String,
    /// The provider's object that moved it.
    pub external_ref: String,
    pub purchase_id: Option<PurchaseId>,
}

/// Which books are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum RunKind {
    /// The provider's events with those that we have.
    Events,
    /// What moved its account's money with what we booked.
    Balance,
}

impl RunKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Balance => "balance",
        }
    }
}

/// How two sets of books differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// It did not come; it is followed by now.
    EventMissing,
    /// It came and could not be followed.
    EventFailed,
    /// It says something else than when it came.
    EventChanged,
    /// Money moved and is not booked.
    MissingHere,
    /// It is booked, and no money moved.
    MissingThere,
    AmountDiffers,
    CurrencyDiffers,
    FeeDiffers,
}

impl DifferenceKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EventMissing => "event_missing",
            Self::EventFailed => "event_failed",
            Self::EventChanged => "event_changed",
            Self::MissingHere => "missing_here",
            Self::MissingThere => "missing_there",
            Self::AmountDiffers => "amount_differs",
            Self::CurrencyDiffers => "currency_differs",
            Self::FeeDiffers => "fee_differs",
        }
    }
}

/// One thing that the books do not agree on.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    pub kind: DifferenceKind,
    pub external_ref: String,
    pub theirs: Option<Value>,
    pub ours: Option<Value>,
}

/// A comparison and what it found.
#[derive(Debug)]
pub struct Run {
    pub id: ReconRunId,
    pub kind: RunKind,
    pub since: DateTime<Utc>,
    pub until: DateTime<Utc>,
    pub items: i64,
    pub differences: Vec<Difference>,
}

/// Compares both, each from where it last ended, up to what cannot be on its way any more.
pub async fn reconcile(cx: &OpsCx, payments: &Payments) -> Result<Vec<Run>, PurchaseError> {
    let until = cx.clock.now() - GRACE;
    let half = chrono::Duration::from_std(payments.reconcile / 2).unwrap_or(OVERLAP);
    let mut runs = Vec::new();
    for kind in [RunKind::Events, RunKind::Balance] {
        let last = db::recon_until(&mut *cx.master.acquire().await?, kind).await?;
        if last.is_some_and(|last| last + half > until) {
            // Another node was here.
            continue;
        }
        runs.push(reconcile_from(cx, payments, kind, last, until).await?);
    }
    Ok(runs)
}

/// As [`reconcile`], however short ago it was done.
pub async fn reconcile_now(cx: &OpsCx, payments: &Payments) -> Result<Vec<Run>, PurchaseError> {
    let until = cx.clock.now() - GRACE;
    let mut runs = Vec::new();
    for kind in [RunKind::Events, RunKind::Balance] {
        let last = db::recon_until(&mut *cx.master.acquire().await?, kind).await?;
        runs.push(reconcile_from(cx, payments, kind, last, until).await?);
    }
    Ok(runs)
}

async fn reconcile_from(
    cx: &OpsCx,
    payments: &Payments,
    kind: RunKind,
    last: Option<DateTime<Utc>>,
    until: DateTime<Utc>,
) -> Result<Run, PurchaseError> {
    let oldest = cx.clock.now() - EVENTS_KEPT;
    let since = last.map_or(oldest, |last| last.min(until) - OVERLAP).max(oldest);
    match kind {
        RunKind::Events => reconcile_events(cx, payments, since, until).await,
        RunKind::Balance => reconcile_balance(cx, payments, since, until).await,
    }
}

/// Every event that means something here must have come, and have been followed. One that has not is followed now.
pub async fn reconcile_events(
    cx: &OpsCx,
    payments: &Payments,
    since: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<Run, PurchaseError> {
    let id = ReconRunId::new(cx.clock.now());
    let mut run = Run { id, kind: RunKind::Events, since, until, items: 0, differences: Vec::new() };
    let mut missing = Vec::new();
    for event in events_since(payments, since, false).await? {
        let (event, bytes) = event;
        if event.created >= until.timestamp() {
            continue;
        }
        run.items += 1;
        let known = db::event_known(&mut *cx.master.acquire().await?, &event.id).await?;
        let differs =
            |kind, theirs: Value, ours| Difference { kind, external_ref: event.id.clone(), theirs: Some(theirs), ours };
        let says = json!({ "type": event.kind, "created": event.created });
        match known {
            None => {
                run.differences.push(differs(DifferenceKind::EventMissing, says, None));
                missing.push(bytes);
            }
            Some((state, hash)) => {
                let theirs = StoredEvent::read(&bytes).map(|event| event.payload_sha256).unwrap_or_default();
                if theirs != hash {
                    let ours = json!({ "sha256": hex::encode(&hash) });
                    let theirs = json!({ "sha256": hex::encode(&theirs) });
                    run.differences.push(differs(DifferenceKind::EventChanged, theirs, Some(ours)));
                } else if state == EventState::Failed {
                    run.differences.push(differs(
                        DifferenceKind::EventFailed,
                        says,
                        Some(json!({ "state": "failed" })),
                    ));
                }
            }
        }
    }
    write_down(cx, &run).await?;
    // Oldest first: what comes later may build on it.
    for bytes in missing.iter().rev() {
        if let Err(error) = events::ingest(cx, bytes, EventSource::Sweep).await {
            tracing::warn!("an event that was missing cannot be followed: {error}");
        }
    }
    Ok(run)
}

/// The events since a moment that mean something here, newest first, with their bytes.
pub async fn events_since(
    payments: &Payments,
    since: DateTime<Utc>,
    only_undelivered: bool,
) -> Result<Vec<(Event, Vec<u8>)>, PurchaseError> {
    let mut found = Vec::new();
    let mut after: Option<String> = None;
    for _ in 0..MAX_PAGES {
        let page =
            payments.stripe.events(&events::TYPES, since.timestamp(), only_undelivered, after.as_deref()).await?;
        for value in page.data {
            let bytes = serde_json::to_vec(&value).map_err(|error| sqlx::Error::Encode(error.into()))?;
            match serde_json::from_value::<Event>(value) {
                Ok(event) => {
                    after = Some(event.id.clone());
                    found.push((event, bytes));
                }
                Err(error) => tracing::warn!("an event of the list cannot be read: {error}"),
            }
        }
        if !page.has_more {
            return Ok(found);
        }
    }
    tracing::warn!("there are more events since {since} than are read in one go");
    Ok(found)
}

/// Everything that moved money must be booked, once and so much; and everything that is booked must have moved money.
/// Fees are told nowhere else: they are booked from here.
pub async fn reconcile_balance(
    cx: &OpsCx,
    payments: &Payments,
    since: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<Run, PurchaseError> {
    let now = cx.clock.now();
    let id = ReconRunId::new(now);
    let mut run = Run { id, kind: RunKind::Balance, since, until, items: 0, differences: Vec::new() };
    let mut theirs: HashMap<(CashKind, String), BalanceTransaction> = HashMap::new();
    let mut after: Option<String> = None;
    for _ in 0..MAX_PAGES {
        let page = payments.stripe.balance_transactions(since.timestamp(), until.timestamp(), after.as_deref()).await?;
        after = page.data.last().map(|last| last.id.clone());
        for movement in page.data {
            run.items += 1;
            compare_fee(cx, &mut run, &movement, now).await?;
            if let Some(name) = booked_as(&movement) {
                compare(cx, &mut run, &name, &movement).await?;
                theirs.insert(name, movement);
            }
        }
        if !page.has_more {
            after = None;
            break;
        }
    }
    if after.is_some() {
        tracing::warn!("more moved money since {since} than is compared in one go");
    }
    let ours = db::cash_between(&mut *cx.master.acquire().await?, since, until).await?;
    for entry in ours {
        let name = (entry.kind, entry.external_ref.clone());
        if theirs.contains_key(&name) {
            continue;
        }
        // It may have moved before the span that was read.
        let source = entry.external_ref.split(':').next().unwrap_or_default();
        let moved = payments.stripe.balance_transactions_of(source).await?;
        if !moved.data.iter().any(|movement| booked_as(movement).as_ref() == Some(&name)) {
            run.differences.push(Difference {
                kind: DifferenceKind::MissingThere,
                external_ref: entry.external_ref.clone(),
                theirs: None,
                ours: Some(shown(&entry)),
            });
        }
    }
    write_down(cx, &run).await?;
    Ok(run)
}

fn shown(entry: &CashEntry) -> Value {
    json!({ "kind": entry.kind.as_str(), "amountMinor": entry.amount_minor, "currency": entry.currency })
}

/// What a movement must be booked as; nothing for what is not about purchases, such as payouts.
fn booked_as(movement: &BalanceTransaction) -> Option<(CashKind, String)> {
    let source = movement.source.as_ref().map(Reference::id)?;
    let category = movement.reporting_category.as_deref().unwrap_or_default();
    let (kind, suffix) = match (movement.kind.as_str(), category) {
        ("charge" | "payment", _) => (CashKind::Charge, ""),
        ("refund" | "payment_refund", _) => (CashKind::Refund, ""),
        ("refund_failure" | "payment_failure_refund", _) => (CashKind::Refund, ":failed"),
        (_, "dispute") => (CashKind::Dispute, ""),
        (_, "dispute_reversal") => (CashKind::Dispute, ":reinstated"),
        _ => return None,
    };
    Some((kind, format!("{source}{suffix}")))
}

async fn compare(
    cx: &OpsCx,
    run: &mut Run,
    (kind, external_ref): &(CashKind, String),
    movement: &BalanceTransaction,
) -> Result<(), PurchaseError> {
    let entry = db::cash_find(&mut *cx.master.acquire().await?, *kind, external_ref).await?;
    let theirs = json!({
        "id": movement.id, "kind": movement.kind, "amountMinor": movement.amount, "currency": movement.currency.to_uppercase(),
    });
    let found = match &entry {
        None => DifferenceKind::MissingHere,
        Some(entry) if !entry.currency.eq_ignore_ascii_case(&movement.currency) => DifferenceKind::CurrencyDiffers,
        Some(entry) if entry.amount_minor != movement.amount => DifferenceKind::AmountDiffers,
        Some(_) => return Ok(()),
    };
    let ours = entry.as_ref().map(shown);
    run.differences.push(Difference { kind: found, external_ref: external_ref.clone(), theirs: Some(theirs), ours });
    Ok(())
}

async fn compare_fee(
    cx: &OpsCx,
    run: &mut Run,
    movement: &BalanceTransaction,
    now: DateTime<Utc>,
) -> Result<(), PurchaseError> {
    let entry = CashEntry {
        kind: CashKind::Fee,
        amount_minor: -movement.fee,
        currency: movement.currency.to_uppercase(),
        external_ref: movement.id.clone(),
        purchase_id: None,
    };
    let mut connection = cx.master.acquire().await?;
    if movement.fee != 0 && db::cash_insert(&mut connection, &entry, now).await? {
        return Ok(());
    }
    let booked = db::cash_find(&mut connection, CashKind::Fee, &movement.id).await?;
    if booked.as_ref().map_or(0, |booked| booked.amount_minor) != entry.amount_minor {
        run.differences.push(Difference {
            kind: DifferenceKind::FeeDiffers,
            external_ref: movement.id.clone(),
            theirs: Some(json!({ "amountMinor": entry.amount_minor })),
            ours: booked.as_ref().map(shown),
        });
    }
    Ok(())
}

async fn write_down(cx: &OpsCx, run: &Run) -> Result<(), PurchaseError> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    db::recon_run_insert(&mut tx, run, now).await?;
    for difference in &run.differences {
        db::recon_difference_insert(&mut tx, Some(run.id), difference, now).await?;
    }
    tx.commit().await?;
    #[expect(clippy::cast_precision_loss, reason = "a count for a gauge")]
    metrics::gauge!("tenantry_reconciliation_differences", "kind" => run.kind.as_str())
        .set(run.differences.len() as f64);
    for difference in run.differences.iter().take(20) {
        let (kind, of) = (difference.kind.as_str(), &difference.external_ref);
        tracing::error!(stripe.object = of, "the payment provider's books differ from ours: {kind} {of}");
    }
    Ok(())
}
