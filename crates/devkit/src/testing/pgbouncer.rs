//! A real PgBouncer before the shared PostgreSQL.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::folder::{self, Folder};
use crate::supervise::{Ending, Watchdog, env};
use crate::{Postgres, ports};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// How PgBouncer deals its server connections out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// A client keeps one for as long as it is connected.
    Session,
    /// A client gets one for each transaction, whichever is free.
    Transaction,
}

/// The pooler, at 127.0.0.1, with two server connections for each database and login. It takes whoever asks for a login's
/// name for that login; the password that it gives to the server is the one that it was started with. Dropping it ends it.
pub struct PgBouncer {
    /// Where it listens.
    pub port: u16,
    _watchdog: Watchdog,
}

impl PgBouncer {
    /// Starts one before `postgres`, for one login.
    ///
    /// # Panics
    /// When it does not start: a test cannot go on without it, and the message says what to do.
    pub async fn start(postgres: &Postgres, mode: PoolMode, login: &str, password: &str) -> Self {
        Self::start_with(postgres, mode, ("*", "trust"), (login, password)).await
    }

    /// Starts one in session mode that knows one database only, and lets the login in with this password only, whatever the
    /// server's is.
    ///
    /// # Panics
    /// As [`PgBouncer::start`].
    pub async fn start_strict(postgres: &Postgres, database: &str, login: &str, password: &str) -> Self {
        Self::start_with(postgres, PoolMode::Session, (database, "scram-sha-256"), (login, password)).await
    }

    async fn start_with(
        postgres: &Postgres,
        mode: PoolMode,
        (database, auth): (&str, &str),
        (login, password): (&str, &str),
    ) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("tenantry-test-{}-pgbouncer-{number}", std::process::id()));
        let folder = Folder::open(&dir, "pgbouncer").unwrap_or_else(|error| panic!("{error}"));
        let port = ports::to_try(None, folder::hash_number(&folder.dir))
            .find(|port| ports::is_free(*port))
            .unwrap_or_else(|| panic!("{}", ports::none_free()));
        let mode = match mode {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
        };
        let users = folder.dir.join("users.txt");
        let config = format!(
            "[databases]\n{database} = host=127.0.0.1 port={}\n\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = {auth}\nauth_file = {}\npool_mode = {mode}\ndefault_pool_size = {}\n\
             max_client_conn = 200\nserver_tls_sslmode = disable\n",
            postgres.port(),
            users.display(),
            if mode == "session" { 20 } else { 2 },
        );
        folder.write_private("pgbouncer.ini", &config).unwrap_or_else(|error| panic!("{error}"));
        folder
            .write_private("users.txt", &format!("\"{login}\" \"{password}\"\n"))
            .unwrap_or_else(|error| panic!("{error}"));
        let log = folder::own_log(&folder, "pgbouncer").await.unwrap_or_else(|error| panic!("{error}"));
        let args: Vec<OsString> = vec![folder.dir.join("pgbouncer.ini").into()];
        let mut watchdog = Watchdog::spawn(&program(), &args, Ending::BY_TERM, folder.run_as.as_ref(), &log)
            .unwrap_or_else(|error| panic!("pgbouncer does not start: {error}"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            let ended = watchdog.try_ended().ok().flatten();
            let log = folder::tail(&folder.log(), 0);
            assert!(ended.is_none() && Instant::now() < deadline, "pgbouncer did not start ({ended:?}): {log}");
            sleep(Duration::from_millis(10)).await;
        }
        Self { port, _watchdog: watchdog }
    }
}

fn program() -> PathBuf {
    let path = env("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/usr/bin", "/opt/homebrew/bin"].map(PathBuf::from))
        .map(|dir| dir.join("pgbouncer"))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("there is no pgbouncer here: install it, e.g. `apt-get install pgbouncer`"))
}
