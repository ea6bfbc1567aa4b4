//! Databases that owners bring: what is wrong with them is said, and what is not ours is left as it is.

use axum::body::Body;
use control_plane::audit::Actor;
use control_plane::provisioning::{self, NewDatabase, RunState, StepName, Target, db};
use integration_tests::{StoreSql, TestApp, TestAppOptions, database_name};
use kernel::Engine;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tenancy::{Cause, Credential, Reach, TlsMode};

use crate::provisioning::{
    CONNECT_LIMIT, brought_body, checksum, expect_not_ready, failure, hold_migration, old_shop, path_of, seeded,
    step_running, store_id,
};
use crate::unwinding::{Bench, Place};

/// Connects what cannot work, sees the refusal, connects what works.
async fn corrects(app: &TestApp, wrong: Value, step: &str, code: &str, right: impl AsyncFnOnce() -> Value) {
    let owner = app.owner(code).await;
    let store = owner.create_store(&format!("{code}-shop")).await.expect_status(201);
    owner.connect(&store, wrong).await.expect_status(202);
    let run = app.run_ended(&owner, &store).await;
    let (failed, found, _) = failure(&run);
    assert_eq!((failed, found), (step, code), "{run}");
    expect_not_ready(app, &store).await;
    let detail = owner.api.get(&path_of(&store, "")).await.expect_status(200);
    assert_eq!(detail["status"], "provisioning");

    owner.connect(&store, right().await).await.expect_status(202);

    let run = app.run_ended(&owner, &store).await;
    assert_eq!(run["state"], "succeeded", "{run}");
    app.storefront_of(&store).get("/store/v1/products").await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_connection_says_what_to_do_and_is_corrected_by_connecting_again() {
    let app = TestApp::start().await;
    let database = app.cluster.brought().await;
    let base = json!({ "engine": "postgresql", "host": "127.0.0.1", "port": app.cluster.port(),
        "username": database.database, "password": database.password(), "database": database.database });
    let with = |name: &str, value: Value| {
        let mut body = base.clone();
        body[name] = value;
        body
    };
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let wrongs = [
        ("wrong-password", with("password", json!("not-the-password"))),
        ("missing-database", with("database", json!("no_such_database"))),
        ("refused", with("port", json!(closed))),
        ("tls", with("tls", json!("require"))),
    ];
    for (code, wrong) in wrongs {
        let right = app.cluster.brought().await;
        let (app, body) = (&app, brought_body(&right));
        corrects(app, wrong, "check_connection", code, async || body).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_may_not_create_a_schema_is_told_the_grant() {
    let app = TestApp::start().await;
    let database = app.cluster.brought().await;
    let name = database.database.clone();
    let mut admin = database.admin().await;
    admin.execute(AssertSqlSafe(format!("alter database {name} owner to postgres"))).await.unwrap();
    admin.execute(AssertSqlSafe(format!("grant connect on database {name} to {name}"))).await.unwrap();
    corrects(&app, brought_body(&database), "check_connection", "missing-privilege", async || {
        admin.execute(AssertSqlSafe(format!("grant create on database {name} to {name}"))).await.unwrap();
        brought_body(&database)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_may_not_enter_the_database_is_told_the_grant() {
    let app = TestApp::start().await;
    let database = app.cluster.brought().await;
    let name = database.database.clone();
    let mut admin = database.admin().await;
    admin.execute(AssertSqlSafe(format!("alter database {name} owner to postgres"))).await.unwrap();
    corrects(&app, brought_body(&database), "check_connection", "forbidden", async || {
        admin.execute(AssertSqlSafe(format!("alter database {name} owner to {name}"))).await.unwrap();
        brought_body(&database)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_of_another_store_is_refused() {
    let app = TestApp::start().await;
    let database = app.cluster.brought().await;
    let first = app.owner("first").await;
    let theirs = first.create_store("theirs").await.expect_status(201);
    first
        .connect(&theirs, json!({ "engine": "postgresql", "connectionString": database.url(), "demoProducts": true }))
        .await
        .expect_status(202);
    assert_eq!(app.run_ended(&first, &theirs).await["state"], "succeeded");
    let before = seeded(&mut StoreSql::open(Engine::Postgresql, app.cluster, &database.database).await).await;

    let right = app.cluster.brought().await;
    let body = brought_body(&right);
    corrects(&app, brought_body(&database), "check_connection", "belongs-to-another-store", async || body).await;

    assert_eq!(seeded(&mut StoreSql::open(Engine::Postgresql, app.cluster, &database.database).await).await, before);
    app.storefront_of(&theirs).get("/store/v1/products").await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_stores_that_connect_one_database_at_once_do_not_share_it() {
    let app = TestApp::start().await;
    let database = app.cluster.brought().await;
    let owner = app.owner("ada").await;
    let one = owner.create_store("one").await.expect_status(201);
    let two = owner.create_store("two").await.expect_status(201);
    // Both have seen the database empty and wait to migrate it.
    let holder = hold_migration(&database).await;
    for store in [&one, &two] {
        owner.connect(store, brought_body(&database)).await.expect_status(202);
        step_running(&owner, store, "migrate").await;
    }
    holder.close().await.unwrap();

    let runs = [app.run_ended(&owner, &one).await, app.run_ended(&owner, &two).await];

    let (won, lost) = if runs[0]["state"] == "succeeded" { (0, 1) } else { (1, 0) };
    let stores = [&one, &two];
    assert_eq!(runs[won]["state"], "succeeded", "{runs:?}");
    let (step, code, _) = failure(&runs[lost]);
    assert_eq!((step, code), ("migrate", "belongs-to-another-store"));
    expect_not_ready(&app, stores[lost]).await;
    // Undoing the loser's run takes nothing from the winner.
    owner.api.post(&path_of(stores[lost], "/provisioning/cancel"), json!({})).await.expect_status(202);
    assert_eq!(app.run_ended(&owner, stores[lost]).await["state"], "cancelled");
    app.storefront_of(stores[won]).get("/store/v1/products").await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn undoing_a_run_leaves_alone_what_another_store_has_begun_in_the_same_database() {
    let bench = Bench::new(&["first", "second"]).await;
    let database = bench.app.cluster.brought().await;
    let [first, second] = [0, 1].map(|at| store_id(&bench.stores[at]));
    let (theirs, ours) =
        (bench.connect(first, Place::Brought(&database)).await, bench.connect(second, Place::Brought(&database)).await);
    // Both have found the database empty; the first has migrated it when the second is killed in its own migration.
    bench.perform(&theirs, StepName::CheckConnection).await;
    bench.perform(&ours, StepName::CheckConnection).await;
    bench.perform(&theirs, StepName::Migrate).await;
    let mut master = bench.app.master().await;
    db::step_begin(&mut master, ours.run.id, StepName::Migrate, bench.cx.clock.now()).await.unwrap();

    provisioning::cancel(&bench.cx, Actor::Cli, second).await.unwrap();
    assert_eq!(bench.work(&ours).await, RunState::Cancelled);

    let kept: bool = sqlx::query_scalar("select to_regclass('tenantry.products') is not null")
        .fetch_one(&mut database.admin().await)
        .await
        .unwrap();
    assert!(kept);
    // Another try is refused before anything is begun.
    let ours = bench.connect(second, Place::Brought(&database)).await;
    assert_eq!(bench.work(&ours).await, RunState::Failed);
    let failed = provisioning::latest(&bench.cx, second).await.unwrap();
    let step = failed.failed_step().unwrap();
    assert_eq!((step.name, step.error_code.as_deref()), (StepName::CheckConnection, Some("belongs-to-another-store")));
    assert_eq!(bench.work(&theirs).await, RunState::Succeeded);
    bench.cx.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_of_our_name_that_is_not_ours_is_not_touched() {
    let app = TestApp::start().await;
    let database = app.cluster.brought().await;
    let mut owner = PgConnection::connect(&database.url()).await.unwrap();
    owner
        .execute("create schema tenantry; create table tenantry.notes (line text); insert into tenantry.notes values ('mine')")
        .await
        .unwrap();
    let right = app.cluster.brought().await;
    let body = brought_body(&right);
    corrects(&app, brought_body(&database), "check_connection", "schema-in-use", async || body).await;

    let (relations, note): (i64, String) = sqlx::query_as(
        "select (select count(*) from pg_class where relnamespace = 'tenantry'::regnamespace and relkind = 'r'),
                (select line from tenantry.notes)",
    )
    .fetch_one(&mut owner)
    .await
    .unwrap();
    assert_eq!((relations, note.as_str()), (1, "mine"));
    owner.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_shop_in_a_brought_database_is_left_as_it_was() {
    let app = TestApp::start().await;
    let database = app.cluster.brought().await;
    old_shop(&database).await;
    let before = checksum(&database).await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);

    let body = json!({ "engine": "postgresql", "connectionString": database.url(), "demoProducts": true });
    owner.connect(&store, body).await.expect_status(202);
    assert_eq!(app.run_ended(&owner, &store).await["state"], "succeeded");
    let listed = app.storefront_of(&store).get("/store/v1/products?limit=100").await.expect_status(200);

    assert_eq!(checksum(&database).await, before);
    let titles = listed["data"].as_array().unwrap().iter().filter_map(|product| product["title"].as_str());
    assert_eq!(titles.filter(|title| title.starts_with("old ")).count(), 0);
}

/// The credential that master keeps for a store, opened.
async fn credential(app: &TestApp, store: &Value) -> Credential {
    let id = store_id(store);
    let row = db::store_database_find(&mut app.master().await, id).await.unwrap().unwrap();
    Credential::open(&app.cx.keys, &row.sealed, id, row.credential_version).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_login_of_one_store_is_refused_everywhere_else() {
    let app = TestApp::start().await;
    let owner = app.owner("ada").await;
    let (a, b) = (app.active_store(&owner, "store-a").await, app.active_store(&owner, "store-b").await);
    let login = credential(&app, &a).await;
    login.connect(Reach::Anywhere, CONNECT_LIMIT).await.expect("its own database lets it in").close().await.unwrap();
    // A master as `migrate master` makes it; the test's own is a clone, and clones have no rights of their own.
    let master = app.cluster.empty().await;
    let args = control_plane::config::MasterArgs { master_db_url: master.url().into(), master_max_connections: 4 };
    control_plane::master::migrate(&args).await.unwrap();

    let template = format!("tenantry_template_{}", tenant_schema::LATEST_VERSION);
    for elsewhere in [database_name(&b), master.database.clone(), template] {
        let there = Credential { database: elsewhere.clone(), ..login.clone() };
        let refused = match there.connect(Reach::Anywhere, CONNECT_LIMIT).await {
            Ok(_) => panic!("store A's login was let into {elsewhere}"),
            Err(refused) => refused.cause,
        };
        // A template takes no connections at all.
        assert!(matches!(refused, Cause::Forbidden | Cause::Protocol), "{elsewhere}: {refused:?}");
    }
    let public: Vec<bool> = sqlx::query_scalar(
        "select has_database_privilege('public', oid, 'connect') or has_database_privilege('public', oid, 'temporary')
         from pg_database where datname = any($1)",
    )
    .bind([database_name(&a), database_name(&b), master.database.clone()])
    .fetch_all(&mut app.cluster.admin().await)
    .await
    .unwrap();
    assert_eq!(public, [false, false, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn private_addresses_and_plain_connections_are_refused_unless_allowed() {
    let arguments = vec!["--allow-private-databases".to_owned(), "false".to_owned()];
    let app = TestApp::start_with(TestAppOptions { arguments, ..TestAppOptions::default() }).await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let string = |text: &str| json!({ "engine": "postgresql", "connectionString": text });
    for host in
        ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"]
    {
        let answer = owner.connect(&store, string(&format!("postgres://a:b@{host}:5432/d?sslmode=require"))).await;
        let problem = answer.expect_status(422);
        let code = problem["errors"][0]["code"].as_str().unwrap();
        assert!(["private-address", "host", "malformed"].contains(&code), "{host}: {problem}");
    }
    let fields =
        json!({ "engine": "postgresql", "host": "127.0.0.1", "username": "a", "password": "b", "database": "d" });
    let problem = owner.connect(&store, fields).await.expect_status(422);
    assert_eq!(problem["errors"][0]["code"], "private-address", "{problem}");
    let problem =
        owner.connect(&store, string("postgres://a:b@203.0.113.7/d?sslmode=disable")).await.expect_status(422);
    assert_eq!(problem["errors"][0]["code"], "tls-required", "{problem}");
    let mut plain =
        json!({ "engine": "postgresql", "host": "203.0.113.7", "username": "a", "password": "b", "database": "d" });
    plain["tls"] = json!("disable");
    let problem = owner.connect(&store, plain).await.expect_status(422);
    assert_eq!(problem["errors"][0]["code"], "tls-required", "{problem}");

    // Nothing was begun, and our own servers are no matter of the owner's.
    owner.api.get(&path_of(&store, "/provisioning")).await.expect_problem(404, "not-found");
    owner.connect(&store, json!({ "managed": true })).await.expect_status(202);
    assert_eq!(app.run_ended(&owner, &store).await["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_host_is_spoken_to_with_tls_also_where_private_ones_are_allowed() {
    let bench = Bench::new(&["tea"]).await;
    let (store, id) = (&bench.stores[0], store_id(&bench.stores[0]));
    let private = format!("127.0.0.1:{}", bench.app.cluster.port());
    for (place, wanted) in [
        (format!("postgres://a:b@{private}/d"), TlsMode::Disable),
        (format!("postgres://a:b@{private}/d?sslmode=require"), TlsMode::Require),
        // Nothing is sent there: no worker takes the run up.
        ("postgres://a:b@8.8.8.8/d".to_owned(), TlsMode::VerifyFull),
        ("postgres://a:b@8.8.8.8/d?sslmode=disable".to_owned(), TlsMode::Disable),
    ] {
        let target = Target::from_url(&place.clone().into(), None, None, None).unwrap();
        let run = provisioning::connect(&bench.cx, Actor::Cli, id, NewDatabase::Brought(target), false).await.unwrap();

        assert_eq!(credential(&bench.app, store).await.tls, wanted, "{place}");

        provisioning::cancel(&bench.cx, Actor::Cli, id).await.unwrap();
        assert_eq!(bench.work(&run).await, RunState::Cancelled);
    }
    bench.cx.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_the_same_name_that_is_not_ours_is_neither_used_nor_dropped() {
    let app = TestApp::start().await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let name = database_name(&store);
    let mut admin = app.cluster.admin().await;
    admin.execute(AssertSqlSafe(format!("create database {name}"))).await.unwrap();
    admin.execute(AssertSqlSafe(format!("comment on database {name} is 'somebody else'"))).await.unwrap();
    let mut theirs = app.cluster.connect(&name).await;
    theirs.execute("create table precious (id int)").await.unwrap();
    theirs.close().await.unwrap();

    owner.connect(&store, json!({ "managed": true })).await.expect_status(202);
    let run = app.run_ended(&owner, &store).await;
    assert_eq!(failure(&run).1, "database-in-use");
    owner.api.post(&path_of(&store, "/provisioning/cancel"), json!({})).await.expect_status(202);
    let run = app.run_ended(&owner, &store).await;

    let mut theirs = app.cluster.connect(&name).await;
    let is_there: bool =
        sqlx::query_scalar("select to_regclass('precious') is not null").fetch_one(&mut theirs).await.unwrap();
    assert!(is_there, "{run}");
    theirs.close().await.unwrap();
    // Once ops have moved it out of the way, the run can be undone.
    admin.execute(AssertSqlSafe(format!("drop database {name}"))).await.unwrap();
    owner.api.post(&path_of(&store, "/provisioning/cancel"), json!({})).await;
    assert_eq!(app.run_ended(&owner, &store).await["state"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_of_connecting_never_holds_what_was_typed() {
    let app = TestApp::start().await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let database = app.cluster.brought().await;
    let accepted = owner.connect(&store, brought_body(&database)).await;
    accepted.expect_status(202);
    app.run_ended(&owner, &store).await;
    let run =
        owner.api.send_bytes(http::Method::GET, &path_of(&store, "/provisioning"), "text/plain", Body::empty()).await;
    let detail = owner.api.get(&path_of(&store, "")).await;
    for answer in [accepted, run, detail] {
        assert!(!answer.text().contains(&database.password()), "{}", answer.text());
    }
    let refused =
        owner.connect(&store, json!({ "engine": "postgresql", "connectionString": "postgres://u:hush-hush@h" })).await;
    assert!(!refused.text().contains("hush-hush"), "{}", refused.text());
}
