//! What stores cost by themselves: once a day and store, whatever runs or does not, and read-only instead of a cut-off.

use std::net::{Ipv4Addr, SocketAddr};

use chrono::{Days, Duration, NaiveDate};
use control_plane::charges::{self, NewPrice};
use control_plane::credits;
use integration_tests::{ChaosProxy, Cli, Client, Owner, Process, Receiver, TestApp, TestAppOptions, eventually};
use kernel::Clock as _;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::task::JoinSet;

use crate::credits::give;
use crate::described;
use crate::provisioning::store_id;
use crate::scenes::{Cart, checkout_body, count, store_path, text, variant_of};

/// An organization whose stores cost 10 credits a day from tomorrow on. Nobody reconciles but the test.
struct Fleet {
    app: TestApp,
    owner: Owner,
}

impl Fleet {
    async fn set() -> Self {
        Self::with(false, &["--charge-poll-ms", "100000000"]).await
    }

    async fn with(has_server: bool, arguments: &[&str]) -> Self {
        let days =
            ["--access-token-ttl-s", "10000000", "--refresh-token-ttl-s", "10000000", "--charge-grace-days", "3"];
        let arguments = days.iter().chain(arguments).map(|&text| text.to_owned()).collect();
        let app = TestApp::start_with(TestAppOptions { arguments, without_server: !has_server }).await;
        // Early in the day: a test that takes some minutes does not end in another one.
        let now = app.clock.now();
        let morning = (now.date_naive() + Days::new(1)).and_hms_opt(2, 0, 0).unwrap().and_utc();
        app.clock.advance(morning - now);
        let owner = app.owner("ada").await;
        let fleet = Self { app, owner };
        fleet.price(charges::STORE_DAY, 10, None).await;
        fleet
    }

    async fn price(&self, service: &str, amount: i64, per: Option<i64>) {
        let new = NewPrice { service: service.to_owned(), amount, per, valid_from: None };
        charges::price_set(&self.app.cx, control_plane::audit::Actor::Cli, &new).await.unwrap();
    }

    /// A store that counts as active, without the database that these tests do not need.
    async fn store(&self, slug: &str) -> Value {
        let store = self.owner.create_store(slug).await.expect_status(201);
        self.status(&store, "active").await;
        store
    }

    async fn status(&self, store: &Value, status: &str) {
        sqlx::query("update stores set status = $2, updated_at = $3 where id = $1")
            .bind(store_id(store).as_uuid())
            .bind(status)
            .bind(self.app.clock.now())
            .execute(&mut self.app.master().await)
            .await
            .unwrap();
    }

    fn pass_days(&self, days: i64) {
        self.app.clock.advance(Duration::days(days));
    }

    fn today(&self) -> NaiveDate {
        self.app.clock.now().date_naive()
    }

    async fn reconcile(&self) {
        charges::reconcile(&self.app.cx).await.unwrap();
    }

    async fn usage(&self, store: &Value) -> Value {
        let path = format!("/api/credits/usage?storeId={}", text(&store["id"]));
        self.owner.api.get(&path).await.expect_status(200)
    }

    /// The states of the store's charges, day by day.
    async fn states(&self, store: &Value) -> Vec<String> {
        let usage = self.usage(store).await;
        let days = usage["data"].as_array().unwrap();
        // A day may have counts alone.
        let charged = days.iter().filter_map(|day| day["charges"].get(0));
        charged.map(|charge| text(&charge["state"]).to_owned()).collect()
    }

    /// What was counted of the store on a day; null when nothing was.
    async fn counts(&self, store: &Value, day: NaiveDate) -> Value {
        let path = format!("/api/credits/usage?storeId={}&from={day}&until={}", text(&store["id"]), day + Days::new(1));
        let usage = self.owner.api.get(&path).await.expect_status(200);
        usage["data"][0]["counts"].clone()
    }

    async fn counted(&self, store: &Value, day: NaiveDate, wanted: Value) {
        eventually(&format!("{wanted} on {day}"), || async { (self.counts(store, day).await == wanted).then_some(()) })
            .await;
    }

    async fn available(&self) -> i64 {
        let balance = self.owner.api.get("/api/credits/balance").await.expect_status(200);
        balance["available"].as_i64().unwrap()
    }

    async fn events(&self, kind: &str) -> i64 {
        sqlx::query_scalar("select count(*) from outbox_events where type = $1")
            .bind(kind)
            .fetch_one(&mut self.app.master().await)
            .await
            .unwrap()
    }

    async fn expect_proven(&self) {
        let found = credits::verify::verify(&self.app.cx, None).await.unwrap();
        assert_eq!(found.violations, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_charged_once_for_each_day_that_it_was_active_in() {
    let fleet = Fleet::set().await;
    let (tea, coffee) = (fleet.store("tea").await, fleet.store("coffee").await);
    let pending = fleet.owner.create_store("pending").await.expect_status(201);
    give(&fleet.app, &tea, 1000).await;
    fleet.reconcile().await;
    assert_eq!(fleet.available().await, 1000, "the price holds from tomorrow on");
    fleet.pass_days(1);
    fleet.reconcile().await;
    fleet.reconcile().await;
    assert_eq!(fleet.available().await, 980);
    // The server was down for days; what is missing is made up for, once.
    fleet.pass_days(40);
    fleet.reconcile().await;
    assert_eq!(fleet.available().await, 180);
    assert_eq!(fleet.states(&tea).await, vec!["charged"; 30], "the last 30 days are shown");
    assert_eq!(fleet.usage(&pending).await["data"], json!([]));
    let day = &fleet.usage(&coffee).await["data"][0];
    assert_eq!((&day["charges"][0]["service"], &day["charges"][0]["amount"]), (&json!("store-day"), &json!(10)));
    let list = fleet.owner.api.get("/api/credits/transactions?kind=charge&limit=100").await.expect_status(200);
    assert_eq!(list["data"].as_array().map(Vec::len), Some(82));
    assert_eq!((&list["data"][0]["service"], &list["data"][0]["userId"]), (&json!("store-day"), &Value::Null));

    // Suspended for a while: the days in between cost nothing, also when they are made up for later.
    fleet.status(&coffee, "suspended").await;
    fleet.pass_days(3);
    fleet.status(&coffee, "active").await;
    fleet.status(&coffee, "suspended").await;
    fleet.status(&coffee, "active").await;
    fleet.pass_days(1);
    fleet.reconcile().await;
    assert_eq!(fleet.available().await, 180 - 40 - 20);
    fleet.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reconcilers_at_once_charge_nothing_twice() {
    let fleet = Fleet::set().await;
    let mut stores = Vec::new();
    for number in 0..8 {
        stores.push(fleet.store(&format!("store-{number}")).await);
    }
    give(&fleet.app, &stores[0], 10_000).await;
    fleet.pass_days(25);
    let mut reconcilers = JoinSet::new();
    for _ in 0..6 {
        let cx = fleet.app.cx.ops().clone();
        reconcilers.spawn(async move {
            for _ in 0..3 {
                charges::reconcile(&cx).await.unwrap();
            }
        });
    }
    reconcilers.join_all().await;
    fleet.reconcile().await;
    assert_eq!(count(&fleet.app, "select count(*) from store_charges where state = 'charged'").await, 200);
    assert_eq!(count(&fleet.app, "select count(*) from credit_transactions where kind = 'charge'").await, 200);
    assert_eq!(fleet.available().await, 8000);
    fleet.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_charge_that_was_made_unheard_is_not_made_again() {
    let fleet = Fleet::set().await;
    let store = fleet.store("tea").await;
    give(&fleet.app, &store, 100).await;
    fleet.pass_days(1);
    fleet.reconcile().await;
    assert_eq!(fleet.available().await, 90);
    // As a restored copy of the table has it: the ledger remembers.
    sqlx::query("update store_charges set state = 'due', transaction_id = null")
        .execute(&mut fleet.app.master().await)
        .await
        .unwrap();
    fleet.reconcile().await;
    assert_eq!((fleet.available().await, fleet.states(&store).await), (90, vec!["charged".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_credits_end_the_owner_is_told_once_and_refusals_do_not_pile_up() {
    let fleet = Fleet::set().await;
    let store = fleet.store("tea").await;
    give(&fleet.app, &store, 15).await;
    for _ in 0..3 {
        fleet.pass_days(1);
        for _ in 0..3 {
            fleet.reconcile().await;
        }
    }
    assert_eq!(fleet.states(&store).await, ["charged", "unpaid", "unpaid"]);
    assert_eq!(fleet.events(charges::UNPAID).await, 1);
    let rejected = "select count(*) from credit_transactions where kind = 'charge' and status = 'rejected'";
    assert_eq!(count(&fleet.app, rejected).await, 2, "one for each day");
    let usage = fleet.usage(&store).await;
    assert_eq!((&usage["owed"], &usage["isReadOnly"]), (&json!(20), &json!(false)));
    assert!(usage["readOnlyAt"].is_string());
    // Some of it is paid, the oldest first, without asking for what is not covered.
    give(&fleet.app, &store, 7).await;
    fleet.reconcile().await;
    assert_eq!(fleet.states(&store).await, ["charged", "charged", "unpaid"]);
    assert_eq!((count(&fleet.app, rejected).await, fleet.available().await), (2, 2));
    give(&fleet.app, &store, 8).await;
    fleet.reconcile().await;
    assert_eq!(fleet.states(&store).await, ["charged"; 3]);
    assert_eq!(fleet.usage(&store).await["readOnlyAt"], Value::Null);
    // The next time is another time.
    fleet.pass_days(1);
    fleet.reconcile().await;
    assert_eq!(fleet.events(charges::UNPAID).await, 2);
    assert_eq!(fleet.events(charges::READ_ONLY).await, 0);
    fleet.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_grace_a_store_is_read_only_until_what_it_owes_is_paid() {
    let fleet = Fleet::with(true, &["--charge-poll-ms", "50"]).await;
    let receiver = Receiver::start().await;
    let body = json!({ "url": receiver.url("/"), "eventTypes": ["store.read_only", "store.read_only_lifted"] });
    fleet.owner.api.post("/api/webhooks/endpoints", body).await.expect_status(201);
    let store = fleet.app.active_store(&fleet.owner, "tea").await;
    let shop = fleet.app.storefront_of(&store);
    let variant = variant_of(&shop, "harbour-breakfast", 0).await;
    let cart = Cart::with(&shop, &variant, 1).await;
    let owed = async |wanted: i64| {
        eventually("the charge", || async { (fleet.usage(&store).await["owed"] == wanted).then_some(()) }).await;
    };
    for day in 1..=3 {
        fleet.pass_days(1);
        owed(day * 10).await;
        // In grace it is as before.
        cart.add(&variant, 1).await.expect_status(200);
    }
    fleet.pass_days(1);
    // However often it is asked, there is no more in the cart than the store has.
    let change = async || cart.shop.patch(&cart.path(""), json!({ "email": "sam@example.com" })).await;
    eventually("read-only", || async { (change().await.status == 503).then_some(()) }).await;
    let refused = cart.add(&variant, 1).await;
    refused.expect_problem(503, "store-read-only");
    assert!(!refused.header("retry-after").is_empty());
    cart.complete("order", checkout_body()).await.expect_problem(503, "store-read-only");
    shop.send(http::Method::POST, "/store/v1/carts", None).await.expect_problem(503, "store-read-only");
    change().await.expect_problem(503, "store-read-only");
    let by_owner = fleet.owner.api.with("x-store-id", text(&store["id"]));
    by_owner.send(http::Method::POST, "/store/v1/carts", None).await.expect_problem(503, "store-read-only");
    // What is only read is there.
    for path in ["/store/v1/store", "/store/v1/products", "/store/v1/products/harbour-breakfast"] {
        shop.get(path).await.expect_status(200);
    }
    cart.get().await.expect_status(200);
    let usage = fleet.usage(&store).await;
    assert_eq!((&usage["isReadOnly"], &usage["readOnlyAt"]), (&json!(true), &Value::Null));
    let explained = control_plane::ops::explain_host(&fleet.app.cx, text(&store["hostname"])).await.unwrap();
    assert!(explained.store.is_some_and(|store| store.is_read_only));
    let owes = usage["owed"].as_i64().unwrap();
    // Days that begin now cost nothing. What is on its way when they pass would be told twice.
    let delivered = "select count(*) from webhook_deliveries where state = 'delivered'";
    eventually("the first event", || async { (count(&fleet.app, delivered).await == 1).then_some(()) }).await;
    fleet.pass_days(2);
    eventually("waived days", || async {
        fleet.states(&store).await.iter().any(|state| state == "waived").then_some(())
    })
    .await;
    assert_eq!(fleet.usage(&store).await["owed"], owes);
    // Not all of it is not enough; all of it is, at once.
    give(&fleet.app, &store, owes - 1).await;
    owed(10).await;
    cart.add(&variant, 1).await.expect_problem(503, "store-read-only");
    give(&fleet.app, &store, 1).await;
    eventually("taking orders", || async { (change().await.status == 200).then_some(()) }).await;
    cart.complete("order", checkout_body()).await.expect_status(201);
    let told = receiver.wait_for(2).await;
    assert_eq!(told[0].json()["type"], "store.read_only");
    assert_eq!(told[1].json()["type"], "store.read_only_lifted");
    assert_eq!(told[1].json()["data"]["storeId"], store["id"]);
    assert_eq!((fleet.events(charges::READ_ONLY).await, fleet.events(charges::READ_ONLY_LIFTED).await), (1, 1));
    fleet.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ops_waive_is_owed_no_more_and_what_is_paid_stays_paid() {
    let fleet = Fleet::set().await;
    let (store, ops) = (fleet.store("tea").await, fleet.app.admin().await);
    let other = fleet.owner.create_store("coffee").await.expect_status(201);
    give(&fleet.app, &store, 10).await;
    let first = fleet.today() + Days::new(1);
    let shown = async || {
        let detail = fleet.owner.api.get(&store_path(&store, "")).await.expect_status(200);
        let listed = fleet.owner.api.get("/api/stores").await.expect_status(200)["data"].clone();
        let by_ops = ops.api.get("/api/ops/stores").await.expect_status(200)["data"].clone();
        let facts = |of: &Value| (of["isReadOnly"].clone(), of["creditsOwedSince"].clone());
        for list in [&listed, &by_ops] {
            let by_id = |id: &Value| list.as_array().unwrap().iter().find(|seen| seen["id"] == *id).unwrap();
            assert_eq!(facts(by_id(&store["id"])), facts(&detail));
            assert_eq!(facts(by_id(&other["id"])), (json!(false), Value::Null), "{list}");
        }
        facts(&detail)
    };
    fleet.pass_days(1);
    fleet.reconcile().await;
    assert_eq!(shown().await, (json!(false), Value::Null));
    fleet.pass_days(1);
    let since = fleet.app.clock.now();
    fleet.reconcile().await;
    let (is_read_only, owed_since) = shown().await;
    let told: chrono::DateTime<chrono::Utc> = text(&owed_since).parse().unwrap();
    assert!(is_read_only == false && (told - since).abs() < Duration::seconds(60), "{owed_since}");
    fleet.pass_days(1);
    fleet.reconcile().await;
    fleet.pass_days(2);
    fleet.reconcile().await;
    assert_eq!(shown().await, (json!(true), owed_since.clone()));
    let owed = fleet.usage(&store).await["owed"].as_i64().unwrap();
    assert_eq!(owed, 40);

    let waive = async |body: Value| ops.api.post("/api/ops/charges/waive", body).await;
    let of =
        |day: NaiveDate| json!({ "storeId": store["id"], "day": day, "service": "store-day", "reason": "our fault" });
    waive(of(first)).await.expect_problem(409, "charge-paid");
    waive(of(first - Days::new(1))).await.expect_problem(404, "not-found");
    waive(json!({ "storeId": store["id"], "reason": " " })).await.expect_field(422, "invalid-input", "/reason");
    let unknown = json!({ "storeId": store["id"], "service": "shipping", "reason": "what?" });
    waive(unknown).await.expect_field(422, "invalid-input", "/service");
    let nobodys = kernel::StoreId::new(since);
    waive(json!({ "storeId": nobodys, "reason": "what?" })).await.expect_problem(404, "not-found");
    let nothing = waive(json!({ "storeId": other["id"], "reason": "kindness" })).await.expect_status(200);
    assert_eq!((&nothing["waived"], &nothing["owed"]), (&json!([]), &json!(0)));
    // One day of it, once.
    let one = waive(of(first + Days::new(1))).await.expect_status(200);
    assert_eq!((&one["owed"], &one["waived"][0]["day"]), (&json!(owed - 10), &json!(first + Days::new(1))));
    assert_eq!((&one["waived"][0]["state"], &one["waived"][0]["reason"]), (&json!("waived"), &json!("our fault")));
    assert_eq!(waive(of(first + Days::new(1))).await.expect_status(200)["waived"], json!([]));
    fleet.reconcile().await;
    assert_eq!(shown().await.0, json!(true), "some of it is owed still");
    // All that is left: the store takes orders again, and nothing was paid for that.
    let rest = waive(json!({ "storeId": store["id"], "reason": "kindness" })).await.expect_status(200);
    let days: Vec<&str> = rest["waived"].as_array().unwrap().iter().map(|charge| text(&charge["day"])).collect();
    assert!(days.len() == 3 && days.is_sorted(), "{rest}");
    assert_eq!(rest["owed"], 0);
    fleet.reconcile().await;
    assert_eq!(shown().await, (json!(false), Value::Null));
    assert_eq!((fleet.events(charges::READ_ONLY).await, fleet.events(charges::READ_ONLY_LIFTED).await), (1, 1));
    assert_eq!(fleet.states(&store).await, ["charged", "waived", "waived", "waived", "waived"]);
    assert_eq!(fleet.available().await, 0);
    let audited = "select count(*) from audit_events where action = 'charges_waive' and actor_kind = 'user' and store_id is not null";
    assert_eq!(count(&fleet.app, audited).await, 2);
    // What comes is charged as ever.
    give(&fleet.app, &store, 100).await;
    fleet.pass_days(1);
    fleet.reconcile().await;
    assert_eq!(fleet.available().await, 90);
    fleet.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_is_counted_once_and_charged_when_the_day_is_over() {
    let fleet = Fleet::set().await;
    fleet.price("metric:orders", 3, Some(100)).await;
    let store = fleet.owner.create_store("tea").await.expect_status(201);
    give(&fleet.app, &store, 100).await;
    fleet.pass_days(1);
    let id = store_id(&store);
    let mut counting = JoinSet::new();
    for number in 0..40 {
        let cx = fleet.app.cx.ops().clone();
        // Each of twenty keys twice.
        counting.spawn(async move {
            charges::usage_add(&cx, id, "orders", 10, &format!("order-{}", number % 20)).await.unwrap()
        });
    }
    let counted = counting.join_all().await;
    assert_eq!(counted.iter().filter(|is_new| **is_new).count(), 20);
    charges::usage_add(&fleet.app.cx, id, "visits", 5, "visit-1").await.unwrap();
    fleet.reconcile().await;
    assert_eq!(fleet.available().await, 100, "the day is not over");
    fleet.pass_days(1);
    charges::usage_add(&fleet.app.cx, id, "orders", 1, "order-100").await.unwrap();
    fleet.reconcile().await;
    fleet.reconcile().await;
    // Two hundred are two hundreds; what has no price costs nothing.
    assert_eq!(fleet.available().await, 94);
    fleet.pass_days(1);
    fleet.reconcile().await;
    assert_eq!(fleet.available().await, 91, "what is begun of a hundred counts");
    let usage = fleet.usage(&store).await;
    assert_eq!(usage["data"][0]["counts"], json!({ "orders": 200, "visits": 5 }));
    assert_eq!(usage["data"][0]["charges"][0]["service"], "metric:orders");
    assert_eq!(usage["charged"], 9);
    for (metric, quantity) in [("Orders", 1), ("", 1), ("a b", 1), ("orders", 0), ("orders", -1), ("orders", i64::MAX)]
    {
        assert!(charges::usage_add(&fleet.app.cx, id, metric, quantity, "bad").await.is_err(), "{metric} {quantity}");
    }
    charges::keep_house(&fleet.app.cx).await.unwrap();
    fleet.expect_proven().await;
}

/// How many requests were counted of a store in all.
async fn requests(master: &mut PgConnection, store: &Value) -> i64 {
    sqlx::query_scalar(
        "select coalesce(sum(quantity), 0)::bigint from usage_metrics where store_id = $1 and metric = 'requests'",
    )
    .bind(store_id(store).as_uuid())
    .fetch_one(master)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_a_store_answered_are_counted_by_day_whichever_node_it_was() {
    let fleet = Fleet::with(true, &["--usage-flush-ms", "50"]).await;
    let (tea, coffee) = (fleet.app.active_store(&fleet.owner, "tea").await, fleet.owner.create_store("coffee").await);
    let coffee = coffee.expect_status(201);
    let other = fleet.app.other_node_with(&["--usage-flush-ms", "50"]).await;
    let shops = [fleet.app.storefront_of(&tea), Client::new(other.address, text(&tea["hostname"]))];
    let first = fleet.today();
    for shop in &shops {
        for _ in 0..5 {
            shop.get("/store/v1/products").await.expect_status(200);
        }
        // What is not there is an answer, too.
        shop.get("/store/v1/products/nothing").await.expect_status(404);
        shop.get("/nowhere").await.expect_status(404);
    }
    // A store that is not open answers nothing, and what its people ask of the platform is not the shop's.
    fleet.app.storefront_of(&coffee).get("/store/v1/products").await.expect_status(503);
    let by_owner = fleet.owner.api.with("x-store-id", text(&tea["id"]));
    by_owner.get("/store/v1/products").await.expect_status(200);
    fleet.counted(&tea, first, json!({ "requests": 14 })).await;
    fleet.pass_days(1);
    for shop in &shops {
        shop.get("/store/v1/store").await.expect_status(200);
    }
    fleet.counted(&tea, first + Days::new(1), json!({ "requests": 2 })).await;
    assert_eq!(fleet.counts(&tea, first).await, json!({ "requests": 14 }));
    assert_eq!(fleet.usage(&coffee).await["data"], json!([]));
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_whose_writing_was_not_heard_of_are_written_once() {
    let fleet = Fleet::with(true, &["--usage-flush-ms", "100000000"]).await;
    let store = fleet.app.active_store(&fleet.owner, "tea").await;
    let proxy = ChaosProxy::to(SocketAddr::from((Ipv4Addr::LOCALHOST, fleet.app.cluster.port()))).await;
    let straight = format!(":{}/", fleet.app.cluster.port());
    let through = fleet.app.master.url().replace(&straight, &format!(":{}/", proxy.port));
    let node = Process::serve(&through, &[("USAGE_FLUSH_MS", "100")]).await;
    let shop = node.storefront_of(&store);
    shop.get("/store/v1/products").await.expect_status(200);
    let mut holder = fleet.app.master().await;
    eventually("the first count", || async {
        (requests(&mut fleet.app.master().await, &store).await == 1).then_some(())
    })
    .await;

    // The server has what the node sends and cannot do it yet; then nobody is there to hear that it is done.
    let mut held = holder.begin().await.unwrap();
    held.execute("select from usage_flushes for update").await.unwrap();
    for _ in 0..7 {
        shop.get("/store/v1/products").await.expect_status(200);
    }
    let waiting = "select count(*) from pg_stat_activity
         where datname = current_database() and wait_event_type = 'Lock' and query like '%usage_flushes%'";
    eventually("the node's statement", || async { (count(&fleet.app, waiting).await == 1).then_some(()) }).await;
    proxy.cut();
    held.commit().await.unwrap();
    eventually("what nobody heard of", || async {
        (requests(&mut fleet.app.master().await, &store).await > 1).then_some(())
    })
    .await;
    proxy.mend();
    // It sends what it had sent again, and then what came after it.
    shop.get("/store/v1/products").await.expect_status(200);
    eventually("a later batch", || async {
        (count(&fleet.app, "select max(number) from usage_flushes").await > 2).then_some(())
    })
    .await;
    assert_eq!(node.terminate().await, Some(0));
    assert_eq!(requests(&mut fleet.app.master().await, &store).await, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_writes_what_it_has_counted_when_it_drains_and_loses_that_alone_when_it_is_killed() {
    let fleet = Fleet::with(true, &[]).await;
    let store = fleet.app.active_store(&fleet.owner, "tea").await;
    let mut master = fleet.app.master().await;
    let late = [("USAGE_FLUSH_MS", "100000000")];
    let node = Process::serve(&fleet.app.master.url(), &late).await;
    for _ in 0..5 {
        node.storefront_of(&store).get("/store/v1/products").await.expect_status(200);
    }
    assert_eq!(requests(&mut master, &store).await, 0);
    assert_eq!(node.terminate().await, Some(0));
    assert_eq!(requests(&mut master, &store).await, 5);
    let node = Process::serve(&fleet.app.master.url(), &late).await;
    node.storefront_of(&store).get("/store/v1/products").await.expect_status(200);
    node.kill().await;
    assert_eq!(requests(&mut master, &store).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_counted_once_out_of_the_store_itself_when_their_day_is_over() {
    let visits = ["--store-visit-poll-ms", "50", "--usage-flush-ms", "100000000"];
    let fleet = Fleet::with(true, &visits).await;
    fleet.price("metric:orders", 4, None).await;
    let other = fleet.app.other_node_with(&visits).await;
    let store = fleet.app.active_store(&fleet.owner, "tea").await;
    give(&fleet.app, &store, 1000).await;
    fleet.pass_days(1);
    let day = fleet.today();
    let shop = fleet.app.storefront_of(&store);
    let variant = variant_of(&shop, "harbour-breakfast", 0).await;
    for number in 0..3 {
        let cart = Cart::with(&shop, &variant, 1).await;
        // Asking again makes no other order.
        for _ in 0..2 {
            cart.complete(&format!("order-{number}"), checkout_body()).await.expect_status(201);
        }
    }
    assert_eq!(fleet.counts(&store, day).await["orders"], Value::Null, "the day is not over");
    // The day is over, and then the hour after it in which a late order may still be written down.
    let until_late = (day + Days::new(1)).and_hms_opt(0, 30, 0).unwrap().and_utc() - fleet.app.clock.now();
    fleet.app.clock.advance(until_late);
    fleet.app.clock.advance(Duration::hours(1));
    fleet.counted(&store, day, json!({ "orders": 3 })).await;
    // As a restored master has it: it knows the orders and not that it has counted them.
    sqlx::query("update store_visits set orders_counted_until = $1, done_as_of = null")
        .bind(day)
        .execute(&mut fleet.app.master().await)
        .await
        .unwrap();
    eventually("another visit", || async {
        let behind = "select count(*) from store_visits where done_as_of is distinct from as_of or failures > 0";
        (count(&fleet.app, behind).await == 0).then_some(())
    })
    .await;
    assert_eq!(fleet.counts(&store, day).await, json!({ "orders": 3 }));
    // Nobody was there for days.
    let cart = Cart::with(&shop, &variant, 1).await;
    cart.complete("last", checkout_body()).await.expect_status(201);
    let last = fleet.today();
    fleet.pass_days(40);
    fleet.counted(&store, last, json!({ "orders": 1 })).await;
    fleet.reconcile().await;
    let charged = "select coalesce(sum(quantity), 0)::bigint from store_charges where service = 'metric:orders'";
    assert_eq!(count(&fleet.app, charged).await, 4);
    assert_eq!(count(&fleet.app, "select coalesce(sum(amount), 0)::bigint from store_charges where service = 'metric:orders' and state = 'charged'").await, 16);
    fleet.expect_proven().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_cannot_be_written_keeps_no_order_from_being_counted() {
    let fleet = Fleet::with(true, &["--store-visit-poll-ms", "50", "--usage-flush-ms", "100000000"]).await;
    let store = fleet.app.active_store(&fleet.owner, "tea").await;
    give(&fleet.app, &store, 1000).await;
    fleet.pass_days(1);
    let day = fleet.today();
    let shop = fleet.app.storefront_of(&store);
    let variant = variant_of(&shop, "harbour-breakfast", 0).await;
    let cart = Cart::with(&shop, &variant, 1).await;
    cart.complete("order", checkout_body()).await.expect_status(201);
    // As its owner may do, while master knows the table to be there.
    let database: String = sqlx::query_scalar("select database_name from store_databases where store_id = $1")
        .bind(store_id(&store).as_uuid())
        .fetch_one(&mut fleet.app.master().await)
        .await
        .unwrap();
    let mut inside = PgConnection::connect(&fleet.app.cluster.url(&database)).await.unwrap();
    inside.execute("drop table tenantry.credit_copy").await.unwrap();
    inside.close().await.unwrap();
    fleet.pass_days(1);
    fleet.counted(&store, day, json!({ "orders": 1 })).await;
    // And the copy is still told to be in the way.
    eventually("the failure", || async {
        let failing = "select count(*) from store_visits where failures > 0 and error = 'refused'";
        (count(&fleet.app, failing).await == 1).then_some(())
    })
    .await;
    assert_eq!(fleet.counts(&store, day).await, json!({ "orders": 1 }));
    fleet.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prices_hold_from_a_day_that_has_not_begun() {
    let fleet = Fleet::set().await;
    let store = fleet.store("tea").await;
    give(&fleet.app, &store, 1000).await;
    let ops = fleet.app.admin().await;
    let path = "/api/ops/credits/charge-prices";
    let body = |amount: i64, day: NaiveDate| json!({ "service": "store-day", "amount": amount, "validFrom": day });
    let today = fleet.today();
    ops.api.post(path, body(20, today)).await.expect_field(422, "invalid-input", "/validFrom");
    ops.api.post(path, body(-1, today + Days::new(5))).await.expect_field(422, "invalid-input", "/amount");
    let other = json!({ "service": "shipping", "amount": 1 });
    ops.api.post(path, other).await.expect_field(422, "invalid-input", "/service");
    let per = json!({ "service": "store-day", "amount": 1, "per": 2 });
    ops.api.post(path, per).await.expect_field(422, "invalid-input", "/per");
    ops.api.post(path, body(20, today + Days::new(3))).await.expect_status(201);
    let url = fleet.app.master.url();
    let until = (fleet.app.clock.now() + Duration::days(5)).date_naive().to_string();
    let set = Cli::json(&url, &["credits", "price", "store-day", "--amount", "0", "--valid-from", &until]).await;
    assert_eq!((&set["amount"], &set["per"]), (&json!(0), &json!(1)), "{set}");
    let listed = ops.api.get(path).await.expect_status(200);
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(3), "{listed}");
    fleet.pass_days(10);
    fleet.reconcile().await;
    // Two days at 10, two at 20, and then nothing.
    assert_eq!(fleet.available().await, 1000 - 20 - 40);
    let query = format!("/api/credits/usage?storeId={}", text(&store["id"]));
    for wrong in ["from=2026-13-01", "from=2026-01-02&until=2026-01-01", "from=2020-01-01&until=2026-01-01", "until=x"]
    {
        fleet.owner.api.get(&format!("{query}&{wrong}")).await.expect_problem(400, "invalid-query");
    }
    let two = format!("{query}&from={}&until={}", today + Days::new(1), today + Days::new(3));
    assert_eq!(fleet.owner.api.get(&two).await.expect_status(200)["charged"], 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_signed_in_sees_what_stores_are_charged_and_what_is_announced() {
    let fleet = Fleet::set().await;
    fleet.price("metric:orders", 2, None).await;
    fleet.price("metric:requests", 1, Some(1000)).await;
    let store = fleet.store("tea").await;
    let login = fleet.owner.login(json!({ "storeId": store["id"] })).await.expect_status(200);
    let limited = fleet.owner.api.with_token(text(&login["tokens"]["accessToken"]));
    let stranger = fleet.app.owner("eve").await;
    let listed = async |api: &Client| {
        let listed = api.get("/api/credits/charge-prices").await;
        described::check("credit_charge_price_list", &listed);
        listed.expect_status(200)["data"].clone()
    };
    let price = |service: &str, unit: &str, credits: i64, per: i64, from: NaiveDate| json!({ "service": service, "unit": unit, "credits": credits, "per": per, "validFrom": from });
    let tomorrow = fleet.today() + Days::new(1);
    let day = price("store-day", "day", 10, 1, tomorrow);
    let counted = |from| {
        [
            price("metric:orders", "placed order", 2, 1, from),
            price("metric:requests", "answered request", 1, 1000, from),
        ]
    };
    let [orders, requests] = counted(tomorrow);
    for api in [&fleet.owner.api, &stranger.api, &limited] {
        assert_eq!(listed(api).await, json!([orders, requests, day]));
    }

    // What held before is over, and what costs nothing any more is gone.
    fleet.pass_days(1);
    fleet.price("metric:requests", 0, None).await;
    fleet.price(charges::STORE_DAY, 12, None).await;
    let next = fleet.today() + Days::new(1);
    let (end, dearer) =
        (price("metric:requests", "answered request", 0, 1, next), price("store-day", "day", 12, 1, next));
    assert_eq!(listed(&stranger.api).await, json!([orders, requests, end, day, dearer]));
    fleet.pass_days(1);
    assert_eq!(listed(&stranger.api).await, json!([orders, dearer]));
}
