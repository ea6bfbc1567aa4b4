//! SQL of hostnames.

use chrono::{DateTime, Utc};
use kernel::StoreId;
use sqlx::PgConnection;

use super::{HostnameKind, NewHostname};

/// Adds a hostname; one that this store has already is left as it is. False when another store has it.
pub async fn hostname_ensure(
    conn: &mut PgConnection,
    store: StoreId,
    new: &NewHostname,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    sqlx::query!(
        "insert into hostnames (id, store_id, hostname, kind, is_primary, created_at)
         values ($1, $2, $3, $4, $5, $6)
         on conflict on constraint hostnames_hostname_key do nothing",
        new.id.as_uuid(),
        store.as_uuid(),
        new.hostname.as_str(),
        new.kind as HostnameKind,
        new.is_primary,
        now,
    )
    .execute(&mut *conn)
    .await?;
    let owner = sqlx::query_scalar!(
        r#"select store_id as "store_id: StoreId" from hostnames where hostname = $1"#,
        new.hostname.as_str()
    )
    .fetch_optional(conn)
    .await?;
    Ok(owner == Some(store))
}

/// The names of a store, the primary one first.
pub async fn hostnames_of_store(conn: &mut PgConnection, store: StoreId) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(
        "select hostname from hostnames where store_id = $1 order by is_primary desc, id",
        store.as_uuid()
    )
    .fetch_all(conn)
    .await
}
