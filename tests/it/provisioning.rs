//! Provisioning: from connecting to a store that is served, or to a failure that says what to do and leaves nothing open.

use axum::body::Body;
use control_plane::audit::Actor;
use control_plane::cx::OpsCx;
use control_plane::provisioning::steps::StepCx;
use control_plane::provisioning::{
    self, DatabaseKind, NewDatabase, ProvisioningError, RunState, RunWithSteps, StepName, StepState, Target, db,
    managed_name, run,
};
use control_plane::servers::NewServer;
use integration_tests::{
    Cluster, Owner, TestApp, TestAppOptions, TestDatabase, database_name, eventually, own_cluster,
};
use kernel::{StoreId, StoreStatus};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tenancy::{Cause, Credential, TlsMode};

const MIGRATE_LOCK: i64 = 0x7465_6e61_6e74_7279;
const CONNECT_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

pub(crate) fn store_id(store: &Value) -> StoreId {
    store["id"].as_str().unwrap().parse().unwrap()
}

fn path_of(store: &Value, rest: &str) -> String {
    format!("/api/stores/{}{rest}", store["id"].as_str().unwrap())
}

fn brought_body(database: &TestDatabase) -> Value {
    json!({ "engine": "postgresql", "connectionString": database.url() })
}

async fn count(connection: &mut PgConnection, sql: &'static str, id: StoreId) -> i64 {
    sqlx::query_scalar(sql).bind(id.as_uuid()).fetch_one(connection).await.unwrap()
}

async fn database_exists(server: &Cluster, name: &str) -> bool {
    sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
        .bind(name)
        .fetch_one(&mut server.admin().await)
        .await
        .unwrap()
}

async fn role_exists(server: &Cluster, name: &str) -> bool {
    sqlx::query_scalar("select exists (select from pg_roles where rolname = $1)")
        .bind(name)
        .fetch_one(&mut server.admin().await)
        .await
        .unwrap()
}

/// How often each thing that the seed makes is there.
pub(crate) async fn seeded(connection: &mut PgConnection) -> Vec<(String, i64)> {
    sqlx::query_as(
        "select 'identity', count(*) from tenantry.store_identity
         union all select 'staff', count(*) from tenantry.staff
         union all select 'locations', count(*) from tenantry.stock_locations
         union all select 'pages', count(*) from tenantry.pages
         union all select 'products', count(*) from tenantry.products
         union all select 'variants', count(*) from tenantry.product_variants
         union all select 'movements', count(*) from tenantry.inventory_movements
         union all select 'catalogue version', max(version) from tenantry.catalog_version
         union all select 'order number', max(value) from tenantry.counters",
    )
    .fetch_all(connection)
    .await
    .unwrap()
}

/// An old shop of the owner's, in the same database.
async fn old_shop(database: &TestDatabase) {
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
async fn checksum(database: &TestDatabase) -> (String, String) {
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
fn failure(run: &Value) -> (&str, &str, &str) {
    assert_eq!(run["state"], "failed", "{run}");
    let step = run["steps"].as_array().unwrap().iter().find(|step| step["state"] == "failed").unwrap();
    let text = |value: &'_ Value| value.as_str().unwrap().len();
    assert!(text(&step["error"]["detail"]) > 10 && text(&step["error"]["advice"]) > 10, "{step}");
    (step["name"].as_str().unwrap(), step["error"]["code"].as_str().unwrap(), step["error"]["advice"].as_str().unwrap())
}

async fn expect_not_ready(app: &TestApp, store: &Value) {
    let answer = app.storefront_of(store).get("/store/v1/products").await;
    answer.expect_problem(503, "store-not-ready");
    assert!(!answer.header("retry-after").is_empty());
}

/// Keeps the migrate step of a brought database waiting until it is dropped or closed.
pub(crate) async fn hold_migration(database: &TestDatabase) -> PgConnection {
    let mut holder = database.admin().await;
    sqlx::query("select pg_advisory_lock($1)").bind(MIGRATE_LOCK).execute(&mut holder).await.unwrap();
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

#[tokio::test(flavor = "multi_thread")]
async fn a_managed_database_is_made_and_served() {
    let app = TestApp::start().await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    expect_not_ready(&app, &store).await;
    let accepted = owner.connect(&store, json!({ "managed": true })).await.expect_status(202);
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

#[tokio::test(flavor = "multi_thread")]
async fn a_brought_database_is_served_by_connection_string_and_by_fields() {
    let app = TestApp::start_with(TestAppOptions { without_server: true, ..TestAppOptions::default() }).await;
    let owner = app.owner("ada").await;
    let (one, two) = (app.cluster.brought().await, app.cluster.brought().await);
    let by_string = owner.create_store("by-string").await.expect_status(201);
    let by_fields = owner.create_store("by-fields").await.expect_status(201);

    owner.connect(&by_string, brought_body(&one)).await.expect_status(202);
    let fields = json!({ "engine": "postgresql", "host": "127.0.0.1", "port": app.cluster.port(), "tls": "disable",
        "username": two.database, "password": two.password(), "database": two.database });
    owner.connect(&by_fields, fields).await.expect_status(202);

    for store in [&by_string, &by_fields] {
        let run = app.run_ended(&owner, store).await;
        assert_eq!((&run["state"], &run["kind"]), (&json!("succeeded"), &json!("brought")), "{run}");
        app.storefront_of(store).get("/store/v1/products").await.expect_status(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_connects_at_once_make_one_run() {
    let app = TestApp::start().await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);

    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (owner, store) = (owner.clone(), store.clone());
        asking.spawn(async move { owner.connect(&store, json!({ "managed": true })).await });
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
    owner.connect(&store, json!({ "managed": true })).await.expect_problem(409, "already-connected");
    let other = app.cluster.brought().await;
    owner.connect(&store, brought_body(&other)).await.expect_problem(409, "already-connected");
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_something_else_meanwhile_names_the_run_in_the_way() {
    let app = TestApp::start().await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let database = app.cluster.brought().await;
    let holder = hold_migration(&database).await;
    let accepted = owner.connect(&store, brought_body(&database)).await.expect_status(202);

    let mut with_products = brought_body(&database);
    with_products["demoProducts"] = json!(true);
    let refused = [owner.connect(&store, json!({ "managed": true })).await, owner.connect(&store, with_products).await];
    let again = owner.connect(&store, brought_body(&database)).await.expect_status(202);

    for refused in refused {
        assert_eq!(refused.expect_problem(409, "provisioning-in-progress")["runId"], accepted["run"]["id"]);
    }
    assert_eq!(again["run"]["id"], accepted["run"]["id"]);
    holder.close().await.unwrap();
    assert_eq!(app.run_ended(&owner, &store).await["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_while_a_run_is_undone_is_refused_and_taken_after_it() {
    let app = TestApp::start().await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let database = app.cluster.brought().await;
    let holder = hold_migration(&database).await;
    let first = owner.connect(&store, brought_body(&database)).await.expect_status(202);
    step_running(&owner, &store, "migrate").await;
    owner.api.post(&path_of(&store, "/provisioning/cancel"), json!({})).await.expect_status(202);

    let refused = owner.connect(&store, brought_body(&database)).await;

    assert_eq!(refused.expect_problem(409, "provisioning-in-progress")["runId"], first["run"]["id"]);
    holder.close().await.unwrap();
    assert_eq!(app.run_ended(&owner, &store).await["state"], "cancelled");
    let second = owner.connect(&store, brought_body(&database)).await.expect_status(202);
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
        let wanted = NewDatabase::Managed { region: region.map(ToOwned::to_owned) };
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

/// A store whose run the test works off by itself.
struct Bench {
    app: TestApp,
    /// Where managed databases are made.
    server: &'static Cluster,
    cx: OpsCx,
    stores: Vec<Value>,
}

impl Bench {
    async fn new(slugs: &[&str]) -> Self {
        let app = TestApp::start().await;
        let server = app.cluster;
        Self::on(server, app, slugs).await
    }

    async fn on(server: &'static Cluster, app: TestApp, slugs: &[&str]) -> Self {
        let owner = app.owner("ada").await;
        let mut stores = Vec::new();
        for slug in slugs {
            stores.push(owner.create_store(slug).await.expect_status(201));
        }
        let cx = app.without_worker().await;
        Self { app, server, cx, stores }
    }

    async fn connect(&self, store: StoreId, database: Option<&TestDatabase>) -> RunWithSteps {
        let wanted = match database {
            None => NewDatabase::Managed { region: None },
            Some(database) => NewDatabase::Brought(Target::from_url(&database.url().into(), None, None).unwrap()),
        };
        provisioning::connect(&self.cx, Actor::Cli, store, wanted, true).await.unwrap()
    }

    async fn perform(&self, run: &RunWithSteps, step: StepName) {
        let cx = StepCx::load(&self.cx, &run.run).await.unwrap().unwrap();
        cx.perform(step).await.unwrap_or_else(|error| panic!("{}: {error}", step.as_str()));
    }

    async fn status(&self, store: StoreId) -> StoreStatus {
        control_plane::stores::find(&self.cx, store).await.unwrap().status
    }

    async fn inside(&self, store: StoreId, database: Option<&TestDatabase>) -> PgConnection {
        match database {
            None => self.server.connect(managed_name(store).as_str()).await,
            Some(database) => database.admin().await,
        }
    }

    /// Works the run off, as the worker would.
    async fn work(&self, run: &RunWithSteps) -> RunState {
        run::work(&self.cx, run.run.id).await.unwrap();
        provisioning::latest(&self.cx, run.run.store_id).await.unwrap().run.state
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_runs_twice_and_the_store_is_served_only_after_the_last() {
    let bench = Bench::new(&["once", "twice", "once-brought", "twice-brought"]).await;
    let brought = [bench.app.cluster.brought().await, bench.app.cluster.brought().await];
    for (pair, databases) in [(0, [None, None]), (2, [Some(&brought[0]), Some(&brought[1])])] {
        let once = store_id(&bench.stores[pair]);
        let run = bench.connect(once, databases[0]).await;
        assert_eq!(bench.work(&run).await, RunState::Succeeded);
        let wanted = seeded(&mut bench.inside(once, databases[0]).await).await;

        let twice = store_id(&bench.stores[pair + 1]);
        let run = bench.connect(twice, databases[1]).await;
        for step in &run.steps {
            assert_eq!(bench.status(twice).await, StoreStatus::Provisioning, "before {}", step.name.as_str());
            bench.perform(&run, step.name).await;
            bench.perform(&run, step.name).await;
        }

        assert_eq!(bench.status(twice).await, StoreStatus::Active);
        // The steps are done a third time: nobody had noted that they were done.
        assert_eq!(bench.work(&run).await, RunState::Succeeded);
        assert_eq!(seeded(&mut bench.inside(twice, databases[1]).await).await, wanted);
        let mut master = bench.app.master().await;
        assert_eq!(count(&mut master, "select count(*) from hostnames where store_id = $1", twice).await, 1);
    }
    bench.cx.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_managed_run_unwinds_from_every_step() {
    let bench = Bench::new(&["tea"]).await;
    unwinds_from_every_step(&bench, DatabaseKind::Managed, None).await;
}

/// A hosted server's administrator is no superuser: it may make databases and roles, and that is all.
#[tokio::test(flavor = "multi_thread")]
async fn a_managed_run_unwinds_from_every_step_without_superuser_rights() {
    let cluster = own_cluster("modest").await;
    let mut admin = cluster.admin().await;
    admin.execute("create role modest login createdb createrole password 'modest-secret'").await.unwrap();
    let app = TestApp::start_with(TestAppOptions { without_server: true, ..TestAppOptions::default() }).await;
    let new = NewServer {
        name: "hosted".to_owned(),
        url: format!("postgres://modest:modest-secret@127.0.0.1:{}/postgres", cluster.port()).into(),
        region: None,
        max_stores: 10,
        max_connections: 80,
    };
    control_plane::servers::add(&app.cx, Actor::Cli, new).await.unwrap();
    let bench = Bench::on(cluster, app, &["tea"]).await;
    unwinds_from_every_step(&bench, DatabaseKind::Managed, None).await;

    let name = managed_name(store_id(&bench.stores[0]));
    let (is_admins, is_open): (bool, bool) = sqlx::query_as(
        "select pg_get_userbyid(datdba) = 'modest', has_database_privilege('public', oid, 'connect')
         from pg_database where datname = $1",
    )
    .bind(name.as_str())
    .fetch_one(&mut admin)
    .await
    .unwrap();
    assert!(is_admins && !is_open, "it is the administrator's, and closed to the rest");
    let strangers: Vec<String> = sqlx::query_scalar(
        "select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = 'tenantry' and pg_get_userbyid(c.relowner) <> $1",
    )
    .bind(name.as_str())
    .fetch_all(&mut cluster.connect(name.as_str()).await)
    .await
    .unwrap();
    assert!(strangers.is_empty(), "everything inside is the store's: {strangers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_brought_run_unwinds_from_every_step_and_leaves_the_old_shop_alone() {
    let bench = Bench::new(&["tea"]).await;
    let database = bench.app.cluster.brought().await;
    old_shop(&database).await;
    let before = checksum(&database).await;
    unwinds_from_every_step(&bench, DatabaseKind::Brought, Some(&database)).await;
    assert_eq!(checksum(&database).await, before);
}

async fn unwinds_from_every_step(bench: &Bench, kind: DatabaseKind, database: Option<&TestDatabase>) {
    let store = store_id(&bench.stores[0]);
    let name = managed_name(store);
    // The last step opens the store in the transaction that ends the run: after it there is nothing left to cancel.
    for done in 0..StepName::of(kind).len() {
        let run = bench.connect(store, database).await;
        let mut master = bench.app.master().await;
        for (at, step) in run.steps.iter().take(done).enumerate() {
            db::step_begin(&mut master, run.run.id, step.name, bench.cx.clock.now()).await.unwrap();
            bench.perform(&run, step.name).await;
            // The last one was killed after it had done its work and before that was noted.
            if at + 1 < done {
                let end = db::StepEnd { state: StepState::Succeeded, error: None };
                db::step_end(&mut master, run.run.id, step.name, &end, bench.cx.clock.now()).await.unwrap();
            }
        }

        provisioning::cancel(&bench.cx, Actor::Cli, store).await.unwrap();
        assert_eq!(bench.work(&run).await, RunState::Cancelled, "after {done} steps");

        assert_eq!(bench.status(store).await, StoreStatus::PendingDatabase, "after {done} steps");
        assert_eq!(count(&mut master, "select count(*) from store_databases where store_id = $1", store).await, 0);
        match database {
            None => {
                assert!(!database_exists(bench.server, name.as_str()).await, "after {done} steps");
                assert!(!role_exists(bench.server, name.as_str()).await, "after {done} steps");
            }
            Some(database) => {
                let has_ours: bool = sqlx::query_scalar("select to_regnamespace('tenantry') is not null")
                    .fetch_one(&mut database.admin().await)
                    .await
                    .unwrap();
                assert!(!has_ours, "after {done} steps");
            }
        }
    }
    let run = bench.connect(store, database).await;
    assert_eq!(bench.work(&run).await, RunState::Succeeded);
    assert_eq!(bench.status(store).await, StoreStatus::Active);
    bench.cx.close().await;
}

/// How many sessions wait to drop the database or the role of this name.
async fn drops_waiting(server: &Cluster, name: &str) -> i64 {
    sqlx::query_scalar(
        "select count(*) from pg_stat_activity
         where wait_event_type = 'Lock' and query ilike 'drop %' and strpos(query, $1) > 0",
    )
    .bind(name)
    .fetch_one(&mut server.admin().await)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_that_a_killed_node_left_to_the_server_is_no_failure_for_the_next_one() {
    let bench = Bench::new(&["tea"]).await;
    let store = store_id(&bench.stores[0]);
    let name = managed_name(store);
    let run = bench.connect(store, None).await;
    let mut master = bench.app.master().await;
    db::step_begin(&mut master, run.run.id, StepName::CreateDatabase, bench.cx.clock.now()).await.unwrap();
    bench.perform(&run, StepName::CreateDatabase).await;
    // Keeps whoever drops it waiting.
    let mut holder = bench.server.admin().await;
    let mut held = holder.begin().await.unwrap();
    let mark = format!("comment on database {name} is 'tenantry {store}'");
    held.execute(AssertSqlSafe(mark)).await.unwrap();
    let mut killed = bench.server.admin().await;
    let statement = format!("drop database {name} with (force)");
    let left = tokio::task::spawn(async move { killed.execute(AssertSqlSafe(statement)).await });
    eventually("the killed node's drop", || async {
        (drops_waiting(bench.server, name.as_str()).await == 1).then_some(())
    })
    .await;

    provisioning::cancel(&bench.cx, Actor::Cli, store).await.unwrap();
    let (cx, id) = (bench.cx.clone(), run.run.id);
    let working = tokio::task::spawn(async move { run::work(&cx, id).await });
    eventually("the next node's drop", || async {
        (drops_waiting(bench.server, name.as_str()).await == 2).then_some(())
    })
    .await;
    held.rollback().await.unwrap();

    left.await.unwrap().unwrap();
    working.await.unwrap().unwrap();
    let run = provisioning::latest(&bench.cx, store).await.unwrap();
    assert_eq!(run.run.state, RunState::Cancelled, "{:?}", run.failed_step());
    assert!(!database_exists(bench.server, name.as_str()).await && !role_exists(bench.server, name.as_str()).await);
    bench.cx.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_cancellation_nothing_reaches_the_database_that_was_given_up() {
    let bench = Bench::new(&["tea"]).await;
    let store = store_id(&bench.stores[0]);
    let (first, second) = (bench.app.cluster.brought().await, bench.app.cluster.brought().await);
    let run = bench.connect(store, Some(&first)).await;
    for step in run.steps.iter().filter(|step| step.name != StepName::Activate) {
        // From the seed on there are open connections to it.
        bench.perform(&run, step.name).await;
    }
    provisioning::cancel(&bench.cx, Actor::Cli, store).await.unwrap();
    let mut master = bench.app.master().await;
    let now = bench.cx.clock.now();
    db::step_begin(&mut master, run.run.id, StepName::Migrate, now).await.unwrap();
    assert_eq!(bench.work(&run).await, RunState::Cancelled);

    let run = bench.connect(store, Some(&second)).await;
    assert_eq!(bench.work(&run).await, RunState::Succeeded);

    let is_empty: bool = sqlx::query_scalar("select to_regnamespace('tenantry') is null")
        .fetch_one(&mut first.admin().await)
        .await
        .unwrap();
    assert!(is_empty);
    assert!(seeded(&mut second.admin().await).await.contains(&("staff".to_owned(), 1)));
    bench.cx.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_worker_leaves_a_run_alone() {
    let bench = Bench::new(&["tea"]).await;
    let run = bench.connect(store_id(&bench.stores[0]), None).await;

    let (first, second) = tokio::join!(run::work(&bench.cx, run.run.id), run::work(&bench.cx, run.run.id));

    first.unwrap();
    second.unwrap();
    let found = provisioning::latest(&bench.cx, run.run.store_id).await.unwrap();
    assert_eq!((found.run.state, found.run.attempts), (RunState::Succeeded, 1));
    assert!(found.steps.iter().all(|step| step.attempts == 1));
    bench.cx.close().await;
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
    let before = seeded(&mut database.admin().await).await;

    let right = app.cluster.brought().await;
    let body = brought_body(&right);
    corrects(&app, brought_body(&database), "check_connection", "belongs-to-another-store", async || body).await;

    assert_eq!(seeded(&mut database.admin().await).await, before);
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
    let (theirs, ours) = (bench.connect(first, Some(&database)).await, bench.connect(second, Some(&database)).await);
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
    let ours = bench.connect(second, Some(&database)).await;
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
    owner.connect(&store, brought_body(&database)).await.expect_status(202);
    let failed = app.run_ended(&owner, &store).await;
    assert_eq!(failure(&failed).0, "migrate");
    expect_not_ready(&app, &store).await;
    // It may have left something: neither is it replaced silently, nor retried by connecting.
    let refused = owner.connect(&store, brought_body(&database)).await.expect_problem(409, "provisioning-failed");
    assert_eq!(refused["runId"], failed["id"]);
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

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_given_up_is_retried_and_undone_however_often_it_was_tried() {
    let bench = Bench::new(&["retried", "cancelled"]).await;
    let [retried, cancelled] = [0, 1].map(|at| store_id(&bench.stores[at]));
    for store in [retried, cancelled] {
        let run = bench.connect(store, None).await;
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
    assert!(!database_exists(bench.server, managed_name(cancelled).as_str()).await);
    bench.cx.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_run_is_cancelled_between_two_steps() {
    let app = TestApp::start().await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let database = app.cluster.brought().await;
    let holder = hold_migration(&database).await;
    owner.connect(&store, brought_body(&database)).await.expect_status(202);
    step_running(&owner, &store, "migrate").await;

    let cancelled = owner.api.post(&path_of(&store, "/provisioning/cancel"), json!({})).await.expect_status(202);
    holder.close().await.unwrap();

    assert_eq!(cancelled["run"]["isCancelled"], true);
    let run = app.run_ended(&owner, &store).await;
    assert_eq!(run["state"], "cancelled", "{run}");
    assert_eq!(run["steps"][1]["state"], "undone", "{run}");
    assert_eq!(run["steps"][2]["state"], "pending", "{run}");
    let detail = owner.api.get(&path_of(&store, "")).await.expect_status(200);
    assert_eq!(detail["status"], "pending_database");
    owner.connect(&store, json!({ "managed": true })).await.expect_status(202);
    assert_eq!(app.run_ended(&owner, &store).await["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_that_comes_as_the_run_ends_is_not_lost() {
    let bench = Bench::new(&["tea"]).await;
    let store = store_id(&bench.stores[0]);
    let run = bench.connect(store, None).await;
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
    login.connect(CONNECT_LIMIT).await.expect("its own database lets it in").close().await.unwrap();
    // A master as `migrate master` makes it; the test's own is a clone, and clones have no rights of their own.
    let master = app.cluster.empty().await;
    let args = control_plane::config::MasterArgs { master_db_url: master.url().into(), master_max_connections: 4 };
    control_plane::master::migrate(&args).await.unwrap();

    let template = format!("tenantry_template_{}", tenant_schema::LATEST_VERSION);
    for elsewhere in [database_name(&b), master.database.clone(), template] {
        let there = Credential { database: elsewhere.clone(), ..login.clone() };
        let refused = match there.connect(CONNECT_LIMIT).await {
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
async fn the_stream_tells_every_step_in_order_and_resumes_without_repeats() {
    let app = TestApp::start().await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let database = app.cluster.brought().await;
    let holder = hold_migration(&database).await;
    owner.connect(&store, brought_body(&database)).await.expect_status(202);
    let path = path_of(&store, "/provisioning/events");
    let mut stream = owner.api.events(&path, None).await;
    let first = stream.next().await.unwrap();
    assert_eq!(first.kind, "queued");

    holder.close().await.unwrap();
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

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_sees_a_failed_run_go_on_after_a_retry() {
    let app = TestApp::start().await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let wrong = app.cluster.brought().await;
    let body = wrong.url().replace(&wrong.password(), "nonsense");
    owner.connect(&store, json!({ "engine": "postgresql", "connectionString": body })).await.expect_status(202);
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

#[tokio::test(flavor = "multi_thread")]
async fn two_stores_do_not_both_take_the_last_place() {
    let app = TestApp::start_with(TestAppOptions { without_server: true, ..TestAppOptions::default() }).await;
    let owner = app.owner("ada").await;
    app.add_server("tiny", 3).await;
    let mut asking = tokio::task::JoinSet::new();
    for at in 0..8 {
        let store = owner.create_store(&format!("store-{at}")).await.expect_status(201);
        let owner = owner.clone();
        asking.spawn(async move {
            let status = owner.connect(&store, json!({ "managed": true })).await.status.as_u16();
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
        let target = Target::from_url(&place.clone().into(), None, None).unwrap();
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
