//! A small HTTP client that dials loopback and says any Host: `*.localhost` does not resolve for programs.

use std::net::SocketAddr;

use axum::body::Body;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::wait::within;

/// Somebody who sends requests: an address, a Host, and perhaps a token.
#[derive(Debug, Clone)]
pub struct Client {
    pub address: SocketAddr,
    pub host: String,
    headers: HeaderMap,
}

/// An answer.
#[derive(Debug)]
pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
    asked: String,
}

impl Client {
    pub fn new(address: SocketAddr, host: &str) -> Self {
        Self { address, host: host.to_owned(), headers: HeaderMap::new() }
    }

    /// The same with one more header on every request.
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.insert(HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
        client
    }

    /// The same with this access token.
    pub fn with_token(&self, token: &str) -> Self {
        self.with("authorization", &format!("Bearer {token}"))
    }

    pub async fn get(&self, path: &str) -> Response {
        self.send(Method::GET, path, None).await
    }

    pub async fn delete(&self, path: &str) -> Response {
        self.send(Method::DELETE, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Response {
        self.send(Method::POST, path, Some(body)).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Response {
        self.send(Method::PATCH, path, Some(body)).await
    }

    /// Sends JSON, or nothing.
    pub async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Response {
        match body {
            Some(body) => self.send_bytes(method, path, "application/json", body.to_string()).await,
            None => self.request(self.build(method, path).body(Body::empty()).unwrap()).await,
        }
    }

    /// Sends JSON to a node that may die meanwhile; nothing when no whole answer comes.
    pub async fn try_send(&self, method: Method, path: &str, body: &Value) -> Option<Response> {
        let request = self.build(method, path).header("content-type", "application/json");
        self.try_request(request.body(Body::from(body.to_string())).ok()?).await
    }

    /// Asks a node that may die meanwhile; nothing when no whole answer comes.
    pub async fn try_get(&self, path: &str) -> Option<Response> {
        self.try_request(self.build(Method::GET, path).body(Body::empty()).ok()?).await
    }

    async fn try_request(&self, request: Request<Body>) -> Option<Response> {
        let asked = format!("{} {} on {}", request.method(), request.uri(), self.host);
        let work = async {
            let stream = TcpStream::connect(self.address).await.ok()?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
            tokio::task::spawn(connection);
            let (parts, body) = sender.send_request(request).await.ok()?.into_parts();
            let bytes = body.collect().await.ok()?.to_bytes();
            Some((parts, bytes))
        };
        let (parts, bytes) = within(&asked, work).await?;
        Some(Response { status: parts.status, headers: parts.headers, bytes: bytes.to_vec(), asked: asked.clone() })
    }

    /// Sends a body of any type.
    pub async fn send_bytes(&self, method: Method, path: &str, content_type: &str, body: impl Into<Body>) -> Response {
        let request = self.build(method, path).header("content-type", content_type).body(body.into()).unwrap();
        self.request(request).await
    }

    /// A request with the client's Host and headers, to be finished by the caller.
    pub fn build(&self, method: Method, path: &str) -> http::request::Builder {
        let mut builder = Request::builder().method(method).uri(path).header("host", &self.host);
        for (name, value) in &self.headers {
            builder = builder.header(name, value);
        }
        builder
    }

    /// Sends a request as it is, on a connection of its own.
    pub async fn request(&self, request: Request<Body>) -> Response {
        let asked = format!("{} {} on {}", request.method(), request.uri(), self.host);
        let work = async {
            let (parts, body) = self.open(request).await.into_parts();
            let bytes = body.collect().await.unwrap_or_else(|error| panic!("{asked} broke off: {error}")).to_bytes();
            (parts, bytes)
        };
        let (parts, bytes) = within(&asked, work).await;
        Response { status: parts.status, headers: parts.headers, bytes: bytes.to_vec(), asked }
    }

    /// Sends a request and returns as soon as the head of the answer is there: for streams.
    pub async fn open(&self, request: Request<Body>) -> http::Response<hyper::body::Incoming> {
        let stream = TcpStream::connect(self.address)
            .await
            .unwrap_or_else(|error| panic!("cannot connect to {}: {error}", self.address));
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::task::spawn(connection);
        sender.send_request(request).await.unwrap_or_else(|error| panic!("no answer: {error}"))
    }
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|error| panic!("{} answered no JSON ({error}): {}", self.asked, self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// A header's value; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The JSON, when the status is this one.
    #[track_caller]
    pub fn expect_status(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{} answered {}", self.asked, self.text());
        if self.bytes.is_empty() { Value::Null } else { self.json() }
    }

    /// The problem, when the status and the code are these.
    #[track_caller]
    pub fn expect_problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.header("content-type"), "application/problem+json", "{} answered {}", self.asked, self.text());
        let problem = self.expect_status(status);
        assert_eq!(problem["code"], code, "{} answered {problem}", self.asked);
        assert!(problem["requestId"].as_str().is_some_and(|id| id == self.header("x-request-id")), "{problem}");
        problem
    }

    /// The problem that names one field.
    #[track_caller]
    pub fn expect_field(&self, status: u16, code: &str, pointer: &str) -> Value {
        let problem = self.expect_problem(status, code);
        let names_it =
            problem["errors"].as_array().is_some_and(|errors| errors.iter().any(|error| error["pointer"] == pointer));
        assert!(names_it, "{} did not name {pointer}: {problem}", self.asked);
        problem
    }
}
