//! What ops look at of payments: comparisons of the books with what differed in them, and events that could not be followed.
//!
//! - Nothing of it is deleted or changed by being looked at. Who has looked at a difference notes why it may stay, once; the
//!   note says who and when.
//! - A difference that is found again and says the same is the same difference: it is shown once, with how often it was
//!   found, and one that was noted does not come back as news.
//! - Of an event it is shown what it is about and how it stands, never what it says: that is the buyers'.

pub mod db;
pub mod routes;

use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use kernel::{ReconDifferenceId, ReconRunId, UserId};
use problem::Problem;
use serde::Serialize;
use serde_json::Value;
use tokio::task::JoinError;

use super::purchases::events::{self, EventSource, EventState};
use super::purchases::recon::{self, DifferenceKind, RunKind};
use super::purchases::{PurchaseError, payments};
use super::{CreditError, check_line};
use crate::audit::{self, Actor, Subject};
use crate::cx::OpsCx;
use crate::http::paging::Window;

const MAX_NOTE: usize = 500;
/// The most differences that are shown of one comparison; the list has them all.
const MAX_FOUND: i64 = 100;

/// A comparison as it is kept.
#[derive(Debug, Clone)]
pub struct Reconciliation {
    pub id: ReconRunId,
    pub kind: RunKind,
    pub since: DateTime<Utc>,
    pub until: DateTime<Utc>,
    pub items: i64,
    pub differences: i64,
    pub created_at: DateTime<Utc>,
}

/// Something that the books do not agree on, as often as it was found.
#[derive(Debug, Clone)]
pub struct Difference {
    pub id: ReconDifferenceId,
    pub kind: DifferenceKind,
    pub external_ref: String,
    pub theirs: Option<Value>,
    pub ours: Option<Value>,
    pub first_seen_at: DateTime<Utc>,
    pub last_seen_at: DateTime<Utc>,
    pub times: i64,
    pub note: Option<String>,
    pub noted_by: Option<UserId>,
    pub noted_at: Option<DateTime<Utc>>,
}

/// Whether somebody has looked at a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, utoipa::ToSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceState {
    Open,
    Noted,
}

/// An event of the provider, without what it says.
#[derive(Debug, Clone)]
pub struct PaymentEvent {
    pub id: String,
    pub kind: String,
    pub object_id: Option<String>,
    pub state: EventState,
    pub attempts: i32,
    pub last_error: Option<String>,
    pub next_attempt_at: Option<DateTime<Utc>>,
    pub waits_for: Option<String>,
    pub source: EventSource,
    pub event_created_at: DateTime<Utc>,
    pub created_at: DateTime<Utc>,
    pub processed_at: Option<DateTime<Utc>>,
}

/// Why looking at payments was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    #[error("there is no such difference or event")]
    NotFound,
    #[error("the difference was noted before")]
    AlreadyNoted,
    #[error("a comparison is under way")]
    Running,
    #[error("the comparison broke off")]
    BrokeOff(#[from] JoinError),
    #[error(transparent)]
    Purchases(#[from] PurchaseError),
}

impl From<CreditError> for ReviewError {
    fn from(error: CreditError) -> Self {
        Self::Purchases(error.into())
    }
}

impl From<sqlx::Error> for ReviewError {
    fn from(error: sqlx::Error) -> Self {
        Self::Purchases(error.into())
    }
}

/// A page of the comparisons, newest first, and the cursor of the next.
pub async fn reconciliations(
    cx: &OpsCx,
    cursor: Option<&str>,
    limit: Option<u8>,
) -> Result<(Vec<Reconciliation>, Option<String>), ReviewError> {
    let window = Window::read(&["reconciliations"], cursor, limit).map_err(CreditError::from)?;
    let found = db::reconciliations(&mut *cx.master.acquire().await?, window.after, window.rows()).await?;
    Ok(window.page(found, |run: &Reconciliation| (run.created_at, run.id)))
}

/// A page of what differed, what was found last for the first time before the rest, and the cursor of the next.
pub async fn differences(
    cx: &OpsCx,
    state: Option<DifferenceState>,
    cursor: Option<&str>,
    limit: Option<u8>,
) -> Result<(Vec<Difference>, Option<String>), ReviewError> {
    let window = Window::read(&["differences", &format!("{state:?}")], cursor, limit).map_err(CreditError::from)?;
    let is_noted = state.map(|state| state == DifferenceState::Noted);
    let mut connection = cx.master.acquire().await?;
    let found = db::differences(&mut connection, is_noted, None, window.after, window.rows()).await?;
    Ok(window.page(found, |difference: &Difference| (difference.first_seen_at, difference.id)))
}

/// Notes that somebody has looked at a difference, and why it may stay. It and everything found that says the same is noted
/// by that, once.
pub async fn difference_note(
    cx: &OpsCx,
    by: Actor,
    id: ReconDifferenceId,
    note: &str,
) -> Result<Difference, ReviewError> {
    let note = check_line(Some(note), "/note", MAX_NOTE)?.unwrap_or_default();
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let first = db::difference_first(&mut tx, id).await?.ok_or(ReviewError::NotFound)?;
    if !db::note_insert(&mut tx, first, &note, by.user(), now).await? {
        return Err(ReviewError::AlreadyNoted);
    }
    let found = db::difference_find(&mut tx, first).await?.ok_or(ReviewError::NotFound)?;
    let data = serde_json::json!({ "differenceId": first, "kind": found.kind, "of": found.external_ref, "note": note });
    audit::record(&mut tx, now, by, "payment_difference_note", Subject::default(), data).await?;
    tx.commit().await?;
    Ok(found)
}

/// Compares the books now, and tells what differs, at most [`MAX_FOUND`] of each comparison. It is done to its end also when
/// nobody waits for the answer any more.
pub async fn reconcile(cx: &OpsCx, actor: Actor) -> Result<Vec<(Reconciliation, Vec<Difference>)>, ReviewError> {
    let permit = payments(cx)?.comparing.clone().try_acquire_owned().map_err(|_| ReviewError::Running)?;
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    audit::record(&mut tx, now, actor, "payments_reconcile", Subject::default(), serde_json::json!({})).await?;
    tx.commit().await?;
    let task = cx.tasks.spawn({
        let cx = cx.clone();
        async move {
            let runs = recon::reconcile_now(&cx, payments(&cx)?).await;
            drop(permit);
            runs
        }
    });
    let runs = task.await??;
    let mut found = Vec::new();
    let mut connection = cx.master.acquire().await?;
    for run in runs {
        let kept = db::reconciliation_find(&mut connection, run.id).await?.ok_or(ReviewError::NotFound)?;
        found.push((kept, db::differences(&mut connection, None, Some(run.id), None, MAX_FOUND).await?));
    }
    Ok(found)
}

/// A page of the provider's events that stand so, newest first, and the cursor of the next.
pub async fn payment_events(
    cx: &OpsCx,
    state: EventState,
    cursor: Option<&str>,
    limit: Option<u8>,
) -> Result<(Vec<PaymentEvent>, Option<String>), ReviewError> {
    let window = Window::read(&["payment events", state.as_str()], cursor, limit).map_err(CreditError::from)?;
    let mut connection = cx.master.acquire().await?;
    let found = db::events(&mut connection, state, window.after.as_ref(), window.rows()).await?;
    Ok(window.page(found, |event: &PaymentEvent| (event.event_created_at, event.id.clone())))
}

/// Follows an event now, and tells how it stands after it. Waits for whoever works on it already.
pub async fn payment_event_retry(cx: &OpsCx, by: Actor, id: &str) -> Result<PaymentEvent, ReviewError> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    if !events::retry_now_in(&mut tx, id, now).await? {
        return Err(ReviewError::NotFound);
    }
    let event = db::event_find(&mut tx, id).await?.ok_or(ReviewError::NotFound)?;
    let data = serde_json::json!({ "eventId": event.id, "type": event.kind, "state": event.state });
    audit::record(&mut tx, now, by, "payment_event_retry", Subject::default(), data).await?;
    tx.commit().await?;
    Ok(event)
}

impl From<ReviewError> for Problem {
    fn from(error: ReviewError) -> Self {
        match error {
            ReviewError::NotFound => Self::not_found(),
            ReviewError::AlreadyNoted => {
                Self::new(StatusCode::CONFLICT, "difference-noted", "The difference was noted before")
                    .detail("A note stays as it is. GET /api/ops/payments/differences?state=noted shows it.")
            }
            ReviewError::Running => {
                Self::new(StatusCode::CONFLICT, "reconciliation-running", "The books are being compared at this moment")
                    .detail("GET /api/ops/payments/reconciliations shows it when it is done.")
            }
            error @ ReviewError::BrokeOff(_) => crate::http::errors::unexpected(&error),
            ReviewError::Purchases(error) => error.into(),
        }
    }
}
