//! Two nodes, many stores, few connections, and everything dies: connections, nodes, the database server. Stores are closed and
//! opened, and get new passwords. Whatever is answered is right, and what the server bears is never passed.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use integration_tests::{
    Cli, Client, Cluster, ENCRYPTION_KEY, Process, TestDatabase, cluster, database_name, own_cluster,
};
use kernel::StoreId;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tenancy::Credential;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Interval, interval, interval_at};
use tokio_util::sync::CancellationToken;
use vault::{KeyRing, Sealed};

use crate::provisioning::store_id;
use crate::scenes::text;
use crate::shares::set_budget;

const PRODUCTS: &str = "/store/v1/products";
/// How long after a store was closed a node may still not have heard of it: it reads the log that often.
const HEARD_WITHIN: Duration = Duration::from_secs(15);

/// How hard it is hammered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blows {
    pub(crate) stores: usize,
    /// What the server bears.
    pub(crate) budget: i32,
    pub(crate) askers: usize,
    pub(crate) time: Duration,
    pub(crate) between_node_deaths: Duration,
    pub(crate) between_server_deaths: Duration,
}

/// A store, whose every row bears its mark.
struct Shop {
    id: StoreId,
    hostname: String,
    /// Of its database and of its login.
    name: String,
    mark: String,
    /// Since when it is closed, as everybody must know.
    closed: Mutex<Option<Instant>>,
}

/// What was answered.
#[derive(Default)]
struct Answers {
    right: AtomicU64,
    /// Of a node that died meanwhile.
    broken: AtomicU64,
    refused: Mutex<BTreeMap<String, u64>>,
}

/// The scene that everybody works on.
struct Scene {
    shops: Vec<Shop>,
    nodes: [watch::Receiver<SocketAddr>; 2],
    answers: Answers,
    master: String,
    server: String,
    over: CancellationToken,
}

impl Scene {
    fn shop(&self) -> &Shop {
        let count = self.shops.len() as u64;
        // Some are asked for often, most now and then.
        let at = kernel::random::below(count) * kernel::random::below(count) / count;
        &self.shops[usize::try_from(at).unwrap()]
    }

    fn client(&self, shop: &Shop) -> Client {
        let node = usize::try_from(kernel::random::below(2)).unwrap();
        Client::new(*self.nodes[node].borrow(), &shop.hostname)
    }

    fn every(&self, pause: Duration) -> Pace {
        Pace { ticks: interval_at(tokio::time::Instant::now() + pause, pause), over: self.over.clone() }
    }
}

/// Ticks until it is over.
struct Pace {
    ticks: Interval,
    over: CancellationToken,
}

impl Pace {
    async fn goes_on(&mut self) -> bool {
        self.over.run_until_cancelled(self.ticks.tick()).await.is_some()
    }
}

/// Asks until it is over. What is no refusal must be right.
async fn ask(scene: Arc<Scene>) {
    while !scene.over.is_cancelled() {
        let shop = scene.shop();
        let (closed, asked) = (*shop.closed.lock().unwrap(), Instant::now());
        let Some(answer) = scene.client(shop).try_get(PRODUCTS).await else {
            scene.answers.broken.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            continue;
        };
        match answer.status.as_u16() {
            200 => {
                expect_marked(shop, &answer.json());
                // Closed for long before it was asked, and not opened since.
                let closed = closed.filter(|_| closed == *shop.closed.lock().unwrap());
                let after = closed.map(|at| asked.duration_since(at)).unwrap_or_default();
                assert!(after < HEARD_WITHIN, "{} was served, asked {after:?} after it was closed", shop.hostname);
                scene.answers.right.fetch_add(1, Ordering::Relaxed);
            }
            503 | 504 => {
                let code = answer.json()["code"].as_str().unwrap_or_default().to_owned();
                *scene.answers.refused.lock().unwrap().entry(code).or_default() += 1;
                tokio::task::yield_now().await;
            }
            other => panic!("{} answered {other}: {}", shop.hostname, answer.text()),
        }
    }
}

fn expect_marked(shop: &Shop, page: &Value) {
    let products = page["data"].as_array().unwrap_or_else(|| panic!("no products: {page}"));
    assert!(!products.is_empty(), "{}: {page}", shop.hostname);
    for product in products {
        assert_eq!(product["title"], shop.mark, "a row of another store on {}", shop.hostname);
    }
}

/// Runs one statement on a server that dies now and then; whether it was done.
async fn run(url: &str, statement: String) -> bool {
    let Ok(mut connection) = PgConnection::connect(url).await else { return false };
    let done = connection.execute(AssertSqlSafe(statement)).await.is_ok();
    drop(connection.close().await);
    done
}

async fn kill_connections(scene: Arc<Scene>) {
    let mut pace = scene.every(Duration::from_millis(150));
    while pace.goes_on().await {
        let kill = "select pg_terminate_backend(pid) from pg_stat_activity
                    where usename like 'store\\_%' order by random() limit 1";
        run(&scene.server, kill.to_owned()).await;
    }
}

async fn set_status(scene: &Scene, shop: &Shop, status: &str) {
    let sql = format!("update stores set status = '{status}' where id = '{}'", shop.id.as_uuid());
    assert!(run(&scene.master, sql).await, "master lives");
}

/// Closes a store, and opens one that was closed a while ago.
async fn close_and_open(scene: Arc<Scene>) {
    let mut pace = scene.every(Duration::from_millis(400));
    let mut closed = VecDeque::new();
    while pace.goes_on().await {
        let shop = scene.shop();
        let is_open = shop.closed.lock().unwrap().is_none();
        if is_open {
            set_status(&scene, shop, "suspended").await;
            *shop.closed.lock().unwrap() = Some(Instant::now());
            closed.push_back(shop);
        }
        if closed.len() > scene.shops.len() / 4 {
            let shop = closed.pop_front().unwrap();
            // Whoever asks from now on may be served.
            *shop.closed.lock().unwrap() = None;
            set_status(&scene, shop, "active").await;
        }
    }
}

/// Gives a store's login another password, then tells master: in between, whoever connects is refused.
async fn change_passwords(scene: Arc<Scene>) {
    let ring = KeyRing::single(ENCRYPTION_KEY).unwrap();
    let mut pace = scene.every(Duration::from_millis(700));
    while pace.goes_on().await {
        let shop = scene.shop();
        let mut master = PgConnection::connect(&scene.master).await.unwrap();
        let (sealed, version): (Vec<u8>, i32) =
            sqlx::query_as("select sealed, credential_version from store_databases where store_id = $1")
                .bind(shop.id.as_uuid())
                .fetch_one(&mut master)
                .await
                .unwrap();
        let mut credential = Credential::open(&ring, &Sealed::from_bytes(sealed).unwrap(), shop.id, version).unwrap();
        credential.password = SecretString::from(kernel::random::token());
        let sql = format!("alter role {} password '{}'", shop.name, credential.password.expose_secret());
        // Of one that was sent while the server died nobody knows whether it was done: it is, in the end.
        while !run(&scene.server, sql.clone()).await {
            pace.ticks.tick().await;
        }
        sqlx::query("update store_databases set sealed = $2, credential_version = $3 where store_id = $1")
            .bind(shop.id.as_uuid())
            .bind(credential.seal(&ring, shop.id, version + 1).as_bytes())
            .bind(version + 1)
            .execute(&mut master)
            .await
            .unwrap();
        master.close().await.unwrap();
    }
}

/// The most connections of stores' logins that the server had, and how often was looked.
async fn count_connections(scene: Arc<Scene>) -> (i64, u64) {
    let (mut most, mut looks) = (0, 0);
    let mut pace = scene.every(Duration::from_millis(5));
    let mut server = None;
    while pace.goes_on().await {
        if server.is_none() {
            server = PgConnection::connect(&scene.server).await.ok();
        }
        let Some(connection) = &mut server else { continue };
        match connections(connection).await {
            Ok(open) => (most, looks) = (most.max(open), looks + 1),
            // It died.
            Err(_) => server = None,
        }
    }
    (most, looks)
}

async fn connections(server: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "select count(*) from pg_stat_activity where usename like 'store\\_%' and backend_type = 'client backend'",
    )
    .fetch_one(server)
    .await
}

async fn kill_server(scene: Arc<Scene>, server: &'static mut Cluster, pause: Duration) -> u64 {
    let (mut deaths, mut pace) = (0, scene.every(pause));
    while pace.goes_on().await {
        server.kill().await;
        server.restart().await;
        deaths += 1;
    }
    deaths
}

/// Opens stores, marks every row of theirs, and returns them.
async fn open_shops(node: &Process, server: &Cluster, count: usize) -> Vec<Shop> {
    let owner = Arc::new(node.owner("ada").await);
    let mut opening = JoinSet::new();
    let (address, next) = (node.address, Arc::new(AtomicU64::new(0)));
    for _ in 0..4 {
        let (owner, next) = (Arc::clone(&owner), Arc::clone(&next));
        opening.spawn(async move {
            let mut stores = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count as u64 {
                    return stores;
                }
                let store = owner.create_store(&format!("shop-{number}")).await.expect_status(201);
                owner.connect(&store, json!({ "managed": true, "demoProducts": true })).await.expect_status(202);
                let path = format!("/api/stores/{}/provisioning", text(&store["id"]));
                // Master may be slow for a moment, where others test beside.
                let state = async || owner.at(address).api.get(&path).await.json()["run"]["state"].clone();
                let mut ticks = interval(Duration::from_millis(50));
                while state().await != "succeeded" {
                    ticks.tick().await;
                }
                stores.push(store);
            }
        });
    }
    let mut shops = Vec::new();
    for store in opening.join_all().await.into_iter().flatten() {
        let (name, mark) = (database_name(&store), format!("of {}", text(&store["slug"])));
        let mut inside = server.connect(&name).await;
        sqlx::query("update tenantry.products set title = $1").bind(&mark).execute(&mut inside).await.unwrap();
        inside.close().await.unwrap();
        let hostname = text(&store["hostname"]).to_owned();
        shops.push(Shop { id: store_id(&store), hostname, name, mark, closed: Mutex::new(None) });
    }
    shops
}

/// A master whose only server is this one, which bears so many connections.
async fn master_of(server: &Cluster, budget: i32) -> TestDatabase {
    let master = cluster().await.master().await;
    Cli::add_server(&master.url(), "hammered", &server.url("postgres")).await;
    set_budget(&master.url(), "hammered", budget).await;
    master
}

pub(crate) async fn hammer(name: &str, blows: Blows) -> String {
    let server = own_cluster(name).await;
    let master = master_of(server, blows.budget).await;
    let environment = [
        ("MAX_CLIENT_CONNECTIONS_PER_ADDRESS", "10000"),
        ("ACCESS_TOKEN_TTL_S", "100000"),
        ("STORE_MAX_CONNECTIONS", "4"),
        ("STORE_IDLE_TIMEOUT_MS", "1000"),
        ("STORE_ACQUIRE_TIMEOUT_MS", "5000"),
        ("STORE_CONNECT_TIMEOUT_MS", "10000"),
        ("ROUTE_LOOKUP_TIMEOUT_MS", "10000"),
        ("REQUEST_TIMEOUT_MS", "40000"),
        // It would connect to stores by itself.
        ("STORE_VISIT_POLL_MS", "3600000"),
        ("LOG", "info"),
    ];
    // One of them goes on as the node that it was when it is started again, the other joins anew.
    let folder = tempfile::tempdir().unwrap();
    let kept = ("NODE_DATA", folder.path().to_str().unwrap());
    let serve = async |which: usize| {
        let environment = if which == 0 { [&environment[..], &[kept]].concat() } else { environment.to_vec() };
        Process::serve(&master.url(), &environment).await
    };
    let mut nodes = [Some(serve(0).await), Some(serve(1).await)];
    let shops = open_shops(nodes[0].as_ref().unwrap(), server, blows.stores).await;
    let (senders, receivers): (Vec<_>, Vec<_>) =
        nodes.iter().flatten().map(|node| watch::channel(node.address)).unzip();
    let over = CancellationToken::new();
    let server_url = server.url("postgres");
    let scene = Arc::new(Scene {
        shops,
        nodes: [receivers[0].clone(), receivers[1].clone()],
        answers: Answers::default(),
        master: master.url(),
        server: server_url.clone(),
        over: over.clone(),
    });

    let mut working = JoinSet::new();
    for _ in 0..blows.askers {
        working.spawn(ask(Arc::clone(&scene)));
    }
    working.spawn(kill_connections(Arc::clone(&scene)));
    working.spawn(close_and_open(Arc::clone(&scene)));
    working.spawn(change_passwords(Arc::clone(&scene)));
    let (mut counting, mut killing) = (JoinSet::new(), JoinSet::new());
    counting.spawn(count_connections(Arc::clone(&scene)));
    killing.spawn(kill_server(Arc::clone(&scene), server, blows.between_server_deaths));
    let (until, mut ticks, mut node_deaths) =
        (Instant::now() + blows.time, interval(blows.between_node_deaths), 0_usize);
    ticks.tick().await;
    while Instant::now() < until {
        tokio::select! {
            _ = ticks.tick() => {
                let which = node_deaths % 2;
                nodes[which].take().unwrap().kill().await;
                let node = serve(which).await;
                senders[which].send_replace(node.address);
                nodes[which] = Some(node);
                node_deaths += 1;
            }
            Some(ended) = working.join_next() => ended.expect("nobody ends before it is over"),
        }
    }
    over.cancel();
    working.join_all().await;
    let (most, looks) = counting.join_next().await.unwrap().unwrap();
    let server_deaths = killing.join_next().await.unwrap().unwrap();

    for shop in &scene.shops {
        set_status(&scene, shop, "active").await;
    }
    expect_well(&scene).await;
    let nodes = nodes.map(Option::unwrap);
    expect_idle(&scene, &nodes).await;
    assert!(most <= i64::from(blows.budget), "{most} connections of {}, in {looks} looks", blows.budget);
    let answers = &scene.answers;
    let told = format!(
        "{} right answers, 0 wrong, {} broken, refused {:?}; {node_deaths} deaths of nodes, {server_deaths} of the server; at most {most} \
         of {} connections in {looks} looks",
        answers.right.load(Ordering::Relaxed),
        answers.broken.load(Ordering::Relaxed),
        answers.refused.lock().unwrap(),
        blows.budget,
    );
    assert!(
        answers.right.load(Ordering::Relaxed) > 0 && looks > 0 && most > 0 && node_deaths > 0 && server_deaths > 0,
        "{told}"
    );
    for node in nodes {
        assert_eq!(node.terminate().await, Some(0), "{told}");
    }
    told
}

/// Every store is served by both nodes, sooner or later, out of its own database.
async fn expect_well(scene: &Arc<Scene>) {
    let deadline = Instant::now() + Duration::from_secs(180);
    for shop in &scene.shops {
        for node in &scene.nodes {
            let client = Client::new(*node.borrow(), &shop.hostname);
            let mut ticks = interval(Duration::from_millis(50));
            loop {
                let answer = client.get(PRODUCTS).await;
                if answer.status == 200 {
                    expect_marked(shop, &answer.json());
                    break;
                }
                assert!(Instant::now() < deadline, "{} is not well again: {}", shop.hostname, answer.text());
                ticks.tick().await;
            }
        }
    }
}

/// Nothing is left: no connection, no lease, nobody who waits.
async fn expect_idle(scene: &Scene, nodes: &[Process; 2]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut server = PgConnection::connect(&scene.server).await.unwrap();
    let mut ticks = interval(Duration::from_millis(50));
    loop {
        let open = connections(&mut server).await.unwrap();
        let mut left = Vec::new();
        for node in nodes {
            let seen = node.internal().get("/internal/pools?limit=5").await.expect_status(200);
            let number = |name: &str| seen["node"][name].as_u64().unwrap();
            left.push((number("open"), number("leases"), number("waiting"), number("draining")));
        }
        if open == 0 && left.iter().all(|left| *left == (0, 0, 0, 0)) {
            break;
        }
        assert!(Instant::now() < deadline, "{open} connections, {left:?} (open, leases, waiting, draining) are left");
        ticks.tick().await;
    }
    server.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_dies_no_answer_is_wrong_and_the_budget_holds() {
    let blows = Blows {
        stores: 12,
        budget: 6,
        askers: 12,
        time: Duration::from_secs(12),
        between_node_deaths: Duration::from_secs(4),
        between_server_deaths: Duration::from_secs(7),
    };
    let told = hammer("hammer", blows).await;
    println!("{told}");
}
