//! What stores cost by themselves: once a day and store, whatever runs or does not, and read-only instead of a cut-off.

use chrono::{Days, Duration, NaiveDate};
use control_plane::charges::{self, NewPrice};
use control_plane::credits;
use integration_tests::{Cli, Owner, Receiver, TestApp, TestAppOptions, eventually};
use kernel::Clock as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::credits::give;
use crate::provisioning::store_id;
use crate::scenes::{Cart, checkout_body, count, text, variant_of};

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
        days.iter().map(|day| text(&day["charges"][0]["state"]).to_owned()).collect()
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
    // Days that begin now cost nothing.
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
