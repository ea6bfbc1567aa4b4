//! Events of the provider: kept when they come, followed in the same transaction, repeated until they could be.
//!
//! An event is known by its id and by the hash of what it says. One that comes again changes nothing; one that comes again
//! saying something else is an alarm. What is about a payment that we do not know yet waits until we do.
//!
//! What would let somebody act for a payment or a card in a browser is not kept.

use chrono::{DateTime, Duration, Utc};
use kernel::PurchaseId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use sqlx::{Connection as _, PgConnection};

use super::books::{self, Fault};
use super::recon::{Difference, DifferenceKind};
use super::{POINTER, Purchase, db};
use crate::credits::stripe::objects::{Charge, Dispute, Event, Metadata, PaymentIntent, Reference, Refund, Session};
use crate::cx::OpsCx;

/// The events that mean something here.
pub const TYPES: [&str; 20] = [
    "checkout.session.completed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.async_payment_failed",
    "checkout.session.expired",
    "payment_intent.succeeded",
    "payment_intent.payment_failed",
    "payment_intent.processing",
    "payment_intent.requires_action",
    "payment_intent.canceled",
    "charge.succeeded",
    "charge.refunded",
    "refund.created",
    "refund.updated",
    "refund.failed",
    "charge.refund.updated",
    "charge.dispute.created",
    "charge.dispute.updated",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.funds_reinstated",
    "charge.dispute.closed",
];

/// After so many attempts an event waits for people, or was not about us.
const MAX_ATTEMPTS: i32 = 12;
const FIRST_RETRY: Duration = Duration::seconds(10);
const MAX_RETRY: Duration = Duration::hours(6);

/// How an event stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema, clap::ValueEnum)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum EventState {
    /// Kept, and waiting.
    Received,
    Done,
    /// Of a type, or about a thing, that is not ours.
    Ignored,
    /// What it says could not be followed.
    Failed,
}

impl EventState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Done => "done",
            Self::Ignored => "ignored",
            Self::Failed => "failed",
        }
    }
}

/// How an event came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum EventSource {
    Webhook,
    /// We had to look for it.
    Sweep,
}

impl EventSource {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Sweep => "sweep",
        }
    }
}

/// An event as it is kept.
pub struct StoredEvent {
    pub id: String,
    pub kind: String,
    pub object_id: Option<String>,
    /// As it came, without secrets.
    pub payload: Vec<u8>,
    /// Over what it says, secrets and all.
    pub payload_sha256: Vec<u8>,
    pub state: EventState,
    pub attempts: i32,
    pub event_created_at: DateTime<Utc>,
}

/// Why an event is not kept.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    #[error("it is no event: {0}")]
    Malformed(String),
    #[error("event {0} came before with another content")]
    Changed(String),
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

impl StoredEvent {
    /// Reads an event.
    ///
    /// # Errors
    /// When the bytes are none.
    pub fn read(payload: &[u8]) -> Result<Self, EventError> {
        let malformed = |error: serde_json::Error| EventError::Malformed(error.to_string());
        let event: Event = serde_json::from_slice(payload).map_err(malformed)?;
        let mut value: Value = serde_json::from_slice(payload).map_err(malformed)?;
        let event_created_at = DateTime::from_timestamp(event.created, 0)
            .ok_or_else(|| EventError::Malformed("its moment is out of range".to_owned()))?;
        if event.id.is_empty() || event.id.len() > 255 || event.kind.len() > 255 {
            return Err(EventError::Malformed("its id or type is out of range".to_owned()));
        }
        let mut hash = Sha256::new();
        for member in ["id", "type", "created", "data"] {
            hash.update(canonical(&value[member]));
            hash.update(b"\n");
        }
        let held_secrets = remove_secrets(&mut value);
        let payload = if held_secrets { serde_json::to_vec(&value).map_err(malformed)? } else { payload.to_vec() };
        Ok(Self {
            object_id: event.data.object["id"].as_str().map(str::to_owned),
            id: event.id,
            kind: event.kind,
            payload,
            payload_sha256: hash.finalize().to_vec(),
            state: EventState::Received,
            attempts: 0,
            event_created_at,
        })
    }
}

/// Takes the client secrets out of what an event says, however deep they are; whether there were any.
fn remove_secrets(value: &mut Value) -> bool {
    match value {
        Value::Object(members) => {
            let mut had_any = members.remove("client_secret").is_some();
            for member in members.values_mut() {
                had_any |= remove_secrets(member);
            }
            had_any
        }
        Value::Array(items) => {
            let mut had_any = false;
            for item in items {
                had_any |= remove_secrets(item);
            }
            had_any
        }
        _ => false,
    }
}

/// The same text for the same JSON, whatever the order of its members and the space between them.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(name, _)| name.as_str());
            let members: Vec<String> = members
                .iter()
                .map(|(name, value)| format!("{}:{}", Value::String((*name).clone()), canonical(value)))
                .collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

/// Keeps an event and follows it, in one transaction.
pub async fn ingest(cx: &OpsCx, payload: &[u8], source: EventSource) -> Result<EventState, EventError> {
    let new = StoredEvent::read(payload)?;
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let is_new = db::event_insert(&mut tx, &new, source, now).await?;
    let mut event = db::event_lock(&mut tx, &new.id).await?.ok_or(sqlx::Error::RowNotFound)?;
    if event.payload_sha256 != new.payload_sha256 {
        let hashes = |event: &StoredEvent| Some(serde_json::json!({ "sha256": hex::encode(&event.payload_sha256) }));
        let difference = Difference {
            kind: DifferenceKind::EventChanged,
            external_ref: new.id.clone(),
            theirs: hashes(&new),
            ours: hashes(&event),
        };
        db::recon_difference_insert(&mut tx, None, &difference, now).await?;
        tx.commit().await?;
        metrics::counter!("tenantry_stripe_events_changed_total").increment(1);
        tracing::error!(stripe.event = new.id, "event {} came again with another content", new.id);
        return Err(EventError::Changed(new.id));
    }
    if matches!(event.state, EventState::Done | EventState::Ignored) {
        tx.commit().await?;
        return Ok(event.state);
    }
    if is_new && source == EventSource::Sweep {
        metrics::counter!("tenantry_stripe_events_missed_total").increment(1);
        tracing::warn!(stripe.event = new.id, "event {} ({}) did not come by webhook", new.id, new.kind);
    }
    work(&mut tx, &mut event, now).await?;
    tx.commit().await?;
    Ok(event.state)
}

/// Follows an event whose time to be tried again has come.
pub async fn retry(cx: &OpsCx, id: &str) -> Result<(), sqlx::Error> {
    let mut tx = cx.master.begin().await?;
    if let Some(mut event) = db::event_lock(&mut tx, id).await?
        && matches!(event.state, EventState::Received | EventState::Failed)
    {
        work(&mut tx, &mut event, cx.clock.now()).await?;
    }
    tx.commit().await
}

/// Follows an event that somebody wants to be followed now: also one that was given up. False when there is none.
pub async fn retry_now_in(tx: &mut PgConnection, id: &str, now: DateTime<Utc>) -> Result<bool, sqlx::Error> {
    let Some(mut event) = db::event_lock(tx, id).await? else { return Ok(false) };
    // What it taught is known already.
    if event.state != EventState::Done {
        work(tx, &mut event, now).await?;
    }
    Ok(true)
}

/// What became of an event.
enum Applied {
    /// It was followed, and this payment is known by now.
    Done(Option<String>),
    Ignored,
    /// It is about this payment, which is not known yet.
    Waiting(String),
}

async fn work(tx: &mut PgConnection, event: &mut StoredEvent, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    if let Some(intent) = work_one(tx, event, now).await? {
        apply_waiting(tx, Some(&intent), now).await?;
    }
    Ok(())
}

/// Follows what had waited for this payment.
pub async fn apply_waiting(tx: &mut PgConnection, intent: Option<&str>, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    let Some(intent) = intent else { return Ok(()) };
    for id in db::events_waiting_for(tx, intent).await? {
        if let Some(mut event) = db::event_lock(tx, &id).await? {
            work_one(tx, &mut event, now).await?;
        }
    }
    Ok(())
}

/// Follows one event as far as that is possible, and writes down how it stands. The payment that is known by now.
async fn work_one(
    tx: &mut PgConnection,
    event: &mut StoredEvent,
    now: DateTime<Utc>,
) -> Result<Option<String>, sqlx::Error> {
    // What half of an event did is undone, and the event is kept all the same.
    let mut inner = tx.begin().await?;
    let outcome = apply(&mut inner, event, now).await;
    if outcome.is_ok() {
        inner.commit().await?;
    } else {
        inner.rollback().await?;
    }
    event.attempts += 1;
    let (state, error, waits_for, intent) = match outcome {
        Ok(Applied::Done(intent)) => (EventState::Done, None, None, intent),
        Ok(Applied::Ignored) => (EventState::Ignored, None, None, None),
        Ok(Applied::Waiting(_)) if event.attempts >= MAX_ATTEMPTS => (EventState::Ignored, None, None, None),
        Ok(Applied::Waiting(intent)) => (EventState::Received, None, Some(intent), None),
        Err(Fault::Mismatch(what)) => {
            metrics::counter!("tenantry_stripe_events_failed_total").increment(1);
            tracing::error!(stripe.event = event.id, "event {} ({}) does not fit: {what}", event.id, event.kind);
            (EventState::Failed, Some(what), None, None)
        }
        Err(Fault::Db(error)) => {
            let chain = crate::http::errors::chain(&error);
            tracing::warn!(stripe.event = event.id, error = chain, "event {} could not be followed yet", event.id);
            (EventState::Failed, Some("database error".to_owned()), None, None)
        }
    };
    event.state = state;
    let is_over = matches!(state, EventState::Done | EventState::Ignored) || event.attempts >= MAX_ATTEMPTS;
    let next = if is_over { None } else { Some(now + backoff(event.attempts)) };
    db::event_save(tx, event, error.as_deref(), waits_for.as_deref(), next, now).await?;
    Ok(intent)
}

fn backoff(attempts: i32) -> Duration {
    let doublings = u32::try_from(attempts - 1).unwrap_or(0).min(20);
    FIRST_RETRY.checked_mul(1 << doublings).map_or(MAX_RETRY, |wait| wait.min(MAX_RETRY))
}

fn object<T: DeserializeOwned>(event: &StoredEvent) -> Result<T, Fault> {
    let refused = |error: serde_json::Error| Fault::Mismatch(format!("its object cannot be read: {error}"));
    let read: Event = serde_json::from_slice(&event.payload).map_err(refused)?;
    serde_json::from_value(read.data.object).map_err(refused)
}

/// The purchase that an object points to. That we do not have it means that it is not ours: several systems may share one
/// account of the provider's.
async fn pointed(
    tx: &mut PgConnection,
    metadata: Option<&Metadata>,
    fallback: Option<PurchaseId>,
) -> Result<Option<Purchase>, sqlx::Error> {
    let pointer = metadata.and_then(|metadata| metadata.get(POINTER)).and_then(|id| id.parse().ok());
    match pointer.or(fallback) {
        Some(id) => db::purchase_lock(tx, id).await,
        None => Ok(None),
    }
}

async fn apply(tx: &mut PgConnection, event: &StoredEvent, now: DateTime<Utc>) -> Result<Applied, Fault> {
    match event.kind.as_str() {
        "checkout.session.completed"
        | "checkout.session.async_payment_succeeded"
        | "checkout.session.async_payment_failed"
        | "checkout.session.expired" => {
            let session: Session = object(event)?;
            let fallback = db::purchase_of_session(tx, &session.id).await?;
            let Some(mut purchase) = pointed(tx, session.metadata.as_ref(), fallback).await? else {
                return Ok(Applied::Ignored);
            };
            if event.kind == "checkout.session.async_payment_failed" {
                books::learn_session_failed(tx, &mut purchase, now).await?;
            } else {
                books::learn_session(tx, &mut purchase, &session, now).await?;
            }
            Ok(Applied::Done(purchase.payment_intent))
        }
        "payment_intent.succeeded"
        | "payment_intent.payment_failed"
        | "payment_intent.processing"
        | "payment_intent.requires_action"
        | "payment_intent.canceled" => {
            let intent: PaymentIntent = object(event)?;
            let fallback = db::purchase_of_intent(tx, &intent.id).await?;
            let Some(mut purchase) = pointed(tx, intent.metadata.as_ref(), fallback).await? else {
                return Ok(Applied::Ignored);
            };
            books::learn_intent(tx, &mut purchase, &intent, now).await?;
            Ok(Applied::Done(purchase.payment_intent))
        }
        "charge.succeeded" | "charge.refunded" => {
            let charge: Charge = object(event)?;
            let Some(intent) = charge.payment_intent.as_ref().map(Reference::id) else { return Ok(Applied::Ignored) };
            let fallback = db::purchase_of_intent(tx, intent).await?;
            let Some(mut purchase) = pointed(tx, charge.metadata.as_ref(), fallback).await? else {
                return Ok(Applied::Ignored);
            };
            books::learn_charge(tx, &mut purchase, &charge, now).await?;
            Ok(Applied::Done(purchase.payment_intent))
        }
        "refund.created" | "refund.updated" | "refund.failed" | "charge.refund.updated" => {
            let refund: Refund = object(event)?;
            let Some(intent) = refund.payment_intent.as_ref().map(Reference::id) else { return Ok(Applied::Ignored) };
            let Some(id) = db::purchase_of_intent(tx, intent).await? else {
                return Ok(Applied::Waiting(intent.to_owned()));
            };
            let mut purchase = db::purchase_lock(tx, id).await?.ok_or(sqlx::Error::RowNotFound)?;
            books::learn_refund(tx, &mut purchase, &refund, now).await?;
            Ok(Applied::Done(None))
        }
        "charge.dispute.created"
        | "charge.dispute.updated"
        | "charge.dispute.funds_withdrawn"
        | "charge.dispute.funds_reinstated"
        | "charge.dispute.closed" => {
            let dispute: Dispute = object(event)?;
            let Some(intent) = dispute.payment_intent.as_ref().map(Reference::id) else { return Ok(Applied::Ignored) };
            let Some(id) = db::purchase_of_intent(tx, intent).await? else {
                return Ok(Applied::Waiting(intent.to_owned()));
            };
            let mut purchase = db::purchase_lock(tx, id).await?.ok_or(sqlx::Error::RowNotFound)?;
            books::learn_dispute(tx, &mut purchase, &dispute, now).await?;
            Ok(Applied::Done(None))
        }
        _ => Ok(Applied::Ignored),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{MAX_RETRY, StoredEvent, backoff};

    #[test]
    fn an_event_is_the_same_when_only_its_delivery_differs() {
        let event = |pending: u8, amount: u32| {
            let body = json!({
                "id": "evt_1", "type": "x", "created": 1, "pending_webhooks": pending, "data": { "object": { "b": amount, "a": "é" } },
            });
            let bytes =
                if pending == 0 { body.to_string() } else { serde_json::to_string_pretty(&body).expect("JSON") };
            StoredEvent::read(bytes.as_bytes()).expect("an event").payload_sha256
        };
        assert_eq!(event(0, 5), event(1, 5));
        assert_ne!(event(1, 5), event(1, 6));
    }

    #[test]
    fn an_event_is_kept_without_client_secrets_and_otherwise_as_it_came() {
        let plain = r#"{ "id":"evt_1","type":"x", "created":1,"data":{"object":{"b":[1,{"c":"secret"}]}}}"#;
        assert_eq!(StoredEvent::read(plain.as_bytes()).expect("an event").payload, plain.as_bytes());
        let telling = |secret: &str| {
            let error = json!({ "payment_intent": { "id": "pi_1", "client_secret": secret } });
            let object = json!({ "client_secret": secret, "id": "seti_1", "errors": [error] });
            json!({ "id": "evt_1", "type": "x", "created": 1, "data": { "object": object } }).to_string()
        };
        let [one, other] = ["pi_1_secret_a", "pi_1_secret_b"]
            .map(|secret| StoredEvent::read(telling(secret).as_bytes()).expect("an event"));
        let kept = String::from_utf8(one.payload.clone()).expect("JSON");
        assert!(!kept.contains("secret") && kept.contains("seti_1") && kept.contains("pi_1"), "{kept}");
        assert_eq!(one.payload, other.payload);
        // That it says something else is still seen.
        assert_ne!(one.payload_sha256, other.payload_sha256);
    }

    #[test]
    fn waits_grow_and_are_bounded() {
        assert_eq!(backoff(1).num_seconds(), 10);
        assert_eq!(backoff(3).num_seconds(), 40);
        assert_eq!(backoff(30), MAX_RETRY);
    }
}
