//! What ops sell and what services cost: new versions take over, those before stay what they were.

use chrono::{Duration, SubsecRound as _};
use control_plane::credits::verify;
use devkit::payments::Checkout;
use integration_tests::Cli;
use kernel::Clock as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::credits::give;
use crate::purchases::Shop;
use crate::scenes::{count, text};

const PRICES: &str = "/api/ops/credits/prices";
const PACKS: &str = "/api/ops/credits/packs";

fn price(credits: i64) -> Value {
    json!({ "service": "translation", "name": "Translation", "unit": "word", "credits": credits, "per": 100 })
}

fn pack(price_minor: i64) -> Value {
    json!({ "code": "growth", "name": "Growth", "credits": 3000, "priceMinor": price_minor, "currency": "EUR" })
}

fn with(mut body: Value, member: &str, value: impl Into<Value>) -> Value {
    body[member] = value.into();
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_price_takes_over_from_its_moment_on() {
    let shop = Shop::silent().await;
    let (owner, ops) = (&shop.owner, shop.app.admin().await);
    let store = owner.create_store("tea").await.expect_status(201);
    give(&shop.app, &store, 1000).await;
    let costs = async || {
        let body = json!({ "storeId": store["id"], "service": "translation", "quantity": 1000 });
        let quote = owner.api.post("/api/credits/quote", body).await.expect_status(200);
        (quote["amount"].clone(), quote["price"]["version"].clone())
    };
    assert_eq!(costs().await, (json!(10), json!(1)));
    let made = ops.api.post(PRICES, price(2)).await.expect_status(201);
    assert_eq!((&made["version"], &made["credits"], &made["per"]), (&json!(2), &json!(2), &json!(100)));
    assert_eq!(costs().await, (json!(20), json!(2)));
    // Said again, also at once, it is what it is.
    let mut again = JoinSet::new();
    for _ in 0..4 {
        let api = ops.api.clone();
        again.spawn(async move { api.post(PRICES, price(2)).await });
    }
    for answer in again.join_all().await {
        assert_eq!(answer.expect_status(200), made);
    }
    let body = json!({ "storeId": store["id"], "service": "translation", "quantity": 1000 });
    let spent = owner.api.with("idempotency-key", "words").post("/api/credits/spend", body).await.expect_status(201);
    assert_eq!((&spent["amount"], &spent["service"]), (&json!(20), &json!("translation")));

    let now = shop.app.clock.now().trunc_subsecs(6);
    let later =
        ops.api.post(PRICES, with(price(3), "validFrom", json!(now + Duration::days(1)))).await.expect_status(201);
    assert_eq!(later["version"], 3);
    assert_eq!(costs().await, (json!(20), json!(2)));
    let all = ops.api.get(PRICES).await.expect_status(200);
    let versions = all["data"].as_array().unwrap().iter().filter(|of| of["service"] == "translation");
    assert_eq!(versions.map(|of| of["version"].clone()).collect::<Vec<_>>(), [json!(3), json!(2), json!(1)]);
    shop.app.clock.advance(Duration::days(2));
    assert_eq!(costs().await, (json!(30), json!(3)));
    // The request of then, heard late, is what is so already.
    let late = ops.api.post(PRICES, with(price(3), "validFrom", json!(now + Duration::days(1)))).await;
    assert_eq!(late.expect_status(200)["version"], 3);

    let words = ["credits", "price-set", "photo-shoot", "--name", "Photo shoot", "--unit", "hour", "--credits", "40"];
    let set = Cli::json(&shop.app.master.url(), &words).await;
    assert_eq!((&set["version"], &set["per"], &set["unit"]), (&json!(1), &json!(1), &json!("hour")));
    let listed = owner.api.get("/api/credits/prices").await.expect_status(200);
    assert!(listed["data"].as_array().unwrap().iter().any(|of| of["service"] == "photo-shoot"), "{listed}");
    let audited = "select string_agg(actor_kind || ' ' || (data ->> 'version'), ',' order by at, id) from audit_events
        where action = 'credit_price_set'";
    let audited: String = sqlx::query_scalar(audited).fetch_one(&mut shop.app.master().await).await.unwrap();
    assert_eq!(audited.split(',').filter(|entry| entry.starts_with("user")).count(), 2, "{audited}");
    assert_eq!(audited.split(',').filter(|entry| *entry == "cli 1").count(), 1, "{audited}");
    assert_eq!(verify::verify(&shop.app.cx, None).await.unwrap().violations, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_price_that_cannot_be_names_its_field() {
    let shop = Shop::silent().await;
    let ops = shop.app.admin().await;
    let now = shop.app.clock.now();
    for (member, value) in [
        ("service", json!("Translation")),
        ("service", json!("t")),
        ("service", json!("-x")),
        ("service", json!("a_b")),
        ("name", json!(" ")),
        ("unit", json!("a\nb")),
        ("unit", json!("x".repeat(61))),
        ("credits", json!(0)),
        ("credits", json!(-1)),
        ("credits", json!(1.5)),
        ("credits", json!(1_000_000_001)),
        ("per", json!(0)),
        ("per", json!(1_000_000_001)),
        ("validFrom", json!(now - Duration::seconds(1))),
        ("validFrom", json!(now + Duration::days(4000))),
        ("validFrom", json!("tomorrow")),
    ] {
        let answer = ops.api.post(PRICES, with(price(2), member, value)).await;
        answer.expect_field(422, "invalid-input", &format!("/{member}"));
    }
    for missing in ["service", "name", "unit", "credits"] {
        let mut body = price(2);
        body.as_object_mut().unwrap().remove(missing);
        assert_eq!(ops.api.post(PRICES, body).await.expect_problem(422, "invalid-input")["status"], 422);
    }
    assert_eq!(count(&shop.app, "select max(version)::bigint from credit_prices").await, 1);
    let wrong = ["credits", "price-set", "translation", "--name", "T", "--unit", "word", "--credits", "0"];
    let refused = Cli::run(&shop.app.master.url(), &wrong).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("must be 1 to 1000000000 whole credits"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_takes_the_place_of_the_one_before_and_changes_nothing_that_was_ordered() {
    let shop = Shop::silent().await;
    let ops = shop.app.admin().await;
    let before = shop.packs["growth"].clone();
    let ordered = shop.order("before", "growth").await;
    let mut asked = JoinSet::new();
    for _ in 0..4 {
        let api = ops.api.clone();
        asked.spawn(async move { api.post(PACKS, pack(12_900)).await });
    }
    let answers = asked.join_all().await;
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status.as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 201]);
    let made = answers[0].json();
    assert!(answers.iter().all(|answer| answer.json() == made));
    assert_eq!(
        (&made["version"], &made["bonusCredits"], &made["taxCode"]),
        (&json!(2), &json!(0), &json!("txcd_10103001"))
    );
    assert_eq!((&made["retiredAt"], &made["bonusExpiresDays"]), (&Value::Null, &Value::Null));

    let on_sale = shop.owner.api.get("/api/credits/packs").await.expect_status(200);
    let growth: Vec<&Value> = on_sale["data"].as_array().unwrap().iter().filter(|of| of["code"] == "growth").collect();
    assert_eq!((growth.len(), &growth[0]["id"], &growth[0]["priceMinor"]), (1, &made["id"], &json!(12_900)));
    let gone = shop.keyed("after").post("/api/credits/purchase", json!({ "packId": before["id"] })).await;
    gone.expect_field(422, "invalid-input", "/packId");
    // Whoever stood at the till pays what was written there, and gets it.
    shop.provider.checkout(&ordered.session, Checkout::Pay).unwrap();
    shop.deliver_all().await;
    let purchase = shop.purchase(&ordered).await;
    assert_eq!((&purchase["state"], &purchase["amountMinor"]), (&json!("completed"), &before["priceMinor"]));
    assert_eq!(shop.amounts().await, [2750, 0, 0]);
    let new = shop.keyed("new").post("/api/credits/purchase", json!({ "packId": made["id"] })).await.expect_status(201);
    assert_eq!((&new["purchase"]["credits"], &new["purchase"]["packVersion"]), (&json!(3000), &json!(2)));

    // A new one, by command, and a third version of this.
    let words = [
        "credits",
        "pack-set",
        "trial",
        "--name",
        "Trial",
        "--credits",
        "100",
        "--bonus-credits",
        "10",
        "--bonus-expires-days",
        "30",
        "--price-minor",
        "900",
        "--currency",
        "USD",
    ];
    let trial = Cli::json(&shop.app.master.url(), &words).await;
    assert_eq!(
        (&trial["version"], &trial["currency"], &trial["bonusExpiresDays"]),
        (&json!(1), &json!("USD"), &json!(30))
    );
    assert_eq!(Cli::json(&shop.app.master.url(), &words).await["id"], trial["id"]);
    ops.api.post(PACKS, pack(13_900)).await.expect_status(201);
    let all = ops.api.get(PACKS).await.expect_status(200);
    let growth = all["data"].as_array().unwrap().iter().filter(|of| of["code"] == "growth");
    let growth: Vec<_> = growth.map(|of| (of["version"].clone(), of["retiredAt"].is_null())).collect();
    assert_eq!(growth, [(json!(3), true), (json!(2), false), (json!(1), false)]);
    assert_eq!(count(&shop.app, "select count(*) from audit_events where action = 'credit_pack_set'").await, 3);
    shop.expect_reconciled().await;
    shop.expect_proven().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_top_up_by_a_pack_that_is_sold_at_another_price_is_turned_off() {
    let shop = Shop::silent().await;
    let ops = shop.app.admin().await;
    let rule = json!({ "threshold": 100, "packId": shop.packs["growth"]["id"], "monthlyCapMinor": 50_000 });
    let order = shop.keyed("card").post("/api/credits/purchase", with(shop.body("starter"), "saveCard", true)).await;
    let session = text(&order.expect_status(201)["checkoutUrl"]).rsplit('/').next().unwrap().to_owned();
    shop.provider.checkout(&session, Checkout::Pay).unwrap();
    shop.deliver_all().await;
    shop.owner.api.send(http::Method::PUT, "/api/credits/top-up", Some(rule)).await.expect_status(200);
    ops.api.post(PACKS, pack(99_900)).await.expect_status(201);
    control_plane::credits::topups::jobs::top_up(&shop.app.cx).await.unwrap();
    let top_up = shop.owner.api.get("/api/credits/top-up").await.expect_status(200);
    assert_eq!((&top_up["isEnabled"], &top_up["offReason"]), (&json!(false), &json!("pack_retired")), "{top_up}");
    assert_eq!(shop.amounts().await, [500, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_cannot_be_names_its_field() {
    let shop = Shop::silent().await;
    let ops = shop.app.admin().await;
    for (member, value) in [
        ("code", json!("Growth")),
        ("code", json!("")),
        ("name", json!("\u{202E}")),
        ("credits", json!(0)),
        ("credits", json!(1_000_000_001)),
        ("bonusCredits", json!(-1)),
        ("bonusExpiresDays", json!(30)),
        ("bonusExpiresDays", json!(0)),
        ("priceMinor", json!(0)),
        ("priceMinor", json!(100_000_000)),
        ("currency", json!("eur")),
        ("currency", json!("XYZ")),
        ("taxCode", json!("txcd_1")),
        ("taxCode", json!("10103001")),
    ] {
        let answer = ops.api.post(PACKS, with(pack(12_900), member, value)).await;
        answer.expect_field(422, "invalid-input", &format!("/{member}"));
    }
    assert_eq!(count(&shop.app, "select count(*) from credit_packs").await, 3);
}
