//! Bringing a store's database to the newest schema, and saying what stands in it before anything is touched.

use std::time::Duration;

use kernel::StoreId;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Connection as _, PgConnection};

/// The version that [`migrate`] leads to: that of the last file in `migrations-tenant/`.
pub const LATEST_VERSION: i64 = 20_261_121_000_028;

/// The PostgreSQL schema that everything of ours lives in.
pub const SCHEMA: &str = "tenantry";

/// Names the session lock that one migrator at a time holds in a database.
const LOCK_KEY: i64 = 0x7465_6e61_6e74_7279;

/// How long [`migrate`] waits for another migrator.
const LOCK_LIMIT: Duration = Duration::from_secs(60);

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations-tenant/postgres");

/// What a database holds, seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaState {
    /// No schema of our name, or one with nothing in it.
    Empty,
    /// Ours, at a version that we know. Without a store it was migrated but never seeded, as a template is.
    Ours {
        /// Whose it is.
        store: Option<StoreId>,
        /// The version of its schema; 0 before the first migration.
        version: i64,
    },
    /// Ours, but migrated by a later release than this one.
    Newer {
        /// Whose it is.
        store: Option<StoreId>,
        /// The version of its schema.
        version: i64,
    },
    /// A schema of our name that somebody else made.
    Foreign,
}

/// Why a database was not migrated.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The schema of our name belongs to somebody else: nothing was changed.
    #[error("the database has a schema `tenantry` that is not ours")]
    Foreign,
    /// A later release has migrated it: nothing was changed.
    #[error("the database is at version {version}, later than this release knows")]
    Newer {
        /// The version found.
        version: i64,
    },
    /// Another migrator held the lock for the whole time limit.
    #[error("another migration of this database did not end in time")]
    Busy,
    /// A migration failed; what came before it stands.
    #[error("a migration failed")]
    Migrate(#[from] MigrateError),
    /// What the server or the connection says.
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

/// Looks at the database and changes nothing.
///
/// # Errors
/// What the server or the connection says.
pub async fn inspect(conn: &mut PgConnection) -> Result<SchemaState, sqlx::Error> {
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
    let has = |name: &str| relations.iter().any(|relation| relation == name);
    if relations.is_empty() {
        return Ok(SchemaState::Empty);
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
        return Ok(if is_only_begun { SchemaState::Ours { store: None, version } } else { SchemaState::Foreign });
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
        None => None,
        Some(Ok(store)) => Some(store),
        Some(Err(_)) => return Ok(SchemaState::Foreign),
    };
    Ok(if version > LATEST_VERSION {
        SchemaState::Newer { store, version }
    } else {
        SchemaState::Ours { store, version }
    })
}

/// Whether a read failed because the table is not the one that we make (undefined column, wrong types).
fn is_other_shape(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    matches!(code.as_deref(), Some("42703" | "42883" | "42804")) || matches!(error, sqlx::Error::ColumnDecode { .. })
}

/// Brings the database to [`LATEST_VERSION`]. Safe to run twice and by several at once.
///
/// Give it a connection of its own, outside every pool, and close that connection whatever the outcome: a migration that
/// fails may leave the session changed.
///
/// # Errors
/// [`SchemaError`]; nothing is changed unless it is [`SchemaError::Migrate`] or [`SchemaError::Db`].
pub async fn migrate(conn: &mut PgConnection) -> Result<(), SchemaError> {
    migrate_within(conn, LOCK_LIMIT).await
}

/// [`migrate`] with another limit on the wait for a migrator that is already at work.
///
/// # Errors
/// As [`migrate`].
pub async fn migrate_within(conn: &mut PgConnection, lock_limit: Duration) -> Result<(), SchemaError> {
    lock(conn, lock_limit).await?;
    let outcome = migrate_locked(conn).await;
    // A broken connection gives the lock back by itself.
    let unlocked = sqlx::query("select pg_advisory_unlock($1)").bind(LOCK_KEY).execute(&mut *conn).await;
    outcome?;
    unlocked?;
    Ok(())
}

async fn migrate_locked(conn: &mut PgConnection) -> Result<(), SchemaError> {
    match inspect(conn).await? {
        SchemaState::Foreign => return Err(SchemaError::Foreign),
        SchemaState::Newer { version, .. } => return Err(SchemaError::Newer { version }),
        SchemaState::Ours { version, .. } if version == LATEST_VERSION => return Ok(()),
        SchemaState::Empty => {
            sqlx::query("create schema if not exists tenantry").execute(&mut *conn).await?;
        }
        SchemaState::Ours { .. } => {}
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

/// Asks for the lock again and again instead of waiting in the server: a session that waits there would keep
/// `create index concurrently` of the one that holds it from ever ending.
async fn lock(conn: &mut PgConnection, limit: Duration) -> Result<(), SchemaError> {
    let deadline = tokio::time::Instant::now() + limit;
    let mut pause = Duration::from_millis(10);
    loop {
        let is_locked: bool =
            sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(LOCK_KEY).fetch_one(&mut *conn).await?;
        if is_locked {
            return Ok(());
        }
        if tokio::time::Instant::now() + pause > deadline {
            return Err(SchemaError::Busy);
        }
        let jitter = Duration::from_millis(kernel::random::below(10));
        tokio::time::sleep(pause + jitter).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use super::{LATEST_VERSION, MIGRATIONS};

    #[test]
    fn the_latest_version_is_that_of_the_last_file() {
        let last = MIGRATIONS.iter().map(|migration| migration.version).max();
        assert_eq!(last, Some(LATEST_VERSION));
    }

    #[test]
    fn every_file_runs_in_a_transaction_or_says_why_not() {
        for migration in MIGRATIONS.iter().filter(|migration| migration.no_tx) {
            assert!(migration.sql.as_str().contains("concurrently"), "{} needs no exception", migration.version);
        }
    }
}
