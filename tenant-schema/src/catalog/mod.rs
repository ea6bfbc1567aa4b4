//! Products, categories and what belongs to them.
//!
//! Invariants: every transaction that changes what a storefront shows bumps the one row of `catalog_version`; the list
//! columns of `products` agree with its prices, pictures and stock at every commit; a storefront read shows only products
//! that are listed: active, published, not deleted, and priced.

mod category;
mod input;
mod list;
mod product;
mod write;

use kernel::CursorError;
use sea_query::{Expr, ExprTrait as _, Query, SelectStatement};
use tenancy::{Connection, Transaction};

use crate::field::FieldError;
use crate::sql;

pub use category::{
    Categories, CategoryInput, CategoryNode, CategoryView, categories_tree, category_by_handle, category_save_in,
};
pub use input::{MAX_VARIANTS, MediaInput, MovementReason, ProductInput, ProductStatus, VariantInput};
pub use list::{ProductPage, ProductQuery, ProductSort, ProductSummary, products_list};
pub(crate) use product::select_variant_values;
pub use product::{CategoryRef, MediaView, OptionView, ProductDetail, SelectedOption, VariantView, product_by_handle};
pub(crate) use write::availability_refresh;
pub use write::{
    ProductSaved, SaveOutcome, StoredProduct, product_delete_in, product_load_in, product_save_in, product_write_in,
};

/// Why the catalogue was not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The fields that were refused; nothing was changed.
    #[error("the product is not valid")]
    Invalid(Vec<FieldError>),
    /// The cursor is damaged, or of another store, list, sorting or filter.
    #[error("the cursor does not fit this list")]
    Cursor(#[from] CursorError),
    /// Another product has this handle (only when two are created at once).
    #[error("the handle is already in use")]
    HandleTaken,
    /// A variant of another product has this SKU.
    #[error("a SKU is already in use by another product")]
    SkuTaken,
    /// No category has this handle.
    #[error("there is no category {handle}")]
    UnknownCategory {
        /// The handle that was asked for.
        handle: String,
    },
    /// Open orders have reserved more than the new stock, and the variant may not be sold beyond its stock.
    #[error("the stock would be less than what open orders have reserved")]
    StockBelowReserved,
    /// The database was never seeded.
    #[error("the store's database is incomplete")]
    Incomplete,
    /// What the server or the connection says.
    #[error("database error")]
    Db(#[source] sqlx::Error),
}

impl From<sqlx::Error> for CatalogError {
    fn from(error: sqlx::Error) -> Self {
        match sql::constraint(&error) {
            Some("products_handle_key") => Self::HandleTaken,
            Some("product_variants_sku_key") => Self::SkuTaken,
            Some("inventory_levels_not_oversold_check") => Self::StockBelowReserved,
            _ => Self::Db(error),
        }
    }
}

/// `(select version from catalog_version)`, to be read in the same statement as what it vouches for.
pub(crate) fn version_subquery() -> SelectStatement {
    Query::select()
        .column("version")
        .from("catalog_version")
        .and_where(Expr::col("singleton").eq(Expr::cust("1")))
        .take()
}

/// The version of the catalogue: what an `ETag` is made of.
///
/// # Errors
/// What the server or the connection says; [`sqlx::Error::RowNotFound`] when the database was never seeded.
pub async fn catalog_version(conn: &mut Connection) -> Result<i64, sqlx::Error> {
    let (version,): (i64,) = sql::one(conn, &version_subquery()).await?;
    Ok(version)
}

/// Makes every cached catalogue answer stale once the transaction commits. Other catalogue transactions queue behind it.
///
/// # Errors
/// What the server or the connection says.
pub async fn version_bump(tx: &mut Transaction) -> Result<(), sqlx::Error> {
    let update = Query::update()
        .table("catalog_version")
        .value("version", Expr::col("version").add(1_i64))
        .and_where(Expr::col("singleton").eq(1_i16))
        .take();
    if sql::run(tx, &update).await? == 0 {
        return Err(sqlx::Error::RowNotFound);
    }
    Ok(())
}

/// What titles are sorted by: their beginning in lower case, short enough for a cursor.
pub(crate) fn sort_key(title: &str) -> String {
    title.chars().take(120).flat_map(char::to_lowercase).take(120).collect()
}

/// What vendors and tags are compared by.
pub(crate) fn fold(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).take(255).collect()
}

/// A handle: small letters, digits, `-` and `_`, at most `max` characters. Letters of any script, because shops have them.
pub(crate) fn is_handle(text: &str, max: usize) -> bool {
    !text.is_empty()
        && text.chars().count() <= max
        && text.chars().all(|c| (c.is_alphanumeric() && !c.is_uppercase()) || c == '-' || c == '_')
}
