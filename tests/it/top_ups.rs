//! Automatic top-up: one pack at a time, one charge for each, within the cap, and never without the organization knowing.

use chrono::{Datelike as _, Days, Months, NaiveTime, TimeDelta};
use control_plane::credits::topups;
use devkit::payments::{ApiFault, TestPayments, TestPaymentsOptions};
use http::Method;
use integration_tests::{Owner, Received, Receiver, Response, eventually, within};
use kernel::{Clock as _, OrganizationId};
use serde_json::{Value, json};

use crate::credits::give;
use crate::purchases::{Shop, arguments_of};
use crate::scenes::{count, text};

pub(crate) const GOOD: &str = "4242424242424242";
pub(crate) const DECLINED: &str = "4000000000000341";
pub(crate) const AUTHENTICATION: &str = "4000002500003155";
pub(crate) const CARD: &str = "/api/credits/payment-method";
pub(crate) const RULE: &str = "/api/credits/top-up";

/// An agency that buys by itself. Nothing happens by itself but what a test calls for.
pub(crate) struct Agency {
    pub(crate) shop: Shop,
    store: Value,
}

impl Agency {
    pub(crate) async fn open() -> Self {
        Self::at(TestPayments::start(TestPaymentsOptions::default()).await.unwrap(), &[]).await
    }

    pub(crate) async fn at(provider: TestPayments, more: &[&str]) -> Self {
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
    pub(crate) fn pass(&self, time: TimeDelta) {
        self.shop.app.clock.advance(time);
        self.shop.provider.advance(time.to_std().unwrap());
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Response {
        self.shop.owner.api.send(Method::PUT, path, Some(body)).await
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.shop.owner.api.get(path).await
    }

    /// Takes a card down as a page of the agency's own does; its name at the provider.
    pub(crate) async fn take_down(&self, owner: &Owner, number: &str) -> String {
        let setup = owner.api.send(Method::POST, &format!("{CARD}/setup"), None).await.expect_status(201);
        assert!(text(&setup["clientSecret"]).starts_with(text(&setup["id"])));
        self.shop.provider.fill_in(text(&setup["id"]), number).unwrap()
    }

    pub(crate) async fn card(&self, number: &str) -> String {
        let method = self.take_down(&self.shop.owner, number).await;
        self.put(CARD, json!({ "paymentMethod": method })).await.expect_status(200);
        method
    }

    pub(crate) fn rule_body(&self, threshold: i64, pack: &str, cap: i64) -> Value {
        json!({ "threshold": threshold, "packId": self.shop.packs[pack]["id"], "monthlyCapMinor": cap })
    }

    pub(crate) async fn rule(&self, threshold: i64, pack: &str, cap: i64) -> Value {
        self.put(RULE, self.rule_body(threshold, pack, cap)).await.expect_status(200)
    }

    pub(crate) async fn standing(&self) -> Value {
        self.get(RULE).await.expect_status(200)
    }

    pub(crate) async fn top_up(&self) {
        topups::jobs::top_up(&self.shop.app.cx).await.unwrap();
    }

    pub(crate) async fn available(&self) -> i64 {
        self.shop.amounts().await[0]
    }

    /// The automatic payments that the provider knows of, those counted that failed.
    pub(crate) fn payments(&self) -> usize {
        self.shop.provider.objects("payment_intent").len()
    }

    pub(crate) fn charges(&self) -> usize {
        self.shop.provider.objects("charge").len()
    }

    /// What was told of a kind, oldest first.
    pub(crate) async fn told(&self, kind: &str) -> Vec<Value> {
        sqlx::query_scalar("select data from outbox_events where type = $1 order by seq")
            .bind(kind)
            .fetch_all(&mut self.shop.app.master().await)
            .await
            .unwrap()
    }

    /// The states of the automatic purchases, oldest first.
    pub(crate) async fn states(&self) -> Vec<String> {
        sqlx::query_scalar("select state from purchases where is_auto order by id")
            .fetch_all(&mut self.shop.app.master().await)
            .await
            .unwrap()
    }

    /// Fails unless everything that the provider tells is followed and changes nothing any more, both sets of books agree, and
    /// every invariant of the ledger holds.
    pub(crate) async fn expect_sound(&self) {
        let before = (self.shop.amounts().await, self.states().await);
        self.shop.deliver_all().await;
        assert_eq!((self.shop.amounts().await, self.states().await), before);
        self.shop.expect_reconciled().await;
        self.shop.expect_proven().await;
    }
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
