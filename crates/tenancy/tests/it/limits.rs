//! Connections are counted as connections, and shared fairly.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use tenancy::{Lane, LeaseError, TenancyConfig};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::{Store, World, count_backends, echo, quick, read, run};

/// Stores that share one role and one database, in which the server itself allows `limit` connections.
async fn crowded(config: TenancyConfig, limit: usize, stores: usize) -> (World, Vec<Store>) {
    let world = World::start(config).await;
    let first = world.store().await;
    let mut admin = world.cluster.admin("postgres").await;
    run(&mut admin, &format!("alter database {} connection limit {limit}", first.credential.database)).await;
    let credential = first.credential.clone();
    let all = std::iter::once(first).chain((1..stores).map(|_| world.add(&credential))).collect();
    (world, all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_never_passes_its_limit_and_everybody_is_served() {
    let config = TenancyConfig { max_connections: 3, tenure: Duration::from_millis(5), ..quick() };
    let (world, stores) = crowded(config, 3, 12).await;
    let mut tasks = JoinSet::new();
    for (number, store) in stores.iter().enumerate() {
        for task in 0..4_i64 {
            let (tenancy, host) = (world.tenancy.clone(), store.host.clone());
            tasks.spawn(async move {
                for round in 0..8_i64 {
                    let mine = i64::try_from(number).expect("small") * 10_000 + task * 100 + round;
                    let route = tenancy.resolve_host(&host).await.expect("known");
                    let lease = tenancy.lease(&route).await.expect("served");
                    let mut connection = lease.acquire().await.expect("a connection in time");
                    let (answer,): (i64,) = connection.fetch_one(echo(mine, 0.001)).await.expect("an answer");
                    assert_eq!(answer, mine);
                }
            });
        }
    }
    let mut admin = world.cluster.admin("postgres").await;
    let mut most = 0;
    while !tasks.is_empty() {
        tokio::select! {
            Some(done) = tasks.join_next() => done.expect("no task fails"),
            count = count_backends(&mut admin, &stores[0].credential.database) => most = most.max(count),
        }
    }
    assert!((1..=3).contains(&most), "{most} backends");
    for store in &stores {
        let explained = world.tenancy.explain(store.id).expect("something is known");
        assert!(explained.last_error.is_none(), "the server never had to refuse: {explained:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_on_one_store_does_not_starve_another() {
    let config = TenancyConfig { max_connections: 2, tenure: Duration::from_millis(20), ..quick() };
    let (world, stores) = crowded(config, 2, 2).await;
    let mut flood = JoinSet::new();
    let served = Arc::new(AtomicUsize::new(0));
    for _ in 0..200 {
        let (lease, served) = (world.lease(&stores[0]).await, Arc::clone(&served));
        flood.spawn(async move {
            loop {
                if let Ok(mut connection) = lease.acquire().await {
                    drop(connection.fetch_one::<(i64,)>(echo(1, 0.002)).await);
                    served.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
    }
    let quiet = world.lease(&stores[1]).await;
    let mut most_before_it = 0;
    for round in 0..10 {
        let before = served.load(Ordering::SeqCst);
        let mut connection = quiet.acquire().await.expect("its turn comes");
        most_before_it = most_before_it.max(served.load(Ordering::SeqCst) - before);
        let (answer,): (i64,) = connection.fetch_one(echo(round, 0.0)).await.expect("an answer");
        assert_eq!(answer, round);
    }
    flood.shutdown().await;
    // Two connections that each serve their tenure: ten statements of the 200 that wait, and what comes while one is closed.
    assert!(most_before_it < 200, "{most_before_it} others were served first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_of_another_store_makes_room() {
    let config = TenancyConfig { max_connections: 2, ..quick() };
    let (world, stores) = crowded(config, 2, 5).await;
    for store in stores.iter().chain(&stores) {
        let mut connection = world.lease(store).await.acquire().await.expect("a connection");
        assert!(connection.fetch_one::<(i32,)>(read("select 1")).await.is_ok());
    }
    assert!(world.tenancy.stats().open <= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_is_bounded_in_time_and_in_number() {
    let config = TenancyConfig {
        max_connections_per_store: 1,
        max_waiting_per_store: 2,
        acquire_timeout: Duration::from_millis(100),
        ..quick()
    };
    let world = World::start(TenancyConfig { acquire_timeout: Duration::from_secs(10), ..config.clone() }).await;
    let store = world.store().await;
    let tenancy = tenancy::Tenancy::new(
        crate::support::directory::Dir(Arc::clone(&world.master)),
        Arc::clone(&world.keys),
        config,
    );
    let route = tenancy.resolve_host(&store.host).await.expect("known");
    let lease = tenancy.lease(&route).await.expect("served");
    let held = loop {
        // A busy machine may need longer than the short timeout for its first connection.
        if let Ok(connection) = lease.acquire().await {
            break connection;
        }
    };
    let begun = Instant::now();
    let ends = Mutex::new(Vec::new());
    let ask = async |number: usize| {
        let answer = lease.acquire().await;
        ends.lock().expect("nobody panics").push(number);
        answer
    };
    let (one, two, three) = tokio::join!(ask(1), ask(2), ask(3));
    for answer in [one, two, three] {
        assert!(matches!(answer, Err(LeaseError::Busy { .. })));
    }
    assert_eq!(ends.lock().expect("nobody panics").first(), Some(&3), "there is no third place to wait in");
    assert!(begun.elapsed() >= Duration::from_millis(100), "the others have waited");
    drop(held);
    assert!(lease.acquire().await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_goes_away_takes_no_connection_with_it() {
    let world = World::start(TenancyConfig { max_connections_per_store: 2, ..quick() }).await;
    let store = world.store().await;
    let lease = world.lease(&store).await;
    for _ in 0..50 {
        let patience = Duration::from_micros(kernel::random::below(3000));
        drop(tokio::time::timeout(patience, lease.acquire()).await);
    }
    let both = [lease.acquire().await.expect("one"), lease.acquire().await.expect("two")];
    assert!(world.backends(&store).await <= 2);
    drop(both);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_leave_a_store_connections_for_its_requests() {
    let config = TenancyConfig { max_connections_per_store: 3, max_job_connections_per_store: 2, ..quick() };
    let world = World::start(config).await;
    let store = world.store().await;
    let web = world.lease(&store).await;
    let job = web.clone().in_lane(Lane::Job);
    let (_first, second) = (job.acquire().await.expect("one job"), job.begin().await.expect("another"));
    // A third job waits for one of them, and nobody else does.
    let mut third = Box::pin(job.acquire());
    assert!(third.as_mut().now_or_never().is_none());
    let mut connection = web.acquire().await.expect("a request finds one");
    assert_eq!(connection.fetch_one::<(i32,)>(read("select 1")).await.expect("an answer"), (1,));
    assert!(third.as_mut().now_or_never().is_none(), "it is not for jobs, though it is one of three");
    drop(connection);
    assert!(third.as_mut().now_or_never().is_none());
    drop(second);
    assert!(third.await.is_ok(), "the turn comes back, also from a transaction that was dropped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_one_store_are_bounded_in_number_and_its_owner_is_let_in() {
    let world = World::start(TenancyConfig { max_leases_per_store: 3, ..quick() }).await;
    let (store, other) = (world.store().await, world.store().await);
    let mut leases = Vec::new();
    for _ in 0..3 {
        leases.push(world.lease(&store).await);
    }
    let route = leases[0].route().clone();
    assert!(matches!(world.tenancy.lease(&route).await, Err(LeaseError::Busy { .. })));
    assert!(world.tenancy.lease_unserved(&route).await.is_ok(), "whoever mends it must get in");
    assert!(world.lease(&other).await.acquire().await.is_ok());
    drop(leases.pop());
    assert!(world.tenancy.lease(&route).await.is_ok());
    assert_eq!(world.tenancy.stats().leases, 2, "what was refused counts no longer");
}
