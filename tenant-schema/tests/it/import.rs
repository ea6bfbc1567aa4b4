//! Product imports.

use std::fmt::Write as _;

use kernel::Engine;
use tenant_schema::catalog::{catalog_version, product_by_handle};
use tenant_schema::import::{ImportError, ImportOptions, ImportReport, products_import};
use tenant_schema::seed::counts;

use crate::support::{Store, now, shared_data};

on_each_engine! {
    the_classic_header_imports_and_the_second_time_nothing_changes
    the_new_header_means_the_same
    bad_products_are_skipped_and_named_and_the_rest_goes_in
    a_missing_column_keeps_and_a_blank_field_empties
    a_file_that_is_no_product_file_says_what_it_lacks
    a_file_that_breaks_off_leaves_only_whole_products
    the_list_of_errors_is_bounded_and_their_number_is_not
    real_files_import_when_they_are_there
}

async fn import(store: &Store, file: &str) -> ImportReport {
    products_import(&store.lease, file.as_bytes(), ImportOptions::new(), now(), |_| {}).await.unwrap()
}

fn codes(report: &ImportReport) -> Vec<(u64, Option<&str>, &str)> {
    report.errors.iter().map(|error| (error.line, error.column.as_deref(), error.code)).collect()
}

const CLASSIC: &str = include_str!("../data/classic.csv");
const NEW: &str = include_str!("../data/new-header.csv");

async fn the_classic_header_imports_and_the_second_time_nothing_changes(engine: Engine) {
    let store = Store::empty(engine).await;
    let dry = products_import(&store.lease, CLASSIC.as_bytes(), ImportOptions::dry_run(), now(), |_| {}).await.unwrap();
    assert_eq!((dry.products_created, dry.variants_created, dry.dry_run), (3, 5, true));
    assert_eq!(counts(&mut store.conn().await).await.unwrap().products, 0);

    let mut heard = 0;
    let first =
        products_import(&store.lease, CLASSIC.as_bytes(), ImportOptions::new(), now(), |_| heard += 1).await.unwrap();
    assert_eq!(codes(&first), []);
    assert_eq!((first.products_created, first.variants_created, first.rows), (3, 5, 7));
    assert_eq!(heard, 3);
    let lamp = product_by_handle(&mut store.conn().await, "reading-lamp").await.unwrap().unwrap();
    assert_eq!(lamp.description_html, "<p>Bends\r\nwhere you \"want\" it.</p>");
    assert_eq!((lamp.price_min_minor, lamp.price_max_minor), (129_900, 139_900));
    assert_eq!(lamp.tags, ["desk", "Light"]);
    assert_eq!(lamp.media.len(), 3);
    assert_eq!(lamp.media[2].variant_id, Some(lamp.variants[1].id));
    let mug = product_by_handle(&mut store.conn().await, "mug").await.unwrap().unwrap();
    assert_eq!((mug.options.len(), mug.variants.len()), (0, 1));

    let second = import(&store, CLASSIC).await;
    assert_eq!((second.products_created, second.products_updated, second.products_unchanged), (0, 0, 3));
    assert_eq!(second.variants_unchanged, 5);
    assert_eq!(second.catalog_version, first.catalog_version);
    assert_eq!(product_by_handle(&mut store.conn().await, "mug").await.unwrap().unwrap(), mug);
}

async fn the_new_header_means_the_same(engine: Engine) {
    let store = Store::empty(engine).await;
    let report = import(&store, NEW).await;
    assert_eq!(codes(&report), []);
    assert_eq!((report.products_created, report.variants_created), (2, 3));
    assert_eq!(report.ignored_columns, ["Product category", "Cost per item"]);
    let scarf = product_by_handle(&mut store.conn().await, "wool-scarf").await.unwrap().unwrap();
    assert_eq!(scarf.variants[1].compare_at_minor, Some(4500));
    assert_eq!(scarf.variants[0].weight_grams, 120);
    assert!(scarf.variants[1].is_available, "it is sold beyond its stock");
    assert!(product_by_handle(&mut store.conn().await, "secret").await.unwrap().is_none(), "a draft is not shown");
}

async fn bad_products_are_skipped_and_named_and_the_rest_goes_in(engine: Engine) {
    let store = Store::empty(engine).await;
    let header = "Handle,Title,Option1 Name,Option1 Value,Variant SKU,Variant Price,Variant Inventory Qty,Image Src\n";
    let mut file = header.to_owned();
    for row in [
        "good,Good,Title,Default Title,G-1,\"1,299.00\",5,",     // 2
        "price,Bad price,Title,Default Title,,12.345,1,",        // 3
        "euro,Euro price,Title,Default Title,,\"12,50\",1,",     // 4
        "none,No price,Title,Default Title,,,1,",                // 5
        "twice,Twice,Size,S,,1,1,",                              // 6
        "twice,,,S,,1,1,",                                       // 7
        "sku,Same SKU,Title,Default Title,G-1,1,1,",             // 8
        "untitled,,Title,Default Title,,1,1,",                   // 9
        "good,Good again,Title,Default Title,,1,1,",             // 10
        ",,,,,1,1,",                                             // 11
        "short,Short",                                           // 12
        "pic,Bad picture,Title,Default Title,,1,1,javascript:x", // 13
        "qty,Bad stock,Title,Default Title,,1,many,",            // 14
        "../etc,Bad handle,Title,Default Title,,1,1,",           // 15
        ",,,,,,,",                                               // 16: blank
        "value,No value,Size,,,1,1,",                            // 17
        "last,Last,Title,Default Title,,0,0,",                   // 18
    ] {
        writeln!(file, "{row}").unwrap();
    }
    let report = import(&store, &file).await;
    let price = Some("Variant Price");
    assert_eq!(
        codes(&report),
        [
            (3, price, "price-decimals"),
            (4, price, "price-malformed"),
            (5, price, "price-missing"),
            (7, Some("Option1 Value"), "duplicate-options"),
            (8, Some("Variant SKU"), "duplicate-sku"),
            (9, Some("Title"), "title-missing"),
            (10, Some("Handle"), "handle-not-contiguous"),
            (11, Some("Handle"), "handle-missing"),
            (12, None, "fields-missing"),
            (13, Some("Image Src"), "malformed"),
            (14, Some("Variant Inventory Qty"), "quantity-malformed"),
            (15, Some("Handle"), "handle-malformed"),
            (17, Some("Option1 Value"), "option-value-missing"),
        ]
    );
    assert_eq!((report.products_created, report.products_failed, report.rows), (2, 11, 17));
    assert_eq!(counts(&mut store.conn().await).await.unwrap().products, 2);
    assert_eq!(store.number("select count(*) from product_variants").await, 2);
}

async fn a_missing_column_keeps_and_a_blank_field_empties(engine: Engine) {
    let store = Store::empty(engine).await;
    import(&store, CLASSIC).await;
    let before = product_by_handle(&mut store.conn().await, "reading-lamp").await.unwrap().unwrap();
    let version = catalog_version(&mut store.conn().await).await.unwrap();

    let report =
        import(&store, "Handle,Variant SKU,Variant Price\nreading-lamp,LAMP-S,1000\nreading-lamp,LAMP-X,1\n").await;
    assert_eq!(codes(&report), [(3, Some("Variant SKU"), "variant-unknown")]);
    let report = import(&store, "Handle,Variant SKU,Variant Price\nreading-lamp,LAMP-S,1000\n").await;
    assert_eq!((report.products_updated, report.variants_updated, report.variants_unchanged), (1, 1, 2));
    let after = product_by_handle(&mut store.conn().await, "reading-lamp").await.unwrap().unwrap();
    assert_eq!(after.price_min_minor, 100_000);
    assert_eq!(
        (after.tags.clone(), after.media.clone(), after.vendor.clone()),
        (before.tags, before.media, before.vendor)
    );
    assert_eq!(report.catalog_version, version + 1);

    let report = import(&store, "handle,TITLE,vendor,tags,Image Src\nreading-lamp,Lamp,,,\n").await;
    assert_eq!(codes(&report), []);
    let blank = product_by_handle(&mut store.conn().await, "reading-lamp").await.unwrap().unwrap();
    assert_eq!((blank.vendor, blank.tags.len(), blank.media.len()), (None, 0, 0));
    assert_eq!((blank.variants.len(), blank.title.as_str()), (3, "Lamp"));
}

async fn a_file_that_is_no_product_file_says_what_it_lacks(engine: Engine) {
    let store = Store::empty(engine).await;
    let run = async |file: &[u8]| products_import(&store.lease, file, ImportOptions::new(), now(), |_| {}).await;
    assert!(matches!(run(b"").await, Err(ImportError::Empty)));
    assert!(matches!(run(b"\xff\xfeH\0").await, Err(ImportError::NotUtf8 { line: 1 })));
    assert!(matches!(run(b"H\xe4ndel,Title\n").await, Err(ImportError::NotUtf8 { line: 1 })));
    let Err(ImportError::MissingColumns { missing }) = run(b"id;name;price\n1;a;2\n").await else { panic!("accepted") };
    assert_eq!(missing, ["Handle (or URL handle)", "Title"]);
    let twice = run(b"Handle,Title,URL handle\n").await;
    assert!(matches!(twice, Err(ImportError::DuplicateColumn { column }) if column == "URL handle"));
    let wide = ["Handle,Title".to_owned(), ",x".repeat(600), "\n".to_owned()].concat();
    assert!(matches!(run(wide.as_bytes()).await, Err(ImportError::TooManyColumns { limit: 500 })));
    let mut options = ImportOptions::new();
    options.limits.rows = 1;
    let rows = "Handle,Title,Price\na,A,1\nb,B,1\n".as_bytes();
    let ended = products_import(&store.lease, rows, options, now(), |_| {}).await;
    assert!(matches!(ended, Err(ImportError::TooManyRows { limit: 1 })));
    assert_eq!(counts(&mut store.conn().await).await.unwrap().products, 1);
}

async fn a_file_that_breaks_off_leaves_only_whole_products(engine: Engine) {
    use tokio::io::AsyncReadExt as _;
    struct Broken;
    impl tokio::io::AsyncRead for Broken {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()))
        }
    }
    let store = Store::empty(engine).await;
    let start = "Handle,Title,Option1 Name,Option1 Value,Price\na,A,,,1\nb,B,Size,S,1\nb,,,M,".as_bytes();
    let ended = products_import(&store.lease, start.chain(Broken), ImportOptions::new(), now(), |_| {}).await;
    assert!(matches!(ended, Err(ImportError::Read(_))));
    assert_eq!(counts(&mut store.conn().await).await.unwrap().products, 1);
}

async fn the_list_of_errors_is_bounded_and_their_number_is_not(engine: Engine) {
    let store = Store::empty(engine).await;
    let mut file = "Handle,Title,Price\n".to_owned();
    for n in 0..1500 {
        writeln!(file, "p-{n},P,free").unwrap();
    }
    let report = import(&store, &file).await;
    assert_eq!((report.errors.len(), report.errors_total, report.products_failed), (1000, 1500, 1500));
}

#[tokio::test]
#[ignore = "long: 50,000 rows, twice"]
async fn fifty_thousand_rows_import_and_import_again() {
    let store = Store::empty(Engine::Postgresql).await;
    let mut file =
        "Handle,Title,Option1 Name,Option1 Value,Variant SKU,Variant Price,Variant Inventory Qty\n".to_owned();
    for n in 0..20_000 {
        writeln!(file, "h-{n},Title {n},Size,S,S-{n}-1,9.99,5\nh-{n},,,M,S-{n}-2,9.99,5").unwrap();
        if n % 2 == 0 {
            writeln!(file, "h-{n},,,L,S-{n}-3,9.99,5").unwrap();
        }
    }
    let first = import(&store, &file).await;
    assert_eq!((first.rows, first.products_created, first.errors_total), (50_000, 20_000, 0));
    let second = import(&store, &file).await;
    assert_eq!((second.products_unchanged, second.variants_unchanged), (20_000, 50_000));
}

async fn real_files_import_when_they_are_there(engine: Engine) {
    for (file, products, variants) in [("apparel.csv", 20, 22), ("jewelery.csv", 20, 23)] {
        let Some(path) = shared_data(&format!("shopify-csv/{file}")) else {
            println!("skipped: ../shared/data/shopify-csv/{file} is not here");
            continue;
        };
        let store = Store::empty(engine).await;
        let text = std::fs::read_to_string(path).unwrap();
        let first = import(&store, &text).await;
        assert_eq!(codes(&first), [], "{file}");
        assert_eq!((first.products_created, first.variants_created), (products, variants), "{file}");
        let second = import(&store, &text).await;
        assert_eq!((second.products_created, second.products_updated, second.products_unchanged), (0, 0, products));
        assert_eq!(second.variants_unchanged, variants, "{file}");
    }
}
