//! The dispatcher: takes no input, reads what waits in the outbox and what is due, and makes steps that bear being made twice.
//! Any number of nodes do this at once.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use chrono::{DateTime, Duration, Utc};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use kernel::{OrganizationId, WebhookEndpointId};
use secrecy::SecretString;
use serde::Serialize;
use tokio::sync::Semaphore;
use url::Url;

use super::db::{Claimed, Finish};
use super::events::EndpointDisabled;
use super::outbound::{Answer, Outbound, SendError};
use super::{Attempt, DeliveryState, DisabledReason, WebhookError, db, sign};
use crate::audit::{self, Actor, Subject};
use crate::cx::OpsCx;
use crate::http::errors::chain;
use crate::telemetry::Complaint;

/// Tries after which an event lets those behind it pass.
pub const LINE_TRIES: i32 = 5;
/// Events that are handed out in one go.
const FAN_OUT_BATCH: i64 = 200;
/// Attempts of one delivery that are kept.
const KEPT_ATTEMPTS: i32 = 20;
/// The pause after the first try; each further one is four times as long.
const FIRST_PAUSE: Duration = Duration::seconds(5);
const LONGEST_PAUSE: Duration = Duration::hours(6);
/// What a lease lasts beyond the time limit of its attempt.
const LEASE_MARGIN: Duration = Duration::seconds(30);
/// Why what waits for a disabled endpoint is not sent.
pub const ENDPOINT_DISABLED: &str = "endpoint-disabled";

const USER_AGENT: HeaderValue = HeaderValue::from_static("Tenantry-Webhooks/1");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// Delivers until the node shuts down.
pub async fn run(cx: OpsCx, outbound: Outbound) {
    let shutdown = cx.shutdown.clone();
    let permits = Arc::new(Semaphore::new(cx.limits.webhooks.webhook_concurrency as usize));
    shutdown
        .run_until_cancelled(async {
            let mut complaint = Complaint::default();
            loop {
                match step(&cx, &outbound, &permits).await.map_err(|error| chain(&error)) {
                    Ok(()) if complaint.end() => tracing::info!("delivering webhooks works again"),
                    Ok(()) => {}
                    Err(why) if complaint.is_new(&why) => {
                        tracing::warn!(error = why, "delivering webhooks failed and is tried again");
                    }
                    Err(_) => {}
                }
                // Woken by what was asked for here and by each attempt that ended; otherwise by the clock.
                drop(tokio::time::timeout(cx.limits.webhooks.webhook_poll, cx.outbox_news.notified()).await);
            }
        })
        .await;
}

/// Hands out what waits and begins what is due, as far as there is room.
async fn step(cx: &OpsCx, outbound: &Outbound, permits: &Arc<Semaphore>) -> Result<(), WebhookError> {
    fan_out(cx).await?;
    let all = cx.limits.webhooks.webhook_concurrency as usize;
    loop {
        let free = permits.available_permits();
        if free == 0 {
            return Ok(());
        }
        // Who is slow or down may take half of the room and no more.
        let Some(claim) = claim(cx, free, free <= all / 2).await? else { return Ok(()) };
        let target = Arc::new(claim.target);
        for delivery in claim.deliveries {
            let permit = Arc::clone(permits).acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
            let (cx, outbound, target) = (cx.clone(), outbound.clone(), Arc::clone(&target));
            cx.clone().tasks.spawn(async move {
                if let Err(error) = attempt(&cx, &outbound, &target, delivery).await {
                    tracing::warn!(
                        error = chain(&error),
                        "what came of a webhook was not written down; it is sent again"
                    );
                }
                drop(permit);
                cx.outbox_news.notify_one();
            });
        }
    }
}

/// Makes the deliveries of the events that wait, in their order, unless another node is doing it.
pub async fn fan_out(cx: &OpsCx) -> Result<(), sqlx::Error> {
    loop {
        let mut tx = cx.master.begin().await?;
        let now = cx.clock.now();
        if !db::fan_out_lock(&mut tx).await? {
            return Ok(());
        }
        let count = db::fan_out(&mut tx, now, now + super::RETRY_FOR, FAN_OUT_BATCH).await?;
        tx.commit().await?;
        if count < FAN_OUT_BATCH {
            return Ok(());
        }
    }
}

/// Where deliveries go, and what signs them.
struct Target {
    endpoint: WebhookEndpointId,
    organization: OrganizationId,
    url: String,
    /// The one that counts, then the one before it while it does. None when they cannot be opened.
    secrets: Vec<SecretString>,
}

struct Claim {
    target: Target,
    deliveries: Vec<Claimed>,
}

/// Leases what is due at one endpoint. Its row is locked meanwhile, so that the bound holds over all nodes.
async fn claim(cx: &OpsCx, room: usize, only_healthy: bool) -> Result<Option<Claim>, WebhookError> {
    let limits = &cx.limits.webhooks;
    let lease = Duration::from_std(limits.webhook_timeout).unwrap_or(Duration::hours(1)) + LEASE_MARGIN;
    let mut tx = cx.master.begin().await?;
    // A lease lasts as long as it should, however long the connection was waited for.
    let now = cx.clock.now();
    let due = db::endpoint_lock_due(&mut tx, now, limits.webhook_max_in_flight, only_healthy).await?;
    let Some((endpoint, organization, url)) = due else { return Ok(None) };
    let room = i64::try_from(room).unwrap_or(i64::MAX);
    let max = limits.webhook_max_in_flight;
    let deliveries = db::deliveries_claim(&mut tx, endpoint, now, now + lease, max, room).await?;
    let Some(row) = db::secrets(&mut tx, endpoint).await? else { return Ok(None) };
    tx.commit().await?;
    let mut secrets = Vec::with_capacity(2);
    match super::open(cx, organization, row.secret_version, row.sealed) {
        Ok(secret) => secrets.push(secret),
        Err(error) => {
            tracing::error!(error = chain(&error), webhook.endpoint = %endpoint, "the secret of endpoint {endpoint} cannot be opened");
        }
    }
    if let (Some(sealed), Some(version), Some(until)) =
        (row.previous_sealed, row.previous_secret_version, row.previous_until)
        && until > now
        && let Ok(secret) = super::open(cx, organization, version, sealed)
        && !secrets.is_empty()
    {
        secrets.push(secret);
    }
    Ok(Some(Claim { target: Target { endpoint, organization, url, secrets }, deliveries }))
}

/// What a receiver reads.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Payload<'a> {
    id: String,
    r#type: &'a str,
    timestamp: DateTime<Utc>,
    organization_id: OrganizationId,
    data: &'a serde_json::Value,
}

/// The headers and the body of one attempt; nothing when there is no secret to sign with.
fn message(target: &Target, delivery: &Claimed, now: DateTime<Utc>) -> Option<(HeaderMap, Bytes)> {
    let id = delivery.event_id.to_string();
    let payload = Payload {
        id: id.clone(),
        r#type: &delivery.event_type,
        timestamp: delivery.event_created_at,
        organization_id: target.organization,
        data: &super::printed(delivery.data.clone()),
    };
    let body = serde_json::to_vec(&payload).ok()?;
    let timestamp_s = now.timestamp();
    let signatures: Option<Vec<String>> =
        target.secrets.iter().map(|secret| sign::signature(secret, &id, timestamp_s, &body)).collect();
    let signatures = signatures.filter(|all| !all.is_empty())?;
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, JSON);
    headers.insert(header::USER_AGENT, USER_AGENT);
    headers.insert(ID, HeaderValue::try_from(id).ok()?);
    headers.insert(TIMESTAMP, HeaderValue::from(timestamp_s));
    headers.insert(SIGNATURE, HeaderValue::try_from(signatures.join(" ")).ok()?);
    Some((headers, body.into()))
}

/// What came of an attempt.
struct Outcome {
    is_delivered: bool,
    is_gone: bool,
    status: Option<StatusCode>,
    error: Option<&'static str>,
    retry_after: Option<Duration>,
}

impl Outcome {
    const fn failed(error: &'static str) -> Self {
        Self { is_delivered: false, is_gone: false, status: None, error: Some(error), retry_after: None }
    }
}

impl From<Result<Answer, SendError>> for Outcome {
    fn from(sent: Result<Answer, SendError>) -> Self {
        let Answer { status, retry_after } = match sent {
            Ok(answer) => answer,
            Err(error) => return Self::failed(error.code()),
        };
        let error = match status {
            status if status.is_success() => None,
            StatusCode::GONE => Some("gone"),
            status if status.is_redirection() => Some("redirect"),
            _ => Some("status"),
        };
        Self {
            is_delivered: error.is_none(),
            is_gone: status == StatusCode::GONE,
            status: Some(status),
            error,
            retry_after: retry_after.and_then(|after| Duration::from_std(after).ok()),
        }
    }
}

/// Makes one attempt and writes down what came of it.
async fn attempt(cx: &OpsCx, outbound: &Outbound, target: &Target, delivery: Claimed) -> Result<(), sqlx::Error> {
    let (started_at, clock) = (cx.clock.now(), Instant::now());
    let outcome = match (Url::parse(&target.url), message(target, &delivery, started_at)) {
        (Ok(url), Some((headers, body))) => {
            let Some(sent) = cx.shutdown.run_until_cancelled(outbound.post(&url, headers, body)).await else {
                // Whether it arrived nobody knows: another node sends it again.
                let mut connection = cx.master.acquire().await?;
                return db::delivery_release(&mut connection, delivery.id, delivery.attempt, cx.clock.now()).await;
            };
            Outcome::from(sent)
        }
        (Err(_), _) => Outcome::failed(SendError::Url.code()),
        (_, None) => Outcome::failed("secret"),
    };
    let result = if outcome.is_delivered { "delivered" } else { "failed" };
    metrics::counter!("tenantry_webhook_attempts_total", "result" => result).increment(1);
    metrics::histogram!("tenantry_webhook_attempt_duration_seconds").record(clock.elapsed().as_secs_f64());
    let attempt = Attempt {
        number: delivery.attempt,
        started_at,
        duration_ms: i32::try_from(clock.elapsed().as_millis()).unwrap_or(i32::MAX),
        status: outcome.status.map(|status| i32::from(status.as_u16())),
        error: outcome.error.map(str::to_owned),
    };
    tracing::debug!(
        webhook.endpoint = %target.endpoint,
        webhook.delivery = %delivery.id,
        error = outcome.error,
        http.status = attempt.status,
        "attempt {} to tell endpoint {} took {} ms",
        attempt.number,
        target.endpoint,
        attempt.duration_ms,
    );
    record(cx, target, &delivery, &outcome, &attempt).await
}

async fn record(
    cx: &OpsCx,
    target: &Target,
    delivery: &Claimed,
    outcome: &Outcome,
    attempt: &Attempt,
) -> Result<(), sqlx::Error> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let (mut state, mut next_attempt_at, mut disable) = (DeliveryState::Delivered, now, None);
    let mut error = outcome.error;
    if outcome.is_delivered {
        db::endpoint_succeeded(&mut tx, target.endpoint).await?;
    } else {
        // Gone with all its deliveries.
        let Some((failing_since, is_enabled)) = db::endpoint_failed(&mut tx, target.endpoint, now).await? else {
            return Ok(());
        };
        if outcome.is_gone {
            (state, disable) = (DeliveryState::Failed, Some(DisabledReason::Gone));
        } else if !is_enabled {
            (state, error) = (DeliveryState::Failed, Some(ENDPOINT_DISABLED));
        } else if now >= delivery.give_up_at {
            state = DeliveryState::Abandoned;
            if failing_since <= now - super::FAILING_FOR {
                disable = Some(DisabledReason::Failing);
            }
        } else {
            state = DeliveryState::Pending;
            let pause = pause(delivery.tries, kernel::random::below(401)).max(outcome.retry_after.unwrap_or_default());
            next_attempt_at = (now + pause).min(delivery.give_up_at);
        }
    }
    let finish = Finish {
        id: delivery.id,
        attempt: delivery.attempt,
        state,
        next_attempt_at,
        holds_line: delivery.holds_line && delivery.tries < LINE_TRIES,
        status: attempt.status,
        error,
        at: now,
    };
    if !db::delivery_finish(&mut tx, &finish).await? {
        tracing::debug!("attempt {} of delivery {} came too late to count", attempt.number, delivery.id);
        return Ok(());
    }
    db::attempt_insert(&mut tx, delivery.id, attempt).await?;
    db::attempts_trim(&mut tx, delivery.id, attempt.number, KEPT_ATTEMPTS).await?;
    if let Some(reason) = disable {
        disable_in(&mut tx, target, reason, now).await?;
    }
    tx.commit().await
}

/// Stops telling an endpoint, ends what waits for it, and tells the organization's other endpoints.
async fn disable_in(
    tx: &mut sqlx::PgConnection,
    target: &Target,
    reason: DisabledReason,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let Some(mut endpoint) = db::endpoint_lock(tx, target.endpoint).await?.filter(|endpoint| endpoint.is_enabled)
    else {
        return Ok(());
    };
    endpoint.is_enabled = false;
    endpoint.disabled_reason = Some(reason);
    endpoint.updated_at = now;
    db::endpoint_update(tx, &endpoint).await?;
    db::deliveries_give_up(tx, endpoint.id, ENDPOINT_DISABLED, now).await?;
    let disabled = EndpointDisabled { endpoint_id: endpoint.id, reason };
    let dedupe = format!("webhook-disabled:{}:{}", endpoint.id, now.timestamp_micros());
    super::tell_of(tx, endpoint.organization_id, &disabled, &dedupe, now).await?;
    let subject = Subject::organization(endpoint.organization_id);
    audit::record(tx, now, Actor::System, "webhook_endpoint_disable", subject, super::data_of(&disabled)?).await?;
    tracing::warn!(webhook.endpoint = %endpoint.id, "disabled webhook endpoint {}: {}", endpoint.id, reason.as_str());
    Ok(())
}

/// How long to wait after so many tries: growing, and 80 % to 120 % of it, by `jitter` out of 0 to 400 thousandths.
fn pause(tries: i32, jitter: u64) -> Duration {
    let exponent = u32::try_from(tries - 1).unwrap_or(0).min(16);
    let whole_ms = FIRST_PAUSE
        .num_milliseconds()
        .saturating_mul(4_i64.saturating_pow(exponent))
        .min(LONGEST_PAUSE.num_milliseconds());
    let thousandths = 800 + i64::try_from(jitter.min(400)).unwrap_or(0);
    Duration::milliseconds(whole_ms / 1000 * thousandths)
}

#[cfg(test)]
mod tests {
    use super::pause;
    use chrono::Duration;

    #[test]
    fn pauses_grow_to_hours_and_fill_three_days_with_a_few_tries() {
        assert_eq!(pause(1, 200), Duration::seconds(5));
        assert_eq!(pause(2, 200), Duration::seconds(20));
        assert_eq!((pause(3, 0), pause(3, 400)), (Duration::seconds(64), Duration::seconds(96)));
        assert_eq!(pause(100, 200), Duration::hours(6));
        assert_eq!(pause(0, 200), Duration::seconds(5));
        let mut at = Duration::zero();
        let tries = (1..).take_while(|tries| {
            at += pause(*tries, 200);
            at < Duration::days(3)
        });
        assert!((10..30).contains(&tries.count()));
    }
}
