//! Bringing a store's database to the newest schema, and saying what stands in it before anything is touched.
//!
//! Until the seed writes the store's identity, a schema made for a store bears its mark, as a comment: so two stores that
//! are given one database never take it for their own both, and neither drops what the other has begun.

use std::time::Duration;

use kernel::StoreId;
use kernel::ident::quote_literal;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

/// The version that [`migrate`] leads to: that of the last file in `migrations-tenant/`.
pub const LATEST_VERSION: i64 = 20_261_121_000_029;

/// The PostgreSQL schema that everything of ours lives in.
pub const SCHEMA: &str = "tenantry";

/// What a mark begins with; the id of its store follows.
const MARK: &str = "tenantry ";

/// Names the session lock that one migrator at a time holds in a database.
const LOCK_KEY: i64 = 0x7465_6e61_6e74_7279;

/// How long [`migrate`] waits for another migrator.
const LOCK_LIMIT: Duration = Duration::from_secs(60);

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations-tenant/postgres");

/// What a database holds, seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaState {
    /// No schema of our name, or one with nothing in it that bears no store's mark.
    Empty,
    /// Ours, at a version that we know. Without a store it was migrated for none and never seeded, as a template is.
    Ours {
        /// Whose it is: by its identity, and before it has one by its mark.
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
    /// Another store has begun to use it: nothing was changed.
    #[error("the database belongs to store {store}")]
    OtherStore {
        /// Whose it is.
        store: StoreId,
    },
    /// The schema is there and another login owns it, so that it cannot be marked: nothing was changed.
    #[error("the schema `tenantry` belongs to another login")]
    NotOwner,
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

/// The store that the schema is marked for. A comment of anybody else's is no mark.
async fn marked_for(conn: &mut PgConnection) -> Result<Option<StoreId>, sqlx::Error> {
    let comment: Option<String> =
        sqlx::query_scalar("select obj_description(to_regnamespace('tenantry'), 'pg_namespace')")
            .fetch_one(conn)
            .await?;
    Ok(comment.and_then(|comment| comment.strip_prefix(MARK)?.parse().ok()))
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

/// [`migrate`] for one store, in a database that others may be given as well: what no store has begun to use is marked as
/// this one's before anything is put into it, and what another one has is left alone.
///
/// # Errors
/// As [`migrate`]; [`SchemaError::OtherStore`] and [`SchemaError::NotOwner`] as well.
pub async fn migrate_for(conn: &mut PgConnection, store: StoreId) -> Result<(), SchemaError> {
    lock(conn, LOCK_LIMIT).await?;
    let outcome = migrate_locked(conn, Some(store)).await;
    unlock(conn, outcome).await
}

/// [`migrate`] with another limit on the wait for a migrator that is already at work.
///
/// # Errors
/// As [`migrate`].
pub async fn migrate_within(conn: &mut PgConnection, lock_limit: Duration) -> Result<(), SchemaError> {
    lock(conn, lock_limit).await?;
    let outcome = migrate_locked(conn, None).await;
    unlock(conn, outcome).await
}

/// Drops the schema with everything in it if it is this store's, by its identity or its mark; true if it was. Migrators are
/// kept out meanwhile. For the connection the same holds as for [`migrate`].
///
/// # Errors
/// [`SchemaError::Busy`] and [`SchemaError::Db`]; then nothing was changed.
pub async fn drop_schema(conn: &mut PgConnection, store: StoreId) -> Result<bool, SchemaError> {
    lock(conn, LOCK_LIMIT).await?;
    let outcome = drop_locked(conn, store).await;
    unlock(conn, outcome).await
}

async fn drop_locked(conn: &mut PgConnection, store: StoreId) -> Result<bool, SchemaError> {
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

async fn migrate_locked(conn: &mut PgConnection, store: Option<StoreId>) -> Result<(), SchemaError> {
    let state = inspect(conn).await?;
    match (state, store) {
        (SchemaState::Foreign, _) => return Err(SchemaError::Foreign),
        (SchemaState::Newer { version, .. }, _) => return Err(SchemaError::Newer { version }),
        (SchemaState::Ours { store: Some(owner), .. }, Some(store)) if owner != store => {
            return Err(SchemaError::OtherStore { store: owner });
        }
        (SchemaState::Empty, store) => {
            let mut tx = conn.begin().await?;
            sqlx::query("create schema if not exists tenantry").execute(&mut *tx).await?;
            if let Some(store) = store {
                mark(&mut tx, store).await?;
            }
            tx.commit().await?;
        }
        (SchemaState::Ours { store: None, .. }, Some(store)) => mark(conn, store).await?,
        (SchemaState::Ours { .. }, _) => {}
    }
    if matches!(state, SchemaState::Ours { version, .. } if version == LATEST_VERSION) {
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
    let mark = quote_literal(&format!("{MARK}{store}")).expect("an id has no backslash");
    match sqlx::raw_sql(AssertSqlSafe(format!("comment on schema tenantry is {mark}"))).execute(conn).await {
        Ok(_) => Ok(()),
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42501") => Err(SchemaError::NotOwner),
        Err(error) => Err(error.into()),
    }
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

/// Gives the lock back; a broken connection gives it back by itself.
async fn unlock<T>(conn: &mut PgConnection, outcome: Result<T, SchemaError>) -> Result<T, SchemaError> {
    let unlocked = sqlx::query("select pg_advisory_unlock($1)").bind(LOCK_KEY).execute(conn).await;
    let done = outcome?;
    unlocked?;
    Ok(done)
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
