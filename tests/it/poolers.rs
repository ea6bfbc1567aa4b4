//! Databases that owners bring from behind a real PgBouncer.

use devkit::testing::{PgBouncer, PoolMode};
use integration_tests::{TestApp, TestAppOptions};
use serde_json::json;

use crate::doctor::{expect_failure, expect_ok, said, test_url};
use crate::provisioning::{failure, path_of};

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_pooler_a_store_is_served_in_session_mode_and_refused_in_transaction_mode() {
    let app = TestApp::start_with(TestAppOptions { without_server: true, ..TestAppOptions::default() }).await;
    let owner = app.owner("ada").await;
    let database = app.cluster.brought().await;
    let (login, password) = (&database.database, database.password());
    let [session, transaction] = [
        PgBouncer::start(app.cluster.postgres(), PoolMode::Session, login, &password).await,
        PgBouncer::start(app.cluster.postgres(), PoolMode::Transaction, login, &password).await,
    ];
    let store = owner.create_store("tea").await.expect_status(201);
    let at = |port: u16| format!("postgres://{login}:{password}@127.0.0.1:{port}/{login}");

    let body = json!({ "connectionString": at(transaction.port), "demoProducts": true });
    owner.connect(&store, body).await.expect_status(202);
    let run = app.run_ended(&owner, &store).await;
    let (step, code, advice) = failure(&run);
    assert_eq!((step, code), ("check_connection", "transaction-pooler"), "{run}");
    assert!(advice.contains("session mode"), "{advice}");

    // Connecting again corrects it.
    let body = json!({ "connectionString": at(session.port), "demoProducts": true });
    owner.connect(&store, body).await.expect_status(202);
    assert_eq!(app.run_ended(&owner, &store).await["state"], "succeeded");
    let shop = app.storefront_of(&store);
    for _ in 0..20 {
        let products = shop.get("/store/v1/products?limit=5").await.expect_status(200);
        assert_eq!(products["data"].as_array().unwrap().len(), 5);
    }
    shop.post("/store/v1/carts", json!({})).await.expect_status(201);

    // Nor do new credentials lead there.
    let elsewhere = Some(json!({ "connectionString": at(transaction.port) }));
    let path = path_of(&store, "/database/credentials");
    owner.api.send(http::Method::PUT, &path, elsewhere).await.expect_problem(422, "transaction-pooler");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pooler_refuses_is_told_apart() {
    let app = TestApp::start_with(TestAppOptions { without_server: true, ..TestAppOptions::default() }).await;
    let owner = app.owner("ada").await;
    let database = app.cluster.brought().await;
    let (login, password) = (&database.database, database.password());
    let [right, stale] = [
        PgBouncer::start_strict(app.cluster.postgres(), login, login, &password).await,
        PgBouncer::start_strict(app.cluster.postgres(), login, login, "of-last-year").await,
    ];
    let url = |port: u16, password: &str, name: &str| format!("postgres://{login}:{password}@127.0.0.1:{port}/{name}");
    expect_ok(&test_url(&owner, &url(right.port, &password, login)).await);
    for (wrong, code) in [
        (url(right.port, "wrong", login), "wrong-password"),
        (url(right.port, &password, "nothing_here"), "missing-database"),
        // The pooler lets us in, and the server does not let the pooler in.
        (url(stale.port, "of-last-year", login), "pooler-server"),
    ] {
        let report = test_url(&owner, &wrong).await;
        expect_failure(&report, "login", code);
        assert!(said(&report, "login", "advice").contains("ooler"), "{report}");
    }
}
