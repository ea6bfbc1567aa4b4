//! Starts one private PostgreSQL for all tests that run at once, and stops it with the last of them.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use tempfile::TempDir;

pub(crate) struct Cluster {
    pub(crate) port: u16,
    server: Mutex<Child>,
    _folder: TempDir,
}

/// A name for a role, a database or a host that no other test has.
pub(crate) fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Cluster {
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let cluster = Arc::new(Self::start());
            *shared = Arc::downgrade(&cluster);
            cluster
        })
    }

    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("tenancy").tempdir().expect("a temporary folder");
        let data = folder.path().join("data");
        let password = folder.path().join("password");
        fs::write(&password, "admin").expect("the folder is writable");
        let account = unprivileged();
        if let Some((uid, gid)) = account {
            for path in [folder.path(), &password] {
                std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("root may give files away");
            }
        }
        let as_user = |program: &str| {
            let mut command = Command::new(programs().join(program));
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir(folder.path());
            if let Some((uid, gid)) = account {
                command.uid(uid).gid(gid);
            }
            command
        };
        // Cleartext passwords on the loopback: hashing them takes long in a debug build.
        let status = as_user("initdb")
            .args(["--username=admin", "--auth=password", "--encoding=UTF8", "--no-locale", "--no-sync"])
            .arg("--pwfile")
            .arg(&password)
            .arg("--pgdata")
            .arg(&data)
            .status();
        assert!(status.expect("initdb runs").success(), "initdb succeeds");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let server = as_user("postgres")
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=127.0.0.1", "-c", &format!("port={port}"), "-c", "max_connections=250"])
            .args(["-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "shared_buffers=32MB", "-c", "jit=off"])
            .args(["-c", "autovacuum=off"])
            .spawn()
            .expect("postgres starts");
        Self { port, server: Mutex::new(server), _folder: folder }
    }

    /// A connection as the superuser; waits for the server to come up.
    pub(crate) async fn admin(&self, database: &str) -> PgConnection {
        let options = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username("admin")
            .password("admin")
            .database(database)
            .ssl_mode(PgSslMode::Disable);
        let mut tries = 0;
        loop {
            match options.connect().await {
                Ok(connection) => return connection,
                Err(error) if tries >= 1000 => panic!("the test server does not come up: {error}"),
                Err(_) => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        drop(server.kill());
        drop(server.wait());
    }
}

/// The highest version that the system has.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").map(Iterator::flatten).into_iter().flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, path)| path.join("postgres").exists())
        .collect();
    found.sort();
    found.pop().map_or_else(PathBuf::new, |(_, path)| path)
}

/// Whom to run the server as when we are root, which it refuses.
fn unprivileged() -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    let is_root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let account = |wanted: &str| {
        let line = accounts.lines().find(|line| line.starts_with(wanted))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    is_root.then(|| account("postgres:").or_else(|| account("nobody:"))).flatten()
}
