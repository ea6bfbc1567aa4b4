//! Killed backends, wrong passwords, databases that hang: the store's own trouble, within its time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use devkit::testing::TransactionPooler;
use sqlx::error::DatabaseError;
use tenancy::stats::BreakerState;
use tenancy::{BreakerConfig, Cause, LeaseError, Reach, TenancyConfig};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::{Store, World, eventually, quick, read, run, write};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_survives_the_death_of_its_idle_connection() {
    let world = World::start(quick()).await;
    let store = world.store().await;
    let lease = world.lease(&store).await;
    drop([lease.acquire().await.expect("one"), lease.acquire().await.expect("two")]);
    world.kill_backends(&store).await;
    let (one,): (i32,) =
        lease.acquire().await.expect("it looks sound").fetch_one(read("select 1")).await.expect("retried");
    assert_eq!(one, 1);
    world.kill_backends(&store).await;
    assert!(lease.begin().await.is_ok(), "a transaction that could not begin begins elsewhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_never_retried_and_costs_only_itself() {
    let world = World::start(quick()).await;
    let store = world.store().await;
    let lease = world.lease(&store).await;
    drop([lease.acquire().await.expect("one"), lease.acquire().await.expect("two")]);
    world.kill_backends(&store).await;
    let mut connection = lease.acquire().await.expect("it looks sound");
    assert!(connection.execute(write("update mark set name = name")).await.is_err());
    let mut next = lease.acquire().await.expect("what may have died with it is asked first");
    assert_eq!(next.execute(write("update mark set name = name")).await.expect("the next one works"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rested_connection_is_asked_before_it_is_lent() {
    let world = World::start(TenancyConfig { ping_after: Duration::ZERO, ..quick() }).await;
    let store = world.store().await;
    let lease = world.lease(&store).await;
    drop(lease.acquire().await.expect("one"));
    world.kill_backends(&store).await;
    let mut connection = lease.acquire().await.expect("a live one");
    assert_eq!(connection.execute(write("update mark set name = name")).await.expect("even a write"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_a_transaction_costs_that_transaction_only() {
    let world = World::start(quick()).await;
    let store = world.store().await;
    let lease = world.lease(&store).await;
    let mut other = lease.begin().await.expect("another transaction");
    other.execute(write("update mark set name = 'kept'")).await.expect("a row");
    let mut hit = lease.begin().await.expect("a transaction");
    let (pid,): (i32,) = hit.fetch_one(read("select pg_backend_pid()")).await.expect("a pid");
    run(&mut world.cluster.admin("postgres").await, &format!("select pg_terminate_backend({pid}, 5000)")).await;
    assert!(hit.fetch_one::<(i32,)>(read("select 1")).await.is_err(), "no retry inside a transaction");
    assert!(hit.commit().await.is_err());
    other.commit().await.expect("nothing happened to it");
    let (name,): (String,) =
        lease.acquire().await.expect("a connection").fetch_one(read("select name from mark")).await.expect("a row");
    assert_eq!(name, "kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_runs_too_long_is_ended_and_the_connection_stays() {
    let world = World::start(TenancyConfig { statement_timeout: Duration::from_millis(50), ..quick() }).await;
    let store = world.store().await;
    let mut connection = world.lease(&store).await.acquire().await.expect("a connection");
    let error = connection.fetch_all::<(i32,)>(read("select 1 from pg_sleep(30)")).await.expect_err("ended");
    assert_eq!(error.as_database_error().and_then(DatabaseError::code).as_deref(), Some("57014"));
    assert!(connection.fetch_one::<(i32,)>(read("select 1")).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_not_tried_again_until_the_route_changes() {
    let world = World::start(quick()).await;
    let store = world.store().await;
    let name = &store.credential.username;
    let mut admin = world.cluster.admin("postgres").await;
    run(&mut admin, &format!("alter role {name} password 'changed'")).await;
    let lease = world.lease(&store).await;
    let cause_of = |result: Result<tenancy::Connection, LeaseError>| match result {
        Err(LeaseError::Unavailable { cause, .. }) => Some(cause),
        _ => None,
    };
    assert_eq!(cause_of(lease.acquire().await), Some(Cause::WrongPassword));
    let explained = world.tenancy.explain_host(&store.host).expect("something is known");
    assert!(matches!(explained.breaker, BreakerState::Barred { cause: Cause::WrongPassword }));
    assert_eq!(explained.last_error.and_then(|error| error.code).as_deref(), Some("28P01"));

    run(&mut admin, &format!("alter role {name} password 'first'")).await;
    assert_eq!(cause_of(lease.acquire().await), Some(Cause::WrongPassword), "nobody asked the server");
    world.tenancy.apply(world.master.change(store.id, |_| {}));
    assert!(world.lease(&store).await.acquire().await.is_ok(), "a new route version is a new try");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn causes_are_told_apart() {
    let world = World::start(quick()).await;
    let store = world.store().await;
    let name = &store.credential.username;
    let mut admin = world.cluster.admin("postgres").await;
    run(&mut admin, &format!("create database {name}_closed; ")).await;
    run(&mut admin, &format!("revoke connect on database {name}_closed from public")).await;
    let limit = Duration::from_secs(5);
    let mut missing = store.credential.clone();
    missing.database = "nonsense".into();
    assert_eq!(missing.connect(Reach::Anywhere, limit).await.expect_err("no database").cause, Cause::MissingDatabase);
    let mut closed = store.credential.clone();
    closed.database = format!("{name}_closed");
    assert_eq!(closed.connect(Reach::Anywhere, limit).await.expect_err("no right").cause, Cause::Forbidden);
    let mut plain = store.credential.clone();
    plain.tls = tenancy::TlsMode::VerifyFull;
    assert_eq!(plain.connect(Reach::Anywhere, limit).await.expect_err("no TLS there").cause, Cause::Tls);
    let mut nowhere = store.credential.clone();
    nowhere.port = 1;
    assert_eq!(nowhere.connect(Reach::Anywhere, limit).await.expect_err("nobody there").cause, Cause::Refused);
    run(&mut admin, &format!("alter role {name} connection limit 0")).await;
    assert_eq!(
        store.credential.connect(Reach::Anywhere, limit).await.expect_err("full").cause,
        Cause::TooManyConnections
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_pooler_is_found_out_and_refused() {
    let world = World::start(quick()).await;
    let store = world.store().await;
    let pooler = TransactionPooler::start().await;
    let mut credential = store.credential.clone();
    credential.port = pooler.port;
    let limit = Duration::from_secs(5);
    assert_eq!(
        credential.check_session_mode(Reach::Anywhere, limit).await.expect_err("a pooler").cause,
        Cause::TransactionPooler
    );
    assert_eq!(store.credential.check_session_mode(Reach::Anywhere, limit).await, Ok(()));

    let pooled = world.add(&credential);
    let lease = world.lease(&pooled).await;
    let held = lease.acquire().await.expect("one alone looks sound");
    let refused = |result: Result<tenancy::Connection, LeaseError>| {
        matches!(result, Err(LeaseError::Unavailable { cause: Cause::TransactionPooler, .. }))
    };
    assert!(refused(lease.acquire().await), "two do not");
    drop(held);
    eventually("and the first is given up", || async { world.tenancy.stats().open == 0 }).await;
    assert!(refused(lease.acquire().await));
}

/// A server that takes connections and never says a word.
pub(crate) async fn silent_server() -> (u16, Arc<AtomicUsize>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut kept = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            kept.push(socket);
        }
    });
    (port, count, task)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_hangs_is_asked_once_and_the_others_feel_nothing() {
    let config = TenancyConfig {
        connect_timeout: Duration::from_millis(200),
        breaker: BreakerConfig { first_pause: Duration::from_secs(600), ..BreakerConfig::default() },
        ..quick()
    };
    let world = World::start(TenancyConfig { connect_timeout: Duration::from_secs(10), ..config.clone() }).await;
    let well = world.store().await;
    let (port, count, _server) = silent_server().await;
    let sick_world = World {
        tenancy: tenancy::Tenancy::new(
            crate::support::directory::Dir(Arc::clone(&world.master)),
            Arc::clone(&world.keys),
            config,
        ),
        ..world
    };
    let mut credential = well.credential.clone();
    credential.port = port;
    let sick: Store = sick_world.add(&credential);
    let lease = sick_world.lease(&sick).await;
    let mut requests = JoinSet::new();
    for _ in 0..100 {
        let lease = lease.clone();
        requests.spawn(async move { lease.acquire().await.err() });
    }
    while let Some(error) = requests.join_next().await {
        let error = error.expect("no panic").expect("no connection");
        assert!(matches!(error, LeaseError::Unavailable { cause: Cause::Timeout, .. }), "{error}");
        assert!(error.retry_after().is_some());
    }
    assert_eq!(count.load(Ordering::SeqCst), 1, "the stampede made one connect");
    let begun = Instant::now();
    assert!(lease.acquire().await.is_err());
    assert!(begun.elapsed() < Duration::from_millis(100), "refused at once");
    assert_eq!(count.load(Ordering::SeqCst), 1);
    assert!(sick_world.lease(&well).await.acquire().await.is_ok());
    eventually("the failed connect gives its permit back", || async { sick_world.tenancy.stats().open == 1 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_comes_back_is_found_by_a_probe() {
    let breaker = BreakerConfig { first_pause: Duration::from_millis(40), ..BreakerConfig::default() };
    let world = World::start(TenancyConfig { breaker, ..quick() }).await;
    let store = world.store().await;
    let name = &store.credential.username;
    let mut admin = world.cluster.admin("postgres").await;
    run(&mut admin, &format!("alter role {name} connection limit 0")).await;
    let lease = world.lease(&store).await;
    assert!(matches!(lease.acquire().await, Err(LeaseError::Unavailable { cause: Cause::TooManyConnections, .. })));
    run(&mut admin, &format!("alter role {name} connection limit -1")).await;
    eventually("the probe goes through", || async { lease.acquire().await.is_ok() }).await;
    let explained = world.tenancy.explain(store.id).expect("something is known");
    assert_eq!(explained.breaker, BreakerState::Closed);
    assert!(explained.last_error.is_some(), "what was wrong is still told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_secret_is_in_what_is_shown() {
    let world = World::start(quick()).await;
    let store = world.store().await;
    run(
        &mut world.cluster.admin("postgres").await,
        &format!("alter role {} password 'changed'", store.credential.username),
    )
    .await;
    let lease = world.lease(&store).await;
    let error = lease.acquire().await.err().expect("a wrong password");
    let route = world.tenancy.resolve_host(&store.host).await.expect("known");
    let explained = world.tenancy.explain(store.id).expect("something is known");
    let shown = format!("{error} {error:?} {route:?} {explained:?} {:?}", store.credential);
    for secret in ["first", "127.0.0.1", store.credential.username.as_str()] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
}
