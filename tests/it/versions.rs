//! A database that is this store's already: of an older version it is upgraded, of a newer one refused without a change.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::path::Path;

use integration_tests::{Brought, StoreSql, TestApp, TestAppOptions};
use kernel::Engine;
use serde_json::{Value, json};
use sqlx::migrate::Migrator;
use sqlx::{Connection as _, Executor as _, MySqlConnection, PgConnection};
use tenant_schema::LATEST_VERSION;

use crate::prints::{Whose, print};
use crate::provisioning::{failure, path_of, seeded};
use crate::scenes::text;

on_each_engine! {
    an_older_database_of_the_store_is_upgraded_and_keeps_what_is_in_it
    a_newer_database_of_the_store_is_refused_as_it_is
}

async fn app(engine: Engine) -> TestApp {
    TestApp::start_on_with(engine, TestAppOptions { without_server: true, ..TestAppOptions::default() }).await
}

/// Brings an empty database to where a release that knew no version after `last` would have left it when it made it for this
/// store: by the product's own files, with the store's mark, and with something in it.
async fn begun(database: &Brought, store: &Value, last: i64) {
    let dir = if database.engine() == Engine::Mysql { "mysql" } else { "postgres" };
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations-tenant").join(dir);
    let mut files = Migrator::new(dir).await.unwrap();
    files.migrations.to_mut().retain(|file| file.version <= last);
    let mark = format!("tenantry {}", text(&store["id"]));
    match database {
        Brought::Postgres(database) => {
            let mut owner = PgConnection::connect(&database.url()).await.unwrap();
            let begin =
                format!("create schema tenantry; comment on schema tenantry is '{mark}'; set search_path = tenantry");
            owner.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(begin))).await.unwrap();
            files.dangerous_set_table_name("tenantry._migrations");
            files.run_direct(None, &mut owner, false).await.unwrap();
            owner.close().await.unwrap();
        }
        Brought::MariaDb(database) => {
            let mut owner = MySqlConnection::connect(&format!("{}?ssl-mode=DISABLED", database.url())).await.unwrap();
            files.dangerous_set_table_name("_migrations");
            files.run_direct(None, &mut owner, false).await.unwrap();
            let end = format!("alter table _migrations comment = '{mark}'");
            owner.execute(sqlx::AssertSqlSafe(end)).await.unwrap();
            owner.close().await.unwrap();
        }
    }
    let kept = "insert into redirects (from_path, to_path, code, created_at) values ('/old', '/new', 301, '2025-01-01 00:00:00')";
    database.inside().await.execute(kept).await;
}

async fn version(inside: &mut StoreSql) -> i64 {
    inside.number("select max(version) from _migrations").await
}

async fn an_older_database_of_the_store_is_upgraded_and_keeps_what_is_in_it(engine: Engine) {
    let app = app(engine).await;
    let owner = app.owner("ada").await;
    let (old, new) = (app.brought().await, app.brought().await);
    let store = owner.create_store("tea").await.expect_status(201);
    begun(&old, &store, LATEST_VERSION - 1).await;
    let mut inside = old.inside().await;
    let before = version(&mut inside).await;
    assert!(before < LATEST_VERSION, "{before}");

    owner.connect(&store, old.body()).await.expect_status(202);
    let run = app.run_ended(&owner, &store).await;

    assert_eq!(run["state"], "succeeded", "{run}");
    assert_eq!(version(&mut inside).await, LATEST_VERSION);
    assert_eq!(inside.number("select count(*) from redirects where from_path = '/old' and code = 301").await, 1);
    app.storefront_of(&store).get("/store/v1/products").await.expect_status(200);
    // It is now as one that was made by this release.
    let fresh = owner.create_store("coffee").await.expect_status(201);
    owner.connect(&fresh, new.body()).await.expect_status(202);
    assert_eq!(app.run_ended(&owner, &fresh).await["state"], "succeeded");
    assert_eq!(seeded(&mut inside).await, seeded(&mut new.inside().await).await);
    inside.close().await;
}

async fn a_newer_database_of_the_store_is_refused_as_it_is(engine: Engine) {
    let app = app(engine).await;
    let owner = app.owner("ada").await;
    let database = app.brought().await;
    let store = owner.create_store("tea").await.expect_status(201);
    begun(&database, &store, LATEST_VERSION).await;
    let mut inside = database.inside().await;
    let columns = "description, installed_on, success, checksum, execution_time";
    let later = format!(
        "insert into _migrations (version, {columns})
         select {LATEST_VERSION} + 1, {columns} from _migrations where version = {LATEST_VERSION}"
    );
    inside.execute(&later).await;
    let before = print(&mut inside, Whose::Everybodys).await;

    owner.connect(&store, database.body()).await.expect_status(202);
    let run = app.run_ended(&owner, &store).await;

    let (step, code, advice) = failure(&run);
    assert_eq!((step, code), ("check_connection", "schema-too-new"), "{run}");
    assert!(advice.contains("up to date"), "{advice}");
    let detail = owner.api.get(&path_of(&store, "")).await.expect_status(200);
    assert_eq!(
        (&detail["database"]["state"], &detail["database"]["code"]),
        (&json!("failed"), &json!("schema-too-new"))
    );
    owner.api.post(&path_of(&store, "/provisioning/cancel"), json!({})).await.expect_status(202);
    assert_eq!(app.run_ended(&owner, &store).await["state"], "cancelled");
    assert_eq!(print(&mut inside, Whose::Everybodys).await, before);
    inside.close().await;
}
