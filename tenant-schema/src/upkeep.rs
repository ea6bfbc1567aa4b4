//! What a job does now and then, a bounded batch at a time. Call again while a batch comes back full.

use chrono::{DateTime, Utc};
use sea_query::{Expr, ExprTrait as _, Order, Query};
use tenancy::Connection;

use crate::sql;

/// Takes up to `batch` carts whose time is over out of use. Their rows stay for the owner's statistics.
///
/// # Errors
/// What the server or the connection says.
pub async fn carts_expire(conn: &mut Connection, now: DateTime<Utc>, batch: u64) -> Result<u64, sqlx::Error> {
    let select = Query::select()
        .column("id")
        .from("carts")
        .and_where(Expr::col("status").eq("active"))
        .and_where(Expr::col("expires_at").lte(now))
        .order_by("expires_at", Order::Asc)
        .limit(batch)
        .take();
    let ids: Vec<(String,)> = sql::all(conn, &select).await?;
    if ids.is_empty() {
        return Ok(0);
    }
    // Asked again in the update: a shopper may have come back in between.
    let update = Query::update()
        .table("carts")
        .value("status", "abandoned")
        .value("updated_at", now)
        .and_where(Expr::col("id").is_in(ids.into_iter().map(|(id,)| id)))
        .and_where(Expr::col("status").eq("active"))
        .and_where(Expr::col("expires_at").lte(now))
        .take();
    sql::run(conn, &update).await
}

/// Deletes up to `batch` idempotency keys whose time is over.
///
/// # Errors
/// What the server or the connection says.
pub async fn idempotency_keys_purge(conn: &mut Connection, now: DateTime<Utc>, batch: u64) -> Result<u64, sqlx::Error> {
    let select = Query::select()
        .columns(["scope", "key"])
        .from("idempotency_keys")
        .and_where(Expr::col("expires_at").lte(now))
        .order_by("expires_at", Order::Asc)
        .limit(batch)
        .take();
    let keys: Vec<(String, String)> = sql::all(conn, &select).await?;
    if keys.is_empty() {
        return Ok(0);
    }
    let any = Expr::tuple([Expr::col("scope"), Expr::col("key")]).in_tuples(keys);
    let delete = Query::delete()
        .from_table("idempotency_keys")
        .and_where(any)
        .and_where(Expr::col("expires_at").lte(now))
        .take();
    sql::run(conn, &delete).await
}
