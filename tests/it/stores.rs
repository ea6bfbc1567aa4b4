//! Stores: names and slugs, creating once, listing, changing.

#![expect(clippy::disallowed_methods, reason = "every task is waited for by its test")]

use std::collections::BTreeSet;

use integration_tests::{Owner, Response, TestApp, TestAppOptions};
use kernel::Engine;
use serde_json::{Value, json};

use crate::scenes::{count, join, store_path, text};

on_each_engine! {
    name_and_settings_change_and_nothing_else_can_be_patched
    tax_rates_are_merged_and_null_takes_one_away
    bad_settings_name_the_field_and_change_nothing
}

async fn start() -> TestApp {
    TestApp::start_with(TestAppOptions { without_server: true, ..TestAppOptions::default() }).await
}

async fn create(owner: &Owner, body: Value) -> Response {
    owner.api.post("/api/stores/create", body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_store_has_a_hostname_and_waits_for_its_database() {
    let app = start().await;
    let owner = app.owner("ada").await;
    let store = create(&owner, json!({ "name": "  Ada's Tea 茶 ", "slug": "adas-tea" })).await.expect_status(201);
    assert!(text(&store["id"]).starts_with("sto_"));
    assert_eq!(store["name"], "Ada's Tea 茶");
    assert_eq!(store["organizationId"], owner.organization_id());
    assert_eq!((text(&store["status"]), text(&store["hostname"])), ("pending_database", "adas-tea.stores.localhost"));
    let detail = owner.api.get(&store_path(&store, "")).await.expect_status(200);
    assert_eq!((&detail["settings"], &detail["counts"]), (&Value::Null, &Value::Null));
    assert_eq!(detail["database"], json!({ "state": "none" }));
    // Not finished is not unknown: its hostname answers that it is not ready.
    let answer = app.storefront_of(&store).get("/store/v1/products").await;
    answer.expect_problem(503, "store-not-ready");
    assert!(!answer.header("retry-after").is_empty());
    owner.api.get(&store_path(&store, "/provisioning")).await.expect_problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slug_keeps_to_its_rules() {
    let app = start().await;
    let owner = app.owner("ada").await;
    let long = "x".repeat(64);
    for slug in
        ["", "ab", "Tea", "-tea", "tea-", "te--a", "tea shop", "tea.shop", "té", "xn--tea", "tea\u{0}", "../etc", &long]
    {
        create(&owner, json!({ "name": "Tea", "slug": slug })).await.expect_field(422, "invalid-input", "/slug");
    }
    for slug in ["admin", "api", "www", "localhost", "stores"] {
        let problem = create(&owner, json!({ "name": "Tea", "slug": slug })).await.expect_problem(422, "invalid-input");
        assert_eq!(problem["errors"][0]["code"], "reserved", "{slug}");
    }
    assert_eq!(count(&app, "select count(*) from stores").await, 0);
    create(&owner, json!({ "name": "Tea", "slug": "x".repeat(63) })).await.expect_status(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_one_line_of_at_most_100_characters() {
    let app = start().await;
    let owner = app.owner("ada").await;
    for name in ["", "  ", "a\r\nSet-Cookie: x", "a\u{0}b", "a\u{202E}b", "a\u{2028}b", &"é".repeat(101)] {
        create(&owner, json!({ "name": name, "slug": "tea-shop" })).await.expect_field(422, "invalid-input", "/name");
    }
    assert_eq!(count(&app, "select count(*) from stores").await, 0);
    let name = "<script>alert(1)</script> \"; drop table stores; --";
    let store = create(&owner, json!({ "name": name })).await.expect_status(201);
    assert_eq!(store["name"], name);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_slug_is_refused_whoever_has_it() {
    let app = start().await;
    let (ada, eve) = (app.owner("ada").await, app.owner("eve").await);
    ada.create_store("tea-shop").await.expect_status(201);
    ada.create_store("tea-shop").await.expect_field(409, "slug-taken", "/slug");
    eve.create_store("tea-shop").await.expect_field(409, "slug-taken", "/slug");
    assert_eq!(count(&app, "select count(*) from stores").await, 1);
    assert_eq!(count(&app, "select count(*) from hostnames").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slug_is_made_from_the_name_and_gets_a_suffix_when_it_is_taken() {
    let app = start().await;
    let owner = app.owner("ada").await;
    let mut slugs = BTreeSet::new();
    for at in 0..4 {
        let store = create(&owner, json!({ "name": "Ada's Tea & Cakes" })).await.expect_status(201);
        let slug = text(&store["slug"]).to_owned();
        assert!(if at == 0 { slug == "adas-tea-cakes" } else { slug.starts_with("adas-tea-cakes-") }, "{slug}");
        assert_eq!(store["hostname"], format!("{slug}.stores.localhost"));
        slugs.insert(slug);
    }
    assert_eq!(slugs.len(), 4);
    // A name without a letter for a slug, and one that would make a reserved one, make one all the same.
    for name in ["茶", "Admin", "!!"] {
        let store = create(&owner, json!({ "name": name })).await.expect_status(201);
        assert!(text(&store["slug"]).len() >= 3 && store["slug"] != "admin", "{store}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_creates_of_one_slug_at_once_one_wins() {
    let app = start().await;
    let owner = app.owner("ada").await;
    let tries: Vec<_> = (0..10)
        .map(|_| {
            let owner = owner.clone();
            tokio::task::spawn(async move { owner.create_store("tea-shop").await })
        })
        .collect();
    let mut made = 0;
    for answer in tries {
        let answer = answer.await.unwrap();
        match answer.status.as_u16() {
            201 => made += 1,
            _ => drop(answer.expect_problem(409, "slug-taken")),
        }
    }
    assert_eq!(made, 1);
    assert_eq!(count(&app, "select count(*) from stores").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_idempotency_key_makes_one_store() {
    let app = start().await;
    let (ada, eve) = (app.owner("ada").await, app.owner("eve").await);
    let keyed = ada.api.with("idempotency-key", "make-one");
    let body = json!({ "name": "Tea Shop" });
    let tries: Vec<_> = (0..10)
        .map(|_| {
            let (keyed, body) = (keyed.clone(), body.clone());
            tokio::task::spawn(async move { keyed.post("/api/stores/create", body).await })
        })
        .collect();
    let mut answers = Vec::new();
    for answer in tries {
        answers.push(answer.await.unwrap().expect_status(201));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(count(&app, "select count(*) from stores").await, 1);
    assert_eq!(count(&app, "select count(*) from audit_events where action = 'store_create'").await, 1);
    let other = json!({ "name": "Another" });
    keyed.post("/api/stores/create", other).await.expect_problem(422, "idempotency-key-reused");
    // A key is its sender's own.
    let hers = eve.api.with("idempotency-key", "make-one").post("/api/stores/create", body).await.expect_status(201);
    assert_ne!(hers["id"], answers[0]["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_create_leaves_its_idempotency_key_free() {
    let app = start().await;
    let owner = app.owner("ada").await;
    let keyed = owner.api.with("idempotency-key", "\"try-again\"");
    keyed.post("/api/stores/create", json!({ "name": "Tea", "slug": "no" })).await.expect_problem(422, "invalid-input");
    keyed.post("/api/stores/create", json!({ "name": "Tea", "slug": "tea-shop" })).await.expect_status(201);
    for bad in ["", "a b", &"k".repeat(256), "\"\""] {
        let client = owner.api.with("idempotency-key", bad);
        let answer = client.post("/api/stores/create", json!({ "name": "Tea" })).await;
        answer.expect_problem(400, "invalid-idempotency-key");
    }
    assert_eq!(count(&app, "select count(*) from stores").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_shows_each_store_once_newest_first() {
    let app = start().await;
    let (ada, eve) = (app.owner("ada").await, app.owner("eve").await);
    let mut made = Vec::new();
    for at in 0..5 {
        made.push(text(&ada.create_store(&format!("store-{at}")).await.expect_status(201)["id"]).to_owned());
    }
    eve.create_store("eves").await.expect_status(201);
    let (mut seen, mut cursors, mut path) = (Vec::new(), Vec::new(), "/api/stores?limit=2".to_owned());
    loop {
        let page = ada.api.get(&path).await.expect_status(200);
        let data = page["data"].as_array().unwrap();
        assert!(data.len() <= 2 && cursors.len() < 100, "the pages do not end");
        seen.extend(data.iter().map(|store| text(&store["id"]).to_owned()));
        let Some(next) = page["meta"]["nextCursor"].as_str() else { break };
        cursors.push(next.to_owned());
        path = format!("/api/stores?limit=2&cursor={next}");
    }
    made.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(seen, made);
    let foreign = format!("/api/stores?cursor={}", cursors[0]);
    eve.api.get(&foreign).await.expect_problem(400, "invalid-cursor");
    let filtered = format!("/api/stores?cursor={}&organizationId={}", cursors[0], ada.organization_id());
    ada.api.get(&filtered).await.expect_problem(400, "invalid-cursor");
    ada.api.get("/api/stores?cursor=nonsense").await.expect_problem(400, "invalid-cursor");
    for bad in ["limit=0", "limit=101", "limit=300", "limit=-1", "limit=x", "page=2", "organizationId=x"] {
        ada.api.get(&format!("/api/stores?{bad}")).await.expect_problem(400, "invalid-query");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_organization_must_be_ones_own_and_named_when_there_are_several() {
    let app = start().await;
    let (ada, bob, eve) = (app.owner("ada").await, app.owner("bob").await, app.owner("eve").await);
    let foreign = json!({ "name": "Tea", "organizationId": eve.organization_id() });
    create(&ada, foreign).await.expect_field(422, "invalid-input", "/organizationId");
    create(&ada, json!({ "name": "Tea", "organizationId": "org_1" })).await.expect_field(
        422,
        "invalid-input",
        "/organizationId",
    );
    join(&app, &ada, &bob, "admin").await;
    create(&bob, json!({ "name": "Tea" })).await.expect_field(422, "invalid-input", "/organizationId");
    let body = json!({ "name": "Tea", "organizationId": ada.organization_id() });
    let store = create(&bob, body).await.expect_status(201);
    assert_eq!(store["organizationId"], ada.organization_id());
    ada.api.get(&store_path(&store, "")).await.expect_status(200);
    let of = |organization: &str| format!("/api/stores?organizationId={organization}");
    let list = bob.api.get(&of(ada.organization_id())).await.expect_status(200);
    assert_eq!(list["data"][0]["id"], store["id"]);
    for organization in [bob.organization_id(), eve.organization_id()] {
        assert_eq!(bob.api.get(&of(organization)).await.expect_status(200)["data"], json!([]));
    }
}

async fn name_and_settings_change_and_nothing_else_can_be_patched(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let store = app.active_store(&owner, "tea-shop").await;
    let path = store_path(&store, "");
    let before = owner.api.get(&path).await.expect_status(200);
    assert_eq!(before["settings"]["name"], "tea-shop");
    assert!(before["counts"]["products"].as_i64() > Some(0), "{before}");
    let patch = json!({
        "name": "Tea & Co",
        "settings": {
            "locale": "pt-BR", "timezone": "Europe/Berlin", "weightUnit": "g", "pricesIncludeTax": false,
            "tax": { "rateBasisPoints": 1900, "countries": { "AT": 2000 } },
            "shipping": { "flatMinor": 500, "freeFromMinor": 4000 },
            "paymentMethods": ["manual"],
            "capabilities": { "wishlist": true }
        }
    });
    let after = owner.api.patch(&path, patch.clone()).await.expect_status(200);
    assert_eq!(after["name"], "Tea & Co");
    for (field, value) in patch["settings"].as_object().unwrap() {
        assert_eq!(&after["settings"][field], value, "{field}");
    }
    assert_eq!(owner.api.get(&path).await.expect_status(200), after);
    let shown = app.storefront_of(&store).get("/store/v1/store").await.expect_status(200);
    assert_eq!((&shown["name"], &shown["locale"]), (&json!("Tea & Co"), &json!("pt-BR")));
    assert_eq!(shown.get("tax"), None);
    // What is left out stays, also within the capabilities.
    let patch = json!({ "settings": { "capabilities": { "reviews": false } } });
    let after = owner.api.patch(&path, patch).await.expect_status(200);
    assert_eq!(after["settings"]["capabilities"], json!({ "wishlist": true, "reviews": false }));
    assert_eq!((&after["settings"]["locale"], &after["name"]), (&json!("pt-BR"), &json!("Tea & Co")));
    for field in ["status", "slug", "is_active", "isActive", "hostname", "organizationId", "id", "routeVersion"] {
        let answer = owner.api.patch(&path, json!({ field: "active" })).await;
        answer.expect_field(422, "invalid-input", &format!("/{field}"));
    }
    assert_eq!(owner.api.get(&path).await.expect_status(200), after);
}

async fn tax_rates_are_merged_and_null_takes_one_away(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let store = app.active_store(&owner, "tea-shop").await;
    let path = store_path(&store, "");
    for (tax, wanted) in [
        (json!({ "rateBasisPoints": 700, "countries": { "AT": 1000, "FR": 2000 } }), json!({ "AT": 1000, "FR": 2000 })),
        (json!({ "countries": { "FR": null, "IT": 2200 } }), json!({ "AT": 1000, "IT": 2200 })),
        (json!({}), json!({ "AT": 1000, "IT": 2200 })),
    ] {
        app.clock.advance(chrono::Duration::seconds(1));
        let old = owner.api.get(&path).await.expect_status(200);
        let new = owner.api.patch(&path, json!({ "settings": { "tax": tax } })).await.expect_status(200);
        let kept = &new["settings"]["tax"];
        assert_eq!(kept["rateBasisPoints"], 700);
        for (country, rate) in wanted.as_object().unwrap() {
            assert_eq!(&kept["countries"][country], rate, "{kept}");
        }
        assert!(kept["countries"]["FR"].is_null() || wanted["FR"].is_number(), "{kept}");
        assert!(text(&new["updatedAt"]) > text(&old["updatedAt"]), "{new}");
    }
    let lower = owner.api.patch(&path, json!({ "settings": { "currency": "usd" } })).await.expect_status(200);
    assert_eq!(lower["settings"]["currency"], "USD");
}

async fn bad_settings_name_the_field_and_change_nothing(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let store = app.active_store(&owner, "tea-shop").await;
    let path = store_path(&store, "");
    let before = owner.api.get(&path).await.expect_status(200);
    let cases = [
        (json!({ "theme": "dark" }), "/settings/theme"),
        (json!({ "locale": "german" }), "/settings/locale"),
        (json!({ "locale": 7 }), "/settings/locale"),
        (json!({ "timezone": "../../etc/passwd" }), "/settings/timezone"),
        (json!({ "timezone": "Europe/Atlantis" }), "/settings/timezone"),
        (json!({ "tax": { "countries": { "XX": 1 } } }), "/settings/tax/countries/XX"),
        (json!({ "currency": "XXY" }), "/settings/currency"),
        (json!({ "weightUnit": "stone" }), "/settings/weightUnit"),
        (json!({ "tax": { "rateBasisPoints": 10_001 } }), "/settings/tax/rateBasisPoints"),
        (json!({ "tax": { "rateBasisPoints": -1 } }), "/settings/tax/rateBasisPoints"),
        (json!({ "tax": { "rateBasisPoints": 1, "countries": { "Austria": 1 } } }), "/settings/tax/countries/Austria"),
        (json!({ "shipping": { "flatMinor": -1 } }), "/settings/shipping/flatMinor"),
        (json!({ "shipping": { "flatMinor": 0.5 } }), "/settings/shipping/flatMinor"),
        (json!({ "paymentMethods": [] }), "/settings/paymentMethods"),
        (json!({ "capabilities": { "Bad Name": true } }), "/settings/capabilities"),
        (json!({ "name": "a\u{0}" }), "/name"),
    ];
    for (settings, pointer) in cases {
        // The name that goes with it must not be changed alone.
        let body = if pointer == "/name" {
            json!({ "settings": settings })
        } else {
            json!({ "name": "Half", "settings": settings })
        };
        owner.api.patch(&path, body).await.expect_field(422, "invalid-input", pointer);
    }
    let answer = owner.api.patch(&path, json!({ "settings": { "currency": "EUR" } })).await;
    answer.expect_problem(409, "currency-in-use");
    assert_eq!(owner.api.get(&path).await.expect_status(200), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_a_database_can_be_renamed_but_has_no_settings_yet() {
    let app = start().await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea-shop").await.expect_status(201);
    let renamed = owner.api.patch(&store_path(&store, ""), json!({ "name": "New" })).await.expect_status(200);
    assert_eq!(renamed["name"], "New");
    let patch = json!({ "name": "Newer", "settings": { "locale": "de" } });
    let problem = owner.api.patch(&store_path(&store, ""), patch).await.expect_problem(409, "wrong-store-status");
    assert_eq!((&problem["status"], &problem["storeStatus"]), (&json!(409), &json!("pending_database")));
    assert_eq!(owner.api.get(&store_path(&store, "")).await.expect_status(200)["name"], "New");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_header_must_agree_with_the_path() {
    let app = start().await;
    let owner = app.owner("ada").await;
    let one = owner.create_store("one").await.expect_status(201);
    let two = owner.create_store("two").await.expect_status(201);
    for header in ["x-store-id", "x-tenant-id"] {
        owner.api.with(header, text(&one["id"])).get(&store_path(&one, "")).await.expect_status(200);
        let answer = owner.api.with(header, text(&two["id"])).get(&store_path(&one, "")).await;
        answer.expect_problem(400, "store-mismatch");
        for bad in ["", "two", "usr_01JD8Q6X5MFKV9T3R0WZ2H4C7N", "'; drop table stores; --"] {
            owner.api.with(header, bad).get(&store_path(&one, "")).await.expect_problem(400, "store-mismatch");
        }
    }
    let both = owner.api.with("x-store-id", text(&one["id"])).with("x-tenant-id", text(&two["id"]));
    both.get(&store_path(&one, "")).await.expect_problem(400, "store-mismatch");
    let patched = both.patch(&store_path(&one, ""), json!({ "name": "Changed" })).await;
    patched.expect_problem(400, "store-mismatch");
    assert_eq!(owner.api.get(&store_path(&one, "")).await.expect_status(200)["name"], "one");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_none_names_nothing() {
    let app = start().await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea-shop").await.expect_status(201);
    let id = text(&store["id"]);
    let lower = id.to_lowercase();
    let other_kind = id.replace("sto_", "usr_");
    for id in
        ["1", "sto_", "sto_01JD8Q6X5MFKV9T3R0WZ2H4C7N", "%00", "%27%20or%201=1", "..%2f..", &lower, &other_kind, "%ff"]
    {
        let answer = owner.api.get(&format!("/api/stores/{id}")).await;
        assert!([400, 404].contains(&answer.status.as_u16()), "{id}: {}", answer.text());
    }
}
