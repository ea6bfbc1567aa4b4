//! What a database server bears in connections, dealt out among the nodes.

use std::io::Write as _;

use integration_tests::{Cli, Client, Process, TestApp, TestAppOptions, cluster, database_name, eventually};
use kernel::Engine;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::processes::master_with_server;
use crate::scenes::text;

const BUDGET: i32 = 6;
const PRODUCTS: &str = "/store/v1/products";

/// Has a server of ours bear so many connections from now on.
pub(crate) async fn set_budget(master_url: &str, server: &str, connections: i32) {
    let connections = connections.to_string();
    let updated = Cli::json(master_url, &["servers", "update", server, "--max-connections", &connections]).await;
    assert_eq!(updated["maxConnections"].to_string(), connections);
}

/// What each node has, the oldest first.
async fn shares(master: &mut PgConnection) -> Vec<i32> {
    sqlx::query_scalar(
        "select coalesce(s.connections, 0) from nodes n left join server_shares s on s.node_id = n.id order by n.id",
    )
    .fetch_all(master)
    .await
    .unwrap()
}

/// Asks all of these at once, again and again, until it is told to stop. Returns how many were answered; of those that were not
/// each must be a refusal to wait: for a connection to the store's server, or to master.
fn storm(shops: &[Client], at_once: usize, stop: &CancellationToken) -> JoinSet<usize> {
    let mut storm = JoinSet::new();
    for shop in shops.iter().cycle().take(shops.len() * at_once) {
        let (shop, stop) = (shop.clone(), stop.clone());
        storm.spawn(async move {
            let mut answered = 0;
            while !stop.is_cancelled() {
                let response = shop.get(PRODUCTS).await;
                match response.status.as_u16() {
                    200 => answered += 1,
                    503 => {
                        let code = response.json()["code"].as_str().unwrap_or_default().to_owned();
                        // A process under a storm is slow to log in to master as well.
                        assert!(
                            ["store-busy", "directory-unavailable"].contains(&code.as_str()),
                            "{}",
                            response.text()
                        );
                    }
                    other => panic!("{other}: {}", response.text()),
                }
            }
            answered
        });
    }
    storm
}

#[tokio::test(flavor = "multi_thread")]
async fn a_servers_connections_are_dealt_out_and_never_passed_while_nodes_come_and_go() {
    let options = TestAppOptions {
        arguments: [
            ["--store-acquire-timeout-ms", "10000"],
            ["--store-max-connections", "3"],
            ["--route-lookup-timeout-ms", "30000"],
            ["--request-timeout-ms", "50000"],
        ]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect(),
        ..TestAppOptions::default()
    };
    let app = TestApp::start_with(options.clone()).await;
    let owner = app.owner("ada").await;
    let mut stores = Vec::new();
    for name in ["tea", "rum", "ale", "gin"] {
        stores.push(app.active_store(&owner, name).await);
    }
    let mut master = app.master().await;
    set_budget(&app.master.url(), "local", BUDGET).await;
    let hosts: Vec<String> = stores.iter().map(|store| text(&store["hostname"]).to_owned()).collect();
    let at = |address| hosts.iter().map(|host| Client::new(address, host)).collect::<Vec<_>>();
    let first_stop = CancellationToken::new();
    let mut first = storm(&at(app.address), 4, &first_stop);

    let watching = CancellationToken::new();
    let watch = tokio::spawn({
        let (watching, names) = (watching.clone(), stores.iter().map(database_name).collect::<Vec<_>>());
        let mut admin = app.cluster.admin().await;
        let mut master = app.master().await;
        async move {
            let (mut most, mut most_dealt, mut looks) = (0, 0, 0);
            // What was open when the budget was lowered goes first.
            let mut has_settled = false;
            while !watching.is_cancelled() {
                let open: i64 = sqlx::query_scalar(
                    "select count(*) from pg_stat_activity where datname = any($1) and backend_type = 'client backend'",
                )
                .bind(&names)
                .fetch_one(&mut admin)
                .await
                .unwrap();
                let dealt: i32 = shares(&mut master).await.iter().sum();
                has_settled |= open <= i64::from(BUDGET) && dealt <= BUDGET;
                if has_settled {
                    (most, most_dealt, looks) = (most.max(open), most_dealt.max(dealt), looks + 1);
                }
            }
            admin.close().await.unwrap();
            master.close().await.unwrap();
            (most, most_dealt, looks)
        }
    });
    eventually("the first node has all of it", || async {
        (app.cx.stores.server_loads().iter().map(|load| load.limit).sum::<usize>() == 6).then_some(())
    })
    .await;

    let arguments: Vec<&str> = options.arguments.iter().map(String::as_str).collect();
    let other = app.other_node_with(&arguments).await;
    let second_stop = CancellationToken::new();
    let mut second = storm(&at(other.address), 4, &second_stop);
    let other_cx = other.cx.clone();
    eventually("each has half of it", || async {
        let limit = |cx: &control_plane::cx::Cx| cx.stores.server_loads().iter().map(|load| load.limit).sum::<usize>();
        (limit(&app.cx) == 3 && limit(&other_cx) == 3).then_some(())
    })
    .await;

    // One goes, as when a new release takes over; what it has is the other's as soon as it is gone.
    second_stop.cancel();
    let mut answered = 0;
    while let Some(one) = second.join_next().await {
        answered += one.unwrap();
    }
    assert!(answered > 0);
    other.stop().await;
    assert_eq!(shares(&mut master).await.len(), 1);
    eventually("the first node has all of it again", || async {
        (app.cx.stores.server_loads().iter().map(|load| load.limit).sum::<usize>() == 6).then_some(())
    })
    .await;
    first_stop.cancel();
    while let Some(one) = first.join_next().await {
        assert!(one.unwrap() > 0);
    }
    watching.cancel();
    set_budget(&app.master.url(), "local", BUDGET + 3).await;
    eventually("it has what the server bears more", || async {
        (app.cx.stores.server_loads().iter().map(|load| load.limit).sum::<usize>() == 9).then_some(())
    })
    .await;
    let (most, most_dealt, looks) = watch.await.unwrap();
    assert!(looks > 10 && most > 0, "it was looked at: {looks} times, {most} seen");
    assert!(most <= i64::from(BUDGET), "{most} connections");
    assert!(most_dealt <= BUDGET, "{most_dealt} dealt out");
    master.close().await.unwrap();
}

/// A node, and a store on the server of ours that it serves.
async fn node_with_a_store(master_url: &str) -> (Process, Value) {
    let node = Process::serve(master_url, &[]).await;
    let owner = node.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    owner.connect(&store, json!({ "managed": true, "demoProducts": true })).await.expect_status(202);
    assert_eq!(node.run_ended(&owner, &store).await["state"], "succeeded");
    node.storefront_of(&store).get(PRODUCTS).await.expect_status(200);
    (node, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_killed_is_succeeded_by_the_next_one_on_its_machine_at_once() {
    let cluster = cluster().await;
    let master = master_with_server(Engine::Postgresql, cluster).await;
    let (node, store) = node_with_a_store(&master.url()).await;
    let mut admin = master.admin().await;
    let before = shares(&mut admin).await;
    assert_eq!(before.len(), 1, "{before:?}");
    assert!(before[0] > 0);

    node.kill().await;
    assert_eq!(shares(&mut admin).await, before, "nobody has taken note yet");
    let next = Process::serve(&master.url(), &[]).await;
    next.storefront_of(&store).get(PRODUCTS).await.expect_status(200);
    assert_eq!(shares(&mut admin).await, before, "one node, with all of it");
    // Of another machine nobody knows whether it has ended, so what it has stays its own.
    sqlx::query(
        "with elsewhere as (insert into nodes (host, process, started_at, renewed_at, expires_at)
             values ('elsewhere', 'boot/pid:[1] 1 1', now(), now(), now() + interval '1 hour') returning id)
         insert into server_shares (server_id, node_id, connections, wanted, most)
         select v.id, e.id, 5, 5, 5 from database_servers v, elsewhere e",
    )
    .execute(&mut admin)
    .await
    .unwrap();
    set_budget(&master.url(), "local", 8).await;
    let share = || async {
        let mut admin = master.admin().await;
        let seen = shares(&mut admin).await;
        admin.close().await.unwrap();
        seen
    };
    eventually("it has what is left", || async { (share().await == [3, 5]).then_some(()) }).await;
    sqlx::query("update nodes set expires_at = now() where host = 'elsewhere'").execute(&mut admin).await.unwrap();
    eventually("what nobody has any more is forgotten", || async { (share().await.len() == 1).then_some(()) }).await;
    admin.close().await.unwrap();
    assert_eq!(next.terminate().await, Some(0));
    assert_eq!(share().await, [0; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_has_that_has_ended_ops_give_to_the_others() {
    let cluster = cluster().await;
    let master = master_with_server(Engine::Postgresql, cluster).await;
    let (node, store) = node_with_a_store(&master.url()).await;
    assert_eq!(node.terminate().await, Some(0));

    // A machine that is gone had all of the server.
    let mut admin = master.admin().await;
    set_budget(&master.url(), "local", BUDGET).await;
    let gone: i32 = sqlx::query_scalar(
        "with gone as (insert into nodes (host, process, started_at, renewed_at, expires_at)
             values ('gone', 'boot/pid:[1] 1 1', now(), now(), now() + interval '1 hour') returning id),
              share as (insert into server_shares (server_id, node_id, connections, wanted, most)
             select v.id, e.id, $1, $1, $1 from database_servers v, gone e)
         select id from gone",
    )
    .bind(BUDGET)
    .fetch_one(&mut admin)
    .await
    .unwrap();
    let hasty = [("STORE_ACQUIRE_TIMEOUT_MS", "200"), ("STORE_CONNECT_TIMEOUT_MS", "1000")];
    let node = Process::serve(&master.url(), &hasty).await;
    let internal = Client::new(node.internal_address, "localhost");
    let lacking = async || {
        let answer = node.storefront_of(&store).get(PRODUCTS).await;
        let ready = internal.get("/health/ready").await.expect_status(200);
        (answer, ready["serversWithoutShare"].as_u64().unwrap())
    };
    eventually("it is said that it has nothing of the server", || async {
        let (answer, lacking) = lacking().await;
        answer.expect_problem(503, "store-busy");
        (lacking == 1).then_some(())
    })
    .await;
    assert!(
        node.log().contains("are answered store-busy here: all of its connections are other nodes' shares"),
        "{}",
        node.log()
    );

    let command = async |arguments: &[&str]| Cli::run_in(&master.url(), &command_limits(), arguments).await;
    let sick = command(&["doctor", "--json"]).await;
    assert_eq!(sick.status.code(), Some(3));
    let findings: Value = serde_json::from_slice(&sick.stdout).unwrap();
    let detail = |check: &str| {
        let rows = findings["data"].as_array().unwrap().iter().filter(|row| row["check"] == check);
        rows.map(|row| text(&row["detail"]).to_owned()).collect::<Vec<_>>().join("\n")
    };
    assert!(detail("shares").contains(&format!("{BUDGET} of node {gone} on gone (not connected, ")), "{findings}");
    assert!(detail("databases").contains("1 are on servers that could not be looked at"), "{findings}");
    assert!(
        detail("shares").contains(&format!("node {gone} on gone is not connected to master and has {BUDGET} ")),
        "{findings}"
    );
    assert_eq!(detail("server"), "", "nothing is wrong with the server: {findings}");
    let explained = command(&["explain", "host", text(&store["hostname"]), "--json"]).await;
    let explained: Value = serde_json::from_slice(&explained.stdout).unwrap();
    assert_eq!(explained["database"]["cause"], "no-share", "{explained}");
    assert_eq!(explained["refusal"], "503 store-busy", "nobody who lives has a connection: {explained}");

    let listed = Cli::json(&master.url(), &["nodes", "list"]).await;
    let nodes = listed["data"].as_array().unwrap();
    assert_eq!(nodes.len(), 2, "{listed}");
    let of = |id: i32| nodes.iter().find(|node| node["id"] == id).unwrap();
    assert_eq!((&of(gone)["isConnected"], &of(gone)["shares"][0]["connections"]), (&json!(false), &json!(BUDGET)));
    let other = nodes.iter().find(|node| node["id"] != gone).unwrap();
    assert_eq!(other["isConnected"], true, "{listed}");

    let forget = async |id: String| command(&["nodes", "forget", &id, "--json"]).await;
    let code = |output: &std::process::Output| -> Value {
        serde_json::from_slice::<Value>(&output.stderr).unwrap()["code"].clone()
    };
    // What spoke just now may live.
    let refused = forget(gone.to_string()).await;
    assert_eq!((refused.status.code(), code(&refused)), (Some(1), json!("node-alive")));
    assert_eq!(code(&forget(other["id"].to_string()).await), "node-alive");
    assert_eq!(code(&forget("2147483647".to_owned()).await), "not-found");
    assert_eq!(shares(&mut admin).await.iter().max(), Some(&BUDGET));
    sqlx::query("update nodes set renewed_at = now() - interval '1 minute' where id = $1")
        .bind(gone)
        .execute(&mut admin)
        .await
        .unwrap();
    // Of one with a folder it has to be said that nobody goes on with that.
    let mark = "update nodes set process = $2 where id = $1";
    sqlx::query(mark).bind(gone).bind("").execute(&mut admin).await.unwrap();
    assert_eq!(code(&forget(gone.to_string()).await), "node-kept");
    assert_eq!(shares(&mut admin).await.iter().max(), Some(&BUDGET));
    let forgotten = Cli::json(&master.url(), &["nodes", "forget", &gone.to_string(), "--folder-gone"]).await;
    assert_eq!(forgotten["shares"][0]["connections"], BUDGET, "{forgotten}");
    let noted: i64 = sqlx::query_scalar("select count(*) from audit_events where action = 'node_forget'")
        .fetch_one(&mut admin)
        .await
        .unwrap();
    assert_eq!(noted, 1);
    eventually("the others have it", || async {
        let (answer, lacking) = lacking().await;
        (answer.status == 200 && lacking == 0).then_some(())
    })
    .await;
    admin.close().await.unwrap();
    assert_eq!(node.terminate().await, Some(0));
}

/// A command that waits for a connection no longer than it must.
fn command_limits() -> [(&'static str, Option<&'static str>); 2] {
    [("STORE_ACQUIRE_TIMEOUT_MS", Some("200")), ("STORE_CONNECT_TIMEOUT_MS", Some("1000"))]
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_take_part_in_it_and_leave_nothing() {
    let cluster = cluster().await;
    let master = master_with_server(Engine::Postgresql, cluster).await;
    let (node, _) = node_with_a_store(&master.url()).await;
    let mut admin = master.admin().await;
    let before = shares(&mut admin).await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "Handle,Title,Variant SKU,Variant Price\r\nmug,Mug,M-1,9.90\r\n").unwrap();
    let budget: i32 =
        sqlx::query_scalar("select max_connections from database_servers").fetch_one(&mut admin).await.unwrap();
    assert_eq!(before, [budget], "the node has all of the server: it must give back what the command needs");
    let path = file.path().to_str().unwrap();
    let report = Cli::json(&master.url(), &["products", "import", "tea", path]).await;
    assert_eq!(report["productsCreated"], 1, "{report}");
    let after = shares(&mut admin).await;
    assert_eq!(after.len(), 1, "the command is gone: {after:?}");
    admin.close().await.unwrap();
    assert_eq!(node.terminate().await, Some(0));
}
