//! Automatic top-up: one pack at a time, one charge for each, within the cap, and never without the organization knowing.

use std::net::SocketAddr;
use std::time::Duration;

use chrono::{Datelike as _, Days, Months, NaiveTime, TimeDelta};
use control_plane::credits::{purchases, topups};
use devkit::payments::{ApiFault, Checkout, TestPayments, TestPaymentsOptions};
use http::Method;
use integration_tests::{ChaosProxy, Owner, Received, Receiver, Response, eventually, within};
use kernel::{Clock as _, OrganizationId};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::Row as _;

use crate::credits::give;
use crate::purchases::{Order, Shop, arguments_of};
use crate::scenes::{count, join, text};

const GOOD: &str = "4242424242424242";
const DECLINED: &str = "4000000000000341";
const AUTHENTICATION: &str = "4000002500003155";
const CARD: &str = "/api/credits/payment-method";
const RULE: &str = "/api/credits/top-up";

/// An agency that buys by itself. Nothing happens by itself but what a test calls for.
struct Agency {
    shop: Shop,
    store: Value,
}

impl Agency {
    async fn open() -> Self {
        Self::at(TestPayments::start(TestPaymentsOptions::default()).await.unwrap(), &[]).await
    }

    async fn at(provider: TestPayments, more: &[&str]) -> Self {
        let more: Vec<&str> = ["--refresh-token-ttl-s", "10000000"].iter().chain(more).copied().collect();
        let shop = Shop::at(provider, &more).await;
        let store = shop.owner.create_store("tea").await.expect_status(201);
        let agency = Self { shop, store };
        // The middle of a month: what takes some hours ends in the same one.
        let now = agency.shop.app.clock.now();
        let first = now.date_naive().with_day(1).unwrap() + Months::new(1);
        agency.pass((first + Days::new(9)).and_time(NaiveTime::MIN).and_utc() - now);
        agency
    }

    /// Lets time pass, here and at the provider.
    fn pass(&self, time: TimeDelta) {
        self.shop.app.clock.advance(time);
        self.shop.provider.advance(time.to_std().unwrap());
    }

    async fn put(&self, path: &str, body: Value) -> Response {
        self.shop.owner.api.send(Method::PUT, path, Some(body)).await
    }

    async fn get(&self, path: &str) -> Response {
        self.shop.owner.api.get(path).await
    }

    /// Takes a card down as a page of the agency's own does; its name at the provider.
    async fn take_down(&self, owner: &Owner, number: &str) -> String {
        let setup = owner.api.send(Method::POST, &format!("{CARD}/setup"), None).await.expect_status(201);
        assert!(text(&setup["clientSecret"]).starts_with(text(&setup["id"])));
        self.shop.provider.fill_in(text(&setup["id"]), number).unwrap()
    }

    async fn card(&self, number: &str) -> String {
        let method = self.take_down(&self.shop.owner, number).await;
        self.put(CARD, json!({ "paymentMethod": method })).await.expect_status(200);
        method
    }

    fn rule_body(&self, threshold: i64, pack: &str, cap: i64) -> Value {
        json!({ "threshold": threshold, "packId": self.shop.packs[pack]["id"], "monthlyCapMinor": cap })
    }

    async fn rule(&self, threshold: i64, pack: &str, cap: i64) -> Value {
        self.put(RULE, self.rule_body(threshold, pack, cap)).await.expect_status(200)
    }

    async fn standing(&self) -> Value {
        self.get(RULE).await.expect_status(200)
    }

    async fn top_up(&self) {
        topups::jobs::top_up(&self.shop.app.cx).await.unwrap();
    }

    async fn available(&self) -> i64 {
        self.shop.amounts().await[0]
    }

    /// The automatic payments that the provider knows of, those counted that failed.
    fn payments(&self) -> usize {
        self.shop.provider.objects("payment_intent").len()
    }

    fn charges(&self) -> usize {
        self.shop.provider.objects("charge").len()
    }

    /// What was told of a kind, oldest first.
    async fn told(&self, kind: &str) -> Vec<Value> {
        sqlx::query_scalar("select data from outbox_events where type = $1 order by seq")
            .bind(kind)
            .fetch_all(&mut self.shop.app.master().await)
            .await
            .unwrap()
    }

    /// The states of the automatic purchases, oldest first.
    async fn states(&self) -> Vec<String> {
        sqlx::query_scalar("select state from purchases where is_auto order by id")
            .fetch_all(&mut self.shop.app.master().await)
            .await
            .unwrap()
    }

    /// Fails unless everything that the provider tells is followed and changes nothing any more, both sets of books agree, and
    /// every invariant of the ledger holds.
    async fn expect_sound(&self) {
        let before = (self.shop.amounts().await, self.states().await);
        self.shop.deliver_all().await;
        assert_eq!((self.shop.amounts().await, self.states().await), before);
        self.shop.expect_reconciled().await;
        self.shop.expect_proven().await;
    }
}

/// Orders with a wish for the card to be kept, and pays.
async fn pay_and_leave_card(shop: &Shop, key: &str) -> Order {
    let mut body = shop.body("starter");
    body["saveCard"] = json!(true);
    let order = Order::of(&shop.keyed(key).post("/api/credits/purchase", body).await.expect_status(201));
    shop.provider.checkout(&order.session, Checkout::Pay).unwrap();
    order
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_that_is_left_at_checkout_is_the_organizations_until_another_is() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    agency.get(CARD).await.expect_problem(404, "not-found");
    let plain = shop.buy("plain", "starter").await;
    agency.get(CARD).await.expect_problem(404, "not-found");
    let of_plain = text(&shop.provider.object(&shop.intent(&plain)).unwrap()["payment_method"]).to_owned();
    assert_eq!(shop.provider.object(&of_plain).unwrap()["customer"], Value::Null);

    let order = pay_and_leave_card(shop, "kept").await;
    agency.get(CARD).await.expect_problem(404, "not-found");
    shop.deliver_all().await;
    let method = shop.provider.object(&shop.intent(&order)).unwrap()["payment_method"].clone();
    assert_eq!(agency.get(CARD).await.expect_status(200)["paymentMethod"], method);
    agency.top_up().await;
    let card = agency.get(CARD).await.expect_status(200);
    assert_eq!(
        (&card["brand"], &card["last4"], &card["expiryMonth"], &card["expiryYear"]),
        (&json!("visa"), &json!("4242"), &json!(12), &json!(2034)),
        "{card}"
    );

    // What is told again of a payment does not bring its card back, neither in the place of another one nor after it was removed.
    let other = agency.card(AUTHENTICATION).await;
    shop.deliver_all().await;
    purchases::jobs::sweep(&shop.app.cx).await.unwrap();
    let mut again = shop.event(&order, "payment_intent.succeeded");
    again["id"] = json!("evt_again");
    shop.deliver(&again).await.expect_status(200);
    let card = agency.get(CARD).await.expect_status(200);
    assert_eq!((&card["paymentMethod"], &card["last4"]), (&json!(other), &json!("3155")));
    shop.owner.api.delete(CARD).await.expect_status(204);
    shop.owner.api.delete(CARD).await.expect_status(204);
    again["id"] = json!("evt_once_more");
    shop.deliver(&again).await.expect_status(200);
    agency.get(CARD).await.expect_problem(404, "not-found");
    assert_eq!(shop.provider.object(&other).unwrap()["customer"], Value::Null);

    // A later one does.
    pay_and_leave_card(shop, "later").await;
    shop.deliver_all().await;
    assert_eq!(agency.get(CARD).await.expect_status(200)["last4"], Value::Null);
    let trail = "select count(*) from audit_events where action like 'credit_payment_method_%'";
    assert_eq!(count(&shop.app, trail).await, 4);
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_cards_are_offered_to_be_left_and_what_is_none_does_not_stay() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    let plain = shop.buy("plain", "starter").await;
    assert_eq!(shop.provider.object(&plain.session).unwrap()["payment_method_types"], json!([]));
    let order = pay_and_leave_card(shop, "kept").await;
    assert_eq!(shop.provider.object(&order.session).unwrap()["payment_method_types"], json!(["card"]));
    let method = text(&shop.provider.object(&shop.intent(&order)).unwrap()["payment_method"]).to_owned();
    shop.provider.tamper(&method, |method| {
        method["type"] = json!("sepa_debit");
        method.as_object_mut().unwrap().remove("card");
    });
    shop.deliver_all().await;
    assert_eq!(agency.get(CARD).await.expect_status(200)["paymentMethod"], json!(method));
    agency.rule(100, "starter", 50_000).await;
    agency.top_up().await;
    agency.get(CARD).await.expect_problem(404, "not-found");
    assert_eq!(shop.provider.object(&method).unwrap()["customer"], Value::Null);
    assert_eq!(agency.standing().await["offReason"], "card_removed");
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_for_the_card_is_part_of_what_was_asked_for_and_its_absence_is_not() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    shop.order("plain", "starter").await;
    let mut body = shop.body("starter");
    body["saveCard"] = json!(false);
    let again = shop.keyed("plain").post("/api/credits/purchase", body.clone()).await;
    assert_eq!((again.status.as_u16(), again.header("idempotent-replayed")), (201, "true"));
    body["saveCard"] = json!(true);
    let other = shop.keyed("plain").post("/api/credits/purchase", body).await;
    other.expect_problem(422, "idempotency-key-reused");
    // Keys are kept for ever: what was asked for before there was such a wish must still be known.
    let asked = json!(["purchase_create", [shop.owner.organization_id(), shop.packs["starter"]["id"], null, null]]);
    let expected = Sha256::digest(asked.to_string()).to_vec();
    let kept = sqlx::query("select request_hash from purchases").fetch_one(&mut shop.app.master().await).await.unwrap();
    assert_eq!(kept.get::<Vec<u8>, _>(0), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_that_is_replaced_is_removed_at_the_provider() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    let is_attached = |method: &str| shop.provider.object(method).unwrap()["customer"].is_string();
    let first = agency.card(GOOD).await;
    let second = agency.card(GOOD).await;
    assert_eq!((is_attached(&first), is_attached(&second)), (false, true));
    // The same once more stays.
    agency.put(CARD, json!({ "paymentMethod": second })).await.expect_status(200);
    agency.top_up().await;
    assert!(is_attached(&second));

    // While the provider is away it is kept in mind, and cannot come back meanwhile.
    let third = agency.take_down(&shop.owner, GOOD).await;
    shop.provider.fail_next((0..4).map(|_| ApiFault::Before(500)));
    agency.put(CARD, json!({ "paymentMethod": third })).await.expect_status(200);
    assert!(is_attached(&second));
    let back = agency.put(CARD, json!({ "paymentMethod": second })).await;
    back.expect_problem(409, "payment-method-being-removed");
    agency.pass(TimeDelta::minutes(6));
    agency.top_up().await;
    assert_eq!((is_attached(&second), is_attached(&third)), (false, true));

    // By one that a purchase leaves, too.
    let order = pay_and_leave_card(shop, "kept").await;
    shop.deliver_all().await;
    agency.top_up().await;
    let kept = text(&shop.provider.object(&shop.intent(&order)).unwrap()["payment_method"]).to_owned();
    assert_eq!(agency.get(CARD).await.expect_status(200)["paymentMethod"], json!(kept));
    assert_eq!((is_attached(&third), is_attached(&kept)), (false, true));
    shop.deliver_all().await;
    agency.top_up().await;
    assert!(is_attached(&kept));
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_card_of_the_organizations_own_is_taken() {
    let agency = Agency::open().await;
    let (shop, api) = (&agency.shop, &agency.shop.owner.api);
    let set = |method: &str| agency.put(CARD, json!({ "paymentMethod": method }));
    // Before there is a customer none can be its.
    set("pm_guess").await.expect_field(422, "payment-method-unknown", "/paymentMethod");
    let keyed = api.with("idempotency-key", "a");
    let setup = keyed.send(Method::POST, &format!("{CARD}/setup"), None).await;
    assert_eq!(setup.header("cache-control"), "no-store");
    let (setup, again) =
        (setup.expect_status(201), keyed.send(Method::POST, &format!("{CARD}/setup"), None).await.expect_status(201));
    assert_eq!((&setup["id"], &setup["clientSecret"]), (&again["id"], &again["clientSecret"]));
    assert_eq!(setup["customer"], shop.provider.objects("customer")[0]["id"]);
    assert_eq!(shop.provider.objects("setup_intent").len(), 1);

    let stranger = shop.app.owner("eve").await;
    let strangers = agency.take_down(&stranger, GOOD).await;
    stranger.api.send(Method::PUT, CARD, Some(json!({ "paymentMethod": strangers }))).await.expect_status(200);
    let plain = shop.buy("plain", "starter").await;
    let nobodys = text(&shop.provider.object(&shop.intent(&plain)).unwrap()["payment_method"]).to_owned();
    let mut answers = Vec::new();
    for method in [&strangers, &nobodys, "pm_guess", "../customers", "cus_x", "", &"pm_x".repeat(100)] {
        let problem = set(method).await.expect_field(422, "payment-method-unknown", "/paymentMethod");
        answers.push((problem["title"].clone(), problem["errors"].clone()));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    agency.get(CARD).await.expect_problem(404, "not-found");

    let staff = shop.app.owner("sam").await;
    join(&shop.app, &shop.owner, &staff, "staff").await;
    let ours = agency.take_down(&shop.owner, GOOD).await;
    let path = format!("{CARD}?organizationId={}", shop.owner.organization_id());
    let body = Some(json!({ "paymentMethod": ours }));
    staff.api.send(Method::PUT, &path, body.clone()).await.expect_problem(403, "forbidden");
    stranger.api.send(Method::PUT, &path, body).await.expect_problem(404, "not-found");
    let card = set(&ours).await.expect_status(200);
    assert_eq!((&card["last4"], &card["brand"]), (&json!("4242"), &json!("visa")));
    assert_eq!(staff.api.get(&path).await.expect_status(200)["paymentMethod"], json!(ours));

    // A card that was removed is not the organization's any more, also while the provider has not heard of that.
    shop.provider.fail_next((0..4).map(|_| ApiFault::Before(500)));
    api.delete(CARD).await.expect_status(204);
    assert!(shop.provider.object(&ours).unwrap()["customer"].is_string());
    set(&ours).await.expect_problem(409, "payment-method-being-removed");
    agency.pass(TimeDelta::minutes(6));
    agency.top_up().await;
    assert_eq!(shop.provider.object(&ours).unwrap()["customer"], Value::Null);
    set(&ours).await.expect_problem(422, "payment-method-unknown");
    // Somebody deletes the customer in the provider's dashboard: there is a new one.
    shop.provider.forget(text(&setup["customer"]));
    agency.card(GOOD).await;
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_needs_a_card_a_pack_on_sale_and_a_cap_that_pays_for_it() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    let put = |body: Value| agency.put(RULE, body);
    agency.get(RULE).await.expect_problem(404, "not-found");
    put(agency.rule_body(100, "starter", 2500)).await.expect_problem(409, "payment-method-missing");
    agency.card(GOOD).await;
    put(agency.rule_body(100, "starter", 2499)).await.expect_field(422, "invalid-input", "/monthlyCapMinor");
    for threshold in [0, -1, i64::MAX] {
        put(agency.rule_body(threshold, "starter", 2500)).await.expect_field(422, "invalid-input", "/threshold");
    }
    let mut body = agency.rule_body(100, "starter", 2500);
    body["packId"] = json!(kernel::CreditPackId::new(shop.app.clock.now()));
    put(body).await.expect_field(422, "invalid-input", "/packId");
    let mut body = agency.rule_body(100, "starter", 2500);
    body["isEnabled"] = json!(false);
    let off = put(body).await.expect_status(200);
    assert_eq!((&off["isEnabled"], &off["offReason"]), (&json!(false), &json!("by_manager")));
    agency.top_up().await;
    assert_eq!(agency.payments(), 0);
    let set = agency.rule(100, "starter", 2500).await;
    assert_eq!((&set["isEnabled"], &set["offReason"], &set["currency"]), (&json!(true), &Value::Null, &json!("EUR")));
    assert_eq!((&set["spentThisMonthMinor"], &set["inFlight"]), (&json!(0), &Value::Null));

    // Its pack is retired: it is off, and told, also while the credits last.
    give(&shop.app, &agency.store, 1000).await;
    sqlx::query("update credit_packs set retired_at = $1 where code = 'starter'")
        .bind(shop.app.clock.now())
        .execute(&mut shop.app.master().await)
        .await
        .unwrap();
    agency.top_up().await;
    agency.top_up().await;
    assert_eq!(agency.standing().await["offReason"], "pack_retired");
    put(agency.rule_body(100, "starter", 2500)).await.expect_field(422, "invalid-input", "/packId");
    // The card is removed: so too.
    agency.rule(2000, "growth", 11500).await;
    shop.owner.api.delete(CARD).await.expect_status(204);
    let standing = agency.standing().await;
    assert_eq!((&standing["isEnabled"], &standing["offReason"]), (&json!(false), &json!("card_removed")));
    agency.top_up().await;
    let off = agency.told("credits.top_up_off").await;
    let reasons: Vec<&str> = off.iter().map(|told| text(&told["reason"])).collect();
    assert_eq!(reasons, ["pack_retired", "card_removed"]);
    shop.owner.api.delete(RULE).await.expect_status(204);
    shop.owner.api.delete(RULE).await.expect_status(204);
    agency.get(RULE).await.expect_problem(404, "not-found");
    assert_eq!(agency.payments(), 0);
    let trail = "select count(*) from audit_events where action in ('credit_top_up_set', 'credit_top_up_remove', 'credit_top_up_off')";
    assert_eq!(count(&shop.app, trail).await, 3 + 1 + 2);
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_spends_at_once_on_two_nodes_buy_one_pack() {
    let provider = TestPayments::start(TestPaymentsOptions::default()).await.unwrap();
    let busy = ["--top-up-poll-ms", "5"];
    let agency = Agency::at(provider, &busy).await;
    let shop = &agency.shop;
    let arguments = arguments_of(&shop.provider);
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.extend(busy);
    let other = shop.app.other_node_with(&arguments).await;
    give(&shop.app, &agency.store, 1000).await;
    agency.card(GOOD).await;
    agency.rule(500, "growth", 1_000_000).await;
    let mut spends = tokio::task::JoinSet::new();
    for number in 0..100 {
        let address = if number % 2 == 0 { shop.app.address } else { other.address };
        let api = shop.owner.at(address).api.with("idempotency-key", &format!("spend-{number}"));
        let body = json!({ "storeId": agency.store["id"], "amount": 6 });
        spends.spawn(async move { api.post("/api/credits/spend", body).await });
    }
    for answer in within("the spends", spends.join_all()).await {
        answer.expect_status(201);
    }
    eventually("the credits", || async { (agency.available().await == 400 + 2750).then_some(()) }).await;
    other.stop().await;
    agency.expect_sound().await;
    // Whatever the jobs were at is over by then.
    shop.app.cx.close().await;
    assert_eq!((agency.payments(), agency.charges()), (1, 1));
    assert_eq!(agency.states().await, ["completed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_follow_one_another_up_to_the_cap_of_the_month_and_not_beyond() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    agency.card(GOOD).await;
    agency.rule(2000, "starter", 7500).await;
    for (charges, available) in [(1, 500), (2, 1000), (3, 1500)] {
        agency.top_up().await;
        assert_eq!((agency.charges(), agency.available().await), (charges, available));
    }
    assert_eq!(agency.standing().await["isCapped"], false);
    for _ in 0..3 {
        agency.top_up().await;
    }
    let standing = agency.standing().await;
    assert_eq!((&standing["isCapped"], &standing["spentThisMonthMinor"]), (&json!(true), &json!(7500)));
    assert_eq!(agency.charges(), 3);
    // Raised by too little, then by just enough; told once in the month.
    agency.rule(2000, "starter", 9999).await;
    agency.top_up().await;
    assert_eq!(agency.charges(), 3);
    agency.rule(2000, "starter", 10_000).await;
    agency.top_up().await;
    agency.top_up().await;
    assert_eq!((agency.charges(), agency.available().await), (4, 2000));
    shop.spend("some", 1900).await;
    agency.top_up().await;
    let told = agency.told("credits.top_up_capped").await;
    assert_eq!(told.len(), 1);
    assert_eq!((&told[0]["spentMinor"], &told[0]["priceMinor"]), (&json!(7500), &json!(2500)));
    agency.expect_sound().await;

    // The last moment of the month, and the first one of the next.
    let now = shop.app.clock.now();
    let first = (now.date_naive().with_day(1).unwrap() + Months::new(1)).and_time(NaiveTime::MIN).and_utc();
    agency.pass(first - now - TimeDelta::minutes(5));
    agency.top_up().await;
    assert_eq!((agency.charges(), &agency.standing().await["isCapped"]), (4, &json!(true)));
    agency.pass(TimeDelta::minutes(6));
    let standing = agency.standing().await;
    assert_eq!((&standing["isCapped"], &standing["spentThisMonthMinor"]), (&json!(false), &json!(0)));
    for _ in 0..6 {
        agency.top_up().await;
    }
    assert_eq!((agency.charges(), agency.available().await), (8, 2100));
    assert_eq!(agency.standing().await["spentThisMonthMinor"], 10_000);
    let keys: Vec<String> = sqlx::query_scalar("select request_key from purchases where is_auto order by id")
        .fetch_all(&mut shop.app.master().await)
        .await
        .unwrap();
    let organization = shop.owner.organization_id();
    let month = |moment: chrono::DateTime<chrono::Utc>| moment.format("%Y-%m").to_string();
    assert_eq!(keys[3], format!("topup:{organization}:{}:4", month(now)));
    assert_eq!(keys[4], format!("topup:{organization}:{}:1", month(first)));
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_month_was_to_pay_another_does_not() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    agency.card(GOOD).await;
    agency.rule(400, "starter", 2500).await;
    let now = shop.app.clock.now();
    let first = (now.date_naive().with_day(1).unwrap() + Months::new(1)).and_time(NaiveTime::MIN).and_utc();
    agency.pass(first - now - TimeDelta::minutes(5));
    shop.provider.fail_next([ApiFault::Before(503)]);
    agency.top_up().await;
    assert_eq!(agency.states().await, ["created"]);
    // It would be paid in the month that then pays for another one, too.
    agency.pass(TimeDelta::minutes(10));
    agency.top_up().await;
    assert_eq!((agency.payments(), agency.states().await), (0, vec!["created".to_owned()]));
    agency.pass(TimeDelta::hours(26));
    agency.top_up().await;
    agency.top_up().await;
    assert_eq!((agency.charges(), agency.states().await), (1, vec!["expired".to_owned(), "completed".to_owned()]));
    assert_eq!(agency.standing().await["spentThisMonthMinor"], 2500);
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_is_paid_in_one_currency() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    let pack = kernel::CreditPackId::new(shop.app.clock.now());
    sqlx::query(
        "insert into credit_packs (id, code, version, name, credits, price_minor, currency, tax_code, created_at)
         values ($1, 'yonder', 1, 'Yonder', 500, 2500, 'USD', 'txcd_10000000', now())",
    )
    .bind(pack.as_uuid())
    .execute(&mut shop.app.master().await)
    .await
    .unwrap();
    let put = async |pack: Value| {
        agency.put(RULE, json!({ "threshold": 400, "packId": pack, "monthlyCapMinor": 2500 })).await
    };
    let starter = &shop.packs["starter"]["id"];
    agency.card(DECLINED).await;
    put(starter.clone()).await.expect_status(200);
    agency.top_up().await;
    // What was not paid is in no currency.
    put(json!(pack)).await.expect_status(200);
    put(starter.clone()).await.expect_status(200);
    agency.card(GOOD).await;
    agency.top_up().await;
    assert_eq!(agency.charges(), 1);
    put(json!(pack)).await.expect_field(422, "invalid-input", "/packId");
    // Neither is the rule forgotten by being removed.
    shop.owner.api.delete(RULE).await.expect_status(204);
    put(json!(pack)).await.expect_field(422, "invalid-input", "/packId");
    put(starter.clone()).await.expect_status(200);
    agency.pass(TimeDelta::days(31));
    put(json!(pack)).await.expect_status(200);
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_ten_purchases_a_rule_waits_for_the_next_day() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    agency.card(DECLINED).await;
    agency.rule(50_000, "starter", 1_000_000).await;
    // What fails is counted with what does not.
    agency.top_up().await;
    agency.card(GOOD).await;
    for _ in 0..12 {
        agency.top_up().await;
    }
    assert_eq!((agency.payments(), agency.charges()), (10, 9));
    let standing = agency.standing().await;
    let tomorrow = (shop.app.clock.now().date_naive() + Days::new(1)).and_time(NaiveTime::MIN).and_utc();
    let next: chrono::DateTime<chrono::Utc> = text(&standing["nextAttemptAt"]).parse().unwrap();
    assert_eq!(
        (&standing["heldBackBy"], &standing["isCapped"], next),
        (&json!("daily_limit"), &json!(false), tomorrow)
    );
    // Setting the rule does not make the day longer, and it is told once.
    agency.rule(50_000, "starter", 1_000_000).await;
    agency.top_up().await;
    assert_eq!(agency.payments(), 10);
    let told = agency.told("credits.top_up_capped").await;
    assert_eq!((told.len(), &told[0]["reason"], &told[0]["attempts"]), (1, &json!("daily_limit"), &json!(10)));
    agency.pass(tomorrow - shop.app.clock.now() + TimeDelta::minutes(1));
    agency.top_up().await;
    assert_eq!((agency.charges(), &agency.standing().await["heldBackBy"]), (10, &Value::Null));
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credits_that_have_expired_do_not_count() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    let organization: OrganizationId = shop.owner.organization_id().parse().unwrap();
    let new = control_plane::credits::NewGrant {
        to: control_plane::credits::GrantTo::Organization(organization),
        kind: control_plane::credits::LotKind::Promotional,
        amount: 1000,
        expires_at: Some(shop.app.clock.now() + TimeDelta::hours(1)),
        reason: "for an hour".to_owned(),
    };
    control_plane::credits::grant(&shop.app.cx, control_plane::audit::Actor::Cli, &new, None).await.unwrap();
    agency.card(GOOD).await;
    agency.rule(500, "starter", 2500).await;
    agency.top_up().await;
    assert_eq!(agency.payments(), 0);
    agency.pass(TimeDelta::minutes(61));
    agency.top_up().await;
    assert_eq!((agency.charges(), agency.available().await), (1, 500));
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_that_is_declined_three_times_switches_the_rule_off_until_a_manager_sets_it() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    agency.card(DECLINED).await;
    agency.rule(500, "starter", 50_000).await;
    // An hour after the first, six hours after the second.
    for (declines, wait) in [(1_usize, TimeDelta::hours(1)), (2, TimeDelta::hours(6))] {
        agency.top_up().await;
        let standing = agency.standing().await;
        assert_eq!(
            (&standing["consecutiveDeclines"], &standing["lastFailure"], &standing["isEnabled"]),
            (&json!(declines), &json!("card_declined"), &json!(true))
        );
        let next: chrono::DateTime<chrono::Utc> = text(&standing["nextAttemptAt"]).parse().unwrap();
        assert!((next - shop.app.clock.now() - wait).abs() < TimeDelta::minutes(2), "{standing}");
        // Everything else that tells of it counts nothing more.
        shop.deliver_all().await;
        agency.pass(wait - TimeDelta::minutes(3));
        agency.top_up().await;
        assert_eq!(
            (agency.payments(), agency.standing().await["consecutiveDeclines"].clone()),
            (declines, json!(declines))
        );
        agency.pass(TimeDelta::minutes(4));
    }
    agency.top_up().await;
    let standing = agency.standing().await;
    assert_eq!(
        (&standing["isEnabled"], &standing["offReason"], &standing["consecutiveDeclines"]),
        (&json!(false), &json!("declined"), &json!(3))
    );
    agency.pass(TimeDelta::days(2));
    agency.top_up().await;
    assert_eq!((agency.payments(), agency.charges()), (3, 0));
    assert_eq!(agency.states().await, ["failed"; 3]);
    assert_eq!(agency.told("credits.top_up_failed").await.len(), 3);
    let off = agency.told("credits.top_up_off").await;
    assert_eq!((off.len(), &off[0]["reason"], &off[0]["failure"]), (1, &json!("declined"), &json!("card_declined")));
    assert_eq!(standing["spentThisMonthMinor"], 0);

    // The card that was declined, set once more, is no other one.
    let declined = agency.card(DECLINED).await;
    agency.rule(500, "starter", 50_000).await;
    agency.top_up().await;
    let before = agency.standing().await;
    agency.put(CARD, json!({ "paymentMethod": declined })).await.expect_status(200);
    agency.top_up().await;
    let standing = agency.standing().await;
    assert_eq!((&standing["consecutiveDeclines"], &standing["heldBackBy"]), (&json!(1), &json!("declined")));
    assert_eq!((agency.payments(), &standing["nextAttemptAt"]), (4, &before["nextAttemptAt"]));
    let mut off = agency.rule_body(500, "starter", 50_000);
    off["isEnabled"] = json!(false);
    agency.put(RULE, off).await.expect_status(200);

    // Another card alone does not switch it on; a manager does, and nothing of before counts.
    agency.card(GOOD).await;
    agency.top_up().await;
    assert_eq!(agency.payments(), 4);
    agency.card(DECLINED).await;
    agency.rule(500, "starter", 50_000).await;
    agency.top_up().await;
    assert_eq!(agency.standing().await["consecutiveDeclines"], 1);
    // While it waits, another card is tried at once, and success forgets.
    agency.card(GOOD).await;
    agency.top_up().await;
    let standing = agency.standing().await;
    assert_eq!((&standing["consecutiveDeclines"], &standing["lastFailure"]), (&json!(0), &Value::Null));
    assert_eq!((agency.charges(), agency.available().await), (1, 500));
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bank_that_asks_for_the_owner_is_told_of_and_waited_for() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    agency.card(AUTHENTICATION).await;
    agency.rule(500, "starter", 50_000).await;
    agency.top_up().await;
    let standing = agency.standing().await;
    assert_eq!(
        (&standing["consecutiveDeclines"], &standing["lastFailure"], &standing["inFlight"]),
        (&json!(1), &json!("authentication_required"), &Value::Null)
    );
    agency.top_up().await;
    assert_eq!(agency.payments(), 1);

    // A provider that leaves the payment open instead: it is given up, so that nobody pays for it later.
    shop.provider.ask_absent_owners(true);
    agency.pass(TimeDelta::minutes(61));
    agency.top_up().await;
    assert_eq!(shop.provider.objects("payment_intent")[1]["status"], "canceled");
    assert_eq!(agency.standing().await["consecutiveDeclines"], 2);
    assert_eq!(agency.states().await, ["failed"; 2]);

    // So too when its answer was lost and a webhook tells of it.
    agency.rule(500, "starter", 50_000).await;
    shop.provider.fail_next([ApiFault::After500]);
    agency.top_up().await;
    assert_eq!(agency.states().await, ["failed", "failed", "created"]);
    shop.deliver_all().await;
    let standing = agency.standing().await;
    assert_eq!(
        (&standing["inFlight"]["state"], &standing["consecutiveDeclines"]),
        (&json!("requires_action"), &json!(0))
    );
    agency.pass(TimeDelta::minutes(2));
    agency.top_up().await;
    assert_eq!(shop.provider.objects("payment_intent")[2]["status"], "canceled");
    assert_eq!(agency.states().await, ["failed"; 3]);
    let told = agency.told("credits.top_up_needs_authentication").await;
    assert_eq!((told.len(), &told[2]["failure"]), (3, &json!("authentication_required")));
    assert_eq!(agency.told("credits.top_up_failed").await, Vec::<Value>::new());
    // The owner was asked after all, and paid with another card.
    agency.card(GOOD).await;
    agency.top_up().await;
    assert_eq!((agency.payments(), agency.charges(), agency.available().await), (4, 1, 500));
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_is_looked_for_and_paid_once() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    agency.card(GOOD).await;
    agency.rule(400, "starter", 50_000).await;
    // Late: it is not asked for again, but found when there is time.
    shop.provider.fail_next([ApiFault::LateAnswer(Duration::from_secs(4))]);
    agency.top_up().await;
    assert_eq!((agency.payments(), agency.available().await), (1, 0));
    agency.pass(TimeDelta::seconds(61));
    agency.top_up().await;
    assert_eq!((agency.payments(), agency.available().await), (1, 500));
    shop.spend("a", 500).await;

    // Done, and answered 500 for ever: it is found by what it is about.
    shop.provider.fail_next([ApiFault::After500]);
    agency.top_up().await;
    let standing = agency.standing().await;
    assert_eq!((&standing["inFlight"]["state"], &standing["consecutiveDeclines"]), (&json!("created"), &json!(0)));
    assert_eq!((&standing["inFlight"]["isAutomatic"], &standing["spentThisMonthMinor"]), (&json!(true), &json!(5000)));
    // Nothing more is bought while it is not known.
    agency.top_up().await;
    assert_eq!(agency.payments(), 2);
    agency.pass(TimeDelta::seconds(61));
    agency.top_up().await;
    assert_eq!((agency.payments(), agency.charges(), agency.available().await), (2, 2, 500));
    shop.spend("b", 500).await;

    // Never done: asked for again.
    shop.provider.fail_next([ApiFault::Before(503)]);
    agency.top_up().await;
    assert_eq!((agency.payments(), agency.standing().await["inFlight"]["state"].clone()), (2, json!("created")));
    agency.pass(TimeDelta::seconds(61));
    agency.top_up().await;
    assert_eq!((agency.charges(), agency.available().await), (3, 500));
    shop.spend("c", 500).await;

    // Too many calls for the provider, so that it was not done: asked for again at once.
    shop.provider.fail_next([ApiFault::Before(429), ApiFault::Before(429)]);
    agency.top_up().await;
    assert_eq!((agency.charges(), agency.available().await), (4, 500));
    shop.spend("d", 500).await;

    // A platform whose own key is refused says nothing about the card.
    shop.provider.fail_next([ApiFault::Before(401)]);
    agency.top_up().await;
    assert_eq!(agency.standing().await["inFlight"]["state"], "created");
    agency.pass(TimeDelta::seconds(61));
    agency.top_up().await;
    assert_eq!((agency.charges(), agency.available().await), (5, 500));
    assert_eq!(agency.told("credits.top_up_failed").await, Vec::<Value>::new());
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_day_a_payment_is_looked_for_and_never_asked_for_again() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    agency.card(GOOD).await;
    agency.rule(400, "starter", 50_000).await;
    // Done, and found a day later, when the provider has forgotten the key.
    shop.provider.fail_next([ApiFault::After500]);
    agency.top_up().await;
    agency.pass(TimeDelta::hours(30));
    purchases::jobs::sweep(&shop.app.cx).await.unwrap();
    assert_eq!((agency.charges(), agency.available().await), (1, 500));
    shop.spend("a", 500).await;

    // Never done: a day later it is looked for, then it comes to nothing, and the rule decides anew.
    shop.provider.fail_next([ApiFault::Before(500)]);
    agency.top_up().await;
    agency.pass(TimeDelta::minutes(24 * 60 + 10));
    agency.top_up().await;
    assert_eq!((agency.payments(), agency.states().await), (1, vec!["completed".to_owned(), "created".to_owned()]));
    agency.pass(TimeDelta::hours(1));
    agency.top_up().await;
    assert_eq!((agency.charges(), agency.available().await), (2, 500));
    assert_eq!(agency.states().await, ["completed", "expired", "completed"]);
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_down_is_not_asked_for_once_it_is_not_wanted_any_more() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    let order = || async {
        shop.provider.fail_next([ApiFault::Before(503)]);
        agency.top_up().await;
        assert_eq!(agency.standing().await["inFlight"]["state"], "created");
    };
    let expect_nothing_asked = || async {
        let before = agency.payments();
        agency.pass(TimeDelta::seconds(61));
        agency.top_up().await;
        purchases::jobs::sweep(&shop.app.cx).await.unwrap();
        assert_eq!((agency.payments(), agency.charges(), agency.available().await), (before, 0, 0));
    };
    let give_up = async |states: &[&str]| {
        agency.pass(TimeDelta::hours(26));
        agency.top_up().await;
        assert_eq!(agency.states().await, states);
    };

    // The card is removed, and the provider has not heard of that: it could be charged.
    let removed = agency.card(GOOD).await;
    agency.rule(400, "starter", 50_000).await;
    order().await;
    shop.provider.fail_next((0..4).map(|_| ApiFault::Before(503)));
    shop.owner.api.delete(CARD).await.expect_status(204);
    assert!(shop.provider.object(&removed).unwrap()["customer"].is_string());
    expect_nothing_asked().await;
    give_up(&["expired"]).await;

    // The rule is off, or gone.
    agency.card(GOOD).await;
    agency.rule(400, "starter", 50_000).await;
    order().await;
    let mut off = agency.rule_body(400, "starter", 50_000);
    off["isEnabled"] = json!(false);
    agency.put(RULE, off).await.expect_status(200);
    expect_nothing_asked().await;
    shop.owner.api.delete(RULE).await.expect_status(204);
    expect_nothing_asked().await;
    give_up(&["expired"; 2]).await;

    // Another card is in its place: with that one the rule decides anew when what was written down is over.
    agency.rule(400, "starter", 50_000).await;
    order().await;
    let other = agency.card(GOOD).await;
    expect_nothing_asked().await;
    give_up(&["expired", "expired", "expired", "completed"]).await;
    assert_eq!((agency.payments(), agency.charges(), agency.available().await), (1, 1, 500));
    assert_eq!(shop.provider.objects("payment_intent")[0]["payment_method"], json!(other));

    // What was asked for before is followed, whatever became of the card.
    shop.spend("all", 500).await;
    shop.provider.fail_next([ApiFault::After500]);
    agency.top_up().await;
    shop.owner.api.delete(CARD).await.expect_status(204);
    agency.pass(TimeDelta::seconds(61));
    agency.top_up().await;
    assert_eq!((agency.payments(), agency.charges(), agency.available().await), (2, 2, 500));
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn money_that_goes_back_or_is_disputed_is_not_asked_for_again() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    let intent = |nth: usize| text(&shop.provider.objects("payment_intent")[nth]["id"]).to_owned();
    let expect_off = async |reason: &str, charges: usize| {
        for _ in 0..2 {
            agency.top_up().await;
        }
        let standing = agency.standing().await;
        assert_eq!((&standing["isEnabled"], &standing["offReason"]), (&json!(false), &json!(reason)));
        assert_eq!((&standing["heldBackBy"], agency.charges()), (&Value::Null, charges));
        let told = agency.told("credits.top_up_off").await;
        assert_eq!(told.last().map(|told| &told["reason"]), Some(&json!(reason)));
    };
    agency.card(GOOD).await;

    // In the provider's dashboard.
    agency.rule(400, "starter", 50_000).await;
    agency.top_up().await;
    shop.provider.refund(&intent(0), 2500).unwrap();
    shop.deliver_all().await;
    assert_eq!(agency.available().await, 0);
    expect_off("refunded", 1).await;

    // By ops, a part of it.
    agency.rule(400, "starter", 50_000).await;
    agency.top_up().await;
    let purchases = agency.get("/api/credits/purchases").await.expect_status(200);
    let path = format!("/api/ops/credits/purchases/{}/refund", text(&purchases["data"][0]["id"]));
    let ops = shop.app.owner("ops").await;
    control_plane::identity::admin_grant(&shop.app.cx, control_plane::audit::Actor::Cli, &ops.email).await.unwrap();
    ops.api.with("idempotency-key", "a").post(&path, json!({ "amountMinor": 1250 })).await.expect_status(201);
    assert_eq!(agency.available().await, 250);
    expect_off("refunded", 2).await;

    // Disputed, and once more when it is lost.
    agency.rule(400, "starter", 50_000).await;
    agency.top_up().await;
    let dispute = shop.provider.dispute_open(&intent(2), None).unwrap();
    shop.deliver_all().await;
    expect_off("disputed", 3).await;
    shop.provider.dispute_close(&dispute, false).unwrap();
    shop.deliver_all().await;
    assert_eq!(agency.told("credits.top_up_off").await.len(), 3);

    // What somebody bought themselves says nothing about the rule.
    let order = shop.buy("by-hand", "growth").await;
    agency.rule(400, "starter", 50_000).await;
    shop.provider.refund(&shop.intent(&order), 1150).unwrap();
    shop.deliver_all().await;
    assert_eq!(agency.standing().await["isEnabled"], true);
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn debt_is_not_repaid_with_a_card_that_nobody_took_out() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    agency.card(GOOD).await;
    let order = shop.buy("by-hand", "starter").await;
    shop.spend("all", 500).await;
    agency.rule(400, "starter", 50_000).await;
    shop.provider.refund(&shop.intent(&order), 500).unwrap();
    shop.deliver_all().await;
    assert_eq!(shop.amounts().await, [0, 0, 100]);
    let charges = agency.charges();
    agency.top_up().await;
    let standing = agency.standing().await;
    assert_eq!((&standing["isEnabled"], &standing["heldBackBy"]), (&json!(true), &json!("debt")));
    assert_eq!((agency.charges(), agency.states().await), (charges, Vec::new()));
    // Whoever repays it has it go on.
    shop.buy("more", "starter").await;
    assert_eq!(agency.standing().await["heldBackBy"], Value::Null);
    shop.spend("some", 100).await;
    agency.top_up().await;
    assert_eq!((agency.charges(), shop.amounts().await), (charges + 2, [800, 0, 0]));
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_dies_before_the_provider_is_reached_leaves_one_charge_to_others() {
    let provider = TestPayments::start(TestPaymentsOptions::default()).await.unwrap();
    let proxy = ChaosProxy::to(SocketAddr::from(([127, 0, 0, 1], provider.address().port()))).await;
    let through = format!("http://127.0.0.1:{}", proxy.port);
    let agency = Agency::at(provider, &["--stripe-api-url", &through]).await;
    let shop = &agency.shop;
    agency.card(GOOD).await;
    agency.rule(400, "starter", 50_000).await;
    let written = || async {
        let unfinished = "select count(*) from purchases where is_auto and state = 'created'";
        (count(&shop.app, unfinished).await == 1).then_some(())
    };

    // The provider cannot be reached at all.
    proxy.cut();
    agency.top_up().await;
    written().await.unwrap();
    proxy.mend();
    agency.pass(TimeDelta::seconds(61));
    purchases::jobs::sweep(&shop.app.cx).await.unwrap();
    assert_eq!((agency.payments(), agency.charges(), agency.available().await), (1, 1, 500));
    shop.spend("a", 500).await;

    // Somebody dies while they wait for it, and their call arrives all the same, or does not.
    proxy.stall();
    let cx = shop.app.cx.clone();
    let dying = tokio::spawn(async move { topups::jobs::top_up(&cx).await });
    eventually("the purchase", written).await;
    dying.abort();
    assert!(dying.await.unwrap_err().is_cancelled());
    proxy.mend();
    let arguments = arguments_of(&shop.provider);
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.extend(["--top-up-poll-ms", "5"]);
    agency.pass(TimeDelta::seconds(61));
    let other = shop.app.other_node_with(&arguments).await;
    eventually("the credits", || async { (agency.available().await == 500).then_some(()) }).await;
    other.stop().await;
    assert_eq!((agency.payments(), agency.charges()), (2, 2));
    let metrics = shop.app.internal().get("/metrics").await.text();
    for outcome in ["ordered", "completed", "unanswered"] {
        assert!(metrics.contains(&format!("tenantry_top_ups_total{{outcome=\"{outcome}\"}}")), "{outcome}: {metrics}");
    }
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_to_a_top_up_is_told_at_the_agencys_endpoints() {
    let agency = Agency::open().await;
    let receiver = Receiver::start().await;
    let kinds = ["credits.top_up_failed", "credits.top_up_off", "credits.purchase_ended", "credits.purchase_completed"];
    let body = json!({ "url": receiver.url("/"), "eventTypes": kinds });
    agency.shop.owner.api.post("/api/webhooks/endpoints", body).await.expect_status(201);
    agency.card(DECLINED).await;
    agency.rule(500, "starter", 50_000).await;
    agency.top_up().await;
    agency.card(GOOD).await;
    agency.top_up().await;
    agency.shop.owner.api.delete(CARD).await.expect_status(204);
    let told: Vec<Value> = receiver.wait_for(4).await.iter().map(Received::json).collect();
    let told_kinds: Vec<&str> = told.iter().map(|event| text(&event["type"])).collect();
    assert_eq!(
        told_kinds,
        ["credits.purchase_ended", "credits.top_up_failed", "credits.purchase_completed", "credits.top_up_off"]
    );
    assert!(text(&told[1]["data"]["purchaseId"]).starts_with("pur_"), "{}", told[1]);
    agency.expect_sound().await;
}
