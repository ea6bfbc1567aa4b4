//! The product's own purchases at localstripe, unmodified: a card is left, credits run out, a pack is paid for, money goes back.
//! It knows no Checkout, so what is bought is bought by itself; it knows no keys against repetition either, so that whatever is
//! done once here is so by our own doing.

use chrono::TimeDelta;
use control_plane::credits::{purchases, topups};
use http::Method;
use integration_tests::{ChaosProxy, Owner, Received, Response, eventually, within};
use serde_json::{Value, json};

use crate::localstripe::{AUTHENTICATION, DECLINED, GOOD, Provider, Relay, SECRET, arguments};
use crate::purchases::{expect_proven, webhook_url};
use crate::scenes::{count, text};

const CARD: &str = "/api/credits/payment-method";
const RULE: &str = "/api/credits/top-up";
/// What the pack of these tests holds and costs.
const CREDITS: i64 = 500;
const PRICE: i64 = 2500;

/// A node that reaches localstripe through somebody who may lose what is said.
async fn behind_proxy() -> (Relay, ChaosProxy) {
    let provider = Provider::start().await;
    let proxy = ChaosProxy::to(provider.localstripe.address).await;
    let relay = Relay::at(provider, &["--stripe-api-url", &format!("http://127.0.0.1:{}", proxy.port)]).await;
    (relay, proxy)
}

async fn top_up(relay: &Relay) {
    topups::jobs::top_up(&relay.app.cx).await.unwrap();
}

/// So much later it is looked at what is under way.
fn a_minute_later(relay: &Relay) {
    relay.app.clock.advance(TimeDelta::seconds(61));
}

/// Fails unless every invariant of the ledger holds, and what localstripe says moved its account's money is what was booked
/// here, to the last unit; how many movements that are. Our reconciliation asks for a span of time, which localstripe refuses
/// with 400: its whole list is compared instead.
async fn expect_sound(relay: &Relay) -> usize {
    expect_proven(&relay.app).await;
    let movement = |moved: &Value| {
        let [kind, source, currency] = ["type", "source", "currency"].map(|name| text(&moved[name]).to_owned());
        assert_eq!((&moved["fee"], &moved["net"]), (&json!(0), &moved["amount"]));
        (kind, source, moved["amount"].as_i64().unwrap(), currency)
    };
    let mut theirs: Vec<_> = relay.provider.list("balance_transactions").await.iter().map(movement).collect();
    theirs.sort_unstable();
    let booked =
        "select kind, external_ref, amount_minor, lower(currency) from cash_entries order by kind, external_ref";
    let mut ours: Vec<(String, String, i64, String)> =
        sqlx::query_as(booked).fetch_all(&mut relay.app.master().await).await.unwrap();
    ours.sort_unstable();
    assert_eq!(ours, theirs);
    theirs.len()
}

/// An agency that buys by itself.
struct Agency<'a> {
    relay: &'a Relay,
    owner: Owner,
    store: Value,
}

impl<'a> Agency<'a> {
    async fn open(relay: &'a Relay, name: &str) -> Self {
        let owner = relay.app.owner(name).await;
        let store = owner.create_store(&format!("tea-of-{name}")).await.expect_status(201);
        Self { relay, owner, store }
    }

    async fn get(&self, path: &str) -> Value {
        self.owner.api.get(path).await.expect_status(200)
    }

    async fn put(&self, path: &str, body: Value) -> Value {
        self.owner.api.send(Method::PUT, path, Some(body)).await.expect_status(200)
    }

    /// Leaves a card, as the agency's own page does with the provider's part in the browser.
    async fn card(&self, number: &str) {
        let setup = self.owner.api.send(Method::POST, &format!("{CARD}/setup"), None).await.expect_status(201);
        let localstripe = &self.relay.provider.localstripe;
        let [id, secret, customer] = ["id", "clientSecret", "customer"].map(|name| text(&setup[name]));
        let method = localstripe.fill_in(id, secret, customer, number).await;
        let card = self.put(CARD, json!({ "paymentMethod": method })).await;
        assert_eq!((&card["brand"], &card["last4"]), (&json!("visa"), &json!(&number[12..])));
    }

    /// Has a pack bought whenever fewer credits are left than that.
    async fn rule(&self, threshold: i64) {
        let packs = self.get("/api/credits/packs").await;
        let pack = packs["data"].as_array().unwrap().iter().find(|pack| pack["code"] == "starter").unwrap();
        let holds = [&pack["credits"], &pack["bonusCredits"], &pack["priceMinor"]];
        assert_eq!(holds, [&json!(CREDITS), &json!(0), &json!(PRICE)]);
        self.put(RULE, json!({ "threshold": threshold, "packId": pack["id"], "monthlyCapMinor": 1_000_000 })).await;
    }

    async fn give(&self, amount: i64) {
        crate::credits::give(&self.relay.app, &self.store, amount).await;
    }

    async fn spend(&self, key: &str, amount: i64) {
        let body = json!({ "storeId": self.store["id"], "amount": amount });
        self.owner.api.with("idempotency-key", key).post("/api/credits/spend", body).await.expect_status(201);
    }

    async fn available(&self) -> i64 {
        self.get("/api/credits/balance").await["available"].as_i64().unwrap()
    }

    async fn purchases(&self) -> Vec<Value> {
        self.get("/api/credits/purchases").await["data"].as_array().unwrap().clone()
    }

    /// The states of its purchases, oldest first.
    async fn states(&self) -> Vec<String> {
        self.purchases().await.iter().rev().map(|purchase| text(&purchase["state"]).to_owned()).collect()
    }

    /// What it was told, oldest first.
    async fn told(&self) -> Vec<String> {
        let organization: kernel::OrganizationId = self.owner.organization_id().parse().unwrap();
        sqlx::query_scalar(
            "select type from outbox_events where organization_id = $1 and type like 'credits.%' order by seq",
        )
        .bind(organization.as_uuid())
        .fetch_all(&mut self.relay.app.master().await)
        .await
        .unwrap()
    }

    /// Everything of its account that must be the same however a purchase came to its end.
    async fn ledger(&self) -> Value {
        let pick = |of: &Value, names: &[&str]| -> Value {
            names.iter().map(|&name| (name.to_owned(), of[name].clone())).collect::<serde_json::Map<_, _>>().into()
        };
        let all = |of: &Value, names: &[&str]| -> Vec<Value> {
            of.as_array().unwrap().iter().map(|one| pick(one, names)).collect()
        };
        let balance = self.get("/api/credits/balance").await;
        let transactions = self.get("/api/credits/transactions").await;
        let purchase =
            ["state", "failure", "credits", "amountMinor", "refundedMinor", "refundedCredits", "isAutomatic"];
        json!({
            "balance": pick(&balance, &["available", "held", "debt"]),
            "lots": all(&balance["lots"], &["kind", "granted", "remaining", "held"]),
            "transactions": all(&transactions["data"], &["version", "kind", "status", "amount", "balanceAfter"]),
            "purchases": all(&Value::from(self.purchases().await), &purchase),
            "topUp": pick(&self.get(RULE).await, &["isEnabled", "consecutiveDeclines", "lastFailure", "inFlight"]),
            "told": self.told().await,
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credits_that_run_out_on_two_nodes_are_bought_once() {
    let provider = Provider::start().await;
    let relay = Relay::at(provider, &["--top-up-poll-ms", "5"]).await;
    relay.provider.localstripe.send_webhooks(&webhook_url(&relay.app), SECRET).await;
    let mut at_it = arguments(&relay.provider.localstripe);
    at_it.extend(["--top-up-poll-ms", "5"].map(str::to_owned));
    let at_it: Vec<&str> = at_it.iter().map(String::as_str).collect();
    let other = relay.app.other_node_with(&at_it).await;
    let agency = Agency::open(&relay, "ada").await;
    agency.give(600).await;
    agency.card(GOOD).await;
    agency.rule(500).await;

    let mut spends = tokio::task::JoinSet::new();
    for number in 0..20 {
        let address = if number % 2 == 0 { relay.app.address } else { other.address };
        let api = agency.owner.at(address).api.with("idempotency-key", &format!("spend-{number}"));
        let body = json!({ "storeId": agency.store["id"], "amount": 10 });
        spends.spawn(async move { api.post("/api/credits/spend", body).await });
    }
    for answer in within("the spends", spends.join_all()).await {
        answer.expect_status(201);
    }
    eventually("the credits", || async { (agency.available().await == 400 + CREDITS).then_some(()) }).await;
    // What the webhook tells afterwards is known by then.
    eventually("the webhook", || async {
        let followed = "select count(*) from stripe_events where type = 'payment_intent.succeeded' and state = 'done'";
        (count(&relay.app, followed).await == 1).then_some(())
    })
    .await;
    other.stop().await;

    let intents = relay.provider.list("payment_intents").await;
    let [paid] = intents.as_slice() else { panic!("{intents:?}") };
    assert_eq!(
        (&paid["status"], &paid["amount"], &paid["currency"]),
        (&json!("succeeded"), &json!(PRICE), &json!("eur"))
    );
    assert_eq!(relay.provider.list("charges").await.len(), 1);
    let purchases = agency.purchases().await;
    let [purchase] = purchases.as_slice() else { panic!("{purchases:?}") };
    assert_eq!((&purchase["state"], &purchase["isAutomatic"]), (&json!("completed"), &json!(true)));
    assert_eq!(paid["metadata"]["purchase_id"], purchase["id"]);
    let granted = agency.get("/api/credits/transactions?kind=purchase").await;
    assert_eq!((granted["data"].as_array().unwrap().len(), &granted["data"][0]["amount"]), (1, &json!(CREDITS)));
    assert_eq!(granted["data"][0]["id"], purchase["transactionId"]);
    assert_eq!(agency.told().await, ["credits.purchase_completed"]);
    assert_eq!(agency.available().await, 400 + CREDITS);
    assert_eq!(expect_sound(&relay).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_that_is_declined_is_tried_three_times_and_charged_never() {
    let relay = Relay::at(Provider::start().await, &[]).await;
    let agency = Agency::open(&relay, "ada").await;
    agency.give(600).await;
    agency.card(DECLINED).await;
    agency.rule(500).await;
    top_up(&relay).await;
    assert_eq!(relay.provider.list("payment_intents").await.len(), 0);
    agency.spend("across", 150).await;
    // An hour after the first, six hours after the second.
    for (declines, wait) in [(1_usize, TimeDelta::hours(1)), (2, TimeDelta::hours(6))] {
        top_up(&relay).await;
        let standing = agency.get(RULE).await;
        assert_eq!(
            (&standing["consecutiveDeclines"], &standing["lastFailure"], &standing["isEnabled"]),
            (&json!(declines), &json!("card_declined"), &json!(true))
        );
        relay.app.clock.advance(wait - TimeDelta::minutes(3));
        top_up(&relay).await;
        assert_eq!(relay.provider.list("payment_intents").await.len(), declines);
        relay.app.clock.advance(TimeDelta::minutes(4));
    }
    top_up(&relay).await;
    let standing = agency.get(RULE).await;
    assert_eq!(
        (&standing["isEnabled"], &standing["offReason"], &standing["consecutiveDeclines"]),
        (&json!(false), &json!("declined"), &json!(3))
    );
    relay.app.clock.advance(TimeDelta::days(2));
    top_up(&relay).await;
    let intents = relay.provider.list("payment_intents").await;
    assert_eq!(
        intents.iter().map(|intent| text(&intent["status"])).collect::<Vec<_>>(),
        ["requires_payment_method"; 3]
    );
    assert_eq!(agency.states().await, ["failed"; 3]);
    let mut told = ["credits.purchase_ended", "credits.top_up_failed"].repeat(3);
    told.push("credits.top_up_off");
    assert_eq!(agency.told().await, told);
    assert_eq!(agency.available().await, 450);
    assert_eq!(expect_sound(&relay).await, 0);

    // Another card is charged once a manager sets the rule again; what is told late of the first one is no news.
    agency.card(GOOD).await;
    agency.rule(500).await;
    top_up(&relay).await;
    let webhooks = relay.receiver.wait_for(1 + 4).await;
    for webhook in webhooks.iter().chain(&webhooks) {
        relay.pass_on(webhook).await.expect_problem(400, "invalid-signature");
        relay.sign_and_send(&webhook.body).await.expect_status(200);
    }
    top_up(&relay).await;
    assert_eq!(agency.states().await, ["failed", "failed", "failed", "completed"]);
    let standing = agency.get(RULE).await;
    assert_eq!(
        (&standing["isEnabled"], &standing["consecutiveDeclines"], &standing["lastFailure"]),
        (&json!(true), &json!(0), &Value::Null)
    );
    told.push("credits.purchase_completed");
    assert_eq!(agency.told().await, told);
    assert_eq!(agency.available().await, 450 + CREDITS);
    assert_eq!(expect_sound(&relay).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bank_that_asks_for_an_owner_who_is_not_there_is_told_of_and_nothing_is_charged() {
    let (relay, proxy) = behind_proxy().await;
    let agency = Agency::open(&relay, "ada").await;
    agency.give(600).await;
    agency.card(AUTHENTICATION).await;
    agency.rule(500).await;
    agency.spend("across", 150).await;
    top_up(&relay).await;
    // So too when nobody heard at first that the bank asks.
    relay.app.clock.advance(TimeDelta::minutes(61));
    proxy.lose_answers();
    top_up(&relay).await;
    assert_eq!(agency.states().await, ["failed", "created"]);
    assert_eq!(relay.provider.list("payment_intents").await[1]["status"], "requires_action");
    proxy.mend();
    a_minute_later(&relay);
    top_up(&relay).await;

    let intents = relay.provider.list("payment_intents").await;
    assert_eq!(intents.iter().map(|intent| text(&intent["status"])).collect::<Vec<_>>(), ["canceled"; 2]);
    // Nobody can pay for it later.
    for intent in &intents {
        assert_eq!(relay.provider.localstripe.authenticate(text(&intent["id"]), true).await.status, 400);
    }
    let purchases = agency.purchases().await;
    assert_eq!(purchases.len(), 2);
    for purchase in &purchases {
        let (state, failure) = (&purchase["state"], &purchase["failure"]);
        assert_eq!((state, failure), (&json!("failed"), &json!("authentication_required")));
    }
    let standing = agency.get(RULE).await;
    assert_eq!(
        (&standing["isEnabled"], &standing["consecutiveDeclines"], &standing["lastFailure"], &standing["inFlight"]),
        (&json!(true), &json!(2), &json!("authentication_required"), &Value::Null)
    );
    let each = ["credits.purchase_ended", "credits.top_up_needs_authentication"];
    assert_eq!(agency.told().await, each.repeat(2));
    assert_eq!(agency.available().await, 450);
    assert_eq!(relay.provider.list("charges").await, Vec::<Value>::new());
    assert_eq!(expect_sound(&relay).await, 0);
}

/// An agency with one purchase, paid for and whole, and no rule that buys another.
async fn paid<'a>(relay: &'a Relay, name: &str) -> Agency<'a> {
    let agency = Agency::open(relay, name).await;
    agency.card(GOOD).await;
    agency.rule(100).await;
    top_up(relay).await;
    assert_eq!(agency.states().await, ["completed"]);
    agency.owner.api.delete(RULE).await.expect_status(204);
    agency
}

/// The route by which ops give money of a purchase back, and the purchase's payment there.
async fn refunds_of(agency: &Agency<'_>) -> (String, String) {
    let purchase = agency.purchases().await.remove(0);
    let intents = agency.relay.provider.list("payment_intents").await;
    let intent = intents.iter().find(|intent| intent["metadata"]["purchase_id"] == purchase["id"]).unwrap();
    (format!("/api/ops/credits/purchases/{}/refund", text(&purchase["id"])), text(&intent["id"]).to_owned())
}

async fn refund(ops: &Owner, path: &str, key: &str, body: Value) -> Response {
    ops.api.with("idempotency-key", key).post(path, body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_unspent_goes_back_whatever_the_provider_would_give() {
    let relay = Relay::at(Provider::start().await, &[]).await;
    let agency = paid(&relay, "ada").await;
    agency.spend("some", 200).await;
    let ops = relay.app.admin().await;
    let (path, intent) = refunds_of(&agency).await;

    let problem = refund(&ops, &path, "all", json!({ "amountMinor": PRICE })).await;
    let problem = problem.expect_problem(409, "refund-exceeds-unspent");
    assert_eq!((&problem["unspent"], &problem["refundableMinor"]), (&json!(300), &json!(1500)));
    let given = refund(&ops, &path, "part", json!({ "amountMinor": 1000 })).await.expect_status(201);
    assert_eq!((&given["state"], &given["amountMinor"]), (&json!("succeeded"), &json!(1000)));
    assert_eq!(agency.available().await, 100);
    // Again under its key: it knows no keys, so only we can tell.
    let again = refund(&ops, &path, "part", json!({ "amountMinor": 1000 })).await;
    assert_eq!((again.header("idempotent-replayed"), &again.expect_status(201)["id"]), ("true", &given["id"]));
    // By default all that is left unspent; more is more than that, and much more is more than was paid.
    assert_eq!(refund(&ops, &path, "rest", json!({})).await.expect_status(201)["amountMinor"], 500);
    refund(&ops, &path, "spent", json!({ "amountMinor": 1000 })).await.expect_problem(409, "refund-exceeds-unspent");
    refund(&ops, &path, "more", json!({ "amountMinor": 1001 })).await.expect_problem(409, "refund-exceeds-paid");
    let owed = json!({ "amountMinor": 1001, "allowDebt": true });
    refund(&ops, &path, "owed", owed).await.expect_problem(409, "refund-exceeds-paid");

    let purchase = agency.purchases().await.remove(0);
    assert_eq!((&purchase["refundedMinor"], &purchase["refundedCredits"]), (&json!(1500), &json!(300)));
    let balance = agency.get("/api/credits/balance").await;
    assert_eq!((&balance["available"], &balance["held"], &balance["debt"]), (&json!(0), &json!(0), &json!(0)));
    let told = ["credits.purchase_completed", "credits.purchase_refunded", "credits.purchase_refunded"];
    assert_eq!(agency.told().await, told);
    assert_eq!(relay.provider.list("refunds").await.len(), 2);
    assert_eq!(relay.provider.list("charges").await[0]["amount_refunded"], 1500);
    assert_eq!(expect_sound(&relay).await, 3);

    // What we refused it would have done.
    let over = [("payment_intent", intent.as_str()), ("amount", "1001")];
    relay.provider.localstripe.post("/v1/refunds", &over).await.expect_status(200);
    assert_eq!(relay.provider.list("charges").await[0]["amount_refunded"], 2501);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_costs_nobody_twice() {
    let (relay, proxy) = behind_proxy().await;
    let agency = Agency::open(&relay, "ada").await;
    agency.give(600).await;
    agency.card(GOOD).await;
    agency.rule(500).await;
    agency.spend("a", 200).await;
    let payments = || async { relay.provider.list("payment_intents").await.len() };

    // It was paid, and nobody heard: it is not asked for again before it was looked for.
    proxy.lose_answers();
    top_up(&relay).await;
    top_up(&relay).await;
    assert_eq!(
        (payments().await, agency.available().await, agency.states().await),
        (1, 400, vec!["created".to_owned()])
    );
    // Nor while the answers to the looking are lost.
    a_minute_later(&relay);
    top_up(&relay).await;
    purchases::jobs::sweep(&relay.app.cx).await.unwrap();
    assert_eq!((payments().await, agency.states().await), (1, vec!["created".to_owned()]));
    proxy.mend();
    a_minute_later(&relay);
    top_up(&relay).await;
    assert_eq!((payments().await, agency.available().await), (1, 400 + CREDITS));
    agency.spend("b", 500).await;

    // It never arrived: it is asked for again, once.
    proxy.cut();
    top_up(&relay).await;
    assert_eq!((payments().await, agency.states().await), (1, vec!["completed".to_owned(), "created".to_owned()]));
    proxy.mend();
    a_minute_later(&relay);
    purchases::jobs::sweep(&relay.app.cx).await.unwrap();
    assert_eq!((payments().await, agency.available().await), (2, 400 + CREDITS));
    assert_eq!(agency.states().await, ["completed"; 2]);

    // Money that goes back goes once as well.
    let ops = relay.app.admin().await;
    let (path, _) = refunds_of(&agency).await;
    proxy.lose_answers();
    let asked = refund(&ops, &path, "back", json!({ "amountMinor": 1000 })).await.expect_status(201);
    assert_eq!((&asked["state"], agency.available().await), (&json!("requested"), 400 + CREDITS - 200));
    proxy.mend();
    let again = refund(&ops, &path, "back", json!({ "amountMinor": 1000 })).await.expect_status(201);
    assert_eq!((&again["state"], &again["id"]), (&json!("succeeded"), &asked["id"]));
    proxy.lose_answers();
    refund(&ops, &path, "more", json!({ "amountMinor": 500 })).await.expect_status(201);
    proxy.mend();
    relay.app.clock.advance(TimeDelta::minutes(5));
    purchases::jobs::sweep(&relay.app.cx).await.unwrap();
    assert_eq!(count(&relay.app, "select count(*) from purchase_refunds where state = 'succeeded'").await, 2);
    assert_eq!(relay.provider.list("refunds").await.len(), 2);
    assert_eq!(agency.available().await, 400 + CREDITS - 300);
    assert_eq!(expect_sound(&relay).await, 4);
}

/// Two agencies whose payments were answered to nobody: one that was paid, one that was declined; and the webhooks that tell of
/// them.
struct Round<'a> {
    relay: &'a Relay,
    paid: Agency<'a>,
    declined: Agency<'a>,
    webhooks: Vec<Received>,
}

impl<'a> Round<'a> {
    async fn begin(relay: &'a Relay, proxy: &ChaosProxy, name: &str) -> Self {
        let came_before = relay.receiver.received().len();
        let (paid, declined) = (
            Agency::open(relay, &format!("{name}-paid")).await,
            Agency::open(relay, &format!("{name}-declined")).await,
        );
        for (agency, card) in [(&paid, GOOD), (&declined, DECLINED)] {
            agency.give(600).await;
            agency.card(card).await;
            agency.rule(500).await;
            agency.spend(name, 200).await;
        }
        // The one whose answer is lost first may keep the other from being asked for in the same go.
        proxy.lose_answers();
        eventually("the purchases", || async {
            top_up(relay).await;
            let states = (paid.states().await, declined.states().await);
            (states.0 == ["created"] && states.1 == ["created"]).then_some(())
        })
        .await;
        proxy.mend();
        // Two customers, and what became of two payments.
        let webhooks = relay.receiver.wait_for(came_before + 4).await.split_off(came_before);
        let round = Self { relay, paid, declined, webhooks };
        round.expect_undecided().await;
        round
    }

    fn webhook(&self, kind: &str) -> &Received {
        self.webhooks.iter().find(|webhook| webhook.json()["type"] == kind).unwrap_or_else(|| panic!("no {kind}"))
    }

    /// Fails unless nothing is known of either payment.
    async fn expect_undecided(&self) {
        for agency in [&self.paid, &self.declined] {
            assert_eq!((agency.states().await, agency.available().await), (vec!["created".to_owned()], 400));
        }
    }

    async fn ledgers(&self) -> [Value; 2] {
        [self.paid.ledger().await, self.declined.ledger().await]
    }

    /// Brings everything as if the provider tried it again by now.
    async fn bring_again(&self) {
        for webhook in &self.webhooks {
            self.relay.sign_and_send(&webhook.body).await.expect_status(200);
        }
    }
}

/// The same event with another amount or outcome.
fn other_body(webhook: &Received, member: &str, value: Value) -> Vec<u8> {
    let mut event = webhook.json();
    assert_ne!(event["data"]["object"][member], value);
    event["data"]["object"][member] = value;
    event.to_string().into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn however_its_webhooks_come_the_ledger_is_the_same_in_the_end() {
    let (relay, proxy) = behind_proxy().await;
    let mut rounds = Vec::new();

    let plain = Round::begin(&relay, &proxy, "plain").await;
    for webhook in &plain.webhooks {
        relay.pass_on(webhook).await.expect_status(200);
    }
    let end = plain.ledgers().await;
    assert_eq!((&end[0]["purchases"][0]["state"], &end[0]["balance"]["available"]), (&json!("completed"), &json!(900)));
    assert_eq!(end[0]["transactions"].as_array().unwrap().len(), 3);
    assert_eq!((&end[1]["purchases"][0]["state"], &end[1]["balance"]["available"]), (&json!("failed"), &json!(400)));
    assert_eq!(end[1]["told"], json!(["credits.purchase_ended", "credits.top_up_failed"]));
    rounds.push(plain);

    // The last first, each three times, at once.
    let again = Round::begin(&relay, &proxy, "again").await;
    for webhook in again.webhooks.iter().rev() {
        let three = tokio::join!(relay.pass_on(webhook), relay.pass_on(webhook), relay.pass_on(webhook));
        for answer in [three.0, three.1, three.2] {
            answer.expect_status(200);
        }
    }
    for webhook in &again.webhooks {
        relay.pass_on(webhook).await.expect_status(200);
    }
    assert_eq!(again.ledgers().await, end);
    rounds.push(again);

    // Forged first: that nobody paid for the declined one either, and that somebody did.
    let forged = Round::begin(&relay, &proxy, "forged").await;
    let (paid, failed) = (forged.webhook("payment_intent.succeeded"), forged.webhook("payment_intent.payment_failed"));
    let lie = other_body(failed, "status", json!("succeeded"));
    let (header, others) = (failed.header("stripe-signature"), paid.header("stripe-signature"));
    let stolen = String::from_utf8(lie.clone()).unwrap();
    let now = kernel::Clock::now(&*relay.app.clock).timestamp();
    let by_another = devkit::payments::sign("whsec_of_somebody_else", now, &stolen);
    for (signature, body) in [(header, &lie), (others, &lie), (by_another.as_str(), &lie), (others, &failed.body)] {
        relay.send(signature, body).await.expect_problem(400, "invalid-signature");
    }
    forged.expect_undecided().await;
    for webhook in &forged.webhooks {
        relay.pass_on(webhook).await.expect_status(200);
    }
    assert_eq!(forged.ledgers().await, end);
    rounds.push(forged);

    // Replayed with another body, by somebody with the right secret.
    let changed = Round::begin(&relay, &proxy, "changed").await;
    for webhook in &changed.webhooks {
        relay.pass_on(webhook).await.expect_status(200);
    }
    let (paid, failed) =
        (changed.webhook("payment_intent.succeeded"), changed.webhook("payment_intent.payment_failed"));
    let dearer = other_body(paid, "amount", json!(PRICE * 100));
    let other_purchase =
        other_body(paid, "metadata", json!({ "purchase_id": changed.declined.purchases().await[0]["id"] }));
    for lie in [dearer, other_purchase, other_body(failed, "status", json!("succeeded"))] {
        relay.sign_and_send(&lie).await.expect_problem(409, "event-changed");
    }
    let alarms = "select count(*) from recon_differences where kind = 'event_changed'";
    assert_eq!(count(&relay.app, alarms).await, 3);
    assert_eq!(changed.ledgers().await, end);
    rounds.push(changed);

    // From here on every signature of its own is too old: kept for six minutes, refused, and signed anew.
    let late = Round::begin(&relay, &proxy, "late").await;
    relay.app.clock.advance(TimeDelta::minutes(6));
    for webhook in &late.webhooks {
        relay.pass_on(webhook).await.expect_problem(400, "invalid-signature");
    }
    late.expect_undecided().await;
    late.bring_again().await;
    assert_eq!(late.ledgers().await, end);
    rounds.push(late);

    // Never brought at all: the sweep asks.
    let swept = Round::begin(&relay, &proxy, "swept").await;
    a_minute_later(&relay);
    purchases::jobs::sweep(&relay.app.cx).await.unwrap();
    assert_eq!(swept.ledgers().await, end);
    swept.bring_again().await;
    rounds.push(swept);

    // The lie came first. It is not followed, the truth is an alarm then, and the sweep finds it.
    let twisted = Round::begin(&relay, &proxy, "twisted").await;
    let paid = twisted.webhook("payment_intent.succeeded");
    relay.sign_and_send(&other_body(paid, "amount", json!(PRICE * 100))).await.expect_status(200);
    relay.sign_and_send(&paid.body).await.expect_problem(409, "event-changed");
    twisted.expect_undecided().await;
    relay.sign_and_send(&twisted.webhook("payment_intent.payment_failed").body).await.expect_status(200);
    a_minute_later(&relay);
    top_up(&relay).await;
    assert_eq!(twisted.ledgers().await, end);
    rounds.push(twisted);

    // Nothing of what came later has touched another round, and nothing was paid twice.
    for round in &rounds {
        assert_eq!(round.ledgers().await, end);
    }
    assert_eq!(relay.provider.list("payment_intents").await.len(), 2 * rounds.len());
    assert_eq!(expect_sound(&relay).await, rounds.len());
}
