//! A PostgreSQL server in a folder of its own. [`Postgres::start`] tells the story: open the folder, own it or attach to
//! the one who does, clear what a killed server left, make the cluster, start, and wait until it lets us in.

mod binaries;
mod cluster;
mod options;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection};
use tokio::time::{Instant, sleep, timeout};

pub use self::binaries::{Binaries, find_binaries};
use self::cluster::PidFile;
pub use self::options::{PostgresOptions, Profile};
use crate::ServerError;
use crate::folder::{self, Folder};
use crate::ports;
use crate::supervise::{Ending, Watchdog};

/// The cluster's first role.
const SUPERUSER: &str = "postgres";
/// How long a start may take, with everything.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a stop may take: the watchdog kills after fifteen.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A server that answers. Dropped without [`stop`](Postgres::stop) it is shut down all the same, but nobody waits for it.
pub struct Postgres {
    options: PostgresOptions,
    folder: Folder,
    password: String,
    port: u16,
    socket_dir: PathBuf,
    pid: Option<u32>,
    /// Nothing when the server is another's.
    owned: Option<Owned>,
}

/// What only the owner of a server has.
struct Owned {
    binaries: Binaries,
    /// Nothing while the server is down.
    watchdog: Option<Watchdog>,
    /// Held for as long as the server may run.
    _lock: File,
}

impl Postgres {
    /// Starts the server, or attaches to the one that another process of ours runs on the same folder.
    ///
    /// # Errors
    /// When there are no programs, the data is another version's, the server does not start, or it takes over 60 seconds.
    pub async fn start(options: PostgresOptions) -> Result<Postgres, ServerError> {
        let deadline = Instant::now() + START_LIMIT;
        let folder = Folder::open(&options.data_dir, "pgdata")?;
        loop {
            if let Some(lock) = folder.try_own()? {
                return Postgres::start_owned(options, folder, lock, deadline).await;
            }
            // Its owner starts it, runs it, or is about to die: one of the two ways opens.
            if let Some((file, password)) = answering(&folder).await {
                tracing::info!("attached to the PostgreSQL server in {}, port {}", folder.dir.display(), file.port);
                let (port, socket_dir, pid) = (file.port, file.socket_dir, Some(file.pid));
                return Ok(Postgres { options, folder, password, port, socket_dir, pid, owned: None });
            }
            if Instant::now() >= deadline {
                let log_tail = folder::tail(&folder.log(), 0);
                let doing = "waiting for the server that another process starts";
                return Err(ServerError::TimedOut { doing, after: START_LIMIT, log_tail });
            }
            sleep(Duration::from_millis(30)).await;
        }
    }

    /// A connection string for one of the server's databases, as its superuser. It holds the password.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        let database = database.bytes().fold(String::new(), |mut encoded, byte| {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(char::from(byte)),
                _ => encoded.push_str(&format!("%{byte:02X}")),
            }
            encoded
        });
        format!("postgres://{SUPERUSER}:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// The superuser's name and password.
    #[must_use]
    pub fn superuser(&self) -> (&str, &str) {
        (SUPERUSER, &self.password)
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the server's Unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// The folder that everything is in: the one asked for, unless the server's user could not have reached that.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.folder.dir
    }

    /// The server's log.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.folder.log()
    }

    /// The server's first process; nothing while it is down.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Whether the server is another process's.
    #[must_use]
    pub fn was_attached(&self) -> bool {
        self.owned.is_none()
    }

    /// Shuts the server down, connections or not, and waits for its end. An attached server is left running.
    ///
    /// # Errors
    /// When the server has not ended after 20 seconds.
    pub async fn stop(mut self) -> Result<(), ServerError> {
        if self.owned.is_some() {
            self.go_down(None).await?;
            // The folder below /tmp is worth removing; one that is not empty stays.
            let _ = std::fs::remove_dir(&self.socket_dir);
        }
        Ok(())
    }

    /// Takes the server down at once, as a power cut would: connections break, nothing is written out. For tests of
    /// "server down"; [`restart`](Postgres::restart) brings it back.
    ///
    /// # Errors
    /// When the server is another process's, or has not ended after 20 seconds.
    pub async fn kill(&mut self) -> Result<(), ServerError> {
        self.go_down(Some("QUIT")).await
    }

    /// Starts the server again, on the same data and port; one that is still up is shut down first.
    ///
    /// # Errors
    /// As [`start`](Postgres::start), and when the port was taken meanwhile.
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.go_down(None).await?;
        let Some(owned) = &mut self.owned else { return Err(ServerError::NotOwner) };
        if !ports::is_free(self.port) {
            return Err(ServerError::PortTaken { port: self.port });
        }
        let deadline = Instant::now() + START_LIMIT;
        let log = folder::own_log(&self.folder, "postgres").await?;
        match launch(&self.options, &self.folder, &owned.binaries, &log, self.port, deadline).await? {
            Some(up) => {
                owned.watchdog = Some(up.watchdog);
                self.pid = Some(up.pid);
                Ok(())
            }
            None => Err(ServerError::PortTaken { port: self.port }),
        }
    }

    async fn start_owned(
        options: PostgresOptions,
        folder: Folder,
        lock: File,
        deadline: Instant,
    ) -> Result<Postgres, ServerError> {
        let began = Instant::now();
        let log = folder::own_log(&folder, "postgres").await?;
        let binaries = cluster::choose_binaries(&folder, &options)?;
        cluster::init(&folder, &binaries, options.profile, &log, deadline).await?;
        let password = folder.password()?;
        let wanted = options.port.or_else(|| folder.remembered_port());
        let mut ports = ports::to_try(wanted, folder::hash_number(&folder.dir));
        let (port, up) = loop {
            let Some(port) = ports.find(|port| ports::is_free(*port)) else {
                return Err(ports::none_free());
            };
            if let Some(up) = launch(&options, &folder, &binaries, &log, port, deadline).await? {
                break (port, up);
            }
        };
        if let Some(wanted) = wanted.filter(|wanted| *wanted != port) {
            tracing::warn!("port {wanted} is taken by somebody else: PostgreSQL listens on {port}");
        }
        folder.remember_port(port)?;
        tracing::info!(
            "PostgreSQL {} runs in {}, port {port}, started in {} ms",
            binaries.version,
            folder.dir.display(),
            began.elapsed().as_millis()
        );
        let owned = Some(Owned { binaries, watchdog: Some(up.watchdog), _lock: lock });
        Ok(Postgres { options, folder, password, port, socket_dir: up.socket_dir, pid: Some(up.pid), owned })
    }

    async fn go_down(&mut self, signal: Option<&str>) -> Result<(), ServerError> {
        let Some(owned) = &mut self.owned else { return Err(ServerError::NotOwner) };
        let Some(mut watchdog) = owned.watchdog.take() else { return Ok(()) };
        self.pid = None;
        if let Some(signal) = signal {
            watchdog.signal(signal).await;
        }
        watchdog.let_go();
        if timeout(STOP_LIMIT, watchdog.ended()).await.is_err() {
            let log_tail = folder::tail(&self.folder.log(), 0);
            return Err(ServerError::TimedOut { doing: "stopping the server", after: STOP_LIMIT, log_tail });
        }
        // The last of its processes may outlive the first one by a moment.
        folder::own_log(&self.folder, "postgres").await.map(drop)
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres")
            .field("data_dir", &self.folder.dir)
            .field("port", &self.port)
            .field("pid", &self.pid)
            .field("attached", &self.was_attached())
            .finish_non_exhaustive()
    }
}

/// A server that lets us in.
struct Up {
    watchdog: Watchdog,
    pid: u32,
    socket_dir: PathBuf,
}

/// Starts the server and waits until it lets us in; nothing when somebody else has the port.
async fn launch(
    options: &PostgresOptions,
    folder: &Folder,
    binaries: &Binaries,
    log: &File,
    port: u16,
    deadline: Instant,
) -> Result<Option<Up>, ServerError> {
    let socket_dir = folder.socket_dir()?;
    cluster::clear_stale(&folder.data(), &socket_dir, log)?;
    let from = log.metadata().map_or(0, |meta| meta.len());
    let args = options.server_args(&folder.data(), &socket_dir, port);
    let mut watchdog =
        Watchdog::spawn(&binaries.program("postgres"), &args, Ending::POSTGRES, folder.run_as.as_ref(), log)
            .map_err(ServerError::io("starting PostgreSQL"))?;
    let mut pause = Duration::from_millis(10);
    loop {
        if let Some((file, _)) = answering(folder).await.filter(|(file, _)| file.port == port) {
            return Ok(Some(Up { watchdog, pid: file.pid, socket_dir }));
        }
        if let Some(status) = watchdog.try_ended().map_err(ServerError::io("watching PostgreSQL"))? {
            let log_tail = folder::tail(&folder.log(), from);
            if log_tail.contains("could not create any TCP/IP sockets") {
                return Ok(None);
            }
            return Err(ServerError::StartFailed { status: status.to_string(), log: folder.log(), log_tail });
        }
        if Instant::now() >= deadline {
            let log_tail = folder::tail(&folder.log(), from);
            return Err(ServerError::TimedOut { doing: "starting PostgreSQL", after: START_LIMIT, log_tail });
        }
        sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(100));
    }
}

/// What the folder's server says of itself, if it lets us in and is the folder's.
async fn answering(folder: &Folder) -> Option<(PidFile, String)> {
    let file = PidFile::read(&folder.data()).filter(|file| file.is_ready)?;
    let password = folder.password().ok()?;
    let options = PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(file.port)
        .username(SUPERUSER)
        .password(&password)
        .database("postgres")
        .ssl_mode(PgSslMode::Disable)
        .disable_statement_logging();
    let asked = timeout(Duration::from_secs(5), async {
        let mut connection = PgConnection::connect_with(&options).await?;
        let data_dir: String = sqlx::query_scalar("show data_directory").fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok::<_, sqlx::Error>(data_dir)
    });
    let data_dir = asked.await.ok()?.ok()?;
    (Path::new(&data_dir) == folder.data()).then_some((file, password))
}
