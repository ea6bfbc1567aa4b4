//! HTTP of prices that ops set.

use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use problem::{Json, Problem, ProblemBody};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{NewPrice, Price};
use crate::audit::Actor;
use crate::cx::Cx;
use crate::http::auth::Ops;
use crate::ops::routes::Page;

pub fn router() -> OpenApiRouter<Cx> {
    OpenApiRouter::new().routes(routes!(ops_credit_price_list, ops_credit_price_set))
}

/// Every version of every price
///
/// By service, newest first, with those that are to come.
#[utoipa::path(get, path = "/api/ops/credits/prices", tag = "ops", operation_id = "ops_credit_price_list", security(("bearer" = [])),
    responses((status = 200, body = Page<Price>), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn ops_credit_price_list(_ops: Ops, State(cx): State<Cx>) -> Result<Json<Page<Price>>, Problem> {
    Ok(Json(Page::whole(super::price_list(&cx).await?)))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreditPriceBody {
    /// A letter, then letters, digits and dashes, all lower-case; a new one is a new service.
    #[schema(example = "translation")]
    service: String,
    #[schema(example = "Translation")]
    name: String,
    /// What a `quantity` of one is.
    #[schema(example = "word")]
    unit: String,
    /// So many credits ...
    #[schema(minimum = 1)]
    credits: i64,
    /// ... for every so many units, begun ones in full; 1 when left out.
    #[schema(minimum = 1)]
    per: Option<i64>,
    /// Not in the past; now when left out.
    valid_from: Option<DateTime<Utc>>,
}

/// Set the price of a service
///
/// A new version, which takes over from that moment on; those before stay as they are, and what was spent names the one that it
/// was priced by. Setting what the newest version says already makes no other, and answers 200.
#[utoipa::path(post, path = "/api/ops/credits/prices", tag = "ops", operation_id = "ops_credit_price_set", security(("bearer" = [])),
    request_body = CreditPriceBody,
    responses((status = 201, body = Price), (status = 200, body = Price, description = "It is so already"), (status = 401, body = ProblemBody),
        (status = 404, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn ops_credit_price_set(
    ops: Ops,
    State(cx): State<Cx>,
    Json(body): Json<CreditPriceBody>,
) -> Result<(StatusCode, Json<Price>), Problem> {
    let CreditPriceBody { service, name, unit, credits, per, valid_from } = body;
    let new = NewPrice { service, name, unit, credits, per, valid_from };
    let (price, is_new) = super::price_set(&cx, Actor::User(ops.by.user.id), &new).await?;
    Ok((if is_new { StatusCode::CREATED } else { StatusCode::OK }, Json(price)))
}
