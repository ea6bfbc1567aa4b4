//! HTTP of the provider: the API under `/v1`, the page under `/c`, and what only tests ask for under `/_test`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get};
use serde_json::{Value, json};

use super::form::Params;
use super::webhooks;
use super::world::{Answered, ApiFault, World, text};
use super::{Shared, page};

const MAX_PAGE: i64 = 100;
/// Members that name another object, and `data`, which holds the objects of a list.
const EXPANDABLE: [&str; 9] = [
    "balance_transaction",
    "charge",
    "customer",
    "data",
    "failure_balance_transaction",
    "latest_charge",
    "payment_intent",
    "payment_method",
    "source",
];

/// A refusal in the shape of the API's.
#[derive(Debug, Clone)]
pub(super) struct ApiError {
    status: u16,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    pub(super) message: String,
    intent: Option<Box<Value>>,
    /// Whether the same key gets it again: not what was refused before anything began.
    is_kept: bool,
}

impl ApiError {
    fn new(status: u16, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code: None, param: None, message: message.into(), intent: None, is_kept: false }
    }

    fn request(code: &'static str, param: Option<&str>, message: impl Into<String>) -> Self {
        let mut error = Self::new(400, "invalid_request_error", message);
        error.code = Some(code);
        error.param = param.map(str::to_owned);
        error
    }

    pub(super) fn missing(param: &str) -> Self {
        Self::request("parameter_missing", Some(param), format!("Missing required param: {param}."))
    }

    pub(super) fn invalid(param: &str, message: &str) -> Self {
        Self::request("parameter_invalid", Some(param), message)
    }

    pub(super) fn unknown_parameter(param: &str) -> Self {
        Self::request("parameter_unknown", Some(param), format!("Received unknown parameter: {param}"))
    }

    pub(super) fn no_such(kind: &str, id: &str) -> Self {
        Self { status: 404, ..Self::request("resource_missing", Some("id"), format!("No such {kind}: '{id}'")) }
    }

    pub(super) fn coded(code: &'static str, message: &str) -> Self {
        Self::request(code, None, message)
    }

    pub(super) fn state(message: &str) -> Self {
        Self::coded("resource_unexpected_state", message)
    }

    pub(super) fn card(code: &'static str, message: &str, intent: Value) -> Self {
        let mut error = Self::new(402, "card_error", message);
        error.code = Some(code);
        error.intent = Some(Box::new(intent));
        error.is_kept = true;
        error
    }

    fn body(&self) -> Value {
        let mut error = json!({ "type": self.kind, "message": self.message });
        for (name, value) in [("code", self.code), ("param", self.param.as_deref())] {
            if let Some(value) = value {
                error[name] = value.into();
            }
        }
        if let Some(intent) = &self.intent {
            error["payment_intent"] = Value::clone(intent);
            error["decline_code"] = "generic_decline".into();
        }
        json!({ "error": error })
    }
}

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/{*path}", any(api))
        .route("/_test/{*path}", any(control))
        .route("/c/pay/{session}", get(page::show).post(page::press))
        .route("/", get(page::index))
        .with_state(shared)
}

fn answer(status: u16, body: &Value, is_replay: bool) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let json = HeaderValue::from_static("application/json");
    let mut response = (status, [(header::CONTENT_TYPE, json)], body.to_string()).into_response();
    if is_replay {
        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("0"));
    }
    response
}

fn word<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

async fn api(State(shared): State<Arc<Shared>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let mut response = call(&shared, &method, &uri, &headers, &body).await;
    let request_id = shared.world().id("req");
    // Libraries show these to whoever asks which call it was.
    let echoed = ["stripe-version", "idempotency-key"].map(|name| (name, headers.get(name).cloned()));
    for (name, value) in echoed.into_iter().chain([("request-id", HeaderValue::try_from(request_id).ok())]) {
        if let Some(value) = value {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

async fn call(shared: &Arc<Shared>, method: &Method, uri: &Uri, headers: &HeaderMap, body: &Bytes) -> Response {
    if word(headers, "authorization") != format!("Bearer {}", shared.options.secret_key) {
        return answer(401, &ApiError::new(401, "invalid_request_error", "Invalid API Key provided.").body(), false);
    }
    if word(headers, "stripe-version").is_empty() {
        let refused = ApiError::new(400, "invalid_request_error", "This test provider wants a Stripe-Version header.");
        return answer(400, &refused.body(), false);
    }
    let is_change = *method == Method::POST;
    if is_change && !body.is_empty() && !word(headers, "content-type").starts_with("application/x-www-form-urlencoded")
    {
        let refused =
            ApiError::new(400, "invalid_request_error", "Send the body as application/x-www-form-urlencoded.");
        return answer(400, &refused.body(), false);
    }
    let sent = String::from_utf8_lossy(body);
    let params = Params::parse(if is_change { &sent } else { uri.query().unwrap_or_default() });
    let key = word(headers, "idempotency-key").to_owned();
    let fingerprint = format!("{method} {}\n{}", uri.path(), params.fingerprint());
    let (status, body, is_replay, late) = shared.act(|world| {
        if is_change
            && !key.is_empty()
            && let Some(known) = world.keys.get(&key).cloned()
        {
            if known.fingerprint != fingerprint {
                let message =
                    "Keys for idempotent requests can only be used with the same parameters they were first used with.";
                return (400, ApiError::new(400, "idempotency_error", message).body(), false, Duration::ZERO);
            }
            return (known.status, known.body, true, Duration::ZERO);
        }
        world.calls += 1;
        let fault = if is_change { world.faults.pop_front() } else { None };
        if let Some(ApiFault::Before(status)) = fault {
            return (status, ApiError::new(status, "api_error", "Something went wrong.").body(), false, Duration::ZERO);
        }
        let segments: Vec<&str> = uri.path().trim_start_matches("/v1/").split('/').collect();
        let (mut status, mut body, is_kept) = match dispatch(world, method, &segments, params) {
            Ok(body) => (200, body, true),
            Err(error) => (error.status, error.body(), error.is_kept),
        };
        if fault == Some(ApiFault::After500) {
            (status, body) = (500, ApiError::new(500, "api_error", "Something went wrong.").body());
        }
        if is_change && is_kept && !key.is_empty() {
            world.keys.insert(key, Answered { fingerprint, status, body: body.clone() });
        }
        let late = if let Some(ApiFault::LateAnswer(late)) = fault { late } else { Duration::ZERO };
        (status, body, false, late)
    });
    if late > Duration::ZERO {
        shared.stop.run_until_cancelled(tokio::time::sleep(late)).await;
    }
    answer(status, &body, is_replay)
}

/// What a call that changes something may say: whole names, and beginnings that end with a bracket.
fn known_parameters(path: &[&str]) -> &'static [&'static str] {
    match path {
        ["customers"] => &["email", "name", "metadata["],
        ["payment_methods"] => &["type", "card["],
        ["payment_methods", _, "attach"] => &["customer"],
        ["setup_intents"] => &["customer", "usage", "payment_method_types["],
        ["setup_intents", _, "confirm"] => &["payment_method", "client_secret"],
        ["checkout", "sessions"] => &[
            "mode",
            "success_url",
            "cancel_url",
            "customer",
            "client_reference_id",
            "metadata[",
            "payment_intent_data[metadata][",
            "payment_intent_data[setup_future_usage]",
            "payment_method_types[",
            "line_items[0][quantity]",
            "line_items[0][price_data][currency]",
            "line_items[0][price_data][unit_amount]",
            "line_items[0][price_data][tax_behavior]",
            "line_items[0][price_data][product_data][",
        ],
        ["payment_intents"] => &[
            "amount",
            "currency",
            "customer",
            "payment_method",
            "payment_method_types[",
            "confirm",
            "off_session",
            "description",
            "metadata[",
        ],
        ["payment_intents", _, "confirm"] => &["payment_method", "off_session"],
        ["refunds"] => &["payment_intent", "amount", "reason", "metadata["],
        _ => &[],
    }
}

/// One call, with what it wants to be told in full.
fn dispatch(world: &mut World, method: &Method, path: &[&str], mut params: Params) -> Result<Value, ApiError> {
    let wanted = params.list("expand");
    // Before anything is done: what is refused has done nothing.
    if let Some(name) = wanted.iter().flat_map(|path| path.split('.')).find(|name| !EXPANDABLE.contains(name)) {
        let message = format!("This property cannot be expanded ({name}).");
        return Err(ApiError::request("property_cannot_be_expanded", Some("expand"), message));
    }
    let mut answer = act(world, method, path, params)?;
    for path in wanted {
        expand(world, &mut answer, &path);
    }
    Ok(answer)
}

/// Puts the object itself where its id stands. `data.customer` is the customer of each object of a list.
fn expand(world: &World, within: &mut Value, path: &str) {
    if let Value::Array(items) = within {
        items.iter_mut().for_each(|item| expand(world, item, path));
        return;
    }
    let (name, rest) = path.split_once('.').unwrap_or((path, ""));
    let Some(member) = within.get_mut(name) else { return };
    if let Some(object) = member.as_str().and_then(|id| world.find(id)) {
        *member = object.clone();
    }
    if !rest.is_empty() {
        expand(world, member, rest);
    }
}

fn act(world: &mut World, method: &Method, path: &[&str], mut params: Params) -> Result<Value, ApiError> {
    if method == Method::POST {
        params.check(known_parameters(path))?;
    }
    let params = &mut params;
    match (method.as_str(), path) {
        ("POST", ["customers"]) => Ok(world.customer_create(params)),
        ("POST", ["payment_methods"]) => world.payment_method_create(params),
        ("POST", ["payment_methods", id, "attach"]) => world.payment_method_attach(id, params),
        ("POST", ["payment_methods", id, "detach"]) => world.payment_method_detach(id),
        ("POST", ["setup_intents"]) => world.setup_intent_create(params),
        ("POST", ["setup_intents", id, "confirm"]) => world.setup_intent_confirm(id, &params.need("payment_method")?),
        ("POST", ["checkout", "sessions"]) => world.session_create(params),
        ("POST", ["checkout", "sessions", id, "expire"]) => world.session_expire(id),
        ("POST", ["payment_intents"]) => world.intent_create(params),
        ("POST", ["payment_intents", id, "confirm"]) => world.intent_confirm(id, params),
        ("POST", ["payment_intents", id, "cancel"]) => world.intent_cancel(id),
        ("POST", ["refunds"]) => {
            let intent = params.need("payment_intent")?;
            let (amount, reason) = (params.integer("amount")?, params.take("reason"));
            world.refund_create(&intent, amount, reason.as_deref(), &params.map("metadata"))
        }
        ("GET", ["checkout", "sessions"]) => list(world, "checkout.session", params),
        ("GET", ["events"]) => events(world, params),
        (
            "GET",
            [kind @ ("customers" | "payment_intents" | "charges" | "refunds" | "disputes" | "balance_transactions")],
        ) => list(world, kind.trim_end_matches('s'), params),
        ("GET", ["checkout", "sessions", id]) => world.need("checkout.session", id),
        ("GET", ["events", id]) => {
            let found = world.events.iter().find(|event| event.id() == *id);
            found.map(|event| event.body.clone()).ok_or_else(|| ApiError::no_such("event", id))
        }
        ("GET", [kind, id]) => world.need(kind.trim_end_matches('s'), id),
        _ => Err(ApiError { status: 404, ..ApiError::coded("url_unknown", "Unrecognized request URL") }),
    }
}

/// Newest first, and one page of it.
fn paged(items: &[Value], params: &mut Params, path: &str) -> Result<Value, ApiError> {
    let limit = params.integer("limit")?.unwrap_or(10);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(ApiError::invalid("limit", "This value must be between 1 and 100."));
    }
    let limit = usize::try_from(limit).unwrap_or(1);
    let (after, before) = (params.take("starting_after"), params.take("ending_before"));
    params.check(&[])?;
    let place = |id: &str| {
        items
            .iter()
            .position(|item| item["id"] == id)
            .ok_or_else(|| ApiError { status: 404, ..ApiError::no_such("object", id) })
    };
    let (data, has_more): (Vec<Value>, bool) = match (after, before) {
        (Some(after), None) => {
            let left = &items[place(&after)? + 1..];
            (left.iter().take(limit).cloned().collect(), left.len() > limit)
        }
        (None, Some(before)) => {
            let left = &items[..place(&before)?];
            (left[left.len().saturating_sub(limit)..].to_vec(), left.len() > limit)
        }
        (None, None) => (items.iter().take(limit).cloned().collect(), items.len() > limit),
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid("ending_before", "Give one of starting_after and ending_before."));
        }
    };
    Ok(json!({ "object": "list", "data": data, "has_more": has_more, "url": format!("/v1/{path}") }))
}

/// Whether something was made in the wanted span of time.
fn span(params: &mut Params) -> Result<impl Fn(&Value) -> bool + use<>, ApiError> {
    let [gte, gt, lte, lt] = ["gte", "gt", "lte", "lt"].map(|bound| format!("created[{bound}]"));
    let (gte, gt) = (params.integer(&gte)?, params.integer(&gt)?);
    let (lte, lt) = (params.integer(&lte)?, params.integer(&lt)?);
    Ok(move |object: &Value| {
        let created = object["created"].as_i64().unwrap_or_default();
        gte.is_none_or(|bound| created >= bound)
            && gt.is_none_or(|bound| created > bound)
            && lte.is_none_or(|bound| created <= bound)
            && lt.is_none_or(|bound| created < bound)
    })
}

fn list(world: &World, kind: &str, params: &mut Params) -> Result<Value, ApiError> {
    let in_span = span(params)?;
    let filters: Vec<(&str, String)> = ["customer", "payment_intent", "charge", "type", "source", "status"]
        .into_iter()
        .filter_map(|name| params.take(name).map(|value| (name, value)))
        .collect();
    let items: Vec<Value> = world
        .all(kind)
        .rev()
        .filter(|object| in_span(object) && filters.iter().all(|(name, value)| object[*name] == value.as_str()))
        .cloned()
        .collect();
    paged(&items, params, &format!("{kind}s"))
}

fn events(world: &World, params: &mut Params) -> Result<Value, ApiError> {
    let in_span = span(params)?;
    let mut types = params.list("types");
    types.extend(params.take("type"));
    let delivered = params.take("delivery_success");
    let items: Vec<Value> = world
        .events
        .iter()
        .rev()
        .filter(|event| {
            in_span(&event.body) && (types.is_empty() || types.iter().any(|kind| event.body["type"] == kind.as_str()))
        })
        .filter(|event| delivered.as_deref().is_none_or(|wanted| (wanted == "true") == event.is_delivered))
        .map(|event| event.body.clone())
        .collect();
    paged(&items, params, "events")
}

/// What tests and people who try things out ask for.
async fn control(State(shared): State<Arc<Shared>>, method: Method, uri: Uri, body: Bytes) -> Response {
    if method != Method::POST {
        return answer(405, &ApiError::new(405, "invalid_request_error", "Use POST.").body(), false);
    }
    let mut params = Params::parse(&String::from_utf8_lossy(&body));
    let segments: Vec<&str> = uri.path().trim_start_matches("/_test/").split('/').collect();
    let done = match segments.as_slice() {
        ["disputes"] => params.need("payment_intent").and_then(|intent| {
            let amount = params.integer("amount")?;
            let id = shared.act(|world| world.dispute_open(&intent, amount))?;
            Ok(shared.world().find(&id).cloned().unwrap_or_default())
        }),
        ["disputes", id, ending @ ("won" | "lost")] => shared.act(|world| world.dispute_close(id, *ending == "won")),
        ["refunds", id, "fail"] => shared.act(|world| world.refund_fail(id)),
        ["setup_intents", id, "fill-in"] => params.need("number").and_then(|number| {
            let method = shared.act(|world| world.setup_intent_fill_in(id, &number))?;
            Ok(json!({ "payment_method": method }))
        }),
        ["payment_intents", id, ending @ ("authenticate" | "refuse")] => {
            shared.act(|world| world.intent_authenticate(id, *ending == "authenticate"))
        }
        ["sessions", id, ending @ ("settle" | "return")] => {
            shared.act(|world| world.settle(id, *ending == "settle")).map(|()| json!({ "done": true }))
        }
        ["events", id, "deliver"] => match webhooks::attempt(&shared, id, false).await {
            Ok(status) => Ok(json!({ "status": status })),
            Err(error) => Err(ApiError::new(502, "api_error", error)),
        },
        ["webhooks"] => {
            let mut world = shared.world();
            world.webhook_faults = webhooks::WebhookFaults {
                hold: params.flag("hold"),
                duplicates: params.take("duplicates").and_then(|text| text.parse().ok()).unwrap_or(0),
                delay_ms: params.take("delay_ms").and_then(|text| text.parse().ok()).unwrap_or(0),
                reorder: params.flag("reorder"),
                forge: params.flag("forge"),
            };
            if let Some(url) = params.take("url") {
                world.webhook_url = Some(url);
            }
            Ok(json!({ "url": world.webhook_url }))
        }
        _ => Err(ApiError { status: 404, ..ApiError::coded("url_unknown", "Unrecognized request URL") }),
    };
    match done {
        Ok(body) => answer(200, &body, false),
        Err(error) => answer(error.status, &error.body(), false),
    }
}

/// The id of an object, to be shown.
pub(super) fn id_of(object: &Value) -> &str {
    text(&object["id"])
}
