//! HTTP of packs.

use axum::extract::State;
use kernel::CreditPackId;
use problem::{Json, Problem, ProblemBody};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Pack;
use crate::cx::Cx;
use crate::http::auth::Person;
use crate::ops::routes::Page;

pub fn router() -> OpenApiRouter<Cx> {
    OpenApiRouter::new().routes(routes!(credit_pack_list))
}

/// Credits that are for sale.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PackView {
    id: CreditPackId,
    #[schema(example = "growth")]
    code: String,
    version: i32,
    name: String,
    credits: i64,
    /// Given on top.
    bonus_credits: i64,
    /// How long those are good for; null when they do not expire.
    bonus_expires_days: Option<i32>,
    /// In minor units of the currency, taxes included.
    price_minor: i64,
    #[schema(example = "EUR")]
    currency: String,
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
