//! What became of a payment is the same in the end, in whatever order, how often and by whomever it is told.

use std::time::Duration;

use chrono::TimeDelta;
use devkit::payments::{Checkout, sign};
use serde_json::{Value, json};

use crate::purchases::{Order, Shop};
use crate::scenes::{count, text};

/// Every order of these.
fn permutations<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
    if items.len() <= 1 {
        return vec![items.to_vec()];
    }
    let mut all = Vec::new();
    for at in 0..items.len() {
        let mut rest = items.to_vec();
        let first = rest.remove(at);
        for mut order in permutations(&rest) {
            order.insert(0, first.clone());
            all.push(order);
        }
    }
    all
}

/// What of a purchase must be the same in the end, whatever came first.
async fn canonical(shop: &Shop, order: &Order) -> Value {
    let id: kernel::PurchaseId = order.id.parse().unwrap();
    let statement = "select json_build_object(
        'state', p.state, 'failure', p.failure, 'tax', p.tax_minor, 'refunded', json_build_array(p.refunded_minor, p.refunded_credits, p.refunded_bonus),
        'lots', (select json_agg(json_build_array(l.kind, l.granted, l.remaining, l.held, l.consumed, l.returned) order by l.kind, l.granted)
            from credit_lots l where l.purchase_id = p.id),
        'refunds', (select json_agg(json_build_array(r.state, r.amount_minor) order by r.amount_minor) from purchase_refunds r where r.purchase_id = p.id),
        'disputes', (select json_agg(json_build_array(d.state, d.amount_minor, d.opened_credits)) from stripe_disputes d where d.purchase_id = p.id),
        'cash', (select json_agg(json_build_array(c.kind, c.amount_minor) order by c.kind, c.amount_minor) from cash_entries c where c.purchase_id = p.id),
        'charge', p.charge_ref is not null, 'intent', p.payment_intent is not null, 'session', p.checkout_session is not null,
        'open', (select count(*) from stripe_events e where e.state not in ('done', 'ignored')))
        from purchases p where p.id = $1";
    sqlx::query_scalar(statement).bind(id.as_uuid()).fetch_one(&mut shop.app.master().await).await.unwrap()
}

/// Brings these events of each of many orders in every order that there is, some of them twice.
async fn every_order_ends_the_same(shop: &Shop, types: &[&str], happen: impl Fn(&Shop, &Order)) -> Value {
    let mut ends: Vec<Value> = Vec::new();
    for (round, permutation) in permutations(types).into_iter().enumerate() {
        let order = shop.pay(&format!("round-{round}"), "growth").await;
        happen(shop, &order);
        for (at, kind) in permutation.iter().enumerate() {
            let event = shop.event(&order, kind);
            shop.deliver(&event).await.expect_status(200);
            if at % 2 == round % 2 {
                shop.deliver(&event).await.expect_status(200);
            }
        }
        let end = canonical(shop, &order).await;
        if let Some(first) = ends.first() {
            assert_eq!(&end, first, "{permutation:?}");
        }
        ends.push(end);
    }
    ends.swap_remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_and_refund_end_the_same_in_every_order() {
    let shop = Shop::silent().await;
    let types = [
        "checkout.session.completed",
        "payment_intent.succeeded",
        "charge.succeeded",
        "refund.created",
        "charge.refunded",
    ];
    let end = every_order_ends_the_same(&shop, &types, |shop, order| {
        shop.provider.refund(&shop.intent(order), 2300).unwrap();
    })
    .await;
    // A fifth of the money went back, and a fifth of the credits and of the bonus.
    assert_eq!(end["refunded"], json!([2300, 500, 50]), "{end}");
    assert_eq!(end["lots"], json!([["paid", 2500, 2000, 0, 0, 500], ["promotional", 250, 200, 0, 0, 50]]), "{end}");
    assert_eq!(end["cash"], json!([["charge", 11500], ["refund", -2300]]));
    assert_eq!(shop.amounts().await, [2200 * 120, 0, 0]);
    shop.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_dispute_ends_the_same_in_every_order() {
    let shop = Shop::silent().await;
    let types = [
        "checkout.session.completed",
        "payment_intent.succeeded",
        "charge.dispute.created",
        "charge.dispute.funds_withdrawn",
        "charge.dispute.closed",
    ];
    let end = every_order_ends_the_same(&shop, &types, |shop, order| {
        let dispute = shop.provider.dispute_open(&shop.intent(order), None).unwrap();
        shop.provider.dispute_close(&dispute, false).unwrap();
    })
    .await;
    assert_eq!(end["disputes"], json!([["lost", 11500, 2500]]), "{end}");
    assert_eq!(end["lots"], json!([["paid", 2500, 0, 0, 0, 2500], ["promotional", 250, 0, 0, 0, 250]]), "{end}");
    assert_eq!(shop.amounts().await, [0, 0, 0]);
    shop.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_won_dispute_and_a_failed_refund_end_the_same_in_every_order() {
    let shop = Shop::silent().await;
    let won = [
        "payment_intent.succeeded",
        "charge.dispute.created",
        "charge.dispute.funds_reinstated",
        "charge.dispute.closed",
    ];
    let end = every_order_ends_the_same(&shop, &won, |shop, order| {
        let dispute = shop.provider.dispute_open(&shop.intent(order), Some(5750)).unwrap();
        shop.provider.dispute_close(&dispute, true).unwrap();
    })
    .await;
    assert_eq!(end["disputes"], json!([["won", 5750, 1250]]), "{end}");
    assert_eq!(end["lots"], json!([["paid", 2500, 2500, 0, 0, 0], ["promotional", 250, 250, 0, 0, 0]]), "{end}");
    assert_eq!(shop.amounts().await, [2750 * 24, 0, 0]);

    let mut balances = Vec::new();
    let types = ["payment_intent.succeeded", "refund.created", "charge.refunded", "refund.failed"];
    for (round, permutation) in permutations(&types).into_iter().enumerate() {
        let before = shop.amounts().await[0];
        let order = shop.pay(&format!("failed-{round}"), "growth").await;
        let refund = shop.provider.refund(&shop.intent(&order), 2300).unwrap();
        shop.provider.refund_fail(&refund).unwrap();
        for kind in &permutation {
            shop.deliver(&shop.event(&order, kind)).await.expect_status(200);
        }
        let end = canonical(&shop, &order).await;
        assert_eq!(
            (&end["refunded"], &end["refunds"]),
            (&json!([0, 0, 0]), &json!([["failed", 2300]])),
            "{permutation:?}: {end}"
        );
        balances.push(shop.amounts().await[0] - before);
    }
    assert!(balances.iter().all(|&gained| gained == 2750), "{balances:?}");
    shop.expect_proven().await;
}

/// One order for each end that a payment can have, with nothing told of any.
async fn every_end(shop: &Shop, name: &str) -> Vec<Order> {
    let mut orders = Vec::new();
    let ends = ["paid", "declined", "authentication", "abandoned", "refunded", "lost", "won"];
    for end in ends {
        let order = shop.order(&format!("{name}-{end}"), "growth").await;
        let checkout = |how: Checkout| shop.provider.checkout(&order.session, how).unwrap();
        match end {
            "declined" => checkout(Checkout::Decline),
            "authentication" => {
                checkout(Checkout::NeedAuthentication);
                checkout(Checkout::FailAuthentication);
            }
            "abandoned" => checkout(Checkout::Abandon),
            _ => checkout(Checkout::Pay),
        }
        match end {
            "refunded" => drop(shop.provider.refund(&shop.intent(&order), 2300).unwrap()),
            "lost" | "won" => {
                let dispute = shop.provider.dispute_open(&shop.intent(&order), None).unwrap();
                shop.provider.dispute_close(&dispute, end == "won").unwrap();
            }
            _ => {}
        }
        orders.push(order);
    }
    orders
}

async fn ends_of(shop: &Shop, orders: &[Order]) -> Vec<Value> {
    let mut ends = Vec::new();
    for order in orders {
        ends.push(canonical(shop, order).await);
    }
    ends
}

#[tokio::test(flavor = "multi_thread")]
async fn every_end_of_a_payment_is_the_same_however_it_is_told() {
    let shop = Shop::silent().await;
    let plain = every_end(&shop, "plain").await;
    shop.deliver_all().await;
    let ends = ends_of(&shop, &plain).await;
    let states: Vec<&str> = ends.iter().map(|end| text(&end["state"])).collect();
    assert_eq!(states, ["completed", "open", "open", "expired", "completed", "completed", "completed"]);
    assert!(ends[1..3].iter().all(|end| end["failure"].is_string()), "{ends:?}");
    assert_eq!((&ends[4]["refunded"], &ends[4]["open"]), (&json!([2300, 500, 50]), &json!(0)));
    assert_eq!((&ends[5]["disputes"][0][0], &ends[6]["disputes"][0][0]), (&json!("lost"), &json!("won")));
    // Paid, won, and what is left of the one that was refunded in part.
    assert_eq!(shop.amounts().await, [2750 + 2750 + 2200, 0, 0]);

    let orders = every_end(&shop, "chaos").await;
    let events: Vec<Value> = orders.iter().flat_map(|order| shop.events(order)).collect();
    let before = ends_of(&shop, &orders).await;
    let signed: Vec<_> = events.iter().map(|event| shop.provider.signed(event)).collect();
    // Forged: by somebody else, and with the signature of another.
    for (at, (body, _)) in signed.iter().enumerate() {
        let by_another = sign("whsec_of_somebody_else", shop.provider.now(), body);
        shop.send(body.clone(), &by_another).await.expect_problem(400, "invalid-signature");
        let (_, of_another) = &signed[(at + 1) % signed.len()];
        shop.send(body.clone(), of_another).await.expect_problem(400, "invalid-signature");
    }
    // Late.
    shop.app.clock.advance(TimeDelta::seconds(302));
    for (body, signature) in &signed {
        shop.send(body.clone(), signature).await.expect_problem(400, "invalid-signature");
    }
    assert_eq!(ends_of(&shop, &orders).await, before);
    // Signed anew, the last first, each of them twice.
    shop.provider.advance(Duration::from_secs(302));
    for event in events.iter().rev() {
        shop.deliver(event).await.expect_status(200);
        shop.deliver(event).await.expect_status(200);
    }
    assert_eq!(ends_of(&shop, &orders).await, ends);
    assert_eq!(shop.amounts().await, [2 * (2750 + 2750 + 2200), 0, 0]);

    // Replayed with another outcome: whose end would be another one, had it been believed.
    let lies = [
        (1, "payment_intent.payment_failed", "status", json!("succeeded")),
        (2, "payment_intent.payment_failed", "status", json!("succeeded")),
        (3, "checkout.session.expired", "payment_status", json!("paid")),
        (4, "refund.created", "status", json!("failed")),
        (4, "charge.refunded", "amount_refunded", json!(11500)),
        (5, "charge.dispute.closed", "status", json!("won")),
        (6, "charge.dispute.closed", "status", json!("lost")),
    ];
    for (at, kind, member, lie) in &lies {
        let mut event = shop.event(&orders[*at], kind);
        assert_ne!(event["data"]["object"][member], *lie);
        event["data"]["object"][member] = lie.clone();
        shop.deliver(&event).await.expect_problem(409, "event-changed");
    }
    let alarms = count(&shop.app, "select count(*) from recon_differences where kind = 'event_changed'").await;
    assert_eq!(usize::try_from(alarms).unwrap(), lies.len());
    assert_eq!(ends_of(&shop, &orders).await, ends);
    assert_eq!(ends_of(&shop, &plain).await, ends);
    shop.expect_reconciled().await;
    shop.expect_proven().await;
}
