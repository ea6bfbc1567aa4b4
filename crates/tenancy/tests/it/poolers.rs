//! A real PgBouncer between a store's pool and its database: in session mode everything holds, in transaction mode nothing is
//! asked through it.

use std::sync::Arc;
use std::time::Duration;

use devkit::testing::{PgBouncer, PoolMode, shared_postgres};
use sqlx::Arguments as _;
use sqlx::postgres::PgArguments;
use tenancy::query::Kind;
use tenancy::{BreakerConfig, Cause, LeaseError, Query, Reach, TenancyConfig};
use tokio::task::JoinSet;

use crate::support::{World, eventually, quick, read, run};

/// How many queries got somebody else's answer, and how many failed, of 3,200 by eight tasks.
async fn ask(lease: Arc<tenancy::Lease>) -> (usize, usize) {
    const TEXTS: [&str; 3] = [
        "select $1::int8 + 0 from pg_sleep(0)",
        "select $1::int8 + 0 as number where $1::int8 >= 0",
        "with said as (select $1::int8 as number) select number from said",
    ];
    let mut tasks = JoinSet::new();
    for task in 0..8_i64 {
        let lease = Arc::clone(&lease);
        tasks.spawn(async move {
            let (mut wrong, mut failed) = (0, 0);
            for at in 0..400_i64 {
                let said = task * 1000 + at;
                let mut arguments = PgArguments::default();
                arguments.add(said).expect("a number");
                let text = TEXTS[usize::try_from(at).expect("small") % TEXTS.len()];
                let query = Query::postgres(Kind::Read, text, arguments);
                let answer = match lease.acquire().await {
                    Ok(mut connection) => connection.fetch_one::<(i64,)>(query).await.ok(),
                    Err(_) => None,
                };
                match answer {
                    Some((heard,)) if heard == said => {}
                    Some(_) => wrong += 1,
                    None => failed += 1,
                }
            }
            (wrong, failed)
        });
    }
    tasks.join_all().await.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_session_mode_three_thousand_queries_get_their_own_answers() {
    let world = World::start(quick()).await;
    let store = world.store().await;
    let mut credential = store.credential.clone();
    let pooler = PgBouncer::start(shared_postgres().await, PoolMode::Session, &credential.username, "first").await;
    credential.port = pooler.port;
    assert_eq!(credential.check_session_mode(Reach::Anywhere, Duration::from_secs(10)).await, Ok(()));
    let pooled = world.add(&credential);
    let lease = Arc::new(world.lease(&pooled).await);
    assert_eq!(ask(lease).await, (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_transaction_mode_it_is_found_out_and_nobody_gets_anothers_answer() {
    let world = World::start(quick()).await;
    let store = world.store().await;
    let mut credential = store.credential.clone();
    let pooler = PgBouncer::start(shared_postgres().await, PoolMode::Transaction, &credential.username, "first").await;
    credential.port = pooler.port;
    let checked = credential.check_session_mode(Reach::Anywhere, Duration::from_secs(10)).await;
    assert_eq!(checked.expect_err("a pooler").cause, Cause::TransactionPooler);

    // Past the check, as when the pooler was put there later: the pool itself finds out.
    let pooled = world.add(&credential);
    let lease = Arc::new(world.lease(&pooled).await);
    let (wrong, failed) = ask(Arc::clone(&lease)).await;
    assert_eq!(wrong, 0);
    assert!(failed > 0, "it was refused");
    let refused = lease.acquire().await.map(drop);
    assert!(matches!(refused, Err(LeaseError::Unavailable { cause: Cause::TransactionPooler, .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_the_server_refuses_is_the_poolers_trouble_and_no_server_that_starts() {
    let breaker = BreakerConfig { first_pause: Duration::from_millis(40), ..BreakerConfig::default() };
    // Whoever asks first waits for the server with the pooler.
    let connect_timeout = Duration::from_secs(3);
    let world = World::start(TenancyConfig { breaker, connect_timeout, ..quick() }).await;
    let store = world.store().await;
    let mut credential = store.credential.clone();
    let login = credential.username.clone();
    let pooler = PgBouncer::start(shared_postgres().await, PoolMode::Session, &login, "first").await;
    credential.port = pooler.port;
    let pooled = world.add(&credential);
    let lease = world.lease(&pooled).await;
    drop(lease.acquire().await.expect("it is let in"));

    run(&mut world.cluster.admin("postgres").await, &format!("alter role {login} nologin")).await;
    world.kill_backends(&store).await;

    eventually("it is told what it is", || async {
        match lease.acquire().await {
            // One that is dead, and does not know it yet.
            Ok(mut connection) => {
                drop(connection.fetch_one::<(i32,)>(read("select 1")).await);
                false
            }
            Err(error) => matches!(error, LeaseError::Unavailable { cause: Cause::PoolerServer, .. }),
        }
    })
    .await;
}
