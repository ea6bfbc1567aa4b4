//! A private PostgreSQL for these tests, and a directory that behaves like master.

pub(crate) mod cluster;
pub(crate) mod directory;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kernel::{Engine, Hostname, ServerId, StoreId, StoreStatus};
use secrecy::SecretString;
use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::{Arguments as _, AssertSqlSafe, Connection as _, Row as _};
use tenancy::query::Kind;
use tenancy::{Credential, DatabaseRoute, Query, Reach, Route, Tenancy, TenancyConfig, TlsMode};
use vault::KeyRing;

use cluster::Cluster;
use directory::{Dir, Master};

/// One server, one fake master, one connection manager, and stores with databases of their own.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) master: Arc<Master>,
    pub(crate) keys: Arc<KeyRing>,
    pub(crate) tenancy: Tenancy<Dir>,
}

#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) id: StoreId,
    pub(crate) host: Hostname,
    pub(crate) credential: Credential,
}

impl World {
    pub(crate) async fn start(config: TenancyConfig) -> Self {
        let cluster = Cluster::shared().await;
        let master = Arc::new(Master::default());
        let keys =
            Arc::new(KeyRing::parse(secrecy::ExposeSecret::expose_secret(&vault::generate_key())).expect("a key"));
        let tenancy = Tenancy::new(Dir(Arc::clone(&master)), Arc::clone(&keys), config);
        Self { cluster, master, keys, tenancy }
    }

    /// A store with a role and a database of its own, marked with its id.
    pub(crate) async fn store(&self) -> Store {
        let name = cluster::unique_name();
        let mut admin = self.cluster.admin("postgres").await;
        run(&mut admin, &format!("create role {name} login password 'first'")).await;
        run(&mut admin, &format!("create database {name} owner {name} template template0")).await;
        let mut inside = self.cluster.admin(&name).await;
        run(&mut inside, &format!("create schema tenantry authorization {name}")).await;
        run(
            &mut inside,
            &format!("create table tenantry.mark (name text); insert into tenantry.mark values ('{name}')"),
        )
        .await;
        run(&mut inside, &format!("alter table tenantry.mark owner to {name}")).await;
        // It would be counted among the store's until the server notices that it went.
        inside.close().await.expect("a good-bye");
        eventually("what made the store is gone", || async { self.backends_in(&name).await == 0 }).await;
        self.add(&self.credential(&name, "first"))
    }

    pub(crate) fn credential(&self, name: &str, password: &str) -> Credential {
        Credential {
            engine: Engine::Postgresql,
            host: "127.0.0.1".into(),
            port: self.cluster.port,
            username: name.into(),
            password: SecretString::from(password),
            database: name.into(),
            tls: TlsMode::Disable,
            ca_pem: None,
        }
    }

    /// A store in master, active, at version 1.
    pub(crate) fn add(&self, credential: &Credential) -> Store {
        self.add_at(None, credential)
    }

    /// As [`World::add`], at a server of ours.
    pub(crate) fn add_at(&self, server: Option<ServerId>, credential: &Credential) -> Store {
        let id = store_id();
        let host =
            Hostname::parse(&format!("{}.example", cluster::unique_name().replace('_', "-"))).expect("a hostname");
        let mut route = self.route(id, credential, 1, 1);
        route.database.as_mut().expect("it has one").server = server;
        self.master.put(&host, route);
        Store { id, host, credential: credential.clone() }
    }

    pub(crate) fn route(&self, id: StoreId, credential: &Credential, version: i64, credential_version: i32) -> Route {
        Route {
            store_id: id,
            status: StoreStatus::Active,
            is_read_only: false,
            version,
            database: Some(DatabaseRoute {
                engine: Engine::Postgresql,
                server: None,
                schema_version: 1,
                sealed: credential.seal(&self.keys, id, credential_version),
                credential_version,
            }),
        }
    }

    pub(crate) async fn lease(&self, store: &Store) -> tenancy::Lease {
        let route = self.tenancy.resolve_host(&store.host).await.expect("the host is known");
        self.tenancy.lease(&route).await.expect("the store is served")
    }

    pub(crate) async fn backends(&self, store: &Store) -> i64 {
        self.backends_in(&store.credential.database).await
    }

    async fn backends_in(&self, database: &str) -> i64 {
        let mut admin = self.cluster.admin("postgres").await;
        count_backends(&mut admin, database).await
    }

    /// Ends every backend of the store, and waits until they are gone.
    pub(crate) async fn kill_backends(&self, store: &Store) {
        let mut admin = self.cluster.admin("postgres").await;
        let name = &store.credential.database;
        run(&mut admin, &format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"))
            .await;
        eventually("killed backends are gone", || async { self.backends(store).await == 0 }).await;
    }
}

pub(crate) fn store_id() -> StoreId {
    StoreId::new(kernel::Clock::now(&kernel::SystemClock))
}

pub(crate) async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.expect(sql);
}

pub(crate) async fn count_backends(admin: &mut PgConnection, database: &str) -> i64 {
    // Not those of the server itself: it vacuums when it likes.
    let sql = format!(
        "select count(*) from pg_stat_activity where datname = '{database}' and backend_type = 'client backend'"
    );
    let row = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(admin).await.expect("the server counts its backends");
    row.try_get::<i64, _>(0).expect("a count")
}

/// Looks again and again until it is so; fails after ten seconds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut look: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !look().await {
        assert!(tokio::time::Instant::now() < deadline, "not within ten seconds: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn read(sql: &'static str) -> Query {
    Query::postgres(Kind::Read, sql, PgArguments::default())
}

pub(crate) fn write(sql: &'static str) -> Query {
    Query::postgres(Kind::Write, sql, PgArguments::default())
}

/// A query that says `number` back, after some time.
pub(crate) fn echo(number: i64, seconds: f64) -> Query {
    let mut arguments = PgArguments::default();
    arguments.add(number).expect("a number");
    arguments.add(seconds).expect("a number");
    Query::postgres(Kind::Read, "select $1::int8 from pg_sleep($2)", arguments)
}

pub(crate) fn quick() -> TenancyConfig {
    TenancyConfig {
        reap_interval: Duration::from_millis(10),
        acquire_timeout: Duration::from_secs(10),
        connect_timeout: Duration::from_secs(10),
        // A busy machine may pause longer than a second between two statements.
        ping_after: Duration::from_secs(60),
        // The server of these tests is at loopback.
        owners_reach: Reach::Anywhere,
        ..TenancyConfig::default()
    }
}
