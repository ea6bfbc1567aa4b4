//! A MariaDB server in a folder of its own, for tests and benches: thrown away after the run.
//!
//! It is set up as badly as an owner's may be: latin1, a lax SQL mode, another time zone. What works here depends on no
//! setting of the server's.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, MySqlConnection};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::folder::{self, Folder};
use crate::postgres::Profile;
use crate::supervise::{Ending, Watchdog, env};
use crate::{ServerError, ports};

/// Our administrator; `root` gets in by the operating system's word only.
const ADMIN: &str = "tenantry";
/// What the server shows of itself, once it was given it.
const CERTIFICATE: &str = "server.crt";
const KEY: &str = "server.key";
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A server that answers. Dropped without [`stop`](MariaDb::stop) it is shut down all the same, but nobody waits for it.
pub struct MariaDb {
    folder: Folder,
    profile: Profile,
    max_connections: u32,
    /// Further options of the server's, as on its command line.
    options: Vec<String>,
    password: String,
    port: u16,
    watchdog: Option<Watchdog>,
    _lock: File,
}

impl MariaDb {
    /// Starts a server in `dir`, which is made when it does not exist.
    ///
    /// # Errors
    /// When there are no programs, another process uses the folder, the server does not start, or it takes over 60 seconds.
    pub async fn start(dir: &Path, profile: Profile, max_connections: u32) -> Result<Self, ServerError> {
        let deadline = Instant::now() + START_LIMIT;
        let folder = Folder::open(dir, "mysql")?;
        let lock = folder.try_own()?.ok_or(ServerError::NotOwner)?;
        let log = folder::own_log(&folder, "mariadbd").await?;
        install(&folder, &log, deadline).await?;
        let password = folder.password()?;
        let wanted = folder.remembered_port();
        let mut candidates = ports::to_try(wanted, folder::hash_number(&folder.dir));
        let port = candidates.find(|port| ports::is_free(*port)).ok_or_else(ports::none_free)?;
        folder.remember_port(port)?;
        let mut server =
            Self { folder, profile, max_connections, options: Vec::new(), password, port, watchdog: None, _lock: lock };
        server.launch(&log, deadline).await?;
        Ok(server)
    }

    /// A connection string for one of the server's databases, as its administrator. It holds the password.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("mysql://{ADMIN}:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// The administrator's name and password.
    #[must_use]
    pub fn admin(&self) -> (&str, &str) {
        (ADMIN, &self.password)
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's process; none while it is down.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        let text = std::fs::read_to_string(self.folder.dir.join("mysql.pid")).ok()?;
        self.watchdog.as_ref().and_then(|_| text.trim().parse().ok())
    }

    /// The server's log.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.folder.log()
    }

    /// A connection of the administrator, to `database` or to none.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub async fn connect(&self, database: Option<&str>) -> Result<MySqlConnection, sqlx::Error> {
        let options = MySqlConnectOptions::new()
            .host("127.0.0.1")
            .port(self.port)
            .username(ADMIN)
            .password(&self.password)
            .ssl_mode(MySqlSslMode::Disabled)
            .disable_statement_logging();
        let options = match database {
            Some(database) => options.database(database),
            None => options,
        };
        MySqlConnection::connect_with(&options).await
    }

    /// Shows this certificate, with this key, to whoever connects from now on, both as PEM. A server that had none is
    /// started anew.
    ///
    /// # Errors
    /// As [`restart`](MariaDb::restart), and when the files cannot be written or the server does not take them.
    pub async fn present_certificate(&mut self, certificate: &str, key: &str) -> Result<(), ServerError> {
        let had_one = self.folder.dir.join(CERTIFICATE).exists();
        self.folder.write_private(CERTIFICATE, certificate)?;
        self.folder.write_private(KEY, key)?;
        if !had_one {
            return self.restart().await;
        }
        let reloaded = async {
            let mut admin = self.connect(None).await?;
            admin.execute("flush ssl").await?;
            admin.close().await
        };
        reloaded
            .await
            .map_err(|error: sqlx::Error| ServerError::io("showing a certificate")(std::io::Error::other(error)))
    }

    /// Shuts the server down and waits for its end.
    ///
    /// # Errors
    /// When it has not ended after 20 seconds.
    pub async fn stop(mut self) -> Result<(), ServerError> {
        self.go_down(None).await
    }

    /// Takes the server down at once, as a power cut would; [`restart`](MariaDb::restart) brings it back.
    ///
    /// # Errors
    /// When it has not ended after 20 seconds.
    pub async fn kill(&mut self) -> Result<(), ServerError> {
        self.go_down(Some("KILL")).await
    }

    /// Sets further options of the server's, such as `--ssl-cert=cert.pem`, from the next [`restart`](MariaDb::restart) on. A
    /// path that is not absolute begins in the folder of its data.
    pub fn set_options(&mut self, options: &[&str]) {
        self.options = options.iter().map(|&option| option.to_owned()).collect();
    }

    /// Starts the server again, on the same data and port; one that is still up is shut down first.
    ///
    /// # Errors
    /// As [`start`](MariaDb::start), and when the port was taken meanwhile.
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.go_down(None).await?;
        if !ports::is_free(self.port) {
            return Err(ServerError::PortTaken { port: self.port });
        }
        let log = folder::own_log(&self.folder, "mariadbd").await?;
        self.launch(&log, Instant::now() + START_LIMIT).await
    }

    async fn launch(&mut self, log: &File, deadline: Instant) -> Result<(), ServerError> {
        let program = program("mariadbd")?;
        let from = log.metadata().map_or(0, |meta| meta.len());
        let args = self.args()?;
        let mut watchdog = Watchdog::spawn(&program, &args, Ending::BY_TERM, self.folder.run_as.as_ref(), log)
            .map_err(ServerError::io("starting MariaDB"))?;
        let mut pause = Duration::from_millis(10);
        loop {
            if let Ok(Ok(connection)) = timeout(Duration::from_secs(5), self.connect(None)).await {
                // It lets us in: how it likes our leaving is of no interest.
                drop(connection.close().await);
                self.watchdog = Some(watchdog);
                return Ok(());
            }
            if let Some(status) = watchdog.try_ended().map_err(ServerError::io("watching MariaDB"))? {
                let log_tail = folder::tail(&self.folder.log(), from);
                return Err(ServerError::StartFailed { status: status.to_string(), log: self.folder.log(), log_tail });
            }
            if Instant::now() >= deadline {
                let log_tail = folder::tail(&self.folder.log(), from);
                return Err(ServerError::TimedOut { doing: "starting MariaDB", after: START_LIMIT, log_tail });
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(Duration::from_millis(100));
        }
    }

    fn args(&self) -> Result<Vec<OsString>, ServerError> {
        let of_profile: &[&str] = match self.profile {
            Profile::Dev => &["--innodb-flush-log-at-trx-commit=1"],
            // With room for the tables of many stores.
            Profile::Bench => {
                &["--innodb-flush-log-at-trx-commit=1", "--innodb-buffer-pool-size=512M", "--table-open-cache=4000"]
            }
            Profile::Test => {
                &["--innodb-flush-log-at-trx-commit=2", "--innodb-doublewrite=0", "--innodb-flush-method=nosync"]
            }
        };
        let path = |name: &str, path: PathBuf| {
            let mut arg = OsString::from(name);
            arg.push(path);
            arg
        };
        let mut args: Vec<OsString> = vec![
            "--no-defaults".into(),
            path("--datadir=", self.folder.data()),
            // A server that starts clears its temporary folder of tables, whosever they are.
            path("--tmpdir=", self.folder.dir.clone()),
            path("--socket=", self.folder.socket_dir()?.join("mysql.sock")),
            path("--pid-file=", self.folder.dir.join("mysql.pid")),
            path("--init-file=", self.folder.dir.join("admin.sql")),
            format!("--port={}", self.port).into(),
            format!("--max-connections={}", self.max_connections).into(),
        ];
        let fixed = [
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--skip-log-bin",
            "--performance-schema=off",
            "--innodb-log-file-size=8M",
            "--innodb-buffer-pool-size=64M",
            "--innodb-file-per-table=on",
            "--table-open-cache=400",
            // As badly as an owner's may be set up.
            "--character-set-server=latin1",
            "--collation-server=latin1_swedish_ci",
            "--sql-mode=",
            "--default-time-zone=+05:00",
            "--transaction-isolation=SERIALIZABLE",
        ];
        args.extend(fixed.iter().chain(of_profile).map(OsString::from));
        if self.folder.dir.join(CERTIFICATE).exists() {
            args.push(path("--ssl-cert=", self.folder.dir.join(CERTIFICATE)));
            args.push(path("--ssl-key=", self.folder.dir.join(KEY)));
        }
        args.extend(self.options.iter().map(OsString::from));
        Ok(args)
    }

    async fn go_down(&mut self, signal: Option<&str>) -> Result<(), ServerError> {
        let Some(mut watchdog) = self.watchdog.take() else { return Ok(()) };
        if let Some(signal) = signal {
            watchdog.signal(signal).await;
        }
        watchdog.let_go();
        if timeout(STOP_LIMIT, watchdog.ended()).await.is_err() {
            let log_tail = folder::tail(&self.folder.log(), 0);
            return Err(ServerError::TimedOut { doing: "stopping the server", after: STOP_LIMIT, log_tail });
        }
        Ok(())
    }
}

impl fmt::Debug for MariaDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MariaDb").field("dir", &self.folder.dir).field("port", &self.port).finish_non_exhaustive()
    }
}

/// Makes the server's data if there is none: in a folder beside it first, so that a kill leaves no half of it.
async fn install(folder: &Folder, log: &File, deadline: Instant) -> Result<(), ServerError> {
    let data = folder.data();
    if data.exists() {
        return Ok(());
    }
    let half = folder.dir.join("mysql.new");
    if half.exists() {
        fs::remove_dir_all(&half).map_err(ServerError::io(format!("removing {}", half.display())))?;
    }
    folder.renew_password()?;
    let password = folder.password()?;
    // Read at every start, so it bears being run twice. An anonymous user would come before anybody of the same host.
    folder.write_private(
        "admin.sql",
        &format!(
            "delete from mysql.global_priv where user = '';\nflush privileges;\n\
             create or replace user {ADMIN}@'%' identified by '{password}';\n\
             grant all privileges on *.* to {ADMIN}@'%' with grant option;\n"
        ),
    )?;
    let mut datadir = OsString::from("--datadir=");
    datadir.push(&half);
    let mut args: Vec<OsString> = ["--no-defaults", "--auth-root-authentication-method=socket", "--skip-test-db"]
        .into_iter()
        .chain(["--skip-name-resolve", "--innodb-log-file-size=8M"])
        .map(OsString::from)
        .collect();
    args.push(datadir);
    let mut tmpdir = OsString::from("--tmpdir=");
    tmpdir.push(&folder.dir);
    args.push(tmpdir);
    let from = log.metadata().map_or(0, |meta| meta.len());
    let doing = "running mariadb-install-db";
    let mut running =
        Watchdog::spawn(&program("mariadb-install-db")?, &args, Ending::BY_TERM, folder.run_as.as_ref(), log)
            .map_err(ServerError::io(doing))?;
    let Ok(status) = timeout_at(deadline, running.ended()).await else {
        running.signal("KILL").await;
        let log_tail = folder::tail(&folder.log(), from);
        return Err(ServerError::TimedOut { doing, after: START_LIMIT, log_tail });
    };
    let status = status.map_err(ServerError::io(doing))?;
    if !status.success() {
        let output = folder::tail(&folder.log(), from);
        return Err(ServerError::InitFailed { status: status.to_string(), output });
    }
    fs::rename(&half, &data).map_err(ServerError::io(format!("making {}", data.display())))
}

/// Where one of MariaDB's programs is: on `PATH`, or where packages put what is not for everybody's.
fn program(name: &'static str) -> Result<PathBuf, ServerError> {
    let path = env("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/local/sbin", "/usr/bin", "/opt/homebrew/bin", "/usr/local/bin", "/usr/libexec"];
    std::env::split_paths(&path)
        .chain(usual.into_iter().map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .ok_or(ServerError::MariaDbNotFound { missing: name })
}
