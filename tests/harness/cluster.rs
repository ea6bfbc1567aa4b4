//! The private PostgreSQL of a test run: started once a process, gone with it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use devkit::Postgres;
use devkit::testing::shared_postgres;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::sync::OnceCell;

/// The server that all tests of this process share.
pub struct Cluster {
    postgres: &'static Postgres,
}

static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
static COUNTER: AtomicU32 = AtomicU32::new(0);
const MASTER_TEMPLATE: &str = "it_master_template";

/// The shared server; starts it on the first call.
pub async fn cluster() -> &'static Cluster {
    CLUSTER.get_or_init(Cluster::start).await
}

impl Cluster {
    async fn start() -> Self {
        let postgres = shared_postgres().await;
        let cluster = Self { postgres };
        cluster.make_master_template().await;
        cluster
    }

    /// Migrating takes longer than cloning, so every test's master is a clone.
    async fn make_master_template(&self) {
        let mut admin = self.admin().await;
        admin.execute(AssertSqlSafe(format!("create database {MASTER_TEMPLATE}"))).await.unwrap();
        let args = control_plane::config::MasterArgs {
            master_db_url: self.url(MASTER_TEMPLATE).into(),
            master_max_connections: 4,
        };
        control_plane::master::migrate(&args).await.unwrap();
        admin
            .execute(AssertSqlSafe(format!(
                "alter database {MASTER_TEMPLATE} with is_template true allow_connections false"
            )))
            .await
            .unwrap();
        admin.close().await.unwrap();
    }

    /// A URL of the administrator.
    pub fn url(&self, database: &str) -> String {
        self.postgres.url(database)
    }

    /// The port that the server listens on, at 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.postgres.port()
    }

    /// Where the server writes its log.
    pub fn log_file(&self) -> PathBuf {
        self.postgres.log_file()
    }

    /// A connection of the administrator.
    pub async fn admin(&self) -> PgConnection {
        self.connect("postgres").await
    }

    /// A connection of the administrator to `database`.
    pub async fn connect(&self, database: &str) -> PgConnection {
        PgConnection::connect(&self.url(database))
            .await
            .unwrap_or_else(|error| panic!("cannot connect to {database}: {error}"))
    }

    /// A migrated master database for one test.
    pub async fn master(&'static self) -> TestDatabase {
        let database = self.name("master");
        let mut admin = self.admin().await;
        admin.execute(AssertSqlSafe(format!("create database {database} template {MASTER_TEMPLATE}"))).await.unwrap();
        admin.close().await.unwrap();
        TestDatabase { cluster: self, database, role: None }
    }

    /// An empty database with a login of its own, as an owner would bring it.
    pub async fn brought(&'static self) -> TestDatabase {
        let name = self.name("brought");
        let mut admin = self.admin().await;
        admin
            .execute(AssertSqlSafe(format!("create role {name} login password 'brought-secret-{name}'")))
            .await
            .unwrap();
        admin.execute(AssertSqlSafe(format!("create database {name} owner {name}"))).await.unwrap();
        admin.execute(AssertSqlSafe(format!("revoke connect on database {name} from public"))).await.unwrap();
        admin.close().await.unwrap();
        TestDatabase { cluster: self, database: name.clone(), role: Some(name) }
    }

    fn name(&self, kind: &str) -> String {
        format!("it_{kind}_{}", COUNTER.fetch_add(1, Ordering::SeqCst))
    }
}

/// A database of one test, dropped with it.
pub struct TestDatabase {
    cluster: &'static Cluster,
    pub database: String,
    role: Option<String>,
}

impl TestDatabase {
    /// How its owner reaches it: the administrator, or the login that was made with it.
    pub fn url(&self) -> String {
        match &self.role {
            Some(role) => {
                format!("postgres://{role}:{}@127.0.0.1:{}/{}", self.password(), self.cluster.port(), self.database)
            }
            None => self.cluster.url(&self.database),
        }
    }

    /// The password of the login that was made with it.
    pub fn password(&self) -> String {
        format!("brought-secret-{}", self.database)
    }

    /// A connection of the administrator to it.
    pub async fn admin(&self) -> PgConnection {
        self.cluster.connect(&self.database).await
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (url, database, role) = (self.cluster.url("postgres"), self.database.clone(), self.role.clone());
        block_on(async move {
            let mut admin = PgConnection::connect(&url).await?;
            admin.execute(AssertSqlSafe(format!("drop database if exists {database} with (force)"))).await?;
            if let Some(role) = role {
                admin.execute(AssertSqlSafe(format!("drop role if exists {role}"))).await?;
            }
            admin.close().await
        });
    }
}

/// Runs `work` to its end from a place that cannot wait, such as `Drop`; says so when it fails.
pub(crate) fn block_on(work: impl Future<Output = Result<(), sqlx::Error>> + Send + 'static) {
    let done = std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
        runtime.block_on(work)
    })
    .join();
    if !matches!(done, Ok(Ok(()))) {
        eprintln!("cleaning up after a test failed: {done:?}");
    }
}

#[expect(clippy::disallowed_methods, reason = "the one site where the harness reads its environment")]
pub(crate) fn from_environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
