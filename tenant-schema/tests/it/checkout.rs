//! Carts, checkout and orders.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::Duration;
use kernel::{CartId, Currency, Engine, VariantId};
use tenant_schema::cart::{
    CartError, CartKey, CartPatch, CartView, MAX_QUANTITY, NewCart, cart_create, cart_get, cart_line_add_in,
    cart_line_change_in, cart_line_remove_in, cart_update_in,
};
use tenant_schema::catalog::{
    MovementReason, ProductInput, catalog_version, product_by_handle, product_load_in, product_write_in,
};
use tenant_schema::checkout::{CheckoutError, CheckoutInput, CheckoutOutcome, checkout, checkout_in};
use tenant_schema::order::order_by_id;
use tenant_schema::upkeep::{carts_expire, idempotency_keys_purge};

use crate::catalog::{plain, save};
use crate::support::{Store, now};

on_each_engine! {
    lines_merge_change_and_go_and_the_totals_follow
    tokens_are_not_shown_by_debug
    a_cart_refuses_what_does_not_fit
    a_changed_price_is_told_and_a_vanished_variant_counts_nothing
    a_repeated_checkout_answers_the_same_and_another_one_is_refused
    many_requests_for_one_cart_make_one_order
    fifty_parallel_checkouts_of_a_stock_of_ten_make_exactly_ten_orders
    checkouts_and_imports_of_one_product_do_not_fail_each_other
    two_checkouts_of_the_last_two_variants_leave_nothing_listed_as_available
    a_product_write_knows_what_was_sold_since_it_loaded_the_product
    no_product_that_is_sold_out_is_listed_as_available_however_many_sell_at_once
    what_is_sold_beyond_its_stock_or_without_stock_is_never_out
    old_carts_and_keys_are_cleared_in_batches
}

static ADDED: AtomicI64 = AtomicI64::new(0);

async fn variant(store: &Store, handle: &str) -> VariantId {
    product_by_handle(&mut store.conn().await, handle).await.unwrap().unwrap().variants[0].id
}

async fn new_cart(store: &Store) -> NewCart {
    cart_create(&mut store.conn().await, now()).await.unwrap()
}

fn key(new: &NewCart) -> CartKey<'_> {
    CartKey { id: new.cart.id, token: &new.token, if_version: None }
}

async fn add(store: &Store, new: &NewCart, variant: VariantId, quantity: u32) -> Result<CartView, CartError> {
    let mut tx = store.tx().await;
    // Later each time, so that lines stand in the order in which they came.
    let at = now() + Duration::milliseconds(ADDED.fetch_add(1, Ordering::Relaxed));
    match cart_line_add_in(&mut tx, key(new), variant, quantity, at).await {
        Ok(cart) => {
            tx.commit().await.unwrap();
            Ok(cart)
        }
        Err(error) => {
            tx.rollback().await.unwrap();
            Err(error)
        }
    }
}

fn shopper() -> CheckoutInput {
    serde_json::from_str(
        r#"{"email": "Grace@Example.com", "shippingAddress": {"firstName": "Grace", "lastName": "Hopper",
            "address1": "1 Navy Yard", "city": "Washington", "country": "US"}}"#,
    )
    .unwrap()
}

async fn complete(store: &Store, new: &NewCart, idempotency: &str) -> Result<CheckoutOutcome, CheckoutError> {
    checkout(&store.lease, new.cart.id, &new.token, idempotency, &shopper(), now()).await
}

async fn lines_merge_change_and_go_and_the_totals_follow(engine: Engine) {
    let store = Store::demo(engine).await;
    let new = new_cart(&store).await;
    let filters = variant(&store, "paper-filters").await;
    add(&store, &new, filters, 2).await.unwrap();
    let cart = add(&store, &new, filters, 1).await.unwrap();
    assert_eq!((cart.lines.len(), cart.lines[0].quantity, cart.version), (1, 3, 3));
    assert_eq!((cart.totals.subtotal_minor, cart.totals.shipping_minor, cart.totals.total_minor), (1170, 490, 1660));
    assert_eq!(cart.totals.tax_minor, 151);
    let cart = add(&store, &new, variant(&store, "round-pot").await, 1).await.unwrap();
    assert_eq!((cart.lines.len(), cart.totals.shipping_minor), (2, 0));
    assert_eq!(cart.lines[1].options[0].name, "Glaze");

    let mut tx = store.tx().await;
    let line = cart.lines[0].id;
    cart_line_change_in(&mut tx, key(&new), line, 10, now()).await.unwrap();
    let cart = cart_line_remove_in(&mut tx, key(&new), cart.lines[1].id, now()).await.unwrap();
    assert_eq!((cart.lines.len(), cart.totals.subtotal_minor), (1, 3900));
    let patch = CartPatch { email: Some("G@Example.com".to_owned()), country: Some("DE".to_owned()) };
    let cart = cart_update_in(&mut tx, key(&new), &patch, now()).await.unwrap();
    assert_eq!((cart.email.as_deref(), cart.country.as_deref()), (Some("g@example.com"), Some("DE")));
    tx.commit().await.unwrap();
    assert_eq!(cart_get(&mut store.conn().await, cart.id, &new.token, now()).await.unwrap(), cart);
}

async fn tokens_are_not_shown_by_debug(engine: Engine) {
    let store = Store::demo(engine).await;
    let new = new_cart(&store).await;
    let shown = format!("{new:?}");
    assert!(shown.contains(&new.cart.id.to_string()) && !shown.contains(&new.token), "{shown}");
    add(&store, &new, variant(&store, "paper-filters").await, 1).await.unwrap();
    let outcome = complete(&store, &new, "k").await.unwrap();
    let shown = format!("{outcome:?}");
    assert!(shown.contains(&outcome.order.id.to_string()) && !shown.contains(&outcome.order_token), "{shown}");
}

async fn a_cart_refuses_what_does_not_fit(engine: Engine) {
    let store = Store::demo(engine).await;
    let new = new_cart(&store).await;
    let pot = variant(&store, "round-pot").await;
    assert!(matches!(add(&store, &new, pot, 0).await, Err(CartError::Quantity)));
    assert!(matches!(add(&store, &new, pot, MAX_QUANTITY + 1).await, Err(CartError::Quantity)));
    assert!(matches!(add(&store, &new, pot, u32::MAX).await, Err(CartError::Quantity)));
    assert!(matches!(add(&store, &new, pot, 7).await, Err(CartError::OutOfStock { available: 6 })));
    let unknown = VariantId::new(now());
    assert!(matches!(add(&store, &new, unknown, 1).await, Err(CartError::VariantUnavailable)));
    let sold_out = variant(&store, "salted-caramel-slab").await;
    assert!(matches!(add(&store, &new, sold_out, 1).await, Err(CartError::OutOfStock { available: 0 })));
    let cart = cart_get(&mut store.conn().await, new.cart.id, &new.token, now()).await.unwrap();
    assert_eq!((cart.lines.len(), cart.version), (0, 1));

    let mut conn = store.conn().await;
    assert!(matches!(cart_get(&mut conn, new.cart.id, "wrong", now()).await, Err(CartError::NotFound)));
    assert!(matches!(cart_get(&mut conn, CartId::new(now()), &new.token, now()).await, Err(CartError::NotFound)));
    let later = now() + Duration::days(31);
    assert!(matches!(cart_get(&mut conn, new.cart.id, &new.token, later).await, Err(CartError::NotFound)));
    let mut tx = store.tx().await;
    let stale = CartKey { if_version: Some(7), ..key(&new) };
    let refused = cart_line_add_in(&mut tx, stale, pot, 1, now()).await;
    assert!(matches!(refused, Err(CartError::Stale { version: 1 })));
    tx.rollback().await.unwrap();
    assert_eq!(store.number("select count(*) from carts where length(token_hash) <> 64").await, 0);
}

async fn a_changed_price_is_told_and_a_vanished_variant_counts_nothing(engine: Engine) {
    let store = Store::empty(engine).await;
    save(&store, &plain("tea", 500, 9)).await.unwrap();
    save(&store, &plain("pot", 900, 9)).await.unwrap();
    let new = new_cart(&store).await;
    add(&store, &new, variant(&store, "tea").await, 2).await.unwrap();
    add(&store, &new, variant(&store, "pot").await, 1).await.unwrap();
    save(&store, &plain("tea", 700, 9)).await.unwrap();
    store.execute("delete from products where handle = 'pot'").await;
    let cart = cart_get(&mut store.conn().await, new.cart.id, &new.token, now()).await.unwrap();
    assert!(cart.lines[0].price_changed && cart.lines[0].is_available);
    assert_eq!(cart.totals.subtotal_minor, 1400);
    assert!(!cart.lines[1].is_available);
    assert_eq!(cart.lines[1].product_title, "The pot");
    assert!(matches!(complete(&store, &new, "k").await, Err(CheckoutError::VariantUnavailable { .. })));

    let mut tx = store.tx().await;
    cart_line_remove_in(&mut tx, key(&new), cart.lines[1].id, now()).await.unwrap();
    tx.commit().await.unwrap();
    let told = CheckoutInput { expected_total_minor: Some(1000), ..shopper() };
    let refused = checkout(&store.lease, new.cart.id, &new.token, "k", &told, now()).await;
    assert!(matches!(refused, Err(CheckoutError::PriceChanged { total_minor: 1400 })));
    assert_eq!(complete(&store, &new, "k").await.unwrap().order.totals.total_minor, 1400);
}

async fn a_repeated_checkout_answers_the_same_and_another_one_is_refused(engine: Engine) {
    let store = Store::demo(engine).await;
    let new = new_cart(&store).await;
    assert!(matches!(complete(&store, &new, "first").await, Err(CheckoutError::CartEmpty)));
    add(&store, &new, variant(&store, "thumb-cup").await, 2).await.unwrap();
    let placed = complete(&store, &new, "first").await.unwrap();
    assert!(!placed.is_replayed);
    assert_eq!(placed.order.number, 1001);
    assert_eq!(placed.order.lines[0].options[0].value, "Oat");
    let again = complete(&store, &new, "first").await.unwrap();
    assert_eq!(again, CheckoutOutcome { is_replayed: true, ..placed.clone() });

    let other_body = CheckoutInput { email: "other@example.com".to_owned(), ..shopper() };
    let reused = checkout(&store.lease, new.cart.id, &new.token, "first", &other_body, now()).await;
    assert!(matches!(reused, Err(CheckoutError::KeyReused)));
    let other_key = complete(&store, &new, "second").await;
    assert!(matches!(other_key, Err(CheckoutError::CartCompleted { order }) if order == placed.order.id));
    let stranger = checkout(&store.lease, new.cart.id, "wrong", "first", &shopper(), now()).await;
    assert!(matches!(stranger, Err(CheckoutError::CartNotFound)));
    for bad in ["", "a\nb", "é", &"x".repeat(201)] {
        assert!(matches!(complete(&store, &new, bad).await, Err(CheckoutError::KeyMalformed)), "{bad:?}");
    }
    assert!(matches!(add(&store, &new, variant(&store, "thumb-cup").await, 1).await, Err(CartError::Completed)));

    let mut conn = store.conn().await;
    let read = order_by_id(&mut conn, placed.order.id, &placed.order_token).await.unwrap();
    assert_eq!(read, Some(placed.order.clone()));
    assert_eq!(order_by_id(&mut conn, placed.order.id, &new.token).await.unwrap(), None);
    assert_eq!(store.number("select count(*) from orders").await, 1);
    assert_eq!(store.number("select reserved from inventory_levels where reserved > 0").await, 2);
    assert_eq!(store.number("select count(*) from order_events").await, 1);
    assert_eq!(store.number("select count(*) from customers where email = 'grace@example.com'").await, 1);
}

async fn many_requests_for_one_cart_make_one_order(engine: Engine) {
    let store = Arc::new(Store::demo(engine).await);
    let new = Arc::new(new_cart(&store).await);
    add(&store, &new, variant(&store, "heather-honey").await, 1).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        let (store, new) = (Arc::clone(&store), Arc::clone(&new));
        tasks.spawn(async move { complete(&store, &new, if n % 2 == 0 { "same" } else { "odd" }).await });
    }
    let outcomes = tasks.join_all().await;
    let fresh = outcomes.iter().flatten().filter(|outcome| !outcome.is_replayed).count();
    assert_eq!(fresh, 1);
    for outcome in &outcomes {
        assert!(matches!(outcome, Ok(_) | Err(CheckoutError::CartCompleted { .. })), "{outcome:?}");
    }
    assert_eq!(store.number("select count(*) from orders").await, 1);
    assert_eq!(store.number("select sum(reserved) from inventory_levels").await, 1);
}

async fn fifty_parallel_checkouts_of_a_stock_of_ten_make_exactly_ten_orders(engine: Engine) {
    let store = Arc::new(Store::empty(engine).await);
    save(&store, &plain("rare", 500, 10)).await.unwrap();
    save(&store, &plain("common", 500, 1000)).await.unwrap();
    let (rare, common) = (variant(&store, "rare").await, variant(&store, "common").await);
    let before = catalog_version(&mut store.conn().await).await.unwrap();
    let mut carts = Vec::new();
    for n in 0..50 {
        let new = new_cart(&store).await;
        // In either order, so that locks taken in the order of the lines would meet.
        for variant in if n % 2 == 0 { [rare, common] } else { [common, rare] } {
            add(&store, &new, variant, 1).await.unwrap();
        }
        carts.push(new);
    }
    let mut tasks = tokio::task::JoinSet::new();
    for (n, new) in carts.into_iter().enumerate() {
        let store = Arc::clone(&store);
        tasks.spawn(async move { complete(&store, &new, &format!("key-{n}")).await });
    }
    let outcomes = tasks.join_all().await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 10);
    for outcome in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert!(
            matches!(outcome, CheckoutError::OutOfStock { variant, available: 0 } if *variant == rare),
            "{outcome:?}"
        );
    }
    assert_eq!(store.number("select count(*) from orders").await, 10);
    assert_eq!(store.number("select max(number) from orders").await, 1010);
    assert_eq!(store.number("select sum(reserved) from inventory_levels").await, 20);
    // Selling the last one shows in the list, and the catalogue's version says so once.
    let sold_out = product_by_handle(&mut store.conn().await, "rare").await.unwrap().unwrap();
    assert!(!sold_out.is_available && !sold_out.variants[0].is_available);
    assert_eq!(catalog_version(&mut store.conn().await).await.unwrap(), before + 1);
}

async fn checkouts_and_imports_of_one_product_do_not_fail_each_other(engine: Engine) {
    use tenant_schema::import::{ImportOptions, products_import};
    let store = Arc::new(Store::empty(engine).await);
    save(&store, &plain("tea", 500, 20)).await.unwrap();
    let tea = variant(&store, "tea").await;
    let mut carts = Vec::new();
    for _ in 0..20 {
        let new = new_cart(&store).await;
        add(&store, &new, tea, 1).await.unwrap();
        carts.push(new);
    }
    let mut tasks = tokio::task::JoinSet::new();
    for (n, new) in carts.into_iter().enumerate() {
        let store = Arc::clone(&store);
        tasks.spawn(async move { complete(&store, &new, &format!("key-{n}")).await.map(drop) });
    }
    for quantity in 20..30 {
        let file = format!("Handle,Title,SKU,Price,Inventory quantity\ntea,Tea,SKU-tea,5.00,{quantity}\n");
        let report = products_import(&store.lease, file.as_bytes(), ImportOptions::new(), now(), |_| {}).await.unwrap();
        assert_eq!(report.errors, []);
    }
    for outcome in tasks.join_all().await {
        outcome.unwrap();
    }
    let (orders, reserved) = ("select count(*) from orders", "select sum(reserved) from inventory_levels");
    assert_eq!((store.number(orders).await, store.number(reserved).await), (20, 20));
    // Whoever came last, the list says what the stock says.
    let is_right = "select count(*) from products p join product_variants v on v.product_id = p.id
        join inventory_levels l on l.variant_id = v.id where p.is_available = (l.stocked > l.reserved)";
    assert_eq!(store.number(is_right).await, 1);
}

/// A product with two variants, and one of each in stock.
fn pair(handle: &str) -> ProductInput {
    let mut pair = plain(handle, 500, 1);
    pair.options = vec!["Side".to_owned()];
    pair.variants = ["left", "right"]
        .map(|side| {
            let mut variant = pair.variants[0].clone();
            variant.options = vec![side.to_owned()];
            variant.sku = Some(format!("{handle}-{side}"));
            variant
        })
        .to_vec();
    pair
}

/// A cart for each of the two variants.
async fn carts_of_pair(store: &Store, handle: &str) -> [NewCart; 2] {
    let product = product_by_handle(&mut store.conn().await, handle).await.unwrap().unwrap();
    let carts = [new_cart(store).await, new_cart(store).await];
    for (cart, variant) in carts.iter().zip(&product.variants) {
        add(store, cart, variant.id, 1).await.unwrap();
    }
    carts
}

/// Products whose list entry says something else than their stock.
const WRONGLY_LISTED: &str =
    "select count(*) from products p where p.is_available <> exists (select 1 from product_variants v
    join inventory_levels l on l.variant_id = v.id where v.product_id = p.id and l.stocked > l.reserved)";

async fn two_checkouts_of_the_last_two_variants_leave_nothing_listed_as_available(engine: Engine) {
    let store = Store::empty(engine).await;
    save(&store, &pair("glove")).await.unwrap();
    let [left, right] = carts_of_pair(&store, "glove").await;
    let mut first = store.tx().await;
    // Two shoppers, who have nothing to do with each other but the product.
    let ada = CheckoutInput { email: "ada@example.com".to_owned(), ..shopper() };
    checkout_in(&mut first, left.cart.id, &left.token, "k", &ada, now()).await.unwrap();
    let rest_of_first = async {
        // By then the second one has done all that it can beside the first.
        while store.waiting().await == 0 {}
        first.commit().await.unwrap();
    };
    let both = async { tokio::join!(complete(&store, &right, "k"), rest_of_first) };
    let (second, ()) = tokio::time::timeout(std::time::Duration::from_secs(60), both).await.unwrap();
    second.unwrap();
    assert!(!product_by_handle(&mut store.conn().await, "glove").await.unwrap().unwrap().is_available);
}

async fn a_product_write_knows_what_was_sold_since_it_loaded_the_product(engine: Engine) {
    let store = Store::empty(engine).await;
    let mut glove = pair("glove");
    save(&store, &glove).await.unwrap();
    let [left, _] = carts_of_pair(&store, "glove").await;
    let mut tx = store.tx().await;
    let stored = product_load_in(&mut tx, "glove", Currency::USD).await.unwrap();
    complete(&store, &left, "k").await.unwrap();
    glove.variants[1].stocked = 0;
    let reason = MovementReason::Adjustment;
    product_write_in(&mut tx, stored.as_ref(), &glove, Currency::USD, reason, now()).await.unwrap();
    tx.commit().await.unwrap();
    assert!(!product_by_handle(&mut store.conn().await, "glove").await.unwrap().unwrap().is_available);
}

async fn no_product_that_is_sold_out_is_listed_as_available_however_many_sell_at_once(engine: Engine) {
    const PAIRS: usize = 40;
    let store = Arc::new(Store::empty(engine).await);
    let mut carts = Vec::new();
    for at in 0..PAIRS {
        save(&store, &pair(&format!("pair-{at}"))).await.unwrap();
        carts.extend(carts_of_pair(&store, &format!("pair-{at}")).await);
    }
    assert_eq!(store.number(WRONGLY_LISTED).await, 0);
    let mut checkouts = tokio::task::JoinSet::new();
    for cart in carts {
        let store = Arc::clone(&store);
        checkouts.spawn(async move { complete(&store, &cart, "k").await.map(drop) });
    }
    for outcome in checkouts.join_all().await {
        outcome.unwrap();
    }
    assert_eq!(store.number("select sum(reserved) from inventory_levels").await, 2 * PAIRS as i64);
    assert_eq!(store.number(WRONGLY_LISTED).await, 0);
    assert_eq!(store.number("select count(*) from products where is_available").await, 0);
}

async fn what_is_sold_beyond_its_stock_or_without_stock_is_never_out(engine: Engine) {
    let store = Store::empty(engine).await;
    let mut beyond = plain("beyond", 100, 0);
    beyond.variants[0].allows_backorder = true;
    let mut uncounted = plain("uncounted", 100, 0);
    uncounted.variants[0].manages_stock = false;
    save(&store, &beyond).await.unwrap();
    save(&store, &uncounted).await.unwrap();
    let new = new_cart(&store).await;
    add(&store, &new, variant(&store, "beyond").await, 3).await.unwrap();
    add(&store, &new, variant(&store, "uncounted").await, 3).await.unwrap();
    complete(&store, &new, "k").await.unwrap();
    assert_eq!(store.number("select sum(reserved) from inventory_levels").await, 3);
    // From here on it may not be denied any more: three are promised.
    beyond.variants[0].allows_backorder = false;
    let refused = save(&store, &beyond).await;
    assert!(matches!(refused, Err(tenant_schema::catalog::CatalogError::StockBelowReserved)));
}

async fn old_carts_and_keys_are_cleared_in_batches(engine: Engine) {
    let store = Store::demo(engine).await;
    for n in 0..3 {
        let new = new_cart(&store).await;
        add(&store, &new, variant(&store, "paper-filters").await, 1).await.unwrap();
        if n == 0 {
            complete(&store, &new, "k").await.unwrap();
        }
    }
    let later = now() + Duration::days(40);
    let mut conn = store.conn().await;
    assert_eq!(carts_expire(&mut conn, now(), 10).await.unwrap(), 0);
    assert_eq!(carts_expire(&mut conn, later, 1).await.unwrap(), 1);
    assert_eq!(carts_expire(&mut conn, later, 10).await.unwrap(), 1);
    assert_eq!(idempotency_keys_purge(&mut conn, now() + Duration::hours(25), 10).await.unwrap(), 0);
    assert_eq!(idempotency_keys_purge(&mut conn, later, 10).await.unwrap(), 1);
}
