//! Long runs, for `cargo xtask soak`: many kills, a hammer of many stores, a large import.

#![expect(clippy::print_stdout, reason = "what a long run did is for whoever reads along")]

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use control_plane::audit::Actor;
use integration_tests::{Cli, TestApp, TestAppOptions, own_cluster};
use kernel::Engine;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::hammer::{Blows, hammer};
use crate::processes::survive_kills;
use crate::provisioning::{seeded, store_id};

on_each_engine! {
    #[ignore = "soak"]
    runs_survive_ten_kills_each
    #[ignore = "soak"]
    a_minute_of_connecting_cancelling_and_suspending_leaves_every_store_whole
    #[ignore = "soak"]
    fifty_thousand_rows_are_imported_while_the_storefront_answers
}

async fn runs_survive_ten_kills_each(engine: Engine) {
    let cluster = own_cluster(&format!("kills-{engine}")).await;
    let hits = survive_kills(engine, cluster, 6, 10).await;
    println!("{hits} of 60 kills hit an unfinished run");
    assert!(hits >= 20, "too few kills hit anything: {hits}");
}

#[test]
#[ignore = "soak"]
fn the_ledger_decides_as_its_model_does_two_thousand_times() {
    crate::ledger::agree_on(2000, 80);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak"]
async fn thousands_of_credit_requests_are_decided_once_through_forty_deaths() {
    crate::deaths::survive_deaths(24, 150, 40).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak"]
async fn three_hundred_stores_are_hammered_for_ten_minutes() {
    let blows = Blows {
        stores: 300,
        budget: 40,
        askers: 48,
        time: Duration::from_secs(600),
        between_node_deaths: Duration::from_secs(20),
        between_server_deaths: Duration::from_secs(45),
    };
    println!("{}", hammer("hammer-long", blows).await);
}

fn path(store: &Value, rest: &str) -> String {
    format!("/api/stores/{}{rest}", store["id"].as_str().unwrap())
}

async fn a_minute_of_connecting_cancelling_and_suspending_leaves_every_store_whole(engine: Engine) {
    const STORES: usize = 12;
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let mut stores = Vec::new();
    for at in 0..STORES {
        stores.push(owner.create_store(&format!("store-{at}")).await.expect_status(201));
    }
    let until = Instant::now() + Duration::from_secs(60);
    let mut hammers = JoinSet::new();
    for store in &stores {
        let (store, owner, cx) = (store.clone(), owner.clone(), app.cx.clone());
        let managed = app.managed_body(false);
        let shop = app.storefront_of(&store);
        hammers.spawn(async move {
            let mut done = 0_usize;
            while Instant::now() < until {
                let answer = match kernel::random::below(24) {
                    0..=3 => owner.connect(&store, managed.clone()).await,
                    4 => owner.api.post(&path(&store, "/provisioning/cancel"), json!({})).await,
                    5 => owner.api.post(&path(&store, "/provisioning/retry"), json!({})).await,
                    _ => shop.get("/store/v1/products").await,
                };
                // Whatever comes when: an answer that makes sense, and never a failure of ours.
                assert!([200, 202, 404, 409, 503].contains(&answer.status.as_u16()), "{}", answer.text());
                if kernel::random::below(4) == 0 {
                    // Refused while it is not served, which is as good.
                    drop(control_plane::stores::suspend(&cx, Actor::Cli, store_id(&store), "hammer").await);
                    drop(control_plane::stores::resume(&cx, Actor::Cli, store_id(&store)).await);
                }
                done += 1;
            }
            done
        });
    }
    let done: usize = hammers.join_all().await.into_iter().sum();

    let mut ends = std::collections::BTreeMap::<String, usize>::new();
    for store in &stores {
        let latest = owner.api.get(&path(store, "/provisioning")).await;
        if latest.status == 404 {
            continue;
        }
        let run = app.run_ended(&owner, store).await;
        let detail = owner.api.get(&path(store, "")).await.expect_status(200);
        let status = detail["status"].as_str().unwrap().to_owned();
        *ends.entry(format!("{} {status}", run["state"].as_str().unwrap())).or_default() += 1;
        match run["state"].as_str().unwrap() {
            "succeeded" => assert_eq!(status, "active", "{run}"),
            "cancelled" => assert_eq!(status, "pending_database", "{run}"),
            _ => panic!("a run failed: {run}"),
        }
        if status == "pending_database" {
            owner.connect(store, app.managed_body(false)).await.expect_status(202);
            let run = app.run_ended(&owner, store).await;
            assert_eq!(run["state"], "succeeded", "{run}");
        }
        app.storefront_of(store).get("/store/v1/products").await.expect_status(200);
        let seeds = seeded(&mut app.inside(store).await).await;
        assert!(seeds.contains(&("staff", 1)), "{seeds:?}");
    }
    println!("{done} calls on {STORES} stores; ends: {ends:?}");
}

async fn fifty_thousand_rows_are_imported_while_the_storefront_answers(engine: Engine) {
    const PRODUCTS: usize = 25_000;
    // Beside the other long runs it takes as long as it takes.
    let arguments = ["--import-timeout-ms", "3600000"].map(str::to_owned).into();
    let app = TestApp::start_on_with(engine, TestAppOptions { arguments, ..TestAppOptions::default() }).await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    owner.connect(&store, app.managed_body(false)).await.expect_status(202);
    assert_eq!(app.run_ended(&owner, &store).await["state"], "succeeded");
    let mut csv = "Handle,Title,Option1 Name,Option1 Value,Variant SKU,Variant Price\n".to_owned();
    for at in 0..PRODUCTS {
        let _ = writeln!(csv, "p-{at},Product {at},Size,S,{at}-S,1.00\np-{at},,,L,{at}-L,2.00");
    }
    let shop = app.storefront_of(&store);
    // The harness's own limit on a request is a minute; this one may take longer.
    let (address, token) = (app.address, owner.registered["tokens"]["accessToken"].as_str().unwrap().to_owned());
    let import = path(&store, "/products/import");
    let send = |csv: String| {
        let (import, token) = (import.clone(), token.clone());
        async move { post_csv(address, &import, &token, csv).await }
    };

    let began = Instant::now();
    let importing = tokio::task::spawn(send(csv.clone()));
    let mut asked = 0;
    while !importing.is_finished() {
        shop.get("/store/v1/products?limit=20").await.expect_status(200);
        asked += 1;
    }
    let report = importing.await.unwrap();

    println!("50,000 rows in {:?}, {asked} storefront requests meanwhile", began.elapsed());
    assert_eq!((&report["rows"], &report["productsCreated"]), (&json!(2 * PRODUCTS), &json!(PRODUCTS)), "{report}");
    let again = send(csv).await;
    assert_eq!((&again["productsCreated"], &again["productsUnchanged"]), (&json!(0), &json!(PRODUCTS)), "{again}");
    let mut inside = app.inside(&store).await;
    for (table, wanted) in [("products", PRODUCTS), ("product_variants", 2 * PRODUCTS)] {
        assert_eq!(inside.number(&format!("select count(*) from {table}")).await, wanted as i64, "{table}");
    }
    inside.close().await;
    assert!(Cli::run("unused", &["openapi"]).await.status.success());
}

/// Sends a file and waits for as long as it takes.
async fn post_csv(address: std::net::SocketAddr, path: &str, token: &str, csv: String) -> Value {
    let client = integration_tests::Client::new(address, "localhost").with_token(token);
    let request = client
        .build(http::Method::POST, path)
        .header("content-type", "text/csv")
        .body(axum::body::Body::from(csv))
        .unwrap();
    let response = client.open(request).await;
    assert_eq!(response.status(), 200);
    let bytes = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    serde_json::from_slice(&bytes).unwrap()
}
