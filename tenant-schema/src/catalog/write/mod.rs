//! Writing a product as a whole: its wanted state goes in, and only what differs from the stored one is written.
//!
//! A product that already is as wanted is left alone: its version, its time of change and the catalogue's version stay.
//! Ids survive a write: variants are recognised by their option values, or else by their SKU; options and values by their
//! names; pictures by their address.

mod attached;
mod load;
mod stock;
mod variants;

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use kernel::{Currency, MediaId, OptionId, OptionValueId, ProductId, VariantId};
use sea_query::{Expr, ExprTrait as _, Query};
use tenancy::{Connection, Transaction};

use self::attached::{write_categories, write_media, write_tags};
use self::stock::{write_availability, write_stock};
use self::variants::{match_variants, write_options, write_prices, write_variants};
use super::input::{MovementReason, ProductInput, checked};
use super::product::is_available;
use super::{CatalogError, fold, sort_key, version_bump};
use crate::sql;

pub use load::product_load_in;
pub(crate) use stock::availability_refresh;

/// A product as it stands, locked for the transaction that loaded it.
#[derive(Debug, Clone)]
pub struct StoredProduct {
    id: ProductId,
    version: i32,
    published_at: Option<DateTime<Utc>>,
    is_deleted: bool,
    input: ProductInput,
    option_ids: HashMap<String, OptionId>,
    value_ids: HashMap<(String, String), OptionValueId>,
    /// In the order of `input.variants`.
    variants: Vec<StoredVariant>,
    media_ids: Vec<MediaId>,
}

#[derive(Debug, Clone, Copy)]
struct StoredVariant {
    id: VariantId,
    reserved: i64,
    has_price: bool,
}

impl StoredProduct {
    /// Its id.
    #[must_use]
    pub const fn id(&self) -> ProductId {
        self.id
    }

    /// Its state in the form that a write takes: change what shall change and write it back.
    #[must_use]
    pub const fn as_input(&self) -> &ProductInput {
        &self.input
    }
}

/// What a write came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveOutcome {
    /// There was no product with this handle.
    Created,
    /// Something was different.
    Updated,
    /// Everything was as wanted; nothing was written.
    Unchanged,
}

/// What a write came to, with the variants counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProductSaved {
    /// The product.
    pub id: ProductId,
    /// What was done.
    pub outcome: SaveOutcome,
    /// Variants that are new.
    pub variants_created: u64,
    /// Variants that were changed.
    pub variants_updated: u64,
    /// Variants that were as wanted.
    pub variants_unchanged: u64,
    /// Variants that are gone.
    pub variants_removed: u64,
}

/// Writes a product as wanted, whatever stood there.
///
/// # Errors
/// [`CatalogError`]; the transaction is then to be rolled back.
pub async fn product_save_in(
    tx: &mut Transaction,
    input: &ProductInput,
    currency: Currency,
    reason: MovementReason,
    now: DateTime<Utc>,
) -> Result<ProductSaved, CatalogError> {
    let stored = product_load_in(tx, &input.handle, currency).await?;
    product_write_in(tx, stored.as_ref(), input, currency, reason, now).await
}

/// Takes a product out of every list, cart and search; its handle, ids and orders stay.
///
/// # Errors
/// What the server or the connection says. `Ok(false)` when there is no such product.
pub async fn product_delete_in(tx: &mut Transaction, id: ProductId, now: DateTime<Utc>) -> Result<bool, CatalogError> {
    let update = Query::update()
        .table("products")
        .value("deleted_at", now)
        .value("updated_at", now)
        .value("version", Expr::col("version").add(1))
        .and_where(Expr::col("id").eq(id.to_string()))
        .and_where(Expr::col("deleted_at").is_null())
        .take();
    let is_there = sql::run(tx, &update).await? > 0;
    if is_there {
        version_bump(tx).await?;
    }
    Ok(is_there)
}

/// Writes a product as wanted over `stored`, which the same transaction loaded.
///
/// # Errors
/// [`CatalogError`]; the transaction is then to be rolled back.
pub async fn product_write_in(
    tx: &mut Transaction,
    stored: Option<&StoredProduct>,
    input: &ProductInput,
    currency: Currency,
    reason: MovementReason,
    now: DateTime<Utc>,
) -> Result<ProductSaved, CatalogError> {
    let input = checked(input)?;
    let old = stored.map(|stored| &stored.input);
    let matches = match_variants(stored, &input);
    let id = stored.map_or_else(|| ProductId::new(now), |stored| stored.id);
    let is_priced = stored.is_none_or(|stored| stored.variants.iter().all(|variant| variant.has_price));
    if let Some(stored) = stored
        && stored.input == input
        && !stored.is_deleted
        && is_priced
    {
        let variants_unchanged = count(input.variants.len());
        return Ok(ProductSaved {
            id,
            outcome: SaveOutcome::Unchanged,
            variants_created: 0,
            variants_updated: 0,
            variants_unchanged,
            variants_removed: 0,
        });
    }
    version_bump(tx).await?;
    let variant_ids: Vec<VariantId> = matches
        .iter()
        .map(|found| stored_variant(stored, *found).map_or_else(|| VariantId::new(now), |v| v.id))
        .collect();

    write_product_row(tx, id, stored, &input, &matches, currency, now).await?;
    if old.map(|old| &old.tags) != Some(&input.tags) {
        write_tags(tx, id, &input.tags).await?;
    }
    if old.map(|old| &old.categories) != Some(&input.categories) {
        write_categories(tx, id, &input.categories).await?;
    }
    let counts = write_variants(tx, id, stored, &input, &matches, &variant_ids, now).await?;
    let has_old_options = old.is_some_and(|old| {
        let values = |product: &ProductInput| product.variants.iter().map(|v| v.options.clone()).collect::<Vec<_>>();
        old.options == input.options && values(old) == values(&input)
    });
    if !has_old_options {
        write_options(tx, id, stored, &input, &variant_ids, now).await?;
    }
    write_prices(tx, stored, &input, &matches, &variant_ids, currency, now).await?;
    write_stock(tx, stored, &input, &matches, &variant_ids, reason, now).await?;
    let is_same_media = old.is_some_and(|old| old.media == input.media)
        && matches.iter().copied().eq((0..).map(Some).take(matches.len()));
    if !is_same_media {
        write_media(tx, id, stored, &input.media, &variant_ids, now).await?;
    }
    // Checkouts that ended between the product's loading and the bump have reserved of what was loaded.
    if stored.is_some() {
        write_availability(tx, id, currency).await?;
    }
    Ok(ProductSaved {
        id,
        outcome: if stored.is_some() { SaveOutcome::Updated } else { SaveOutcome::Created },
        ..counts
    })
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

fn stored_variant(stored: Option<&StoredProduct>, found: Option<usize>) -> Option<StoredVariant> {
    stored?.variants.get(found?).copied()
}

async fn write_product_row(
    tx: &mut Connection,
    id: ProductId,
    stored: Option<&StoredProduct>,
    input: &ProductInput,
    matches: &[Option<usize>],
    currency: Currency,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let published_at = input.is_published.then(|| stored.and_then(|stored| stored.published_at).unwrap_or(now));
    let cheapest = input.variants.iter().min_by_key(|variant| variant.price_minor);
    let dearest = input.variants.iter().map(|variant| variant.price_minor).max();
    let reduced_from = cheapest.and_then(|v| v.compare_at_minor.filter(|before| *before > v.price_minor));
    let any_available = input.variants.iter().zip(matches).any(|(variant, found)| {
        let reserved = stored_variant(stored, *found).map_or(0, |variant| variant.reserved);
        is_available(variant.manages_stock, variant.allows_backorder, variant.stocked, reserved)
    });
    let image = input.media.first();
    let columns: [(&'static str, Expr); 21] = [
        ("title", input.title.as_str().into()),
        ("subtitle", input.subtitle.clone().into()),
        ("description_html", input.description_html.as_str().into()),
        ("vendor", input.vendor.clone().into()),
        ("product_type", input.product_type.clone().into()),
        ("status", input.status.as_str().into()),
        ("published_at", published_at.into()),
        ("seo_title", input.seo_title.clone().into()),
        ("seo_description", input.seo_description.clone().into()),
        ("currency", currency.as_str().into()),
        ("title_sort", sort_key(&input.title).into()),
        ("vendor_key", input.vendor.as_deref().map(fold).into()),
        ("search_text", search_text(input).into()),
        ("price_min_minor", cheapest.map(|variant| variant.price_minor).into()),
        ("price_max_minor", dearest.into()),
        ("compare_at_minor", reduced_from.into()),
        ("image_url", image.map(|image| image.url.clone()).into()),
        ("image_alt", image.and_then(|image| image.alt.clone()).into()),
        ("is_available", any_available.into()),
        ("version", stored.map_or(1, |stored| stored.version + 1).into()),
        ("updated_at", now.into()),
    ];
    if stored.is_some() {
        let update = Query::update()
            .table("products")
            .values(columns)
            .value("deleted_at", Option::<DateTime<Utc>>::None)
            .and_where(Expr::col("id").eq(id.to_string()))
            .take();
        sql::run(tx, &update).await?;
    } else {
        let (mut names, mut values): (Vec<&'static str>, Vec<Expr>) = columns.into_iter().unzip();
        names.extend(["id", "handle", "created_at"]);
        values.extend([id.to_string().into(), input.handle.as_str().into(), now.into()]);
        sql::run(tx, Query::insert().into_table("products").columns(names).values_panic(values)).await?;
    }
    Ok(())
}

/// What a search looks through, in lower case.
fn search_text(input: &ProductInput) -> String {
    let skus = input.variants.iter().filter_map(|variant| variant.sku.as_deref());
    let texts =
        [Some(input.title.as_str()), input.subtitle.as_deref(), input.vendor.as_deref(), input.product_type.as_deref()];
    let all: Vec<&str> = texts.into_iter().flatten().chain(input.tags.iter().map(String::as_str)).chain(skus).collect();
    all.join(" ").chars().flat_map(char::to_lowercase).take(2000).collect()
}
