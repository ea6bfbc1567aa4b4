//! Deliveries of webhooks: in order, tried for three days, by one node at a time, and sent again when asked for.

use std::sync::Arc;
use std::time::Duration as StdDuration;

use chrono::Duration;
use control_plane::config::Config;
use control_plane::cx::{OpsCx, Services};
use control_plane::webhooks::{self, deliver};
use http::StatusCode;
use integration_tests::{Receiver, TestApp, TestClock, eventually};
use kernel::Clock as _;
use serde_json::{Value, json};
use tenancy::Reach;

use crate::scenes::{count, text};
use crate::webhooks::{ENDPOINTS, Hooks, is_signed, moment, numbers, outbound, register, tell};

/// The parts of another node on the same master, without its listeners.
fn other_node(app: &TestApp, arguments: &[&str]) -> OpsCx {
    let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
    let Config { master, keys, hosts, limits, .. } = integration_tests::config(&app.master.url(), &arguments);
    OpsCx::new(master, &keys, hosts, limits, Services::default(), true, Arc::<TestClock>::clone(&app.clock)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_taken_is_tried_for_three_days_and_then_given_up() {
    let hooks = Hooks::set().await;
    hooks.receiver.answer(500);
    hooks.tell(1).await;
    let began = hooks.app.clock.now();
    let mut attempt = 0;
    let mut pauses = Vec::new();
    let last = loop {
        attempt += 1;
        let delivery = hooks.after_attempt(attempt).await;
        assert_eq!((&delivery["lastStatus"], &delivery["lastError"]), (&json!(500), &json!("status")));
        if delivery["state"] != "pending" {
            break delivery;
        }
        let next = moment(&delivery["nextAttemptAt"]);
        pauses.push((next - hooks.app.clock.now()).num_seconds());
        hooks.until(next);
    };
    let took = hooks.app.clock.now() - began;
    assert_eq!(last["state"], "abandoned");
    assert!((71..=73).contains(&took.num_hours()), "{took}");
    assert!((10..=30).contains(&attempt), "{attempt} attempts");
    assert!(pauses[..4].is_sorted() && pauses[0] <= 6 && pauses[4] > 600, "{pauses:?}");
    // Each attempt carries the same event and its own time.
    let received = hooks.receiver.received();
    assert_eq!(received.len(), usize::try_from(attempt).unwrap());
    assert!(received.iter().all(|message| is_signed(message, &hooks.endpoint.secret)));
    assert!(received.windows(2).all(|pair| pair[0].body == pair[1].body
        && pair[0].header("webhook-timestamp") < pair[1].header("webhook-timestamp")));
    // What is known of the attempts is bounded.
    let path = hooks.endpoint.path(&format!("/deliveries/{}", text(&last["id"])));
    let log = hooks.owner.api.get(&path).await.expect_status(200)["attemptLog"].as_array().unwrap().len();
    assert!((10..=20).contains(&log), "{log}");
    assert_eq!(hooks.endpoint().await["isEnabled"], true);
    assert!(moment(&hooks.endpoint().await["failingSince"]) - began < Duration::seconds(30));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_is_told_in_order_also_through_failures() {
    let hooks = Hooks::set().await;
    // Every third request fails, whatever it is.
    let asked = std::sync::atomic::AtomicUsize::new(0);
    hooks.receiver.answer_by(move |_| {
        let number = asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        if number.is_multiple_of(3) { StatusCode::BAD_GATEWAY } else { StatusCode::OK }
    });
    for number in 0..30 {
        hooks.tell(number).await;
    }
    hooks.settle().await;
    let mut taken = hooks.receiver.received();
    taken.retain(|message| message.status.is_success());
    assert_eq!(numbers(&taken), (0..30).collect::<Vec<_>>());
    assert_eq!(hooks.receiver.most_in_flight(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_that_is_never_taken_lets_the_others_pass() {
    let hooks = Hooks::set().await;
    hooks.receiver.answer_by(|message| {
        if message.json()["data"]["number"] == 1 { StatusCode::BAD_REQUEST } else { StatusCode::OK }
    });
    for number in 0..4 {
        hooks.tell(number).await;
    }
    let began = hooks.app.clock.now();
    eventually("the others", || async {
        hooks.pass_time().await;
        hooks.receiver.received().iter().any(|message| message.json()["data"]["number"] == 3).then_some(())
    })
    .await;
    assert!(hooks.app.clock.now() - began < Duration::hours(1));
    let mut taken = hooks.receiver.received();
    let tried = taken.iter().filter(|message| !message.status.is_success()).count();
    taken.retain(|message| message.status.is_success());
    assert_eq!(numbers(&taken), [0, 2, 3]);
    assert!(tried >= 5, "{tried} tries before the others passed");
    // An answer is written down a moment after it was given.
    eventually("the only one that is left", || async {
        let deliveries = hooks.deliveries().await;
        let left = deliveries.iter().filter(|delivery| delivery["state"] == "pending").count();
        (left == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_nodes_make_one_delivery_per_event_and_endpoint() {
    const EVENTS: usize = 60;
    let hooks = Hooks::set().await;
    let second = Receiver::start().await;
    let filtered = Receiver::start().await;
    register(&hooks.owner, &second.url("/")).await;
    let body = json!({ "url": filtered.url("/"), "eventTypes": ["credits.budget_reached"] });
    hooks.owner.api.post(ENDPOINTS, body).await.expect_status(201);
    let stranger = hooks.app.owner("eve").await;
    let strangers = Receiver::start().await;
    register(&stranger, &strangers.url("/")).await;
    let nodes: Vec<OpsCx> = (0..2).map(|_| other_node(&hooks.app, &[])).collect();
    let dispatchers: Vec<_> =
        nodes.iter().map(|node| tokio::spawn(deliver::run(node.clone(), outbound(Reach::Anywhere, 5000)))).collect();
    for number in 0..EVENTS {
        hooks.tell(number).await;
    }
    hooks.receiver.wait_for(EVENTS).await;
    second.wait_for(EVENTS).await;
    eventually("the end of every delivery", || async {
        let pending = count(&hooks.app, "select count(*) from webhook_deliveries where state = 'pending'").await;
        (pending == 0).then_some(())
    })
    .await;
    for receiver in [&hooks.receiver, &second] {
        assert!(numbers(&receiver.received()).into_iter().eq(0..EVENTS as u64));
    }
    assert_eq!((filtered.received().len(), strangers.received().len()), (0, 0));
    assert_eq!(count(&hooks.app, "select count(*) from webhook_deliveries").await, 2 * EVENTS as i64);
    assert_eq!(count(&hooks.app, "select count(*) from webhook_deliveries where attempts <> 1").await, 0);
    for (node, dispatcher) in nodes.iter().zip(dispatchers) {
        node.close().await;
        dispatcher.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_node_had_begun_is_sent_by_another() {
    let hooks = Hooks::set().await;
    hooks.receiver.answer(500);
    hooks.tell(1).await;
    hooks.after_attempt(1).await;
    // As a node leaves it that is killed between taking it up and the answer.
    sqlx::query("update webhook_deliveries set attempts = 2, tries = 2, next_attempt_at = $1, leased_until = $2")
        .bind(hooks.app.clock.now())
        .bind(hooks.app.clock.now() + Duration::seconds(45))
        .execute(&mut hooks.app.master().await)
        .await
        .unwrap();
    hooks.receiver.answer(200);
    hooks.tell(2).await;
    tokio::time::timeout(StdDuration::from_millis(300), std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(hooks.receiver.received().len(), 1, "it is leased, and the next waits for it");
    hooks.app.clock.advance(Duration::seconds(46));
    let received = hooks.receiver.wait_for(3).await;
    assert_eq!(numbers(&received), [1, 1, 2]);
    hooks.settle().await;
    assert_eq!(hooks.deliveries().await.pop().unwrap()["attempts"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_sent_again_when_asked_for() {
    let hooks = Hooks::set().await;
    for number in 0..3 {
        hooks.tell(number).await;
        // What is on its way for longer than its lease lasts is sent twice.
        hooks.settle().await;
        hooks.app.clock.advance(Duration::minutes(10));
    }
    let second = hooks.deliveries().await.remove(1);
    let path = hooks.endpoint.path(&format!("/deliveries/{}/resend", text(&second["id"])));
    let resent = hooks.owner.api.send(http::Method::POST, &path, None).await.expect_status(202);
    assert_eq!(resent["state"], "pending");
    let received = hooks.receiver.wait_for(4).await;
    assert_eq!(numbers(&received), [0, 1, 2, 1]);
    assert_eq!(received[3].header("webhook-id"), received[1].header("webhook-id"));
    hooks.settle().await;
    // Everything since a moment: what was taken only when asked for.
    let since = moment(&second["eventCreatedAt"]).to_rfc3339();
    let path = hooks.endpoint.path("/resend");
    let none = hooks.owner.api.post(&path, json!({ "since": since })).await.expect_status(202);
    assert_eq!(none["resent"], 0);
    let all = hooks.owner.api.post(&path, json!({ "since": since, "includesDelivered": true })).await;
    assert_eq!(all.expect_status(202)["resent"], 2);
    hooks.receiver.wait_for(6).await;
    hooks.settle().await;
    assert_eq!(numbers(&hooks.receiver.received()), [0, 1, 2, 1, 1, 2]);
    // An endpoint that came later catches up in order, and tests are not among what it is told.
    hooks.owner.api.send(http::Method::POST, &hooks.endpoint.path("/test"), None).await.expect_status(202);
    hooks.receiver.wait_for(7).await;
    hooks.settle().await;
    let late = Receiver::start().await;
    let newcomer = register(&hooks.owner, &late.url("/")).await;
    let since = (hooks.app.clock.now() - Duration::days(1)).to_rfc3339();
    let caught_up = hooks.owner.api.post(&newcomer.path("/resend"), json!({ "since": since })).await;
    assert_eq!(caught_up.expect_status(202)["resent"], 3);
    late.wait_for(3).await;
    hooks.settle().await;
    assert_eq!(numbers(&late.received()), [0, 1, 2]);
    for since in [hooks.app.clock.now() + Duration::minutes(1), hooks.app.clock.now() - Duration::days(31)] {
        let refused = hooks.owner.api.post(&path, json!({ "since": since.to_rfc3339() })).await;
        refused.expect_field(422, "invalid-input", "/since");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_forgotten_when_nobody_is_to_be_told_of_them_any_more() {
    let hooks = Hooks::with(&["--webhook-retention-days", "10"]).await;
    let quiet = hooks.app.owner("quiet").await.organization_id().parse().unwrap();
    hooks.tell(0).await;
    tell(&hooks.app, quiet, 0).await;
    hooks.settle().await;
    let known = async |wanted: i64| {
        webhooks::keep_house(&hooks.app.cx).await.unwrap();
        assert_eq!(count(&hooks.app, "select count(*) from outbox_events").await, wanted);
    };
    known(2).await;
    // A day later something is told that is not taken.
    hooks.app.clock.advance(Duration::days(9));
    hooks.receiver.answer(500);
    hooks.tell(1).await;
    eventually("both deliveries", || async { (hooks.deliveries().await.len() == 2).then_some(()) }).await;
    hooks.after_attempt(1).await;
    hooks.app.clock.advance(Duration::hours(25));
    hooks.after_attempt(1).await;
    known(1).await;
    // What is still to be delivered is kept however old it is; so is what can be asked for again.
    sqlx::query("update outbox_events set created_at = created_at - interval '1 year'")
        .execute(&mut hooks.app.master().await)
        .await
        .unwrap();
    known(1).await;
    hooks.receiver.answer(200);
    hooks.settle().await;
    assert_eq!(hooks.deliveries().await[0]["state"], "delivered");
    known(1).await;
    hooks.app.clock.advance(Duration::days(10) + Duration::hours(1));
    known(0).await;
    assert_eq!(hooks.deliveries().await, Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_not_followed_and_endless_answers_are_left() {
    let hooks = Hooks::set().await;
    let elsewhere = Receiver::start().await;
    hooks.receiver.redirect(&elsewhere.url("/stolen"));
    hooks.tell(1).await;
    let first = hooks.after_attempt(1).await;
    assert_eq!((&first["lastError"], &first["lastStatus"]), (&json!("redirect"), &json!(302)));
    assert!(elsewhere.received().is_empty());
    hooks.receiver.never_end();
    hooks.until(moment(&first["nextAttemptAt"]));
    let second = hooks.after_attempt(2).await;
    assert_eq!(second["state"], "delivered");
    assert!(elsewhere.received().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_receiver_takes_its_own_time_only() {
    let arguments = ["--webhook-timeout-ms", "400", "--webhook-max-in-flight", "2", "--webhook-concurrency", "4"];
    let hooks = Hooks::with(&arguments).await;
    let slow: Vec<Receiver> = vec![Receiver::start().await, Receiver::start().await, Receiver::start().await];
    for receiver in &slow {
        receiver.stall(true);
        register(&hooks.owner, &receiver.url("/")).await;
    }
    for number in 0..12 {
        hooks.tell(number).await;
    }
    // The one that answers is told everything while the others wait for nothing.
    hooks.receiver.wait_for(12).await;
    assert_eq!(numbers(&hooks.receiver.received()), (0..12).collect::<Vec<_>>());
    eventually("time-outs", || async {
        hooks.pass_time_and(Duration::hours(1)).await;
        let at_once = "select coalesce(max(n), 0) from (select count(*) n from webhook_deliveries
             where leased_until is not null group by endpoint_id) x";
        assert!(count(&hooks.app, at_once).await <= 2);
        let timed_out = "select count(*) from webhook_deliveries where last_error = 'timeout' and tries > 5";
        (count(&hooks.app, timed_out).await >= 3).then_some(())
    })
    .await;
    for receiver in &slow {
        // A receiver hears a little later that nobody waits any more.
        assert!(receiver.most_in_flight() <= 4, "{} at once", receiver.most_in_flight());
        receiver.stall(false);
    }
    hooks.settle().await;
    let delivered = count(&hooks.app, "select count(*) from webhook_deliveries where state = 'delivered'").await;
    assert_eq!(delivered, 48);
}
