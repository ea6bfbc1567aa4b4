//! From a cart to an order, exactly once.
//!
//! One transaction does it all: it claims the idempotency key, locks the cart, reserves the stock with one conditional
//! update per variant, counts up the order number, writes the order with snapshots of everything, and closes the cart. What
//! guards what: the key's row makes a repeated request answer as the first did; `orders_cart_id_key` makes a cart one
//! order whatever keys its requests carry; `inventory_levels_not_oversold_check` stands behind the conditional update.
//!
//! The order's token is derived from the cart's, so that a replay can tell it again though only hashes are kept.

use std::fmt;

use chrono::{DateTime, Duration, Utc};
use kernel::{
    CartId, Currency, CustomerId, Engine, LocationId, OrderEventId, OrderId, OrderLineId, ProductId, VariantId,
};
use sea_query::{Expr, ExprTrait as _, OnConflict, Query};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sqlx::types::Json;
use tenancy::{Connection, Lease, LeaseError, Transaction};
use utoipa::ToSchema;

use crate::cart::{self, CartRow, CartStatus, LineOptionRow, LineRow, token_hash};
use crate::catalog;
use crate::field::{self, FieldError, Fields};
use crate::order::{Address, FulfillmentStatus, OrderLineView, OrderStatus, OrderView, PaymentStatus};
use crate::settings::{self, PaymentMethod, SettingsError, is_country};
use crate::sql;
use crate::stored::Stored;
use crate::totals::{Totals, totals};

/// How long a key answers for its request.
const KEY_LIFETIME: Duration = Duration::days(7);

/// The longest key.
pub const MAX_KEY_LEN: usize = 200;

/// What a shopper says at the checkout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CheckoutInput {
    /// The shopper's e-mail address.
    pub email: String,
    /// Where it goes.
    pub shipping_address: Address,
    /// Who pays; the shipping address, when it is left out.
    #[serde(default)]
    pub billing_address: Option<Address>,
    /// How it is paid.
    #[serde(default = "manual")]
    pub payment_method: PaymentMethod,
    /// What the shopper was told it costs. When it costs something else now, nothing is ordered.
    #[serde(default)]
    pub expected_total_minor: Option<i64>,
}

const fn manual() -> PaymentMethod {
    PaymentMethod::Manual
}

/// An order, and whether this request made it.
#[derive(Clone, PartialEq, Eq)]
pub struct CheckoutOutcome {
    /// The order as it was placed.
    pub order: OrderView,
    /// What reaches the order from now on.
    pub order_token: String,
    /// Whether an earlier request with the same key made it.
    pub is_replayed: bool,
}

/// Without the token.
impl fmt::Debug for CheckoutOutcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("CheckoutOutcome")
            .field("order", &self.order)
            .field("is_replayed", &self.is_replayed)
            .finish_non_exhaustive()
    }
}

/// Why no order was made; then nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum CheckoutError {
    /// There is no such cart, the token is not its token, or its time is over.
    #[error("there is no such cart")]
    CartNotFound,
    /// The cart already is an order, made by a request with another key.
    #[error("the cart already is order {order}")]
    CartCompleted {
        /// The order.
        order: OrderId,
    },
    /// There is nothing to order.
    #[error("the cart is empty")]
    CartEmpty,
    /// The key is empty, too long, or not plain ASCII.
    #[error("the idempotency key is not valid")]
    KeyMalformed,
    /// The key was used with another request.
    #[error("the idempotency key was used with another request")]
    KeyReused,
    /// A line's variant is no longer sold.
    #[error("variant {variant} is no longer sold")]
    VariantUnavailable {
        /// The variant.
        variant: VariantId,
    },
    /// There are fewer than the cart holds.
    #[error("only {available} of variant {variant} are available")]
    OutOfStock {
        /// The variant.
        variant: VariantId,
        /// How many there are.
        available: i64,
    },
    /// It costs something else than the shopper was told.
    #[error("the total is now {total_minor}")]
    PriceChanged {
        /// What it costs now.
        total_minor: i64,
    },
    /// The store does not offer this way to pay.
    #[error("the store does not offer this payment method")]
    PaymentMethod,
    /// The sum leaves the range of amounts.
    #[error("the total is too large")]
    TotalTooLarge,
    /// The fields that were refused.
    #[error("the checkout's fields are not valid")]
    Invalid(Vec<FieldError>),
    /// Others were in the way again and again; the same request may be sent again.
    #[error("too many checkouts at once")]
    Contended,
    /// The store's settings cannot be read.
    #[error("the store's settings cannot be read")]
    Settings(#[source] SettingsError),
    /// No connection to the store's database was given.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// What the server or the connection says.
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

impl From<SettingsError> for CheckoutError {
    fn from(error: SettingsError) -> Self {
        match error {
            SettingsError::Db(error) => Self::Db(error),
            error => Self::Settings(error),
        }
    }
}

/// Makes the cart an order. The same request with the same key gets the same answer, however often it is sent.
///
/// # Errors
/// [`CheckoutError`]; then nothing was changed, and the key is free again.
pub async fn checkout(
    lease: &Lease,
    cart: CartId,
    token: &str,
    key: &str,
    input: &CheckoutInput,
    now: DateTime<Utc>,
) -> Result<CheckoutOutcome, CheckoutError> {
    for _ in 0..=sql::MAX_RETRIES {
        let mut tx = lease.begin().await?;
        match checkout_in(&mut tx, cart, token, key, input, now).await {
            Ok(outcome) => match tx.commit().await {
                Ok(()) => return Ok(outcome),
                Err(error) if sql::is_retryable(&error) => {}
                Err(error) => return Err(error.into()),
            },
            Err(CheckoutError::Db(error)) if sql::is_retryable(&error) => tx.rollback().await?,
            Err(CheckoutError::Db(error)) if sql::is_lock_timeout(&error) => {
                tx.rollback().await?;
                return Err(CheckoutError::Contended);
            }
            Err(error) => {
                tx.rollback().await?;
                return Err(error);
            }
        }
    }
    Err(CheckoutError::Contended)
}

/// [`checkout`] inside the caller's transaction, which must be rolled back on an error.
///
/// # Errors
/// As [`checkout`], but without trying again.
pub async fn checkout_in(
    tx: &mut Transaction,
    cart: CartId,
    token: &str,
    key: &str,
    input: &CheckoutInput,
    now: DateTime<Utc>,
) -> Result<CheckoutOutcome, CheckoutError> {
    let fingerprint = fingerprint(input);
    let input = checked(input)?;
    let order_token = order_token(token, cart);
    if !(1..=MAX_KEY_LEN).contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        return Err(CheckoutError::KeyMalformed);
    }
    let scope = format!("cart-complete:{cart}");
    let claim = claim(tx, &scope, key, &fingerprint, now).await?;
    let row = cart::lock(tx, cart, token, now).await?.ok_or(CheckoutError::CartNotFound)?;
    if let Claim::Answered { fingerprint: first, response } = claim {
        // The token was checked by now: who does not hold it learns nothing from a key.
        if first != fingerprint {
            return Err(CheckoutError::KeyReused);
        }
        let order = *response.ok_or(CheckoutError::Contended)?;
        return Ok(CheckoutOutcome { order, order_token, is_replayed: true });
    }
    match row.status {
        CartStatus::Active => {}
        CartStatus::Abandoned => return Err(CheckoutError::CartNotFound),
        CartStatus::Completed => {
            let order = order_of_cart(tx, cart).await?.ok_or(CheckoutError::CartNotFound)?;
            return Err(CheckoutError::CartCompleted { order });
        }
    }
    let order = place(tx, &row, &input, &order_token, now).await?;
    answer(tx, &scope, key, &order).await?;
    Ok(CheckoutOutcome { order, order_token, is_replayed: false })
}

async fn place(
    tx: &mut Transaction,
    cart: &CartRow,
    input: &CheckoutInput,
    order_token: &str,
    now: DateTime<Utc>,
) -> Result<OrderView, CheckoutError> {
    let settings = settings::settings(tx).await?;
    if !settings.payment_methods.contains(&input.payment_method) {
        return Err(CheckoutError::PaymentMethod);
    }
    let lines = cart::lines_of(tx, cart.id, cart.currency).await?;
    if lines.is_empty() {
        return Err(CheckoutError::CartEmpty);
    }
    let options = cart::options_of(tx, &lines).await?;
    let mut priced = Vec::with_capacity(lines.len());
    for line in &lines {
        let sold = line.sold().ok_or(CheckoutError::VariantUnavailable { variant: line.variant_id })?;
        priced.push(sold.price);
    }
    let country = input.shipping_address.country.as_str();
    let sums = totals(&priced, &settings, Some(country)).ok_or(CheckoutError::TotalTooLarge)?;
    let sums = Totals { currency: cart.currency, ..sums };
    if input.expected_total_minor.is_some_and(|expected| expected != sums.total_minor) {
        return Err(CheckoutError::PriceChanged { total_minor: sums.total_minor });
    }
    // Every checkout takes its locks in one order: key, cart, customer, stock by variant, catalogue, counter. A product
    // write takes the catalogue before the stock; where the two meet, the server ends one and it is tried again.
    let customer = customer_of(tx, input, now).await?;
    reserve(tx, &lines, cart.currency, now).await?;
    let number = next_number(tx).await?;
    let order = OrderView {
        id: OrderId::new(now),
        number,
        cart_id: cart.id,
        status: OrderStatus::Open,
        payment_status: PaymentStatus::Pending,
        payment_method: "manual".to_owned(),
        fulfillment_status: FulfillmentStatus::Unfulfilled,
        shipping_method: "flat".to_owned(),
        email: input.email.clone(),
        lines: lines.iter().filter_map(|line| order_line(line, &options, now)).collect(),
        totals: sums,
        shipping_address: input.shipping_address.clone(),
        billing_address: input.billing_address.clone().unwrap_or_else(|| input.shipping_address.clone()),
        placed_at: now,
    };
    insert_order(tx, &order, customer, order_token, now).await?;
    insert_lines(tx, &order, &lines).await?;
    insert_event(tx, &order, now).await?;
    let update = Query::update()
        .table("carts")
        .value("status", CartStatus::Completed.as_str())
        .value("email", order.email.as_str())
        .value("customer_id", customer.to_string())
        .value("version", cart.version + 1)
        .value("completed_at", now)
        .value("updated_at", now)
        .and_where(Expr::col("id").eq(cart.id.to_string()))
        .and_where(Expr::col("status").eq(CartStatus::Active.as_str()))
        .take();
    if sql::run(tx, &update).await? != 1 {
        return Err(CheckoutError::CartNotFound);
    }
    Ok(order)
}

/// What a key's row says.
enum Claim {
    /// It was free and is ours now, if the transaction commits.
    Ours,
    /// An earlier request had it.
    Answered { fingerprint: String, response: Option<Box<OrderView>> },
}

/// Takes the key, or waits for whoever is taking it and tells what came of it.
async fn claim(
    tx: &mut Transaction,
    scope: &str,
    key: &str,
    fingerprint: &str,
    now: DateTime<Utc>,
) -> Result<Claim, sqlx::Error> {
    let claim_id = kernel::random::token();
    let mut conflict = OnConflict::columns(["scope", "key"]);
    conflict.do_nothing_on(["scope", "key"]);
    let insert = Query::insert()
        .into_table("idempotency_keys")
        .columns(["scope", "key", "claim_id", "fingerprint", "created_at", "expires_at"])
        .values_panic([
            scope.into(),
            key.into(),
            claim_id.as_str().into(),
            fingerprint.into(),
            now.into(),
            (now + KEY_LIFETIME).into(),
        ])
        .on_conflict(conflict)
        .take();
    sql::run(tx, &insert).await?;
    let select = Query::select()
        .columns(["claim_id", "fingerprint", "response"])
        .from("idempotency_keys")
        .and_where(Expr::col("scope").eq(scope))
        .and_where(Expr::col("key").eq(key))
        .lock_exclusive()
        .take();
    let row: Option<(String, String, Option<Json<OrderView>>)> = sql::optional_once(tx, &select).await?;
    let (owner, fingerprint, response) = row.ok_or(sqlx::Error::RowNotFound)?;
    Ok(if owner == claim_id {
        Claim::Ours
    } else {
        Claim::Answered { fingerprint, response: response.map(|json| Box::new(json.0)) }
    })
}

/// Keeps the answer for whoever asks again with the same key.
async fn answer(tx: &mut Transaction, scope: &str, key: &str, order: &OrderView) -> Result<(), sqlx::Error> {
    let response = serde_json::to_value(order).expect("an order is plain data");
    let update = Query::update()
        .table("idempotency_keys")
        .value("response", response)
        .and_where(Expr::col("scope").eq(scope))
        .and_where(Expr::col("key").eq(key))
        .take();
    sql::run(tx, &update).await?;
    Ok(())
}

/// What tells two requests apart that carry the same key.
fn fingerprint(input: &CheckoutInput) -> String {
    hex::encode(Sha256::digest(serde_json::to_vec(input).expect("an input is plain data")))
}

/// The token of the order that this cart becomes: only who holds the cart's token can work it out.
fn order_token(cart_token: &str, cart: CartId) -> String {
    let mut hash = Sha256::new();
    hash.update(b"order of cart\0");
    hash.update(cart.to_string().as_bytes());
    hash.update([0]);
    hash.update(cart_token.as_bytes());
    hex::encode(hash.finalize())
}

async fn order_of_cart(conn: &mut Connection, cart: CartId) -> Result<Option<OrderId>, sqlx::Error> {
    let select =
        Query::select().column("id").from("orders").and_where(Expr::col("cart_id").eq(cart.to_string())).take();
    let row: Option<(Stored<OrderId>,)> = sql::optional(conn, &select).await?;
    Ok(row.map(|(id,)| id.0))
}

/// The shopper's record by e-mail address, made when there is none.
async fn customer_of(
    tx: &mut Transaction,
    input: &CheckoutInput,
    now: DateTime<Utc>,
) -> Result<CustomerId, sqlx::Error> {
    let mut conflict = OnConflict::column("email");
    conflict.do_nothing_on(["email"]);
    let insert = Query::insert()
        .into_table("customers")
        .columns([
            "id",
            "email",
            "first_name",
            "last_name",
            "phone",
            "accepts_marketing",
            "version",
            "created_at",
            "updated_at",
        ])
        .values_panic([
            CustomerId::new(now).to_string().into(),
            input.email.as_str().into(),
            input.shipping_address.first_name.as_str().into(),
            input.shipping_address.last_name.as_str().into(),
            input.shipping_address.phone.clone().into(),
            false.into(),
            1_i32.into(),
            now.into(),
            now.into(),
        ])
        .on_conflict(conflict)
        .take();
    sql::run(tx, &insert).await?;
    let select =
        Query::select().column("id").from("customers").and_where(Expr::col("email").eq(input.email.as_str())).take();
    let (id,): (Stored<CustomerId>,) = sql::one(tx, &select).await?;
    Ok(id.0)
}

/// Reserves what the lines hold, variant by variant in the order of their ids.
async fn reserve(
    tx: &mut Transaction,
    lines: &[LineRow],
    currency: Currency,
    now: DateTime<Utc>,
) -> Result<(), CheckoutError> {
    let mut wanted: Vec<(VariantId, ProductId, LocationId, i64)> = Vec::with_capacity(lines.len());
    for line in lines {
        let sold = line.sold().ok_or(CheckoutError::VariantUnavailable { variant: line.variant_id })?;
        if sold.manages_stock {
            let location =
                sold.location_id.ok_or(CheckoutError::OutOfStock { variant: line.variant_id, available: 0 })?;
            wanted.push((line.variant_id, sold.product_id, location, i64::from(line.quantity())));
        }
    }
    wanted.sort_unstable();
    let mut sold_out: Vec<ProductId> = Vec::new();
    for (variant, product, location, quantity) in wanted {
        let of_level =
            || Expr::col("variant_id").eq(variant.to_string()).and(Expr::col("location_id").eq(location.to_string()));
        let is_enough = Expr::col("stocked").sub(Expr::col("reserved")).gte(quantity);
        let update = Query::update()
            .table("inventory_levels")
            .value("reserved", Expr::col("reserved").add(quantity))
            .value("updated_at", now)
            .and_where(of_level())
            .and_where(is_enough.or(Expr::col("allows_backorder").eq(Expr::cust("true"))))
            .take();
        let is_reserved = sql::run(tx, &update).await? == 1;
        let select = Query::select()
            .expr(Expr::col("stocked").sub(Expr::col("reserved")))
            .column("allows_backorder")
            .from("inventory_levels")
            .and_where(of_level())
            .take();
        let left: Option<(i64, bool)> = sql::optional(tx, &select).await?;
        let (available, allows_backorder) = left.unwrap_or((0, false));
        if !is_reserved {
            return Err(CheckoutError::OutOfStock { variant, available: Ord::max(available, 0) });
        }
        if available <= 0 && !allows_backorder && !sold_out.contains(&product) {
            sold_out.push(product);
        }
    }
    sold_out.sort_unstable();
    catalog::availability_refresh(tx, &sold_out, currency).await?;
    Ok(())
}

/// The store's next order number. Its row stays locked until the transaction ends, so numbers have no gaps.
async fn next_number(tx: &mut Transaction) -> Result<i64, sqlx::Error> {
    match tx.engine() {
        Engine::Postgresql => {
            let update = Query::update()
                .table("counters")
                .value("value", Expr::col("value").add(1_i64))
                .and_where(Expr::col("name").eq("order"))
                .returning_col("value")
                .take();
            let row: Option<(i64,)> = sql::optional_once(tx, &update).await?;
            row.map(|(number,)| number).ok_or(sqlx::Error::RowNotFound)
        }
        // Nobody else reads it in between: the row is locked by now.
        Engine::Mysql => {
            let of_orders = || Expr::col("name").eq("order");
            let next = Expr::col("value").add(1_i64);
            sql::run(tx, Query::update().table("counters").value("value", next).and_where(of_orders())).await?;
            let select = Query::select().column("value").from("counters").and_where(of_orders()).take();
            sql::one(tx, &select).await.map(|(number,): (i64,)| number)
        }
        engine => unreachable!("there are no statements for {engine}"),
    }
}

fn order_line(line: &LineRow, options: &[LineOptionRow], now: DateTime<Utc>) -> Option<OrderLineView> {
    let sold = line.sold()?;
    Some(OrderLineView {
        id: OrderLineId::new(now),
        product_id: sold.product_id,
        variant_id: line.variant_id,
        sku: line.sku.clone(),
        product_title: sold.product_title.to_owned(),
        variant_title: sold.variant_title.to_owned(),
        options: cart::options_for(options, line.variant_id),
        image_url: line.image_url.clone(),
        quantity: line.quantity(),
        unit_price_minor: sold.price.unit_price_minor,
        total_minor: sold.price.unit_price_minor.saturating_mul(i64::from(line.quantity())),
    })
}

async fn insert_order(
    tx: &mut Transaction,
    order: &OrderView,
    customer: CustomerId,
    order_token: &str,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let json = |address: &Address| serde_json::to_value(address).expect("an address is plain data");
    let columns: [(&'static str, Expr); 24] = [
        ("id", order.id.to_string().into()),
        ("number", order.number.into()),
        ("cart_id", order.cart_id.to_string().into()),
        ("token_hash", token_hash(order_token).into()),
        ("customer_id", customer.to_string().into()),
        ("email", order.email.as_str().into()),
        ("currency", order.totals.currency.as_str().into()),
        ("subtotal_minor", order.totals.subtotal_minor.into()),
        ("discount_minor", 0_i64.into()),
        ("shipping_minor", order.totals.shipping_minor.into()),
        ("tax_minor", order.totals.tax_minor.into()),
        ("total_minor", order.totals.total_minor.into()),
        ("tax_included", order.totals.tax_included.into()),
        ("tax_rate_basis_points", i32::from(order.totals.tax_rate_basis_points).into()),
        ("status", order.status.as_str().into()),
        ("payment_status", order.payment_status.as_str().into()),
        ("payment_method", order.payment_method.as_str().into()),
        ("fulfillment_status", order.fulfillment_status.as_str().into()),
        ("shipping_method", order.shipping_method.as_str().into()),
        ("shipping_address", json(&order.shipping_address).into()),
        ("billing_address", json(&order.billing_address).into()),
        ("placed_at", order.placed_at.into()),
        ("version", 1_i32.into()),
        ("updated_at", now.into()),
    ];
    let (names, values): (Vec<&'static str>, Vec<Expr>) = columns.into_iter().unzip();
    sql::run(tx, Query::insert().into_table("orders").columns(names).values_panic(values)).await?;
    Ok(())
}

async fn insert_lines(tx: &mut Transaction, order: &OrderView, lines: &[LineRow]) -> Result<(), sqlx::Error> {
    let mut insert = Query::insert()
        .into_table("order_lines")
        .columns([
            "id",
            "order_id",
            "position",
            "product_id",
            "variant_id",
            "location_id",
            "sku",
            "product_title",
            "variant_title",
            "options",
            "image_url",
            "unit_price_minor",
            "quantity",
            "total_minor",
            "reserved_quantity",
        ])
        .take();
    for ((position, line), row) in (1_i32..).zip(&order.lines).zip(lines) {
        let location = row.sold().filter(|sold| sold.manages_stock).and_then(|sold| sold.location_id);
        let quantity = i32::try_from(line.quantity).expect("a quantity is at most 999");
        insert.values_panic([
            line.id.to_string().into(),
            order.id.to_string().into(),
            position.into(),
            line.product_id.to_string().into(),
            line.variant_id.to_string().into(),
            location.map(|location| location.to_string()).into(),
            line.sku.clone().into(),
            line.product_title.as_str().into(),
            line.variant_title.as_str().into(),
            serde_json::to_value(&line.options).expect("options are plain data").into(),
            line.image_url.clone().into(),
            line.unit_price_minor.into(),
            quantity.into(),
            line.total_minor.into(),
            (if location.is_some() { quantity } else { 0 }).into(),
        ]);
    }
    sql::run(tx, &insert).await?;
    Ok(())
}

async fn insert_event(tx: &mut Transaction, order: &OrderView, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    let insert = Query::insert()
        .into_table("order_events")
        .columns(["id", "order_id", "type", "data", "actor", "created_at"])
        .values_panic([
            OrderEventId::new(now).to_string().into(),
            order.id.to_string().into(),
            "placed".into(),
            serde_json::json!({ "totalMinor": order.totals.total_minor }).into(),
            "shopper".into(),
            now.into(),
        ])
        .take();
    sql::run(tx, &insert).await?;
    Ok(())
}

fn checked(input: &CheckoutInput) -> Result<CheckoutInput, CheckoutError> {
    let mut fields = Fields::default();
    let email = field::email(&input.email);
    if email.is_none() {
        fields.refuse("email", "malformed", "must be an e-mail address");
    }
    let checked = CheckoutInput {
        email: email.unwrap_or_default(),
        shipping_address: checked_address(&mut fields, "shippingAddress", &input.shipping_address),
        billing_address: input.billing_address.as_ref().map(|a| checked_address(&mut fields, "billingAddress", a)),
        ..input.clone()
    };
    fields.finish().map_err(CheckoutError::Invalid)?;
    Ok(checked)
}

fn checked_address(fields: &mut Fields, at: &str, address: &Address) -> Address {
    if !is_country(&address.country) {
        fields.refuse(format!("{at}.country"), "malformed", "must be a two-letter country code such as DE");
    }
    let field = |name: &str| format!("{at}.{name}");
    Address {
        first_name: fields.line(&field("firstName"), &address.first_name, 100),
        last_name: fields.line(&field("lastName"), &address.last_name, 100),
        company: fields.optional_line(&field("company"), address.company.as_deref(), 255),
        address1: fields.line(&field("address1"), &address.address1, 255),
        address2: fields.optional_line(&field("address2"), address.address2.as_deref(), 255),
        city: fields.line(&field("city"), &address.city, 255),
        region: fields.optional_line(&field("region"), address.region.as_deref(), 255),
        postal_code: fields.optional_line(&field("postalCode"), address.postal_code.as_deref(), 40),
        country: address.country.clone(),
        phone: fields.optional_line(&field("phone"), address.phone.as_deref(), 40),
    }
}

#[cfg(test)]
mod tests {
    use super::{CheckoutError, CheckoutInput, checked, fingerprint, order_token};
    use chrono::DateTime;
    use kernel::CartId;

    fn input() -> CheckoutInput {
        serde_json::from_str(
            r#"{"email": "Ada@Example.com", "shippingAddress": {"firstName": "Ada", "lastName": "Lovelace",
                "address1": "12 St James's Square", "city": "London", "country": "GB"}}"#,
        )
        .expect("valid")
    }

    #[test]
    fn another_body_has_another_fingerprint_and_another_cart_another_token() {
        let other = CheckoutInput { expected_total_minor: Some(1), ..input() };
        assert_eq!(fingerprint(&input()), fingerprint(&input()));
        assert_ne!(fingerprint(&input()), fingerprint(&other));
        let (a, b) = (CartId::new(DateTime::UNIX_EPOCH), CartId::new(DateTime::UNIX_EPOCH));
        assert_ne!(order_token("secret", a), order_token("secret", b));
        assert_ne!(order_token("secret", a), order_token("secret2", a));
    }

    #[test]
    fn every_bad_field_is_named() {
        let mut bad = input();
        bad.email = "ada".into();
        bad.shipping_address.city = "a\r\nX: y".into();
        bad.shipping_address.country = "gb".into();
        let Err(CheckoutError::Invalid(fields)) = checked(&bad) else { panic!("expected refused fields") };
        let names: Vec<&str> = fields.iter().map(|field| field.field.as_str()).collect();
        assert_eq!(names, ["email", "shippingAddress.country", "shippingAddress.city"]);
        assert!(checked(&input()).is_ok());
    }
}
