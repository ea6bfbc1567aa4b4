//! Signatures, checked against other people's libraries: npm's `stripe` signs what we accept, PyPI's and npm's verify what
//! our test provider signs, and `standardwebhooks` verifies what we send.

use std::collections::BTreeSet;

use devkit::payments::{TestPayments, TestPaymentsOptions, sign};
use http::Method;
use integration_tests::{Owner, Peer, Received, Receiver, TestApp, TestAppOptions};
use kernel::{Clock as _, SystemClock};
use serde_json::{Value, json};

use crate::scenes::{count, text};

const SECRET: &str = "whsec_of_today";
const OLDER: &str = "whsec_of_yesterday";
const STRANGERS: &str = "whsec_of_a_stranger";

fn event(id: &str, note: &str) -> Value {
    let object = json!({ "id": "price_1", "object": "price", "nickname": note });
    json!({ "id": id, "object": "event", "type": "price.updated", "created": 1_700_000_000, "data": { "object": object } })
}

/// A node that can be told of payments, while its secret is being changed.
async fn node_with_two_secrets() -> TestApp {
    let arguments = [
        "--stripe-secret-key",
        "sk_test_that_calls_nobody",
        "--stripe-webhook-secret",
        SECRET,
        "--stripe-webhook-secrets",
        OLDER,
        "--payment-sweep-s",
        "100000",
        "--payment-reconcile-s",
        "100000",
    ];
    let arguments = arguments.map(str::to_owned).to_vec();
    TestApp::start_with(TestAppOptions { arguments, without_server: true }).await
}

/// A webhook as it comes, and whether it is taken.
struct Vector {
    name: &'static str,
    header: String,
    sent: String,
    is_right: bool,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_npms_stripe_signs_is_accepted_and_nothing_that_it_refuses() {
    let app = node_with_two_secrets().await;
    let mut npm = Peer::node();
    let now = app.clock.now().timestamp();
    let mut vectors = Vec::new();
    // What is signed: by whom, how long ago, in which scheme, and what it says.
    let signed = [
        ("the secret", SECRET, 0, "v1", "plain", true),
        ("the secret before it", OLDER, 0, "v1", "plain", true),
        ("somebody else's secret", STRANGERS, 0, "v1", "plain", false),
        ("almost five minutes ago", SECRET, 280, "v1", "plain", true),
        ("more than five minutes ago", SECRET, 301, "v1", "plain", false),
        ("a year ago", OLDER, 31_536_000, "v1", "plain", false),
        ("a scheme that counts for nothing", SECRET, 0, "v0", "plain", false),
        ("letters of several bytes", SECRET, 0, "v1", "Grüße, 茶, 🫖, \u{0}, \u{2028}", true),
        ("a body that is long", SECRET, 0, "v1", &"x".repeat(60_000), true),
    ];
    for (at, (name, secret, age, scheme, note, is_right)) in signed.into_iter().enumerate() {
        let sent = event(&format!("evt_{at}"), note).to_string();
        let asked =
            json!({ "ask": "sign", "payload": sent, "secret": secret, "timestamp": now - age, "scheme": scheme });
        let header = text(&npm.ask(&asked).await.unwrap()).to_owned();
        vectors.push(Vector { name, header, sent, is_right });
    }
    let v1 = |vector: &Vector| vector.header.split_once(",v1=").unwrap().1.to_owned();
    let (right, strangers) = (v1(&vectors[0]), v1(&vectors[2]));
    let sent = vectors[0].sent.clone();
    let changed = sent.replace("price_1", "price_2");
    let spaced = format!("{:#}", serde_json::from_str::<Value>(&sent).unwrap());
    for (name, header, sent, is_right) in [
        ("a right one beside another", format!("t={now},v1={strangers},v1={right}"), &sent, true),
        ("a right one before another", format!("t={now},v1={right},v1={strangers}"), &sent, true),
        ("a right one beside another scheme's", format!("t={now},v0={strangers},v1={right}"), &sent, true),
        ("a right one of another scheme", format!("t={now},v0={right},v1={strangers}"), &sent, false),
        ("another moment", format!("t={},v1={right}", now - 1), &sent, false),
        ("another body", format!("t={now},v1={right}"), &changed, false),
        ("the same body written otherwise", format!("t={now},v1={right}"), &spaced, false),
        ("no signature", format!("t={now}"), &sent, false),
        ("no moment", format!("v1={right}"), &sent, false),
    ] {
        vectors.push(Vector { name, header, sent: sent.clone(), is_right });
    }

    let mut kept = BTreeSet::new();
    for Vector { name, header, sent, is_right } in vectors {
        let mut npm_takes_it = false;
        for secret in [SECRET, OLDER] {
            let asked = json!({ "ask": "construct", "payload": sent, "header": header, "secret": secret });
            npm_takes_it |= npm.ask(&asked).await.is_ok();
        }
        assert_eq!(npm_takes_it, is_right, "npm: {name}");
        let id = text(&serde_json::from_str::<Value>(&sent).unwrap()["id"]).to_owned();
        let sender = app.api().with("stripe-signature", &header);
        let answer = sender.send_bytes(Method::POST, "/api/webhooks/stripe", "application/json", sent).await;
        assert_eq!(answer.status.as_u16(), if is_right { 200 } else { 400 }, "{name}: {}", answer.text());
        if is_right {
            kept.insert(id);
        } else {
            answer.expect_problem(400, "invalid-signature");
        }
    }
    // What is not about payments is kept, and means nothing.
    let rows = "select count(*) from stripe_events where type = 'price.updated' and state = 'ignored'";
    assert_eq!(count(&app, rows).await, i64::try_from(kept.len()).unwrap());
    assert_eq!(count(&app, "select count(*) from stripe_events").await, i64::try_from(kept.len()).unwrap());

    // npm's library lets the future pass; we do not, or what was signed ahead could be replayed for as long.
    let sent = event("evt_future", "plain").to_string();
    let asked = json!({ "ask": "sign", "payload": sent, "secret": SECRET, "timestamp": now + 600 });
    let header = text(&npm.ask(&asked).await.unwrap()).to_owned();
    let sender = app.api().with("stripe-signature", &header);
    let answer = sender.send_bytes(Method::POST, "/api/webhooks/stripe", "application/json", sent).await;
    answer.expect_problem(400, "invalid-signature");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_test_provider_signs_is_what_the_providers_own_libraries_verify() {
    let provider = TestPayments::start(TestPaymentsOptions::default()).await.unwrap();
    let secret = provider.options().webhook_secret.clone();
    let now = SystemClock.now().timestamp();
    let (body, header) = provider.signed(&event("evt_delivered", "as it is sent"));
    let foreign = event("evt_foreign", "Grüße, 茶, 🫖, \u{0}, \u{2028}").to_string();
    let long = event("evt_long", &"x".repeat(200_000)).to_string();
    let right = |body: &str| sign(&secret, now, body);
    let vectors = [
        ("as it is sent", &body, header, true),
        ("letters of several bytes", &foreign, right(&foreign), true),
        ("a long body", &long, right(&long), true),
        ("another body", &foreign, right(&body), false),
        ("a stranger's", &body, sign(STRANGERS, now, &body), false),
        ("old", &body, sign(&secret, now - 400, &body), false),
        ("another moment", &body, right(&body).replace(&format!("t={now}"), &format!("t={}", now - 1)), false),
        ("another scheme", &body, right(&body).replace("v1=", "v0="), false),
    ];
    for (library, mut peer) in [("PyPI's", Peer::python()), ("npm's", Peer::node())] {
        for (name, body, header, is_right) in &vectors {
            let asked = json!({ "ask": "construct", "payload": body, "header": header, "secret": secret });
            let said = peer.ask(&asked).await;
            assert_eq!(said.is_ok(), *is_right, "{library}: {name}: {said:?}");
            match said {
                Ok(event) => assert_eq!(event, serde_json::from_str::<Value>(body).unwrap(), "{library}: {name}"),
                Err(error) => {
                    assert!(text(&error["type"]).ends_with("SignatureVerificationError"), "{library}: {name}: {error}");
                }
            }
        }
    }
}

/// What npm's `standardwebhooks` says of a message, at the moment that it was sent.
async fn verified(npm: &mut Peer, message: &Received, secret: &str) -> Result<Value, Value> {
    let headers = ["webhook-id", "webhook-timestamp", "webhook-signature"];
    let headers: Value = headers.map(|name| (name.to_owned(), json!(message.header(name)))).into_iter().collect();
    let body = std::str::from_utf8(&message.body).unwrap();
    let now: i64 = message.header("webhook-timestamp").parse().unwrap();
    npm.ask(&json!({ "ask": "verify", "secret": secret, "body": body, "headers": headers, "now": now })).await
}

/// Has a message sent, and returns it once so many have come.
async fn test_message(owner: &Owner, endpoint: &str, receiver: &Receiver, number: usize) -> Received {
    owner.api.send(Method::POST, &format!("{endpoint}/test"), None).await.expect_status(202);
    receiver.wait_for(number).await.pop().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_we_send_is_verified_by_another_implementation_also_while_the_secret_is_changed() {
    // A token that outlives the overlap.
    let arguments = ["--access-token-ttl-s", "100000"].map(str::to_owned).to_vec();
    let app = TestApp::start_with(TestAppOptions { arguments, without_server: true }).await;
    let (owner, receiver, mut npm) = (app.owner("ada").await, Receiver::start().await, Peer::node());
    let made = owner.api.post("/api/webhooks/endpoints", json!({ "url": receiver.url("/hook") })).await;
    let made = made.expect_status(201);
    let old = text(&made["secret"]).to_owned();
    let path = format!("/api/webhooks/endpoints/{}", text(&made["id"]));

    let first = test_message(&owner, &path, &receiver, 1).await;
    assert_eq!(verified(&mut npm, &first, &old).await.unwrap(), first.json());
    let mut tampered = first.clone();
    tampered.body.push(b' ');
    assert!(verified(&mut npm, &tampered, &old).await.is_err());
    let mut later = first.clone();
    later.headers.insert("webhook-id", "msg_of_somebody_else".parse().unwrap());
    assert!(verified(&mut npm, &later, &old).await.is_err());

    let rotated = owner.api.post(&format!("{path}/rotate-secret"), json!({ "overlapSeconds": 3600 })).await;
    let new = text(&rotated.expect_status(200)["secret"]).to_owned();
    assert_eq!(verified(&mut npm, &first, &new).await.unwrap_err()["type"], "WebhookVerificationError");
    let both = test_message(&owner, &path, &receiver, 2).await;
    for secret in [&old, &new] {
        assert_eq!(verified(&mut npm, &both, secret).await.unwrap(), both.json());
    }
    app.clock.advance(chrono::Duration::seconds(3601));
    let last = test_message(&owner, &path, &receiver, 3).await;
    assert!(verified(&mut npm, &last, &old).await.is_err());
    assert_eq!(verified(&mut npm, &last, &new).await.unwrap(), last.json());
}
