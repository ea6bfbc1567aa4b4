//! PostgreSQL databases of owners that hold something: a store lives beside it, and goes, and not a byte of it is touched. What
//! MySQL does with one is in `mariadb.rs`.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::path::Path;

use integration_tests::{Brought, Owner, TestApp, TestAppOptions};
use kernel::Engine;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::prints::{Whose, print};
use crate::provisioning::{hold_migration, path_of, step_running};

/// A shop of the owner's, with what old shops have: triggers, views, programs, odd names, and tables that are called as ours.
const OLD_SHOP: &str = r#"
    create type "size of shirt" as enum ('S', 'M', 'XL');
    create table "order" (id serial primary key, total numeric(10,2) not null check (total > 0), note text);
    create table products ("SKU" varchar(40) primary key, "name with space" varchar(80), "preis €" float, size "size of shirt");
    create table _migrations (version bigint primary key, name text);
    create table store_identity (whatever text);
    create table "Tenantry" (id int primary key);
    create schema "Archive of 2019";
    create table "Archive of 2019"."order" as select 1 as id, 99 as total;
    insert into "order" (total, note) values (1.50, 'first'), (2.75, null), (99.00, 'ümlaut');
    insert into products values ('A', 'tea', 1.5, 'S'), ('B', 'pot', 20, 'XL');
    insert into _migrations values (1, 'begin'), (99999999999999, 'end');
    create view "open orders" as select * from "order" where total > 2;
    create materialized view sold as select count(*) from "order";
    create index "by total" on "order" (total desc) where note is not null;
    create function count_orders() returns trigger language plpgsql as $$ begin perform 1; return new; end $$;
    create trigger count_orders after insert on "order" for each row execute function count_orders();
    create rule nobody as on delete to products do instead nothing;
    create function tenantry() returns int language sql as 'select 1';
    comment on table "order" is 'tenantry sto_01JD8Q6X5MFKV9T3R0WZ2H4C7N';
"#;

/// Connects a store to it, cancels another one half-way, and looks at the rest all the while.
async fn is_left_alone(app: &TestApp, owner: &Owner, slug: &str, database: &Brought) {
    let mut inside = database.inside().await;
    let before = print(&mut inside, Whose::NotOurs).await;
    assert!(before.len() > 30, "{before:?}");
    let everything = print(&mut inside, Whose::Everybodys).await;

    // A run that is cancelled in the middle leaves nothing.
    let store = owner.create_store(slug).await.expect_status(201);
    let holder = hold_migration(database).await;
    owner.connect(&store, database.body()).await.expect_status(202);
    step_running(owner, &store, "migrate").await;
    owner.api.post(&path_of(&store, "/provisioning/cancel"), json!({})).await.expect_status(202);
    holder.close().await;
    assert_eq!(app.run_ended(owner, &store).await["state"], "cancelled");
    assert_eq!(print(&mut inside, Whose::Everybodys).await, everything);

    let mut body = database.body();
    body["demoProducts"] = json!(true);
    owner.connect(&store, body).await.expect_status(202);
    let run = app.run_ended(owner, &store).await;
    assert_eq!(run["state"], "succeeded", "{run}");
    let listed = app.storefront_of(&store).get("/store/v1/products").await.expect_status(200);
    assert!(listed["data"].as_array().unwrap().len() > 5, "{listed}");
    assert_eq!(print(&mut inside, Whose::NotOurs).await, before);
    inside.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_database_holds_is_left_alone_to_the_byte() {
    let app = TestApp::start_with(TestAppOptions { without_server: true, ..TestAppOptions::default() }).await;
    let owner = app.owner("ada").await;
    let shop = Brought::create(Engine::Postgresql, app.cluster).await;
    fill(&shop, OLD_SHOP).await;
    is_left_alone(&app, &owner, "old-shop", &shop).await;

    let chinook = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/existing/Chinook_PostgreSql.sql");
    let Ok(sql) = std::fs::read_to_string(&chinook) else {
        println!("skipped: {} is not there", chinook.display());
        return;
    };
    let music = Brought::create(Engine::Postgresql, app.cluster).await;
    fill(&music, sql.split_once("\\c chinook;").expect("it makes its database first").1).await;
    is_left_alone(&app, &owner, "chinook", &music).await;
}

/// Fills it as its owner. What autovacuum does there by itself is not to be taken for ours.
async fn fill(database: &Brought, sql: &str) {
    let mut owner = PgConnection::connect(&database.url()).await.unwrap();
    owner.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.unwrap();
    owner.close().await.unwrap();
}
