//! HTTP of charges.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, NaiveDate, Utc};
use kernel::{CreditTransactionId, StoreId};
use problem::{Json, Problem, ProblemBody, Query};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Charge, ChargeFilter, ChargeState, NewPrice, Price, Usage, Waived};
use crate::audit::Actor;
use crate::cx::Cx;
use crate::http::auth::Ops;
use crate::http::moment::day_or_none;
use crate::identity::Principal;
use crate::ops::routes::Page;

pub fn router() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
        .routes(routes!(credit_usage))
        .routes(routes!(credit_charge_price_list))
        .routes(routes!(ops_charge_price_list, ops_charge_price_set))
        .routes(routes!(ops_charges_waive))
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UsageQuery {
    store_id: StoreId,
    /// The first day (UTC); 30 days before `until` when left out.
    #[serde(default, deserialize_with = "day_or_none")]
    from: Option<NaiveDate>,
    /// The day after the last one; tomorrow when left out.
    #[serde(default, deserialize_with = "day_or_none")]
    until: Option<NaiveDate>,
}

/// A charge of one day.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChargeView {
    /// `store-day`, or `metric:` and the name of what is counted.
    pub service: String,
    pub quantity: i64,
    pub amount: i64,
    pub state: ChargeState,
    /// The transaction that paid it.
    pub transaction_id: Option<CreditTransactionId>,
    /// Why it is unpaid, or why it was waived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl From<Charge> for ChargeView {
    fn from(of: Charge) -> Self {
        Self {
            service: of.service,
            quantity: of.quantity,
            amount: of.amount,
            state: of.state,
            transaction_id: of.transaction_id,
            reason: of.reason,
        }
    }
}

/// What a store was charged for on a day, and what was counted of it.
#[derive(Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DayView {
    day: NaiveDate,
    charges: Vec<ChargeView>,
    /// By metric. `requests`: requests to the store's hostname that it answered, with anything but an error of ours; what a node
    /// that broke down had not written yet is missing. `orders`: orders that were placed; counted exactly, when the day is over.
    counts: BTreeMap<String, i64>,
}

/// A store's usage.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageView {
    store_id: StoreId,
    from: NaiveDate,
    until: NaiveDate,
    /// What was charged in these days, in credits.
    charged: i64,
    /// What the store owes in all.
    owed: i64,
    /// Whether carts and checkouts are refused because of it.
    is_read_only: bool,
    /// When that begins unless it is paid; null when nothing is owed or it has begun.
    read_only_at: Option<DateTime<Utc>>,
    /// Days with a charge or a count, oldest first.
    data: Vec<DayView>,
}

impl From<Usage> for UsageView {
    fn from(of: Usage) -> Self {
        let charged = of.charges.iter().filter(|charge| charge.state == ChargeState::Charged);
        let charged = charged.map(|charge| charge.amount).sum();
        let mut days: BTreeMap<NaiveDate, DayView> = BTreeMap::new();
        for charge in of.charges {
            days.entry(charge.day).or_default().charges.push(charge.into());
        }
        for count in of.counts {
            days.entry(count.day).or_default().counts.insert(count.metric, count.quantity);
        }
        Self {
            store_id: of.store,
            from: of.from,
            until: of.until,
            charged,
            owed: of.arrears.amount,
            is_read_only: of.is_read_only,
            read_only_at: of.read_only_at,
            data: days.into_iter().map(|(day, view)| DayView { day, ..view }).collect(),
        }
    }
}

/// What a store costs by itself
///
/// Day by day: the charge of an active day, and what is counted. When credits end, the store serves its pages for some days of
/// grace as before, and refuses carts and checkouts after them until what is owed is paid.
#[utoipa::path(get, path = "/api/credits/usage", tag = "credits", operation_id = "credit_usage", security(("bearer" = [])), params(UsageQuery),
    responses((status = 200, body = UsageView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 404, body = ProblemBody)))]
async fn credit_usage(
    by: Principal,
    State(cx): State<Cx>,
    Query(query): Query<UsageQuery>,
) -> Result<Json<UsageView>, Problem> {
    Ok(Json(super::usage(&cx, &by, query.store_id, query.from, query.until).await?.into()))
}

/// What a store is charged by itself, from a day on.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChargePriceView {
    /// `store-day`, a day (UTC) that a store is active in, if for a moment; or `metric:` and the name of what is counted of a store
    /// on a day, as `counts` of `GET /api/credits/usage` has it.
    #[schema(example = "metric:orders")]
    service: String,
    /// What is counted.
    #[schema(example = "placed order")]
    unit: String,
    /// So many credits ...
    credits: i64,
    /// ... for every so many units of a store and day, begun ones in full.
    per: i64,
    /// The first day (UTC) that is charged so.
    valid_from: NaiveDate,
}

impl From<Price> for ChargePriceView {
    fn from(of: Price) -> Self {
        let unit = of.unit().to_owned();
        let Price { service, valid_from, amount, per } = of;
        Self { service, unit, credits: amount, per, valid_from }
    }
}

/// What stores are charged by themselves
///
/// Today, and from a later day on where it is announced; what is not here costs nothing. An active day is charged when it
/// begins, what is counted of a day when the day is over.
#[utoipa::path(get, path = "/api/credits/charge-prices", tag = "credits", operation_id = "credit_charge_price_list", security(("bearer" = [])),
    responses((status = 200, body = Page<ChargePriceView>), (status = 401, body = ProblemBody)))]
async fn credit_charge_price_list(
    _by: Principal,
    State(cx): State<Cx>,
) -> Result<Json<Page<ChargePriceView>>, Problem> {
    let prices = super::prices(&cx).await?;
    Ok(Json(Page::whole(prices.into_iter().map(Into::into).collect())))
}

/// What a service costs from a day on.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PriceView {
    pub service: String,
    pub valid_from: NaiveDate,
    /// Credits; 0 is nothing.
    pub amount: i64,
    /// For so many units, or what is begun of them.
    pub per: i64,
}

impl From<Price> for PriceView {
    fn from(of: Price) -> Self {
        let Price { service, valid_from, amount, per } = of;
        Self { service, valid_from, amount, per }
    }
}

/// Prices of charges, newest first
#[utoipa::path(get, path = "/api/ops/credits/charge-prices", tag = "ops", operation_id = "ops_charge_price_list", security(("bearer" = [])),
    responses((status = 200, body = Page<PriceView>), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn ops_charge_price_list(_ops: Ops, State(cx): State<Cx>) -> Result<Json<Page<PriceView>>, Problem> {
    let prices = super::price_list(&cx).await?;
    Ok(Json(Page::whole(prices.into_iter().map(Into::into).collect())))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PriceBody {
    /// `store-day`, `metric:requests` or `metric:orders`.
    #[schema(example = "store-day")]
    service: String,
    /// Credits; 0 ends it.
    amount: i64,
    /// For so many units; 1 when left out.
    per: Option<i64>,
    /// A day that has not begun (UTC); tomorrow when left out.
    valid_from: Option<NaiveDate>,
}

/// Set the price of a charge
///
/// From a day on that has not begun: what a day costs does not change once it is there.
#[utoipa::path(post, path = "/api/ops/credits/charge-prices", tag = "ops", operation_id = "ops_charge_price_set", security(("bearer" = [])),
    request_body = PriceBody,
    responses((status = 201, body = PriceView), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody),
        (status = 422, body = ProblemBody)))]
async fn ops_charge_price_set(
    ops: Ops,
    State(cx): State<Cx>,
    Json(body): Json<PriceBody>,
) -> Result<(StatusCode, Json<PriceView>), Problem> {
    let PriceBody { service, amount, per, valid_from } = body;
    let new = NewPrice { service, amount, per, valid_from };
    let price = super::price_set(&cx, Actor::User(ops.by.user.id), &new).await?;
    Ok((StatusCode::CREATED, Json(price.into())))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WaiveBody {
    store_id: StoreId,
    /// Only what is owed for this day (UTC); for every day when left out.
    day: Option<NaiveDate>,
    /// Only what is owed for this service; for every one when left out.
    #[schema(example = "store-day")]
    service: Option<String>,
    /// Kept in the audit trail and shown to the owner.
    reason: String,
}

/// A charge that was waived.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WaivedChargeView {
    pub day: NaiveDate,
    #[serde(flatten)]
    pub charge: ChargeView,
}

/// What was waived of a store.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WaivedView {
    pub store_id: StoreId,
    /// Oldest first; empty when nothing of it was owed.
    pub waived: Vec<WaivedChargeView>,
    /// What the store still owes. Once it is nothing, a store that was read-only takes orders again.
    pub owed: i64,
}

impl WaivedView {
    pub fn new(store_id: StoreId, of: Waived) -> Self {
        let view = |charge: Charge| WaivedChargeView { day: charge.day, charge: charge.into() };
        Self { store_id, waived: of.charges.into_iter().map(view).collect(), owed: of.arrears.amount }
    }
}

/// Waive what a store owes
///
/// All of it, or that of a day or a service. What is paid is not waived: when the `day` that is named holds nothing but what
/// was charged, it is refused with `charge-paid`; grant compensation for it instead.
#[utoipa::path(post, path = "/api/ops/charges/waive", tag = "ops", operation_id = "ops_charges_waive", security(("bearer" = [])),
    request_body = WaiveBody,
    responses((status = 200, body = WaivedView), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn ops_charges_waive(
    ops: Ops,
    State(cx): State<Cx>,
    Json(body): Json<WaiveBody>,
) -> Result<Json<WaivedView>, Problem> {
    let WaiveBody { store_id, day, service, reason } = body;
    let of = ChargeFilter { store: store_id, day, service };
    let waived = super::waive(&cx, Actor::User(ops.by.user.id), &of, &reason).await?;
    Ok(Json(WaivedView::new(store_id, waived)))
}
