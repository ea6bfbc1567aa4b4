//! A change that nobody was told of reaches every node all the same: it stands in the log.

use integration_tests::{Process, eventually};
use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::faults::{PRODUCTS, Shop, listening_node, metric, patient_app, run, suspend};

/// What the node knows of a store it believes for as long as it hears nothing else.
const BELIEVING: [(&str, &str); 3] =
    [("ROUTE_TTL_MS", "3600000"), ("ROUTE_MAX_STALE_MS", "7200000"), ("ROUTE_RECHECK_MS", "1000")];

/// Suspends the store and writes it down, as the triggers do, but tells nobody. In a transaction of the caller's.
async fn suspend_untold(master: &mut PgConnection, shop: &Shop) {
    run(master, "set local session_replication_role = replica").await;
    let suspended = sqlx::query(
        "with suspended as (
             update stores set status = 'suspended', route_version = route_version + 1 where id = $1 returning *
         )
         insert into store_changes (store_id, route_version, hostnames)
         select id, route_version, array(select hostname from hostnames where store_id = suspended.id) from suspended",
    );
    let written = suspended.bind(shop.id.as_uuid()).execute(master).await.unwrap();
    assert_eq!(written.rows_affected(), 1);
}

async fn eventually_refused(node: &Process, shop: &Shop) {
    let there = node.storefront(&shop.hostname);
    eventually("the node refuses", || async { (there.get(PRODUCTS).await.status != 200).then_some(()) }).await;
    shop.expect_refused(&there.get(PRODUCTS).await, &["store-suspended"]);
}

/// Waits until the log has been read from its beginning to its end, as it is now.
async fn log_is_read(node: &Process) {
    let reads = || metric(node, "tenantry_change_log_reads_total");
    let before = reads().await;
    eventually("the log is read", || async { (reads().await >= before + 2.0).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_committed_late_is_found_behind_later_ones() {
    let app = patient_app(&[]).await;
    let (owner, root) = (app.owner("ada").await, app.admin().await);
    let (early, late) = (Shop::open(&app, &owner, "early").await, Shop::open(&app, &owner, "late").await);
    let node = listening_node(&app.master.url(), &BELIEVING).await;
    for shop in [&early, &late] {
        shop.expect_served(&node.storefront(&shop.hostname).get(PRODUCTS).await);
    }
    let mut master = app.master().await;
    let mut tx = master.begin().await.unwrap();
    suspend_untold(&mut tx, &early).await;

    suspend(&root, &late).await;
    eventually_refused(&node, &late).await;
    log_is_read(&node).await;
    early.expect_served(&node.storefront(&early.hostname).get(PRODUCTS).await);

    tx.commit().await.unwrap();
    eventually_refused(&node, &early).await;
    assert!(metric(&node, "tenantry_route_change_seconds_count{way=\"log\"}").await >= 1.0);
    assert!(metric(&node, "tenantry_route_change_seconds_count{way=\"notification\"}").await >= 1.0);
    master.close().await.unwrap();
    node.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_listen_reads_the_log() {
    let app = patient_app(&[]).await;
    let owner = app.owner("ada").await;
    let shop = Shop::open(&app, &owner, "unheard").await;
    let node = listening_node(&app.master.url(), &BELIEVING).await;
    shop.expect_served(&node.storefront(&shop.hostname).get(PRODUCTS).await);

    // Whoever listens is cut off, again and again; what asks is let through.
    let (done, mut cutting) = (CancellationToken::new(), JoinSet::new());
    let mut admin = app.master().await;
    cutting.spawn({
        let done = done.clone();
        async move {
            let mut cut = 0_u64;
            while !done.is_cancelled() {
                let ended = sqlx::query(
                    "select pg_terminate_backend(pid) from pg_stat_activity
                     where datname = current_database() and query ilike 'listen %'",
                );
                cut += ended.execute(&mut admin).await.unwrap().rows_affected();
            }
            admin.close().await.unwrap();
            cut
        }
    });
    let mut master = app.master().await;
    let mut tx = master.begin().await.unwrap();
    suspend_untold(&mut tx, &shop).await;
    tx.commit().await.unwrap();
    eventually_refused(&node, &shop).await;
    done.cancel();
    assert!(cutting.join_next().await.unwrap().unwrap() > 0, "somebody listened");
    eventually("it listens again", || async {
        (metric(&node, "tenantry_listener_connected").await > 0.0).then_some(())
    })
    .await;
    master.close().await.unwrap();
    node.kill().await;
}
