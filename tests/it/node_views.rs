//! What a running node shows its operators of itself and of one store.

use integration_tests::{Cli, Client, Process, cluster, eventually};
use kernel::Engine;
use serde_json::json;
use sqlx::Connection as _;

use crate::processes::master_with_server;
use crate::scenes::text;

const PRODUCTS: &str = "/store/v1/products";

#[tokio::test(flavor = "multi_thread")]
async fn a_node_shows_its_pools_and_what_it_knows_of_a_store() {
    let cluster = cluster().await;
    let master = master_with_server(Engine::Postgresql, cluster).await;
    let url = master.url();
    let node = Process::serve(&url, &[]).await;
    let owner = node.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    owner.connect(&store, json!({ "managed": true, "demoProducts": true })).await.expect_status(202);
    assert_eq!(node.run_ended(&owner, &store).await["state"], "succeeded");
    node.storefront_of(&store).get(PRODUCTS).await.expect_status(200);
    let (id, host) = (text(&store["id"]), text(&store["hostname"]));
    let address = node.internal_address.to_string();

    let seen = Cli::json(&url, &["pools", "--node", &address]).await;
    assert_eq!(seen["stores"][0]["store_id"], id, "{seen}");
    assert_eq!(seen["stores"][0]["server_id"], seen["servers"][0]["server_id"], "{seen}");
    assert!(seen["servers"][0]["limit"].as_u64() >= seen["servers"][0]["open"].as_u64(), "{seen}");
    assert!(seen["node"]["open"].as_u64() > Some(0), "{seen}");
    let shown = Cli::run(&url, &["pools", "--node", &address]).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("BREAKER") && shown.contains(id) && shown.contains("closed"), "{shown}");

    let explained = Cli::json(&url, &["explain", "host", host, "--node", &address]).await;
    assert_eq!(explained["decision"], "served", "{explained}");
    assert_eq!(explained["node"]["route"]["version"], explained["store"]["routeVersion"], "{explained}");
    assert!(explained["node"]["route"]["age_ms"].is_u64() && explained["node"]["pool"]["open"].is_u64(), "{explained}");
    let told = Cli::run(&url, &["explain", "host", host, "--node", &address]).await;
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("breaker     closed") && told.contains("pool        1 open"), "{told}");

    let internal = Client::new(node.internal_address, "localhost");
    let numbers = internal.get(&format!("/metrics/stores/{id}")).await.text();
    assert!(numbers.contains(&format!("tenantry_store_connections_open{{store=\"{id}\"}} 1\n")), "{numbers}");
    let stranger = "sto_00000000000000000000000001";
    internal.get(&format!("/metrics/stores/{stranger}")).await.expect_status(404);
    assert_eq!(internal.get(&format!("/internal/stores/{stranger}")).await.expect_status(200), json!(null));
    let all = internal.get("/metrics").await.text();
    assert!(!all.contains(id), "what is scraped names no store");
    let server = text(&seen["servers"][0]["server_id"]);
    assert!(all.contains(&format!("tenantry_server_connections_limit{{server=\"{server}\"}}")), "{all}");
    // From outside nobody gets there.
    node.api().get("/internal/pools").await.expect_status(404);
    for command in [&["pools"][..], &["explain", "host", host], &["explain", "host", host, "--json"]] {
        let public = node.address.to_string();
        let said = Cli::run(&url, &[command, &["--node", &public]].concat()).await;
        let said = [said.stdout, said.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains(&format!("{public} is no node's INTERNAL_LISTEN")), "{said}");
    }

    assert_eq!(node.terminate().await, Some(0));
    let refused = Cli::run(&url, &["pools", "--node", &address]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("does not answer"));
    let alone = Cli::json(&url, &["explain", "host", host, "--node", &address]).await;
    assert_eq!((&alone["decision"], &alone["node"]), (&json!("served"), &json!(null)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_warms_the_stores_that_are_used_most() {
    let cluster = cluster().await;
    let master = master_with_server(Engine::Postgresql, cluster).await;
    let url = master.url();
    let node = Process::serve(&url, &[("USAGE_FLUSH_MS", "100")]).await;
    let owner = node.owner("ada").await;
    let mut stores = Vec::new();
    for (name, requests) in [("tea", 1), ("rum", 5), ("ale", 3), ("gin", 0)] {
        let store = node.active_store(&owner, Engine::Postgresql, name).await;
        for _ in 0..requests {
            node.storefront_of(&store).get(PRODUCTS).await.expect_status(200);
        }
        stores.push(text(&store["id"]).to_owned());
    }
    let mut admin = master.admin().await;
    eventually("all are counted", || async {
        let mut admin = master.admin().await;
        let counted = sqlx::query_scalar(
            "select coalesce(sum(quantity), 0)::bigint from usage_metrics where metric = 'requests'",
        );
        let counted: i64 = counted.fetch_one(&mut admin).await.unwrap();
        admin.close().await.unwrap();
        (counted == 9).then_some(())
    })
    .await;
    // One that is closed since is not entered.
    sqlx::query("update stores set status = 'suspended' where slug = 'ale'").execute(&mut admin).await.unwrap();
    admin.close().await.unwrap();
    let next = Process::serve(
        &url,
        &[
            ("WARM_UP_STORES", "3"),
            ("STORE_VISIT_POLL_MS", "3600000"),
            ("STORE_ACQUIRE_TIMEOUT_MS", "20000"),
            ("STORE_CONNECT_TIMEOUT_MS", "20000"),
            ("STORE_IDLE_TIMEOUT_MS", "3600000"),
            ("ROUTE_LOOKUP_TIMEOUT_MS", "20000"),
        ],
    )
    .await;
    let pools = async || next.internal().get("/internal/pools").await.expect_status(200)["stores"].clone();
    eventually("two are warm", || async {
        let pools = pools().await;
        let open = pools.as_array().unwrap().iter().filter(|pool| pool["pool"]["idle"] == 1).count();
        (open == 2).then_some(())
    })
    .await;
    let mut warm: Vec<String> =
        pools().await.as_array().unwrap().iter().map(|pool| text(&pool["store_id"]).to_owned()).collect();
    warm.sort();
    let mut wanted = vec![stores[0].clone(), stores[1].clone()];
    wanted.sort();
    assert_eq!(warm, wanted);
    assert_eq!(node.terminate().await, Some(0));
    assert_eq!(next.terminate().await, Some(0));
}
