//! Which store a request is about: by hostname, by header, by token, and never by accident.
//!
//! How a hostname is read has nothing to do with where a store's data is: those tests run on one engine.

use integration_tests::{Client, Owner, TestApp, TestAppOptions, eventually};
use kernel::{Engine, StoreId};
use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use crate::scenes::{Cart, checkout_body, send_raw, store_path, text, variant_of};

on_each_engine! {
    a_suspended_store_answers_503_within_a_second_and_serves_again_when_resumed
    a_header_or_token_never_overrides_the_hostname
    on_the_platforms_host_a_store_is_named_by_header_or_token_beside_a_credential
    what_one_store_hands_out_works_at_no_other
}

async fn with_arguments(arguments: &[&str]) -> TestApp {
    let arguments = arguments.iter().map(|&text| text.to_owned()).collect();
    TestApp::start_with(TestAppOptions { arguments, ..TestAppOptions::default() }).await
}

/// A platform with one owner and one store, called tea, that is served.
async fn tea() -> (TestApp, Owner, Value) {
    tea_on(Engine::Postgresql).await
}

async fn tea_on(engine: Engine) -> (TestApp, Owner, Value) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let store = app.active_store(&owner, "tea").await;
    (app, owner, store)
}

fn request(lines: &[&str]) -> String {
    format!("{}\r\nConnection: close\r\n\r\n", lines.join("\r\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostname_reaches_its_store_however_it_is_written() {
    let (app, _owner, store) = tea().await;
    let id: StoreId = text(&store["id"]).parse().unwrap();
    sqlx::query("insert into hostnames (id, store_id, hostname, kind, is_primary, created_at) values (gen_random_uuid(), $1, 'xn--bcher-kva.example', 'custom', false, now())")
        .bind(id.as_uuid())
        .execute(&mut app.master().await)
        .await
        .unwrap();
    for host in [
        "tea.stores.localhost",
        "TEA.Stores.LocalHost",
        "tea.stores.localhost:8080",
        "tea.stores.localhost.",
        "Tea.stores.localhost.:443",
        "tea.stores.localhost:",
        "xn--bcher-kva.example",
        "XN--BCHER-KVA.example.:80",
    ] {
        let answer = app.storefront(host).get("/store/v1/store").await.expect_status(200);
        assert_eq!(answer["name"], "tea", "{host}");
    }
    // A browser never sends Unicode; what does is told so, or is understood.
    let (status, _, body) =
        send_raw(app.address, &request(&["GET /store/v1/store HTTP/1.1", "Host: bücher.example"])).await;
    assert!(status == 400 || (status == 200 && body["name"] == "tea"), "{status} {body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_must_name_exactly_one_host() {
    let (app, _owner, _store) = tea().await;
    let get = "GET /store/v1/store HTTP/1.1";
    let cases: &[(&[&str], u16, &str)] = &[
        (&[get, "Host: tea.stores.localhost"], 200, ""),
        (&[get, "Host: tea.stores.localhost", "Host: tea.stores.localhost"], 400, "several-hosts"),
        (&[get, "Host: tea.stores.localhost", "Host: other.stores.localhost"], 400, "several-hosts"),
        (&[get], 400, "missing-host"),
        (&["GET /store/v1/store HTTP/1.0"], 400, "missing-host"),
        (&[get, "Host:"], 400, "missing-host"),
        (&[get, "Host: tea.stores.localhost, other.stores.localhost"], 400, "invalid-host"),
        (&[get, "Host: tea.stores.localhost/x"], 400, "invalid-host"),
        (&[get, "Host: eve@tea.stores.localhost"], 400, "invalid-host"),
        (&[get, "Host: tea.stores.localhost:port"], 400, "invalid-host"),
        (&[get, "Host: tea.stores.localhost:99999"], 400, "invalid-host"),
        (&[get, "Host: tea..stores.localhost"], 400, "invalid-host"),
        (&[get, "Host: tea.stores.localhost.."], 400, "invalid-host"),
        (&[get, "Host: ../tea"], 400, "invalid-host"),
        (&[get, "Host: tea.stores.localhost%00"], 400, "invalid-host"),
        (&[get, "Host: [::1"], 400, "invalid-host"),
        (&[get, "Host: 192.0.2.1"], 421, "unknown-host"),
        (&[get, "Host: [2001:db8::1]:80"], 421, "unknown-host"),
        (&[get, "Host: 0x7f.1"], 400, "invalid-host"),
        (&["GET http://tea.stores.localhost/store/v1/store HTTP/1.1", "Host: tea.stores.localhost"], 200, ""),
        (&["GET http://TEA.stores.localhost/store/v1/store HTTP/1.1", "Host: tea.stores.localhost"], 200, ""),
        (
            &["GET http://tea.stores.localhost/store/v1/store HTTP/1.1", "Host: other.stores.localhost"],
            400,
            "several-hosts",
        ),
        (
            &["GET http://other.stores.localhost/store/v1/store HTTP/1.1", "Host: tea.stores.localhost"],
            400,
            "several-hosts",
        ),
        (
            &["GET http://eve@tea.stores.localhost/store/v1/store HTTP/1.1", "Host: tea.stores.localhost"],
            400,
            "invalid-host",
        ),
    ];
    for (lines, wanted, code) in cases {
        let (status, headers, body) = send_raw(app.address, &request(lines)).await;
        assert_eq!((status, body["code"].as_str().unwrap_or_default()), (*wanted, *code), "{lines:?}: {body}");
        if *wanted != 200 {
            assert_eq!(headers["content-type"], "application/problem+json", "{lines:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_forwarded_host_counts_for_nothing() {
    let (app, _owner, _store) = tea().await;
    let forged = |host: &str| app.storefront(host).with("x-forwarded-host", "tea.stores.localhost");
    forged("other.stores.localhost").get("/store/v1/store").await.expect_problem(421, "unknown-host");
    let shop = app.storefront("tea.stores.localhost").with("x-forwarded-host", "other.stores.localhost");
    shop.get("/store/v1/store").await.expect_status(200);
    for header in ["forwarded", "x-host", "x-original-host", "x-http-host-override"] {
        let client = app.storefront("other.stores.localhost").with(header, "host=tea.stores.localhost");
        client.get("/store/v1/store").await.expect_problem(421, "unknown-host");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxys_forwarded_host_counts_the_last_one_of_several() {
    let app = with_arguments(&["--trusted-proxies", "127.0.0.1"]).await;
    let owner = app.owner("ada").await;
    app.active_store(&owner, "tea").await;
    let behind = |value: &str| app.storefront("node-1.internal").with("x-forwarded-host", value);
    for value in ["tea.stores.localhost", "TEA.stores.localhost.:443", "evil.example, tea.stores.localhost"] {
        behind(value).get("/store/v1/store").await.expect_status(200);
    }
    behind("tea.stores.localhost, evil.example").get("/store/v1/store").await.expect_problem(421, "unknown-host");
    behind("not a host").get("/store/v1/store").await.expect_problem(400, "invalid-host");
    // Without the header the Host itself counts, as health checks of the proxy send it.
    app.storefront("tea.stores.localhost").get("/store/v1/store").await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_host_gets_421_and_never_some_store() {
    let (app, owner, _store) = tea().await;
    for host in [
        "other.stores.localhost",
        "tea.stores.localhost.evil.example",
        "x.tea.stores.localhost",
        "tea",
        "teastores.localhost",
    ] {
        let answer = app.storefront(host).get("/store/v1/products").await;
        answer.expect_problem(421, "unknown-host");
    }
    // A store that is made now is known at once, although its name was just asked for in vain.
    app.storefront("late.stores.localhost").get("/store/v1/store").await.expect_problem(421, "unknown-host");
    app.active_store(&owner, "late").await;
    app.storefront("late.stores.localhost").get("/store/v1/store").await.expect_status(200);
}

async fn a_suspended_store_answers_503_within_a_second_and_serves_again_when_resumed(engine: Engine) {
    let (app, owner, store) = tea_on(engine).await;
    let ops = app.admin().await;
    let shop = app.storefront_of(&store);
    let cart = Cart::create(&shop).await;
    let path = |action: &str| format!("/api/ops/stores/{}/{action}", text(&store["id"]));
    shop.get("/store/v1/products").await.expect_status(200);
    let started = Instant::now();
    let suspended = ops.api.post(&path("suspend"), json!({ "reason": "unpaid" })).await.expect_status(200);
    assert_eq!((&suspended["status"], &suspended["statusReason"]), (&json!("suspended"), &json!("unpaid")));
    eventually("the suspended store's 503", || async {
        (shop.get("/store/v1/products").await.status.as_u16() == 503).then_some(())
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    for answer in [shop.get("/store/v1/products").await, shop.get("/store/v1/none").await, cart.get().await] {
        answer.expect_problem(503, "store-suspended");
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
        assert_eq!(answer.header("cache-control"), "no-store");
        assert!(!answer.text().contains("unpaid"), "the reason is not for shoppers");
    }
    let by_header = owner.api.with("x-store-id", text(&store["id"]));
    by_header.get("/store/v1/store").await.expect_problem(503, "store-suspended");
    // Its owner still sees it, and why.
    let seen = owner.api.get(&store_path(&store, "")).await.expect_status(200);
    assert_eq!((&seen["status"], &seen["statusReason"]), (&json!("suspended"), &json!("unpaid")));
    assert_eq!(seen["database"]["state"], "available");
    // Suspending again changes nothing, resuming does.
    ops.api.post(&path("suspend"), json!({ "reason": "again" })).await.expect_status(200);
    ops.api.send(http::Method::POST, &path("resume"), None).await.expect_status(200);
    shop.get("/store/v1/products").await.expect_status(200);
    cart.get().await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspend_by_another_process_is_heard_long_before_the_route_would_be_asked_for_again() {
    let (app, _owner, store) = tea().await;
    let shop = app.storefront_of(&store);
    shop.get("/store/v1/products").await.expect_status(200);
    let id: StoreId = text(&store["id"]).parse().unwrap();
    let started = Instant::now();
    sqlx::query("update stores set status = 'suspended' where id = $1")
        .bind(id.as_uuid())
        .execute(&mut app.master().await)
        .await
        .unwrap();
    eventually("the suspended store's 503", || async {
        (shop.get("/store/v1/products").await.status.as_u16() == 503).then_some(())
    })
    .await;
    // A route is believed for 30 s; hearing of a change takes milliseconds.
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

async fn a_header_or_token_never_overrides_the_hostname(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let tea = app.active_store(&owner, "tea").await;
    let pots = app.active_store(&owner, "pots").await;
    let shop = app.storefront_of(&tea);
    for header in ["x-store-id", "x-tenant-id"] {
        shop.with(header, text(&tea["id"])).get("/store/v1/store").await.expect_status(200);
        let other = shop.with(header, text(&pots["id"]));
        other.get("/store/v1/store").await.expect_problem(400, "store-mismatch");
        other.post("/store/v1/carts", json!({})).await.expect_problem(400, "store-mismatch");
        shop.with(header, "pots").get("/store/v1/store").await.expect_problem(400, "store-mismatch");
    }
    let login = owner.login(json!({ "storeId": pots["id"] })).await.expect_status(200);
    let token = text(&login["tokens"]["accessToken"]);
    let shown = shop.with_token(token).get("/store/v1/store").await.expect_status(200);
    assert_eq!(shown["name"], "tea");
}

async fn on_the_platforms_host_a_store_is_named_by_header_or_token_beside_a_credential(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let (ada, eve) = (app.owner("ada").await, app.owner("eve").await);
    let tea = app.active_store(&ada, "tea").await;
    let pots = app.active_store(&ada, "pots").await;
    let waiting = ada.create_store("waiting").await.expect_status(201);
    let named = |api: &Client, store: &Value| api.with("x-store-id", text(&store["id"]));
    let name = |shop: Value| text(&shop["name"]).to_owned();
    for (store, wanted) in [(&tea, "tea"), (&pots, "pots")] {
        let shown = named(&ada.api, store).get("/store/v1/store").await;
        assert_eq!(name(shown.expect_status(200)), wanted);
        assert_eq!(shown.header("cache-control"), "private, max-age=0, must-revalidate");
        assert!(shown.header("vary").to_lowercase().contains("authorization"));
    }
    ada.api.get("/store/v1/store").await.expect_problem(400, "store-not-named");
    named(&eve.api, &tea).get("/store/v1/store").await.expect_problem(404, "not-found");
    named(&app.api(), &tea).get("/store/v1/store").await.expect_problem(401, "unauthenticated");
    named(&ada.api, &waiting).get("/store/v1/store").await.expect_problem(503, "store-not-ready");
    let nobodys = ada.api.with("x-store-id", "sto_01JD8Q6X5MFKV9T3R0WZ2H4C7N");
    nobodys.get("/store/v1/store").await.expect_problem(404, "not-found");
    let login = ada.login(json!({ "storeId": tea["id"] })).await.expect_status(200);
    let by_token = app.api().with_token(text(&login["tokens"]["accessToken"]));
    assert_eq!(name(by_token.get("/store/v1/store").await.expect_status(200)), "tea");
    // A token that was made for one store is good for no other, and for nothing that is about all of them.
    named(&by_token, &pots).get("/store/v1/store").await.expect_problem(400, "store-mismatch");
    by_token.get(&format!("/api/stores/{}", text(&tea["id"]))).await.expect_status(200);
    by_token.get(&format!("/api/stores/{}", text(&pots["id"]))).await.expect_problem(404, "not-found");
    by_token.get("/api/stores").await.expect_problem(403, "token-limited");
    by_token.get("/api/ops/stores").await.expect_problem(403, "token-limited");
}

async fn what_one_store_hands_out_works_at_no_other(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let tea = app.active_store(&owner, "tea").await;
    let pots = app.active_store(&owner, "pots").await;
    let (here, there) = (app.storefront_of(&tea), app.storefront_of(&pots));
    let page = here.get("/store/v1/products?limit=2").await.expect_status(200);
    let cursor = text(&page["meta"]["nextCursor"]);
    here.get(&format!("/store/v1/products?limit=2&cursor={cursor}")).await.expect_status(200);
    there.get(&format!("/store/v1/products?limit=2&cursor={cursor}")).await.expect_problem(400, "invalid-cursor");
    let variant = variant_of(&here, "harbour-breakfast", 0).await;
    let foreign_variant = variant_of(&there, "harbour-breakfast", 0).await;
    assert_ne!(variant, foreign_variant);
    let cart = Cart::with(&here, &variant, 1).await;
    cart.add(&foreign_variant, 1).await.expect_field(422, "invalid-input", "/variantId");
    let stolen = Cart { shop: there.with("x-cart-token", &cart.token), id: cart.id.clone(), token: cart.token.clone() };
    stolen.get().await.expect_problem(404, "not-found");
    stolen.add(&foreign_variant, 1).await.expect_problem(404, "not-found");
    stolen.complete("key", checkout_body()).await.expect_problem(404, "not-found");
    let order = cart.complete("key", checkout_body()).await.expect_status(201);
    let path = format!("/store/v1/orders/{}", text(&order["id"]));
    let token = text(&order["orderToken"]);
    here.with("x-order-token", token).get(&path).await.expect_status(200);
    there.with("x-order-token", token).get(&path).await.expect_problem(404, "not-found");
    let product = here.get("/store/v1/products/harbour-breakfast").await.expect_status(200);
    let by_id = format!("/store/v1/products/{}", text(&product["id"]));
    here.get(&by_id).await.expect_status(200);
    there.get(&by_id).await.expect_problem(404, "not-found");
    // An answer that one store vouched for is no answer of the other.
    let etag = here.get("/store/v1/products").await;
    let asked = there.with("if-none-match", etag.header("etag")).get("/store/v1/products").await;
    asked.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platforms_own_api_is_not_on_a_stores_hostname() {
    let (app, owner, store) = tea().await;
    let token = text(&owner.registered["tokens"]["accessToken"]);
    let shop = app.storefront_of(&store).with_token(token);
    for path in
        ["/", "/api/stores", "/api/auth/me", "/docs", "/openapi.json", "/api/ops/servers", "/health/live", "/metrics"]
    {
        shop.get(path).await.expect_problem(404, "not-found");
    }
    let body = json!({ "email": owner.email, "password": owner.password });
    shop.post("/api/auth/login", body).await.expect_problem(404, "not-found");
    shop.get(&store_path(&store, "")).await.expect_problem(404, "not-found");
    // What is internal is not on the platform's host either.
    for path in ["/health/live", "/health/ready", "/metrics", "/internal/tls/ask"] {
        app.api().get(path).await.expect_problem(404, "not-found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_platform_host_answers_for_the_platform() {
    let (app, _owner, _store) = tea().await;
    for host in
        ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:8080", "[::1]:8080", "stores.localhost", "localhost."]
    {
        let client = Client::new(app.address, host);
        client.get("/api/stores").await.expect_problem(401, "unauthenticated");
        let document = client.get("/openapi.json").await.expect_status(200);
        assert!(text(&document["openapi"]).starts_with("3.1"));
    }
}
