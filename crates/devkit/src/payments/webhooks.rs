//! Telling what happened: signed, at least once, in no order.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Uri, header};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha2::Sha256;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use super::Shared;

const ATTEMPTS: u32 = 8;
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// What goes wrong with webhooks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WebhookFaults {
    /// They are kept back; somebody else delivers them, or nobody.
    pub hold: bool,
    /// Each comes so often more.
    pub duplicates: u32,
    /// Each comes so much later, in milliseconds.
    pub delay_ms: u64,
    /// Later ones overtake earlier ones: of those that are sent together the last goes first.
    pub reorder: bool,
    /// They are signed with a secret that nobody has agreed on.
    pub forge: bool,
}

/// The header that signs `body` at `at`.
#[must_use]
pub fn sign(secret: &str, at: i64, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(format!("{at}.{body}").as_bytes());
    format!("t={at},v1={}", hex::encode(mac.finalize().into_bytes()))
}

/// An event's bytes.
pub(super) fn body(event: &Value) -> String {
    serde_json::to_string_pretty(event).expect("JSON is written")
}

/// Begins to send what has not been sent yet.
pub(super) fn send_new(shared: &Arc<Shared>) {
    let (new, faults) = {
        let mut world = shared.world();
        if world.webhook_url.is_none() || world.webhook_faults.hold {
            return;
        }
        (std::mem::take(&mut world.unsent), world.webhook_faults.clone())
    };
    let count = new.len();
    for (at, id) in new.into_iter().enumerate() {
        let place = u32::try_from(if faults.reorder { count - at } else { 0 }).unwrap_or(0);
        let delay = Duration::from_millis(faults.delay_ms) + Duration::from_millis(30) * place;
        for _ in 0..=faults.duplicates {
            let work = send(Arc::clone(shared), id.clone(), delay, faults.forge);
            let stop = shared.stop.clone();
            shared.tasks.spawn(async move { stop.run_until_cancelled(work).await });
        }
    }
}

async fn send(shared: Arc<Shared>, id: String, delay: Duration, is_forged: bool) {
    tokio::time::sleep(delay).await;
    let mut backoff = FIRST_BACKOFF;
    for _ in 0..ATTEMPTS {
        match attempt(&shared, &id, is_forged).await {
            Ok(status) if (200..300).contains(&status) => return,
            Ok(status) => tracing::debug!("webhook {id} was answered {status}"),
            Err(error) => tracing::debug!("webhook {id} was not delivered: {error}"),
        }
        tokio::time::sleep(backoff).await;
        backoff *= 2;
    }
}

/// Sends an event once; the status that it was answered with.
pub(super) async fn attempt(shared: &Shared, id: &str, is_forged: bool) -> Result<u16, String> {
    let (url, text, now) = {
        let mut world = shared.world();
        let now = world.now();
        let url = world.webhook_url.clone().ok_or("there is nowhere to send it")?;
        let event = world.events.iter_mut().find(|event| event.id() == id).ok_or("no such event")?;
        event.attempts += 1;
        (url, body(&event.body), now)
    };
    // Every attempt is signed anew.
    let secret = if is_forged { "whsec_of_somebody_else" } else { &shared.options.webhook_secret };
    let signature = sign(secret, now, &text);
    let status = tokio::time::timeout(ATTEMPT_TIMEOUT, post(&shared.tasks, &url, text, &signature))
        .await
        .map_err(|_| "it took too long")??;
    if (200..300).contains(&status) {
        let mut world = shared.world();
        if let Some(event) = world.events.iter_mut().find(|event| event.id() == id) {
            event.is_delivered = true;
        }
    }
    Ok(status)
}

async fn post(tasks: &TaskTracker, url: &str, text: String, signature: &str) -> Result<u16, String> {
    let uri: Uri = url.parse().map_err(|error| format!("{error}"))?;
    let authority = uri.authority().ok_or("the URL has no host")?.clone();
    // Names below localhost do not resolve for programs.
    let host = if authority.host().ends_with("localhost") { "127.0.0.1" } else { authority.host() };
    let stream =
        TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let request = Request::post(uri.path())
        .header(header::HOST, authority.as_str())
        .header(header::CONTENT_TYPE, "application/json; charset=utf-8")
        .header(header::USER_AGENT, "tenantry-test-payments/1.0")
        .header("stripe-signature", signature)
        .body(Body::from(text))
        .map_err(|error| error.to_string())?;
    tasks.spawn(connection);
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    response.into_body().collect().await.map_err(|error| error.to_string())?;
    Ok(status)
}
