//! Whatever is wrong with a database is told with one code, one advice and one statement: by the connection doctor, by the run of
//! a store that it is connected to, and to whoever gives it as new credentials. The statements help.

use std::io::ErrorKind;

use devkit::testing::{ScriptedServer, own_mariadb};
use http::Method;
use integration_tests::{Owner, Response, TestApp, TestMariaDb, own_cluster};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, MySqlConnection, PgConnection};
use tokio::io::AsyncWriteExt as _;

use crate::doctor::{app, brought_body, connected, expect_failure, expect_ok, fields, said, test, test_url};
use crate::doctor_tls::shop_on;
use crate::faults::run;
use crate::provisioning::path_of;

/// A store on a database of each engine, whose credentials can be replaced.
struct Doors {
    app: TestApp,
    owner: Owner,
    postgres: Value,
    mysql: Value,
}

impl Doors {
    /// With the databases that keep the two stores.
    async fn open() -> (Self, impl Sized) {
        let (app, owner) = app().await;
        let (database, mariadb) = (app.cluster.brought().await, TestMariaDb::create().await);
        let postgres = connected(&app, &owner, "on-postgres", brought_body(&database)).await;
        let mysql = connected(&app, &owner, "on-mysql", mariadb.body()).await;
        (Self { app, owner, postgres, mysql }, (database, mariadb))
    }

    async fn replace(&self, store: &Value, body: Value) -> Response {
        self.owner.api.send(Method::PUT, &path_of(store, "/database/credentials"), Some(body)).await
    }

    /// The error of the run of a new store that this is connected to.
    async fn run_error(&self, slug: &str, body: Value) -> Value {
        let store = self.owner.create_store(&format!("shop-{slug}")).await.expect_status(201);
        self.owner.connect(&store, body).await.expect_status(202);
        let run = self.app.run_ended(&self.owner, &store).await;
        let step = run["steps"].as_array().unwrap().iter().find(|step| step["state"] == "failed").cloned();
        let step = step.unwrap_or_else(|| panic!("nothing failed: {run}"));
        assert_eq!(step["name"], "check_connection", "{run}");
        step["error"].clone()
    }

    /// Asks the doctor, and a run, which must say the same; returns the doctor's line.
    async fn expect_of_new(&self, slug: &str, url: &str, code: &str) -> Value {
        let body = json!({ "connectionString": url });
        let report = test(&self.owner, body.clone()).await;
        let line = report["checks"].as_array().unwrap().iter().find(|line| line["state"] == "failed").cloned();
        let line = line.unwrap_or_else(|| panic!("{slug}: nothing failed: {report}"));
        assert_eq!(line["code"], code, "{slug}: {line}");
        let error = self.run_error(slug, body).await;
        is_same(slug, &error, &line);
        // The doctor alone adds addresses.
        let [whole, short] = [&line["detail"], &error["detail"]].map(|text| text.as_str().unwrap());
        assert!(whole.starts_with(short), "{slug}: {error} {line}");
        assert!(!line["advice"].as_str().unwrap().contains('<'), "{slug}: a gap is left to be filled: {line}");
        line
    }

    /// Asks at every door, new credentials too.
    async fn expect(&self, slug: &str, url: &str, code: &str) -> Value {
        let line = self.expect_of_new(slug, url, code).await;
        let store = if url.starts_with("mysql") { &self.mysql } else { &self.postgres };
        let answer = self.replace(store, json!({ "connectionString": url })).await;
        is_same(slug, &answer.expect_field(422, code, "/connectionString"), &line);
        line
    }
}

fn is_same(slug: &str, told: &Value, line: &Value) {
    for member in ["code", "advice", "sql", "serverCode"] {
        assert_eq!(told[member], line[member], "{slug}: the {member} of {told} and of {line}");
    }
}

fn sql(line: &Value) -> String {
    line["sql"].as_str().unwrap_or_else(|| panic!("no statement: {line}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_database_is_told_the_same_at_every_door() {
    let (doors, _kept) = Doors::open().await;
    let mariadb = TestMariaDb::create().await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let hangs_up = ScriptedServer::hanging_up().await;
    let chatty = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let chatty_port = chatty.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut clients = Vec::new();
        while let Ok((mut client, _)) = chatty.accept().await {
            // Who has gone has heard enough.
            drop(client.write_all(b"220 mail.example ESMTP ready\r\n").await);
            clients.push(client);
        }
    });
    let web = doors.app.address.port();
    for (slug, scheme, port, code) in [
        ("web", "postgres", web, "answers-http"),
        ("web-too", "mysql", web, "answers-http"),
        ("theirs", "postgres", mariadb.port(), "other-engine"),
        ("ours", "mysql", doors.app.cluster.port(), "other-engine"),
        ("mail", "postgres", chatty_port, "not-a-database"),
        ("gone", "postgres", closed, "refused"),
        ("gone-too", "mysql", closed, "refused"),
        ("hung", "postgres", hangs_up.port, "hangs-up"),
        ("hung-too", "mysql", hangs_up.port, "hangs-up"),
    ] {
        doors.expect(slug, &format!("{scheme}://a:b@127.0.0.1:{port}/d"), code).await;
    }
    // A name that leads nowhere is refused before anything is begun.
    let lost = json!({ "connectionString": "postgres://a:b@no-such-host.invalid/d?sslmode=require" });
    expect_failure(&test(&doors.owner, lost.clone()).await, "dns", "unresolvable");
    let store = doors.owner.create_store("shop-lost").await.expect_status(201);
    for refused in [doors.owner.connect(&store, lost.clone()).await, doors.replace(&doors.postgres, lost).await] {
        let problem = refused.expect_problem(422, "invalid-input");
        let field = &problem["errors"][0];
        assert_eq!(
            (&field["code"], &field["pointer"]),
            (&json!("unresolvable"), &json!("/connectionString")),
            "{problem}"
        );
    }
    let plain = doors.app.cluster.brought().await;
    doors.expect("plain", &format!("{}?sslmode=require", plain.url()), "no-tls").await;
    doors.expect("plain-too", &format!("{}?ssl-mode=REQUIRED", mariadb.url()), "no-tls").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_is_asked_once_and_not_again_and_again() {
    let (doors, _kept) = Doors::open().await;
    for scheme in ["postgres", "mysql"] {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        silent.set_nonblocking(true).unwrap();
        let url = format!("{scheme}://a:b@127.0.0.1:{}/d", silent.local_addr().unwrap().port());
        doors.expect(&format!("silent-{scheme}"), &url, "silent").await;
        let mut knocks = 0;
        while silent.accept().is_ok() {
            knocks += 1;
        }
        assert_eq!(silent.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        // The doctor; the driver of a run and who looked meanwhile; the same with new credentials.
        assert_eq!(knocks, 5, "{scheme}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_that_lets_nobody_in_is_told_with_the_statement_that_helps() {
    let (doors, _kept) = Doors::open().await;
    let database = doors.app.cluster.brought().await;
    let (name, url) = (&database.database, database.url());
    let mut admin = database.admin().await;
    doors.expect("password", &url.replace(&database.password(), "wrong"), "wrong-password").await;
    doors.expect("no-password", &url.replace(&format!(":{}@", database.password()), "@"), "no-password").await;
    let line = doors.expect("missing", &format!("{url}_not"), "missing-database").await;
    assert_eq!(
        (line["serverCode"].as_str(), sql(&line)),
        (Some("3D000"), format!("CREATE DATABASE \"{name}_not\" OWNER \"{name}\";"))
    );

    // Each state, and how it is told: the statement ends it.
    for (slug, state, code, server_code) in [
        ("expired", format!("alter role {name} valid until '2001-01-01'"), "wrong-password", "28P01"),
        ("login-limit", format!("alter role {name} connection limit 0"), "login-connection-limit", "53300"),
        ("base-limit", format!("alter database {name} connection limit 0"), "database-connection-limit", "53300"),
        ("forbidden", format!("alter database {name} owner to postgres"), "forbidden", "42501"),
    ] {
        run(&mut admin, &state).await;
        let line = doors.expect(slug, &url, code).await;
        assert_eq!(line["serverCode"].as_str().unwrap_or_default(), server_code, "{line}");
        run(&mut admin, &sql(&line)).await;
    }
    let line = doors.expect_of_new("no-create", &url, "missing-privilege").await;
    run(&mut admin, &sql(&line)).await;
    expect_ok(&test_url(&doors.owner, &url).await);
    admin.close().await.unwrap();

    let mut server = doors.app.cluster.admin().await;
    run(&mut server, &format!("alter database {name} with allow_connections false")).await;
    let line = doors.expect("closed", &url, "database-closed").await;
    assert_eq!(line["serverCode"], "55000", "{line}");
    run(&mut server, &sql(&line)).await;
    expect_ok(&test_url(&doors.owner, &url).await);
    server.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_without_a_connection_left_is_told_apart_from_a_limited_login() {
    let (doors, _kept) = Doors::open().await;
    let server = own_cluster("doctor-full").await;
    let database = server.brought().await;
    let mut admin = server.admin().await;
    // Two are left for everybody else.
    let all: i32 =
        sqlx::query_scalar("select current_setting('max_connections')::int4").fetch_one(&mut admin).await.unwrap();
    run(&mut admin, &format!("alter system set superuser_reserved_connections = {}", all - 2)).await;
    admin.close().await.unwrap();
    server.restart().await;
    let mut admin = server.admin().await;
    let mut taken = Vec::new();
    while let Ok(one) = PgConnection::connect(&database.url()).await {
        taken.push(one);
    }
    let line = doors.expect("full", &database.url(), "too-many-connections").await;
    assert_eq!(line["serverCode"], "53300", "{line}");
    let holders = sqlx::raw_sql(AssertSqlSafe(sql(&line))).fetch_all(&mut admin).await.unwrap();
    assert!(!holders.is_empty());
    for one in taken {
        one.close().await.unwrap();
    }
    admin.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mysql_account_is_named_as_the_server_names_it() {
    let (doors, _kept) = Doors::open().await;
    let database = TestMariaDb::create().await;
    let (name, port) = (&database.name, database.port());
    let login = format!("{name}_h");
    let mut admin = database.admin().await;
    admin.execute(AssertSqlSafe(format!("create user {login}@'127.%' identified by 'a-secret-word'"))).await.unwrap();
    let url = format!("mysql://{login}:a-secret-word@127.0.0.1:{port}/{login}");

    // Neither is there such a database, nor may the login enter one: the server tells not which.
    let line = doors.expect("account", &url, "forbidden").await;
    assert_eq!(line["serverCode"], "1044", "{line}");
    assert!(line["detail"].as_str().unwrap().contains("none of this name"), "{line}");
    assert!(sql(&line).contains(&format!("'{login}'@'127.%'")), "{line}");
    admin.execute(sqlx::raw_sql(AssertSqlSafe(sql(&line)))).await.unwrap();
    expect_ok(&test_url(&doors.owner, &url).await);

    // Beside a session that is open, the account is known as well.
    admin.execute(AssertSqlSafe(format!("alter user {login}@'127.%' with max_user_connections 1"))).await.unwrap();
    let report = test_url(&doors.owner, &url).await;
    expect_failure(&report, "pooler", "login-connection-limit");
    let statement = said(&report, "pooler", "sql").to_owned();
    let error = doors.run_error("limited", json!({ "connectionString": url })).await;
    assert_eq!((&error["code"], &error["sql"]), (&json!("login-connection-limit"), &json!(statement)));
    admin.execute(AssertSqlSafe(statement)).await.unwrap();
    expect_ok(&test_url(&doors.owner, &url).await);

    doors.expect("wrong", &url.replace("a-secret-word", "wrong"), "wrong-password").await;
    let line = doors.expect("none", &url.replace(":a-secret-word@", "@"), "no-password").await;
    assert_eq!(line["serverCode"], "1045", "{line}");
    let reader = TestMariaDb::with_rights("select").await;
    let line = doors.expect_of_new("reader", &reader.url(), "missing-privilege").await;
    admin.execute(AssertSqlSafe(sql(&line))).await.unwrap();
    expect_ok(&test_url(&doors.owner, &reader.url()).await);
    admin.execute(AssertSqlSafe(format!("drop user {login}@'127.%'"))).await.unwrap();
    admin.execute(AssertSqlSafe(format!("drop database {login}"))).await.unwrap();
    admin.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mysql_that_is_full_or_lets_in_nobody_from_here_is_told_with_the_statement_that_helps() {
    let (doors, _kept) = Doors::open().await;
    let mut server = own_mariadb("doctor-refusals").await;
    server.set_options(&["--max-connections=10"]);
    server.restart().await.unwrap();
    let mut admin = shop_on(&server).await;
    let url = format!("mysql://shop:a-secret-word@127.0.0.1:{}/shop", server.port());
    expect_ok(&test_url(&doors.owner, &url).await);

    let mut taken = Vec::new();
    while let Ok(one) = MySqlConnection::connect(&format!("{url}?ssl-mode=DISABLED")).await {
        taken.push(one);
    }
    let line = doors.expect("full", &url, "too-many-connections").await;
    assert_eq!(line["serverCode"], "1040", "{line}");
    admin.execute(AssertSqlSafe(sql(&line))).await.unwrap();
    expect_ok(&test_url(&doors.owner, &url).await);
    for one in taken {
        one.close().await.unwrap();
    }

    // With an account for every host, whoever knocks is at least heard.
    let own = server.admin().0.to_owned();
    for login in ["shop", own.as_str()] {
        admin.execute(AssertSqlSafe(format!("rename user {login}@'%' to {login}@'192.0.2.1'"))).await.unwrap();
    }
    // It remembers until then that somebody may come from anywhere.
    admin.execute("flush privileges").await.unwrap();
    let line = doors.expect("not-from-here", &url, "host-not-allowed").await;
    assert_eq!(line["serverCode"], "1130", "{line}");
    let shown: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql(&line))).fetch_all(&mut admin).await.unwrap();
    assert_eq!(shown, ["RENAME USER 'shop'@'192.0.2.1' TO 'shop'@'%';"]);
    admin.execute(AssertSqlSafe(shown[0].clone())).await.unwrap();
    expect_ok(&test_url(&doors.owner, &url).await);
    admin.close().await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_of_the_server_itself_are_refused_and_nobody_is_advised_to_give_rights_in_them() {
    let (doors, _kept) = Doors::open().await;
    let store = doors.owner.create_store("tea").await.expect_status(201);
    let port = doors.app.cluster.port();
    for (scheme, name) in [
        ("mysql", "mysql"),
        ("mysql", "INFORMATION_SCHEMA"),
        ("mysql", "performance_schema"),
        ("mysql", "sys"),
        ("postgres", "template0"),
        ("postgres", "template1"),
    ] {
        let body = json!({ "connectionString": format!("{scheme}://a:b@127.0.0.1:{port}/{name}") });
        let report = test(&doors.owner, body.clone()).await;
        expect_failure(&report, "parse", "system-database");
        assert!(!report.to_string().contains("GRANT"), "{report}");
        let served = if scheme == "mysql" { &doors.mysql } else { &doors.postgres };
        for answer in [doors.owner.connect(&store, body.clone()).await, doors.replace(served, body).await] {
            let problem = answer.expect_field(422, "invalid-input", "/connectionString");
            assert_eq!(problem["errors"][0]["code"], "system-database", "{problem}");
        }
    }
    let database = doors.app.cluster.brought().await;
    let by_parts = fields(&database, port, &json!({ "database": "template1" }));
    doors.owner.connect(&store, by_parts).await.expect_field(422, "invalid-input", "/database");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_new_credentials_points_at_the_part_that_was_sent() {
    let (doors, _kept) = Doors::open().await;
    let database = doors.app.cluster.brought().await;
    let port = doors.app.cluster.port();
    for (wrong, code, pointer) in [
        (json!({ "password": "wrong" }), "wrong-password", "/password"),
        (json!({ "password": "" }), "no-password", "/password"),
        (json!({ "database": "no_such_one" }), "missing-database", "/database"),
        (json!({ "tls": "require" }), "no-tls", "/tls"),
        (json!({ "port": doors.app.address.port() }), "answers-http", "/host"),
    ] {
        let answer = doors.replace(&doors.postgres, fields(&database, port, &wrong)).await;
        answer.expect_field(422, code, pointer);
        assert!(!answer.text().contains("brought-secret"), "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_advised_to_give_rights_on_databases_of_others() {
    let (_app, owner) = app().await;
    let database = TestMariaDb::create().await;
    let (name, url) = (&database.name, database.url());
    let own = name.replace('_', "\\_");
    let mut admin = database.admin().await;
    for wide in ["it\\_my\\_%", "it%", "%"] {
        let statements = format!(
            "revoke all privileges, grant option from '{name}'@'%';
             grant select, insert, execute, lock tables on `{wide}`.* to '{name}'@'%' with grant option"
        );
        admin.execute(sqlx::raw_sql(AssertSqlSafe(statements))).await.unwrap();

        let report = test_url(&owner, &url).await;
        expect_failure(&report, "privileges", "missing-privilege");
        let statement = said(&report, "privileges", "sql").to_owned();
        assert!(statement.contains(&format!(" ON `{own}`.* TO ")), "{wide}: {statement}");
        admin.execute(AssertSqlSafe(statement)).await.unwrap();

        expect_ok(&test_url(&owner, &url).await);
        // The server heeds the new grant alone: nothing that was held here is lost, and elsewhere nothing is won.
        assert_eq!(
            held_by(&mut admin, name, &own).await,
            "ALTER, CREATE, DELETE, DROP, EXECUTE, INDEX, INSERT, LOCK TABLES, REFERENCES, SELECT, UPDATE",
            "{wide}"
        );
        assert_eq!(held_by(&mut admin, name, wide).await, "EXECUTE, INSERT, LOCK TABLES, SELECT", "{wide}");
    }
    admin.close().await.unwrap();
}

/// The rights that a grant by this name gives the login, and lets it give.
async fn held_by(admin: &mut MySqlConnection, login: &str, pattern: &str) -> String {
    let held: Vec<String> = sqlx::query_scalar(
        "select privilege_type from information_schema.schema_privileges
         where grantee = ? and table_schema = ? and is_grantable = 'YES' order by 1",
    )
    .bind(format!("'{login}'@'%'"))
    .bind(pattern)
    .fetch_all(admin)
    .await
    .unwrap();
    held.join(", ")
}
