//! Registering, signing in, staying signed in, and every way to lose that.

#![expect(clippy::disallowed_methods, reason = "every task is waited for by its test")]

use chrono::Duration;
use http::Method;
use integration_tests::{Client, Owner, Response, TestApp, TestAppOptions};
use kernel::StoreId;
use serde_json::{Value, json};

use crate::scenes::{count, join, store_path, text};

fn with_options(arguments: &[&str]) -> TestAppOptions {
    let arguments = arguments.iter().map(|&text| text.to_owned()).collect();
    TestAppOptions { arguments, without_server: true }
}

async fn start() -> TestApp {
    TestApp::start_with(with_options(&[])).await
}

fn registration(email: &str) -> Value {
    json!({ "email": email, "password": "correct horse", "firstName": "Ada", "lastName": "Lovelace" })
}

async fn refresh(app: &TestApp, token: &Value) -> Response {
    app.api().post("/api/auth/refresh", json!({ "refreshToken": token })).await
}

fn bearer(app: &TestApp, tokens: &Value) -> Client {
    app.api().with_token(text(&tokens["accessToken"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bodies_of_the_old_contract_work() {
    let app = start().await;
    let body = json!({ "email": "ada@example.com", "password": "correct horse", "firstName": "Ada", "lastName": "Lovelace", "storeName": "Ada's Tea" });
    let made = app.api().post("/api/auth/register", body).await.expect_status(201);
    assert_eq!(made["user"]["email"], "ada@example.com");
    assert_eq!(made["user"]["firstName"], "Ada");
    assert_eq!(made["organization"]["role"], "owner");
    assert_eq!(made["store"]["slug"], "adas-tea");
    assert_eq!(made["store"]["hostname"], "adas-tea.stores.localhost");
    assert_eq!(made["tokens"]["expiresIn"], 900);
    let body = json!({ "email": "ada@example.com", "password": "correct horse" });
    let login = app.api().post("/api/auth/login", body).await.expect_status(200);
    assert_eq!(login["user"], made["user"]);
    assert_eq!(login["organizations"], json!([made["organization"]]));
    let me = bearer(&app, &login["tokens"]).get("/api/auth/me").await.expect_status(200);
    assert_eq!(me, json!({ "user": made["user"], "organizations": [made["organization"]] }));
    for answer in [&made, &login, &me] {
        let shown = answer.to_string();
        assert!(
            !shown.contains("correct horse") && !shown.contains("argon2") && !shown.contains("passwordHash"),
            "{shown}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn registering_without_a_store_makes_none() {
    let app = start().await;
    let made = app.api().post("/api/auth/register", registration("ada@example.com")).await.expect_status(201);
    assert_eq!(made.get("store"), None);
    assert_eq!(made["organization"]["name"], "Ada Lovelace");
    assert_eq!(count(&app, "select count(*) from stores").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn registering_is_all_or_nothing() {
    let app = start().await;
    let first = app.owner("first").await;
    let store = first.create_store("first").await.expect_status(201);
    let id: StoreId = text(&store["id"]).parse().unwrap();
    // The hostname that the new store would get is in use, so the last thing that registering does fails.
    sqlx::query("insert into hostnames (id, store_id, hostname, kind, is_primary, created_at) values (gen_random_uuid(), $1, 'adas-tea.stores.localhost', 'custom', false, now())")
        .bind(id.as_uuid())
        .execute(&mut app.master().await)
        .await
        .unwrap();
    let mut body = registration("ada@example.com");
    body["storeName"] = json!("Ada's Tea");
    app.api().post("/api/auth/register", body).await.expect_problem(409, "slug-taken");
    assert_eq!(count(&app, "select count(*) from users").await, 1);
    assert_eq!(count(&app, "select count(*) from organizations").await, 1);
    assert_eq!(count(&app, "select count(*) from stores").await, 1);
    assert_eq!(count(&app, "select count(*) from sessions").await, 1);
    // The address is free for another try.
    app.api().post("/api/auth/register", registration("ada@example.com")).await.expect_status(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_registrations_name_the_field_and_leave_nothing() {
    let app = start().await;
    let cases = [
        ("email", json!("ada"), "/email"),
        ("email", json!("ada@example.com\r\nBcc: eve@example.com"), "/email"),
        ("email", json!("ada@127.0.0.1"), "/email"),
        ("email", json!(format!("{}@example.com", "a".repeat(65))), "/email"),
        ("email", json!(7), "/email"),
        ("password", json!("short"), "/password"),
        ("password", json!("x".repeat(257)), "/password"),
        ("password", json!("password"), "/password"),
        ("password", json!("PassWord"), "/password"),
        ("password", json!("ada@example.com"), "/password"),
        ("firstName", json!(""), "/firstName"),
        ("firstName", json!("A".repeat(101)), "/firstName"),
        ("lastName", json!("a\u{0}b"), "/lastName"),
        ("lastName", json!("a\u{202E}b"), "/lastName"),
        ("storeName", json!("x".repeat(101)), "/storeName"),
        ("storeName", json!("a\nb"), "/storeName"),
        ("role", json!("admin"), "/role"),
        ("platformRole", json!("admin"), "/platformRole"),
    ];
    for (field, value, pointer) in cases {
        let mut body = registration("ada@example.com");
        body[field] = value;
        let problem = app.api().post("/api/auth/register", body).await.expect_field(422, "invalid-input", pointer);
        assert!(!problem.to_string().contains("correct horse"), "a refusal repeats the password: {problem}");
    }
    let missing = json!({ "email": "ada@example.com", "password": "correct horse" });
    let missing = app.api().post("/api/auth/register", missing).await;
    missing.expect_field(422, "invalid-input", "/firstName");
    // What is wrong is said at once.
    let wrong = json!({ "email": "ada", "password": "short", "firstName": "", "lastName": "", "storeName": "a\nb" });
    let wrong = app.api().post("/api/auth/register", wrong).await;
    for pointer in ["/email", "/password", "/firstName", "/lastName", "/storeName"] {
        wrong.expect_field(422, "invalid-input", pointer);
    }
    assert_eq!(count(&app, "select count(*) from users").await, 0);
    // Long, common words with spaces, and other scripts are welcome: there are no composition rules.
    let mut body = registration("ada@example.com");
    body["password"] = json!("пароль из слов, 256 знаков можно");
    app.api().post("/api/auth/register", body).await.expect_status(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_taken_in_any_letter_case() {
    let app = start().await;
    app.api().post("/api/auth/register", registration("Ada@Example.com")).await.expect_status(201);
    for email in ["ada@example.com", "ADA@EXAMPLE.COM", " ada@example.com ", "ada@example.com."] {
        app.api().post("/api/auth/register", registration(email)).await.expect_field(409, "email-taken", "/email");
    }
    for email in ["ada@example.com", "ADA@example.COM"] {
        let body = json!({ "email": email, "password": "correct horse" });
        app.api().post("/api/auth/login", body).await.expect_status(200);
    }
    assert_eq!(count(&app, "select count(*) from organizations").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_registrations_of_one_address_at_once_one_wins() {
    let app = start().await;
    let tries: Vec<_> = (0..6)
        .map(|_| {
            let api = app.api();
            tokio::task::spawn(async move { api.post("/api/auth/register", registration("ada@example.com")).await })
        })
        .collect();
    let mut made = 0;
    for answer in tries {
        let answer = answer.await.unwrap();
        match answer.status.as_u16() {
            201 => made += 1,
            _ => drop(answer.expect_problem(409, "email-taken")),
        }
    }
    assert_eq!(made, 1);
    assert_eq!(count(&app, "select count(*) from organizations").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_address_and_a_wrong_password_look_the_same() {
    let app = start().await;
    app.owner("ada").await;
    let mut answers = Vec::new();
    for body in [
        json!({ "email": "ada@example.com", "password": "not the password" }),
        json!({ "email": "nobody@example.com", "password": "not the password" }),
        json!({ "email": "no address", "password": "not the password" }),
        json!({ "email": "ada@example.com", "password": "" }),
    ] {
        let answer = app.api().post("/api/auth/login", body).await;
        let mut problem = answer.expect_problem(401, "invalid-credentials");
        problem["requestId"] = Value::Null;
        let headers: Vec<String> = answer.headers.keys().map(ToString::to_string).collect();
        answers.push((problem, headers));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(count(&app, "select count(*) from sessions").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_is_good_for_one_use_and_keeps_the_role() {
    let app = start().await;
    let admin = app.admin().await;
    let first = &admin.registered["tokens"];
    let second = refresh(&app, &first["refreshToken"]).await.expect_status(200)["tokens"].clone();
    let third = refresh(&app, &second["refreshToken"]).await.expect_status(200)["tokens"].clone();
    let secrets = [&first["refreshToken"], &second["refreshToken"], &third["refreshToken"]];
    assert!(secrets[0] != secrets[1] && secrets[1] != secrets[2] && secrets[0] != secrets[2]);
    let api = bearer(&app, &third);
    let me = api.get("/api/auth/me").await.expect_status(200);
    assert_eq!(me["organizations"][0]["role"], "owner");
    assert_eq!(me["user"]["platformRole"], "admin");
    api.get("/api/ops/servers").await.expect_status(200);
    // What master keeps is no token.
    let kept = count(&app, "select count(*) from refresh_tokens where octet_length(token_hash) = 32").await;
    assert_eq!(kept, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn using_an_old_refresh_token_ends_the_whole_family() {
    let app = start().await;
    let owner = app.owner("ada").await;
    let elsewhere = owner.login(json!({})).await.expect_status(200);
    let first = owner.registered["tokens"].clone();
    let second = refresh(&app, &first["refreshToken"]).await.expect_status(200)["tokens"].clone();
    bearer(&app, &second).get("/api/auth/me").await.expect_status(200);
    refresh(&app, &first["refreshToken"]).await.expect_problem(401, "refresh-token-reused");
    refresh(&app, &second["refreshToken"]).await.expect_problem(401, "invalid-refresh-token");
    for tokens in [&first, &second] {
        bearer(&app, tokens).get("/api/auth/me").await.expect_problem(401, "unauthenticated");
    }
    // Another device of the same person stays signed in.
    bearer(&app, &elsewhere["tokens"]).get("/api/auth/me").await.expect_status(200);
    refresh(&app, &elsewhere["tokens"]["refreshToken"]).await.expect_status(200);
    assert_eq!(count(&app, "select count(*) from audit_events where action = 'session_revoke_reuse'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_refreshes_at_once_exactly_one_wins() {
    let app = start().await;
    let owner = app.owner("ada").await;
    for _ in 0..5 {
        let login = owner.login(json!({})).await.expect_status(200);
        let token = &login["tokens"]["refreshToken"];
        let (one, two) = tokio::join!(refresh(&app, token), refresh(&app, token));
        let mut statuses = [one.status.as_u16(), two.status.as_u16()];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 401], "{} {}", one.text(), two.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logging_out_revokes_the_refresh_token_too() {
    let app = start().await;
    let owner = app.owner("ada").await;
    let answer = owner.api.send(Method::POST, "/api/auth/logout", None).await;
    answer.expect_status(204);
    assert!(answer.bytes.is_empty());
    refresh(&app, &owner.registered["tokens"]["refreshToken"]).await.expect_problem(401, "invalid-refresh-token");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_expire_with_the_clock() {
    let app = TestApp::start_with(with_options(&["--access-token-ttl-s", "60", "--refresh-token-ttl-s", "3600"])).await;
    let owner = app.owner("ada").await;
    assert_eq!(owner.registered["tokens"]["expiresIn"], 60);
    owner.api.get("/api/auth/me").await.expect_status(200);
    app.clock.advance(Duration::seconds(61));
    owner.api.get("/api/auth/me").await.expect_problem(401, "unauthenticated");
    let next = refresh(&app, &owner.registered["tokens"]["refreshToken"]).await.expect_status(200)["tokens"].clone();
    bearer(&app, &next).get("/api/auth/me").await.expect_status(200);
    // Each use lengthens the session by one lifetime: an hour after the login it still lives.
    app.clock.advance(Duration::seconds(3560));
    let last = refresh(&app, &next["refreshToken"]).await.expect_status(200)["tokens"].clone();
    app.clock.advance(Duration::seconds(3601));
    refresh(&app, &last["refreshToken"]).await.expect_problem(401, "invalid-refresh-token");
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_no_refresh_token() {
    let app = start().await;
    let owner = app.owner("ada").await;
    for token in ["", "x", "\u{0}", "' or 1=1 --", text(&owner.registered["tokens"]["accessToken"])] {
        refresh(&app, &json!(token)).await.expect_problem(401, "invalid-refresh-token");
    }
    refresh(&app, &json!(null)).await.expect_field(422, "invalid-input", "/refreshToken");
    owner.api.get("/api/auth/me").await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_may_knock_so_often_and_no_more() {
    let app = TestApp::start_with(with_options(&["--auth-requests-per-minute", "4"])).await;
    let body = json!({ "email": "nobody@example.com", "password": "not the password" });
    for _ in 0..4 {
        app.api().post("/api/auth/login", body.clone()).await.expect_problem(401, "invalid-credentials");
    }
    // A stranger's word on where it comes from changes nothing.
    let forged = app.api().with("x-forwarded-for", "203.0.113.7");
    for (path, body) in [
        ("/api/auth/login", body),
        ("/api/auth/register", registration("ada@example.com")),
        ("/api/auth/refresh", json!({ "refreshToken": "x" })),
    ] {
        let answer = forged.post(path, body).await;
        answer.expect_problem(429, "too-many-requests");
        let seconds: u64 = answer.header("retry-after").parse().unwrap();
        assert!((1..=60).contains(&seconds), "{seconds}");
    }
    assert_eq!(count(&app, "select count(*) from users").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_trusted_proxy_each_client_is_counted_apart() {
    let arguments = ["--auth-requests-per-minute", "2", "--trusted-proxies", "127.0.0.1"];
    let app = TestApp::start_with(with_options(&arguments)).await;
    let ask = |from: &str| {
        let client = app.api().with("x-forwarded-for", from);
        async move { client.post("/api/auth/refresh", json!({ "refreshToken": "x" })).await.status.as_u16() }
    };
    // Only the last hop is the proxy's word; what is before it came from the client.
    assert_eq!([ask("203.0.113.7").await, ask("198.51.100.1, 203.0.113.7").await], [401, 401]);
    assert_eq!(ask("198.51.100.2, 203.0.113.7").await, 429);
    assert_eq!(ask("203.0.113.8").await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_account_is_tried_only_so_often_in_any_spelling_and_its_owner_is_not_locked_out() {
    let app = TestApp::start_with(with_options(&["--trusted-proxies", "127.0.0.1"])).await;
    let owner = app.owner("ada").await;
    let spellings = ["ada@example.com", "ADA@example.com", "ada@example.com.", "ada@ｅxample.com", "ada@example。com"];
    let stranger = app.api().with("x-forwarded-for", "203.0.113.7");
    let mut last = 0;
    for at in 0..11 {
        let body = json!({ "email": spellings[at % spellings.len()], "password": format!("guess {at}") });
        last = stranger.post("/api/auth/login", body).await.status.as_u16();
    }
    assert_eq!(last, 429);
    let right = json!({ "email": owner.email, "password": owner.password });
    app.api().with("x-forwarded-for", "203.0.113.8").post("/api/auth/login", right).await.expect_status(200);
}

/// Somebody who says where they come from, to a node that believes it.
fn from(app: &TestApp, address: &str) -> Client {
    app.api().with("x-forwarded-for", address)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_household_with_many_ipv6_networks_locks_nobody_out() {
    let app = TestApp::start_with(with_options(&["--trusted-proxies", "127.0.0.1"])).await;
    let owner = app.owner("ada").await;
    let wrong = json!({ "email": owner.email, "password": "not the password" });
    let mut checked = 0;
    for network in 0..16 {
        for _ in 0..8 {
            let stranger = from(&app, &format!("2001:db8:1:{network:x}::1"));
            checked += u32::from(stranger.post("/api/auth/login", wrong.clone()).await.status == 401);
        }
    }
    assert!((20..60).contains(&checked), "{checked} passwords were checked");
    let right = json!({ "email": owner.email, "password": owner.password });
    from(&app, "203.0.113.8").post("/api/auth/login", right).await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_from_everywhere_are_limited_and_the_owner_at_home_is_let_in() {
    let app = TestApp::start_with(with_options(&["--trusted-proxies", "127.0.0.1"])).await;
    let owner = app.owner("ada").await;
    let right = json!({ "email": owner.email, "password": owner.password });
    from(&app, "2001:db8:aaaa:1::7").post("/api/auth/login", right.clone()).await.expect_status(200);
    let wrong = json!({ "email": owner.email, "password": "not the password" });
    let guesses: Vec<_> = (0..150)
        .map(|number| {
            let (stranger, wrong) = (from(&app, &format!("203.0.113.{number}")), wrong.clone());
            tokio::task::spawn(async move { stranger.post("/api/auth/login", wrong).await.status.as_u16() })
        })
        .collect();
    let mut refused = 0;
    for guess in guesses {
        refused += u32::from(guess.await.unwrap() == 429);
    }
    // A slow machine gives some tries back meanwhile.
    assert!((10..=50).contains(&refused), "{refused} of 150 guesses were refused");
    // At home is every address of the network, whatever has happened; even a typing error is forgiven.
    from(&app, "2001:db8:aaaa:1::8").post("/api/auth/login", wrong).await.expect_problem(401, "invalid-credentials");
    from(&app, "2001:db8:aaaa:1::8").post("/api/auth/login", right.clone()).await.expect_status(200);
    // Where somebody registered, they are at home, too.
    app.api().post("/api/auth/login", right).await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_can_be_made_for_one_store_that_one_is_let_into() {
    let app = TestApp::start().await;
    let (ada, eve) = (app.owner("ada").await, app.owner("eve").await);
    let tea = app.active_store(&ada, "tea-shop").await;
    let other = eve.create_store("eves").await.expect_status(201);
    let login = ada.login(json!({ "storeId": tea["id"] })).await.expect_status(200);
    let shop = bearer(&app, &login["tokens"]).get("/store/v1/store").await.expect_status(200);
    assert_eq!(shop["name"], "tea-shop");
    // The store survives a refresh.
    let next = refresh(&app, &login["tokens"]["refreshToken"]).await.expect_status(200);
    bearer(&app, &next["tokens"]).get("/store/v1/store").await.expect_status(200);
    ada.login(json!({ "storeId": other["id"] })).await.expect_problem(404, "not-found");
    ada.login(json!({ "storeId": "sto_01JD8Q6X5MFKV9T3R0WZ2H4C7N" })).await.expect_problem(404, "not-found");
    ada.login(json!({ "storeId": "usr_01JD8Q6X5MFKV9T3R0WZ2H4C7N" })).await.expect_field(
        422,
        "invalid-input",
        "/storeId",
    );
    // With a wrong password nothing is said about the store.
    let body = json!({ "email": ada.email, "password": "not the password", "storeId": other["id"] });
    app.api().post("/api/auth/login", body).await.expect_problem(401, "invalid-credentials");
}

#[tokio::test(flavor = "multi_thread")]
async fn me_lists_every_organization_with_its_role() {
    let app = start().await;
    let (ada, bob) = (app.owner("ada").await, app.owner("bob").await);
    join(&app, &ada, &bob, "staff").await;
    let me = bob.api.get("/api/auth/me").await.expect_status(200);
    let mut roles: Vec<(&str, &str)> = me["organizations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|organization| (text(&organization["id"]), text(&organization["role"])))
        .collect();
    let mut wanted = vec![(ada.organization_id(), "staff"), (bob.organization_id(), "owner")];
    roles.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(roles, wanted);
    let login = bob.login(json!({})).await.expect_status(200);
    assert_eq!(login["organizations"], me["organizations"]);
    // A store of the one organization can be read by its staff.
    let store = ada.create_store("adas").await.expect_status(201);
    let by_bob: &Owner = &bob;
    by_bob.api.get(&store_path(&store, "")).await.expect_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_one_store_is_told_of_nothing_beyond_it() {
    let app = start().await;
    let (ada, root) = (app.owner("ada").await, app.admin().await);
    join(&app, &ada, &root, "staff").await;
    let store = ada.create_store("adas").await.expect_status(201);
    let everything = root.login(json!({})).await.expect_status(200);
    let me = bearer(&app, &everything["tokens"]).get("/api/auth/me").await.expect_status(200);
    assert_eq!((&me["user"], me["organizations"].as_array().map(Vec::len)), (&everything["user"], Some(2)));
    assert_eq!((&me["user"]["email"], &me["user"]["platformRole"]), (&json!(root.email), &json!("admin")));

    let limited = root.login(json!({ "storeId": store["id"] })).await.expect_status(200);
    let me = bearer(&app, &limited["tokens"]).get("/api/auth/me").await.expect_status(200);
    let organization = &ada.registered["organization"];
    let user = &root.registered["user"];
    assert_eq!(
        me,
        json!({
            "user": { "id": user["id"], "firstName": user["firstName"], "lastName": user["lastName"] },
            "organizations": [{ "id": organization["id"], "name": organization["name"], "role": "staff" }],
        })
    );
    // Who is a member no longer is told of no organization at all.
    sqlx::query("delete from organization_members where role = 'staff'")
        .execute(&mut app.master().await)
        .await
        .unwrap();
    let me = bearer(&app, &limited["tokens"]).get("/api/auth/me").await.expect_status(200);
    assert_eq!(me["organizations"], json!([]));
}
