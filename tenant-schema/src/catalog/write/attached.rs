//! What is attached to a product: its tags, categories and pictures.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use kernel::{MediaId, ProductId, VariantId};
use sea_query::{Expr, ExprTrait as _, Query};
use tenancy::Connection;

use super::StoredProduct;
use crate::catalog::input::MediaInput;
use crate::catalog::{CatalogError, fold};
use crate::sql;

pub(super) async fn write_tags(tx: &mut Connection, id: ProductId, tags: &[String]) -> Result<(), sqlx::Error> {
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

pub(super) async fn write_categories(
    tx: &mut Connection,
    id: ProductId,
    handles: &[String],
) -> Result<(), CatalogError> {
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

pub(super) async fn write_media(
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

pub(super) async fn delete_of(tx: &mut Connection, table: &'static str, id: ProductId) -> Result<(), sqlx::Error> {
    sql::run(tx, Query::delete().from_table(table).and_where(Expr::col("product_id").eq(id.to_string()))).await?;
    Ok(())
}
