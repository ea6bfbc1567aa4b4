//! The internal listener: health, metrics, and the question whether a certificate may be had for a name. Never reachable
//! from outside.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use kernel::{Hostname, StoreId, StoreStatus};
use metrics_exporter_prometheus::PrometheusHandle;
use problem::{Json, Path, Problem, Query};
use serde::{Deserialize, Serialize};
use sqlx::Connection as _;
use tenancy::stats::BreakerState;
use tenancy::{Explanation, ResolveError};

use crate::cx::Cx;

const READY_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Internal {
    cx: Cx,
    metrics: PrometheusHandle,
}

pub fn router(cx: Cx, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/health/live", get(health_live))
        .route("/health/ready", get(health_ready))
        .route("/metrics", get(metrics_render))
        .route("/metrics/stores/{id}", get(store_metrics))
        .route("/internal/pools", get(pools))
        .route("/internal/stores/{id}", get(store_explain))
        .route("/internal/hosts/{name}", get(host_explain))
        .route("/internal/tls/ask", get(tls_ask))
        .fallback(|| async { Problem::not_found() })
        .with_state(Internal { cx, metrics })
}

/// The process runs.
async fn health_live() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "status": "live" }))
}

/// The process can serve: also without master, which is said, because known storefronts go on; not while it shuts down.
async fn health_ready(State(Internal { cx, .. }): State<Internal>) -> Response {
    if cx.shutdown.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(serde_json::json!({ "status": "draining" }))).into_response();
    }
    let answers = async { cx.master.acquire().await?.ping().await };
    let (status, master) = match tokio::time::timeout(READY_TIMEOUT, answers).await {
        Ok(Ok(())) => ("ready", "up"),
        Ok(Err(_)) | Err(_) => ("degraded", "down"),
    };
    let lacking = cx.servers_lacking.load(Ordering::Relaxed);
    Json(serde_json::json!({ "status": status, "master": master, "serversWithoutShare": lacking })).into_response()
}

async fn metrics_render(State(Internal { cx, metrics }): State<Internal>) -> Response {
    let pool = &cx.master;
    metrics::gauge!("tenantry_master_connections_open").set(f64::from(pool.size()));
    metrics::gauge!("tenantry_master_connections_idle").set(u32::try_from(pool.num_idle()).map_or(f64::MAX, f64::from));
    // As many as ops have registered.
    for load in cx.stores.server_loads() {
        let server = load.server_id.to_string();
        metrics::gauge!("tenantry_server_connections_open", "server" => server.clone()).set(float(load.open));
        metrics::gauge!("tenantry_server_connections_limit", "server" => server.clone()).set(float(load.limit));
        metrics::gauge!("tenantry_server_connections_waiting", "server" => server).set(float(load.waiting));
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render()).into_response()
}

fn float(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

/// One store in numbers, for who looks into its case: what is scraped always names no store.
async fn store_metrics(State(Internal { cx, .. }): State<Internal>, Path(store): Path<StoreId>) -> Response {
    let Some(seen) = cx.stores.explain(store) else { return Problem::not_found().into_response() };
    let pool = seen.pool.unwrap_or_default();
    let is_refused = !matches!(seen.breaker, BreakerState::Closed);
    let rows = [
        ("connections_open", float(pool.open)),
        ("connections_idle", float(pool.idle)),
        ("connections_opening", float(pool.opening)),
        ("connections_waiting", float(pool.waiting)),
        ("leases", float(pool.leases)),
        ("pools_draining", float(seen.draining)),
        ("breaker_open", f64::from(u8::from(is_refused))),
        ("route_age_seconds", seen.route.map_or(f64::NAN, |route| Duration::from_millis(route.age_ms).as_secs_f64())),
    ];
    let mut text = String::new();
    for (name, value) in rows {
        text.push_str(&format!(
            "# TYPE tenantry_store_{name} gauge\ntenantry_store_{name}{{store=\"{store}\"}} {value}\n"
        ));
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// What `tenantry pools` shows.
#[derive(Serialize)]
struct NodePools {
    node: tenancy::Stats,
    servers: Vec<tenancy::ServerLoad>,
    stores: Vec<tenancy::StoreLoad>,
}

#[derive(Deserialize)]
struct Most {
    limit: Option<usize>,
}

/// The servers and the busiest stores of this node.
async fn pools(State(Internal { cx, .. }): State<Internal>, Query(Most { limit }): Query<Most>) -> Response {
    let mut servers = cx.stores.server_loads();
    servers.sort_by_key(|load| load.server_id);
    let stores = cx.stores.pools(limit.unwrap_or(20).min(1000));
    Json(NodePools { node: cx.stores.stats(), servers, stores }).into_response()
}

/// What this node knows of a store, without asking anybody; null when that is nothing.
async fn store_explain(
    State(Internal { cx, .. }): State<Internal>,
    Path(store): Path<StoreId>,
) -> Json<Option<Explanation>> {
    Json(cx.stores.explain(store))
}

/// As [`store_explain`], by a hostname: without master nothing else says whose it is.
async fn host_explain(
    State(Internal { cx, .. }): State<Internal>,
    Path(name): Path<String>,
) -> Json<Option<Explanation>> {
    Json(Hostname::parse(&name).ok().and_then(|name| cx.stores.explain_host(&name)))
}

#[derive(Deserialize)]
struct Ask {
    domain: String,
}

/// 200 for a hostname of a store that is not closed for good, 404 for all others.
async fn tls_ask(State(Internal { cx, .. }): State<Internal>, Query(Ask { domain }): Query<Ask>) -> Response {
    let decision = async {
        let name = Hostname::parse(&domain).map_err(|_| StatusCode::NOT_FOUND)?;
        match cx.stores.resolve_host(&name).await {
            Ok(route) if matches!(route.status, StoreStatus::Archived | StoreStatus::Deleted) => {
                Err(StatusCode::NOT_FOUND)
            }
            Ok(_) => Ok(StatusCode::OK),
            Err(ResolveError::UnknownHost | ResolveError::UnknownStore) => Err(StatusCode::NOT_FOUND),
            Err(ResolveError::TooManyUnknown { .. } | ResolveError::DirectoryUnavailable) => {
                Err(StatusCode::SERVICE_UNAVAILABLE)
            }
        }
    };
    let status = decision.await.unwrap_or_else(|refused| refused);
    metrics::counter!("tenantry_tls_ask_total", "decision" => if status == StatusCode::OK { "yes" } else { "no" })
        .increment(1);
    status.into_response()
}
