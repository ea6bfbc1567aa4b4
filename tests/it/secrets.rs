//! Secrets leave no trace: not in logs, answers to ops, metrics, master, the job queue, or a store's own database.

use std::collections::BTreeMap;

use control_plane::config::KeyArgs;
use control_plane::provisioning::db;
use control_plane::servers;
use devkit::payments::{ApiFault, Checkout, TestPayments, TestPaymentsOptions, sign};
use http::Method;
use integration_tests::{
    Brought, Cli, Cluster, ENCRYPTION_KEY, JWT_SECRET, OwnServer, Owner, Process, Receiver, StoreSql, TestApp,
    TestDatabase, database_name, eventually, own_cluster,
};
use kernel::Engine;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tenancy::Credential;

use crate::processes::server_url;
use crate::provisioning::store_id;
use crate::purchases::Order;
use crate::scenes::text;
use crate::top_ups::{CARD, DECLINED, GOOD, RULE};

on_each_engine! {
    no_secret_is_found_anywhere_after_a_day_of_work
    a_registered_servers_password_is_sealed_at_once
}

/// As loud as it gets.
pub(crate) const LOUD: &str =
    "trace,sqlx::query=trace,sqlx::postgres=trace,sqlx::pool=trace,graphile_worker::runner=trace";

/// What must not be found, by what it is.
#[derive(Default)]
pub(crate) struct Secrets(BTreeMap<String, String>);

impl Secrets {
    pub(crate) fn add(&mut self, what: &str, secret: &str) {
        assert!(secret.len() >= 8, "{what} is too short to be looked for");
        self.0.insert(format!("{what} {}", self.0.len()), secret.to_owned());
    }

    /// The secrets that are in `text`, as they are or in another common writing.
    pub(crate) fn found_in(&self, text: &str) -> Vec<&str> {
        let mut found = Vec::new();
        for (what, secret) in &self.0 {
            let hex = hex::encode(secret);
            if text.contains(secret.as_str()) || text.contains(&hex) {
                found.push(what.as_str());
            }
        }
        found
    }
}

fn password_of(url: &str) -> &str {
    url.split(':').nth(2).unwrap().split('@').next().unwrap()
}

pub(crate) async fn credential(master: &TestDatabase, store: &Value) -> Credential {
    let ring =
        KeyArgs { encryption_key: Some(ENCRYPTION_KEY.to_owned().into()), encryption_keys: None }.ring().unwrap();
    let id = store_id(store);
    let row = db::store_database_find(&mut master.admin().await, id).await.unwrap().unwrap();
    Credential::open(&ring, &row.sealed, id, row.credential_version).unwrap()
}

/// A payment provider whose keys are nobody else's.
async fn provider(secrets: &mut Secrets) -> TestPayments {
    let [secret_key, signing] = [(); 2].map(|()| hex::encode(kernel::random::bytes::<16>()));
    secrets.add("payment provider's key", &secret_key);
    // Without what stands before it, as it may be used.
    secrets.add("payment provider's signing secret", &signing);
    let (secret_key, webhook_secret) = (format!("sk_test_{secret_key}"), format!("whsec_{signing}"));
    let options = TestPaymentsOptions { secret_key, webhook_secret, ..TestPaymentsOptions::default() };
    TestPayments::start(options).await.unwrap()
}

/// The variables that lead a node to a provider.
fn environment_of(provider: &TestPayments) -> [(&str, &str); 3] {
    let options = provider.options();
    [
        ("STRIPE_SECRET_KEY", &options.secret_key),
        ("STRIPE_WEBHOOK_SECRET", &options.webhook_secret),
        ("STRIPE_API_URL", provider.url()),
    ]
}

/// An agency buys a pack, leaves cards, and is topped up by one of them; whatever can go wrong does, too. Adds the secrets that
/// come up, and returns what was answered where they should not be.
async fn top_up_by_itself(node: &Process, owner: &Owner, provider: &TestPayments, secrets: &mut Secrets) -> String {
    let mut answers = String::new();
    let set = async |path: &str, body: Value| owner.api.send(Method::PUT, path, Some(body)).await;
    let packs = owner.api.get("/api/credits/packs").await.expect_status(200);
    let starter = packs["data"].as_array().unwrap().iter().find(|pack| pack["code"] == "starter").unwrap();

    // On the page, with the card left there.
    let body = json!({ "packId": starter["id"], "saveCard": true });
    let order = owner.api.with("idempotency-key", "pack-1").post("/api/credits/purchase", body).await;
    let order = Order::of(&order.expect_status(201));
    provider.checkout(&order.session, Checkout::Pay).unwrap();
    answers += &node.api().get(&order.success()).await.text();
    let balance = async || owner.api.get("/api/credits/balance").await.expect_status(200)["available"].clone();
    eventually("the pack", || async { (balance().await == 500).then_some(()) }).await;

    // Taken down on the agency's own page: what that needs is told to it alone, and to whoever asks again with its key.
    let take_down = async |key: &str, number: &str| {
        let keyed = owner.api.with("idempotency-key", key);
        let begin = async || keyed.send(Method::POST, &format!("{CARD}/setup"), None).await.expect_status(201);
        let setup = begin().await;
        assert_eq!(begin().await["clientSecret"], setup["clientSecret"]);
        let method = provider.fill_in(text(&setup["id"]), number).unwrap();
        let card = set(CARD, json!({ "paymentMethod": method })).await;
        card.expect_status(200);
        card.text()
    };
    answers += &take_down("card-1", DECLINED).await;
    let rule = json!({ "threshold": 600, "packId": starter["id"], "monthlyCapMinor": 5000 });
    answers += &set(RULE, rule).await.text();
    eventually("the declined card", || async {
        (owner.api.get(RULE).await.expect_status(200)["consecutiveDeclines"] == 1).then_some(())
    })
    .await;
    answers += &owner.api.get(RULE).await.text();
    answers += &take_down("card-2", GOOD).await;
    eventually("the pack that is bought by itself", || async { (balance().await == 1000).then_some(()) }).await;

    // The provider refuses the platform's key, breaks off, and is spoken for by somebody else.
    for fault in [ApiFault::Before(401), ApiFault::After500] {
        provider.fail_next([fault]);
        let failed = owner.api.send(Method::POST, &format!("{CARD}/setup"), None).await;
        assert!(failed.status.is_server_error(), "{}", failed.text());
        answers += &failed.text();
    }
    let event = provider.events().remove(0);
    let forged = sign("whsec_of_somebody_else", provider.now(), &event.to_string());
    let forged = node.api().with("stripe-signature", &forged).post("/api/webhooks/stripe", event).await;
    assert!(forged.status.is_client_error(), "{}", forged.text());
    answers += &forged.text();
    eventually("what the provider tells", || async {
        let events = provider.events();
        events.iter().all(|event| provider.deliveries(text(&event["id"])).1).then_some(())
    })
    .await;
    for (what, kind, at_least) in
        [("card's client secret", "setup_intent", 2), ("payment's client secret", "payment_intent", 3)]
    {
        let objects = provider.objects(kind);
        assert!(objects.len() >= at_least, "{objects:?}");
        objects.iter().for_each(|object| secrets.add(what, text(&object["client_secret"])));
    }
    for path in [CARD, RULE, "/api/credits/purchases", "/api/credits/transactions"] {
        let shown = owner.api.get(path).await;
        shown.expect_status(200);
        answers += &shown.text();
    }
    answers
}

/// Servers that write every statement down, as an administrator in trouble may set them.
struct Talkative {
    /// Master's.
    cluster: &'static Cluster,
    /// That of stores' databases; none when they are on master's.
    mariadb: Option<OwnServer>,
}

impl Talkative {
    async fn start(engine: Engine) -> Self {
        let cluster: &Cluster = own_cluster(&format!("secrets-{engine}")).await;
        let mut admin = StoreSql::Postgres(cluster.admin().await);
        for setting in ["log_statement = 'all'", "log_min_error_statement = 'error'"] {
            admin.execute(&format!("alter role all set {setting}")).await;
        }
        admin.close().await;
        if engine != Engine::Mysql {
            return Self { cluster, mariadb: None };
        }
        let mariadb = OwnServer::start(engine, "secrets").await;
        mariadb.admin().await.execute("set global general_log_file = 'statements.log', general_log = 1").await;
        Self { cluster, mariadb: Some(mariadb) }
    }

    /// How the administrator reaches the server of stores' databases.
    fn url(&self) -> String {
        self.mariadb.as_ref().map_or_else(|| self.cluster.url("postgres"), OwnServer::url)
    }

    async fn admin(&self) -> StoreSql {
        match &self.mariadb {
            Some(mariadb) => mariadb.admin().await,
            None => StoreSql::Postgres(self.cluster.admin().await),
        }
    }

    async fn brought(&self) -> Brought {
        match &self.mariadb {
            Some(mariadb) => mariadb.brought().await,
            None => Brought::Postgres(self.cluster.brought().await),
        }
    }

    async fn inside(&self, store: &Value) -> StoreSql {
        let name = database_name(store);
        match &self.mariadb {
            Some(OwnServer::MariaDb(server)) => StoreSql::MySql(server.connect(Some(&name)).await.unwrap()),
            _ => StoreSql::Postgres(self.cluster.connect(&name).await),
        }
    }

    /// What the servers have written down, and what runs on them or ran last, which everybody sees who may look at them.
    async fn seen(&self) -> Vec<(&'static str, String)> {
        let log = std::fs::read_to_string(self.cluster.log_file()).unwrap();
        assert!(log.contains("statement: ") || log.contains("execute "), "the server wrote statements down");
        let mut master = StoreSql::Postgres(self.cluster.admin().await);
        let activity = master.texts("select coalesce(query, '') from pg_stat_activity").await;
        let mut seen = vec![("PostgreSQL's log", log), ("PostgreSQL's activity", activity.join("\n"))];
        if let Some(mariadb) = &self.mariadb {
            let mut admin = mariadb.admin().await;
            let file = admin.texts("select concat(@@datadir, @@general_log_file)").await.remove(0);
            // Of what is bytes, it writes the bytes.
            let log = String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned();
            assert!(log.contains("Execute\t"), "the server wrote statements down: {log}");
            let activity = admin.texts("select coalesce(info, '') from information_schema.processlist").await;
            seen.extend([("MariaDB's log", log), ("MariaDB's activity", activity.join("\n"))]);
        }
        seen
    }
}

async fn no_secret_is_found_anywhere_after_a_day_of_work(engine: Engine) {
    let servers = Talkative::start(engine).await;
    let mut admin = servers.admin().await;
    let master = servers.cluster.master().await;
    let url = master.url();
    Cli::add_server(&url, "local", &servers.url()).await;
    let mut secrets = Secrets::default();
    let provider = provider(&mut secrets).await;
    let payments = environment_of(&provider);
    let more = [("LOG", LOUD), ("ALLOW_PRIVATE_WEBHOOKS", "true"), ("TOP_UP_POLL_MS", "100")];
    let node = Process::serve(&url, &[&payments[..], &more].concat()).await;
    provider.set_webhook_url(&format!("http://{}/api/webhooks/stripe", node.address));
    secrets.add("encryption key", ENCRYPTION_KEY);
    secrets.add("signing secret", JWT_SECRET);
    secrets.add("administrator's password", password_of(&url));
    secrets.add("administrator's password", password_of(&servers.url()));
    let mut answers = String::new();

    // People come, sign in, come back, and mistype.
    let owner = node.owner("ada").await;
    secrets.add("password", &owner.password);
    let tokens = &owner.registered["tokens"];
    secrets.add("access token", tokens["accessToken"].as_str().unwrap());
    secrets.add("refresh token", tokens["refreshToken"].as_str().unwrap());
    let login = owner.login(json!({})).await.expect_status(200);
    secrets.add("refresh token", login["tokens"]["refreshToken"].as_str().unwrap());
    let refresh = json!({ "refreshToken": login["tokens"]["refreshToken"] });
    let refreshed = node.api().post("/api/auth/refresh", refresh.clone()).await.expect_status(200);
    secrets.add("access token", refreshed["tokens"]["accessToken"].as_str().unwrap());
    secrets.add("refresh token", refreshed["tokens"]["refreshToken"].as_str().unwrap());
    answers += &node.api().post("/api/auth/refresh", refresh).await.text();
    let mistyped = json!({ "email": owner.email, "password": "mistyped-password-1" });
    secrets.add("mistyped password", "mistyped-password-1");
    answers += &node.api().post("/api/auth/login", mistyped).await.text();
    answers += &node.api().with_token("made-up-token-1").get("/api/auth/me").await.text();
    secrets.add("made-up token", "made-up-token-1");

    // Stores get databases of both kinds, some at the second try.
    let managed = node.active_store(&owner, engine, "managed-shop").await;
    let brought = owner.create_store("brought-shop").await.expect_status(201);
    let database = servers.brought().await;
    secrets.add("brought password", &database.password());
    let wrong = database.url().replace(&database.password(), "wrong-database-password");
    secrets.add("wrong password", "wrong-database-password");
    let connection = |url: &str| json!({ "engine": engine, "connectionString": url });
    owner.connect(&brought, connection(&wrong)).await.expect_status(202);
    let failed = node.run_ended(&owner, &brought).await;
    assert_eq!(failed["state"], "failed");
    answers += &failed.to_string();
    secrets.add("malformed password", "malformed-url-password");
    for malformed in [
        "mysql://u:malformed-url-password@h/d",
        "postgres://u:malformed-url-password@",
        "postgres://u:?malformed-url-password@h.example/d",
        "malformed-url-password",
    ] {
        answers += &owner.connect(&brought, connection(malformed)).await.text();
    }
    // A secret in the place of something else, or of another type.
    for misplaced in [
        json!({ "engine": "postgres://u:malformed-url-password@h/d" }),
        json!({ "engine": "postgresql", "tls": "malformed-url-password" }),
        json!({ "engine": "postgresql", "password": 90_381_726_455_012_u64 }),
        json!("postgres://u:malformed-url-password@h/d"),
    ] {
        answers += &owner.connect(&brought, misplaced).await.text();
    }
    secrets.add("password of digits", "90381726455012");
    let typo = json!({ "engine": "postgresql", "connectionString": "malformed-url-password", "passwort": 1 });
    answers += &owner.connect(&brought, typo).await.text();
    owner.connect(&brought, connection(&database.url())).await.expect_status(202);
    assert_eq!(node.run_ended(&owner, &brought).await["state"], "succeeded");
    let given_up = owner.create_store("given-up").await.expect_status(201);
    node.active_store(&owner, engine, "second-shop").await;
    owner.connect(&given_up, connection(&wrong)).await.expect_status(202);
    node.run_ended(&owner, &given_up).await;
    owner.api.post(&format!("/api/stores/{}/provisioning/retry", given_up["id"].as_str().unwrap()), json!({})).await;
    node.run_ended(&owner, &given_up).await;
    for store in [&managed, &brought] {
        secrets.add("store's password", credential(&master, store).await.password.expose_secret());
    }

    // Products come, and somebody buys one.
    let csv = "Handle,Title,Variant Price\nmug,Mug,9.90\nbad,Bad,price\n";
    let path = format!("/api/stores/{}/products/import", brought["id"].as_str().unwrap());
    owner.api.send_bytes(Method::POST, &path, "text/csv", csv).await.expect_status(200);
    let shop = node.storefront_of(&brought);
    let mug = shop.get("/store/v1/products/mug").await.expect_status(200);
    let cart = shop.post("/store/v1/carts", json!({})).await.expect_status(201);
    secrets.add("cart token", cart["token"].as_str().unwrap());
    let shopper = shop.with("x-cart-token", cart["token"].as_str().unwrap());
    let cart_path = format!("/store/v1/carts/{}", cart["id"].as_str().unwrap());
    let line = json!({ "variantId": mug["variants"][0]["id"], "quantity": 1 });
    shopper.post(&format!("{cart_path}/lines"), line).await.expect_status(200);
    let address = json!({ "firstName": "Eve", "lastName": "E", "address1": "1 Road", "city": "Town", "postalCode": "12345", "country": "US" });
    let checkout = json!({ "email": "eve@example.com", "shippingAddress": address });
    let buyer = shopper.with("idempotency-key", "order-1");
    let order = buyer.post(&format!("{cart_path}/complete"), checkout).await;
    let order = order.expect_status(201);
    secrets.add("order token", order["orderToken"].as_str().unwrap());

    // Credits are bought, also when nobody is there.
    answers += &top_up_by_itself(&node, &owner, &provider, &mut secrets).await;

    // Somebody is told of it, by two secrets for a while.
    let receiver = Receiver::start().await;
    let hooks = "/api/webhooks/endpoints";
    let keyed = owner.api.with("idempotency-key", "hook-1");
    let endpoint = keyed.post(hooks, json!({ "url": receiver.url("/hook") })).await.expect_status(201);
    secrets.add("webhook secret", endpoint["secret"].as_str().unwrap());
    let endpoint = format!("{hooks}/{}", endpoint["id"].as_str().unwrap());
    let rotated = keyed.post(&format!("{endpoint}/rotate-secret"), json!({})).await.expect_status(200);
    secrets.add("webhook secret", rotated["secret"].as_str().unwrap());
    // Without what stands before it, as it is used.
    secrets.add("webhook key", rotated["secret"].as_str().unwrap().trim_start_matches("whsec_"));
    receiver.answer(500);
    owner.api.send(Method::POST, &format!("{endpoint}/test"), None).await.expect_status(202);
    let message = receiver.wait_for(1).await.remove(0);
    assert_eq!(message.header("webhook-signature").split(' ').count(), 2);
    for path in [hooks.to_owned(), endpoint.clone(), format!("{endpoint}/deliveries")] {
        answers += &owner.api.get(&path).await.text();
    }

    // Something breaks, and ops look at it.
    let login = database_name(&managed);
    let none_comes_in = match engine {
        Engine::Mysql => format!("alter user '{login}'@'%' with max_user_connections -1"),
        _ => format!("alter role {login} connection limit 0"),
    };
    admin.execute(&none_comes_in).await;
    admin.end_sessions(&login).await;
    answers += &node.storefront_of(&managed).get("/store/v1/products").await.text();
    Cli::json(&url, &["admin", "grant", &owner.email]).await;
    for path in [
        "/api/ops/doctor",
        "/api/ops/servers",
        "/api/ops/stores",
        "/api/ops/explain/host?host=brought-shop.stores.localhost",
        "/api/ops/payments/reconciliations",
        "/api/ops/payments/differences",
        "/api/ops/payments/events?state=done",
        "/api/ops/payments/events?state=ignored",
    ] {
        answers += &owner.api.get(path).await.text();
    }
    let compared = owner.api.send(Method::POST, "/api/ops/payments/reconcile", None).await;
    compared.expect_status(200);
    answers += &compared.text();
    let wrong = servers.url().replace(password_of(&servers.url()), "wrong-admin-password");
    let more = json!({ "name": "more", "url": wrong });
    secrets.add("wrong administrator's password", "wrong-admin-password");
    answers += &owner.api.post("/api/ops/servers", more).await.text();
    for arguments in [&["doctor"][..], &["servers", "list"], &["explain", "host", "managed-shop.stores.localhost"]] {
        let output = Cli::run(&url, arguments).await;
        answers += &String::from_utf8_lossy(&[output.stdout, output.stderr].concat());
    }
    let environment = payments.map(|(name, value)| (name, Some(value)));
    let compared = Cli::run_in(&url, &environment, &["payments", "reconcile"]).await;
    assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stderr));
    answers += &String::from_utf8_lossy(&[compared.stdout, compared.stderr].concat());

    let metrics = node.internal().get("/metrics").await.text();
    let program = node.log_handle();
    assert_eq!(node.terminate().await, Some(0));
    let program = program.lock().unwrap().clone();
    assert!(program.contains("TRACE") && program.contains("provisioning"), "the log was as loud as it gets");
    let in_master = StoreSql::Postgres(master.admin().await).everything().await;
    assert!(in_master.contains("graphile_worker."), "the job queue was read, too");
    let mut places = vec![
        ("answers", answers),
        ("metrics", metrics),
        ("the program's log", program),
        ("master", in_master),
        ("a managed store's database", servers.inside(&managed).await.everything().await),
        ("a brought database", database.inside().await.everything().await),
    ];
    places.extend(servers.seen().await);

    for (place, text) in &places {
        let mut found = secrets.found_in(text);
        // The test made this login itself, in the open.
        if place.ends_with("'s log") && *place != "the program's log" {
            let is_by_us = |line: &&str| line.contains("create role it_brought") || line.contains("create user 'it_my");
            let by_others: Vec<_> =
                text.lines().filter(|line| line.contains(&database.password()) && !is_by_us(line)).collect();
            assert!(by_others.is_empty(), "{place}: {by_others:?}");
            found.retain(|what| secrets.0[*what] != database.password());
        }
        assert!(found.is_empty(), "{place} holds: {found:?}\n{}", lines_with(&secrets, text));
    }
    let in_master = StoreSql::Postgres(master.admin().await);
    for place in [in_master, database.inside().await] {
        proves_that_it_finds(&secrets, place).await;
    }
}

pub(crate) fn lines_with(secrets: &Secrets, text: &str) -> String {
    let lines = text.lines().filter(|line| !secrets.found_in(line).is_empty());
    lines.take(5).map(|line| line.chars().take(600).collect::<String>() + "\n").collect()
}

/// Plants secrets where they must not be, and finds them.
async fn proves_that_it_finds(secrets: &Secrets, mut place: StoreSql) {
    let (what, secret) = secrets.0.iter().next().unwrap();
    let bytes = if matches!(place, StoreSql::MySql(_)) { "blob" } else { "bytea" };
    place.execute(&format!("create table planted (plain text, bytes {bytes})")).await;
    for column in ["plain", "bytes"] {
        place.execute(&format!("delete from planted; insert into planted ({column}) values ('{secret}')")).await;
        assert_eq!(secrets.found_in(&place.everything().await), [what.as_str()]);
    }
    place.execute("drop table planted").await;
    place.close().await;
    assert_eq!(secrets.found_in(&format!("a line with {secret} in it")), [what.as_str()]);
}

async fn a_registered_servers_password_is_sealed_at_once(engine: Engine) {
    let app = TestApp::start_on(engine).await;
    let password = password_of(&server_url(engine, app.cluster).await).to_owned();
    let admin = app.admin().await;
    let listed = admin.api.get("/api/ops/servers").await;
    listed.expect_status(200);
    assert!(!listed.text().contains(&password));
    let rows = StoreSql::Postgres(app.master().await).everything().await;
    assert!(!rows.contains(&password) && !rows.contains(&hex::encode(&password)));
    // It is there all the same, for who has the key.
    let servers = servers::list(&app.cx).await.unwrap();
    let opened = servers::open_credential(&app.cx, &servers[0]).unwrap();
    assert_eq!(opened.password.expose_secret(), password);
}
