//! Automatic purchases whose answer does not come: looked for, paid once, and not asked for once they are not wanted.

use std::net::SocketAddr;
use std::time::Duration;

use chrono::TimeDelta;
use control_plane::credits::{purchases, topups};
use devkit::payments::{ApiFault, TestPayments, TestPaymentsOptions};
use integration_tests::{ChaosProxy, eventually};
use serde_json::{Value, json};

use crate::purchases::arguments_of;
use crate::scenes::count;
use crate::top_ups::{Agency, CARD, GOOD, RULE};

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_is_looked_for_and_paid_once() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    agency.card(GOOD).await;
    agency.rule(400, "starter", 50_000).await;
    // Late: it is not asked for again, but found when there is time.
    shop.provider.fail_next([ApiFault::LateAnswer(Duration::from_secs(4))]);
    agency.top_up().await;
    assert_eq!((agency.payments(), agency.available().await), (1, 0));
    agency.pass(TimeDelta::seconds(61));
    agency.top_up().await;
    assert_eq!((agency.payments(), agency.available().await), (1, 500));
    shop.spend("a", 500).await;

    // Done, and answered 500 for ever: it is found by what it is about.
    shop.provider.fail_next([ApiFault::After500]);
    agency.top_up().await;
    let standing = agency.standing().await;
    assert_eq!((&standing["inFlight"]["state"], &standing["consecutiveDeclines"]), (&json!("created"), &json!(0)));
    assert_eq!((&standing["inFlight"]["isAutomatic"], &standing["spentThisMonthMinor"]), (&json!(true), &json!(5000)));
    // Nothing more is bought while it is not known.
    agency.top_up().await;
    assert_eq!(agency.payments(), 2);
    agency.pass(TimeDelta::seconds(61));
    agency.top_up().await;
    assert_eq!((agency.payments(), agency.charges(), agency.available().await), (2, 2, 500));
    shop.spend("b", 500).await;

    // Never done: asked for again.
    shop.provider.fail_next([ApiFault::Before(503)]);
    agency.top_up().await;
    assert_eq!((agency.payments(), agency.standing().await["inFlight"]["state"].clone()), (2, json!("created")));
    agency.pass(TimeDelta::seconds(61));
    agency.top_up().await;
    assert_eq!((agency.charges(), agency.available().await), (3, 500));
    shop.spend("c", 500).await;

    // Too many calls for the provider, so that it was not done: asked for again at once.
    shop.provider.fail_next([ApiFault::Before(429), ApiFault::Before(429)]);
    agency.top_up().await;
    assert_eq!((agency.charges(), agency.available().await), (4, 500));
    shop.spend("d", 500).await;

    // A platform whose own key is refused says nothing about the card.
    shop.provider.fail_next([ApiFault::Before(401)]);
    agency.top_up().await;
    assert_eq!(agency.standing().await["inFlight"]["state"], "created");
    agency.pass(TimeDelta::seconds(61));
    agency.top_up().await;
    assert_eq!((agency.charges(), agency.available().await), (5, 500));
    assert_eq!(agency.told("credits.top_up_failed").await, Vec::<Value>::new());
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_day_a_payment_is_looked_for_and_never_asked_for_again() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    agency.card(GOOD).await;
    agency.rule(400, "starter", 50_000).await;
    // Done, and found a day later, when the provider has forgotten the key.
    shop.provider.fail_next([ApiFault::After500]);
    agency.top_up().await;
    agency.pass(TimeDelta::hours(30));
    purchases::jobs::sweep(&shop.app.cx).await.unwrap();
    assert_eq!((agency.charges(), agency.available().await), (1, 500));
    shop.spend("a", 500).await;

    // Never done: a day later it is looked for, then it comes to nothing, and the rule decides anew.
    shop.provider.fail_next([ApiFault::Before(500)]);
    agency.top_up().await;
    agency.pass(TimeDelta::minutes(24 * 60 + 10));
    agency.top_up().await;
    assert_eq!((agency.payments(), agency.states().await), (1, vec!["completed".to_owned(), "created".to_owned()]));
    agency.pass(TimeDelta::hours(1));
    agency.top_up().await;
    assert_eq!((agency.charges(), agency.available().await), (2, 500));
    assert_eq!(agency.states().await, ["completed", "expired", "completed"]);
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_down_is_not_asked_for_once_it_is_not_wanted_any_more() {
    let agency = Agency::open().await;
    let shop = &agency.shop;
    let order = || async {
        shop.provider.fail_next([ApiFault::Before(503)]);
        agency.top_up().await;
        assert_eq!(agency.standing().await["inFlight"]["state"], "created");
    };
    let expect_nothing_asked = || async {
        let before = agency.payments();
        agency.pass(TimeDelta::seconds(61));
        agency.top_up().await;
        purchases::jobs::sweep(&shop.app.cx).await.unwrap();
        assert_eq!((agency.payments(), agency.charges(), agency.available().await), (before, 0, 0));
    };
    let give_up = async |states: &[&str]| {
        agency.pass(TimeDelta::hours(26));
        agency.top_up().await;
        assert_eq!(agency.states().await, states);
    };

    // The card is removed, and the provider has not heard of that: it could be charged.
    let removed = agency.card(GOOD).await;
    agency.rule(400, "starter", 50_000).await;
    order().await;
    shop.provider.fail_next((0..4).map(|_| ApiFault::Before(503)));
    shop.owner.api.delete(CARD).await.expect_status(204);
    assert!(shop.provider.object(&removed).unwrap()["customer"].is_string());
    expect_nothing_asked().await;
    give_up(&["expired"]).await;

    // The rule is off, or gone.
    agency.card(GOOD).await;
    agency.rule(400, "starter", 50_000).await;
    order().await;
    let mut off = agency.rule_body(400, "starter", 50_000);
    off["isEnabled"] = json!(false);
    agency.put(RULE, off).await.expect_status(200);
    expect_nothing_asked().await;
    shop.owner.api.delete(RULE).await.expect_status(204);
    expect_nothing_asked().await;
    give_up(&["expired"; 2]).await;

    // Another card is in its place: with that one the rule decides anew when what was written down is over.
    agency.rule(400, "starter", 50_000).await;
    order().await;
    let other = agency.card(GOOD).await;
    expect_nothing_asked().await;
    give_up(&["expired", "expired", "expired", "completed"]).await;
    assert_eq!((agency.payments(), agency.charges(), agency.available().await), (1, 1, 500));
    assert_eq!(shop.provider.objects("payment_intent")[0]["payment_method"], json!(other));

    // What was asked for before is followed, whatever became of the card.
    shop.spend("all", 500).await;
    shop.provider.fail_next([ApiFault::After500]);
    agency.top_up().await;
    shop.owner.api.delete(CARD).await.expect_status(204);
    agency.pass(TimeDelta::seconds(61));
    agency.top_up().await;
    assert_eq!((agency.payments(), agency.charges(), agency.available().await), (2, 2, 500));
    agency.expect_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_dies_before_the_provider_is_reached_leaves_one_charge_to_others() {
    let provider = TestPayments::start(TestPaymentsOptions::default()).await.unwrap();
    let proxy = ChaosProxy::to(SocketAddr::from(([127, 0, 0, 1], provider.address().port()))).await;
    let through = format!("http://127.0.0.1:{}", proxy.port);
    let agency = Agency::at(provider, &["--stripe-api-url", &through]).await;
    let shop = &agency.shop;
    agency.card(GOOD).await;
    agency.rule(400, "starter", 50_000).await;
    let written = || async {
        let unfinished = "select count(*) from purchases where is_auto and state = 'created'";
        (count(&shop.app, unfinished).await == 1).then_some(())
    };

    // The provider cannot be reached at all.
    proxy.cut();
    agency.top_up().await;
    written().await.unwrap();
    proxy.mend();
    agency.pass(TimeDelta::seconds(61));
    purchases::jobs::sweep(&shop.app.cx).await.unwrap();
    assert_eq!((agency.payments(), agency.charges(), agency.available().await), (1, 1, 500));
    shop.spend("a", 500).await;

    // Somebody dies while they wait for it, and their call arrives all the same, or does not.
    proxy.stall();
    let cx = shop.app.cx.clone();
    let dying = tokio::spawn(async move { topups::jobs::top_up(&cx).await });
    eventually("the purchase", written).await;
    dying.abort();
    assert!(dying.await.unwrap_err().is_cancelled());
    proxy.mend();
    let arguments = arguments_of(&shop.provider);
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.extend(["--top-up-poll-ms", "5"]);
    agency.pass(TimeDelta::seconds(61));
    let other = shop.app.other_node_with(&arguments).await;
    eventually("the credits", || async { (agency.available().await == 500).then_some(()) }).await;
    other.stop().await;
    assert_eq!((agency.payments(), agency.charges()), (2, 2));
    let metrics = shop.app.internal().get("/metrics").await.text();
    for outcome in ["ordered", "completed", "unanswered"] {
        assert!(metrics.contains(&format!("tenantry_top_ups_total{{outcome=\"{outcome}\"}}")), "{outcome}: {metrics}");
    }
    agency.expect_sound().await;
}
