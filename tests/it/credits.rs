//! Credits: bought once, spent once, and every change of the ledger is found.

use std::collections::BTreeMap;

use chrono::{DateTime, Days, Duration, Utc};
use control_plane::audit::Actor;
use control_plane::credits::{self, GrantTo, LotKind, NewGrant};
use integration_tests::{Cli, Client, Owner, Response, TestApp, TestAppOptions};
use kernel::Clock as _;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor as _};
use tokio::task::JoinSet;

use crate::described;
use crate::provisioning::store_id;
use crate::scenes::{join, text};

/// Gives promotional credits to the organization of a store.
pub(crate) async fn give(app: &TestApp, store: &Value, amount: i64) {
    grant(app, store, LotKind::Promotional, amount, None).await;
}

async fn grant(app: &TestApp, store: &Value, kind: LotKind, amount: i64, expires_at: Option<DateTime<Utc>>) {
    let to = GrantTo::Store(store_id(store));
    let new = NewGrant { to, kind, amount, expires_at, reason: "for a test".to_owned() };
    credits::grant(&app.cx, Actor::Cli, &new, None).await.unwrap();
}

/// An organization with a store; no database is needed to spend.
pub(crate) struct Agency {
    pub(crate) app: TestApp,
    pub(crate) owner: Owner,
    pub(crate) store: Value,
}

impl Agency {
    pub(crate) async fn with(amount: i64) -> Self {
        // Tokens that outlive the days that these tests let pass.
        let long = ["--access-token-ttl-s", "100000000", "--refresh-token-ttl-s", "100000000"];
        // One address is everybody here, and closed connections are counted for a moment longer.
        let many = ["--max-client-connections-per-address", "10000"];
        let arguments = long.iter().chain(&many).map(|&argument| argument.to_owned()).collect();
        let app = TestApp::start_with(TestAppOptions { arguments, without_server: true }).await;
        let owner = app.owner("ada").await;
        let store = owner.create_store("tea").await.expect_status(201);
        if amount > 0 {
            give(&app, &store, amount).await;
        }
        Self { app, owner, store }
    }

    pub(crate) fn keyed(&self, key: &str) -> Client {
        self.owner.api.with("idempotency-key", key)
    }

    pub(crate) fn body(&self, amount: impl Into<Value>) -> Value {
        json!({ "storeId": self.store["id"], "amount": amount.into() })
    }

    async fn balance(&self) -> Value {
        self.owner.api.get("/api/credits/balance").await.expect_status(200)
    }

    pub(crate) async fn amounts(&self) -> [i64; 3] {
        let balance = self.balance().await;
        ["available", "held", "debt"].map(|name| balance[name].as_i64().unwrap())
    }

    pub(crate) async fn hold(&self, key: &str, amount: i64) -> String {
        let held = self.keyed(key).post("/api/credits/holds", self.body(amount)).await.expect_status(201);
        text(&held["holdId"]).to_owned()
    }

    /// Fails unless every invariant of every account holds.
    pub(crate) async fn expect_proven(&self) {
        let found = credits::verify::verify(&self.app.cx, None).await.unwrap();
        assert_eq!(found.violations, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_decided_once_and_its_decision_repeated_for_ever() {
    let agency = Agency::with(100).await;
    let first = agency.keyed("one").post("/api/credits/spend", agency.body(30)).await;
    assert_eq!(first.expect_status(201)["balanceAfter"], json!({ "available": 70, "held": 0, "debt": 0 }));
    let again = agency.keyed("one").post("/api/credits/spend", agency.body(30)).await;
    assert_eq!(again.expect_status(201), first.json());
    assert_eq!((first.header("idempotent-replayed"), again.header("idempotent-replayed")), ("", "true"));
    agency.keyed("one").post("/api/credits/spend", agency.body(31)).await.expect_problem(422, "idempotency-key-reused");
    let as_hold = agency.keyed("one").post("/api/credits/holds", agency.body(30)).await;
    as_hold.expect_problem(422, "idempotency-key-reused");
    agency.owner.api.post("/api/credits/spend", agency.body(1)).await.expect_problem(400, "idempotency-key-required");

    let refused = agency.keyed("two").post("/api/credits/spend", agency.body(71)).await;
    let problem = refused.expect_problem(402, "insufficient-credits");
    assert_eq!((&problem["required"], &problem["available"]), (&json!(71), &json!(70)));
    // More credits do not change what was decided: the caller was told no, and may have acted on it.
    give(&agency.app, &agency.store, 1000).await;
    agency.app.clock.advance(Duration::minutes(10));
    let again = agency.keyed("two").post("/api/credits/spend", agency.body(71)).await;
    again.expect_problem(402, "insufficient-credits");
    assert_eq!(again.header("idempotent-replayed"), "true");
    agency.keyed("three").post("/api/credits/spend", agency.body(71)).await.expect_status(201);
    assert_eq!(agency.amounts().await, [999, 0, 0]);
    agency.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_the_organizations_and_every_decision_that_is_repeated_says_so() {
    let agency = Agency::with(100).await;
    let sam = agency.app.owner("sam").await;
    join(&agency.app, &agency.owner, &sam, "staff").await;
    let sams = |key: &str| sam.api.with("idempotency-key", key);
    let first = agency.keyed("one").post("/api/credits/spend", agency.body(30)).await;
    let again = sams("one").post("/api/credits/spend", agency.body(30)).await;
    assert_eq!((again.expect_status(201), again.header("idempotent-replayed")), (first.json(), "true"));
    described::check_replay("credit_spend", &again);
    sams("one").post("/api/credits/spend", agency.body(31)).await.expect_problem(422, "idempotency-key-reused");

    let hold = format!("/api/credits/holds/{}", agency.hold("held", 40).await);
    let capture = format!("{hold}/capture");
    let ends = [
        (capture.as_str(), "credit_hold_capture", json!({ "amount": 41 }), 422),
        (capture.as_str(), "credit_hold_capture", json!({ "amount": 40 }), 200),
        (&format!("{hold}/void"), "credit_hold_void", Value::Null, 409),
        ("/api/credits/holds", "credit_hold_create", agency.body(31), 402),
        ("/api/credits/spend", "credit_spend", agency.body(31), 402),
    ];
    for (number, (path, operation, body, status)) in ends.into_iter().enumerate() {
        let key = format!("end-{number}");
        let decided = agency.keyed(&key).post(path, body.clone()).await;
        assert_eq!(
            (decided.status.as_u16(), decided.header("idempotent-replayed")),
            (status, ""),
            "{}",
            decided.text()
        );
        let repeated = sams(&key).post(path, body).await;
        assert_eq!((repeated.status, repeated.header("idempotent-replayed")), (decided.status, "true"));
        assert_eq!(repeated.json()["detail"], decided.json()["detail"]);
        described::check_replay(operation, &repeated);
    }
    assert_eq!(agency.amounts().await, [30, 0, 0]);

    // Whoever reads the description finds what a key is wherever one is asked for.
    let document = agency.app.api().get("/openapi.json").await.expect_status(200);
    assert!(text(&document["info"]["description"]).contains("**Repeating a request.**"));
    let operations =
        document["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values());
    let parameters = operations.flat_map(|operation| operation["parameters"].as_array().into_iter().flatten());
    let keys: Vec<&Value> = parameters.filter(|parameter| parameter["name"] == "Idempotency-Key").collect();
    assert!(keys.len() >= 10, "{keys:?}");
    assert!(keys.iter().all(|key| text(&key["description"]).contains("Repeating a request")), "{keys:?}");
    agency.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_amount_is_a_whole_number_above_zero() {
    let agency = Agency::with(100).await;
    for amount in [json!(0), json!(-1), json!(i64::MIN), json!(i64::MAX), json!(1_000_000_000_001_i64)] {
        let refused = agency.keyed("range").post("/api/credits/spend", agency.body(amount)).await;
        refused.expect_field(422, "invalid-input", "/amount");
    }
    let raw =
        ["1.5", "1e400", "1e3", "9223372036854775808", "NaN", "Infinity", "\"10\"", "null", "[1]", "true", "0x10"];
    for amount in raw {
        let body = format!("{{\"storeId\":\"{}\",\"amount\":{amount}}}", text(&agency.store["id"]));
        for path in ["/api/credits/spend", "/api/credits/holds"] {
            let client = agency.keyed("raw");
            let refused = client.send_bytes(http::Method::POST, path, "application/json", body.clone()).await;
            assert!([400, 422].contains(&refused.status.as_u16()), "{amount}: {}", refused.text());
        }
    }
    for (name, value) in
        [("description", json!("a\u{0}b")), ("description", json!("x".repeat(501))), ("cost", json!(1))]
    {
        let mut body = agency.body(1);
        body[name] = value;
        agency.keyed("line").post("/api/credits/spend", body).await.expect_problem(422, "invalid-input");
    }
    // Nothing was decided, so the keys are free.
    assert_eq!(agency.amounts().await, [100, 0, 0]);
    for key in ["range", "raw", "line"] {
        agency.keyed(key).post("/api/credits/spend", agency.body(1)).await.expect_status(201);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_soonest_is_spent_first_and_what_expired_is_gone() {
    let agency = Agency::with(0).await;
    let soon = agency.app.clock.now() + Duration::hours(1);
    grant(&agency.app, &agency.store, LotKind::Paid, 100, None).await;
    grant(&agency.app, &agency.store, LotKind::Promotional, 50, None).await;
    grant(&agency.app, &agency.store, LotKind::Promotional, 40, Some(soon)).await;
    let kinds = |balance: &Value| -> Vec<(String, i64)> {
        let lots = balance["lots"].as_array().unwrap().iter();
        lots.map(|lot| (text(&lot["kind"]).to_owned(), lot["remaining"].as_i64().unwrap())).collect()
    };
    let pair = |kind: &str, remaining| (kind.to_owned(), remaining);
    let wanted = [pair("promotional", 40), pair("promotional", 50), pair("paid", 100)];
    assert_eq!(kinds(&agency.balance().await), wanted);

    agency.keyed("one").post("/api/credits/spend", agency.body(10)).await.expect_status(201);
    let held = agency.hold("held", 20).await;
    assert_eq!(kinds(&agency.balance().await)[0], pair("promotional", 10));

    // At the very moment it is over; the held ones are reserved and stay so.
    agency.app.clock.advance(Duration::hours(1));
    assert_eq!(agency.amounts().await, [150, 20, 0]);
    let refused = agency.keyed("two").post("/api/credits/spend", agency.body(151)).await;
    assert_eq!(refused.expect_problem(402, "insufficient-credits")["available"], 150);
    agency
        .keyed("void")
        .post(&format!("/api/credits/holds/{held}/void"), Value::Null)
        .await
        .expect_problem(409, "hold-not-open");
    credits::jobs::expire_due(&agency.app.cx).await.unwrap();
    // What came back out of the hold had expired meanwhile.
    assert_eq!(agency.amounts().await, [150, 0, 0]);
    let list = agency.owner.api.get("/api/credits/transactions?kind=expiry").await.expect_status(200);
    let expired: Vec<i64> = list["data"].as_array().unwrap().iter().map(|t| t["amount"].as_i64().unwrap()).collect();
    assert_eq!(expired, [20, 10]);
    agency.keyed("three").post("/api/credits/spend", agency.body(60)).await.expect_status(201);
    assert_eq!(kinds(&agency.balance().await), [pair("paid", 90)]);
    agency.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_is_ended_once_and_gives_back_what_it_did_not_take() {
    let agency = Agency::with(100).await;
    let path = |hold: &str, end: &str| format!("/api/credits/holds/{hold}{end}");
    let (taken, voided, left) = (agency.hold("a", 40).await, agency.hold("b", 30).await, agency.hold("c", 20).await);
    assert_eq!(agency.amounts().await, [10, 90, 0]);
    agency.keyed("d").post("/api/credits/holds", agency.body(11)).await.expect_problem(402, "insufficient-credits");

    let over = agency.keyed("e").post(&path(&taken, "/capture"), json!({ "amount": 41 })).await;
    over.expect_field(422, "invalid-input", "/amount");
    let captured = agency.keyed("f").post(&path(&taken, "/capture"), json!({ "amount": 25 })).await.expect_status(200);
    assert_eq!(captured["balanceAfter"], json!({ "available": 25, "held": 50, "debt": 0 }));
    let again = agency.keyed("f").post(&path(&taken, "/capture"), json!({ "amount": 25 })).await;
    assert_eq!((again.expect_status(200), again.header("idempotent-replayed")), (captured, "true"));
    agency
        .keyed("g")
        .post(&path(&taken, "/capture"), json!({ "amount": 1 }))
        .await
        .expect_problem(409, "hold-not-open");
    agency.keyed("h").post(&path(&taken, "/void"), Value::Null).await.expect_problem(409, "hold-not-open");
    let shown = agency.owner.api.get(&path(&taken, "")).await.expect_status(200);
    assert_eq!((&shown["state"], &shown["captured"], &shown["amount"]), (&json!("captured"), &json!(25), &json!(40)));

    // However many try to end it: one does.
    let mut enders = JoinSet::new();
    for number in 0..20 {
        let (client, path) = (
            agency.keyed(&format!("race-{number}")),
            path(&voided, if number % 2 == 0 { "/void" } else { "/capture" }),
        );
        enders.spawn(async move {
            client.post(&path, if number % 2 == 0 { Value::Null } else { json!({ "amount": 30 }) }).await.status
        });
    }
    let done = enders.join_all().await.iter().filter(|status| status.as_u16() == 200).count();
    assert_eq!(done, 1);

    agency.app.clock.advance(Duration::seconds(3600));
    agency
        .keyed("late")
        .post(&path(&left, "/capture"), json!({ "amount": 1 }))
        .await
        .expect_problem(409, "hold-not-open");
    credits::jobs::expire_due(&agency.app.cx).await.unwrap();
    credits::jobs::expire_due(&agency.app.cx).await.unwrap();
    let shown = agency.owner.api.get(&path(&left, "")).await.expect_status(200);
    assert_eq!(shown["state"], "expired");
    let [available, held, debt] = agency.amounts().await;
    assert!((available == 75 || available == 45) && held == 0 && debt == 0, "{available}");
    agency
        .keyed("i")
        .post("/api/credits/holds", json!({ "storeId": agency.store["id"], "amount": 1, "expiresInSeconds": 0 }))
        .await
        .expect_field(422, "invalid-input", "/expiresInSeconds");
    agency.expect_proven().await;
}

/// A machine that is busy with other things may have no place at the moment: then it is to be asked again, with the same key.
async fn spend_until_decided(client: &Client, body: &Value) -> Response {
    loop {
        let answer = client.post("/api/credits/spend", body.clone()).await;
        if answer.status != 503 {
            return answer;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_spends_at_once_of_five_thousand_credits_spend_five_thousand() {
    let agency = Agency::with(5000).await;
    let mut tasks = JoinSet::new();
    for task in 0..200 {
        let (api, body) = (agency.owner.api.clone(), agency.body(1));
        tasks.spawn(async move {
            let mut answers = Vec::new();
            for number in 0..50 {
                let key = format!("{task}-{number}");
                let answer = spend_until_decided(&api.with("idempotency-key", &key), &body).await;
                answers.push((key, answer));
            }
            answers
        });
    }
    let answers: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    let accepted = answers.iter().filter(|(_, answer)| answer.status == 201).count();
    let refused = answers.iter().filter(|(_, answer)| answer.status == 402).count();
    let other = answers.iter().find(|(_, answer)| ![201, 402].contains(&answer.status.as_u16()));
    assert_eq!((accepted, refused), (5000, 5000), "{other:?}");
    assert_eq!(agency.amounts().await, [0, 0, 0]);

    // Every balance was passed through once.
    let mut left: Vec<i64> = answers
        .iter()
        .filter(|(_, answer)| answer.status == 201)
        .map(|(_, answer)| answer.json()["balanceAfter"]["available"].as_i64().unwrap())
        .collect();
    left.sort_unstable();
    assert!(left.iter().copied().eq(0..5000));
    let mut tasks = JoinSet::new();
    for (key, answer) in answers.into_iter().step_by(7) {
        let (client, body) = (agency.keyed(&key), agency.body(1));
        tasks.spawn(async move {
            let again = spend_until_decided(&client, &body).await;
            let strip = |mut body: Value| {
                body.as_object_mut().unwrap().remove("requestId");
                body
            };
            assert_eq!((again.status, strip(again.json())), (answer.status, strip(answer.json())));
            assert_eq!(again.header("idempotent-replayed"), "true");
        });
    }
    tasks.join_all().await;
    agency.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_with_few_keys_have_few_effects() {
    let agency = Agency::with(100_000).await;
    let mut tasks = JoinSet::new();
    for number in 0..600_usize {
        let (client, body) =
            (agency.keyed(&format!("key-{}", number % 30)), agency.body(if number % 5 == 4 { 8 } else { 7 }));
        tasks.spawn(async move { (number % 30, spend_until_decided(&client, &body).await) });
    }
    let mut decided: BTreeMap<usize, Value> = BTreeMap::new();
    for (key, answer) in tasks.join_all().await {
        match answer.status.as_u16() {
            201 => assert_eq!(decided.entry(key).or_insert_with(|| answer.json()), &answer.json()),
            _ => drop(answer.expect_problem(422, "idempotency-key-reused")),
        }
    }
    assert_eq!(decided.len(), 30);
    let spent: i64 = decided.values().map(|answer| answer["amount"].as_i64().unwrap()).sum();
    assert_eq!(agency.amounts().await, [100_000 - spent, 0, 0]);
    agency.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_organization_has_is_nobody_elses() {
    let agency = Agency::with(100).await;
    let eve = agency.app.owner("eve").await;
    let hers = eve.create_store("eves").await.expect_status(201);
    let hold = agency.hold("mine", 10).await;
    let keyed = eve.api.with("idempotency-key", "mine");
    keyed.post("/api/credits/spend", agency.body(1)).await.expect_problem(404, "not-found");
    keyed.post("/api/credits/holds", agency.body(1)).await.expect_problem(404, "not-found");
    keyed.post(&format!("/api/credits/holds/{hold}/void"), Value::Null).await.expect_problem(404, "not-found");
    eve.api.get(&format!("/api/credits/holds/{hold}")).await.expect_problem(404, "not-found");
    for list in ["balance", "transactions"] {
        let path = format!("/api/credits/{list}?organizationId={}", agency.owner.organization_id());
        eve.api.get(&path).await.expect_problem(404, "not-found");
    }
    // A key is its organization's own, and so is the empty account behind it.
    let refused = keyed.post("/api/credits/spend", json!({ "storeId": hers["id"], "amount": 1 })).await;
    assert_eq!(refused.expect_problem(402, "insufficient-credits")["available"], 0);

    // A token for one store spends there and nowhere else, and sees no balance.
    let second = agency.owner.create_store("coffee").await.expect_status(201);
    let login = agency.owner.login(json!({ "storeId": second["id"] })).await.expect_status(200);
    let limited = agency.app.api().with_token(text(&login["tokens"]["accessToken"]));
    limited
        .with("idempotency-key", "l1")
        .post("/api/credits/spend", agency.body(1))
        .await
        .expect_problem(404, "not-found");
    let body = json!({ "storeId": second["id"], "amount": 1 });
    limited.with("idempotency-key", "l2").post("/api/credits/spend", body).await.expect_status(201);
    limited.get("/api/credits/balance").await.expect_problem(403, "token-limited");
    limited.get(&format!("/api/credits/holds/{hold}")).await.expect_problem(404, "not-found");

    // Somebody of two organizations says which; staff see and spend.
    join(&agency.app, &agency.owner, &eve, "staff").await;
    eve.api.get("/api/credits/balance").await.expect_field(400, "invalid-query", "organizationId");
    eve.api.with("idempotency-key", "staff").post("/api/credits/spend", agency.body(5)).await.expect_status(201);
    let path = format!("/api/credits/transactions?organizationId={}&userId=", agency.owner.organization_id());
    let by_eve = eve.api.get(&format!("{path}{}", text(&eve.registered["user"]["id"]))).await.expect_status(200);
    assert_eq!(by_eve["data"].as_array().map(Vec::len), Some(1), "{by_eve}");
    agency.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_is_walked_once_and_filtered() {
    let agency = Agency::with(1000).await;
    let coffee = agency.owner.create_store("coffee").await.expect_status(201);
    for number in 0..12 {
        let store = if number % 3 == 0 { &coffee } else { &agency.store };
        let body = json!({ "storeId": store["id"], "amount": number + 1, "description": format!("spend {number}") });
        agency.keyed(&format!("k{number}")).post("/api/credits/spend", body).await.expect_status(201);
        agency.app.clock.advance(Duration::minutes(1));
    }
    let mut seen = Vec::new();
    let mut path = "/api/credits/transactions?limit=5".to_owned();
    loop {
        let page = agency.owner.api.get(&path).await.expect_status(200);
        seen.extend(page["data"].as_array().unwrap().iter().map(|t| t["version"].as_i64().unwrap()));
        match page["meta"]["nextCursor"].as_str() {
            Some(cursor) => path = format!("/api/credits/transactions?limit=5&cursor={cursor}"),
            None => break,
        }
    }
    assert!(seen.iter().copied().eq((1..=13).rev()), "{seen:?}");
    let count = async |query: &str| {
        let list =
            agency.owner.api.get(&format!("/api/credits/transactions?limit=100&{query}")).await.expect_status(200);
        list["data"].as_array().unwrap().len()
    };
    assert_eq!(count(&format!("storeId={}", text(&coffee["id"]))).await, 4);
    assert_eq!(count("kind=spend").await, 12);
    assert_eq!(count("kind=grant").await, 1);
    let middle = (agency.app.clock.now() - Duration::minutes(6)).format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    assert_eq!(count(&format!("from={middle}")).await + count(&format!("until={middle}")).await, 13);
    let today = agency.app.clock.now().date_naive();
    let (since, until) = (today - Days::new(1), today + Days::new(1));
    assert_eq!(count(&format!("from={since}&until={until}")).await, 13);
    for query in ["transactions?from=", "statement?until=2026-01-01&from=", "allocation?until=2026-01-01&from="] {
        let refused = agency.owner.api.get(&format!("/api/credits/{query}yesterday")).await;
        let problem = refused.expect_problem(400, "invalid-query");
        let detail = text(&problem["errors"][0]["detail"]);
        assert!(problem["errors"][0]["pointer"] == "from" && detail.contains("a moment such as 2026-"), "{problem}");
    }
    let other = agency.owner.api.get("/api/credits/transactions?cursor=eyJzIjoxLCJrIjoxfQ").await;
    other.expect_problem(400, "invalid-cursor");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_can_only_be_added_to() {
    let agency = Agency::with(100).await;
    agency.keyed("one").post("/api/credits/spend", agency.body(30)).await.expect_status(201);
    let mut master = agency.app.master().await;
    for table in ["credit_transactions", "credit_entries", "credit_keys"] {
        for sql in [
            format!("update {table} set organization_id = organization_id"),
            format!("delete from {table}"),
            format!("truncate {table} cascade"),
        ] {
            let refused = master.execute(AssertSqlSafe(sql.clone())).await.unwrap_err();
            assert_eq!(
                refused.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref(),
                Some("42501"),
                "{sql}: {refused}"
            );
        }
    }
    for sql in [
        "delete from credit_lots",
        "update credit_lots set granted = granted + 1, remaining = remaining + 1",
        "update credit_lots set expires_at = now()",
    ] {
        assert!(master.execute(sql).await.is_err(), "{sql}");
    }
}

/// What somebody with the whole database may try, and what finds it.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_ledger_is_found_with_the_version_where_it_begins() {
    let tamperings: &[(&str, Option<i64>)] = &[
        ("update credit_entries set amount = amount - 1 where version = 3 and account = 'credits'", Some(3)),
        ("update credit_entries set amount = amount - 1 where version = 3 and account = 'credits';
          update credit_entries set amount = amount + 1 where version = 3 and account = 'revenue'", Some(3)),
        ("update credit_transactions set description = 'another' where version = 2", Some(2)),
        ("update credit_transactions set store_id = null where version = 4", Some(4)),
        // Of two that are broken, the first is named.
        ("update credit_transactions set description = 'another' where version in (2, 4)", Some(2)),
        ("update credit_entries set amount = amount - 1 where version = 4 and account = 'credits';
          update credit_transactions set description = 'another' where version = 3", Some(3)),
        ("update credit_transactions set kind = 'gift' where version = 4", Some(4)),
        ("update credit_entries set account = 'gifts' where version = 3 and account = 'revenue'", Some(3)),
        ("update credit_keys set request_hash = 'a gift'; update credit_transactions set request_hash = 'a gift'", Some(1)),
        ("update credit_transactions set status = 'accepted', reason = null where version = 5", Some(5)),
        ("delete from credit_entries where version = 4", Some(4)),
        ("delete from credit_entries where version = 4; delete from credit_keys where transaction_id in
            (select id from credit_transactions where version = 4);
          delete from credit_transactions where version = 4", Some(4)),
        ("update credit_accounts set available = available + 1", Some(6)),
        ("update credit_lots set remaining = remaining + 5, consumed = consumed - 5", Some(6)),
        ("update credit_lots set granted = granted + 5, remaining = remaining + 5", Some(1)),
        ("update credit_lots set expires_at = '2099-01-01'", Some(1)),
        ("update credit_holds set amount = amount + 1", None),
        ("delete from credit_keys where key = 'user:k2'", Some(3)),
        // Everything from a version on, made to fit: only the sealed root knows.
        ("delete from credit_entries where version >= 5;
          delete from credit_keys where transaction_id in (select id from credit_transactions where version >= 5);
          delete from credit_transactions where version >= 5;
          delete from credit_hold_lots; delete from credit_holds;
          update credit_lots set remaining = remaining + held, held = 0;
          update credit_accounts a set (available, held, debt, version, chain) =
            (select available_after, held_after, debt_after, version, chain from credit_transactions t where t.version = 4)", Some(6)),
        ("update credit_roots set root = sha256('x')", None),
    ];
    let agency = Agency::with(100).await;
    for number in 1..=3 {
        agency.keyed(&format!("k{number}")).post("/api/credits/spend", agency.body(10)).await.expect_status(201);
    }
    agency.keyed("k4").post("/api/credits/spend", agency.body(500)).await.expect_problem(402, "insufficient-credits");
    agency.hold("k5", 10).await;
    credits::verify::seal_root(&agency.app.cx, Duration::hours(24)).await.unwrap();
    agency.expect_proven().await;
    for (tampering, version) in tamperings {
        let mut master = agency.app.master().await;
        // As a superuser past every trigger, and undone after the look.
        let backup = "create schema kept; create table kept.a as table credit_accounts; create table kept.t as table credit_transactions;
             create table kept.e as table credit_entries; create table kept.k as table credit_keys; create table kept.l as table credit_lots;
             create table kept.h as table credit_holds; create table kept.p as table credit_hold_lots; create table kept.r as table credit_roots";
        master.execute(backup).await.unwrap();
        master.execute("set session_replication_role = replica").await.unwrap();
        master
            .execute(AssertSqlSafe((*tampering).to_owned()))
            .await
            .unwrap_or_else(|error| panic!("{tampering}: {error}"));
        let found = credits::verify::verify(&agency.app.cx, None).await.unwrap().violations;
        assert!(!found.is_empty(), "nobody saw: {tampering}");
        if tampering.contains("gift") {
            assert!(found.iter().any(|violation| violation.what.starts_with("no ")), "{tampering}: {found:?}");
        }
        if let Some(version) = version {
            let first = found.iter().filter_map(|violation| violation.version).min();
            assert_eq!(first, Some(*version), "{tampering}: {found:?}");
        }
        let restore = "delete from credit_hold_lots; delete from credit_holds; delete from credit_lots; delete from credit_keys;
             delete from credit_entries; delete from credit_transactions; delete from credit_accounts;
             insert into credit_accounts table kept.a; insert into credit_transactions table kept.t;
             insert into credit_entries table kept.e; insert into credit_keys table kept.k; insert into credit_lots table kept.l;
             insert into credit_holds table kept.h; insert into credit_hold_lots table kept.p;
             update credit_roots r set root = k.root from kept.r k where k.id = r.id; drop schema kept cascade";
        master.execute(restore).await.unwrap();
        agency.expect_proven().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ops_grant_look_and_verify_by_command() {
    let agency = Agency::with(0).await;
    let url = agency.app.master.url();
    let store = text(&agency.store["id"]);
    let grant =
        ["credits", "grant", "--store", store, "--amount", "250", "--reason", "a warm welcome", "--key", "welcome-1"];
    let first = Cli::json(&url, &grant).await;
    assert_eq!(first["balanceAfter"]["available"], 250, "{first}");
    assert_eq!(Cli::json(&url, &grant).await, first);
    let organization = agency.owner.organization_id();
    let balance = Cli::json(&url, &["credits", "balance", "--org", organization]).await;
    assert_eq!((&balance["available"], &balance["lots"][0]["kind"]), (&json!(250), &json!("promotional")), "{balance}");
    let slug = text(&agency.store["slug"]);
    assert_eq!(Cli::json(&url, &["credits", "balance", "--store", slug]).await, balance);
    let verified = Cli::json(&url, &["credits", "verify"]).await;
    assert_eq!(verified["violations"], json!([]), "{verified}");
    let nobody = Cli::run(&url, &["credits", "verify", "--org", "org_01JD8Q6X5MFKV9T3R0WZ2H4C7N"]).await;
    assert_eq!(nobody.status.code(), Some(1), "{}", String::from_utf8_lossy(&nobody.stdout));
    let bad = Cli::run(&url, &["credits", "grant", "--store", store, "--amount", "-5", "--reason", "no"]).await;
    assert!(!bad.status.success());
    let mut master = agency.app.master().await;
    master
        .execute("set session_replication_role = replica; update credit_accounts set available = available + 1")
        .await
        .unwrap();
    let found = Cli::run(&url, &["credits", "verify"]).await;
    assert_eq!(found.status.code(), Some(3), "{}", String::from_utf8_lossy(&found.stdout));
    assert!(String::from_utf8_lossy(&found.stdout).contains("version 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_costs_its_price_and_a_quote_changes_nothing() {
    let agency = Agency::with(100).await;
    let ask = async |path: &str, body: Value| agency.keyed(&body.to_string().replace(' ', "")).post(path, body).await;
    let of = |more: Value| {
        let mut body = json!({ "storeId": agency.store["id"] });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let prices = agency.owner.api.get("/api/credits/prices").await.expect_status(200);
    assert!(prices["data"].as_array().is_some_and(|all| all.iter().any(|price| price["service"] == "translation")));
    let wanted = of(json!({ "service": "translation", "quantity": 1001 }));
    let quote = ask("/api/credits/quote", wanted.clone()).await.expect_status(200);
    assert_eq!((&quote["amount"], &quote["availableAfter"], &quote["refusal"]), (&json!(11), &json!(89), &Value::Null));
    assert_eq!(agency.amounts().await, [100, 0, 0]);
    let spent = ask("/api/credits/spend", wanted).await.expect_status(201);
    assert_eq!(
        (&spent["amount"], &spent["service"], &spent["quantity"]),
        (&json!(11), &json!("translation"), &json!(1001))
    );
    let dear = ask("/api/credits/quote", of(json!({ "service": "seo-audit", "quantity": 2 }))).await.expect_status(200);
    assert_eq!((&dear["amount"], &dear["refusal"]), (&json!(100), &json!("insufficient-credits")));
    for (more, pointer) in [
        (json!({}), "/amount"),
        (json!({ "amount": 1, "service": "translation", "quantity": 1 }), "/amount"),
        (json!({ "service": "translation" }), "/quantity"),
        (json!({ "quantity": 1 }), "/service"),
        (json!({ "service": "alchemy", "quantity": 1 }), "/service"),
        (json!({ "service": "translation", "quantity": 0 }), "/quantity"),
        (json!({ "service": "seo-audit", "quantity": i64::MAX }), "/quantity"),
    ] {
        ask("/api/credits/spend", of(more.clone())).await.expect_field(422, "invalid-input", pointer);
        ask("/api/credits/holds", of(more.clone())).await.expect_field(422, "invalid-input", pointer);
        ask("/api/credits/quote", of(more)).await.expect_field(422, "invalid-input", pointer);
    }

    let held =
        ask("/api/credits/holds", of(json!({ "service": "theme-hour", "quantity": 2 }))).await.expect_status(201);
    let said = (&held["amount"], &held["service"], &held["quantity"], &held["balanceAfter"]["held"]);
    assert_eq!(said, (&json!(50), &json!("theme-hour"), &json!(2), &json!(50)));
    let path = format!("/api/credits/holds/{}/capture", text(&held["holdId"]));
    let captured = ask(&path, json!({ "amount": 25 })).await.expect_status(200);
    assert_eq!((&captured["amount"], &captured["service"]), (&json!(25), &json!("theme-hour")));
    agency.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_one_store_is_not_told_what_the_organization_has() {
    let agency = Agency::with(12_345).await;
    let login = agency.owner.login(json!({ "storeId": agency.store["id"] })).await.expect_status(200);
    let limited = agency.owner.api.with_token(text(&login["tokens"]["accessToken"]));
    let asks = [
        ("/api/credits/quote", agency.body(100), 200),
        ("/api/credits/quote", agency.body(999_999), 200),
        ("/api/credits/spend", agency.body(100), 201),
        ("/api/credits/spend", agency.body(999_999), 402),
        ("/api/credits/holds", agency.body(45), 201),
        ("/api/credits/holds", agency.body(999_999), 402),
    ];
    let mut said = String::new();
    for (at, (path, body, status)) in asks.into_iter().enumerate() {
        let answer = limited.with("idempotency-key", &format!("limited-{at}")).post(path, body).await;
        assert_eq!(answer.status.as_u16(), status, "{path}: {}", answer.text());
        said += &answer.text();
        if let (201, Some(hold)) = (status, answer.json()["holdId"].as_str()) {
            let path = format!("/api/credits/holds/{hold}/void");
            said +=
                &limited.with("idempotency-key", "end").post(&path, Value::Null).await.expect_status(200).to_string();
        }
    }
    for balance in ["12345", "12245", "12200"] {
        assert!(!said.contains(balance), "{said}");
    }
    assert_eq!(agency.amounts().await, [12_245, 0, 0]);
}

/// What the organization is told of this kind, in order.
pub(crate) async fn events(agency: &Agency, kind: &str) -> Vec<Value> {
    sqlx::query_scalar("select data from outbox_events where type = $1 order by seq")
        .bind(kind)
        .fetch_all(&mut agency.app.master().await)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hard_budget_refuses_and_a_soft_one_tells_and_both_begin_anew_each_month() {
    let agency = Agency::with(10_000).await;
    let put = async |path: &str, body: Value| agency.owner.api.send(http::Method::PUT, path, Some(body)).await;
    agency.keyed("before").post("/api/credits/spend", agency.body(30)).await.expect_status(201);
    let sam = agency.app.owner("sam").await;
    join(&agency.app, &agency.owner, &sam, "staff").await;
    let stranger = agency.app.owner("eve").await;
    let body = json!({ "userId": stranger.registered["user"]["id"], "monthlyAmount": 1, "isHard": false });
    put("/api/credits/budgets", body).await.expect_field(422, "invalid-input", "/userId");
    let body =
        json!({ "storeId": agency.store["id"], "monthlyAmount": 100, "isHard": true, "alertPercents": [100, 50] });
    let set = put("/api/credits/budgets", body).await.expect_status(200);
    assert_eq!((&set["data"][0]["used"], &set["data"][0]["alertPercents"]), (&json!(30), &json!([50, 100])), "{set}");
    let body = json!({ "userId": sam.registered["user"]["id"], "monthlyAmount": 10, "isHard": false });
    put("/api/credits/budgets", body).await.expect_status(200);

    // A hold counts at once and gives back what it did not take.
    let held = agency.hold("held", 60).await;
    let refused = agency.keyed("over").post("/api/credits/spend", agency.body(11)).await;
    assert_eq!(refused.expect_problem(403, "budget-exceeded")["budget"], "store");
    let quote = agency.owner.api.post("/api/credits/quote", agency.body(11)).await.expect_status(200);
    assert_eq!((&quote["refusal"], &quote["budget"]), (&json!("budget-exceeded"), &json!("store")));
    let capture = json!({ "amount": 10 });
    agency.keyed("taken").post(&format!("/api/credits/holds/{held}/capture"), capture).await.expect_status(200);
    // Of many at once as many pass as the budget allows: 60 are left.
    let mut tasks = JoinSet::new();
    for number in 0..40 {
        let (client, body) = (agency.keyed(&format!("race-{number}")), agency.body(7));
        tasks.spawn(async move { client.post("/api/credits/spend", body).await.status.as_u16() });
    }
    let statuses = tasks.join_all().await;
    assert_eq!(
        (statuses.iter().filter(|s| **s == 201).count(), statuses.iter().filter(|s| **s == 403).count()),
        (8, 32)
    );
    let by_sam = sam.api.with("idempotency-key", "sams");
    by_sam.post("/api/credits/spend", agency.body(5)).await.expect_problem(403, "budget-exceeded");

    let told = events(&agency, "credits.budget_reached").await;
    let percents: Vec<i64> = told.iter().map(|event| event["percent"].as_i64().unwrap()).collect();
    // Half of it was reached by the hold, left again, and reached again.
    assert_eq!(percents, [50], "{told:?}");

    agency.app.clock.advance(Duration::days(31));
    agency.keyed("next").post("/api/credits/spend", agency.body(100)).await.expect_status(201);
    let sams = agency.owner.create_store("coffee").await.expect_status(201);
    let body = json!({ "storeId": sams["id"], "amount": 25 });
    by_sam.with("idempotency-key", "soft").post("/api/credits/spend", body).await.expect_status(201);
    let told = events(&agency, "credits.budget_reached").await;
    let of_sam = told.iter().filter(|event| event["subjectKind"] == "member").count();
    assert_eq!(of_sam, 2, "80 and 100 percent at once: {told:?}");
    let path = format!("/api/credits/budgets?storeId={}", text(&agency.store["id"]));
    agency.owner.api.delete(&path).await.expect_status(204);
    agency.keyed("free").post("/api/credits/spend", agency.body(500)).await.expect_status(201);
    agency.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_low_balance_is_told_once_per_fall() {
    let agency = Agency::with(100).await;
    let alerts = json!({ "lowBalance": 50 });
    agency.owner.api.send(http::Method::PUT, "/api/credits/alerts", Some(alerts)).await.expect_status(204);
    for number in 0..8 {
        agency.keyed(&format!("a{number}")).post("/api/credits/spend", agency.body(10)).await.expect_status(201);
    }
    assert_eq!(events(&agency, "credits.balance_low").await.len(), 1);
    give(&agency.app, &agency.store, 100).await;
    let mut tasks = JoinSet::new();
    for number in 0..10 {
        let (client, body) = (agency.keyed(&format!("b{number}")), agency.body(10));
        tasks.spawn(async move { client.post("/api/credits/spend", body).await.expect_status(201) });
    }
    tasks.join_all().await;
    assert_eq!(events(&agency, "credits.balance_low").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_tile_the_year_and_agree_with_every_answer() {
    let agency = Agency::with(1000).await;
    let begun = agency.app.clock.now();
    let mut answered = -1000;
    let mut months = vec![begun - Duration::days(1)];
    for number in 0..12 {
        let mut body = agency.body(number * 3 + 1);
        body["description"] = json!(
            ["=cmd|' /C calc'!A0", "+1", "plain, with \"quotes\"", "<b>bold</b>"][usize::try_from(number).unwrap() % 4]
        );
        let spent = agency.keyed(&format!("k{number}")).post("/api/credits/spend", body).await.expect_status(201);
        answered += spent["amount"].as_i64().unwrap();
        if number % 3 == 0 {
            let hold = agency.hold(&format!("h{number}"), 10).await;
            let body = json!({ "amount": 4 });
            let path = format!("/api/credits/holds/{hold}/capture");
            let captured = agency.keyed(&format!("c{number}")).post(&path, body).await.expect_status(200);
            answered += captured["amount"].as_i64().unwrap();
        }
        agency
            .keyed(&format!("r{number}"))
            .post("/api/credits/spend", agency.body(100_000))
            .await
            .expect_problem(402, "insufficient-credits");
        agency.app.clock.advance(Duration::days(17));
        months.push(agency.app.clock.now());
        agency.app.clock.advance(Duration::days(3));
    }
    let time = |at: DateTime<Utc>| at.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let statement = async |from, until, format: &str| {
        let path = format!("/api/credits/statement?from={}&until={}&format={format}", time(from), time(until));
        agency.owner.api.get(&path).await
    };
    let (mut sum, mut before) = (0, 0);
    for pair in months.windows(2) {
        let page = statement(pair[0], pair[1], "json").await.expect_status(200);
        let entries: i64 = page["data"].as_array().unwrap().iter().map(|line| line["amount"].as_i64().unwrap()).sum();
        assert_eq!(page["opening"].as_i64().unwrap(), before, "{page}");
        before += entries;
        assert_eq!(
            (page["closing"].as_i64().unwrap(), page["lines"].as_u64().unwrap()),
            (before, page["data"].as_array().unwrap().len() as u64)
        );
        sum += entries;
    }
    let [available, held, debt] = agency.amounts().await;
    assert_eq!((sum, -answered), (available + held - debt, sum));
    let whole = (months[0], *months.last().unwrap());
    let csv = statement(whole.0, whole.1, "csv").await;
    assert_eq!((csv.status.as_u16(), csv.header("content-type")), (200, "text/csv; charset=utf-8"));
    let text = csv.text();
    assert_eq!(text.lines().count(), 1 + 1 + 1 + 12 + 4 + 1, "{text}");
    assert!(
        text.contains("'=cmd") && !text.contains(",=cmd") && text.contains("\"plain, with \"\"quotes\"\"\""),
        "{text}"
    );
    assert!(text.trim_end().ends_with(&format!(",{sum}")), "{text}");
    let html = statement(whole.0, whole.1, "html").await.text();
    assert!(html.contains("&lt;b&gt;bold") && !html.contains("<b>bold"), "{html}");
    let year = format!("from={}&until={}", time(whole.0), time(whole.1));
    let spent = agency.owner.api.get(&format!("/api/credits/allocation?{year}")).await.expect_status(200);
    let total: i64 = spent["data"].as_array().unwrap().iter().map(|part| part["credits"].as_i64().unwrap()).sum();
    assert_eq!(total, 1000 - sum);
}
