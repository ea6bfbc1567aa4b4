//! The private PostgreSQL of a test run: started once a process, gone with it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use devkit::Postgres;
use devkit::testing::{own_postgres, shared_mariadb};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::sync::OnceCell;

/// The server that all tests of this process share.
pub struct Cluster {
    postgres: Postgres,
}

static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
static COUNTER: AtomicU32 = AtomicU32::new(0);
const MASTER_TEMPLATE: &str = "it_master_template";

/// The shared server; starts it on the first call.
pub async fn cluster() -> &'static Cluster {
    CLUSTER.get_or_init(|| Cluster::start("shared")).await
}

/// A server for one test that takes it down, or looks at everything that is on it. It stays until the test program ends:
/// make few.
pub async fn own_cluster(name: &str) -> &'static mut Cluster {
    Box::leak(Box::new(Cluster::start(name).await))
}

impl Cluster {
    async fn start(name: &str) -> Self {
        let postgres = own_postgres(name).await;
        let cluster = Self { postgres };
        cluster.make_master_template().await;
        cluster
    }

    /// Makes this server a standby of `primary`, in place of whatever it held. Its administrator's password becomes that of both.
    pub async fn follow(&mut self, primary: &Self) {
        let (user, password) = self.postgres.superuser();
        let mut admin = primary.admin().await;
        admin.execute(AssertSqlSafe(format!("alter role {user} password '{password}'"))).await.unwrap();
        let programs: String = sqlx::query_scalar("select setting from pg_config where name = 'BINDIR'")
            .fetch_one(&mut admin)
            .await
            .unwrap();
        let (folder, port) = (self.postgres.data_dir().join("pgdata"), primary.port());
        let (folder, password) = (folder.display().to_string(), password.to_owned());
        self.kill().await;
        // By the primary itself, as it is the user whose files they are.
        let copy = format!(
            "copy (select 1) to program 'cat > /dev/null; rm -rf {folder} && PGPASSWORD={password} {programs}/pg_basebackup \
             -h 127.0.0.1 -p {port} -U {user} -D {folder} -R -X stream -c fast'",
            user = self.postgres.superuser().0
        );
        admin.execute(AssertSqlSafe(copy)).await.unwrap();
        self.restart().await;
        admin.close().await.unwrap();
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

    /// Takes the server down at once, as a power cut would.
    pub async fn kill(&mut self) {
        self.postgres.kill().await.unwrap();
    }

    /// Brings it back, on the same port.
    pub async fn restart(&mut self) {
        self.postgres.restart().await.unwrap();
    }

    /// The server itself.
    pub fn postgres(&self) -> &Postgres {
        &self.postgres
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
    pub async fn master(&self) -> TestDatabase {
        self.made("master", &format!("template {MASTER_TEMPLATE}")).await
    }

    /// A database with nothing in it.
    pub async fn empty(&self) -> TestDatabase {
        self.made("empty", "template template0").await
    }

    async fn made(&self, kind: &str, how: &str) -> TestDatabase {
        let database = self.name(kind);
        let mut admin = self.admin().await;
        admin.execute(AssertSqlSafe(format!("create database {database} {how}"))).await.unwrap();
        admin.close().await.unwrap();
        TestDatabase { admin_url: self.url("postgres"), url: self.url(&database), database, role: None }
    }

    /// An empty database with a login of its own, as an owner would bring it.
    pub async fn brought(&self) -> TestDatabase {
        let name = self.name("brought");
        let mut admin = self.admin().await;
        admin
            .execute(AssertSqlSafe(format!("create role {name} login password 'brought-secret-{name}'")))
            .await
            .unwrap();
        admin.execute(AssertSqlSafe(format!("create database {name} owner {name}"))).await.unwrap();
        admin.execute(AssertSqlSafe(format!("revoke connect on database {name} from public"))).await.unwrap();
        admin.close().await.unwrap();
        TestDatabase {
            admin_url: self.url("postgres"),
            url: self.url(&name),
            database: name.clone(),
            role: Some((name, self.port())),
        }
    }

    fn name(&self, kind: &str) -> String {
        format!("it_{kind}_{}", COUNTER.fetch_add(1, Ordering::SeqCst))
    }
}

/// A database of one test, dropped with it.
pub struct TestDatabase {
    admin_url: String,
    url: String,
    pub database: String,
    /// The login that was made with it, and the port.
    role: Option<(String, u16)>,
}

impl TestDatabase {
    /// How its owner reaches it: the administrator, or the login that was made with it.
    pub fn url(&self) -> String {
        match &self.role {
            Some((role, port)) => {
                format!("postgres://{role}:{}@127.0.0.1:{port}/{}", self.password(), self.database)
            }
            None => self.url.clone(),
        }
    }

    /// The password of the login that was made with it.
    pub fn password(&self) -> String {
        format!("brought-secret-{}", self.database)
    }

    /// The port that the server of its login listens on.
    pub(crate) fn port(&self) -> u16 {
        self.role.as_ref().map(|(_, port)| *port).expect("only one that is brought is asked for it")
    }

    /// A connection of the administrator to it.
    pub async fn admin(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap_or_else(|error| panic!("cannot connect: {error}"))
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (admin_url, url, database) = (self.admin_url.clone(), self.url.clone(), self.database.clone());
        let role = self.role.clone();
        block_on(async move {
            let mut admin = PgConnection::connect(&admin_url).await?;
            if role.is_none() {
                drop_managed(&mut admin, &url).await?;
            }
            admin.execute(AssertSqlSafe(format!("drop database if exists {database} with (force)"))).await?;
            if let Some((role, _)) = role {
                admin.execute(AssertSqlSafe(format!("drop role if exists {role}"))).await?;
            }
            admin.close().await
        });
    }
}

/// Drops the managed databases that a master knows of, if it is one: on its own server, and on the shared MariaDB.
async fn drop_managed(admin: &mut PgConnection, master_url: &str) -> Result<(), sqlx::Error> {
    let Ok(mut master) = PgConnection::connect(master_url).await else { return Ok(()) };
    let names: Vec<(String, String, String)> =
        sqlx::query_as("select engine, database_name, role_name from store_databases where server_id is not null")
            .fetch_all(&mut master)
            .await
            .unwrap_or_default();
    master.close().await?;
    for (engine, database, role) in names {
        if engine == "mysql" {
            let mut admin = shared_mariadb().await.connect(None).await?;
            admin.execute(AssertSqlSafe(format!("drop user if exists '{role}'@'%'"))).await?;
            admin.execute(AssertSqlSafe(format!("drop database if exists `{database}`"))).await?;
            admin.close().await?;
            continue;
        }
        admin.execute(AssertSqlSafe(format!("drop database if exists \"{database}\" with (force)"))).await?;
        admin.execute(AssertSqlSafe(format!("drop role if exists \"{role}\""))).await?;
    }
    Ok(())
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
