//! Webhooks out: an organization registers endpoints, and what happens to it is told there.
//!
//! - Whoever makes something true writes the event into the outbox in the same transaction ([`tell`], or a function of the
//!   ledger), once per key. Nothing is sent that did not happen, and nothing that happened is forgotten.
//! - One node at a time hands events out in their order, one delivery per endpoint. Deliveries are attempted by any node, and
//!   told at least once: a receiver looks at `webhook-id`, which is the event's, to do things once.
//! - An endpoint is told in order, one after the other. An event that it does not take is tried again with growing pauses
//!   for three days, and after [`deliver::LINE_TRIES`] tries it lets those behind it pass.
//! - Secrets are sealed for the organization under a version that no other secret has, and are shown once.

pub mod db;
pub mod deliver;
pub mod events;
pub mod outbound;
pub mod routes;
pub mod sign;

use chrono::{DateTime, Duration, Utc};
use kernel::{EventId, OrganizationId, StoreId, UserId, WebhookDeliveryId, WebhookEndpointId, text};
use problem::Problem;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use tenancy::{AddressError, Reach};
use url::Url;
use uuid::Uuid;
use vault::{Aad, Purpose, Sealed};

use crate::audit::{self, Actor, Subject};
use crate::config::reach;
use crate::cx::OpsCx;
use crate::http::paging::{PagingError, Window};
use crate::idempotency::{self, Claim};
use events::{EVENT_TYPES, EventData};

/// How long an event is tried.
pub const RETRY_FOR: Duration = Duration::days(3);
/// An endpoint that took nothing for so long is disabled when the next event is given up.
pub const FAILING_FOR: Duration = Duration::days(5);
/// The most endpoints of one organization.
pub const MAX_ENDPOINTS: i64 = 20;
/// The most deliveries that one request asks for again.
pub const MAX_RESENT: i64 = 10_000;
const MAX_URL_LEN: usize = 2048;
/// How much is forgotten in one statement, and the most statements of one kind in one go.
const PURGE_BATCH: i64 = 1000;
const MAX_PURGES: usize = 50;
/// How long the secret before signs too after a rotation, and the most that it may.
const DEFAULT_OVERLAP: Duration = Duration::hours(24);
const MAX_OVERLAP_S: i64 = 7 * 24 * 3600;

/// Something that an organization is told.
#[derive(Debug, Clone)]
pub struct Event {
    pub id: EventId,
    pub organization_id: OrganizationId,
    pub kind: &'static str,
    pub data: serde_json::Value,
    pub created_at: DateTime<Utc>,
}

/// Tells an organization of something within the transaction that makes it true, once per key.
pub async fn tell(
    tx: &mut PgConnection,
    organization_id: OrganizationId,
    kind: &'static str,
    dedupe_key: &str,
    data: serde_json::Value,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let event = Event { id: EventId::new(now), organization_id, kind, data, created_at: now };
    db::event_insert(tx, &event, dedupe_key, false).await?;
    Ok(())
}

/// [`tell`] with what the type of the event says.
pub async fn tell_of<E: EventData>(
    tx: &mut PgConnection,
    organization_id: OrganizationId,
    said: &E,
    dedupe_key: &str,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    tell(tx, organization_id, E::TYPE, dedupe_key, data_of(said)?, now).await
}

/// What an event says, as it is kept.
pub fn data_of<E: EventData>(said: &E) -> Result<serde_json::Value, sqlx::Error> {
    serde_json::to_value(said).map_err(|error| sqlx::Error::Encode(error.into()))
}

/// Why an endpoint is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum DisabledReason {
    ByOwner,
    /// It answered 410.
    Gone,
    /// It took nothing for days.
    Failing,
}

impl DisabledReason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ByOwner => "by_owner",
            Self::Gone => "gone",
            Self::Failing => "failing",
        }
    }
}

/// Where an organization wants to be told.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub id: WebhookEndpointId,
    pub organization_id: OrganizationId,
    pub url: String,
    pub description: Option<String>,
    /// All when there are none.
    pub event_types: Vec<String>,
    pub secret_version: i32,
    /// Until when the secret before signs too.
    pub previous_until: Option<DateTime<Utc>>,
    pub is_enabled: bool,
    pub disabled_reason: Option<DisabledReason>,
    /// Since when it has taken nothing.
    pub failing_since: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// How a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// To be attempted, or on its way.
    Pending,
    Delivered,
    /// Not tried any more because the endpoint was disabled.
    Failed,
    /// Not taken for three days.
    Abandoned,
}

impl DeliveryState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Abandoned => "abandoned",
        }
    }
}

/// One event on its way to one endpoint.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub id: WebhookDeliveryId,
    pub endpoint_id: WebhookEndpointId,
    pub event_id: EventId,
    pub event_seq: i64,
    pub event_type: String,
    pub data: serde_json::Value,
    pub event_created_at: DateTime<Utc>,
    pub state: DeliveryState,
    pub attempts: i32,
    pub next_attempt_at: DateTime<Utc>,
    pub last_status: Option<i32>,
    pub last_error: Option<String>,
    pub last_attempt_at: Option<DateTime<Utc>>,
    pub delivered_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
}

/// One attempt of a delivery.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub number: i32,
    pub started_at: DateTime<Utc>,
    pub duration_ms: i32,
    pub status: Option<i32>,
    /// A stable code.
    pub error: Option<String>,
}

/// Why a webhook operation was refused.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error("{detail}")]
    Invalid { pointer: &'static str, code: &'static str, detail: String },
    #[error("there is no such endpoint")]
    EndpointNotFound,
    #[error("there is no such delivery")]
    DeliveryNotFound,
    #[error("only owners and admins of the organization may do this")]
    NotManager,
    #[error("the organization has {max} endpoints already")]
    TooMany { max: i64 },
    #[error("the endpoint is disabled")]
    Disabled,
    #[error("the Idempotency-Key was used for another request")]
    KeyReused,
    #[error("a query parameter is not valid: {detail}")]
    Query { name: &'static str, detail: String },
    #[error(transparent)]
    Paging(#[from] PagingError),
    #[error("a secret cannot be opened")]
    Secret(#[from] vault::OpenError),
    #[error("a secret is malformed")]
    Malformed(#[from] vault::MalformedError),
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

fn invalid(pointer: &'static str, code: &'static str, detail: impl Into<String>) -> WebhookError {
    WebhookError::Invalid { pointer, code, detail: detail.into() }
}

/// The URL of an endpoint, as it is kept. What its name means is looked up again before each attempt.
async fn check_url(cx: &OpsCx, text: &str) -> Result<String, WebhookError> {
    const AT: &str = "/url";
    let reach = reach(cx.limits.webhooks.allow_private_webhooks);
    if text.len() > MAX_URL_LEN {
        return Err(invalid(AT, "too-long", format!("must have at most {MAX_URL_LEN} characters")));
    }
    let url = Url::parse(text.trim()).map_err(|_| invalid(AT, "malformed", "expected https://host/path"))?;
    match url.scheme() {
        "https" => {}
        "http" if reach != Reach::Public => {}
        _ => return Err(invalid(AT, "scheme", "the scheme must be https://")),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid(AT, "credentials", "must not hold a user or password; verify the signature instead"));
    }
    if url.fragment().is_some() {
        return Err(invalid(AT, "fragment", "must not have a fragment"));
    }
    let host = outbound::host_of(&url).ok_or_else(|| invalid(AT, "host", "names no host"))?;
    let port = url.port_or_known_default().ok_or_else(|| invalid(AT, "port", "names no port"))?;
    reach.addresses(host, port).await.map_err(|error| match error {
        AddressError::Private => invalid(
            AT,
            "private-address",
            "the host is at a private, loopback or link-local address, which this installation does not send to",
        ),
        AddressError::Unresolvable => {
            invalid(AT, "unresolvable", "the host's name does not resolve; check its spelling")
        }
    })?;
    let url = String::from(url);
    if url.len() > MAX_URL_LEN {
        return Err(invalid(AT, "too-long", format!("must have at most {MAX_URL_LEN} characters")));
    }
    Ok(url)
}

fn check_description(text: Option<&str>) -> Result<Option<String>, WebhookError> {
    match text.map(str::trim) {
        None | Some("") => Ok(None),
        Some(line) => {
            text::one_line(line, 200).map(Some).map_err(|error| invalid("/description", "text", error.to_string()))
        }
    }
}

fn check_event_types(wanted: &[String]) -> Result<Vec<String>, WebhookError> {
    let mut kept: Vec<String> = Vec::with_capacity(wanted.len().min(EVENT_TYPES.len()));
    for kind in wanted {
        if !EVENT_TYPES.contains(&kind.as_str()) {
            return Err(invalid("/eventTypes", "unknown", format!("must be of: {}", EVENT_TYPES.join(", "))));
        }
        if !kept.contains(kind) {
            kept.push(kind.clone());
        }
    }
    Ok(kept)
}

fn seal(cx: &OpsCx, organization: OrganizationId, version: i32, secret: &SecretString) -> Sealed {
    cx.keys.seal_text(secret, &Aad::for_organization(organization, Purpose::WebhookSecret, version))
}

fn open(cx: &OpsCx, organization: OrganizationId, version: i32, sealed: Vec<u8>) -> Result<SecretString, WebhookError> {
    let aad = Aad::for_organization(organization, Purpose::WebhookSecret, version);
    Ok(cx.keys.open_text(&Sealed::from_bytes(sealed)?, &aad)?)
}

/// An endpoint, and its secret as long as that is shown.
pub struct Shown {
    pub endpoint: Endpoint,
    pub secret: Option<SecretString>,
}

/// What is kept of an answer that held a secret: enough to find the secret again where it is sealed.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    endpoint_id: WebhookEndpointId,
    secret_version: i32,
}

/// The answer to a request that was made before: the same secret, unless it has been rotated since.
async fn shown_again(cx: &OpsCx, tx: &mut PgConnection, made: &Made) -> Result<Shown, WebhookError> {
    let endpoint = db::endpoint_find(tx, made.endpoint_id).await?.ok_or(WebhookError::EndpointNotFound)?;
    let row = db::secrets(tx, endpoint.id).await?.ok_or(WebhookError::EndpointNotFound)?;
    let secret = if row.secret_version == made.secret_version {
        Some(open(cx, endpoint.organization_id, row.secret_version, row.sealed)?)
    } else {
        None
    };
    Ok(Shown { endpoint, secret })
}

/// Registers an endpoint of an organization whose manager asks for it, once per key.
pub async fn endpoint_create(
    cx: &OpsCx,
    by: UserId,
    organization: OrganizationId,
    body: &routes::EndpointCreateBody,
    key: Option<&str>,
) -> Result<Shown, WebhookError> {
    let url = check_url(cx, &body.url).await?;
    let description = check_description(body.description.as_deref())?;
    let event_types = check_event_types(body.event_types.as_deref().unwrap_or_default())?;
    let now = cx.clock.now();
    let scope = format!("webhook_endpoint_create:{by}");
    let mut tx = cx.master.begin().await?;
    if let Some(key) = key {
        match idempotency::claim::<_, Made>(&mut tx, &scope, key, body, now).await? {
            Claim::New => {}
            Claim::Done(made) => return shown_again(cx, &mut tx, &made).await,
            Claim::Reused => return Err(WebhookError::KeyReused),
        }
    }
    if db::endpoints_lock_and_count(&mut tx, organization).await? >= MAX_ENDPOINTS {
        return Err(WebhookError::TooMany { max: MAX_ENDPOINTS });
    }
    let secret = sign::generate();
    let secret_version = db::secret_version_next(&mut tx).await?;
    let endpoint = Endpoint {
        id: WebhookEndpointId::new(now),
        organization_id: organization,
        url,
        description,
        event_types,
        secret_version,
        previous_until: None,
        is_enabled: true,
        disabled_reason: None,
        failing_since: None,
        created_at: now,
        updated_at: now,
    };
    let sealed = seal(cx, organization, secret_version, &secret);
    db::endpoint_insert(&mut tx, &endpoint, sealed.as_bytes()).await?;
    let data = serde_json::json!({ "endpointId": endpoint.id });
    let subject = Subject::organization(organization);
    audit::record(&mut tx, now, Actor::User(by), "webhook_endpoint_create", subject, data).await?;
    if let Some(key) = key {
        let made = Made { endpoint_id: endpoint.id, secret_version };
        idempotency::complete(&mut tx, &scope, key, &made).await?;
    }
    tx.commit().await?;
    Ok(Shown { endpoint, secret: Some(secret) })
}

/// The endpoints of an organization.
pub async fn endpoint_list(cx: &OpsCx, organization: OrganizationId) -> Result<Vec<Endpoint>, WebhookError> {
    Ok(db::endpoints(&mut *cx.master.acquire().await?, organization).await?)
}

/// Changes an endpoint; what is left out stays. Disabling it ends what waits for it.
pub async fn endpoint_update(
    cx: &OpsCx,
    by: UserId,
    id: WebhookEndpointId,
    body: &routes::EndpointUpdateBody,
) -> Result<Endpoint, WebhookError> {
    let url = match &body.url {
        Some(url) => Some(check_url(cx, url).await?),
        None => None,
    };
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let mut endpoint = db::endpoint_lock(&mut tx, id).await?.ok_or(WebhookError::EndpointNotFound)?;
    if let Some(url) = url {
        endpoint.url = url;
    }
    if body.description.is_some() {
        endpoint.description = check_description(body.description.as_deref())?;
    }
    if let Some(types) = &body.event_types {
        endpoint.event_types = check_event_types(types)?;
    }
    match body.is_enabled {
        Some(true) if !endpoint.is_enabled => {
            endpoint.is_enabled = true;
            endpoint.disabled_reason = None;
            endpoint.failing_since = None;
        }
        Some(false) if endpoint.is_enabled => {
            endpoint.is_enabled = false;
            endpoint.disabled_reason = Some(DisabledReason::ByOwner);
            db::deliveries_give_up(&mut tx, id, deliver::ENDPOINT_DISABLED, now).await?;
        }
        _ => {}
    }
    endpoint.updated_at = now;
    db::endpoint_update(&mut tx, &endpoint).await?;
    let data = serde_json::json!({ "endpointId": id, "isEnabled": endpoint.is_enabled });
    let subject = Subject::organization(endpoint.organization_id);
    audit::record(&mut tx, now, Actor::User(by), "webhook_endpoint_update", subject, data).await?;
    tx.commit().await?;
    Ok(endpoint)
}

/// Removes an endpoint and what is known of its deliveries.
pub async fn endpoint_delete(cx: &OpsCx, by: UserId, endpoint: &Endpoint) -> Result<(), WebhookError> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    if !db::endpoint_delete(&mut tx, endpoint.id).await? {
        return Err(WebhookError::EndpointNotFound);
    }
    let data = serde_json::json!({ "endpointId": endpoint.id });
    let subject = Subject::organization(endpoint.organization_id);
    audit::record(&mut tx, now, Actor::User(by), "webhook_endpoint_delete", subject, data).await?;
    tx.commit().await?;
    Ok(())
}

/// Gives an endpoint a new secret, once per key; the one before signs beside it for a while.
pub async fn secret_rotate(
    cx: &OpsCx,
    by: UserId,
    id: WebhookEndpointId,
    body: &routes::SecretRotateBody,
    key: Option<&str>,
) -> Result<Shown, WebhookError> {
    let overlap = match body.overlap_seconds {
        None => DEFAULT_OVERLAP,
        Some(seconds @ 0..=MAX_OVERLAP_S) => Duration::seconds(seconds),
        Some(_) => return Err(invalid("/overlapSeconds", "range", format!("must be 0 to {MAX_OVERLAP_S}"))),
    };
    let now = cx.clock.now();
    let scope = format!("webhook_secret_rotate:{id}:{by}");
    let mut tx = cx.master.begin().await?;
    if let Some(key) = key {
        match idempotency::claim::<_, Made>(&mut tx, &scope, key, body, now).await? {
            Claim::New => {}
            Claim::Done(made) => return shown_again(cx, &mut tx, &made).await,
            Claim::Reused => return Err(WebhookError::KeyReused),
        }
    }
    let endpoint = db::endpoint_lock(&mut tx, id).await?.ok_or(WebhookError::EndpointNotFound)?;
    let secret = sign::generate();
    let version = db::secret_version_next(&mut tx).await?;
    let sealed = seal(cx, endpoint.organization_id, version, &secret);
    db::secret_rotate(&mut tx, id, sealed.as_bytes(), version, now + overlap, now).await?;
    let data = serde_json::json!({ "endpointId": id, "overlapSeconds": overlap.num_seconds() });
    let subject = Subject::organization(endpoint.organization_id);
    audit::record(&mut tx, now, Actor::User(by), "webhook_secret_rotate", subject, data).await?;
    if let Some(key) = key {
        idempotency::complete(&mut tx, &scope, key, &Made { endpoint_id: id, secret_version: version }).await?;
    }
    let endpoint = db::endpoint_find(&mut tx, id).await?.ok_or(WebhookError::EndpointNotFound)?;
    tx.commit().await?;
    Ok(Shown { endpoint, secret: Some(secret) })
}

/// Sends an event to one endpoint that says nothing but that it is a test; once per key.
pub async fn test_send(
    cx: &OpsCx,
    by: UserId,
    endpoint: &Endpoint,
    key: Option<&str>,
) -> Result<Delivery, WebhookError> {
    if !endpoint.is_enabled {
        return Err(WebhookError::Disabled);
    }
    let now = cx.clock.now();
    let event = Event {
        id: EventId::new(now),
        organization_id: endpoint.organization_id,
        kind: events::Test::TYPE,
        data: data_of(&events::Test { endpoint_id: endpoint.id })?,
        created_at: now,
    };
    let dedupe_key = match key {
        Some(key) => format!("webhook-test:{}:{by}:{key}", endpoint.id),
        None => format!("webhook-test:{}", event.id),
    };
    let mut tx = cx.master.begin().await?;
    db::event_insert(&mut tx, &event, &dedupe_key, true).await?;
    let id = db::event_find_by_key(&mut tx, endpoint.organization_id, &dedupe_key).await?;
    let id = id.ok_or(WebhookError::DeliveryNotFound)?;
    db::delivery_insert(&mut tx, endpoint.id, id, now, now + RETRY_FOR).await?;
    let delivery = db::delivery_find_by_event(&mut tx, endpoint.id, id).await?;
    let delivery = delivery.ok_or(WebhookError::DeliveryNotFound)?;
    let found = db::delivery_find(&mut tx, endpoint.id, delivery).await?.ok_or(WebhookError::DeliveryNotFound)?;
    tx.commit().await?;
    cx.outbox_news.notify_one();
    Ok(found)
}

/// A page of an endpoint's deliveries, newest event first, and the cursor of the next.
pub async fn delivery_list(
    cx: &OpsCx,
    endpoint: WebhookEndpointId,
    state: Option<DeliveryState>,
    cursor: Option<&str>,
    limit: Option<u8>,
) -> Result<(Vec<Delivery>, Option<String>), WebhookError> {
    let scope = state.map_or("", DeliveryState::as_str);
    let window = Window::read(&["webhook deliveries", &endpoint.to_string(), scope], cursor, limit)?;
    let mut connection = cx.master.acquire().await?;
    let found = db::deliveries(&mut connection, endpoint, state, window.after, window.rows()).await?;
    Ok(window.page(found, |delivery: &Delivery| delivery.event_seq))
}

/// One delivery with its last attempts.
pub async fn delivery_get(
    cx: &OpsCx,
    endpoint: WebhookEndpointId,
    id: WebhookDeliveryId,
) -> Result<(Delivery, Vec<Attempt>), WebhookError> {
    let mut connection = cx.master.acquire().await?;
    let delivery = db::delivery_find(&mut connection, endpoint, id).await?.ok_or(WebhookError::DeliveryNotFound)?;
    let attempts = db::attempts(&mut connection, id).await?;
    Ok((delivery, attempts))
}

/// Sends one event again, at once and for three days more, whatever became of it before.
pub async fn delivery_resend(
    cx: &OpsCx,
    by: UserId,
    endpoint: &Endpoint,
    id: WebhookDeliveryId,
) -> Result<Delivery, WebhookError> {
    if !endpoint.is_enabled {
        return Err(WebhookError::Disabled);
    }
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    db::endpoint_lock(&mut tx, endpoint.id).await?.ok_or(WebhookError::EndpointNotFound)?;
    db::delivery_find(&mut tx, endpoint.id, id).await?.ok_or(WebhookError::DeliveryNotFound)?;
    db::delivery_resend(&mut tx, id, now, now + RETRY_FOR).await?;
    let data = serde_json::json!({ "endpointId": endpoint.id, "deliveryId": id });
    let subject = Subject::organization(endpoint.organization_id);
    audit::record(&mut tx, now, Actor::User(by), "webhook_delivery_resend", subject, data).await?;
    let delivery = db::delivery_find(&mut tx, endpoint.id, id).await?.ok_or(WebhookError::DeliveryNotFound)?;
    tx.commit().await?;
    cx.outbox_news.notify_one();
    Ok(delivery)
}

/// Sends everything again, in order, that an endpoint should have been told of since a moment and was not, or all of it.
/// Returns how many deliveries that makes, [`MAX_RESENT`] of each kind at most.
pub async fn resend_since(
    cx: &OpsCx,
    by: UserId,
    endpoint: &Endpoint,
    body: &routes::ResendBody,
) -> Result<u64, WebhookError> {
    if !endpoint.is_enabled {
        return Err(WebhookError::Disabled);
    }
    let now = cx.clock.now();
    let kept = cx.limits.webhooks.webhook_retention_days;
    if body.since > now || body.since < now - Duration::days(kept) {
        return Err(invalid("/since", "range", format!("must be within the last {kept} days")));
    }
    let with_delivered = body.includes_delivered.unwrap_or(false);
    let give_up_at = now + RETRY_FOR;
    let mut tx = cx.master.begin().await?;
    db::endpoint_lock(&mut tx, endpoint.id).await?.ok_or(WebhookError::EndpointNotFound)?;
    let again =
        db::deliveries_resend(&mut tx, endpoint.id, body.since, with_delivered, now, give_up_at, MAX_RESENT).await?;
    let missing = db::deliveries_insert_missing(
        &mut tx,
        endpoint.id,
        body.since,
        events::Test::TYPE,
        now,
        give_up_at,
        MAX_RESENT,
    )
    .await?;
    let data = serde_json::json!({ "endpointId": endpoint.id, "since": body.since, "resent": again + missing });
    let subject = Subject::organization(endpoint.organization_id);
    audit::record(&mut tx, now, Actor::User(by), "webhook_resend_since", subject, data).await?;
    tx.commit().await?;
    cx.outbox_news.notify_one();
    Ok(again + missing)
}

/// Deletes what has served its time, a bounded batch of each kind.
pub async fn keep_house(cx: &OpsCx) -> Result<(), sqlx::Error> {
    let now = cx.clock.now();
    let mut connection = cx.master.acquire().await?;
    db::secrets_purge(&mut connection, now).await?;
    let before = now - Duration::days(cx.limits.webhooks.webhook_retention_days);
    // So many at most that what comes after it is not kept waiting for long.
    for _ in 0..MAX_PURGES {
        if db::deliveries_purge(&mut connection, before, PURGE_BATCH).await? == 0 {
            break;
        }
    }
    for _ in 0..MAX_PURGES {
        if db::events_purge(&mut connection, before, PURGE_BATCH).await? == 0 {
            break;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a count for a gauge")]
    metrics::gauge!("tenantry_webhook_deliveries_pending")
        .set(db::deliveries_count_pending(&mut connection).await? as f64);
    Ok(())
}

/// The data of an event as people see it. The ledger's functions know the bits of an id, not how it is printed.
fn printed(mut data: serde_json::Value) -> serde_json::Value {
    let bits = data.get("subject").and_then(|id| id.as_str()).and_then(|text| text.parse::<Uuid>().ok());
    let named = match (bits, data.get("subjectKind").and_then(|kind| kind.as_str())) {
        (Some(bits), Some("store")) => Some(("storeId", StoreId::from_uuid(bits).to_string())),
        (Some(bits), Some("member")) => Some(("userId", UserId::from_uuid(bits).to_string())),
        _ => None,
    };
    if let (Some((name, id)), Some(members)) = (named, data.as_object_mut()) {
        members.remove("subject");
        members.insert(name.to_owned(), id.into());
    }
    data
}

impl From<WebhookError> for Problem {
    fn from(error: WebhookError) -> Self {
        use axum::http::StatusCode as S;
        match error {
            WebhookError::Invalid { pointer, code, detail } => Self::invalid().field(pointer, code, detail),
            WebhookError::EndpointNotFound | WebhookError::DeliveryNotFound => Self::not_found(),
            WebhookError::NotManager => Self::new(S::FORBIDDEN, "forbidden", "Your role does not allow this")
                .detail("Ask an owner or admin of the organization."),
            WebhookError::TooMany { max } => {
                Self::new(S::CONFLICT, "endpoint-limit-reached", "The organization has as many endpoints as it may")
                    .detail(format!("The limit is {max}; delete one that is not needed."))
            }
            WebhookError::Disabled => Self::new(S::CONFLICT, "endpoint-disabled", "The endpoint is disabled")
                .detail("Enable it first: PATCH it with `isEnabled: true`."),
            WebhookError::KeyReused => idempotency::reused(),
            WebhookError::Query { name, detail } => crate::http::errors::invalid_query(name, detail),
            WebhookError::Paging(error) => error.into(),
            error @ (WebhookError::Secret(_) | WebhookError::Malformed(_) | WebhookError::Db(_)) => {
                crate::http::errors::unexpected(&error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::events::EVENT_TYPES;
    use super::printed;
    use serde_json::json;

    #[test]
    fn the_description_of_the_api_names_every_type_of_event() {
        let document = serde_json::to_value(crate::http::openapi::document()).expect("JSON");
        let described =
            document["components"]["schemas"]["EndpointCreateBody"]["properties"]["eventTypes"]["description"]
                .as_str()
                .expect("a description");
        for kind in EVENT_TYPES {
            assert!(described.contains(&format!("`{kind}`")), "{kind} is not described");
            let says = &document["webhooks"][kind]["post"]["description"];
            assert!(says.as_str().is_some_and(|says| !says.is_empty()), "{kind} does not say when it is told");
        }
        assert_eq!(document["webhooks"].as_object().map(serde_json::Map::len), Some(EVENT_TYPES.len()));
    }

    #[test]
    fn ids_are_printed_as_everywhere_else() {
        let data = json!({ "subjectKind": "store", "subject": "0192f5a0-0000-7000-8000-000000000001", "percent": 80 });
        let shown = printed(data);
        assert!(shown["storeId"].as_str().is_some_and(|id| id.starts_with("sto_")), "{shown}");
        assert!(shown.get("subject").is_none());
        assert_eq!(printed(json!({ "available": 1 })), json!({ "available": 1 }));
    }
}
