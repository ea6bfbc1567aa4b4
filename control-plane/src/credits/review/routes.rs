//! HTTP of what ops look at of payments.

use axum::extract::State;
use chrono::{DateTime, Utc};
use kernel::{ReconDifferenceId, ReconRunId, UserId};
use problem::{Json, Path, Problem, ProblemBody, Query};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Difference, DifferenceState, PaymentEvent, Reconciliation};
use crate::audit::Actor;
use crate::credits::purchases::events::{EventSource, EventState};
use crate::credits::purchases::recon::{DifferenceKind, RunKind};
use crate::cx::Cx;
use crate::http::auth::Ops;
use crate::ops::routes::{Page, PageMeta};

pub fn router() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
        .routes(routes!(ops_reconciliation_list))
        .routes(routes!(ops_payments_reconcile))
        .routes(routes!(ops_payment_difference_list))
        .routes(routes!(ops_payment_difference_note))
        .routes(routes!(ops_payment_event_list))
        .routes(routes!(ops_payment_event_retry))
}

/// A comparison of the payment provider's books with ours.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReconciliationView {
    pub id: ReconRunId,
    pub kind: RunKind,
    /// From this moment on.
    pub since: DateTime<Utc>,
    /// Before this moment: what is younger may still be on its way.
    pub until: DateTime<Utc>,
    /// How many things of theirs were looked at.
    pub items: i64,
    /// How many of them differ.
    pub differences: i64,
    pub created_at: DateTime<Utc>,
}

impl From<Reconciliation> for ReconciliationView {
    fn from(of: Reconciliation) -> Self {
        let Reconciliation { id, kind, since, until, items, differences, created_at } = of;
        Self { id, kind, since, until, items, differences, created_at }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReconciliationListQuery {
    /// 1 to 100; 25 when left out.
    limit: Option<u8>,
    /// `meta.nextCursor` of the page before.
    cursor: Option<String>,
}

/// Comparisons of the books, newest first
#[utoipa::path(get, path = "/api/ops/payments/reconciliations", tag = "ops", operation_id = "ops_reconciliation_list", security(("bearer" = [])),
    params(ReconciliationListQuery),
    responses((status = 200, body = Page<ReconciliationView>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 404, body = ProblemBody)))]
async fn ops_reconciliation_list(
    _ops: Ops,
    State(cx): State<Cx>,
    Query(query): Query<ReconciliationListQuery>,
) -> Result<Json<Page<ReconciliationView>>, Problem> {
    let (found, next_cursor) = super::reconciliations(&cx, query.cursor.as_deref(), query.limit).await?;
    Ok(Json(Page { data: found.into_iter().map(Into::into).collect(), meta: PageMeta { next_cursor } }))
}

/// Something that the books do not agree on.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DifferenceView {
    pub id: ReconDifferenceId,
    pub kind: DifferenceKind,
    pub state: DifferenceState,
    /// The provider's event or object.
    #[schema(example = "ch_3Q0PsIJvEtkwdCNY1SaVuRz6")]
    pub external_ref: String,
    /// What the provider says.
    #[schema(value_type = Option<Object>)]
    pub theirs: Option<Value>,
    /// What we have.
    #[schema(value_type = Option<Object>)]
    pub ours: Option<Value>,
    pub first_seen_at: DateTime<Utc>,
    pub last_seen_at: DateTime<Utc>,
    /// How often it was found, saying the same.
    pub times: i64,
    /// Why it may stay.
    pub note: Option<String>,
    /// Who has noted it, null when it was a command, and when.
    pub noted_by: Option<UserId>,
    pub noted_at: Option<DateTime<Utc>>,
}

impl From<Difference> for DifferenceView {
    fn from(of: Difference) -> Self {
        let state = if of.note.is_some() { DifferenceState::Noted } else { DifferenceState::Open };
        let Difference {
            id,
            kind,
            external_ref,
            theirs,
            ours,
            first_seen_at,
            last_seen_at,
            times,
            note,
            noted_by,
            noted_at,
        } = of;
        Self {
            id,
            kind,
            state,
            external_ref,
            theirs,
            ours,
            first_seen_at,
            last_seen_at,
            times,
            note,
            noted_by,
            noted_at,
        }
    }
}

/// A comparison, and what it found.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReconciledView {
    #[serde(flatten)]
    pub run: ReconciliationView,
    /// At most 100; the list of differences has them all.
    pub found: Vec<DifferenceView>,
}

impl From<(Reconciliation, Vec<Difference>)> for ReconciledView {
    fn from((run, found): (Reconciliation, Vec<Difference>)) -> Self {
        Self { run: run.into(), found: found.into_iter().map(Into::into).collect() }
    }
}

/// Compare the books now
///
/// The payment provider's events with those that we have, and what moved its account's money with what we booked, up to a
/// quarter of an hour ago. An event that is missing is followed. When it takes longer than a request may, it is done all the
/// same, and shows in the list of comparisons.
#[utoipa::path(post, path = "/api/ops/payments/reconcile", tag = "ops", operation_id = "ops_payments_reconcile", security(("bearer" = [])),
    responses((status = 200, body = Page<ReconciledView>), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody), (status = 502, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn ops_payments_reconcile(ops: Ops, State(cx): State<Cx>) -> Result<Json<Page<ReconciledView>>, Problem> {
    let runs = super::reconcile(&cx, Actor::User(ops.by.user.id)).await?;
    Ok(Json(Page::whole(runs.into_iter().map(Into::into).collect())))
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DifferenceListQuery {
    /// Both when left out.
    state: Option<DifferenceState>,
    /// 1 to 100; 25 when left out.
    limit: Option<u8>,
    /// `meta.nextCursor` of the page before.
    cursor: Option<String>,
}

/// What differs between the books, newest first
///
/// A difference that is found again, saying the same, is shown once.
#[utoipa::path(get, path = "/api/ops/payments/differences", tag = "ops", operation_id = "ops_payment_difference_list", security(("bearer" = [])),
    params(DifferenceListQuery),
    responses((status = 200, body = Page<DifferenceView>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 404, body = ProblemBody)))]
async fn ops_payment_difference_list(
    _ops: Ops,
    State(cx): State<Cx>,
    Query(query): Query<DifferenceListQuery>,
) -> Result<Json<Page<DifferenceView>>, Problem> {
    let (found, next_cursor) = super::differences(&cx, query.state, query.cursor.as_deref(), query.limit).await?;
    Ok(Json(Page { data: found.into_iter().map(Into::into).collect(), meta: PageMeta { next_cursor } }))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NoteBody {
    /// Why the difference may stay. Kept for ever.
    #[schema(example = "A manual refund of before we used this system.")]
    note: String,
}

/// Note that a difference was looked at
///
/// Once, for it and for everything found that says the same. It stays what it is.
#[utoipa::path(post, path = "/api/ops/payments/differences/{difference}/note", tag = "ops", operation_id = "ops_payment_difference_note", security(("bearer" = [])),
    params(("difference" = ReconDifferenceId, Path)), request_body = NoteBody,
    responses((status = 200, body = DifferenceView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn ops_payment_difference_note(
    ops: Ops,
    State(cx): State<Cx>,
    Path(difference): Path<ReconDifferenceId>,
    Json(body): Json<NoteBody>,
) -> Result<Json<DifferenceView>, Problem> {
    Ok(Json(super::difference_note(&cx, Actor::User(ops.by.user.id), difference, &body.note).await?.into()))
}

/// An event of the payment provider, without what it says.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PaymentEventView {
    #[schema(example = "evt_1Q0PsIJvEtkwdCNYMSaVuRz6")]
    pub id: String,
    #[serde(rename = "type")]
    #[schema(example = "checkout.session.completed")]
    pub kind: String,
    /// What it is about.
    pub object_id: Option<String>,
    pub state: EventState,
    /// How often it was tried to be followed.
    pub attempts: i32,
    /// Why it could not be.
    pub last_error: Option<String>,
    /// When it is tried again by itself; null when it is not.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// The payment that has to be known before it means anything.
    pub waits_for: Option<String>,
    pub source: EventSource,
    /// When it happened, as the provider says.
    pub created_at: DateTime<Utc>,
    /// When it came.
    pub received_at: DateTime<Utc>,
    /// When it was tried last.
    pub processed_at: Option<DateTime<Utc>>,
}

impl From<PaymentEvent> for PaymentEventView {
    fn from(of: PaymentEvent) -> Self {
        Self {
            id: of.id,
            kind: of.kind,
            object_id: of.object_id,
            state: of.state,
            attempts: of.attempts,
            last_error: of.last_error,
            next_attempt_at: of.next_attempt_at,
            waits_for: of.waits_for,
            source: of.source,
            created_at: of.event_created_at,
            received_at: of.created_at,
            processed_at: of.processed_at,
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PaymentEventListQuery {
    /// `failed` when left out.
    state: Option<EventState>,
    /// 1 to 100; 25 when left out.
    limit: Option<u8>,
    /// `meta.nextCursor` of the page before.
    cursor: Option<String>,
}

/// Events of the payment provider, newest first
///
/// Those that could not be followed, unless others are asked for.
#[utoipa::path(get, path = "/api/ops/payments/events", tag = "ops", operation_id = "ops_payment_event_list", security(("bearer" = [])),
    params(PaymentEventListQuery),
    responses((status = 200, body = Page<PaymentEventView>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 404, body = ProblemBody)))]
async fn ops_payment_event_list(
    _ops: Ops,
    State(cx): State<Cx>,
    Query(query): Query<PaymentEventListQuery>,
) -> Result<Json<Page<PaymentEventView>>, Problem> {
    let state = query.state.unwrap_or(EventState::Failed);
    let (found, next_cursor) = super::payment_events(&cx, state, query.cursor.as_deref(), query.limit).await?;
    Ok(Json(Page { data: found.into_iter().map(Into::into).collect(), meta: PageMeta { next_cursor } }))
}

/// Follow an event now
///
/// Also one that was given up or ignored; one that is done stays as it is. Answers how it stands after that.
#[utoipa::path(post, path = "/api/ops/payments/events/{event}/retry", tag = "ops", operation_id = "ops_payment_event_retry", security(("bearer" = [])),
    params(("event" = String, Path, description = "The provider's id of it")),
    responses((status = 200, body = PaymentEventView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 404, body = ProblemBody)))]
async fn ops_payment_event_retry(
    ops: Ops,
    State(cx): State<Cx>,
    Path(event): Path<String>,
) -> Result<Json<PaymentEventView>, Problem> {
    Ok(Json(super::payment_event_retry(&cx, Actor::User(ops.by.user.id), &event).await?.into()))
}
