//! SQL of ops.

use kernel::{ServerId, StoreId};
use sqlx::PgConnection;
use vault::Sealed;

pub async fn store_of_hostname(conn: &mut PgConnection, hostname: &str) -> Result<Option<StoreId>, sqlx::Error> {
    sqlx::query_scalar!(r#"select store_id as "store_id: StoreId" from hostnames where hostname = $1"#, hostname)
        .fetch_optional(conn)
        .await
}

pub async fn wanted_schema_version(conn: &mut PgConnection, store: StoreId) -> Result<Option<i64>, sqlx::Error> {
    Ok(sqlx::query_scalar!("select wanted_schema_version from stores where id = $1", store.as_uuid())
        .fetch_optional(conn)
        .await?
        .flatten())
}

/// Stores whose last run failed, with the step.
pub async fn runs_failed(conn: &mut PgConnection) -> Result<Vec<(StoreId, String)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select r.store_id as "store_id: StoreId", coalesce(max(s.name) filter (where s.state = 'failed'), 'no step') as "step!"
           from provisioning_runs r
           left join provisioning_steps s on s.run_id = r.id
           where r.state = 'failed'
             and not exists (select from provisioning_runs later where later.store_id = r.store_id and later.id > r.id)
           group by r.store_id
           limit 1000"#,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.store_id, row.step)).collect())
}

/// Database rows of stores that neither serve nor prepare one.
pub async fn databases_without_purpose(conn: &mut PgConnection) -> Result<Vec<StoreId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select s.id as "id: StoreId"
           from stores s
           join store_databases d on d.store_id = s.id
           where s.status in ('pending_database', 'deleted')
           limit 1000"#,
    )
    .fetch_all(conn)
    .await
}

/// A sealed credential at its place.
pub struct SealedRow {
    pub store: StoreId,
    pub server: Option<ServerId>,
    /// Whether the store was prepared, so that its database should answer.
    pub is_prepared: bool,
    pub version: i32,
    pub sealed: Sealed,
}

pub async fn sealed_credentials(conn: &mut PgConnection) -> Result<Vec<SealedRow>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select d.store_id as "store_id: StoreId", d.server_id as "server_id: ServerId", d.credential_version, d.sealed,
                  s.status in ('active', 'suspended', 'maintenance') as "is_prepared!"
           from store_databases d
           join stores s on s.id = d.store_id
           order by d.store_id"#
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let sealed = Sealed::from_bytes(row.sealed).map_err(|error| sqlx::Error::Decode(error.into()))?;
            Ok(SealedRow {
                store: row.store_id,
                server: row.server_id,
                is_prepared: row.is_prepared,
                version: row.credential_version,
                sealed,
            })
        })
        .collect()
}
