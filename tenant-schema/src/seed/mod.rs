//! What a new store's database holds from the start, a proof that it works, and what is in it.

mod demo;

use chrono::{DateTime, Utc};
use kernel::{Currency, LocationId, StaffId, StoreId};
use sea_query::{Expr, ExprTrait as _, Func, OnConflict, Query, SelectStatement};
use serde::Serialize;
use tenancy::{Connection, Lease, LeaseError, Transaction};
use utoipa::ToSchema;

use crate::cart::{self, CartError};
use crate::catalog::{self, CatalogError, ProductQuery};
use crate::content;
use crate::settings::{self, SettingsError, StoreSettings};
use crate::sql;
use crate::stored::Stored;

/// The number before a store's first order.
const FIRST_ORDER: i64 = 1000;

/// What a new store is seeded with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedInput {
    /// The store.
    pub store_id: StoreId,
    /// Its name.
    pub name: String,
    /// Its short name.
    pub slug: String,
    /// Its currency.
    pub currency: Currency,
    /// Who owns it.
    pub owner: SeedOwner,
    /// Whether it gets a made-up catalogue.
    pub demo: bool,
}

/// The owner, as the store's own records name them. There is no password here, and no place for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedOwner {
    /// Their id in master.
    pub user_id: String,
    /// Their e-mail address.
    pub email: String,
    /// Their given name.
    pub first_name: String,
    /// Their family name.
    pub last_name: String,
}

/// How much a store's database holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct StoreCounts {
    /// Products that were not deleted, in every status.
    pub products: i64,
    /// Their variants.
    pub variants: i64,
    /// Categories.
    pub categories: i64,
    /// Orders.
    pub orders: i64,
    /// Customers.
    pub customers: i64,
}

/// Why a database was not seeded, or does not work.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// It is another store's: nothing was written.
    #[error("the database belongs to store {store}")]
    OtherStore {
        /// Whose it is.
        store: StoreId,
    },
    /// No connection to it was given.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The catalogue could not be written or read.
    #[error("the catalogue does not work")]
    Catalog(#[source] CatalogError),
    /// The settings could not be written or read.
    #[error("the settings do not work")]
    Settings(#[source] SettingsError),
    /// A cart could not be written or read.
    #[error("carts do not work")]
    Cart(#[source] CartError),
    /// What the server or the connection says.
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

impl From<CatalogError> for SeedError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Db(error) => Self::Db(error),
            error => Self::Catalog(error),
        }
    }
}

impl From<SettingsError> for SeedError {
    fn from(error: SettingsError) -> Self {
        match error {
            SettingsError::Db(error) => Self::Db(error),
            error => Self::Settings(error),
        }
    }
}

impl From<CartError> for SeedError {
    fn from(error: CartError) -> Self {
        match error {
            CartError::Db(error) => Self::Db(error),
            error => Self::Cart(error),
        }
    }
}

/// Seeds the database, all or nothing. What is there already stays as it is, so that running it again changes nothing.
///
/// # Errors
/// [`SeedError`]; then nothing was written.
pub async fn seed(lease: &Lease, input: &SeedInput, now: DateTime<Utc>) -> Result<(), SeedError> {
    let mut tx = lease.begin().await?;
    match seed_in(&mut tx, input, now).await {
        Ok(()) => Ok(tx.commit().await?),
        Err(error) => {
            tx.rollback().await?;
            Err(error)
        }
    }
}

/// [`seed`] inside the caller's transaction, which must be rolled back on an error.
///
/// # Errors
/// [`SeedError`].
pub async fn seed_in(tx: &mut Transaction, input: &SeedInput, now: DateTime<Utc>) -> Result<(), SeedError> {
    insert_once(
        tx,
        "store_identity",
        &["singleton"],
        vec![
            ("singleton", 1_i16.into()),
            ("product", "tenantry".into()),
            ("store_id", input.store_id.to_string().into()),
            ("created_at", now.into()),
        ],
    )
    .await?;
    let select = Query::select().column("store_id").from("store_identity").take();
    let (owner,): (Stored<StoreId>,) = sql::one(tx, &select).await?;
    if owner.0 != input.store_id {
        return Err(SeedError::OtherStore { store: owner.0 });
    }
    insert_once(tx, "catalog_version", &["singleton"], vec![("singleton", 1_i16.into()), ("version", 1_i64.into())])
        .await?;
    insert_once(tx, "counters", &["name"], vec![("name", "order".into()), ("value", FIRST_ORDER.into())]).await?;
    insert_once(
        tx,
        "stock_locations",
        &["default_mark"],
        vec![
            ("id", LocationId::new(now).to_string().into()),
            ("name", "Main".into()),
            ("default_mark", 1_i16.into()),
            ("created_at", now.into()),
        ],
    )
    .await?;
    insert_once(
        tx,
        "staff",
        &["user_id"],
        vec![
            ("id", StaffId::new(now).to_string().into()),
            ("user_id", input.owner.user_id.as_str().into()),
            ("email", input.owner.email.as_str().into()),
            ("first_name", input.owner.first_name.as_str().into()),
            ("last_name", input.owner.last_name.as_str().into()),
            ("role", "owner".into()),
            ("created_at", now.into()),
            ("updated_at", now.into()),
        ],
    )
    .await?;
    let fresh = StoreSettings::new(&input.name, input.currency);
    let fresh = if input.demo { demo::settings(fresh) } else { fresh };
    settings::settings_seed(tx, &fresh, now).await?;
    for (slug, title, body) in PAGES {
        content::page_seed(tx, slug, title, body, now).await?;
    }
    if input.demo {
        let currency = settings::settings(tx).await?.currency;
        demo::catalog(tx, currency, now).await?;
    }
    Ok(())
}

/// Inserts a row unless there is one with the same key.
async fn insert_once(
    tx: &mut Connection,
    table: &'static str,
    key: &'static [&'static str],
    row: Vec<(&'static str, Expr)>,
) -> Result<(), sqlx::Error> {
    let (columns, values): (Vec<&'static str>, Vec<Expr>) = row.into_iter().unzip();
    let mut conflict = OnConflict::columns(key.iter().copied());
    conflict.do_nothing_on(key.iter().copied());
    let insert = Query::insert().into_table(table).columns(columns).values_panic(values).on_conflict(conflict).take();
    sql::run(tx, &insert).await?;
    Ok(())
}

const PAGES: [(&str, &str, &str); 3] = [
    (
        "about",
        "About us",
        "<p>Tell your visitors who you are, what you make, and why they can trust you. This page is yours to change.</p>",
    ),
    (
        "shipping",
        "Shipping",
        "<p>Say where you ship to, how long it takes, and what it costs. This page is yours to change.</p>",
    ),
    ("returns", "Returns", "<p>Say how long a purchase can be returned, and how. This page is yours to change.</p>"),
];

/// Reads what a storefront reads, and proves that a cart can be written, in a transaction that is rolled back.
///
/// # Errors
/// [`SeedError`], naming the part that does not work.
pub async fn smoke_test(lease: &Lease, now: DateTime<Utc>) -> Result<(), SeedError> {
    let mut tx = lease.begin().await?;
    let outcome = smoke_test_in(&mut tx, lease.store_id(), now).await;
    tx.rollback().await?;
    outcome
}

async fn smoke_test_in(tx: &mut Transaction, store: StoreId, now: DateTime<Utc>) -> Result<(), SeedError> {
    let select = Query::select().column("store_id").from("store_identity").take();
    let (owner,): (Stored<StoreId>,) = sql::one(tx, &select).await?;
    if owner.0 != store {
        return Err(SeedError::OtherStore { store: owner.0 });
    }
    settings::store_view(tx).await?;
    catalog::categories_tree(tx).await?;
    let page = catalog::products_list(tx, store, &ProductQuery::default()).await?;
    if let Some(product) = page.products.first() {
        catalog::product_by_handle(tx, &product.handle).await?.ok_or(sqlx::Error::RowNotFound)?;
    }
    content::pages_list(tx).await?;
    let new = cart::cart_create(tx, now).await?;
    cart::cart_get(tx, new.cart.id, &new.token, now).await?;
    Ok(())
}

/// How much the database holds, in one statement.
///
/// # Errors
/// What the server or the connection says.
pub async fn counts(conn: &mut Connection) -> Result<StoreCounts, sqlx::Error> {
    let count = |table: &'static str| -> SelectStatement {
        Query::select().expr(Func::count(Expr::cust("1"))).from(table).take()
    };
    let products = count("products").and_where(Expr::col("deleted_at").is_null()).take();
    let variants = count("product_variants")
        .inner_join("products", Expr::col(("products", "id")).equals(("product_variants", "product_id")))
        .and_where(Expr::col(("products", "deleted_at")).is_null())
        .take();
    let select = Query::select()
        .expr_as(Expr::from(products), "products")
        .expr_as(Expr::from(variants), "variants")
        .expr_as(Expr::from(count("categories")), "categories")
        .expr_as(Expr::from(count("orders")), "orders")
        .expr_as(Expr::from(count("customers")), "customers")
        .take();
    sql::one(conn, &select).await
}
