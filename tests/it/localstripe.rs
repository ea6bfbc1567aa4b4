//! Payments at a provider that others have written: localstripe, unmodified, with what it has of Stripe's API. It has no
//! Checkout, no disputes and no keys against repetition; those are tested at the provider of our own.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use control_plane::credits::purchases::events::{StoredEvent, TYPES};
use control_plane::credits::stripe::objects::{BalanceTransaction, Customer, List, PaymentIntent, Reference};
use control_plane::credits::stripe::{Stripe, StripeError};
use http::Method;
use integration_tests::{Localstripe, Received, Receiver, Response, TestApp, TestAppOptions, config, eventually};
use kernel::Clock as _;
use serde_json::{Value, json};

use crate::scenes::{count, text};

pub(crate) const SECRET: &str = "whsec_shared_with_localstripe";
pub(crate) const GOOD: &str = "4242424242424242";
pub(crate) const DECLINED: &str = "4000000000000341";
pub(crate) const AUTHENTICATION: &str = "4000002500003155";

/// What leads a node, or a client alone, to it.
pub(crate) fn arguments(localstripe: &Localstripe) -> Vec<String> {
    let url = localstripe.url();
    let arguments = [
        "--stripe-secret-key",
        Localstripe::SECRET_KEY,
        "--stripe-webhook-secret",
        SECRET,
        "--stripe-api-url",
        &url,
        // What they do is done by the tests, when they want it.
        "--payment-sweep-s",
        "100000",
        "--payment-reconcile-s",
        "100000",
        "--top-up-poll-ms",
        "100000000",
        // Tokens that outlive the days that tests let pass.
        "--access-token-ttl-s",
        "10000000",
        "--refresh-token-ttl-s",
        "10000000",
    ];
    arguments.map(str::to_owned).to_vec()
}

/// It, and our client of the provider's API.
pub(crate) struct Provider {
    pub(crate) localstripe: Localstripe,
    stripe: Stripe,
}

impl Provider {
    pub(crate) async fn start() -> Self {
        let localstripe = Localstripe::start().await;
        // Of the configuration only what leads to the provider is used.
        let payments = config("postgres://nowhere.invalid", &arguments(&localstripe)).payments;
        let stripe = Stripe::new(&payments).unwrap().expect("there is a key");
        Self { localstripe, stripe }
    }

    async fn customer(&self) -> Customer {
        let form = [("metadata[organization_id]", "org_1".to_owned())];
        self.stripe.customer_create("customer:1", &form).await.unwrap()
    }

    /// Charges a card that its owner has left, without the owner.
    async fn charge(&self, customer: &Customer, card: &str, amount: i64) -> Result<PaymentIntent, StripeError> {
        let card = self.localstripe.card(&customer.id, card).await;
        let form = [
            ("amount", amount.to_string()),
            ("currency", "eur".to_owned()),
            ("customer", customer.id.clone()),
            ("payment_method", card),
            ("confirm", "true".to_owned()),
            ("off_session", "true".to_owned()),
            ("metadata[purchase_id]", "pur_of_nobody".to_owned()),
        ];
        self.stripe.payment_intent_create("purchase:1", &form).await
    }

    async fn refund(&self, payment_intent: &str, amount: i64, pointer: &str) -> Result<(), StripeError> {
        let form = [
            ("payment_intent", payment_intent.to_owned()),
            ("amount", amount.to_string()),
            ("metadata[refund_id]", pointer.to_owned()),
        ];
        let refund = self.stripe.refund_create(pointer, &form).await?;
        assert_eq!((refund.amount, refund.status.as_deref()), (amount, Some("succeeded")));
        assert_eq!(refund.payment_intent.as_ref().map(Reference::id), Some(payment_intent));
        Ok(())
    }

    /// All objects of a kind, oldest first.
    pub(crate) async fn list(&self, kind: &str) -> Vec<Value> {
        let list = self.localstripe.api().get(&format!("/v1/{kind}?limit=1000")).await.expect_status(200);
        assert_eq!(list["has_more"], false);
        list["data"].as_array().unwrap().clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_is_read_whole_and_given_back_in_parts() {
    let provider = Provider::start().await;
    let customer = provider.customer().await;
    let paid = provider.charge(&customer, GOOD, 2500).await.unwrap();
    assert_eq!((paid.status.as_str(), paid.amount, paid.currency.as_str()), ("succeeded", 2500, "eur"));
    assert_eq!(paid.customer.as_ref().map(Reference::id), Some(customer.id.as_str()));
    assert_eq!(paid.metadata.as_ref().unwrap()["purchase_id"], "pur_of_nobody");
    assert!(paid.last_payment_error.is_none());
    let charge = paid.latest_charge.as_ref().expect("a charge").id();

    provider.refund(&paid.id, 1000, "prf_1").await.unwrap();
    provider.refund(&paid.id, 500, "prf_2").await.unwrap();
    let charge = provider.stripe.charge_get(charge).await.unwrap();
    assert_eq!((charge.amount, charge.amount_refunded, charge.paid), (2500, 1500, true));
    assert_eq!(charge.payment_intent.as_ref().map(Reference::id), Some(paid.id.as_str()));
    let again = provider.stripe.payment_intent_get(&paid.id).await.unwrap();
    assert_eq!((again.status, again.latest_charge.map(Reference::into_id)), ("succeeded".to_owned(), Some(charge.id)));
    let refunds = provider.stripe.refunds_of(&paid.id).await.unwrap();
    let pointers: BTreeMap<_, _> = refunds
        .data
        .iter()
        .map(|refund| (refund.metadata.as_ref().unwrap()["refund_id"].as_str(), refund.amount))
        .collect();
    assert_eq!((pointers, refunds.has_more), (BTreeMap::from([("prf_1", 1000), ("prf_2", 500)]), false));

    // What moved the account's money: by kind, and by what was made of it.
    let list = provider.localstripe.api().get("/v1/balance_transactions").await.expect_status(200);
    let moved: List<BalanceTransaction> = serde_json::from_value(list).unwrap();
    let mut kinds: Vec<_> = moved.data.iter().map(|moved| (moved.kind.as_str(), moved.amount, moved.fee)).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, [("charge", 2500, 0), ("refund", -1000, 0), ("refund", -500, 0)]);
    assert!(moved.data.iter().all(|moved| moved.currency == "eur" && moved.source.is_some()));
    assert!(moved.data.iter().all(|moved| moved.reporting_category.as_deref() == Some(&moved.kind)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_that_is_declined_is_told_apart_from_a_call_that_is_refused() {
    let provider = Provider::start().await;
    let customer = provider.customer().await;
    let declined = provider.charge(&customer, DECLINED, 2500).await.unwrap_err();
    assert!(matches!(&declined, StripeError::Declined { code, .. } if code == "card_declined"), "{declined}");
    let intent = provider.list("payment_intents").await.pop().expect("the payment");
    let intent = provider.stripe.payment_intent_get(text(&intent["id"])).await.unwrap();
    assert_eq!((intent.status.as_str(), intent.amount), ("requires_payment_method", 2500));
    assert_eq!(intent.last_payment_error.unwrap().code.as_deref(), Some("card_declined"));
    // Nothing was paid, so nothing goes back.
    let refused = provider.refund(&intent.id, 1, "prf_1").await.unwrap_err();
    assert!(matches!(refused, StripeError::Refused { status: 400, .. }), "{refused}");
    let missing = provider.stripe.payment_intent_get("pi_of_nobody").await.unwrap_err();
    assert!(missing.is_missing(), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bank_that_asks_its_customer_is_waited_for() {
    let provider = Provider::start().await;
    let customer = provider.customer().await;
    let asked = provider.charge(&customer, AUTHENTICATION, 2500).await.unwrap();
    assert_eq!((asked.status.as_str(), asked.latest_charge.is_none()), ("requires_action", true));
    provider.localstripe.authenticate(&asked.id, true).await.expect_status(200);
    let paid = provider.stripe.payment_intent_get(&asked.id).await.unwrap();
    assert_eq!((paid.status.as_str(), paid.latest_charge.is_some()), ("succeeded", true));

    let refused = provider.charge(&customer, AUTHENTICATION, 700).await.unwrap();
    provider.localstripe.authenticate(&refused.id, false).await.expect_status(200);
    let failed = provider.stripe.payment_intent_get(&refused.id).await.unwrap();
    assert_eq!((failed.status.as_str(), failed.latest_charge.is_none()), ("requires_payment_method", true));
    assert_eq!(failed.last_payment_error.unwrap().code.as_deref(), Some("payment_intent_authentication_failure"));
}

/// What localstripe does not have, so that whoever reads a failure here knows what to ask of another version of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_it_does_not_have_is_a_refusal_and_nothing_else() {
    let provider = Provider::start().await;
    let (stripe, customer) = (&provider.stripe, provider.customer().await);
    let now = 1_700_000_000;
    let described = [("amount", "1".to_owned()), ("currency", "eur".to_owned()), ("description", "x".to_owned())];
    let refusals = [
        ("checkout", 404, stripe.session_create("key", &[("mode", "payment".to_owned())]).await.map(drop)),
        ("a customer's sessions", 404, stripe.sessions_of(&customer.id).await.map(drop)),
        ("a description", 400, stripe.payment_intent_create("key", &described).await.map(drop)),
        ("events by their types", 400, stripe.events(&TYPES, now, false, None).await.map(drop)),
        ("events that nobody took", 400, stripe.events(&[], now, true, None).await.map(drop)),
        ("movements of a time", 400, stripe.balance_transactions(now, now + 1, None).await.map(drop)),
        ("an object's movements", 400, stripe.balance_transactions_of("ch_1").await.map(drop)),
    ];
    for (what, wanted, outcome) in refusals {
        let Err(StripeError::Refused { status, .. }) = outcome else { panic!("{what}: {outcome:?}") };
        assert_eq!(status, wanted, "{what}");
    }
    // All events since a moment it does list, and nothing that was refused is among them.
    let events = stripe.events(&[], now, false, None).await.unwrap().data;
    assert_eq!(events.iter().map(|event| text(&event["type"])).collect::<Vec<_>>(), ["customer.created"]);
}

/// A node, and somebody between it and the provider who has every webhook in hand.
pub(crate) struct Relay {
    pub(crate) provider: Provider,
    pub(crate) app: TestApp,
    pub(crate) receiver: Receiver,
}

impl Relay {
    async fn start() -> Self {
        Self::at(Provider::start().await, &[]).await
    }

    /// At this one, with further options of the node.
    pub(crate) async fn at(provider: Provider, more: &[&str]) -> Self {
        let mut arguments = arguments(&provider.localstripe);
        arguments.extend(more.iter().map(|&text| text.to_owned()));
        let app = TestApp::start_with(TestAppOptions { arguments, without_server: true }).await;
        let receiver = Receiver::start().await;
        provider.localstripe.send_webhooks(&receiver.url("/hook"), SECRET).await;
        Self { provider, app, receiver }
    }

    /// What came until so many were there, by the type of the event.
    async fn webhooks(&self, count: usize) -> BTreeMap<String, Received> {
        let received = self.receiver.wait_for(count).await;
        received.into_iter().map(|webhook| (text(&webhook.json()["type"]).to_owned(), webhook)).collect()
    }

    pub(crate) async fn send(&self, signature: &str, body: &[u8]) -> Response {
        let client = self.app.api().with("stripe-signature", signature);
        let content_type = "application/json; charset=utf-8";
        client.send_bytes(Method::POST, "/api/webhooks/stripe", content_type, body.to_vec()).await
    }

    /// Passes one on as it came.
    pub(crate) async fn pass_on(&self, webhook: &Received) -> Response {
        self.send(webhook.header("stripe-signature"), &webhook.body).await
    }

    /// Sends these bytes as if the provider had signed them by now.
    pub(crate) async fn sign_and_send(&self, body: &[u8]) -> Response {
        let told = std::str::from_utf8(body).unwrap();
        self.send(&devkit::payments::sign(SECRET, self.app.clock.now().timestamp(), told), body).await
    }

    /// The events that the node has kept: type and state.
    async fn kept(&self) -> Vec<(String, String)> {
        let statement = "select type, state from stripe_events order by type";
        sqlx::query_as(statement).fetch_all(&mut self.app.master().await).await.unwrap()
    }
}

fn ignored(kinds: &[&str]) -> Vec<(String, String)> {
    kinds.iter().map(|&kind| (kind.to_owned(), "ignored".to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn its_webhooks_are_taken_in_any_order_any_number_of_times_and_only_as_they_were_signed() {
    let relay = Relay::start().await;
    let customer = relay.provider.customer().await;
    relay.provider.charge(&customer, GOOD, 2500).await.unwrap();
    relay.provider.charge(&customer, DECLINED, 2500).await.unwrap_err();
    // An event whose object has no id, and is none of ours.
    relay.provider.localstripe.api().get("/v1/balance").await.expect_status(200);
    let webhooks = relay.webhooks(4).await;
    let kinds: Vec<&str> = webhooks.keys().map(String::as_str).collect();
    let [failed, paid] = ["payment_intent.payment_failed", "payment_intent.succeeded"];
    assert_eq!(kinds, ["balance.available", "customer.created", failed, paid]);

    // Forged: another body, another moment, another's signature, another secret.
    let (paid, failed) = (&webhooks[paid], &webhooks[failed]);
    let lie = String::from_utf8(paid.body.clone()).unwrap().replace("2500", "9999").into_bytes();
    assert_ne!(lie, paid.body);
    let header = paid.header("stripe-signature");
    let (moment, signature) = header.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
    let later = format!("t={},v1={signature}", moment.parse::<i64>().unwrap() + 1);
    let forged = devkit::payments::sign("whsec_of_somebody_else", moment.parse().unwrap(), "{}");
    let others = failed.header("stripe-signature");
    for (signature, body) in [(header, &lie), (&later, &paid.body), (others, &paid.body), (&forged, &paid.body)] {
        relay.send(signature, body).await.expect_problem(400, "invalid-signature");
    }
    assert_eq!(relay.kept().await, []);

    // The last first, and each several times, also at once.
    for webhook in webhooks.values().rev() {
        let three = tokio::join!(relay.pass_on(webhook), relay.pass_on(webhook), relay.pass_on(webhook));
        for answer in [three.0, three.1, three.2] {
            assert_eq!(answer.expect_status(200), json!({ "received": true }));
        }
    }
    // They are about a purchase that is not ours: several systems may share one account.
    assert_eq!(relay.kept().await, ignored(&kinds));
    let rows = "select count(*) from stripe_events where source = 'webhook' and processed_at is not null";
    assert_eq!(count(&relay.app, rows).await, 4);

    // Signed by the right secret, but saying something else under an id that came before.
    relay.sign_and_send(&lie).await.expect_problem(409, "event-changed");

    // The list of events says the same as the webhooks did, to the last byte that counts.
    let list = relay.provider.localstripe.api().get("/v1/events?limit=100").await.expect_status(200);
    assert_eq!(list["data"].as_array().unwrap().len(), 4);
    for listed in list["data"].as_array().unwrap() {
        let sent = StoredEvent::read(&webhooks[text(&listed["type"])].body).unwrap();
        let listed = StoredEvent::read(listed.to_string().as_bytes()).unwrap();
        assert_eq!((sent.id, sent.payload_sha256), (listed.id, listed.payload_sha256));
    }

    // What was once right is not right for ever.
    relay.app.clock.advance(TimeDelta::seconds(360));
    relay.pass_on(paid).await.expect_problem(400, "invalid-signature");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_reaches_a_node_by_itself() {
    let provider = Provider::start().await;
    let app =
        TestApp::start_with(TestAppOptions { arguments: arguments(&provider.localstripe), without_server: true }).await;
    provider.localstripe.send_webhooks(&crate::purchases::webhook_url(&app), SECRET).await;
    let customer = provider.customer().await;
    let paid = provider.charge(&customer, GOOD, 2500).await.unwrap();
    let state: String = eventually("the webhook", || async {
        sqlx::query_scalar("select state from stripe_events where object_id = $1")
            .bind(&paid.id)
            .fetch_optional(&mut app.master().await)
            .await
            .unwrap()
    })
    .await;
    assert_eq!(state, "ignored");
}
