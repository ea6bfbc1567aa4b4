//! The master database: its pool, the check that it is in session mode, and its migrations.

mod db;
pub mod warm;

use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{Acquire as _, ConnectOptions as _, Connection as _, Executor as _, PgConnection, PgPool};

use crate::config::{ConfigError, MasterArgs};

/// Every migration of the master database, compiled in.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../migrations-master");

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection of the pool that was not used for so long is asked whether it lives.
const PING_AFTER: Duration = Duration::from_millis(100);
const PING_LIMIT: Duration = Duration::from_secs(1);
const MIGRATE_LOCK_TIMEOUT: Duration = Duration::from_secs(60);
/// Set after connecting, so that it works behind any proxy; a statement of ours that takes longer is a defect.
const SESSION_SETTINGS: &str = "set statement_timeout = '10s'; set lock_timeout = '5s'; \
     set idle_in_transaction_session_timeout = '30s'; set timezone = 'UTC'";

/// Why the master database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the master database cannot be reached")]
    Unreachable(#[source] sqlx::Error),
    #[error("connecting to the master database took more than {} s", CONNECT_TIMEOUT.as_secs())]
    TimedOut,
    #[error("the master database did not answer for {} s on a connection that was open", PING_TIMEOUT.as_secs())]
    Silent,
    #[error(
        "MASTER_DB_URL leads through a transaction pooler: two open connections share one backend. Use the session mode of the \
         pooler, or the server itself; LISTEN, advisory locks and prepared statements need it"
    )]
    TransactionPooler,
    #[error(
        "the master database has no schema, or an older one (found version {found:?}, wanted {wanted}): run `tenantry migrate master`"
    )]
    NotMigrated { found: Option<i64>, wanted: i64 },
    #[error("tables that a migration changes were in use for {} s", MIGRATE_LOCK_TIMEOUT.as_secs())]
    InUse,
    #[error("another process held the migration lock of the master database for {} s", MIGRATE_LOCK_TIMEOUT.as_secs())]
    Locked,
    #[error("a migration of the master database failed")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

impl MasterError {
    /// Whether it may pass by itself, as when master is down; otherwise somebody has to set something right.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::TimedOut | Self::Silent => true,
            Self::Unreachable(sqlx::Error::Configuration(_) | sqlx::Error::Tls(_)) => false,
            // The login or the database is another one than this server has.
            Self::Unreachable(sqlx::Error::Database(error)) | Self::Db(sqlx::Error::Database(error)) => {
                error.code().is_none_or(|code| !code.starts_with("28") && code != "3D000")
            }
            Self::Unreachable(_) | Self::Db(_) => true,
            Self::Config(_)
            | Self::TransactionPooler
            | Self::NotMigrated { .. }
            | Self::InUse
            | Self::Locked
            | Self::Migrate(_) => false,
        }
    }
}

/// The pool of the master database. Nothing is connected yet.
///
/// # Errors
/// When the URL is no PostgreSQL URL.
pub fn pool(args: &MasterArgs) -> Result<PgPool, MasterError> {
    Ok(PgPoolOptions::new()
        .max_connections(args.master_max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // A round trip before every use would cost as much as most uses; a connection that rested may have been closed.
        .test_before_acquire(false)
        .before_acquire(|connection, meta| Box::pin(async move { Ok(is_alive(connection, meta.idle_for).await) }))
        .after_connect(|connection, _| {
            Box::pin(async move {
                connection.execute(SESSION_SETTINGS).await?;
                Ok(())
            })
        })
        .connect_lazy_with(options(args)?))
}

/// Whether a connection still leads to a server: asked only when it rested for a while.
async fn is_alive(connection: &mut PgConnection, rested: Duration) -> bool {
    rested <= PING_AFTER || tokio::time::timeout(PING_LIMIT, connection.ping()).await.is_ok_and(|ping| ping.is_ok())
}

/// Listens on `channels`, on a connection of its own: the pool's are for requests.
///
/// # Errors
/// When the server is unreachable or answers too slowly.
pub async fn listen(args: &MasterArgs, channels: &[&str]) -> Result<PgListener, MasterError> {
    let one =
        PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None).acquire_timeout(ACQUIRE_TIMEOUT);
    let connecting = async {
        let mut listener = PgListener::connect_with(&one.connect_lazy_with(options(args)?)).await?;
        // Whoever listens has to know of a loss before anything is heard again.
        listener.eager_reconnect(false);
        listener.listen_all(channels.iter().copied()).await?;
        Ok(listener)
    };
    tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| MasterError::TimedOut)?
}

/// Makes the server answer on a listener's connection: waiting for a notification does not show that nobody is there.
///
/// # Errors
/// When it does not answer in time; the listener is then to be dropped.
pub async fn prove_alive(listener: &mut PgListener) -> Result<(), MasterError> {
    let asking = async { listener.acquire().await?.ping().await };
    Ok(tokio::time::timeout(PING_TIMEOUT, asking).await.map_err(|_| MasterError::Silent)??)
}

/// One connection beside the pool, for listening, long locks and migrations.
///
/// # Errors
/// When the server is unreachable or answers too slowly.
pub async fn connect(args: &MasterArgs) -> Result<PgConnection, MasterError> {
    tokio::time::timeout(CONNECT_TIMEOUT, options(args)?.connect())
        .await
        .map_err(|_| MasterError::TimedOut)?
        .map_err(MasterError::Unreachable)
}

fn options(args: &MasterArgs) -> Result<PgConnectOptions, MasterError> {
    let invalid = || ConfigError::Invalid {
        name: "MASTER_DB_URL",
        why: "expected postgres://user:password@host:port/database".to_owned(),
    };
    let text = args.master_db_url.expose_secret();
    // The driver takes any scheme.
    if !["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme)) {
        return Err(invalid().into());
    }
    let options: PgConnectOptions = text.parse().map_err(|_| invalid())?;
    Ok(options.application_name("tenantry").extra_float_digits(None).disable_statement_logging())
}

/// Proves what the process relies on: reachable, in session mode, migrated.
///
/// # Errors
/// Says which of it does not hold.
pub async fn check(args: &MasterArgs) -> Result<(), MasterError> {
    let mut first = connect(args).await?;
    let mut second = connect(args).await?;
    let (one, two) = (db::backend_pid(&mut first).await?, db::backend_pid(&mut second).await?);
    second.close().await?;
    if one == two {
        return Err(MasterError::TransactionPooler);
    }
    let found = db::applied(&mut first).await?.map(|(version, _)| version);
    first.close().await?;
    let wanted = wanted_version();
    // A newer schema is fine: migrations expand before they contract, so an old node serves beside a new one.
    if found.is_some_and(|found| found >= wanted) { Ok(()) } else { Err(MasterError::NotMigrated { found, wanted }) }
}

/// The version that this program was built with.
pub fn wanted_version() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// Applies what is missing; safe to run on several nodes at once. Returns how many migrations were applied.
///
/// The lock is tried, not waited for: PostgreSQL does not finish a concurrent index build while another session waits in an
/// advisory lock. The connection is closed in every outcome, since a failed run leaves sqlx's own lock on it.
///
/// # Errors
/// When a migration fails or another process holds the lock for too long.
pub async fn migrate(args: &MasterArgs) -> Result<usize, MasterError> {
    const LOCK: i64 = 0x7465_6e61_6e74_7279;
    let mut connection = connect(args).await?;
    let deadline = tokio::time::Instant::now() + MIGRATE_LOCK_TIMEOUT;
    loop {
        if db::try_lock(&mut connection, LOCK).await? {
            break;
        }
        if tokio::time::Instant::now() > deadline {
            return Err(MasterError::Locked);
        }
        tokio::time::sleep(Duration::from_millis(100 + kernel::random::below(100))).await;
    }
    let before = applied(&mut connection).await?;
    let outcome = async {
        apply(&mut connection).await?;
        crate::jobs::migrate(args).await.map_err(MasterError::Db)?;
        close_to_others(&mut connection).await?;
        Ok::<_, MasterError>(applied(&mut connection).await? - before)
    }
    .await;
    let closed = connection.close().await;
    let applied = outcome?;
    closed?;
    Ok(applied)
}

/// Applies what is missing. A migration that does not get its locks soon gives up, and is tried again: while it waits,
/// everybody else would wait behind it.
async fn apply(connection: &mut PgConnection) -> Result<(), MasterError> {
    let deadline = tokio::time::Instant::now() + MIGRATE_LOCK_TIMEOUT;
    loop {
        match MIGRATOR.run_direct(None, &mut *connection, false).await {
            Err(error) if is_lock_timeout(&error) => {
                if tokio::time::Instant::now() > deadline {
                    return Err(MasterError::InUse);
                }
                tracing::info!("tables that a migration changes are in use; it is tried again");
                tokio::time::sleep(Duration::from_millis(500 + kernel::random::below(500))).await;
            }
            done => return Ok(done?),
        }
    }
}

fn is_lock_timeout(error: &sqlx::migrate::MigrateError) -> bool {
    use sqlx::migrate::MigrateError::{Execute, ExecuteMigration};
    let (Execute(cause) | ExecuteMigration(cause, _)) = error else { return false };
    cause.as_database_error().is_some_and(|error| error.code().as_deref() == Some("55P03"))
}

/// Whoever else has a login on the server, such as a store whose database is there too, shall not even connect. It is done
/// every time, since a restored database has lost it; to somebody who does not own the database the server only says a
/// warning.
async fn close_to_others(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    connection
        .execute(
            "do $$ begin execute format('revoke connect, temporary on database %I from public', current_database()); end $$",
        )
        .await?;
    Ok(())
}

async fn applied(connection: &mut PgConnection) -> Result<usize, sqlx::Error> {
    let count = db::applied(connection).await?.map_or(0, |(_, count)| count);
    Ok(usize::try_from(count).unwrap_or_default())
}

/// Makes the master database on a private server, of which `admin_url` is the administrator's.
///
/// # Errors
/// When the server refuses.
pub async fn create(admin_url: &SecretString) -> Result<(), MasterError> {
    let mut admin = PgConnection::connect(admin_url.expose_secret()).await.map_err(MasterError::Unreachable)?;
    let made = db::master_create(&mut admin).await;
    admin.close().await?;
    Ok(made?)
}
