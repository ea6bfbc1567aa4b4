//! Databases that owners bring: what is wrong with them is said, and what is not ours is left as it is.

use std::net::Ipv4Addr;

use axum::body::Body;
use control_plane::audit::Actor;
use control_plane::provisioning::{self, NewDatabase, RunState, StepName, Target, db};
use integration_tests::{ChaosProxy, StoreSql, TestApp, TestAppOptions, TestDatabase, database_name};
use kernel::Engine;
use serde_json::{Value, json};
use sqlx::mysql::MySqlDatabaseError;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tenancy::{Cause, Credential, Reach, Session, TlsMode};

use crate::provisioning::{
    CONNECT_LIMIT, checksum, expect_not_ready, failure, hold_migration, old_shop, path_of, seeded, step_running,
    store_id,
};
use crate::unwinding::{Bench, Place};

fn on_postgres(database: &TestDatabase) -> Value {
    json!({ "engine": "postgresql", "connectionString": database.url() })
}

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

on_each_engine! {
    a_wrong_connection_says_what_to_do_and_is_corrected_by_connecting_again
    the_database_of_another_store_is_refused
    the_database_of_another_store_is_refused_by_every_address_that_it_has
    two_stores_that_connect_one_database_at_once_do_not_share_it
    undoing_a_run_leaves_alone_what_another_store_has_begun_in_the_same_database
    the_login_of_one_store_is_refused_everywhere_else
    a_public_host_is_spoken_to_with_tls_also_where_private_ones_are_allowed
    a_database_of_the_same_name_that_is_not_ours_is_neither_used_nor_dropped
    the_answer_of_connecting_never_holds_what_was_typed
}

async fn a_wrong_connection_says_what_to_do_and_is_corrected_by_connecting_again(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let database = app.brought().await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // Whether there is a database of that name, MySQL tells nobody who has no right on it.
    let missing = if engine == Engine::Mysql { "forbidden" } else { "missing-database" };
    let wrongs = [
        ("wrong-password", json!({ "password": "not-the-password" })),
        (missing, json!({ "database": "no_such_database" })),
        ("refused", json!({ "port": closed })),
        ("no-tls", json!({ "tls": "require" })),
    ];
    for (code, wrong) in wrongs {
        let right = app.brought().await;
        let (app, body) = (&app, right.body());
        corrects(app, database.fields(&wrong), "check_connection", code, async || body).await;
    }
}

/// On PostgreSQL only: what a login of MySQL lacks is told in `mariadb.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_may_not_create_a_schema_is_told_the_grant() {
    let app = TestApp::start().await;
    let database = app.cluster.brought().await;
    let name = database.database.clone();
    let mut admin = database.admin().await;
    admin.execute(AssertSqlSafe(format!("alter database {name} owner to postgres"))).await.unwrap();
    admin.execute(AssertSqlSafe(format!("grant connect on database {name} to {name}"))).await.unwrap();
    corrects(&app, on_postgres(&database), "check_connection", "missing-privilege", async || {
        admin.execute(AssertSqlSafe(format!("grant create on database {name} to {name}"))).await.unwrap();
        on_postgres(&database)
    })
    .await;
}

/// On PostgreSQL only, as above.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_may_not_enter_the_database_is_told_the_grant() {
    let app = TestApp::start().await;
    let database = app.cluster.brought().await;
    let name = database.database.clone();
    let mut admin = database.admin().await;
    admin.execute(AssertSqlSafe(format!("alter database {name} owner to postgres"))).await.unwrap();
    corrects(&app, on_postgres(&database), "check_connection", "forbidden", async || {
        admin.execute(AssertSqlSafe(format!("alter database {name} owner to {name}"))).await.unwrap();
        on_postgres(&database)
    })
    .await;
}

async fn the_database_of_another_store_is_refused(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let database = app.brought().await;
    let first = app.owner("first").await;
    let theirs = first.create_store("theirs").await.expect_status(201);
    first
        .connect(&theirs, json!({ "connectionString": database.url(), "demoProducts": true }))
        .await
        .expect_status(202);
    assert_eq!(app.run_ended(&first, &theirs).await["state"], "succeeded");
    let before = seeded(&mut database.inside().await).await;

    let right = app.brought().await;
    let body = right.body();
    corrects(&app, database.body(), "check_connection", "belongs-to-another-store", async || body).await;

    assert_eq!(seeded(&mut database.inside().await).await, before);
    app.storefront_of(&theirs).get("/store/v1/products").await.expect_status(200);
}

async fn the_database_of_another_store_is_refused_by_every_address_that_it_has(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let (database, own) = (app.brought().await, app.brought().await);
    let proxy = ChaosProxy::to((Ipv4Addr::LOCALHOST, database.port()).into()).await;
    for (slug, database) in [("theirs", &database), ("own", &own)] {
        let store = owner.create_store(slug).await.expect_status(201);
        owner.connect(&store, database.fields(&json!({ "demoProducts": slug == "theirs" }))).await.expect_status(202);
        assert_eq!(app.run_ended(&owner, &store).await["state"], "succeeded");
    }
    let before = seeded(&mut database.inside().await).await;
    let stores = owner.api.get("/api/stores").await.expect_status(200);
    let has_own = stores["data"].as_array().unwrap().iter().find(|store| store["slug"] == "own").unwrap();

    for (slug, other) in [("by-name", json!({ "host": "localhost" })), ("by-port", json!({ "port": proxy.port }))] {
        let late = owner.create_store(slug).await.expect_status(201);
        owner.connect(&late, database.fields(&other)).await.expect_status(202);
        let run = app.run_ended(&owner, &late).await;
        assert_eq!(failure(&run).1, "belongs-to-another-store", "{other}: {run}");
        expect_not_ready(&app, &late).await;
        // Nor is a store led there that has a database already.
        let path = path_of(has_own, "/database/credentials");
        let led = owner.api.send(http::Method::PUT, &path, Some(database.fields(&other))).await;
        led.expect_field(409, "other-database", "/database");
    }

    assert_eq!(seeded(&mut database.inside().await).await, before);
    let shop = app.storefront_of(has_own).get("/store/v1/products").await.expect_status(200);
    assert_eq!(shop["data"], json!([]));
}

async fn two_stores_that_connect_one_database_at_once_do_not_share_it(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let database = app.brought().await;
    // By two addresses, of which nobody can see that they are one.
    let proxy = ChaosProxy::to((Ipv4Addr::LOCALHOST, database.port()).into()).await;
    let other = database.fields(&json!({ "host": "localhost", "port": proxy.port }));
    let owner = app.owner("ada").await;
    let one = owner.create_store("one").await.expect_status(201);
    let two = owner.create_store("two").await.expect_status(201);
    // Both have seen the database empty and wait to migrate it.
    let holder = hold_migration(&database).await;
    for (store, body) in [(&one, database.body()), (&two, other)] {
        owner.connect(store, body).await.expect_status(202);
        step_running(&owner, store, "migrate").await;
    }
    holder.close().await;

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

async fn undoing_a_run_leaves_alone_what_another_store_has_begun_in_the_same_database(engine: Engine) {
    let bench = Bench::of(engine, &["first", "second"]).await;
    let database = bench.app.brought().await;
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

    assert_eq!(database.inside().await.number("select count(*) from products").await, 0, "the table is still there");
    // Another try is refused before anything is begun.
    let ours = bench.connect(second, Place::Brought(&database)).await;
    assert_eq!(bench.work(&ours).await, RunState::Failed);
    let failed = provisioning::latest(&bench.cx, second).await.unwrap();
    let step = failed.failed_step().unwrap();
    assert_eq!((step.name, step.error_code.as_deref()), (StepName::CheckConnection, Some("belongs-to-another-store")));
    assert_eq!(bench.work(&theirs).await, RunState::Succeeded);
    bench.cx.close().await;
}

/// On PostgreSQL only: MySQL has no schemas; what is not empty there is refused in `mariadb.rs`.
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
    let body = on_postgres(&right);
    corrects(&app, on_postgres(&database), "check_connection", "schema-in-use", async || body).await;

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

/// On PostgreSQL only: in MySQL an old shop is refused, see `mariadb.rs`.
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

async fn the_login_of_one_store_is_refused_everywhere_else(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let (a, b) = (app.active_store(&owner, "store-a").await, app.active_store(&owner, "store-b").await);
    let login = credential(&app, &a).await;
    let mut session = login.connect(Reach::Anywhere, CONNECT_LIMIT).await.expect("its own database lets it in");
    let theirs = database_name(&b);
    match &mut session {
        Session::Postgres(inside) => {
            for denied in ["create database mine", "create role mine", "select rolpassword from pg_authid"] {
                let refused = inside.execute(denied).await.expect_err(denied);
                assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("42501"), "{denied}");
            }
            is_shut_out_of_postgres(&app, &login, [&database_name(&a), &theirs]).await;
        }
        Session::MySql(inside) => {
            let see = "select schema_name from information_schema.schemata union select table_schema from
                 information_schema.tables union select coalesce(db, '') from information_schema.processlist";
            let mut seen: Vec<String> = sqlx::query_scalar(see).fetch_all(&mut *inside).await.unwrap();
            seen.retain(|name| !["information_schema", "performance_schema"].contains(&name.as_str()));
            assert_eq!(seen, [database_name(&a)]);
            for denied in [
                format!("select count(*) from {theirs}.products"),
                format!("insert into {theirs}.products select * from products"),
                format!("create table {theirs}.mine (id int)"),
                format!("show tables from {theirs}"),
                format!("use {theirs}"),
                format!("drop database {theirs}"),
                "create database mine".to_owned(),
                "create user mine".to_owned(),
                "select * from mysql.global_priv".to_owned(),
            ] {
                let refused = inside.execute(sqlx::raw_sql(AssertSqlSafe(denied.clone()))).await.expect_err(&denied);
                let code = refused.as_database_error().unwrap().downcast_ref::<MySqlDatabaseError>().number();
                assert!([1044, 1142, 1227].contains(&code), "{denied}: {refused}");
            }
        }
    }
    session.close().await.unwrap();
    for elsewhere in [theirs.as_str(), "mysql", "postgres"] {
        let there = Credential { database: elsewhere.to_owned(), ..login.clone() };
        // Whoever may enter PostgreSQL's own database finds nothing in it.
        if elsewhere != "postgres" || engine == Engine::Mysql {
            assert!(
                there.connect(Reach::Anywhere, CONNECT_LIMIT).await.is_err(),
                "store A's login was let into {elsewhere}"
            );
        }
    }
    // What it was refused, it did not do.
    app.storefront_of(&b).get("/store/v1/products").await.expect_status(200);
}

/// The names of databases and roles are everybody's to see in PostgreSQL, and ours say nothing; what is in them is not.
async fn is_shut_out_of_postgres(app: &TestApp, login: &Credential, stores: [&str; 2]) {
    // A master as `migrate master` makes it; the test's own is a clone, and clones have no rights of their own.
    let master = app.cluster.empty().await;
    let args = control_plane::config::MasterArgs { master_db_url: master.url().into(), master_max_connections: 4 };
    control_plane::master::migrate(&args).await.unwrap();

    let template = format!("tenantry_template_{}", tenant_schema::LATEST_VERSION);
    for elsewhere in [stores[1].to_owned(), master.database.clone(), template] {
        let there = Credential { database: elsewhere.clone(), ..login.clone() };
        let refused = match there.connect(Reach::Anywhere, CONNECT_LIMIT).await {
            Ok(_) => panic!("store A's login was let into {elsewhere}"),
            Err(refused) => refused.cause,
        };
        assert_eq!(refused, Cause::Forbidden, "{elsewhere}");
    }
    let public: Vec<bool> = sqlx::query_scalar(
        "select has_database_privilege('public', oid, 'connect') or has_database_privilege('public', oid, 'temporary')
         from pg_database where datname = any($1)",
    )
    .bind([stores[0].to_owned(), stores[1].to_owned(), master.database.clone()])
    .fetch_all(&mut app.cluster.admin().await)
    .await
    .unwrap();
    assert_eq!(public, [false, false, false]);
}

/// Of both engines at once: what is refused is refused before any server is called.
#[tokio::test(flavor = "multi_thread")]
async fn private_addresses_and_plain_connections_are_refused_unless_allowed() {
    let arguments = vec!["--allow-private-databases".to_owned(), "false".to_owned()];
    let app = TestApp::start_with(TestAppOptions { arguments, ..TestAppOptions::default() }).await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let string = |text: &str| json!({ "connectionString": text });
    for host in
        ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"]
    {
        for url in ["postgres://a:b@{}:5432/d?sslmode=require", "mysql://a:b@{}:3306/d?ssl-mode=REQUIRED"] {
            let answer = owner.connect(&store, string(&url.replace("{}", host))).await;
            let problem = answer.expect_field(422, "invalid-input", "/connectionString");
            let code = problem["errors"][0]["code"].as_str().unwrap();
            assert!(["private-address", "host", "malformed"].contains(&code), "{host}: {problem}");
        }
    }
    let fields =
        json!({ "engine": "postgresql", "host": "127.0.0.1", "username": "a", "password": "b", "database": "d" });
    let problem = owner.connect(&store, fields).await.expect_status(422);
    assert_eq!(problem["errors"][0]["code"], "private-address", "{problem}");
    for plain in ["postgres://a:b@203.0.113.7/d?sslmode=disable", "mysql://a:b@203.0.113.7/d?ssl-mode=DISABLED"] {
        let refused = owner.connect(&store, string(plain)).await;
        let problem = refused.expect_field(422, "invalid-input", "/connectionString");
        assert_eq!(problem["errors"][0]["code"], "tls-required", "{problem}");
    }
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

/// Of both engines at once, as above.
#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_no_host_of_an_owners_are_refused_also_where_private_ones_are_allowed() {
    let app = TestApp::start().await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let hooks = owner.api.with("idempotency-key", "hook");
    for host in [
        "169.254.169.254",
        "169.254.7.7",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "168.63.129.16",
        "[::]",
        "[fe80::1]",
        "[ff02::1]",
        "[fd00:ec2::254]",
        "[::ffff:169.254.169.254]",
    ] {
        for url in [
            format!("postgres://a:b@{host}/d"),
            format!("postgres://a:b@{host}/d?sslmode=require"),
            format!("mysql://a:b@{host}/d?ssl-mode=REQUIRED"),
        ] {
            let body = json!({ "connectionString": url });
            let refused = owner.connect(&store, body.clone()).await;
            let problem = refused.expect_field(422, "invalid-input", "/connectionString");
            assert_eq!(problem["errors"][0]["code"], "private-address", "{url}: {problem}");
            let report = owner.api.post("/api/databases/test", body).await.expect_status(200);
            let line = report["checks"].as_array().unwrap().iter().find(|line| line["name"] == "dns").unwrap();
            assert_eq!(line["code"], "private-address", "{url}: {report}");
        }
        let hook = hooks.post("/api/webhooks/endpoints", json!({ "url": format!("http://{host}/hook") })).await;
        let problem = hook.expect_field(422, "invalid-input", "/url");
        assert_eq!(problem["errors"][0]["code"], "private-address", "{host}: {problem}");
    }
    owner.api.get(&path_of(&store, "/provisioning")).await.expect_problem(404, "not-found");
}

async fn a_public_host_is_spoken_to_with_tls_also_where_private_ones_are_allowed(engine: Engine) {
    let bench = Bench::of(engine, &["tea"]).await;
    let (store, id) = (&bench.stores[0], store_id(&bench.stores[0]));
    let private = format!("127.0.0.1:{}", bench.app.server_port().await);
    let (scheme, mode) = if engine == Engine::Mysql { ("mysql", "ssl-mode") } else { ("postgres", "sslmode") };
    for (place, wanted) in [
        (format!("{scheme}://a:b@{private}/d"), TlsMode::Disable),
        (format!("{scheme}://a:b@{private}/d?{mode}=require"), TlsMode::Require),
        // Nothing is sent there: no worker takes the run up.
        (format!("{scheme}://a:b@8.8.8.8/d"), TlsMode::VerifyFull),
        (format!("{scheme}://a:b@8.8.8.8/d?{mode}=disable"), TlsMode::Disable),
    ] {
        let target = Target::from_url(&place.clone().into(), None, None, None).unwrap();
        let run = provisioning::connect(&bench.cx, Actor::Cli, id, NewDatabase::Brought(target), false).await.unwrap();

        assert_eq!(credential(&bench.app, store).await.tls, wanted, "{place}");

        provisioning::cancel(&bench.cx, Actor::Cli, id).await.unwrap();
        assert_eq!(bench.work(&run).await, RunState::Cancelled);
    }
    bench.cx.close().await;
}

async fn a_database_of_the_same_name_that_is_not_ours_is_neither_used_nor_dropped(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let name = database_name(&store);
    let mut admin = app.server().await;
    admin.execute(&format!("create database {name}")).await;
    if engine == Engine::Postgresql {
        admin.execute(&format!("comment on database {name} is 'somebody else'")).await;
    }
    let mut theirs = StoreSql::open(engine, app.cluster, &name).await;
    let precious = if engine == Engine::Postgresql { "public.precious" } else { "precious" };
    theirs.execute(&format!("create table {precious} (id int)")).await;
    theirs.execute(&format!("insert into {precious} values (7)")).await;
    theirs.close().await;

    owner.connect(&store, app.managed_body(false)).await.expect_status(202);
    let run = app.run_ended(&owner, &store).await;
    assert_eq!(failure(&run).1, "database-in-use");
    owner.api.post(&path_of(&store, "/provisioning/cancel"), json!({})).await.expect_status(202);
    app.run_ended(&owner, &store).await;

    let mut theirs = StoreSql::open(engine, app.cluster, &name).await;
    assert_eq!(theirs.number(&format!("select max(id) from {precious}")).await, 7);
    theirs.close().await;
    // Once ops have moved it out of the way, the run can be undone.
    admin.execute(&format!("drop database {name}")).await;
    owner.api.post(&path_of(&store, "/provisioning/cancel"), json!({})).await;
    assert_eq!(app.run_ended(&owner, &store).await["state"], "cancelled");
}

async fn the_answer_of_connecting_never_holds_what_was_typed(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let database = app.brought().await;
    let accepted = owner.connect(&store, database.body()).await;
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
