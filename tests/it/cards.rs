//! Cards that are left for automatic top-ups: taken, replaced and removed, here and at the provider.

use chrono::TimeDelta;
use control_plane::credits::purchases;
use devkit::payments::{ApiFault, Checkout};
use http::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::Row as _;
use tokio::task::JoinSet;

use crate::purchases::{Order, Shop};
use crate::scenes::{count, join, text};
use crate::top_ups::{AUTHENTICATION, Agency, CARD, GOOD};

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
async fn the_first_card_is_set_however_often_it_is_said_at_once() {
    let agency = Agency::open().await;
    let card = agency.take_down(&agency.shop.owner, GOOD).await;
    let mut puts = JoinSet::new();
    for _ in 0..32 {
        let (client, body) = (agency.shop.owner.api.clone(), json!({ "paymentMethod": card }));
        puts.spawn(async move { client.send(Method::PUT, CARD, Some(body)).await });
    }
    for answer in puts.join_all().await {
        assert_eq!(answer.expect_status(200)["paymentMethod"], json!(card));
    }
    assert!(agency.shop.provider.object(&card).unwrap()["customer"].is_string());
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
