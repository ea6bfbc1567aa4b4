//! No secret is readable anywhere but where it is used: every log line, every row of every table and every metric of a whole
//! run is searched for every secret that the run has used.

use base64::Engine as _;
use integration_tests::{Cli, Client, ENCRYPTION_KEY, JWT_SECRET, Process, cluster, database_name, eventually};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use tenancy::Credential;
use vault::{KeyRing, Sealed};

const PASSWORD: &str = "plain-password-of-ada";
const WRONG: &str = "wrong-database-password";

/// Secrets by name, and where they must not be.
struct Search {
    secrets: Vec<(&'static str, String)>,
    found: Vec<String>,
}

impl Search {
    /// Looks for every secret in `text`: as it is, in hexadecimal and in both alphabets of base64.
    fn look(&mut self, place: &str, text: &str) {
        for (name, secret) in &self.secrets {
            let forms = [
                secret.clone(),
                hex::encode(secret),
                base64::engine::general_purpose::STANDARD_NO_PAD.encode(secret),
                base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(secret),
            ];
            if forms.iter().any(|form| text.contains(form.as_str())) {
                self.found.push(format!("{name} in {place}"));
            }
        }
    }

    /// Looks through every row of every table that is not the server's own.
    async fn look_through(&mut self, place: &str, mut connection: PgConnection) {
        let tables = "select format('%I.%I', table_schema, table_name) from information_schema.tables
                      where table_schema not in ('pg_catalog', 'information_schema') and table_type = 'BASE TABLE'";
        let tables: Vec<String> =
            sqlx::query_scalar(tables).fetch_all(&mut connection).await.expect("tables are listed");
        assert!(tables.len() > 10, "{place} has only {tables:?}");
        for table in tables {
            let rows =
                sqlx::raw_sql(AssertSqlSafe(format!("select t::text from {table} t"))).fetch_all(&mut connection).await;
            for row in rows.expect("rows are read") {
                let text: String = row.get(0);
                self.look(&format!("{place} {table}"), &text);
            }
        }
        connection.close().await.expect("it closes");
    }
}

async fn run_ended(owner: &Client, store: &Value) -> Value {
    let path = format!("/api/stores/{}/provisioning", store["id"].as_str().expect("an id"));
    eventually("the run ends", || async {
        let run = owner.get(&path).await.expect_status(200)["run"].clone();
        ["succeeded", "failed"].contains(&run["state"].as_str().expect("a state")).then_some(run)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_of_a_whole_run_is_left_anywhere() {
    let cluster = cluster().await;
    let (master, brought) = (cluster.master().await, cluster.brought().await);
    let admin_url = cluster.url("postgres");
    Cli::json(&master.url(), &["servers", "add", "local", "--url", &admin_url]).await;
    let node = Process::serve(&master.url(), &[("LOG", "trace")]).await;
    let anybody = node.api();

    let body = json!({ "email": "ada@example.com", "password": PASSWORD, "firstName": "Ada", "lastName": "L" });
    let registered = anybody.post("/api/auth/register", body).await.expect_status(201);
    let token = |body: &Value, name: &str| body["tokens"][name].as_str().expect("a token").to_owned();
    let mut secrets = vec![
        ("first access token", token(&registered, "accessToken")),
        ("first refresh token", token(&registered, "refreshToken")),
    ];
    let refreshed = anybody.post("/api/auth/refresh", json!({ "refreshToken": secrets[1].1 })).await.expect_status(200);
    secrets.extend([
        ("access token", token(&refreshed, "accessToken")),
        ("refresh token", token(&refreshed, "refreshToken")),
    ]);
    anybody
        .post("/api/auth/login", json!({ "email": "ada@example.com", "password": PASSWORD }))
        .await
        .expect_status(200);
    let owner = anybody.with_token(&secrets[2].1);

    let mut stores = Vec::new();
    for (slug, connect) in [
        ("managed", json!({ "managed": true, "demoProducts": true })),
        ("brought", json!({ "engine": "postgresql", "connectionString": brought.url() })),
        (
            "refused",
            json!({ "engine": "postgresql", "host": "127.0.0.1", "port": cluster.port(), "username": brought.database,
            "password": WRONG, "database": brought.database }),
        ),
        (
            "mistyped",
            json!({ "engine": "postgresql", "connectionString": format!("postgres://ada:{WRONG}@127.0.0.1:1/x?sslmode=often") }),
        ),
    ] {
        let store = owner
            .post("/api/stores/create", json!({ "name": slug, "slug": format!("{slug}-tea") }))
            .await
            .expect_status(201);
        let path = format!("/api/stores/{}/connect-database", store["id"].as_str().expect("an id"));
        let answer = owner.post(&path, connect).await;
        assert!(!answer.text().contains(WRONG), "{}", answer.text());
        if slug != "mistyped" {
            answer.expect_status(202);
            let run = run_ended(&owner, &store).await;
            assert_eq!(run["state"], if slug == "refused" { "failed" } else { "succeeded" }, "{run}");
        }
        stores.push(store);
    }

    let import = format!("/api/stores/{}/products/import", stores[1]["id"].as_str().expect("an id"));
    let csv = "Handle,Title,Variant Price,Variant Inventory Qty\nteapot,Teapot,12.50,5\n";
    owner.send_bytes(http::Method::POST, &import, "text/csv", csv).await.expect_status(200);
    let shop = node.storefront(stores[1]["hostname"].as_str().expect("a hostname"));
    let product = shop.get("/store/v1/products/teapot").await.expect_status(200);
    let cart = shop.post("/store/v1/carts", Value::Null).await.expect_status(201);
    let cart_token = cart["token"].as_str().expect("a token").to_owned();
    let buyer = shop.with("x-cart-token", &cart_token).with("idempotency-key", "order-1");
    let cart_path = format!("/store/v1/carts/{}", cart["id"].as_str().expect("an id"));
    let line = json!({ "variantId": product["variants"][0]["id"], "quantity": 1 });
    buyer.post(&format!("{cart_path}/lines"), line).await.expect_status(200);
    let address = json!({ "firstName": "B", "lastName": "C", "address1": "Street 1", "city": "Bern", "country": "CH" });
    let order = json!({ "email": "b@example.com", "shippingAddress": address });
    let order = buyer.post(&format!("{cart_path}/complete"), order).await.expect_status(201);

    // The password that we made up for the managed store, as the row of its database holds it.
    let mut connection = master.admin().await;
    let (sealed, version): (Vec<u8>, i32) =
        sqlx::query_as("select sealed, credential_version from store_databases where kind = 'managed'")
            .fetch_one(&mut connection)
            .await
            .expect("one managed database");
    let ring = KeyRing::single(ENCRYPTION_KEY).expect("a key");
    let id = stores[0]["id"].as_str().expect("an id").parse().expect("a store id");
    let made_up = Credential::open(&ring, &Sealed::from_bytes(sealed).expect("sealed"), id, version).expect("it opens");

    let admin_password = admin_url
        .split_once("://")
        .and_then(|(_, rest)| rest.split_once(':')?.1.split_once('@'))
        .expect("a password")
        .0
        .to_owned();
    secrets.extend([
        ("owner's password", PASSWORD.to_owned()),
        ("brought database's password", brought.password()),
        ("refused password", WRONG.to_owned()),
        ("made-up database password", made_up.password.expose_secret().to_owned()),
        ("server administrator's password", admin_password),
        ("encryption key", ENCRYPTION_KEY.to_owned()),
        ("signing secret", JWT_SECRET.to_owned()),
        ("cart token", cart_token),
        ("order token", order["orderToken"].as_str().expect("a token").to_owned()),
    ]);
    let mut search = Search { secrets, found: Vec::new() };

    let metrics = Client::new(node.internal_address, "localhost").get("/metrics").await;
    search.look("metrics", &metrics.text());
    owner.post("/api/auth/logout", Value::Null).await.expect_status(204);
    search.look_through("master", connection).await;
    search.look_through("the managed database", cluster.connect(&database_name(&stores[0])).await).await;
    search.look_through("the brought database", brought.admin().await).await;
    let server_log = std::fs::read_to_string(cluster.log_file()).expect("the server writes a log");
    search.look("the server's log", &server_log);
    let log = node.log();
    assert!(log.lines().count() > 50, "the node has logged: {log}");
    search.look("the node's log", &log);
    assert_eq!(search.found, Vec::<String>::new());

    // The search itself works: what is planted is found, in every form.
    for planted in
        [PASSWORD.to_owned(), hex::encode(PASSWORD), base64::engine::general_purpose::STANDARD_NO_PAD.encode(PASSWORD)]
    {
        search.look("a planted text", &format!("x{planted}y"));
        assert_eq!(search.found.drain(..).collect::<Vec<_>>(), ["owner's password in a planted text"]);
    }

    // The node is gone before the databases that it uses.
    node.kill().await;
}
