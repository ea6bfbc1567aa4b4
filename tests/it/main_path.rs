//! The main job, end to end: from nothing to a storefront answering out of its own database.

use integration_tests::TestApp;
use kernel::Engine;
use serde_json::json;

on_each_engine! {
    an_owner_registers_creates_connects_and_is_served
}

async fn an_owner_registers_creates_connects_and_is_served(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let body = json!({ "email": "ada@example.com", "password": "correct horse", "firstName": "Ada", "lastName": "L", "storeName": "Ada's Tea" });
    let made = app.api().post("/api/auth/register", body).await.expect_status(201);
    assert_eq!(made["store"]["status"], "pending_database");

    let body = json!({ "email": "ada@example.com", "password": "correct horse" });
    let login = app.api().post("/api/auth/login", body).await.expect_status(200);
    assert_eq!(login["organizations"][0]["role"], "owner");

    let owner = app.owner("bob").await;
    let store = app.active_store(&owner, "bobs-tea").await;
    let shop = app.storefront_of(&store);
    let products = shop.get("/store/v1/products").await.expect_status(200);
    assert!(products["data"].as_array().is_some_and(|list| list.len() > 5), "{products}");
    let detail =
        owner.api.get(&format!("/api/stores/{}", store["id"].as_str().expect("an id"))).await.expect_status(200);
    assert_eq!(detail["status"], "active");
    assert_eq!(detail["database"]["state"], "available");
    assert!(detail["counts"]["products"].as_i64() > Some(5), "{detail}");
    app.storefront("other.stores.localhost").get("/store/v1/products").await.expect_problem(421, "unknown-host");
}
