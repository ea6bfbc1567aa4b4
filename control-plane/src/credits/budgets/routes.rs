//! HTTP of budgets, of marks that are told of, and of where credits went.

use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use kernel::{OrganizationId, StoreId, UserId};
use problem::{Json, Problem, ProblemBody, Query};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Allocation, Budget, BudgetSubject, NewBudget};
use crate::credits::routes::{OrganizationQuery, managed};
use crate::cx::Cx;
use crate::http::auth::Person;
use crate::http::moment::moment;
use crate::ops::routes::Page;

pub fn router() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
        .routes(routes!(credit_allocation))
        .routes(routes!(credit_budget_list, credit_budget_set, credit_budget_remove))
        .routes(routes!(credit_alerts_get, credit_alerts_set))
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AllocationQuery {
    /// May be left out by somebody with one organization.
    organization_id: Option<OrganizationId>,
    /// From this moment on; a day counts from its midnight (UTC).
    #[serde(deserialize_with = "moment")]
    from: DateTime<Utc>,
    /// Before this moment, at most two years later.
    #[serde(deserialize_with = "moment")]
    until: DateTime<Utc>,
}

/// Where the credits went
///
/// By month, store and service.
#[utoipa::path(get, path = "/api/credits/allocation", tag = "credits", operation_id = "credit_allocation", security(("bearer" = [])), params(AllocationQuery),
    responses((status = 200, body = Page<Allocation>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn credit_allocation(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<AllocationQuery>,
) -> Result<Json<Page<Allocation>>, Problem> {
    let (organization, _) = crate::credits::organization_of(&cx, by.user.id, query.organization_id).await?;
    Ok(Json(Page::whole(super::allocation(&cx, organization, query.from, query.until).await?)))
}

/// What a store or a person may spend in a calendar month (UTC).
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BudgetView {
    store_id: Option<StoreId>,
    user_id: Option<UserId>,
    monthly_amount: i64,
    /// A hard one refuses, a soft one only tells.
    is_hard: bool,
    /// Percentages that are told when spending reaches them, as `credits.budget_reached`: each once a month, however often credits of
    /// a hold come back. Another `monthlyAmount` begins anew: what is spent from then on tells what it reaches, not what was
    /// reached before.
    alert_percents: Vec<i16>,
    /// Spent or held this month.
    used: i64,
}

impl From<Budget> for BudgetView {
    fn from(of: Budget) -> Self {
        let (store_id, user_id) = match of.subject {
            BudgetSubject::Store(id) => (Some(id), None),
            BudgetSubject::Member(id) => (None, Some(id)),
        };
        let Budget { id: _, subject: _, monthly_amount, is_hard, alert_percents, used } = of;
        Self { store_id, user_id, monthly_amount, is_hard, alert_percents, used }
    }
}

/// Budgets
#[utoipa::path(get, path = "/api/credits/budgets", tag = "credits", operation_id = "credit_budget_list", security(("bearer" = [])), params(OrganizationQuery),
    responses((status = 200, body = Page<BudgetView>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn credit_budget_list(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<OrganizationQuery>,
) -> Result<Json<Page<BudgetView>>, Problem> {
    let (organization, _) = crate::credits::organization_of(&cx, by.user.id, query.organization_id).await?;
    let all = super::list(&cx, organization).await?;
    Ok(Json(Page::whole(all.into_iter().map(Into::into).collect())))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BudgetBody {
    /// Either this or `userId`.
    store_id: Option<StoreId>,
    /// One of `GET /api/organizations/{organization}/members`.
    user_id: Option<UserId>,
    #[schema(minimum = 0)]
    monthly_amount: i64,
    /// A hard one refuses, a soft one only tells. To be said each time: a budget is set as a whole.
    is_hard: bool,
    /// Percentages that are told when they are reached; 80 and 100 when left out.
    alert_percents: Option<Vec<i16>>,
}

fn subject_of(store: Option<StoreId>, user: Option<UserId>) -> Result<BudgetSubject, Problem> {
    match (store, user) {
        (Some(store), None) => Ok(BudgetSubject::Store(store)),
        (None, Some(user)) => Ok(BudgetSubject::Member(user)),
        _ => Err(Problem::invalid().field("/storeId", "required", "give either storeId or userId")),
    }
}

/// Set a budget
///
/// Of a store or of a person; it takes the place of the one before, and what the month has used already counts.
#[utoipa::path(put, path = "/api/credits/budgets", tag = "credits", operation_id = "credit_budget_set", security(("bearer" = [])), params(OrganizationQuery),
    request_body = BudgetBody,
    responses((status = 200, body = Page<BudgetView>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn credit_budget_set(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<OrganizationQuery>,
    Json(body): Json<BudgetBody>,
) -> Result<Json<Page<BudgetView>>, Problem> {
    let organization = managed(&cx, &by, query.organization_id).await?;
    let new = NewBudget {
        subject: subject_of(body.store_id, body.user_id)?,
        monthly_amount: body.monthly_amount,
        is_hard: body.is_hard,
        alert_percents: body.alert_percents.unwrap_or_else(|| vec![80, 100]),
    };
    let all = super::set(&cx, by.user.id, organization, &new).await?;
    Ok(Json(Page::whole(all.into_iter().map(Into::into).collect())))
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct BudgetRemoveQuery {
    /// May be left out by somebody with one organization.
    organization_id: Option<OrganizationId>,
    /// Either this or `userId`.
    store_id: Option<StoreId>,
    user_id: Option<UserId>,
}

/// Remove a budget
#[utoipa::path(delete, path = "/api/credits/budgets", tag = "credits", operation_id = "credit_budget_remove", security(("bearer" = [])), params(BudgetRemoveQuery),
    responses((status = 204), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn credit_budget_remove(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<BudgetRemoveQuery>,
) -> Result<StatusCode, Problem> {
    let organization = managed(&cx, &by, query.organization_id).await?;
    super::remove(&cx, by.user.id, organization, subject_of(query.store_id, query.user_id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// When a low balance is told.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AlertsView {
    /// A balance that falls below it is told as `credits.balance_low`, once per fall; null when none is told.
    low_balance: Option<i64>,
}

/// When a low balance is told
#[utoipa::path(get, path = "/api/credits/alerts", tag = "credits", operation_id = "credit_alerts_get", security(("bearer" = [])), params(OrganizationQuery),
    responses((status = 200, body = AlertsView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn credit_alerts_get(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<OrganizationQuery>,
) -> Result<Json<AlertsView>, Problem> {
    let (organization, _) = crate::credits::organization_of(&cx, by.user.id, query.organization_id).await?;
    Ok(Json(AlertsView { low_balance: super::low_balance(&cx, organization).await? }))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AlertsBody {
    /// A balance that falls below it is told, once per fall; null to be told no more. To be said either way.
    // A function of its own makes it one that must be there.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(required, minimum = 1)]
    low_balance: Option<i64>,
}

/// Set when a low balance is told
#[utoipa::path(put, path = "/api/credits/alerts", tag = "credits", operation_id = "credit_alerts_set", security(("bearer" = [])), params(OrganizationQuery),
    request_body = AlertsBody,
    responses((status = 204), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn credit_alerts_set(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<OrganizationQuery>,
    Json(body): Json<AlertsBody>,
) -> Result<StatusCode, Problem> {
    let organization = managed(&cx, &by, query.organization_id).await?;
    super::set_low_balance(&cx, by.user.id, organization, body.low_balance).await?;
    Ok(StatusCode::NO_CONTENT)
}
