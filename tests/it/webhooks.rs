//! Webhooks out: endpoints that may be told and their secrets, signed so that anybody can check it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration as StdDuration;

use axum::body::Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Duration, Utc};
use control_plane::webhooks;
use control_plane::webhooks::outbound::{Outbound, SendError, public_roots};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, StatusCode};
use integration_tests::{Client, Owner, Received, Receiver, TestApp, TestAppOptions, eventually, within};
use kernel::{Clock as _, OrganizationId};
use serde_json::{Value, json};
use sha2::Sha256;
use tenancy::Reach;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::credits::give;
use crate::scenes::text;

pub(crate) const ENDPOINTS: &str = "/api/webhooks/endpoints";

/// An organization with an endpoint at a receiver.
pub(crate) struct Hooks {
    pub(crate) app: TestApp,
    pub(crate) owner: Owner,
    pub(crate) receiver: Receiver,
    pub(crate) endpoint: Endpoint,
}

pub(crate) struct Endpoint {
    pub(crate) id: String,
    pub(crate) secret: String,
}

impl Endpoint {
    pub(crate) fn path(&self, rest: &str) -> String {
        format!("{ENDPOINTS}/{}{rest}", self.id)
    }
}

impl Hooks {
    pub(crate) async fn set() -> Self {
        Self::with(&[]).await
    }

    pub(crate) async fn with(arguments: &[&str]) -> Self {
        // Tokens that outlive the days that these tests let pass.
        let days = ["--access-token-ttl-s", "10000000", "--refresh-token-ttl-s", "10000000"];
        let arguments = days.iter().chain(arguments).map(|&text| text.to_owned());
        let options = TestAppOptions { arguments: arguments.collect(), without_server: true };
        let app = TestApp::start_with(options).await;
        let owner = app.owner("ada").await;
        let receiver = Receiver::start().await;
        let endpoint = register(&owner, &receiver.url("/hook")).await;
        Self { app, owner, receiver, endpoint }
    }

    fn organization(&self) -> OrganizationId {
        self.owner.organization_id().parse().unwrap()
    }

    pub(crate) async fn tell(&self, number: usize) {
        tell(&self.app, self.organization(), number).await;
    }

    /// The endpoint's deliveries, newest first.
    pub(crate) async fn deliveries(&self) -> Vec<Value> {
        let list = self.owner.api.get(&self.endpoint.path("/deliveries?limit=100")).await.expect_status(200);
        list["data"].as_array().unwrap().clone()
    }

    pub(crate) async fn endpoint(&self) -> Value {
        self.owner.api.get(&self.endpoint.path("")).await.expect_status(200)
    }

    /// Waits until the newest delivery is past this attempt, and returns it.
    pub(crate) async fn after_attempt(&self, attempt: i64) -> Value {
        eventually(&format!("the end of attempt {attempt}"), || async {
            let delivery = self.deliveries().await.into_iter().next()?;
            let has_ended = delivery["state"] != "pending"
                || moment(&delivery["nextAttemptAt"]) > self.app.clock.now() - Duration::milliseconds(1);
            (delivery["attempts"].as_i64() >= Some(attempt) && has_ended).then_some(delivery)
        })
        .await
    }

    /// Lets the time pass until then.
    pub(crate) fn until(&self, at: DateTime<Utc>) {
        let left = at - self.app.clock.now();
        if left > Duration::zero() {
            self.app.clock.advance(left + Duration::milliseconds(2));
        }
    }

    /// Lets the time pass to when something is due next, unless something is on its way or about to be; whether anything
    /// is left to be done.
    pub(crate) async fn pass_time(&self) -> bool {
        self.pass_time_and(Duration::zero()).await
    }

    /// The same, and so much more time: what is due by then is tried at once.
    pub(crate) async fn pass_time_and(&self, more: Duration) -> bool {
        // At one moment: what is on its way when the time passes may be sent twice.
        let (under_way, due): (i64, Option<DateTime<Utc>>) = sqlx::query_as(
            "select (select count(*) from outbox_events where not is_fanned_out)
                    + (select count(*) from webhook_deliveries where leased_until is not null),
                 (select min(next_attempt_at) from webhook_deliveries d
                  where state = 'pending' and not (holds_line and exists (
                      select from webhook_deliveries p
                      where p.endpoint_id = d.endpoint_id and p.state = 'pending' and p.holds_line
                          and p.event_seq < d.event_seq)))",
        )
        .fetch_one(&mut self.app.master().await)
        .await
        .unwrap();
        if let Some(due) = due.filter(|due| under_way == 0 && *due > self.app.clock.now()) {
            self.until(due + more);
        }
        due.is_some() || under_way > 0
    }

    /// Waits until everything has ended, and lets the time pass that it takes.
    pub(crate) async fn settle(&self) {
        eventually("the end of every delivery", || async { (!self.pass_time().await).then_some(()) }).await;
    }
}

pub(crate) async fn register(owner: &Owner, url: &str) -> Endpoint {
    let made = owner.api.post(ENDPOINTS, json!({ "url": url })).await.expect_status(201);
    Endpoint { id: text(&made["id"]).to_owned(), secret: text(&made["secret"]).to_owned() }
}

/// Tells an organization of something that has a number.
pub(crate) async fn tell(app: &TestApp, organization: OrganizationId, number: usize) {
    let mut tx = app.cx.master.begin().await.unwrap();
    let (now, data) = (app.clock.now(), json!({ "number": number }));
    let key = format!("test:{number}");
    webhooks::tell(&mut tx, organization, "credits.balance_low", &key, data, now).await.unwrap();
    tx.commit().await.unwrap();
}

pub(crate) fn moment(value: &Value) -> DateTime<Utc> {
    text(value).parse().unwrap()
}

/// Whether this secret made one of the signatures of a message, as the standard describes it.
pub(crate) fn is_signed(message: &Received, secret: &str) -> bool {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    let (id, timestamp) = (message.header("webhook-id"), message.header("webhook-timestamp"));
    mac.update([format!("{id}.{timestamp}.").as_bytes(), &message.body].concat().as_slice());
    let wanted = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    message.header("webhook-signature").split(' ').any(|signature| signature == wanted)
}

pub(crate) fn numbers(received: &[Received]) -> Vec<u64> {
    received.iter().map(|message| message.json()["data"]["number"].as_u64().unwrap()).collect()
}

pub(crate) fn outbound(reach: Reach, timeout_ms: u64) -> Outbound {
    Outbound::new(public_roots(), reach, StdDuration::from_millis(timeout_ms)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_ledger_tells_arrives_signed_and_once() {
    let hooks = Hooks::set().await;
    let store = hooks.owner.create_store("tea").await.expect_status(201);
    give(&hooks.app, &store, 100).await;
    sqlx::query("update credit_accounts set low_balance = 50").execute(&mut hooks.app.master().await).await.unwrap();
    for (key, amount) in [("one", 60), ("two", 10)] {
        let body = json!({ "storeId": store["id"], "amount": amount });
        hooks.owner.api.with("idempotency-key", key).post("/api/credits/spend", body).await.expect_status(201);
    }
    let message = hooks.receiver.wait_for(1).await.remove(0);
    assert_eq!((message.path.as_str(), message.header("content-type")), ("/hook", "application/json"));
    assert!(is_signed(&message, &hooks.endpoint.secret));
    assert!(!is_signed(&message, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"));
    let sent_at: i64 = message.header("webhook-timestamp").parse().unwrap();
    assert!((hooks.app.clock.now().timestamp() - sent_at).abs() < 60);
    let body = message.json();
    assert_eq!(
        (&body["type"], &body["data"]),
        (&json!("credits.balance_low"), &json!({ "available": 40, "threshold": 50 }))
    );
    assert_eq!(body["id"], message.header("webhook-id"));
    assert_eq!(body["organizationId"], hooks.owner.organization_id());
    hooks.settle().await;
    let deliveries = hooks.deliveries().await;
    assert_eq!(deliveries.len(), 1, "a threshold is crossed once: {deliveries:?}");
    assert_eq!((&deliveries[0]["state"], &deliveries[0]["lastStatus"]), (&json!("delivered"), &json!(204)));
    assert_eq!(deliveries[0]["eventId"], body["id"]);
    let one = hooks.endpoint.path(&format!("/deliveries/{}", text(&deliveries[0]["id"])));
    let one = hooks.owner.api.get(&one).await.expect_status(200);
    assert_eq!((&one["data"], &one["attemptLog"][0]["status"]), (&body["data"], &json!(204)));
    assert_eq!(hooks.receiver.received().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_takes_nothing_for_days_is_disabled_and_the_others_are_told() {
    let hooks = Hooks::set().await;
    let other = Receiver::start().await;
    let watching = register(&hooks.owner, &other.url("/ops")).await;
    hooks.receiver.answer(503);
    let began = hooks.app.clock.now();
    for day in 0..4 {
        hooks.tell(day).await;
        eventually("the next day", || async {
            hooks.pass_time().await;
            (hooks.app.clock.now() - began > Duration::days(1) * i32::try_from(day + 1).unwrap()).then_some(())
        })
        .await;
    }
    eventually("disabling", || async {
        hooks.pass_time().await;
        (hooks.endpoint().await["isEnabled"] == false).then_some(())
    })
    .await;
    let endpoint = hooks.endpoint().await;
    assert_eq!(endpoint["disabledReason"], "failing");
    let told = eventually("the event", || async {
        other.received().into_iter().find(|message| message.json()["type"] == "webhook.endpoint_disabled")
    })
    .await;
    assert_eq!(told.json()["data"], json!({ "endpointId": hooks.endpoint.id, "reason": "failing" }));
    assert!(is_signed(&told, &watching.secret));
    // Nothing is sent there any more, and nothing waits.
    hooks.settle().await;
    let so_far = hooks.receiver.received().len();
    hooks.tell(100).await;
    hooks.settle().await;
    assert_eq!(hooks.receiver.received().len(), so_far);
    assert!(hooks.deliveries().await.iter().all(|delivery| delivery["eventType"] == "credits.balance_low"));
    let test = hooks.owner.api.send(http::Method::POST, &hooks.endpoint.path("/test"), None).await;
    test.expect_problem(409, "endpoint-disabled");
    // Enabled again, it can ask for what it missed.
    hooks.receiver.answer(200);
    let enabled =
        hooks.owner.api.patch(&hooks.endpoint.path(""), json!({ "isEnabled": true })).await.expect_status(200);
    assert_eq!((&enabled["disabledReason"], &enabled["failingSince"]), (&Value::Null, &Value::Null));
    let since = (hooks.app.clock.now() - Duration::days(20)).to_rfc3339();
    let resent = hooks.owner.api.post(&hooks.endpoint.path("/resend"), json!({ "since": since })).await;
    assert_eq!(resent.expect_status(202)["resent"], 6, "four, the missed one, and that it was disabled");
    hooks.settle().await;
    let taken: Vec<Received> = hooks.receiver.received().split_off(so_far);
    assert_eq!(numbers(&taken[..4]), [0, 1, 2, 3]);
    assert_eq!(taken.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_gone_is_disabled_at_once() {
    let hooks = Hooks::set().await;
    hooks.receiver.answer(410);
    hooks.tell(1).await;
    hooks.tell(2).await;
    let endpoint = eventually("disabling", || async {
        let endpoint = hooks.endpoint().await;
        (endpoint["isEnabled"] == false).then_some(endpoint)
    })
    .await;
    assert_eq!(endpoint["disabledReason"], "gone");
    hooks.settle().await;
    assert_eq!(hooks.receiver.received().len(), 1);
    let first = hooks.deliveries().await.pop().unwrap();
    assert_eq!(
        (&first["state"], &first["lastError"], &first["lastStatus"]),
        (&json!("failed"), &json!("gone"), &json!(410))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_secret_signs_beside_the_new_one_until_its_time_is_over() {
    let hooks = Hooks::set().await;
    let old = hooks.endpoint.secret.clone();
    let keyed = hooks.owner.api.with("idempotency-key", "rotate-1");
    let path = hooks.endpoint.path("/rotate-secret");
    let rotated = keyed.post(&path, json!({ "overlapSeconds": 3600 })).await.expect_status(200);
    let new = text(&rotated["secret"]).to_owned();
    assert_ne!(old, new);
    // The answer was lost: asking again rotates nothing and shows it again.
    let again = keyed.post(&path, json!({ "overlapSeconds": 3600 })).await.expect_status(200);
    assert_eq!(
        (&again["secret"], &again["previousSecretUntil"]),
        (&rotated["secret"], &rotated["previousSecretUntil"])
    );
    hooks.tell(1).await;
    let message = hooks.receiver.wait_for(1).await.remove(0);
    assert!(is_signed(&message, &old) && is_signed(&message, &new));
    assert_eq!(message.header("webhook-signature").split(' ').count(), 2);
    hooks.settle().await;
    hooks.app.clock.advance(Duration::seconds(3601));
    hooks.tell(2).await;
    let message = hooks.receiver.wait_for(2).await.remove(1);
    assert!(!is_signed(&message, &old) && is_signed(&message, &new));
    // A key shows no secret that is not the one any more.
    hooks.owner.api.post(&path, json!({})).await.expect_status(200);
    let late = keyed.post(&path, json!({ "overlapSeconds": 3600 })).await.expect_status(200);
    assert_eq!(late["secret"], Value::Null);
    for seconds in [json!(-1), json!(604_801), json!(1.5)] {
        hooks.owner.api.post(&path, json!({ "overlapSeconds": seconds })).await.expect_problem(422, "invalid-input");
    }
    webhooks::keep_house(&hooks.app.cx).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_shown_when_it_is_made_and_never_again() {
    let hooks = Hooks::set().await;
    let keyed = hooks.owner.api.with("idempotency-key", "create-1");
    let body = json!({ "url": hooks.receiver.url("/two"), "description": "the second" });
    let made = keyed.post(ENDPOINTS, body.clone()).await.expect_status(201);
    assert_eq!(keyed.post(ENDPOINTS, body).await.expect_status(201), made);
    let other = json!({ "url": hooks.receiver.url("/three") });
    keyed.post(ENDPOINTS, other).await.expect_problem(422, "idempotency-key-reused");
    let listed = hooks.owner.api.get(ENDPOINTS).await;
    assert_eq!(listed.expect_status(200)["data"].as_array().map(Vec::len), Some(2));
    let shown = hooks.owner.api.get(&format!("{ENDPOINTS}/{}", text(&made["id"]))).await;
    let patched = hooks.owner.api.patch(&hooks.endpoint.path(""), json!({ "description": "first" })).await;
    assert_eq!(patched.expect_status(200)["description"], "first");
    for answer in [listed.text(), shown.text(), patched.text()] {
        assert!(!answer.contains("whsec_") && !answer.contains("secret\""), "{answer}");
    }
    // Sealed for its own row: in another one of the same organization it does not open.
    sqlx::query(
        "update webhook_endpoints set sealed = (select sealed from webhook_endpoints order by id desc limit 1)",
    )
    .execute(&mut hooks.app.master().await)
    .await
    .unwrap();
    hooks.tell(1).await;
    let first = hooks.after_attempt(1).await;
    assert_eq!((&first["lastError"], &first["lastStatus"]), (&json!("secret"), &Value::Null));
    assert!(hooks.receiver.received().iter().all(|message| message.path == "/two"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_event_goes_to_one_endpoint_alone_and_once_per_key() {
    let hooks = Hooks::set().await;
    let other = Receiver::start().await;
    register(&hooks.owner, &other.url("/")).await;
    let keyed = hooks.owner.api.with("idempotency-key", "try-1");
    let path = hooks.endpoint.path("/test");
    let first = keyed.send(http::Method::POST, &path, None).await.expect_status(202);
    let message = hooks.receiver.wait_for(1).await.remove(0);
    assert_eq!(message.json()["type"], "webhook.test");
    assert!(is_signed(&message, &hooks.endpoint.secret));
    hooks.settle().await;
    let again = keyed.send(http::Method::POST, &path, None).await.expect_status(202);
    assert_eq!(again["id"], first["id"]);
    hooks.owner.api.send(http::Method::POST, &path, None).await.expect_status(202);
    hooks.receiver.wait_for(2).await;
    hooks.settle().await;
    assert_eq!((hooks.receiver.received().len(), other.received().len()), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_public_addresses_over_https_are_registered() {
    let hooks = Hooks::with(&["--allow-private-webhooks", "true"]).await;
    let strict = TestApp::start_with(TestAppOptions {
        arguments: ["--allow-private-webhooks", "false"].map(str::to_owned).to_vec(),
        without_server: true,
    })
    .await;
    let owner = strict.owner("eve").await;
    let refused = async |client: &Client, url: &str| {
        let problem = client.post(ENDPOINTS, json!({ "url": url })).await.expect_field(422, "invalid-input", "/url");
        text(&problem["errors"][0]["code"]).to_owned()
    };
    for (url, code) in [
        ("http://hooks.example.com/", "scheme"),
        ("https://127.0.0.1/", "private-address"),
        ("https://localhost/x", "private-address"),
        ("https://10.0.0.8/", "private-address"),
        ("https://169.254.169.254/latest/meta-data", "private-address"),
        ("https://[::1]:8443/", "private-address"),
        ("https://[::ffff:127.0.0.1]/", "private-address"),
        ("https://0x7f.1/", "private-address"),
        ("https://2130706433/", "private-address"),
        ("https://no-such-host.invalid/", "unresolvable"),
    ] {
        assert_eq!(refused(&owner.api, url).await, code, "{url}");
    }
    for (url, code) in [
        ("ftp://example.com/", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("hooks.example.com", "malformed"),
        ("https://user:secret@127.0.0.1/", "credentials"),
        ("https://127.0.0.1/#part", "fragment"),
        ("", "malformed"),
    ] {
        assert_eq!(refused(&hooks.owner.api, url).await, code, "{url}");
    }
    assert_eq!(refused(&hooks.owner.api, &format!("https://127.0.0.1/{}", "x".repeat(2100))).await, "too-long");
    let unknown = json!({ "url": hooks.receiver.url("/"), "eventTypes": ["credits.all_of_them"] });
    hooks.owner.api.post(ENDPOINTS, unknown).await.expect_field(422, "invalid-input", "/eventTypes");
    for number in 1..20 {
        register(&hooks.owner, &hooks.receiver.url(&format!("/{number}"))).await;
    }
    let one_more = hooks.owner.api.post(ENDPOINTS, json!({ "url": hooks.receiver.url("/20") })).await;
    one_more.expect_problem(409, "endpoint-limit-reached");
    hooks.owner.api.delete(&hooks.endpoint.path("")).await.expect_status(204);
    hooks.owner.api.get(&hooks.endpoint.path("")).await.expect_problem(404, "not-found");
    register(&hooks.owner, &hooks.receiver.url("/20")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_checked_again_when_it_is_called() {
    // The name meant something public when it was registered; now it means us.
    let receiver = Receiver::start().await;
    let port = receiver.address.port();
    let strict = outbound(Reach::Public, 2000);
    let post =
        async |sender: &Outbound, url: &str| sender.post(&url.parse().unwrap(), HeaderMap::new(), Bytes::new()).await;
    for host in ["localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"] {
        let sent = post(&strict, &format!("https://{host}:{port}/")).await;
        assert_eq!(sent, Err(SendError::PrivateAddress), "{host}");
    }
    assert_eq!(post(&strict, &receiver.url("/")).await, Err(SendError::Url), "no TLS");
    assert!(receiver.received().is_empty());
    let lenient = outbound(Reach::Anywhere, 2000);
    assert_eq!(post(&lenient, &receiver.url("/a?b=c")).await.map(|answer| answer.status), Ok(StatusCode::NO_CONTENT));
    assert_eq!(receiver.received()[0].path, "/a?b=c");
    assert_eq!(receiver.received()[0].header("host"), receiver.address.to_string());
    assert_eq!(post(&lenient, "http://no-such-host.invalid/").await, Err(SendError::Unresolvable));
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert_eq!(post(&lenient, &format!("http://{closed}/")).await, Err(SendError::Connect));
    // Servers that speak something else, never stop, or say nothing.
    let talks = BTreeMap::from([("+OK ready\r\n".to_owned(), SendError::Http), (String::new(), SendError::Timeout)]);
    let quick = outbound(Reach::Anywhere, 500);
    for (words, error) in
        talks.into_iter().chain([(format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(100_000)), SendError::Http)])
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let speaking = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            // Whoever hangs up has heard enough.
            let _ = stream.write_all(words.as_bytes()).await;
            let mut sink = Vec::new();
            let _ = stream.read_to_end(&mut sink).await;
        });
        assert_eq!(within("an answer", post(&quick, &format!("http://{address}/"))).await, Err(error));
        speaking.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_must_be_good_for_the_name() {
    use rustls::pki_types::PrivateKeyDer;
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // Who does not trust us says no more.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = vec![0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
    });
    let post = async |sender: &Outbound, host: &str| {
        let url = format!("https://{host}:{port}/").parse().unwrap();
        sender.post(&url, HeaderMap::new(), Bytes::from_static(b"{}")).await.map(|answer| answer.status.as_u16())
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let trusting = Outbound::new(roots, Reach::Anywhere, StdDuration::from_secs(5)).unwrap();
    assert_eq!(post(&trusting, "localhost").await, Ok(202));
    assert_eq!(post(&trusting, "127.0.0.1").await, Err(SendError::Tls), "another name");
    assert_eq!(
        post(&outbound(Reach::Anywhere, 5000), "localhost").await,
        Err(SendError::Tls),
        "an authority nobody knows"
    );
    serving.abort();
}
