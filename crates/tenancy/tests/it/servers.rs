//! Each server has a budget, which may change at any moment, and a breaker of its own.

use std::time::Duration;

use futures_util::FutureExt as _;
use kernel::{Clock as _, ServerId, SystemClock};
use sqlx::Executor as _;
use tenancy::{BreakerConfig, Cause, LeaseError, TenancyConfig};
use tokio::task::JoinSet;

use crate::support::{Store, World, echo, eventually, quick, run};

fn server_id() -> ServerId {
    ServerId::new(SystemClock.now())
}

/// Stores at one server that share a role and a database, in which the server itself allows `limit` connections.
async fn crowd(world: &World, server: ServerId, limit: usize, stores: usize) -> Vec<Store> {
    let first = world.store().await;
    let mut admin = world.cluster.admin("postgres").await;
    run(&mut admin, &format!("alter database {} connection limit {limit}", first.credential.database)).await;
    (0..stores).map(|_| world.add_at(Some(server), &first.credential)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_moves_is_kept_and_everybody_is_served() {
    let config = TenancyConfig {
        max_connections_per_server: 4,
        max_connections_per_store: 2,
        tenure: Duration::from_millis(5),
        ..quick()
    };
    let world = World::start(config).await;
    let server = server_id();
    // The server itself refuses the fifth connection: one too many would be an error, not a sample that was missed.
    let stores = crowd(&world, server, 4, 12).await;
    let mut tasks = JoinSet::new();
    for (number, store) in (0_i64..).zip(&stores) {
        for task in 0..2 {
            let (tenancy, host) = (world.tenancy.clone(), store.host.clone());
            tasks.spawn(async move {
                for round in 0..30 {
                    let mine = number * 10_000 + task * 100 + round;
                    let route = tenancy.resolve_host(&host).await.expect("known");
                    let lease = tenancy.lease(&route).await.expect("served");
                    let mut connection = lease.acquire().await.expect("a connection in time");
                    let (answer,): (i64,) = connection.fetch_one(echo(mine, 0.001)).await.expect("an answer");
                    assert_eq!(answer, mine);
                }
            });
        }
    }
    for limit in [1, 3, 0, 2, 4, 1, 2, 0, 4] {
        world.tenancy.set_server_limit(server, limit);
        world.tenancy.server_fits(server).await;
        let most = limit.max(1);
        assert!(world.backends(&stores[0]).await <= i64::try_from(most).expect("small"), "more than {limit}");
        let open = world.tenancy.server_loads().first().map(|load| load.open);
        assert!(open.is_some_and(|open| open <= limit), "{open:?} of {limit}");
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no task fails");
    }
    for store in &stores {
        let explained = world.tenancy.explain(store.id).expect("something is known");
        assert!(explained.last_error.is_none(), "the server never had to refuse: {explained:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_share_of_a_server_nobody_connects_until_there_is_one() {
    let world = World::start(TenancyConfig { max_connections_per_server: 0, ..quick() }).await;
    let server = server_id();
    let stores = crowd(&world, server, 2, 2).await;
    let elsewhere = world.store().await;
    let lease = world.lease(&stores[0]).await;
    let mut waiting = JoinSet::new();
    waiting.spawn(async move {
        let mut connection = lease.acquire().await.expect("a connection in time");
        connection.fetch_one::<(i64,)>(echo(7, 0.0)).await.expect("an answer").0
    });
    world.tenancy.server_wanted().await;
    let loads = world.tenancy.server_loads();
    assert_eq!((loads.len(), loads[0].server_id, loads[0].open, loads[0].peak), (1, server, 0, 1), "{loads:?}");
    assert!(world.lease(&elsewhere).await.acquire().await.is_ok(), "another server's share is its own");
    assert_eq!(world.backends(&stores[0]).await, 0);

    world.tenancy.set_server_limit(server, 1);
    assert_eq!(waiting.join_next().await.expect("it was asked").expect("it ends"), 7);
    assert!(world.lease(&stores[1]).await.acquire().await.is_ok(), "the first store's idle one makes room");
    world.tenancy.set_server_limit(server, 0);
    world.tenancy.server_fits(server).await;
    eventually("the last one goes", || async { world.backends(&stores[0]).await == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_down_is_found_out_by_a_few_for_all_its_stores() {
    let breaker = BreakerConfig {
        first_pause: Duration::from_secs(3600),
        longest_pause: Duration::from_secs(3600),
        ..BreakerConfig::default()
    };
    let world = World::start(TenancyConfig { breaker, ..quick() }).await;
    let (down, up) = (server_id(), server_id());
    let well = crowd(&world, up, 10, 1).await.remove(0);
    let nobody_listens = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("its address").port()
    };
    let credential = tenancy::Credential { port: nobody_listens, ..well.credential.clone() };
    let ill: Vec<Store> = (0..20).map(|_| world.add_at(Some(down), &credential)).collect();
    let alone = world.add(&credential);

    for store in &ill {
        let refused = world.lease(store).await.acquire().await.err();
        assert!(matches!(refused, Some(LeaseError::Unavailable { cause: Cause::Refused, .. })), "{refused:?}");
    }
    let mut tried = 0;
    for store in &ill {
        tried += usize::from(world.tenancy.explain(store.id).expect("known").last_error.is_some());
    }
    assert_eq!(tried, 3, "as many as it takes to be sure");
    assert!(world.lease(&well).await.acquire().await.is_ok(), "the other server's store feels nothing");
    assert!(world.lease(&alone).await.acquire().await.is_err());
    assert!(world.tenancy.explain(alone.id).expect("known").last_error.is_some(), "it was tried for itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_opened_outside_the_pools_has_its_turn_and_counts() {
    let config = TenancyConfig { max_connections_per_server: 1, ..quick() };
    let world = World::start(config).await;
    let server = server_id();
    let stores = crowd(&world, server, 1, 1).await;
    let limit = Duration::from_secs(10);
    drop(world.lease(&stores[0]).await.acquire().await.expect("a connection"));
    // The idle connection of the pool is closed for it: the server itself would refuse a second one.
    let place = world.tenancy.reserve(server, limit).await.expect("room is made");
    let session = stores[0].credential.connect(tenancy::Reach::Anywhere, limit).await.expect("the server has one left");
    let lease = world.lease(&stores[0]).await;
    let mut waiting = Box::pin(lease.acquire());
    assert!(waiting.as_mut().now_or_never().is_none());
    eventually("it stands in the line", || async {
        world.tenancy.server_loads().first().is_some_and(|load| (load.open, load.waiting) == (1, 1))
    })
    .await;
    session.close().await.expect("a good-bye");
    drop(place);
    assert!(waiting.await.is_ok());
    drop(lease);
    assert_eq!(world.tenancy.shutdown(limit).await, 0);
    assert!(matches!(world.tenancy.reserve(server, limit).await, Err(LeaseError::ShuttingDown)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_whose_session_was_left_at_work_comes_back_when_the_server_has_done() {
    let world = World::start(TenancyConfig { max_connections_per_server: 1, ..quick() }).await;
    let server = server_id();
    let store = world.store().await;
    let limit = Duration::from_secs(10);
    let mut holder = world.cluster.admin(&store.credential.database).await;
    run(&mut holder, "begin; lock table tenantry.mark").await;
    let place = world.tenancy.reserve(server, limit).await.expect("room");
    let mut session = store.credential.connect(tenancy::Reach::Anywhere, limit).await.expect("it is there");
    let asking = async {
        session
            .postgres()
            .expect("PostgreSQL")
            .execute("update tenantry.mark set name = name")
            .await
            .expect("an answer");
    };
    let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
    let is_waiting = async {
        while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut holder).await.expect("a count") == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = asking => panic!("the table is locked"),
        () = is_waiting => {}
    }

    place.close_after_work(session, limit);

    let refused = world.tenancy.reserve(server, Duration::ZERO).await;
    assert!(matches!(refused, Err(LeaseError::Busy { .. })));
    run(&mut holder, "rollback").await;
    drop(world.tenancy.reserve(server, limit).await.expect("the server has done with it"));
    assert_eq!(world.backends(&store).await, 1, "the holder's own");
}
