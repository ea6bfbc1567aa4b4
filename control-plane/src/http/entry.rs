//! The front door: gives every request an id, finds out whom it is for, and counts and logs what became of it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::MatchedPath;
use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;
use kernel::{RequestId, StoreStatus};
use problem::Problem;
use tenancy::{ResolveError, Route};
use tokio::time::Instant;
use tower::Service;
use tracing::Instrument as _;

use super::auth;
use super::authority::{Peer, RequestHost, misdirected};
use crate::audit::REQUEST_ID;
use crate::cx::Cx;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The public service: one router for the platform's own hosts, one for stores' hostnames.
#[derive(Clone)]
pub struct Entry {
    cx: Cx,
    platform: Router,
    storefront: Router,
}

/// How long a request of some kind may take.
#[derive(Debug, Clone, Copy)]
pub struct TimeLimit(pub Duration);

impl Entry {
    pub fn new(cx: Cx) -> Self {
        let (platform, storefront) = super::openapi::routers(&cx);
        Self { cx, platform, storefront }
    }

    async fn answer(mut self, mut request: Request<Body>) -> Result<Response, Problem> {
        let Peer(peer) = request.extensions().get().copied().ok_or_else(Problem::internal)?;
        let (mut parts, body) = request.into_parts();
        let host = self.cx.platform.of_request(&parts, peer)?;
        parts.extensions.insert(self.cx.platform.client_of(&parts, peer));
        let mut counted = None;
        let router = match &host {
            RequestHost::Platform => &mut self.platform,
            RequestHost::Store(name) => {
                let route = self.cx.stores.resolve_host(name).await.map_err(from_resolve)?;
                auth::agree_with_header(&parts, route.store_id)?;
                serving(&route)?;
                counted = Some(route.store_id);
                parts.extensions.insert(route);
                &mut self.storefront
            }
        };
        let limit = if parts.uri.path().ends_with("/products/import") {
            self.cx.config.limits.import_timeout
        } else {
            self.cx.config.limits.request_timeout
        };
        parts.extensions.insert(host);
        request = Request::from_parts(parts, body);
        match tokio::time::timeout(limit, router.call(request)).await {
            Ok(Ok(response)) => {
                if let Some(store) = counted.filter(|_| !response.status().is_server_error()) {
                    self.cx.usage.count_request(store, self.cx.clock.now().date_naive());
                }
                Ok(response)
            }
            Ok(Err(never)) => match never {},
            Err(_) => Err(super::errors::timed_out()),
        }
    }
}

impl Service<Request<Body>> for Entry {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let entry = self.clone();
        Box::pin(async move {
            let id = RequestId::new(entry.cx.clock.now());
            let (method, started) = (request.method().clone(), Instant::now());
            let path = request.uri().path().to_owned();
            let span = tracing::info_span!("http.request", request.id = %id);
            let work = std::panic::AssertUnwindSafe(entry.answer(request)).catch_unwind().instrument(span.clone());
            let outcome = REQUEST_ID.scope(id, work).await;
            let response = match outcome {
                Ok(Ok(response)) => response,
                Ok(Err(problem)) => problem.into_response(),
                Err(_) => {
                    span.in_scope(|| tracing::error!("a handler panicked on {method} {path}"));
                    Problem::internal().into_response()
                }
            };
            let elapsed = started.elapsed();
            span.in_scope(|| report(&method, &path, &response, elapsed));
            let text = id.to_string();
            let mut response = problem::with_request_id(response, &text);
            let headers = response.headers_mut();
            headers.insert(X_REQUEST_ID, HeaderValue::try_from(text).expect("an id is ASCII"));
            headers.entry(header::X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
            Ok(response)
        })
    }
}

/// One line and two metrics for each request. The path is logged, never the query: it may hold what people searched for.
fn report(method: &Method, path: &str, response: &Response, elapsed: Duration) {
    let status = response.status();
    let route = response.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let class = match status.as_u16() {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    };
    metrics::counter!("tenantry_http_requests_total", "route" => route.clone(), "status" => class).increment(1);
    metrics::histogram!("tenantry_http_request_duration_seconds", "route" => route).record(elapsed.as_secs_f64());
    let (status, duration_ms) = (status.as_u16(), elapsed.as_secs_f64() * 1000.0);
    let code = response.extensions().get::<Arc<Problem>>().map_or("", |problem| problem.code());
    if status >= 500 {
        tracing::warn!(http.status = status, duration_ms, code, "{method} {path} answered {status}");
    } else if *method == Method::GET || *method == Method::HEAD {
        tracing::debug!(http.status = status, duration_ms, code, "{method} {path} answered {status}");
    } else {
        tracing::info!(http.status = status, duration_ms, code, "{method} {path} answered {status}");
    }
}

/// Whether the storefront of `route` is open.
///
/// # Errors
/// 503 with `Retry-After` while it is closed, without touching its database.
pub fn serving(route: &Route) -> Result<(), Problem> {
    let closed = |code, title, seconds| {
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, title).retry_after(Duration::from_secs(seconds)))
    };
    match route.status {
        StoreStatus::Active => Ok(()),
        StoreStatus::PendingDatabase | StoreStatus::Provisioning => {
            closed("store-not-ready", "The store is not ready yet", 10)
        }
        StoreStatus::Suspended => closed("store-suspended", "The store is suspended", 300),
        StoreStatus::Maintenance => closed("store-in-maintenance", "The store is in maintenance", 120),
        StoreStatus::Archived | StoreStatus::Deleted => Err(misdirected()),
    }
}

/// Whether the storefront of `route` takes carts and orders.
///
/// # Errors
/// 503 while it does not, without touching its database; its pages are served all the same.
pub fn taking_orders(route: &Route) -> Result<(), Problem> {
    if route.is_read_only {
        return Err(read_only().retry_after(Duration::from_secs(300)));
    }
    Ok(())
}

/// A store that can be looked at, and does not sell.
pub fn read_only() -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-read-only", "The store takes no orders right now")
        .detail("What it sells can be looked at; carts and checkouts have to wait.")
}

/// Why no route was found, as an answer.
pub fn from_resolve(error: ResolveError) -> Problem {
    match error {
        ResolveError::UnknownHost | ResolveError::UnknownStore => misdirected(),
        ResolveError::TooManyUnknown { retry_after } => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "Too many unknown hostnames at this moment")
                .retry_after(retry_after)
        }
        ResolveError::DirectoryUnavailable => Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "directory-unavailable",
            "The store cannot be looked up right now",
        )
        .retry_after(Duration::from_secs(2)),
    }
}
