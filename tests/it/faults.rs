//! Faults stay where they are: a burst, a dead backend, a store's own database, a request that ends when it likes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use integration_tests::{
    Client, Owner, Process, Response, StoreSql, TestApp, TestAppOptions, database_name, eventually, within,
};
use kernel::{Engine, StoreId};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tenancy::{Cause, Credential};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use vault::Sealed;

pub(crate) const PRODUCTS: &str = "/store/v1/products";

/// A served store that sells one thing, which no other store sells.
pub(crate) struct Shop {
    pub(crate) id: StoreId,
    pub(crate) hostname: String,
    /// The name of its database and of the role that enters it, when they are managed.
    pub(crate) database: String,
    sells: String,
}

impl Shop {
    /// In a managed database.
    pub(crate) async fn open(app: &TestApp, owner: &Owner, slug: &str) -> Self {
        Self::connect(app, owner, slug, app.managed_body(false)).await
    }

    /// In the database that this body of connect-database names.
    pub(crate) async fn connect(app: &TestApp, owner: &Owner, slug: &str, database: Value) -> Self {
        let store = owner.create_store(slug).await.expect_status(201);
        owner.connect(&store, database).await.expect_status(202);
        let run = app.run_ended(owner, &store).await;
        assert_eq!(run["state"], "succeeded", "{run}");
        let sells = format!("only-of-{slug}");
        let csv = format!("Handle,Title,Variant Price,Variant Inventory Qty\n{sells},{sells},12.50,500\n");
        let import = format!("/api/stores/{}/products/import", text(&store, "id"));
        owner.api.send_bytes(Method::POST, &import, "text/csv", csv).await.expect_status(200);
        let hostname = text(&store, "hostname").to_owned();
        Self { id: text(&store, "id").parse().expect("an id"), hostname, database: database_name(&store), sells }
    }

    /// The handle of the one product that it sells.
    pub(crate) fn sells(&self) -> &str {
        &self.sells
    }

    pub(crate) fn at(&self, app: &TestApp) -> Client {
        app.storefront(&self.hostname)
    }

    /// Fails unless this is the store's list of products, and nobody else's.
    #[track_caller]
    pub(crate) fn expect_served(&self, response: &Response) {
        let list = response.expect_status(200);
        let handles: Vec<&str> =
            list["data"].as_array().expect("a list").iter().map(|product| text(product, "handle")).collect();
        assert_eq!(handles, [self.sells.as_str()], "{list}");
    }

    /// Fails unless the store is refused as it should be, by one of these codes: nothing is said of where it lives.
    #[track_caller]
    pub(crate) fn expect_refused(&self, response: &Response, codes: &[&str]) {
        let problem = response.json();
        let code = codes.iter().find(|code| problem["code"] == **code).unwrap_or(&codes[0]);
        response.expect_problem(503, code);
        let seconds: u64 = response.header("retry-after").parse().expect("whole seconds until another try");
        assert!((1..=300).contains(&seconds), "{seconds} s: {problem}");
        let told = format!("{:?} {}", response.headers, response.text()).to_lowercase();
        let secrets = [self.database.as_str(), &self.sells, "127.0.0.1", "role", "password", "select", "relation"];
        for secret in secrets {
            assert!(!told.contains(secret), "it tells {secret}: {told}");
        }
    }
}

pub(crate) fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}"))
}

/// Sends so many requests at once and returns the answers.
pub(crate) async fn at_once(count: usize, client: &Client, path: &'static str) -> Vec<Response> {
    let mut requests = JoinSet::new();
    for _ in 0..count {
        let client = client.clone();
        requests.spawn(async move { client.get(path).await });
    }
    requests.join_all().await
}

/// Ends every session in a database of master's server but one's own, and waits until they are gone.
pub(crate) async fn terminate(admin: &mut PgConnection, database: &str) -> usize {
    let ended: Vec<bool> = sqlx::query_scalar(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity
         where datname = $1 and pid <> pg_backend_pid() and backend_type = 'client backend'",
    )
    .bind(database)
    .fetch_all(admin)
    .await
    .expect("sessions can be ended");
    ended.len()
}

pub(crate) async fn run(admin: &mut PgConnection, sql: &str) {
    admin.execute(AssertSqlSafe(sql.to_owned())).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// A metric of a node; 0 while it was never counted.
pub(crate) async fn metric(node: &Process, name: &str) -> f64 {
    let metrics = Client::new(node.internal_address, "localhost").get("/metrics").await.text();
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().expect("a number"))
}

/// Starts one more node on the test's master, and waits until it hears of changes.
pub(crate) async fn second_node(app: &TestApp, environment: &[(&str, &str)]) -> Process {
    let patient =
        [("STORE_ACQUIRE_TIMEOUT_MS", "20000"), ("STORE_CONNECT_TIMEOUT_MS", "20000"), ("REQUEST_TIMEOUT_MS", "50000")];
    listening_node(&app.master.url(), &[&patient, environment].concat()).await
}

/// Starts a node and waits until it hears of changes.
pub(crate) async fn listening_node(master_url: &str, environment: &[(&str, &str)]) -> Process {
    let node = Process::serve(master_url, environment).await;
    eventually("the node listens", || async {
        (metric(&node, "tenantry_listener_connected").await > 0.0).then_some(())
    })
    .await;
    node
}

/// A node that waits long for its stores, so that a slow machine does not count as a fault.
pub(crate) async fn patient_app(more: &[&str]) -> TestApp {
    patient_app_on(Engine::Postgresql, more).await
}

/// The same with stores on this engine.
pub(crate) async fn patient_app_on(engine: Engine, more: &[&str]) -> TestApp {
    let patient =
        ["--store-acquire-timeout-ms", "20000", "--store-connect-timeout-ms", "20000", "--request-timeout-ms", "50000"];
    let arguments = patient.iter().chain(more).map(|&argument| argument.to_owned()).collect();
    TestApp::start_on_with(engine, TestAppOptions { arguments, ..TestAppOptions::default() }).await
}

pub(crate) async fn suspend(root: &Owner, shop: &Shop) {
    root.api
        .post(&format!("/api/ops/stores/{}/suspend", shop.id), json!({ "reason": "a test" }))
        .await
        .expect_status(200);
}

pub(crate) async fn resume(root: &Owner, shop: &Shop) {
    root.api.post(&format!("/api/ops/stores/{}/resume", shop.id), Value::Null).await.expect_status(200);
}

on_each_engine! {
    two_hundred_first_requests_open_one_pool_within_its_maximum
    killed_backends_cost_at_most_the_requests_in_flight
    a_changed_password_costs_one_store_only
    a_database_that_is_renamed_away_costs_one_store_only
    a_database_without_a_free_connection_costs_one_store_only
    a_login_that_is_closed_costs_one_store_only
    a_locked_table_costs_one_store_only
    a_request_without_a_query_holds_no_connection
    a_suspension_reaches_the_node_that_did_it_at_once
}

async fn two_hundred_first_requests_open_one_pool_within_its_maximum(engine: Engine) {
    const MAX: usize = 4;
    let app = patient_app_on(engine, &[]).await;
    let owner = app.owner("ada").await;
    let shop = Shop::open(&app, &owner, "cold").await;
    let mut admin = app.server().await;
    // A node that has never seen the store.
    let node = second_node(&app, &[("STORE_MAX_CONNECTIONS", "4")]).await;
    let before = admin.sessions(&shop.database).await;

    let client = node.storefront(&shop.hostname);
    let mut requests = JoinSet::new();
    for _ in 0..200 {
        let client = client.clone();
        requests.spawn(async move { client.get(PRODUCTS).await });
    }
    let (mut answered, mut most) = (0, 0);
    while let Some(response) = requests.join_next().await {
        shop.expect_served(&response.expect("a request ends"));
        if answered % 10 == 0 {
            most = most.max(admin.sessions(&shop.database).await.difference(&before).count());
        }
        answered += 1;
    }
    assert_eq!(answered, 200);
    assert!((1..=MAX).contains(&most), "{most} connections");
    let opened = metric(&node, "tenantry_connects_total{result=\"ok\"}").await;
    assert!((1.0..=4.0).contains(&opened), "{opened} connections were opened");
    let looked_up = metric(&node, "tenantry_directory_lookups_total{result=\"miss\"}").await;
    assert!((looked_up - 1.0).abs() < 0.5, "master was asked {looked_up} times");
    let pools = || async { (metric(&node, "tenantry_pools_open").await > 0.0).then_some(()) };
    eventually("the pool is counted", pools).await;
    let open = metric(&node, "tenantry_pools_open").await;
    assert!((open - 1.0).abs() < 0.5, "{open} pools");
    node.kill().await;
}

async fn killed_backends_cost_at_most_the_requests_in_flight(engine: Engine) {
    let app = patient_app_on(engine, &[]).await;
    let owner = app.owner("ada").await;
    let shop = Shop::open(&app, &owner, "killed").await;
    let client = shop.at(&app);
    let (answered, is_over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut workers = JoinSet::new();
    for number in 0..12 {
        let (client, answered, is_over) = (client.clone(), Arc::clone(&answered), Arc::clone(&is_over));
        workers.spawn(async move {
            let mut refusals = Vec::new();
            while !is_over.load(Ordering::SeqCst) {
                // Reads may be repeated for the asker, writes never are.
                let (response, wanted) = if number % 2 == 0 {
                    (client.get(PRODUCTS).await, 200)
                } else {
                    (client.post("/store/v1/carts", Value::Null).await, 201)
                };
                if response.status != wanted {
                    refusals.push(response);
                }
                answered.fetch_add(1, Ordering::SeqCst);
            }
            refusals
        });
    }
    let more = |count: usize| {
        let (goal, answered) = (answered.load(Ordering::SeqCst) + count, Arc::clone(&answered));
        eventually("requests are answered", move || {
            let is_reached = answered.load(Ordering::SeqCst) >= goal;
            async move { is_reached.then_some(()) }
        })
    };
    more(48).await;
    let mut admin = app.server().await;
    let killed = admin.end_sessions(&shop.database).await;
    assert!(killed > 0, "nobody was connected");
    more(48).await;
    is_over.store(true, Ordering::SeqCst);
    let refusals: Vec<Response> = workers.join_all().await.into_iter().flatten().collect();
    assert!(refusals.len() <= killed, "{killed} backends were killed, {} requests refused", refusals.len());
    for refusal in &refusals {
        shop.expect_refused(refusal, &["store-database-unavailable"]);
    }

    // Sessions that are only being opened are killed, too; who comes afterwards does not pay for it.
    for _ in 0..5 {
        tokio::join!(at_once(20, &client, PRODUCTS), admin.end_sessions(&shop.database));
        for response in at_once(20, &client, PRODUCTS).await {
            shop.expect_served(&response);
        }
    }

    // At rest nothing is in flight, so nothing is lost.
    admin.end_sessions(&shop.database).await;
    for response in at_once(20, &client, PRODUCTS).await {
        shop.expect_served(&response);
    }
    admin.end_sessions(&shop.database).await;
    client.post("/store/v1/carts", Value::Null).await.expect_status(201);
}

/// What is counted is what master is asked: stores' databases, of whatever engine, are not.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_to_unknown_hosts_reaches_master_once_per_host() {
    const HOSTS: usize = 20;
    const REMEMBERED: Duration = Duration::from_secs(5);
    let app = patient_app(&[]).await;
    let owner = app.owner("ada").await;
    let shop = Shop::open(&app, &owner, "known").await;
    let node = second_node(&app, &[]).await;
    let known = node.storefront(&shop.hostname);
    // Its connections to master are open before the flood: opening them is not what is measured.
    let mut first = JoinSet::new();
    for number in 0..HOSTS {
        let stranger = node.storefront(&format!("first-{number}.stores.localhost"));
        first.spawn(async move { stranger.get(PRODUCTS).await });
    }
    first.join_all().await;
    shop.expect_served(&known.get(PRODUCTS).await);
    let misses = || metric(&node, "tenantry_directory_lookups_total{result=\"miss\"}");
    let before = misses().await;

    let started = Instant::now();
    let mut flood = JoinSet::new();
    for number in 0..300 {
        let stranger = node.storefront(&format!("stranger-{}.stores.localhost", number % HOSTS));
        flood.spawn(async move { stranger.get(PRODUCTS).await });
    }
    for response in at_once(20, &known, PRODUCTS).await {
        shop.expect_served(&response);
    }
    for response in flood.join_all().await {
        response.expect_problem(421, "unknown-host");
    }
    // However slow the machine is: a host is asked for once in the time that the answer is remembered.
    let rounds = 1 + u32::try_from(started.elapsed().as_millis() / REMEMBERED.as_millis()).expect("not for ever");
    let asked = misses().await - before;
    assert!(asked >= 20.0 && asked <= 20.0 * f64::from(rounds), "master was asked {asked} times in {rounds} rounds");
    node.kill().await;
}

/// What befalls one store's database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    ChangedPassword,
    RenamedAway,
    NoConnection,
    ClosedLogin,
}

impl Trouble {
    fn cause(self) -> Cause {
        match self {
            Self::ChangedPassword | Self::ClosedLogin => Cause::WrongPassword,
            Self::RenamedAway => Cause::MissingDatabase,
            Self::NoConnection => Cause::TooManyConnections,
        }
    }

    async fn begins(self, admin: &mut StoreSql, name: &str) {
        let is_mysql = matches!(admin, StoreSql::MySql(_));
        match self {
            Self::ChangedPassword => admin.set_password(name, "changed-by-somebody").await,
            Self::RenamedAway => admin.rename_database(name, &format!("{name}_away")).await,
            // None may come any more: MariaDB has a number for it, for MySQL would have to hold the last one.
            Self::NoConnection if is_mysql => {
                admin.execute(&format!("alter user '{name}'@'%' with max_user_connections -1")).await;
            }
            Self::NoConnection => admin.execute(&format!("alter database \"{name}\" connection limit 0")).await,
            Self::ClosedLogin if is_mysql => admin.execute(&format!("alter user '{name}'@'%' account lock")).await,
            Self::ClosedLogin => admin.execute(&format!("alter role \"{name}\" nologin")).await,
        }
    }

    async fn ends(self, admin: &mut StoreSql, name: &str, password: &str) {
        let is_mysql = matches!(admin, StoreSql::MySql(_));
        match self {
            Self::ChangedPassword => admin.set_password(name, password).await,
            Self::RenamedAway => admin.rename_database(&format!("{name}_away"), name).await,
            Self::NoConnection if is_mysql => {
                admin.execute(&format!("alter user '{name}'@'%' with max_user_connections 0")).await;
            }
            Self::NoConnection => admin.execute(&format!("alter database \"{name}\" connection limit -1")).await,
            Self::ClosedLogin if is_mysql => admin.execute(&format!("alter user '{name}'@'%' account unlock")).await,
            Self::ClosedLogin => admin.execute(&format!("alter role \"{name}\" login")).await,
        }
    }
}

/// Does it to one of two stores on a server: that one is refused, the other is served, and the first again once it is mended.
async fn costs_one_store_only(engine: Engine, trouble: Trouble) {
    let app = patient_app_on(engine, &[]).await;
    let (owner, root) = (app.owner("ada").await, app.admin().await);
    let (ill, well) = (Shop::open(&app, &owner, "ill").await, Shop::open(&app, &owner, "well").await);
    let mut admin = app.server().await;
    let password = password_of(&app, &ill).await;
    for shop in [&ill, &well] {
        shop.expect_served(&shop.at(&app).get(PRODUCTS).await);
    }

    // Nobody asks for the store in between, so nobody comes back before it is done.
    admin.end_sessions(&ill.database).await;
    trouble.begins(&mut admin, &ill.database).await;
    let (to_ill, to_well) = (ill.at(&app), well.at(&app));
    let (refused, served) = tokio::join!(at_once(20, &to_ill, PRODUCTS), at_once(20, &to_well, PRODUCTS));
    for response in &refused {
        ill.expect_refused(response, &["store-database-unavailable"]);
    }
    for response in &served {
        well.expect_served(response);
    }
    let known = app.cx.stores.explain(ill.id).expect("the store is known");
    assert_eq!(known.last_error.map(|error| error.cause), Some(trouble.cause()));
    // Its owner is told as well, and still sees what master knows.
    let detail = owner.api.get(&format!("/api/stores/{}", ill.id)).await;
    assert_eq!(detail.expect_status(200)["database"]["state"], "unavailable");
    assert!(!detail.text().contains(&ill.database) && !detail.text().contains("127.0.0.1"), "{}", detail.text());

    trouble.ends(&mut admin, &ill.database, &password).await;
    if trouble.cause().needs_change() {
        suspend(&root, &ill).await;
        resume(&root, &ill).await;
        ill.expect_served(&to_ill.get(PRODUCTS).await);
    } else {
        eventually("the store is served again", || async { (to_ill.get(PRODUCTS).await.status == 200).then_some(()) })
            .await;
        ill.expect_served(&to_ill.get(PRODUCTS).await);
    }
    well.expect_served(&to_well.get(PRODUCTS).await);
}

/// The password that the store's role has now.
async fn password_of(app: &TestApp, shop: &Shop) -> String {
    use secrecy::ExposeSecret as _;
    let (_, credential, _) = credential(app, shop).await;
    credential.password.expose_secret().to_owned()
}

/// The sealed credential of a store as its row holds it, what is in it, and its version.
pub(crate) async fn credential(app: &TestApp, shop: &Shop) -> (Vec<u8>, Credential, i32) {
    let mut master = app.master().await;
    let (bytes, version): (Vec<u8>, i32) =
        sqlx::query_as("select sealed, credential_version from store_databases where store_id = $1")
            .bind(shop.id.as_uuid())
            .fetch_one(&mut master)
            .await
            .expect("the store has a database");
    master.close().await.expect("it closes");
    let sealed = Sealed::from_bytes(bytes.clone()).expect("it is sealed");
    (bytes, Credential::open(&app.cx.keys, &sealed, shop.id, version).expect("it opens"), version)
}

async fn a_changed_password_costs_one_store_only(engine: Engine) {
    costs_one_store_only(engine, Trouble::ChangedPassword).await;
}

async fn a_database_that_is_renamed_away_costs_one_store_only(engine: Engine) {
    costs_one_store_only(engine, Trouble::RenamedAway).await;
}

async fn a_database_without_a_free_connection_costs_one_store_only(engine: Engine) {
    costs_one_store_only(engine, Trouble::NoConnection).await;
}

async fn a_login_that_is_closed_costs_one_store_only(engine: Engine) {
    costs_one_store_only(engine, Trouble::ClosedLogin).await;
}

async fn a_locked_table_costs_one_store_only(engine: Engine) {
    let app =
        patient_app_on(engine, &["--store-statement-timeout-ms", "1000", "--store-acquire-timeout-ms", "2000"]).await;
    let owner = app.owner("ada").await;
    let (ill, well) = (Shop::open(&app, &owner, "ill").await, Shop::open(&app, &owner, "well").await);
    let (to_ill, to_well) = (ill.at(&app), well.at(&app));
    let mut holder = StoreSql::open(engine, app.cluster, &ill.database).await;
    holder.lock_table("products").await;

    // More than the pool is wide: some wait for a connection, and are refused in time, too.
    let (refused, served) = tokio::join!(at_once(50, &to_ill, PRODUCTS), at_once(20, &to_well, PRODUCTS));
    for response in &refused {
        ill.expect_refused(response, &["store-database-unavailable", "store-busy"]);
    }
    for response in &served {
        well.expect_served(response);
    }
    holder.unlock().await;
    ill.expect_served(&to_ill.get(PRODUCTS).await);
    holder.close().await;
}

/// A request by hand, which ends when the test says.
struct Pending {
    stream: TcpStream,
}

impl Pending {
    /// Sends a head and part of a body, once the server has begun to wait for the body.
    async fn begin(app: &TestApp, head: &str, body: &str) -> Self {
        let stream = TcpStream::connect(app.address).await.expect("the node listens");
        let mut pending = Self { stream };
        pending.write(&format!("{head}expect: 100-continue\r\n\r\n")).await;
        pending.read_until("100 Continue\r\n\r\n").await;
        pending.write(body).await;
        pending
    }

    async fn write(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.expect("the node reads");
    }

    async fn read_until(&mut self, end: &str) -> String {
        let mut read = Vec::new();
        within(end, async {
            while !String::from_utf8_lossy(&read).contains(end) {
                let count = self.stream.read_buf(&mut read).await.expect("the node answers");
                assert!(count > 0, "the node hung up after {:?}", String::from_utf8_lossy(&read));
            }
        })
        .await;
        String::from_utf8_lossy(&read).into_owned()
    }
}

async fn a_request_without_a_query_holds_no_connection(engine: Engine) {
    let app = patient_app_on(engine, &["--store-max-connections", "1"]).await;
    let owner = app.owner("ada").await;
    let shop = Shop::open(&app, &owner, "patient").await;
    let client = shop.at(&app);
    let product = client.get(&format!("{PRODUCTS}/{}", shop.sells)).await.expect_status(200);
    let cart = client.post("/store/v1/carts", Value::Null).await.expect_status(201);
    let line = json!({ "variantId": product["variants"][0]["id"], "quantity": 1 }).to_string();
    let head = format!(
        "POST /store/v1/carts/{}/lines HTTP/1.1\r\nhost: {}\r\nx-cart-token: {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n",
        text(&cart, "id"),
        shop.hostname,
        text(&cart, "token"),
        line.len(),
    );
    let (begun, rest) = line.split_at(10);

    // Ten shoppers who were answered and stay connected, and ten whose requests never end.
    let mut open = Vec::new();
    for _ in 0..10 {
        let stream = TcpStream::connect(app.address).await.expect("the node listens");
        let mut resting = Pending { stream };
        resting.write(&format!("GET {PRODUCTS} HTTP/1.1\r\nhost: {}\r\n\r\n", shop.hostname)).await;
        assert!(resting.read_until(&shop.sells).await.starts_with("HTTP/1.1 200"));
        open.push(resting);
        open.push(Pending::begin(&app, &head, begun).await);
    }
    eventually("nobody holds the one connection", || async {
        let pool = app.cx.stores.explain(shop.id)?.pool?;
        // The pending requests have their leases, so they are where the test wants them.
        (pool.leases == 10 && pool.open == pool.idle && pool.waiting == 0).then_some(())
    })
    .await;
    shop.expect_served(&client.get(PRODUCTS).await);
    client.post("/store/v1/carts", Value::Null).await.expect_status(201);

    // They were real requests: the last one goes on where it stood.
    let mut last = open.pop().expect("ten are pending");
    last.write(rest).await;
    let answer = last.read_until(&shop.sells).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

async fn a_suspension_reaches_the_node_that_did_it_at_once(engine: Engine) {
    let app = patient_app_on(engine, &[]).await;
    let (owner, root) = (app.owner("ada").await, app.admin().await);
    let (shop, other) = (Shop::open(&app, &owner, "suspended").await, Shop::open(&app, &owner, "other").await);
    let node = second_node(&app, &[]).await;
    let (here, there) = (shop.at(&app), node.storefront(&shop.hostname));
    for client in [&here, &there] {
        shop.expect_served(&client.get(PRODUCTS).await);
    }

    suspend(&root, &shop).await;
    let response = here.get(PRODUCTS).await;
    shop.expect_refused(&response, &["store-suspended"]);
    eventually("the other node refuses", || async { (there.get(PRODUCTS).await.status != 200).then_some(()) }).await;
    shop.expect_refused(&there.get(PRODUCTS).await, &["store-suspended"]);
    other.expect_served(&other.at(&app).get(PRODUCTS).await);
    // The database is left alone.
    let database = shop.database.as_str();
    eventually("nobody is connected to a suspended store", || async {
        let mut admin = app.server().await;
        let connected = admin.sessions(database).await;
        admin.close().await;
        connected.is_empty().then_some(())
    })
    .await;

    resume(&root, &shop).await;
    shop.expect_served(&here.get(PRODUCTS).await);
    eventually("the other node serves", || async { (there.get(PRODUCTS).await.status == 200).then_some(()) }).await;
    shop.expect_served(&there.get(PRODUCTS).await);
    node.kill().await;
}
