//! SQL of idempotency keys.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

/// Claims the key; false when somebody has it. Waits while another transaction is claiming it.
pub(super) async fn insert(
    conn: &mut PgConnection,
    scope: &str,
    key: &str,
    fingerprint: &[u8],
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "insert into idempotency_keys (scope, key, fingerprint, created_at)
         values ($1, $2, $3, $4)
         on conflict on constraint idempotency_keys_pkey do nothing",
        scope,
        key,
        fingerprint,
        now,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn find(
    conn: &mut PgConnection,
    scope: &str,
    key: &str,
) -> Result<Option<(Vec<u8>, Option<serde_json::Value>)>, sqlx::Error> {
    let row =
        sqlx::query!("select fingerprint, response from idempotency_keys where scope = $1 and key = $2", scope, key)
            .fetch_optional(conn)
            .await?;
    Ok(row.map(|row| (row.fingerprint, row.response)))
}

pub(super) async fn complete(
    conn: &mut PgConnection,
    scope: &str,
    key: &str,
    response: serde_json::Value,
) -> Result<(), sqlx::Error> {
    sqlx::query!("update idempotency_keys set response = $3 where scope = $1 and key = $2", scope, key, response)
        .execute(conn)
        .await?;
    Ok(())
}

/// Forgets keys that are older than `before`, in a bounded batch.
pub async fn purge(conn: &mut PgConnection, before: DateTime<Utc>) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "delete from idempotency_keys where (scope, key) in
            (select scope, key from idempotency_keys where created_at < $1 order by created_at limit 1000)",
        before,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}
