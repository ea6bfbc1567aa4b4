//! The limit: axum, sqlx, one statement, and nothing else. What it is asked for is the same, byte by byte.
//!
//! With one database it is the service that somebody writes who has one shop. With several it is the least that somebody
//! writes who has many: one pool for each, found by Host. What lies between the two is the price of many databases, which
//! no code of ours can lower.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::serve::ListenerExt as _;
use axum::{Json, Router, routing};
use chrono::{DateTime, Utc};
use kernel::{Cursor, Engine};
use serde::{Deserialize, Serialize};
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions, MySqlSslMode};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{MySqlPool, PgPool};
use tokio::net::TcpListener;

use crate::report::complain;

/// What the service is told on its standard input.
#[derive(Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) statement: String,
    /// Connections of each pool.
    pub(crate) pool: u32,
    pub(crate) databases: Vec<Database>,
}

/// A database to serve from.
#[derive(Serialize, Deserialize)]
pub(crate) struct Database {
    pub(crate) engine: Engine,
    pub(crate) hostname: String,
    pub(crate) store: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) username: String,
    pub(crate) password: String,
    pub(crate) database: String,
}

#[derive(Clone)]
enum Pool {
    Postgres(PgPool),
    MySql(MySqlPool),
}

/// One shop.
#[derive(Clone)]
struct Shop {
    pool: Pool,
    statement: &'static str,
    cursor: Cursor,
}

type Shops = Arc<HashMap<String, Shop>>;

#[derive(Deserialize)]
struct ListQuery {
    limit: i64,
}

#[derive(Serialize, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
struct Product {
    id: String,
    handle: String,
    title: String,
    subtitle: Option<String>,
    vendor: Option<String>,
    product_type: Option<String>,
    price_min_minor: i64,
    price_max_minor: i64,
    compare_at_minor: Option<i64>,
    currency: String,
    image_url: Option<String>,
    image_alt: Option<String>,
    is_available: bool,
    published_at: DateTime<Utc>,
}

#[derive(Serialize)]
struct Page {
    data: Vec<Product>,
    meta: Meta,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    next_cursor: Option<String>,
}

/// Serves until it is killed.
pub(crate) fn main() -> anyhow::Result<()> {
    let told: Told = serde_json::from_reader(std::io::stdin())?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(told))
}

async fn serve(told: Told) -> anyhow::Result<()> {
    let statement: &'static str = told.statement.leak();
    let mut shops: Vec<(String, Shop)> =
        told.databases.into_iter().map(|database| shop(database, statement, told.pool)).collect();
    let router = match shops.len() {
        1 => Router::new().route("/store/v1/products", routing::get(list)).with_state(shops.remove(0).1),
        _ => {
            let shops: Shops = Arc::new(shops.into_iter().collect());
            Router::new().route("/store/v1/products", routing::get(list_by_host)).with_state(shops)
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    complain(&format!("listening on http://{}", listener.local_addr()?));
    let listener = listener.tap_io(|stream| {
        // Without it a small answer waits for the client's acknowledgement; a stream that has gone needs nothing.
        let _ = stream.set_nodelay(true);
    });
    Ok(axum::serve(listener, router).await?)
}

fn shop(database: Database, statement: &'static str, connections: u32) -> (String, Shop) {
    // Asking before every use whether the connection lives costs a sixth of the throughput.
    let pool = match database.engine {
        Engine::Mysql => {
            let options = MySqlConnectOptions::new()
                .host(&database.host)
                .port(database.port)
                .username(&database.username)
                .password(&database.password)
                .database(&database.database)
                .ssl_mode(MySqlSslMode::Disabled);
            let pool = MySqlPoolOptions::new().max_connections(connections).test_before_acquire(false);
            Pool::MySql(pool.connect_lazy_with(options))
        }
        _ => {
            let options = PgConnectOptions::new_without_pgpass()
                .host(&database.host)
                .port(database.port)
                .username(&database.username)
                .password(&database.password)
                .database(&database.database)
                .ssl_mode(PgSslMode::Disable)
                .options([("search_path", "tenantry")]);
            let pool = PgPoolOptions::new().max_connections(connections).test_before_acquire(false);
            Pool::Postgres(pool.connect_lazy_with(options))
        }
    };
    let cursor = Cursor::of(&[&database.store, "products", "newest", "", "", "", "", "", "", ""]);
    (database.hostname, Shop { pool, statement, cursor })
}

async fn list(State(shop): State<Shop>, Query(query): Query<ListQuery>) -> Result<Json<Page>, StatusCode> {
    page(&shop, query.limit).await
}

async fn list_by_host(
    State(shops): State<Shops>,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page>, StatusCode> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let shop = host.and_then(|host| shops.get(host)).ok_or(StatusCode::MISDIRECTED_REQUEST)?;
    page(shop, query.limit).await
}

async fn page(shop: &Shop, limit: i64) -> Result<Json<Page>, StatusCode> {
    let found = match &shop.pool {
        Pool::Postgres(pool) => sqlx::query_as(shop.statement).bind(limit + 1).fetch_all(pool).await,
        Pool::MySql(pool) => sqlx::query_as(shop.statement).bind(limit + 1).fetch_all(pool).await,
    };
    let mut data: Vec<Product> = found.map_err(|error| {
        complain(&format!("the statement failed: {error}"));
        StatusCode::INTERNAL_SERVER_ERROR
    })?;
    let limit = usize::try_from(limit).unwrap_or_default();
    let has_next = data.len() > limit;
    data.truncate(limit);
    let next_cursor = data
        .last()
        .filter(|_| has_next)
        .map(|last| shop.cursor.encode(&(last.published_at.timestamp_micros(), &last.id)));
    Ok(Json(Page { data, meta: Meta { next_cursor } }))
}
