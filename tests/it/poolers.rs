//! Databases that owners bring from behind a real PgBouncer.

use devkit::testing::{PgBouncer, PoolMode};
use http::Method;
use integration_tests::{TestApp, TestAppOptions, eventually};
use serde_json::json;
use sqlx::Connection as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::doctor::{connected, expect_failure, expect_ok, line, said, test_store, test_url};
use crate::faults::{run, terminate};
use crate::provisioning::{failure, path_of};
use crate::scenes::text;

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

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_the_server_refuses_behind_a_pooler_is_told_the_same_everywhere() {
    let app = TestApp::start_with(TestAppOptions { without_server: true, ..TestAppOptions::default() }).await;
    let owner = app.owner("ada").await;
    let database = app.cluster.brought().await;
    let (login, password) = (&database.database, database.password());
    let [used, fresh] = [
        PgBouncer::start_strict(app.cluster.postgres(), login, login, &password).await,
        PgBouncer::start_strict(app.cluster.postgres(), login, login, &password).await,
    ];
    let url = |port: u16, name: &str| format!("postgres://{login}:{password}@127.0.0.1:{port}/{name}");
    let body = json!({ "connectionString": url(used.port, login) });
    let store = connected(&app, &owner, "tea", body.clone()).await;
    let mut admin = database.admin().await;
    run(&mut admin, &format!("alter role {login} nologin")).await;
    terminate(&mut admin, login).await;

    // A pooler that has been at the server goes on letting in; whoever asks first then waits with it.
    let report = test_store(&owner, &store, None).await;
    expect_failure(&report, "server", "pooler-server");
    assert_eq!(
        (&line(&report, "login")["state"], &line(&report, "pooler")["state"]),
        (&json!("passed"), &json!("skipped"))
    );
    let told = line(&report, "server");
    for word in ["role", "password", "rights", "pooler's log"] {
        assert!(said(&report, "server", "advice").contains(word), "{report}");
    }
    let seen = eventually("the store is told to be unavailable", || async {
        let seen = owner.api.get(&path_of(&store, "")).await.expect_status(200);
        (seen["database"]["code"] == "pooler-server").then_some(seen)
    })
    .await;
    let again = owner.api.send(Method::PUT, &path_of(&store, "/database/credentials"), Some(body)).await;
    let again = again.expect_problem(422, "pooler-server");
    assert_eq!(
        (&seen["database"]["detail"], &seen["database"]["advice"]),
        (&told["detail"], &told["advice"]),
        "{seen}"
    );
    assert_eq!((&again["advice"], &again["serverCode"]), (&told["advice"], &told["serverCode"]), "{again}");
    let explained = control_plane::ops::explain_host(&app.cx, text(&store["hostname"])).await.unwrap();
    assert_eq!(explained.database.unwrap().cause.as_deref(), Some("pooler-server"));

    // One that has not been there lets nobody in, in the server's words.
    let report = test_url(&owner, &url(fresh.port, login)).await;
    expect_failure(&report, "login", "pooler-server");
    assert_eq!(line(&report, "login")["advice"], told["advice"], "{report}");
    run(&mut admin, &format!("alter role {login} login")).await;
    admin.close().await.unwrap();
    let lost = PgBouncer::start_strict(app.cluster.postgres(), "nothing_here", login, &password).await;
    let report = test_url(&owner, &url(lost.port, "nothing_here")).await;
    expect_failure(&report, "login", "missing-database");
    assert!(said(&report, "login", "detail").contains("behind the pooler"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pooler_refuses_after_it_has_let_in_is_told_apart() {
    let app = TestApp::start_with(TestAppOptions { without_server: true, ..TestAppOptions::default() }).await;
    let owner = app.owner("ada").await;
    for (slug, message, code) in [
        ("failing", "server login has been failing, try again later (server_login_retry)", "pooler-server"),
        ("missing", "server login has been failing, cached error: database \"d\" does not exist", "missing-database"),
        ("full", "query_wait_timeout", "too-many-connections"),
    ] {
        let url = format!("postgres://a:b@127.0.0.1:{}/d", lets_in_and_refuses(message).await);
        let report = test_url(&owner, &url).await;
        expect_failure(&report, "server", code);
        assert!(said(&report, "server", "detail").contains("pooler"), "{report}");
        assert_eq!(said(&report, "server", "serverCode"), "08P01", "{report}");
        assert_eq!(line(&report, "pooler")["state"], "skipped", "{report}");
        let store = owner.create_store(slug).await.expect_status(201);
        owner.connect(&store, json!({ "connectionString": url })).await.expect_status(202);
        let ended = app.run_ended(&owner, &store).await;
        assert_eq!((failure(&ended).1, failure(&ended).2), (code, said(&report, "server", "advice")), "{ended}");
    }
}

/// A pooler that lets everybody in, and refuses whatever is asked then; returns its port.
async fn lets_in_and_refuses(message: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            // Who has gone has heard enough.
            tokio::spawn(async move { drop(refuse_questions(client, message).await) });
        }
    });
    port
}

async fn refuse_questions(mut client: TcpStream, message: &str) -> std::io::Result<()> {
    const ASKS_FOR_TLS: [u8; 4] = [0x04, 0xd2, 0x16, 0x2f];
    while read_message(&mut client).await? == ASKS_FOR_TLS {
        client.write_all(b"N").await?;
    }
    // Let in, and ready.
    client.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await?;
    client.read_u8().await?;
    read_message(&mut client).await?;
    let error = format!("SFATAL\0VFATAL\0C08P01\0M{message}\0\0");
    let len = u32::try_from(error.len() + 4).expect("short");
    client.write_all(&[&b"E"[..], &len.to_be_bytes(), error.as_bytes()].concat()).await?;
    client.shutdown().await?;
    tokio::io::copy(&mut client, &mut tokio::io::sink()).await.map(drop)
}

/// What follows a message's length.
async fn read_message(client: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let len = client.read_u32().await?.saturating_sub(4);
    let mut body = vec![0; usize::try_from(len).expect("it fits")];
    client.read_exact(&mut body).await?;
    Ok(body)
}
