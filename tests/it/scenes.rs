//! What several modules need: memberships, carts and checkouts, and requests that no HTTP library would send.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::net::SocketAddr;

use chrono::{Datelike as _, NaiveDate};
use http::HeaderMap;
use integration_tests::{Client, Owner, Response, TestApp, within};
use kernel::{Clock as _, OrganizationId, UserId};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Lets `person` into the organization of `owner`, with this role.
pub(crate) async fn join(app: &TestApp, owner: &Owner, person: &Owner, role: &str) {
    let organization: OrganizationId = owner.organization_id().parse().unwrap();
    let user: UserId = person.registered["user"]["id"].as_str().unwrap().parse().unwrap();
    sqlx::query(
        "insert into organization_members (organization_id, user_id, role, created_at) values ($1, $2, $3, now())",
    )
    .bind(organization.as_uuid())
    .bind(user.as_uuid())
    .bind(role)
    .execute(&mut app.master().await)
    .await
    .unwrap();
}

/// Early on the second day of a month, so that a test that takes some minutes ends in the same day and month.
pub(crate) fn to_second_of_month(app: &TestApp) {
    let now = app.clock.now();
    let next = if now.month() == 12 { (now.year() + 1, 1) } else { (now.year(), now.month() + 1) };
    let morning = NaiveDate::from_ymd_opt(next.0, next.1, 2).unwrap().and_hms_opt(3, 0, 0).unwrap().and_utc();
    app.clock.advance(morning - now);
}

/// The path of a store in the API.
pub(crate) fn store_path(store: &Value, rest: &str) -> String {
    format!("/api/stores/{}{rest}", text(&store["id"]))
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("expected a text, found {value}"))
}

/// How many rows of master this statement counts.
pub(crate) async fn count(app: &TestApp, statement: &'static str) -> i64 {
    sqlx::query_scalar(statement).fetch_one(&mut app.master().await).await.unwrap()
}

/// The id of a product's variant.
pub(crate) async fn variant_of(shop: &Client, handle: &str, at: usize) -> String {
    let product = shop.get(&format!("/store/v1/products/{handle}")).await.expect_status(200);
    text(&product["variants"][at]["id"]).to_owned()
}

/// A shopper's cart.
pub(crate) struct Cart {
    /// A client that holds the cart's token.
    pub(crate) shop: Client,
    pub(crate) id: String,
    pub(crate) token: String,
}

impl Cart {
    /// An empty one.
    pub(crate) async fn create(shop: &Client) -> Self {
        let made = shop.send(http::Method::POST, "/store/v1/carts", None).await.expect_status(201);
        let (id, token) = (text(&made["id"]).to_owned(), text(&made["token"]).to_owned());
        Self { shop: shop.with("x-cart-token", &token), id, token }
    }

    /// One with this in it.
    pub(crate) async fn with(shop: &Client, variant: &str, quantity: u32) -> Self {
        let cart = Self::create(shop).await;
        cart.add(variant, quantity).await.expect_status(200);
        cart
    }

    pub(crate) fn path(&self, rest: &str) -> String {
        format!("/store/v1/carts/{}{rest}", self.id)
    }

    pub(crate) async fn get(&self) -> Response {
        self.shop.get(&self.path("")).await
    }

    pub(crate) async fn add(&self, variant: &str, quantity: u32) -> Response {
        self.shop.post(&self.path("/lines"), json!({ "variantId": variant, "quantity": quantity })).await
    }

    /// Orders what is in it.
    pub(crate) async fn complete(&self, key: &str, body: Value) -> Response {
        self.shop.with("idempotency-key", key).post(&self.path("/complete"), body).await
    }
}

/// What a shopper says at the checkout.
pub(crate) fn checkout_body() -> Value {
    json!({
        "email": "shopper@example.com",
        "shippingAddress": {
            "firstName": "Sam", "lastName": "Shopper", "address1": "1 Quay", "city": "Bremen", "country": "DE"
        }
    })
}

/// Sends these bytes, asks the server to end after them, and reads all of the answer.
pub(crate) async fn send_raw(address: SocketAddr, request: &str) -> (u16, HeaderMap, Value) {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    let answer = within("a raw request", exchange).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {request:?}: {answer:?}"));
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.trim().parse().unwrap()))
        .collect();
    (status, headers, serde_json::from_str(body).unwrap_or(Value::Null))
}
