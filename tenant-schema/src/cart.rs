//! Carts: what a shopper means to buy, reached by an id and a bearer token.
//!
//! A client never says a price. A line keeps what the shopper saw when it was last changed, and every read works out anew
//! what it costs. A cart that is unknown, whose token is wrong, or whose time is over looks the same from outside.

use std::fmt;

use chrono::{DateTime, Duration, Utc};
use kernel::{CartId, CartLineId, Currency, LocationId, ProductId, VariantId};
use sea_query::{Expr, ExprTrait as _, Order, Query, SelectStatement};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tenancy::{Connection, Transaction};
use utoipa::ToSchema;

use crate::catalog::SelectedOption;
use crate::field::{self, FieldError, Fields};
use crate::settings::{self, SettingsError, StoreSettings, is_country};
use crate::sql;
use crate::stored::{Stored, stored_enum};
use crate::totals::{PricedLine, Totals, totals};

/// The most lines of one cart.
pub const MAX_LINES: usize = 100;

/// The most of one variant.
pub const MAX_QUANTITY: u32 = 999;

/// How long a cart lasts after its last change.
const LIFETIME: Duration = Duration::days(30);

stored_enum! {
    /// Where a cart is in its life.
    CartStatus {
        /// It may be changed and completed.
        Active = "active",
        /// It became an order.
        Completed = "completed",
        /// Its time is over.
        Abandoned = "abandoned",
    }
}

/// A cart as its shopper sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CartView {
    /// Its id.
    pub id: CartId,
    /// Where it is in its life.
    pub status: CartStatus,
    /// Goes up with every change: for `ETag` and `If-Match`.
    pub version: i32,
    /// The shopper's e-mail address, when it is known.
    pub email: Option<String>,
    /// The country that tax and totals are worked out for.
    pub country: Option<String>,
    /// What is in it, in the order in which it was put in.
    pub lines: Vec<CartLineView>,
    /// What it costs now. Lines that are no longer sold count nothing.
    pub totals: Totals,
    /// When it ends unless it is changed.
    pub expires_at: DateTime<Utc>,
}

/// A line of a cart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CartLineView {
    /// Its id.
    pub id: CartLineId,
    /// What is bought.
    pub variant_id: VariantId,
    /// The product that it belongs to, while it is sold.
    pub product_id: Option<ProductId>,
    /// The product's name in addresses, while it is sold.
    pub product_handle: Option<String>,
    /// The product's name.
    pub product_title: String,
    /// The variant's name.
    pub variant_title: String,
    /// The owner's stock-keeping unit.
    pub sku: Option<String>,
    /// The variant's option values.
    pub options: Vec<SelectedOption>,
    /// A picture.
    pub image_url: Option<String>,
    /// How many.
    pub quantity: u32,
    /// The price of one, now.
    pub unit_price_minor: i64,
    /// The price of all, now.
    pub total_minor: i64,
    /// Whether that is another price than when the line was last changed.
    pub price_changed: bool,
    /// Whether this quantity can be bought now.
    pub is_available: bool,
}

/// A cart that was just made.
#[derive(Clone)]
pub struct NewCart {
    /// The cart.
    pub cart: CartView,
    /// What reaches it from now on. It is shown this once; only its hash is kept.
    pub token: String,
}

/// Without the token.
impl fmt::Debug for NewCart {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("NewCart").field("cart", &self.cart).finish_non_exhaustive()
    }
}

/// What to change of a cart; what is left out stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CartPatch {
    /// The shopper's e-mail address.
    pub email: Option<String>,
    /// The country that it goes to, by its two-letter code.
    pub country: Option<String>,
}

/// How a request reaches a cart.
#[derive(Clone, Copy)]
pub struct CartKey<'a> {
    /// The cart's id.
    pub id: CartId,
    /// The cart's token.
    pub token: &'a str,
    /// The version that the client last saw (`If-Match`); a change of another version is refused.
    pub if_version: Option<i32>,
}

/// Why a cart was not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum CartError {
    /// There is no such cart, the token is not its token, or its time is over.
    #[error("there is no such cart")]
    NotFound,
    /// It has no such line.
    #[error("the cart has no such line")]
    LineNotFound,
    /// It has become an order and can no longer be changed.
    #[error("the cart was completed")]
    Completed,
    /// It was changed since the client read it.
    #[error("the cart is at version {version}")]
    Stale {
        /// Its version now.
        version: i32,
    },
    /// There is no such variant, or it is not sold.
    #[error("there is no such variant on sale")]
    VariantUnavailable,
    /// There are fewer than asked for.
    #[error("only {available} are available")]
    OutOfStock {
        /// How many there are.
        available: i64,
    },
    /// A line holds 1 to [`MAX_QUANTITY`].
    #[error("a quantity is 1 to 999")]
    Quantity,
    /// A cart holds at most [`MAX_LINES`] lines.
    #[error("a cart has at most 100 lines")]
    TooManyLines,
    /// The sum leaves the range of amounts: a price was set from outside that we would not have taken.
    #[error("the total is too large")]
    TotalTooLarge,
    /// The fields that were refused.
    #[error("the cart's fields are not valid")]
    Invalid(Vec<FieldError>),
    /// The store's settings cannot be read.
    #[error("the store's settings cannot be read")]
    Settings(#[source] SettingsError),
    /// What the server or the connection says.
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

impl From<SettingsError> for CartError {
    fn from(error: SettingsError) -> Self {
        match error {
            SettingsError::Db(error) => Self::Db(error),
            error => Self::Settings(error),
        }
    }
}

/// A cart's row, without its lines.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct CartRow {
    #[sqlx(try_from = "Stored<CartId>")]
    pub(crate) id: CartId,
    pub(crate) email: Option<String>,
    pub(crate) country: Option<String>,
    #[sqlx(try_from = "Stored<CartStatus>")]
    pub(crate) status: CartStatus,
    #[sqlx(try_from = "Stored<Currency>")]
    pub(crate) currency: Currency,
    pub(crate) version: i32,
    pub(crate) expires_at: DateTime<Utc>,
}

/// A cart's line with what its variant is and costs now.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct LineRow {
    #[sqlx(try_from = "Stored<CartLineId>")]
    pub(crate) id: CartLineId,
    #[sqlx(try_from = "Stored<VariantId>")]
    pub(crate) variant_id: VariantId,
    quantity: i32,
    seen_price_minor: i64,
    seen_product_title: String,
    seen_variant_title: String,
    product_id: Option<Stored<ProductId>>,
    product_handle: Option<String>,
    product_title: Option<String>,
    pub(crate) image_url: Option<String>,
    variant_title: Option<String>,
    pub(crate) sku: Option<String>,
    is_taxable: Option<bool>,
    requires_shipping: Option<bool>,
    manages_stock: Option<bool>,
    allows_backorder: Option<bool>,
    price_minor: Option<i64>,
    location_id: Option<Stored<LocationId>>,
    stocked: Option<i64>,
    reserved: Option<i64>,
}

/// What a line's variant is, while it is sold.
pub(crate) struct SoldVariant<'a> {
    pub(crate) product_id: ProductId,
    pub(crate) product_handle: &'a str,
    pub(crate) product_title: &'a str,
    pub(crate) variant_title: &'a str,
    pub(crate) price: PricedLine,
    pub(crate) manages_stock: bool,
    pub(crate) location_id: Option<LocationId>,
    /// How many can be bought now; none when nothing limits it.
    pub(crate) available: Option<i64>,
}

impl LineRow {
    pub(crate) fn quantity(&self) -> u32 {
        u32::try_from(self.quantity).unwrap_or_default()
    }

    /// The variant, unless it is gone, unlisted or without a price.
    pub(crate) fn sold(&self) -> Option<SoldVariant<'_>> {
        let manages_stock = self.manages_stock?;
        let is_limited = manages_stock && !self.allows_backorder?;
        let available = self.stocked.unwrap_or_default() - self.reserved.unwrap_or_default();
        Some(SoldVariant {
            product_id: self.product_id.as_ref()?.0,
            product_handle: self.product_handle.as_deref()?,
            product_title: self.product_title.as_deref()?,
            variant_title: self.variant_title.as_deref()?,
            price: PricedLine {
                unit_price_minor: self.price_minor?,
                quantity: self.quantity(),
                is_taxable: self.is_taxable?,
                requires_shipping: self.requires_shipping?,
            },
            manages_stock,
            location_id: self.location_id.as_ref().map(|stored| stored.0),
            available: is_limited.then_some(Ord::max(available, 0)),
        })
    }
}

/// How a bearer token is kept.
pub(crate) fn token_hash(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}

/// A cart in the store's currency. Its token is in the answer and nowhere else.
///
/// # Errors
/// [`CartError::Settings`], [`CartError::Db`].
pub async fn cart_create(conn: &mut Connection, now: DateTime<Utc>) -> Result<NewCart, CartError> {
    let settings = settings::settings(conn).await?;
    let token = kernel::random::token();
    let row = CartRow {
        id: CartId::new(now),
        email: None,
        country: None,
        status: CartStatus::Active,
        currency: settings.currency,
        version: 1,
        expires_at: now + LIFETIME,
    };
    let insert = Query::insert()
        .into_table("carts")
        .columns(["id", "token_hash", "currency", "status", "version", "expires_at", "created_at", "updated_at"])
        .values_panic([
            row.id.to_string().into(),
            token_hash(&token).into(),
            row.currency.as_str().into(),
            row.status.as_str().into(),
            row.version.into(),
            row.expires_at.into(),
            now.into(),
            now.into(),
        ])
        .take();
    sql::run(conn, &insert).await?;
    Ok(NewCart { cart: view(row, &[], &[], &settings)?, token })
}

/// The cart, with what it costs now. A completed one can still be read until its time is over.
///
/// # Errors
/// [`CartError::NotFound`], [`CartError::Settings`], [`CartError::Db`].
pub async fn cart_get(
    conn: &mut Connection,
    id: CartId,
    token: &str,
    now: DateTime<Utc>,
) -> Result<CartView, CartError> {
    let row = sql::optional::<CartRow>(conn, &select_cart(id, token)).await?;
    let row = row.filter(|row| row.expires_at > now).ok_or(CartError::NotFound)?;
    load_view(conn, row).await
}

/// Sets the shopper's e-mail address or country.
///
/// # Errors
/// [`CartError`].
pub async fn cart_update_in(
    tx: &mut Transaction,
    key: CartKey<'_>,
    patch: &CartPatch,
    now: DateTime<Utc>,
) -> Result<CartView, CartError> {
    let row = lock_for_change(tx, key, now).await?;
    let mut fields = Fields::default();
    let mut update = Query::update().table("carts").and_where(Expr::col("id").eq(row.id.to_string())).take();
    if let Some(text) = &patch.email {
        let email = field::email(text);
        if email.is_none() {
            fields.refuse("email", "malformed", "must be an e-mail address");
        }
        update.value("email", email);
    }
    if let Some(country) = &patch.country {
        if !is_country(country) {
            fields.refuse("country", "malformed", "must be a two-letter country code such as DE");
        }
        update.value("country", country.as_str());
    }
    fields.finish().map_err(CartError::Invalid)?;
    if patch.email.is_some() || patch.country.is_some() {
        sql::run(tx, &update).await?;
    }
    changed(tx, row, now).await
}

/// Puts a variant into the cart; more of one that is there already join its line.
///
/// # Errors
/// [`CartError`].
pub async fn cart_line_add_in(
    tx: &mut Transaction,
    key: CartKey<'_>,
    variant: VariantId,
    quantity: u32,
    now: DateTime<Utc>,
) -> Result<CartView, CartError> {
    if !(1..=MAX_QUANTITY).contains(&quantity) {
        return Err(CartError::Quantity);
    }
    let row = lock_for_change(tx, key, now).await?;
    let lines = lines_of(tx, row.id, row.currency).await?;
    if let Some(line) = lines.iter().find(|line| line.variant_id == variant) {
        let quantity = line.quantity() + quantity;
        line_set_quantity(tx, line, quantity, now).await?;
    } else {
        if lines.len() >= MAX_LINES {
            return Err(CartError::TooManyLines);
        }
        // The line goes in first and is then read like every other, so that one statement knows what is on sale.
        let insert = Query::insert()
            .into_table("cart_lines")
            .columns([
                "id",
                "cart_id",
                "variant_id",
                "quantity",
                "unit_price_minor",
                "product_title",
                "variant_title",
                "created_at",
                "updated_at",
            ])
            .values_panic([
                CartLineId::new(now).to_string().into(),
                row.id.to_string().into(),
                variant.to_string().into(),
                quantity_value(quantity).into(),
                0_i64.into(),
                "".into(),
                "".into(),
                now.into(),
                now.into(),
            ])
            .take();
        sql::run(tx, &insert).await?;
        let lines = lines_of(tx, row.id, row.currency).await?;
        let line = lines.iter().find(|line| line.variant_id == variant).ok_or(CartError::VariantUnavailable)?;
        line_set_quantity(tx, line, quantity, now).await?;
    }
    changed(tx, row, now).await
}

/// Sets how many of a line are wanted.
///
/// # Errors
/// [`CartError`].
pub async fn cart_line_change_in(
    tx: &mut Transaction,
    key: CartKey<'_>,
    line: CartLineId,
    quantity: u32,
    now: DateTime<Utc>,
) -> Result<CartView, CartError> {
    if !(1..=MAX_QUANTITY).contains(&quantity) {
        return Err(CartError::Quantity);
    }
    let row = lock_for_change(tx, key, now).await?;
    let lines = lines_of(tx, row.id, row.currency).await?;
    let line = lines.iter().find(|row| row.id == line).ok_or(CartError::LineNotFound)?;
    line_set_quantity(tx, line, quantity, now).await?;
    changed(tx, row, now).await
}

/// Takes a line out.
///
/// # Errors
/// [`CartError`].
pub async fn cart_line_remove_in(
    tx: &mut Transaction,
    key: CartKey<'_>,
    line: CartLineId,
    now: DateTime<Utc>,
) -> Result<CartView, CartError> {
    let row = lock_for_change(tx, key, now).await?;
    let delete = Query::delete()
        .from_table("cart_lines")
        .and_where(Expr::col("id").eq(line.to_string()))
        .and_where(Expr::col("cart_id").eq(row.id.to_string()))
        .take();
    if sql::run(tx, &delete).await? == 0 {
        return Err(CartError::LineNotFound);
    }
    changed(tx, row, now).await
}

/// Sets a line's quantity, and what its shopper sees of it from now on.
async fn line_set_quantity(
    tx: &mut Connection,
    line: &LineRow,
    quantity: u32,
    now: DateTime<Utc>,
) -> Result<(), CartError> {
    if quantity > MAX_QUANTITY {
        return Err(CartError::Quantity);
    }
    let sold = line.sold().ok_or(CartError::VariantUnavailable)?;
    if let Some(available) = sold.available.filter(|available| *available < i64::from(quantity)) {
        return Err(CartError::OutOfStock { available });
    }
    let update = Query::update()
        .table("cart_lines")
        .value("quantity", quantity_value(quantity))
        .value("unit_price_minor", sold.price.unit_price_minor)
        .value("product_title", sold.product_title)
        .value("variant_title", sold.variant_title)
        .value("updated_at", now)
        .and_where(Expr::col("id").eq(line.id.to_string()))
        .take();
    sql::run(tx, &update).await?;
    Ok(())
}

fn quantity_value(quantity: u32) -> i32 {
    i32::try_from(quantity).expect("a quantity is at most 999")
}

fn select_cart(id: CartId, token: &str) -> SelectStatement {
    Query::select()
        .columns(["id", "email", "country", "status", "currency", "version", "expires_at"])
        .from("carts")
        .and_where(Expr::col("id").eq(id.to_string()))
        .and_where(Expr::col("token_hash").eq(token_hash(token)))
        .take()
}

/// The cart's row, locked until the transaction ends. Whoever gets it has shown the token.
pub(crate) async fn lock(
    tx: &mut Transaction,
    id: CartId,
    token: &str,
    now: DateTime<Utc>,
) -> Result<Option<CartRow>, sqlx::Error> {
    let mut select = select_cart(id, token);
    let row: Option<CartRow> = sql::optional_once(tx, select.lock_exclusive()).await?;
    Ok(row.filter(|row| row.status == CartStatus::Completed || row.expires_at > now))
}

async fn lock_for_change(tx: &mut Transaction, key: CartKey<'_>, now: DateTime<Utc>) -> Result<CartRow, CartError> {
    let row = lock(tx, key.id, key.token, now).await?.ok_or(CartError::NotFound)?;
    match row.status {
        CartStatus::Completed => return Err(CartError::Completed),
        CartStatus::Abandoned => return Err(CartError::NotFound),
        CartStatus::Active => {}
    }
    if key.if_version.is_some_and(|seen| seen != row.version) {
        return Err(CartError::Stale { version: row.version });
    }
    Ok(row)
}

/// Ends a change: the version goes up, the cart lasts longer, and the shopper sees it as it is now.
async fn changed(tx: &mut Transaction, row: CartRow, now: DateTime<Utc>) -> Result<CartView, CartError> {
    let update = Query::update()
        .table("carts")
        .value("version", row.version + 1)
        .value("expires_at", now + LIFETIME)
        .value("updated_at", now)
        .and_where(Expr::col("id").eq(row.id.to_string()))
        .take();
    sql::run(tx, &update).await?;
    let select = Query::select()
        .columns(["id", "email", "country", "status", "currency", "version", "expires_at"])
        .from("carts")
        .and_where(Expr::col("id").eq(row.id.to_string()))
        .take();
    let row: CartRow = sql::one(tx, &select).await?;
    load_view(tx, row).await
}

async fn load_view(conn: &mut Connection, row: CartRow) -> Result<CartView, CartError> {
    let settings = settings::settings(conn).await?;
    let lines = lines_of(conn, row.id, row.currency).await?;
    let options = options_of(conn, &lines).await?;
    view(row, &lines, &options, &settings)
}

/// The cart's lines with what they are now, in the order in which they were put in.
pub(crate) async fn lines_of(
    conn: &mut Connection,
    id: CartId,
    currency: Currency,
) -> Result<Vec<LineRow>, sqlx::Error> {
    let of_line = |column: &'static str| Expr::col(("cart_lines", column));
    let select = Query::select()
        .columns(["id", "variant_id", "quantity"].map(|column| ("cart_lines", column)))
        .expr_as(of_line("unit_price_minor"), "seen_price_minor")
        .expr_as(of_line("product_title"), "seen_product_title")
        .expr_as(of_line("variant_title"), "seen_variant_title")
        .expr_as(Expr::col(("products", "id")), "product_id")
        .expr_as(Expr::col(("products", "handle")), "product_handle")
        .expr_as(Expr::col(("products", "title")), "product_title")
        .column(("products", "image_url"))
        .expr_as(Expr::col(("product_variants", "title")), "variant_title")
        .columns(
            ["sku", "is_taxable", "requires_shipping", "manages_stock", "allows_backorder"]
                .map(|column| ("product_variants", column)),
        )
        .expr_as(Expr::col(("prices", "amount_minor")), "price_minor")
        .expr_as(Expr::col(("stock_locations", "id")), "location_id")
        .columns(["stocked", "reserved"].map(|column| ("inventory_levels", column)))
        .from("cart_lines")
        .left_join("product_variants", Expr::col(("product_variants", "id")).equals(("cart_lines", "variant_id")))
        .left_join(
            "products",
            Expr::col(("products", "id"))
                .equals(("product_variants", "product_id"))
                .and(Expr::col(("products", "is_listed")).eq(Expr::cust("true"))),
        )
        .left_join(
            "prices",
            Expr::col(("prices", "variant_id"))
                .equals(("product_variants", "id"))
                .and(Expr::col(("prices", "currency")).eq(currency.as_str()))
                .and(Expr::col(("prices", "min_quantity")).eq(1_i32)),
        )
        .left_join("stock_locations", Expr::col(("stock_locations", "default_mark")).eq(Expr::cust("1")))
        .left_join(
            "inventory_levels",
            Expr::col(("inventory_levels", "variant_id"))
                .equals(("product_variants", "id"))
                .and(Expr::col(("inventory_levels", "location_id")).equals(("stock_locations", "id"))),
        )
        .and_where(Expr::col(("cart_lines", "cart_id")).eq(id.to_string()))
        .order_by(("cart_lines", "created_at"), Order::Asc)
        .order_by(("cart_lines", "id"), Order::Asc)
        .take();
    sql::all(conn, &select).await
}

#[derive(sqlx::FromRow)]
pub(crate) struct LineOptionRow {
    #[sqlx(try_from = "Stored<VariantId>")]
    variant_id: VariantId,
    name: String,
    value: String,
}

/// The option values of all lines' variants, in one read.
pub(crate) async fn options_of(conn: &mut Connection, lines: &[LineRow]) -> Result<Vec<LineOptionRow>, sqlx::Error> {
    if lines.is_empty() {
        return Ok(Vec::new());
    }
    let variants = lines.iter().map(|line| line.variant_id.to_string());
    let which = Expr::col(("variant_option_values", "variant_id")).is_in(variants);
    sql::all(conn, &crate::catalog::select_variant_values(which)).await
}

pub(crate) fn options_for(rows: &[LineOptionRow], variant: VariantId) -> Vec<SelectedOption> {
    rows.iter()
        .filter(|row| row.variant_id == variant)
        .map(|row| SelectedOption { name: row.name.clone(), value: row.value.clone() })
        .collect()
}

fn view(
    row: CartRow,
    lines: &[LineRow],
    options: &[LineOptionRow],
    settings: &StoreSettings,
) -> Result<CartView, CartError> {
    let priced: Vec<PricedLine> = lines.iter().filter_map(|line| line.sold().map(|sold| sold.price)).collect();
    let totals = totals(&priced, settings, row.country.as_deref()).ok_or(CartError::TotalTooLarge)?;
    let lines = lines.iter().map(|line| line_view(line, options_for(options, line.variant_id))).collect();
    Ok(CartView {
        id: row.id,
        status: row.status,
        version: row.version,
        email: row.email,
        country: row.country,
        lines,
        totals: Totals { currency: row.currency, ..totals },
        expires_at: row.expires_at,
    })
}

fn line_view(line: &LineRow, options: Vec<SelectedOption>) -> CartLineView {
    let sold = line.sold();
    let unit_price_minor = sold.as_ref().map_or(line.seen_price_minor, |sold| sold.price.unit_price_minor);
    let quantity = line.quantity();
    CartLineView {
        id: line.id,
        variant_id: line.variant_id,
        product_id: sold.as_ref().map(|sold| sold.product_id),
        product_handle: sold.as_ref().map(|sold| sold.product_handle.to_owned()),
        product_title: sold.as_ref().map_or(&*line.seen_product_title, |sold| sold.product_title).to_owned(),
        variant_title: sold.as_ref().map_or(&*line.seen_variant_title, |sold| sold.variant_title).to_owned(),
        sku: line.sku.clone(),
        options,
        image_url: line.image_url.clone(),
        quantity,
        unit_price_minor,
        total_minor: unit_price_minor.saturating_mul(i64::from(quantity)),
        price_changed: unit_price_minor != line.seen_price_minor,
        is_available: sold.is_some_and(|sold| sold.available.is_none_or(|available| available >= i64::from(quantity))),
    }
}
