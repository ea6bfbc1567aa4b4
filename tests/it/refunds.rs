//! Money that goes back: the credits for it go first, and what is spent already is owed.

use std::time::Duration;

use chrono::TimeDelta;
use devkit::payments::ApiFault;
use serde_json::json;

use crate::purchases::Shop;
use crate::scenes::count;

#[tokio::test(flavor = "multi_thread")]
async fn money_that_goes_back_takes_the_unspent_credits_and_what_is_spent_is_owed() {
    let shop = Shop::silent().await;
    let order = shop.buy("one", "starter").await;
    let intent = shop.intent(&order);
    shop.spend("spent", 300).await;
    // In part, and unspent: two fifths of the money, two fifths of the credits.
    shop.provider.refund(&intent, 1000).unwrap();
    shop.deliver_all().await;
    assert_eq!(shop.amounts().await, [0, 0, 0]);
    let purchase = shop.purchase(&order).await;
    assert_eq!((&purchase["refundedMinor"], &purchase["refundedCredits"]), (&json!(1000), &json!(200)));
    // The rest is spent: somebody in the dashboard gave it back all the same.
    shop.provider.refund(&intent, 1500).unwrap();
    shop.deliver_all().await;
    assert_eq!(shop.amounts().await, [0, 0, 300]);
    shop.expect_reconciled().await;
    // The next purchase repays it first.
    shop.buy("two", "starter").await;
    assert_eq!(shop.amounts().await, [200, 0, 0]);
    shop.deliver_all().await;
    assert_eq!(shop.amounts().await, [200, 0, 0]);
    let told = "select count(*) from outbox_events where type = 'credits.purchase_refunded'";
    assert_eq!(count(&shop.app, told).await, 2);
    shop.expect_reconciled().await;
    shop.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ops_give_back_what_is_unspent_once_per_key() {
    let shop = Shop::silent().await;
    let order = shop.buy("one", "growth").await;
    // The bonus is spent first.
    shop.spend("spent", 250 + 1000).await;
    let too_much = shop.refund(&order, "a", json!({ "amountMinor": 11500 })).await;
    let problem = too_much.expect_problem(409, "refund-exceeds-unspent");
    assert_eq!((&problem["unspent"], &problem["refundableMinor"]), (&json!(1500), &json!(6900)));
    shop.refund(&order, "b", json!({ "amountMinor": 11501 })).await.expect_problem(409, "refund-exceeds-paid");
    shop.refund(&order, "c", json!({ "amountMinor": 0 })).await.expect_field(422, "invalid-input", "/amountMinor");
    let given =
        shop.refund(&order, "d", json!({ "amountMinor": 2300, "reason": "They asked." })).await.expect_status(201);
    assert_eq!((&given["state"], &given["amountMinor"]), (&json!("succeeded"), &json!(2300)));
    assert_eq!(shop.amounts().await, [1000, 0, 0]);
    // By default all that is unspent.
    let ops = shop.app.admin().await;
    let path = format!("/api/ops/credits/purchases/{}/refund", order.id);
    let keyed = ops.api.with("idempotency-key", "e");
    let given = keyed.post(&path, json!({})).await;
    assert_eq!(given.expect_status(201)["amountMinor"], 4600);
    assert_eq!(shop.amounts().await, [0, 0, 0]);
    let again = keyed.post(&path, json!({})).await;
    assert_eq!(
        (again.expect_status(201)["id"].clone(), again.header("idempotent-replayed")),
        (given.json()["id"].clone(), "true")
    );
    keyed.post(&path, json!({ "amountMinor": 1 })).await.expect_problem(422, "idempotency-key-reused");
    shop.refund(&order, "f", json!({})).await.expect_problem(409, "refund-exceeds-unspent");
    let owed = shop.refund(&order, "g", json!({ "amountMinor": 2300, "allowDebt": true })).await;
    owed.expect_status(201);
    assert_eq!(shop.amounts().await, [0, 0, 500]);
    assert_eq!(shop.provider.objects("refund").len(), 3);
    // The webhooks tell of what we did ourselves.
    shop.deliver_all().await;
    assert_eq!(shop.amounts().await, [0, 0, 500]);
    assert_eq!(count(&shop.app, "select count(*) from purchase_refunds").await, 3);
    let unpaid = shop.order("unpaid", "starter").await;
    shop.refund(&unpaid, "h", json!({})).await.expect_problem(409, "purchase-not-paid");
    shop.expect_reconciled().await;
    shop.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_whose_outcome_is_lost_is_found_and_one_that_is_refused_is_undone() {
    let shop = Shop::silent().await;
    let order = shop.buy("one", "starter").await;
    shop.provider.fail_next([ApiFault::After500]);
    let asked = shop.refund(&order, "a", json!({ "amountMinor": 500 })).await.expect_status(201);
    assert_eq!(asked["state"], "requested");
    assert_eq!(shop.amounts().await, [400, 0, 0]);
    shop.app.clock.advance(TimeDelta::minutes(5));
    shop.provider.advance(Duration::from_secs(300));
    shop.sweep().await;
    assert_eq!(count(&shop.app, "select count(*) from purchase_refunds where state = 'succeeded'").await, 1);
    // It never arrived: asked for again.
    shop.provider.fail_next([ApiFault::Before(500)]);
    shop.refund(&order, "b", json!({ "amountMinor": 500 })).await.expect_status(201);
    assert_eq!(shop.provider.objects("refund").len(), 1);
    shop.app.clock.advance(TimeDelta::minutes(5));
    shop.provider.advance(Duration::from_secs(300));
    shop.sweep().await;
    assert_eq!(shop.provider.objects("refund").len(), 2);
    assert_eq!(shop.amounts().await, [300, 0, 0]);
    // Refused: the credits come back.
    shop.provider.fail_next([ApiFault::Before(403)]);
    shop.refund(&order, "c", json!({ "amountMinor": 500 })).await.expect_problem(502, "payment-provider-refused");
    assert_eq!(shop.amounts().await, [300, 0, 0]);
    let purchase = shop.purchase(&order).await;
    assert_eq!((&purchase["refundedMinor"], &purchase["refundedCredits"]), (&json!(1000), &json!(200)));
    // And may go back after all, out of where they are now.
    shop.refund(&order, "d", json!({})).await.expect_status(201);
    assert_eq!(shop.amounts().await, [0, 0, 0]);
    assert_eq!(shop.purchase(&order).await["refundedMinor"], 2500);
    shop.deliver_all().await;
    shop.expect_reconciled().await;
    shop.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispute_freezes_what_is_left_until_it_is_decided() {
    let shop = Shop::silent().await;
    let won = shop.buy("won", "starter").await;
    shop.spend("some", 100).await;
    let dispute = shop.provider.dispute_open(&shop.intent(&won), None).unwrap();
    shop.deliver_all().await;
    assert_eq!(shop.amounts().await, [0, 400, 0]);
    shop.refund(&won, "a", json!({})).await.expect_problem(409, "purchase-disputed");
    shop.provider.dispute_close(&dispute, true).unwrap();
    shop.deliver_all().await;
    assert_eq!(shop.amounts().await, [400, 0, 0]);
    shop.expect_reconciled().await;

    shop.spend("more", 400).await;
    let lost = shop.buy("lost", "growth").await;
    shop.spend("most", 250 + 500).await;
    let dispute = shop.provider.dispute_open(&shop.intent(&lost), None).unwrap();
    shop.deliver_all().await;
    assert_eq!(shop.amounts().await, [0, 2000, 0]);
    shop.provider.dispute_close(&dispute, false).unwrap();
    shop.deliver_all().await;
    // What was spent of it is owed; the bonus that was spent is not.
    assert_eq!(shop.amounts().await, [0, 0, 500]);
    // The bank has given the money back: there is nothing left to give, with debt or without.
    shop.refund(&lost, "b", json!({})).await.expect_problem(409, "purchase-dispute-lost");
    let owing = json!({ "amountMinor": 100, "allowDebt": true });
    shop.refund(&lost, "c", owing).await.expect_problem(409, "purchase-dispute-lost");
    assert_eq!(count(&shop.app, "select count(*) from purchase_refunds").await, 0);
    shop.buy("after", "starter").await;
    assert_eq!(shop.amounts().await, [0, 0, 0]);
    let told = "select string_agg(type || ' ' || coalesce(data ->> 'isWon', ''), ',' order by seq) from outbox_events where type like 'credits.dispute%'";
    let told: String = sqlx::query_scalar(told).fetch_one(&mut shop.app.master().await).await.unwrap();
    assert_eq!(
        told,
        "credits.dispute_opened ,credits.dispute_closed true,credits.dispute_opened ,credits.dispute_closed false"
    );
    shop.expect_reconciled().await;
    shop.expect_proven().await;
}
