//! Stores on the shared test server, leased as in production.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use devkit::testing::{shared_mariadb, shared_postgres};
use kernel::{Currency, Engine, Hostname, StoreId, StoreStatus};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tenancy::{
    Connection, Credential, DatabaseRoute, Directory, DirectoryError, Lease, Reach, Route, Session, Tenancy,
    TenancyConfig, TlsMode, Transaction,
};
use tenant_schema::migrate;
use tenant_schema::seed::{SeedInput, SeedOwner, seed};
use vault::KeyRing;

/// A database of its own on the shared server of its engine.
pub(crate) struct Database {
    engine: Engine,
    credential: Credential,
}

impl Database {
    pub(crate) async fn create(engine: Engine) -> Self {
        let name = format!("t_{}", StoreId::new(now()).to_string().to_lowercase());
        let create = AssertSqlSafe(format!("create database {name}"));
        let (port, (username, password)) = match engine {
            Engine::Postgresql => {
                let server = shared_postgres().await;
                let mut admin = PgConnection::connect(&server.url("postgres")).await.unwrap();
                admin.execute(create).await.unwrap();
                admin.close().await.unwrap();
                (server.port(), server.superuser())
            }
            Engine::Mysql => {
                let server = shared_mariadb().await;
                let mut admin = server.connect(None).await.unwrap();
                admin.execute(create).await.unwrap();
                admin.close().await.unwrap();
                (server.port(), server.admin())
            }
            engine => panic!("there is no test server for {engine}"),
        };
        let credential = Credential {
            engine,
            host: "127.0.0.1".to_owned(),
            port,
            username: username.to_owned(),
            password: password.into(),
            database: name,
            tls: TlsMode::Disable,
            ca_pem: None,
        };
        Self { engine, credential }
    }

    /// A connection of its own, past the connection manager.
    pub(crate) async fn connect(&self) -> Session {
        self.credential.connect(Reach::Anywhere, Duration::from_secs(10)).await.unwrap()
    }

    pub(crate) async fn migrate(&self) {
        let mut session = self.connect().await;
        migrate(&mut session).await.unwrap();
        session.close().await.unwrap();
    }

    /// Runs SQL of the test's own, one statement or several.
    pub(crate) async fn execute(&self, sql: &str) {
        let mut session = self.connect().await;
        run(&mut session, sql).await;
        session.close().await.unwrap();
    }

    /// One number, by SQL of the test's own.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let mut session = self.connect().await;
        let number = match &mut session {
            Session::Postgres(conn) => {
                conn.execute("set search_path = tenantry, public").await.unwrap();
                let sql = AssertSqlSafe(format!("select ({sql})::bigint"));
                sqlx::query_scalar(sql).fetch_one(conn).await.unwrap()
            }
            Session::MySql(conn) => {
                let sql = AssertSqlSafe(format!("select cast(({sql}) as signed)"));
                sqlx::query_scalar(sql).fetch_one(conn).await.unwrap()
            }
        };
        session.close().await.unwrap();
        number
    }
}

/// Runs SQL of the test's own in a session.
pub(crate) async fn run(session: &mut Session, sql: &str) {
    let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
    match session {
        Session::Postgres(conn) => drop(sql.execute(conn).await.unwrap()),
        Session::MySql(conn) => drop(sql.execute(conn).await.unwrap()),
    }
}

#[derive(Clone)]
struct OneStore(Route);

impl Directory for OneStore {
    async fn find_by_hostname(&self, _: &Hostname) -> Result<Option<Route>, DirectoryError> {
        Ok(Some(self.0.clone()))
    }

    async fn find_by_store(&self, _: StoreId) -> Result<Option<Route>, DirectoryError> {
        Ok(Some(self.0.clone()))
    }
}

/// A store on a database of its own, migrated and seeded.
pub(crate) struct Store {
    pub(crate) id: StoreId,
    pub(crate) lease: Lease,
    pub(crate) database: Database,
    _tenancy: Tenancy<OneStore>,
}

impl Store {
    /// With the demo catalogue.
    pub(crate) async fn demo(engine: Engine) -> Self {
        Self::start(engine, true).await
    }

    /// With nothing to sell yet.
    pub(crate) async fn empty(engine: Engine) -> Self {
        Self::start(engine, false).await
    }

    async fn start(engine: Engine, demo: bool) -> Self {
        let store = Self::unseeded(engine).await;
        seed(&store.lease, &store.seed_input(demo), now()).await.unwrap();
        store
    }

    pub(crate) async fn unseeded(engine: Engine) -> Self {
        let database = Database::create(engine).await;
        database.migrate().await;
        let id = StoreId::new(now());
        let ring = Arc::new(KeyRing::parse("test:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap());
        let route = Route {
            store_id: id,
            status: StoreStatus::Active,
            is_read_only: false,
            version: 1,
            database: Some(DatabaseRoute {
                engine,
                server: None,
                schema_version: tenant_schema::LATEST_VERSION,
                sealed: database.credential.seal(&ring, id, 1),
                credential_version: 1,
            }),
        };
        // Patient: some tests ask for many more connections at once than there are.
        let config = TenancyConfig {
            owners_reach: Reach::Anywhere,
            acquire_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            ..TenancyConfig::default()
        };
        let tenancy = Tenancy::new(OneStore(route), ring, config);
        let route = tenancy.resolve_store(id).await.unwrap();
        let lease = tenancy.lease(&route).await.unwrap();
        Self { id, lease, database, _tenancy: tenancy }
    }

    pub(crate) fn seed_input(&self, demo: bool) -> SeedInput {
        SeedInput {
            store_id: self.id,
            name: "Quayside".to_owned(),
            slug: "quayside".to_owned(),
            currency: Currency::USD,
            owner: SeedOwner {
                user_id: "usr_01JD8Q6X5MFKV9T3R0WZ2H4C7N".to_owned(),
                email: "ada@example.com".to_owned(),
                first_name: "Ada".to_owned(),
                last_name: "Lovelace".to_owned(),
            },
            demo,
        }
    }

    pub(crate) async fn conn(&self) -> Connection {
        self.lease.acquire().await.unwrap()
    }

    pub(crate) async fn tx(&self) -> Transaction {
        self.lease.begin().await.unwrap()
    }

    /// One number out of the database, by SQL of the test's own.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        self.database.number(sql).await
    }

    /// Runs SQL of the test's own.
    pub(crate) async fn execute(&self, sql: &str) {
        let path = if self.database.engine == Engine::Postgresql { "set search_path = tenantry; " } else { "" };
        self.database.execute(&format!("{path}{sql}")).await;
    }

    /// How many sessions stand behind another one that has changed the catalogue's version and not committed.
    pub(crate) async fn waiting(&self) -> i64 {
        self.number(match self.database.engine {
            Engine::Postgresql => {
                "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
            }
            // What InnoDB says of its locks is as old as a tenth of a second; what a session is at is told at once.
            _ => {
                "select count(*) from information_schema.processlist
                 where db = database() and id <> connection_id() and info like 'UPDATE%catalog\\_version%'"
            }
        })
        .await
    }

    /// A number that another one follows on when a row changes.
    pub(crate) async fn print(&self) -> i64 {
        const TABLES: [&str; 8] = [
            "products",
            "product_variants",
            "settings",
            "inventory_levels",
            "catalog_version",
            "pages",
            "staff",
            "inventory_movements",
        ];
        let mut session = self.database.connect().await;
        let print = match &mut session {
            Session::Postgres(conn) => {
                let rows = TABLES.map(|table| format!("select t::text from tenantry.{table} t")).join(" union all ");
                let sql = AssertSqlSafe(format!("select sum(hashtext(t::text))::bigint from ({rows}) t"));
                sqlx::query_scalar(sql).fetch_one(conn).await.unwrap()
            }
            Session::MySql(conn) => {
                let sql = AssertSqlSafe(format!("checksum table {}", TABLES.join(", ")));
                let sums: Vec<(String, i64)> = sqlx::query_as(sql).fetch_all(conn).await.unwrap();
                sums.iter().map(|(_, sum)| sum).sum()
            }
        };
        session.close().await.unwrap();
        print
    }
}

/// The tests' one moment.
pub(crate) fn now() -> DateTime<Utc> {
    DateTime::from_timestamp_micros(1_795_000_000_000_000).unwrap()
}

/// A folder beside the repository with files that may be used but not shipped.
pub(crate) fn shared_data(file: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let path = root.parent()?.join("shared/data").join(file);
    path.exists().then_some(path)
}
