//! A product's variants: which stored one each wanted one is, their options and their prices.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use kernel::{Currency, OptionId, OptionValueId, PriceId, ProductId, VariantId};
use sea_query::{Expr, ExprTrait as _, OnConflict, Query};
use tenancy::Connection;

use super::attached::delete_of;
use super::{ProductSaved, SaveOutcome, StoredProduct, count};
use crate::catalog::input::{ProductInput, VariantInput};
use crate::sql;

/// For each wanted variant the stored one that it is: by option values where the options have the same names, then by SKU.
pub(super) fn match_variants(stored: Option<&StoredProduct>, input: &ProductInput) -> Vec<Option<usize>> {
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

pub(super) async fn write_variants(
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

pub(super) async fn write_options(
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

pub(super) async fn write_prices(
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
