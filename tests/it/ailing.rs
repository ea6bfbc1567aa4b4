//! A store whose database lets us in, and lets it do too little or nothing: its owner and ops are told, with what helps.

use http::Method;
use integration_tests::{Brought, Owner, Response, TestApp, eventually};
use kernel::Engine;
use serde_json::{Value, json};

use crate::doctor::{connected, expect_ok, line, said, test_store};
use crate::scenes::{Cart, checkout_body, store_path, text, variant_of};

on_each_engine! {
    a_store_that_lost_rights_or_tables_is_not_told_to_be_well
}

struct Ailing {
    app: TestApp,
    owner: Owner,
    database: Brought,
    store: Value,
}

impl Ailing {
    async fn connect(engine: Engine) -> Self {
        let app = TestApp::start_on(engine).await;
        let owner = app.owner("ada").await;
        let database = app.brought().await;
        let store = connected(&app, &owner, "tea", database.fields(&json!({ "demoProducts": true }))).await;
        Self { app, owner, database, store }
    }

    /// What its owner sees of the store.
    async fn seen(&self) -> Value {
        self.owner.api.get(&store_path(&self.store, "")).await.expect_status(200)
    }

    async fn expect(&self, state: &str, code: &str) {
        let seen = self.seen().await;
        assert_eq!((&seen["database"]["state"], &seen["database"]["code"]), (&state.into(), &code.into()), "{seen}");
        assert!(seen["database"]["detail"].is_string() && seen["database"]["advice"].is_string(), "{seen}");
        assert_eq!(seen["settings"].is_null(), state == "unavailable", "{seen}");
        let hostname = text(&self.store["hostname"]);
        let explained = control_plane::ops::explain_host(&self.app.cx, hostname).await.unwrap();
        assert_eq!(explained.database.unwrap().ailment, Some(code));
        let decision = if state == "unavailable" { "unavailable" } else { "served" };
        assert_eq!(explained.decision, decision);
        let findings = control_plane::ops::doctor(&self.app.cx).await.unwrap();
        let named = findings.iter().find(|finding| finding.detail.contains(text(&self.store["id"]))).unwrap();
        assert!(!named.is_ok && named.detail.ends_with(code), "{named:?}");
    }

    /// When a test has found it so, everybody does; sessions that were there before are no hindrance.
    async fn expect_well(&self) {
        expect_ok(&test_store(&self.owner, &self.store, None).await);
        eventually("the store is well", || async {
            (self.seen().await["database"] == json!({ "state": "available" })).then_some(())
        })
        .await;
        let findings = control_plane::ops::doctor(&self.app.cx).await.unwrap();
        // The server is other tests' as well, whose databases no store of this installation has.
        let mut findings = findings.iter().filter(|finding| finding.check != "orphans");
        assert!(findings.all(|finding| finding.is_ok), "{findings:?}");
        self.open_cart().await.expect_status(201);
    }

    async fn open_cart(&self) -> Response {
        self.app.storefront_of(&self.store).post("/store/v1/carts", json!({})).await
    }

    async fn run(&self, statements: &str) {
        let mut inside = self.database.inside().await;
        inside.execute(statements).await;
        inside.close().await;
    }

    /// What is set for sessions that begin, holds for all from now on.
    async fn renew_sessions(&self) {
        self.app.server().await.end_sessions(self.database.name()).await;
    }
}

async fn a_store_that_lost_rights_or_tables_is_not_told_to_be_well(engine: Engine) {
    let ailing = Ailing::connect(engine).await;
    let name = ailing.database.name();
    ailing.expect_well().await;

    for lost in ["insert", "delete"] {
        ailing
            .run(&match engine {
                Engine::Mysql => format!("revoke {lost} on `{}`.* from '{name}'@'%'", name.replace('_', "\\_")),
                _ => format!("revoke {lost} on all tables in schema tenantry from {name}"),
            })
            .await;
        ailing.expect("read-only", "missing-privilege").await;
        let report = test_store(&ailing.owner, &ailing.store, None).await;
        assert_eq!(line(&report, "privileges")["code"], "missing-privilege", "{report}");
        // For which host an account of MySQL's is, only the test asks.
        let seen = ailing.seen().await;
        let told = if engine == Engine::Mysql { json!(null) } else { line(&report, "privileges")["sql"].clone() };
        assert_eq!(seen["database"]["sql"], told, "{seen}");
        ailing.run(said(&report, "privileges", "sql")).await;
        ailing.expect_well().await;
    }

    if engine == Engine::Postgresql {
        let shop = ailing.app.storefront_of(&ailing.store);
        let variant = variant_of(&shop, "night-orchard", 0).await;
        let cart = Cart::with(&shop, &variant, 1).await;
        ailing.run(&format!("alter database {name} set default_transaction_read_only = on")).await;
        ailing.renew_sessions().await;
        ailing.expect("read-only", "read-only").await;
        // In one statement, and in transactions that are rolled back for it.
        ailing.open_cart().await.expect_problem(503, "store-read-only");
        cart.add(&variant, 1).await.expect_problem(503, "store-read-only");
        cart.complete("order", checkout_body()).await.expect_problem(503, "store-read-only");
        let import = store_path(&ailing.store, "/products/import");
        let file = "Handle,Title,Variant Price\nnew,New,1.00\n".to_owned();
        let refused = ailing.owner.api.send_bytes(Method::POST, &import, "text/csv", file).await;
        let problem = refused.expect_problem(503, "store-read-only");
        assert!(text(&problem["detail"]).contains("/database/test"), "{problem}");
        let report = test_store(&ailing.owner, &ailing.store, None).await;
        // As it is copied, in the database that it is about.
        let seen = ailing.seen().await;
        let statements = text(&seen["database"]["sql"]);
        assert!(statements.ends_with(said(&report, "server", "sql")), "{seen}");
        ailing.run(statements).await;
        ailing.expect_well().await;

        ailing.run(&format!("revoke select on all tables in schema tenantry from {name}")).await;
        ailing.expect("unavailable", "missing-privilege").await;
        let report = test_store(&ailing.owner, &ailing.store, None).await;
        ailing.run(said(&report, "privileges", "sql")).await;
        ailing.expect_well().await;

        // Whom PostgreSQL does not let into a schema, it tells that there are no tables.
        ailing
            .run(&format!("alter schema tenantry owner to current_user; revoke all on schema tenantry from {name}"))
            .await;
        ailing.expect("unavailable", "missing-privilege").await;
        let report = test_store(&ailing.owner, &ailing.store, None).await;
        ailing.run(said(&report, "privileges", "sql")).await;
        ailing.expect_well().await;
    } else {
        // A grant as people write it, in which an underscore stands for any letter. Of two grants the server heeds one.
        ailing
            .run(&format!(
                "revoke all privileges on `{}`.* from '{name}'@'%';
                 grant select, update, delete, create, drop, references, index, alter on `{name}`.* to '{name}'@'%'",
                name.replace('_', "\\_")
            ))
            .await;
        ailing.expect("read-only", "missing-privilege").await;
        let report = test_store(&ailing.owner, &ailing.store, None).await;
        ailing.run(said(&report, "privileges", "sql")).await;
        ailing.expect_well().await;
    }

    ailing.run("alter table cart_lines rename to cart_lines_away").await;
    let seen = ailing.seen().await;
    assert_eq!(seen["database"]["code"], "tables-missing", "{seen}");
    let report = test_store(&ailing.owner, &ailing.store, None).await;
    assert_eq!(line(&report, "schema")["code"], "schema-damaged", "{report}");
    ailing.run("alter table cart_lines_away rename to cart_lines").await;
    ailing.expect_well().await;

    ailing.run("delete from settings").await;
    let seen = ailing.seen().await;
    assert_eq!(seen["database"]["code"], "settings-missing", "{seen}");

    let mut inside = ailing.database.inside().await;
    match engine {
        Engine::Mysql => {
            let tables = "select table_name from information_schema.tables where table_schema = database()";
            let drops = inside.texts(tables).await.join(", ");
            inside.execute(&format!("set foreign_key_checks = 0; drop table {drops}")).await;
        }
        _ => inside.execute("drop schema tenantry cascade").await,
    }
    inside.close().await;
    ailing.expect("unavailable", "tables-missing").await;
    let report = test_store(&ailing.owner, &ailing.store, None).await;
    assert_eq!(line(&report, "schema")["code"], "tables-missing", "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_somebody_elses_beside_the_stores_is_no_ailment() {
    let ailing = Ailing::connect(Engine::Postgresql).await;
    let name = ailing.database.name();
    ailing.expect_well().await;

    // An administrator's, of which the login may do nothing.
    ailing.run("create table notes_of_the_administrator (note text)").await;
    assert_eq!(ailing.seen().await["database"], json!({ "state": "available" }));
    ailing.open_cart().await.expect_status(201);

    // Of the store's own, the newest counts as well.
    ailing.run(&format!("revoke delete on credit_copy from {name}")).await;
    ailing.expect("read-only", "missing-privilege").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_grants_that_fit_the_one_counts_that_the_server_heeds() {
    let ailing = Ailing::connect(Engine::Mysql).await;
    let name = ailing.database.name();
    let own = name.replace('_', "\\_");
    // Of each two MariaDB heeds the first: the more that a name leaves open, the less exact it is, wherever that stands in it.
    for (heeded, other) in [("it\\_my\\_%", "%"), ("%\\_my\\_%", "it%"), (name, "it\\_my\\_%")] {
        let begin = format!("revoke all privileges, grant option from '{name}'@'%'");
        let give = |rights: &str, by: &str| format!("grant {rights} on `{by}`.* to '{name}'@'%'");
        ailing.run(&format!("{begin}; {}; {}", give("all privileges", heeded), give("select", other))).await;
        ailing.expect_well().await;

        ailing.run(&format!("{begin}; {}; {}", give("select", heeded), give("all privileges", other))).await;
        ailing.expect("read-only", "missing-privilege").await;
        let report = test_store(&ailing.owner, &ailing.store, None).await;
        let statement = said(&report, "privileges", "sql");
        let by = if heeded == name { name } else { own.as_str() };
        assert!(statement.contains(&format!(" ON `{by}`.* TO ")), "{statement}");
        ailing.run(statement).await;
        ailing.expect_well().await;
    }
}
