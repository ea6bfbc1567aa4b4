//! What a storefront reads, and what a write changes of it.

use std::collections::HashSet;

use kernel::Engine;
use kernel::{Currency, StoreId};
use tenant_schema::catalog::{
    CatalogError, MovementReason, ProductInput, ProductQuery, ProductSort, ProductStatus, SaveOutcome, VariantInput,
    catalog_version, categories_tree, category_by_handle, product_by_handle, product_delete_in, product_load_in,
    product_save_in, products_list,
};
use tenant_schema::content::{page_by_slug, pages_list, redirect_for};

use crate::support::{Store, now};

on_each_engine! {
    every_sorting_pages_through_every_product_once
    filters_narrow_the_list
    a_cursor_of_another_store_or_a_damaged_one_is_refused
    only_what_is_listed_is_shown
    a_product_page_has_its_options_variants_pictures_and_categories
    the_rest_of_the_storefront_reads
    every_write_bumps_the_version_and_an_unchanged_product_does_not
    options_change_while_ids_stay_where_they_can
    a_bad_product_is_refused_with_every_field
}

async fn handles(store: &Store, query: &ProductQuery) -> Vec<String> {
    let page = products_list(&mut store.conn().await, store.id, query).await.unwrap();
    page.products.into_iter().map(|product| product.handle).collect()
}

pub(crate) fn plain(handle: &str, price_minor: i64, stocked: i64) -> ProductInput {
    ProductInput {
        handle: handle.to_owned(),
        title: format!("The {handle}"),
        subtitle: None,
        description_html: "<p>Plain.</p>".to_owned(),
        vendor: None,
        product_type: None,
        status: ProductStatus::Active,
        is_published: true,
        seo_title: None,
        seo_description: None,
        tags: Vec::new(),
        categories: Vec::new(),
        options: Vec::new(),
        variants: vec![VariantInput {
            options: Vec::new(),
            sku: Some(format!("SKU-{handle}")),
            barcode: None,
            price_minor,
            compare_at_minor: None,
            weight_grams: 100,
            requires_shipping: true,
            is_taxable: true,
            manages_stock: true,
            allows_backorder: false,
            stocked,
        }],
        media: Vec::new(),
    }
}

pub(crate) async fn save(store: &Store, input: &ProductInput) -> Result<SaveOutcome, CatalogError> {
    let mut tx = store.tx().await;
    match product_save_in(&mut tx, input, Currency::USD, MovementReason::Adjustment, now()).await {
        Ok(saved) => {
            tx.commit().await.unwrap();
            Ok(saved.outcome)
        }
        Err(error) => {
            tx.rollback().await.unwrap();
            Err(error)
        }
    }
}

async fn every_sorting_pages_through_every_product_once(engine: Engine) {
    let store = Store::demo(engine).await;
    for sort in ["newest", "title", "-title", "price", "-price"] {
        let sort: ProductSort = sort.parse().unwrap();
        let all = handles(&store, &ProductQuery { limit: 100, sort, ..ProductQuery::default() }).await;
        assert_eq!(all.len(), 12, "{sort:?}");
        let mut seen = Vec::new();
        let mut query = ProductQuery { limit: 5, sort, ..ProductQuery::default() };
        loop {
            let page = products_list(&mut store.conn().await, store.id, &query).await.unwrap();
            seen.extend(page.products.into_iter().map(|product| product.handle));
            query.cursor = page.next_cursor;
            if query.cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, all, "{sort:?}");
    }
    let cheap = ProductQuery { sort: ProductSort::PriceAsc, limit: 1, ..ProductQuery::default() };
    assert_eq!(handles(&store, &cheap).await, ["paper-filters"]);
    assert_eq!(handles(&store, &ProductQuery { limit: 1, ..ProductQuery::default() }).await, ["harbour-breakfast"]);
}

async fn filters_narrow_the_list(engine: Engine) {
    let store = Store::demo(engine).await;
    let some = |text: &str| Some(text.to_owned());
    let base = ProductQuery { sort: ProductSort::TitleAsc, ..ProductQuery::default() };
    let cases: Vec<(ProductQuery, Vec<&str>)> = vec![
        (
            ProductQuery { category: some("pantry"), ..base.clone() },
            vec!["ginger-thins", "heather-honey", "salted-caramel-slab"],
        ),
        (
            ProductQuery { category: some("pantry"), in_stock: true, ..base.clone() },
            vec!["ginger-thins", "heather-honey"],
        ),
        (ProductQuery { tag: some("GIFT"), ..base.clone() }, vec!["brass-scoop", "salted-caramel-slab", "tasting-tin"]),
        (ProductQuery { vendor: some("kiln & daughter"), ..base.clone() }, vec!["round-pot", "thumb-cup"]),
        (ProductQuery { price_min_minor: Some(4000), ..base.clone() }, vec!["round-pot"]),
        (ProductQuery { price_max_minor: Some(600), ..base.clone() }, vec!["ginger-thins", "paper-filters"]),
        (ProductQuery { q: some("  Green  LEAVES "), ..base.clone() }, vec!["first-rain-green"]),
        (ProductQuery { q: some("demo-round-pot-3"), ..base.clone() }, vec!["round-pot"]),
        (ProductQuery { q: some("%"), ..base.clone() }, vec![]),
        (ProductQuery { q: some("' or 1=1 --"), ..base.clone() }, vec![]),
        (ProductQuery { category: some("tea%"), ..base.clone() }, vec![]),
        (ProductQuery { category: some("nothing"), ..base.clone() }, vec![]),
    ];
    for (query, wanted) in cases {
        assert_eq!(handles(&store, &query).await, wanted, "{query:?}");
    }
    // An empty page carries the version as well.
    let none = ProductQuery { tag: some("none"), ..base };
    let page = products_list(&mut store.conn().await, store.id, &none).await.unwrap();
    assert_eq!(page.catalog_version, catalog_version(&mut store.conn().await).await.unwrap());
}

async fn a_cursor_of_another_store_or_a_damaged_one_is_refused(engine: Engine) {
    let store = Store::demo(engine).await;
    let query = ProductQuery { limit: 2, ..ProductQuery::default() };
    let cursor = products_list(&mut store.conn().await, store.id, &query).await.unwrap().next_cursor;
    let with = ProductQuery { cursor, ..query };
    let mut conn = store.conn().await;
    assert!(products_list(&mut conn, store.id, &with).await.is_ok());
    assert!(matches!(products_list(&mut conn, StoreId::new(now()), &with).await, Err(CatalogError::Cursor(_))));
    let damaged = ProductQuery { cursor: Some("e30".to_owned()), ..with };
    assert!(matches!(products_list(&mut conn, store.id, &damaged).await, Err(CatalogError::Cursor(_))));
}

async fn only_what_is_listed_is_shown(engine: Engine) {
    let store = Store::empty(engine).await;
    for (handle, status, is_published) in [
        ("draft", ProductStatus::Draft, true),
        ("old", ProductStatus::Archived, true),
        ("hidden", ProductStatus::Active, false),
        ("shown", ProductStatus::Active, true),
    ] {
        let input = ProductInput { status, is_published, ..plain(handle, 100, 1) };
        assert_eq!(save(&store, &input).await.unwrap(), SaveOutcome::Created);
        let is_shown = product_by_handle(&mut store.conn().await, handle).await.unwrap().is_some();
        assert_eq!(is_shown, handle == "shown", "{handle}");
    }
    assert_eq!(handles(&store, &ProductQuery::default()).await, ["shown"]);
    let shown = product_by_handle(&mut store.conn().await, "shown").await.unwrap().unwrap();
    let by_id = product_by_handle(&mut store.conn().await, &shown.id.to_string()).await.unwrap();
    assert_eq!(by_id, Some(shown.clone()));
    let mut tx = store.tx().await;
    assert!(product_delete_in(&mut tx, shown.id, now()).await.unwrap());
    tx.commit().await.unwrap();
    assert!(handles(&store, &ProductQuery::default()).await.is_empty());
    // The same handle brings it back under its old id.
    assert_eq!(save(&store, &plain("shown", 100, 1)).await.unwrap(), SaveOutcome::Updated);
    assert_eq!(product_by_handle(&mut store.conn().await, "shown").await.unwrap().unwrap().id, shown.id);
}

async fn a_product_page_has_its_options_variants_pictures_and_categories(engine: Engine) {
    let store = Store::demo(engine).await;
    let pot = product_by_handle(&mut store.conn().await, "thumb-cup").await.unwrap().unwrap();
    assert_eq!(pot.options.len(), 1);
    assert_eq!(pot.options[0].values, ["Oat", "Slate", "Moss"]);
    let available: Vec<bool> = pot.variants.iter().map(|variant| variant.is_available).collect();
    assert_eq!(available, [true, true, false]);
    assert_eq!((pot.variants[2].title.as_str(), pot.variants[2].options[0].value.as_str()), ("Moss", "Moss"));
    assert_eq!(pot.categories[0].handle, "teaware");
    assert_eq!(pot.media[0].url, "/demo/thumb-cup.svg");
    assert_eq!(pot.tags, ["bestseller", "handmade", "stoneware"]);
    assert!(product_by_handle(&mut store.conn().await, "nothing").await.unwrap().is_none());
}

async fn the_rest_of_the_storefront_reads(engine: Engine) {
    let store = Store::demo(engine).await;
    let mut conn = store.conn().await;
    let tree = categories_tree(&mut conn).await.unwrap();
    assert_eq!(tree.roots.iter().map(|node| node.handle.as_str()).collect::<Vec<_>>(), ["tea", "teaware", "pantry"]);
    assert_eq!(category_by_handle(&mut conn, "tea").await.unwrap().unwrap().name, "Tea");
    assert!(category_by_handle(&mut conn, "coffee").await.unwrap().is_none());
    assert_eq!(pages_list(&mut conn).await.unwrap().pages.len(), 3);
    assert_eq!(page_by_slug(&mut conn, "shipping").await.unwrap().unwrap().title, "Shipping");
    assert!(redirect_for(&mut conn, "/old").await.unwrap().is_none());
    store.execute("insert into redirects values ('/old', '/new', 301, now())").await;
    assert_eq!(redirect_for(&mut conn, "/old").await.unwrap().unwrap().to_path, "/new");
}

async fn every_write_bumps_the_version_and_an_unchanged_product_does_not(engine: Engine) {
    let store = Store::empty(engine).await;
    let version = async || catalog_version(&mut store.conn().await).await.unwrap();
    let start = version().await;
    let mut input = plain("tea", 500, 3);
    assert_eq!(save(&store, &input).await.unwrap(), SaveOutcome::Created);
    assert_eq!(version().await, start + 1);
    assert_eq!(save(&store, &input).await.unwrap(), SaveOutcome::Unchanged);
    assert_eq!(version().await, start + 1);
    input.variants[0].price_minor = 600;
    input.tags = vec!["b".to_owned(), "A".to_owned(), "a".to_owned()];
    assert_eq!(save(&store, &input).await.unwrap(), SaveOutcome::Updated);
    assert_eq!(save(&store, &input).await.unwrap(), SaveOutcome::Unchanged);
    assert_eq!(version().await, start + 2);
    // A write that is rolled back leaves no trace.
    let mut tx = store.tx().await;
    product_save_in(&mut tx, &plain("other", 1, 1), Currency::USD, MovementReason::Adjustment, now()).await.unwrap();
    tx.rollback().await.unwrap();
    assert_eq!(version().await, start + 2);
}

async fn options_change_while_ids_stay_where_they_can(engine: Engine) {
    let store = Store::empty(engine).await;
    let variant = |values: &[&str], sku: &str| VariantInput {
        options: values.iter().map(|value| (*value).to_owned()).collect(),
        sku: Some(sku.to_owned()),
        ..plain("x", 100, 5).variants[0].clone()
    };
    let mut input = plain("shirt", 100, 5);
    input.options = vec!["Size".to_owned()];
    input.variants = vec![variant(&["S"], "1"), variant(&["M"], "2")];
    save(&store, &input).await.unwrap();
    let before = product_by_handle(&mut store.conn().await, "shirt").await.unwrap().unwrap();

    // A second option: the variants are recognised by their SKU, swapped SKUs by their values.
    input.options.push("Colour".to_owned());
    input.variants = vec![variant(&["M", "Red"], "2"), variant(&["S", "Red"], "1"), variant(&["S", "Blue"], "3")];
    assert_eq!(save(&store, &input).await.unwrap(), SaveOutcome::Updated);
    let after = product_by_handle(&mut store.conn().await, "shirt").await.unwrap().unwrap();
    assert_eq!((after.variants[0].id, after.variants[1].id), (before.variants[1].id, before.variants[0].id));
    assert_eq!(after.options[0].id, before.options[0].id);
    assert_eq!(after.options[0].values, ["M", "S"]);

    input.variants[0].sku = Some("1".to_owned());
    input.variants[1].sku = Some("2".to_owned());
    input.variants.pop();
    save(&store, &input).await.unwrap();
    let swapped = product_by_handle(&mut store.conn().await, "shirt").await.unwrap().unwrap();
    assert_eq!(swapped.variants[0].id, after.variants[0].id);
    assert_eq!(swapped.variants[0].sku.as_deref(), Some("1"));
    assert_eq!(swapped.variants.len(), 2);
    assert_eq!(save(&store, &input).await.unwrap(), SaveOutcome::Unchanged);
}

async fn a_bad_product_is_refused_with_every_field(engine: Engine) {
    let store = Store::empty(engine).await;
    let mut bad = plain("Bad Handle", -1, -1);
    bad.title = "a\u{202e}b".to_owned();
    bad.variants.push(bad.variants[0].clone());
    bad.media.push(tenant_schema::catalog::MediaInput {
        url: "javascript:alert(1)".to_owned(),
        alt: None,
        variant: Some(9),
    });
    let Err(CatalogError::Invalid(fields)) = save(&store, &bad).await else { panic!("expected a refusal") };
    let names: HashSet<&str> = fields.iter().map(|field| field.field.as_str()).collect();
    for name in [
        "handle",
        "title",
        "variants[0].priceMinor",
        "variants[0].stocked",
        "variants[1].options",
        "variants[1].sku",
        "media[0].url",
        "media[0].variant",
    ] {
        assert!(names.contains(name), "{name} in {names:?}");
    }
    save(&store, &plain("one", 1, 1)).await.unwrap();
    let mut taken = plain("two", 1, 1);
    taken.variants[0].sku = Some("SKU-one".to_owned());
    assert!(matches!(save(&store, &taken).await, Err(CatalogError::SkuTaken)));
    taken.variants[0].sku = None;
    taken.categories = vec!["nowhere".to_owned()];
    assert!(matches!(save(&store, &taken).await, Err(CatalogError::UnknownCategory { handle }) if handle == "nowhere"));
    let mut tx = store.tx().await;
    assert!(product_load_in(&mut tx, "two", Currency::USD).await.unwrap().is_none());
}
