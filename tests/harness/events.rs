//! Server-sent events, as a browser reads them.

use axum::body::Body;
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;

use crate::client::Client;
use crate::wait::within;

/// One event of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerEvent {
    pub id: i64,
    pub kind: String,
    pub data: Value,
}

/// An open stream.
pub struct EventStream {
    body: Incoming,
    buffer: String,
}

impl Client {
    /// Opens a stream, after the event with this id when there is one.
    pub async fn events(&self, path: &str, last_event_id: Option<i64>) -> EventStream {
        let mut request = self.build(Method::GET, path);
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id.to_string());
        }
        let response = within(path, self.open(request.body(Body::empty()).unwrap())).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        EventStream { body: response.into_body(), buffer: String::new() }
    }
}

impl EventStream {
    /// The next event; nothing when the server has ended the stream.
    pub async fn next(&mut self) -> Option<ServerEvent> {
        loop {
            while let Some((block, rest)) = self.buffer.split_once("\n\n") {
                let event = parse(block);
                self.buffer = rest.to_owned();
                if event.is_some() {
                    return event;
                }
            }
            let frame = within("the next event", self.body.frame()).await?.expect("the stream does not break off");
            if let Ok(bytes) = frame.into_data() {
                self.buffer.push_str(std::str::from_utf8(&bytes).expect("events are text"));
            }
        }
    }

    /// All events until the server ends the stream.
    pub async fn to_end(mut self) -> Vec<ServerEvent> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

/// An event; nothing for a comment, which only keeps the connection alive.
fn parse(block: &str) -> Option<ServerEvent> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    Some(ServerEvent {
        id: field("id")?.parse().expect("ids are numbers"),
        kind: field("event")?.to_owned(),
        data: serde_json::from_str(field("data")?).expect("data is JSON"),
    })
}
