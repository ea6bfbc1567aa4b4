//! What organizations are told says what the API's description has for it: a receiver made from that can read every event.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use control_plane::charges;
use control_plane::credits::topups;
use control_plane::webhooks::events::EVENT_TYPES;
use devkit::payments::Checkout;
use http::Method;
use integration_tests::{Receiver, eventually};
use kernel::{Clock as _, StoreId};
use serde_json::{Value, json};

use crate::described;
use crate::purchases::{Order, Shop};
use crate::scenes::text;

const ENDPOINTS: &str = "/api/webhooks/endpoints";
const CARD: &str = "/api/credits/payment-method";

/// An agency with an endpoint.
struct Agency {
    shop: Shop,
    receiver: Receiver,
    store: Value,
}

impl Agency {
    async fn open() -> Self {
        let shop = Shop::with(&["--charge-grace-days", "3"]).await;
        shop.provider.set_webhook_url(&crate::purchases::webhook_url(&shop.app));
        let receiver = Receiver::start().await;
        let store = shop.owner.create_store("tea").await.expect_status(201);
        shop.owner.api.post(ENDPOINTS, json!({ "url": receiver.url("/told") })).await.expect_status(201);
        Self { shop, receiver, store }
    }

    async fn put(&self, path: &str, body: Value) -> Value {
        let answer = self.shop.owner.api.send(Method::PUT, path, Some(body)).await;
        assert!(answer.status.is_success(), "{path}: {}", answer.text());
        if answer.text().is_empty() { Value::Null } else { answer.json() }
    }

    /// Everything of a type that was told so far.
    fn told(&self, kind: &str) -> Vec<Value> {
        let all = self.receiver.received().into_iter().map(|message| message.json());
        all.filter(|event| event["type"] == kind).map(|event| event["data"].clone()).collect()
    }

    /// Waits until a type was told so often, and returns what the last one said.
    async fn hears(&self, kind: &str, times: usize) -> Value {
        eventually(&format!("{times} of {kind}"), || async {
            let told = self.told(kind);
            (told.len() >= times).then(|| told.last().cloned()).flatten()
        })
        .await
    }

    async fn card(&self, number: &str) {
        let setup = self.shop.owner.api.send(Method::POST, &format!("{CARD}/setup"), None).await.expect_status(201);
        let method = self.shop.provider.fill_in(text(&setup["id"]), number).unwrap();
        self.put(CARD, json!({ "paymentMethod": method })).await;
    }

    /// Buys by itself, whatever is there, until the month has cost so much.
    async fn top_up(&self, monthly_cap_minor: i64) {
        let pack = &self.shop.packs["starter"]["id"];
        let rule = json!({ "threshold": 1_000_000, "packId": pack, "monthlyCapMinor": monthly_cap_minor });
        self.put("/api/credits/top-up", rule).await;
        topups::jobs::top_up(&self.shop.app.cx).await.unwrap();
    }

    async fn buy(&self, key: &str) -> Order {
        let order = self.shop.pay(key, "starter").await;
        self.shop.becomes(&order, "completed").await;
        order
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_says_what_the_description_has_for_it() {
    let agency = Agency::open().await;
    let Agency { shop, store, .. } = &agency;

    // Credits.
    agency.put("/api/credits/alerts", json!({ "lowBalance": 450 })).await;
    let user = &shop.owner.registered["user"]["id"];
    for of in [json!({ "storeId": store["id"] }), json!({ "userId": user })] {
        let mut budget = json!({ "monthlyAmount": 100, "isHard": false, "alertPercents": [100] });
        budget.as_object_mut().unwrap().extend(of.as_object().unwrap().clone());
        agency.put("/api/credits/budgets", budget).await;
    }
    let first = agency.buy("a").await;
    let completed = agency.hears("credits.purchase_completed", 1).await;
    assert_eq!((&completed["purchaseId"], &completed["isAutomatic"]), (&json!(first.id), &json!(false)));
    shop.spend("s", 100).await;
    assert_eq!(agency.hears("credits.balance_low", 1).await, json!({ "available": 400, "threshold": 450 }));
    agency.hears("credits.budget_reached", 2).await;
    let reached = agency.told("credits.budget_reached");
    let of = |kind: &str| reached.iter().find(|data| data["subjectKind"] == kind).unwrap();
    assert_eq!((&of("store")["storeId"], &of("member")["userId"]), (&store["id"], user));
    let abandoned = shop.order("b", "starter").await;
    shop.provider.checkout(&abandoned.session, Checkout::Abandon).unwrap();
    assert_eq!(agency.hears("credits.purchase_ended", 1).await["state"], "expired");

    // Top-ups.
    agency.card("4242424242424242").await;
    agency.top_up(2500).await;
    let automatic = agency.hears("credits.purchase_completed", 2).await;
    assert_eq!(automatic["isAutomatic"], true);
    agency.top_up(2500).await;
    assert_eq!(agency.hears("credits.top_up_capped", 1).await["reason"], "monthly_cap");
    agency.card("4000000000000341").await;
    agency.top_up(5000).await;
    assert_eq!(agency.hears("credits.top_up_failed", 1).await["failure"], "card_declined");
    agency.card("4000002500003155").await;
    agency.top_up(5000).await;
    assert_eq!(agency.hears("credits.top_up_needs_authentication", 1).await["failure"], "authentication_required");
    shop.owner.api.delete(CARD).await.expect_status(204);
    assert_eq!(agency.hears("credits.top_up_off", 1).await["reason"], "card_removed");

    // Refunds: each says how the whole purchase stands.
    let mut told = Vec::new();
    for amount in [500, 700] {
        shop.provider.refund(&shop.intent(&first), amount).unwrap();
        let refunded = agency.hears("credits.purchase_refunded", told.len() + 1).await;
        told.push([refunded["refundedMinor"].clone(), refunded["refundedCredits"].clone()]);
    }
    assert_eq!(json!(told), json!([[500, 100], [1200, 240]]));
    let disputed = agency.buy("c").await;
    let dispute = shop.provider.dispute_open(&shop.intent(&disputed), None).unwrap();
    agency.hears("credits.dispute_opened", 1).await;
    shop.provider.dispute_close(&dispute, true).unwrap();
    assert_eq!(agency.hears("credits.dispute_closed", 1).await["isWon"], true);

    // Webhooks: the second endpoint is told of nothing but its test, which it does not want.
    let other = Receiver::start().await;
    other.answer(410);
    let body = json!({ "url": other.url("/gone"), "eventTypes": ["webhook.test"] });
    let second = shop.owner.api.post(ENDPOINTS, body).await.expect_status(201);
    let path = format!("{ENDPOINTS}/{}/test", text(&second["id"]));
    shop.owner.api.send(Method::POST, &path, None).await.expect_status(202);
    let disabled = agency.hears("webhook.endpoint_disabled", 1).await;
    assert_eq!(disabled, json!({ "endpointId": second["id"], "reason": "gone" }));
    described::check_event(&other.received()[0].json());

    // Stores: one that owes more than is there.
    let id: StoreId = text(&store["id"]).parse().unwrap();
    let mut master = shop.app.master().await;
    sqlx::query(
        "insert into store_charges (store_id, organization_id, day, service, quantity, amount, state, next_attempt_at, created_at, updated_at)
         select id, organization_id, $2, 'store-day', 1, 1000000, 'due', $3, $3, $3 from stores where id = $1",
    )
    .bind(id.as_uuid())
    .bind(shop.app.clock.now().date_naive())
    .bind(shop.app.clock.now())
    .execute(&mut master)
    .await
    .unwrap();
    sqlx::query("update stores set status = 'active' where id = $1")
        .bind(id.as_uuid())
        .execute(&mut master)
        .await
        .unwrap();
    charges::reconcile(&shop.app.cx).await.unwrap();
    assert_eq!(agency.hears("store.charge_unpaid", 1).await["amount"], 1_000_000);
    shop.app.clock.advance(TimeDelta::days(3));
    charges::reconcile(&shop.app.cx).await.unwrap();
    assert_eq!(agency.hears("store.read_only", 1).await["owed"], 1_000_000);
    let ops = shop.app.admin().await;
    let waived = json!({ "storeId": store["id"], "reason": "a test" });
    ops.api.post("/api/ops/charges/waive", waived).await.expect_status(200);
    charges::reconcile(&shop.app.cx).await.unwrap();
    agency.hears("store.read_only_lifted", 1).await;

    let mut seen = BTreeSet::from(["webhook.test".to_owned()]);
    for message in agency.receiver.received() {
        let event = message.json();
        described::check_event(&event);
        seen.insert(text(&event["type"]).to_owned());
    }
    assert_eq!(seen, EVENT_TYPES.map(str::to_owned).into());
}
