//! The API description, made from the handlers, and the routers that it describes.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::get;
use problem::{Json, Problem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;

use crate::cx::Cx;
use crate::{catalog, credits, identity, ops, provisioning, storefront, stores};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tenantry",
        description = "The control plane for database-per-store commerce. Refusals are `application/problem+json` (RFC 9457): \
            branch on `code`. Storefront routes (`/store/v1`) answer on a store's own hostname, and on the platform's hosts \
            beside a credential and `X-Store-Id`."
    ),
    tags(
        (name = "auth", description = "Register, log in, and who you are"),
        (name = "stores", description = "Stores, their databases and products"),
        (name = "credits", description = "What an organization has bought, and where it went"),
        (name = "storefront", description = "What a shop's visitors and its developer use"),
        (name = "ops", description = "For people who run the platform")
    ),
    modifiers(&Security)
)]
struct Description;

struct Security;

impl Modify for Security {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
        components.add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

fn platform_routes() -> OpenApiRouter<Cx> {
    OpenApiRouter::with_openapi(Description::openapi())
        .merge(identity::routes::router())
        .merge(stores::routes::router())
        .merge(provisioning::routes::router())
        .merge(catalog::routes::router())
        .merge(credits::routes::router())
        .merge(credits::purchases::routes::router())
        .merge(storefront::routes::router())
        .merge(ops::routes::router())
}

/// The description of every operation, as JSON with sorted structure: the same text for the same handlers.
pub fn document() -> utoipa::openapi::OpenApi {
    platform_routes().split_for_parts().1
}

/// The router of the platform's hosts, and that of stores' hostnames.
pub fn routers(cx: &Cx) -> (Router, Router) {
    let (platform, document) = platform_routes().split_for_parts();
    let docs = utoipa_swagger_ui::SwaggerUi::new("/docs").url("/openapi.json", document);
    let limit = DefaultBodyLimit::max(cx.config.limits.body_limit_bytes);
    let platform = platform.merge(Router::<Cx>::new().merge(docs)).route("/", get(index));
    let (storefront, _) = storefront::routes::router().split_for_parts();
    let storefront = storefront.merge(storefront::demo::router());
    let finish = |router: Router<Cx>| {
        router
            .fallback(|| async { Problem::not_found() })
            .method_not_allowed_fallback(method_not_allowed)
            .layer(limit)
            .layer(axum::middleware::map_response(keep_matched_path))
            .with_state(cx.clone())
    };
    (finish(platform), finish(storefront))
}

async fn method_not_allowed() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "This resource does not know this method")
}

async fn keep_matched_path(
    path: Option<axum::extract::MatchedPath>,
    mut response: axum::response::Response,
) -> axum::response::Response {
    if let Some(path) = path {
        response.extensions_mut().insert(path);
    }
    response
}

async fn index() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "name": "Tenantry", "docs": "/docs", "openapi": "/openapi.json" }))
}
