//! Writing a product as a whole: its wanted state goes in, and only what differs from the stored one is written.
//!
//! A product that already is as wanted is left alone: its version, its time of change and the catalogue's version stay.
//! Ids survive a write: variants are recognised by their option values, or else by their SKU; options and values by their
//! names; pictures by their address.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use kernel::{Currency, LocationId, MediaId, MovementId, OptionId, OptionValueId, PriceId, ProductId, VariantId};
use sea_query::{Expr, ExprTrait as _, OnConflict, Query};
use tenancy::{Connection, Transaction};

use super::input::{MediaInput, MovementReason, ProductInput, ProductStatus, VariantInput, checked};
use super::product::{is_available, media_of, options_of, tags_of, variant_values_of, variants_of};
use super::{CatalogError, fold, sort_key, version_bump};
use crate::sql;
use crate::stored::Stored;

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

/// For each wanted variant the stored one that it is: by option values where the options have the same names, then by SKU.
fn match_variants(stored: Option<&StoredProduct>, input: &ProductInput) -> Vec<Option<usize>> {
    let Some(old) = stored.map(|stored| &stored.input) else {
        return vec![None; input.variants.len()];
    };
    let mut taken = HashSet::new();
    let has_same_options = old.options == input.options;
    let mut matches: Vec<Option<usize>> = input
        .variants
        .iter()
        .map(|wanted| {
            let found = old.variants.iter().position(|old| has_same_options && old.options == wanted.options);
            found.filter(|at| taken.insert(*at))
        })
        .collect();
    for (wanted, found) in input.variants.iter().zip(&mut matches) {
        if found.is_none() && wanted.sku.is_some() {
            let by_sku = old.variants.iter().enumerate().find(|(at, old)| old.sku == wanted.sku && !taken.contains(at));
            *found = by_sku.map(|(at, _)| at).filter(|at| taken.insert(*at));
        }
    }
    matches
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

async fn write_tags(tx: &mut Connection, id: ProductId, tags: &[String]) -> Result<(), sqlx::Error> {
    delete_of(tx, "product_tags", id).await?;
    if tags.is_empty() {
        return Ok(());
    }
    let rows = tags.iter().map(|tag| [id.to_string().into(), fold(tag).into(), tag.as_str().into()]);
    let insert = Query::insert()
        .into_table("product_tags")
        .columns(["product_id", "tag_key", "tag"])
        .values_from_panic::<[Expr; 3], _>(rows)
        .take();
    sql::run(tx, &insert).await?;
    Ok(())
}

async fn delete_of(tx: &mut Connection, table: &'static str, id: ProductId) -> Result<(), sqlx::Error> {
    sql::run(tx, Query::delete().from_table(table).and_where(Expr::col("product_id").eq(id.to_string()))).await?;
    Ok(())
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

async fn write_categories(tx: &mut Connection, id: ProductId, handles: &[String]) -> Result<(), CatalogError> {
    delete_of(tx, "product_categories", id).await?;
    if handles.is_empty() {
        return Ok(());
    }
    let select = Query::select()
        .columns(["handle", "id"])
        .from("categories")
        .and_where(Expr::col("handle").is_in(handles.iter().map(String::as_str)))
        .take();
    let known: HashMap<String, String> = sql::all::<(String, String)>(tx, &select).await?.into_iter().collect();
    let mut insert =
        Query::insert().into_table("product_categories").columns(["product_id", "category_id", "position"]).take();
    for (position, handle) in (1_i32..).zip(handles) {
        let category = known.get(handle).ok_or_else(|| CatalogError::UnknownCategory { handle: handle.clone() })?;
        insert.values_panic([id.to_string().into(), category.as_str().into(), position.into()]);
    }
    sql::run(tx, &insert).await?;
    Ok(())
}

async fn write_variants(
    tx: &mut Connection,
    id: ProductId,
    stored: Option<&StoredProduct>,
    input: &ProductInput,
    matches: &[Option<usize>],
    variant_ids: &[VariantId],
    now: DateTime<Utc>,
) -> Result<ProductSaved, sqlx::Error> {
    let mut counts = ProductSaved {
        id,
        outcome: SaveOutcome::Updated,
        variants_created: 0,
        variants_updated: 0,
        variants_unchanged: 0,
        variants_removed: 0,
    };
    let old_variants = stored.map_or(&[][..], |stored| &stored.input.variants);
    let kept: HashSet<usize> = matches.iter().flatten().copied().collect();
    let gone =
        stored.into_iter().flat_map(|stored| stored.variants.iter().enumerate()).filter(|(at, _)| !kept.contains(at));
    let gone: Vec<String> = gone.map(|(_, variant)| variant.id.to_string()).collect();
    if !gone.is_empty() {
        counts.variants_removed = count(gone.len());
        sql::run(tx, Query::delete().from_table("product_variants").and_where(Expr::col("id").is_in(gone))).await?;
    }
    // SKUs that change hands within the product would meet each other on the way.
    let moving: Vec<String> = input
        .variants
        .iter()
        .zip(matches)
        .zip(variant_ids)
        .filter(|((wanted, found), _)| {
            found.is_some_and(|at| old_variants[at].sku.is_some() && old_variants[at].sku != wanted.sku)
        })
        .map(|(_, id)| id.to_string())
        .collect();
    if !moving.is_empty() {
        let update = Query::update()
            .table("product_variants")
            .value("sku", Option::<String>::None)
            .and_where(Expr::col("id").is_in(moving))
            .take();
        sql::run(tx, &update).await?;
    }
    let mut insert = Query::insert()
        .into_table("product_variants")
        .columns([
            "id",
            "product_id",
            "created_at",
            "title",
            "sku",
            "barcode",
            "position",
            "weight_grams",
            "requires_shipping",
            "is_taxable",
            "manages_stock",
            "allows_backorder",
            "updated_at",
        ])
        .take();
    for (at, ((wanted, found), variant_id)) in input.variants.iter().zip(matches).zip(variant_ids).enumerate() {
        let position = i32::try_from(at + 1).unwrap_or(i32::MAX);
        let columns: [(&'static str, Expr); 10] = [
            ("title", variant_title(wanted).into()),
            ("sku", wanted.sku.clone().into()),
            ("barcode", wanted.barcode.clone().into()),
            ("position", position.into()),
            ("weight_grams", wanted.weight_grams.into()),
            ("requires_shipping", wanted.requires_shipping.into()),
            ("is_taxable", wanted.is_taxable.into()),
            ("manages_stock", wanted.manages_stock.into()),
            ("allows_backorder", wanted.allows_backorder.into()),
            ("updated_at", now.into()),
        ];
        match found {
            None => {
                counts.variants_created += 1;
                let head = [variant_id.to_string().into(), id.to_string().into(), now.into()];
                insert.values_panic(head.into_iter().chain(columns.into_iter().map(|(_, value)| value)));
            }
            Some(old_at) => {
                let is_same = old_variants[*old_at] == *wanted;
                if is_same {
                    counts.variants_unchanged += 1;
                } else {
                    counts.variants_updated += 1;
                }
                if !is_same || *old_at != at {
                    let update = Query::update()
                        .table("product_variants")
                        .values(columns)
                        .and_where(Expr::col("id").eq(variant_id.to_string()))
                        .take();
                    sql::run(tx, &update).await?;
                }
            }
        }
    }
    if counts.variants_created > 0 {
        sql::run(tx, &insert).await?;
    }
    Ok(counts)
}

/// What a variant is called where its options are not shown one by one.
fn variant_title(variant: &VariantInput) -> String {
    if variant.options.is_empty() { "Default".to_owned() } else { variant.options.join(" / ") }
}

async fn write_options(
    tx: &mut Connection,
    id: ProductId,
    stored: Option<&StoredProduct>,
    input: &ProductInput,
    variant_ids: &[VariantId],
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    // All anew under their old ids: values and the variants' choices go with the options.
    delete_of(tx, "product_options", id).await?;
    if input.options.is_empty() {
        return Ok(());
    }
    let mut options =
        Query::insert().into_table("product_options").columns(["id", "product_id", "name", "position"]).take();
    let mut values =
        Query::insert().into_table("product_option_values").columns(["id", "option_id", "value", "position"]).take();
    let mut choices = Query::insert()
        .into_table("variant_option_values")
        .columns(["variant_id", "option_id", "option_value_id"])
        .take();
    for (at, name) in input.options.iter().enumerate() {
        let option_id =
            stored.and_then(|stored| stored.option_ids.get(name).copied()).unwrap_or_else(|| OptionId::new(now));
        let position = i32::try_from(at + 1).unwrap_or(i32::MAX);
        options.values_panic([
            option_id.to_string().into(),
            id.to_string().into(),
            name.as_str().into(),
            position.into(),
        ]);
        let mut known: HashMap<&str, OptionValueId> = HashMap::new();
        for (variant, variant_id) in input.variants.iter().zip(variant_ids) {
            let value = variant.options[at].as_str();
            let next = i32::try_from(known.len() + 1).unwrap_or(i32::MAX);
            let value_id = *known.entry(value).or_insert_with(|| {
                let kept = stored.and_then(|s| s.value_ids.get(&(name.clone(), value.to_owned())).copied());
                let value_id = kept.unwrap_or_else(|| OptionValueId::new(now));
                values.values_panic([
                    value_id.to_string().into(),
                    option_id.to_string().into(),
                    value.into(),
                    next.into(),
                ]);
                value_id
            });
            choices.values_panic([
                variant_id.to_string().into(),
                option_id.to_string().into(),
                value_id.to_string().into(),
            ]);
        }
    }
    sql::run(tx, &options).await?;
    sql::run(tx, &values).await?;
    sql::run(tx, &choices).await?;
    Ok(())
}

async fn write_prices(
    tx: &mut Connection,
    stored: Option<&StoredProduct>,
    input: &ProductInput,
    matches: &[Option<usize>],
    variant_ids: &[VariantId],
    currency: Currency,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let mut conflict = OnConflict::columns(["variant_id", "currency", "min_quantity"]);
    conflict.update_columns(["amount_minor", "compare_at_minor"]);
    let mut insert = Query::insert()
        .into_table("prices")
        .columns(["id", "variant_id", "currency", "amount_minor", "compare_at_minor", "min_quantity"])
        .on_conflict(conflict)
        .take();
    let mut is_empty = true;
    for ((wanted, found), variant_id) in input.variants.iter().zip(matches).zip(variant_ids) {
        let price = |variant: &VariantInput| (variant.price_minor, variant.compare_at_minor);
        let is_same = stored.zip(*found).is_some_and(|(stored, at)| {
            stored.variants[at].has_price && price(&stored.input.variants[at]) == price(wanted)
        });
        if !is_same {
            is_empty = false;
            insert.values_panic([
                PriceId::new(now).to_string().into(),
                variant_id.to_string().into(),
                currency.as_str().into(),
                wanted.price_minor.into(),
                wanted.compare_at_minor.into(),
                1_i32.into(),
            ]);
        }
    }
    if !is_empty {
        sql::run(tx, &insert).await?;
    }
    Ok(())
}

async fn write_stock(
    tx: &mut Connection,
    stored: Option<&StoredProduct>,
    input: &ProductInput,
    matches: &[Option<usize>],
    variant_ids: &[VariantId],
    reason: MovementReason,
    now: DateTime<Utc>,
) -> Result<(), CatalogError> {
    let mut conflict = OnConflict::columns(["variant_id", "location_id"]);
    conflict.update_columns(["stocked", "allows_backorder", "updated_at"]);
    let mut levels = Query::insert()
        .into_table("inventory_levels")
        .columns(["variant_id", "location_id", "stocked", "reserved", "allows_backorder", "updated_at"])
        .on_conflict(conflict)
        .take();
    let mut movements = Query::insert()
        .into_table("inventory_movements")
        .columns(["id", "variant_id", "location_id", "delta", "reason", "created_at"])
        .take();
    let mut changed: Vec<(&VariantInput, Option<&VariantInput>, VariantId)> = Vec::new();
    for ((wanted, found), variant_id) in input.variants.iter().zip(matches).zip(variant_ids) {
        let old = stored.zip(*found).map(|(stored, at)| &stored.input.variants[at]);
        let level = |variant: &VariantInput| (variant.stocked, variant.allows_backorder);
        if old.is_none_or(|old| level(old) != level(wanted)) {
            changed.push((wanted, old, *variant_id));
        }
    }
    if changed.is_empty() {
        return Ok(());
    }
    // Checkouts lock levels in the order of their ids; so does this.
    changed.sort_by_key(|(_, _, id)| *id);
    let location = default_location(tx).await?;
    let mut any_movement = false;
    for (wanted, old, variant_id) in changed {
        levels.values_panic([
            variant_id.to_string().into(),
            location.to_string().into(),
            wanted.stocked.into(),
            0_i64.into(),
            wanted.allows_backorder.into(),
            now.into(),
        ]);
        let delta = wanted.stocked - old.map_or(0, |old| old.stocked);
        if delta != 0 {
            any_movement = true;
            movements.values_panic([
                MovementId::new(now).to_string().into(),
                variant_id.to_string().into(),
                location.to_string().into(),
                delta.into(),
                reason.as_str().into(),
                now.into(),
            ]);
        }
    }
    sql::run(tx, &levels).await?;
    if any_movement {
        sql::run(tx, &movements).await?;
    }
    Ok(())
}

/// The place that holds the store's stock.
async fn default_location(conn: &mut Connection) -> Result<LocationId, CatalogError> {
    let select = Query::select()
        .column("id")
        .from("stock_locations")
        .and_where(Expr::col("default_mark").eq(Expr::cust("1")))
        .take();
    let row: Option<(Stored<LocationId>,)> = sql::optional(conn, &select).await?;
    row.map(|(id,)| id.0).ok_or(CatalogError::Incomplete)
}

async fn write_media(
    tx: &mut Connection,
    id: ProductId,
    stored: Option<&StoredProduct>,
    media: &[MediaInput],
    variant_ids: &[VariantId],
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    delete_of(tx, "product_media", id).await?;
    if media.is_empty() {
        return Ok(());
    }
    let mut ids: Vec<(&str, MediaId)> = stored.map_or_else(Vec::new, |stored| {
        stored.input.media.iter().map(|media| media.url.as_str()).zip(stored.media_ids.iter().copied()).collect()
    });
    let mut insert = Query::insert()
        .into_table("product_media")
        .columns(["id", "product_id", "variant_id", "url", "alt", "position"])
        .take();
    for (position, picture) in (1_i32..).zip(media) {
        let kept = ids.iter().position(|(url, _)| *url == picture.url).map(|at| ids.remove(at).1);
        insert.values_panic([
            kept.unwrap_or_else(|| MediaId::new(now)).to_string().into(),
            id.to_string().into(),
            picture.variant.map(|at| variant_ids[at].to_string()).into(),
            picture.url.as_str().into(),
            picture.alt.clone().into(),
            position.into(),
        ]);
    }
    sql::run(tx, &insert).await?;
    Ok(())
}

/// After stock of these products was reserved: brings `is_available` up to date, and bumps the catalogue's version.
///
/// The version comes first, because transactions queue at it: what is read behind it holds what the one before has sold. A
/// variant that is sold out changes its product's page even where the product stays available.
pub(crate) async fn availability_refresh(
    tx: &mut Transaction,
    products: &[ProductId],
    currency: Currency,
) -> Result<(), sqlx::Error> {
    if products.is_empty() {
        return Ok(());
    }
    version_bump(tx).await?;
    for id in products {
        write_availability(tx, *id, currency).await?;
    }
    Ok(())
}

/// Makes `is_available` agree with the stock, in a transaction that has bumped the catalogue's version before.
async fn write_availability(tx: &mut Transaction, id: ProductId, currency: Currency) -> Result<(), sqlx::Error> {
    let variants = variants_of(tx, id, currency).await?;
    let any = variants.iter().any(|v| is_available(v.manages_stock, v.allows_backorder, v.stocked, v.reserved));
    let update = Query::update()
        .table("products")
        .value("is_available", any)
        .and_where(Expr::col("id").eq(id.to_string()))
        .and_where(Expr::col("is_available").ne(any))
        .take();
    sql::run(tx, &update).await?;
    Ok(())
}
