//! The connection doctor: whatever is wrong with a database is produced for real, and told by its own line, code and advice.

use std::io::ErrorKind;

use devkit::testing::{PgBouncer, PoolMode, ScriptedServer};
use http::Method;
use integration_tests::{
    Cli, Owner, Process, TestApp, TestAppOptions, TestDatabase, TestMariaDb, eventually, own_cluster,
};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::provisioning::{checksum, failure, old_shop, path_of};
use crate::scenes::join;

const LINES: [&str; 12] =
    ["parse", "dns", "tcp", "tls", "login", "server", "pooler", "latency", "session", "privileges", "schema", "limits"];

/// What holds of every report.
fn checked(report: Value) -> Value {
    let checks = report["checks"].as_array().unwrap();
    let names: Vec<_> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert_eq!(names, LINES, "{report}");
    let has_failed = checks.iter().any(|check| check["state"] == "failed");
    assert_eq!(report["ok"], !has_failed, "{report}");
    for check in checks {
        let is_told = check["code"].is_string() && check["advice"].as_str().is_some_and(|advice| advice.len() > 10);
        let needs_telling = check["state"] == "failed" || check["state"] == "warning";
        assert!(!needs_telling || is_told, "{check}");
        assert!(check["durationMs"].as_u64().is_some_and(|took| took < 15_000), "{check}");
    }
    report
}

pub(crate) async fn test(owner: &Owner, body: Value) -> Value {
    checked(owner.api.post("/api/databases/test", body).await.expect_status(200))
}

pub(crate) async fn test_url(owner: &Owner, url: &str) -> Value {
    test(owner, json!({ "connectionString": url })).await
}

pub(crate) fn line<'r>(report: &'r Value, name: &str) -> &'r Value {
    report["checks"].as_array().unwrap().iter().find(|check| check["name"] == name).unwrap()
}

pub(crate) fn said<'r>(report: &'r Value, name: &str, member: &str) -> &'r str {
    line(report, name)[member].as_str().unwrap_or_else(|| panic!("{name} has no {member}: {report}"))
}

/// The line that failed first, with its code.
pub(crate) fn first_failure(report: &Value) -> (&str, &str) {
    let failed = report["checks"].as_array().unwrap().iter().find(|check| check["state"] == "failed");
    let failed = failed.unwrap_or_else(|| panic!("nothing failed: {report}"));
    (failed["name"].as_str().unwrap(), failed["code"].as_str().unwrap())
}

#[track_caller]
pub(crate) fn expect_failure(report: &Value, name: &str, code: &str) {
    assert_eq!(first_failure(report), (name, code), "{report}");
}

#[track_caller]
pub(crate) fn expect_ok(report: &Value) {
    assert_eq!(report["ok"], true, "{report}");
}

#[track_caller]
pub(crate) fn expect_skipped_after(report: &Value, name: &str) {
    let at = LINES.iter().position(|line| *line == name).unwrap();
    for after in &LINES[at + 1..] {
        assert_eq!(line(report, after)["state"], "skipped", "{after}: {report}");
        assert!(said(report, after, "detail").contains(name), "{after}: {report}");
    }
}

pub(crate) async fn app() -> (TestApp, Owner) {
    let app = TestApp::start_with(TestAppOptions { without_server: true, ..TestAppOptions::default() }).await;
    let owner = app.owner("ada").await;
    (app, owner)
}

pub(crate) fn fields(database: &TestDatabase, port: u16, more: &Value) -> Value {
    let mut body = json!({
        "engine": "postgresql", "host": "127.0.0.1", "port": port, "username": database.database,
        "password": database.password(), "database": database.database,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Connects a store to a database, to its end.
pub(crate) async fn connected(app: &TestApp, owner: &Owner, slug: &str, body: Value) -> Value {
    let store = owner.create_store(slug).await.expect_status(201);
    owner.connect(&store, body).await.expect_status(202);
    assert_eq!(app.run_ended(owner, &store).await["state"], "succeeded");
    store
}

pub(crate) async fn test_store(owner: &Owner, store: &Value, body: Option<Value>) -> Value {
    checked(owner.api.send(Method::POST, &path_of(store, "/database/test"), body).await.expect_status(200))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_database_passes_every_line_and_is_left_as_it_was() {
    let (app, owner) = app().await;
    let database = app.cluster.brought().await;
    old_shop(&database).await;
    let before = checksum(&database).await;

    let report = test(&owner, brought_body(&database)).await;

    expect_ok(&report);
    assert_eq!(checksum(&database).await, before);
    for (name, word) in [
        ("parse", database.database.as_str()),
        ("dns", "A 127.0.0.1; AAAA none"),
        ("tcp", "PostgreSQL answers"),
        ("tls", "Without TLS"),
        ("server", "PostgreSQL 1"),
        ("latency", " ms"),
        ("session", "UTC"),
        ("schema", "nothing of ours"),
        ("limits", "connections"),
    ] {
        assert_eq!(line(&report, name)["state"], "passed", "{name}: {report}");
        assert!(said(&report, name, "detail").contains(word), "{name}: {report}");
    }

    let mariadb = TestMariaDb::create().await;
    let report = test(&owner, mariadb.body()).await;
    expect_ok(&report);
    assert!(said(&report, "server", "detail").contains("MariaDB"), "{report}");
    assert!(said(&report, "session", "detail").contains("READ-COMMITTED"), "{report}");
    let mut admin = mariadb.admin().await;
    let tables: i64 =
        sqlx::query_scalar("select count(*) from information_schema.tables where table_schema = database()")
            .fetch_one(&mut admin)
            .await
            .unwrap();
    assert_eq!(tables, 0);
    admin.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_string_that_is_not_understood_is_a_line_that_repeats_nothing_of_it() {
    let (_app, owner) = app().await;
    for (url, code, word) in [
        ("mongodb://hunter1:hunter2@h/d", "scheme", "PostgreSQL"),
        ("postgres://hunter1:hunter2@h.example:port/d", "malformed", "port"),
        ("postgres://hunter1:hunter2/x@h.example/d", "malformed", "%2F"),
        ("postgres://hunter1:hunter2@h1,h2/d", "host", "several"),
        ("postgres://hunter1:hunter2@%2Ftmp/d", "host", "socket"),
        ("postgres://hunter1:[YOUR-PASSWORD]@h.example/d", "placeholder", "password"),
        ("postgres://hunter1:hunter2@h.example/d?hunter3=1", "parameter", "%3F"),
        ("postgres://hunter1:hunter2@h.example/", "required", "database"),
    ] {
        let report = test_url(&owner, url).await;
        expect_failure(&report, "parse", code);
        expect_skipped_after(&report, "parse");
        assert!(said(&report, "parse", "detail").contains(word), "{url}: {report}");
        assert!(!report.to_string().contains("hunter"), "{url}: {report}");
    }
    // A body that asks for something else is no string of theirs.
    let path = "/api/databases/test";
    owner.api.post(path, json!({ "managed": true })).await.expect_field(422, "invalid-input", "/managed");
    owner.api.post(path, json!({ "host": "h.example" })).await.expect_field(422, "invalid-input", "/engine");
    owner.api.post(path, json!({ "sql": "select 1" })).await.expect_status(422);
    owner.api.send_bytes(Method::POST, path, "application/json", "{").await.expect_problem(400, "malformed-json");
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_and_ports_without_a_database_are_told_apart() {
    let (app, owner) = app().await;
    let report = test_url(&owner, "postgres://a:b@no-such-host.invalid/d").await;
    expect_failure(&report, "dns", "unresolvable");
    expect_skipped_after(&report, "dns");

    // Without a way to IPv6 it is said before anything is tried.
    let has_ipv6 =
        std::net::UdpSocket::bind("[::]:0").and_then(|socket| socket.connect("[2606:4700::1111]:5432")).is_ok();
    if !has_ipv6 {
        let report = test_url(&owner, "postgres://a:b@[2606:4700::1111]:5432/d").await;
        expect_failure(&report, "dns", "ipv6-only");
        assert!(said(&report, "dns", "detail").contains("2606:4700::1111"), "{report}");
    }

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let hangs_up = ScriptedServer::hanging_up().await;
    let mariadb = TestMariaDb::create().await;
    for (scheme, port, code) in [
        ("postgres", closed, "refused"),
        ("mysql", closed, "refused"),
        ("postgres", silent.local_addr().unwrap().port(), "silent"),
        ("mysql", silent.local_addr().unwrap().port(), "silent"),
        ("postgres", hangs_up.port, "hangs-up"),
        ("mysql", hangs_up.port, "hangs-up"),
        // The node itself is a web server.
        ("postgres", app.address.port(), "answers-http"),
        ("mysql", app.address.port(), "answers-http"),
        ("postgres", mariadb.port(), "other-engine"),
        ("mysql", app.cluster.port(), "other-engine"),
    ] {
        let report = test_url(&owner, &format!("{scheme}://a:b@127.0.0.1:{port}/d")).await;
        expect_failure(&report, "tcp", code);
        expect_skipped_after(&report, "tcp");
    }
    let report = test_url(&owner, &format!("mysql://a:b@127.0.0.1:{}/d", app.cluster.port())).await;
    assert!(said(&report, "tcp", "advice").contains("postgres://"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_told_at_once_that_the_other_engine_answers() {
    let (app, owner) = app().await;
    let mariadb = TestMariaDb::create().await;
    for (slug, url, code) in [
        ("mine", format!("mysql://a:b@127.0.0.1:{}/d", app.cluster.port()), "other-engine"),
        ("theirs", format!("postgres://a:b@127.0.0.1:{}/d", mariadb.port()), "other-engine"),
        ("web", format!("mysql://a:b@127.0.0.1:{}/d", app.address.port()), "answers-http"),
    ] {
        let store = owner.create_store(slug).await.expect_status(201);
        owner.connect(&store, json!({ "connectionString": url })).await.expect_status(202);
        let run = app.run_ended(&owner, &store).await;
        assert_eq!((failure(&run).0, failure(&run).1), ("check_connection", code), "{run}");
        // It is not tried again: no wait would help.
        assert_eq!(run["attempts"], 1, "{run}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_may_not_be_called_are_not() {
    let arguments = vec!["--allow-private-databases".to_owned(), "false".to_owned()];
    let app = TestApp::start_with(TestAppOptions { arguments, ..TestAppOptions::default() }).await;
    let owner = app.owner("ada").await;
    let trap = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    trap.set_nonblocking(true).unwrap();
    let port = trap.local_addr().unwrap().port();
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        let report = test_url(&owner, &format!("postgres://a:b@{host}:{port}/d?sslmode=require")).await;
        expect_failure(&report, "dns", "private-address");
        expect_skipped_after(&report, "dns");
        assert!(!said(&report, "dns", "detail").contains("127."), "{report}");
        // As a panel shows it, whose own machine it is.
        assert!(said(&report, "dns", "advice").contains("remote host"), "{report}");
    }
    let report = test_url(&owner, "mysql://a:b@mysql.railway.internal/d?ssl=true").await;
    assert_eq!(first_failure(&report).0, "dns", "{report}");
    assert!(said(&report, "dns", "advice").contains("external"), "{report}");
    for host in ["10.0.0.1", "169.254.169.254", "[fd00::1]"] {
        expect_failure(&test_url(&owner, &format!("mysql://a:b@{host}/d?ssl=true")).await, "dns", "private-address");
    }
    assert_eq!(trap.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "nobody knocked");
    let report = test_url(&owner, "postgres://a:b@203.0.113.7/d?sslmode=disable").await;
    expect_failure(&report, "parse", "tls-required");

    // A managed database is at a private address all the same, and nothing is told of where it is.
    let store = app.active_store(&owner, "tea").await;
    let report = test_store(&owner, &store, None).await;
    expect_ok(&report);
    assert!(said(&report, "schema", "detail").contains("holds this store"), "{report}");
    let text = report.to_string();
    assert!(!text.contains("127.0.0.1") && !text.contains(&app.cluster.port().to_string()), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_login_is_told_by_the_servers_code() {
    let (app, owner) = app().await;
    let database = app.cluster.brought().await;
    let (name, port) = (&database.database, app.cluster.port());
    let with = |more: Value| fields(&database, port, &more);
    let report = test(&owner, with(json!({ "password": "not-the-password" }))).await;
    expect_failure(&report, "login", "wrong-password");
    expect_skipped_after(&report, "login");
    assert_eq!(said(&report, "login", "serverCode"), "28P01", "{report}");
    let report = test(&owner, with(json!({ "database": "no \"such\" one" }))).await;
    expect_failure(&report, "login", "missing-database");
    assert_eq!(said(&report, "login", "serverCode"), "3D000", "{report}");
    assert_eq!(said(&report, "login", "sql"), format!("CREATE DATABASE \"no \"\"such\"\" one\" OWNER \"{name}\";"));

    let mut admin = database.admin().await;
    let run = async |admin: &mut PgConnection, sql: String| {
        admin.execute(AssertSqlSafe(sql)).await.unwrap();
    };
    run(&mut admin, format!("alter role {name} connection limit 1")).await;
    let taken = PgConnection::connect(&database.url()).await.unwrap();
    let report = test(&owner, with(json!({}))).await;
    expect_failure(&report, "login", "login-connection-limit");
    assert_eq!(said(&report, "login", "serverCode"), "53300", "{report}");
    taken.close().await.unwrap();
    run(&mut admin, format!("alter role {name} connection limit 3")).await;
    let report = test(&owner, with(json!({}))).await;
    assert_eq!(said(&report, "limits", "code"), "few-connections", "{report}");
    assert!(said(&report, "limits", "detail").contains("This login may have 3 of them"), "{report}");
    run(&mut admin, format!("alter role {name} connection limit -1 nologin")).await;
    let report = test(&owner, with(json!({}))).await;
    expect_failure(&report, "login", "login-refused");
    assert_eq!(said(&report, "login", "serverCode"), "28000", "{report}");
    run(&mut admin, format!("alter role {name} login")).await;

    // May not enter: the statement that is told lets it in.
    run(&mut admin, format!("alter database {name} owner to postgres")).await;
    let report = test(&owner, with(json!({}))).await;
    expect_failure(&report, "login", "forbidden");
    assert_eq!(said(&report, "login", "serverCode"), "42501", "{report}");
    run(&mut admin, said(&report, "login", "sql").to_owned()).await;
    // Nor make a schema: so does this one.
    let report = test(&owner, with(json!({}))).await;
    expect_failure(&report, "privileges", "missing-privilege");
    assert_eq!(line(&report, "schema")["state"], "passed", "{report}");
    run(&mut admin, said(&report, "privileges", "sql").to_owned()).await;
    expect_ok(&test(&owner, with(json!({}))).await);
    // Owned by somebody else, whatever else it may.
    run(&mut admin, "create schema tenantry".to_owned()).await;
    let begun = "create table tenantry._migrations (version bigint, checksum bytea, success boolean)";
    run(&mut admin, begun.to_owned()).await;
    let report = test(&owner, with(json!({}))).await;
    expect_failure(&report, "privileges", "missing-privilege");
    // It makes nobody a member of the server's administrator.
    assert!(!said(&report, "privileges", "sql").contains("GRANT"), "{report}");
    run(&mut admin, said(&report, "privileges", "sql").to_owned()).await;
    assert_eq!(line(&test(&owner, with(json!({}))).await, "privileges")["state"], "passed");
    run(&mut admin, "drop schema tenantry cascade".to_owned()).await;
    // Read-only by default: the statements that are told end it.
    for place in [format!("role {name}"), format!("role {name} in database {name}"), format!("database {name}")] {
        run(&mut admin, format!("alter {place} set default_transaction_read_only = on")).await;
        let report = test(&owner, with(json!({}))).await;
        expect_failure(&report, "server", "read-only");
        run(&mut admin, said(&report, "server", "sql").to_owned()).await;
        expect_ok(&test(&owner, with(json!({}))).await);
    }
    admin.close().await.unwrap();

    let mariadb = TestMariaDb::with_rights("select, insert").await;
    let url = mariadb.url();
    for (url, code, server_code) in [
        (url.replace(&mariadb.password(), "wrong"), "wrong-password", "1045"),
        (format!("{}elsewhere", url.strip_suffix(&mariadb.name).unwrap()), "forbidden", "1044"),
    ] {
        let report = test_url(&owner, &url).await;
        expect_failure(&report, "login", code);
        assert_eq!(said(&report, "login", "serverCode"), server_code, "{report}");
    }
    let report = test_url(&owner, &url).await;
    expect_failure(&report, "privileges", "missing-privilege");
    assert!(said(&report, "privileges", "detail").contains("ALTER"), "{report}");
    let mut admin = mariadb.admin().await;
    admin.execute(AssertSqlSafe(said(&report, "privileges", "sql").to_owned())).await.unwrap();
    expect_ok(&test_url(&owner, &url).await);
    // One that may enter every database is told that this one is not there.
    let (name, password) = (&mariadb.name, mariadb.password());
    admin.execute(AssertSqlSafe(format!("grant select on *.* to '{name}'@'%'"))).await.unwrap();
    let report = test_url(&owner, &format!("mysql://{name}:{password}@127.0.0.1:{}/it_none", mariadb.port())).await;
    expect_failure(&report, "login", "missing-database");
    assert_eq!(said(&report, "login", "serverCode"), "1049", "{report}");
    // Its account may be for any host, and has its rights there already.
    let create = "CREATE DATABASE IF NOT EXISTS `it_none` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;";
    assert_eq!(said(&report, "login", "sql"), create);
    admin.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_poolers_and_old_servers_say_is_told_in_plain_words() {
    let (app, owner) = app().await;
    for (code, message, told, server_code) in [
        ("XX000", "Tenant or user not found", "unknown-project", "XX000 ENOTFOUND"),
        ("XX000", "(ENOTFOUND) tenant/user a.b not found", "unknown-project", "XX000 ENOTFOUND"),
        ("XX000", "(EMAXCONNSESSION) max clients reached", "too-many-connections", "XX000 EMAXCONNSESSION"),
        ("XX000", "Max client connections reached", "too-many-connections", "XX000 EMAXCLIENTCONN"),
        ("XX000", "(ECHECKOUTTIMEOUT) unable to check out", "too-many-connections", "XX000 ECHECKOUTTIMEOUT"),
        ("XX000", "(EADDRNOTALLOWED) address not in tenant allow_list", "host-not-allowed", "XX000 EADDRNOTALLOWED"),
        ("XX000", "(ESSLREQUIRED) SSL connection is required", "tls-required", "XX000 ESSLREQUIRED"),
        ("XX000", "(ECIRCUITBREAKER) too many failures", "too-many-failures", "XX000 ECIRCUITBREAKER"),
        ("XX000", "(EBANNED) tenant is banned", "project-banned", "XX000 EBANNED"),
        ("28P01", "(EWRONGPASSWORD) password authentication failed", "wrong-password", "28P01 EWRONGPASSWORD"),
        ("XX000", "hunter2 fell over", "server-error", "XX000"),
        ("57P03", "the database system is starting up", "not-ready", "57P03"),
        ("08P01", "no such user: hunter2", "wrong-password", "08P01"),
        ("08P01", "no more connections allowed (max_client_conn)", "too-many-connections", "08P01"),
        ("08P01", "query_wait_timeout", "too-many-connections", "08P01"),
        ("08P01", "role \"hunter2\" is not permitted to log in", "pooler-server", "08P01"),
        ("08P01", "database \"hunter2\" does not exist", "missing-database", "08P01"),
        ("08P01", "server login has been failing, try again later (server_login_retry)", "pooler-server", "08P01"),
        ("08P01", "bouncer config error", "pooler-refused", "08P01"),
    ] {
        let server = ScriptedServer::refusing(code, message).await;
        let report = test_url(&owner, &format!("postgres://a:b@127.0.0.1:{}/d", server.port)).await;
        expect_failure(&report, "login", told);
        assert_eq!(said(&report, "login", "serverCode"), server_code, "{report}");
        assert!(!report.to_string().contains("hunter"), "{report}");
    }
    // A run says the same.
    let server = ScriptedServer::refusing("XX000", "(EADDRNOTALLOWED) address not in tenant allow_list").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let body = json!({ "connectionString": format!("postgres://a:b@127.0.0.1:{}/d", server.port) });
    owner.connect(&store, body).await.expect_status(202);
    assert_eq!(failure(&app.run_ended(&owner, &store).await).1, "host-not-allowed");

    let (postgres, mysql) = (ScriptedServer::old_postgres("120004").await, ScriptedServer::old_mysql("5.7.44").await);
    for (scheme, port, version) in [("postgres", postgres.port, "PostgreSQL 12"), ("mysql", mysql.port, "MySQL 5.7.44")]
    {
        let report = test_url(&owner, &format!("{scheme}://a:b@127.0.0.1:{port}/d")).await;
        expect_failure(&report, "server", "version-too-old");
        expect_skipped_after(&report, "server");
        assert!(said(&report, "server", "detail").contains(version), "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_and_a_transaction_pooler_are_told() {
    let (app, owner) = app().await;
    let standby = own_cluster("doctor-standby").await;
    let mut admin = standby.admin().await;
    for statement in [
        "create role shop login password 'a-secret-word'",
        "create database shop owner shop",
        // What makes a server follow another, once it starts anew; it needs none to follow.
        "copy (select 1) to program 'cat > /dev/null; touch standby.signal'",
        "checkpoint",
    ] {
        admin.execute(statement).await.unwrap();
    }
    admin.close().await.unwrap();
    standby.restart().await;
    let report = test_url(&owner, &format!("postgres://shop:a-secret-word@127.0.0.1:{}/shop", standby.port())).await;
    expect_failure(&report, "server", "read-only");
    assert!(said(&report, "server", "detail").contains("replica"), "{report}");
    assert_eq!(line(&report, "schema")["state"], "passed", "{report}");

    let database = app.cluster.brought().await;
    let (login, password) = (&database.database, database.password());
    let at = |port: u16| format!("postgres://{login}:{password}@127.0.0.1:{port}/{login}");
    let transaction = PgBouncer::start(app.cluster.postgres(), PoolMode::Transaction, login, &password).await;
    let report = test_url(&owner, &at(transaction.port)).await;
    expect_failure(&report, "pooler", "transaction-pooler");
    expect_skipped_after(&report, "pooler");
    assert!(said(&report, "pooler", "advice").contains("session mode"), "{report}");
    let session = PgBouncer::start(app.cluster.postgres(), PoolMode::Session, login, &password).await;
    expect_ok(&test_url(&owner, &at(session.port)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_database_holds_is_told_for_the_store_it_is_meant_for() {
    let (app, owner) = app().await;
    let database = app.cluster.brought().await;
    let store = connected(&app, &owner, "tea", brought_body(&database)).await;
    // The store's own, and the same as a candidate.
    let own = test_store(&owner, &store, None).await;
    expect_ok(&own);
    assert!(said(&own, "parse", "detail").contains(&database.database), "{own}");
    let empty = test_store(&owner, &store, Some(json!({}))).await;
    for report in [own, empty, test_store(&owner, &store, Some(brought_body(&database))).await] {
        assert!(said(&report, "schema", "detail").contains("holds this store"), "{report}");
    }
    // Another store's, for whoever asks; and one in which the store is not.
    expect_failure(&test(&owner, brought_body(&database)).await, "schema", "belongs-to-another-store");
    let second = owner.create_store("coffee").await.expect_status(201);
    let report = test_store(&owner, &second, Some(brought_body(&database))).await;
    expect_failure(&report, "schema", "belongs-to-another-store");
    let path = path_of(&second, "/database/test");
    owner.api.send(Method::POST, &path, None).await.expect_problem(409, "no-database");
    // Many clients name a type, whether there is a body or not.
    let nothing = owner.api.send_bytes(Method::POST, &path, "application/json", "").await;
    nothing.expect_problem(409, "no-database");
    let fresh = app.cluster.brought().await;
    expect_ok(&test_store(&owner, &second, Some(brought_body(&fresh))).await);
    expect_failure(&test_store(&owner, &store, Some(brought_body(&fresh))).await, "schema", "other-database");

    // Older and newer.
    let mut admin = database.admin().await;
    let latest = tenant_schema::LATEST_VERSION;
    admin.execute(AssertSqlSafe(format!("delete from tenantry._migrations where version = {latest}"))).await.unwrap();
    let report = test_store(&owner, &store, None).await;
    expect_ok(&report);
    assert!(said(&report, "schema", "detail").contains("to be upgraded"), "{report}");
    let newer = "insert into tenantry._migrations (version, description, success, checksum, execution_time)
                 values (29990101000001, 'later', true, '', 0)";
    admin.execute(newer).await.unwrap();
    expect_failure(&test_store(&owner, &store, None).await, "schema", "schema-too-new");

    // Another password is not given by connecting again, and whoever tries is told how.
    let name = &database.database;
    admin.execute(AssertSqlSafe(format!("alter role {name} password 'of-this-year'"))).await.unwrap();
    let report = test_store(&owner, &store, None).await;
    expect_failure(&report, "login", "wrong-password");
    assert!(said(&report, "login", "advice").contains("PUT /api/stores/{id}/database/credentials"), "{report}");
    let refused = owner.connect(&store, brought_body(&database)).await.expect_problem(409, "already-connected");
    let detail = refused["detail"].as_str().unwrap();
    for way in ["PUT /api/stores/{id}/database/credentials", "POST /api/stores/{id}/database/test"] {
        assert!(detail.contains(way), "{detail}");
    }
    admin.close().await.unwrap();

    // Somebody else's.
    let theirs = app.cluster.brought().await;
    let mut conn = PgConnection::connect(&theirs.url()).await.unwrap();
    conn.execute("create schema tenantry; create table tenantry.notes (line text)").await.unwrap();
    conn.close().await.unwrap();
    expect_failure(&test(&owner, brought_body(&theirs)).await, "schema", "schema-in-use");
    let mariadb = TestMariaDb::create().await;
    let mut admin = mariadb.admin().await;
    let names = ["`a ``b`", "c", "d", "e", "orders", "z"];
    for name in names {
        admin.execute(AssertSqlSafe(format!("create table {name} (id int)"))).await.unwrap();
    }
    let report = test(&owner, mariadb.body()).await;
    expect_failure(&report, "schema", "schema-in-use");
    assert!(said(&report, "schema", "detail").ends_with("`a ``b`, `c`, `d`, `e`, `orders`, ...."), "{report}");
    admin.execute(AssertSqlSafe(format!("drop table {}", names.join(", ")))).await.unwrap();
    admin.close().await.unwrap();
    let third = connected(&app, &owner, "pots", mariadb.body()).await;
    expect_ok(&test_store(&owner, &third, None).await);

    // Whoever belongs to the organization without managing it may not.
    let staff = app.owner("sam").await;
    join(&app, &owner, &staff, "staff").await;
    let path = path_of(&store, "/database/test");
    staff.api.send(Method::POST, &path, None).await.expect_problem(403, "forbidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_tests_often_has_to_wait() {
    let arguments = vec!["--database-tests-per-minute".to_owned(), "2".to_owned()];
    let options = TestAppOptions { arguments, without_server: true };
    let app = TestApp::start_with(options).await;
    let owner = app.owner("ada").await;
    let body = json!({ "connectionString": "nonsense" });
    for _ in 0..2 {
        expect_failure(&test(&owner, body.clone()).await, "parse", "malformed");
    }
    let refused = owner.api.post("/api/databases/test", body.clone()).await;
    refused.expect_problem(429, "too-many-requests");
    assert!(refused.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 0), "{refused:?}");
    // Nor may another person from the same address.
    let other = app.owner("eve").await;
    other.api.post("/api/databases/test", body.clone()).await.expect_problem(429, "too-many-requests");

    let arguments = vec!["--database-tests-at-once".to_owned(), "0".to_owned()];
    let busy = TestApp::start_with(TestAppOptions { arguments, without_server: true }).await;
    let owner = busy.owner("ada").await;
    owner.api.post("/api/databases/test", body).await.expect_problem(503, "busy");
}

/// Tests until nothing more is allowed for a minute.
async fn use_up_tests(owner: &Owner) {
    while owner.api.post("/api/databases/test", json!({ "connectionString": "nonsense" })).await.status != 429 {}
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_a_run_taken_up_again_has_to_wait_as_well() {
    let arguments = vec!["--database-tests-per-minute".to_owned(), "1".to_owned()];
    let app = TestApp::start_with(TestAppOptions { arguments, without_server: true }).await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let post = async |rest: &str| owner.api.post(&path_of(&store, &format!("/provisioning{rest}")), json!({})).await;
    post("/retry").await.expect_problem(404, "not-found");
    let database = app.cluster.brought().await;
    let wrong = database.url().replace(&database.password(), "wrong");
    owner.connect(&store, json!({ "connectionString": wrong })).await.expect_status(202);
    assert_eq!(failure(&app.run_ended(&owner, &store).await).1, "wrong-password");

    use_up_tests(&owner).await;
    let refused = post("/retry").await;

    refused.expect_problem(429, "too-many-requests");
    assert!(!refused.header("retry-after").is_empty());
    // Nobody has to wait for the end of what was begun.
    post("/cancel").await.expect_status(202);
    assert_eq!(app.run_ended(&owner, &store).await["state"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_that_failed_is_a_retry_the_next_time() {
    let arguments = vec!["--database-tests-per-minute".to_owned(), "1".to_owned()];
    let app = TestApp::start_with(TestAppOptions { arguments, without_server: true }).await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let post = async |rest: &str| owner.api.post(&path_of(&store, &format!("/provisioning{rest}")), json!({})).await;
    let database = app.cluster.brought().await;
    let mut admin = database.admin().await;
    let refuse =
        "create function refuse() returns event_trigger language plpgsql as $$ begin raise exception 'no'; end $$;
         create event trigger refuse on ddl_command_start when tag in ('CREATE TABLE') execute function refuse()";
    admin.execute(refuse).await.unwrap();
    owner.connect(&store, brought_body(&database)).await.expect_status(202);
    assert_eq!(failure(&app.run_ended(&owner, &store).await).0, "migrate");
    admin.execute(AssertSqlSafe(format!("alter role {} nologin", database.database))).await.unwrap();

    use_up_tests(&owner).await;
    post("/cancel").await.expect_status(202);
    assert_eq!(app.run_ended(&owner, &store).await["state"], "failed");
    use_up_tests(&owner).await;
    post("/cancel").await.expect_problem(429, "too-many-requests");

    // That one calls nobody.
    post("/cancel?abandon=true").await.expect_status(202);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_ends_in_its_time_whatever_is_silent() {
    let arguments = vec!["--database-test-timeout-ms".to_owned(), "1000".to_owned()];
    let app = TestApp::start_with(TestAppOptions { arguments, without_server: true }).await;
    let owner = app.owner("ada").await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let report = test_url(&owner, &format!("postgres://a:b@127.0.0.1:{port}/d")).await;
    expect_failure(&report, "tcp", "timeout");
    let took: u64 = report["checks"].as_array().unwrap().iter().filter_map(|check| check["durationMs"].as_u64()).sum();
    assert!((900..2000).contains(&took), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_says_the_same_and_no_secret_is_left_anywhere() {
    let app = TestApp::start().await;
    let owner = app.owner("ada").await;
    let database = app.cluster.brought().await;
    let store = connected(&app, &owner, "tea", brought_body(&database)).await;
    let master = app.master.url();
    let command = ["doctor", "database", "--json"];
    let with_url = async |url: &str, more: &[&str]| {
        let environment = [("DATABASE_TEST_URL", Some(url))];
        let output = Cli::run_in(&master, &environment, &[&command[..], more].concat()).await;
        let shown = String::from_utf8([output.stdout.clone(), output.stderr].concat()).unwrap();
        assert!(!shown.contains(&database.password()) && !shown.contains("wrong-secret"), "{shown}");
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).ok())
    };
    let (code, report) = with_url(&database.url(), &["--store", "tea"]).await;
    assert_eq!(code, Some(0));
    assert!(said(&checked(report.unwrap()), "schema", "detail").contains("holds this store"));
    let wrong = database.url().replace(&database.password(), "wrong-secret-word");
    let (code, report) = with_url(&wrong, &[]).await;
    assert_eq!(code, Some(3));
    expect_failure(&checked(report.unwrap()), "login", "wrong-password");
    let own = Cli::run(&master, &["doctor", "database", "--store", store["id"].as_str().unwrap()]).await;
    let lines = String::from_utf8(own.stdout).unwrap();
    assert_eq!(own.status.code(), Some(0), "{lines}");
    assert_eq!(lines.lines().filter(|line| line.starts_with("ok  ")).count(), LINES.len(), "{lines}");
    let nothing = Cli::run(&master, &["doctor", "database"]).await;
    assert_eq!(nothing.status.code(), Some(1));
    // The one without a word more is the doctor of the whole.
    assert!(Cli::run(&master, &["doctor", "--json"]).await.status.code().is_some_and(|code| code == 0 || code == 3));

    let node = Process::serve(&master, &[("LOG", "trace,sqlx::query=trace,rustls=trace")]).await;
    let owner = owner.at(node.address);
    for url in [&database.url(), &wrong] {
        let answer = owner.api.post("/api/databases/test", json!({ "connectionString": url })).await;
        answer.expect_status(200);
        assert!(!answer.text().contains("secret"), "{}", answer.text());
    }
    owner.api.get("/api/stores").await.expect_status(200);
    let answered = "POST /api/databases/test answered 200";
    let log = eventually("both requests in the log", || async {
        Some(node.log()).filter(|log| log.matches(answered).count() == 2 && log.contains("GET /api/stores answered"))
    })
    .await;
    assert!(log.contains("\"DEBUG\""), "the log was loud");
    assert_eq!(node.terminate().await, Some(0));
    for secret in [database.password().as_str(), "wrong-secret-word"] {
        assert!(!log.contains(secret), "{:?}", log.lines().find(|line| line.contains(secret)));
    }
}

pub(crate) fn brought_body(database: &TestDatabase) -> Value {
    json!({ "engine": "postgresql", "connectionString": database.url() })
}
