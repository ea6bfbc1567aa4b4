//! The small services that are measured: one route, one statement, one way to the database each.
//!
//! Each runs in a process of its own, reads what it needs from its input, and serves until it is killed. But for the way
//! to the database they are one program.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::serve::ListenerExt as _;
use axum::{Json, Router, routing};
use kernel::Hostname;
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions};
use sqlx::{Connection as _, PgConnection, PgPool};
use tenancy::query::Kind;
use tenancy::{LeaseError, Query, ResolveError, Tenancy, TenancyConfig};
use tokio::net::TcpListener;
use tokio::process::Command;

use super::directory::{Known, keys};
use super::farm::{PATH, STATEMENT, Shop};
use crate::process::Server;
use crate::report::complain;

/// The hidden command that runs one.
pub(super) const COMMAND: &str = "tenancy-service";

/// What a service is told on its standard input.
#[derive(Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) way: Way,
    pub(super) shops: Vec<Shop>,
}

/// How it gets at a database.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Way {
    /// The connection manager.
    Layer {
        /// Connections to the server, over all stores.
        budget: usize,
        /// Those of the hostnames that it has resolved before it listens: these stores are known, and cold.
        resolved: Vec<String>,
    },
    /// One pool for the first database, whatever the host.
    OnePool {
        /// Connections.
        most: u32,
    },
    /// A pool for each database, found by Host.
    Pools {
        /// Connections of each.
        most: u32,
    },
    /// A connection for each request, found by Host.
    Connects,
}

/// What a plain service goes by at the server; the connection manager goes by its own name.
pub(super) const PLAIN_NAME: &str = "plain";
/// The same of the one that connects for each request.
pub(super) const CONNECTS_NAME: &str = "plain-connects";

impl Told {
    /// Starts the service in a process of its own.
    pub(super) async fn start(way: Way, shops: &[Shop]) -> anyhow::Result<Server> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(COMMAND);
        let told = Self { way, shops: shops.to_vec() };
        Server::start(command, Some(serde_json::to_string(&told)?)).await
    }
}

#[derive(Serialize, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
struct Product {
    id: i64,
    shop: String,
    handle: String,
    title: String,
    price_minor: i64,
    currency: String,
    is_available: bool,
}

type Answer = Result<Json<Vec<Product>>, Failure>;
type ByHost<T> = State<Arc<HashMap<String, T>>>;

/// Why a request is not answered.
enum Failure {
    NoHost,
    UnknownHost,
    Resolve(ResolveError),
    Lease(LeaseError),
    Database(sqlx::Error),
}

impl axum::response::IntoResponse for Failure {
    fn into_response(self) -> axum::response::Response {
        match self {
            Self::NoHost => StatusCode::BAD_REQUEST.into_response(),
            Self::UnknownHost => StatusCode::MISDIRECTED_REQUEST.into_response(),
            Self::Resolve(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
            Self::Lease(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
            Self::Database(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
        }
    }
}

/// Serves until it is killed.
pub(super) async fn serve(told: Told) -> anyhow::Result<()> {
    let router = match told.way {
        Way::Layer { budget, resolved } => {
            let keys = keys()?;
            let directory = Known::new(&keys, &told.shops)?;
            let config = TenancyConfig { max_connections_per_server: budget, ..TenancyConfig::default() };
            let tenancy = Tenancy::new(directory, keys, config);
            for hostname in resolved {
                tenancy.resolve_host(&Hostname::parse(&hostname)?).await?;
            }
            Router::new().route(PATH, routing::get(by_layer)).with_state(tenancy)
        }
        Way::OnePool { most } => {
            Router::new().route(PATH, routing::get(by_one_pool)).with_state(pool(&told.shops[0], most))
        }
        Way::Pools { most } => {
            let pools = told.shops.iter().map(|shop| (shop.hostname.clone(), pool(shop, most)));
            Router::new().route(PATH, routing::get(by_pools)).with_state(Arc::new(pools.collect()))
        }
        Way::Connects => {
            let logins = told.shops.iter().map(|shop| (shop.hostname.clone(), shop.pg_options(CONNECTS_NAME)));
            Router::new().route(PATH, routing::get(by_connecting)).with_state(Arc::new(logins.collect()))
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

fn pool(shop: &Shop, most: u32) -> PgPool {
    // Asking before every use whether the connection lives costs a sixth of the throughput.
    let options = PgPoolOptions::new().max_connections(most).test_before_acquire(false);
    options.connect_lazy_with(shop.pg_options(PLAIN_NAME))
}

fn host(headers: &HeaderMap) -> Result<&str, Failure> {
    headers.get(header::HOST).and_then(|host| host.to_str().ok()).ok_or(Failure::NoHost)
}

async fn by_layer(State(tenancy): State<Tenancy<Known>>, headers: HeaderMap) -> Answer {
    let host = Hostname::from_authority(host(&headers)?).map_err(|_| Failure::NoHost)?;
    let route = tenancy.resolve_host(&host).await.map_err(Failure::Resolve)?;
    let lease = tenancy.lease(&route).await.map_err(Failure::Lease)?;
    let mut connection = lease.acquire().await.map_err(Failure::Lease)?;
    let query = Query::postgres(Kind::Read, STATEMENT, PgArguments::default());
    Ok(Json(connection.fetch_all(query).await.map_err(Failure::Database)?))
}

async fn by_one_pool(State(pool): State<PgPool>) -> Answer {
    Ok(Json(sqlx::query_as(STATEMENT).fetch_all(&pool).await.map_err(Failure::Database)?))
}

async fn by_pools(State(pools): ByHost<PgPool>, headers: HeaderMap) -> Answer {
    let pool = pools.get(host(&headers)?).ok_or(Failure::UnknownHost)?;
    Ok(Json(sqlx::query_as(STATEMENT).fetch_all(pool).await.map_err(Failure::Database)?))
}

async fn by_connecting(State(logins): ByHost<PgConnectOptions>, headers: HeaderMap) -> Answer {
    let login = logins.get(host(&headers)?).ok_or(Failure::UnknownHost)?;
    let mut connection = PgConnection::connect_with(login).await.map_err(Failure::Database)?;
    let products = sqlx::query_as(STATEMENT).fetch_all(&mut connection).await.map_err(Failure::Database)?;
    connection.close().await.map_err(Failure::Database)?;
    Ok(Json(products))
}
