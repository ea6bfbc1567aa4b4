//! Orders as their shopper sees them.

use chrono::{DateTime, Utc};
use kernel::{CartId, Currency, OrderId, OrderLineId, ProductId, VariantId};
use sea_query::{Expr, ExprTrait as _, Order, Query};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use tenancy::Connection;
use utoipa::ToSchema;

use crate::cart::token_hash;
use crate::catalog::SelectedOption;
use crate::sql;
use crate::stored::{Stored, stored_enum};
use crate::totals::Totals;

stored_enum! {
    /// Where an order is in its life.
    OrderStatus {
        /// To be worked on.
        Open = "open",
        /// Done.
        Completed = "completed",
        /// Called off.
        Cancelled = "cancelled",
    }
}

stored_enum! {
    /// Whether an order is paid.
    PaymentStatus {
        /// Not yet.
        Pending = "pending",
        /// Yes.
        Paid = "paid",
        /// It was, and went back.
        Refunded = "refunded",
        /// It never will be.
        Voided = "voided",
    }
}

stored_enum! {
    /// Whether an order is sent.
    FulfillmentStatus {
        /// Nothing of it.
        Unfulfilled = "unfulfilled",
        /// Some of it.
        Partial = "partial",
        /// All of it.
        Fulfilled = "fulfilled",
    }
}

/// Where something goes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Address {
    /// Given name.
    pub first_name: String,
    /// Family name.
    pub last_name: String,
    /// Company.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub company: Option<String>,
    /// Street and number.
    pub address1: String,
    /// What else the street needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address2: Option<String>,
    /// City.
    pub city: String,
    /// State, province or county.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Postal code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postal_code: Option<String>,
    /// Two-letter country code.
    #[schema(example = "DE")]
    pub country: String,
    /// Telephone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phone: Option<String>,
}

/// An order as its shopper sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderView {
    /// Its id.
    pub id: OrderId,
    /// Its number, counted up within the store.
    pub number: i64,
    /// The cart that it came from.
    pub cart_id: CartId,
    /// Where it is in its life.
    pub status: OrderStatus,
    /// Whether it is paid.
    pub payment_status: PaymentStatus,
    /// How it is paid.
    pub payment_method: String,
    /// Whether it is sent.
    pub fulfillment_status: FulfillmentStatus,
    /// How it is sent.
    pub shipping_method: String,
    /// The shopper's e-mail address.
    pub email: String,
    /// What was bought, as it was then.
    pub lines: Vec<OrderLineView>,
    /// What it cost.
    pub totals: Totals,
    /// Where it goes.
    pub shipping_address: Address,
    /// Who pays.
    pub billing_address: Address,
    /// When it was placed.
    pub placed_at: DateTime<Utc>,
}

/// A line of an order, as it was when it was placed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderLineView {
    /// Its id.
    pub id: OrderLineId,
    /// The product.
    pub product_id: ProductId,
    /// What was bought.
    pub variant_id: VariantId,
    /// The owner's stock-keeping unit.
    pub sku: Option<String>,
    /// The product's name.
    pub product_title: String,
    /// The variant's name.
    pub variant_title: String,
    /// The variant's option values.
    pub options: Vec<SelectedOption>,
    /// A picture.
    pub image_url: Option<String>,
    /// How many.
    pub quantity: u32,
    /// The price of one.
    pub unit_price_minor: i64,
    /// The price of all.
    pub total_minor: i64,
}

#[derive(sqlx::FromRow)]
struct OrderRow {
    #[sqlx(try_from = "Stored<OrderId>")]
    id: OrderId,
    number: i64,
    #[sqlx(try_from = "Stored<CartId>")]
    cart_id: CartId,
    email: String,
    #[sqlx(try_from = "Stored<Currency>")]
    currency: Currency,
    subtotal_minor: i64,
    shipping_minor: i64,
    tax_minor: i64,
    total_minor: i64,
    tax_included: bool,
    tax_rate_basis_points: i32,
    #[sqlx(try_from = "Stored<OrderStatus>")]
    status: OrderStatus,
    #[sqlx(try_from = "Stored<PaymentStatus>")]
    payment_status: PaymentStatus,
    payment_method: String,
    #[sqlx(try_from = "Stored<FulfillmentStatus>")]
    fulfillment_status: FulfillmentStatus,
    shipping_method: String,
    shipping_address: Json<Address>,
    billing_address: Json<Address>,
    placed_at: DateTime<Utc>,
}

#[derive(sqlx::FromRow)]
struct OrderLineRow {
    #[sqlx(try_from = "Stored<OrderLineId>")]
    id: OrderLineId,
    #[sqlx(try_from = "Stored<ProductId>")]
    product_id: ProductId,
    #[sqlx(try_from = "Stored<VariantId>")]
    variant_id: VariantId,
    sku: Option<String>,
    product_title: String,
    variant_title: String,
    options: Json<Vec<SelectedOption>>,
    image_url: Option<String>,
    quantity: i32,
    unit_price_minor: i64,
    total_minor: i64,
}

/// The order, for whoever shows its token. `None` for an unknown order and for a wrong token alike.
///
/// # Errors
/// What the server or the connection says.
pub async fn order_by_id(conn: &mut Connection, id: OrderId, token: &str) -> Result<Option<OrderView>, sqlx::Error> {
    let select = Query::select()
        .columns([
            "id",
            "number",
            "cart_id",
            "email",
            "currency",
            "subtotal_minor",
            "shipping_minor",
            "tax_minor",
            "total_minor",
            "tax_included",
            "tax_rate_basis_points",
            "status",
            "payment_status",
            "payment_method",
            "fulfillment_status",
            "shipping_method",
            "shipping_address",
            "billing_address",
            "placed_at",
        ])
        .from("orders")
        .and_where(Expr::col("id").eq(id.to_string()))
        .and_where(Expr::col("token_hash").eq(token_hash(token)))
        .take();
    let Some(row) = sql::optional::<OrderRow>(conn, &select).await? else {
        return Ok(None);
    };
    let select = Query::select()
        .columns([
            "id",
            "product_id",
            "variant_id",
            "sku",
            "product_title",
            "variant_title",
            "options",
            "image_url",
            "quantity",
            "unit_price_minor",
            "total_minor",
        ])
        .from("order_lines")
        .and_where(Expr::col("order_id").eq(id.to_string()))
        .order_by("position", Order::Asc)
        .take();
    let lines: Vec<OrderLineRow> = sql::all(conn, &select).await?;
    Ok(Some(OrderView {
        id: row.id,
        number: row.number,
        cart_id: row.cart_id,
        status: row.status,
        payment_status: row.payment_status,
        payment_method: row.payment_method,
        fulfillment_status: row.fulfillment_status,
        shipping_method: row.shipping_method,
        email: row.email,
        lines: lines.into_iter().map(OrderLineView::from).collect(),
        totals: Totals {
            currency: row.currency,
            subtotal_minor: row.subtotal_minor,
            shipping_minor: row.shipping_minor,
            tax_minor: row.tax_minor,
            total_minor: row.total_minor,
            tax_included: row.tax_included,
            tax_rate_basis_points: u16::try_from(row.tax_rate_basis_points).unwrap_or_default(),
        },
        shipping_address: row.shipping_address.0,
        billing_address: row.billing_address.0,
        placed_at: row.placed_at,
    }))
}

/// How many orders were placed from one moment to before another.
///
/// # Errors
/// What the server or the connection says.
pub async fn orders_count(
    conn: &mut Connection,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<i64, sqlx::Error> {
    let select = Query::select()
        .expr(Expr::col("id").count())
        .from("orders")
        .and_where(Expr::col("placed_at").gte(from))
        .and_where(Expr::col("placed_at").lt(until))
        .take();
    let (count,) = sql::one(conn, &select).await?;
    Ok(count)
}

impl From<OrderLineRow> for OrderLineView {
    fn from(row: OrderLineRow) -> Self {
        Self {
            id: row.id,
            product_id: row.product_id,
            variant_id: row.variant_id,
            sku: row.sku,
            product_title: row.product_title,
            variant_title: row.variant_title,
            options: row.options.0,
            image_url: row.image_url,
            quantity: u32::try_from(row.quantity).unwrap_or_default(),
            unit_price_minor: row.unit_price_minor,
            total_minor: row.total_minor,
        }
    }
}
