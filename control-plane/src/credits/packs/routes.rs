//! HTTP of packs.

use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use kernel::CreditPackId;
use problem::{Json, Problem, ProblemBody};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{NewPack, Pack};
use crate::audit::Actor;
use crate::cx::Cx;
use crate::http::auth::{Ops, Person};
use crate::ops::routes::Page;

pub fn router() -> OpenApiRouter<Cx> {
    OpenApiRouter::new().routes(routes!(credit_pack_list)).routes(routes!(ops_credit_pack_list, ops_credit_pack_set))
}

/// Credits that are for sale.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PackView {
    pub id: CreditPackId,
    #[schema(example = "growth")]
    pub code: String,
    pub version: i32,
    pub name: String,
    pub credits: i64,
    /// Given on top.
    pub bonus_credits: i64,
    /// How long those are good for; null when they do not expire.
    pub bonus_expires_days: Option<i32>,
    /// In minor units of the currency, taxes included.
    pub price_minor: i64,
    #[schema(example = "EUR")]
    pub currency: String,
}

impl From<Pack> for PackView {
    fn from(of: Pack) -> Self {
        let Pack { id, code, version, name, credits, bonus_credits, bonus_expires_days, price_minor, currency, .. } =
            of;
        Self { id, code, version, name, credits, bonus_credits, bonus_expires_days, price_minor, currency }
    }
}

/// Packs on sale, cheapest first
#[utoipa::path(get, path = "/api/credits/packs", tag = "credits", operation_id = "credit_pack_list", security(("bearer" = [])),
    responses((status = 200, body = Page<PackView>), (status = 401, body = ProblemBody)))]
async fn credit_pack_list(_: Person, State(cx): State<Cx>) -> Result<Json<Page<PackView>>, Problem> {
    let packs = super::on_sale(&cx).await?;
    Ok(Json(Page::whole(packs.into_iter().map(Into::into).collect())))
}

/// One version of a pack, as ops see it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OpsPackView {
    #[serde(flatten)]
    pub pack: PackView,
    /// What it is for taxes.
    #[schema(example = "txcd_10103001")]
    pub tax_code: String,
    /// Since when it is not sold any more; null while it is.
    pub retired_at: Option<DateTime<Utc>>,
}

impl From<Pack> for OpsPackView {
    fn from(of: Pack) -> Self {
        let (tax_code, retired_at) = (of.tax_code.clone(), of.retired_at);
        Self { pack: of.into(), tax_code, retired_at }
    }
}

/// Every version of every pack
///
/// By code, newest first.
#[utoipa::path(get, path = "/api/ops/credits/packs", tag = "ops", operation_id = "ops_credit_pack_list", security(("bearer" = [])),
    responses((status = 200, body = Page<OpsPackView>), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn ops_credit_pack_list(_ops: Ops, State(cx): State<Cx>) -> Result<Json<Page<OpsPackView>>, Problem> {
    let packs = super::pack_list(&cx).await?;
    Ok(Json(Page::whole(packs.into_iter().map(Into::into).collect())))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PackBody {
    /// A letter, then letters, digits and dashes, all lower-case; a new one is a new pack.
    #[schema(example = "growth")]
    code: String,
    #[schema(example = "Growth")]
    name: String,
    #[schema(minimum = 1)]
    credits: i64,
    /// Given on top; none when left out.
    #[schema(minimum = 0)]
    bonus_credits: Option<i64>,
    /// How long those are good for; they do not expire when left out.
    #[schema(minimum = 1)]
    bonus_expires_days: Option<i32>,
    /// In minor units of the currency, taxes included.
    #[schema(example = 11500, minimum = 1)]
    price_minor: i64,
    #[schema(example = "EUR")]
    currency: String,
    /// What it is for taxes; `txcd_10103001` when left out.
    tax_code: Option<String>,
}

/// Put a pack on sale
///
/// A new version by its code: the one before is sold no more, and stays what it was for who has bought it. An automatic top-up
/// by the one before is turned off, and its organization told: nobody has agreed to another price. Setting what is on sale
/// already makes no other version, and answers 200.
#[utoipa::path(post, path = "/api/ops/credits/packs", tag = "ops", operation_id = "ops_credit_pack_set", security(("bearer" = [])),
    request_body = PackBody,
    responses((status = 201, body = OpsPackView), (status = 200, body = OpsPackView, description = "It is so already"),
        (status = 401, body = ProblemBody), (status = 404, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn ops_credit_pack_set(
    ops: Ops,
    State(cx): State<Cx>,
    Json(body): Json<PackBody>,
) -> Result<(StatusCode, Json<OpsPackView>), Problem> {
    let PackBody { code, name, credits, bonus_credits, bonus_expires_days, price_minor, currency, tax_code } = body;
    let new = NewPack { code, name, credits, bonus_credits, bonus_expires_days, price_minor, currency, tax_code };
    let (pack, is_new) = super::pack_set(&cx, Actor::User(ops.by.user.id), &new).await?;
    Ok((if is_new { StatusCode::CREATED } else { StatusCode::OK }, Json(pack.into())))
}
