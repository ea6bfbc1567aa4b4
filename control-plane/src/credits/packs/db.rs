//! SQL of packs.

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
