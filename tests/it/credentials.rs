//! New credentials for a database that an owner brought.

use http::Method;
use integration_tests::{Brought, Client, Owner, Response, TestApp, eventually};
use kernel::Engine;
use serde_json::{Value, json};

use crate::scenes::{count, store_path, text};

on_each_engine! {
    an_owner_whose_databases_password_has_changed_gives_the_new_one
    a_new_password_is_enough_when_nothing_else_has_changed
    credentials_that_lead_elsewhere_or_may_too_little_are_refused_and_nothing_changes
    a_suspended_stores_credentials_change_too_and_reach_other_nodes
    a_failed_run_is_told_with_its_cause
    a_database_that_was_mended_is_served_at_once_when_a_test_finds_it_well
}

async fn give(owner: &Owner, store: &Value, url: &str) -> Response {
    let path = store_path(store, "/database/credentials");
    owner.api.send(Method::PUT, &path, Some(json!({ "connectionString": url }))).await
}

async fn brought_store(app: &TestApp, owner: &Owner, slug: &str) -> (Value, Brought) {
    let database = app.brought().await;
    let store = owner.create_store(slug).await.expect_status(201);
    let body = json!({ "connectionString": database.url(), "demoProducts": true });
    owner.connect(&store, body).await.expect_status(202);
    assert_eq!(app.run_ended(owner, &store).await["state"], "succeeded");
    (store, database)
}

/// Gives the database's login another password and ends its sessions; returns the URL that is right now.
async fn change_password(app: &TestApp, database: &Brought, password: &str) -> String {
    let mut admin = app.server().await;
    admin.set_password(database.name(), password).await;
    admin.end_sessions(database.name()).await;
    database.url().replace(&database.password(), password)
}

async fn an_owner_whose_databases_password_has_changed_gives_the_new_one(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let (store, database) = brought_store(&app, &owner, "tea").await;
    let shop = app.storefront_of(&store);
    shop.get("/store/v1/products").await.expect_status(200);

    let right = change_password(&app, &database, "another-secret").await;
    let seen = eventually("the trouble is seen", || async {
        shop.get("/store/v1/products").await;
        let detail = owner.api.get(&store_path(&store, "")).await;
        (detail.expect_status(200)["database"]["state"] == "unavailable").then_some(detail)
    })
    .await;
    let seen_database = seen.json()["database"].clone();
    assert_eq!(seen_database["code"], "wrong-password", "{seen_database}");
    assert!(text(&seen_database["advice"]).contains("/database/credentials"), "{seen_database}");
    assert!(!seen.text().contains(database.name()), "{}", seen.text());

    let wrong = give(&owner, &store, &database.url()).await;
    // It was given as one text.
    wrong.expect_field(422, "wrong-password", "/connectionString");
    assert!(!wrong.text().contains(&database.password()), "{}", wrong.text());
    let given = give(&owner, &store, &right).await.expect_status(200);
    assert_eq!((&given["id"], &given["database"]), (&store["id"], &json!({ "state": "available" })));
    shop.get("/store/v1/products").await.expect_status(200);
    let audited = "select count(*) from audit_events where action = 'database_credentials_replace'";
    assert_eq!(count(&app, audited).await, 1);
    let data: String = sqlx::query_scalar("select string_agg(a::text, '') from audit_events a")
        .fetch_one(&mut app.master().await)
        .await
        .unwrap();
    assert!(!data.contains("another-secret"), "{data}");
}

async fn a_new_password_is_enough_when_nothing_else_has_changed(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let (store, database) = brought_store(&app, &owner, "tea").await;
    let path = store_path(&store, "/database/credentials");
    let shop = app.storefront_of(&store);
    change_password(&app, &database, "another-secret").await;
    let put = async |body: Value| owner.api.send(Method::PUT, &path, Some(body)).await;

    let wrong = put(json!({ "password": "not-it-either" })).await;
    wrong.expect_field(422, "wrong-password", "/password");
    assert!(!wrong.text().contains("not-it-either"), "{}", wrong.text());
    put(json!({ "username": "nobody_at_all", "password": "another-secret" })).await.expect_status(422);
    put(json!({ "username": database.name() })).await.expect_field(422, "invalid-input", "/host");
    put(json!({ "password": "a\u{0}b" })).await.expect_field(422, "invalid-input", "/password");
    // Whoever names a place names all of it: the password that is sealed is sent nowhere else.
    put(json!({ "host": "db.example.com", "port": 5432 })).await.expect_status(422);
    assert_eq!(put(json!({ "password": "another-secret" })).await.expect_status(200)["id"], store["id"]);
    shop.get("/store/v1/products").await.expect_status(200);

    change_password(&app, &database, "the-third").await;
    put(json!({ "username": database.name(), "password": "the-third" })).await.expect_status(200);
    shop.get("/store/v1/products").await.expect_status(200);
    let audited = "select count(*) from audit_events where action = 'database_credentials_replace'";
    assert_eq!(count(&app, audited).await, 2);
    // Whose place cannot be read any more gives it too.
    let mut master = app.master().await;
    sqlx::query("update store_databases set sealed = overlay(sealed placing '\\x00'::bytea from 40)")
        .execute(&mut master)
        .await
        .unwrap();
    put(json!({ "password": "the-third" })).await.expect_field(422, "invalid-input", "/host");
    let whole = database.url().replace(&database.password(), "the-third");
    give(&owner, &store, &whole).await.expect_status(200);
    shop.get("/store/v1/products").await.expect_status(200);
}

async fn credentials_that_lead_elsewhere_or_may_too_little_are_refused_and_nothing_changes(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let (store, database) = brought_store(&app, &owner, "tea").await;
    let (_, others) = brought_store(&app, &owner, "coffee").await;
    let empty = app.brought().await;
    for elsewhere in [&others, &empty] {
        give(&owner, &store, &elsewhere.url()).await.expect_problem(409, "other-database");
    }
    let missing = database.url().rsplit_once('/').map(|(server, _)| format!("{server}/no_such_database")).unwrap();
    let missing = give(&owner, &store, &missing).await.expect_status(422);
    assert!(["missing-database", "forbidden"].contains(&text(&missing["code"])), "{missing}");
    let closed = database.url().replace(&format!(":{}/", database.port()), ":1/");
    give(&owner, &store, &closed).await.expect_problem(422, "refused");
    // A login that may enter, and no more.
    let name = database.name();
    let guest = format!("{name}_guest");
    let (made, gone) = match engine {
        Engine::Mysql => (
            format!("create user {guest} identified by 'guest-secret'; grant select on {name}.* to {guest}"),
            format!("drop user {guest}"),
        ),
        _ => (
            format!(
                "create role {guest} login password 'guest-secret'; grant connect on database {name} to {guest};
                 grant usage on schema tenantry to {guest}; grant select on all tables in schema tenantry to {guest}"
            ),
            format!("drop owned by {guest}; drop role {guest}"),
        ),
    };
    let mut admin = database.inside().await;
    admin.execute(&made).await;
    let reads = database.url().replacen(name, &guest, 1).replace(&database.password(), "guest-secret");
    give(&owner, &store, &reads).await.expect_problem(422, "missing-privilege");
    admin.execute(&gone).await;

    app.storefront_of(&store).get("/store/v1/products").await.expect_status(200);
    assert_eq!(count(&app, "select count(*) from audit_events where action = 'database_credentials_replace'").await, 0);
    // A database of another engine is another one, whatever it holds.
    let elsewhere = if engine == Engine::Mysql { Engine::Postgresql } else { Engine::Mysql };
    let elsewhere = Brought::create(elsewhere, app.cluster).await;
    give(&owner, &store, &elsewhere.url()).await.expect_problem(409, "other-database");
    let managed = app.active_store(&owner, "managed").await;
    give(&owner, &managed, &database.url()).await.expect_problem(409, "managed-database");
    let pending = owner.create_store("pending").await.expect_status(201);
    give(&owner, &pending, &database.url()).await.expect_problem(409, "wrong-store-status");
}

async fn a_suspended_stores_credentials_change_too_and_reach_other_nodes(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let root = app.admin().await;
    let (store, database) = brought_store(&app, &owner, "tea").await;
    let suspend = format!("/api/ops/stores/{}", text(&store["id"]));
    root.api.post(&format!("{suspend}/suspend"), json!({ "reason": "unpaid" })).await.expect_status(200);
    let right = change_password(&app, &database, "another-secret").await;
    let other = app.other_node().await;

    give(&owner, &store, &right).await.expect_status(200);

    root.api.post(&format!("{suspend}/resume"), Value::Null).await.expect_status(200);
    for address in [app.address, other.address] {
        let shop = Client::new(address, text(&store["hostname"]));
        eventually("it is served", || async { (shop.get("/store/v1/products").await.status == 200).then_some(()) })
            .await;
    }
    other.stop().await;
}

async fn a_failed_run_is_told_with_its_cause(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let database = app.brought().await;
    let store = owner.create_store("tea").await.expect_status(201);
    let wrong = database.url().replace(&database.password(), "not-it");
    owner.connect(&store, json!({ "connectionString": wrong })).await.expect_status(202);
    assert_eq!(app.run_ended(&owner, &store).await["state"], "failed");
    let detail = owner.api.get(&store_path(&store, "")).await.expect_status(200);
    let database = &detail["database"];
    assert_eq!((&database["state"], &database["code"]), (&json!("failed"), &json!("wrong-password")), "{detail}");
    assert!(database["advice"].is_string() && detail["settings"].is_null(), "{detail}");
}

async fn a_database_that_was_mended_is_served_at_once_when_a_test_finds_it_well(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let (store, database) = brought_store(&app, &owner, "tea").await;
    let other = app.other_node().await;
    // Once it hears of others it tries every store again, as it may have missed something: that is over before this begins.
    eventually("the other node listens", || async { other.cx.log_place.get().map(drop) }).await;
    let shops = [app.address, other.address].map(|address| Client::new(address, text(&store["hostname"])));
    change_password(&app, &database, "somebody-elses-idea").await;
    for shop in &shops {
        shop.get("/store/v1/products").await.expect_problem(503, "store-database-unavailable");
    }
    let test = store_path(&store, "/database/test");
    let ill = owner.api.post(&test, json!({})).await.expect_status(200);
    assert_eq!(ill["ok"], false, "{ill}");

    // Nobody tells us that the old password is right again.
    app.server().await.set_password(database.name(), &database.password()).await;
    for shop in &shops {
        shop.get("/store/v1/products").await.expect_problem(503, "store-database-unavailable");
    }
    let well = owner.api.post(&test, json!({})).await.expect_status(200);
    assert_eq!(well["ok"], true, "{well}");
    for shop in &shops {
        eventually("it is served", || async { (shop.get("/store/v1/products").await.status == 200).then_some(()) })
            .await;
    }
    other.stop().await;
}
