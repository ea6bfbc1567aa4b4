//! One product, whole: for its page, and as the state that a write starts from.

use chrono::{DateTime, Utc};
use kernel::{CategoryId, Currency, MediaId, OptionId, OptionValueId, ProductId, VariantId};
use sea_query::{Expr, ExprTrait as _, Order, Query, SelectStatement};
use serde::{Deserialize, Serialize};
use tenancy::Connection;
use utoipa::ToSchema;

use super::{CatalogError, version_subquery};
use crate::sql;
use crate::stored::Stored;

/// A product with everything that its page shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProductDetail {
    /// Its id.
    pub id: ProductId,
    /// Its name in addresses.
    pub handle: String,
    /// Its name.
    pub title: String,
    /// A line below the title.
    pub subtitle: Option<String>,
    /// What the owner wrote, unsanitised: do not put it into a page as it is.
    pub description_html: String,
    /// Who makes it.
    pub vendor: Option<String>,
    /// What kind of thing it is.
    pub product_type: Option<String>,
    /// The title for search engines.
    pub seo_title: Option<String>,
    /// The description for search engines.
    pub seo_description: Option<String>,
    /// The price of the cheapest variant.
    pub price_min_minor: i64,
    /// The price of the dearest variant.
    pub price_max_minor: i64,
    /// What the cheapest variant cost before, when it is reduced.
    pub compare_at_minor: Option<i64>,
    /// The currency of all prices.
    #[schema(value_type = String, example = "EUR")]
    pub currency: Currency,
    /// Whether any variant can be bought now.
    pub is_available: bool,
    /// Tags.
    pub tags: Vec<String>,
    /// The active categories that it is in.
    pub categories: Vec<CategoryRef>,
    /// What a shopper chooses between; empty when there is one variant only.
    pub options: Vec<OptionView>,
    /// What can be bought.
    pub variants: Vec<VariantView>,
    /// Pictures.
    pub media: Vec<MediaView>,
    /// When it was published.
    pub published_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
    /// The version of the catalogue: for the `ETag`, not for the body.
    #[serde(skip)]
    #[schema(ignore)]
    pub catalog_version: i64,
}

/// A category, named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct CategoryRef {
    /// Its id.
    #[sqlx(try_from = "Stored<CategoryId>")]
    pub id: CategoryId,
    /// Its name in addresses.
    pub handle: String,
    /// Its name.
    pub name: String,
}

/// An option and its values, such as "Size": "S", "M", "L".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OptionView {
    /// Its id.
    pub id: OptionId,
    /// Its name.
    pub name: String,
    /// Its values.
    pub values: Vec<String>,
}

/// What a variant has for an option.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SelectedOption {
    /// The option's name.
    pub name: String,
    /// The variant's value.
    pub value: String,
}

/// What can be bought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VariantView {
    /// Its id.
    pub id: VariantId,
    /// Its option values in one text.
    pub title: String,
    /// The owner's stock-keeping unit.
    pub sku: Option<String>,
    /// Its bar code.
    pub barcode: Option<String>,
    /// Its option values.
    pub options: Vec<SelectedOption>,
    /// Its price.
    pub price_minor: i64,
    /// What it cost before, when it is reduced.
    pub compare_at_minor: Option<i64>,
    /// Its weight.
    pub weight_grams: i64,
    /// Whether it is shipped.
    pub requires_shipping: bool,
    /// Whether tax is due on it.
    pub is_taxable: bool,
    /// Whether it can be bought now.
    pub is_available: bool,
}

/// A picture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MediaView {
    /// Its id.
    pub id: MediaId,
    /// Where it is.
    pub url: String,
    /// What it shows.
    pub alt: Option<String>,
    /// Its width in pixels, when it is known.
    pub width: Option<i32>,
    /// Its height in pixels, when it is known.
    pub height: Option<i32>,
    /// The variant that it shows, when it shows one.
    pub variant_id: Option<VariantId>,
}

#[derive(sqlx::FromRow)]
struct DetailRow {
    #[sqlx(try_from = "Stored<ProductId>")]
    id: ProductId,
    handle: String,
    title: String,
    subtitle: Option<String>,
    description_html: String,
    vendor: Option<String>,
    product_type: Option<String>,
    seo_title: Option<String>,
    seo_description: Option<String>,
    price_min_minor: i64,
    price_max_minor: i64,
    compare_at_minor: Option<i64>,
    #[sqlx(try_from = "Stored<Currency>")]
    currency: Currency,
    is_available: bool,
    published_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    catalog_version: i64,
}

#[derive(sqlx::FromRow)]
pub(super) struct OptionValueRow {
    #[sqlx(try_from = "Stored<OptionId>")]
    pub(super) option_id: OptionId,
    pub(super) name: String,
    #[sqlx(try_from = "Stored<OptionValueId>")]
    pub(super) value_id: OptionValueId,
    pub(super) value: String,
}

#[derive(sqlx::FromRow)]
pub(super) struct VariantRow {
    #[sqlx(try_from = "Stored<VariantId>")]
    pub(super) id: VariantId,
    pub(super) title: String,
    pub(super) sku: Option<String>,
    pub(super) barcode: Option<String>,
    pub(super) weight_grams: i64,
    pub(super) requires_shipping: bool,
    pub(super) is_taxable: bool,
    pub(super) manages_stock: bool,
    pub(super) allows_backorder: bool,
    pub(super) price_minor: Option<i64>,
    pub(super) compare_at_minor: Option<i64>,
    pub(super) stocked: i64,
    pub(super) reserved: i64,
}

#[derive(sqlx::FromRow)]
pub(super) struct VariantValueRow {
    #[sqlx(try_from = "Stored<VariantId>")]
    pub(super) variant_id: VariantId,
    pub(super) name: String,
    pub(super) value: String,
}

#[derive(sqlx::FromRow)]
pub(super) struct MediaRow {
    #[sqlx(try_from = "Stored<MediaId>")]
    pub(super) id: MediaId,
    pub(super) url: String,
    pub(super) alt: Option<String>,
    pub(super) width: Option<i32>,
    pub(super) height: Option<i32>,
    pub(super) variant_id: Option<Stored<VariantId>>,
}

/// Whether a variant can be bought now.
pub(crate) const fn is_available(manages_stock: bool, allows_backorder: bool, stocked: i64, reserved: i64) -> bool {
    !manages_stock || allows_backorder || stocked > reserved
}

/// A product that a storefront shows, by its handle or its id.
///
/// # Errors
/// What the server or the connection says.
pub async fn product_by_handle(
    conn: &mut Connection,
    handle_or_id: &str,
) -> Result<Option<ProductDetail>, CatalogError> {
    let by = match handle_or_id.parse::<ProductId>() {
        Ok(id) => Expr::col("id").eq(id.to_string()),
        Err(_) => Expr::col("handle").eq(handle_or_id),
    };
    // The version comes first, with the product: what is read after it is at most newer than the ETag says.
    let select = Query::select()
        .columns([
            "id",
            "handle",
            "title",
            "subtitle",
            "description_html",
            "vendor",
            "product_type",
            "seo_title",
            "seo_description",
            "price_min_minor",
            "price_max_minor",
            "compare_at_minor",
            "currency",
            "is_available",
            "published_at",
            "updated_at",
        ])
        .expr_as(Expr::from(version_subquery()), "catalog_version")
        .from("products")
        .and_where(by)
        .and_where(Expr::col("is_listed").eq(Expr::cust("true")))
        .take();
    let Some(row) = sql::optional::<DetailRow>(conn, &select).await? else {
        return Ok(None);
    };
    let options = options_of(conn, row.id).await?;
    let variants = variants_of(conn, row.id, row.currency).await?;
    let values = variant_values_of(conn, row.id).await?;
    let media = media_of(conn, row.id).await?;
    let tags = tags_of(conn, row.id).await?;
    let categories = sql::all(conn, &select_categories(row.id)).await?;
    Ok(Some(ProductDetail {
        id: row.id,
        handle: row.handle,
        title: row.title,
        subtitle: row.subtitle,
        description_html: row.description_html,
        vendor: row.vendor,
        product_type: row.product_type,
        seo_title: row.seo_title,
        seo_description: row.seo_description,
        price_min_minor: row.price_min_minor,
        price_max_minor: row.price_max_minor,
        compare_at_minor: row.compare_at_minor,
        currency: row.currency,
        is_available: row.is_available,
        tags,
        categories,
        options: option_views(options),
        variants: variants.into_iter().filter_map(|variant| variant_view(variant, &values)).collect(),
        media: media.into_iter().map(MediaView::from).collect(),
        published_at: row.published_at,
        updated_at: row.updated_at,
        catalog_version: row.catalog_version,
    }))
}

fn option_views(rows: Vec<OptionValueRow>) -> Vec<OptionView> {
    let mut options: Vec<OptionView> = Vec::new();
    for row in rows {
        match options.last_mut() {
            Some(option) if option.id == row.option_id => option.values.push(row.value),
            _ => options.push(OptionView { id: row.option_id, name: row.name, values: vec![row.value] }),
        }
    }
    options
}

/// A variant without a price in the store's currency cannot be bought and is not shown.
fn variant_view(row: VariantRow, values: &[VariantValueRow]) -> Option<VariantView> {
    let options = values
        .iter()
        .filter(|value| value.variant_id == row.id)
        .map(|value| SelectedOption { name: value.name.clone(), value: value.value.clone() })
        .collect();
    Some(VariantView {
        id: row.id,
        title: row.title,
        sku: row.sku,
        barcode: row.barcode,
        options,
        price_minor: row.price_minor?,
        compare_at_minor: row.compare_at_minor,
        weight_grams: row.weight_grams,
        requires_shipping: row.requires_shipping,
        is_taxable: row.is_taxable,
        is_available: is_available(row.manages_stock, row.allows_backorder, row.stocked, row.reserved),
    })
}

impl From<MediaRow> for MediaView {
    fn from(row: MediaRow) -> Self {
        let variant_id = row.variant_id.map(|stored| stored.0);
        Self { id: row.id, url: row.url, alt: row.alt, width: row.width, height: row.height, variant_id }
    }
}

pub(super) async fn options_of(conn: &mut Connection, id: ProductId) -> Result<Vec<OptionValueRow>, sqlx::Error> {
    let select = Query::select()
        .expr_as(Expr::col(("product_options", "id")), "option_id")
        .column(("product_options", "name"))
        .expr_as(Expr::col(("product_option_values", "id")), "value_id")
        .column(("product_option_values", "value"))
        .from("product_options")
        .inner_join(
            "product_option_values",
            Expr::col(("product_option_values", "option_id")).equals(("product_options", "id")),
        )
        .and_where(Expr::col(("product_options", "product_id")).eq(id.to_string()))
        .order_by(("product_options", "position"), Order::Asc)
        .order_by(("product_option_values", "position"), Order::Asc)
        .take();
    sql::all(conn, &select).await
}

pub(super) async fn variants_of(
    conn: &mut Connection,
    id: ProductId,
    currency: Currency,
) -> Result<Vec<VariantRow>, sqlx::Error> {
    let level = |column: &'static str| {
        Expr::from(sea_query::Func::coalesce([Expr::col(("inventory_levels", column)), Expr::cust("0")]))
    };
    let select = Query::select()
        .columns(
            [
                "id",
                "title",
                "sku",
                "barcode",
                "weight_grams",
                "requires_shipping",
                "is_taxable",
                "manages_stock",
                "allows_backorder",
            ]
            .map(|column| ("product_variants", column)),
        )
        .expr_as(Expr::col(("prices", "amount_minor")), "price_minor")
        .column(("prices", "compare_at_minor"))
        .expr_as(level("stocked"), "stocked")
        .expr_as(level("reserved"), "reserved")
        .from("product_variants")
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
        .and_where(Expr::col(("product_variants", "product_id")).eq(id.to_string()))
        .order_by(("product_variants", "position"), Order::Asc)
        .order_by(("product_variants", "id"), Order::Asc)
        .take();
    sql::all(conn, &select).await
}

pub(super) async fn variant_values_of(
    conn: &mut Connection,
    id: ProductId,
) -> Result<Vec<VariantValueRow>, sqlx::Error> {
    sql::all(conn, &select_variant_values(Expr::col(("product_options", "product_id")).eq(id.to_string()))).await
}

/// The option values of variants, each variant's in the order of the options.
pub(crate) fn select_variant_values(which: Expr) -> SelectStatement {
    Query::select()
        .column(("variant_option_values", "variant_id"))
        .column(("product_options", "name"))
        .column(("product_option_values", "value"))
        .from("variant_option_values")
        .inner_join(
            "product_options",
            Expr::col(("product_options", "id")).equals(("variant_option_values", "option_id")),
        )
        .inner_join(
            "product_option_values",
            Expr::col(("product_option_values", "id")).equals(("variant_option_values", "option_value_id")),
        )
        .and_where(which)
        .order_by(("variant_option_values", "variant_id"), Order::Asc)
        .order_by(("product_options", "position"), Order::Asc)
        .take()
}

pub(super) async fn media_of(conn: &mut Connection, id: ProductId) -> Result<Vec<MediaRow>, sqlx::Error> {
    let select = Query::select()
        .columns(["id", "url", "alt", "width", "height", "variant_id"])
        .from("product_media")
        .and_where(Expr::col("product_id").eq(id.to_string()))
        .order_by("position", Order::Asc)
        .order_by("id", Order::Asc)
        .take();
    sql::all(conn, &select).await
}

pub(super) async fn tags_of(conn: &mut Connection, id: ProductId) -> Result<Vec<String>, sqlx::Error> {
    let select = Query::select()
        .column("tag")
        .from("product_tags")
        .and_where(Expr::col("product_id").eq(id.to_string()))
        .order_by("tag_key", Order::Asc)
        .take();
    let rows: Vec<(String,)> = sql::all(conn, &select).await?;
    Ok(rows.into_iter().map(|(tag,)| tag).collect())
}

fn select_categories(id: ProductId) -> SelectStatement {
    Query::select()
        .columns(["id", "handle", "name"].map(|column| ("categories", column)))
        .from("categories")
        .inner_join("product_categories", Expr::col(("product_categories", "category_id")).equals(("categories", "id")))
        .and_where(Expr::col(("product_categories", "product_id")).eq(id.to_string()))
        .and_where(Expr::col(("categories", "is_active")).eq(Expr::cust("true")))
        .order_by(("product_categories", "position"), Order::Asc)
        .order_by(("categories", "id"), Order::Asc)
        .take()
}
