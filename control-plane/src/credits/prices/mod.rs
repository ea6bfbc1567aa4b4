//! What services cost: versioned, immutable, in credits. A spend by service names the version that it was priced by.

mod db;
pub mod routes;

use chrono::{DateTime, Duration, SubsecRound as _, Utc};
use kernel::{CreditPriceId, text};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{CreditError, MAX_AMOUNT, check_amount, check_code, invalid};
use crate::audit::{self, Actor, Subject};
use crate::cx::OpsCx;

/// The most credits that so many units cost, and the most units: their product is far from where it overflows.
const MAX_PRICE: i64 = 1_000_000_000;
/// The furthest that a price may be set ahead.
const MAX_AHEAD: Duration = Duration::days(3660);

/// The price of a service.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Price {
    pub id: CreditPriceId,
    #[schema(example = "translation")]
    pub service: String,
    pub version: i32,
    pub name: String,
    /// What a `quantity` of one is; quantities are whole numbers. Where it is a quarter of an hour, an hour is a quantity of 4.
    #[schema(example = "word")]
    pub unit: String,
    /// So many credits ...
    pub credits: i64,
    /// ... for every so many units, begun ones in full.
    pub per: i64,
    pub valid_from: DateTime<Utc>,
}

impl Price {
    /// What `quantity` units cost; nothing when that is more than one transaction moves.
    pub fn cost(&self, quantity: i64) -> Option<i64> {
        let begun = quantity.checked_sub(1)?.checked_div(self.per)?.checked_add(1)?;
        begun.checked_mul(self.credits).filter(|cost| (1..=MAX_AMOUNT).contains(cost))
    }
}

/// What is wanted: so many credits, or so much of a service.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Wanted {
    /// Whole credits, 1 to 1,000,000,000,000; or a service and its quantity.
    #[schema(example = 10, minimum = 1)]
    pub amount: Option<i64>,
    /// One of `GET /api/credits/prices`.
    pub service: Option<String>,
    /// How many of the price's `unit`.
    #[schema(minimum = 1)]
    pub quantity: Option<i64>,
}

/// What something costs, and by which price.
#[derive(Debug, Clone)]
pub struct Cost {
    pub amount: i64,
    pub price: Option<Price>,
    pub quantity: Option<i64>,
}

impl Cost {
    /// What is kept beside the amount.
    pub fn facts(&self) -> Option<serde_json::Value> {
        self.price.as_ref().map(|price| serde_json::json!({ "priceId": price.id, "priceVersion": price.version }))
    }

    /// The service that was priced.
    pub fn service(&self) -> Option<String> {
        self.price.as_ref().map(|price| price.service.clone())
    }
}

/// The prices that hold now, by service.
pub async fn prices(cx: &OpsCx) -> Result<Vec<Price>, CreditError> {
    Ok(db::prices(&mut *cx.master.acquire().await?, None, cx.clock.now()).await?)
}

/// Every price that was ever set, newest first.
pub async fn price_list(cx: &OpsCx) -> Result<Vec<Price>, CreditError> {
    Ok(db::prices_all(&mut *cx.master.acquire().await?).await?)
}

/// A price that ops set.
#[derive(Debug, Clone)]
pub struct NewPrice {
    pub service: String,
    pub name: String,
    pub unit: String,
    pub credits: i64,
    /// 1 when left out.
    pub per: Option<i64>,
    /// Now when left out.
    pub valid_from: Option<DateTime<Utc>>,
}

/// Sets what a service costs from a moment on that is not past: a new version, beside which those before stay as they were.
/// Setting what the newest version says already makes no other. True when it is new.
pub async fn price_set(cx: &OpsCx, actor: Actor, new: &NewPrice) -> Result<(Price, bool), CreditError> {
    let service = check_code(&new.service, "/service")?;
    let line = |value: &str, pointer, max| {
        text::one_line(value, max).map_err(|error| invalid(pointer, "text", error.to_string()))
    };
    let name = line(&new.name, "/name", 100)?;
    let unit = line(&new.unit, "/unit", 60)?;
    if !(1..=MAX_PRICE).contains(&new.credits) {
        return Err(invalid("/credits", "range", format!("must be 1 to {MAX_PRICE} whole credits")));
    }
    let per = new.per.unwrap_or(1);
    if !(1..=MAX_PRICE).contains(&per) {
        return Err(invalid("/per", "range", format!("must be 1 to {MAX_PRICE}")));
    }
    // As precise as the database keeps them.
    let now = cx.clock.now().trunc_subsecs(6);
    let wanted_from = new.valid_from.map(|at| at.trunc_subsecs(6));
    let mut tx = cx.master.begin().await?;
    db::prices_lock(&mut tx).await?;
    let newest = db::price_newest(&mut tx, &service).await?;
    let version = newest.as_ref().map_or(1, |newest| newest.version + 1);
    if let Some(newest) = newest {
        let is_then = wanted_from.map_or(newest.valid_from <= now, |at| at == newest.valid_from);
        let says = (&newest.name, &newest.unit, newest.credits, newest.per);
        if is_then && says == (&name, &unit, new.credits, per) {
            return Ok((newest, false));
        }
    }
    let valid_from = wanted_from.unwrap_or(now);
    if valid_from < now {
        return Err(invalid("/validFrom", "past", "must not be past: what was spent since then was priced otherwise"));
    }
    if valid_from > now + MAX_AHEAD {
        return Err(invalid("/validFrom", "range", "must be within ten years"));
    }
    let price =
        Price { id: CreditPriceId::new(now), service, version, name, unit, credits: new.credits, per, valid_from };
    db::price_insert(&mut tx, &price, now).await?;
    let data = serde_json::json!({
        "priceId": price.id, "service": price.service, "version": version, "credits": price.credits, "per": per,
        "validFrom": valid_from,
    });
    audit::record(&mut tx, now, actor, "credit_price_set", Subject::default(), data).await?;
    tx.commit().await?;
    Ok((price, true))
}

/// What `wanted` costs now.
pub async fn cost(cx: &OpsCx, wanted: &Wanted) -> Result<Cost, CreditError> {
    match (wanted.amount, &wanted.service, wanted.quantity) {
        (Some(amount), None, None) => {
            Ok(Cost { amount: check_amount(amount, "/amount")?, price: None, quantity: None })
        }
        (None, Some(service), Some(quantity)) => {
            if quantity < 1 {
                return Err(invalid("/quantity", "range", "must be at least 1"));
            }
            let unknown = || invalid("/service", "unknown", "is no service with a price");
            if !service.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
                return Err(unknown());
            }
            let now = cx.clock.now();
            let found = db::prices(&mut *cx.master.acquire().await?, Some(service), now).await?.into_iter().next();
            let price = found.ok_or_else(unknown)?;
            let amount = price
                .cost(quantity)
                .ok_or_else(|| invalid("/quantity", "range", format!("costs more than {MAX_AMOUNT} credits")))?;
            Ok(Cost { amount, price: Some(price), quantity: Some(quantity) })
        }
        (None, Some(_), None) => Err(invalid("/quantity", "required", "is needed with a service")),
        (None, None, Some(_)) => Err(invalid("/service", "required", "is needed with a quantity")),
        (None, None, None) => Err(invalid("/amount", "required", "give an amount, or a service and a quantity")),
        (Some(_), ..) => Err(invalid("/amount", "ambiguous", "give either an amount or a service and a quantity")),
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use kernel::CreditPriceId;
    use proptest::prelude::{prop_assert, proptest};

    use super::Price;

    fn price(credits: i64, per: i64) -> Price {
        let id = CreditPriceId::new(DateTime::UNIX_EPOCH);
        let (service, name, unit) = ("s".to_owned(), "S".to_owned(), "u".to_owned());
        Price { id, service, version: 1, name, unit, credits, per, valid_from: DateTime::UNIX_EPOCH }
    }

    #[test]
    fn begun_units_are_paid_in_full() {
        let translation = price(1, 100);
        for (words, cost) in [(1, 1), (100, 1), (101, 2), (1000, 10)] {
            assert_eq!(translation.cost(words), Some(cost), "{words}");
        }
        assert_eq!(price(1_000_000_000, 1).cost(i64::MAX), None);
        assert_eq!(price(3, 1).cost(0), None);
    }

    proptest! {
        #[test]
        fn more_never_costs_less(credits in 1_i64..1000, per in 1_i64..1000, a in 1_i64..1_000_000, b in 0_i64..1000) {
            let price = price(credits, per);
            prop_assert!(price.cost(a + b) >= price.cost(a));
            prop_assert!(price.cost(a).is_some_and(|cost| i128::from(cost) * i128::from(per) >= i128::from(a) * i128::from(credits)));
        }
    }
}
