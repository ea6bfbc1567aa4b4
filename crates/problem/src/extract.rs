//! Extractors that refuse with a [`Problem`].

use axum::body::HttpBody as _;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, OptionalFromRequest, Request};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Problem;

/// A JSON body, in both directions.
#[derive(Debug, Clone, Copy, Default)]
pub struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-media-type",
                "The body has another type than expected",
            )
            .detail("Send the body as JSON, with `Content-Type: application/json`."));
        }
        let limit = request.extensions().get().copied();
        let bytes = axum::body::Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|refused| from_bytes(&refused, limit))?;
        from_slice(&bytes).map(Self)
    }
}

impl<T: DeserializeOwned, S: Send + Sync> OptionalFromRequest<S> for Json<T> {
    type Rejection = Problem;

    /// Nothing, when there is no body, whatever type it is said to have: many clients name one of every request.
    async fn from_request(request: Request, state: &S) -> Result<Option<Self>, Problem> {
        if request.body().is_end_stream() {
            return Ok(None);
        }
        <Self as FromRequest<S>>::from_request(request, state).await.map(Some)
    }
}

/// Reads a JSON body that was already collected, with the same refusals as [`Json`].
///
/// # Errors
/// 400 `malformed-json`, or 422 `invalid-input` with a pointer to the field of the wrong type or unknown name.
pub(crate) fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let mut pointer = pointer(error.path());
        let cause = error.into_inner();
        match cause.classify() {
            serde_json::error::Category::Data => {
                let Plain { missing, code, detail } = in_plain_words(&without_value(&cause));
                if let Some(name) = missing {
                    pointer.push('/');
                    pointer.push_str(&name);
                }
                Problem::invalid().field(pointer, code, detail)
            }
            _ => malformed(&cause),
        }
    })?;
    reader.end().map_err(|cause| malformed(&cause))?;
    Ok(value)
}

fn malformed(cause: &serde_json::Error) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "malformed-json", "The body is not well-formed JSON").detail(format!(
        "Reading stopped at line {}, column {}.",
        cause.line(),
        cause.column()
    ))
}

/// serde's message without what was found, which may be a secret in the wrong place, and without " at line 1 column 2",
/// which means nothing beside a pointer. What a type of ours says of its own text stays as it is.
fn without_value(cause: &serde_json::Error) -> String {
    const WITH_VALUE: [&str; 5] =
        ["invalid type", "invalid value", "invalid length", "unknown variant", "unknown field"];
    let text = cause.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    let Some(kind) = WITH_VALUE.into_iter().find(|kind| text.starts_with(kind)) else { return text.to_owned() };
    // The last one is ours: what we expect names no other expectation.
    match text.rsplit_once(", expected ") {
        Some((_, expected)) => format!("{kind}, expected {expected}"),
        None => kind.to_owned(),
    }
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut pointer = String::new();
    for segment in path {
        pointer.push('/');
        match segment {
            Segment::Seq { index } => pointer.push_str(&index.to_string()),
            Segment::Map { key } => pointer.push_str(&key.replace('~', "~0").replace('/', "~1")),
            Segment::Enum { variant } => pointer.push_str(variant),
            Segment::Unknown => pointer.push('?'),
        }
    }
    pointer
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn from_bytes(refused: &BytesRejection, limit: Option<BodyLimit>) -> Problem {
    match refused {
        BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => too_large(limit),
        _ => Problem::new(StatusCode::BAD_REQUEST, "body-unreadable", "The body could not be read to its end"),
    }
}

fn too_large(limit: Option<BodyLimit>) -> Problem {
    let problem =
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "The body is larger than this route reads");
    match limit {
        Some(BodyLimit(bytes)) => problem.detail(format!("It reads {bytes} bytes.")),
        None => problem,
    }
}

/// The largest body that is read, as an extension of the request, so that a refusal can say it. Setting it limits nothing.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimit(pub usize);

/// What serde says, for people who never heard of it.
struct Plain {
    /// The member that is missing, which is not in the path to what was read.
    missing: Option<String>,
    code: &'static str,
    detail: String,
}

fn in_plain_words(message: &str) -> Plain {
    let plain = |code, detail: String| Plain { missing: None, code, detail };
    if let Some(name) = message.strip_prefix("missing field ") {
        let name = name.trim_matches('`').to_owned();
        return Plain { missing: Some(name), code: "required", detail: "is missing".to_owned() };
    }
    // What was found is left out: whoever sent it knows, and nobody else should.
    let is_unknown = message.starts_with("unknown field");
    if is_unknown && !message.contains(", expected ") {
        return plain("unknown", "is not known here".to_owned());
    }
    let wanted = message.split_once(", expected ").map(|(_, wanted)| wanted);
    match wanted {
        Some(names) if is_unknown => plain("unknown", format!("is not known here; known are {}", listed(names))),
        Some(names) if message.starts_with("unknown variant") => {
            plain("invalid", format!("must be one of {}", listed(names)))
        }
        Some(kind) if message.starts_with("invalid ") => plain("invalid", format!("must be {}", kind_of(kind))),
        None if message.starts_with("unknown variant") => plain("invalid", "is not allowed here".to_owned()),
        _ => plain("invalid", from_text(message).unwrap_or(message).to_owned()),
    }
}

/// "one of `a`, `b`" and "`a` or `b`" as one list.
fn listed(names: &str) -> String {
    names.trim_start_matches("one of ").replace("` or `", "`, `").replace('`', "")
}

/// Names of Rust's types in words.
fn kind_of(kind: &str) -> &str {
    match kind {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number of 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        "a map" => "an object",
        "string or map" => "a string",
        "variant identifier" => "a string",
        _ if kind.starts_with("struct ") => "an object",
        _ if kind.starts_with("tuple ") => "an array",
        _ if kind.starts_with("enum ") => "a string",
        _ => kind,
    }
}

/// What Rust's own parsers say of a text.
fn from_text(message: &str) -> Option<&'static str> {
    Some(match message {
        "invalid digit found in string" | "cannot parse integer from empty string" => "must be a whole number",
        "number too large to fit in target type" | "number too small to fit in target type" => "is out of range",
        "invalid float literal" | "cannot parse float from empty string" => "must be a number",
        "provided string was not `true` or `false`" => "must be true or false",
        _ => return None,
    })
}

/// Parts of the path.
#[derive(Debug, Clone, Copy)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        if has_nul(parts.uri.path()) {
            return Err(malformed_path("It holds a NUL character."));
        }
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(PathRejection::FailedToDeserializePathParams(refused)) => Err(malformed_path(&refused.body_text())),
            Err(_) => Err(Problem::internal()),
        }
    }
}

fn malformed_path(detail: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "malformed-path", "A part of the path is not valid").detail(detail)
}

/// Whether a percent-encoded text holds a NUL, which no database stores in a text and no name has.
fn has_nul(encoded: &str) -> bool {
    encoded.contains("%00")
}

/// Parameters of the query.
#[derive(Debug, Clone, Copy, Default)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        if let Some(pair) = parts.uri.query().unwrap_or_default().split('&').find(|pair| has_nul(pair)) {
            let name = pair.split(['=', '%']).next().unwrap_or_default();
            return Err(invalid_query(name, "must not hold NUL characters"));
        }
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(QueryRejection::FailedToDeserializeQueryString(refused)) => {
                let text = refused.body_text();
                let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text).to_owned();
                // `name: what is wrong with it`, unless the name itself is what is wrong.
                let (name, text) = text.split_once(": ").filter(|(name, _)| !name.contains(' ')).unwrap_or(("", &text));
                let unknown = text.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
                let Plain { missing, detail, .. } = in_plain_words(text);
                Err(invalid_query(missing.as_deref().or(unknown).unwrap_or(name), &detail))
            }
            Err(_) => Err(Problem::internal()),
        }
    }
}

fn invalid_query(name: &str, detail: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid-query", "A query parameter is not valid")
        .field(name, "invalid", detail)
}

#[cfg(test)]
mod tests {
    use super::{from_slice, in_plain_words};
    use crate::Problem;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    #[expect(dead_code, reason = "only its reading is tested")]
    struct Body {
        name: String,
        lines: Vec<u8>,
    }

    #[derive(Debug, serde::Deserialize)]
    enum Engine {
        Postgresql,
        Mysql,
    }

    #[derive(Debug, serde::Deserialize)]
    enum Nothing {}

    fn refusal(text: &str) -> Problem {
        from_slice::<Body>(text.as_bytes()).expect_err("refused")
    }

    #[test]
    fn a_wrong_type_is_named_by_its_pointer() {
        let problem = refusal(r#"{"name": "a", "lines": [1, "x"]}"#);
        assert_eq!((problem.status().as_u16(), problem.code()), (422, "invalid-input"));
        assert_eq!(problem.errors()[0].pointer, "/lines/1");
        assert!(!problem.errors()[0].detail.contains("line 1"), "{}", problem.errors()[0].detail);
    }

    #[test]
    fn what_was_typed_is_not_repeated_and_what_is_expected_is_said() {
        let detail = |text: &str| refusal(text).errors()[0].detail.clone();
        assert_eq!(detail(r#"{"name": 12345678, "lines": []}"#), "must be a string");
        let number = "must be a whole number from 0 to 255";
        assert_eq!(detail(r#"{"name": "a", "lines": ["s3cret, expected x at line 7"]}"#), number);
        assert_eq!(detail(r#"{"name": "a", "lines": [4711]}"#), number);
        assert_eq!(detail(r#"{"name": "a", "s3cret": 1}"#), "is not known here; known are name, lines");

        let unknown = from_slice::<Engine>(br#""postgres://u:s3cret@h/d""#).expect_err("refused");
        assert_eq!(unknown.errors()[0].detail, "must be one of Postgresql, Mysql");
        let nothing = from_slice::<Nothing>(br#""s3cret""#).expect_err("refused");
        assert_eq!(nothing.errors()[0].detail, "is not allowed here");
    }

    #[test]
    fn refusals_are_in_plain_words() {
        let of = |text: &str| {
            let problem = refusal(text);
            let error = &problem.errors()[0];
            (error.pointer.clone(), error.code, error.detail.clone())
        };
        assert_eq!(of(r#"{"lines": []}"#), ("/name".to_owned(), "required", "is missing".to_owned()));
        assert_eq!(of("[]").2, "must be an object");
        assert_eq!(of("7").2, "must be an object");
        assert_eq!(of(r#"{"name": 5, "lines": []}"#).2, "must be a string");
        assert_eq!(of(r#"{"name": "a", "lines": [300]}"#).2, "must be a whole number from 0 to 255");
        assert_eq!(of(r#"{"name": "a", "lines": {}}"#).2, "must be an array");
        let unknown = ("/isAdmin".to_owned(), "unknown", "is not known here; known are name, lines".to_owned());
        assert_eq!(of(r#"{"name": "a", "lines": [], "isAdmin": true}"#), unknown);
        assert_eq!(in_plain_words("unknown variant `stone`, expected one of `g`, `kg`").detail, "must be one of g, kg");
        assert_eq!(in_plain_words("invalid digit found in string").detail, "must be a whole number");
    }

    #[test]
    fn an_unknown_field_and_broken_json_are_told_apart() {
        assert_eq!(refusal(r#"{"name": "a", "lines": [], "isAdmin": true}"#).code(), "invalid-input");
        assert_eq!(refusal(r#"{"name": "a", "#).code(), "malformed-json");
        assert_eq!(refusal(r#"{"name": "a", "lines": []} x"#).code(), "malformed-json");
        assert_eq!(refusal("\u{feff}{}").code(), "malformed-json");
    }
}
