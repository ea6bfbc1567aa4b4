//! The API description, made from the handlers, and the routers that it describes.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::get;
use problem::{BodyLimit, Json, Problem};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Object, RefOr, Required, Responses, Type};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;

use crate::cx::Cx;
use crate::{
    catalog, charges, credits, doctor, idempotency, identity, ops, provisioning, storefront, stores, supabase, webhooks,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tenantry",
        description = include_str!("description.md")
    ),
    tags(
        (name = "auth", description = "Register, log in, and who you are"),
        (name = "organizations", description = "Who belongs to them"),
        (name = "stores", description = "Stores, their databases and products"),
        (name = "credits", description = "What an organization has bought, and where it went"),
        (name = "webhooks", description = "What an organization is told, and where"),
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
        .merge(doctor::routes::router())
        .merge(supabase::routes::router())
        .merge(catalog::routes::router())
        .merge(credits::routes::router())
        .merge(charges::routes::router())
        .merge(webhooks::routes::router())
        .merge(credits::packs::routes::router())
        .merge(credits::prices::routes::router())
        .merge(credits::purchases::routes::router())
        .merge(credits::topups::routes::router())
        .merge(credits::review::routes::router())
        .merge(storefront::routes::router())
        .merge(ops::routes::router())
}

/// The description of every operation, as JSON with sorted structure: the same text for the same handlers.
pub fn document() -> utoipa::openapi::OpenApi {
    described().1
}

fn described() -> (Router<Cx>, utoipa::openapi::OpenApi) {
    let (router, mut document) = platform_routes().split_for_parts();
    describe_storefront(&mut document);
    describe_keys(&mut document);
    webhooks::events::describe(&mut document);
    (router, document)
}

/// Every operation of a path.
fn operations_of(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete].into_iter().flatten()
}

/// A storefront operation needs nothing on a store's own hostname; on the platform's it needs a credential, and the store.
fn describe_storefront(document: &mut utoipa::openapi::OpenApi) {
    for (path, item) in &mut document.paths.paths {
        if !path.starts_with("/store/") {
            continue;
        }
        for operation in operations_of(item) {
            let header = ParameterBuilder::new()
                .name("X-Store-Id")
                .parameter_in(ParameterIn::Header)
                .required(Required::False)
                .description(Some(
                    "On the platform's hosts, beside a token: which store the request is about, unless the token was made \
                     for one. Not needed on the store's own hostname.",
                ))
                .schema(Some(Object::with_type(Type::String)))
                .build();
            operation.parameters.get_or_insert_default().push(header.into());
            let nothing = SecurityRequirement::default();
            operation.security = Some(vec![nothing, SecurityRequirement::new::<_, _, String>("bearer", [])]);
        }
    }
}

/// Whose an `Idempotency-Key` is, wherever there is one, and which answers say that they repeat what was decided before.
fn describe_keys(document: &mut utoipa::openapi::OpenApi) {
    for (path, item) in &mut document.paths.paths {
        for operation in operations_of(item) {
            let parameters = operation.parameters.iter_mut().flatten();
            let key = parameters.filter_map(|parameter| match parameter {
                RefOr::T(parameter) if parameter.name.eq_ignore_ascii_case(idempotency::HEADER) => Some(parameter),
                _ => None,
            });
            for key in key {
                let whose = match path.as_str() {
                    "/api/ops/credits/grants" => {
                        "The organization's, kept for ever; without one, the very same grant is refused for ten minutes"
                    }
                    "/api/ops/credits/purchases/{purchase}/refund" => "The purchase's, kept for ever",
                    path if path.starts_with("/store/") => "The cart's, kept for seven days",
                    _ if key.required == Required::True => "The organization's, kept for ever",
                    _ => "Without one, repeating it does it again",
                };
                key.description =
                    Some(format!("{whose}: see \u{201c}Repeating a request\u{201d} in the description of this API."));
                // What is kept with the ledger, and orders, say when they repeat themselves.
                if key.required == Required::True || path == "/api/ops/credits/grants" {
                    describe_replays(path, &mut operation.responses);
                }
            }
        }
    }
}

fn describe_replays(path: &str, responses: &mut Responses) {
    let keeps_refusals = ["/api/credits/spend", "/api/credits/holds"].iter().any(|decides| path.starts_with(decides));
    for (status, response) in &mut responses.responses {
        let is_kept =
            status.starts_with('2') || (keeps_refusals && ["402", "403", "409", "422"].contains(&status.as_str()));
        if let (true, RefOr::T(response)) = (is_kept, response) {
            let header = HeaderBuilder::new()
                .schema(Some(Object::builder().schema_type(Type::String).enum_values(Some(["true"]))))
                .description(Some("There when the answer repeats what was decided before."))
                .build();
            response.headers.insert(idempotency::REPLAYED.to_owned(), header.into());
        }
    }
}

/// The router of the platform's hosts, and that of stores' hostnames.
pub fn routers(cx: &Cx) -> (Router, Router) {
    let (platform, document) = described();
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
            .layer(axum::Extension(BodyLimit(cx.config.limits.body_limit_bytes)))
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
