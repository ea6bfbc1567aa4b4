//! Databases that owners bring, of whatever engine, and servers of a test's own to bring them on.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use devkit::MariaDb;
use devkit::testing::own_mariadb;
use kernel::Engine;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::cluster::{Cluster, TestDatabase, from_environment, own_cluster};
use crate::inside::StoreSql;
use crate::mariadb::TestMariaDb;
use crate::wait::{eventually, within};

static CERTIFICATES: AtomicU32 = AtomicU32::new(0);

/// An empty database with a login of its own. Dropped with the test.
pub enum Brought {
    Postgres(TestDatabase),
    MariaDb(TestMariaDb),
}

impl Brought {
    /// On the shared server of this engine; for PostgreSQL on `cluster`.
    pub async fn create(engine: Engine, cluster: &Cluster) -> Self {
        match engine {
            Engine::Mysql => Self::MariaDb(TestMariaDb::create().await),
            _ => Self::Postgres(cluster.brought().await),
        }
    }

    pub fn engine(&self) -> Engine {
        match self {
            Self::Postgres(_) => Engine::Postgresql,
            Self::MariaDb(_) => Engine::Mysql,
        }
    }

    /// The name of the database, and of its login.
    pub fn name(&self) -> &str {
        match self {
            Self::Postgres(database) => &database.database,
            Self::MariaDb(database) => &database.name,
        }
    }

    pub fn password(&self) -> String {
        match self {
            Self::Postgres(database) => database.password(),
            Self::MariaDb(database) => database.password(),
        }
    }

    pub fn port(&self) -> u16 {
        match self {
            Self::Postgres(database) => database.port(),
            Self::MariaDb(database) => database.port(),
        }
    }

    /// How its owner reaches it.
    pub fn url(&self) -> String {
        match self {
            Self::Postgres(database) => database.url(),
            Self::MariaDb(database) => database.url(),
        }
    }

    /// What connects a store to it.
    pub fn body(&self) -> Value {
        json!({ "engine": self.engine(), "connectionString": self.url() })
    }

    /// The same part by part, with further members or others: another port, how much of TLS.
    pub fn fields(&self, more: &Value) -> Value {
        let mut body = json!({ "engine": self.engine(), "host": "127.0.0.1", "port": self.port(),
            "username": self.name(), "password": self.password(), "database": self.name() });
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    }

    /// A connection of the administrator to it, where the store's tables are.
    pub async fn inside(&self) -> StoreSql {
        match self {
            Self::Postgres(database) => StoreSql::of_postgres(database.admin().await).await,
            Self::MariaDb(database) => StoreSql::MySql(database.admin().await),
        }
    }
}

/// A server for one test that takes it down or changes what everybody on it sees. It ends with the test program: make few.
pub enum OwnServer {
    Postgres(&'static mut Cluster),
    MariaDb(Box<MariaDb>),
}

impl OwnServer {
    pub async fn start(engine: Engine, name: &str) -> Self {
        match engine {
            Engine::Mysql => Self::MariaDb(Box::new(own_mariadb(name).await)),
            _ => Self::Postgres(own_cluster(name).await),
        }
    }

    pub fn port(&self) -> u16 {
        match self {
            Self::Postgres(cluster) => cluster.port(),
            Self::MariaDb(server) => server.port(),
        }
    }

    /// The administrator's way to it.
    pub fn url(&self) -> String {
        match self {
            Self::Postgres(cluster) => cluster.url("postgres"),
            Self::MariaDb(server) => server.url("mysql"),
        }
    }

    /// A database on it, as an owner brings it.
    pub async fn brought(&self) -> Brought {
        match self {
            Self::Postgres(cluster) => Brought::Postgres(cluster.brought().await),
            Self::MariaDb(server) => Brought::MariaDb(TestMariaDb::on(server, "all privileges").await),
        }
    }

    /// A connection of the administrator.
    pub async fn admin(&self) -> StoreSql {
        match self {
            Self::Postgres(cluster) => StoreSql::Postgres(cluster.admin().await),
            Self::MariaDb(server) => StoreSql::MySql(server.connect(None).await.unwrap()),
        }
    }

    /// Takes it down at once, as a power cut would.
    pub async fn kill(&mut self) {
        match self {
            Self::Postgres(cluster) => {
                // The tests' servers do not wait for the disk at a commit; what is to survive the kill is written now.
                StoreSql::Postgres(cluster.admin().await).execute("checkpoint").await;
                cluster.kill().await;
            }
            Self::MariaDb(server) => server.kill().await.unwrap(),
        }
    }

    /// Brings it back, on the same port.
    pub async fn restart(&mut self) {
        match self {
            Self::Postgres(cluster) => cluster.restart().await,
            Self::MariaDb(server) => server.restart().await.unwrap(),
        }
    }

    /// Makes it show this certificate, with this key, to whoever connects from now on.
    pub async fn present(&mut self, (certificate, key): &(String, String)) {
        let cluster = match self {
            Self::MariaDb(server) => return server.present_certificate(certificate, key).await.unwrap(),
            Self::Postgres(cluster) => cluster,
        };
        let name = format!("shown-{}", CERTIFICATES.fetch_add(1, Ordering::SeqCst));
        let mut admin = StoreSql::Postgres(cluster.admin().await);
        for (end, text) in [("crt", certificate), ("key", key)] {
            let encoded = BASE64_STANDARD.encode(text);
            admin.execute(&format!("copy (select '{encoded}') to program 'umask 077; base64 -d > {name}.{end}'")).await;
            let setting = if end == "crt" { "ssl_cert_file" } else { "ssl_key_file" };
            admin.execute(&format!("alter system set {setting} = '{name}.{end}'")).await;
        }
        admin.execute("alter system set ssl = on").await;
        admin.execute("select pg_reload_conf()").await;
        admin.close().await;
        let wanted = format!("on {name}.crt");
        eventually("the server has the certificate", || async {
            let mut fresh = StoreSql::Postgres(cluster.admin().await);
            let shown = fresh.texts("select current_setting('ssl') || ' ' || current_setting('ssl_cert_file')").await;
            fresh.close().await;
            (shown == [wanted.as_str()]).then_some(())
        })
        .await;
    }
}

impl Brought {
    /// Fills this empty database with a copy of another's store, made and read in by the engine's own programs, as an owner
    /// would do it.
    pub async fn copy_from(&self, other: &Self) {
        match self {
            Self::Postgres(_) => {
                let binaries = devkit::find_binaries(from_environment("PG_BINDIR").map(PathBuf::from).as_deref());
                let binaries = binaries.unwrap_or_else(|error| panic!("{error}"));
                let mut dump = Command::new(binaries.program("pg_dump"));
                dump.args(["--no-owner", "--no-privileges", "--schema=tenantry"]).arg(other.url());
                let mut restore = Command::new(binaries.program("psql"));
                restore.args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null"]).arg(self.url());
                pipe(dump, restore).await;
            }
            Self::MariaDb(_) => {
                let mut dump = Command::new("mariadb-dump");
                dump.args(other.mariadb_arguments()).args(["--single-transaction", "--skip-lock-tables"]);
                let mut restore = Command::new("mariadb");
                restore.args(self.mariadb_arguments());
                dump.arg(other.name());
                restore.arg(self.name());
                pipe(dump, restore).await;
            }
        }
    }

    fn mariadb_arguments(&self) -> [String; 6] {
        [
            // Whatever the developer's own options say.
            "--no-defaults".to_owned(),
            "--host=127.0.0.1".to_owned(),
            format!("--port={}", self.port()),
            format!("--user={}", self.name()),
            format!("--password={}", self.password()),
            "--default-character-set=utf8mb4".to_owned(),
        ]
    }
}

/// Gives what one program writes to the other; both must succeed.
async fn pipe(mut from: Command, mut to: Command) {
    let dumped = within("a dump", from.stdin(Stdio::null()).stderr(Stdio::inherit()).output()).await.unwrap();
    assert!(dumped.status.success(), "the dump failed");
    let mut reading = to.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = reading.stdin.take().unwrap();
    input.write_all(&dumped.stdout).await.unwrap();
    drop(input);
    let read = within("reading a dump in", reading.wait()).await.unwrap();
    assert!(read.success(), "the dump could not be read in");
}
