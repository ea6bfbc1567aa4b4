//! Whatever is sent, the answer is a refusal that a program can read, nothing is half-written, and nothing is a 500.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use http::{HeaderMap, Method};
use integration_tests::{Client, Owner, Response, TestApp, TestAppOptions};
use kernel::{
    CartId, CartLineId, Clock as _, CreditHoldId, CreditPackId, OrderId, PurchaseId, ReconDifferenceId,
    WebhookDeliveryId,
};
use serde_json::{Value, json};

use crate::authorization::{Operation, operations};
use crate::outages::Authority;
use crate::scenes::{Cart, checkout_body, count, send_raw, store_path, text, variant_of};

/// A platform, an admin who owns a served store and one without a database, and somebody else's store.
struct Scene {
    app: TestApp,
    admin: Owner,
    store: Value,
    pending: Value,
    cart: Cart,
    line: String,
    variant: String,
    endpoint: String,
    other: Owner,
    others_store: Value,
}

impl Scene {
    async fn set() -> Self {
        let arguments = ["--body-limit-bytes", "65536", "--max-imports", "64"].map(str::to_owned).to_vec();
        let mut app = TestApp::start_with(TestAppOptions { arguments, ..TestAppOptions::default() }).await;
        // Some of what is sent makes runs that cannot succeed.
        app.may_leave_runs();
        let admin = app.admin().await;
        let store = app.active_store(&admin, "tea").await;
        let pending = admin.create_store("pending").await.expect_status(201);
        let shop = app.storefront_of(&store);
        let variant = variant_of(&shop, "night-orchard", 0).await;
        let cart = Cart::with(&shop, &variant, 1).await;
        let line = text(&cart.get().await.expect_status(200)["lines"][0]["id"]).to_owned();
        // Nobody answers there.
        let body = json!({ "url": "http://127.0.0.1:9/" });
        let endpoint = admin.api.post("/api/webhooks/endpoints", body).await.expect_status(201);
        let endpoint = text(&endpoint["id"]).to_owned();
        let other = app.owner("eve").await;
        let others_store = app.active_store(&other, "others").await;
        Self { app, admin, store, pending, cart, line, variant, endpoint, other, others_store }
    }

    /// Who sends a request to this operation: a shopper at the hostname, or the admin at the platform.
    fn client(&self, operation: &Operation) -> Client {
        if operation.id.starts_with("storefront_") { self.cart.shop.clone() } else { self.admin.api.clone() }
    }

    /// The operation's path with parts that exist.
    fn path(&self, operation: &Operation) -> String {
        let store = if operation.id == "database_connect" { &self.pending } else { &self.store };
        operation
            .path
            .replace("{id}", text(&store["id"]))
            .replace("{store}", text(&self.store["id"]))
            .replace("{server}", "local")
            .replace("{product}", "night-orchard")
            .replace("{handle}", "tea")
            .replace("{slug}", "about")
            .replace("{cart}", &self.cart.id)
            .replace("{line}", &self.line)
            .replace("{hold}", &CreditHoldId::new(self.app.clock.now()).to_string())
            .replace("{endpoint}", &self.endpoint)
            .replace("{delivery}", &WebhookDeliveryId::new(self.app.clock.now()).to_string())
            .replace("{order}", &OrderId::new(self.app.clock.now()).to_string())
            .replace("{difference}", &ReconDifferenceId::new(self.app.clock.now()).to_string())
            .replace("{event}", "evt_guess")
            .replace("{purchase}", &PurchaseId::new(self.app.clock.now()).to_string())
    }

    /// Everything of somebody else that could have been changed.
    async fn foreign(&self) -> (Value, Value, i64) {
        let store = self.other.api.get(&store_path(&self.others_store, "")).await.expect_status(200);
        let list = self.app.storefront_of(&self.others_store).get("/store/v1/products?limit=100").await;
        let admins = count(&self.app, "select count(*) from users where platform_role = 'admin'").await;
        (store, list.expect_status(200), admins)
    }
}

/// A refusal says what it is; anything else is no refusal.
#[track_caller]
fn check(answer: &Response, what: &str) {
    check_parts(answer.status.as_u16(), &answer.headers, &answer.bytes, what);
}

#[track_caller]
fn check_parts(status: u16, headers: &HeaderMap, bytes: &[u8], what: &str) {
    let shown = String::from_utf8_lossy(bytes);
    assert!(status < 500 || status == 503, "{what} answered {status}: {shown}");
    assert!(!headers.contains_key("x-injected") && !headers.contains_key("set-cookie"), "{what}: {headers:?}");
    // The one operation that only browsers come to, from another site: it refuses by a page.
    if status == 400 && what.contains("/api/supabase/callback") && headers["content-type"] == "text/html; charset=utf-8"
    {
        assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"), "{headers:?}");
        assert!(!shown.contains("<script") && !shown.contains("onerror"), "{what}: {shown}");
    } else if status >= 400 {
        assert_eq!(headers["content-type"], "application/problem+json", "{what}");
        let problem: Value = serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{what}: {error}: {shown}"));
        assert_eq!(problem["status"], status, "{what}");
        assert!(problem["code"].as_str().is_some_and(|code| !code.is_empty()), "{what}: {problem}");
        assert_eq!(problem["requestId"].as_str(), headers["x-request-id"].to_str().ok(), "{what}");
        for word in ["select ", "insert into", "sqlx", "panicked", "PgDatabase", "password authentication"] {
            assert!(!shown.contains(word) || what.contains(word), "{what} tells of {word}: {shown}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_json_object_of_the_route_is_refused_everywhere() {
    let scene = Scene::set().await;
    let deep = "[".repeat(20_000);
    let malformed: [&[u8]; 8] =
        [b"", b"{", b"{\"a\": 1", b"nonsense", b"{} x", b"\xff\xfe{}", b"{'a': 1}", deep.as_bytes()];
    let wrong: [&[u8]; 6] = [b"[]", b"null", b"\"x\"", b"7", b"true", b"{\"noSuchField\": 1}"];
    let mut tried = 0;
    for operation in operations().iter().filter(|operation| operation.reads_json) {
        let client = scene.client(operation).with("idempotency-key", "bad-input");
        let path = scene.path(operation);
        for body in malformed.iter().chain(&wrong) {
            let answer = client.send_bytes(operation.method.clone(), &path, "application/json", body.to_vec()).await;
            let what = format!("{} with {}", operation.id, String::from_utf8_lossy(&body[..body.len().min(40)]));
            check(&answer, &what);
            let status = answer.status.as_u16();
            if body.is_empty() && operation.id == "store_database_test" {
                assert_eq!(status, 200, "no body is needed: {what}: {}", answer.text());
            } else if wrong.contains(body) {
                assert_eq!(status, 422, "{what}: {}", answer.text());
            } else {
                assert!([400, 422].contains(&status), "{what}: {}", answer.text());
            }
        }
        let unknown = client.send(operation.method.clone(), &path, Some(json!({ "noSuchField": 1 }))).await;
        unknown.expect_field(422, "invalid-input", "/noSuchField");
        tried += 1;
    }
    assert!(tried >= 12, "only {tried} operations read JSON");
    assert_eq!(count(&scene.app, "select count(*) from stores").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_another_type_or_too_large_is_refused_everywhere() {
    let scene = Scene::set().await;
    let large = format!("{{\"name\": \"{}\"}}", "x".repeat(70_000));
    for operation in operations().iter().filter(|operation| operation.reads_json) {
        let client = scene.client(operation).with("idempotency-key", "bad-input");
        let (method, path) = (operation.method.clone(), scene.path(operation));
        for kind in ["text/plain", "application/x-www-form-urlencoded", "text/csv", "application/jsonp", ""] {
            let answer = client.send_bytes(method.clone(), &path, kind, "{}").await;
            answer.expect_problem(415, "unsupported-media-type");
        }
        let bare = client.request(client.build(method.clone(), &path).body("{}".into()).unwrap()).await;
        bare.expect_problem(415, "unsupported-media-type");
        let answer = client.send_bytes(method.clone(), &path, "application/json", large.clone()).await;
        let problem = answer.expect_problem(413, "body-too-large");
        assert_eq!(problem["detail"], "It reads 65536 bytes.");
    }
    // Without a length in the head the limit holds as well.
    let login = "POST /api/auth/login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x1_0000));
    let (status, _, problem) = send_raw(scene.app.address, &format!("{login}{chunk}{chunk}0\r\n\r\n")).await;
    assert_eq!((status, &problem["code"]), (413, &json!("body-too-large")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_route_is_404_and_a_wrong_method_405() {
    let scene = Scene::set().await;
    let shop = &scene.cart.shop;
    for client in [&scene.admin.api, shop, &scene.app.api()] {
        for path in [
            "/none",
            "/api",
            "/api/none",
            "/store/v1",
            "/store/v1/none",
            "/store/v2/products",
            "//",
            "/%2e%2e/api",
            "/.env",
            "/store/v1/products/a/b",
        ] {
            client.get(path).await.expect_problem(404, "not-found");
            client.post(path, json!({})).await.expect_problem(404, "not-found");
        }
    }
    for operation in operations() {
        let (client, path) = (scene.client(&operation), scene.path(&operation));
        let allowed: Vec<Method> =
            operations().into_iter().filter(|other| other.path == operation.path).map(|other| other.method).collect();
        for method in
            [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS, Method::TRACE]
        {
            if allowed.contains(&method) {
                continue;
            }
            // A fixed route may also be a part of another one, such as a product's handle.
            let answer = client.send(method.clone(), &path, None).await;
            answer.expect_problem(405, "method-not-allowed");
            let named = answer.header("allow");
            assert!(allowed.iter().all(|method| named.contains(method.as_str())), "{method} {path} allows {named:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_requests_get_an_answer_and_end_nothing() {
    let scene = Scene::set().await;
    let long = "x".repeat(9000);
    for head in [
        "OPTIONS * HTTP/1.1\r\nHost: localhost".to_owned(),
        "GET /%00 HTTP/1.1\r\nHost: localhost".to_owned(),
        "GET /api/stores?%ff=%fe HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x".to_owned(),
        "CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80".to_owned(),
        "BREW /api/stores HTTP/1.1\r\nHost: localhost".to_owned(),
        format!("GET /{long} HTTP/1.1\r\nHost: localhost"),
        "GET /store/v1/products?q=a%0d%0aX-Injected:%20x HTTP/1.1\r\nHost: tea.stores.localhost".to_owned(),
        "GET /store/v1/products/a%0d%0aX-Injected:%20x HTTP/1.1\r\nHost: tea.stores.localhost".to_owned(),
        "GET /store/v1/products HTTP/1.1\r\nHost: tea.stores.localhost\r\nIf-None-Match: \u{fffd}\u{1f600}".to_owned(),
        "GET /store/v1/products HTTP/1.1\r\nHost: tea.stores.localhost\r\nX-Store-Id: \u{fffd}".to_owned(),
    ] {
        let (status, headers, body) =
            send_raw(scene.app.address, &format!("{head}\r\nConnection: close\r\n\r\n")).await;
        assert!(status < 500, "{head}: {status} {body}");
        assert!(!headers.contains_key("x-injected"), "{head}");
        if status >= 400 {
            assert!(body["code"].is_string() && body["requestId"].is_string(), "{head}: {status} {body}");
        }
    }
    // What the HTTP library refuses by itself is at least refused.
    for head in [
        "GET / HTTP/1.1\r\nHost : localhost",
        "GET / HTTP/9.9\r\nHost: localhost",
        "nonsense",
        "GET /\u{7f} HTTP/1.1\r\nHost: localhost",
    ] {
        let (status, ..) = send_raw(scene.app.address, &format!("{head}\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(status, 400, "{head}");
    }
    scene.cart.get().await.expect_status(200);
}

const HOSTILE: [&str; 12] = [
    "'",
    "' or '1'='1",
    "'; drop table stores; --",
    "\"); delete from tenantry.products; --",
    "$1",
    "%s%n{}{{0}}",
    "\\",
    "a\r\nX-Injected: yes\r\nSet-Cookie: a=b",
    "a\u{0}b",
    "\u{202E}evil",
    "<script>alert(1)</script>",
    "\u{1F600}\u{FFFF}\u{FEFF}",
];

/// A sound body of every operation that reads one.
fn sound_body(scene: &Scene, operation: &str) -> Value {
    match operation {
        "auth_register" => {
            json!({ "email": "new@example.com", "password": "correct horse", "firstName": "N", "lastName": "E", "storeName": "New" })
        }
        "auth_login" => {
            json!({ "email": "who@example.com", "password": "correct horse", "storeId": scene.store["id"] })
        }
        "auth_refresh" => json!({ "refreshToken": "token" }),
        "store_create" => {
            json!({ "name": "Another", "slug": "another", "organizationId": scene.admin.organization_id() })
        }
        "store_update" => json!({
            "name": "Renamed",
            "settings": { "name": "Renamed", "locale": "de", "timezone": "UTC", "currency": "USD", "weightUnit": "g", "paymentMethods": ["manual"] }
        }),
        "database_connect" => json!({
            "engine": "postgresql", "host": "127.0.0.1", "port": 1, "username": "u", "password": "p", "database": "d",
            "tls": "disable", "caPem": Authority::new().pem
        }),
        "database_credentials_replace" | "database_test" | "store_database_test" => json!({
            "engine": "postgresql", "host": "127.0.0.1", "port": 1, "username": "u", "password": "p", "database": "d",
            "tls": "disable", "caPem": Authority::new().pem
        }),
        "supabase_complete" => json!({ "completionCode": "guessed" }),
        "supabase_connect" => json!({ "projectRef": "abcdefghijklmnopqrst" }),
        "ops_admin_grant" | "ops_admin_revoke" => json!({ "email": "who@example.com" }),
        "credit_quote" | "credit_spend" => {
            json!({ "storeId": scene.store["id"], "service": "translation", "quantity": 1 })
        }
        "credit_hold_create" => json!({ "storeId": scene.store["id"], "amount": 1, "description": "for a test" }),
        "credit_hold_capture" => json!({ "amount": 1 }),
        "credit_budget_set" => json!({ "storeId": scene.store["id"], "monthlyAmount": 5, "isHard": true }),
        "credit_alerts_set" => json!({ "lowBalance": 5 }),
        "ops_credit_grant" => {
            json!({ "storeId": scene.store["id"], "amount": 1, "kind": "promotional", "expiresAt": "2099-01-01T00:00:00Z", "reason": "because" })
        }
        "ops_server_update" => json!({ "maxStores": 1000, "maxConnections": 80 }),
        "ops_server_add" => json!({ "name": "second", "url": "postgres://u:p@127.0.0.1:1/d", "region": "eu" }),
        "ops_store_suspend" => json!({ "reason": "because" }),
        "storefront_cart_update" => json!({ "email": "sam@example.com", "country": "DE" }),
        "storefront_line_add" => json!({ "variantId": scene.variant, "quantity": 1 }),
        "storefront_line_change" => json!({ "quantity": 1 }),
        "storefront_cart_complete" => {
            let mut body = checkout_body();
            for name in ["company", "address2", "region", "postalCode", "phone"] {
                body["shippingAddress"][name] = json!("x");
            }
            // Were everything else accepted, this would still refuse it.
            body["expectedTotalMinor"] = json!(1);
            body
        }
        "ops_charges_waive" => {
            json!({ "storeId": scene.store["id"], "day": "2026-01-01", "service": "store-day", "reason": "because" })
        }
        "ops_credit_price_set" => json!({
            "service": "fresh", "name": "Fresh", "unit": "one", "credits": 1, "validFrom": "2030-01-01T00:00:00Z"
        }),
        "ops_credit_pack_set" => json!({
            "code": "fresh", "name": "Fresh", "credits": 1, "priceMinor": 1, "currency": "EUR", "taxCode": "txcd_10103001"
        }),
        "ops_payment_difference_note" => json!({ "note": "because" }),
        "ops_charge_price_set" => json!({ "service": "store-day", "amount": 1, "validFrom": "2030-01-01" }),
        "webhook_endpoint_create" => {
            json!({ "url": "http://127.0.0.1:9/", "description": "ours", "eventTypes": ["webhook.test"] })
        }
        "webhook_endpoint_update" => {
            json!({ "url": "http://127.0.0.1:9/", "description": "ours", "eventTypes": ["webhook.test"] })
        }
        "webhook_secret_rotate" => json!({ "overlapSeconds": 1 }),
        "webhook_resend_since" => json!({ "since": scene.app.clock.now() }),
        "credit_purchase_create" => json!({
            "packId": CreditPackId::new(scene.app.clock.now()), "organizationId": scene.admin.organization_id(),
            "successUrl": "https://agency.example/paid", "cancelUrl": "https://agency.example/away"
        }),
        "credit_payment_method_set" => json!({ "paymentMethod": "pm_guess" }),
        "credit_top_up_set" => json!({
            "threshold": 1, "packId": CreditPackId::new(scene.app.clock.now()), "monthlyCapMinor": 1, "isEnabled": false
        }),
        "ops_purchase_refund" => json!({ "amountMinor": 1, "reason": "They asked." }),
        other => panic!("{other} reads a body that this test does not know"),
    }
}

/// JSON pointers to all texts in `value`.
fn texts(value: &Value, at: &str) -> Vec<String> {
    match value {
        Value::String(_) => vec![at.to_owned()],
        Value::Object(members) => {
            members.iter().flat_map(|(name, value)| texts(value, &format!("{at}/{name}"))).collect()
        }
        Value::Array(items) => {
            items.iter().enumerate().flat_map(|(index, value)| texts(value, &format!("{at}/{index}"))).collect()
        }
        _ => Vec::new(),
    }
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_texts_in_every_field_are_data_or_refused() {
    let scene = Scene::set().await;
    let before = scene.foreign().await;
    let mut tries = 0;
    for operation in operations().iter().filter(|operation| operation.reads_json) {
        let (path, body) = (scene.path(operation), sound_body(&scene, &operation.id));
        for pointer in texts(&body, "") {
            for hostile in HOSTILE {
                tries += 1;
                let client = scene.client(operation).with("idempotency-key", &format!("hostile-{tries}"));
                let mut body = body.clone();
                // What must differ from all before, so that nothing is refused for that alone.
                match operation.id.as_str() {
                    "auth_register" => body["email"] = json!(format!("new-{tries}@example.com")),
                    "store_create" => body["slug"] = json!(format!("another-{tries}")),
                    _ => {}
                }
                *body.pointer_mut(&pointer).unwrap() = json!(hostile);
                let answer = client.send(operation.method.clone(), &path, Some(body)).await;
                check(&answer, &format!("{} with {hostile:?} as {pointer}", operation.id));
                // Whatever was taken says so in one line of its own.
                for (name, value) in &answer.headers {
                    assert!(!value.as_bytes().contains(&b'\n'), "{name}");
                }
            }
        }
        if operation.id == "ops_store_suspend" {
            let resume = path.replace("/suspend", "/resume");
            scene.admin.api.send(Method::POST, &resume, None).await.expect_status(200);
        }
    }
    for hostile in HOSTILE {
        let body = json!({ "managed": true, "region": hostile });
        let answer = scene.admin.connect(&scene.pending, body).await;
        check(&answer, &format!("database_connect with {hostile:?} as /region"));
    }
    assert_eq!(scene.foreign().await, before);
    let products = scene.cart.shop.get("/store/v1/products?limit=100").await.expect_status(200);
    assert_eq!(products["data"].as_array().map(Vec::len), Some(12));
    // Names that are only ugly were kept as they are; none with a control character was.
    let kept: Vec<String> = sqlx::query_scalar("select name from stores union all select first_name from users")
        .fetch_all(&mut scene.app.master().await)
        .await
        .unwrap();
    assert!(kept.iter().any(|name| name.contains("drop table stores")), "{kept:?}");
    assert!(!kept.iter().any(|name| name.chars().any(|c| c.is_control() || c == '\u{202E}')), "{kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_texts_in_every_path_and_query_are_data_or_refused() {
    let scene = Scene::set().await;
    let before = scene.foreign().await;
    for operation in operations() {
        // What creates from nothing but a path has no text to be hostile in.
        let client = scene.client(&operation).with("idempotency-key", "hostile");
        let (method, sound) = (operation.method.clone(), scene.path(&operation));
        let body = if operation.reads_json { Some(sound_body(&scene, &operation.id)) } else { None };
        for hostile in HOSTILE.into_iter().chain(["..", ".", " "]) {
            for name in &operation.query {
                let path = format!("{sound}?{name}={}", encoded(hostile));
                let answer = client.send(method.clone(), &path, body.clone()).await;
                check(&answer, &format!("{method} {path}"));
            }
            let parts: Vec<&str> = operation.path.split('/').filter(|part| part.starts_with('{')).collect();
            for part in parts {
                let path = operation.path.replace(part, &encoded(hostile));
                let path = scene.path(&Operation { path, ..operation.clone() });
                let answer = client.send(method.clone(), &path, body.clone()).await;
                check(&answer, &format!("{method} {path}"));
                assert!(answer.status.is_client_error(), "{method} {path} answered {}", answer.status);
            }
        }
    }
    assert_eq!(scene.foreign().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_what_is_expected_and_not_what_was_typed() {
    let app = TestApp::start_with(TestAppOptions { without_server: true, ..TestAppOptions::default() }).await;
    let ada = app.owner("ada").await;
    let store = ada.create_store("tea").await.expect_status(201);
    let connect = store_path(&store, "/connect-database");
    let string = |url: &str| json!({ "engine": "postgresql", "connectionString": url });
    let register = json!({ "email": "eve@example.com", "password": 12_345_678, "firstName": "E", "lastName": "E" });
    let cases = [
        ("/api/auth/register", register, "/password", "must be a string", "12345678"),
        (&connect, json!({ "engine": "postgres://u:hunter2@h/d" }), "/engine", "postgresql", "hunter2"),
        (&connect, json!({ "password": ["hunter2"] }), "/password", "must be a string", "hunter2"),
        (&connect, json!({ "port": 70_123 }), "/port", "must be a whole number from 0 to 65535", "70123"),
        (&connect, string("postgres://tea:?hunter2@db.example.com/shop"), "/connectionString", "%3F", "hunter2"),
        (&connect, string("postgres://t:p@h.example/d?hunter2=x"), "/connectionString", "no parameter", "hunter2"),
        (&connect, string("postgres://t:p@h.example/d?sslcert=hunter2"), "/connectionString", "sslcert", "hunter2"),
    ];
    for (path, body, pointer, says, typed) in cases {
        let problem = ada.api.post(path, body).await.expect_field(422, "invalid-input", pointer);
        let text = problem.to_string();
        assert!(text.contains(says) && !text.contains(typed), "{problem}");
    }
}

/// A small generator, so that a failure can be repeated: the same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        (0..self.next(most + 1)).map(|_| u8::try_from(self.next(256)).unwrap()).collect()
    }

    /// Text that a header may hold.
    fn header(&mut self) -> String {
        (0..self.next(40)).map(|_| char::from(u8::try_from(33 + self.next(94)).unwrap())).collect()
    }

    fn json(&mut self, depth: u64) -> Value {
        match self.next(if depth == 0 { 5 } else { 7 }) {
            0 => Value::Null,
            1 => json!(self.next(2) == 0),
            2 => json!(i64::try_from(self.next(u64::from(u32::MAX))).unwrap() - 1_000_000),
            3 => json!(1e300),
            4 => json!(String::from_utf8_lossy(&self.bytes(30))),
            5 => (0..self.next(4)).map(|_| self.json(depth - 1)).collect(),
            _ => {
                let names =
                    ["name", "email", "password", "settings", "quantity", "variantId", "managed", "engine", "host"];
                (0..self.next(5))
                    .map(|_| (names[usize::try_from(self.next(9)).unwrap()].to_owned(), self.json(depth - 1)))
                    .collect::<serde_json::Map<_, _>>()
                    .into()
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_to_every_operation_is_answered_by_a_readable_refusal() {
    let scene = Scene::set().await;
    let before = scene.foreign().await;
    let mut numbers = Numbers(20_261_121);
    let now = scene.app.clock.now();
    for operation in operations() {
        for round in 0..8 {
            let random_part = |numbers: &mut Numbers| match numbers.next(4) {
                0 => encoded("x"),
                1 => CartId::new(now).to_string(),
                2 => CartLineId::new(now).to_string(),
                _ => numbers.bytes(20).iter().map(|byte| format!("%{byte:02X}")).collect::<String>() + "x",
            };
            let mut path = operation.path.clone();
            if round % 2 == 0 {
                while let Some((head, (_, tail))) =
                    path.split_once('{').and_then(|(head, rest)| Some((head, rest.split_once('}')?)))
                {
                    path = format!("{head}{}{tail}", random_part(&mut numbers));
                }
            } else {
                path = scene.path(&operation);
            }
            let mut query = Vec::new();
            for name in &operation.query {
                if numbers.next(3) > 0 {
                    query.push(format!(
                        "{name}={}",
                        numbers.bytes(20).iter().map(|byte| format!("%{byte:02X}")).collect::<String>()
                    ));
                }
            }
            if !query.is_empty() {
                path = format!("{path}?{}", query.join("&"));
            }
            let mut client = scene.client(&operation);
            if operation.id == "auth_logout" {
                let login = scene.other.login(json!({})).await.expect_status(200);
                client = client.with_token(text(&login["tokens"]["accessToken"]));
            }
            for name in [
                "x-store-id",
                "x-tenant-id",
                "x-cart-token",
                "x-order-token",
                "if-match",
                "if-none-match",
                "idempotency-key",
                "last-event-id",
                "accept",
                "authorization",
                "x-forwarded-for",
            ] {
                if numbers.next(6) == 0 {
                    client = client.with(name, &numbers.header());
                }
            }
            let what = format!("{} {path} in round {round}", operation.method);
            let answer = match numbers.next(3) {
                0 => client.send(operation.method.clone(), &path, None).await,
                1 => client.send(operation.method.clone(), &path, Some(numbers.json(4))).await,
                _ => {
                    let body = numbers.bytes(200);
                    let kind = ["application/json", "text/csv", "multipart/form-data; boundary=x"]
                        [usize::try_from(numbers.next(3)).unwrap()];
                    client.send_bytes(operation.method.clone(), &path, kind, body).await
                }
            };
            check(&answer, &what);
            if operation.id == "ops_store_suspend" {
                let resume = format!("/api/ops/stores/{}/resume", text(&scene.store["id"]));
                scene.admin.api.send(Method::POST, &resume, None).await;
            }
        }
    }
    assert_eq!(scene.foreign().await, before);
}
