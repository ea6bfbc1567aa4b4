//! The network and the server of a brought database fail, each as it really does: the store alone pays, within its limits,
//! and is served again without a restart.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use integration_tests::{ChaosProxy, Cluster, Owner, TestApp, TestDatabase, eventually, own_cluster, within};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use serde_json::{Value, json};
use sqlx::Connection as _;
use tenancy::Cause;

use crate::faults::{PRODUCTS, Shop, at_once, patient_app, run, terminate, text};

/// Far above every limit that the nodes of these tests have, and below what a test may take.
const LIMIT: Duration = Duration::from_secs(25);

/// How a database is brought: field by field, so that a test may name another port, TLS mode or CA.
fn fields(database: &TestDatabase, port: u16, more: &Value) -> Value {
    let mut body = json!({
        "engine": "postgresql", "host": "127.0.0.1", "port": port, "username": database.database,
        "password": database.password(), "database": database.database,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Fails unless 20 requests to the ill store are refused in time while 20 to the well one are served.
async fn expect_one_ill(app: &TestApp, ill: &Shop, well: &Shop, codes: &[&str]) {
    let (to_ill, to_well) = (ill.at(app), well.at(app));
    let both = async { tokio::join!(at_once(20, &to_ill, PRODUCTS), at_once(20, &to_well, PRODUCTS)) };
    let (refused, served) = tokio::time::timeout(LIMIT, both).await.expect("every answer comes within the limits");
    for response in &refused {
        ill.expect_refused(response, codes);
    }
    for response in &served {
        well.expect_served(response);
    }
}

async fn expect_served_again(app: &TestApp, shop: &Shop) {
    let client = shop.at(app);
    eventually("the store is served again", || async { (client.get(PRODUCTS).await.status == 200).then_some(()) })
        .await;
    shop.expect_served(&client.get(PRODUCTS).await);
}

async fn last_cause(app: &TestApp, shop: &Shop) -> Option<Cause> {
    app.cx.stores.explain(shop.id).await.expect("the store is known").last_error.map(|error| error.cause)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_costs_its_store_only() {
    let app = patient_app(&[]).await;
    let owner = app.owner("ada").await;
    let elsewhere = own_cluster("down").await;
    let database = elsewhere.brought().await;
    let ill = Shop::connect(&app, &owner, "ill", fields(&database, elsewhere.port(), &json!({}))).await;
    let well = Shop::open(&app, &owner, "well").await;
    for shop in [&ill, &well] {
        shop.expect_served(&shop.at(&app).get(PRODUCTS).await);
    }

    // The tests' servers do not wait for the disk at a commit; what is to survive the kill is written now.
    run(&mut elsewhere.admin().await, "checkpoint").await;
    elsewhere.kill().await;
    expect_one_ill(&app, &ill, &well, &["store-database-unavailable"]).await;
    assert_eq!(last_cause(&app, &ill).await, Some(Cause::Refused));
    elsewhere.restart().await;
    expect_served_again(&app, &ill).await;
    well.expect_served(&well.at(&app).get(PRODUCTS).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_goes_silent_or_is_cut_costs_one_store_only() {
    let limits = [
        "--store-acquire-timeout-ms",
        "1500",
        "--store-connect-timeout-ms",
        "1500",
        "--store-statement-timeout-ms",
        "1500",
    ];
    let app = patient_app(&limits).await;
    let owner = app.owner("ada").await;
    let database = app.cluster.brought().await;
    let proxy = ChaosProxy::to(SocketAddr::from((Ipv4Addr::LOCALHOST, app.cluster.port()))).await;
    let ill = Shop::connect(&app, &owner, "ill", fields(&database, proxy.port, &json!({}))).await;
    let well = Shop::open(&app, &owner, "well").await;
    for shop in [&ill, &well] {
        shop.expect_served(&shop.at(&app).get(PRODUCTS).await);
    }

    // Open connections and new ones hang; no byte says that anything is wrong.
    proxy.stall();
    expect_one_ill(&app, &ill, &well, &["store-database-unavailable", "store-busy"]).await;
    expect_one_ill(&app, &ill, &well, &["store-database-unavailable", "store-busy"]).await;
    proxy.mend();
    expect_served_again(&app, &ill).await;

    proxy.cut();
    expect_one_ill(&app, &ill, &well, &["store-database-unavailable"]).await;
    proxy.mend();
    expect_served_again(&app, &ill).await;
    drop(proxy);
    expect_one_ill(&app, &ill, &well, &["store-database-unavailable"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_what_needs_room_and_leaves_nothing_half_written() {
    let app = patient_app(&[]).await;
    let owner = app.owner("ada").await;
    let database = app.cluster.brought().await;
    let shop = Shop::connect(&app, &owner, "full", fields(&database, app.cluster.port(), &json!({}))).await;
    let client = shop.at(&app);
    let product = client.get(&format!("{PRODUCTS}/{}", shop.sells())).await.expect_status(200);
    let cart = client.post("/store/v1/carts", Value::Null).await.expect_status(201);
    let lines = format!("/store/v1/carts/{}/lines", text(&cart, "id"));
    let line = json!({ "variantId": product["variants"][0]["id"], "quantity": 1 });
    let shopper = client.with("x-cart-token", text(&cart, "token"));

    // What a server says when a table cannot grow, at the last line that a cart needs.
    let mut inside = database.admin().await;
    run(
        &mut inside,
        "create function public.full_disk() returns trigger language plpgsql as $$ begin
           raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$;
         create trigger full_disk before insert on tenantry.cart_lines for each row execute function public.full_disk()",
    )
    .await;
    shop.expect_refused(&shopper.post(&lines, line.clone()).await, &["store-database-unavailable"]);
    shop.expect_served(&client.get(PRODUCTS).await);
    let path = format!("/store/v1/carts/{}", text(&cart, "id"));
    assert_eq!(shopper.get(&path).await.expect_status(200)["lines"], json!([]));

    run(&mut inside, "drop trigger full_disk on tenantry.cart_lines").await;
    let filled = shopper.post(&lines, line).await.expect_status(200);
    assert_eq!(filled["lines"].as_array().map(Vec::len), Some(1), "{filled}");
    inside.close().await.unwrap();
}

/// Who signs the certificates of a test's servers.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for a server of this name, good until the end of that year, and its key.
    pub(crate) fn certify(&self, name: &str, until: i32) -> (String, String) {
        self.certify_between(name, 2019, until)
    }

    /// One that is good from the beginning of that year on.
    pub(crate) fn certify_between(&self, name: &str, from: i32, until: i32) -> (String, String) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(until, 12, 31));
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// Makes the server show this certificate to whoever connects from now on.
pub(crate) async fn present(cluster: &Cluster, name: &str, (certificate, key): &(String, String)) {
    let mut admin = cluster.admin().await;
    for (end, text) in [("crt", certificate), ("key", key)] {
        let encoded = BASE64_STANDARD.encode(text);
        run(&mut admin, &format!("copy (select '{encoded}') to program 'umask 077; base64 -d > {name}.{end}'")).await;
        let setting = if end == "crt" { "ssl_cert_file" } else { "ssl_key_file" };
        run(&mut admin, &format!("alter system set {setting} = '{name}.{end}'")).await;
    }
    run(&mut admin, "alter system set ssl = on").await;
    run(&mut admin, "select pg_reload_conf()").await;
    admin.close().await.unwrap();
    eventually("the server has the certificate", || async {
        let mut fresh = cluster.admin().await;
        let shown: String =
            sqlx::query_scalar("select current_setting('ssl') || ' ' || current_setting('ssl_cert_file')")
                .fetch_one(&mut fresh)
                .await
                .unwrap();
        fresh.close().await.unwrap();
        (shown == format!("on {name}.crt")).then_some(())
    })
    .await;
}

/// The code of the failed step of a connect.
async fn refused(app: &TestApp, owner: &Owner, slug: &str, body: Value) -> (String, String) {
    let store = owner.create_store(slug).await.expect_status(201);
    owner.connect(&store, body).await.expect_status(202);
    let run = app.run_ended(owner, &store).await;
    assert_eq!(run["state"], "failed", "{run}");
    let failed = run["steps"].as_array().unwrap().iter().find(|step| step["state"] == "failed").unwrap();
    (text(failed, "name").to_owned(), text(&failed["error"], "code").to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_checked_as_the_owner_asked_and_an_expired_one_costs_one_store_only() {
    let app = patient_app(&[]).await;
    let owner = app.owner("ada").await;
    let elsewhere = own_cluster("tls").await;
    let (authority, stranger) = (Authority::new(), Authority::new());
    let plain = elsewhere.brought().await;
    let port = elsewhere.port();
    let tls_refused = ("check_connection".to_owned(), "tls".to_owned());

    // A server without TLS is not spoken to in the clear by somebody who asked for TLS.
    let body = fields(&plain, port, &json!({ "tls": "require" }));
    assert_eq!(refused(&app, &owner, "no-tls", body).await, tls_refused);

    present(elsewhere, "named", &authority.certify("127.0.0.1", 2095)).await;
    let strict = elsewhere.brought().await;
    let full = |ca: &str| fields(&strict, port, &json!({ "tls": "verify-full", "caPem": ca }));
    assert_eq!(refused(&app, &owner, "strange-ca", full(&stranger.pem)).await, tls_refused);
    let no_ca = fields(&strict, port, &json!({ "tls": "verify-full" }));
    assert_eq!(refused(&app, &owner, "no-ca", no_ca).await, tls_refused);
    let ill = Shop::connect(&app, &owner, "ill", full(&authority.pem)).await;
    let well = Shop::open(&app, &owner, "well").await;
    for shop in [&ill, &well] {
        shop.expect_served(&shop.at(&app).get(PRODUCTS).await);
    }
    let mut admin = elsewhere.admin().await;
    let encrypted: bool = sqlx::query_scalar(
        "select bool_and(s.ssl) from pg_stat_ssl s join pg_stat_activity a using (pid) where a.datname = $1",
    )
    .bind(&strict.database)
    .fetch_one(&mut admin)
    .await
    .unwrap();
    assert!(encrypted, "every connection of the store is encrypted");

    // Another name: verify-full refuses it, verify-ca does not ask.
    present(elsewhere, "unnamed", &authority.certify("db.elsewhere.example", 2095)).await;
    assert_eq!(refused(&app, &owner, "other-name", full(&authority.pem)).await, tls_refused);
    let loose = elsewhere.brought().await;
    let body = fields(&loose, port, &json!({ "tls": "verify-ca", "caPem": authority.pem }));
    let by_authority = Shop::connect(&app, &owner, "by-authority", body).await;
    by_authority.expect_served(&by_authority.at(&app).get(PRODUCTS).await);

    // It runs out: open connections live on, new ones are not opened.
    present(elsewhere, "expired", &authority.certify("127.0.0.1", 2020)).await;
    ill.expect_served(&ill.at(&app).get(PRODUCTS).await);
    terminate(&mut admin, &strict.database).await;
    expect_one_ill(&app, &ill, &well, &["store-database-unavailable"]).await;
    assert_eq!(last_cause(&app, &ill).await, Some(Cause::Tls));
    present(elsewhere, "renewed", &authority.certify("127.0.0.1", 2095)).await;
    expect_served_again(&app, &ill).await;
    admin.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_database_is_gone_for_good_is_abandoned_and_its_store_starts_anew() {
    let app = patient_app(&[]).await;
    let owner = app.owner("ada").await;
    let database = app.cluster.brought().await;
    let proxy = ChaosProxy::to(SocketAddr::from((Ipv4Addr::LOCALHOST, app.cluster.port()))).await;
    let store = owner.create_store("tea").await.expect_status(201);
    let path = |rest: &str| format!("/api/stores/{}/provisioning{rest}", text(&store, "id"));

    // The run is in the middle of its migration when the network goes, for good.
    let holder = crate::provisioning::hold_migration(&database).await;
    owner.connect(&store, fields(&database, proxy.port, &json!({}))).await.expect_status(202);
    crate::provisioning::step_running(&owner, &store, "migrate").await;
    owner.api.post(&path("/cancel?abandon=true"), json!({})).await.expect_problem(409, "wrong-run-state");
    drop(proxy);
    holder.close().await.unwrap();
    assert_eq!(within("the run fails", app.run_ended(&owner, &store)).await["state"], "failed");
    owner.api.post(&path("/cancel?abandon=true"), json!({})).await.expect_problem(409, "wrong-run-state");
    owner.api.post(&path("/cancel"), json!({})).await.expect_status(202);
    let run = within("the undoing fails", app.run_ended(&owner, &store)).await;
    assert_eq!(run["state"], "failed", "{run}");

    let stranger = app.owner("mallory").await;
    stranger.api.post(&path("/cancel?abandon=true"), json!({})).await.expect_problem(404, "not-found");
    let ended = owner.api.post(&path("/cancel?abandon=true"), json!({})).await.expect_status(202);
    assert_eq!(ended["run"]["state"], "cancelled", "{ended}");
    let detail = owner.api.get(&format!("/api/stores/{}", text(&store, "id"))).await.expect_status(200);
    assert_eq!(
        (&detail["status"], &detail["database"]["state"]),
        (&json!("pending_database"), &json!("none")),
        "{detail}"
    );

    // What was begun there is found to be the store's own, and finished.
    owner.connect(&store, fields(&database, app.cluster.port(), &json!({}))).await.expect_status(202);
    let run = app.run_ended(&owner, &store).await;
    assert_eq!(run["state"], "succeeded", "{run}");
}
