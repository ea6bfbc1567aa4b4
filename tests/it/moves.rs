//! A store moves to a copy of its database while it is used: nothing is served from both, and what is no copy is refused.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use integration_tests::{Brought, ChaosProxy, Client, Owner, Response, StoreSql, TestApp, eventually};
use kernel::Engine;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::doctor::said;
use crate::faults::{PRODUCTS, Shop, listening_node, metric, patient_app_on, second_node};
use crate::scenes::{Cart, checkout_body, count, text, variant_of};

on_each_engine! {
    a_store_moves_while_it_is_used_and_nothing_is_served_from_both
    what_is_no_whole_copy_of_the_store_at_its_version_is_refused
    what_hangs_in_the_old_database_is_broken_off
    a_node_that_master_does_not_reach_is_kept_from_the_old_database_by_its_login
}

/// What the orders of the copy are counted from, so that a number says where an order was made.
const COPY_BEGINS: i64 = 100_000;
const NEW_TITLE: &str = "served from the copy";
const AUDITED: &str = "select count(*) from audit_events where action = 'database_credentials_replace'";

/// A store on a database that its owner brought, and what it is to move to.
struct Move {
    owner: Owner,
    shop: Shop,
    old: Brought,
}

impl Move {
    async fn prepare(app: &TestApp) -> Self {
        let owner = app.owner("ada").await;
        let old = app.brought().await;
        let shop = Shop::connect(app, &owner, "mover", old.body()).await;
        Self { owner, shop, old }
    }

    /// A copy of the store's database in which everything says that it is the copy.
    async fn copy(&self, app: &TestApp) -> Brought {
        let copy = app.brought().await;
        copy.copy_from(&self.old).await;
        let mut inside = copy.inside().await;
        inside.execute(&format!("update products set title = '{NEW_TITLE}'")).await;
        inside.execute(&format!("update counters set value = value + {COPY_BEGINS}")).await;
        inside.close().await;
        copy
    }

    async fn give(&self, database: &Brought) -> Response {
        self.send(json!({ "connectionString": database.url() })).await
    }

    /// A copy that is older, on purpose.
    async fn give_older(&self, database: &Brought) -> Response {
        self.send(json!({ "connectionString": database.url(), "allowsFewerRows": true })).await
    }

    async fn send(&self, body: Value) -> Response {
        let path = format!("/api/stores/{}/database/credentials", self.shop.id);
        self.owner.api.send(Method::PUT, &path, Some(body)).await
    }
}

/// Whether an answer is out of the copy; none when the store was refused.
fn is_new(response: &Response) -> Option<bool> {
    (response.status == 200).then(|| response.json()["data"][0]["title"] == NEW_TITLE)
}

async fn orders(inside: &mut StoreSql) -> i64 {
    inside.number("select count(*) from orders").await
}

/// An answer of the storefront: when its request began and ended, and what it came from.
struct Seen {
    began: Instant,
    ended: Instant,
    /// Of an order its number.
    order: Option<i64>,
    is_new: bool,
}

/// Reads and orders without end, and notes what was answered.
async fn use_shop(
    client: Client,
    orders: bool,
    variant: String,
    answered: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
) -> Vec<Seen> {
    let mut seen = Vec::new();
    for number in 0.. {
        if is_over.load(Ordering::SeqCst) {
            break;
        }
        if orders {
            if let Some((began, order)) = place_order(&client, &variant, number).await {
                seen.push(Seen { began, ended: Instant::now(), order: Some(order), is_new: order > COPY_BEGINS });
            }
        } else {
            let began = Instant::now();
            let response = client.get(PRODUCTS).await;
            match is_new(&response) {
                Some(is_new) => seen.push(Seen { began, ended: Instant::now(), order: None, is_new }),
                None => assert_eq!(response.status, 503, "{}", response.text()),
            }
        }
        answered.fetch_add(1, Ordering::SeqCst);
    }
    seen
}

/// The number of an order that was made, and when it was asked for. A cart of the old database is none of the copy's.
async fn place_order(client: &Client, variant: &str, number: u32) -> Option<(Instant, i64)> {
    let may_fail = |response: &Response| {
        assert!([404, 503].contains(&response.status.as_u16()), "{} {}", response.status, response.text());
    };
    let made = client.send(Method::POST, "/store/v1/carts", None).await;
    if made.status != 201 {
        may_fail(&made);
        return None;
    }
    let made = made.json();
    let cart = Cart {
        shop: client.with("x-cart-token", text(&made["token"])),
        id: text(&made["id"]).to_owned(),
        token: text(&made["token"]).to_owned(),
    };
    let filled = cart.add(variant, 1).await;
    if filled.status != 200 {
        may_fail(&filled);
        return None;
    }
    let began = Instant::now();
    let ordered = cart.complete(&format!("order-{number}"), checkout_body()).await;
    if ordered.status != 201 {
        may_fail(&ordered);
        return None;
    }
    let ordered = ordered.json();
    let order = ordered["number"].as_i64().or_else(|| text(&ordered["number"]).trim_start_matches('#').parse().ok());
    Some((began, order.unwrap_or_else(|| panic!("no number in {ordered}"))))
}

async fn a_store_moves_while_it_is_used_and_nothing_is_served_from_both(engine: Engine) {
    let app = patient_app_on(engine, &[]).await;
    let moved = Move::prepare(&app).await;
    let node = second_node(&app, &[]).await;
    let (here, there) = (moved.shop.at(&app), node.storefront(&moved.shop.hostname));
    for client in [&here, &there] {
        moved.shop.expect_served(&client.get(PRODUCTS).await);
    }
    let variant = variant_of(&here, moved.shop.sells(), 0).await;
    let copy = moved.copy(&app).await;
    let (answered, is_over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut users = JoinSet::new();
    for client in [&here, &there] {
        for orders in [false, true] {
            let (client, variant) = (client.clone(), variant.clone());
            users.spawn(use_shop(client, orders, variant, Arc::clone(&answered), Arc::clone(&is_over)));
        }
    }
    let more = |count: usize| {
        let (goal, answered) = (answered.load(Ordering::SeqCst) + count, Arc::clone(&answered));
        eventually("the shop is used", move || {
            let is_reached = answered.load(Ordering::SeqCst) >= goal;
            async move { is_reached.then_some(()) }
        })
    };
    more(60).await;
    let version = "select max(route_version) from stores";
    let before = count(&app, version).await;

    // It was ordered meanwhile, which is not lost without a word.
    let problem = moved.give(&copy).await.expect_field(409, "fewer-rows", "/connectionString");
    assert!(text(&problem["detail"]).contains("orders"), "{problem}");
    let asked = Instant::now();
    moved.give_older(&copy).await.expect_status(200);
    let moment = Instant::now();

    let mut inside_old = moved.old.inside().await;
    let left_there = orders(&mut inside_old).await;
    assert_eq!(app.server().await.sessions(moved.old.name()).await.len(), 0, "nobody is left in the old database");
    more(120).await;
    is_over.store(true, Ordering::SeqCst);
    let seen: Vec<Seen> = users.join_all().await.into_iter().flatten().collect();
    for seen in &seen {
        assert!(seen.is_new || seen.began < moment, "served from the old database after the move");
        assert!(!seen.is_new || seen.ended > asked, "served from the copy before it was the store's");
    }
    assert!(seen.iter().any(|seen| seen.is_new) && seen.iter().any(|seen| !seen.is_new));
    let mut inside_new = copy.inside().await;
    let mut ordered = [0, 0];
    for number in seen.iter().filter_map(|seen| seen.order) {
        let query = format!("select count(*) from orders where number = {number}");
        let found = [inside_old.number(&query).await, inside_new.number(&query).await];
        let wanted = if number > COPY_BEGINS { [0, 1] } else { [1, 0] };
        assert_eq!(found, wanted, "order {number}");
        ordered = [ordered[0] + wanted[0], ordered[1] + wanted[1]];
    }
    assert!(ordered[0] > 0 && ordered[1] > 0, "{ordered:?}");
    assert_eq!(orders(&mut inside_old).await, left_there, "nothing was ordered in the old database after the answer");
    assert_eq!(count(&app, version).await, before + 1, "the swap is one version of the route");
    let audited = "select count(*) from audit_events
                   where action = 'database_credentials_replace' and (data->>'isOtherDatabase')::bool";
    assert_eq!((count(&app, audited).await, count(&app, AUDITED).await), (1, 1));
    inside_old.close().await;
    inside_new.close().await;

    // The old one is of no more use to anybody.
    let away = format!("{}_away", moved.old.name());
    app.server().await.rename_database(moved.old.name(), &away).await;
    for client in [&here, &there] {
        assert_eq!(is_new(&client.get(PRODUCTS).await), Some(true));
    }
    app.server().await.rename_database(&away, moved.old.name()).await;
    node.kill().await;
}

async fn what_is_no_whole_copy_of_the_store_at_its_version_is_refused(engine: Engine) {
    let app = patient_app_on(engine, &[]).await;
    let moved = Move::prepare(&app).await;
    let client = moved.shop.at(&app);
    let others = app.brought().await;
    Shop::connect(&app, &moved.owner, "other", others.body()).await;
    let version = "select max(route_version) from stores";
    let before = count(&app, version).await;
    let latest = tenant_schema::LATEST_VERSION;
    let columns = "description, installed_on, success, checksum, execution_time";
    let cases = [
        ("schema-too-old", format!("delete from _migrations where version = {latest}")),
        (
            "schema-too-new",
            format!(
                "insert into _migrations (version, {columns})
                 select {latest} + 1, {columns} from _migrations where version = {latest}"
            ),
        ),
        ("incomplete-copy", "drop table redirects".to_owned()),
        ("incomplete-copy", "delete from _migrations".to_owned()),
    ];
    for (code, change) in cases {
        let copy = moved.copy(&app).await;
        let mut inside = copy.inside().await;
        inside.execute(&change).await;
        let refused = moved.give(&copy).await;
        let problem = refused.expect_field(409, code, "/connectionString");
        assert!(
            text(&problem["detail"]).contains("copy the store's database") || code == "incomplete-copy",
            "{problem}"
        );
        assert!(!refused.text().contains(copy.name()) && !refused.text().contains("brought-secret"), "{problem}");
        // Nothing was mended there, either.
        let redirects = match engine {
            Engine::Mysql => "table_schema = database()",
            _ => "table_schema = 'tenantry'",
        };
        let tables =
            format!("select count(*) from information_schema.tables where table_name = 'redirects' and {redirects}");
        assert_eq!(inside.number(&tables).await, i64::from(!change.starts_with("drop")));
        inside.close().await;
    }
    // Every table is there, and one has lost what the store's database has in it.
    let emptied = moved.copy(&app).await;
    let mut inside = emptied.inside().await;
    inside.execute("delete from prices").await;
    inside.close().await;
    let problem = moved.give(&emptied).await.expect_field(409, "incomplete-copy", "/connectionString");
    assert!(text(&problem["detail"]).contains("prices"), "{problem}");
    moved.give_older(&emptied).await.expect_field(409, "incomplete-copy", "/connectionString");
    // One has lost some rows only.
    let thinned = moved.copy(&app).await;
    let mut inside = thinned.inside().await;
    inside
        .execute("delete from pages where id in (select id from (select id from pages order by id limit 1) first)")
        .await;
    inside.close().await;
    let problem = moved.give(&thinned).await.expect_field(409, "fewer-rows", "/connectionString");
    assert!(text(&problem["detail"]).contains("pages"), "{problem}");
    // Every table and row is there, and what keeps them quick and right is not.
    let bare = moved.copy(&app).await;
    let mut inside = bare.inside().await;
    let (index, unique, reference) = match engine {
        Engine::Mysql => {
            ("drop index products_title_idx on products", "drop index products_handle_key", "drop foreign key")
        }
        _ => ("drop index products_title_idx", "drop constraint products_handle_key", "drop constraint"),
    };
    for change in [
        index,
        &format!("alter table products {unique}"),
        &format!("alter table prices {reference} prices_variant_fk"),
        "alter table products drop constraint products_price_max_minor_check",
        "alter table products drop column subtitle",
    ] {
        inside.execute(change).await;
    }
    inside.close().await;
    let problem = moved.give(&bare).await.expect_field(409, "incomplete-copy", "/connectionString");
    for part in [
        "index products_title_idx of products: is_listed, title_sort, id",
        "index products_handle_key of products: handle, unique",
        "foreign key prices_variant_fk of prices: product_variants, on delete cascade",
        "check products_price_max_minor_check of products",
        "column subtitle of products: text(255)",
    ] {
        assert!(text(&problem["detail"]).contains(part), "{part}: {problem}");
    }
    assert_eq!(text(&problem["detail"]).matches("; ").count(), 4, "and nothing else: {problem}");
    // As many rows, and not the same ones: both were used after the one was copied from the other.
    let apart = moved.copy(&app).await;
    for (database, id) in [(&moved.old, "cus_of_the_old"), (&apart, "cus_of_the_copy")] {
        let mut inside = database.inside().await;
        let customer = format!(
            "insert into customers (id, email, accepts_marketing, version, created_at, updated_at)
             values ('{id}', '{id}@example.com', false, 1, current_timestamp, current_timestamp)"
        );
        inside.execute(&customer).await;
        inside.close().await;
    }
    let problem = moved.give(&apart).await.expect_field(409, "fewer-rows", "/connectionString");
    assert!(text(&problem["detail"]).contains("customers"), "{problem}");
    let copy_of_other = app.brought().await;
    copy_of_other.copy_from(&others).await;
    for elsewhere in [&others, &copy_of_other] {
        moved.give(elsewhere).await.expect_field(409, "other-database", "/connectionString");
    }
    moved.shop.expect_served(&client.get(PRODUCTS).await);
    assert_eq!((count(&app, version).await, count(&app, AUDITED).await), (before, 0));

    // There and back again: the old one was left as it was.
    let copy = moved.copy(&app).await;
    // What a test does not look at, it says; of the store's own there is nothing to compare.
    let test = format!("/api/stores/{}/database/test", moved.shop.id);
    for (database, wanted) in [(&copy, true), (&moved.old, false)] {
        let body = json!({ "connectionString": database.url() });
        let report = moved.owner.api.post(&test, body).await.expect_status(200);
        assert_eq!(said(&report, "schema", "detail").contains("/database/credentials"), wanted, "{report}");
    }
    for (database, wanted) in [(&copy, true), (&moved.old, false), (&copy, true)] {
        moved.give(database).await.expect_status(200);
        assert_eq!(is_new(&client.get(PRODUCTS).await), Some(wanted));
    }
    // Of two who give at once, the one whose proof is out of date is told so.
    let (one, two) = tokio::join!(moved.give(&moved.old), moved.give(&copy));
    let taken = [&one, &two].into_iter().filter(|answer| answer.status == 200).count();
    assert!(taken > 0, "{} {}", one.text(), two.text());
    for answer in [one, two].iter().filter(|answer| answer.status != 200) {
        answer.expect_problem(409, "credentials-changed");
    }
    assert!(is_new(&client.get(PRODUCTS).await).is_some());
}

async fn what_hangs_in_the_old_database_is_broken_off(engine: Engine) {
    let app = patient_app_on(engine, &["--store-statement-timeout-ms", "40000"]).await;
    let moved = Move::prepare(&app).await;
    let client = moved.shop.at(&app);
    moved.shop.expect_served(&client.get(PRODUCTS).await);
    let copy = moved.copy(&app).await;
    let mut holder = moved.old.inside().await;
    holder.lock_table("products").await;
    let hanging = tokio::spawn({
        let client = client.clone();
        async move { client.get(PRODUCTS).await }
    });
    eventually("the reader hangs", || async {
        let pool = app.cx.stores.explain(moved.shop.id)?.pool?;
        (pool.open > pool.idle).then_some(())
    })
    .await;

    let began = Instant::now();
    moved.give(&copy).await.expect_status(200);
    let took = began.elapsed();

    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(20), "{took:?}");
    moved.shop.expect_refused(&hanging.await.unwrap(), &["store-database-unavailable", "store-changing"]);
    assert_eq!(is_new(&client.get(PRODUCTS).await), Some(true));
    assert_eq!(app.server().await.sessions(moved.old.name()).await.len(), 0);
    holder.unlock().await;
    holder.close().await;
}

/// A node without master goes on with what it knows, and that is the old database: what keeps it from there is the old login.
async fn a_node_that_master_does_not_reach_is_kept_from_the_old_database_by_its_login(engine: Engine) {
    let app = patient_app_on(engine, &[]).await;
    let moved = Move::prepare(&app).await;
    let proxy = ChaosProxy::to(SocketAddr::from((Ipv4Addr::LOCALHOST, app.cluster.port()))).await;
    let through_proxy = app.master.url().replace(&format!(":{}/", app.cluster.port()), &format!(":{}/", proxy.port));
    let believing = [("ROUTE_TTL_MS", "3600000"), ("ROUTE_MAX_STALE_MS", "7200000")];
    let node = listening_node(&through_proxy, &believing).await;
    let (here, there) = (moved.shop.at(&app), node.storefront(&moved.shop.hostname));
    moved.shop.expect_served(&there.get(PRODUCTS).await);
    let copy = moved.copy(&app).await;

    proxy.stall();
    moved.give(&copy).await.expect_status(200);
    assert_eq!(is_new(&here.get(PRODUCTS).await), Some(true));
    assert_eq!(is_new(&there.get(PRODUCTS).await), Some(false), "it has heard of nothing");
    // As the API's description says.
    let mut server = app.server().await;
    server.set_password(moved.old.name(), "no-nodes-any-more").await;
    server.end_sessions(moved.old.name()).await;
    let refused = there.get(PRODUCTS).await;
    moved.shop.expect_refused(&refused, &["store-database-unavailable"]);

    proxy.mend();
    eventually("the node hears of the move", || async {
        (is_new(&there.get(PRODUCTS).await) == Some(true)).then_some(())
    })
    .await;
    eventually("the node listens again", || async {
        (metric(&node, "tenantry_listener_connected").await > 0.0).then_some(())
    })
    .await;
    assert_eq!(is_new(&here.get(PRODUCTS).await), Some(true));
    node.kill().await;
}
