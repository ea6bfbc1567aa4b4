//! What only MySQL and MariaDB do: their servers' own reasons for a refusal, and databases that are not empty.

use std::path::Path;

use devkit::testing::own_mariadb;
use integration_tests::{Cli, OwnServer, Owner, StoreSql, TestApp, TestAppOptions, TestMariaDb};
use kernel::Engine;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, MySqlConnection};

use crate::doctor_tls::shop_on;
use crate::prints::{Whose, print};
use crate::provisioning::{failure, path_of};

async fn app() -> (TestApp, Owner) {
    let app = TestApp::start_with(TestAppOptions { without_server: true, ..TestAppOptions::default() }).await;
    let owner = app.owner("ada").await;
    (app, owner)
}

/// Connects a new store there and returns how its run ended.
async fn outcome(app: &TestApp, owner: &Owner, slug: &str, body: Value) -> (Value, Value) {
    let store = owner.create_store(slug).await.expect_status(201);
    owner.connect(&store, body).await.expect_status(202);
    let run = app.run_ended(owner, &store).await;
    (store, run)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_is_told_by_the_servers_own_code() {
    let (app, owner) = app().await;
    let database = TestMariaDb::create().await;
    let reader = TestMariaDb::with_rights("select").await;
    let other = TestMariaDb::create().await;
    let url = database.url();
    let at = |name: &str| format!("{}{name}", url.strip_suffix(&database.name).unwrap());
    let postgres = app.cluster.brought().await;
    let cases = [
        ("no-user", url.replacen(&database.name, "nobody", 1), "wrong-password"),
        ("password", url.replace(&database.password(), "wrong"), "wrong-password"),
        ("no-database", at("elsewhere"), "forbidden"),
        ("no-right", at(&other.name), "forbidden"),
        ("reads-only", reader.url(), "missing-privilege"),
        ("no-tls", format!("{url}?ssl-mode=REQUIRED"), "no-tls"),
        ("refused", url.replace(&format!(":{}/", database.port()), ":9/"), "refused"),
    ];
    for (slug, url, code) in cases {
        let (_, run) = outcome(&app, &owner, slug, json!({ "connectionString": url })).await;
        let (step, found, advice) = failure(&run);
        assert_eq!((step, found), ("check_connection", code), "{slug}: {run}");
        assert!(!advice.contains("PostgreSQL") && !run.to_string().contains("brought-secret"), "{slug}: {run}");
    }
    // And a driver of PostgreSQL is told that it speaks to something else.
    let wrong = postgres.url().replace(&format!(":{}/", app.cluster.port()), &format!(":{}/", database.port()));
    let (_, run) = outcome(&app, &owner, "other-way", json!({ "connectionString": wrong })).await;
    assert_eq!(failure(&run).0, "check_connection", "{run}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_server_and_one_without_connections_are_told() {
    let server = own_mariadb("read-only").await;
    let (app, owner) = app().await;
    let mut admin = server.connect(None).await.unwrap();
    for statement in [
        "create database shop",
        "create user shop@'%' identified by 'a-secret'",
        "grant all privileges on shop.* to shop@'%'",
        "set global read_only = 1",
    ] {
        admin.execute(statement).await.unwrap();
    }
    let body = json!({ "connectionString": format!("mysql://shop:a-secret@127.0.0.1:{}/shop", server.port()) });
    let (_, run) = outcome(&app, &owner, "replica", body.clone()).await;
    assert_eq!(failure(&run).1, "read-only", "{run}");

    admin.execute("set global read_only = 0").await.unwrap();
    admin.execute("alter user shop@'%' with max_user_connections 1").await.unwrap();
    let mut taken: Vec<MySqlConnection> = Vec::new();
    let url = format!("mysql://shop:a-secret@127.0.0.1:{}/shop", server.port());
    taken.push(MySqlConnection::connect(&format!("{url}?ssl-mode=DISABLED")).await.unwrap());
    let (_, run) = outcome(&app, &owner, "crowded", body).await;
    assert_eq!(failure(&run).1, "login-connection-limit", "{run}");
    drop(taken);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_a_role_does_not_bring_is_told_when_it_is_missed() {
    let server = own_mariadb("roles").await;
    let (app, owner) = app().await;
    let mut admin = shop_on(&server).await;
    for statement in [
        "create role seller",
        "grant select, insert, update, delete on shop.* to seller",
        "revoke all privileges on shop.* from shop@'%'",
        "grant seller to shop@'%'",
        "set default role seller for shop@'%'",
    ] {
        admin.execute(statement).await.unwrap();
    }
    let body = json!({ "connectionString": format!("mysql://shop:a-secret-word@127.0.0.1:{}/shop", server.port()) });
    let (store, run) = outcome(&app, &owner, "by-role", body).await;
    let (step, code, advice) = failure(&run);
    assert_eq!((step, code), ("migrate", "missing-privilege"), "{run}");
    assert!(advice.contains("privileges"), "{advice}");

    admin.execute("grant all privileges on shop.* to seller").await.unwrap();
    owner.api.post(&path_of(&store, "/provisioning/retry"), json!({})).await.expect_status(202);
    assert_eq!(app.run_ended(&owner, &store).await["state"], "succeeded");
    admin.close().await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_judges_passwords_is_shown_those_of_managed_stores() {
    let server = OwnServer::start(Engine::Mysql, "judging").await;
    let mut admin = server.admin().await;
    admin
        .execute("install soname 'simple_password_check'; set global simple_password_check_other_characters = 0")
        .await;
    let options = TestAppOptions { without_server: true, ..TestAppOptions::default() };
    let app = TestApp::start_on_with(Engine::Mysql, options).await;
    Cli::add_server(&app.master.url(), "judging", &server.url()).await;
    let owner = app.owner("ada").await;

    let store = app.active_store(&owner, "tea").await;

    app.storefront_of(&store).get("/store/v1/products").await.expect_status(200);
}

/// A shop of the owner's, with what old shops have: triggers, views, programs and odd names.
const OLD_SHOP: &str = "
    create table `order` (id int primary key auto_increment, total decimal(10,2) not null, note text);
    create table products (`SKU` varchar(40) primary key, `name with space` varchar(80), `preis €` float);
    create table _log (at timestamp, what varchar(200)) engine = MyISAM;
    insert into `order` (total, note) values (1.50, 'first'), (2.75, null), (99.00, 'ümlaut');
    insert into products values ('A', 'tea', 1.5), ('B', 'pot', 20);
    create view `open orders` as select * from `order` where total > 2;
    create trigger count_orders after insert on `order` for each row insert into _log values (now(), 'order');
    create procedure tidy() delete from _log;
    create function vat(x decimal(10,2)) returns decimal(10,2) deterministic return x * 0.2;
    create event `purge` on schedule every 1 day do delete from _log;
";

async fn is_refused_untouched(app: &TestApp, owner: &Owner, slug: &str, database: &TestMariaDb) {
    let mut inside = StoreSql::MySql(database.admin().await);
    let before = print(&mut inside, Whose::Everybodys).await;
    assert!(before.len() > 5, "{before:?}");
    let (store, run) = outcome(app, owner, slug, database.body()).await;
    assert_eq!(failure(&run).1, "schema-in-use", "{run}");
    assert!(failure(&run).2.contains("an empty one"), "{run}");
    owner.api.post(&path_of(&store, "/provisioning/cancel"), json!({})).await.expect_status(202);
    app.run_ended(owner, &store).await;
    assert_eq!(print(&mut inside, Whose::Everybodys).await, before);
    inside.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_empty_is_refused_and_left_as_it_was() {
    let (app, owner) = app().await;
    let shop = TestMariaDb::create().await;
    shop.admin().await.execute(sqlx::raw_sql(OLD_SHOP)).await.unwrap();
    is_refused_untouched(&app, &owner, "old-shop", &shop).await;

    let chinook = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/existing/Chinook_MySql.sql");
    let Ok(sql) = std::fs::read_to_string(&chinook) else {
        println!("skipped: {} is not there", chinook.display());
        return;
    };
    let music = TestMariaDb::create().await;
    let tables = sql.split_once("USE `Chinook`;").expect("it makes its database first").1.to_owned();
    music.admin().await.execute(sqlx::raw_sql(AssertSqlSafe(tables))).await.unwrap();
    is_refused_untouched(&app, &owner, "chinook", &music).await;
}

/// A managed store's login reaches its own database and nothing else of the server's.
#[tokio::test(flavor = "multi_thread")]
async fn a_managed_stores_login_sees_no_other_store() {
    let app = TestApp::start_on(Engine::Mysql).await;
    let owner = app.owner("ada").await;
    let one = app.active_store(&owner, "one").await;
    let two = app.active_store(&owner, "two").await;
    let mut inside = devkit::testing::shared_mariadb().await.connect(None).await.unwrap();
    let name = integration_tests::database_name(&one);
    let grants: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!("show grants for '{name}'@'%'")))
        .fetch_all(&mut inside)
        .await
        .unwrap();
    let pattern = name.replace('_', "\\_");
    assert_eq!(grants.len(), 2, "{grants:?}");
    assert!(grants[0].starts_with("GRANT USAGE ON *.*") && !grants[0].contains("GRANT OPTION"), "{grants:?}");
    let rights = "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, REFERENCES, INDEX, ALTER";
    assert!(grants[1].starts_with(&format!("GRANT {rights} ON `{pattern}`.*")), "{grants:?}");
    // Nor does a name that is alike: the underscore in it stands for itself.
    let alike = name.replace('_', "x");
    inside.execute(AssertSqlSafe(format!("create database {alike}"))).await.unwrap();
    let reach: i64 = sqlx::query_scalar("select count(*) from mysql.db where user = ? and ? like db")
        .bind(&name)
        .bind(&alike)
        .fetch_one(&mut inside)
        .await
        .unwrap();
    inside.execute(AssertSqlSafe(format!("drop database {alike}"))).await.unwrap();
    assert_eq!(reach, 0);
    assert_ne!(integration_tests::database_name(&two), name);
}
