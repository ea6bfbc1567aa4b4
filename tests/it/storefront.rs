//! What a store's visitors get: the catalogue, carts, and orders made exactly once.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]
#![expect(clippy::disallowed_methods, reason = "every task is waited for by its test")]

use std::collections::BTreeSet;

use http::Method;
use integration_tests::{Client, Owner, TestApp};
use kernel::Engine;
use serde_json::{Value, json};

use crate::scenes::{Cart, checkout_body, store_path, text, variant_of};

on_each_engine! {
    a_walk_by_cursor_sees_each_product_once_in_every_order
    filters_and_search_find_what_they_say
    a_product_is_found_by_handle_and_by_id
    categories_pages_and_the_store_are_shown
    an_answer_is_valid_until_the_catalogue_changes
    a_cart_is_filled_changed_and_emptied
    a_cart_opens_only_to_its_token
    a_change_of_an_old_version_is_refused
    a_quantity_is_a_whole_number_from_1_to_999_and_a_price_is_never_the_clients
    a_cart_has_a_limit_of_lines_and_a_time
    an_order_costs_what_the_stores_settings_say
    an_order_is_made_once_and_read_with_its_token_only
    a_checkout_needs_a_key_a_full_cart_and_sound_fields
    a_price_that_rose_is_shown_and_a_product_that_left_is_not_sold
    one_key_sent_many_times_at_once_makes_one_order
    fifty_checkouts_at_once_of_a_stock_of_ten_make_ten_orders
}

/// A platform with one owner and one store with the demo catalogue, and a shopper of it.
struct Tea {
    app: TestApp,
    owner: Owner,
    store: Value,
    shop: Client,
}

async fn tea(engine: Engine) -> Tea {
    let app = TestApp::start_on(engine).await;
    let owner = app.owner("ada").await;
    let store = app.active_store(&owner, "tea").await;
    let shop = app.storefront_of(&store);
    Tea { app, owner, store, shop }
}

impl Tea {
    async fn import(&self, file: &str) -> Value {
        let path = store_path(&self.store, "/products/import");
        let report =
            self.owner.api.send_bytes(Method::POST, &path, "text/csv", file.to_owned()).await.expect_status(200);
        assert_eq!(report["errorsTotal"], 0, "{report}");
        report
    }

    async fn settings(&self, settings: Value) {
        let path = store_path(&self.store, "");
        self.owner.api.patch(&path, json!({ "settings": settings })).await.expect_status(200);
    }

    /// Stocked and reserved of a variant, as the store's database has it.
    async fn stock(&self, variant: &str) -> (i64, i64) {
        let of_variant = format!("from inventory_levels where variant_id = '{variant}'");
        let mut inside = self.app.inside(&self.store).await;
        let stocked = inside.number(&format!("select stocked {of_variant}")).await;
        (stocked, inside.number(&format!("select reserved {of_variant}")).await)
    }

    async fn count(&self, statement: &'static str) -> i64 {
        self.app.inside(&self.store).await.number(statement).await
    }
}

fn handles(page: &Value) -> Vec<&str> {
    page["data"].as_array().unwrap().iter().map(|product| text(&product["handle"])).collect()
}

/// All handles of a list, page by page.
async fn walk(shop: &Client, query: &str, limit: usize) -> Vec<String> {
    let mut seen = Vec::new();
    let mut path = format!("/store/v1/products?limit={limit}&{query}");
    loop {
        let page = shop.get(&path).await.expect_status(200);
        let found = handles(&page);
        assert!(found.len() <= limit);
        assert!(seen.len() < 1000, "the pages do not end: {query}");
        seen.extend(found.into_iter().map(str::to_owned));
        let Some(next) = page["meta"]["nextCursor"].as_str() else { return seen };
        path = format!("/store/v1/products?limit={limit}&{query}&cursor={next}");
    }
}

async fn a_walk_by_cursor_sees_each_product_once_in_every_order(engine: Engine) {
    let tea = tea(engine).await;
    let everything: BTreeSet<String> = walk(&tea.shop, "", 100).await.into_iter().collect();
    assert_eq!(everything.len(), 12);
    for sort in ["newest", "title", "-title", "price", "-price"] {
        let whole = walk(&tea.shop, &format!("sort={sort}"), 100).await;
        assert_eq!(whole.iter().cloned().collect::<BTreeSet<_>>(), everything, "{sort}");
        for limit in [1, 5] {
            assert_eq!(walk(&tea.shop, &format!("sort={sort}"), limit).await, whole, "{sort} by {limit}");
        }
    }
    let titles = tea.shop.get("/store/v1/products?sort=title").await.expect_status(200);
    let titles: Vec<String> =
        titles["data"].as_array().unwrap().iter().map(|product| text(&product["title"]).to_lowercase()).collect();
    assert!(titles.is_sorted(), "{titles:?}");
    let prices = tea.shop.get("/store/v1/products?sort=-price").await.expect_status(200);
    let prices: Vec<i64> =
        prices["data"].as_array().unwrap().iter().map(|product| product["priceMinMinor"].as_i64().unwrap()).collect();
    assert!(prices.is_sorted_by(|a, b| a >= b), "{prices:?}");
}

async fn filters_and_search_find_what_they_say(engine: Engine) {
    let tea = tea(engine).await;
    let cases: &[(&str, &[&str])] = &[
        ("category=pantry", &["heather-honey", "ginger-thins", "salted-caramel-slab"]),
        ("category=none", &[]),
        ("tag=bestseller&category=tea", &["harbour-breakfast", "night-orchard"]),
        ("tag=BestSeller&category=tea", &["harbour-breakfast", "night-orchard"]),
        ("vendor=kiln%20%26%20daughter", &["round-pot", "thumb-cup"]),
        ("q=ginger", &["ginger-thins"]),
        ("q=GINGER", &["ginger-thins"]),
        ("q=paper+filters", &["paper-filters"]),
        ("q=filters+paper", &["paper-filters"]),
        ("q=nothing-like-it", &[]),
        ("q=%25", &[]),
        ("q=_", &[]),
        ("price_min=4000", &["round-pot"]),
        // One variant must cost what is asked for: a tin of tea that comes for 650 and for 2490 is no tea for 1000.
        ("price_min=1000&price_max=1150&category=tea", &["harbour-breakfast"]),
        ("price_min=1800&price_max=2000&category=tea", &["tasting-tin"]),
        ("price_max=400", &["paper-filters"]),
        ("price_min=9&price_max=8", &[]),
        ("category=pantry&in_stock=true", &["heather-honey", "ginger-thins"]),
    ];
    for (query, wanted) in cases {
        let page = tea.shop.get(&format!("/store/v1/products?{query}")).await.expect_status(200);
        assert_eq!(handles(&page), *wanted, "{query}");
    }
    let narrow = walk(&tea.shop, "category=tea&sort=price", 2).await;
    assert_eq!(narrow.len(), 5);
    for bad in [
        "limit=0",
        "limit=101",
        "limit=-1",
        "limit=x",
        "sort=random",
        "sort=",
        "price_min=1.5",
        "pricemin=1",
        "in_stock=maybe",
        "q=%00",
    ] {
        tea.shop.get(&format!("/store/v1/products?{bad}")).await.expect_problem(400, "invalid-query");
    }
    let long = "x".repeat(300);
    tea.shop.get(&format!("/store/v1/products?q={long}")).await.expect_problem(400, "invalid-query");
    // A cursor belongs to its sorting and filters.
    let page = tea.shop.get("/store/v1/products?limit=2&sort=price").await.expect_status(200);
    let cursor = text(&page["meta"]["nextCursor"]);
    for other in ["sort=title", "sort=price&category=tea", "sort=price&q=tea", "sort=price&in_stock=true"] {
        let path = format!("/store/v1/products?limit=2&{other}&cursor={cursor}");
        tea.shop.get(&path).await.expect_problem(400, "invalid-cursor");
    }
    tea.shop.get("/store/v1/products?cursor=x").await.expect_problem(400, "invalid-cursor");
}

async fn a_product_is_found_by_handle_and_by_id(engine: Engine) {
    let tea = tea(engine).await;
    let product = tea.shop.get("/store/v1/products/harbour-breakfast").await.expect_status(200);
    assert_eq!(product["options"][0]["values"], json!(["50 g", "100 g", "250 g"]));
    assert_eq!(product["variants"].as_array().map(Vec::len), Some(3));
    assert_eq!((&product["priceMinMinor"], &product["priceMaxMinor"]), (&json!(650), &json!(2490)));
    assert_eq!(product["categories"][0]["handle"], "tea");
    let by_id = tea.shop.get(&format!("/store/v1/products/{}", text(&product["id"]))).await.expect_status(200);
    assert_eq!(by_id, product);
    let sold_out = tea.shop.get("/store/v1/products/salted-caramel-slab").await.expect_status(200);
    assert_eq!((&sold_out["isAvailable"], &sold_out["variants"][0]["isAvailable"]), (&json!(false), &json!(false)));
    for missing in ["none", "Harbour-Breakfast", "prd_01JD8Q6X5MFKV9T3R0WZ2H4C7N", "%27%20or%20true--"] {
        tea.shop.get(&format!("/store/v1/products/{missing}")).await.expect_problem(404, "not-found");
    }
    for bad in ["x%00", "%ff"] {
        tea.shop.get(&format!("/store/v1/products/{bad}")).await.expect_problem(400, "malformed-path");
    }
}

async fn categories_pages_and_the_store_are_shown(engine: Engine) {
    let tea = tea(engine).await;
    let tree = tea.shop.get("/store/v1/categories").await.expect_status(200);
    let names: Vec<&str> = tree["data"].as_array().unwrap().iter().map(|node| text(&node["handle"])).collect();
    assert_eq!(names, ["tea", "teaware", "pantry"]);
    let one = tea.shop.get("/store/v1/categories/teaware").await.expect_status(200);
    assert_eq!(one["name"], "Teaware");
    let pages = tea.shop.get("/store/v1/pages").await.expect_status(200);
    assert_eq!(pages["data"].as_array().map(Vec::len), Some(3));
    for page in pages["data"].as_array().unwrap() {
        let shown = tea.shop.get(&format!("/store/v1/pages/{}", text(&page["slug"]))).await.expect_status(200);
        assert_eq!(shown["title"], page["title"]);
    }
    let store = tea.shop.get("/store/v1/store").await.expect_status(200);
    assert_eq!((text(&store["name"]), text(&store["currency"]), &store["currencyDecimals"]), ("tea", "USD", &json!(2)));
    for missing in ["/store/v1/categories/none", "/store/v1/pages/none", "/store/v1/redirects?path=/none"] {
        tea.shop.get(missing).await.expect_problem(404, "not-found");
    }
    tea.shop.get("/store/v1/redirects").await.expect_problem(400, "invalid-query");
}

async fn an_answer_is_valid_until_the_catalogue_changes(engine: Engine) {
    let tea = tea(engine).await;
    let paths = [
        "/store/v1/products",
        "/store/v1/products?limit=3&sort=price",
        "/store/v1/products/harbour-breakfast",
        "/store/v1/categories",
        "/store/v1/categories/tea",
        "/store/v1/pages",
        "/store/v1/pages/about",
        "/store/v1/store",
    ];
    let mut tags = BTreeSet::new();
    let mut before = Vec::new();
    for path in paths {
        let answer = tea.shop.get(path).await;
        answer.expect_status(200);
        let (tag, cache) = (answer.header("etag").to_owned(), answer.header("cache-control"));
        assert!(cache.contains("public") && cache.contains("max-age"), "{path}: {cache}");
        for ask in [tag.as_str(), tag.trim_start_matches("W/"), &format!("\"other\", {tag}"), "*"] {
            let again = tea.shop.with("if-none-match", ask).get(path).await;
            assert_eq!(again.status.as_u16(), 304, "{path} {ask}");
            assert!(again.bytes.is_empty());
            assert_eq!((again.header("etag"), again.header("cache-control")), (tag.as_str(), cache), "{path}");
        }
        let head = tea.shop.send(Method::HEAD, path, None).await;
        assert_eq!((head.status.as_u16(), head.bytes.len(), head.header("etag")), (200, 0, tag.as_str()), "{path}");
        tea.shop.with("if-none-match", "W/\"other\"").get(path).await.expect_status(200);
        tags.insert(tag.clone());
        before.push(tag);
    }
    assert_eq!(tags.len(), paths.len(), "two answers have one tag");
    // A tag of one page is no tag of another one.
    tea.shop.with("if-none-match", &before[0]).get(paths[1]).await.expect_status(200);
    tea.import("Handle,Title,Variant Price\nnew-cup,New Cup,12.00\n").await;
    for (path, old) in paths.iter().zip(&before) {
        let answer = tea.shop.with("if-none-match", old).get(path).await;
        answer.expect_status(200);
        assert_ne!(answer.header("etag"), old, "{path}");
    }
    let list = tea.shop.get("/store/v1/products").await;
    assert_eq!(list.expect_status(200)["data"][0]["handle"], "new-cup");
    // An import that changes nothing leaves every answer valid.
    tea.import("Handle,Title,Variant Price\nnew-cup,New Cup,12.00\n").await;
    let again = tea.shop.with("if-none-match", list.header("etag")).get("/store/v1/products").await;
    assert_eq!(again.status.as_u16(), 304);
    let missing = tea.shop.get("/store/v1/products/none").await;
    assert_eq!((missing.header("etag"), missing.header("cache-control")), ("", "no-store"));
}

async fn a_cart_is_filled_changed_and_emptied(engine: Engine) {
    let tea = tea(engine).await;
    let (small, large) =
        (variant_of(&tea.shop, "harbour-breakfast", 0).await, variant_of(&tea.shop, "harbour-breakfast", 1).await);
    let cart = Cart::create(&tea.shop).await;
    let first = cart.add(&small, 2).await;
    assert_eq!(first.header("cache-control"), "private, no-store");
    let first = first.expect_status(200);
    assert_eq!((&first["lines"][0]["unitPriceMinor"], &first["totals"]["subtotalMinor"]), (&json!(650), &json!(1300)));
    assert_eq!(first["lines"][0]["options"], json!([{ "name": "Size", "value": "50 g" }]));
    // More of the same joins its line; something else gets one of its own, below it.
    cart.add(&large, 1).await.expect_status(200);
    let both = cart.add(&small, 3).await.expect_status(200);
    assert_eq!((&both["lines"][0]["quantity"], &both["lines"][1]["quantity"]), (&json!(5), &json!(1)));
    assert_eq!(both["lines"].as_array().map(Vec::len), Some(2));
    assert_eq!(both["totals"]["subtotalMinor"], 5 * 650 + 1150);
    let line = |at: usize| cart.path(&format!("/lines/{}", text(&both["lines"][at]["id"])));
    let changed = cart.shop.patch(&line(0), json!({ "quantity": 1 })).await.expect_status(200);
    assert_eq!(changed["totals"]["subtotalMinor"], 650 + 1150);
    let removed = cart.shop.delete(&line(1)).await.expect_status(200);
    assert_eq!(removed["lines"].as_array().map(Vec::len), Some(1));
    cart.shop.delete(&line(1)).await.expect_problem(404, "not-found");
    cart.shop.patch(&line(1), json!({ "quantity": 1 })).await.expect_problem(404, "not-found");
    let email = cart.shop.patch(&cart.path(""), json!({ "email": "Sam@Example.com", "country": "DE" })).await;
    let email = email.expect_status(200);
    assert_eq!((&email["email"], &email["country"]), (&json!("sam@example.com"), &json!("DE")));
    assert_eq!(cart.get().await.expect_status(200), email);
    assert_eq!(cart.get().await.header("etag"), format!("\"{}\"", email["version"]));
}

async fn a_cart_opens_only_to_its_token(engine: Engine) {
    let tea = tea(engine).await;
    let (mine, other) = (Cart::create(&tea.shop).await, Cart::create(&tea.shop).await);
    let variant = variant_of(&tea.shop, "night-orchard", 0).await;
    tea.shop.get(&mine.path("")).await.expect_field(400, "missing-token", "X-Cart-Token");
    for shop in [
        tea.shop.with("x-cart-token", &other.token),
        tea.shop.with("x-cart-token", "x"),
        tea.shop.with("x-cart-token", &"x".repeat(5000)),
    ] {
        let stranger = Cart { shop, id: mine.id.clone(), token: String::new() };
        stranger.get().await.expect_problem(404, "not-found");
        stranger.add(&variant, 1).await.expect_problem(404, "not-found");
        stranger.shop.patch(&stranger.path(""), json!({ "email": "a@b.de" })).await.expect_problem(404, "not-found");
        stranger.complete("key", checkout_body()).await.expect_problem(404, "not-found");
    }
    assert_eq!(mine.get().await.expect_status(200)["lines"], json!([]));
    let hashes = tea.count("select count(*) from carts where length(token_hash) = 64").await;
    assert_eq!(hashes, tea.count("select count(*) from carts").await, "a cart's token is kept as it is");
}

async fn a_change_of_an_old_version_is_refused(engine: Engine) {
    let tea = tea(engine).await;
    let variant = variant_of(&tea.shop, "night-orchard", 0).await;
    let cart = Cart::create(&tea.shop).await;
    let seen = cart.get().await.header("etag").to_owned();
    cart.add(&variant, 1).await.expect_status(200);
    let stale = Cart { shop: cart.shop.with("if-match", &seen), id: cart.id.clone(), token: String::new() };
    let problem = stale.add(&variant, 1).await.expect_problem(412, "cart-changed");
    assert_eq!(format!("\"{}\"", problem["version"]), cart.get().await.header("etag"));
    stale.shop.patch(&cart.path(""), json!({ "country": "DE" })).await.expect_problem(412, "cart-changed");
    let line = text(&cart.get().await.expect_status(200)["lines"][0]["id"]).to_owned();
    stale.shop.delete(&cart.path(&format!("/lines/{line}"))).await.expect_problem(412, "cart-changed");
    assert_eq!(cart.get().await.expect_status(200)["lines"][0]["quantity"], 1);
    let now = cart.get().await.header("etag").to_owned();
    let fresh = Cart { shop: cart.shop.with("if-match", &now), id: cart.id.clone(), token: String::new() };
    fresh.add(&variant, 1).await.expect_status(200);
    let nonsense = cart.shop.with("if-match", "\"x\"");
    nonsense.patch(&cart.path(""), json!({})).await.expect_problem(400, "invalid-if-match");
}

async fn a_quantity_is_a_whole_number_from_1_to_999_and_a_price_is_never_the_clients(engine: Engine) {
    let tea = tea(engine).await;
    let variant = variant_of(&tea.shop, "paper-filters", 0).await;
    let cart = Cart::with(&tea.shop, &variant, 1).await;
    let line = text(&cart.get().await.expect_status(200)["lines"][0]["id"]).to_owned();
    let (lines, line) = (cart.path("/lines"), cart.path(&format!("/lines/{line}")));
    for quantity in
        [json!(0), json!(1000), json!(-1), json!(1.5), json!("2"), json!(null), json!(1e20), json!(4_294_967_296_i64)]
    {
        let body = json!({ "variantId": variant, "quantity": quantity });
        cart.shop.post(&lines, body).await.expect_field(422, "invalid-input", "/quantity");
        let body = json!({ "quantity": quantity });
        cart.shop.patch(&line, body).await.expect_field(422, "invalid-input", "/quantity");
    }
    for field in ["priceMinor", "unitPriceMinor", "price", "totalMinor", "discountMinor"] {
        let body = json!({ "variantId": variant, "quantity": 1, field: 1 });
        cart.shop.post(&lines, body).await.expect_field(422, "invalid-input", &format!("/{field}"));
        let body = json!({ "quantity": 1, field: 1 });
        cart.shop.patch(&line, body).await.expect_field(422, "invalid-input", &format!("/{field}"));
    }
    // 200 are there: more is refused, also when it comes in two steps.
    let problem = cart.add(&variant, 200).await.expect_problem(409, "out-of-stock");
    assert_eq!(problem["available"], 200);
    let none = variant_of(&tea.shop, "salted-caramel-slab", 0).await;
    let none = cart.add(&none, 1).await.expect_problem(409, "out-of-stock");
    assert_eq!((&none["available"], &none["detail"]), (&json!(0), &json!("It is sold out.")));
    cart.add("var_01JD8Q6X5MFKV9T3R0WZ2H4C7N", 1).await.expect_field(422, "invalid-input", "/variantId");
    let after = cart.get().await.expect_status(200);
    assert_eq!((&after["lines"][0]["quantity"], &after["lines"][0]["unitPriceMinor"]), (&json!(1), &json!(390)));
}

async fn a_cart_has_a_limit_of_lines_and_a_time(engine: Engine) {
    let tea = tea(engine).await;
    let mut file = "Handle,Title,Option1 Name,Option1 Value,Variant Price\n".to_owned();
    for at in 0..101 {
        let (title, name) = if at == 0 { ("Beads", "Colour") } else { ("", "") };
        file.push_str(&format!("beads,{title},{name},{at},1.00\n"));
    }
    tea.import(&file).await;
    let product = tea.shop.get("/store/v1/products/beads").await.expect_status(200);
    let cart = Cart::create(&tea.shop).await;
    let variants = product["variants"].as_array().unwrap();
    for variant in &variants[..100] {
        cart.add(text(&variant["id"]), 1).await.expect_status(200);
    }
    cart.add(text(&variants[100]["id"]), 1).await.expect_problem(409, "cart-full");
    cart.add(text(&variants[0]["id"]), 1).await.expect_status(200);
    tea.app.clock.advance(chrono::Duration::days(31));
    cart.get().await.expect_problem(404, "not-found");
    cart.complete("key", checkout_body()).await.expect_problem(404, "not-found");
}

async fn an_order_costs_what_the_stores_settings_say(engine: Engine) {
    let tea = tea(engine).await;
    let variant = variant_of(&tea.shop, "thumb-cup", 0).await;
    let totals = |order: &Value| {
        let of = |name: &str| order["totals"][name].as_i64().unwrap();
        [of("subtotalMinor"), of("shippingMinor"), of("taxMinor"), of("totalMinor")]
    };
    let tax = |included: bool| {
        json!({
            "pricesIncludeTax": included,
            "tax": { "rateBasisPoints": 1900, "countries": { "AT": 2000 } },
            "shipping": { "flatMinor": 500, "freeFromMinor": 4000 }
        })
    };
    // On top: 19 % of 1600 + 500 is 399.
    tea.settings(tax(false)).await;
    let cart = Cart::with(&tea.shop, &variant, 1).await;
    assert_eq!(totals(&cart.get().await.expect_status(200)), [1600, 500, 399, 2499]);
    let order = cart.complete("a", checkout_body()).await.expect_status(201);
    assert_eq!(totals(&order), [1600, 500, 399, 2499]);
    assert_eq!(
        (&order["totals"]["taxIncluded"], &order["totals"]["taxRateBasisPoints"]),
        (&json!(false), &json!(1900))
    );
    // Another country has another rate: 20 % of 2100 is 420.
    let mut body = checkout_body();
    body["shippingAddress"]["country"] = json!("AT");
    let cart = Cart::with(&tea.shop, &variant, 1).await;
    assert_eq!(totals(&cart.complete("b", body).await.expect_status(201)), [1600, 500, 420, 2520]);
    // Contained: 2100 × 19 / 119 is 335.29; from 4000 on shipping is free.
    tea.settings(tax(true)).await;
    let cart = Cart::with(&tea.shop, &variant, 1).await;
    assert_eq!(totals(&cart.complete("c", checkout_body()).await.expect_status(201)), [1600, 500, 335, 2100]);
    let cart = Cart::with(&tea.shop, &variant, 3).await;
    assert_eq!(totals(&cart.complete("d", checkout_body()).await.expect_status(201)), [4800, 0, 766, 4800]);
    // What was ordered before costs what it did.
    let path = format!("/store/v1/orders/{}", text(&order["id"]));
    let read = tea.shop.with("x-order-token", text(&order["orderToken"])).get(&path).await.expect_status(200);
    assert_eq!(totals(&read), [1600, 500, 399, 2499]);
}

async fn an_order_is_made_once_and_read_with_its_token_only(engine: Engine) {
    let tea = tea(engine).await;
    let variant = variant_of(&tea.shop, "round-pot", 0).await;
    let cart = Cart::with(&tea.shop, &variant, 2).await;
    let placed = cart.complete("key-1", checkout_body()).await;
    assert_eq!((placed.header("idempotent-replayed"), placed.header("cache-control")), ("", "private, no-store"));
    let order = placed.expect_status(201);
    assert_eq!(
        (&order["paymentStatus"], &order["status"], &order["number"]),
        (&json!("pending"), &json!("open"), &json!(1001))
    );
    assert_eq!((&order["lines"][0]["quantity"], &order["lines"][0]["productTitle"]), (&json!(2), &json!("Round Pot")));
    assert_eq!(order["billingAddress"], order["shippingAddress"]);
    let again = cart.complete("key-1", checkout_body()).await;
    assert_eq!((again.expect_status(201), again.header("idempotent-replayed")), (order.clone(), "true"));
    let mut other = checkout_body();
    other["email"] = json!("other@example.com");
    cart.complete("key-1", other).await.expect_problem(422, "idempotency-key-reused");
    let problem = cart.complete("key-2", checkout_body()).await.expect_problem(409, "cart-completed");
    assert_eq!(problem["orderId"], order["id"]);
    cart.add(&variant, 1).await.expect_problem(409, "cart-completed");
    let path = format!("/store/v1/orders/{}", text(&order["id"]));
    let mut read = order.clone();
    let token = text(&order["orderToken"]).to_owned();
    read.as_object_mut().unwrap().remove("orderToken");
    assert_eq!(tea.shop.with("x-order-token", &token).get(&path).await.expect_status(200), read);
    tea.shop.get(&path).await.expect_field(400, "missing-token", "X-Order-Token");
    for shop in [tea.shop.with("x-order-token", "x"), tea.shop.with("x-order-token", &cart.token)] {
        shop.get(&path).await.expect_problem(404, "not-found");
    }
    assert_eq!(tea.count("select count(*) from orders").await, 1);
    assert_eq!(tea.stock(&variant).await, (6, 2));
    let shown = tea.owner.api.get(&store_path(&tea.store, "")).await.expect_status(200);
    assert_eq!((&shown["counts"]["orders"], &shown["counts"]["customers"]), (&json!(1), &json!(1)));
}

async fn a_checkout_needs_a_key_a_full_cart_and_sound_fields(engine: Engine) {
    let tea = tea(engine).await;
    let variant = variant_of(&tea.shop, "round-pot", 0).await;
    let empty = Cart::create(&tea.shop).await;
    empty.complete("key", checkout_body()).await.expect_problem(409, "cart-empty");
    let cart = Cart::with(&tea.shop, &variant, 1).await;
    let bare = cart.shop.post(&cart.path("/complete"), checkout_body()).await;
    bare.expect_problem(400, "missing-idempotency-key");
    for key in ["", "a b", &"k".repeat(256)] {
        cart.complete(key, checkout_body()).await.expect_problem(400, "invalid-idempotency-key");
    }
    let cases = [
        ("/email", json!("sam")),
        ("/email", json!("sam@example.com\r\nBcc: eve@example.com")),
        ("/shippingAddress/city", json!("a\r\nX: y")),
        ("/shippingAddress/city", json!("")),
        ("/shippingAddress/firstName", json!("a\u{202E}b")),
        ("/shippingAddress/address1", json!("x".repeat(256))),
        ("/shippingAddress/country", json!("Germany")),
        ("/shippingAddress/vip", json!(true)),
        ("/paymentMethod", json!("free")),
        ("/totalMinor", json!(1)),
    ];
    for (pointer, value) in cases {
        let mut body = checkout_body();
        *match pointer.strip_prefix("/shippingAddress/") {
            Some(name) => &mut body["shippingAddress"][name],
            None => &mut body[&pointer[1..]],
        } = value;
        cart.complete("key", body).await.expect_field(422, "invalid-input", pointer);
    }
    let mut body = checkout_body();
    body["expectedTotalMinor"] = json!(1);
    let problem = cart.complete("key", body.clone()).await.expect_problem(409, "price-changed");
    assert_eq!(tea.count("select count(*) from orders").await, 0);
    assert_eq!(tea.stock(&variant).await, (6, 0));
    // Nothing of that used the key up.
    body["expectedTotalMinor"] = problem["totalMinor"].clone();
    cart.complete("key", body).await.expect_status(201);
}

async fn a_price_that_rose_is_shown_and_a_product_that_left_is_not_sold(engine: Engine) {
    let tea = tea(engine).await;
    tea.import("Handle,Title,Variant Price\ncup,Cup,10.00\nbowl,Bowl,5.00\n").await;
    let (cup, bowl) = (variant_of(&tea.shop, "cup", 0).await, variant_of(&tea.shop, "bowl", 0).await);
    let cart = Cart::with(&tea.shop, &cup, 1).await;
    cart.add(&bowl, 1).await.expect_status(200);
    tea.import("Handle,Title,Variant Price,Status\ncup,Cup,12.50,active\nbowl,Bowl,5.00,draft\n").await;
    let seen = cart.get().await.expect_status(200);
    let line = &seen["lines"][0];
    assert_eq!((&line["unitPriceMinor"], &line["priceChanged"]), (&json!(1250), &json!(true)));
    assert_eq!((&seen["lines"][1]["isAvailable"], &seen["totals"]["subtotalMinor"]), (&json!(false), &json!(1250)));
    tea.shop.get("/store/v1/products/bowl").await.expect_problem(404, "not-found");
    let problem = cart.complete("key", checkout_body()).await.expect_problem(409, "variant-unavailable");
    assert_eq!(problem["variantId"], bowl);
    cart.shop.delete(&cart.path(&format!("/lines/{}", text(&seen["lines"][1]["id"])))).await.expect_status(200);
    let order = cart.complete("key", checkout_body()).await.expect_status(201);
    assert_eq!(order["totals"]["subtotalMinor"], 1250);
}

async fn one_key_sent_many_times_at_once_makes_one_order(engine: Engine) {
    let tea = tea(engine).await;
    let variant = variant_of(&tea.shop, "round-pot", 0).await;
    let cart = Cart::with(&tea.shop, &variant, 1).await;
    let tries: Vec<_> = (0..10)
        .map(|_| {
            let cart = Cart { shop: cart.shop.clone(), id: cart.id.clone(), token: String::new() };
            tokio::task::spawn(async move { complete_with_patience(&cart, "one-key").await })
        })
        .collect();
    let mut orders = BTreeSet::new();
    for answer in tries {
        let (status, body) = answer.await.unwrap();
        assert_eq!(status, 201, "{body}");
        orders.insert(text(&body["id"]).to_owned());
    }
    assert_eq!(orders.len(), 1);
    assert_eq!(tea.count("select count(*) from orders").await, 1);
    assert_eq!(tea.stock(&variant).await, (6, 1));
}

/// Sends the same request again while the store is too busy, as `Retry-After` asks.
async fn complete_with_patience(cart: &Cart, key: &str) -> (u16, Value) {
    for _ in 0..100 {
        let answer = cart.complete(key, checkout_body()).await;
        if answer.status.as_u16() != 503 {
            return (answer.status.as_u16(), answer.json());
        }
        assert!(!answer.header("retry-after").is_empty());
    }
    panic!("the store stayed too busy for a hundred tries");
}

async fn fifty_checkouts_at_once_of_a_stock_of_ten_make_ten_orders(engine: Engine) {
    let tea = tea(engine).await;
    tea.import(
        "Handle,Title,Variant Inventory Tracker,Variant Inventory Qty,Variant Price\nscarce,Scarce,shopify,10,9.00\n",
    )
    .await;
    let variant = variant_of(&tea.shop, "scarce", 0).await;
    let mut carts = Vec::new();
    for _ in 0..50 {
        carts.push(Cart::with(&tea.shop, &variant, 1).await);
    }
    let tries: Vec<_> = carts
        .into_iter()
        .map(|cart| tokio::task::spawn(async move { complete_with_patience(&cart, "a-key").await }))
        .collect();
    let (mut numbers, mut refused) = (BTreeSet::new(), 0);
    for answer in tries {
        match answer.await.unwrap() {
            (201, order) => assert!(numbers.insert(order["number"].as_i64().unwrap()), "two orders have one number"),
            (409, problem) => {
                assert_eq!((&problem["code"], &problem["variantId"]), (&json!("out-of-stock"), &json!(variant)));
                refused += 1;
            }
            (status, body) => panic!("{status} {body}"),
        }
    }
    assert_eq!((numbers.len(), refused), (10, 40));
    assert_eq!(numbers.iter().copied().collect::<Vec<_>>(), (1001..=1010).collect::<Vec<i64>>());
    assert_eq!(tea.count("select count(*) from orders").await, 10);
    assert_eq!(tea.count("select count(*) from carts where status = 'completed'").await, 10);
    assert_eq!(tea.stock(&variant).await, (10, 10));
    // The list says at once that it is sold out.
    let product = tea.shop.get("/store/v1/products/scarce").await.expect_status(200);
    assert_eq!(product["isAvailable"], false);
}
