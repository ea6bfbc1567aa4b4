//! A product as it stands, in the form that a write takes.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use kernel::{Currency, ProductId};
use sea_query::{Expr, ExprTrait as _, Query};
use tenancy::{Connection, Transaction};

use super::{StoredProduct, StoredVariant};
use crate::catalog::CatalogError;
use crate::catalog::input::{MediaInput, ProductInput, ProductStatus, VariantInput};
use crate::catalog::product::{media_of, options_of, tags_of, variant_values_of, variants_of};
use crate::sql;
use crate::stored::Stored;

#[derive(sqlx::FromRow)]
struct ProductRow {
    #[sqlx(try_from = "Stored<ProductId>")]
    id: ProductId,
    title: String,
    subtitle: Option<String>,
    description_html: String,
    vendor: Option<String>,
    product_type: Option<String>,
    #[sqlx(try_from = "Stored<ProductStatus>")]
    status: ProductStatus,
    published_at: Option<DateTime<Utc>>,
    seo_title: Option<String>,
    seo_description: Option<String>,
    version: i32,
    deleted_at: Option<DateTime<Utc>>,
}

/// The product with this handle, locked until the transaction ends, with prices in `currency`.
///
/// # Errors
/// What the server or the connection says.
pub async fn product_load_in(
    tx: &mut Transaction,
    handle: &str,
    currency: Currency,
) -> Result<Option<StoredProduct>, CatalogError> {
    let select = Query::select()
        .columns([
            "id",
            "title",
            "subtitle",
            "description_html",
            "vendor",
            "product_type",
            "status",
            "published_at",
            "seo_title",
            "seo_description",
            "version",
            "deleted_at",
        ])
        .from("products")
        .and_where(Expr::col("handle").eq(handle))
        .lock_exclusive()
        .take();
    let Some(row) = sql::optional_once::<ProductRow>(tx, &select).await? else {
        return Ok(None);
    };
    let option_rows = options_of(tx, row.id).await?;
    let variant_rows = variants_of(tx, row.id, currency).await?;
    let values = variant_values_of(tx, row.id).await?;
    let media_rows = media_of(tx, row.id).await?;
    let tags = tags_of(tx, row.id).await?;
    let categories = category_handles_of(tx, row.id).await?;

    let mut options: Vec<String> = Vec::new();
    let (mut option_ids, mut value_ids) = (HashMap::new(), HashMap::new());
    for option in option_rows {
        if options.last() != Some(&option.name) {
            options.push(option.name.clone());
        }
        option_ids.insert(option.name.clone(), option.option_id);
        value_ids.insert((option.name, option.value), option.value_id);
    }
    let media = media_rows
        .iter()
        .map(|media| MediaInput {
            url: media.url.clone(),
            alt: media.alt.clone(),
            variant: media
                .variant_id
                .as_ref()
                .and_then(|shown| variant_rows.iter().position(|variant| variant.id == shown.0)),
        })
        .collect();
    let variants = variant_rows
        .iter()
        .map(|variant| StoredVariant {
            id: variant.id,
            reserved: variant.reserved,
            has_price: variant.price_minor.is_some(),
        })
        .collect();
    let input = ProductInput {
        handle: handle.to_owned(),
        title: row.title,
        subtitle: row.subtitle,
        description_html: row.description_html,
        vendor: row.vendor,
        product_type: row.product_type,
        status: row.status,
        is_published: row.published_at.is_some(),
        seo_title: row.seo_title,
        seo_description: row.seo_description,
        tags,
        categories,
        options,
        variants: variant_rows
            .into_iter()
            .map(|variant| VariantInput {
                options: values
                    .iter()
                    .filter(|value| value.variant_id == variant.id)
                    .map(|value| value.value.clone())
                    .collect(),
                sku: variant.sku,
                barcode: variant.barcode,
                price_minor: variant.price_minor.unwrap_or_default(),
                compare_at_minor: variant.compare_at_minor,
                weight_grams: variant.weight_grams,
                requires_shipping: variant.requires_shipping,
                is_taxable: variant.is_taxable,
                manages_stock: variant.manages_stock,
                allows_backorder: variant.allows_backorder,
                stocked: variant.stocked,
            })
            .collect(),
        media,
    };
    Ok(Some(StoredProduct {
        id: row.id,
        version: row.version,
        published_at: row.published_at,
        is_deleted: row.deleted_at.is_some(),
        input,
        option_ids,
        value_ids,
        variants,
        media_ids: media_rows.into_iter().map(|media| media.id).collect(),
    }))
}

async fn category_handles_of(conn: &mut Connection, id: ProductId) -> Result<Vec<String>, sqlx::Error> {
    let select = Query::select()
        .column(("categories", "handle"))
        .from("product_categories")
        .inner_join("categories", Expr::col(("categories", "id")).equals(("product_categories", "category_id")))
        .and_where(Expr::col(("product_categories", "product_id")).eq(id.to_string()))
        .order_by(("product_categories", "position"), sea_query::Order::Asc)
        .order_by(("categories", "id"), sea_query::Order::Asc)
        .take();
    let rows: Vec<(String,)> = sql::all(conn, &select).await?;
    Ok(rows.into_iter().map(|(handle,)| handle).collect())
}
