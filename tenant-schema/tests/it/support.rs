//! Stores on the shared test server, leased as in production.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use devkit::Postgres;
use devkit::testing::shared_postgres;
use kernel::{Currency, Engine, Hostname, StoreId, StoreStatus};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tenancy::{
    Connection, Credential, DatabaseRoute, Directory, DirectoryError, Lease, Route, Tenancy, TenancyConfig, TlsMode,
    Transaction,
};
use tenant_schema::migrate;
use tenant_schema::seed::{SeedInput, SeedOwner, seed};
use vault::KeyRing;

/// A database of its own on the shared server.
pub(crate) struct Database {
    postgres: &'static Postgres,
    name: String,
}

impl Database {
    pub(crate) async fn create() -> Self {
        let postgres = shared_postgres().await;
        let database = Self { postgres, name: format!("t_{}", StoreId::new(now()).to_string().to_lowercase()) };
        let mut server = database.connect_to("postgres").await;
        server.execute(AssertSqlSafe(format!("create database {}", database.name))).await.unwrap();
        server.close().await.unwrap();
        database
    }

    async fn connect_to(&self, name: &str) -> PgConnection {
        PgConnection::connect(&self.postgres.url(name)).await.unwrap()
    }

    /// A connection of its own, past the connection manager.
    pub(crate) async fn connect(&self) -> PgConnection {
        self.connect_to(&self.name).await
    }

    pub(crate) async fn migrate(&self) {
        let mut conn = self.connect().await;
        migrate(&mut conn).await.unwrap();
        conn.close().await.unwrap();
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
    pub(crate) async fn demo() -> Self {
        Self::start(true).await
    }

    /// With nothing to sell yet.
    pub(crate) async fn empty() -> Self {
        Self::start(false).await
    }

    async fn start(demo: bool) -> Self {
        let store = Self::unseeded().await;
        seed(&store.lease, &store.seed_input(demo), now()).await.unwrap();
        store
    }

    pub(crate) async fn unseeded() -> Self {
        let database = Database::create().await;
        database.migrate().await;
        let id = StoreId::new(now());
        let ring = Arc::new(KeyRing::parse("test:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap());
        let (username, password) = database.postgres.superuser();
        let credential = Credential {
            engine: Engine::Postgresql,
            host: "127.0.0.1".to_owned(),
            port: database.postgres.port(),
            username: username.to_owned(),
            password: password.into(),
            database: database.name.clone(),
            tls: TlsMode::Disable,
            ca_pem: None,
        };
        let route = Route {
            store_id: id,
            status: StoreStatus::Active,
            is_read_only: false,
            version: 1,
            database: Some(DatabaseRoute {
                engine: Engine::Postgresql,
                server: None,
                schema_version: tenant_schema::LATEST_VERSION,
                sealed: credential.seal(&ring, id, 1),
                credential_version: 1,
            }),
        };
        let tenancy = Tenancy::new(OneStore(route), ring, TenancyConfig::default());
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
    pub(crate) async fn number(&self, sql: &'static str) -> i64 {
        let mut conn = self.database.connect().await;
        conn.execute("set search_path = tenantry").await.unwrap();
        let number: i64 = sqlx::query_scalar(sql).fetch_one(&mut conn).await.unwrap();
        conn.close().await.unwrap();
        number
    }

    /// Runs SQL of the test's own.
    pub(crate) async fn execute(&self, sql: &'static str) {
        let mut conn = self.database.connect().await;
        conn.execute("set search_path = tenantry").await.unwrap();
        conn.execute(sql).await.unwrap();
        conn.close().await.unwrap();
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
