//! Provisioning: from connecting to a store that is served, or to a failure that says what to do and leaves nothing open.
//!
//! How servers are chosen, and what a stream that was read to its end answers, is decided by master alone: those tests run on
//! one engine.

use control_plane::audit::Actor;
use control_plane::provisioning::{
    self, DatabaseKind, NewDatabase, ProvisioningError, RunState, RunWithSteps, StepName, StepState, db, run,
};
use integration_tests::{
    Brought, Cluster, Owner, StoreSql, TestApp, TestAppOptions, TestDatabase, database_name, eventually,
};
use kernel::{Engine, StoreId, StoreStatus};
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::unwinding::{Bench, Place};

const MIGRATE_LOCK: i64 = 0x7465_6e61_6e74_7279;

pub(crate) const CONNECT_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

pub(crate) fn store_id(store: &Value) -> StoreId {
    store["id"].as_str().unwrap().parse().unwrap()
}

pub(crate) fn path_of(store: &Value, rest: &str) -> String {
    format!("/api/stores/{}{rest}", store["id"].as_str().unwrap())
}

pub(crate) async fn count(connection: &mut PgConnection, sql: &'static str, id: StoreId) -> i64 {
    sqlx::query_scalar(sql).bind(id.as_uuid()).fetch_one(connection).await.unwrap()
}

pub(crate) async fn database_exists(server: &Cluster, name: &str) -> bool {
    sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
        .bind(name)
        .fetch_one(&mut server.admin().await)
        .await
        .unwrap()
}

pub(crate) async fn role_exists(server: &Cluster, name: &str) -> bool {
    sqlx::query_scalar("select exists (select from pg_roles where rolname = $1)")
        .bind(name)
        .fetch_one(&mut server.admin().await)
        .await
        .unwrap()
}

/// How often each thing that the seed makes is there.
pub(crate) async fn seeded(inside: &mut StoreSql) -> Vec<(&'static str, i64)> {
    const THINGS: [(&str, &str); 9] = [
        ("identity", "select count(*) from store_identity"),
        ("staff", "select count(*) from staff"),
        ("locations", "select count(*) from stock_locations"),
        ("pages", "select count(*) from pages"),
        ("products", "select count(*) from products"),
        ("variants", "select count(*) from product_variants"),
        ("movements", "select count(*) from inventory_movements"),
        ("catalogue version", "select max(version) from catalog_version"),
        ("order number", "select max(value) from counters"),
    ];
    let mut found = Vec::new();
    for (thing, sql) in THINGS {
        found.push((thing, inside.number(sql).await));
    }
    found
}

/// An old shop of the owner's, in the same database.
pub(crate) async fn old_shop(database: &TestDatabase) {
    let mut owner = PgConnection::connect(&database.url()).await.unwrap();
    owner
        .execute(
            "create table public.products (id serial primary key, name text not null);
             insert into public.products (name) select 'old ' || n from generate_series(1, 50) n;
             create table public.customers (id serial primary key, email text);
             insert into public.customers (email) values ('a@example.com'), ('b@example.com');
             create view public.names as select name from public.products;
             create schema archive; create table archive.orders as select 1 as id, 99 as total",
        )
        .await
        .unwrap();
    owner.close().await.unwrap();
}

/// What an old shop is: every row, and every object outside our schema with its owner and rights.
pub(crate) async fn checksum(database: &TestDatabase) -> (String, String) {
    let mut admin = database.admin().await;
    let rows: String = sqlx::query_scalar(
        "select md5(string_agg(line, '|' order by line)) from (
             select p::text as line from public.products p union all select c::text from public.customers c
             union all select n::text from public.names n union all select o::text from archive.orders o) lines",
    )
    .fetch_one(&mut admin)
    .await
    .unwrap();
    let objects: String = sqlx::query_scalar(
        "select string_agg(format('%s.%s %s %s', n.nspname, c.relname, c.relowner::regrole, c.relacl), E'\\n'
             order by n.nspname, c.relname)
         from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where n.nspname not in ('tenantry', 'pg_catalog', 'information_schema', 'pg_toast')",
    )
    .fetch_one(&mut admin)
    .await
    .unwrap();
    (rows, objects)
}

/// The failed step of a run: its name, code and advice.
#[track_caller]
pub(crate) fn failure(run: &Value) -> (&str, &str, &str) {
    assert_eq!(run["state"], "failed", "{run}");
    let step = run["steps"].as_array().unwrap().iter().find(|step| step["state"] == "failed").unwrap();
    let text = |value: &'_ Value| value.as_str().unwrap().len();
    assert!(text(&step["error"]["detail"]) > 10 && text(&step["error"]["advice"]) > 10, "{step}");
    (step["name"].as_str().unwrap(), step["error"]["code"].as_str().unwrap(), step["error"]["advice"].as_str().unwrap())
}

pub(crate) async fn expect_not_ready(app: &TestApp, store: &Value) {
    let answer = app.storefront_of(store).get("/store/v1/products").await;
    answer.expect_problem(503, "store-not-ready");
    assert!(!answer.header("retry-after").is_empty());
}

/// Keeps the migrate step of a brought database waiting until it is dropped or closed.
pub(crate) async fn hold_migration(database: &Brought) -> StoreSql {
    let mut holder = database.inside().await;
    match database.engine() {
        Engine::Mysql => holder.execute("do get_lock(concat('tenantry:', md5(database())), 0)").await,
        _ => holder.execute(&format!("select pg_advisory_lock({MIGRATE_LOCK})")).await,
    }
    holder
}

pub(crate) async fn step_running(owner: &Owner, store: &Value, name: &str) {
    eventually(&format!("step {name}"), || async {
        let run = owner.api.get(&path_of(store, "/provisioning")).await.expect_status(200);
        let steps = run["run"]["steps"].as_array()?.clone();
        steps.iter().any(|step| step["name"] == name && step["state"] == "running").then_some(())
    })
    .await;
}

on_each_engine! {
    a_managed_database_is_made_and_served
    a_brought_database_is_served_by_connection_string_and_by_fields
    twenty_connects_at_once_make_one_run
    connecting_something_else_meanwhile_names_the_run_in_the_way
    connecting_while_a_run_is_undone_is_refused_and_taken_after_it
    a_run_that_was_given_up_is_retried_and_undone_however_often_it_was_tried
    a_running_run_is_cancelled_between_two_steps
    a_cancellation_that_comes_as_the_run_ends_is_not_lost
    the_stream_tells_every_step_in_order_and_resumes_without_repeats
    a_watcher_sees_a_failed_run_go_on_after_a_retry
    two_stores_do_not_both_take_the_last_place
}

async fn a_managed_database_is_made_and_served(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    expect_not_ready(&app, &store).await;
    let accepted = owner.connect(&store, app.managed_body(false)).await.expect_status(202);
    assert_eq!(accepted["run"]["state"], "queued");
    let names: Vec<&str> =
        accepted["run"]["steps"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    let wanted: Vec<&str> = StepName::of(DatabaseKind::Managed).iter().map(|name| name.as_str()).collect();
    assert_eq!(names, wanted);

    let run = app.run_ended(&owner, &store).await;

    assert_eq!(run["state"], "succeeded", "{run}");
    app.storefront_of(&store).get("/store/v1/products").await.expect_status(200);
    let detail = owner.api.get(&path_of(&store, "")).await.expect_status(200);
    assert_eq!((&detail["status"], &detail["database"]["state"]), (&json!("active"), &json!("available")));
    if engine != Engine::Postgresql {
        // What its login may do there is looked at by `the_login_of_one_store_is_refused_everywhere_else`.
        return;
    }
    // Everything inside belongs to the store's own login.
    let mut inside = app.store_database(&store).await;
    let owners: Vec<String> = sqlx::query_scalar(
        "select distinct c.relowner::regrole::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = 'tenantry' union select nspowner::regrole::text from pg_namespace where nspname = 'tenantry'",
    )
    .fetch_all(&mut inside)
    .await
    .unwrap();
    assert_eq!(owners, [database_name(&store)]);
    let login: (bool, bool, bool, bool) =
        sqlx::query_as("select rolsuper, rolcreatedb, rolcreaterole, rolreplication from pg_roles where rolname = $1")
            .bind(database_name(&store))
            .fetch_one(&mut inside)
            .await
            .unwrap();
    assert_eq!(login, (false, false, false, false));
}

async fn a_brought_database_is_served_by_connection_string_and_by_fields(engine: Engine) {
    let app =
        TestApp::start_on_with(engine, TestAppOptions { without_server: true, ..TestAppOptions::default() }).await;
    let owner = app.owner("ada").await;
    let (one, two) = (app.brought().await, app.brought().await);
    let by_string = owner.create_store("by-string").await.expect_status(201);
    let by_fields = owner.create_store("by-fields").await.expect_status(201);

    owner.connect(&by_string, one.body()).await.expect_status(202);
    owner.connect(&by_fields, two.fields(&json!({ "tls": "disable" }))).await.expect_status(202);

    for store in [&by_string, &by_fields] {
        let run = app.run_ended(&owner, store).await;
        assert_eq!((&run["state"], &run["kind"]), (&json!("succeeded"), &json!("brought")), "{run}");
        app.storefront_of(store).get("/store/v1/products").await.expect_status(200);
    }
}

async fn twenty_connects_at_once_make_one_run(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);

    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (owner, store, body) = (owner.clone(), store.clone(), app.managed_body(false));
        asking.spawn(async move { owner.connect(&store, body).await });
    }
    let answers = asking.join_all().await;

    let run = app.run_ended(&owner, &store).await;
    assert_eq!(run["state"], "succeeded", "{run}");
    for answer in answers {
        // Who came after the end is told that there is one; everybody else got the one run.
        match answer.status.as_u16() {
            202 => assert_eq!(answer.json()["run"]["id"], run["id"]),
            _ => drop(answer.expect_problem(409, "already-connected")),
        }
    }
    let mut master = app.master().await;
    assert_eq!(
        count(&mut master, "select count(*) from provisioning_runs where store_id = $1", store_id(&store)).await,
        1
    );
    assert_eq!(
        count(&mut master, "select count(*) from store_databases where store_id = $1", store_id(&store)).await,
        1
    );
    owner.connect(&store, app.managed_body(false)).await.expect_problem(409, "already-connected");
    let other = app.brought().await;
    owner.connect(&store, other.body()).await.expect_problem(409, "already-connected");
}

async fn connecting_something_else_meanwhile_names_the_run_in_the_way(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let database = app.brought().await;
    let holder = hold_migration(&database).await;
    let accepted = owner.connect(&store, database.body()).await.expect_status(202);

    let mut with_products = database.body();
    with_products["demoProducts"] = json!(true);
    let refused = [owner.connect(&store, app.managed_body(false)).await, owner.connect(&store, with_products).await];
    let again = owner.connect(&store, database.body()).await.expect_status(202);

    for refused in refused {
        assert_eq!(refused.expect_problem(409, "provisioning-in-progress")["runId"], accepted["run"]["id"]);
    }
    assert_eq!(again["run"]["id"], accepted["run"]["id"]);
    holder.close().await;
    assert_eq!(app.run_ended(&owner, &store).await["state"], "succeeded");
}

async fn connecting_while_a_run_is_undone_is_refused_and_taken_after_it(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let database = app.brought().await;
    let holder = hold_migration(&database).await;
    let first = owner.connect(&store, database.body()).await.expect_status(202);
    step_running(&owner, &store, "migrate").await;
    owner.api.post(&path_of(&store, "/provisioning/cancel"), json!({})).await.expect_status(202);

    let refused = owner.connect(&store, database.body()).await;

    assert_eq!(refused.expect_problem(409, "provisioning-in-progress")["runId"], first["run"]["id"]);
    holder.close().await;
    assert_eq!(app.run_ended(&owner, &store).await["state"], "cancelled");
    let second = owner.connect(&store, database.body()).await.expect_status(202);
    assert_ne!(second["run"]["id"], first["run"]["id"]);
    assert_eq!(app.run_ended(&owner, &store).await["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_in_another_region_meanwhile_is_no_repetition() {
    let bench = Bench::new(&["tea"]).await;
    let id = store_id(&bench.stores[0]);
    let server = "update database_servers set region = 'north'";
    sqlx::query(server).execute(&mut bench.app.master().await).await.unwrap();
    let managed = async |region: Option<&str>| {
        let wanted = NewDatabase::Managed { engine: Engine::Postgresql, region: region.map(ToOwned::to_owned) };
        provisioning::connect(&bench.cx, Actor::Cli, id, wanted, true).await
    };
    let run = managed(None).await.unwrap();

    for same in [None, Some("north")] {
        assert_eq!(managed(same).await.unwrap().run.id, run.run.id);
    }
    let refused = managed(Some("south")).await;

    assert!(matches!(refused, Err(ProvisioningError::InProgress { run: named }) if named == run.run.id));
    assert_eq!(bench.work(&run).await, RunState::Succeeded);
    bench.cx.close().await;
}

/// On PostgreSQL only: in MySQL a login has every right that migrating needs or is refused before, so nothing that a test could
/// do there makes the step fail half-way.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_run_goes_on_from_its_step_when_retried() {
    let app = TestApp::start().await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let database = app.cluster.brought().await;
    let mut admin = database.admin().await;
    // The login may make a schema, and then no index in it: temporary files are all it may have.
    admin
        .execute(
            "create function refuse() returns event_trigger language plpgsql as $$ begin raise exception 'not today'; end $$;
             create event trigger refuse on ddl_command_start when tag in ('CREATE TABLE') execute function refuse()",
        )
        .await
        .unwrap();
    owner.connect(&store, json!({ "connectionString": database.url() })).await.expect_status(202);
    let failed = app.run_ended(&owner, &store).await;
    let (step, code, advice) = failure(&failed);
    assert_eq!((step, code), ("migrate", "migration-failed"));
    assert!(advice.contains("trigger"), "it is not on our side: {advice}");
    let of_migrate = failed["steps"].as_array().unwrap().iter().find(|step| step["name"] == "migrate").unwrap();
    assert_eq!(of_migrate["error"]["serverCode"], "P0001", "{of_migrate}");
    expect_not_ready(&app, &store).await;
    // It may have left something: neither is it replaced silently, nor retried by connecting.
    let refused = owner
        .connect(&store, json!({ "connectionString": database.url() }))
        .await
        .expect_problem(409, "provisioning-failed");
    assert_eq!(refused["runId"], failed["id"]);
    assert!(refused["detail"].as_str().unwrap().contains("abandon=true"), "{refused}");
    owner.api.post(&path_of(&store, "/provisioning/retry"), json!({})).await.expect_status(202);
    assert_eq!(failure(&app.run_ended(&owner, &store).await).0, "migrate");

    admin.execute("drop event trigger refuse").await.unwrap();
    owner.api.post(&path_of(&store, "/provisioning/retry"), json!({})).await.expect_status(202);

    let run = app.run_ended(&owner, &store).await;
    assert_eq!((&run["state"], &run["id"]), (&json!("succeeded"), &failed["id"]), "{run}");
    assert_eq!(run["steps"][0]["attempts"], 1, "a step that was done is not done again: {run}");
    assert!(run["steps"].as_array().unwrap().iter().all(|step| step["error"].is_null()));
    app.storefront_of(&store).get("/store/v1/products").await.expect_status(200);
    owner.api.post(&path_of(&store, "/provisioning/retry"), json!({})).await.expect_problem(409, "wrong-run-state");
    owner.api.post(&path_of(&store, "/provisioning/cancel"), json!({})).await.expect_problem(409, "wrong-run-state");
}

/// As if workers had been killed in the middle of the run, again and again.
async fn use_up_attempts(app: &TestApp, run: &RunWithSteps) {
    let used = sqlx::query("update provisioning_runs set attempts = attempts_limit where id = $1")
        .bind(run.run.id.as_uuid())
        .execute(&mut app.master().await)
        .await
        .unwrap();
    assert_eq!(used.rows_affected(), 1);
}

async fn a_run_that_was_given_up_is_retried_and_undone_however_often_it_was_tried(engine: Engine) {
    let bench = Bench::of(engine, &["retried", "cancelled"]).await;
    let [retried, cancelled] = [0, 1].map(|at| store_id(&bench.stores[at]));
    for store in [retried, cancelled] {
        let run = bench.connect(store, Place::Managed(engine)).await;
        bench.perform(&run, StepName::CreateDatabase).await;
        let mut master = bench.app.master().await;
        db::step_begin(&mut master, run.run.id, StepName::CreateDatabase, bench.cx.clock.now()).await.unwrap();
        // Once by itself, once more after somebody had it tried again.
        for _ in 0..2 {
            use_up_attempts(&bench.app, &run).await;
            assert_eq!(bench.work(&run).await, RunState::Failed);
            let given_up = provisioning::latest(&bench.cx, store).await.unwrap();
            assert_eq!(given_up.failed_step().unwrap().error_code.as_deref(), Some("gave-up"));
            provisioning::retry(&bench.cx, Actor::Cli, store).await.unwrap();
        }
        use_up_attempts(&bench.app, &run).await;
        assert_eq!(bench.work(&run).await, RunState::Failed);
    }

    let run = provisioning::retry(&bench.cx, Actor::Cli, retried).await.unwrap();
    assert_eq!(bench.work(&run).await, RunState::Succeeded);
    assert_eq!(bench.status(retried).await, StoreStatus::Active);

    let run = provisioning::cancel(&bench.cx, Actor::Cli, cancelled).await.unwrap();
    use_up_attempts(&bench.app, &run).await;
    assert_eq!(bench.work(&run).await, RunState::Failed, "undoing has its limit, too");
    let run = provisioning::cancel(&bench.cx, Actor::Cli, cancelled).await.unwrap();
    assert_eq!(bench.work(&run).await, RunState::Cancelled);
    assert_eq!(bench.status(cancelled).await, StoreStatus::PendingDatabase);
    assert!(Place::Managed(engine).is_clean(bench.server, cancelled).await);
    bench.cx.close().await;
}

async fn a_running_run_is_cancelled_between_two_steps(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let database = app.brought().await;
    let holder = hold_migration(&database).await;
    owner.connect(&store, database.body()).await.expect_status(202);
    step_running(&owner, &store, "migrate").await;

    let cancelled = owner.api.post(&path_of(&store, "/provisioning/cancel"), json!({})).await.expect_status(202);
    holder.close().await;

    assert_eq!(cancelled["run"]["isCancelled"], true);
    let run = app.run_ended(&owner, &store).await;
    assert_eq!(run["state"], "cancelled", "{run}");
    assert_eq!(run["steps"][1]["state"], "undone", "{run}");
    assert_eq!(run["steps"][2]["state"], "pending", "{run}");
    let detail = owner.api.get(&path_of(&store, "")).await.expect_status(200);
    assert_eq!(detail["status"], "pending_database");
    owner.connect(&store, app.managed_body(false)).await.expect_status(202);
    assert_eq!(app.run_ended(&owner, &store).await["state"], "succeeded");
}

async fn a_cancellation_that_comes_as_the_run_ends_is_not_lost(engine: Engine) {
    let bench = Bench::of(engine, &["tea"]).await;
    let store = store_id(&bench.stores[0]);
    let run = bench.connect(store, Place::Managed(engine)).await;
    let mut master = bench.app.master().await;
    for step in run.steps.iter().filter(|step| step.name != StepName::Activate) {
        db::step_begin(&mut master, run.run.id, step.name, bench.cx.clock.now()).await.unwrap();
        bench.perform(&run, step.name).await;
        let end = db::StepEnd { state: StepState::Succeeded, error: None };
        db::step_end(&mut master, run.run.id, step.name, &end, bench.cx.clock.now()).await.unwrap();
    }
    // The worker has seen that nothing was cancelled and waits for the store's row, which the cancellation holds.
    let mut held = master.begin().await.unwrap();
    sqlx::query("select from stores where id = $1 for update").bind(store.as_uuid()).execute(&mut *held).await.unwrap();
    let (cx, id) = (bench.cx.clone(), run.run.id);
    let working = tokio::task::spawn(async move { run::work(&cx, id).await });
    eventually("the worker's wait for the store", || async {
        let waiting: i64 =
            sqlx::query_scalar("select count(*) from pg_stat_activity where datname = $1 and wait_event_type = 'Lock'")
                .bind(&bench.app.master.database)
                .fetch_one(&mut bench.app.master().await)
                .await
                .unwrap();
        (waiting > 0).then_some(())
    })
    .await;
    db::run_requeue(&mut held, id, true, run::MAX_ATTEMPTS).await.unwrap();
    held.commit().await.unwrap();
    working.await.unwrap().unwrap();

    assert_eq!(provisioning::latest(&bench.cx, store).await.unwrap().run.state, RunState::Cancelled);
    assert_eq!(bench.status(store).await, StoreStatus::PendingDatabase);
    bench.cx.close().await;
}

async fn the_stream_tells_every_step_in_order_and_resumes_without_repeats(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let database = app.brought().await;
    let holder = hold_migration(&database).await;
    owner.connect(&store, database.body()).await.expect_status(202);
    let path = path_of(&store, "/provisioning/events");
    let mut stream = owner.api.events(&path, None).await;
    let first = stream.next().await.unwrap();
    assert_eq!(first.kind, "queued");

    holder.close().await;
    let mut events = vec![first];
    events.extend(stream.to_end().await);

    let told: Vec<(&str, &str)> = events
        .iter()
        .filter(|event| event.kind == "step")
        .map(|event| (event.data["step"].as_str().unwrap(), event.data["state"].as_str().unwrap()))
        .collect();
    let wanted: Vec<(&str, &str)> = StepName::of(DatabaseKind::Brought)
        .iter()
        .flat_map(|name| [(name.as_str(), "running"), (name.as_str(), "succeeded")])
        .collect();
    assert_eq!(told, wanted);
    assert_eq!(events.last().unwrap().kind, "succeeded");
    assert!(events.is_sorted_by(|a, b| a.id < b.id));
    for at in [0, 4, events.len() - 2] {
        let rest = owner.api.events(&path, Some(events[at].id)).await.to_end().await;
        assert_eq!(rest, events[at + 1..]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_has_told_everything_is_not_opened_again() {
    let app = TestApp::start().await;
    let owner = app.owner("ada").await;
    let store = app.active_store(&owner, "tea").await;
    let path = path_of(&store, "/provisioning/events");
    let last = owner.api.events(&path, None).await.to_end().await.pop().unwrap();

    // 204 is what ends a browser's reconnecting.
    let again = owner.api.with("last-event-id", &last.id.to_string()).get(&path).await;

    assert_eq!(again.status, 204);
    owner.api.with("last-event-id", "yesterday").get(&path).await.expect_problem(400, "invalid-last-event-id");
}

async fn a_watcher_sees_a_failed_run_go_on_after_a_retry(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let wrong = app.brought().await;
    let body = wrong.url().replace(&wrong.password(), "nonsense");
    owner.connect(&store, json!({ "connectionString": body })).await.expect_status(202);
    app.run_ended(&owner, &store).await;
    let path = path_of(&store, "/provisioning/events");
    let events = owner.api.events(&path, None).await.to_end().await;
    let last = events.last().unwrap();
    assert_eq!(last.kind, "failed");
    let told = &events[events.len() - 2].data["error"];
    assert_eq!(told["code"], "wrong-password");
    assert!(!told.to_string().contains("nonsense"));

    owner.api.post(&path_of(&store, "/provisioning/retry"), json!({})).await.expect_status(202);
    let rest = owner.api.events(&path, Some(last.id)).await.to_end().await;

    assert_eq!(rest.first().unwrap().kind, "retried");
    assert_eq!(rest.last().unwrap().kind, "failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_go_to_the_least_filled_server_and_none_to_one_that_drains() {
    let app = TestApp::start_with(TestAppOptions { without_server: true, ..TestAppOptions::default() }).await;
    let owner = app.owner("ada").await;
    app.add_server("small", 2).await;
    app.disguise_servers().await;
    app.add_server("large", 4).await;
    let mut placed = Vec::new();
    for at in 0..6 {
        let store = owner.create_store(&format!("store-{at}")).await.expect_status(201);
        owner.connect(&store, json!({ "managed": true })).await.expect_status(202);
        let server: String = sqlx::query_scalar(
            "select v.name from store_databases d join database_servers v on v.id = d.server_id where d.store_id = $1",
        )
        .bind(store_id(&store).as_uuid())
        .fetch_one(&mut app.master().await)
        .await
        .unwrap();
        placed.push(server);
        assert_eq!(app.run_ended(&owner, &store).await["state"], "succeeded");
    }
    // Shares used: 0/2 0/4, 1/2 0/4, 1/2 1/4, 1/2 2/4 (a tie goes to the older), 2/2 2/4, 2/2 3/4.
    assert_eq!(placed, ["small", "large", "large", "small", "large", "large"]);

    let late = owner.create_store("late").await.expect_status(201);
    let full = owner.connect(&late, json!({ "managed": true })).await;

    full.expect_problem(503, "no-capacity");
    assert!(!full.header("retry-after").is_empty());
    let detail = owner.api.get(&path_of(&late, "")).await.expect_status(200);
    assert_eq!(detail["status"], "pending_database");
    app.disguise_servers().await;
    app.add_server("new", 10).await;
    control_plane::servers::drain(&app.cx, Actor::Cli, "new").await.unwrap();
    owner.connect(&late, json!({ "managed": true })).await.expect_problem(503, "no-capacity");
    let nowhere = owner.connect(&late, json!({ "managed": true, "region": "nowhere" })).await;
    nowhere.expect_field(422, "invalid-input", "/region");
    control_plane::servers::activate(&app.cx, Actor::Cli, "new").await.unwrap();
    owner.connect(&late, json!({ "managed": true })).await.expect_status(202);
    assert_eq!(app.run_ended(&owner, &late).await["state"], "succeeded");
}

async fn two_stores_do_not_both_take_the_last_place(engine: Engine) {
    let app =
        TestApp::start_on_with(engine, TestAppOptions { without_server: true, ..TestAppOptions::default() }).await;
    let owner = app.owner("ada").await;
    app.add_server("tiny", 3).await;
    let mut asking = tokio::task::JoinSet::new();
    for at in 0..8 {
        let store = owner.create_store(&format!("store-{at}")).await.expect_status(201);
        let (owner, body) = (owner.clone(), app.managed_body(false));
        asking.spawn(async move {
            let status = owner.connect(&store, body).await.status.as_u16();
            (store, status)
        });
    }
    let answers = asking.join_all().await;
    let taken: Vec<&Value> = answers.iter().filter(|(_, status)| *status == 202).map(|(store, _)| store).collect();
    assert_eq!(taken.len(), 3);
    for store in taken {
        assert_eq!(app.run_ended(&owner, store).await["state"], "succeeded");
    }
}
