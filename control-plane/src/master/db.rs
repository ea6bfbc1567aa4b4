//! SQL about the master database itself. Asked in the simple protocol, or before there is a schema, hence checked at run time.

use sqlx::{Executor as _, PgConnection, Row as _};

/// The backend that answers. A prepared probe would itself fail behind the pooler that it looks for.
pub(super) async fn backend_pid(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    sqlx::raw_sql("select pg_backend_pid()").fetch_one(connection).await?.try_get(0)
}

/// The version of the last migration that was applied, and how many were; none before the first.
pub(super) async fn applied(connection: &mut PgConnection) -> Result<Option<(i64, i64)>, sqlx::Error> {
    let found = sqlx::raw_sql("select to_regclass('_sqlx_migrations') is not null").fetch_one(&mut *connection).await?;
    if !found.try_get::<bool, _>(0)? {
        return Ok(None);
    }
    let row = sqlx::raw_sql("select max(version), count(*) from _sqlx_migrations where success")
        .fetch_one(connection)
        .await?;
    let version: Option<i64> = row.try_get(0)?;
    Ok(version.zip(row.try_get(1)?))
}

/// Tries to become the one migrator, for as long as this connection lives.
pub(super) async fn try_lock(connection: &mut PgConnection, key: i64) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(key).fetch_one(connection).await
}

/// Makes the master database of a private server. Master shares that server with the stores, so nobody but its owner may
/// connect to it.
pub(super) async fn master_create(admin: &mut PgConnection) -> Result<(), sqlx::Error> {
    let exists: bool = sqlx::query_scalar("select exists (select from pg_database where datname = 'tenantry_master')")
        .fetch_one(&mut *admin)
        .await?;
    if !exists {
        admin.execute("create database tenantry_master").await?;
    }
    admin.execute("revoke connect on database tenantry_master, postgres, template1 from public").await?;
    Ok(())
}
