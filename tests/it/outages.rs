//! The network and the server of a brought database fail, each as it really does: the store alone pays, within its limits,
//! and is served again without a restart.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use integration_tests::{ChaosProxy, OwnServer, Owner, TestApp, eventually, within};
use kernel::Engine;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use serde_json::{Value, json};
use tenancy::Cause;

use crate::faults::{PRODUCTS, Shop, at_once, patient_app_on, text};
use crate::provisioning::failure;

/// Far above every limit that the nodes of these tests have, and below what a test may take.
const LIMIT: Duration = Duration::from_secs(25);

on_each_engine! {
    a_server_that_is_down_costs_its_store_only
    a_network_that_goes_silent_or_is_cut_costs_one_store_only
    a_full_disk_costs_what_needs_room_and_leaves_nothing_half_written
    a_certificate_is_checked_as_the_owner_asked_and_an_expired_one_costs_one_store_only
    a_run_whose_database_is_gone_for_good_is_abandoned_and_its_store_starts_anew
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
    app.cx.stores.explain(shop.id).expect("the store is known").last_error.map(|error| error.cause)
}

async fn a_server_that_is_down_costs_its_store_only(engine: Engine) {
    let app = patient_app_on(engine, &[]).await;
    let owner = app.owner("ada").await;
    let mut elsewhere = OwnServer::start(engine, "down").await;
    let database = elsewhere.brought().await;
    let ill = Shop::connect(&app, &owner, "ill", database.body()).await;
    let well = Shop::open(&app, &owner, "well").await;
    for shop in [&ill, &well] {
        shop.expect_served(&shop.at(&app).get(PRODUCTS).await);
    }

    elsewhere.kill().await;
    expect_one_ill(&app, &ill, &well, &["store-database-unavailable"]).await;
    assert_eq!(last_cause(&app, &ill).await, Some(Cause::Refused));
    elsewhere.restart().await;
    expect_served_again(&app, &ill).await;
    well.expect_served(&well.at(&app).get(PRODUCTS).await);
}

async fn a_network_that_goes_silent_or_is_cut_costs_one_store_only(engine: Engine) {
    let limits = [
        "--store-acquire-timeout-ms",
        "1500",
        "--store-connect-timeout-ms",
        "1500",
        "--store-statement-timeout-ms",
        "1500",
    ];
    let app = patient_app_on(engine, &limits).await;
    let owner = app.owner("ada").await;
    let database = app.brought().await;
    let proxy = ChaosProxy::to(SocketAddr::from((Ipv4Addr::LOCALHOST, database.port()))).await;
    let ill = Shop::connect(&app, &owner, "ill", database.fields(&json!({ "port": proxy.port }))).await;
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

async fn a_full_disk_costs_what_needs_room_and_leaves_nothing_half_written(engine: Engine) {
    let app = patient_app_on(engine, &[]).await;
    let owner = app.owner("ada").await;
    let database = app.brought().await;
    let shop = Shop::connect(&app, &owner, "full", database.body()).await;
    let client = shop.at(&app);
    let product = client.get(&format!("{PRODUCTS}/{}", shop.sells())).await.expect_status(200);
    let cart = client.post("/store/v1/carts", Value::Null).await.expect_status(201);
    let lines = format!("/store/v1/carts/{}/lines", text(&cart, "id"));
    let line = json!({ "variantId": product["variants"][0]["id"], "quantity": 1 });
    let shopper = client.with("x-cart-token", text(&cart, "token"));

    // What a server says when a table cannot grow, at the last line that a cart needs.
    let mut inside = database.inside().await;
    let (begins, ends) = match engine {
        Engine::Mysql => (
            "create trigger full_disk before insert on cart_lines for each row
               signal sqlstate 'HY000' set mysql_errno = 1021, message_text = 'Disk full'",
            "drop trigger full_disk",
        ),
        _ => (
            "create function public.full_disk() returns trigger language plpgsql as $$ begin
               raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$;
             create trigger full_disk before insert on tenantry.cart_lines for each row execute function public.full_disk()",
            "drop trigger full_disk on tenantry.cart_lines",
        ),
    };
    inside.execute(begins).await;
    shop.expect_refused(&shopper.post(&lines, line.clone()).await, &["store-database-unavailable"]);
    shop.expect_served(&client.get(PRODUCTS).await);
    let path = format!("/store/v1/carts/{}", text(&cart, "id"));
    assert_eq!(shopper.get(&path).await.expect_status(200)["lines"], json!([]));

    inside.execute(ends).await;
    let filled = shopper.post(&lines, line).await.expect_status(200);
    assert_eq!(filled["lines"].as_array().map(Vec::len), Some(1), "{filled}");
    inside.close().await;
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

    /// Its own, as a server shows it whose certificate nobody else has signed, and its key.
    pub(crate) fn own(&self) -> (String, String) {
        (self.pem.clone(), self.issuer.key().serialize_pem())
    }

    /// One that is good from the beginning of that year on.
    pub(crate) fn certify_between(&self, name: &str, from: i32, until: i32) -> (String, String) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(until, 12, 31));
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// Connects a store that must be refused for its TLS, by the code that the connection doctor has for it.
async fn refused_for_tls(app: &TestApp, owner: &Owner, (slug, told): (&str, &str), body: Value) {
    let store = owner.create_store(slug).await.expect_status(201);
    owner.connect(&store, body).await.expect_status(202);
    let run = app.run_ended(owner, &store).await;
    let (step, code, _) = failure(&run);
    assert_eq!((step, code), ("check_connection", told), "{slug}: {run}");
}

async fn a_certificate_is_checked_as_the_owner_asked_and_an_expired_one_costs_one_store_only(engine: Engine) {
    let app = patient_app_on(engine, &[]).await;
    let owner = app.owner("ada").await;
    let mut elsewhere = OwnServer::start(engine, "tls").await;
    let (authority, stranger) = (Authority::new(), Authority::new());
    let strict = elsewhere.brought().await;
    let with = |tls: &str, ca: Option<&str>| strict.fields(&json!({ "tls": tls, "caPem": ca }));
    let full = |ca: &str| with("verify-full", Some(ca));

    // A server without TLS is not spoken to in the clear by somebody who asked for TLS.
    refused_for_tls(&app, &owner, ("no-tls", "no-tls"), with("require", None)).await;

    elsewhere.present(&authority.certify("127.0.0.1", 2095)).await;
    for tls in ["verify-ca", "verify-full"] {
        refused_for_tls(
            &app,
            &owner,
            (&format!("strange-ca-{tls}"), "unknown-authority"),
            with(tls, Some(&stranger.pem)),
        )
        .await;
        refused_for_tls(&app, &owner, (&format!("no-ca-{tls}"), "unknown-authority"), with(tls, None)).await;
    }
    if engine == Engine::Mysql {
        // From now on who is not encrypted is not let in; PostgreSQL says below who is.
        elsewhere.admin().await.execute(&format!("alter user '{}'@'%' require ssl", strict.name())).await;
    }
    let ill = Shop::connect(&app, &owner, "ill", full(&authority.pem)).await;
    let well = Shop::open(&app, &owner, "well").await;
    for shop in [&ill, &well] {
        shop.expect_served(&shop.at(&app).get(PRODUCTS).await);
    }
    let mut admin = elsewhere.admin().await;
    if engine == Engine::Postgresql {
        let plain = format!(
            "select count(*) from pg_stat_ssl s join pg_stat_activity a using (pid) where a.datname = '{}' and not s.ssl",
            strict.name()
        );
        assert!(!admin.sessions(strict.name()).await.is_empty());
        assert_eq!(admin.number(&plain).await, 0, "every connection of the store is encrypted");
    }

    // Another name: verify-full refuses it, also when it is not asked for but goes without saying; the others do not ask.
    elsewhere.present(&authority.certify("db.elsewhere.example", 2095)).await;
    refused_for_tls(&app, &owner, ("other-name", "certificate-name"), full(&authority.pem)).await;
    refused_for_tls(&app, &owner, ("by-itself", "certificate-name"), strict.fields(&json!({ "caPem": authority.pem })))
        .await;
    for (slug, tls, ca) in [("by-authority", "verify-ca", Some(authority.pem.as_str())), ("anybody", "require", None)] {
        let loose = elsewhere.brought().await;
        let shop = Shop::connect(&app, &owner, slug, loose.fields(&json!({ "tls": tls, "caPem": ca }))).await;
        shop.expect_served(&shop.at(&app).get(PRODUCTS).await);
    }

    // It runs out: open connections live on, new ones are not opened.
    elsewhere.present(&authority.certify("127.0.0.1", 2020)).await;
    ill.expect_served(&ill.at(&app).get(PRODUCTS).await);
    refused_for_tls(&app, &owner, ("expired", "certificate-expired"), with("verify-ca", Some(&authority.pem))).await;
    admin.end_sessions(strict.name()).await;
    expect_one_ill(&app, &ill, &well, &["store-database-unavailable"]).await;
    assert_eq!(last_cause(&app, &ill).await, Some(Cause::Tls));
    elsewhere.present(&authority.certify("127.0.0.1", 2095)).await;
    expect_served_again(&app, &ill).await;
    admin.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_that_is_none_is_refused_before_anything_is_called() {
    let app = patient_app_on(Engine::Postgresql, &[]).await;
    let owner = app.owner("ada").await;
    let store = owner.create_store("tea").await.expect_status(201);
    let authority = Authority::new();
    let (_, key) = authority.certify("127.0.0.1", 2095);
    let head = &authority.pem[..authority.pem.len() / 2];
    let cases = [
        ("begin line only", "-----BEGIN CERTIFICATE-----".to_owned()),
        ("no end", head.to_owned()),
        ("nothing between", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".to_owned()),
        ("other bytes", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned()),
        ("a key", key),
        (
            "one good, one not",
            format!("{}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", authority.pem),
        ),
        ("too long", authority.pem.repeat(200)),
    ];
    let database = app.brought().await;
    for (what, pem) in cases {
        let text = json!({ "connectionString": format!("{}?sslmode=verify-full", database.url()), "caPem": pem });
        for body in [database.fields(&json!({ "tls": "verify-full", "caPem": pem })), text] {
            let refused = owner.connect(&store, body).await;
            assert_eq!(refused.status, 422, "{what}: {}", refused.text());
            refused.expect_field(422, "invalid-input", "/caPem");
        }
    }
    owner.api.get(&format!("/api/stores/{}/provisioning", text(&store, "id"))).await.expect_problem(404, "not-found");
}

async fn a_run_whose_database_is_gone_for_good_is_abandoned_and_its_store_starts_anew(engine: Engine) {
    let app = patient_app_on(engine, &[]).await;
    let owner = app.owner("ada").await;
    let database = app.brought().await;
    let proxy = ChaosProxy::to(SocketAddr::from((Ipv4Addr::LOCALHOST, database.port()))).await;
    let store = owner.create_store("tea").await.expect_status(201);
    let path = |rest: &str| format!("/api/stores/{}/provisioning{rest}", text(&store, "id"));

    // The run is in the middle of its migration when the network goes, for good.
    let holder = crate::provisioning::hold_migration(&database).await;
    owner.connect(&store, database.fields(&json!({ "port": proxy.port }))).await.expect_status(202);
    crate::provisioning::step_running(&owner, &store, "migrate").await;
    owner.api.post(&path("/cancel?abandon=true"), json!({})).await.expect_problem(409, "wrong-run-state");
    drop(proxy);
    holder.close().await;
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
    owner.connect(&store, database.body()).await.expect_status(202);
    let run = app.run_ended(&owner, &store).await;
    assert_eq!(run["state"], "succeeded", "{run}");
}
