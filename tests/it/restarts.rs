//! A node that is started again while master is down serves what it knew, no more and not for longer.

use std::path::Path;
use std::process::Output;

use chrono::{DateTime, Utc};
use integration_tests::{Cli, Client, Process, TestApp, eventually, within};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};

use crate::faults::{PRODUCTS, Shop, metric, patient_app, resume, run, second_node, suspend, terminate, text};

/// Nobody comes in, and who is in goes out, but for this connection.
async fn take_master_down(app: &TestApp, admin: &mut PgConnection, inside: &mut PgConnection) {
    run(admin, &format!("alter database {} allow_connections false", app.master.database)).await;
    terminate(inside, &app.master.database).await;
}

async fn bring_master_back(app: &TestApp, admin: &mut PgConnection) {
    run(admin, &format!("alter database {} allow_connections true", app.master.database)).await;
}

/// The nodes that master knows with a folder of their own, and their shares.
async fn kept_nodes(inside: &mut PgConnection) -> Vec<(i32, i64)> {
    sqlx::query_as(
        "select n.id, coalesce(sum(s.connections), 0) from nodes n left join server_shares s on s.node_id = n.id
         where n.process = '' group by n.id order by n.id",
    )
    .fetch_all(inside)
    .await
    .unwrap()
}

/// Waits until this is what a metric says, or more.
async fn at_least(node: &Process, name: &str, wanted: f64) {
    eventually(&format!("{name} is {wanted}"), || async { (metric(node, name).await >= wanted).then_some(()) }).await;
}

/// Waits until a node has told master once more what it needs.
async fn wait_for_renewal(inside: &mut PgConnection, node: i32) {
    let renewed = async |inside: &mut PgConnection| -> DateTime<Utc> {
        let renewed_at = "select renewed_at from nodes where id = $1";
        sqlx::query_scalar(renewed_at).bind(node).fetch_one(inside).await.unwrap()
    };
    let was = renewed(inside).await;
    let mut ticks = tokio::time::interval(std::time::Duration::from_millis(100));
    within("the shares are renewed", async {
        while renewed(inside).await <= was {
            ticks.tick().await;
        }
    })
    .await;
}

fn folder(dir: &tempfile::TempDir) -> &str {
    dir.path().to_str().unwrap()
}

/// Starts a node that has to end by itself.
async fn start_in_vain(app: &TestApp, dir: &Path, more: &[(&str, Option<&str>)]) -> Output {
    let node_data = [("NODE_DATA", Some(dir.to_str().unwrap()))];
    let output = Cli::run_in(&app.master.url(), &[&node_data, more].concat(), &["serve"]).await;
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn log(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_knew_it_serves_after_a_restart_without_master() {
    let app = patient_app(&[]).await;
    let (owner, root) = (app.owner("ada").await, app.admin().await);
    let (known, steady) = (Shop::open(&app, &owner, "known").await, Shop::open(&app, &owner, "steady").await);
    let (closed, condemned) = (Shop::open(&app, &owner, "closed").await, Shop::open(&app, &owner, "condemned").await);
    let dir = tempfile::tempdir().unwrap();
    let kept = [("NODE_DATA", folder(&dir))];
    let node = second_node(&app, &kept).await;
    suspend(&root, &closed).await;
    for shop in [&known, &steady, &condemned] {
        shop.expect_served(&node.storefront(&shop.hostname).get(PRODUCTS).await);
    }
    node.storefront(&closed.hostname).get(PRODUCTS).await.expect_problem(503, "store-suspended");
    at_least(&node, "tenantry_node_data_routes", 4.0).await;
    at_least(&node, "tenantry_node_data_kept", 1.0).await;

    // Of what is announced only now the file has to say so at once, whether the node is asked for it or not.
    suspend(&root, &condemned).await;
    at_least(&node, "tenantry_node_data_outdated_total", 1.0).await;
    let (mut admin, mut inside) = (app.cluster.admin().await, app.master().await);
    let before = kept_nodes(&mut inside).await;
    assert!(matches!(before[..], [(_, share)] if share > 0), "{before:?}");
    node.kill().await;
    take_master_down(&app, &mut admin, &mut inside).await;

    let patient = [
        ("STORE_ACQUIRE_TIMEOUT_MS", "20000"),
        ("STORE_CONNECT_TIMEOUT_MS", "20000"),
        ("REQUEST_TIMEOUT_MS", "50000"),
        kept[0],
    ];
    let node = Process::serve(&app.master.url(), &patient).await;
    let at = |shop: &Shop| node.storefront(&shop.hostname);
    for _ in 0..2 {
        known.expect_served(&at(&known).get(PRODUCTS).await);
        at(&closed).get(PRODUCTS).await.expect_problem(503, "store-suspended");
        at(&condemned).get(PRODUCTS).await.expect_problem(503, "directory-unavailable");
        node.storefront("stranger.stores.localhost").get(PRODUCTS).await.expect_problem(503, "directory-unavailable");
    }
    let internal = Client::new(node.internal_address, "localhost");
    let degraded = json!({ "status": "degraded", "master": "down", "serversWithoutShare": 0 });
    assert_eq!(internal.get("/health/ready").await.expect_status(200), degraded);
    let api = node.api().with_token(text(&owner.registered["tokens"], "accessToken"));
    api.post("/api/stores/create", json!({ "name": "Never", "slug": "never" }))
        .await
        .expect_problem(503, "control-plane-unavailable");
    assert!(
        node.log().contains("hostnames are served as they were known before the restart, until 20"),
        "{}",
        node.log()
    );
    let explain = async |hostname: &str| {
        let address = format!("http://{}/", node.internal_address);
        Cli::json(&app.master.url(), &["explain", "host", hostname, "--node", &address]).await
    };
    let seen = explain(&known.hostname).await;
    assert_eq!(seen["node"]["route"]["status"], "active", "{seen}");
    assert!(text(&seen, "decision").starts_with("served by the node as it knows it, for "), "{seen}");
    assert!(
        text(&explain(&closed.hostname).await, "decision").starts_with("not served, as the node knows it as suspended")
    );
    assert!(text(&seen, "master").contains("cannot be reached"), "{seen}");
    let seen = explain("stranger.stores.localhost").await;
    assert_eq!(seen["node"], json!(null), "{seen}");
    assert!(text(&seen, "decision").contains("503 directory-unavailable"), "{seen}");
    let second = start_in_vain(&app, dir.path(), &[]).await;
    assert!(log(&second).contains("another process uses the folder"), "{}", log(&second));

    // A restart in the middle of it changes nothing, once what is known was written down by this process.
    at_least(&node, "tenantry_node_data_kept", 1.0).await;
    node.kill().await;
    let node = Process::serve(&app.master.url(), &patient).await;
    let at = |shop: &Shop| node.storefront(&shop.hostname);
    known.expect_served(&at(&known).get(PRODUCTS).await);
    at(&condemned).get(PRODUCTS).await.expect_problem(503, "directory-unavailable");

    bring_master_back(&app, &mut admin).await;
    eventually("the suspended store is said to be", || async {
        (at(&condemned).get(PRODUCTS).await.json()["code"] == "store-suspended").then_some(())
    })
    .await;
    eventually("the rest has begun", || async { node.log().contains("master answers again").then_some(()) }).await;
    let outdated = metric(&node, "tenantry_node_data_outdated_total").await;
    resume(&root, &closed).await;
    at_least(&node, "tenantry_node_data_outdated_total", outdated + 1.0).await;
    eventually("what changes is heard of", || async { (at(&closed).get(PRODUCTS).await.status == 200).then_some(()) })
        .await;
    at_least(&node, "tenantry_server_shares_renewed", 1.0).await;
    let after = kept_nodes(&mut inside).await;
    assert_eq!(after.iter().map(|(id, _)| id).collect::<Vec<_>>(), [&before[0].0], "it is the node that it was");

    // Of what is announced to this process, too.
    let outdated = metric(&node, "tenantry_node_data_outdated_total").await;
    suspend(&root, &known).await;
    at_least(&node, "tenantry_node_data_outdated_total", outdated + 1.0).await;
    node.kill().await;
    take_master_down(&app, &mut admin, &mut inside).await;
    let node = Process::serve(&app.master.url(), &patient).await;
    node.storefront(&known.hostname).get(PRODUCTS).await.expect_problem(503, "directory-unavailable");
    steady.expect_served(&node.storefront(&steady.hostname).get(PRODUCTS).await);
    bring_master_back(&app, &mut admin).await;
    at_least(&node, "tenantry_server_shares_renewed", 1.0).await;
    eventually("the rest has begun", || async { node.log().contains("master answers again").then_some(()) }).await;
    steady.expect_served(&node.storefront(&steady.hostname).get(PRODUCTS).await);
    at_least(&node, "tenantry_node_data_kept", 1.0).await;

    // One that is asked to end keeps what it needed, and gives the rest back: also what was open when master was told last.
    for shop in [&steady, &closed] {
        shop.expect_served(&node.storefront(&shop.hostname).get(PRODUCTS).await);
    }
    for _ in 0..2 {
        wait_for_renewal(&mut inside, before[0].0).await;
    }
    assert_eq!(node.terminate().await, Some(0));
    let left = kept_nodes(&mut inside).await;
    assert!(matches!(left[..], [(id, share)] if id == before[0].0 && (2..before[0].1).contains(&share)), "{left:?}");
    take_master_down(&app, &mut admin, &mut inside).await;
    let node = Process::serve(&app.master.url(), &patient).await;
    steady.expect_served(&node.storefront(&steady.hostname).get(PRODUCTS).await);
    bring_master_back(&app, &mut admin).await;
    at_least(&node, "tenantry_server_shares_renewed", 1.0).await;
    // Also what master has not been told yet.
    closed.expect_served(&node.storefront(&closed.hostname).get(PRODUCTS).await);
    assert_eq!(node.terminate().await, Some(0));
    let left = kept_nodes(&mut inside).await;
    assert!(matches!(left[..], [(id, share)] if id == before[0].0 && share >= 2), "{left:?}");
    let node = Process::serve(&app.master.url(), &patient).await;
    at_least(&node, "tenantry_node_data_kept", 1.0).await;

    // Whose folder is gone keeps nothing, and goes on.
    std::fs::remove_dir_all(dir.path()).unwrap();
    eventually("nothing is kept", || async { (metric(&node, "tenantry_node_data_kept").await < 1.0).then_some(()) })
        .await;
    steady.expect_served(&node.storefront(&steady.hostname).get(PRODUCTS).await);
    wait_for_renewal(&mut inside, before[0].0).await;
    assert_eq!(node.terminate().await, Some(0));
    inside.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_is_not_believed_when_it_is_old_or_changed_or_of_others() {
    let app = patient_app(&[]).await;
    let owner = app.owner("ada").await;
    let shop = Shop::open(&app, &owner, "known").await;
    let dir = tempfile::tempdir().unwrap();
    let node = second_node(&app, &[("NODE_DATA", folder(&dir))]).await;
    shop.expect_served(&node.storefront(&shop.hostname).get(PRODUCTS).await);
    at_least(&node, "tenantry_node_data_routes", 1.0).await;
    at_least(&node, "tenantry_node_data_kept", 1.0).await;
    // What cannot be written down is not there: nothing is better than what is not true.
    std::fs::create_dir(dir.path().join("routes.new")).unwrap();
    let unheard = Shop::open(&app, &owner, "unheard").await;
    shop.expect_served(&node.storefront(&shop.hostname).get(PRODUCTS).await);
    unheard.expect_served(&node.storefront(&unheard.hostname).get(PRODUCTS).await);
    eventually("it is removed", || async { (!dir.path().join("routes").exists()).then_some(()) }).await;
    eventually("that is told", || async { (metric(&node, "tenantry_node_data_kept").await < 1.0).then_some(()) }).await;
    std::fs::remove_dir(dir.path().join("routes.new")).unwrap();
    at_least(&node, "tenantry_node_data_routes", 2.0).await;
    at_least(&node, "tenantry_node_data_kept", 1.0).await;
    node.kill().await;
    for name in ["routes", "shares"] {
        let kept = std::fs::read(dir.path().join(name)).unwrap();
        for told in [shop.hostname.as_bytes(), shop.database.as_bytes(), shop.id.to_string().as_bytes()] {
            assert!(!kept.windows(told.len()).any(|bytes| bytes == told), "{name} is not sealed");
        }
    }

    let (mut admin, mut inside) = (app.cluster.admin().await, app.master().await);
    take_master_down(&app, &mut admin, &mut inside).await;
    let old = start_in_vain(&app, dir.path(), &[("ROUTE_MAX_STALE_MS", Some("0"))]).await;
    assert!(log(&old).contains("the master database cannot be reached"), "{}", log(&old));
    assert!(log(&old).contains("and are served for 0 s (ROUTE_MAX_STALE_MS)"), "{}", log(&old));
    let empty = tempfile::tempdir().unwrap();
    let new = start_in_vain(&app, empty.path(), &[]).await;
    assert!(log(&new).contains("no hostname is known in NODE_DATA"), "{}", log(&new));
    let key = "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI=";
    let others = start_in_vain(&app, dir.path(), &[("ENCRYPTION_KEY", Some(key))]).await;
    assert!(log(&others).contains("cannot be read"), "{}", log(&others));
    let wrong = app.master.url().replacen("//", "//nobody:", 1);
    let refused = start_in_vain(&app, dir.path(), &[("MASTER_DB_URL", Some(&wrong))]).await;
    assert!(log(&refused).contains("the master database cannot be reached"), "a login that is refused is no outage");
    let path = dir.path().join("routes");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let sound = std::fs::read(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let changed = start_in_vain(&app, dir.path(), &[]).await;
    assert!(log(&changed).contains("cannot be read"), "{}", log(&changed));
    // Nobody has written over it in vain.
    std::fs::write(&path, sound).unwrap();
    let node = Process::serve(&app.master.url(), &[("NODE_DATA", folder(&dir))]).await;
    shop.expect_served(&node.storefront(&shop.hostname).get(PRODUCTS).await);
    bring_master_back(&app, &mut admin).await;
    node.kill().await;
    inside.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_while_a_node_was_away_it_reads_in_the_log() {
    let app = patient_app(&[]).await;
    let (owner, root) = (app.owner("ada").await, app.admin().await);
    let (steady, condemned) = (Shop::open(&app, &owner, "steady").await, Shop::open(&app, &owner, "condemned").await);
    let dir = tempfile::tempdir().unwrap();
    let kept = [("NODE_DATA", folder(&dir))];
    let node = second_node(&app, &kept).await;
    for shop in [&steady, &condemned] {
        shop.expect_served(&node.storefront(&shop.hostname).get(PRODUCTS).await);
    }
    at_least(&node, "tenantry_node_data_routes", 2.0).await;
    node.kill().await;
    suspend(&root, &condemned).await;

    // It reads on where the process before it was, and then loses master before anybody asks for the store.
    let node = second_node(&app, &kept).await;
    let (mut admin, mut inside) = (app.cluster.admin().await, app.master().await);
    take_master_down(&app, &mut admin, &mut inside).await;
    steady.expect_served(&node.storefront(&steady.hostname).get(PRODUCTS).await);
    node.storefront(&condemned.hostname).get(PRODUCTS).await.expect_problem(503, "directory-unavailable");
    bring_master_back(&app, &mut admin).await;
    node.kill().await;
    inside.close().await.unwrap();
}
