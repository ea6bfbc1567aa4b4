//! What tests share: a server, started once a process and gone with it however it ends, and what stands in its way.

mod pgbouncer;
mod pooler;
mod scripted;

use std::path::PathBuf;

use tokio::sync::OnceCell;

use crate::{MariaDb, Postgres, PostgresOptions, Profile};

pub use pgbouncer::{PgBouncer, PoolMode};
pub use pooler::TransactionPooler;
pub use scripted::ScriptedServer;

static SHARED: OnceCell<Postgres> = OnceCell::const_new();
static SHARED_MARIADB: OnceCell<MariaDb> = OnceCell::const_new();
/// Enough for a test binary that opens pools on many stores at once.
const MAX_CONNECTIONS: u32 = 400;

/// The shared server; the first call starts it, in a folder of this process below the system's temporary one.
///
/// # Panics
/// When it does not start: a test cannot go on without it, and the message says what to do.
pub async fn shared_postgres() -> &'static Postgres {
    SHARED.get_or_init(|| own_postgres("shared")).await
}

/// A server of a test's own, for tests that take servers down or look through all of one. `name` tells the servers of this
/// process apart.
///
/// # Panics
/// As [`shared_postgres`].
pub async fn own_postgres(name: &str) -> Postgres {
    sweep();
    let folder = std::env::temp_dir().join(format!("tenantry-test-{}-{name}", std::process::id()));
    let mut options = PostgresOptions::new(folder, Profile::Test);
    options.bin_dir = bin_dir();
    options.max_connections = MAX_CONNECTIONS;
    // What was committed outlives the server's processes, as tests kill them; it need not outlive the machine.
    options.settings.push(("synchronous_commit".to_owned(), "on".to_owned()));
    Postgres::start(options).await.unwrap_or_else(|error| panic!("the test server did not start: {error}"))
}

/// The shared MariaDB server, as [`shared_postgres`].
///
/// # Panics
/// As [`shared_postgres`].
pub async fn shared_mariadb() -> &'static MariaDb {
    SHARED_MARIADB.get_or_init(|| own_mariadb("mariadb")).await
}

/// As [`own_postgres`].
///
/// # Panics
/// As [`shared_postgres`].
pub async fn own_mariadb(name: &str) -> MariaDb {
    sweep();
    // A PostgreSQL of the same name may run beside it.
    let folder = std::env::temp_dir().join(format!("tenantry-test-{}-my-{name}", std::process::id()));
    MariaDb::start(&folder, Profile::Test, MAX_CONNECTIONS)
        .await
        .unwrap_or_else(|error| panic!("the test server did not start: {error}"))
}

/// Removes what earlier test runs have left: their server went with them, their folder could not.
fn sweep() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix("tenantry-test-").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        let Some(process) = process else { continue };
        if !PathBuf::from(format!("/proc/{process}")).exists()
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            tracing::warn!(%error, "cannot remove {}", entry.path().display());
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "where `cargo xtask test` says that it has put PostgreSQL's programs")]
fn bin_dir() -> Option<PathBuf> {
    std::env::var("PG_BINDIR").ok().filter(|path| !path.is_empty()).map(PathBuf::from)
}
