//! What a run has done is undone, from any step, and what a run is stopped at is done again.

use control_plane::audit::Actor;
use control_plane::cx::OpsCx;
use control_plane::provisioning::steps::StepCx;
use control_plane::provisioning::{
    self, DatabaseKind, NewDatabase, RunState, RunWithSteps, StepName, StepState, Target, db, managed_name, run,
};
use control_plane::servers::NewServer;
use integration_tests::{Cluster, TestApp, TestAppOptions, TestDatabase, eventually, own_cluster};
use kernel::{StoreId, StoreStatus};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::provisioning::{checksum, count, database_exists, old_shop, role_exists, seeded, store_id};

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
        let app = TestApp::start().await;
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

    pub(crate) async fn connect(&self, store: StoreId, database: Option<&TestDatabase>) -> RunWithSteps {
        let wanted = match database {
            None => NewDatabase::Managed { region: None },
            Some(database) => NewDatabase::Brought(Target::from_url(&database.url().into(), None, None).unwrap()),
        };
        provisioning::connect(&self.cx, Actor::Cli, store, wanted, true).await.unwrap()
    }

    pub(crate) async fn perform(&self, run: &RunWithSteps, step: StepName) {
        let cx = StepCx::load(&self.cx, &run.run).await.unwrap().unwrap();
        cx.perform(step).await.unwrap_or_else(|error| panic!("{}: {error}", step.as_str()));
    }

    pub(crate) async fn status(&self, store: StoreId) -> StoreStatus {
        control_plane::stores::find(&self.cx, store).await.unwrap().status
    }

    pub(crate) async fn inside(&self, store: StoreId, database: Option<&TestDatabase>) -> PgConnection {
        match database {
            None => self.server.connect(managed_name(store).as_str()).await,
            Some(database) => database.admin().await,
        }
    }

    /// Works the run off, as the worker would.
    pub(crate) async fn work(&self, run: &RunWithSteps) -> RunState {
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
