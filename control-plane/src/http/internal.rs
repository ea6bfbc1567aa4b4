//! The internal listener: health, metrics, and the question whether a certificate may be had for a name. Never reachable
//! from outside.

use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use kernel::{Hostname, StoreStatus};
use metrics_exporter_prometheus::PrometheusHandle;
use problem::{Json, Problem};
use serde::Deserialize;
use sqlx::Connection as _;
use tenancy::ResolveError;

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
    Json(serde_json::json!({ "status": status, "master": master })).into_response()
}

async fn metrics_render(State(Internal { cx, metrics }): State<Internal>) -> Response {
    let pool = &cx.master;
    metrics::gauge!("tenantry_master_connections_open").set(f64::from(pool.size()));
    metrics::gauge!("tenantry_master_connections_idle").set(u32::try_from(pool.num_idle()).map_or(f64::MAX, f64::from));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render()).into_response()
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
