//! A store's settings: one row per top-level field, read and written as one typed value.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use kernel::Currency;
use sea_query::{Expr, OnConflict, Query, SelectStatement};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use tenancy::{Connection, Transaction};
use utoipa::ToSchema;

use crate::catalog;
use crate::field::{FieldError, Fields};
use crate::sql;

/// Everything an owner may set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StoreSettings {
    /// The store's name, as shoppers read it.
    pub name: String,
    /// The one currency that prices are kept in.
    #[schema(value_type = String, example = "EUR")]
    pub currency: Currency,
    /// The language of the store's texts, such as `en` or `pt-BR`.
    pub locale: String,
    /// The owner's time zone by its IANA name, such as `Europe/Berlin`. Times are kept and answered in UTC.
    pub timezone: String,
    /// The unit that weights are shown in.
    pub weight_unit: WeightUnit,
    /// Whether prices hold the tax already.
    pub prices_include_tax: bool,
    /// Tax rates.
    pub tax: TaxSettings,
    /// What shipping costs.
    pub shipping: ShippingSettings,
    /// How shoppers may pay.
    pub payment_methods: Vec<PaymentMethod>,
    /// What the store's storefront offers, by name: `{"wishlist": true}`.
    pub capabilities: BTreeMap<String, bool>,
}

/// A unit of weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum WeightUnit {
    /// Grams.
    G,
    /// Kilograms.
    Kg,
    /// Ounces.
    Oz,
    /// Pounds.
    Lb,
}

/// Tax rates in basis points: 1900 is 19 %.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaxSettings {
    /// The rate where no country says otherwise; 0 to 10000.
    pub rate_basis_points: u16,
    /// Rates of shipping countries, by their two-letter code.
    #[serde(default)]
    pub countries: BTreeMap<String, u16>,
}

/// A flat price for shipping.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShippingSettings {
    /// What an order with anything to ship pays.
    pub flat_minor: i64,
    /// The subtotal from which shipping is free; never, when it is left out.
    #[serde(default)]
    pub free_from_minor: Option<i64>,
}

/// A way to pay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PaymentMethod {
    /// The owner and the shopper settle it between them: the order's payment stays `pending`.
    Manual,
}

/// Which tax rates to change; what is left out stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaxSettingsPatch {
    /// The rate where no country says otherwise; 0 to 10000.
    pub rate_basis_points: Option<u16>,
    /// Rates of shipping countries, by their two-letter code; null takes one away.
    pub countries: Option<BTreeMap<String, Option<u16>>>,
}

/// What to change; what is left out stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StoreSettingsPatch {
    /// A new name.
    pub name: Option<String>,
    /// Another currency; refused once there are prices.
    #[schema(value_type = Option<String>)]
    pub currency: Option<String>,
    /// Another locale.
    pub locale: Option<String>,
    /// Another time zone.
    pub timezone: Option<String>,
    /// Another unit of weight.
    pub weight_unit: Option<WeightUnit>,
    /// Whether prices hold the tax already.
    pub prices_include_tax: Option<bool>,
    /// Tax rates to change; those left out stay.
    pub tax: Option<TaxSettingsPatch>,
    /// All shipping prices anew.
    pub shipping: Option<ShippingSettings>,
    /// All ways to pay anew.
    pub payment_methods: Option<Vec<PaymentMethod>>,
    /// Capabilities to set; those left out stay.
    pub capabilities: Option<BTreeMap<String, bool>>,
}

/// What a storefront needs to know of its store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = StorefrontStore)]
pub struct StoreView {
    /// The store's name.
    pub name: String,
    /// The currency of every price.
    #[schema(value_type = String, example = "EUR")]
    pub currency: Currency,
    /// How many decimals the currency's minor unit stands for.
    pub currency_decimals: u32,
    /// The language of the store's texts.
    pub locale: String,
    /// The owner's time zone.
    pub timezone: String,
    /// The unit that weights are shown in.
    pub weight_unit: WeightUnit,
    /// Whether prices hold the tax already.
    pub prices_include_tax: bool,
    /// What shipping costs.
    pub shipping: ShippingSettings,
    /// How shoppers may pay.
    pub payment_methods: Vec<PaymentMethod>,
    /// What the storefront offers.
    pub capabilities: BTreeMap<String, bool>,
    /// The version of the catalogue: for the `ETag`, not for the body.
    #[serde(skip)]
    #[schema(ignore)]
    pub catalog_version: i64,
}

/// Why settings were not read or written.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The fields that were refused; nothing was changed.
    #[error("the settings are not valid")]
    Invalid(Vec<FieldError>),
    /// The currency cannot change while prices are kept in the old one.
    #[error("the currency cannot change while products have prices in {current}")]
    CurrencyInUse {
        /// The store's currency.
        current: Currency,
    },
    /// The database was never seeded, or its settings were damaged from outside.
    #[error("the store's settings are incomplete")]
    Incomplete,
    /// What the server or the connection says.
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

#[derive(sqlx::FromRow)]
struct SettingRow {
    key: String,
    value: Json<serde_json::Value>,
    catalog_version: i64,
}

impl StoreSettings {
    /// The settings of a new store.
    #[must_use]
    pub fn new(name: &str, currency: Currency) -> Self {
        Self {
            name: name.to_owned(),
            currency,
            locale: "en".to_owned(),
            timezone: "UTC".to_owned(),
            weight_unit: WeightUnit::Kg,
            prices_include_tax: false,
            tax: TaxSettings::default(),
            shipping: ShippingSettings::default(),
            payment_methods: vec![PaymentMethod::Manual],
            capabilities: BTreeMap::new(),
        }
    }

    /// The rate for an order that is shipped to `country`.
    #[must_use]
    pub fn tax_rate_basis_points(&self, country: Option<&str>) -> u16 {
        country.and_then(|code| self.tax.countries.get(code)).copied().unwrap_or(self.tax.rate_basis_points)
    }

    fn patched(&self, patch: &StoreSettingsPatch) -> Result<Self, SettingsError> {
        let mut fields = Fields::default();
        let mut next = self.clone();
        if let Some(name) = &patch.name {
            next.name = fields.line("name", name, 120);
        }
        if let Some(code) = &patch.currency {
            match Currency::parse(&code.to_ascii_uppercase()) {
                Ok(currency) => next.currency = currency,
                Err(error) => fields.refuse("currency", "unknown", error.to_string()),
            }
        }
        if let Some(locale) = &patch.locale {
            next.locale.clone_from(locale);
        }
        if let Some(timezone) = &patch.timezone {
            next.timezone.clone_from(timezone);
        }
        next.weight_unit = patch.weight_unit.unwrap_or(next.weight_unit);
        next.prices_include_tax = patch.prices_include_tax.unwrap_or(next.prices_include_tax);
        if let Some(tax) = &patch.tax {
            next.tax.rate_basis_points = tax.rate_basis_points.unwrap_or(next.tax.rate_basis_points);
            for (country, rate) in tax.countries.iter().flatten() {
                match rate {
                    Some(rate) => next.tax.countries.insert(country.clone(), *rate),
                    None => next.tax.countries.remove(country),
                };
            }
        }
        if let Some(shipping) = &patch.shipping {
            next.shipping = shipping.clone();
        }
        if let Some(methods) = &patch.payment_methods {
            next.payment_methods.clone_from(methods);
        }
        if let Some(capabilities) = &patch.capabilities {
            next.capabilities.extend(capabilities.iter().map(|(name, is_on)| (name.clone(), *is_on)));
        }
        next.check(&mut fields);
        fields.finish().map_err(SettingsError::Invalid)?;
        Ok(next)
    }

    fn check(&self, fields: &mut Fields) {
        if !is_locale(&self.locale) {
            fields.refuse("locale", "malformed", "must be a language tag such as `en` or `pt-BR`");
        }
        if !is_timezone(&self.timezone) {
            fields.refuse("timezone", "unknown", "must be an IANA time zone name such as `Europe/Berlin`");
        }
        if self.tax.rate_basis_points > 10_000 {
            fields.refuse("tax.rateBasisPoints", "out-of-range", "must be 0 to 10000 (100 %)");
        }
        for (country, rate) in &self.tax.countries {
            if !is_country(country) {
                fields.refuse(
                    format!("tax.countries.{country}"),
                    "unknown",
                    "must be the two-letter code of a country, such as `DE`",
                );
            }
            if *rate > 10_000 {
                fields.refuse(format!("tax.countries.{country}"), "out-of-range", "must be 0 to 10000 (100 %)");
            }
        }
        let amounts = [
            ("shipping.flatMinor", Some(self.shipping.flat_minor)),
            ("shipping.freeFromMinor", self.shipping.free_from_minor),
        ];
        for (field, amount) in amounts {
            if amount.is_some_and(|amount| !(0..=kernel::money::MAX_MINOR).contains(&amount)) {
                fields.refuse(field, "out-of-range", "must be 0 or more minor units, and not absurdly many");
            }
        }
        if self.payment_methods.is_empty() || self.payment_methods.len() > 10 {
            fields.refuse("paymentMethods", "empty", "must name at least one way to pay, each once");
        }
        if self.capabilities.len() > 100 {
            fields.refuse("capabilities", "too-many", "must have at most 100 entries");
        }
        for name in self.capabilities.keys() {
            let is_name = name.len() <= 40
                && name.starts_with(|c: char| c.is_ascii_lowercase())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
            if !is_name {
                fields.refuse(
                    "capabilities",
                    "malformed",
                    "names start with a small letter; letters, digits, - and _; at most 40",
                );
            }
        }
    }

    fn rows(&self) -> serde_json::Map<String, serde_json::Value> {
        match serde_json::to_value(self).expect("settings are plain data") {
            serde_json::Value::Object(rows) => rows,
            _ => unreachable!("a struct is an object"),
        }
    }
}

/// The codes of ISO 3166-1, and XK, which everybody uses for Kosovo.
const COUNTRIES: &str = "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ CA \
    CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA \
    GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP \
    KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS \
    MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS \
    RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW \
    TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW";

/// Whether this is the two-letter code of a country.
pub(crate) fn is_country(code: &str) -> bool {
    code.len() == 2 && COUNTRIES.split(' ').any(|known| known == code)
}

fn is_locale(text: &str) -> bool {
    let mut parts = text.split('-');
    let language = parts.next().unwrap_or_default();
    text.len() <= 35
        && (2..=3).contains(&language.len())
        && language.bytes().all(|byte| byte.is_ascii_lowercase())
        && parts.all(|part| (2..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

fn is_timezone(text: &str) -> bool {
    text.parse::<chrono_tz::Tz>().is_ok()
}

fn select_settings() -> SelectStatement {
    Query::select()
        .columns(["key", "value"])
        .expr_as(Expr::from(catalog::version_subquery()), "catalog_version")
        .from("settings")
        .take()
}

async fn load(conn: &mut Connection) -> Result<(StoreSettings, i64), SettingsError> {
    let rows: Vec<SettingRow> = sql::all(conn, &select_settings()).await?;
    let catalog_version = rows.first().map_or(0, |row| row.catalog_version);
    let object = rows.into_iter().map(|row| (row.key, row.value.0)).collect();
    let settings = serde_json::from_value(serde_json::Value::Object(object)).map_err(|_| SettingsError::Incomplete)?;
    Ok((settings, catalog_version))
}

/// The store's settings.
///
/// # Errors
/// [`SettingsError::Incomplete`] when the database was never seeded; [`SettingsError::Db`].
pub async fn settings(conn: &mut Connection) -> Result<StoreSettings, SettingsError> {
    Ok(load(conn).await?.0)
}

/// What a storefront shows of its store, with the catalogue version in one statement.
///
/// # Errors
/// As [`settings`].
pub async fn store_view(conn: &mut Connection) -> Result<StoreView, SettingsError> {
    let (settings, catalog_version) = load(conn).await?;
    Ok(StoreView {
        name: settings.name,
        currency_decimals: settings.currency.decimals(),
        currency: settings.currency,
        locale: settings.locale,
        timezone: settings.timezone,
        weight_unit: settings.weight_unit,
        prices_include_tax: settings.prices_include_tax,
        shipping: settings.shipping,
        payment_methods: settings.payment_methods,
        capabilities: settings.capabilities,
        catalog_version,
    })
}

/// Changes what `patch` names, and answers all of it.
///
/// # Errors
/// [`SettingsError`]; nothing is changed unless the caller commits.
pub async fn settings_patch_in(
    tx: &mut Transaction,
    patch: &StoreSettingsPatch,
    now: DateTime<Utc>,
) -> Result<StoreSettings, SettingsError> {
    // The catalogue's version row first: it is what two patches at once must queue for.
    catalog::version_bump(tx).await?;
    let (old, _) = load(tx).await?;
    let new = old.patched(patch)?;
    if new.currency != old.currency {
        let any_price = Query::select().column("amount_minor").from("prices").limit(1).take();
        if sql::optional::<(i64,)>(tx, &any_price).await?.is_some() {
            return Err(SettingsError::CurrencyInUse { current: old.currency });
        }
    }
    let (before, after) = (old.rows(), new.rows());
    let changed = after.into_iter().filter(|(key, value)| before.get(key) != Some(value));
    write_rows(tx, changed, now, false).await?;
    Ok(new)
}

/// Writes the fields that have no row yet; those that have one stay.
pub(crate) async fn settings_seed(
    conn: &mut Connection,
    settings: &StoreSettings,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    write_rows(conn, settings.rows().into_iter(), now, true).await
}

async fn write_rows(
    conn: &mut Connection,
    rows: impl Iterator<Item = (String, serde_json::Value)>,
    now: DateTime<Utc>,
    keep_old: bool,
) -> Result<(), sqlx::Error> {
    let mut insert = Query::insert().into_table("settings").columns(["key", "value", "updated_at"]).take();
    let mut count = 0_u32;
    for (key, value) in rows {
        insert.values_panic([Expr::val(key), Expr::val(value), Expr::val(now)]);
        count += 1;
    }
    if count == 0 {
        return Ok(());
    }
    let mut conflict = OnConflict::column("key");
    if keep_old {
        conflict.do_nothing_on(["key"]);
    } else {
        conflict.update_columns(["value", "updated_at"]);
    }
    sql::run(conn, insert.on_conflict(conflict)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{SettingsError, ShippingSettings, StoreSettings, StoreSettingsPatch, TaxSettingsPatch};
    use kernel::Currency;

    fn refused(patch: &StoreSettingsPatch) -> Vec<String> {
        match StoreSettings::new("Tea", Currency::USD).patched(patch) {
            Err(SettingsError::Invalid(fields)) => fields.into_iter().map(|field| field.field).collect(),
            other => panic!("expected refused fields, got {other:?}"),
        }
    }

    #[test]
    fn every_bad_field_is_named() {
        let patch = StoreSettingsPatch {
            name: Some(" \n".into()),
            currency: Some("dollars".into()),
            locale: Some("english".into()),
            timezone: Some("../etc/passwd".into()),
            tax: Some(TaxSettingsPatch {
                rate_basis_points: Some(10_001),
                countries: Some([("de".to_owned(), Some(1900))].into()),
            }),
            shipping: Some(ShippingSettings { flat_minor: -1, free_from_minor: None }),
            payment_methods: Some(vec![]),
            capabilities: Some([("Wish list".to_owned(), true)].into()),
            ..StoreSettingsPatch::default()
        };
        let expected = [
            "name",
            "currency",
            "locale",
            "timezone",
            "tax.rateBasisPoints",
            "tax.countries.de",
            "shipping.flatMinor",
            "paymentMethods",
            "capabilities",
        ];
        assert_eq!(refused(&patch), expected);
    }

    #[test]
    fn unknown_fields_do_not_parse() {
        for body in [r#"{"colour": "red"}"#, r#"{"tax": {"rate": 1}}"#, r#"{"shipping": {"flatMinor": 1, "x": 1}}"#] {
            assert!(serde_json::from_str::<StoreSettingsPatch>(body).is_err(), "{body}");
        }
    }

    #[test]
    fn a_patch_changes_only_what_it_names_and_a_country_has_its_own_rate() {
        let old = StoreSettings::new("Tea", Currency::USD);
        let patch: StoreSettingsPatch = serde_json::from_str(
            r#"{"tax": {"rateBasisPoints": 1900, "countries": {"AT": 2000}}, "capabilities": {"wishlist": true}}"#,
        )
        .expect("valid");
        let new = old.patched(&patch).expect("valid");
        assert_eq!((new.name.as_str(), new.capabilities.get("wishlist")), ("Tea", Some(&true)));
        assert_eq!(new.tax_rate_basis_points(Some("AT")), 2000);
        assert_eq!(new.tax_rate_basis_points(Some("DE")), 1900);
        assert_eq!(new.tax_rate_basis_points(None), 1900);
    }
}
