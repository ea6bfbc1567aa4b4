//! The test payment provider of our own, driven by the real provider's library: npm's `stripe`, which knows nothing of it.

use std::collections::BTreeSet;
use std::time::Duration;

use devkit::payments::{ApiFault, Checkout, TestPayments, TestPaymentsOptions};
use integration_tests::Peer;
use serde_json::{Value, json};

use crate::scenes::text;

/// The library, led to a test provider.
struct Sdk {
    provider: TestPayments,
    npm: Peer,
    client: Value,
}

/// What the library says of a call: the object, and of the answer what it can tell.
struct Told {
    result: Value,
    response: Value,
}

impl Sdk {
    async fn start() -> Self {
        let provider = TestPayments::start(TestPaymentsOptions::default()).await.unwrap();
        let client = json!({
            "key": provider.options().secret_key, "host": "127.0.0.1", "port": provider.address().port(), "protocol": "http",
            // It repeats nothing by itself unless a test says so.
            "maxNetworkRetries": 0, "telemetry": false,
        });
        Self { provider, npm: Peer::node(), client }
    }

    /// Sets the library up otherwise from now on.
    fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.client[name] = value.into();
    }

    async fn try_call(&mut self, call: &str, args: Value) -> Result<Told, Value> {
        let asked = json!({ "ask": "call", "client": self.client, "call": call, "args": args });
        let mut told = self.npm.ask(&asked).await?;
        Ok(Told { result: told["result"].take(), response: told["response"].take() })
    }

    /// The object that a call answers.
    async fn call(&mut self, call: &str, args: Value) -> Value {
        match self.try_call(call, args).await {
            Ok(told) => told.result,
            Err(error) => panic!("{call}: {error}"),
        }
    }

    /// What the library throws.
    async fn refusal(&mut self, call: &str, args: Value) -> Value {
        match self.try_call(call, args).await {
            Ok(told) => panic!("{call} answered {}", told.result),
            Err(error) => error,
        }
    }

    /// The ids of all of a list, page by page.
    async fn all(&mut self, list: &str, params: Value) -> Vec<String> {
        let asked = json!({ "ask": "all", "client": self.client, "call": list, "args": [params], "limit": 1000 });
        let items = self.npm.ask(&asked).await.unwrap_or_else(|error| panic!("{list}: {error}"));
        items.as_array().unwrap().iter().map(|item| text(&item["id"]).to_owned()).collect()
    }

    async fn customer(&mut self) -> String {
        text(&self.call("customers.create", json!([{ "email": "ada@example.com" }])).await["id"]).to_owned()
    }

    async fn session(&mut self, customer: &str) -> Value {
        let price = json!({
            "currency": "eur", "unit_amount": 2500, "tax_behavior": "inclusive",
            "product_data": { "name": "500 credits", "tax_code": "txcd_10000000" },
        });
        let session = json!({
            "mode": "payment", "customer": customer, "client_reference_id": "pur_1", "metadata": { "purchase_id": "pur_1" },
            "success_url": "https://agency.example/done", "cancel_url": "https://agency.example/back",
            "line_items": [{ "quantity": 1, "price_data": price }],
            "payment_intent_data": { "metadata": { "purchase_id": "pur_1" } },
        });
        self.call("checkout.sessions.create", json!([session])).await
    }

    async fn card(&mut self, customer: &str, number: &str) -> String {
        let card = json!({ "number": number, "exp_month": 12, "exp_year": 2040, "cvc": "123" });
        let made = self.call("paymentMethods.create", json!([{ "type": "card", "card": card }])).await;
        let attached = self.call("paymentMethods.attach", json!([made["id"], { "customer": customer }])).await;
        assert_eq!(attached["customer"], customer);
        text(&made["id"]).to_owned()
    }
}

/// The members of an object.
fn parts<const N: usize>(object: &Value, names: [&str; N]) -> [Value; N] {
    names.map(|name| object[name].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkout_is_made_looked_at_paid_refunded_and_disputed() {
    let mut sdk = Sdk::start().await;
    let new = json!([{ "email": "ada@example.com", "name": "Ada", "metadata": { "organization_id": "org_1" } }]);
    let customer = sdk.call("customers.create", new).await;
    assert_eq!(
        parts(&customer, ["object", "email", "name"]),
        [json!("customer"), json!("ada@example.com"), json!("Ada")]
    );
    assert_eq!(customer["metadata"], json!({ "organization_id": "org_1" }));
    let customer = text(&customer["id"]).to_owned();
    assert_eq!(sdk.call("customers.retrieve", json!([customer])).await["id"], customer.as_str());

    let session = sdk.session(&customer).await;
    let id = text(&session["id"]).to_owned();
    assert_eq!(
        parts(&session, ["object", "status", "payment_status", "amount_total", "currency", "customer"]),
        [json!("checkout.session"), json!("open"), json!("unpaid"), json!(2500), json!("eur"), json!(customer)]
    );
    assert!(text(&session["url"]).starts_with(sdk.provider.url()));
    sdk.provider.checkout(&id, Checkout::Pay).unwrap();
    let paid = sdk.call("checkout.sessions.retrieve", json!([id])).await;
    assert_eq!(parts(&paid, ["status", "payment_status"]), [json!("complete"), json!("paid")]);
    let intent = text(&paid["payment_intent"]).to_owned();

    let abandoned = sdk.session(&customer).await;
    let expired = sdk.call("checkout.sessions.expire", json!([abandoned["id"]])).await;
    assert_eq!(parts(&expired, ["status", "url"]), [json!("expired"), Value::Null]);
    let refused = sdk.refusal("checkout.sessions.expire", json!([abandoned["id"]])).await;
    assert_eq!(parts(&refused, ["type", "statusCode"]), [json!("StripeInvalidRequestError"), json!(400)]);
    let sessions = sdk.all("checkout.sessions", json!({ "customer": customer })).await;
    assert_eq!(sessions, [text(&abandoned["id"]), &id], "the newest first");

    let whole = sdk.call("paymentIntents.retrieve", json!([intent, { "expand": ["latest_charge", "customer"] }])).await;
    assert_eq!(
        parts(&whole, ["status", "amount", "amount_received", "currency"]),
        [json!("succeeded"), json!(2500), json!(2500), json!("eur")]
    );
    assert_eq!(whole["metadata"], json!({ "purchase_id": "pur_1" }));
    assert_eq!(whole["customer"]["email"], "ada@example.com");
    let charge = whole["latest_charge"].clone();
    assert_eq!(parts(&charge, ["object", "paid", "payment_intent"]), [json!("charge"), json!(true), json!(intent)]);
    assert_eq!(sdk.call("charges.retrieve", json!([charge["id"]])).await, charge);

    let new = json!({
        "payment_intent": intent, "amount": 1000, "reason": "requested_by_customer", "metadata": { "refund_id": "prf_1" },
    });
    let refund = sdk.call("refunds.create", json!([new])).await;
    assert_eq!(
        parts(&refund, ["object", "status", "amount", "charge"]),
        [json!("refund"), json!("succeeded"), json!(1000), charge["id"].clone()]
    );
    assert_eq!(sdk.call("refunds.retrieve", json!([refund["id"]])).await, refund);
    assert_eq!(sdk.all("refunds", json!({ "payment_intent": intent })).await, [text(&refund["id"])]);
    let too_much = sdk.refusal("refunds.create", json!([{ "payment_intent": intent, "amount": 1501 }])).await;
    assert_eq!(parts(&too_much, ["type", "param"]), [json!("StripeInvalidRequestError"), json!("amount")]);

    let dispute = sdk.provider.dispute_open(&intent, None).unwrap();
    let disputed = sdk.call("disputes.retrieve", json!([dispute])).await;
    assert_eq!(
        parts(&disputed, ["object", "status", "amount", "payment_intent"]),
        [json!("dispute"), json!("needs_response"), json!(1500), json!(intent)]
    );

    let mut moved = Vec::new();
    for id in
        sdk.all("balanceTransactions", json!({ "created": { "gte": 1, "lt": 4_000_000_000_i64 }, "limit": 2 })).await
    {
        let movement = sdk.call("balanceTransactions.retrieve", json!([id])).await;
        assert_eq!(
            movement["net"].as_i64(),
            Some(movement["amount"].as_i64().unwrap() - movement["fee"].as_i64().unwrap())
        );
        moved.push((text(&movement["reporting_category"]).to_owned(), movement["amount"].as_i64().unwrap()));
    }
    moved.sort();
    assert_eq!(moved, [("charge".to_owned(), 2500), ("dispute".to_owned(), -1500), ("refund".to_owned(), -1000)]);
    let of = sdk.all("balanceTransactions", json!({ "source": refund["id"] })).await;
    assert_eq!(of, [text(&refund["balance_transaction"])]);

    // Events: all of them over several pages, some by their types, and one.
    let all = sdk.all("events", json!({ "limit": 3 })).await;
    let ours: Vec<String> = sdk.provider.events().iter().rev().map(|event| text(&event["id"]).to_owned()).collect();
    assert_eq!(all, ours);
    let kinds = json!(["refund.created", "charge.dispute.created"]);
    let some = sdk.all("events", json!({ "types": kinds, "created": { "gte": 1 }, "delivery_success": false })).await;
    let mut found = BTreeSet::new();
    for id in some {
        let event = sdk.call("events.retrieve", json!([id])).await;
        assert_eq!(event["object"], "event");
        found.insert((text(&event["type"]).to_owned(), text(&event["data"]["object"]["id"]).to_owned()));
    }
    let refunded = ("refund.created".to_owned(), text(&refund["id"]).to_owned());
    assert_eq!(found, BTreeSet::from([("charge.dispute.created".to_owned(), dispute), refunded]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_that_was_left_is_charged_declined_or_asked_for() {
    let mut sdk = Sdk::start().await;
    let customer = sdk.customer().await;
    let intent = |card: &str, off_session: bool| {
        let mut new = json!({
            "amount": 700, "currency": "EUR", "customer": customer, "payment_method": card, "confirm": true,
            "payment_method_types": ["card"], "description": "credits", "metadata": { "purchase_id": "pur_1" },
        });
        if off_session {
            new["off_session"] = json!(true);
        }
        json!([new])
    };
    let good = sdk.card(&customer, "4242424242424242").await;
    let paid = sdk.call("paymentIntents.create", intent(&good, true)).await;
    assert_eq!(parts(&paid, ["status", "currency"]), [json!("succeeded"), json!("eur")]);

    let declined = sdk.card(&customer, "4000000000000341").await;
    let error = sdk.refusal("paymentIntents.create", intent(&declined, true)).await;
    assert_eq!(
        parts(&error, ["type", "statusCode", "code", "decline_code"]),
        [json!("StripeCardError"), json!(402), json!("card_declined"), json!("generic_decline")]
    );
    let failed = sdk.call("paymentIntents.retrieve", json!([error["payment_intent"]])).await;
    assert_eq!(failed["status"], "requires_payment_method");
    assert_eq!(failed["last_payment_error"]["code"], "card_declined");
    // Another card pays for it.
    let paid = sdk.call("paymentIntents.confirm", json!([failed["id"], { "payment_method": good }])).await;
    assert_eq!(paid["status"], "succeeded");

    let asking = sdk.card(&customer, "4000002500003155").await;
    let error = sdk.refusal("paymentIntents.create", intent(&asking, true)).await;
    assert_eq!(parts(&error, ["type", "code"]), [json!("StripeCardError"), json!("authentication_required")]);
    let asked = sdk.call("paymentIntents.create", intent(&asking, false)).await;
    assert_eq!(asked["status"], "requires_action");
    assert!(asked["next_action"]["redirect_to_url"]["url"].is_string());
    let cancelled = sdk.call("paymentIntents.cancel", json!([asked["id"]])).await;
    assert_eq!(cancelled["status"], "canceled");
    let error = sdk.refusal("paymentIntents.confirm", json!([asked["id"]])).await;
    assert_eq!(
        parts(&error, ["type", "code"]),
        [json!("StripeInvalidRequestError"), json!("resource_unexpected_state")]
    );
    assert_eq!(sdk.all("paymentIntents", json!({ "customer": customer, "limit": 1 })).await.len(), 4);
    let list = json!([{ "customer": customer, "expand": ["data.payment_method.customer", "data.latest_charge"] }]);
    for intent in sdk.call("paymentIntents.list", list).await["data"].as_array().unwrap() {
        assert_eq!(intent["payment_method"]["customer"]["id"], customer, "{intent}");
        assert_eq!(intent["latest_charge"].is_object(), intent["status"] == "succeeded", "{intent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_good_for_one_call_and_what_goes_wrong_has_a_name() {
    let mut sdk = Sdk::start().await;
    let keyed = |params: Value, key: &str| json!([params, { "idempotencyKey": key }]);
    let first = sdk.try_call("customers.create", keyed(json!({ "email": "a@example.com" }), "one")).await.ok().unwrap();
    let again = sdk.try_call("customers.create", keyed(json!({ "email": "a@example.com" }), "one")).await.ok().unwrap();
    assert_eq!(first.result, again.result);
    assert_eq!(parts(&first.response, ["statusCode", "replayed"]), [json!(200), json!(false)]);
    assert_eq!(again.response["replayed"], true);
    // The library says which request it was, in which version, and under which key.
    let version = text(&first.response["apiVersion"]);
    assert!(version.starts_with("20") && text(&first.response["requestId"]).starts_with("req_"), "{}", first.response);
    assert_eq!(first.response["idempotencyKey"], "one");
    assert_ne!(first.response["requestId"], again.response["requestId"]);
    let other = sdk.refusal("customers.create", keyed(json!({ "email": "b@example.com" }), "one")).await;
    assert_eq!(parts(&other, ["type", "statusCode"]), [json!("StripeIdempotencyError"), json!(400)]);
    let other = sdk.refusal("refunds.create", keyed(json!({ "payment_intent": "pi_1" }), "one")).await;
    assert_eq!(other["type"], "StripeIdempotencyError");
    assert_eq!(sdk.all("customers", json!({})).await.len(), 1);
    // What was refused before anything began is not kept; a declined card is.
    sdk.refusal("refunds.create", keyed(json!({ "payment_intent": "pi_1" }), "two")).await;
    let new =
        json!({ "amount": 1, "currency": "eur", "payment_method": "pm_card_chargeCustomerFail", "confirm": true });
    let new = keyed(new, "two");
    let [declined, again] =
        [sdk.refusal("paymentIntents.create", new.clone()).await, sdk.refusal("paymentIntents.create", new).await];
    assert_eq!(parts(&declined, ["type", "payment_intent"]), parts(&again, ["type", "payment_intent"]));
    assert_eq!(declined["type"], "StripeCardError");

    for (call, args, wanted) in [
        (
            "customers.retrieve",
            json!(["cus_of_nobody"]),
            json!(["StripeInvalidRequestError", 404, "resource_missing", "id"]),
        ),
        (
            "customers.create",
            json!([{ "emial": "x" }]),
            json!(["StripeInvalidRequestError", 400, "parameter_unknown", "emial"]),
        ),
        (
            "paymentIntents.create",
            json!([{ "currency": "eur" }]),
            json!(["StripeInvalidRequestError", 400, "parameter_missing", "amount"]),
        ),
        (
            "customers.list",
            json!([{ "limit": 101 }]),
            json!(["StripeInvalidRequestError", 400, "parameter_invalid", "limit"]),
        ),
        ("plans.list", json!([]), json!(["StripeInvalidRequestError", 404, "url_unknown", null])),
        (
            "customers.list",
            json!([{ "expand": ["data.nothing"] }]),
            json!(["StripeInvalidRequestError", 400, "property_cannot_be_expanded", "expand"]),
        ),
    ] {
        let error = sdk.refusal(call, args).await;
        assert_eq!(json!(parts(&error, ["type", "statusCode", "code", "param"])), wanted, "{call}: {error}");
        assert!(text(&error["requestId"]).starts_with("req_"), "{call}: {error}");
    }
    for (status, wanted) in [(403, "StripePermissionError"), (429, "StripeRateLimitError"), (500, "StripeAPIError")] {
        sdk.provider.fail_next([ApiFault::Before(status)]);
        let error = sdk.refusal("customers.create", json!([{}])).await;
        assert_eq!(parts(&error, ["type", "statusCode"]), [json!(wanted), json!(status)]);
    }
    sdk.set("key", "sk_test_of_somebody_else");
    assert_eq!(sdk.refusal("customers.list", json!([])).await["type"], "StripeAuthenticationError");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_library_repeats_by_itself_happens_once() {
    let mut sdk = Sdk::start().await;
    sdk.set("maxNetworkRetries", 1);
    // It makes its own key, and keeps to it.
    sdk.provider.fail_next([ApiFault::Before(500)]);
    let made = sdk.try_call("customers.create", json!([{}])).await.ok().unwrap();
    assert_eq!(made.response["replayed"], false);
    sdk.set("timeout", 500);
    sdk.provider.fail_next([ApiFault::LateAnswer(Duration::from_secs(20))]);
    let late = sdk.try_call("customers.create", json!([{}])).await.ok().unwrap();
    assert_eq!(late.response["replayed"], true);
    assert_eq!(sdk.all("customers", json!({})).await, [text(&late.result["id"]), text(&made.result["id"])]);
    // Done, but answered with 500 for ever.
    sdk.provider.fail_next([ApiFault::After500]);
    let lost = sdk.refusal("customers.create", json!([{}])).await;
    assert_eq!(parts(&lost, ["type", "statusCode"]), [json!("StripeAPIError"), json!(500)]);
    assert_eq!(sdk.all("customers", json!({})).await.len(), 3);
}
