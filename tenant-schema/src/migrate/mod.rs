//! Bringing a store's database to the newest schema, and saying what stands in it before anything is touched.
//!
//! Until the seed writes the store's identity, a schema made for a store bears its mark, as a comment: so two stores that
//! are given one database never take it for their own both, and neither drops what the other has begun.
//!
//! Both engines hold the same versions. PostgreSQL takes a file whole or not at all; MySQL commits every statement by
//! itself, so a file holds one there, and one that was begun is taken up again.

mod mysql;
mod parts;
mod postgres;

pub use mysql::is_marked_table;
pub(crate) use parts::oldest_tables;
pub use parts::{PARTS, found_parts, missing_parts};

use std::time::Duration;

use kernel::StoreId;
use sqlx::migrate::MigrateError;
use tenancy::Session;
use tokio::time::Instant;

/// The version that [`migrate`] leads to: that of the last file in `migrations-tenant/`.
pub const LATEST_VERSION: i64 = 20_261_121_000_029;

/// The PostgreSQL schema that everything of ours lives in. In MySQL, which has none, it is the database itself.
pub const SCHEMA: &str = "tenantry";

/// What a mark begins with; the id of its store follows.
const MARK: &str = "tenantry ";

/// How long [`migrate`] waits for another migrator.
const LOCK_LIMIT: Duration = Duration::from_secs(60);

/// What a database holds, seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaState {
    /// In PostgreSQL no schema of our name, or one with nothing in it that bears no store's mark; in MySQL nothing at all.
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
    /// In PostgreSQL a schema of our name that somebody else made; in MySQL anything of somebody else's.
    Foreign,
}

/// Why a database was not migrated.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// What is there belongs to somebody else: nothing was changed.
    #[error("the database holds what is not ours")]
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
pub async fn inspect(session: &mut Session) -> Result<SchemaState, sqlx::Error> {
    match session {
        Session::Postgres(conn) => postgres::inspect(conn).await,
        Session::MySql(conn) => mysql::inspect(conn).await,
    }
}

/// Whether none of our tables is there that a store keeps anything in.
///
/// # Errors
/// What the server or the connection says.
pub async fn is_bare(session: &mut Session) -> Result<bool, sqlx::Error> {
    let there = match session {
        Session::Postgres(conn) => postgres::tables(conn).await?,
        Session::MySql(conn) => mysql::tables(conn).await?,
    };
    Ok(!mysql::our_tables().any(|ours| there.iter().any(|table| table == ours)))
}

/// Brings the database to [`LATEST_VERSION`]. Safe to run twice and by several at once.
///
/// Give it a session of its own, outside every pool, and close that session whatever the outcome: a migration that fails
/// may leave it changed.
///
/// # Errors
/// [`SchemaError`]; nothing is changed unless it is [`SchemaError::Migrate`] or [`SchemaError::Db`].
pub async fn migrate(session: &mut Session) -> Result<(), SchemaError> {
    run(session, None, LOCK_LIMIT).await
}

/// [`migrate`] for one store, in a database that others may be given as well: what no store has begun to use is marked as
/// this one's before anything is put into it, and what another one has is left alone.
///
/// # Errors
/// As [`migrate`]; [`SchemaError::OtherStore`] and [`SchemaError::NotOwner`] as well.
pub async fn migrate_for(session: &mut Session, store: StoreId) -> Result<(), SchemaError> {
    run(session, Some(store), LOCK_LIMIT).await
}

/// [`migrate`] with another limit on the wait for a migrator that is already at work.
///
/// # Errors
/// As [`migrate`].
pub async fn migrate_within(session: &mut Session, lock_limit: Duration) -> Result<(), SchemaError> {
    run(session, None, lock_limit).await
}

async fn run(session: &mut Session, store: Option<StoreId>, lock_limit: Duration) -> Result<(), SchemaError> {
    lock(session, lock_limit).await?;
    let outcome = match session {
        Session::Postgres(conn) => postgres::migrate_locked(conn, store).await,
        Session::MySql(conn) => mysql::migrate_locked(conn, store).await,
    };
    unlock(session, outcome).await
}

/// Drops what is ours with everything in it if it is this store's, by its identity or its mark; true if it was. Migrators are
/// kept out meanwhile. For the session the same holds as for [`migrate`].
///
/// # Errors
/// [`SchemaError::Busy`] and [`SchemaError::Db`]; then nothing was changed in PostgreSQL, and in MySQL what is left is still
/// the store's.
pub async fn drop_schema(session: &mut Session, store: StoreId) -> Result<bool, SchemaError> {
    lock(session, LOCK_LIMIT).await?;
    let outcome = match session {
        Session::Postgres(conn) => postgres::drop_locked(conn, store).await,
        Session::MySql(conn) => mysql::drop_locked(conn, store).await,
    };
    unlock(session, outcome).await
}

/// What has to be written into a database before its files run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// Nothing of ours is there yet.
    Create,
    /// It is ours and no store's, and is to be this one's.
    Mark(StoreId),
    Nothing,
}

impl Claim {
    /// What a migration for `store` may make of a database in this state.
    fn of(state: SchemaState, store: Option<StoreId>) -> Result<Self, SchemaError> {
        match (state, store) {
            (SchemaState::Foreign, _) => Err(SchemaError::Foreign),
            (SchemaState::Newer { version, .. }, _) => Err(SchemaError::Newer { version }),
            (SchemaState::Ours { store: Some(owner), .. }, Some(store)) if owner != store => {
                Err(SchemaError::OtherStore { store: owner })
            }
            (SchemaState::Empty, _) => Ok(Self::Create),
            (SchemaState::Ours { store: None, .. }, Some(store)) => Ok(Self::Mark(store)),
            (SchemaState::Ours { .. }, _) => Ok(Self::Nothing),
        }
    }
}

/// The state of a database that is ours, by what its identity and its records say.
fn ours(store: Option<StoreId>, version: i64) -> SchemaState {
    if version > LATEST_VERSION { SchemaState::Newer { store, version } } else { SchemaState::Ours { store, version } }
}

fn is_current(state: SchemaState) -> bool {
    matches!(state, SchemaState::Ours { version, .. } if version == LATEST_VERSION)
}

/// Whether a schema's comment says that it is a store's.
#[must_use]
pub fn is_mark(comment: &str) -> bool {
    marked(comment).is_some()
}

/// The store that a mark names. A comment of anybody else's is no mark.
fn marked(comment: &str) -> Option<StoreId> {
    comment.strip_prefix(MARK)?.parse().ok()
}

/// What a schema's comment says when it is this store's.
#[must_use]
pub fn mark(store: StoreId) -> String {
    format!("{MARK}{store}")
}

/// Asks for the lock again and again instead of waiting in the server: a session that waits there would keep
/// `create index concurrently` of the one that holds it from ever ending.
async fn lock(session: &mut Session, limit: Duration) -> Result<(), SchemaError> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(10);
    loop {
        let is_locked = match session {
            Session::Postgres(conn) => postgres::try_lock(conn).await?,
            Session::MySql(conn) => mysql::try_lock(conn).await?,
        };
        if is_locked {
            return Ok(());
        }
        if Instant::now() + pause > deadline {
            return Err(SchemaError::Busy);
        }
        let jitter = Duration::from_millis(kernel::random::below(10));
        tokio::time::sleep(pause + jitter).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Gives the lock back; a broken connection gives it back by itself.
async fn unlock<T>(session: &mut Session, outcome: Result<T, SchemaError>) -> Result<T, SchemaError> {
    let unlocked = match session {
        Session::Postgres(conn) => postgres::unlock(conn).await,
        Session::MySql(conn) => mysql::unlock(conn).await,
    };
    let done = outcome?;
    unlocked?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::{LATEST_VERSION, mysql, postgres};

    #[test]
    fn both_engines_have_the_same_versions_and_the_latest_is_that_of_the_last_file() {
        let versions = |files: &sqlx::migrate::Migrator| -> Vec<(i64, String)> {
            files.iter().map(|file| (file.version, file.description.to_string())).collect()
        };
        assert_eq!(versions(&postgres::MIGRATIONS), versions(&mysql::MIGRATIONS));
        assert_eq!(postgres::MIGRATIONS.iter().map(|file| file.version).max(), Some(LATEST_VERSION));
    }
}
