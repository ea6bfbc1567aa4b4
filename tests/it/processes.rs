//! The built program: its commands, its signals, and what a `kill -9` leaves behind.

#![expect(clippy::print_stdout, reason = "how long it took is for whoever reads along")]

use std::io::Write as _;
use std::time::{Duration, Instant};

use control_plane::provisioning::managed_name;
use devkit::testing::{TransactionPooler, shared_mariadb};
use integration_tests::{
    Brought, Cli, Cluster, OwnServer, Owner, Process, StoreSql, TestDatabase, cluster, database_name, eventually,
    within,
};
use kernel::Engine;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::provisioning::{seeded, store_id};
use crate::visits::waiting_for_locks;

fn id_of(store: &Value) -> &str {
    store["id"].as_str().unwrap()
}

on_each_engine! {
    a_run_survives_kill_9_at_random_moments_and_nothing_is_doubled
    the_program_registers_logs_in_and_serves_both_kinds_of_database
    sigterm_lets_requests_finish_and_exits_with_0
    a_suspension_by_command_reaches_running_nodes_and_a_resumption_too
    servers_are_added_listed_and_drained
    a_login_that_may_not_create_databases_is_no_server
    stores_are_listed_shown_and_provisioned
    a_command_provisions_through_the_node_that_serves_whichever_comes_first
    a_host_is_explained
    the_doctor_finds_what_was_left_behind_and_changes_nothing
    products_are_imported_from_a_file_after_a_dry_run
}

/// How the administrator reaches the shared server of an engine; of PostgreSQL, `cluster`.
pub(crate) async fn server_url(engine: Engine, cluster: &Cluster) -> String {
    match engine {
        Engine::Mysql => shared_mariadb().await.url("mysql"),
        _ => cluster.url("postgres"),
    }
}

/// A migrated master, with a server for stores of this engine registered.
pub(crate) async fn master_with_server(engine: Engine, cluster: &Cluster) -> TestDatabase {
    let master = cluster.master().await;
    Cli::add_server(&master.url(), "local", &server_url(engine, cluster).await).await;
    master
}

/// Works off `runs` runs, and kills the node `kills` times at random moments of each.
pub(crate) async fn survive_kills(engine: Engine, cluster: &Cluster, runs: usize, kills: usize) -> usize {
    let master = master_with_server(engine, cluster).await;
    let url = master.url();
    let managed = json!({ "managed": true, "engine": engine, "demoProducts": true });
    let mut node = Process::serve(&url, &[]).await;
    let mut owner = node.owner("ada").await;
    let model = owner.create_store("model").await.expect_status(201);
    owner.connect(&model, managed.clone()).await.expect_status(202);
    assert_eq!(node.run_ended(&owner, &model).await["state"], "succeeded");
    let wanted = seeded(&mut StoreSql::open(engine, cluster, &database_name(&model)).await).await;
    let (mut hits, mut keep) = (0, Vec::new());
    for at in 0..runs {
        let store = owner.create_store(&format!("store-{at}")).await.expect_status(201);
        let (name, body) = if at % 2 == 0 {
            (database_name(&store), managed.clone())
        } else {
            let database = Brought::create(engine, cluster).await;
            let body = json!({ "connectionString": database.url(), "demoProducts": true });
            let name = database.name().to_owned();
            keep.push(database);
            (name, body)
        };
        let accepted = owner.connect(&store, body).await.expect_status(202);

        node.kill_at(random_moment(&master, &store)).await;
        for _ in 1..kills {
            hits += usize::from(is_unfinished(&master, &store).await);
            // A node is killed while it starts, too.
            let mut starting = Box::pin(Process::serve(&url, &[]));
            let mut moment = Box::pin(random_moment(&master, &store));
            tokio::select! {
                () = &mut moment => drop(starting),
                node = &mut starting => node.kill_at(moment).await,
            }
        }
        hits += usize::from(is_unfinished(&master, &store).await);
        node = Process::serve(&url, &[]).await;
        owner = owner.at(node.address);

        let run = node.run_ended(&owner, &store).await;
        assert_eq!((&run["state"], &run["id"]), (&json!("succeeded"), &accepted["run"]["id"]), "{run}");
        node.storefront_of(&store).get("/store/v1/products").await.expect_status(200);
        assert_eq!(seeded(&mut StoreSql::open(engine, cluster, &name).await).await, wanted);
        let counts: (i64, i64, i64, i64) = sqlx::query_as(
            "select (select count(*) from provisioning_runs where store_id = $1),
                    (select count(*) from store_databases where store_id = $1),
                    (select count(*) from hostnames where store_id = $1),
                    (select count(*) from provisioning_events e join provisioning_runs r on r.id = e.run_id
                     where r.store_id = $1 and e.type = 'succeeded')",
        )
        .bind(store_id(&store).as_uuid())
        .fetch_one(&mut master.admin().await)
        .await
        .unwrap();
        assert_eq!(counts, (1, 1, 1, 1));
    }
    assert_eq!(node.terminate().await, Some(0));
    hits
}

/// A moment of the store's run: after some more of its events, and a little later.
async fn random_moment(master: &TestDatabase, store: &Value) {
    let mut connection = master.admin().await;
    let start = events(&mut connection, store).await.0;
    let further = i64::try_from(kernel::random::below(5)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (count, has_ended) = events(&mut connection, store).await;
        if count >= start + further || has_ended || Instant::now() > deadline {
            break;
        }
        tokio::task::yield_now().await;
    }
    // The one place where time passes on purpose: moments between two events are moments, too.
    tokio::time::sleep(Duration::from_micros(kernel::random::below(30_000))).await;
    connection.close().await.unwrap();
}

async fn events(connection: &mut PgConnection, store: &Value) -> (i64, bool) {
    sqlx::query_as(
        "select count(e.id), coalesce(bool_or(r.finished_at is not null), false)
         from provisioning_runs r left join provisioning_events e on e.run_id = r.id where r.store_id = $1",
    )
    .bind(store_id(store).as_uuid())
    .fetch_one(connection)
    .await
    .unwrap()
}

async fn is_unfinished(master: &TestDatabase, store: &Value) -> bool {
    !events(&mut master.admin().await, store).await.1
}

trait KillAt {
    async fn kill_at(self, moment: impl Future<Output = ()>);
}

impl KillAt for Process {
    async fn kill_at(self, moment: impl Future<Output = ()>) {
        moment.await;
        self.kill().await;
    }
}

async fn a_run_survives_kill_9_at_random_moments_and_nothing_is_doubled(engine: Engine) {
    survive_kills(engine, cluster().await, 2, 2).await;
}

async fn the_program_registers_logs_in_and_serves_both_kinds_of_database(engine: Engine) {
    let cluster = cluster().await;
    let master = master_with_server(engine, cluster).await;
    let node = Process::serve(&master.url(), &[]).await;
    let register = json!({ "email": "ada@example.com", "password": "correct horse", "firstName": "Ada", "lastName": "L", "storeName": "Tea" });
    let registered = node.api().post("/api/auth/register", register).await.expect_status(201);
    let login = json!({ "email": "ada@example.com", "password": "correct horse" });
    node.api().post("/api/auth/login", login).await.expect_status(200);
    assert_eq!(registered["store"]["status"], "pending_database");

    let owner = node.owner("bob").await;
    let managed = node.active_store(&owner, engine, "managed-shop").await;
    let brought = Brought::create(engine, cluster).await;
    let store = owner.create_store("brought-shop").await.expect_status(201);
    owner.connect(&store, brought.body()).await.expect_status(202);
    assert_eq!(node.run_ended(&owner, &store).await["state"], "succeeded");

    let full = node.storefront_of(&managed).get("/store/v1/products").await.expect_status(200);
    let empty = node.storefront_of(&store).get("/store/v1/products").await.expect_status(200);
    assert!(!full["data"].as_array().unwrap().is_empty());
    assert!(empty["data"].as_array().unwrap().is_empty());
    node.storefront("nobody.stores.localhost").get("/store/v1/products").await.expect_problem(421, "unknown-host");
    assert_eq!(node.internal().get("/health/ready").await.expect_status(200)["status"], "ready");
    assert_eq!(node.terminate().await, Some(0));
}

async fn sigterm_lets_requests_finish_and_exits_with_0(engine: Engine) {
    let cluster = cluster().await;
    let master = master_with_server(engine, cluster).await;
    let node = Process::serve(&master.url(), &[]).await;
    let owner = node.owner("ada").await;
    let store = node.active_store(&owner, engine, "tea").await;
    let database = database_name(&store);
    let mut inside = StoreSql::open(engine, cluster, &database).await;
    inside.lock_table("products").await;
    let shop = node.storefront_of(&store);
    let asking = tokio::task::spawn(async move { shop.get("/store/v1/products").await });
    waiting_for_locks(&mut StoreSql::server(engine, cluster).await, &database, 1).await;

    let (address, log) = (node.address, node.log_handle());
    let ending = tokio::task::spawn(node.terminate());
    eventually("the closed door", || async { tokio::net::TcpStream::connect(address).await.is_err().then_some(()) })
        .await;
    assert!(!ending.is_finished());
    inside.unlock().await;

    asking.await.unwrap().expect_status(200);
    assert_eq!(ending.await.unwrap(), Some(0), "{}", log.lock().unwrap());
    assert_eq!(inside.sessions(&database).await.len(), 0);
}

async fn a_suspension_by_command_reaches_running_nodes_and_a_resumption_too(engine: Engine) {
    let cluster = cluster().await;
    let master = master_with_server(engine, cluster).await;
    let url = master.url();
    let (one, two) = tokio::join!(Process::serve(&url, &[]), Process::serve(&url, &[]));
    let owner = one.owner("ada").await;
    let store = one.active_store(&owner, engine, "tea").await;
    let shops = [one.storefront_of(&store), two.storefront_of(&store)];
    for shop in &shops {
        shop.get("/store/v1/products").await.expect_status(200);
    }

    let shown = Cli::json(&master.url(), &["stores", "suspend", id_of(&store), "--reason", "unpaid bills"]).await;
    let began = Instant::now();
    for shop in &shops {
        let refused = eventually("the suspension", || async {
            let answer = shop.get("/store/v1/products").await;
            (answer.status == 503).then_some(answer)
        })
        .await;
        refused.expect_problem(503, "store-suspended");
        assert!(!refused.text().contains("unpaid"), "why it is closed is no matter of shoppers: {}", refused.text());
    }
    println!("the suspension reached both nodes {:?} after the command", began.elapsed());
    assert_eq!((&shown["status"], &shown["statusReason"]), (&json!("suspended"), &json!("unpaid bills")));
    assert!(began.elapsed() < Duration::from_secs(20), "not by the routes' own lifetime");

    Cli::json(&master.url(), &["stores", "resume", id_of(&store)]).await;
    for shop in &shops {
        eventually("the resumption", || async { (shop.get("/store/v1/products").await.status == 200).then_some(()) })
            .await;
    }
}

async fn servers_are_added_listed_and_drained(engine: Engine) {
    let cluster = cluster().await;
    let master = cluster.master().await;
    let url = master.url();
    let server = server_url(engine, cluster).await;
    let added = Cli::add_server(&url, "eu-1", &server).await;
    assert_eq!((&added["name"], &added["status"], &added["stores"]), (&json!("eu-1"), &json!("active"), &json!(0)));

    let listed = Cli::json(&url, &["servers", "list"]).await;
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);
    let drained = Cli::json(&url, &["servers", "drain", "eu-1"]).await;
    assert_eq!(drained["status"], "draining");
    let activated = Cli::json(&url, &["servers", "activate", "eu-1"]).await;
    assert_eq!(activated["status"], "active");
    let updated = Cli::json(&url, &["servers", "update", "eu-1", "--max-stores", "5", "--max-connections", "30"]).await;
    assert_eq!((&updated["maxStores"], &updated["maxConnections"]), (&json!(5), &json!(30)));
    let updated = Cli::json(&url, &["servers", "update", id_of(&added), "--max-connections", "20"]).await;
    assert_eq!((&updated["maxStores"], &updated["maxConnections"]), (&json!(5), &json!(20)));
    // What opens no credential needs no key.
    let keyless = [("ENCRYPTION_KEY", None)];
    let update = ["servers", "update", "eu-1", "--max-stores", "6"];
    for command in [&["servers", "list"][..], &["stores", "list"], &["servers", "drain", "eu-1"], &update] {
        let output = Cli::run_in(&url, &keyless, command).await;
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let add = [("ENCRYPTION_KEY", Some("")), ("SERVER_URL", Some("postgres://a:b@127.0.0.1:1/d"))];
    let refused = Cli::run_in(&url, &add, &["servers", "add", "eu-9"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("ENCRYPTION_KEY"));

    let password = server.split(':').nth(2).unwrap().split('@').next().unwrap().to_owned();
    let again = Cli::run_in(&url, &[("SERVER_URL", Some(&server))], &["servers", "add", "eu-1"]).await;
    let wrong = server.replace(&password, "wrong-password-here");
    let refused = Cli::run_in(&url, &[("SERVER_URL", Some(&wrong))], &["servers", "add", "eu-2"]).await;
    let missing = Cli::run(&url, &["servers", "drain", "nowhere"]).await;
    let unknown = Cli::run(&url, &["servers", "update", "nowhere", "--max-stores", "6"]).await;
    let nothing = Cli::run(&url, &["servers", "update", "eu-1", "--max-connections", "0"]).await;
    let unsaid = Cli::run(&url, &["servers", "update", "eu-1"]).await;
    assert_eq!(unsaid.status.code(), Some(2), "{}", String::from_utf8_lossy(&unsaid.stderr));
    let twin = server.replace("127.0.0.1", "localhost");
    let twin = Cli::run_in(&url, &[("SERVER_URL", Some(&twin))], &["servers", "add", "eu-1-again"]).await;
    let says_twin = "registered already, as server eu-1";
    for (output, says) in [
        (again, "server of this name"),
        (twin, says_twin),
        (refused, "wrong-password"),
        (missing, "no such server"),
        (unknown, "no such server"),
        (nothing, "at least 1"),
    ] {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(says) && !text.contains(&password) && !text.contains("wrong-password-here"), "{text}");
    }
    let human = Cli::run(&url, &["servers", "list"]).await;
    assert!(String::from_utf8_lossy(&human.stdout).contains("eu-1"));
}

async fn a_login_that_may_not_create_databases_is_no_server(engine: Engine) {
    let cluster = cluster().await;
    let master = cluster.master().await;
    let weak = Brought::create(engine, cluster).await;
    let needed = if engine == Engine::Mysql { "CREATE USER" } else { "CREATEDB" };
    let refused = Cli::run_in(&master.url(), &[("SERVER_URL", Some(&weak.url()))], &["servers", "add", "weak"]).await;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text.contains(needed) && !text.contains(&weak.password()), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_behind_a_transaction_pooler_is_refused_with_what_to_register_instead() {
    let master = cluster().await.master().await;
    let pooler = TransactionPooler::start().await;
    let url = format!("postgres://admin:hush-hush@127.0.0.1:{}/postgres", pooler.port);

    let refused = Cli::run_in(&master.url(), &[("SERVER_URL", Some(&url))], &["servers", "add", "pooled"]).await;

    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains("the server itself") && !text.contains("hush-hush"), "{text}");
    assert_eq!(Cli::json(&master.url(), &["servers", "list"]).await["data"], json!([]));
}

async fn stores_are_listed_shown_and_provisioned(engine: Engine) {
    let cluster = cluster().await;
    let master = master_with_server(engine, cluster).await;
    let url = master.url();
    let node = Process::serve(&url, &[]).await;
    let owner = node.owner("ada").await;
    let mut ids = Vec::new();
    for slug in ["one", "two", "three"] {
        ids.push(owner.create_store(slug).await.expect_status(201));
    }

    let first = Cli::json(&url, &["stores", "list", "--limit", "2"]).await;
    let cursor = first["meta"]["nextCursor"].as_str().unwrap();
    let second = Cli::json(&url, &["stores", "list", "--limit", "2", "--cursor", cursor]).await;
    let slugs: Vec<&str> = [&first, &second]
        .iter()
        .flat_map(|page| page["data"].as_array().unwrap())
        .map(|store| store["slug"].as_str().unwrap())
        .collect();
    assert_eq!(slugs, ["three", "two", "one"]);
    assert!(second["meta"]["nextCursor"].is_null());

    let run = Cli::json(&url, &["stores", "provision", id_of(&ids[0]), "--engine", engine.as_str()]).await;
    assert_eq!(run["kind"], "managed");
    assert_eq!(node.run_ended(&owner, &ids[0]).await["state"], "succeeded");
    let shown = Cli::json(&url, &["stores", "show", id_of(&ids[0])]).await;
    assert_eq!((&shown["status"], &shown["lastRun"]["state"]), (&json!("active"), &json!("succeeded")));
    let by_slug = Cli::json(&url, &["stores", "show", "one"]).await;
    assert_eq!(by_slug["id"], ids[0]["id"]);
    Cli::json(&url, &["servers", "drain", "local"]).await;
    // By its everyday name as well.
    let everyday = if engine == Engine::Mysql { "mariadb" } else { "postgres" };
    let full = Cli::run(&url, &["stores", "provision", "two", "--engine", everyday, "--json"]).await;
    let said = String::from_utf8_lossy(&full.stderr).into_owned();
    let said: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert!(said["error"].as_str().unwrap().contains("local is draining"), "{said}");
    for reason in ["unpaid", "still unpaid"] {
        let shown = Cli::json(&url, &["stores", "suspend", "one", "--reason", reason]).await;
        assert_eq!((&shown["status"], &shown["statusReason"]), (&json!("suspended"), &json!(reason)));
    }
    let again = Cli::run(&url, &["stores", "provision", id_of(&ids[0])]).await;
    assert_eq!(again.status.code(), Some(1));
    let nobody = Cli::run(&url, &["stores", "show", "sto_01JD8Q6X5MFKV9T3R0WZ2H4C7N"]).await;
    assert_eq!(nobody.status.code(), Some(1));
    let nonsense = Cli::run(&url, &["stores", "show", "usr_01JD8Q6X5MFKV9T3R0WZ2H4C7N"]).await;
    assert_eq!(nonsense.status.code(), Some(2));
}

async fn a_command_provisions_through_the_node_that_serves_whichever_comes_first(engine: Engine) {
    let cluster = cluster().await;
    let master = master_with_server(engine, cluster).await;
    let node = Process::serve(&master.url(), &[]).await;
    let owner = node.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    assert_eq!(node.terminate().await, Some(0));
    Cli::json(&master.url(), &["stores", "provision", id_of(&store), "--engine", engine.as_str()]).await;

    let node = Process::serve(&master.url(), &[]).await;

    assert_eq!(node.run_ended(&owner, &store).await["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_granted_role_opens_the_ops_routes() {
    let cluster = cluster().await;
    let master = cluster.master().await;
    let node = Process::serve(&master.url(), &[]).await;
    let owner = node.owner("ada").await;
    owner.api.get("/api/ops/stores").await.expect_problem(404, "not-found");

    Cli::json(&master.url(), &["admin", "grant", "Ada@Example.com"]).await;

    owner.api.get("/api/ops/stores").await.expect_status(200);
    let unknown = Cli::run(&master.url(), &["admin", "grant", "nobody@example.com"]).await;
    assert_eq!(unknown.status.code(), Some(1));

    let last = Cli::run(&master.url(), &["admin", "revoke", "ada@example.com"]).await;
    assert_eq!(last.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&last.stderr).contains("nobody else"));
    owner.api.get("/api/ops/stores").await.expect_status(200);
    node.owner("bob").await;
    owner.api.post("/api/ops/admins/grant", json!({ "email": "bob@example.com" })).await.expect_status(200);
    Cli::json(&master.url(), &["admin", "revoke", "ada@example.com"]).await;
    owner.api.get("/api/ops/stores").await.expect_problem(404, "not-found");
}

async fn a_host_is_explained(engine: Engine) {
    let cluster = cluster().await;
    let master = master_with_server(engine, cluster).await;
    let url = master.url();
    let node = Process::serve(&url, &[]).await;
    let owner = node.owner("ada").await;
    let store = node.active_store(&owner, engine, "tea").await;
    let decision = async |name: &str| Cli::json(&url, &["explain", "host", name]).await;

    let served = decision("TEA.Stores.Localhost.:8080").await;
    assert_eq!(served["decision"], "served", "{served}");
    assert_eq!(served["normalized"], "tea.stores.localhost");
    assert_eq!((&served["store"]["id"], &served["database"]["isReachable"]), (&store["id"], &json!(true)));
    assert_eq!(decision("localhost:8080").await["decision"], "platform");
    assert_eq!(decision("nobody.stores.localhost").await["decision"], "unknown-host");
    assert_eq!(Cli::run(&url, &["explain", "host", "no host"]).await.status.code(), Some(1));

    Cli::json(&url, &["stores", "suspend", id_of(&store), "--reason", "unpaid"]).await;
    let closed = decision("tea.stores.localhost").await;
    assert_eq!((&closed["decision"], &closed["store"]["statusReason"]), (&json!("closed"), &json!("unpaid")));
    let name = database_name(&store);
    StoreSql::server(engine, cluster).await.set_password(&name, "another").await;
    let broken = decision("tea.stores.localhost").await;
    assert_eq!(
        broken["database"],
        json!({ "isReachable": false, "cause": "wrong-password", "ailment": null, "connectMs": broken["database"]["connectMs"] })
    );
    assert!(!broken.to_string().contains(&name), "{broken}");
    assert_eq!((&broken["decision"], &broken["refusal"]), (&json!("closed"), &json!("503 store-suspended")));
    Cli::json(&url, &["stores", "resume", id_of(&store)]).await;
    let broken = decision("tea.stores.localhost").await;
    let says = (&broken["decision"], &broken["refusal"]);
    assert_eq!(says, (&json!("unavailable"), &json!("503 store-database-unavailable")));
    let sick = Cli::run(&url, &["doctor", "--json"]).await;
    assert_eq!(sick.status.code(), Some(3));
    let sick = String::from_utf8_lossy(&sick.stdout).into_owned();
    assert!(
        sick.contains(&format!("the database of store {} cannot be reached: wrong-password", id_of(&store))),
        "{sick}"
    );

    let wrong = Brought::create(engine, cluster).await;
    let failed = owner.create_store("coffee").await.expect_status(201);
    owner.connect(&failed, wrong.fields(&json!({ "password": "nonsense" }))).await.expect_status(202);
    node.run_ended(&owner, &failed).await;
    let not_ready = decision("coffee.stores.localhost").await;
    assert_eq!(not_ready["decision"], "not-ready");
    assert_eq!(not_ready["store"]["lastRunError"], "check_connection: wrong-password");
}

async fn the_doctor_finds_what_was_left_behind_and_changes_nothing(engine: Engine) {
    // Of the shared servers it would tell what other tests have there.
    let server = OwnServer::start(engine, &format!("left-behind-{engine}")).await;
    let cluster: &Cluster = match &server {
        OwnServer::Postgres(cluster) => cluster,
        OwnServer::MariaDb(_) => cluster().await,
    };
    let master = cluster.master().await;
    let url = master.url();
    Cli::add_server(&url, "local", &server.url()).await;
    let node = Process::serve(&url, &[]).await;
    let owner = node.owner("ada").await;
    let store = node.active_store(&owner, engine, "tea").await;
    let clean = Cli::run(&url, &["doctor"]).await;
    assert_eq!(clean.status.code(), Some(0), "{}", String::from_utf8_lossy(&clean.stdout));

    let nobody = managed_name("sto_01JD8Q6X5MFKV9T3R0WZ2H4C7N".parse().unwrap());
    let nobody = nobody.as_str();
    let mut admin = server.admin().await;
    admin.execute(&format!("create database {nobody}")).await;
    let login = if engine == Engine::Mysql { "create user" } else { "create role" };
    admin.execute(&format!("{login} {nobody}")).await;
    let failed = owner.create_store("coffee").await.expect_status(201);
    let missing = server.brought().await;
    let refused = missing.fields(&json!({ "database": "no_such_database" }));
    owner.connect(&failed, refused).await.expect_status(202);
    node.run_ended(&owner, &failed).await;
    let before = state_of(&mut admin, &master).await;

    let sick = Cli::run(&url, &["doctor", "--json"]).await;

    assert_eq!(sick.status.code(), Some(3));
    let findings: Value = serde_json::from_slice(&sick.stdout).unwrap();
    let bad: Vec<&Value> = findings["data"].as_array().unwrap().iter().filter(|f| f["isOk"] == false).collect();
    let says = |check: &str, text: &str| {
        bad.iter()
            .any(|f| f["check"] == check && f["detail"].as_str().unwrap().contains(text) && f["advice"].is_string())
    };
    assert!(says("orphans", &format!("database {nobody}")) && says("orphans", &format!("role {nobody}")), "{findings}");
    assert!(says("runs", id_of(&failed)), "{findings}");
    assert_eq!(bad.len(), 3, "{findings}");
    assert_eq!(state_of(&mut admin, &master).await, before);
    node.storefront_of(&store).get("/store/v1/products").await.expect_status(200);

    // More is dealt out among the nodes than the server itself takes.
    for (connections, is_told) in [("100000", true), ("80", false)] {
        Cli::json(&url, &["servers", "update", "local", "--max-connections", connections]).await;
        let told = Cli::run(&url, &["doctor", "--json"]).await;
        let text = String::from_utf8_lossy(&told.stdout).into_owned();
        assert_eq!(text.contains("fewer than the 100000 that nodes may open there"), is_told, "{text}");
    }

    // Registered twice, as it could be once: what is a store's is no orphan by its other name. A server of MySQL's is known by what
    // it does, and cannot be disguised.
    if engine == Engine::Postgresql {
        (&mut master.admin().await)
            .execute("update database_servers set host = 'elsewhere.example', system_identifier = null")
            .await
            .unwrap();
        Cli::add_server(&url, "twin", &server.url()).await;
        let twice = Cli::run(&url, &["doctor", "--json"]).await;
        let text = String::from_utf8_lossy(&twice.stdout).into_owned();
        assert!(!text.contains(&database_name(&store)), "{text}");
        assert!(text.contains(&format!("server twin has a database {nobody}")), "{text}");
    }

    let other_key = "b3RoZXIta2V5LW9mLXRoZS10ZXN0cy0zMi1ieXRlcyE=";
    let locked = Cli::run_in(&url, &[("ENCRYPTION_KEY", Some(other_key))], &["doctor", "--json"]).await;
    let text = String::from_utf8_lossy(&locked.stdout).into_owned();
    assert_eq!(locked.status.code(), Some(3));
    assert!(text.contains("does not open") && text.contains(id_of(&store)) && !text.contains(other_key), "{text}");
}

/// Every database and every login of the server, and every row of master that the doctor could have changed.
async fn state_of(server: &mut StoreSql, master: &TestDatabase) -> Vec<String> {
    let there = match server {
        StoreSql::Postgres(_) => {
            "select datname || coalesce(shobj_description(oid, 'pg_database'), '') from pg_database
             union all select rolname from pg_roles order by 1"
        }
        StoreSql::MySql(_) => {
            "select concat_ws('.', table_schema, table_name) from information_schema.tables
             union all select schema_name from information_schema.schemata union all select user from mysql.user order by 1"
        }
    };
    let mut lines = server.texts(there).await;
    let rows: Vec<String> = sqlx::query_scalar(
        "select s::text from stores s union all select d::text from store_databases d
         union all select r::text from provisioning_runs r union all select v::text from database_servers v
         union all select a::text from audit_events a order by 1",
    )
    .fetch_all(&mut master.admin().await)
    .await
    .unwrap();
    lines.extend(rows);
    lines
}

async fn products_are_imported_from_a_file_after_a_dry_run(engine: Engine) {
    let cluster = cluster().await;
    let master = master_with_server(engine, cluster).await;
    let url = master.url();
    let node = Process::serve(&url, &[]).await;
    let owner = node.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    owner.connect(&store, json!({ "managed": true, "engine": engine })).await.expect_status(202);
    node.run_ended(&owner, &store).await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(
        file,
        "\u{feff}Handle,Title,Option1 Name,Option1 Value,Variant SKU,Variant Price\r\n\
         mug,Mug,Size,Small,M-S,9.90\r\nmug,,,Large,M-L,12.90\r\npot,Pot,,,P-1,not a price\r\nlid,Lid,,,L-1,3.00\r\n"
    )
    .unwrap();
    let path = file.path().to_str().unwrap();
    let import = async |more: &[&str]| {
        let output = Cli::run(&url, &[&["products", "import", "tea", path, "--json"], more].concat()).await;
        assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let listed = async || {
        let list = node.storefront_of(&store).get("/store/v1/products").await.expect_status(200);
        list["data"].as_array().unwrap().len()
    };

    let dry = import(&["--dry-run"]).await;
    assert_eq!((&dry["productsCreated"], &dry["productsFailed"]), (&json!(2), &json!(1)), "{dry}");
    assert_eq!(listed().await, 0);
    let real = import(&[]).await;
    assert_eq!((&real["productsCreated"], &real["productsFailed"]), (&json!(2), &json!(1)), "{real}");
    assert_eq!(real["errors"][0]["line"], 4, "{real}");
    let again = import(&[]).await;
    assert_eq!((&again["productsCreated"], &again["productsUnchanged"]), (&json!(0), &json!(2)), "{again}");
    assert_eq!(listed().await, 2);

    let missing = Cli::run(&url, &["products", "import", id_of(&store), "/no/such/file.csv"]).await;
    assert_eq!(missing.status.code(), Some(1));
    let human = Cli::run(&url, &["products", "import", id_of(&store), path]).await;
    assert!(String::from_utf8_lossy(&human.stdout).contains("line 4"));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_generated_anew_each_time_and_are_usable() {
    let cluster = cluster().await;
    let master = cluster.master().await;
    let (one, two) =
        (Cli::json("unused", &["keys", "generate"]).await, Cli::json("unused", &["keys", "generate"]).await);
    for name in ["ENCRYPTION_KEY", "JWT_SECRET"] {
        assert_ne!(one[name], two[name]);
    }
    let (key, secret) = (one["ENCRYPTION_KEY"].as_str().unwrap(), one["JWT_SECRET"].as_str().unwrap());
    let node = Process::serve(&master.url(), &[("ENCRYPTION_KEY", key), ("JWT_SECRET", secret)]).await;
    node.owner("ada").await.api.get("/api/auth/me").await.expect_status(200);
    let human = Cli::run("unused", &["keys", "generate"]).await;
    let text = String::from_utf8(human.stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("ENCRYPTION_KEY=")), "ready to be pasted into .env: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_printed_api_description_is_the_committed_one() {
    let printed = Cli::run("unused", &["openapi"]).await;
    assert!(printed.status.success());
    let committed: Value = serde_json::from_str(include_str!("../../control-plane/openapi.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&printed.stdout).unwrap(), committed);
}

#[tokio::test(flavor = "multi_thread")]
async fn master_is_migrated_once_however_many_try() {
    let cluster = cluster().await;
    let master = cluster.empty().await;
    let url = master.url();
    for command in [&["serve"][..], &["servers", "list"], &["admin", "grant", "ada@example.com"]] {
        let unready = Cli::run(&url, command).await;
        assert_eq!(unready.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&unready.stderr).contains("tenantry migrate master"), "{command:?}");
    }

    let migrate = || Cli::json(&url, &["migrate", "master"]);
    let (one, two, three) = tokio::join!(migrate(), migrate(), migrate());
    let applied: u64 = [&one, &two, &three].iter().map(|done| done["applied"].as_u64().unwrap()).sum();
    let count: i64 =
        sqlx::query_scalar("select count(*) from _sqlx_migrations").fetch_one(&mut master.admin().await).await.unwrap();
    assert_eq!(i64::try_from(applied).unwrap(), count);
    assert_eq!(migrate().await["applied"], 0);
    let node = Process::serve(&url, &[]).await;
    assert_eq!(node.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_configuration_is_refused_by_the_variables_name_and_never_by_its_value() {
    let cluster = cluster().await;
    let master = cluster.master().await;
    let url = master.url();
    let cases: &[(&str, Option<&str>)] = &[
        ("MASTER_DB_URL", None),
        ("MASTER_DB_URL", Some("mysql://u:sesame-open@h/d")),
        ("MASTER_DB_URL", Some("sesame-open")),
        ("ENCRYPTION_KEY", None),
        ("ENCRYPTION_KEY", Some("sesame-open")),
        ("ENCRYPTION_KEY", Some("c2VzYW1lLW9wZW4=")),
        ("ENCRYPTION_KEYS", Some("a:sesame-open")),
        ("JWT_SECRET", None),
        ("JWT_SECRET", Some("sesame-open")),
        ("LISTEN", Some("sesame-open")),
        ("PLATFORM_DOMAIN", Some("-sesame..open")),
        ("MASTER_MAX_CONNECTIONS", Some("0")),
        ("REQUEST_TIMEOUT_MS", Some("soon")),
        ("TRUSTED_PROXIES", Some("sesame-open")),
        ("LOG", Some("sesame=open=now")),
    ];
    for case @ (name, value) in cases {
        let output = Cli::run_in(&url, &[*case], &["serve"]).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{case:?}: {text}");
        let option = format!("--{}", name.to_ascii_lowercase().replace('_', "-").trim_end_matches("-ms"));
        assert!(text.contains(name) || text.contains(&option), "{case:?} is not named: {text}");
        let is_secret = ["MASTER_DB_URL", "ENCRYPTION_KEY", "ENCRYPTION_KEYS", "JWT_SECRET"].contains(name);
        if is_secret && let Some(value) = value {
            assert!(!text.contains(value) && !text.contains("sesame-open"), "{case:?} is repeated: {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_does_not_answer_is_said_at_start_without_its_password() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("postgres://somebody:sesame-open@127.0.0.1:{closed}/master");
    let output = within("the refusal", Cli::run(&url, &["serve"])).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("the master database cannot be reached") && !text.contains("sesame-open"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_said_at_start() {
    let cluster = cluster().await;
    let master = cluster.master().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = Cli::run_in(&master.url(), &[("LISTEN", Some(&address))], &["serve"]).await;
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains(&address) && text.contains("--listen"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_live_on_over_a_restart() {
    let cluster = cluster().await;
    let master = cluster.master().await;
    let node = Process::serve(&master.url(), &[]).await;
    let owner: Owner = node.owner("ada").await;
    node.kill().await;

    let node = Process::serve(&master.url(), &[]).await;

    owner.at(node.address).api.get("/api/auth/me").await.expect_status(200);
}
