//! What ops look at of payments: what the books differ in, and events that could not be followed.

use std::time::Duration;

use chrono::TimeDelta;
use devkit::payments::{TestPayments, TestPaymentsOptions};
use http::Method;
use integration_tests::{ChaosProxy, Cli, Client, Owner, Process, Response, eventually, within};
use kernel::{Clock as _, ReconDifferenceId};
use serde_json::{Value, json};
use sqlx::Executor as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::purchases::{Order, Shop};
use crate::scenes::{count, text};

const PAYMENTS: &str = "/api/ops/payments";

/// Somebody with the platform role, at the payments of a shop.
struct Desk {
    ops: Owner,
}

impl Desk {
    async fn of(shop: &Shop) -> Self {
        Self { ops: shop.app.admin().await }
    }

    async fn get(&self, path: &str) -> Response {
        self.ops.api.get(&format!("{PAYMENTS}{path}")).await
    }

    async fn list(&self, path: &str) -> Vec<Value> {
        self.get(path).await.expect_status(200)["data"].as_array().unwrap().clone()
    }

    async fn ask(&self, path: &str) -> Response {
        self.ops.api.send(Method::POST, &format!("{PAYMENTS}{path}"), None).await
    }

    async fn note(&self, id: &Value, note: &str) -> Response {
        let path = format!("{PAYMENTS}/differences/{}/note", text(id));
        self.ops.api.post(&path, json!({ "note": note })).await
    }

    /// Compares now, and returns what the comparison of the balance found, by kind.
    async fn compare(&self) -> Vec<(String, Value)> {
        let runs = self.ask("/reconcile").await.expect_status(200)["data"].clone();
        assert_eq!((&runs[0]["kind"], &runs[1]["kind"]), (&json!("events"), &json!("balance")));
        assert_eq!((&runs[0]["differences"], &runs[0]["found"]), (&json!(0), &json!([])), "{runs}");
        let found = runs[1]["found"].as_array().unwrap();
        assert_eq!(runs[1]["differences"], found.len());
        let mut found: Vec<_> = found.iter().map(|of| (text(&of["kind"]).to_owned(), of.clone())).collect();
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        found
    }

    /// The comparisons that are shown, newest first, each with how many differences it has.
    async fn compared(&self) -> Vec<(String, u64)> {
        let runs = self.list("/reconciliations").await;
        runs.iter().map(|run| (text(&run["kind"]).to_owned(), run["differences"].as_u64().unwrap())).collect()
    }

    /// Asks for the first comparison, and hangs up when it has begun.
    async fn ask_and_hang_up(&self, shop: &Shop) {
        let token = text(&self.ops.registered["tokens"]["accessToken"]);
        let mut stream = TcpStream::connect(self.ops.api.address).await.unwrap();
        let request = format!(
            "POST {PAYMENTS}/reconcile HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\ncontent-length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let begun = "select count(*) from audit_events where action = 'payments_reconcile'";
        eventually("the comparison", || async { (count(&shop.app, begun).await == 1).then_some(()) }).await;
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        within("the end of the connection", stream.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), "");
    }

    async fn retry(&self, event: &Value) -> Value {
        self.ask(&format!("/events/{}/retry", text(event))).await.expect_status(200)
    }
}

/// The charge of an order, and the movement of money that it made.
fn movement(shop: &Shop, order: &Order) -> (String, String) {
    let charge = text(&shop.provider.object(&shop.intent(order)).unwrap()["latest_charge"]).to_owned();
    let movements = shop.provider.objects("balance_transaction");
    let movement = movements.iter().find(|movement| movement["source"] == charge.as_str()).unwrap();
    (charge, text(&movement["id"]).to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_is_shown_once_noted_once_and_never_gone() {
    let shop = Shop::silent().await;
    let desk = Desk::of(&shop).await;
    let (charge, of_charge) = movement(&shop, &shop.buy("a", "starter").await);
    // What is younger may be on its way.
    shop.app.clock.advance(TimeDelta::minutes(20));
    assert_eq!(desk.compare().await, []);
    assert_eq!(desk.list("/differences").await, Vec::<Value>::new());
    shop.provider.tamper(&of_charge, |movement| movement["amount"] = json!(2501));
    shop.provider.plant_balance_transaction("charge", "ch_of_nobody", 700, "eur");
    let [(differs, wrong), (missing, lost)] = desk.compare().await.try_into().unwrap();
    assert_eq!((differs.as_str(), missing.as_str()), ("amount_differs", "missing_here"));
    assert_eq!((&wrong["externalRef"], &wrong["state"]), (&json!(charge), &json!("open")));
    assert_eq!((&wrong["theirs"]["amountMinor"], &wrong["ours"]["amountMinor"]), (&json!(2501), &json!(2500)));
    assert_eq!((&lost["externalRef"], &lost["ours"]), (&json!("ch_of_nobody"), &Value::Null));

    // Found again, it is the same.
    shop.app.clock.advance(TimeDelta::minutes(1));
    let [(_, again), _] = desk.compare().await.try_into().unwrap();
    assert_eq!(
        (&again["id"], &again["times"], &again["firstSeenAt"]),
        (&wrong["id"], &json!(2), &wrong["firstSeenAt"])
    );
    assert!(again["lastSeenAt"].as_str() > wrong["lastSeenAt"].as_str(), "{again}");
    assert_eq!(desk.list("/differences?state=open").await.len(), 2);
    let noted = desk.note(&wrong["id"], "  They know; a typo in their export. ").await.expect_status(200);
    assert_eq!((&noted["state"], &noted["note"]), (&json!("noted"), &json!("They know; a typo in their export.")));
    assert_eq!(noted["notedBy"], desk.ops.registered["user"]["id"]);
    assert!(noted["notedAt"].is_string(), "{noted}");
    desk.note(&wrong["id"], "Once more.").await.expect_problem(409, "difference-noted");
    desk.note(&lost["id"], " ").await.expect_field(422, "invalid-input", "/note");
    let nobodys = json!(ReconDifferenceId::new(shop.app.clock.now()));
    desk.note(&nobodys, "What?").await.expect_problem(404, "not-found");

    // A noted one does not come back as news; one that says something else is another.
    desk.compare().await;
    let ids = |list: Vec<Value>| list.into_iter().map(|of| of["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(desk.list("/differences?state=open").await), [lost["id"].clone()]);
    assert_eq!(desk.list("/differences?state=noted").await[0]["times"], 3);
    shop.provider.tamper(&of_charge, |movement| movement["amount"] = json!(2502));
    desk.compare().await;
    let open = desk.list("/differences?state=open").await;
    assert_eq!((open.len(), &open[0]["theirs"]["amountMinor"]), (2, &json!(2502)), "{open:?}");
    // A repetition is as good a name as the first.
    let repeated: uuid::Uuid = sqlx::query_scalar(
        "select id from recon_differences where external_ref = 'ch_of_nobody' order by created_at desc limit 1",
    )
    .fetch_one(&mut shop.app.master().await)
    .await
    .unwrap();
    let repeated = json!(ReconDifferenceId::from_uuid(repeated));
    assert_ne!(repeated, lost["id"]);
    assert_eq!(desk.note(&repeated, "Not ours.").await.expect_status(200)["id"], lost["id"]);
    desk.note(&lost["id"], "Not ours.").await.expect_problem(409, "difference-noted");

    assert_eq!(count(&shop.app, "select count(*) from recon_differences").await, 8);
    let audited = "select count(*) from audit_events where action = 'payment_difference_note' and actor_kind = 'user'";
    assert_eq!(count(&shop.app, audited).await, 2);
    assert_eq!(count(&shop.app, "select count(*) from audit_events where action = 'payments_reconcile'").await, 5);
    for change in ["delete from recon_notes", "update recon_notes set note = 'x'"] {
        assert!(sqlx::query(change).execute(&mut shop.app.master().await).await.is_err(), "{change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn comparisons_and_differences_come_in_pages() {
    let shop = Shop::silent().await;
    let desk = Desk::of(&shop).await;
    for number in 0..5 {
        shop.provider.plant_balance_transaction("charge", &format!("ch_{number}"), 100, "eur");
    }
    for _ in 0..3 {
        shop.app.clock.advance(TimeDelta::minutes(20));
        desk.compare().await;
    }
    for (path, wanted) in [("/reconciliations", 6), ("/differences", 5), ("/differences?state=open", 5)] {
        let whole: Vec<Value> = desk.list(path).await;
        assert_eq!(whole.len(), wanted, "{path}");
        let joined = if path.contains('?') { '&' } else { '?' };
        let (mut pages, mut next) = (Vec::new(), format!("{path}{joined}limit=2"));
        loop {
            let page = desk.get(&next).await.expect_status(200);
            pages.extend(page["data"].as_array().unwrap().clone());
            let Some(cursor) = page["meta"]["nextCursor"].as_str() else { break };
            next = format!("{path}{joined}limit=2&cursor={cursor}");
        }
        assert_eq!(pages, whole, "{path}");
    }
    let runs = desk.list("/reconciliations").await;
    assert!(runs.windows(2).all(|pair| pair[0]["createdAt"].as_str() >= pair[1]["createdAt"].as_str()), "{runs:?}");
    let page = desk.get("/differences?state=open&limit=1").await.expect_status(200);
    let cursor = text(&page["meta"]["nextCursor"]).to_owned();
    desk.get(&format!("/differences?state=noted&cursor={cursor}")).await.expect_problem(400, "invalid-cursor");
    desk.get(&format!("/events?cursor={cursor}")).await.expect_problem(400, "invalid-cursor");
    for wrong in ["/differences?limit=0", "/reconciliations?limit=101", "/events?limit=0"] {
        desk.get(wrong).await.expect_field(400, "invalid-query", "limit");
    }
    for wrong in ["/differences?state=closed", "/events?state=lost", "/reconciliations?kind=events"] {
        desk.get(wrong).await.expect_problem(400, "invalid-query");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_books_are_compared_by_one_at_a_time() {
    let shop = Shop::silent().await;
    let desk = Desk::of(&shop).await;
    let comparing = shop.app.cx.payments.as_ref().unwrap().comparing.clone();
    let held = comparing.acquire_owned().await.unwrap();
    desk.ask("/reconcile").await.expect_problem(409, "reconciliation-running");
    drop(held);
    desk.ask("/reconcile").await.expect_status(200);
    assert_eq!(count(&shop.app, "select count(*) from recon_runs").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_is_done_to_its_end_when_nobody_waits_for_it_any_more() {
    let provider = TestPayments::start(TestPaymentsOptions::default()).await.unwrap();
    let proxy = ChaosProxy::to(provider.address()).await;
    let through = format!("http://127.0.0.1:{}", proxy.port);
    let patient = ["--stripe-api-url", &through, "--stripe-request-timeout-ms", "60000"];
    let shop = Shop::at(provider, &patient).await;
    let desk = Desk::of(&shop).await;
    shop.buy("a", "starter").await;
    shop.app.clock.advance(TimeDelta::minutes(20));
    shop.provider.plant_balance_transaction("charge", "ch_of_nobody", 700, "eur");

    proxy.stall();
    desk.ask_and_hang_up(&shop).await;
    // It is still at work, and nothing of it shows before it is whole.
    desk.ask("/reconcile").await.expect_problem(409, "reconciliation-running");
    assert_eq!(desk.compared().await, []);
    proxy.mend();
    let both = [("balance".to_owned(), 1), ("events".to_owned(), 0)];
    eventually("both comparisons", || async { (desk.compared().await == both).then_some(()) }).await;
    let found = desk.list("/differences").await;
    assert_eq!((found.len(), &found[0]["externalRef"]), (1, &json!("ch_of_nobody")));
    // The next one finds it again.
    eventually("the next comparison", || async {
        let next = desk.ask("/reconcile").await;
        (next.status != 409).then(|| next.expect_status(200))
    })
    .await;
    assert_eq!((desk.compared().await.len(), &desk.list("/differences").await[0]["times"]), (4, &json!(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_comparison_that_dies_while_it_is_written_down_nothing_is_left() {
    let shop = Shop::silent().await;
    let desk = Desk::of(&shop).await;
    for of in ["ch_of_nobody", "ch_of_no_one"] {
        // An hour ago: a process has the machine's own time.
        let planted = shop.provider.plant_balance_transaction("charge", of, 700, "eur");
        shop.provider
            .tamper(&planted, |movement| movement["created"] = json!(movement["created"].as_i64().unwrap() - 3600));
    }
    let (url, options) = (shop.app.master.url(), shop.provider.options());
    let environment = [
        ("STRIPE_SECRET_KEY", options.secret_key.as_str()),
        ("STRIPE_WEBHOOK_SECRET", options.webhook_secret.as_str()),
        ("STRIPE_API_URL", shop.provider.url()),
        ("PAYMENT_RECONCILE_S", "100000"),
        ("PAYMENT_SWEEP_S", "100000"),
    ];
    let node = Process::serve(&url, &environment).await;
    let mut in_the_way = shop.app.master().await;
    in_the_way.execute("begin; lock table recon_differences in share mode").await.unwrap();
    let ops = desk.ops.at(node.address);
    let asking = tokio::spawn(async move {
        let path = format!("{PAYMENTS}/reconcile");
        ops.api.try_send(Method::POST, &path, &Value::Null).await.map(|answer| answer.text())
    });
    let half = "select count(*) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock' and query like '%recon_differences%'";
    eventually("half of a comparison", || async { (count(&shop.app, half).await == 1).then_some(()) }).await;
    node.kill().await;
    assert_eq!(asking.await.unwrap(), None);
    in_the_way.execute("rollback").await.unwrap();
    let at_work = "select count(*) from pg_stat_activity
        where datname = current_database() and query like '%insert into recon_differences%' and state <> 'idle'
          and pid <> pg_backend_pid()";
    eventually("the end of what died", || async { (count(&shop.app, at_work).await == 0).then_some(()) }).await;

    // What was compared before is whole.
    assert_eq!(desk.compared().await, [("events".to_owned(), 0)]);
    assert_eq!(desk.list("/differences").await, Vec::<Value>::new());
    let found = desk.compare().await;
    assert_eq!(found.iter().map(|(_, of)| &of["times"]).collect::<Vec<_>>(), [&json!(1), &json!(1)]);
    assert_eq!(desk.compared().await.iter().map(|(_, differences)| differences).sum::<u64>(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_compares_the_books_and_says_by_its_exit_code_when_they_differ() {
    let shop = Shop::silent().await;
    shop.buy("a", "starter").await;
    let (url, options) = (shop.app.master.url(), shop.provider.options().clone());
    let environment = [
        ("STRIPE_SECRET_KEY", Some(options.secret_key.as_str())),
        ("STRIPE_WEBHOOK_SECRET", Some(options.webhook_secret.as_str())),
        ("STRIPE_API_URL", Some(shop.provider.url())),
    ];
    let reconcile = async |more: &[&str]| {
        let arguments = [&["payments", "reconcile"], more].concat();
        let done = Cli::run_in(&url, &environment, &arguments).await;
        (done.status.code(), String::from_utf8(done.stdout).unwrap())
    };
    let (code, said) = reconcile(&[]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("0 of 0 differ"), "{said}");
    // An hour ago: a process has the machine's own time.
    let planted = shop.provider.plant_balance_transaction("charge", "ch_of_nobody", 700, "eur");
    shop.provider
        .tamper(&planted, |movement| movement["created"] = json!(movement["created"].as_i64().unwrap() - 3600));
    let (code, said) = reconcile(&["--json"]).await;
    assert_eq!(code, Some(3), "{said}");
    let runs: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(runs["data"][1]["found"][0]["externalRef"], "ch_of_nobody", "{runs}");
    let (code, said) = reconcile(&[]).await;
    assert_eq!(code, Some(3));
    assert!(said.contains("FAIL") && said.contains("missing_here ch_of_nobody"), "{said}");

    let listed = Cli::json(&url, &["payments", "differences", "--state", "open"]).await;
    assert_eq!((&listed["data"][0]["kind"], &listed["data"][0]["times"]), (&json!("missing_here"), &json!(2)));
    let listed = Cli::json(&url, &["payments", "differences", "--state", "noted"]).await;
    assert_eq!((&listed["data"], &listed["meta"]["nextCursor"]), (&json!([]), &Value::Null));
    let unconfigured = Cli::run(&url, &["payments", "reconcile"]).await;
    assert_eq!(unconfigured.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unconfigured.stderr).contains("no payment provider is configured"));
    assert_eq!(
        count(
            &shop.app,
            "select count(*) from audit_events where action = 'payments_reconcile' and actor_kind = 'cli'"
        )
        .await,
        3
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_failed_is_shown_without_what_it_says() {
    let shop = Shop::silent().await;
    let desk = Desk::of(&shop).await;
    let order = shop.pay("lie", "growth").await;
    let mut lie = shop.event(&order, "checkout.session.completed");
    lie["id"] = json!("evt_lie");
    lie["data"]["object"]["amount_total"] = json!(1);
    lie["data"]["object"]["customer_details"] = json!({ "email": "buyer@example.com" });
    shop.deliver(&lie).await.expect_status(200);
    let answer = desk.get("/events").await;
    let failed = answer.expect_status(200)["data"].clone();
    assert_eq!(failed.as_array().map(Vec::len), Some(1), "{failed}");
    let event = &failed[0];
    assert_eq!((&event["id"], &event["type"]), (&json!("evt_lie"), &json!("checkout.session.completed")));
    assert_eq!((&event["objectId"], &event["source"]), (&json!(order.session), &json!("webhook")));
    assert_eq!((&event["state"], &event["attempts"]), (&json!("failed"), &json!(1)));
    assert!(event["lastError"].is_string() && event["nextAttemptAt"].is_string(), "{event}");
    let customer = text(&shop.provider.objects("customer")[0]["id"]).to_owned();
    for secret in ["buyer@example.com", &customer, "payload"] {
        assert!(!answer.text().contains(secret), "{}", answer.text());
    }
    // Asking does not make it true.
    let after = desk.retry(&event["id"]).await;
    assert_eq!((&after["state"], &after["attempts"]), (&json!("failed"), &json!(2)));
    assert_eq!(shop.purchase(&order).await["state"], "open");
    desk.ask("/events/evt_of_nobody/retry").await.expect_problem(404, "not-found");
    for event in shop.events(&order) {
        shop.deliver(&event).await.expect_status(200);
    }
    let done = desk.list("/events?state=done").await;
    assert!(done.len() >= 3 && done.iter().all(|event| event["state"] == "done"), "{done:?}");
    assert!(done.windows(2).all(|pair| pair[0]["createdAt"].as_str() >= pair[1]["createdAt"].as_str()));
    assert_eq!(count(&shop.app, "select count(*) from audit_events where action = 'payment_event_retry'").await, 1);
    shop.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_given_up_is_followed_when_somebody_asks() {
    let shop = Shop::silent().await;
    let desk = Desk::of(&shop).await;
    let order = shop.pay("late", "starter").await;
    shop.provider.refund(&shop.intent(&order), 500).unwrap();
    let refund = shop.event(&order, "refund.created");
    // Nobody has told of the payment yet.
    shop.deliver(&refund).await.expect_status(200);
    let waiting = desk.list("/events?state=received").await;
    assert_eq!((waiting.len(), &waiting[0]["id"]), (1, &refund["id"]));
    assert_eq!(waiting[0]["waitsFor"], shop.intent(&order));
    for attempts in 2..=12 {
        assert_eq!(desk.retry(&refund["id"]).await["attempts"], attempts);
    }
    let given_up = desk.list("/events?state=ignored").await;
    assert_eq!((&given_up[0]["id"], &given_up[0]["nextAttemptAt"]), (&refund["id"], &Value::Null));
    assert_eq!(shop.app.api().get(&order.success()).await.status, 200);
    assert_eq!(shop.amounts().await, [500, 0, 0]);
    // However many ask at once, it is followed once.
    let mut asking = JoinSet::new();
    for _ in 0..4 {
        let (client, path): (Client, _) =
            (desk.ops.api.clone(), format!("{PAYMENTS}/events/{}/retry", text(&refund["id"])));
        asking.spawn(async move { client.send(Method::POST, &path, None).await });
    }
    for answer in asking.join_all().await {
        let after = answer.expect_status(200);
        assert_eq!((&after["state"], &after["attempts"]), (&json!("done"), &json!(13)));
    }
    assert_eq!(shop.amounts().await, [400, 0, 0]);
    shop.deliver_all().await;
    assert_eq!(shop.amounts().await, [400, 0, 0]);
    shop.expect_reconciled().await;
    shop.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_note_a_difference_once_and_follow_an_event_again() {
    let shop = Shop::silent().await;
    let desk = Desk::of(&shop).await;
    let url = shop.app.master.url();
    shop.provider.plant_balance_transaction("charge", "ch_of_nobody", 700, "eur");
    shop.app.clock.advance(TimeDelta::minutes(20));
    shop.provider.advance(Duration::from_secs(20 * 60));
    desk.compare().await;
    let found = Cli::json(&url, &["payments", "differences", "--state", "open"]).await["data"][0].clone();
    let note = ["payments", "note", text(&found["id"]), "--note", "Of a shop that we sold."];
    let noted = Cli::json(&url, &note).await;
    assert_eq!((&noted["id"], &noted["state"]), (&found["id"], &json!("noted")));
    assert_eq!((&noted["note"], &noted["notedBy"]), (&json!("Of a shop that we sold."), &Value::Null));
    let again = Cli::run(&url, &note).await;
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("noted before"));
    assert_eq!(desk.list("/differences?state=noted").await, [noted]);
    let by_command =
        "select count(*) from audit_events where action = 'payment_difference_note' and actor_kind = 'cli'";
    assert_eq!(count(&shop.app, by_command).await, 1);

    let order = shop.pay("late", "starter").await;
    shop.provider.refund(&shop.intent(&order), 500).unwrap();
    let refund = shop.event(&order, "refund.created");
    shop.deliver(&refund).await.expect_status(200);
    let failed = Cli::json(&url, &["payments", "events"]).await;
    assert_eq!((&failed["data"], &failed["meta"]["nextCursor"]), (&json!([]), &Value::Null));
    let waiting = Cli::json(&url, &["payments", "events", "--state", "received"]).await;
    assert_eq!((&waiting["data"][0]["id"], &waiting["data"][0]["attempts"]), (&refund["id"], &json!(1)));
    let retried = Cli::json(&url, &["payments", "retry", text(&refund["id"])]).await;
    assert_eq!((&retried["state"], &retried["attempts"]), (&json!("received"), &json!(2)));
    let human = Cli::run(&url, &["payments", "events", "--state", "received"]).await;
    let said = String::from_utf8_lossy(&human.stdout).into_owned();
    assert!(said.contains(&format!("waits for {}", shop.intent(&order))), "{said}");
    let nothing = Cli::run(&url, &["payments", "retry", "evt_of_nobody"]).await;
    assert_eq!(nothing.status.code(), Some(1));
    shop.deliver_all().await;
    assert_eq!(Cli::json(&url, &["payments", "retry", text(&refund["id"])]).await["state"], "done");
    assert_eq!(shop.purchase(&order).await["refundedMinor"], 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn ops_see_what_an_organization_has_bought() {
    let shop = Shop::silent().await;
    let desk = Desk::of(&shop).await;
    let paid = shop.buy("a", "starter").await;
    let open = shop.order("b", "growth").await;
    // Somebody else's.
    let other = shop.app.owner("bob").await;
    let theirs = other.api.with("idempotency-key", "c").post("/api/credits/purchase", shop.body("starter")).await;
    let theirs = Order::of(&theirs.expect_status(201));

    let list = async |query: &str| {
        let path = format!("/api/ops/credits/purchases{query}");
        desk.ops.api.get(&path).await.expect_status(200)["data"].as_array().unwrap().clone()
    };
    let ids = |list: &[Value]| list.iter().map(|of| text(&of["id"]).to_owned()).collect::<Vec<_>>();
    assert_eq!(ids(&list("").await), [theirs.id.clone(), open.id.clone(), paid.id.clone()]);
    let of_organization = format!("?organizationId={}", shop.owner.organization_id());
    let found = list(&of_organization).await;
    assert_eq!(ids(&found), [open.id.clone(), paid.id.clone()]);
    let intent = shop.intent(&paid);
    let charge = shop.provider.object(&intent).unwrap()["latest_charge"].clone();
    assert_eq!((&found[1]["paymentIntent"], &found[1]["charge"]), (&json!(intent), &charge));
    // What the buyer sees, and whoever knows the session's id could see it too.
    assert_eq!((&found[0]["state"], found[0].get("checkoutUrl")), (&json!("open"), None));
    let mut as_bought = found[1].clone();
    for member in ["paymentIntent", "charge", "nextCheckAt"] {
        as_bought.as_object_mut().unwrap().remove(member);
    }
    assert_eq!(as_bought, shop.purchase(&paid).await);

    assert_eq!(ids(&list(&format!("{of_organization}&state=completed")).await), std::slice::from_ref(&paid.id));
    assert_eq!(list(&format!("{of_organization}&state=failed")).await, Vec::<Value>::new());
    let path = "/api/ops/credits/purchases";
    let page = desk.ops.api.get(&format!("{path}?limit=2")).await.expect_status(200);
    let cursor = text(&page["meta"]["nextCursor"]).to_owned();
    assert_eq!(ids(&list(&format!("?limit=2&cursor={cursor}")).await), std::slice::from_ref(&paid.id));
    let elsewhere = format!("{path}{of_organization}&cursor={cursor}");
    desk.ops.api.get(&elsewhere).await.expect_problem(400, "invalid-cursor");
    desk.ops.api.get(&format!("{path}?limit=0")).await.expect_field(400, "invalid-query", "limit");
    desk.ops.api.get(&format!("{path}?state=lost")).await.expect_field(400, "invalid-query", "state");
    let nobodys = kernel::OrganizationId::new(shop.app.clock.now());
    desk.ops.api.get(&format!("{path}?organizationId={nobodys}")).await.expect_problem(404, "not-found");

    let url = shop.app.master.url();
    let by_command = ["payments", "purchases", "--org", shop.owner.organization_id(), "--state", "open"];
    assert_eq!(ids(Cli::json(&url, &by_command).await["data"].as_array().unwrap()), [open.id]);
    let human = Cli::run(&url, &["payments", "purchases"]).await;
    let said = String::from_utf8_lossy(&human.stdout).into_owned();
    assert!(said.contains(&paid.id) && said.contains(&theirs.id) && said.contains(&intent), "{said}");
}
