//! Visits to stores' databases that are broken off: the node ends without waiting for them, and another one makes them whole.

use std::time::{Duration as StdDuration, Instant};

use chrono::{DateTime, Days, Duration, Utc};
use integration_tests::{Owner, Process, StoreSql, TestApp, TestAppOptions, database_name, eventually};
use kernel::{Clock as _, Engine};
use serde_json::Value;
use sqlx::{Executor as _, PgConnection};

use crate::provisioning::store_id;
use crate::scenes::{Cart, checkout_body, count, text, variant_of};

on_each_engine! {
    a_node_that_is_stopped_amid_its_visits_ends_soon_and_every_order_is_counted_once
}

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
    let days = if app.engine == Engine::Mysql { "interval 3 day" } else { "interval '3 days'" };
    app.inside(store).await.execute(&format!("update orders set placed_at = placed_at - {days}")).await;
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

/// Holds this lock of master for as long as the connection is there.
async fn held(mut connection: PgConnection, lock: &str) -> PgConnection {
    connection.execute("begin").await.unwrap();
    connection.execute(sqlx::AssertSqlSafe(lock.to_owned())).await.unwrap();
    connection
}

/// Waits until so many wait for locks in the database of this name that the connection's server has.
pub(crate) async fn waiting_for_locks(server: &mut StoreSql, database: &str, wanted: i64) {
    let waiting = match server {
        StoreSql::Postgres(_) => {
            format!("select count(*) from pg_stat_activity where datname = '{database}' and wait_event_type = 'Lock'")
        }
        StoreSql::MySql(_) => format!(
            "select count(*) from information_schema.processlist where db = '{database}' and state like 'Waiting for %lock%'"
        ),
    };
    let server = tokio::sync::Mutex::new(server);
    eventually(&format!("{wanted} waiting in {database}"), || async {
        (server.lock().await.number(&waiting).await == wanted).then_some(())
    })
    .await;
}

async fn a_node_that_is_stopped_amid_its_visits_ends_soon_and_every_order_is_counted_once(engine: Engine) {
    let quiet = ["--access-token-ttl-s", "10000000", "--usage-flush-ms", "100000000", "--charge-poll-ms", "100000000"];
    let arguments = quiet.map(str::to_owned).to_vec();
    let app = TestApp::start_on_with(engine, TestAppOptions { arguments, without_server: false }).await;
    let owner = app.owner("ada").await;
    let mut stores = Vec::new();
    for (slug, orders) in [("copying", 1), ("counting", 2), ("writing-down", 3), ("done", 4)] {
        let store = app.active_store(&owner, slug).await;
        place_orders(&app, &store, orders).await;
        stores.push(store);
    }
    let [copying, counting, writing_down, _] = stores.as_slice() else { panic!("four stores") };
    let locked = async |store: &Value, table: &str| {
        let mut inside = app.inside(store).await;
        inside.lock_table(table).await;
        inside
    };
    let copies = locked(copying, "credit_copy").await;
    let orders = locked(counting, "orders").await;
    let later = locked(writing_down, "orders").await;
    let (mut server, mut master) = (app.server().await, StoreSql::Postgres(app.cluster.admin().await));

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
        waiting_for_locks(&mut server, &database_name(store), 1).await;
    }
    eventually("the one in whose way is nothing", || async {
        (counted(&app, &owner, &stores).await == [0, 0, 0, 4]).then_some(())
    })
    .await;
    // One has counted, and is half-way through writing it down.
    let usage = held(app.master().await, "lock table usage_metrics in share mode").await;
    drop(later);
    waiting_for_locks(&mut master, &app.master.database, 1).await;

    let began = Instant::now();
    assert_eq!(node.terminate().await, Some(0));
    let took = began.elapsed();
    assert!(took < StdDuration::from_secs(4), "{took:?}");
    drop((copies, orders, usage));
    waiting_for_locks(&mut master, &app.master.database, 0).await;
    for store in [copying, counting] {
        waiting_for_locks(&mut server, &database_name(store), 0).await;
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
        let copied = match engine {
            Engine::Mysql => "select timestampdiff(microsecond, '1970-01-01', as_of) from credit_copy",
            _ => "select extract(epoch from as_of) * 1000000 from credit_copy",
        };
        assert_eq!(app.inside(store).await.number(copied).await, as_of.timestamp_micros());
    }
    // Visited once more, they are not counted once more.
    sqlx::query("update store_visits set done_as_of = null, next_visit_at = as_of")
        .execute(&mut app.master().await)
        .await
        .unwrap();
    all_visited().await;
    other.stop().await;
}
