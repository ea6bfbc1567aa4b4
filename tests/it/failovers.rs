//! Another server takes over from the one that stores are on: they are served again without a restart of anything, with all that
//! was theirs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use integration_tests::{
    ChaosProxy, Cli, Client, Cluster, Fate, Process, cluster, database_name, eventually, own_cluster,
};
use kernel::Engine;
use serde_json::{Value, json};
use sqlx::Connection as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::scenes::text;

const PRODUCTS: &str = "/store/v1/products";

/// Asks for a store's products until it is over: what is answered bears the store's mark, what is not is a refusal to wait.
async fn ask(client: Client, mark: String, right: Arc<AtomicU64>, over: CancellationToken) {
    while !over.is_cancelled() {
        let response = client.get(PRODUCTS).await;
        match response.status.as_u16() {
            200 => {
                let page = response.json();
                let products = page["data"].as_array().unwrap();
                assert!(
                    !products.is_empty() && products.iter().all(|product| product["title"] == mark.as_str()),
                    "{page}"
                );
                right.fetch_add(1, Ordering::Relaxed);
            }
            503 => assert!(!response.header("retry-after").is_empty(), "{}", response.text()),
            other => panic!("{other}: {}", response.text()),
        }
    }
}

/// Waits until the standby has everything that the primary has, and makes it the one that is written to.
async fn promote(standby: &Cluster, primary: &mut sqlx::PgConnection) {
    let last: String = sqlx::query_scalar("select pg_current_wal_lsn()::text").fetch_one(&mut *primary).await.unwrap();
    let mut admin = standby.admin().await;
    eventually("the standby has all of it", || async {
        let mut admin = standby.admin().await;
        let has_all: bool = sqlx::query_scalar("select coalesce(pg_last_wal_replay_lsn() >= $1::pg_lsn, false)")
            .bind(&last)
            .fetch_one(&mut admin)
            .await
            .unwrap();
        admin.close().await.unwrap();
        has_all.then_some(())
    })
    .await;
    let is_promoted: bool = sqlx::query_scalar("select pg_promote()").fetch_one(&mut admin).await.unwrap();
    assert!(is_promoted);
    admin.close().await.unwrap();
}

async fn a_server_is_taken_over_from(fate: Fate) {
    let primary = own_cluster(&format!("primary-{fate:?}")).await;
    let standby = own_cluster(&format!("standby-{fate:?}")).await;
    let proxy = ChaosProxy::to(([127, 0, 0, 1], primary.port()).into()).await;
    let master = cluster().await.master().await;
    // From here on both have the password that the server is registered with.
    standby.follow(primary).await;
    let at = |port: u16, database: &str| {
        standby.url(database).replace(&format!(":{}/", standby.port()), &format!(":{port}/"))
    };
    Cli::add_server(&master.url(), "taken-over", &at(proxy.port, "postgres")).await;
    let limits = [
        ("STORE_ACQUIRE_TIMEOUT_MS", "3000"),
        ("STORE_CONNECT_TIMEOUT_MS", "2000"),
        ("STORE_STATEMENT_TIMEOUT_MS", "2000"),
        ("LOG", "info"),
    ];
    let node = Process::serve(&master.url(), &limits).await;
    let owner = node.owner("ada").await;
    let mut stores = Vec::new();
    let mut admin = sqlx::PgConnection::connect(&at(primary.port(), "postgres")).await.unwrap();
    for slug in ["tea", "rum"] {
        let store = node.active_store(&owner, Engine::Postgresql, slug).await;
        let inside = at(primary.port(), &database_name(&store));
        let mut inside = sqlx::PgConnection::connect(&inside).await.unwrap();
        let marked =
            sqlx::query("update tenantry.products set title = $1").bind(slug).execute(&mut inside).await.unwrap();
        assert!(marked.rows_affected() > 0);
        inside.close().await.unwrap();
        stores.push(store);
    }
    let (right, over) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
    let mut asking = JoinSet::new();
    for (number, store) in stores.iter().cycle().take(6).enumerate() {
        let mark = ["tea", "rum"][number % 2].to_owned();
        asking.spawn(ask(node.storefront_of(store), mark, Arc::clone(&right), over.clone()));
    }
    let answered = |more: u64| {
        let goal = right.load(Ordering::Relaxed) + more;
        let right = Arc::clone(&right);
        eventually("they are answered", move || {
            let is_reached = right.load(Ordering::Relaxed) >= goal;
            async move { is_reached.then_some(()) }
        })
    };
    answered(50).await;
    let shop = node.storefront_of(&stores[0]);
    let cart = shop.post("/store/v1/carts", Value::Null).await.expect_status(201);
    let shopper = shop.with("x-cart-token", text(&cart["token"]));
    let path = format!("/store/v1/carts/{}", text(&cart["id"]));

    promote(standby, &mut admin).await;
    proxy.fail_over(standby.port(), fate);
    if fate == Fate::End {
        admin.close().await.unwrap();
        primary.kill().await;
    }
    for store in &stores {
        let shop = node.storefront_of(store);
        eventually("the store is served again", || async { (shop.get(PRODUCTS).await.status == 200).then_some(()) })
            .await;
    }
    answered(200).await;
    eventually("the cart is there, on the server that took over", || async {
        let found = shopper.get(&path).await;
        (found.status == 200).then(|| assert_eq!(found.json()["id"], cart["id"]))
    })
    .await;
    let products = shop.get(PRODUCTS).await.expect_status(200);
    let product = shop.get(&format!("{PRODUCTS}/{}", text(&products["data"][0]["handle"]))).await.expect_status(200);
    let line = json!({ "variantId": product["variants"][0]["id"], "quantity": 1 });
    let filled = shopper.post(&format!("{path}/lines"), line).await.expect_status(200);
    assert_eq!(filled["lines"].as_array().map(Vec::len), Some(1), "{filled}");
    shop.post("/store/v1/carts", Value::Null).await.expect_status(201);
    over.cancel();
    asking.join_all().await;
    // What was said into the silence is given up: nothing of it is left.
    eventually("nobody holds or waits for anything", || async {
        let seen = node.internal().get("/internal/pools").await.expect_status(200);
        let left = ["leases", "waiting", "draining"].map(|name| seen["node"][name].as_u64());
        (left == [Some(0); 3]).then_some(())
    })
    .await;
    assert_eq!(node.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_died_is_taken_over_from() {
    a_server_is_taken_over_from(Fate::End).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_went_silent_is_taken_over_from() {
    a_server_is_taken_over_from(Fate::Silence).await;
}
