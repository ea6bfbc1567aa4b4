//! A store's database in PostgreSQL: a schema of our name, whatever else the database holds.

use kernel::StoreId;
use kernel::ident::quote_literal;
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::{Claim, SCHEMA, SchemaError, SchemaState, is_current};

/// Names the session lock that one migrator at a time holds in a database.
const LOCK_KEY: i64 = 0x7465_6e61_6e74_7279;

pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("../migrations-tenant/postgres");

pub(super) async fn inspect(conn: &mut PgConnection) -> Result<SchemaState, sqlx::Error> {
    let relations: Vec<String> = sqlx::query_scalar(
        "select c.relname::text from pg_catalog.pg_class c
         join pg_catalog.pg_namespace n on n.oid = c.relnamespace
         where n.nspname = $1
         union all
         select p.proname::text from pg_catalog.pg_proc p
         join pg_catalog.pg_namespace n on n.oid = p.pronamespace
         where n.nspname = $1
         union all
         select t.typname::text from pg_catalog.pg_type t
         join pg_catalog.pg_namespace n on n.oid = t.typnamespace
         where n.nspname = $1 and t.typtype in ('d', 'e', 'r')",
    )
    .bind(SCHEMA)
    .fetch_all(&mut *conn)
    .await?;
    let marked = marked_for(conn).await?;
    let has = |name: &str| relations.iter().any(|relation| relation == name);
    if relations.is_empty() {
        return Ok(marked.map_or(SchemaState::Empty, |store| SchemaState::Ours { store: Some(store), version: 0 }));
    }
    if !has("_migrations") {
        return Ok(SchemaState::Foreign);
    }
    let columns: i64 = sqlx::query_scalar(
        "select count(*) from pg_catalog.pg_attribute a
         where a.attrelid = to_regclass('tenantry._migrations') and a.attname in ('version', 'checksum', 'success')",
    )
    .fetch_one(&mut *conn)
    .await?;
    if columns != 3 {
        return Ok(SchemaState::Foreign);
    }
    let version: i64 =
        sqlx::query_scalar("select coalesce(max(version), 0) from tenantry._migrations").fetch_one(&mut *conn).await?;
    if !has("store_identity") {
        // The first migration makes the identity in the same transaction as its own record.
        let is_only_begun = version == 0 && relations.iter().all(|relation| relation.starts_with("_migrations"));
        return Ok(if is_only_begun { SchemaState::Ours { store: marked, version } } else { SchemaState::Foreign });
    }
    let identity: Option<String> = match sqlx::query_scalar(
        "select store_id from tenantry.store_identity where product = 'tenantry' and singleton = 1",
    )
    .fetch_optional(&mut *conn)
    .await
    {
        Ok(identity) => identity,
        Err(error) if is_other_shape(&error) => return Ok(SchemaState::Foreign),
        Err(error) => return Err(error),
    };
    let store = match identity.map(|text| text.parse::<StoreId>()) {
        None => marked,
        Some(Ok(store)) => Some(store),
        Some(Err(_)) => return Ok(SchemaState::Foreign),
    };
    Ok(super::ours(store, version))
}

/// Whether a read failed because the table is not the one that we make (undefined column, wrong types).
fn is_other_shape(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    matches!(code.as_deref(), Some("42703" | "42883" | "42804")) || matches!(error, sqlx::Error::ColumnDecode { .. })
}

/// The store that the schema is marked for.
async fn marked_for(conn: &mut PgConnection) -> Result<Option<StoreId>, sqlx::Error> {
    let comment: Option<String> =
        sqlx::query_scalar("select obj_description(to_regnamespace('tenantry'), 'pg_namespace')")
            .fetch_one(conn)
            .await?;
    Ok(comment.and_then(|comment| super::marked(&comment)))
}

pub(super) async fn drop_locked(conn: &mut PgConnection, store: StoreId) -> Result<bool, SchemaError> {
    let mut tx = conn.begin().await?;
    let is_ours = matches!(inspect(&mut tx).await?, SchemaState::Ours { store: Some(owner), .. } if owner == store);
    if is_ours {
        sqlx::query("drop schema tenantry cascade").execute(&mut *tx).await?;
        tx.commit().await?;
    } else {
        tx.rollback().await?;
    }
    Ok(is_ours)
}

pub(super) async fn tables(conn: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "select c.relname::text from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
         where n.nspname = 'tenantry' and c.relkind in ('r', 'p')",
    )
    .fetch_all(conn)
    .await
}

/// In the words of `parts.txt`. Read from the catalog: the information schema shows a login only what it may use.
pub(super) async fn parts(conn: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "with tables as (
             select c.oid, c.relname::text as name
             from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
             where n.nspname = 'tenantry' and c.relkind in ('r', 'p') and c.relname <> '_migrations'
         )
         select 'table ' || name from tables
         union all
         select concat('column ', a.attname, ' of ', t.name, ': ',
             case y.typname when 'varchar' then 'text(' || a.atttypmod - 4 || ')' when 'timestamptz' then 'time' when 'jsonb' then 'json'
                 when 'int2' then 'smallint' when 'int4' then 'integer' when 'int8' then 'bigint' when 'bool' then 'boolean'
                 else y.typname end,
             case when a.attnotnull then ', not null' end,
             case when a.attgenerated <> '' then ', generated' when a.atthasdef then ', with a default' end)
         from tables t
         join pg_catalog.pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
         join pg_catalog.pg_type y on y.oid = a.atttypid
         union all
         select concat(case when x.indisprimary then 'primary key' else 'index ' || i.relname end, ' of ', t.name, ': ',
             (select string_agg(coalesce(a.attname::text, '(an expression)'), ', ' order by k.at)
              from unnest(x.indkey::int2[]) with ordinality k (number, at)
              left join pg_catalog.pg_attribute a on a.attrelid = t.oid and a.attnum = k.number),
             case when x.indisunique then ', unique' end, case when x.indpred is not null then ', partial' end)
         from tables t
         join pg_catalog.pg_index x on x.indrelid = t.oid and x.indisvalid
         join pg_catalog.pg_class i on i.oid = x.indexrelid
         union all
         select concat('foreign key ', c.conname, ' of ', t.name, ': ', f.name,
             case c.confdeltype when 'c' then ', on delete cascade' when 'n' then ', on delete set null' end)
         from tables t
         join pg_catalog.pg_constraint c on c.conrelid = t.oid and c.contype = 'f'
         join tables f on f.oid = c.confrelid
         union all
         select concat('check ', c.conname, ' of ', t.name)
         from tables t join pg_catalog.pg_constraint c on c.conrelid = t.oid and c.contype = 'c'",
    )
    .fetch_all(conn)
    .await
}

pub(super) async fn migrate_locked(conn: &mut PgConnection, store: Option<StoreId>) -> Result<(), SchemaError> {
    let state = inspect(conn).await?;
    match Claim::of(state, store)? {
        Claim::Create => {
            let mut tx = conn.begin().await?;
            sqlx::query("create schema if not exists tenantry").execute(&mut *tx).await?;
            if let Some(store) = store {
                mark(&mut tx, store).await?;
            }
            tx.commit().await?;
        }
        Claim::Mark(store) => mark(conn, store).await?,
        Claim::Nothing => {}
    }
    if is_current(state) {
        return Ok(());
    }
    // The files name no schema, so that both engines' files read alike: it comes from the path.
    sqlx::query("set search_path = tenantry").execute(&mut *conn).await?;
    let mut migrator = Migrator { migrations: MIGRATIONS.migrations.clone(), ..Migrator::DEFAULT };
    migrator.set_locking(false);
    migrator.dangerous_set_table_name("tenantry._migrations");
    migrator.run_direct(None, &mut *conn, false).await?;
    conn.clear_cached_statements().await?;
    Ok(())
}

/// Writes on the schema whose it is.
async fn mark(conn: &mut PgConnection, store: StoreId) -> Result<(), SchemaError> {
    let mark = quote_literal(&super::mark(store)).expect("an id has no backslash");
    match sqlx::raw_sql(AssertSqlSafe(format!("comment on schema tenantry is {mark}"))).execute(conn).await {
        Ok(_) => Ok(()),
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42501") => Err(SchemaError::NotOwner),
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn try_lock(conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(LOCK_KEY).fetch_one(conn).await
}

pub(super) async fn unlock(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_advisory_unlock($1)").bind(LOCK_KEY).execute(conn).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::MIGRATIONS;

    #[test]
    fn every_file_runs_in_a_transaction_or_says_why_not() {
        for migration in MIGRATIONS.iter().filter(|migration| migration.no_tx) {
            assert!(migration.sql.as_str().contains("concurrently"), "{} needs no exception", migration.version);
        }
    }
}
