//! Buying credits: paid once and granted once, whoever tells of it first, twice, late, or with a lie.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use control_plane::credits::purchases::recon::{self, Run};
use control_plane::credits::{self, purchases};
use devkit::payments::{ApiFault, Checkout, TestPayments, TestPaymentsOptions, WebhookFaults, sign};
use http::Method;
use integration_tests::{Client, Owner, Response, TestApp, TestAppOptions, eventually, within};
use kernel::Clock as _;
use serde_json::{Value, json};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::scenes::{count, join, text};

/// The provider of a test, and the arguments that lead a node to it.
pub(crate) async fn provider() -> (TestPayments, Vec<String>) {
    let provider = TestPayments::start(TestPaymentsOptions::default()).await.unwrap();
    let arguments = arguments_of(&provider);
    (provider, arguments)
}

/// The arguments that lead a node to a provider.
pub(crate) fn arguments_of(provider: &TestPayments) -> Vec<String> {
    let options = provider.options();
    let arguments = [
        "--stripe-secret-key",
        &options.secret_key,
        "--stripe-webhook-secret",
        &options.webhook_secret,
        "--stripe-api-url",
        provider.url(),
        "--stripe-request-timeout-ms",
        "2000",
        // What they do is done by the tests, when they want it.
        "--payment-sweep-s",
        "100000",
        "--payment-reconcile-s",
        "100000",
        "--top-up-poll-ms",
        "100000000",
    ];
    arguments.map(str::to_owned).to_vec()
}

/// Where a node takes webhooks.
pub(crate) fn webhook_url(app: &TestApp) -> String {
    format!("http://{}/api/webhooks/stripe", app.address)
}

/// An agency that can buy.
pub(crate) struct Shop {
    pub(crate) app: TestApp,
    pub(crate) provider: TestPayments,
    pub(crate) owner: Owner,
    pub(crate) packs: BTreeMap<String, Value>,
}

impl Shop {
    /// With webhooks that come as they should.
    pub(crate) async fn open() -> Self {
        let shop = Self::with(&[]).await;
        shop.provider.set_webhook_url(&webhook_url(&shop.app));
        shop
    }

    /// With webhooks that nobody brings.
    pub(crate) async fn silent() -> Self {
        Self::with(&[]).await
    }

    pub(crate) async fn with(more: &[&str]) -> Self {
        let (provider, _) = provider().await;
        Self::at(provider, more).await
    }

    /// At this provider, with further options of the node.
    pub(crate) async fn at(provider: TestPayments, more: &[&str]) -> Self {
        let mut arguments = arguments_of(&provider);
        // Tokens that outlive the days that these tests let pass.
        arguments.extend(["--access-token-ttl-s", "10000000"].map(str::to_owned));
        arguments.extend(more.iter().map(|&text| text.to_owned()));
        let app = TestApp::start_with(TestAppOptions { arguments, without_server: true }).await;
        let owner = app.owner("ada").await;
        let list = owner.api.get("/api/credits/packs").await.expect_status(200);
        let packs = list["data"].as_array().unwrap().iter().map(|pack| (text(&pack["code"]).to_owned(), pack.clone()));
        let packs = packs.collect();
        Self { app, provider, owner, packs }
    }

    pub(crate) fn keyed(&self, key: &str) -> Client {
        self.owner.api.with("idempotency-key", key)
    }

    pub(crate) fn body(&self, pack: &str) -> Value {
        json!({ "packId": self.packs[pack]["id"] })
    }

    pub(crate) async fn order(&self, key: &str, pack: &str) -> Order {
        let answer = self.keyed(key).post("/api/credits/purchase", self.body(pack)).await;
        Order::of(&answer.expect_status(201))
    }

    /// Orders and pays, without anybody telling us of it.
    pub(crate) async fn pay(&self, key: &str, pack: &str) -> Order {
        let order = self.order(key, pack).await;
        self.provider.checkout(&order.session, Checkout::Pay).unwrap();
        order
    }

    /// Orders, pays, and sees the credits come.
    pub(crate) async fn buy(&self, key: &str, pack: &str) -> Order {
        let order = self.pay(key, pack).await;
        self.deliver_all().await;
        assert_eq!(self.purchase(&order).await["state"], "completed");
        order
    }

    pub(crate) async fn purchase(&self, order: &Order) -> Value {
        self.owner.api.get(&format!("/api/credits/purchases/{}", order.id)).await.expect_status(200)["purchase"].clone()
    }

    pub(crate) async fn becomes(&self, order: &Order, state: &str) -> Value {
        eventually(state, || async {
            let purchase = self.purchase(order).await;
            (purchase["state"] == state).then_some(purchase)
        })
        .await
    }

    /// The payment of an order, as the provider has it.
    pub(crate) fn intent(&self, order: &Order) -> String {
        text(&self.provider.object(&order.session).unwrap()["payment_intent"]).to_owned()
    }

    pub(crate) fn events(&self, of: &Order) -> Vec<Value> {
        let intent =
            self.provider.object(&of.session).and_then(|session| session["payment_intent"].as_str().map(str::to_owned));
        let about = |event: &Value| {
            let object = &event["data"]["object"];
            let names = [&object["id"], &object["payment_intent"]];
            names.iter().any(|name| {
                name.as_str() == Some(&of.session) || (intent.is_some() && name.as_str() == intent.as_deref())
            })
        };
        self.provider.events().into_iter().filter(about).collect()
    }

    pub(crate) fn event(&self, of: &Order, kind: &str) -> Value {
        self.events(of).into_iter().rfind(|event| event["type"] == kind).unwrap_or_else(|| panic!("no {kind}"))
    }

    pub(crate) async fn send(&self, body: String, signature: &str) -> Response {
        let client = self.app.api().with("stripe-signature", signature);
        client.send_bytes(Method::POST, "/api/webhooks/stripe", "application/json; charset=utf-8", body).await
    }

    pub(crate) async fn deliver(&self, event: &Value) -> Response {
        let (body, signature) = self.provider.signed(event);
        self.send(body, &signature).await
    }

    /// Brings every event until now, in its order.
    pub(crate) async fn deliver_all(&self) {
        for event in self.provider.events() {
            self.deliver(&event).await.expect_status(200);
        }
    }

    pub(crate) async fn amounts(&self) -> [i64; 3] {
        let balance = self.owner.api.get("/api/credits/balance").await.expect_status(200);
        ["available", "held", "debt"].map(|name| balance[name].as_i64().unwrap())
    }

    pub(crate) async fn spend(&self, key: &str, amount: i64) {
        let stores = self.owner.api.get("/api/stores").await.expect_status(200);
        let store = match stores["data"].as_array().unwrap().first() {
            Some(store) => store.clone(),
            None => self.owner.create_store("tea").await.expect_status(201),
        };
        let body = json!({ "storeId": store["id"], "amount": amount });
        self.keyed(key).post("/api/credits/spend", body).await.expect_status(201);
    }

    pub(crate) async fn refund(&self, order: &Order, key: &str, body: Value) -> Response {
        let ops = Owner::register(self.app.address, &format!("ops-{key}")).await;
        control_plane::identity::admin_grant(&self.app.cx, control_plane::audit::Actor::Cli, &ops.email).await.unwrap();
        ops.api
            .with("idempotency-key", key)
            .post(&format!("/api/ops/credits/purchases/{}/refund", order.id), body)
            .await
    }

    pub(crate) async fn sweep(&self) {
        purchases::jobs::sweep(&self.app.cx).await.unwrap();
    }

    /// Compares everything until now, and a moment beyond: the books are in whole seconds.
    pub(crate) async fn reconcile(&self) -> (Run, Run) {
        let now = self.app.clock.now();
        let (since, until) = (now - TimeDelta::days(20), now + TimeDelta::seconds(5));
        let payments = self.app.cx.payments.as_ref().unwrap();
        let events = recon::reconcile_events(&self.app.cx, payments, since, until).await.unwrap();
        let balance = recon::reconcile_balance(&self.app.cx, payments, since, until).await.unwrap();
        (events, balance)
    }

    pub(crate) async fn expect_proven(&self) {
        expect_proven(&self.app).await;
    }

    /// Fails unless the two sets of books agree.
    pub(crate) async fn expect_reconciled(&self) {
        let (events, balance) = self.reconcile().await;
        assert_eq!((events.differences, balance.differences), (vec![], vec![]));
    }
}

/// Fails unless every invariant of the ledger holds, and what was granted was paid.
pub(crate) async fn expect_proven(app: &TestApp) {
    let found = credits::verify::verify(&app.cx, None).await.unwrap();
    assert_eq!(found.violations, []);
    let torn = "select count(*) from purchases p where p.state = 'completed' and 1 <> (select count(*) from credit_transactions t
        where t.kind = 'purchase' and t.external_ref = p.payment_intent and t.key = p.idempotency_key)";
    assert_eq!(count(app, torn).await, 0);
    let twice = "select count(*) from (select 1 from outbox_events where type = 'credits.purchase_completed'
        group by data ->> 'purchaseId' having count(*) > 1) x";
    assert_eq!(count(app, twice).await, 0);
}

/// An order and its Checkout Session.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) id: String,
    pub(crate) session: String,
    pub(crate) url: String,
}

impl Order {
    pub(crate) fn of(checkout: &Value) -> Self {
        let url = text(&checkout["checkoutUrl"]).to_owned();
        let session = url.rsplit('/').next().unwrap().to_owned();
        Self { id: text(&checkout["purchase"]["id"]).to_owned(), session, url }
    }

    pub(crate) fn success(&self) -> String {
        format!("/api/credits/purchases/{}/success?session_id={}", self.id, self.session)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_pays_on_the_page_has_the_credits_and_the_bonus() {
    let shop = Shop::open().await;
    let mut body = shop.body("growth");
    body["successUrl"] = json!("https://agency.example/credits?a=1&b=2");
    body["cancelUrl"] = json!("https://agency.example/away");
    let made = shop.keyed("one").post("/api/credits/purchase", body).await.expect_status(201);
    assert_eq!((&made["purchase"]["state"], &made["purchase"]["amountMinor"]), (&json!("open"), &json!(11500)));
    assert_eq!(made["purchase"]["isTest"], true);
    let order = Order::of(&made);
    let page = Client::new(shop.provider.address(), &shop.provider.address().to_string());
    let path = order.url.strip_prefix(shop.provider.url()).unwrap();
    let shown = page.get(path).await.text();
    assert!(
        shown.contains("TEST MODE") && shown.contains("115.00 EUR") && shown.contains("2500 credits and 250 on top"),
        "{shown}"
    );
    let pressed = page.send_bytes(Method::POST, path, "application/x-www-form-urlencoded", "do=pay").await;
    assert_eq!(pressed.status, 303);
    let (_, back) = pressed.header("location").split_once("/api/").unwrap();
    let returned = shop.app.api().get(&format!("/api/{back}")).await;
    assert_eq!((returned.status.as_u16(), returned.header("content-type")), (200, "text/html; charset=utf-8"));
    let shown = returned.text();
    assert!(shown.contains("2750 credits") && shown.contains("TEST MODE"), "{shown}");
    assert!(shown.contains("https://agency.example/credits?a=1&amp;b=2"), "{shown}");

    let purchase = shop.becomes(&order, "completed").await;
    assert_eq!((&purchase["refundedMinor"], &purchase["failure"]), (&json!(0), &Value::Null));
    assert_eq!(shop.amounts().await, [2750, 0, 0]);
    let balance = shop.owner.api.get("/api/credits/balance").await.expect_status(200);
    let lots = balance["lots"].as_array().unwrap();
    assert_eq!(
        (&lots[0]["kind"], &lots[0]["granted"], &lots[1]["kind"]),
        (&json!("promotional"), &json!(250), &json!("paid"))
    );
    assert!(lots[0]["expiresAt"].is_string() && lots[1]["expiresAt"].is_null());
    let listed = shop.owner.api.get("/api/credits/purchases?limit=1").await.expect_status(200);
    assert_eq!(listed["data"][0]["id"], order.id);
    // Everything that was told is taken, and says the same again.
    shop.deliver_all().await;
    assert_eq!(shop.amounts().await, [2750, 0, 0]);
    let undone = "select count(*) from stripe_events where state not in ('done', 'ignored')";
    assert_eq!(count(&shop.app, undone).await, 0);
    shop.expect_reconciled().await;
    shop.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_price_and_a_buyer_are_not_for_the_client_to_name() {
    let shop = Shop::silent().await;
    let mut body = shop.body("starter");
    body["amountMinor"] = json!(1);
    shop.keyed("a").post("/api/credits/purchase", body).await.expect_field(422, "invalid-input", "/amountMinor");
    let unknown = json!({ "packId": kernel::CreditPackId::new(shop.app.clock.now()) });
    shop.keyed("b").post("/api/credits/purchase", unknown).await.expect_field(422, "invalid-input", "/packId");
    for url in
        ["http://agency.example", "javascript:alert(1)", "https://user:secret@agency.example", "/credits", "https://"]
    {
        let mut body = shop.body("starter");
        body["successUrl"] = json!(url);
        shop.keyed("c").post("/api/credits/purchase", body).await.expect_field(422, "invalid-input", "/successUrl");
    }
    shop.owner
        .api
        .post("/api/credits/purchase", shop.body("starter"))
        .await
        .expect_problem(400, "idempotency-key-required");
    let staff = shop.app.owner("sam").await;
    join(&shop.app, &shop.owner, &staff, "staff").await;
    let mut body = shop.body("starter");
    body["organizationId"] = json!(shop.owner.organization_id());
    staff
        .api
        .with("idempotency-key", "d")
        .post("/api/credits/purchase", body.clone())
        .await
        .expect_problem(403, "forbidden");
    let stranger = shop.app.owner("eve").await;
    stranger
        .api
        .with("idempotency-key", "e")
        .post("/api/credits/purchase", body)
        .await
        .expect_problem(404, "not-found");
    let order = shop.order("f", "starter").await;
    stranger.api.get(&format!("/api/credits/purchases/{}", order.id)).await.expect_problem(404, "not-found");
    // The page after Checkout is for whoever knows the session.
    let page = format!("/api/credits/purchases/{}/success", order.id);
    shop.app.api().get(&format!("{page}?session_id=cs_test_guess")).await.expect_problem(404, "not-found");
    shop.app.api().get(&page).await.expect_problem(400, "invalid-query");
    let shown = shop.app.api().get(&order.success()).await.text();
    assert!(shown.contains("Not paid yet"), "{shown}");
    assert_eq!(shop.amounts().await, [0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_makes_one_order_and_one_page_however_often_it_is_sent() {
    let shop = Shop::silent().await;
    let sent = (0..8).map(|_| {
        let (client, body) = (shop.keyed("same"), shop.body("starter"));
        tokio::spawn(async move { client.post("/api/credits/purchase", body).await })
    });
    let mut answers = Vec::new();
    for sent in sent.collect::<Vec<_>>() {
        answers.push(sent.await.unwrap());
    }
    let first = answers[0].expect_status(201);
    assert!(answers.iter().all(|answer| answer.expect_status(201)["checkoutUrl"] == first["checkoutUrl"]));
    assert_eq!(answers.iter().filter(|answer| answer.header("idempotent-replayed").is_empty()).count(), 1);
    assert_eq!(shop.provider.objects("checkout.session").len(), 1);
    assert_eq!(shop.provider.objects("customer").len(), 1);
    let other = shop.keyed("same").post("/api/credits/purchase", shop.body("growth")).await;
    other.expect_problem(422, "idempotency-key-reused");
    // The provider forgets a key; we do not.
    shop.app.clock.advance(TimeDelta::days(25));
    let again = shop.keyed("same").post("/api/credits/purchase", shop.body("starter")).await;
    assert_eq!(
        (again.expect_status(201)["checkoutUrl"].clone(), again.header("idempotent-replayed")),
        (first["checkoutUrl"].clone(), "true")
    );
}

/// Every one of them learned the same customer from the provider, under one key.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_first_to_keep_a_customer_fails_nobody_else() {
    let shop = Shop::silent().await;
    let organization = shop.owner.organization_id().parse().unwrap();
    let now = shop.app.clock.now();
    let mut connections = Vec::new();
    for _ in 0..8 {
        connections.push(shop.app.master().await);
    }
    for round in 0..100 {
        let customer: Arc<str> = format!("cus_{round}").into();
        let gate = Arc::new(Barrier::new(connections.len()));
        let mut keepers = JoinSet::new();
        for mut connection in connections.drain(..) {
            let (customer, gate) = (Arc::clone(&customer), Arc::clone(&gate));
            keepers.spawn(async move {
                gate.wait().await;
                let kept = purchases::db::customer_insert(&mut connection, organization, &customer, now).await;
                (connection, kept)
            });
        }
        while let Some(ended) = keepers.join_next().await {
            let (connection, kept) = ended.unwrap();
            kept.unwrap();
            connections.push(connection);
        }
        let found = purchases::db::customer_find(&mut connections[0], organization).await.unwrap();
        assert_eq!(found.as_deref(), Some(&*customer));
        sqlx::query("delete from payment_customers").execute(&mut connections[0]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_fails_is_repeated_under_its_key_and_done_once() {
    let shop = Shop::silent().await;
    shop.order("customer", "starter").await;
    let sessions = |shop: &Shop| shop.provider.objects("checkout.session").len();
    for status in [500, 503, 409, 429] {
        let before = sessions(&shop);
        shop.provider.fail_next([ApiFault::Before(status)]);
        shop.order(&format!("before-{status}"), "starter").await;
        assert_eq!(sessions(&shop), before + 1, "{status}");
    }
    // The answer does not come in time: the call is made again, and answered with what it did.
    let before = sessions(&shop);
    shop.provider.fail_next([ApiFault::LateAnswer(Duration::from_secs(4))]);
    shop.order("late", "starter").await;
    assert_eq!(sessions(&shop), before + 1);
    // It was done and answered 500, for ever: the caller is told that it is not known, and finds it when they ask again.
    shop.provider.fail_next([ApiFault::After500]);
    let unknown = shop.keyed("lost").post("/api/credits/purchase", shop.body("starter")).await;
    unknown.expect_problem(503, "payment-provider-unavailable");
    assert!(!unknown.header("retry-after").is_empty());
    assert_eq!(sessions(&shop), before + 2);
    let order = shop.order("lost", "starter").await;
    assert_eq!(sessions(&shop), before + 2);
    shop.provider.checkout(&order.session, Checkout::Pay).unwrap();
    shop.deliver_all().await;
    assert_eq!(shop.purchase(&order).await["state"], "completed");
    // What the provider refuses is refused, and not tried again.
    let calls = shop.provider.calls();
    shop.provider.fail_next([ApiFault::Before(403)]);
    let refused = shop.keyed("refused").post("/api/credits/purchase", shop.body("starter")).await;
    refused.expect_problem(502, "payment-provider-refused");
    assert_eq!(shop.provider.calls(), calls + 1);
    assert_eq!(shop.amounts().await, [500, 0, 0]);
    shop.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_whose_answer_was_lost_is_found_by_the_sweep() {
    let shop = Shop::silent().await;
    shop.order("customer", "starter").await;
    shop.provider.fail_next([ApiFault::After500]);
    let unknown = shop.keyed("lost").post("/api/credits/purchase", shop.body("starter")).await;
    unknown.expect_problem(503, "payment-provider-unavailable");
    // And one that never reached the provider comes to nothing in the end.
    shop.provider.fail_next((0..4).map(|_| ApiFault::Before(500)));
    let unknown = shop.keyed("never").post("/api/credits/purchase", shop.body("starter")).await;
    unknown.expect_problem(503, "payment-provider-unavailable");
    shop.app.clock.advance(TimeDelta::hours(26));
    shop.sweep().await;
    let listed = shop.owner.api.get("/api/credits/purchases").await.expect_status(200);
    let states: Vec<&str> =
        listed["data"].as_array().unwrap().iter().map(|purchase| text(&purchase["state"])).collect();
    assert_eq!(states, ["expired", "open", "open"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_whom_the_provider_has_forgotten_becomes_a_new_one() {
    let shop = Shop::silent().await;
    shop.order("first", "starter").await;
    let customer = text(&shop.provider.objects("customer")[0]["id"]).to_owned();
    shop.provider.forget(&customer);
    shop.buy("second", "starter").await;
    shop.buy("third", "starter").await;
    assert_eq!(shop.provider.objects("customer").len(), 1);
    assert_eq!(shop.amounts().await, [1000, 0, 0]);
    shop.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_paid_is_not_granted() {
    let shop = Shop::open().await;
    let declined = shop.order("declined", "starter").await;
    shop.provider.checkout(&declined.session, Checkout::Decline).unwrap();
    eventually("the failure", || async {
        (shop.purchase(&declined).await["failure"] == "card_declined").then_some(())
    })
    .await;
    assert_eq!(shop.purchase(&declined).await["state"], "open");

    let needs = shop.order("needs", "starter").await;
    shop.provider.checkout(&needs.session, Checkout::NeedAuthentication).unwrap();
    assert_eq!(shop.purchase(&needs).await["state"], "open");
    shop.provider.checkout(&needs.session, Checkout::FailAuthentication).unwrap();
    eventually("the failure", || async { (!shop.purchase(&needs).await["failure"].is_null()).then_some(()) }).await;

    let abandoned = shop.order("abandoned", "starter").await;
    shop.provider.checkout(&abandoned.session, Checkout::Abandon).unwrap();
    shop.becomes(&abandoned, "expired").await;
    let shown = shop.app.api().get(&abandoned.success()).await.text();
    assert!(shown.contains("nothing was charged"), "{shown}");

    let later = shop.order("later", "starter").await;
    shop.provider.checkout(&later.session, Checkout::PayLater).unwrap();
    shop.becomes(&later, "processing").await;
    shop.provider.settle(&later.session, false).unwrap();
    shop.becomes(&later, "failed").await;
    assert_eq!(shop.amounts().await, [0, 0, 0]);

    // After all of that the same pages can still be paid on, where they are open.
    shop.provider.checkout(&declined.session, Checkout::Pay).unwrap();
    assert_eq!(shop.becomes(&declined, "completed").await["failure"], Value::Null);
    shop.provider.checkout(&needs.session, Checkout::NeedAuthentication).unwrap();
    shop.provider.checkout(&needs.session, Checkout::Authenticate).unwrap();
    shop.becomes(&needs, "completed").await;
    let settled = shop.order("settled", "starter").await;
    shop.provider.checkout(&settled.session, Checkout::PayLater).unwrap();
    shop.becomes(&settled, "processing").await;
    shop.provider.settle(&settled.session, true).unwrap();
    shop.becomes(&settled, "completed").await;
    assert_eq!(shop.amounts().await, [1500, 0, 0]);
    shop.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_provider_nothing_is_sold() {
    let app = TestApp::start_with(TestAppOptions { without_server: true, ..TestAppOptions::default() }).await;
    let owner = app.owner("ada").await;
    let packs = owner.api.get("/api/credits/packs").await.expect_status(200);
    let body = json!({ "packId": packs["data"][0]["id"] });
    let refused = owner.api.with("idempotency-key", "a").post("/api/credits/purchase", body).await;
    refused.expect_problem(503, "payments-not-configured");
    let event = app.api().with("stripe-signature", "t=1,v1=00").post("/api/webhooks/stripe", json!({})).await;
    event.expect_problem(503, "payments-not-configured");
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_may_come_twice_late_and_in_another_order() {
    let shop = Shop::open().await;
    let faults = WebhookFaults { duplicates: 3, reorder: true, delay_ms: 20, ..WebhookFaults::default() };
    shop.provider.set_webhook_faults(faults);
    let mut orders = Vec::new();
    for round in 0..6 {
        orders.push(shop.pay(&format!("chaos-{round}"), "starter").await);
    }
    for order in &orders {
        shop.becomes(order, "completed").await;
    }
    eventually("every event delivered", || async {
        shop.provider.events().iter().all(|event| shop.provider.deliveries(text(&event["id"])).1).then_some(())
    })
    .await;
    assert_eq!(shop.amounts().await, [3000, 0, 0]);
    // What is kept too long by somebody is not taken; the provider signs every attempt anew.
    let order = shop.order("old", "starter").await;
    shop.provider.set_webhook_faults(WebhookFaults { hold: true, ..WebhookFaults::default() });
    shop.provider.checkout(&order.session, Checkout::Pay).unwrap();
    let event = shop.event(&order, "checkout.session.completed");
    let (body, signature) = shop.provider.signed(&event);
    shop.app.clock.advance(TimeDelta::seconds(302));
    shop.send(body, &signature).await.expect_problem(400, "invalid-signature");
    shop.provider.advance(Duration::from_secs(302));
    shop.deliver(&event).await.expect_status(200);
    shop.becomes(&order, "completed").await;
    shop.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_the_secret_is_not_believed() {
    let shop = Shop::with(&["--stripe-webhook-secrets", "whsec_the_older_one,whsec_the_oldest"]).await;
    let order = shop.pay("forged", "starter").await;
    let event = shop.event(&order, "checkout.session.completed");
    let (body, signature) = shop.provider.signed(&event);
    let now = shop.provider.now();
    let (_, v1) = signature.split_once(",v1=").unwrap();
    let forged = [
        sign("whsec_of_somebody_else", now, &body),
        format!("t={now}"),
        format!("t={now},v0={v1}"),
        format!("t={},v1={v1}", now + 1),
        format!("v1={v1}"),
        "nonsense".to_owned(),
    ];
    for header in &forged {
        shop.send(body.clone(), header).await.expect_problem(400, "invalid-signature");
    }
    shop.send(body.replace("2500", "2501"), &signature).await.expect_problem(400, "invalid-signature");
    shop.send(body.split_whitespace().collect(), &signature).await.expect_problem(400, "invalid-signature");
    shop.app.api().post("/api/webhooks/stripe", json!({})).await.expect_problem(400, "invalid-signature");
    let twice = shop.app.api().with("stripe-signature", &signature);
    let mut request = twice.build(Method::POST, "/api/webhooks/stripe");
    request = request.header("stripe-signature", &signature);
    twice.request(request.body(body.clone().into()).unwrap()).await.expect_problem(400, "invalid-signature");
    let large = "x".repeat(300_000);
    let header = sign(&shop.provider.options().webhook_secret, now, &large);
    shop.send(large, &header).await.expect_problem(413, "body-too-large");
    for malformed in ["", "[]", "{}", r#"{"id":"evt_1","type":"x","created":1}"#] {
        let header = sign(&shop.provider.options().webhook_secret, now, malformed);
        shop.send(malformed.to_owned(), &header).await.expect_problem(400, "malformed-event");
    }
    assert_eq!(shop.amounts().await, [0, 0, 0]);
    assert_eq!(count(&shop.app, "select count(*) from stripe_events").await, 0);

    // While the secret changes, the older one counts as well, and one right signature among wrong ones is enough.
    let old = sign("whsec_the_oldest", now, &body);
    let wrong = "0".repeat(64);
    shop.send(body, &format!("{old},v1={wrong},v0={wrong}")).await.expect_status(200);
    assert_eq!(shop.amounts().await, [500, 0, 0]);
    shop.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_comes_again_with_another_body_is_an_alarm() {
    let shop = Shop::silent().await;
    let order = shop.buy("one", "starter").await;
    let mut event = shop.event(&order, "checkout.session.completed");
    event["data"]["object"]["amount_total"] = json!(1);
    shop.deliver(&event).await.expect_problem(409, "event-changed");
    assert_eq!(count(&shop.app, "select count(*) from recon_differences where kind = 'event_changed'").await, 1);
    // A copy with other delivery counts is the same event.
    let mut event = shop.event(&order, "checkout.session.completed");
    event["pending_webhooks"] = json!(7);
    shop.deliver(&event).await.expect_status(200);
    // A type that we do not know is kept, and nothing else.
    let unknown = json!({ "id": "evt_unknown", "type": "invoice.paid", "created": shop.provider.now(), "data": { "object": { "id": "in_1" } } });
    shop.deliver(&unknown).await.expect_status(200);
    assert_eq!(
        count(&shop.app, "select count(*) from stripe_events where id = 'evt_unknown' and state = 'ignored'").await,
        1
    );
    assert_eq!(shop.amounts().await, [500, 0, 0]);
    shop.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_success_page_and_the_webhooks_may_race() {
    let shop = Shop::silent().await;
    for round in 0..5 {
        let order = shop.pay(&format!("race-{round}"), "growth").await;
        let events: Vec<Value> = shop.events(&order);
        let mut racers = tokio::task::JoinSet::new();
        for event in events.iter().chain(&events) {
            let (body, signature) = shop.provider.signed(event);
            let client = shop.app.api().with("stripe-signature", &signature);
            racers.spawn(async move {
                client.send_bytes(Method::POST, "/api/webhooks/stripe", "application/json", body).await
            });
        }
        for _ in 0..4 {
            let (client, path) = (shop.app.api(), order.success());
            racers.spawn(async move { client.get(&path).await });
        }
        for answer in within("the race", racers.join_all()).await {
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        assert_eq!(shop.purchase(&order).await["state"], "completed");
        assert_eq!(shop.amounts().await, [2750 * (round + 1), 0, 0]);
    }
    shop.sweep().await;
    shop.expect_reconciled().await;
    shop.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_paid_must_be_what_was_ordered() {
    let shop = Shop::silent().await;
    let other = shop.pay("other", "starter").await;
    let others_customer = json!("cus_of_somebody_else");
    let lies: [(&str, &str, Value); 7] = [
        ("checkout.session.completed", "amount_total", json!(1)),
        ("checkout.session.completed", "currency", json!("jpy")),
        ("checkout.session.completed", "customer", others_customer.clone()),
        ("checkout.session.completed", "id", json!("cs_test_another")),
        ("payment_intent.succeeded", "amount_received", json!(11499)),
        ("payment_intent.succeeded", "customer", Value::Null),
        ("charge.succeeded", "amount", json!(0)),
    ];
    for (round, (kind, member, lie)) in lies.into_iter().enumerate() {
        let order = shop.pay(&format!("lie-{round}"), "growth").await;
        let mut event = shop.event(&order, kind);
        event["id"] = json!(format!("evt_lie_{round}"));
        event["data"]["object"][member] = lie;
        // It is kept, and people are told; asking the provider to send it again would not help.
        shop.deliver(&event).await.expect_status(200);
        assert_eq!(shop.purchase(&order).await["state"], "open", "{member}");
    }
    // A cheap payment does not pay for a dear order, whatever it points to.
    let dear = shop.order("dear", "agency").await;
    let mut event = shop.event(&other, "payment_intent.succeeded");
    event["id"] = json!("evt_points_elsewhere");
    event["data"]["object"]["metadata"]["purchase_id"] = json!(dear.id);
    shop.deliver(&event).await.expect_status(200);
    assert_eq!(shop.purchase(&dear).await["state"], "open");
    assert_eq!(
        count(&shop.app, "select count(*) from stripe_events where state = 'failed' and last_error is not null").await,
        8
    );
    assert_eq!(shop.amounts().await, [0, 0, 0]);
    shop.expect_proven().await;
}
