//! Visits to stores' databases that are broken off: the node ends without waiting for them, and another one makes them whole.

use std::time::{Duration as StdDuration, Instant};

use chrono::{DateTime, Days, Duration, Utc};
use integration_tests::{Owner, Process, TestApp, TestAppOptions, database_name, eventually};
use kernel::Clock as _;
use serde_json::Value;
use sqlx::{Executor as _, PgConnection};

use crate::provisioning::store_id;
use crate::scenes::{Cart, checkout_body, count, text, variant_of};

const VISITS: &[&str] = &["--store-visit-poll-ms", "50"];
/// A node dies with its claims, which run out after so long.
const CLAIM: Duration = Duration::seconds(121);

/// Places so many orders in a store, on a day that is over and not counted.
async fn place_orders(app: &TestApp, store: &Value, orders: i64) {
    let shop = app.storefront_of(store);
    let variant = variant_of(&shop, "harbour-breakfast", 0).await;
    for number in 0..orders {
        let cart = Cart::with(&shop, &variant, 1).await;
        cart.complete(&format!("order-{number}"), checkout_body()).await.expect_status(201);
    }
    let mut inside = app.store_database(store).await;
    inside.execute("update tenantry.orders set placed_at = placed_at - interval '3 days'").await.unwrap();
    sqlx::query("update store_visits set orders_counted_until = $2 where store_id = $1")
        .bind(store_id(store).as_uuid())
        .bind(app.clock.now().date_naive() - Days::new(5))
        .execute(&mut app.master().await)
        .await
        .unwrap();
}

/// What was counted of each store's orders, whatever their day.
async fn counted(app: &TestApp, owner: &Owner, stores: &[Value]) -> Vec<i64> {
    let today = app.clock.now().date_naive();
    let mut all = Vec::new();
    for store in stores {
        let query = format!("storeId={}&from={}&until={}", text(&store["id"]), today - Days::new(7), today);
        let usage = owner.api.get(&format!("/api/credits/usage?{query}")).await.expect_status(200);
        let days = usage["data"].as_array().unwrap();
        all.push(days.iter().filter_map(|day| day["counts"]["orders"].as_i64()).sum());
    }
    all
}

/// Holds this lock for as long as the connection is there.
async fn held(mut connection: PgConnection, lock: &str) -> PgConnection {
    connection.execute("begin").await.unwrap();
    connection.execute(sqlx::AssertSqlSafe(lock.to_owned())).await.unwrap();
    connection
}

/// Waits until so many wait for locks in a database.
async fn waiting_for_locks(app: &TestApp, database: &str, wanted: i64) {
    eventually(&format!("{wanted} waiting in {database}"), || async {
        let waiting = "select count(*) from pg_stat_activity where datname = $1 and wait_event_type = 'Lock'";
        let found: i64 = sqlx::query_scalar(waiting).bind(database).fetch_one(&mut app.master().await).await.unwrap();
        (found == wanted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_stopped_amid_its_visits_ends_soon_and_every_order_is_counted_once() {
    let quiet = ["--access-token-ttl-s", "10000000", "--usage-flush-ms", "100000000", "--charge-poll-ms", "100000000"];
    let arguments = quiet.map(str::to_owned).to_vec();
    let app = TestApp::start_with(TestAppOptions { arguments, without_server: false }).await;
    let owner = app.owner("ada").await;
    let mut stores = Vec::new();
    for (slug, orders) in [("copying", 1), ("counting", 2), ("writing-down", 3), ("done", 4)] {
        let store = app.active_store(&owner, slug).await;
        place_orders(&app, &store, orders).await;
        stores.push(store);
    }
    let [copying, counting, writing_down, _] = stores.as_slice() else { panic!("four stores") };
    let inside = async |store: &Value, lock: &str| held(app.store_database(store).await, lock).await;
    let copies = inside(copying, "lock table tenantry.credit_copy in access exclusive mode").await;
    let orders = inside(counting, "lock table tenantry.orders in access exclusive mode").await;
    let later = inside(writing_down, "lock table tenantry.orders in access exclusive mode").await;

    // Nothing but the grace period ends what hangs so soon: no statement's limit, no visit's, and none of waiting for a lock.
    let environment = [
        ("STORE_VISIT_POLL_MS", "50"),
        ("STORE_STATEMENT_TIMEOUT_MS", "60000"),
        ("SHUTDOWN_GRACE_MS", "500"),
        ("USAGE_FLUSH_MS", "100000000"),
        ("CHARGE_POLL_MS", "100000000"),
    ];
    let node = Process::serve(&app.master.url(), &environment).await;
    for store in [copying, counting, writing_down] {
        waiting_for_locks(&app, &database_name(store), 1).await;
    }
    eventually("the one in whose way is nothing", || async {
        (counted(&app, &owner, &stores).await == [0, 0, 0, 4]).then_some(())
    })
    .await;
    // One has counted, and is half-way through writing it down.
    let usage = held(app.master().await, "lock table usage_metrics in share mode").await;
    drop(later);
    waiting_for_locks(&app, &app.master.database, 1).await;

    let began = Instant::now();
    assert_eq!(node.terminate().await, Some(0));
    let took = began.elapsed();
    assert!(took < StdDuration::from_secs(4), "{took:?}");
    drop((copies, orders, usage));
    for database in [&app.master.database, &database_name(copying), &database_name(counting)] {
        waiting_for_locks(&app, database, 0).await;
    }
    assert_eq!(counted(&app, &owner, &stores).await, [0, 0, 0, 4]);

    app.clock.advance(CLAIM);
    let other = app.other_node_with(VISITS).await;
    let all_visited = async || {
        eventually("every visit", || async {
            let behind = "select count(*) from store_visits where done_as_of is distinct from as_of or failures > 0";
            (count(&app, behind).await == 0).then_some(())
        })
        .await;
        assert_eq!(counted(&app, &owner, &stores).await, [1, 2, 3, 4]);
    };
    all_visited().await;
    // Whatever the first node had begun to write, the copies are of the last visits.
    for store in &stores {
        let as_of = "select as_of from store_visits where store_id = $1";
        let as_of: DateTime<Utc> =
            sqlx::query_scalar(as_of).bind(store_id(store).as_uuid()).fetch_one(&mut app.master().await).await.unwrap();
        let copied: DateTime<Utc> = sqlx::query_scalar("select as_of from tenantry.credit_copy")
            .fetch_one(&mut app.store_database(store).await)
            .await
            .unwrap();
        assert_eq!(copied, as_of);
    }
    // Visited once more, they are not counted once more.
    sqlx::query("update store_visits set done_as_of = null, next_visit_at = as_of")
        .execute(&mut app.master().await)
        .await
        .unwrap();
    all_visited().await;
    other.stop().await;
}
