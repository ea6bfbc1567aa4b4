//! Somebody's server that webhooks are sent to: keeps what comes and answers as the test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::io::ReaderStream;
use tokio_util::task::AbortOnDropHandle;

use crate::wait::{eventually, within};

/// One request that came.
#[derive(Debug, Clone)]
pub struct Received {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// What it was answered.
    pub status: StatusCode,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a webhook is JSON")
    }
}

type Answer = dyn Fn(&Received) -> StatusCode + Send + Sync;

struct Shared {
    received: Mutex<Vec<Received>>,
    answer: Mutex<Arc<Answer>>,
    location: Mutex<Option<String>>,
    in_flight: Mutex<(usize, usize)>,
    has_endless_body: Mutex<bool>,
    stalls: watch::Sender<bool>,
}

/// A server on loopback. Dropping it ends it.
pub struct Receiver {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _serving: AbortOnDropHandle<()>,
}

impl Receiver {
    /// One that answers 204 to everything.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            received: Mutex::default(),
            answer: Mutex::new(Arc::new(|_| StatusCode::NO_CONTENT)),
            location: Mutex::default(),
            in_flight: Mutex::default(),
            has_endless_body: Mutex::default(),
            stalls: watch::Sender::new(false),
        });
        let router = Router::new().fallback(receive).with_state(Arc::clone(&shared));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, shared, _serving: AbortOnDropHandle::new(serving) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Answers this from now on.
    pub fn answer(&self, status: u16) {
        let status = StatusCode::from_u16(status).unwrap();
        self.answer_by(move |_| status);
    }

    /// Answers by what came, which is not among what was received yet.
    pub fn answer_by(&self, answer: impl Fn(&Received) -> StatusCode + Send + Sync + 'static) {
        *self.shared.answer.lock().unwrap() = Arc::new(answer);
    }

    /// Sends everybody elsewhere.
    pub fn redirect(&self, location: &str) {
        *self.shared.location.lock().unwrap() = Some(location.to_owned());
        self.answer(302);
    }

    /// Answers with a body that never ends.
    pub fn never_end(&self) {
        *self.shared.has_endless_body.lock().unwrap() = true;
        self.answer(200);
    }

    /// Keeps every request waiting until told otherwise.
    pub fn stall(&self, stalls: bool) {
        self.shared.stalls.send_replace(stalls);
    }

    /// What came so far, also what waits for its answer.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    /// The most requests that waited for their answers at one time.
    pub fn most_in_flight(&self) -> usize {
        self.shared.in_flight.lock().unwrap().1
    }

    /// Waits until so much has come.
    pub async fn wait_for(&self, count: usize) -> Vec<Received> {
        eventually(&format!("{count} webhooks"), || async {
            let received = self.received();
            (received.len() >= count).then_some(received)
        })
        .await
    }
}

async fn receive(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = within("the body of a webhook", body.collect()).await.unwrap().to_bytes().to_vec();
    let path = parts.uri.to_string();
    let mut received = Received { path, headers: parts.headers, body, status: StatusCode::OK };
    let answer = Arc::clone(&*shared.answer.lock().unwrap());
    let status = answer(&received);
    received.status = status;
    shared.received.lock().unwrap().push(received);
    let _one = InFlight::enter(Arc::clone(&shared));
    let mut stalls = shared.stalls.subscribe();
    // A receiver that is dropped stalls nobody.
    let _ = stalls.wait_for(|stalls| !stalls).await;
    let mut response = Response::builder().status(status);
    if let Some(location) = shared.location.lock().unwrap().clone() {
        response = response.header("location", location);
    }
    let body = if *shared.has_endless_body.lock().unwrap() { endless() } else { Body::empty() };
    response.body(body).unwrap()
}

fn endless() -> Body {
    Body::from_stream(ReaderStream::new(tokio::io::repeat(b'x')))
}

struct InFlight(Arc<Shared>);

impl InFlight {
    fn enter(shared: Arc<Shared>) -> Self {
        let mut counts = shared.in_flight.lock().unwrap();
        counts.0 += 1;
        counts.1 = counts.1.max(counts.0);
        drop(counts);
        Self(shared)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.lock().unwrap().0 -= 1;
    }
}
