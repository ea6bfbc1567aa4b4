//! A node in this process, with a master database of its own.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};

use clap::{Args as _, FromArgMatches as _};
use control_plane::config::Config;
use control_plane::cx::{Cx, OpsCx, Services};
use control_plane::serve::Node;
use devkit::testing::shared_mariadb;
use kernel::{Engine, StoreId};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::brought::Brought;
use crate::client::{Client, Response};
use crate::clock::TestClock;
use crate::cluster::{Cluster, TestDatabase, block_on, cluster};
use crate::inside::StoreSql;
use crate::wait::within;

/// The key that every test node seals with.
pub const ENCRYPTION_KEY: &str = "dGVuYW50cnktdGVzdC1rZXktMzItYnl0ZXMtbG9uZyE=";
pub const JWT_SECRET: &str = "a-secret-of-the-tests-that-is-long-enough";
const PASSWORD: &str = "correct horse battery";

static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

/// What a test sets otherwise than the rest.
#[derive(Debug, Default, Clone)]
pub struct TestAppOptions {
    /// Further options of `tenantry serve`, such as `["--route-ttl-ms", "0"]`.
    pub arguments: Vec<String>,
    /// Whether no database server is registered.
    pub without_server: bool,
}

/// A serving node. Dropping it stops it and drops every database that it has made; a run that was left unfinished fails the
/// test.
pub struct TestApp {
    pub cx: Cx,
    pub address: SocketAddr,
    pub internal_address: SocketAddr,
    pub clock: Arc<TestClock>,
    pub cluster: &'static Cluster,
    pub master: TestDatabase,
    pub engine: Engine,
    may_leave_runs: bool,
}

/// Somebody who is registered and owns an organization.
#[derive(Clone)]
pub struct Owner {
    pub api: Client,
    pub email: String,
    pub password: String,
    pub registered: Value,
    app_address: SocketAddr,
}

impl TestApp {
    pub async fn start() -> Self {
        Self::start_with(TestAppOptions::default()).await
    }

    /// A node whose stores' databases are of this engine.
    pub async fn start_on(engine: Engine) -> Self {
        Self::start_on_with(engine, TestAppOptions::default()).await
    }

    pub async fn start_with(options: TestAppOptions) -> Self {
        Self::start_on_with(Engine::Postgresql, options).await
    }

    /// A node whose registered server, and so every managed store's database, is of this engine.
    pub async fn start_on_with(engine: Engine, options: TestAppOptions) -> Self {
        // Another test may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let cluster = cluster().await;
        let master = cluster.master().await;
        let metrics = METRICS.get_or_init(|| control_plane::telemetry::init_metrics().expect("one recorder")).clone();
        let clock = Arc::new(TestClock::default());
        let config = config(&master.url(), &options.arguments);
        let node = Node::start(config, Arc::<TestClock>::clone(&clock), metrics)
            .await
            .unwrap_or_else(|error| panic!("the node did not start: {error}"));
        let app = Self {
            cx: node.cx,
            address: node.address,
            internal_address: node.internal_address,
            clock,
            cluster,
            master,
            engine,
            may_leave_runs: false,
        };
        if !options.without_server {
            app.add_server("local", 1000).await;
        }
        app
    }

    /// Registers the shared server of the stores' engine as a database server.
    pub async fn add_server(&self, name: &str, max_stores: i32) {
        let url = match self.engine {
            Engine::Mysql => shared_mariadb().await.url("mysql"),
            _ => self.cluster.url("postgres"),
        };
        let new = control_plane::servers::NewServer {
            name: name.to_owned(),
            engine: Some(self.engine),
            url: url.into(),
            ca_pem: None,
            region: None,
            max_stores,
            max_connections: 80,
        };
        control_plane::servers::add(&self.cx, control_plane::audit::Actor::Cli, new).await.unwrap();
    }

    /// Makes master believe that its servers are others than the shared PostgreSQL, so that it can be registered again: the
    /// one that we have plays several. Their credentials go on leading to it.
    pub async fn disguise_servers(&self) {
        sqlx::query("update database_servers set host = name || '.example', system_identifier = null")
            .execute(&mut self.master().await)
            .await
            .unwrap();
    }

    /// Says that this test ends with unfinished runs on purpose.
    pub fn may_leave_runs(&mut self) {
        self.may_leave_runs = true;
    }

    /// Somebody without a token, at the platform.
    pub fn api(&self) -> Client {
        Client::new(self.address, "localhost")
    }

    /// A shopper of the store with this hostname.
    pub fn storefront(&self, hostname: &str) -> Client {
        Client::new(self.address, hostname)
    }

    /// A shopper of a store, as the API describes it.
    pub fn storefront_of(&self, store: &Value) -> Client {
        self.storefront(store["hostname"].as_str().unwrap())
    }

    pub fn internal(&self) -> Client {
        Client::new(self.internal_address, "localhost")
    }

    /// Somebody new, with an organization of their own.
    pub async fn owner(&self, name: &str) -> Owner {
        Owner::register(self.address, name).await
    }

    /// Somebody with the platform role.
    pub async fn admin(&self) -> Owner {
        let owner = self.owner("root").await;
        control_plane::identity::admin_grant(&self.cx, control_plane::audit::Actor::Cli, &owner.email).await.unwrap();
        owner
    }

    /// Waits until the store's last run has ended, and returns it.
    pub async fn run_ended(&self, owner: &Owner, store: &Value) -> Value {
        let mut news = self.cx.run_events.subscribe();
        let path = format!("/api/stores/{}/provisioning", store["id"].as_str().unwrap());
        within("the provisioning run", async {
            loop {
                let run = owner.api.get(&path).await.expect_status(200)["run"].clone();
                if ["succeeded", "failed", "cancelled"].contains(&run["state"].as_str().unwrap()) {
                    return run;
                }
                // A notification that was missed costs a moment.
                let _ = tokio::time::timeout(std::time::Duration::from_millis(250), news.recv()).await;
            }
        })
        .await
    }

    /// A store with a managed database, served, with made-up products.
    pub async fn active_store(&self, owner: &Owner, name: &str) -> Value {
        let store = owner.create_store(name).await.expect_status(201);
        owner.connect(&store, self.managed_body(true)).await.expect_status(202);
        let run = self.run_ended(owner, &store).await;
        assert_eq!(run["state"], "succeeded", "{run}");
        store
    }

    /// What asks for a managed database, with made-up products or without.
    pub fn managed_body(&self, has_demo: bool) -> Value {
        json!({ "managed": true, "engine": self.engine, "demoProducts": has_demo })
    }

    /// Ends the node and returns what operations need, on the same master: now no worker takes up runs, so a test can do
    /// every step by itself.
    pub async fn without_worker(&self) -> OpsCx {
        self.cx.close().await;
        let Config { master, keys, hosts, limits, payments, .. } = config(&self.master.url(), &[]);
        let services = Services { payments: Some(&payments), ..Services::default() };
        OpsCx::new(master, &keys, hosts, limits, services, true, Arc::<TestClock>::clone(&self.clock)).unwrap()
    }

    /// Another node on the same master.
    pub async fn other_node(&self) -> Node {
        self.other_node_with(&[]).await
    }

    /// Another node on the same master, with further options.
    pub async fn other_node_with(&self, arguments: &[&str]) -> Node {
        let metrics = METRICS.get().expect("this node has it").clone();
        let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        Node::start(config(&self.master.url(), &arguments), Arc::<TestClock>::clone(&self.clock), metrics)
            .await
            .unwrap_or_else(|error| panic!("the other node did not start: {error}"))
    }

    /// A connection of the administrator to master.
    pub async fn master(&self) -> PgConnection {
        self.master.admin().await
    }

    /// The database of a managed store, for SQL of the test's own.
    pub async fn inside(&self, store: &Value) -> StoreSql {
        StoreSql::open(self.engine, self.cluster, &database_name(store)).await
    }

    /// A connection of the administrator to the server of managed stores' databases.
    pub async fn server(&self) -> StoreSql {
        StoreSql::server(self.engine, self.cluster).await
    }

    /// The port of the server of managed stores' databases.
    pub async fn server_port(&self) -> u16 {
        match self.engine {
            Engine::Mysql => shared_mariadb().await.port(),
            _ => self.cluster.port(),
        }
    }

    /// An empty database that an owner brings, of this node's engine.
    pub async fn brought(&self) -> Brought {
        Brought::create(self.engine, self.cluster).await
    }

    /// A connection of the administrator to the database of a managed store in PostgreSQL.
    pub async fn store_database(&self, store: &Value) -> PgConnection {
        self.cluster.connect(&database_name(store)).await
    }
}

/// The name of a managed store's database.
pub fn database_name(store: &Value) -> String {
    let id: StoreId = store["id"].as_str().unwrap().parse().unwrap();
    control_plane::provisioning::managed_name(id).as_str().to_owned()
}

impl Owner {
    /// Registers somebody at the node that listens there.
    pub async fn register(address: SocketAddr, name: &str) -> Self {
        let api = Client::new(address, "localhost");
        let (email, password) = (format!("{name}@example.com"), PASSWORD.to_owned());
        let body = json!({ "email": email, "password": password, "firstName": name, "lastName": "Tester" });
        let registered = api.post("/api/auth/register", body).await.expect_status(201);
        let api = api.with_token(registered["tokens"]["accessToken"].as_str().unwrap());
        Self { api, email, password, registered, app_address: address }
    }

    /// Logs in again, with further members in the body.
    pub async fn login(&self, more: Value) -> Response {
        let mut body = json!({ "email": self.email, "password": self.password });
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        Client::new(self.app_address, "localhost").post("/api/auth/login", body).await
    }

    /// The same person at another node, or at the one that came after a restart.
    pub fn at(&self, address: SocketAddr) -> Self {
        let mut owner = self.clone();
        owner.api.address = address;
        owner.app_address = address;
        owner
    }

    pub async fn create_store(&self, slug: &str) -> Response {
        self.api.post("/api/stores/create", json!({ "name": slug, "slug": slug })).await
    }

    pub async fn connect(&self, store: &Value, body: Value) -> Response {
        self.api.post(&format!("/api/stores/{}/connect-database", store["id"].as_str().unwrap()), body).await
    }

    pub fn organization_id(&self) -> &str {
        self.registered["organization"]["id"].as_str().unwrap()
    }
}

/// The configuration of a test node: loopback, free ports, the tests' keys.
pub fn config(master_url: &str, arguments: &[String]) -> Config {
    let fixed = [
        "serve",
        "--master-db-url",
        master_url,
        "--encryption-key",
        ENCRYPTION_KEY,
        "--jwt-secret",
        JWT_SECRET,
        "--listen",
        "127.0.0.1:0",
        "--internal-listen",
        "127.0.0.1:0",
        "--allow-private-databases",
        "true",
        "--allow-private-webhooks",
        "true",
        "--webhook-poll-ms",
        "50",
        "--auth-requests-per-minute",
        "100000",
        "--database-tests-per-minute",
        "100000",
        "--database-tests-at-once",
        "100",
        "--shutdown-grace-ms",
        "2000",
        // Visits open connections to stores, which some tests count; those of visits ask for them.
        "--store-visit-poll-ms",
        "100000000",
    ];
    let all = fixed.iter().map(|&text| text.to_owned()).chain(arguments.iter().cloned());
    let command = Config::augment_args(clap::Command::new("serve")).args_override_self(true);
    let matches = command.try_get_matches_from(all).unwrap_or_else(|error| panic!("{error}"));
    Config::from_arg_matches(&matches).unwrap()
}

impl Drop for TestApp {
    fn drop(&mut self) {
        self.cx.shutdown.cancel();
        let master = self.master.url();
        let left = Arc::new(Mutex::new(Vec::<String>::new()));
        let found = Arc::clone(&left);
        block_on(async move {
            let mut connection = PgConnection::connect(&master).await?;
            let unfinished =
                sqlx::query_scalar("select id::text from provisioning_runs where state in ('queued', 'running')")
                    .fetch_all(&mut connection)
                    .await?;
            *found.lock().unwrap() = unfinished;
            connection.close().await
        });
        let left = left.lock().unwrap();
        if !self.may_leave_runs && !std::thread::panicking() {
            assert!(left.is_empty(), "the test left unfinished runs: {left:?}");
        }
    }
}
