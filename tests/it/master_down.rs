//! Without master, what is known is served: while it is down, and while it is silent.

use std::net::{Ipv4Addr, SocketAddr};

use integration_tests::{ChaosProxy, Client, eventually};
use serde_json::json;
use sqlx::Connection as _;

use crate::faults::{
    PRODUCTS, Shop, at_once, listening_node, metric, patient_app, resume, run, second_node, suspend, terminate, text,
};

#[tokio::test(flavor = "multi_thread")]
async fn known_stores_are_served_while_master_is_down() {
    let app = patient_app(&[]).await;
    let owner = app.owner("ada").await;
    let (warm, cold) = (Shop::open(&app, &owner, "warm").await, Shop::open(&app, &owner, "cold").await);
    let condemned = Shop::open(&app, &owner, "condemned").await;
    let node = second_node(&app, &[]).await;
    let at = |shop: &Shop| node.storefront(&shop.hostname);
    let api = node.api().with_token(text(&owner.registered["tokens"], "accessToken"));
    let internal = Client::new(node.internal_address, "localhost");
    for shop in [&warm, &condemned] {
        shop.expect_served(&at(shop).get(PRODUCTS).await);
    }
    // No such page: the route is known from now on, and no database was asked.
    at(&cold).get("/no-such-page").await.expect_problem(404, "not-found");
    let connects = metric(&node, "tenantry_connects_total{result=\"ok\"}").await;
    assert!(connects <= 2.0, "{connects} connections were opened: the cold store is not cold");
    assert_eq!(internal.get("/health/ready").await.expect_status(200)["status"], "ready");

    let (mut admin, mut inside) = (app.cluster.admin().await, app.master().await);
    run(&mut admin, &format!("alter database {} allow_connections false", app.master.database)).await;
    terminate(&mut inside, &app.master.database).await;

    for _ in 0..3 {
        for shop in [&warm, &cold, &condemned] {
            shop.expect_served(&at(shop).get(PRODUCTS).await);
        }
    }
    let refused = api.post("/api/stores/create", json!({ "name": "Never", "slug": "never" })).await;
    refused.expect_problem(503, "control-plane-unavailable");
    assert!(!refused.header("retry-after").is_empty());
    let refused = api.post("/api/auth/login", json!({ "email": owner.email, "password": owner.password })).await;
    refused.expect_problem(503, "control-plane-unavailable");
    let stranger = node.storefront("stranger.stores.localhost").get(PRODUCTS).await;
    stranger.expect_problem(503, "directory-unavailable");
    assert!(!stranger.header("retry-after").is_empty());
    assert_eq!(
        internal.get("/health/ready").await.expect_status(200),
        json!({ "status": "degraded", "master": "down", "serversWithoutShare": 0 })
    );
    assert_eq!(internal.get("/health/live").await.expect_status(200)["status"], "live");

    // Nobody is there to hear of it.
    let closed = sqlx::query("update stores set status = 'suspended' where id = $1")
        .bind(condemned.id.as_uuid())
        .execute(&mut inside)
        .await
        .expect("it is suspended");
    assert_eq!(closed.rows_affected(), 1);
    run(&mut admin, &format!("alter database {} allow_connections true", app.master.database)).await;

    eventually("the suspended store is closed", || async {
        (at(&condemned).get(PRODUCTS).await.status != 200).then_some(())
    })
    .await;
    at(&condemned).get(PRODUCTS).await.expect_problem(503, "store-suspended");
    for shop in [&warm, &cold] {
        shop.expect_served(&at(shop).get(PRODUCTS).await);
    }
    assert_eq!(internal.get("/health/ready").await.expect_status(200)["status"], "ready");
    api.post("/api/stores/create", json!({ "name": "Now", "slug": "now" })).await.expect_status(201);
    // The workers are back, too: a store is prepared from start to end.
    Shop::open(&app, &owner, "later").await;
    inside.close().await.expect("it closes");
    node.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_past_its_time_is_served_while_master_is_down_and_not_for_ever() {
    let app = patient_app(&[]).await;
    let owner = app.owner("ada").await;
    let shop = Shop::open(&app, &owner, "stale").await;
    // Every request of these nodes asks master; without an answer one believes its memory, the other does not.
    let believing = second_node(&app, &[("ROUTE_TTL_MS", "0")]).await;
    let strict = second_node(&app, &[("ROUTE_TTL_MS", "0"), ("ROUTE_MAX_STALE_MS", "0")]).await;
    let (believing, strict) =
        ((believing.storefront(&shop.hostname), believing), (strict.storefront(&shop.hostname), strict));
    for client in [&believing.0, &strict.0] {
        shop.expect_served(&client.get(PRODUCTS).await);
    }
    let (mut admin, mut inside) = (app.cluster.admin().await, app.master().await);
    run(&mut admin, &format!("alter database {} allow_connections false", app.master.database)).await;
    terminate(&mut inside, &app.master.database).await;

    for response in at_once(20, &believing.0, PRODUCTS).await {
        shop.expect_served(&response);
    }
    shop.expect_refused(&strict.0.get(PRODUCTS).await, &["directory-unavailable"]);
    run(&mut admin, &format!("alter database {} allow_connections true", app.master.database)).await;
    shop.expect_served(&believing.0.get(PRODUCTS).await);
    shop.expect_served(&strict.0.get(PRODUCTS).await);
    inside.close().await.expect("it closes");
    believing.1.kill().await;
    strict.1.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_notices_that_master_went_silent_and_hears_of_changes_again() {
    let app = patient_app(&[]).await;
    let (owner, root) = (app.owner("ada").await, app.admin().await);
    let shop = Shop::open(&app, &owner, "unheard").await;
    let proxy = ChaosProxy::to(SocketAddr::from((Ipv4Addr::LOCALHOST, app.cluster.port()))).await;
    let port = |port: u16| format!(":{port}/");
    let through_proxy = app.master.url().replace(&port(app.cluster.port()), &port(proxy.port));
    // What it knows of a store it believes for as long as it hears nothing else.
    let believing = [("ROUTE_TTL_MS", "3600000"), ("ROUTE_MAX_STALE_MS", "7200000")];
    let node = listening_node(&through_proxy, &believing).await;
    let there = node.storefront(&shop.hostname);
    shop.expect_served(&there.get(PRODUCTS).await);
    let is_listening = || async { metric(&node, "tenantry_listener_connected").await > 0.0 };

    proxy.stall();
    suspend(&root, &shop).await;
    eventually("the node notices", || async { (!is_listening().await).then_some(()) }).await;
    shop.expect_served(&there.get(PRODUCTS).await);

    proxy.mend();
    eventually("the node listens again", || async { is_listening().await.then_some(()) }).await;
    shop.expect_refused(&there.get(PRODUCTS).await, &["store-suspended"]);
    for _ in 0..2 {
        resume(&root, &shop).await;
        eventually("the node serves", || async { (there.get(PRODUCTS).await.status == 200).then_some(()) }).await;
        suspend(&root, &shop).await;
        eventually("the node refuses", || async { (there.get(PRODUCTS).await.status != 200).then_some(()) }).await;
        shop.expect_refused(&there.get(PRODUCTS).await, &["store-suspended"]);
    }
    node.kill().await;
}
