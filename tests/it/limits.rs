//! What keeps spending within bounds and can be looked at: holds, marks and budgets, and the people that budgets are for.

use chrono::Duration;
use control_plane::credits;
use http::Method;
use integration_tests::Owner;
use kernel::UserId;
use serde_json::{Value, json};

use crate::credits::{Agency, events};
use crate::described;
use crate::scenes::{join, text, to_second_of_month};

const HOLDS: &str = "/api/credits/holds";

/// The ids of a page, in its order.
fn ids(page: &Value) -> Vec<String> {
    page["data"].as_array().unwrap().iter().map(|item| text(&item["id"]).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mark_of_a_low_balance_is_read_as_it_was_set() {
    let agency = Agency::with(0).await;
    let api = &agency.owner.api;
    let put = async |body: Value| api.send(Method::PUT, "/api/credits/alerts", Some(body)).await;
    let mark = async || api.get("/api/credits/alerts").await.expect_status(200);
    assert_eq!(mark().await, json!({ "lowBalance": null }));
    put(json!({ "lowBalance": 50 })).await.expect_status(204);
    assert_eq!(mark().await, json!({ "lowBalance": 50 }));
    // Nothing said is neither a mark nor its removal.
    put(json!({})).await.expect_field(422, "invalid-input", "/lowBalance");
    put(json!({ "lowBalance": 0 })).await.expect_field(422, "invalid-input", "/lowBalance");
    assert_eq!(mark().await, json!({ "lowBalance": 50 }));
    put(json!({ "lowBalance": null })).await.expect_status(204);
    assert_eq!(mark().await, json!({ "lowBalance": null }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_has_expired_for_everybody_the_moment_its_time_is_over() {
    let agency = Agency::with(100).await;
    let body = |seconds: i64| json!({ "storeId": agency.store["id"], "amount": 20, "expiresInSeconds": seconds });
    let made = async |key: &str, seconds| {
        let held = agency.keyed(key).post(HOLDS, body(seconds)).await.expect_status(201);
        text(&held["holdId"]).to_owned()
    };
    let (short, long) = (made("short", 600).await, made("long", 3600).await);
    let state = async |hold: &str| {
        let shown = agency.owner.api.get(&format!("{HOLDS}/{hold}")).await.expect_status(200);
        text(&shown["state"]).to_owned()
    };
    let listed =
        async |state: &str| ids(&agency.owner.api.get(&format!("{HOLDS}?state={state}")).await.expect_status(200));
    assert_eq!((state(&short).await, listed("open").await), ("open".to_owned(), vec![long.clone(), short.clone()]));

    // Nobody has booked it yet.
    agency.app.clock.advance(Duration::seconds(600));
    assert_eq!((state(&short).await, state(&long).await), ("expired".to_owned(), "open".to_owned()));
    assert_eq!((listed("open").await, listed("expired").await), (vec![long.clone()], vec![short.clone()]));
    let capture = agency.keyed("late").post(&format!("{HOLDS}/{short}/capture"), json!({ "amount": 1 })).await;
    assert_eq!(capture.expect_problem(409, "hold-not-open")["state"], "expired");
    let void = agency.keyed("void").post(&format!("{HOLDS}/{short}/void"), Value::Null).await;
    assert_eq!(void.expect_problem(409, "hold-not-open")["state"], "expired");
    agency.keyed("took").post(&format!("{HOLDS}/{long}/capture"), json!({ "amount": 5 })).await.expect_status(200);

    credits::jobs::expire_due(&agency.app.cx).await.unwrap();
    assert_eq!((state(&short).await, listed("expired").await), ("expired".to_owned(), vec![short]));
    assert_eq!((listed("captured").await, agency.amounts().await), (vec![long], [95, 0, 0]));
    agency.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn holds_are_listed_newest_first_by_store_and_state() {
    let agency = Agency::with(100).await;
    let other = agency.owner.create_store("coffee").await.expect_status(201);
    let mut made = Vec::new();
    for number in 0..5 {
        let store = if number % 2 == 0 { &agency.store } else { &other };
        let body = json!({ "storeId": store["id"], "amount": 10 + number, "description": format!("number {number}") });
        let held = agency.keyed(&format!("h{number}")).post(HOLDS, body).await.expect_status(201);
        made.push(text(&held["holdId"]).to_owned());
        // Ids of one millisecond are in no order.
        agency.app.clock.advance(Duration::milliseconds(2));
    }
    made.reverse();
    agency.keyed("v").post(&format!("{HOLDS}/{}/void", made[1]), Value::Null).await.expect_status(200);
    let list = async |query: &str| agency.owner.api.get(&format!("{HOLDS}?{query}")).await;

    let whole = list("").await.expect_status(200);
    assert_eq!((ids(&whole), &whole["meta"]["nextCursor"]), (made.clone(), &Value::Null));
    let of_other = list(&format!("storeId={}", text(&other["id"]))).await.expect_status(200);
    assert_eq!(ids(&of_other), [made[1].clone(), made[3].clone()]);
    let voided = list("state=voided").await.expect_status(200);
    assert_eq!((ids(&voided), &voided["data"][0]["description"]), (vec![made[1].clone()], &json!("number 3")));
    let open = list(&format!("state=open&storeId={}", text(&other["id"]))).await;
    described::check("credit_hold_list", &open);
    assert_eq!(ids(&open.json()), [made[3].clone()]);

    let (mut paged, mut query) = (Vec::new(), "limit=2".to_owned());
    while let Some(cursor) = {
        let page = list(&query).await.expect_status(200);
        paged.extend(ids(&page));
        page["meta"]["nextCursor"].as_str().map(str::to_owned)
    } {
        query = format!("limit=2&cursor={cursor}");
    }
    assert_eq!(paged, made);
    list(&format!("{query}&state=open")).await.expect_field(400, "invalid-cursor", "cursor");
    list("limit=0").await.expect_field(400, "invalid-query", "limit");
    list("state=lost").await.expect_field(400, "invalid-query", "state");

    // As of transactions, a token for one store sees none.
    let login = agency.owner.login(json!({ "storeId": agency.store["id"] })).await.expect_status(200);
    let limited = agency.owner.api.with_token(text(&login["tokens"]["accessToken"]));
    limited.get(HOLDS).await.expect_problem(403, "token-limited");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_threshold_of_a_budget_is_told_once_a_month() {
    let agency = Agency::with(10_000).await;
    to_second_of_month(&agency.app);
    let set = async |amount: i64| {
        let body =
            json!({ "storeId": agency.store["id"], "monthlyAmount": amount, "isHard": false, "alertPercents": [50] });
        agency.owner.api.send(Method::PUT, "/api/credits/budgets", Some(body)).await.expect_status(200)
    };
    let told = async || {
        let told = events(&agency, "credits.budget_reached").await;
        told.iter().map(|event| event["monthlyAmount"].as_i64().unwrap()).collect::<Vec<_>>()
    };
    set(100).await;
    // Reached by a hold that is voided, by one that expires, by one of which little is taken, and by what is really spent.
    let voided = agency.hold("voided", 60).await;
    assert_eq!(told().await, [100]);
    agency.keyed("v").post(&format!("{HOLDS}/{voided}/void"), Value::Null).await.expect_status(200);
    agency.hold("expired", 60).await;
    agency.app.clock.advance(Duration::seconds(3600));
    credits::jobs::expire_due(&agency.app.cx).await.unwrap();
    let taken = agency.hold("taken", 60).await;
    let capture = json!({ "amount": 10 });
    agency.keyed("c").post(&format!("{HOLDS}/{taken}/capture"), capture).await.expect_status(200);
    assert_eq!(set(100).await["data"][0]["used"], 10);
    agency.keyed("spent").post("/api/credits/spend", agency.body(80)).await.expect_status(201);
    assert_eq!(told().await, [100]);

    // Another amount is another threshold.
    set(200).await;
    agency.keyed("more").post("/api/credits/spend", agency.body(20)).await.expect_status(201);
    assert_eq!(told().await, [100, 200]);
    agency.app.clock.advance(Duration::days(31));
    agency.keyed("next").post("/api/credits/spend", agency.body(100)).await.expect_status(201);
    assert_eq!(told().await, [100, 200, 200]);
    agency.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quote_says_the_code_that_a_spend_is_refused_with() {
    let agency = Agency::with(1000).await;
    let sam = agency.app.owner("sam").await;
    join(&agency.app, &agency.owner, &sam, "staff").await;
    let put = async |body: Value| {
        agency.owner.api.send(Method::PUT, "/api/credits/budgets", Some(body)).await.expect_status(200);
    };
    put(json!({ "storeId": agency.store["id"], "monthlyAmount": 500, "isHard": true })).await;
    put(json!({ "userId": sam.registered["user"]["id"], "monthlyAmount": 50, "isHard": true })).await;
    let asks: [(&Owner, i64, u16, Value); 4] = [
        (&agency.owner, 1001, 402, Value::Null),
        (&agency.owner, 501, 403, json!("store")),
        (&sam, 51, 403, json!("member")),
        (&sam, 50, 201, Value::Null),
    ];
    for (number, (person, amount, status, budget)) in asks.into_iter().enumerate() {
        let quoted = person.api.post("/api/credits/quote", agency.body(amount)).await;
        described::check("credit_quote", &quoted);
        let client = person.api.with("idempotency-key", &format!("k{number}"));
        let spent = client.post("/api/credits/spend", agency.body(amount)).await.expect_status(status);
        let quote = quoted.expect_status(200);
        let refusal = if status == 201 { Value::Null } else { spent["code"].clone() };
        assert_eq!((&quote["refusal"], &quote["budget"]), (&refusal, &budget), "{amount}");
        assert_eq!(spent["budget"], budget, "{spent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_too_few_credits_is_told_where_there_are_more() {
    let agency = Agency::with(5).await;
    let refused = agency.keyed("k").post("/api/credits/spend", agency.body(6)).await;
    let problem = refused.expect_problem(402, "insufficient-credits");
    let packs = agency.owner.api.get(text(&problem["packsUrl"])).await.expect_status(200);
    let order = json!({ "packId": packs["data"][0]["id"] });
    // No provider is set up here; the key is what an order is asked for first.
    agency.owner.api.post(text(&problem["purchaseUrl"]), order).await.expect_problem(400, "idempotency-key-required");
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_and_admins_see_who_is_in_their_organization() {
    let agency = Agency::with(0).await;
    let mut people = vec![(agency.owner.clone(), "owner")];
    for (name, role) in [("max", "admin"), ("sam", "staff"), ("kim", "staff")] {
        agency.app.clock.advance(Duration::milliseconds(2));
        let person = agency.app.owner(name).await;
        join(&agency.app, &agency.owner, &person, role).await;
        people.push((person, role));
    }
    let stranger = agency.app.owner("eve").await;
    let path = format!("/api/organizations/{}/members", agency.owner.organization_id());
    let wanted: Vec<Value> = people
        .iter()
        .map(|(person, role)| {
            let user = &person.registered["user"];
            json!({ "id": user["id"], "email": user["email"], "firstName": user["firstName"],
                    "lastName": user["lastName"], "role": role })
        })
        .collect();
    let [(owner, _), (admin, _), (staff, _), _] = people.as_slice() else { panic!("four people") };
    for manager in [owner, admin] {
        let page = manager.api.get(&path).await;
        described::check("organization_member_list", &page);
        assert_eq!(page.json(), json!({ "data": wanted, "meta": { "nextCursor": null } }));
    }
    let first = owner.api.get(&format!("{path}?limit=3")).await.expect_status(200);
    assert_eq!(first["data"], json!(wanted[..3]));
    let rest = format!("{path}?limit=3&cursor={}", text(&first["meta"]["nextCursor"]));
    let rest = owner.api.get(&rest).await.expect_status(200);
    assert_eq!((&rest["data"], &rest["meta"]["nextCursor"]), (&json!(wanted[3..]), &Value::Null));
    owner.api.get(&format!("{path}?limit=101")).await.expect_field(400, "invalid-query", "limit");
    owner.api.get(&format!("{path}?cursor=x")).await.expect_field(400, "invalid-cursor", "cursor");

    staff.api.get(&path).await.expect_problem(403, "forbidden");
    stranger.api.get(&path).await.expect_problem(404, "not-found");
    owner.api.get("/api/organizations/org_x/members").await.expect_problem(404, "not-found");
    let login = owner.login(json!({ "storeId": agency.store["id"] })).await.expect_status(200);
    let limited = owner.api.with_token(text(&login["tokens"]["accessToken"]));
    limited.get(&path).await.expect_problem(403, "token-limited");

    // What it is for: a budget for one of them.
    let sam: UserId = text(&wanted[2]["id"]).parse().unwrap();
    let budget = json!({ "userId": sam, "monthlyAmount": 10, "isHard": true });
    owner.api.send(Method::PUT, "/api/credits/budgets", Some(budget)).await.expect_status(200);
}
