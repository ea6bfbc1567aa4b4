//! What nobody told is looked for, and two sets of books are compared.

use control_plane::credits::purchases::recon::{DifferenceKind, Run};
use devkit::payments::{Checkout, WebhookFaults};
use integration_tests::eventually;
use serde_json::json;

use crate::purchases::{Order, Shop, webhook_url};
use crate::scenes::{count, text};

fn kinds(run: &Run) -> Vec<(DifferenceKind, &str)> {
    let mut kinds: Vec<_> = run.differences.iter().map(|found| (found.kind, found.external_ref.as_str())).collect();
    kinds.sort_by_key(|(kind, of)| (kind.as_str(), *of));
    kinds
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_nobody_brought_are_looked_for() {
    let shop = Shop::silent().await;
    let paid = shop.pay("paid", "starter").await;
    let abandoned = shop.order("abandoned", "starter").await;
    shop.provider.checkout(&abandoned.session, Checkout::Abandon).unwrap();
    shop.sweep().await;
    assert_eq!(shop.purchase(&paid).await["state"], "completed");
    assert_eq!(shop.purchase(&abandoned).await["state"], "expired");
    assert!(count(&shop.app, "select count(*) from stripe_events where source = 'sweep'").await >= 3);
    // One that is forged is never taken; the true one is found.
    shop.provider.set_webhook_faults(WebhookFaults { forge: true, ..WebhookFaults::default() });
    shop.provider.set_webhook_url(&webhook_url(&shop.app));
    let forged = shop.pay("forged", "starter").await;
    let event = shop.event(&forged, "checkout.session.completed");
    eventually("an attempt", || async { (shop.provider.deliveries(text(&event["id"])).0 > 0).then_some(()) }).await;
    assert_eq!(shop.purchase(&forged).await["state"], "open");
    shop.sweep().await;
    assert_eq!(shop.purchase(&forged).await["state"], "completed");
    shop.expect_reconciled().await;
    shop.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reconciliation_finds_every_planted_difference_and_no_other() {
    let shop = Shop::silent().await;
    let orders = [shop.buy("a", "starter").await, shop.buy("b", "growth").await, shop.buy("c", "agency").await];
    shop.provider.refund(&shop.intent(&orders[0]), 500).unwrap();
    let dispute = shop.provider.dispute_open(&shop.intent(&orders[1]), None).unwrap();
    shop.deliver_all().await;
    shop.provider.dispute_close(&dispute, true).unwrap();
    shop.deliver_all().await;
    let (events, balance) = shop.reconcile().await;
    assert_eq!((&events.differences, &balance.differences), (&vec![], &vec![]));
    assert_eq!(balance.items, 6);
    // All that moved is booked, fees as well.
    let theirs: i64 =
        shop.provider.objects("balance_transaction").iter().map(|movement| movement["net"].as_i64().unwrap()).sum();
    assert_eq!(count(&shop.app, "select sum(amount_minor)::bigint from cash_entries").await, theirs);

    let movement = |of: &str| {
        let found =
            shop.provider.objects("balance_transaction").into_iter().find(|movement| movement["source"] == of).unwrap();
        text(&found["id"]).to_owned()
    };
    let charge = |order: &Order| text(&shop.provider.object(&shop.intent(order)).unwrap()["latest_charge"]).to_owned();
    let charges = orders.each_ref().map(charge);
    let refund = text(&shop.provider.objects("refund")[0]["id"]).to_owned();
    // More, less, gone, in another currency, with another fee, and something that nobody told of.
    shop.provider.tamper(&movement(&charges[0]), |movement| movement["amount"] = json!(2501));
    shop.provider.tamper(&movement(&charges[1]), |movement| movement["fee"] = json!(1));
    shop.provider.tamper(&movement(&refund), |movement| movement["currency"] = json!("usd"));
    shop.provider.forget(&movement(&charges[2]));
    shop.provider.plant_balance_transaction("charge", "ch_of_nobody", 700, "eur");
    let (events, balance) = shop.reconcile().await;
    assert_eq!(events.differences, []);
    let fee = movement(&charges[1]);
    let mut expected = vec![
        (DifferenceKind::AmountDiffers, charges[0].as_str()),
        (DifferenceKind::CurrencyDiffers, refund.as_str()),
        (DifferenceKind::FeeDiffers, fee.as_str()),
        (DifferenceKind::MissingHere, "ch_of_nobody"),
        (DifferenceKind::MissingThere, charges[2].as_str()),
    ];
    expected.sort_by_key(|(kind, of)| (kind.as_str(), *of));
    assert_eq!(kinds(&balance), expected);
    // It is found again as long as it is there, and never deleted.
    shop.reconcile().await;
    assert_eq!(count(&shop.app, "select count(*) from recon_differences").await, 10);
    let gone = sqlx::query("delete from recon_differences").execute(&mut shop.app.master().await).await;
    assert!(gone.is_err());

    // Events: one never came, one could not be followed, one says something else by now.
    let missing = shop.pay("d", "starter").await;
    let order = shop.pay("e", "starter").await;
    for event in shop.events(&order) {
        shop.deliver(&event).await.expect_status(200);
    }
    let (events, _) = shop.reconcile().await;
    assert!(!events.differences.is_empty());
    assert!(events.differences.iter().all(|found| found.kind == DifferenceKind::EventMissing));
    let named: Vec<&str> = events.differences.iter().map(|found| found.external_ref.as_str()).collect();
    for kind in ["checkout.session.completed", "payment_intent.succeeded", "charge.succeeded"] {
        assert!(named.contains(&text(&shop.event(&missing, kind)["id"])), "{kind}: {named:?}");
    }
    assert_eq!(events.differences.len(), 3);
    // What was missing is followed by then.
    assert_eq!(shop.purchase(&missing).await["state"], "completed");
    let (events, _) = shop.reconcile().await;
    assert_eq!(events.differences, []);
    shop.expect_proven().await;
}
