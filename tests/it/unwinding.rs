//! What a run has done is undone, from any step, and what a run is stopped at is done again.

use control_plane::audit::Actor;
use control_plane::cx::OpsCx;
use control_plane::provisioning::steps::StepCx;
use control_plane::provisioning::{
    self, DatabaseKind, NewDatabase, RunState, RunWithSteps, StepName, StepState, Target, db, managed_name, run,
};
use control_plane::servers::NewServer;
use integration_tests::{Brought, Cluster, StoreSql, TestApp, TestAppOptions, eventually, own_cluster};
use kernel::{Engine, StoreId, StoreStatus};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::provisioning::{checksum, count, database_exists, old_shop, role_exists, seeded, store_id};

/// Where a store's database is.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    Managed(Engine),
    Brought(&'a Brought),
}

impl Place<'_> {
    fn wanted(self) -> NewDatabase {
        let brought = |url: String| NewDatabase::Brought(Target::from_url(&url.into(), None, None, None).unwrap());
        match self {
            Self::Managed(engine) => NewDatabase::Managed { engine, region: None },
            Self::Brought(database) => brought(database.url()),
        }
    }

    fn kind(self) -> DatabaseKind {
        match self {
            Self::Managed(_) => DatabaseKind::Managed,
            Self::Brought(_) => DatabaseKind::Brought,
        }
    }

    /// Whether nothing of the store is left there.
    pub(crate) async fn is_clean(self, server: &Cluster, store: StoreId) -> bool {
        let name = managed_name(store);
        match self {
            Self::Managed(Engine::Mysql) => {
                let mut admin = StoreSql::open(Engine::Mysql, server, "mysql").await;
                let databases =
                    format!("select count(*) from information_schema.schemata where schema_name = '{}'", name.as_str());
                let logins = format!("select count(*) from mysql.user where user = '{}'", name.as_str());
                admin.number(&databases).await + admin.number(&logins).await == 0
            }
            Self::Managed(_) => {
                !database_exists(server, name.as_str()).await && !role_exists(server, name.as_str()).await
            }
            Self::Brought(database) => {
                let left = match database.engine() {
                    Engine::Mysql => "select count(*) from information_schema.tables where table_schema = database()",
                    _ => "select count(*) from pg_namespace where nspname = 'tenantry'",
                };
                database.inside().await.number(left).await == 0
            }
        }
    }
}

/// A store whose run the test works off by itself.
pub(crate) struct Bench {
    pub(crate) app: TestApp,
    /// Where managed databases are made.
    pub(crate) server: &'static Cluster,
    pub(crate) cx: OpsCx,
    pub(crate) stores: Vec<Value>,
}

impl Bench {
    pub(crate) async fn new(slugs: &[&str]) -> Self {
        Self::of(Engine::Postgresql, slugs).await
    }

    /// With managed databases of this engine.
    pub(crate) async fn of(engine: Engine, slugs: &[&str]) -> Self {
        let app = TestApp::start_on(engine).await;
        let server = app.cluster;
        Self::on(server, app, slugs).await
    }

    pub(crate) async fn on(server: &'static Cluster, app: TestApp, slugs: &[&str]) -> Self {
        let owner = app.owner("ada").await;
        let mut stores = Vec::new();
        for slug in slugs {
            stores.push(owner.create_store(slug).await.expect_status(201));
        }
        let cx = app.without_worker().await;
        Self { app, server, cx, stores }
    }

    pub(crate) async fn connect(&self, store: StoreId, place: Place<'_>) -> RunWithSteps {
        provisioning::connect(&self.cx, Actor::Cli, store, place.wanted(), true).await.unwrap()
    }

    pub(crate) async fn perform(&self, run: &RunWithSteps, step: StepName) {
        let cx = StepCx::load(&self.cx, &run.run).await.unwrap().unwrap();
        cx.perform(step).await.unwrap_or_else(|error| panic!("{}: {error}", step.as_str()));
    }

    pub(crate) async fn status(&self, store: StoreId) -> StoreStatus {
        control_plane::stores::find(&self.cx, store).await.unwrap().status
    }

    pub(crate) async fn inside(&self, store: StoreId, place: Place<'_>) -> StoreSql {
        match place {
            Place::Managed(engine) => StoreSql::open(engine, self.server, managed_name(store).as_str()).await,
            Place::Brought(database) => database.inside().await,
        }
    }

    /// Works the run off, as the worker would.
    pub(crate) async fn work(&self, run: &RunWithSteps) -> RunState {
        run::work(&self.cx, run.run.id).await.unwrap();
        provisioning::latest(&self.cx, run.run.store_id).await.unwrap().run.state
    }
}

on_each_engine! {
    every_step_runs_twice_and_the_store_is_served_only_after_the_last
    a_managed_run_unwinds_from_every_step
    a_brought_run_unwinds_from_every_step_and_leaves_the_old_shop_alone
    after_a_cancellation_nothing_reaches_the_database_that_was_given_up
    a_second_worker_leaves_a_run_alone
}

async fn every_step_runs_twice_and_the_store_is_served_only_after_the_last(engine: Engine) {
    let bench = Bench::of(engine, &["once", "twice", "once-brought", "twice-brought"]).await;
    let brought = [bench.app.brought().await, bench.app.brought().await];
    let brought = [Place::Brought(&brought[0]), Place::Brought(&brought[1])];
    for (pair, places) in [(0, [Place::Managed(engine); 2]), (2, brought)] {
        let once = store_id(&bench.stores[pair]);
        let run = bench.connect(once, places[0]).await;
        assert_eq!(bench.work(&run).await, RunState::Succeeded);
        let wanted = seeded(&mut bench.inside(once, places[0]).await).await;

        let twice = store_id(&bench.stores[pair + 1]);
        let run = bench.connect(twice, places[1]).await;
        for step in &run.steps {
            assert_eq!(bench.status(twice).await, StoreStatus::Provisioning, "before {}", step.name.as_str());
            bench.perform(&run, step.name).await;
            bench.perform(&run, step.name).await;
        }

        assert_eq!(bench.status(twice).await, StoreStatus::Active);
        // The steps are done a third time: nobody had noted that they were done.
        assert_eq!(bench.work(&run).await, RunState::Succeeded);
        assert_eq!(seeded(&mut bench.inside(twice, places[1]).await).await, wanted);
        let mut master = bench.app.master().await;
        assert_eq!(count(&mut master, "select count(*) from hostnames where store_id = $1", twice).await, 1);
    }
    bench.cx.close().await;
}

async fn a_managed_run_unwinds_from_every_step(engine: Engine) {
    let bench = Bench::of(engine, &["tea"]).await;
    unwinds_from_every_step(&bench, Place::Managed(engine)).await;
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
        engine: None,
        url: format!("postgres://modest:modest-secret@127.0.0.1:{}/postgres", cluster.port()).into(),
        ca_pem: None,
        region: None,
        max_stores: 10,
        max_connections: 80,
    };
    control_plane::servers::add(&app.cx, Actor::Cli, new).await.unwrap();
    let bench = Bench::on(cluster, app, &["tea"]).await;
    unwinds_from_every_step(&bench, Place::Managed(Engine::Postgresql)).await;

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

async fn a_brought_run_unwinds_from_every_step_and_leaves_the_old_shop_alone(engine: Engine) {
    let bench = Bench::of(engine, &["tea"]).await;
    let database = bench.app.brought().await;
    // Beside an old shop, where one may be: in MySQL the database must be empty.
    let shop = if let Brought::Postgres(database) = &database { Some(database) } else { None };
    let mut before = None;
    if let Some(shop) = shop {
        old_shop(shop).await;
        before = Some(checksum(shop).await);
    }
    unwinds_from_every_step(&bench, Place::Brought(&database)).await;
    if let Some(shop) = shop {
        assert_eq!(Some(checksum(shop).await), before);
    }
}

async fn unwinds_from_every_step(bench: &Bench, place: Place<'_>) {
    let store = store_id(&bench.stores[0]);
    // The last step opens the store in the transaction that ends the run: after it there is nothing left to cancel.
    for done in 0..StepName::of(place.kind()).len() {
        let run = bench.connect(store, place).await;
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
        assert!(place.is_clean(bench.server, store).await, "after {done} steps");
    }
    let run = bench.connect(store, place).await;
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

/// On PostgreSQL only: in MySQL who drops ends the sessions that are in the way, and a drop that waits is found by nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_drop_that_a_killed_node_left_to_the_server_is_no_failure_for_the_next_one() {
    let bench = Bench::new(&["tea"]).await;
    let store = store_id(&bench.stores[0]);
    let name = managed_name(store);
    let run = bench.connect(store, Place::Managed(Engine::Postgresql)).await;
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

async fn after_a_cancellation_nothing_reaches_the_database_that_was_given_up(engine: Engine) {
    let bench = Bench::of(engine, &["tea"]).await;
    let store = store_id(&bench.stores[0]);
    let (first, second) = (bench.app.brought().await, bench.app.brought().await);
    let run = bench.connect(store, Place::Brought(&first)).await;
    for step in run.steps.iter().filter(|step| step.name != StepName::Activate) {
        // From the seed on there are open connections to it.
        bench.perform(&run, step.name).await;
    }
    provisioning::cancel(&bench.cx, Actor::Cli, store).await.unwrap();
    let mut master = bench.app.master().await;
    let now = bench.cx.clock.now();
    db::step_begin(&mut master, run.run.id, StepName::Migrate, now).await.unwrap();
    assert_eq!(bench.work(&run).await, RunState::Cancelled);

    let run = bench.connect(store, Place::Brought(&second)).await;
    assert_eq!(bench.work(&run).await, RunState::Succeeded);

    assert!(Place::Brought(&first).is_clean(bench.server, store).await);
    assert!(seeded(&mut bench.inside(store, Place::Brought(&second)).await).await.contains(&("staff", 1)));
    bench.cx.close().await;
}

async fn a_second_worker_leaves_a_run_alone(engine: Engine) {
    let bench = Bench::of(engine, &["tea"]).await;
    let run = bench.connect(store_id(&bench.stores[0]), Place::Managed(engine)).await;

    let (first, second) = tokio::join!(run::work(&bench.cx, run.run.id), run::work(&bench.cx, run.run.id));

    first.unwrap();
    second.unwrap();
    let found = provisioning::latest(&bench.cx, run.run.store_id).await.unwrap();
    assert_eq!((found.run.state, found.run.attempts), (RunState::Succeeded, 1));
    assert!(found.steps.iter().all(|step| step.attempts == 1));
    bench.cx.close().await;
}
