//! The stock of a product's variants, and whether any of them can be bought.

use chrono::{DateTime, Utc};
use kernel::{Currency, LocationId, MovementId, ProductId, VariantId};
use sea_query::{Expr, ExprTrait as _, OnConflict, Query};
use tenancy::{Connection, Transaction};

use super::StoredProduct;
use crate::catalog::input::{MovementReason, ProductInput, VariantInput};
use crate::catalog::product::{is_available, variants_of};
use crate::catalog::{CatalogError, version_bump};
use crate::sql;
use crate::stored::Stored;

pub(super) async fn write_stock(
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
pub(super) async fn write_availability(
    tx: &mut Transaction,
    id: ProductId,
    currency: Currency,
) -> Result<(), sqlx::Error> {
    let variants = variants_of(tx, id, currency).await?;
    let any = variants.iter().any(|v| is_available(v.manages_stock, v.allows_backorder, v.stocked, v.reserved));
    // Read first: where nothing changes, MySQL would wait for whoever has locked the row all the same.
    let of_product = || Expr::col("id").eq(id.to_string());
    let select = Query::select().column("is_available").from("products").and_where(of_product()).take();
    let listed: Option<(bool,)> = sql::optional(tx, &select).await?;
    if listed.is_some_and(|(listed,)| listed != any) {
        sql::run(tx, Query::update().table("products").value("is_available", any).and_where(of_product())).await?;
    }
    Ok(())
}
