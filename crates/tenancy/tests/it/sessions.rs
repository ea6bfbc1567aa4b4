//! What one borrower does never reaches the next.

use std::time::Duration;

use sqlx::error::DatabaseError;
use tenancy::TenancyConfig;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{Store, World, echo, eventually, quick, read, run, write};

/// One connection per store, so that the next borrower gets the very same one, if any.
async fn one_connection() -> (World, Store) {
    let world = World::start(TenancyConfig { max_connections_per_store: 1, ..quick() }).await;
    let store = world.store().await;
    let mut admin = world.cluster.admin(&store.credential.database).await;
    let name = &store.credential.username;
    run(&mut admin, &format!("create table tenantry.t (id int primary key); alter table tenantry.t owner to {name}"))
        .await;
    (world, store)
}

async fn pid(lease: &tenancy::Lease) -> i32 {
    let mut connection = lease.acquire().await.expect("a connection");
    let (pid,): (i32,) = connection.fetch_one(read("select pg_backend_pid()")).await.expect("a pid");
    pid
}

async fn rows(lease: &tenancy::Lease) -> i64 {
    let mut connection = lease.acquire().await.expect("a connection");
    let (count,): (i64,) = connection.fetch_one(read("select count(*) from t")).await.expect("a count");
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_is_set_up() {
    let (world, store) = one_connection().await;
    let mut connection = world.lease(&store).await.acquire().await.expect("a connection");
    let setting = "select current_setting('search_path') || '|' || current_setting('statement_timeout') || '|' || \
                   current_setting('lock_timeout') || '|' || current_setting('timezone') || '|' || \
                   current_setting('application_name')";
    let (found,): (String,) = connection.fetch_one(read(setting)).await.expect("settings");
    assert_eq!(found, "tenantry, pg_catalog|10s|3s|UTC|tenantry");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_statement_costs_no_connection() {
    let (world, store) = one_connection().await;
    let lease = world.lease(&store).await;
    let before = pid(&lease).await;
    for _ in 0..3 {
        let mut connection = lease.acquire().await.expect("a connection");
        let error = connection.execute(write("insert into t values (null)")).await.expect_err("not null");
        assert_eq!(error.as_database_error().and_then(DatabaseError::code).as_deref(), Some("23502"));
        assert!(connection.fetch_all::<(i32,)>(read("select 'x'::text")).await.is_err(), "a row that does not decode");
        assert!(connection.fetch_all::<(i32,)>(read("select nonsense")).await.is_err());
    }
    assert_eq!(pid(&lease).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_transaction_is_rolled_back_and_keeps_its_connection() {
    let (world, store) = one_connection().await;
    let lease = world.lease(&store).await;
    let before = pid(&lease).await;
    let mut transaction = lease.begin().await.expect("a transaction");
    assert_eq!(transaction.execute(write("insert into t values (1), (2)")).await.expect("two rows"), 2);
    drop(transaction);
    assert_eq!(rows(&lease).await, 0);
    let mut transaction = lease.begin().await.expect("a transaction");
    transaction.execute(write("insert into t values (1)")).await.expect("a row");
    transaction.rollback().await.expect("rolled back");
    assert_eq!(rows(&lease).await, 0);
    let mut transaction = lease.begin().await.expect("a transaction");
    transaction.execute(write("insert into t values (1)")).await.expect("a row");
    transaction.commit().await.expect("committed");
    assert_eq!((rows(&lease).await, pid(&lease).await), (1, before));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aborted_transaction_neither_commits_nor_reaches_the_next_borrower() {
    let (world, store) = one_connection().await;
    let lease = world.lease(&store).await;
    let before = pid(&lease).await;
    let mut transaction = lease.begin().await.expect("a transaction");
    transaction.execute(write("insert into t values (1)")).await.expect("a row");
    transaction.execute(write("insert into t values (1)")).await.expect_err("taken");
    assert!(transaction.commit().await.is_err(), "the server would have called this a success");
    assert_eq!(rows(&lease).await, 0);

    let mut transaction = lease.begin().await.expect("a transaction");
    transaction.execute(write("insert into nonsense values (1)")).await.expect_err("no such table");
    drop(transaction);
    assert_eq!((rows(&lease).await, pid(&lease).await), (0, before));

    // Behind our back, through the driver.
    let mut transaction = lease.begin().await.expect("a transaction");
    let driver = transaction.postgres().expect("it is PostgreSQL");
    sqlx::raw_sql("select nonsense").execute(driver).await.expect_err("no such column");
    assert!(transaction.commit().await.is_err());
    assert_eq!(rows(&lease).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_a_deferred_constraint_refuses_leaves_a_usable_connection() {
    let (world, store) = one_connection().await;
    let lease = world.lease(&store).await;
    let mut connection = lease.acquire().await.expect("a connection");
    connection
        .execute(write("create table d (id int references t (id) deferrable initially deferred)"))
        .await
        .expect("a table");
    drop(connection);
    for _ in 0..2 {
        let mut transaction = lease.begin().await.expect("a transaction");
        transaction.execute(write("insert into d values (9)")).await.expect("not checked yet");
        assert!(transaction.commit().await.is_err());
        let mut transaction = lease.begin().await.expect("a real transaction, no savepoint");
        transaction.execute(write("insert into t values (5)")).await.expect("a row");
        transaction.rollback().await.expect("rolled back");
        assert_eq!(rows(&lease).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_state_is_undone_before_the_next_borrower() {
    let (world, store) = one_connection().await;
    let lease = world.lease(&store).await;
    let before = pid(&lease).await;
    let probe = "select current_setting('search_path') || '|' || current_setting('statement_timeout') || '|' || \
                 coalesce(current_setting('my.tenant', true), '') || '|' || \
                 (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()) || '|' || \
                 coalesce(to_regclass('pg_temp.left_over')::text, '-')";
    let clean = "tenantry, pg_catalog|10s||0|-";
    for statement in [
        "set search_path = public",
        "set statement_timeout = 0",
        "select set_config('my.tenant', 'other', false)",
        "select pg_advisory_lock(1)",
        "create temp table left_over (a int)",
        "begin",
    ] {
        let mut connection = lease.acquire().await.expect("a connection");
        connection.execute(write(statement)).await.expect(statement);
        drop(connection);
        let mut next = lease.acquire().await.expect("a connection");
        let (found,): (String,) = next.fetch_one(read(probe)).await.expect("settings");
        assert_eq!(found, clean, "after {statement}");
    }
    let mut connection = lease.acquire().await.expect("a connection");
    let driver = connection.postgres().expect("it is PostgreSQL");
    sqlx::raw_sql("set search_path = public; begin; create table t2 (a int)").execute(driver).await.expect("all of it");
    drop(connection);
    let mut next = lease.acquire().await.expect("a connection");
    let (found,): (String,) = next.fetch_one(read(probe)).await.expect("settings");
    assert_eq!(found, clean);
    drop(next);
    assert_eq!(pid(&lease).await, before, "all of this on one connection");

    // In an aborted transaction of its own making it cannot be reset: it is closed.
    let mut connection = lease.acquire().await.expect("a connection");
    connection.execute(write("begin")).await.expect("begun");
    connection.execute(write("select nonsense")).await.expect_err("aborted");
    drop(connection);
    assert_ne!(pid(&lease).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_query_never_answers_the_next_borrower() {
    let world = World::start(TenancyConfig { max_connections_per_store: 4, ..quick() }).await;
    let store = world.store().await;
    let lease = world.lease(&store).await;
    let mut tasks = JoinSet::new();
    for task in 0..16_i64 {
        let lease = lease.clone();
        tasks.spawn(async move {
            let mut answered = 0;
            for round in 0..30_i64 {
                let mine = task * 1000 + round;
                let patience = Duration::from_micros(kernel::random::below(6000));
                let asking = async {
                    let mut connection = lease.acquire().await.expect("a connection in time");
                    let (answer,): (i64,) = connection.fetch_one(echo(mine, 0.002)).await.expect("an answer");
                    assert_eq!(answer, mine, "an answer reached somebody else");
                    // Holding one while waiting for another would be the way to a deadlock.
                    drop(connection);
                    let mut transaction = lease.begin().await.expect("a transaction");
                    let answers: Vec<(i64,)> = transaction.fetch_all(echo(-mine, 0.001)).await.expect("an answer");
                    assert_eq!(answers, [(-mine,)], "an answer reached somebody else");
                    transaction.commit().await.expect("committed");
                };
                // One in three is left alone, so that there is somebody to be hurt.
                if kernel::random::below(3) == 0 {
                    asking.await;
                    answered += 1;
                } else if timeout(patience, asking).await.is_ok() {
                    answered += 1;
                }
            }
            answered
        });
    }
    let mut answered = 0;
    while let Some(done) = tasks.join_next().await {
        answered += done.expect("no task fails");
    }
    assert!(answered > 0);
    drop(lease);
    assert_eq!(world.tenancy.shutdown(Duration::from_secs(10)).await, 0);
    eventually("nothing is left", || async { world.backends(&store).await == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_query_is_counted_until_the_server_ends_it_and_its_connection_is_not_lent_again() {
    let (world, store) = one_connection().await;
    let lease = world.lease(&store).await;
    let before = pid(&lease).await;
    let mut connection = lease.acquire().await.expect("a connection");
    let asked = timeout(Duration::from_millis(50), connection.fetch_all::<(i64,)>(echo(1, 0.5))).await;
    assert!(asked.is_err(), "given up while the server works");
    drop(connection);
    assert_eq!(world.tenancy.stats().open, 1, "the server still counts it, so do we");
    let begun = tokio::time::Instant::now();
    assert_ne!(pid(&lease).await, before);
    assert!(begun.elapsed() > Duration::from_millis(200), "the one place was taken until the server was done");
    assert_eq!(world.backends(&store).await, 1);
}
