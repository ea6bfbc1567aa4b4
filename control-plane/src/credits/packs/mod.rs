//! Packs of credits that are for sale: versioned, immutable. What was sold names the version that it was sold as.

pub mod db;
pub mod routes;

use chrono::{DateTime, Utc};
use kernel::CreditPackId;

use super::CreditError;
use crate::cx::OpsCx;

/// Credits that are for sale.
#[derive(Debug, Clone)]
pub struct Pack {
    pub id: CreditPackId,
    pub code: String,
    pub version: i32,
    pub name: String,
    pub credits: i64,
    pub bonus_credits: i64,
    pub bonus_expires_days: Option<i32>,
    pub price_minor: i64,
    pub currency: String,
    pub tax_code: String,
    pub retired_at: Option<DateTime<Utc>>,
}

/// What is for sale.
pub async fn on_sale(cx: &OpsCx) -> Result<Vec<Pack>, CreditError> {
    Ok(db::packs_on_sale(&mut *cx.master.acquire().await?).await?)
}
