//! Importing products over HTTP: what goes in, what is refused and named, and that nothing goes in twice.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "what fails here fails the test"
)]

use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use http_body_util::BodyExt as _;
use integration_tests::{Client, Owner, Response, TestApp, TestAppOptions, eventually, within};
use kernel::{Engine, OrganizationId};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use crate::scenes::{Cart, checkout_body, join, send_raw, store_path, text};

on_each_engine! {
    five_thousand_rows_go_in_once
    #[ignore = "soak"]
    fifty_thousand_rows_go_in_once
    a_classic_file_goes_in_as_it_is_written_and_only_once
    a_file_with_the_new_header_goes_in_as_well
    a_dry_run_says_the_same_and_writes_nothing
    bad_rows_are_named_by_line_and_column_and_the_rest_goes_in
    a_file_that_is_none_is_refused_whole
    a_form_with_a_file_is_an_import_too
    a_file_over_the_limit_is_refused_however_it_comes
    staff_may_import_and_strangers_may_not
    a_store_without_a_database_takes_no_products_and_a_suspended_one_does
    a_file_that_stops_coming_is_given_up_in_time
    a_file_that_drips_is_given_up_and_its_turn_is_free
    one_organization_has_one_import_at_a_time_and_leaves_room_for_others
    progress_is_streamed_and_ends_with_the_report
    a_stock_below_what_orders_have_reserved_is_refused
    hostile_cells_are_kept_as_text_or_refused_and_run_nothing
    the_real_apparel_file_is_20_products_with_22_variants_also_the_second_time
}

/// Made up by us: both kinds of line end, a BOM, quoted line breaks, pictures, options, and a price with a thousands comma.
const CLASSIC: &str = "\u{feff}Handle,Title,Body (HTML),Vendor,Type,Tags,Published,Option1 Name,Option1 Value,Option2 Name,Option2 Value,Variant SKU,Variant Grams,Variant Inventory Tracker,Variant Inventory Qty,Variant Inventory Policy,Variant Price,Variant Compare At Price,Variant Requires Shipping,Variant Taxable,Image Src,Image Position,Image Alt Text,Status,Cost per item\r\n\
    big-samovar,Big Samovar,\"<p>First line,\r\nsecond \"\"line\"\".</p>\",Kettle & Son,Samovar,\"brass, gift\",TRUE,Title,Default Title,,,SAM-1,4500,shopify,3,deny,\"1,299.00\",\"1,499.00\",TRUE,TRUE,https://img.example/samovar-1.jpg,1,A samovar,active,700\r\n\
    big-samovar,,,,,,,,,,,,,,,,,,,,https://img.example/samovar-2.jpg,2,From behind,,\r\n\
    tin-mug,Tin Mug,<b>Light</b>,Kettle & Son,Mug,camping,TRUE,Colour,Red,Size,Small,MUG-RS,120,shopify,10,deny,7.50,,TRUE,TRUE,,,,active,2\r\n\
    tin-mug,,,,,,,,Red,,Large,MUG-RL,180,shopify,4,continue,9.00,,TRUE,TRUE,,,,,\r\n\
    tin-mug,,,,,,,,Blue,,Small,MUG-BS,120,,0,deny,7.50,,TRUE,TRUE,,,,,\r\n\
    tea-course,Tea Course,,School,Course,,TRUE,Title,Default Title,,,COURSE,0,,,deny,49,,FALSE,FALSE,,,,draft,\r\n";

const NEW: &str = "Title,URL handle,Description,Vendor,Tags,Published on online store,Status,SKU,Option1 name,Option1 value,Price,Compare-at price,Charge tax,Inventory tracker,Inventory quantity,Continue selling when out of stock,Weight value (grams),Requires shipping,Product image URL,Image alt text\n\
    Oak Tray,oak-tray,<p>Oak</p>,Woodwork,wood,TRUE,Active,TRAY-S,Size,Small,35.00,,TRUE,shopify,5,FALSE,800,TRUE,https://img.example/tray.jpg,A tray\n\
    ,oak-tray,,,,,,TRAY-L,,Large,45.00,50.00,TRUE,shopify,2,FALSE,1200,TRUE,,\n\
    Honey Dipper,,<p>Drips</p>,Woodwork,wood,TRUE,Active,DIP,,,4.20,,TRUE,,,TRUE,30,TRUE,,\n";

struct Shop {
    app: TestApp,
    owner: Owner,
    store: Value,
}

async fn shop_with(engine: Engine, arguments: &[&str]) -> Shop {
    let arguments = arguments.iter().map(|&text| text.to_owned()).collect();
    let app = TestApp::start_on_with(engine, TestAppOptions { arguments, ..TestAppOptions::default() }).await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("import-shop").await.expect_status(201);
    owner.connect(&store, app.managed_body(false)).await.expect_status(202);
    assert_eq!(app.run_ended(&owner, &store).await["state"], "succeeded");
    Shop { app, owner, store }
}

impl Shop {
    fn path(&self, query: &str) -> String {
        store_path(&self.store, &format!("/products/import{query}"))
    }

    async fn send(&self, api: &Client, query: &str, file: impl Into<axum::body::Body>) -> Response {
        api.send_bytes(Method::POST, &self.path(query), "text/csv; charset=utf-8", file).await
    }

    async fn import(&self, file: &str) -> Value {
        self.send(&self.owner.api, "", file.to_owned()).await.expect_status(200)
    }

    async fn counts(&self) -> (i64, i64) {
        let shown = self.owner.api.get(&store_path(&self.store, "")).await.expect_status(200);
        (shown["counts"]["products"].as_i64().unwrap(), shown["counts"]["variants"].as_i64().unwrap())
    }

    async fn product(&self, handle: &str) -> Value {
        let shop = self.app.storefront_of(&self.store);
        shop.get(&format!("/store/v1/products/{handle}")).await.expect_status(200)
    }
}

fn numbers(report: &Value, of: &str) -> [i64; 3] {
    ["Created", "Updated", "Unchanged"].map(|what| report[format!("{of}{what}")].as_i64().unwrap())
}

/// Line, column and code of every error.
fn errors(report: &Value) -> Vec<(i64, &str, &str)> {
    report["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| {
            (error["line"].as_i64().unwrap(), error["column"].as_str().unwrap_or_default(), text(&error["code"]))
        })
        .collect()
}

async fn a_classic_file_goes_in_as_it_is_written_and_only_once(engine: Engine) {
    let shop = shop_with(engine, &[]).await;
    let report = shop.import(CLASSIC).await;
    assert_eq!((&report["rows"], &report["errorsTotal"], &report["dryRun"]), (&json!(6), &json!(0), &json!(false)));
    assert_eq!((numbers(&report, "products"), numbers(&report, "variants")), ([3, 0, 0], [5, 0, 0]));
    assert_eq!(report["ignoredColumns"], json!(["Cost per item"]));
    let samovar = shop.product("big-samovar").await;
    assert_eq!((&samovar["priceMinMinor"], &samovar["compareAtMinor"]), (&json!(129_900), &json!(149_900)));
    assert_eq!(samovar["descriptionHtml"], "<p>First line,\r\nsecond \"line\".</p>");
    assert_eq!((&samovar["options"], samovar["media"].as_array().map(Vec::len)), (&json!([]), Some(2)));
    let mut tags: Vec<&str> = samovar["tags"].as_array().unwrap().iter().map(text).collect();
    tags.sort_unstable();
    assert_eq!(tags, ["brass", "gift"]);
    let mug = shop.product("tin-mug").await;
    let titles: Vec<(&str, bool)> = mug["variants"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variant| (text(&variant["sku"]), variant["isAvailable"].as_bool().unwrap()))
        .collect();
    // Without a tracker stock is not counted, so nothing limits it.
    assert_eq!(titles, [("MUG-RS", true), ("MUG-RL", true), ("MUG-BS", true)]);
    let storefront = shop.app.storefront_of(&shop.store);
    storefront.get("/store/v1/products/tea-course").await.expect_problem(404, "not-found");
    let list = storefront.get("/store/v1/products").await;
    assert_eq!(list.expect_status(200)["data"][0]["handle"], "big-samovar");
    // Again: everything is as wanted, and no cached answer is spoilt.
    let again = shop.import(CLASSIC).await;
    assert_eq!((numbers(&again, "products"), numbers(&again, "variants")), ([0, 0, 3], [0, 0, 5]));
    assert_eq!(again["catalogVersion"], report["catalogVersion"]);
    assert_eq!(shop.counts().await, (3, 5));
    assert_eq!(shop.product("tin-mug").await, mug);
    // A change changes what it names.
    let changed = shop.import(&CLASSIC.replace("\"1,299.00\"", "999")).await;
    assert_eq!((numbers(&changed, "products"), numbers(&changed, "variants")), ([0, 1, 2], [0, 1, 4]));
    assert_eq!(shop.product("big-samovar").await["priceMinMinor"], 99_900);
}

async fn a_file_with_the_new_header_goes_in_as_well(engine: Engine) {
    let shop = shop_with(engine, &[]).await;
    let report = shop.import(NEW).await;
    assert_eq!((&report["errors"], &report["ignoredColumns"]), (&json!([]), &json!([])));
    assert_eq!((numbers(&report, "products"), numbers(&report, "variants")), ([2, 0, 0], [3, 0, 0]));
    let tray = shop.product("oak-tray").await;
    assert_eq!((&tray["priceMinMinor"], &tray["priceMaxMinor"]), (&json!(3500), &json!(4500)));
    assert_eq!(tray["variants"][1]["compareAtMinor"], 5000);
    // A row without a handle gets the one that its title makes.
    assert_eq!(shop.product("honey-dipper").await["title"], "Honey Dipper");
    assert_eq!(numbers(&shop.import(NEW).await, "products"), [0, 0, 2]);
}

async fn a_dry_run_says_the_same_and_writes_nothing(engine: Engine) {
    let shop = shop_with(engine, &[]).await;
    let file = format!("{CLASSIC}bad,Bad,,,,,TRUE,Title,Default Title,,,BAD,0,,,deny,free,,TRUE,TRUE,,,,active,\r\n");
    let dry = shop.send(&shop.owner.api, "?dryRun=true", file.clone()).await.expect_status(200);
    assert_eq!(dry["dryRun"], true);
    assert_eq!(shop.counts().await, (0, 0));
    let mut wet = shop.import(&file).await;
    assert_eq!(shop.counts().await, (3, 5));
    wet["dryRun"] = json!(true);
    let version = dry["catalogVersion"].clone();
    assert!(wet["catalogVersion"].as_i64() > version.as_i64());
    wet["catalogVersion"] = version;
    assert_eq!(dry, wet);
    assert_eq!(errors(&dry), [(9, "Variant Price", "price-malformed")]);
    let again = shop.send(&shop.owner.api, "?dryRun=true", CLASSIC).await.expect_status(200);
    assert_eq!(numbers(&again, "products"), [0, 0, 3]);
    let bad = shop.send(&shop.owner.api, "?dryRun=perhaps", CLASSIC).await;
    bad.expect_problem(400, "invalid-query");
    shop.send(&shop.owner.api, "?dryrun=true", CLASSIC).await.expect_problem(400, "invalid-query");
}

async fn bad_rows_are_named_by_line_and_column_and_the_rest_goes_in(engine: Engine) {
    let shop = shop_with(engine, &[]).await;
    let file = "Handle,Title,Option1 Name,Option1 Value,Variant SKU,Variant Inventory Qty,Variant Price\n\
        good,Good,,,G-1,1,1.00\n\
        twice,Twice,Size,S,T-1,1,1.00\n\
        twice,,,S,T-2,1,1.00\n\
        free,Free,,,F-1,1,\n\
        minus,Minus,,,M-1,1,-1.00\n\
        cents,Cents,,,C-1,1,1.005\n\
        comma,Comma,,,C-2,1,\"1,29.00\"\n\
        stock,Stock,,,S-1,many,1.00\n\
        no title,,,,N-1,1,1.00\n\
        untitled,,,,U-1,1,1.00\n\
        short,Short,,1.00\n\
        long,Long,,,L-1,1,1.00,extra\n\
        \"multi\",\"Multi\nLine\",,,ML-1,1,1.00\n\
        same-sku,Same,,,G-1,1,1.00\n\
        good,Again,,,G-2,1,1.00\n\
        fine,Fine,,,OK-1,1,2.00\n";
    let report = shop.import(file).await;
    let found = errors(&report);
    let wanted = [
        (4, "Option1 Value", "duplicate-options"),
        (5, "Variant Price", "price-missing"),
        (6, "Variant Price", "price-negative"),
        (7, "Variant Price", "price-decimals"),
        (8, "Variant Price", "price-malformed"),
        (9, "Variant Inventory Qty", "quantity-malformed"),
        (10, "Handle", "handle-malformed"),
        (11, "Title", "title-missing"),
        (12, "", "fields-missing"),
        (13, "", "fields-extra"),
        (16, "Variant SKU", "duplicate-sku"),
        (17, "Handle", "handle-not-contiguous"),
    ];
    for one in wanted {
        assert!(found.contains(&one), "{one:?} is missing in {found:?}");
    }
    assert_eq!(report["errorsTotal"].as_u64(), Some(found.len() as u64));
    for error in report["errors"].as_array().unwrap() {
        assert!(!text(&error["message"]).is_empty());
    }
    let (products, _) = shop.counts().await;
    assert_eq!(Some(products), report["productsCreated"].as_i64());
    assert_eq!(shop.product("good").await["title"], "Good");
    assert_eq!(shop.product("fine").await["priceMinMinor"], 200);
    let failed = report["productsFailed"].as_i64().unwrap();
    assert!(failed >= 10, "{report}");
    for handle in ["twice", "free", "minus", "short", "long", "same-sku"] {
        let shop = shop.app.storefront_of(&shop.store);
        shop.get(&format!("/store/v1/products/{handle}")).await.expect_problem(404, "not-found");
    }
}

async fn a_file_that_is_none_is_refused_whole(engine: Engine) {
    let shop = shop_with(engine, &[]).await;
    let cases: &[(&[u8], &str)] = &[
        (b"", "file-empty"),
        (b"\n\n", "file-empty"),
        (b"a,b\n1,2\n", "missing-columns"),
        (b"{\"handle\": 1}", "missing-columns"),
        (b"Handle,Title,handle\nx,X,x\n", "duplicate-column"),
        (b"\xff\xfeH\x00a\x00", "file-not-utf8"),
        (b"Handle,T\xeftle\nx,X\n", "file-not-utf8"),
    ];
    for (file, code) in cases {
        let answer = shop.send(&shop.owner.api, "", file.to_vec()).await;
        answer.expect_problem(422, code);
    }
    let wide = format!("Handle,Title{}\n", ",x".repeat(600));
    shop.send(&shop.owner.api, "", wide).await.expect_problem(422, "too-many-columns");
    let report = shop
        .send(&shop.owner.api, "", b"Handle,Title,Variant Price\nok,Ok,1\nbad,th\xe9,1\nnext,Next,1\n".to_vec())
        .await;
    assert_eq!(errors(&report.expect_status(200)), [(3, "", "not-utf8")]);
    assert_eq!(shop.counts().await, (2, 2));
    for kind in ["application/json", "text/plain", "application/octet-stream", "multipart/mixed"] {
        let answer = shop.owner.api.send_bytes(Method::POST, &shop.path(""), kind, CLASSIC).await;
        answer.expect_problem(415, "unsupported-media-type");
    }
    let bare = shop.owner.api.send(Method::POST, &shop.path(""), None).await;
    bare.expect_problem(415, "unsupported-media-type");
}

fn form(parts: &[(&str, &str)]) -> String {
    let mut form = String::new();
    for (disposition, body) in parts {
        form.push_str(&format!("--frontier\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{body}\r\n"));
    }
    form + "--frontier--\r\n"
}

const FORM: &str = "multipart/form-data; boundary=frontier";

async fn a_form_with_a_file_is_an_import_too(engine: Engine) {
    let shop = shop_with(engine, &[]).await;
    let sent = form(&[("name=\"note\"", "from the office"), ("name=\"file\"; filename=\"products.csv\"", CLASSIC)]);
    let answer = shop.owner.api.send_bytes(Method::POST, &shop.path(""), FORM, sent).await;
    assert_eq!(numbers(&answer.expect_status(200), "products"), [3, 0, 0]);
    let dry = form(&[("name=\"file\"; filename=\"../../etc/passwd\"", NEW)]);
    let answer = shop.owner.api.send_bytes(Method::POST, &shop.path("?dryRun=true"), FORM, dry).await;
    assert_eq!(numbers(&answer.expect_status(200), "products"), [2, 0, 0]);
    assert_eq!(shop.counts().await, (3, 5));
    let without = form(&[("name=\"file\"", CLASSIC)]);
    for (kind, body) in [(FORM, without), (FORM, "no form".to_owned()), ("multipart/form-data", form(&[]))] {
        let answer = shop.owner.api.send_bytes(Method::POST, &shop.path(""), kind, body).await;
        answer.expect_problem(400, "malformed-multipart");
    }
    // A form that breaks off within its file.
    let cut = form(&[("name=\"file\"; filename=\"p.csv\"", NEW)]).replace("\r\n--frontier--\r\n", "");
    let answer = shop.owner.api.send_bytes(Method::POST, &shop.path(""), FORM, cut).await;
    assert_eq!(answer.status.as_u16(), 400, "{}", answer.text());
}

async fn a_file_over_the_limit_is_refused_however_it_comes(engine: Engine) {
    let shop = shop_with(engine, &["--import-limit-bytes", "20000"]).await;
    let mut file = "Handle,Title,Variant Price\n".to_owned();
    for at in 0..2000 {
        file.push_str(&format!("cup-{at:04},Cup {at},1.00\n"));
    }
    shop.send(&shop.owner.api, "", file.clone()).await.expect_problem(413, "body-too-large");
    let (before, _) = shop.counts().await;
    assert!(before < 2000);
    let sent = form(&[("name=\"file\"; filename=\"products.csv\"", &file)]);
    let answer = shop.owner.api.send_bytes(Method::POST, &shop.path(""), FORM, sent).await;
    answer.expect_problem(413, "body-too-large");
    // Also when the limit is reached before any file.
    let long = "x".repeat(30_000);
    let sent = form(&[("name=\"note\"", &long), ("name=\"file\"; filename=\"products.csv\"", NEW)]);
    let answer = shop.owner.api.send_bytes(Method::POST, &shop.path(""), FORM, sent).await;
    answer.expect_problem(413, "body-too-large");
    // Within it, a file that is larger than an ordinary body goes in.
    let report = shop.import(file[..19_000].rsplit_once('\n').unwrap().0).await;
    assert_eq!(report["errorsTotal"], 0);
}

async fn staff_may_import_and_strangers_may_not(engine: Engine) {
    let shop = shop_with(engine, &[]).await;
    let (staff, eve) = (shop.app.owner("sam").await, shop.app.owner("eve").await);
    join(&shop.app, &shop.owner, &staff, "staff").await;
    shop.send(&eve.api, "", CLASSIC).await.expect_problem(404, "not-found");
    shop.send(&shop.app.api(), "", CLASSIC).await.expect_problem(401, "unauthenticated");
    assert_eq!(shop.counts().await, (0, 0));
    let report = shop.send(&staff.api, "", CLASSIC).await.expect_status(200);
    assert_eq!(numbers(&report, "products"), [3, 0, 0]);
}

async fn a_store_without_a_database_takes_no_products_and_a_suspended_one_does(engine: Engine) {
    let shop = shop_with(engine, &[]).await;
    let waiting = shop.owner.create_store("waiting").await.expect_status(201);
    let path = store_path(&waiting, "/products/import");
    let answer = shop.owner.api.send_bytes(Method::POST, &path, "text/csv", CLASSIC).await;
    answer.expect_problem(409, "wrong-store-status");
    let ops = shop.app.admin().await;
    let suspend = format!("/api/ops/stores/{}/suspend", text(&shop.store["id"]));
    ops.api.post(&suspend, json!({ "reason": "unpaid" })).await.expect_status(200);
    assert_eq!(numbers(&shop.import(CLASSIC).await, "products"), [3, 0, 0]);
}

async fn a_file_that_stops_coming_is_given_up_in_time(engine: Engine) {
    let shop = shop_with(engine, &["--import-timeout-ms", "500", "--max-imports", "1"]).await;
    let token = text(&shop.owner.registered["tokens"]["accessToken"]);
    for accept in ["application/json", "text/event-stream"] {
        let request = format!(
            "POST {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nAccept: {accept}\r\nContent-Type: text/csv\r\nContent-Length: 1000\r\n\r\nHandle,Title\n",
            shop.path("")
        );
        // The answer ends although the file never does.
        let (status, ..) = send_raw(shop.app.address, &request).await;
        assert_eq!(status, if accept == "application/json" { 504 } else { 200 });
    }
    // The one turn that there is was given back.
    assert_eq!(numbers(&shop.import(CLASSIC).await, "products"), [3, 0, 0]);
}

/// Begins an import and then sends byte after byte, without end. What is answered at last.
async fn drip(shop: &Shop, accept: &str, kind: &str, begin: &str) -> String {
    let mut stream = TcpStream::connect(shop.app.address).await.unwrap();
    let token = text(&shop.owner.registered["tokens"]["accessToken"]);
    let request = format!(
        "POST {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nAccept: {accept}\r\nContent-Type: {kind}\r\nContent-Length: 100000000\r\n\r\n{begin}",
        shop.path("")
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut from, mut to) = stream.into_split();
    let dripping = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        loop {
            ticks.tick().await;
            if to.write_all(b"x").await.is_err() {
                return std::future::pending::<()>().await;
            }
        }
    };
    let mut answer = Vec::new();
    // The node hangs up on who goes on sending.
    tokio::select! {
        () = dripping => {}
        _ = within("an answer", from.read_to_end(&mut answer)) => {}
    }
    String::from_utf8(answer).unwrap()
}

async fn a_file_that_drips_is_given_up_and_its_turn_is_free(engine: Engine) {
    let shop = shop_with(engine, &["--import-upload-grace-ms", "500", "--max-imports", "1"]).await;
    let open = "--frontier\r\nContent-Disposition: form-data; ";
    let csv = "Handle,Title,Variant Price\ntray,Tray,1\n";
    let in_form = format!("{open}name=\"file\"; filename=\"products.csv\"\r\n\r\n{csv}");
    let before_file = format!("{open}name=\"note\"\r\n\r\n");
    for (kind, begin) in [("text/csv", csv), (FORM, &in_form), (FORM, &before_file)] {
        let answer = drip(&shop, "application/json", kind, begin).await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("\"upload-too-slow\""), "{kind}: {answer}");
    }
    let answer = drip(&shop, "text/event-stream", "text/csv", csv).await;
    assert!(answer.contains("event: failed") && answer.contains("\"upload-too-slow\""), "{answer}");
    assert_eq!(numbers(&shop.import(CLASSIC).await, "products"), [3, 0, 0]);
}

async fn one_organization_has_one_import_at_a_time_and_leaves_room_for_others(engine: Engine) {
    let shop = shop_with(engine, &[]).await;
    let organization: OrganizationId = shop.owner.organization_id().parse().unwrap();
    let eve = shop.app.owner("eve").await;
    let other = shop.app.active_store(&eve, "other").await;
    let second = shop.owner.create_store("second").await.expect_status(201);
    let shop = std::sync::Arc::new(shop);
    let slow = AbortOnDropHandle::new(tokio::task::spawn({
        let shop = std::sync::Arc::clone(&shop);
        async move { drip(&shop, "application/json", "text/csv", "Handle,Title,Variant Price\n").await }
    }));
    let is_running = || shop.app.cx.imports.is_running(organization);
    eventually("the import has its turn", || async { is_running().then_some(()) }).await;

    for store in [&shop.store, &second] {
        let path = store_path(store, "/products/import?dryRun=true");
        let refused = shop.owner.api.send_bytes(Method::POST, &path, "text/csv", CLASSIC).await;
        refused.expect_problem(409, "import-running");
        let seconds: u64 = refused.header("retry-after").parse().unwrap();
        assert!((1..=60).contains(&seconds), "{seconds}");
    }
    let path = store_path(&other, "/products/import");
    eve.api.send_bytes(Method::POST, &path, "text/csv", CLASSIC).await.expect_status(200);

    drop(slow);
    eventually("the turn is given back", || async { (!is_running()).then_some(()) }).await;
    assert_eq!(numbers(&shop.import(CLASSIC).await, "products"), [3, 0, 0]);
}

/// Names and data of a stream of events.
fn events(stream: &str) -> Vec<(&str, Value)> {
    stream
        .split("\n\n")
        .filter_map(|event| {
            let name = event.lines().find_map(|line| line.strip_prefix("event: "))?;
            let data = event.lines().find_map(|line| line.strip_prefix("data: "))?;
            Some((name, serde_json::from_str(data).unwrap()))
        })
        .collect()
}

async fn progress_is_streamed_and_ends_with_the_report(engine: Engine) {
    let shop = shop_with(engine, &[]).await;
    let watching = shop.owner.api.with("accept", "text/event-stream");
    let request = watching.build(Method::POST, &shop.path("")).header("content-type", "text/csv");
    let answer = watching.open(request.body(CLASSIC.into()).unwrap()).await;
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let bytes = within("the stream", answer.into_body().collect()).await.unwrap().to_bytes();
    let stream = String::from_utf8(bytes.to_vec()).unwrap();
    let events = events(&stream);
    let (last, progress) = events.split_last().unwrap();
    assert_eq!((last.0, &last.1["productsCreated"], &last.1["rows"]), ("done", &json!(3), &json!(6)));
    assert!(!progress.is_empty() && progress.iter().all(|(name, _)| *name == "progress"), "{stream}");
    let rows: Vec<i64> = progress.iter().map(|(_, at)| at["rows"].as_i64().unwrap()).collect();
    assert!(rows.is_sorted(), "{rows:?}");
    // A file that is none ends the stream with a problem.
    let stream = shop.send(&watching, "", "nonsense").await;
    let failed = stream.text();
    let found = self::events(&failed);
    assert_eq!((found[0].0, &found[0].1["code"]), ("failed", &json!("missing-columns")), "{failed}");
}

async fn a_stock_below_what_orders_have_reserved_is_refused(engine: Engine) {
    let shop = shop_with(engine, &[]).await;
    shop.import(CLASSIC).await;
    let variant = text(&shop.product("big-samovar").await["variants"][0]["id"]).to_owned();
    let cart = Cart::with(&shop.app.storefront_of(&shop.store), &variant, 2).await;
    cart.complete("key", checkout_body()).await.expect_status(201);
    let less = CLASSIC.replace("SAM-1,4500,shopify,3,", "SAM-1,4500,shopify,1,");
    let report = shop.import(&less).await;
    assert_eq!(errors(&report), [(2, "Variant Inventory Qty", "stock-below-reserved")]);
    assert_eq!(numbers(&report, "products"), [0, 0, 2]);
}

async fn hostile_cells_are_kept_as_text_or_refused_and_run_nothing(engine: Engine) {
    let shop = shop_with(engine, &[]).await;
    let file = "Handle,Title,Vendor,Tags,Variant SKU,Variant Price\n\
        sql,\"'); drop table tenantry.products; --\",\"' or 1=1\",\"a'b\",\"x'); delete from tenantry.prices; --\",1.00\n\
        formula,\"=HYPERLINK(\"\"http://evil\"\")\",,,F-1,1.00\n\
        nul,\"a\u{0}b\",,,N-1,1.00\n\
        rtl,\"a\u{202E}b\",,,R-1,1.00\n";
    let report = shop.import(file).await;
    assert_eq!(shop.product("sql").await["title"], "'); drop table tenantry.products; --");
    assert_eq!(shop.product("formula").await["title"], "=HYPERLINK(\"http://evil\")");
    let lines: Vec<i64> = errors(&report).into_iter().map(|(line, ..)| line).collect();
    assert_eq!(lines, [4, 5], "{report}");
    assert_eq!(shop.counts().await, (2, 2));
}

/// Real files lie beside the repository on some machines only.
fn real_file(name: &str) -> Option<String> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/shopify-csv")).join(name);
    match std::fs::read_to_string(&path) {
        Ok(file) => Some(file),
        Err(_) => {
            eprintln!("skipped: there is no {}", path.display());
            None
        }
    }
}

async fn the_real_apparel_file_is_20_products_with_22_variants_also_the_second_time(engine: Engine) {
    let Some(file) = real_file("apparel.csv") else { return };
    let shop = shop_with(engine, &[]).await;
    let first = shop.import(&file).await;
    assert_eq!(first["errors"], json!([]));
    assert_eq!(shop.counts().await, (20, 22));
    let second = shop.import(&file).await;
    assert_eq!((numbers(&second, "products"), numbers(&second, "variants")), ([0, 0, 20], [0, 0, 22]));
    assert_eq!(shop.counts().await, (20, 22));
    let storefront = shop.app.storefront_of(&shop.store);
    let list = storefront.get("/store/v1/products?limit=100").await.expect_status(200);
    assert_eq!(list["data"].as_array().map(Vec::len), Some(20));
    let shirt = shop.product("ocean-blue-shirt").await;
    assert_eq!((&shirt["title"], &shirt["priceMinMinor"]), (&json!("Ocean Blue Shirt"), &json!(5000)));
}

/// A file of this many rows: every product has five variants, so a fifth as many products.
fn made_up(rows: usize) -> String {
    let mut file = "Handle,Title,Tags,Option1 Name,Option1 Value,Variant SKU,Variant Inventory Tracker,Variant Inventory Qty,Variant Price\n".to_owned();
    for at in 0..rows {
        let (product, size) = (at / 5, at % 5);
        let (title, tags, name) =
            if size == 0 { (format!("Product {product}"), "bulk", "Size") } else { (String::new(), "", "") };
        file.push_str(&format!(
            "product-{product},{title},{tags},{name},{size},SKU-{at},shopify,{size},{}.50\n",
            at % 90 + 1
        ));
    }
    file
}

async fn import_in_bulk(engine: Engine, rows: usize) {
    let shop = shop_with(engine, &[]).await;
    let products = i64::try_from(rows / 5).unwrap();
    let variants = i64::try_from(rows).unwrap();
    let watching = shop.owner.api.with("accept", "text/event-stream");
    for _ in 0..2 {
        let request = watching.build(Method::POST, &shop.path("")).header("content-type", "text/csv");
        let answer = watching.open(request.body(made_up(rows).into()).unwrap()).await;
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        let stream = String::from_utf8(bytes.to_vec()).unwrap();
        let events = events(&stream);
        let (last, report) = events.last().unwrap();
        assert_eq!((*last, &report["errorsTotal"], report["rows"].as_i64()), ("done", &json!(0), Some(variants)));
        assert!(events.len() > 10, "only {} events", events.len());
        assert_eq!(shop.counts().await, (products, variants));
    }
}

async fn five_thousand_rows_go_in_once(engine: Engine) {
    import_in_bulk(engine, 5000).await;
}

async fn fifty_thousand_rows_go_in_once(engine: Engine) {
    import_in_bulk(engine, 50_000).await;
}
