//! Packs of credits that are for sale: versioned, immutable. What was sold names the version that it was sold as.

pub mod db;
pub mod routes;

use chrono::{DateTime, Utc};
use kernel::{CreditPackId, Currency, text};

use super::{CreditError, check_code, invalid};
use crate::audit::{self, Actor, Subject};
use crate::cx::OpsCx;

/// The most credits of one pack, and the most on top.
const MAX_CREDITS: i64 = 1_000_000_000;
/// The most that the payment provider charges at once, in minor units.
const MAX_PRICE_MINOR: i64 = 99_999_999;
const MAX_BONUS_DAYS: i32 = 3660;
/// What packs are for taxes: software as a service, for business.
const TAX_CODE: &str = "txcd_10103001";

/// Credits that are for sale.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// Every version of every pack, newest first.
pub async fn pack_list(cx: &OpsCx) -> Result<Vec<Pack>, CreditError> {
    Ok(db::packs_all(&mut *cx.master.acquire().await?).await?)
}

/// A pack that ops set.
#[derive(Debug, Clone)]
pub struct NewPack {
    pub code: String,
    pub name: String,
    pub credits: i64,
    /// None when left out.
    pub bonus_credits: Option<i64>,
    /// They do not expire when left out.
    pub bonus_expires_days: Option<i32>,
    pub price_minor: i64,
    pub currency: String,
    /// [`TAX_CODE`] when left out.
    pub tax_code: Option<String>,
}

/// Puts a pack on sale: a new version, for which the one before is retired and stays what it was. Who is on its page to pay it
/// still can; a top-up by it is turned off, for nobody has agreed to another price. Setting what is on sale already makes no
/// other version. True when it is new.
pub async fn pack_set(cx: &OpsCx, actor: Actor, new: &NewPack) -> Result<(Pack, bool), CreditError> {
    let code = check_code(&new.code, "/code")?;
    let name = text::one_line(&new.name, 100).map_err(|error| invalid("/name", "text", error.to_string()))?;
    if !(1..=MAX_CREDITS).contains(&new.credits) {
        return Err(invalid("/credits", "range", format!("must be 1 to {MAX_CREDITS} whole credits")));
    }
    let bonus_credits = new.bonus_credits.unwrap_or(0);
    if !(0..=MAX_CREDITS).contains(&bonus_credits) {
        return Err(invalid("/bonusCredits", "range", format!("must be 0 to {MAX_CREDITS} whole credits")));
    }
    if new.bonus_expires_days.is_some_and(|days| !(1..=MAX_BONUS_DAYS).contains(&days)) {
        return Err(invalid("/bonusExpiresDays", "range", format!("must be 1 to {MAX_BONUS_DAYS}")));
    }
    if new.bonus_expires_days.is_some() && bonus_credits == 0 {
        return Err(invalid("/bonusExpiresDays", "unused", "is for bonus credits, of which there are none"));
    }
    if !(1..=MAX_PRICE_MINOR).contains(&new.price_minor) {
        return Err(invalid("/priceMinor", "range", format!("must be 1 to {MAX_PRICE_MINOR}, in minor units")));
    }
    let currency =
        Currency::parse(&new.currency).map_err(|error| invalid("/currency", "unknown", error.to_string()))?;
    let tax_code = new.tax_code.clone().unwrap_or_else(|| TAX_CODE.to_owned());
    let digits = tax_code.strip_prefix("txcd_").unwrap_or_default();
    if digits.len() != 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid("/taxCode", "format", "must be txcd_ and eight digits"));
    }
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    db::packs_lock(&mut tx).await?;
    let newest = db::pack_newest(&mut tx, &code).await?;
    let pack = Pack {
        id: CreditPackId::new(now),
        version: newest.as_ref().map_or(1, |newest| newest.version + 1),
        code,
        name,
        credits: new.credits,
        bonus_credits,
        bonus_expires_days: new.bonus_expires_days,
        price_minor: new.price_minor,
        currency: currency.as_str().to_owned(),
        tax_code,
        retired_at: None,
    };
    if let Some(newest) = newest.filter(|newest| newest.says_as(&pack)) {
        return Ok((newest, false));
    }
    db::pack_retire(&mut tx, &pack.code, now).await?;
    db::pack_insert(&mut tx, &pack, now).await?;
    let data = serde_json::json!({
        "packId": pack.id, "code": pack.code, "version": pack.version, "credits": pack.credits, "bonusCredits": bonus_credits,
        "priceMinor": pack.price_minor, "currency": pack.currency,
    });
    audit::record(&mut tx, now, actor, "credit_pack_set", Subject::default(), data).await?;
    tx.commit().await?;
    Ok((pack, true))
}

impl Pack {
    /// Whether this version sells the same as another, and both are on sale or both are not.
    fn says_as(&self, other: &Self) -> bool {
        *self == Self { id: self.id, version: self.version, ..other.clone() }
    }
}
