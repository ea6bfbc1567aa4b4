//! The sealed credential of a store: it opens in its own row alone, and a new one takes over.

use integration_tests::{TestApp, eventually};
use kernel::Engine;
use secrecy::SecretString;
use sqlx::Connection as _;

use crate::faults::{PRODUCTS, Shop, at_once, credential, patient_app_on, second_node};

on_each_engine! {
    a_credential_in_another_stores_row_does_not_open
    a_rotated_credential_takes_over_without_a_restart
}

/// Writes a sealed credential into the row of a store, past every operation.
async fn put_credential(app: &TestApp, shop: &Shop, sealed: &[u8], version: i32) {
    let mut master = app.master().await;
    let done = sqlx::query("update store_databases set sealed = $2, credential_version = $3 where store_id = $1")
        .bind(shop.id.as_uuid())
        .bind(sealed)
        .bind(version)
        .execute(&mut master)
        .await
        .expect("the row is changed");
    assert_eq!(done.rows_affected(), 1);
    master.close().await.expect("it closes");
}

async fn a_credential_in_another_stores_row_does_not_open(engine: Engine) {
    let app = patient_app_on(engine, &[]).await;
    let owner = app.owner("ada").await;
    let (source, target) = (Shop::open(&app, &owner, "source").await, Shop::open(&app, &owner, "target").await);
    for shop in [&source, &target] {
        shop.expect_served(&shop.at(&app).get(PRODUCTS).await);
    }
    let (own, _, own_version) = credential(&app, &target).await;
    let (foreign, opened, foreign_version) = credential(&app, &source).await;
    assert_eq!(own_version, foreign_version, "the two differ in nothing but the store");

    // A node that knows neither store: all that it can go by is the row.
    put_credential(&app, &target, &foreign, foreign_version).await;
    let node = second_node(&app, &[]).await;
    for response in at_once(10, &node.storefront(&target.hostname), PRODUCTS).await {
        target.expect_refused(&response, &["store-database-unavailable"]);
    }
    source.expect_served(&node.storefront(&source.hostname).get(PRODUCTS).await);
    // The node with an open pool may go on with what it had, which was the store's own.
    let response = target.at(&app).get(PRODUCTS).await;
    if response.status == 200 {
        target.expect_served(&response);
    }
    // It does not when the version says that what it has is void.
    let (version, at_version) = (foreign_version + 1, opened.seal(&app.cx.keys, source.id, foreign_version + 1));
    put_credential(&app, &source, at_version.as_bytes(), version).await;
    put_credential(&app, &target, at_version.as_bytes(), version).await;
    eventually("the node has heard of it", || async {
        let response = target.at(&app).get(PRODUCTS).await;
        if response.status == 200 {
            target.expect_served(&response);
            return None;
        }
        target.expect_refused(&response, &["store-database-unavailable"]);
        Some(())
    })
    .await;
    source.expect_served(&source.at(&app).get(PRODUCTS).await);

    // Its own credential at another version does not open either; at its own it does, on both nodes.
    put_credential(&app, &target, &own, own_version + 7).await;
    let fresh = second_node(&app, &[]).await;
    target.expect_refused(&fresh.storefront(&target.hostname).get(PRODUCTS).await, &["store-database-unavailable"]);
    put_credential(&app, &target, &own, own_version).await;
    for client in [target.at(&app), node.storefront(&target.hostname), fresh.storefront(&target.hostname)] {
        eventually("the store is served again", || async { (client.get(PRODUCTS).await.status == 200).then_some(()) })
            .await;
        target.expect_served(&client.get(PRODUCTS).await);
    }
    node.kill().await;
    fresh.kill().await;
}

async fn a_rotated_credential_takes_over_without_a_restart(engine: Engine) {
    let app = patient_app_on(engine, &[]).await;
    let owner = app.owner("ada").await;
    let shop = Shop::open(&app, &owner, "rotated").await;
    let client = shop.at(&app);
    shop.expect_served(&client.get(PRODUCTS).await);
    let mut admin = app.server().await;
    let old = admin.sessions(&shop.database).await;
    assert!(!old.is_empty(), "the store has a pool");

    let (_, mut credential, version) = credential(&app, &shop).await;
    admin.set_password(&shop.database, "rotated-password").await;
    credential.password = SecretString::from("rotated-password");
    let sealed = credential.seal(&app.cx.keys, shop.id, version + 1);
    put_credential(&app, &shop, sealed.as_bytes(), version + 1).await;

    // Served all the while, until the old sessions are gone and new ones have come.
    let database = shop.database.as_str();
    eventually("the old pool is gone", || async {
        shop.expect_served(&client.get(PRODUCTS).await);
        let mut admin = app.server().await;
        let now = admin.sessions(database).await;
        admin.close().await;
        (!now.is_empty() && now.is_disjoint(&old)).then_some(())
    })
    .await;
    for response in at_once(20, &client, PRODUCTS).await {
        shop.expect_served(&response);
    }
    let known =
        eventually("no pool drains", || async { app.cx.stores.explain(shop.id).filter(|known| known.draining == 0) })
            .await;
    assert!(known.last_error.is_none(), "{known:?}");
}
