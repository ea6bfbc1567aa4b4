//! SQL of the prices of services.

use chrono::{DateTime, Utc};
use kernel::CreditPriceId;
use sqlx::PgConnection;

use super::Price;

/// The prices that hold at a moment, of one service or of all.
pub(super) async fn prices(
    conn: &mut PgConnection,
    service: Option<&str>,
    now: DateTime<Utc>,
) -> Result<Vec<Price>, sqlx::Error> {
    sqlx::query_as!(
        Price,
        r#"select distinct on (service) id as "id: CreditPriceId", service, version, name, unit, credits, per, valid_from
           from credit_prices
           where valid_from <= $2 and ($1::text is null or service = $1)
           order by service, valid_from desc, version desc"#,
        service,
        now,
    )
    .fetch_all(conn)
    .await
}

/// Every price that was ever set, newest first.
pub(super) async fn prices_all(conn: &mut PgConnection) -> Result<Vec<Price>, sqlx::Error> {
    sqlx::query_as!(
        Price,
        r#"select id as "id: CreditPriceId", service, version, name, unit, credits, per, valid_from
           from credit_prices
           order by service, version desc
           limit 1000"#,
    )
    .fetch_all(conn)
    .await
}

/// Lets nobody else set a price until the transaction ends; who reads does not wait.
pub(super) async fn prices_lock(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!("lock table credit_prices in share row exclusive mode").execute(conn).await?;
    Ok(())
}

pub(super) async fn price_newest(conn: &mut PgConnection, service: &str) -> Result<Option<Price>, sqlx::Error> {
    sqlx::query_as!(
        Price,
        r#"select id as "id: CreditPriceId", service, version, name, unit, credits, per, valid_from
           from credit_prices
           where service = $1
           order by version desc
           limit 1"#,
        service,
    )
    .fetch_optional(conn)
    .await
}

pub(super) async fn price_insert(
    conn: &mut PgConnection,
    price: &Price,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into credit_prices (id, service, version, name, unit, credits, per, valid_from, created_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        price.id.as_uuid(),
        price.service,
        price.version,
        price.name,
        price.unit,
        price.credits,
        price.per,
        price.valid_from,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}
