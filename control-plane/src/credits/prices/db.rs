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
