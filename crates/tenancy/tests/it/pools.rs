//! Pools open once, close for real, and follow the route.

use std::time::Duration;

use kernel::StoreStatus;
use tenancy::{Credential, Lease, LeaseError, TenancyConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::{World, echo, eventually, quick, read, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_first_requests_open_one_pool_within_its_limit() {
    let world = World::start(quick()).await;
    let store = world.store().await;
    let mut requests = JoinSet::new();
    for number in 0..200_i64 {
        let (tenancy, host) = (world.tenancy.clone(), store.host.clone());
        requests.spawn(async move {
            let route = tenancy.resolve_host(&host).await.expect("known");
            let lease = tenancy.lease(&route).await.expect("served");
            let mut connection = lease.acquire().await.expect("a connection in time");
            let (answer,): (i64,) = connection.fetch_one(echo(number, 0.002)).await.expect("an answer");
            assert_eq!(answer, number);
        });
    }
    while let Some(done) = requests.join_next().await {
        done.expect("no request fails");
    }
    let stats = world.tenancy.stats();
    assert_eq!((stats.pools, stats.leases, stats.waiting), (1, 0, 0));
    assert!(world.backends(&store).await <= 8, "at most the store's limit");
    assert_eq!(world.master.calls(), 1, "the directory was asked once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_without_a_query_holds_no_connection() {
    let world = World::start(TenancyConfig { max_connections_per_store: 1, ..quick() }).await;
    let store = world.store().await;
    let leases = [world.lease(&store).await, world.lease(&store).await];
    assert_eq!(world.tenancy.stats().open, 0);
    let mut connection = leases[0].acquire().await.expect("a connection");
    let (name,): (String,) = connection.fetch_one(read("select name from mark")).await.expect("its mark");
    assert_eq!(name, store.credential.database);
    drop(connection);
    assert!(leases[1].acquire().await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unused_connections_and_pools_are_closed_for_real() {
    let config =
        TenancyConfig { idle_timeout: Duration::from_millis(30), pool_idle: Duration::from_millis(100), ..quick() };
    let world = World::start(config).await;
    let store = world.store().await;
    let lease = world.lease(&store).await;
    let connections = [lease.acquire().await.expect("one"), lease.acquire().await.expect("two")];
    assert_eq!(world.backends(&store).await, 2);
    drop(connections);
    eventually("idle backends go", || async { world.backends(&store).await == 0 }).await;
    eventually("their permits come back", || async { world.tenancy.stats().open == 0 }).await;
    assert_eq!(world.tenancy.stats().pools, 1, "a leased pool stays");
    drop(lease);
    eventually("the pool goes", || async { world.tenancy.stats().pools == 0 }).await;
    assert!(world.lease(&store).await.acquire().await.is_ok(), "and opens again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutting_down_waits_for_leases_and_leaves_no_backend() {
    let world = World::start(quick()).await;
    let store = world.store().await;
    let lease = world.lease(&store).await;
    let route = lease.route().clone();
    let mut connection = lease.acquire().await.expect("a connection");
    let second = lease.acquire().await.expect("a second");
    let tenancy = world.tenancy.clone();
    let mut ending = JoinSet::new();
    ending.spawn(async move { tenancy.shutdown(Duration::from_secs(10)).await });
    eventually("no new lease is given", || async {
        matches!(world.tenancy.lease(&route).await, Err(LeaseError::ShuttingDown))
    })
    .await;
    drop(second);
    let (one,): (i32,) = connection.fetch_one(read("select 1")).await.expect("what is lent goes on");
    assert_eq!(one, 1);
    drop((connection, lease));
    assert_eq!(ending.join_next().await.expect("it ends").expect("it does not panic"), 0);
    assert_eq!(world.backends(&store).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutting_down_does_not_wait_for_ever() {
    let world = World::start(quick()).await;
    let store = world.store().await;
    let lease = world.lease(&store).await;
    let connection = lease.acquire().await.expect("a connection");
    assert_eq!(world.tenancy.shutdown(Duration::from_millis(20)).await, 1, "one was still in use");
    assert!(matches!(lease.acquire().await, Err(LeaseError::ShuttingDown)));
    drop(connection);
    eventually("it closes when it comes back", || async { world.backends(&store).await == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_manager_closes_its_connections() {
    let world = World::start(quick()).await;
    let store = world.store().await;
    drop(world.lease(&store).await.acquire().await.expect("a connection"));
    let World { cluster, tenancy, .. } = world;
    drop(tenancy);
    let mut admin = cluster.admin("postgres").await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while crate::support::count_backends(&mut admin, &store.credential.database).await > 0 {
        assert!(tokio::time::Instant::now() < deadline, "backends go");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_opens_a_fresh_pool_and_lets_old_leases_finish() {
    let world = World::start(quick()).await;
    let store = world.store().await;
    let old = world.lease(&store).await;
    let mut in_use = old.acquire().await.expect("a connection");
    drop(old.acquire().await.expect("a second, idle from now on"));

    let name = &store.credential.username;
    run(&mut world.cluster.admin("postgres").await, &format!("alter role {name} password 'second'")).await;
    let rotated = world.credential(name, "second");
    let change = world.master.change(store.id, |route| {
        route.database = world.route(store.id, &rotated, 0, 2).database;
    });
    world.tenancy.apply(change);

    let new = world.lease(&store).await;
    let (answer,): (i64,) =
        new.acquire().await.expect("the new password").fetch_one(echo(7, 0.0)).await.expect("an answer");
    assert_eq!(answer, 7);
    let (one,): (i32,) = in_use.fetch_one(read("select 1")).await.expect("the old connection works to its end");
    assert_eq!(one, 1);
    assert!(old.acquire().await.is_ok(), "an old lease still has what its pool had open");
    drop((in_use, old));
    eventually("the old pool's connections close", || async { world.backends(&store).await == 1 }).await;
    eventually("the old pool is forgotten", || async { world.tenancy.stats().draining == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_store_has_left_is_not_entered_again_by_those_who_came_before() {
    let world = World::start(quick()).await;
    let (store, moved) = (world.store().await, world.store().await);
    let cold = world.lease(&store).await;
    // Its new database is another one; the old one would let everybody in as before.
    world.tenancy.apply(world.master.change(store.id, |route| {
        route.database = world.route(store.id, &moved.credential, 0, 2).database;
    }));
    assert!(matches!(cold.acquire().await, Err(LeaseError::Draining)), "nothing was open, and nothing is opened");
    let new = world.lease(&store).await;
    let (name,): (String,) =
        new.acquire().await.expect("there").fetch_one(read("select name from mark")).await.expect("a name");
    assert_eq!(name, moved.credential.database);
    assert_eq!(world.backends(&store).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_leaves_the_credential_keeps_the_pool() {
    let world = World::start(quick()).await;
    let store = world.store().await;
    let pid = "select pg_backend_pid()";
    let (before,): (i32,) =
        world.lease(&store).await.acquire().await.expect("one").fetch_one(read(pid)).await.expect("a pid");
    world.tenancy.apply(world.master.change(store.id, |_| {}));
    let lease = world.lease(&store).await;
    assert_eq!(lease.route().version, 2);
    let (after,): (i32,) = lease.acquire().await.expect("one").fetch_one(read(pid)).await.expect("a pid");
    assert_eq!(before, after);
    world.tenancy.apply(world.master.change(store.id, |route| {
        if let Some(database) = &mut route.database {
            database.schema_version = 2;
        }
    }));
    let (migrated,): (i32,) =
        world.lease(&store).await.acquire().await.expect("one").fetch_one(read(pid)).await.expect("a pid");
    assert_ne!(before, migrated, "prepared statements do not survive a migration");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_store_is_refused_without_touching_its_database() {
    let world = World::start(quick()).await;
    let store = world.store().await;
    let lease = world.lease(&store).await;
    drop(lease.acquire().await.expect("a connection"));
    let old_route = lease.route().clone();

    world.tenancy.apply(world.master.set_status(store.id, StoreStatus::Suspended));
    let refused = LeaseError::NotServing { status: StoreStatus::Suspended };
    assert_eq!(world.tenancy.lease(&old_route).await.err(), Some(refused), "an old route does not help");
    let route = world.tenancy.resolve_host(&store.host).await.expect("still known");
    assert_eq!(world.tenancy.lease(&route).await.err(), Some(refused));
    eventually("its connections close", || async { world.backends(&store).await == 0 }).await;
    assert_eq!(lease.acquire().await.err(), Some(refused), "a lease from before does not help");
    assert_eq!(world.backends(&store).await, 0);

    let owner = world.tenancy.lease_unserved(&route).await.expect("its owner may look");
    assert!(owner.acquire().await.is_ok());
    world.tenancy.apply(world.master.set_status(store.id, StoreStatus::Maintenance));
    assert!(owner.acquire().await.is_ok(), "and go on looking");
    world.tenancy.apply(world.master.set_status(store.id, StoreStatus::Active));
    assert!(world.lease(&store).await.acquire().await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_leased_longest_ago_makes_room_for_the_next() {
    let world = World::start(TenancyConfig { max_pools: 2, ..quick() }).await;
    let stores = [world.store().await, world.store().await, world.store().await];
    for store in &stores {
        assert!(world.lease(store).await.acquire().await.is_ok());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(world.tenancy.stats().pools, 2);
    eventually("the first one's connection closes", || async { world.backends(&stores[0]).await == 0 }).await;
    assert_eq!(world.backends(&stores[1]).await, 1);
    let held = [world.lease(&stores[1]).await, world.lease(&stores[2]).await];
    let route = world.tenancy.resolve_host(&stores[0].host).await.expect("known");
    assert!(matches!(world.tenancy.lease(&route).await, Err(LeaseError::Busy { .. })), "leased pools are not closed");
    drop(held);
    assert!(world.tenancy.lease(&route).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_sealed_for_another_store_opens_nothing() {
    let world = World::start(quick()).await;
    let (victim, thief) = (world.store().await, world.store().await);
    let stolen = world.route(victim.id, &victim.credential, 1, 1).database;
    world.tenancy.apply(world.master.change(thief.id, |route| route.database = stolen));
    let lease = world.lease(&thief).await;
    assert_eq!(lease.acquire().await.err(), Some(LeaseError::Sealed));
    assert_eq!(lease.acquire().await.err(), Some(LeaseError::Sealed));
    assert_eq!(world.backends(&victim).await, 0);
}

/// A port that leads to another one of this machine, after a while.
async fn far_from(port: u16, time: Duration) -> (u16, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let here = listener.local_addr().expect("it is bound").port();
    let mut carrying = JoinSet::new();
    carrying.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            connections.spawn(async move {
                // The network that is measured; the test itself waits for what it sees.
                tokio::time::sleep(time).await;
                let mut server = TcpStream::connect(("127.0.0.1", port)).await.expect("the server is there");
                drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
            });
        }
    });
    (here, carrying)
}

/// A lease on a store whose database takes long to connect to, with what carries its bytes.
async fn far_away() -> (World, Lease, JoinSet<()>) {
    let (acquire_timeout, connect_timeout) = (Duration::from_secs(20), Duration::from_secs(10));
    let world = World::start(TenancyConfig { acquire_timeout, connect_timeout, ..quick() }).await;
    let store = world.store().await;
    let (port, carrying) = far_from(world.cluster.port, Duration::from_millis(1500)).await;
    let store = world.add(&Credential { port, ..store.credential });
    let lease = world.lease(&store).await;
    (world, lease, carrying)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_a_connection_waits_for_it_as_long_as_another_one_would_take() {
    let (world, lease, _carrying) = far_away().await;
    let mut connection = lease.acquire().await.expect("a connection");
    // Requests that overlap, each for a moment.
    for number in 0..5_i64 {
        let mut next = JoinSet::new();
        let asking = lease.clone();
        next.spawn(async move { asking.acquire().await });
        eventually("the next one waits", || async { world.tenancy.stats().waiting == 1 }).await;
        drop(connection);
        connection = next.join_next().await.expect("it ends").expect("no panic").expect("what came back");
        let (answer,): (i64,) = connection.fetch_one(echo(number, 0.0)).await.expect("an answer");
        assert_eq!(answer, number);
    }
    assert_eq!(world.tenancy.stats().open, 1, "another one would have taken longer");
    // One that is kept is not waited for much longer.
    let other = lease.acquire().await.expect("another one");
    assert_eq!(world.tenancy.stats().open, 2);
    drop((connection, other));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_waited_for_over_and_over_is_worth_a_connection_that_takes_long() {
    let (world, lease, _carrying) = far_away().await;
    drop(lease.acquire().await.expect("a connection"));
    // Nobody of them ever waits as long as connecting takes.
    let mut asking = JoinSet::new();
    for number in 0..8_i64 {
        let lease = lease.clone();
        asking.spawn(async move {
            loop {
                let mut connection = lease.acquire().await.expect("a connection in time");
                let (answer,): (i64,) = connection.fetch_one(echo(number, 0.05)).await.expect("an answer");
                assert_eq!(answer, number);
            }
        });
    }
    eventually("there is another one", || async { world.tenancy.stats().open > 1 }).await;
    asking.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_when_the_store_is_suspended_is_refused_and_not_served_later() {
    let world = World::start(TenancyConfig { max_connections_per_store: 1, ..quick() }).await;
    let store = world.store().await;
    let lease = world.lease(&store).await;
    let connection = lease.acquire().await.expect("the only connection");
    let mut waiting = JoinSet::new();
    let visitor = lease.clone();
    waiting.spawn(async move { visitor.acquire().await.map(drop) });
    eventually("the visitor waits", || async { world.tenancy.stats().waiting == 1 }).await;
    world.tenancy.apply(world.master.set_status(store.id, StoreStatus::Suspended));
    let answer = waiting.join_next().await.expect("it ends").expect("no panic");
    assert_eq!(answer, Err(LeaseError::NotServing { status: StoreStatus::Suspended }));
    drop(connection);
    drop(lease);
    eventually("it is closed", || async { world.tenancy.stats().open == 0 }).await;
}
