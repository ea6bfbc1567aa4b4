//! SQL of packs.

use chrono::{DateTime, Utc};
use kernel::CreditPackId;
use sqlx::PgConnection;

use super::Pack;

/// What is for sale, cheapest first.
pub async fn packs_on_sale(conn: &mut PgConnection) -> Result<Vec<Pack>, sqlx::Error> {
    sqlx::query_as!(
        Pack,
        r#"select id as "id: CreditPackId", code, version, name, credits, bonus_credits, bonus_expires_days, price_minor, currency,
                  tax_code, retired_at
           from credit_packs
           where retired_at is null
           order by price_minor, code"#,
    )
    .fetch_all(conn)
    .await
}

pub async fn pack_find(conn: &mut PgConnection, id: CreditPackId) -> Result<Option<Pack>, sqlx::Error> {
    sqlx::query_as!(
        Pack,
        r#"select id as "id: CreditPackId", code, version, name, credits, bonus_credits, bonus_expires_days, price_minor, currency,
                  tax_code, retired_at
           from credit_packs
           where id = $1"#,
        id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// Every version of every pack, newest first.
pub async fn packs_all(conn: &mut PgConnection) -> Result<Vec<Pack>, sqlx::Error> {
    sqlx::query_as!(
        Pack,
        r#"select id as "id: CreditPackId", code, version, name, credits, bonus_credits, bonus_expires_days, price_minor, currency,
                  tax_code, retired_at
           from credit_packs
           order by code, version desc
           limit 1000"#,
    )
    .fetch_all(conn)
    .await
}

/// Lets nobody else set a pack until the transaction ends; who reads or buys does not wait.
pub async fn packs_lock(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!("lock table credit_packs in share row exclusive mode").execute(conn).await?;
    Ok(())
}

pub async fn pack_newest(conn: &mut PgConnection, code: &str) -> Result<Option<Pack>, sqlx::Error> {
    sqlx::query_as!(
        Pack,
        r#"select id as "id: CreditPackId", code, version, name, credits, bonus_credits, bonus_expires_days, price_minor, currency,
                  tax_code, retired_at
           from credit_packs
           where code = $1
           order by version desc
           limit 1"#,
        code,
    )
    .fetch_optional(conn)
    .await
}

/// Takes what is on sale under a code off it.
pub async fn pack_retire(conn: &mut PgConnection, code: &str, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    sqlx::query!("update credit_packs set retired_at = $2 where code = $1 and retired_at is null", code, now)
        .execute(conn)
        .await?;
    Ok(())
}

pub async fn pack_insert(conn: &mut PgConnection, pack: &Pack, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into credit_packs (id, code, version, name, credits, bonus_credits, bonus_expires_days, price_minor, currency,
            tax_code, created_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        pack.id.as_uuid(),
        pack.code,
        pack.version,
        pack.name,
        pack.credits,
        pack.bonus_credits,
        pack.bonus_expires_days,
        pack.price_minor,
        pack.currency,
        pack.tax_code,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}
