#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod extract;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;

pub use extract::{BodyLimit, Json, Path, Query};

/// The media type of RFC 9457.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// What a problem has of its own, so that no extension member may take the name.
const RESERVED: [&str; 8] = ["type", "title", "status", "detail", "instance", "code", "errors", "requestId"];

/// One field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FieldError {
    /// Where: a JSON pointer (RFC 6901) into the body, or the name of a query parameter or header.
    pub pointer: String,
    /// What is wrong, for programs.
    pub code: &'static str,
    /// What is wrong and what to do, for people.
    pub detail: String,
}

/// An answer that says no: what a program branches on is `code`, which never changes its meaning.
#[derive(Clone)]
pub struct Problem(Box<Parts>);

/// Behind a pointer: every `Result` of every handler carries room for one.
#[derive(Clone)]
struct Parts {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: Option<String>,
    errors: Vec<FieldError>,
    retry_after: Option<Duration>,
    members: Vec<(&'static str, serde_json::Value)>,
    headers: Vec<(&'static str, &'static str)>,
}

impl Problem {
    /// A problem of this kind; `title` is the same for every occurrence.
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, title: &'static str) -> Self {
        Self(Box::new(Parts {
            status,
            code,
            title,
            detail: None,
            errors: Vec::new(),
            retry_after: None,
            members: Vec::new(),
            headers: Vec::new(),
        }))
    }

    /// What happened this time and what to do about it. Never a host, a DSN, SQL or a secret.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// Names one field that is wrong.
    #[must_use]
    pub fn field(mut self, pointer: impl Into<String>, code: &'static str, detail: impl fmt::Display) -> Self {
        self.0.errors.push(FieldError { pointer: pointer.into(), code, detail: detail.to_string() });
        self
    }

    /// When to try again: becomes `Retry-After`, in whole seconds, at least one.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// An extension member (RFC 9457 §3.2), such as the operation that stands in the way. One that has the name of a member
    /// of every problem is left out: `status` is the HTTP status, whatever else has one.
    #[must_use]
    pub fn member(mut self, name: &'static str, value: impl Into<serde_json::Value>) -> Self {
        debug_assert!(!RESERVED.contains(&name), "{name} is a member of every problem");
        if !RESERVED.contains(&name) {
            self.0.members.push((name, value.into()));
        }
        self
    }

    /// A further header of the answer.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// 422 for a body that is well-formed but breaks rules; add the fields with [`Problem::field`].
    #[must_use]
    pub fn invalid() -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-input", "Some fields are not valid")
    }

    /// 404, also for what the caller may not know exists.
    #[must_use]
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "There is nothing here")
    }

    /// 500. The cause belongs in the log, never here.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Something failed on our side")
    }

    /// The status that is answered.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// What a program branches on.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    /// The fields that are wrong.
    #[must_use]
    pub fn errors(&self) -> &[FieldError] {
        &self.0.errors
    }

    fn body(&self, request_id: Option<&str>) -> serde_json::Value {
        let mut body = serde_json::json!({
            "type": format!("urn:tenantry:problem:{}", self.0.code),
            "title": self.0.title,
            "status": self.0.status.as_u16(),
            "code": self.0.code,
        });
        if let Some(detail) = &self.0.detail {
            body["detail"] = detail.as_str().into();
        }
        if !self.0.errors.is_empty() {
            body["errors"] = serde_json::to_value(&self.0.errors).unwrap_or_default();
        }
        for (name, value) in &self.0.members {
            body[*name] = value.clone();
        }
        if let Some(id) = request_id {
            body["requestId"] = id.into();
        }
        body
    }
}

impl fmt::Debug for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Problem({} {})", self.0.status.as_u16(), self.0.code)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = render(&self, None);
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

fn render(problem: &Problem, request_id: Option<&str>) -> Response {
    let mut response = Response::new(Body::from(problem.body(request_id).to_string()));
    *response.status_mut() = problem.0.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(after) = problem.0.retry_after {
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    for (name, value) in &problem.0.headers {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

/// Puts the id of the request into the body of `response` when that is a [`Problem`]; the outermost layer calls it.
#[must_use]
pub fn with_request_id(response: Response, request_id: &str) -> Response {
    let Some(problem) = response.extensions().get::<Arc<Problem>>().cloned() else { return response };
    let (mut parts, _) = response.into_parts();
    // The router has measured the body that is replaced here; the new one is measured when it is sent.
    parts.headers.remove(header::CONTENT_LENGTH);
    let body = Body::from(problem.body(Some(request_id)).to_string());
    Response::from_parts(parts, body)
}

/// The shape of every refusal. A code may bring members of its own beside these, such as `available` of `out-of-stock`.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// `urn:tenantry:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(example = "urn:tenantry:problem:slug-taken")]
    pub kind: String,
    /// The same for every occurrence of this code.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What a program branches on.
    #[schema(example = "slug-taken")]
    pub code: String,
    /// What happened this time and what to do.
    pub detail: Option<String>,
    /// The fields that are wrong.
    pub errors: Option<Vec<FieldError>>,
    /// What to do at the database that was refused.
    pub advice: Option<String>,
    /// The database server's own code for why it was refused.
    #[schema(example = "28P01")]
    pub server_code: Option<String>,
    /// The statements that mend the database that was refused, as they can be run there.
    pub sql: Option<String>,
    /// Quote it when you ask for help; the log has the same.
    pub request_id: String,
}
