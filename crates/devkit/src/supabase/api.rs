//! HTTP of the management API.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Frame;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Column as _, Connection as _, PgConnection, Row as _};

use super::Shared;
use super::world::{ACCESS_LIFETIME, Fault, Given};

const LIMIT: u32 = 120;
const MAX_BODY: usize = 1024 * 1024;

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new().fallback(answer).with_state(shared)
}

/// An answer: a status, and what it says.
type Said = (u16, Value);

fn refused(status: u16, message: &str) -> Said {
    (status, json!({ "message": message }))
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let query = pairs(parts.uri.query().unwrap_or_default());
    if path == "/v1/oauth/authorize" {
        return authorize(&shared, &query);
    }
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return respond(refused(413, "Payload Too Large"), 0, 60);
    };
    // Also of a call that goes wrong.
    let verifier = std::str::from_utf8(&body).ok().and_then(|body| pairs(body).remove("code_verifier"));
    let (fault, calls) = {
        let mut world = shared.world();
        world.verifiers.extend(verifier);
        world.calls.push(format!("{} {path}", parts.method));
        (world.fault(&path), world.calls.len())
    };
    let left = LIMIT.saturating_sub(u32::try_from(calls).unwrap_or(LIMIT));
    match fault {
        Some(Fault::Status(status)) => respond(refused(status, "Something went wrong"), left, 60),
        Some(Fault::RateLimited(reset)) => respond(refused(429, "ThrottlerException: Too Many Requests"), 0, reset),
        Some(Fault::Answer(status, body)) => respond((status, body), left, 60),
        Some(Fault::Hang) => {
            shared.hangs.notify_one();
            shared.stop.cancelled().await;
            respond(refused(503, "It ends"), left, 60)
        }
        Some(Fault::LoseAnswer) => {
            let said = act(&shared, &parts.method, &path, &query, &parts.headers, &body).await;
            let mut response = respond(said, left, 60);
            *response.body_mut() = Body::new(Broken);
            response
        }
        None => respond(act(&shared, &parts.method, &path, &query, &parts.headers, &body).await, left, 60),
    }
}

/// A body that ends before it has begun.
struct Broken;

impl hyper::body::Body for Broken {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionReset.into())))
    }
}

fn respond((status, body): Said, left: u32, reset: u32) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = status.into_response();
    if !body.is_null() {
        *response.body_mut() = body.to_string().into();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    }
    for (name, value) in [("x-ratelimit-limit", LIMIT), ("x-ratelimit-remaining", left), ("x-ratelimit-reset", reset)] {
        response.headers_mut().insert(name, HeaderValue::from(value));
    }
    response
}

fn pairs(text: &str) -> HashMap<String, String> {
    url::form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

fn word<'a>(words: &'a HashMap<String, String>, name: &str) -> &'a str {
    words.get(name).map_or("", String::as_str)
}

/// The page of the consent, with the button pressed: `deny=1` is the other button.
fn authorize(shared: &Shared, query: &HashMap<String, String>) -> Response {
    let is_sound = word(query, "client_id") == shared.options.client_id
        && word(query, "response_type") == "code"
        && word(query, "code_challenge_method") == "S256"
        && !word(query, "code_challenge").is_empty()
        && !word(query, "state").is_empty();
    let Some(mut back) = url::Url::parse(word(query, "redirect_uri")).ok().filter(|_| is_sound) else {
        return respond(refused(400, "Bad Request"), LIMIT, 60);
    };
    if word(query, "deny").is_empty() {
        let code = shared.world().consent(word(query, "code_challenge"), word(query, "redirect_uri"));
        back.query_pairs_mut().append_pair("code", &code);
    } else {
        back.query_pairs_mut()
            .append_pair("error", "access_denied")
            .append_pair("error_description", "The resource owner <b>denied</b> the request");
    }
    back.query_pairs_mut().append_pair("state", word(query, "state"));
    match HeaderValue::from_str(back.as_str()) {
        Ok(back) => (StatusCode::FOUND, [(header::LOCATION, back)]).into_response(),
        Err(_) => respond(refused(400, "Bad Request"), LIMIT, 60),
    }
}

async fn act(
    shared: &Shared,
    method: &Method,
    path: &str,
    query: &HashMap<String, String>,
    headers: &HeaderMap,
    body: &[u8],
) -> Said {
    let parts: Vec<&str> = path.trim_start_matches("/v1/").split('/').collect();
    match (method.as_str(), parts.as_slice()) {
        ("POST", ["oauth", "token"]) => token(shared, headers, body),
        ("POST", ["oauth", "revoke"]) => revoke(shared, body),
        _ if !is_let_in(shared, headers) => refused(401, "Unauthorized"),
        ("GET", ["organizations"]) => {
            let world = shared.world();
            let all = world.organizations.iter().map(|(slug, name)| json!({ "id": slug, "slug": slug, "name": name }));
            (200, all.collect())
        }
        ("GET", ["organizations", slug, "projects"]) => project_page(shared, slug, query),
        ("GET", ["projects", reference]) => project(shared, reference),
        ("POST", ["projects", reference, "restore"]) => restore(shared, reference),
        ("GET", ["projects", reference, "config", "database", "pooler"]) => poolers(shared, reference),
        ("POST", ["projects", reference, "database", "query"]) => run(shared, reference, body).await,
        _ => refused(404, "Not Found"),
    }
}

fn is_let_in(shared: &Shared, headers: &HeaderMap) -> bool {
    let sent = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    sent.and_then(|sent| sent.strip_prefix("Bearer ")).is_some_and(|token| shared.world().lets_in(token))
}

fn token(shared: &Shared, headers: &HeaderMap, body: &[u8]) -> Said {
    let options = &shared.options;
    let basic = format!("Basic {}", STANDARD.encode(format!("{}:{}", options.client_id, options.client_secret)));
    if headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()) != Some(&basic) {
        return refused(401, "Invalid client credentials");
    }
    let is_form = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/x-www-form-urlencoded");
    if !is_form {
        return refused(400, "A form is expected");
    }
    let form = pairs(&String::from_utf8_lossy(body));
    let mut world = shared.world();
    let given = match word(&form, "grant_type") {
        "authorization_code" => {
            world.exchange(word(&form, "code"), word(&form, "code_verifier"), word(&form, "redirect_uri"))
        }
        "refresh_token" => world.refresh(word(&form, "refresh_token")),
        _ => return refused(400, "Unsupported grant type"),
    };
    match given {
        Some(Given { access, refresh }) => {
            let lifetime = ACCESS_LIFETIME.as_secs();
            let given = json!({ "access_token": access, "refresh_token": refresh, "expires_in": lifetime, "token_type": "Bearer" });
            (201, given)
        }
        None => (400, json!({ "error": "invalid_grant", "message": "Invalid grant" })),
    }
}

fn revoke(shared: &Shared, body: &[u8]) -> Said {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let options = &shared.options;
    if body["client_id"] != options.client_id.as_str() || body["client_secret"] != options.client_secret.as_str() {
        return refused(401, "Invalid client credentials");
    }
    if shared.world().revoke(body["refresh_token"].as_str().unwrap_or_default()) {
        (204, Value::Null)
    } else {
        refused(400, "Invalid refresh token")
    }
}

fn project_page(shared: &Shared, slug: &str, query: &HashMap<String, String>) -> Said {
    let number = |name, default| word(query, name).parse::<usize>().unwrap_or(default);
    let (offset, limit) = (number("offset", 0), number("limit", 100).clamp(1, 100));
    let world = shared.world();
    let all: Vec<_> = world.projects.iter().filter(|project| project.new.organization == slug).collect();
    let page = all.iter().skip(offset).take(limit).map(|project| {
        json!({
            "ref": project.reference, "name": project.new.name, "cloud_provider": "AWS", "region": "eu-central-1",
            "is_branch": false, "status": project.status, "inserted_at": "2026-01-02T03:04:05Z",
            "databases": [{
                "region": "eu-central-1", "status": "ACTIVE_HEALTHY", "cloud_provider": "AWS",
                "identifier": project.reference, "type": "PRIMARY", "infra_compute_size": "nano"
            }],
        })
    });
    let page: Vec<Value> = page.collect();
    (200, json!({ "projects": page, "pagination": { "count": all.len(), "limit": limit, "offset": offset } }))
}

fn project(shared: &Shared, reference: &str) -> Said {
    let mut world = shared.world();
    let Some(project) = world.project_mut(reference) else { return refused(404, "Project not found") };
    let said = json!({
        "id": reference, "ref": reference, "organization_id": project.new.organization,
        "organization_slug": project.new.organization, "name": project.new.name, "region": "eu-central-1",
        "created_at": "2026-01-02T03:04:05Z", "status": project.status,
        "database": {
            "host": project.new.host, "version": "15.8.1.100", "postgres_engine": "15", "release_channel": "ga"
        },
    });
    (200, said)
}

fn restore(shared: &Shared, reference: &str) -> Said {
    let mut world = shared.world();
    match world.project_mut(reference) {
        None => refused(404, "Project not found"),
        Some(project) if project.status != "INACTIVE" => refused(400, "Project is not paused"),
        Some(project) => {
            "RESTORING".clone_into(&mut project.status);
            (200, Value::Null)
        }
    }
}

/// One way, in transaction mode, as it was recorded: who wants a session goes to the same host at another port.
fn poolers(shared: &Shared, reference: &str) -> Said {
    let mut world = shared.world();
    let Some(project) = world.project_mut(reference) else { return refused(404, "Project not found") };
    let database = project.new.database_url.rsplit('/').next().unwrap_or("postgres");
    let (host, user) = (&project.new.pooler_host, format!("postgres.{reference}"));
    let string = format!("postgresql://{user}:[YOUR-PASSWORD]@{host}:6543/{database}");
    let way = json!({
        "identifier": reference, "database_type": "PRIMARY", "is_using_scram_auth": true, "db_user": user,
        "db_host": host, "db_port": 6543, "db_name": database, "connection_string": string, "connectionString": string,
        "default_pool_size": 15, "max_client_conn": 200, "pool_mode": "transaction",
    });
    (200, json!([way]))
}

/// Runs a statement as the project's administrator.
async fn run(shared: &Shared, reference: &str, body: &[u8]) -> Said {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let Some(query) = body["query"].as_str().filter(|query| !query.is_empty()) else {
        return refused(400, "query: String must contain at least 1 character(s)");
    };
    let url = {
        let mut world = shared.world();
        world.queries.push(query.to_owned());
        match world.project_mut(reference) {
            None => return refused(404, "Project not found"),
            Some(project) if project.status == "INACTIVE" => return refused(400, "Project is paused"),
            Some(project) => project.new.database_url.clone(),
        }
    };
    let done = async {
        let mut administrator = PgConnection::connect(&url).await?;
        let rows = sqlx::raw_sql(AssertSqlSafe(query.to_owned())).fetch_all(&mut administrator).await;
        administrator.close().await?;
        rows
    };
    match done.await {
        Ok(rows) => (201, rows.iter().map(in_json).collect()),
        Err(error) => {
            let message =
                error.as_database_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
            refused(400, &format!("Failed to run sql query: ERROR:  {message}\n"))
        }
    }
}

fn in_json(row: &sqlx::postgres::PgRow) -> Value {
    let value = |place: usize| {
        if let Ok(value) = row.try_get::<Option<bool>, _>(place) {
            return json!(value);
        }
        if let Ok(value) = row.try_get::<Option<i64>, _>(place) {
            return json!(value);
        }
        if let Ok(value) = row.try_get::<Option<i32>, _>(place) {
            return json!(value);
        }
        json!(row.try_get::<Option<String>, _>(place).unwrap_or_default())
    };
    let columns = row.columns().iter().enumerate();
    Value::Object(columns.map(|(place, column)| (column.name().to_owned(), value(place))).collect())
}
