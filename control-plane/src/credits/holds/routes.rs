//! HTTP of holds.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use chrono::{DateTime, Utc};
use kernel::{CreditHoldId, OrganizationId, StoreId};
use problem::{Json, Path, Problem, ProblemBody, Query};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Hold, HoldEnd, HoldFilter, HoldState};
use crate::credits::organization_of;
use crate::credits::prices::Wanted;
use crate::credits::routes::{TransactionView, decided};
use crate::cx::Cx;
use crate::http::auth::Person;
use crate::idempotency::IdempotencyKey;
use crate::identity::Principal;
use crate::ops::routes::{Page, PageMeta};

pub fn router() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
        .routes(routes!(credit_hold_list, credit_hold_create))
        .routes(routes!(credit_hold_get))
        .routes(routes!(credit_hold_capture))
        .routes(routes!(credit_hold_void))
}

#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HoldBody {
    pub store_id: StoreId,
    /// Whole credits, 1 to 1,000,000,000,000; or a service and its quantity.
    #[schema(example = 100, minimum = 1)]
    pub amount: Option<i64>,
    /// One of `GET /api/credits/prices`, instead of an amount.
    // Left out of what is hashed when it is left out: keys of before are still answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// How many of the price's `unit`, in whole ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub quantity: Option<i64>,
    pub description: Option<String>,
    /// When they are given back by themselves: 1 to 2,592,000 (30 days); 3,600 when left out.
    #[schema(example = 3600)]
    pub expires_in_seconds: Option<i64>,
}

impl HoldBody {
    /// What is to be reserved for.
    pub fn wanted(&self) -> Wanted {
        Wanted { amount: self.amount, service: self.service.clone(), quantity: self.quantity }
    }
}

/// Reserve credits
///
/// They count as spent against balance and budgets until the hold is captured, voided, or expires. The answer's `holdId` names
/// it.
#[utoipa::path(post, path = "/api/credits/holds", tag = "credits", operation_id = "credit_hold_create", security(("bearer" = [])),
    params(("Idempotency-Key" = String, Header)), request_body = HoldBody,
    responses((status = 201, body = TransactionView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 402, body = ProblemBody), (status = 403, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn credit_hold_create(
    by: Principal,
    State(cx): State<Cx>,
    key: IdempotencyKey,
    Json(body): Json<HoldBody>,
) -> Result<Response, Problem> {
    let decision = super::create(&cx, &by, &body, key.0.as_deref()).await?;
    Ok(decided(StatusCode::CREATED, decision, |of| TransactionView::seen_by(&by, of)))
}

/// Credits that are, or were, reserved.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HoldView {
    id: CreditHoldId,
    store_id: Option<StoreId>,
    amount: i64,
    captured: i64,
    state: HoldState,
    service: Option<String>,
    description: Option<String>,
    expires_at: DateTime<Utc>,
    created_at: DateTime<Utc>,
}

impl From<Hold> for HoldView {
    fn from(of: Hold) -> Self {
        let Hold {
            id,
            organization_id: _,
            store_id,
            amount,
            captured,
            state,
            service,
            description,
            expires_at,
            created_at,
        } = of;
        Self { id, store_id, amount, captured, state, service, description, expires_at, created_at }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct HoldListQuery {
    /// May be left out by somebody with one organization.
    organization_id: Option<OrganizationId>,
    store_id: Option<StoreId>,
    state: Option<HoldState>,
    /// 1 to 100; 25 when left out.
    limit: Option<u8>,
    /// `meta.nextCursor` of the page before.
    cursor: Option<String>,
}

/// Holds, newest first
#[utoipa::path(get, path = "/api/credits/holds", tag = "credits", operation_id = "credit_hold_list", security(("bearer" = [])), params(HoldListQuery),
    responses((status = 200, body = Page<HoldView>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn credit_hold_list(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<HoldListQuery>,
) -> Result<Json<Page<HoldView>>, Problem> {
    let (organization, _) = organization_of(&cx, by.user.id, query.organization_id).await?;
    let filter = HoldFilter { store: query.store_id, state: query.state };
    let (found, next_cursor) = super::list(&cx, organization, &filter, query.cursor.as_deref(), query.limit).await?;
    Ok(Json(Page { data: found.into_iter().map(Into::into).collect(), meta: PageMeta { next_cursor } }))
}

/// One hold
#[utoipa::path(get, path = "/api/credits/holds/{hold}", tag = "credits", operation_id = "credit_hold_get", security(("bearer" = [])),
    params(("hold" = CreditHoldId, Path)),
    responses((status = 200, body = HoldView), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn credit_hold_get(
    by: Principal,
    State(cx): State<Cx>,
    Path(hold): Path<CreditHoldId>,
) -> Result<Json<HoldView>, Problem> {
    Ok(Json(super::find(&cx, &by, hold).await?.into()))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CaptureBody {
    /// At most what was held; the rest is given back.
    #[schema(example = 80, minimum = 1)]
    amount: i64,
}

/// Capture a hold
///
/// Spends so much of it and gives the rest back. A hold is ended once.
#[utoipa::path(post, path = "/api/credits/holds/{hold}/capture", tag = "credits", operation_id = "credit_hold_capture", security(("bearer" = [])),
    params(("hold" = CreditHoldId, Path), ("Idempotency-Key" = String, Header)), request_body = CaptureBody,
    responses((status = 200, body = TransactionView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn credit_hold_capture(
    by: Principal,
    State(cx): State<Cx>,
    Path(hold): Path<CreditHoldId>,
    key: IdempotencyKey,
    Json(body): Json<CaptureBody>,
) -> Result<Response, Problem> {
    let decision = super::end(&cx, &by, hold, HoldEnd::Capture(body.amount), key.0.as_deref()).await?;
    Ok(decided(StatusCode::OK, decision, |of| TransactionView::seen_by(&by, of)))
}

/// Void a hold
///
/// Gives all of it back. A hold is ended once.
#[utoipa::path(post, path = "/api/credits/holds/{hold}/void", tag = "credits", operation_id = "credit_hold_void", security(("bearer" = [])),
    params(("hold" = CreditHoldId, Path), ("Idempotency-Key" = String, Header)),
    responses((status = 200, body = TransactionView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
async fn credit_hold_void(
    by: Principal,
    State(cx): State<Cx>,
    Path(hold): Path<CreditHoldId>,
    key: IdempotencyKey,
) -> Result<Response, Problem> {
    let decision = super::end(&cx, &by, hold, HoldEnd::Void, key.0.as_deref()).await?;
    Ok(decided(StatusCode::OK, decision, |of| TransactionView::seen_by(&by, of)))
}
