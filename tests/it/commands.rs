//! What commands say to whoever typed them: refusals in the words of the command line, and for programs as JSON.

use std::process::Output;

use chrono::TimeDelta;
use integration_tests::{Cli, TestApp, TestAppOptions, cluster};
use kernel::{Clock as _, StoreId};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::doctor::first_failure;
use crate::scenes::{count, text};

/// The last line on stderr, which is the refusal: those before it are the log.
fn refusal(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned()
}

fn json_refusal(output: &Output) -> Value {
    serde_json::from_str(&refusal(output)).unwrap_or_else(|error| panic!("no JSON ({error}): {}", refusal(output)))
}

async fn small_app() -> TestApp {
    TestApp::start_with(TestAppOptions { without_server: true, ..TestAppOptions::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_the_option_and_not_the_field_of_the_routes_body() {
    let master = cluster().await.master().await;
    let url = master.url();
    let add = ["servers", "add", "eu-1", "--url", "postgres://a:b@127.0.0.1:1/d", "--max-stores", "0"];
    let refused = Cli::run(&url, &add).await;
    assert_eq!(
        (refused.status.code(), refusal(&refused).as_str()),
        (Some(1), "error: --max-stores: must be at least 1")
    );
    let refused = json_refusal(&Cli::run(&url, &[&add[..], &["--json"]].concat()).await);
    let field = json!({ "option": "--max-stores", "code": "invalid", "detail": "must be at least 1" });
    assert_eq!(
        refused,
        json!({ "error": "--max-stores: must be at least 1", "code": "invalid-input", "errors": [field] })
    );

    let nameless = Cli::run(&url, &["servers", "add", " ", "--url", "postgres://a:b@127.0.0.1:1/d"]).await;
    assert!(refusal(&nameless).starts_with("error: <NAME>: "), "{}", refusal(&nameless));
    let page = Cli::run(&url, &["payments", "differences", "--limit", "0"]).await;
    assert_eq!(refusal(&page), "error: --limit: must be 1 to 100");
    let price = ["credits", "price", "store-day", "--amount", "1", "--valid-from", "2020-01-01", "--json"];
    assert_eq!(json_refusal(&Cli::run(&url, &price).await)["errors"][0]["option"], "--valid-from");
    // Where no field is to blame, the code says what it is.
    let nobody = Cli::run(&url, &["stores", "show", "nobodys", "--json"]).await;
    assert_eq!(json_refusal(&nobody)["code"], "not-found");
    assert!(json_refusal(&nobody).get("errors").is_none());
    let unready = Cli::run("postgres://somebody:sesame@127.0.0.1:1/master", &["stores", "list", "--json"]).await;
    assert_eq!((unready.status.code(), &json_refusal(&unready)["code"]), (Some(1), &json!("failed")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_understood_is_json_for_who_asks_for_json() {
    let twice = ["doctor", "database", "--json", "--url", "postgres://u:hush-hush@h/d", "--url-stdin"];
    let cases: [(&[&str], &str); 7] = [
        (&twice, "'--url <URL>' cannot be used with '--url-stdin'"),
        (&["--json", "credits", "grant", "--amount", "5"], "--reason <REASON>"),
        (&["credits", "grant", "--org", "nobody", "--json"], "--org <ORG>"),
        (&["servers", "--json", "ad"], "unrecognized subcommand 'ad'"),
        (&["payments", "differences", "--state", "closed", "--json"], "[possible values: open, noted]"),
        (&["stores", "list", "--limit", "many", "--json"], "--limit <LIMIT>"),
        (&["stores", "list", "--json", "--colour"], "--colour"),
    ];
    for (arguments, says) in cases {
        let output = Cli::run("unused", arguments).await;
        let whole = String::from_utf8_lossy(&output.stderr).into_owned();
        let said: Value =
            serde_json::from_str(&whole).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {whole}"));
        assert_eq!((output.status.code(), &said["code"]), (Some(2), &json!("not-understood")), "{arguments:?}");
        let error = text(&said["error"]);
        assert!(error.contains(says) && !error.contains('\n') && !error.starts_with("error"), "{arguments:?}: {error}");
        assert!(output.stdout.is_empty() && !error.contains("hush-hush"));
    }
    // What is piped in counts more than what is in the environment anyway: here it is nothing.
    let variable = [("DATABASE_TEST_URL", Some("postgres://u:hush-hush@h/d"))];
    let nowhere = "postgres://somebody:sesame@127.0.0.1:1/master";
    let piped = Cli::run_in(nowhere, &variable, &["doctor", "database", "--url-stdin", "--json"]).await;
    let report: Value = serde_json::from_slice(&piped.stdout).unwrap();
    assert_eq!((piped.status.code(), first_failure(&report).0), (Some(3), "parse"), "{report}");
    // What a body calls caPem is a file here.
    let with_file = [("DATABASE_TEST_URL", Some("postgres://a:b@h.example/d?sslrootcert=/etc/ca.pem"))];
    let piece = Cli::run_in(nowhere, &with_file, &["doctor", "database"]).await;
    let said = String::from_utf8_lossy(&piece.stdout).into_owned();
    assert!(said.contains("with --ca-file") && !said.contains("caPem"), "{said}");
    let plain = Cli::run("unused", &["servers", "ad"]).await;
    assert_eq!(plain.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&plain.stderr).starts_with("error: unrecognized subcommand 'ad'"));
    let unset = Cli::run_in("unused", &[("PGSSLCERT", Some("/c"))], &["stores", "list", "--json"]).await;
    assert_eq!((unset.status.code(), &json_refusal(&unset)["code"]), (Some(2), &json!("not-understood")));
    // What is set to nothing is not set.
    let blank = [("NODE_DATA", Some("")), ("TRUSTED_PROXIES", Some("")), ("STRIPE_SECRET_KEY", Some(""))];
    let blank = Cli::run_in(nowhere, &blank, &["serve", "--json"]).await;
    let error = text(&json_refusal(&blank)["error"]).to_owned();
    assert!(blank.status.code() == Some(1) && error.contains("master database cannot be reached"), "{error}");
    // Help is no error.
    let help = Cli::run("unused", &["payments", "note", "--help", "--json"]).await;
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&help.stdout).contains("--note <NOTE>"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_is_sent_again_by_an_impatient_person_is_made_once() {
    let app = small_app().await;
    let (ops, owner) = (app.admin().await, app.owner("ada").await);
    let store = owner.create_store("tea").await.expect_status(201);
    let available = async || {
        let balance = owner.api.get("/api/credits/balance").await.expect_status(200);
        balance["available"].as_i64().unwrap()
    };
    let body = |reason: &str| json!({ "organizationId": owner.organization_id(), "amount": 100, "reason": reason });
    let grant = async |body: Value| ops.api.post("/api/ops/credits/grants", body).await;
    let first = grant(body("a gift")).await.expect_status(201);
    let refused = grant(body("a gift")).await.expect_problem(409, "granted-before");
    assert_eq!(refused["transactionId"], first["id"]);
    assert_eq!(available().await, 100);
    // Something else is something else: another reason, another amount, a store that it is for, a key.
    grant(body("another gift")).await.expect_status(201);
    grant(json!({ "organizationId": owner.organization_id(), "amount": 101, "reason": "a gift" }))
        .await
        .expect_status(201);
    grant(json!({ "storeId": store["id"], "amount": 100, "reason": "a gift" })).await.expect_status(201);
    let keyed = ops.api.with("idempotency-key", "meant").post("/api/ops/credits/grants", body("a gift")).await;
    assert_ne!(keyed.expect_status(201)["id"], first["id"]);
    assert_eq!(available().await, 501);
    app.clock.advance(TimeDelta::minutes(11));
    grant(body("a gift")).await.expect_status(201);
    assert_eq!(available().await, 601);

    // Of many that are sent at once, one is made.
    let mut asking = JoinSet::new();
    for _ in 0..8 {
        let (client, body) = (ops.api.clone(), body("at once"));
        asking.spawn(async move { client.post("/api/ops/credits/grants", body).await.status.as_u16() });
    }
    let mut statuses = asking.join_all().await;
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409, 409, 409, 409, 409]);
    assert_eq!(available().await, 701);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_by_command_names_its_transaction_and_is_repeated_by_its_key() {
    let app = small_app().await;
    let owner = app.owner("ada").await;
    let url = app.master.url();
    let grant = ["credits", "grant", "--org", owner.organization_id(), "--amount", "50", "--reason", "a warm welcome"];
    let made = Cli::run(&url, &grant).await;
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    let list = owner.api.get("/api/credits/transactions").await.expect_status(200);
    let transaction = text(&list["data"][0]["id"]).to_owned();
    assert!(made.status.success() && said.contains(&transaction), "{said}");
    let refused = Cli::run(&url, &grant).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        refusal(&refused).contains(&transaction) && refusal(&refused).contains("by a key"),
        "{}",
        refusal(&refused)
    );
    let with_key = [&grant[..], &["--key", "welcome-ada"]].concat();
    let meant = Cli::json(&url, &with_key).await;
    assert_eq!(meant["balanceAfter"]["available"], 100, "{meant}");
    let again = Cli::run(&url, &with_key).await;
    let said = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(again.status.success() && said.contains("under this key") && said.contains(text(&meant["id"])), "{said}");
    assert_eq!(count(&app, "select count(*) from credit_transactions where kind = 'grant'").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_store_owes_is_waived_by_command() {
    let app = small_app().await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let id: StoreId = text(&store["id"]).parse().unwrap();
    for (day, service, amount) in
        [("2026-01-01", "store-day", 10_i64), ("2026-01-01", "metric:orders", 3), ("2026-01-02", "store-day", 10)]
    {
        sqlx::query(
            "insert into store_charges (store_id, organization_id, day, service, quantity, amount, state, reason, unpaid_since,
                 next_attempt_at, created_at, updated_at)
             select id, organization_id, $2::date, $3, 1, $4, 'unpaid', 'insufficient-credits', $5, $5, $5, $5
             from stores where id = $1",
        )
        .bind(id.as_uuid())
        .bind(day)
        .bind(service)
        .bind(amount)
        .bind(app.clock.now())
        .execute(&mut app.master().await)
        .await
        .unwrap();
    }
    let url = app.master.url();
    let waive = ["credits", "waive", "--store", "tea", "--reason", "our outage"];
    let one = Cli::json(&url, &[&waive[..], &["--day", "2026-01-01", "--service", "store-day"]].concat()).await;
    assert_eq!(
        (&one["owed"], &one["waived"][0]["amount"], one["waived"].as_array().map(Vec::len)),
        (&json!(13), &json!(10), Some(1))
    );
    let rest = Cli::run(&url, &waive).await;
    let said = String::from_utf8_lossy(&rest.stdout).into_owned();
    let lines: Vec<&str> = said.lines().collect();
    let nothing = format!("{id} owes 0 credits");
    assert_eq!(
        lines,
        ["waived 3 credits of 2026-01-01 for metric:orders", "waived 10 credits of 2026-01-02 for store-day", &nothing]
    );
    let unknown = Cli::run(&url, &[&waive[..], &["--service", "Store Day"]].concat()).await;
    assert!(refusal(&unknown).starts_with("error: --service: must be store-day"), "{}", refusal(&unknown));
    let by_command = "select count(*) from audit_events where action = 'charges_waive' and actor_kind = 'cli'";
    assert_eq!(count(&app, by_command).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_price_of_what_nobody_counts_is_refused_with_what_is_counted() {
    let app = small_app().await;
    let ops = app.admin().await;
    let set = async |service: &str| {
        ops.api.post("/api/ops/credits/charge-prices", json!({ "service": service, "amount": 1 })).await
    };
    for typo in ["metric:order", "metric:Orders", "metric:", "orders", "store-days"] {
        let refused = set(typo).await.expect_field(422, "invalid-input", "/service");
        assert_eq!(refused["errors"][0]["detail"], "must be one of store-day, metric:requests, metric:orders");
    }
    for service in ["store-day", "metric:requests", "metric:orders"] {
        set(service).await.expect_status(201);
    }
    assert_eq!(count(&app, "select count(distinct service) from charge_prices where amount = 1").await, 3);
    let typo = Cli::run(&app.master.url(), &["credits", "price", "metric:visits", "--amount", "1"]).await;
    assert!(refusal(&typo).starts_with("error: <SERVICE>: must be one of store-day"), "{}", refusal(&typo));
}
