//! SQL of webhooks. Who locks both locks the endpoint before its deliveries.

use chrono::{DateTime, Utc};
use kernel::{EventId, OrganizationId, UserId, WebhookDeliveryId, WebhookEndpointId};
use sqlx::PgConnection;

use super::{Attempt, Delivery, DeliveryState, DisabledReason, Endpoint, Event};
use crate::identity::MemberRole;

/// Reads endpoints, in whole: says which.
macro_rules! endpoint {
    ($which:tt, $($argument:expr),* $(,)?) => {
        sqlx::query_as!(
            Endpoint,
            r#"select id as "id: WebhookEndpointId", organization_id as "organization_id: OrganizationId", url, description,
                      event_types, secret_version, previous_until, is_enabled,
                      disabled_reason as "disabled_reason: DisabledReason", failing_since, created_at, updated_at
               from webhook_endpoints
               "# + $which,
            $($argument),*
        )
    };
}

/// Tells an organization of something, once per key; false when it was told before.
pub async fn event_insert(
    conn: &mut PgConnection,
    event: &Event,
    dedupe_key: &str,
    is_fanned_out: bool,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "insert into outbox_events (id, organization_id, type, dedupe_key, data, created_at, is_fanned_out)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict on constraint outbox_events_dedupe_key do nothing",
        event.id.as_uuid(),
        event.organization_id.as_uuid(),
        event.kind,
        dedupe_key,
        event.data,
        event.created_at,
        is_fanned_out,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The event that was told under a key.
pub async fn event_find_by_key(
    conn: &mut PgConnection,
    organization: OrganizationId,
    dedupe_key: &str,
) -> Result<Option<EventId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select id as "id: EventId" from outbox_events where organization_id = $1 and dedupe_key = $2"#,
        organization.as_uuid(),
        dedupe_key,
    )
    .fetch_optional(conn)
    .await
}

/// Whether this transaction is the one that fans out. Two at once could hand events out against their order.
pub async fn fan_out_lock(conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
    // The number is "outbox" in ASCII.
    sqlx::query_scalar!(r#"select pg_try_advisory_xact_lock(122550254464888) as "is_ours!""#).fetch_one(conn).await
}

/// Makes the deliveries of the oldest waiting events, and returns how many events those were.
pub async fn fan_out(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    give_up_at: DateTime<Utc>,
    limit: i64,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"with batch as (
               select id, seq, organization_id, type from outbox_events where not is_fanned_out order by seq limit $3
           ), made as (
               insert into webhook_deliveries
                   (endpoint_id, event_id, event_seq, holds_line, next_attempt_at, give_up_at, created_at, updated_at)
               select e.id, b.id, b.seq, true, $1, $2, $1, $1
               from batch b
               join webhook_endpoints e on e.organization_id = b.organization_id and e.is_enabled
                   and (e.event_types = '{}' or b.type = any (e.event_types))
               on conflict on constraint webhook_deliveries_event_endpoint_key do nothing
           ), done as (
               update outbox_events o set is_fanned_out = true from batch b where o.id = b.id returning o.id
           )
           select count(*) as "count!" from done"#,
        now,
        give_up_at,
        limit,
    )
    .fetch_one(conn)
    .await
}

/// Locks the organization, so that its number of endpoints stays true until the transaction ends.
pub async fn endpoints_lock_and_count(
    conn: &mut PgConnection,
    organization: OrganizationId,
) -> Result<i64, sqlx::Error> {
    sqlx::query!("select id from organizations where id = $1 for update", organization.as_uuid())
        .fetch_optional(&mut *conn)
        .await?;
    sqlx::query_scalar!(
        r#"select count(*) as "count!" from webhook_endpoints where organization_id = $1"#,
        organization.as_uuid(),
    )
    .fetch_one(conn)
    .await
}

/// The version of a secret that is about to be sealed. No two secrets have one.
pub async fn secret_version_next(conn: &mut PgConnection) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar!(r#"select nextval('webhook_secret_versions')::integer as "version!""#).fetch_one(conn).await
}

pub async fn endpoint_insert(conn: &mut PgConnection, endpoint: &Endpoint, sealed: &[u8]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into webhook_endpoints
             (id, organization_id, url, description, event_types, sealed, secret_version, created_at, updated_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $8)",
        endpoint.id.as_uuid(),
        endpoint.organization_id.as_uuid(),
        endpoint.url,
        endpoint.description,
        &endpoint.event_types,
        sealed,
        endpoint.secret_version,
        endpoint.created_at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn endpoint_find(conn: &mut PgConnection, id: WebhookEndpointId) -> Result<Option<Endpoint>, sqlx::Error> {
    endpoint!(r#"where id = $1"#, id.as_uuid(),).fetch_optional(conn).await
}

/// An endpoint, locked until the transaction ends.
pub async fn endpoint_lock(conn: &mut PgConnection, id: WebhookEndpointId) -> Result<Option<Endpoint>, sqlx::Error> {
    endpoint!(
        r#"where id = $1
           for update"#,
        id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// The role that a person has in the organization of an endpoint.
pub async fn endpoint_role(
    conn: &mut PgConnection,
    id: WebhookEndpointId,
    user: UserId,
) -> Result<Option<MemberRole>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select m.role as "role: MemberRole"
           from webhook_endpoints e
           join organization_members m on m.organization_id = e.organization_id
           where e.id = $1 and m.user_id = $2"#,
        id.as_uuid(),
        user.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// The endpoints of an organization, newest first.
pub async fn endpoints(conn: &mut PgConnection, organization: OrganizationId) -> Result<Vec<Endpoint>, sqlx::Error> {
    endpoint!(
        r#"where organization_id = $1
           order by id desc"#,
        organization.as_uuid(),
    )
    .fetch_all(conn)
    .await
}

/// Writes what an owner may change.
pub async fn endpoint_update(conn: &mut PgConnection, endpoint: &Endpoint) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update webhook_endpoints
         set url = $2, description = $3, event_types = $4, is_enabled = $5, disabled_reason = $6, failing_since = $7,
             updated_at = $8
         where id = $1",
        endpoint.id.as_uuid(),
        endpoint.url,
        endpoint.description,
        &endpoint.event_types,
        endpoint.is_enabled,
        endpoint.disabled_reason.map(DisabledReason::as_str),
        endpoint.failing_since,
        endpoint.updated_at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Removes an endpoint with its deliveries; false when it is not there.
pub async fn endpoint_delete(conn: &mut PgConnection, id: WebhookEndpointId) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!("delete from webhook_endpoints where id = $1", id.as_uuid()).execute(conn).await?;
    Ok(done.rows_affected() == 1)
}

/// The sealed secrets of an endpoint.
pub struct SecretRow {
    pub sealed: Vec<u8>,
    pub secret_version: i32,
    pub previous_sealed: Option<Vec<u8>>,
    pub previous_secret_version: Option<i32>,
    pub previous_until: Option<DateTime<Utc>>,
}

pub async fn secrets(conn: &mut PgConnection, id: WebhookEndpointId) -> Result<Option<SecretRow>, sqlx::Error> {
    sqlx::query_as!(
        SecretRow,
        "select sealed, secret_version, previous_sealed, previous_secret_version, previous_until
         from webhook_endpoints
         where id = $1",
        id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// Puts a new secret in the place of the one that signs, which signs beside it until `previous_until`.
pub async fn secret_rotate(
    conn: &mut PgConnection,
    id: WebhookEndpointId,
    sealed: &[u8],
    version: i32,
    previous_until: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update webhook_endpoints
         set previous_sealed = sealed, previous_secret_version = secret_version, previous_until = $4, sealed = $2,
             secret_version = $3, updated_at = $5
         where id = $1",
        id.as_uuid(),
        sealed,
        version,
        previous_until,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Forgets secrets that sign no more.
pub async fn secrets_purge(conn: &mut PgConnection, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update webhook_endpoints
         set previous_sealed = null, previous_secret_version = null, previous_until = null
         where previous_until <= $1",
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Locks an endpoint with something to be attempted now and room for it, if there is one that nobody else holds. What has
/// failed lately comes last, or not at all.
pub async fn endpoint_lock_due(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    max_in_flight: i64,
    only_healthy: bool,
) -> Result<Option<(WebhookEndpointId, OrganizationId, String)>, sqlx::Error> {
    let row = sqlx::query!(
        r#"select e.id as "id: WebhookEndpointId", e.organization_id as "organization_id: OrganizationId", e.url
           from webhook_endpoints e
           where e.is_enabled
             and not ($3 and e.failing_since is not null)
             and e.id in (
                 select d.endpoint_id from webhook_deliveries d
                 where d.state = 'pending' and d.next_attempt_at <= $1 and (d.leased_until is null or d.leased_until <= $1)
                   and not (d.holds_line and exists (
                       select from webhook_deliveries p
                       where p.endpoint_id = d.endpoint_id and p.state = 'pending' and p.holds_line
                         and p.event_seq < d.event_seq
                   ))
             )
             and $2 > (
                 select count(*) from webhook_deliveries f
                 where f.endpoint_id = e.id and f.state = 'pending' and f.leased_until > $1
             )
           order by e.failing_since is not null, e.failing_since desc
           limit 1
           for update of e skip locked"#,
        now,
        max_in_flight,
        only_healthy,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| (row.id, row.organization_id, row.url)))
}

/// A delivery that the caller attempts now.
pub struct Claimed {
    pub id: WebhookDeliveryId,
    /// Which attempt it is.
    pub attempt: i32,
    pub tries: i32,
    pub give_up_at: DateTime<Utc>,
    pub holds_line: bool,
    pub event_id: EventId,
    pub event_type: String,
    pub data: serde_json::Value,
    pub event_created_at: DateTime<Utc>,
}

/// Leases what is due at an endpoint that the caller has locked: the first in the line, and those that do not stand in it.
pub async fn deliveries_claim(
    conn: &mut PgConnection,
    endpoint: WebhookEndpointId,
    now: DateTime<Utc>,
    leased_until: DateTime<Utc>,
    max_in_flight: i64,
    limit: i64,
) -> Result<Vec<Claimed>, sqlx::Error> {
    sqlx::query_as!(
        Claimed,
        r#"update webhook_deliveries d
           set leased_until = $3, attempts = d.attempts + 1, tries = d.tries + 1, last_attempt_at = $2, updated_at = $2
           from outbox_events o
           where o.id = d.event_id and d.id in (
               select c.id from webhook_deliveries c
               where c.endpoint_id = $1 and c.state = 'pending' and c.next_attempt_at <= $2
                 and (c.leased_until is null or c.leased_until <= $2)
                 and not (c.holds_line and exists (
                     select from webhook_deliveries p
                     where p.endpoint_id = c.endpoint_id and p.state = 'pending' and p.holds_line and p.event_seq < c.event_seq
                 ))
               order by c.event_seq
               limit greatest(0, least($5, $4 - (
                   select count(*) from webhook_deliveries f
                   where f.endpoint_id = $1 and f.state = 'pending' and f.leased_until > $2
               )))
           )
           and d.state = 'pending' and (d.leased_until is null or d.leased_until <= $2)
           returning d.id as "id: WebhookDeliveryId", d.attempts as attempt, d.tries, d.give_up_at, d.holds_line,
                     o.id as "event_id: EventId", o.type as event_type, o.data, o.created_at as event_created_at"#,
        endpoint.as_uuid(),
        now,
        leased_until,
        max_in_flight,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Gives an attempt back that was not made to its end.
pub async fn delivery_release(
    conn: &mut PgConnection,
    id: WebhookDeliveryId,
    attempt: i32,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update webhook_deliveries set leased_until = null, updated_at = $3 where id = $1 and attempts = $2",
        id.as_uuid(),
        attempt,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// What came of an attempt.
pub struct Finish {
    pub id: WebhookDeliveryId,
    pub attempt: i32,
    pub state: DeliveryState,
    pub next_attempt_at: DateTime<Utc>,
    pub holds_line: bool,
    pub status: Option<i32>,
    pub error: Option<&'static str>,
    pub at: DateTime<Utc>,
}

/// Writes down what came of an attempt; false when another attempt has begun since, or the delivery is gone.
pub async fn delivery_finish(conn: &mut PgConnection, finish: &Finish) -> Result<bool, sqlx::Error> {
    let delivered_at = (finish.state == DeliveryState::Delivered).then_some(finish.at);
    let done = sqlx::query!(
        "update webhook_deliveries
         set state = $3, next_attempt_at = $4, holds_line = $5, leased_until = null, last_status = $6, last_error = $7,
             delivered_at = $8, updated_at = $9
         where id = $1 and attempts = $2 and state = 'pending'",
        finish.id.as_uuid(),
        finish.attempt,
        finish.state.as_str(),
        finish.next_attempt_at,
        finish.holds_line,
        finish.status,
        finish.error,
        delivered_at,
        finish.at,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub async fn attempt_insert(
    conn: &mut PgConnection,
    delivery: WebhookDeliveryId,
    attempt: &Attempt,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into webhook_attempts (delivery_id, number, started_at, duration_ms, status, error)
         values ($1, $2, $3, $4, $5, $6)",
        delivery.as_uuid(),
        attempt.number,
        attempt.started_at,
        attempt.duration_ms,
        attempt.status,
        attempt.error,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Forgets all but the last attempts of a delivery.
pub async fn attempts_trim(
    conn: &mut PgConnection,
    delivery: WebhookDeliveryId,
    last: i32,
    keep: i32,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "delete from webhook_attempts where delivery_id = $1 and number <= $2",
        delivery.as_uuid(),
        last - keep
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn attempts(conn: &mut PgConnection, delivery: WebhookDeliveryId) -> Result<Vec<Attempt>, sqlx::Error> {
    sqlx::query_as!(
        Attempt,
        "select number, started_at, duration_ms, status, error from webhook_attempts where delivery_id = $1 order by number",
        delivery.as_uuid(),
    )
    .fetch_all(conn)
    .await
}

/// An endpoint has taken something: it fails no more.
pub async fn endpoint_succeeded(conn: &mut PgConnection, id: WebhookEndpointId) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update webhook_endpoints set failing_since = null where id = $1 and failing_since is not null",
        id.as_uuid(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// An endpoint has not taken something. Since when that is so, and whether it is still enabled; nothing when it is gone.
pub async fn endpoint_failed(
    conn: &mut PgConnection,
    id: WebhookEndpointId,
    now: DateTime<Utc>,
) -> Result<Option<(DateTime<Utc>, bool)>, sqlx::Error> {
    let row = sqlx::query!(
        r#"update webhook_endpoints set failing_since = coalesce(failing_since, $2) where id = $1
           returning failing_since as "failing_since!", is_enabled"#,
        id.as_uuid(),
        now,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| (row.failing_since, row.is_enabled)))
}

/// Ends what waits for an endpoint that is not sent anything any more; what is on its way ends by itself.
pub async fn deliveries_give_up(
    conn: &mut PgConnection,
    endpoint: WebhookEndpointId,
    error: &'static str,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update webhook_deliveries set state = 'failed', last_error = $2, leased_until = null, updated_at = $3
         where endpoint_id = $1 and state = 'pending' and (leased_until is null or leased_until <= $3)",
        endpoint.as_uuid(),
        error,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// A delivery of one event to one endpoint, outside the line; nothing when it is there.
pub async fn delivery_insert(
    conn: &mut PgConnection,
    endpoint: WebhookEndpointId,
    event: EventId,
    now: DateTime<Utc>,
    give_up_at: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into webhook_deliveries
             (endpoint_id, event_id, event_seq, holds_line, next_attempt_at, give_up_at, created_at, updated_at)
         select $1, o.id, o.seq, false, $3, $4, $3, $3 from outbox_events o where o.id = $2
         on conflict on constraint webhook_deliveries_event_endpoint_key do nothing",
        endpoint.as_uuid(),
        event.as_uuid(),
        now,
        give_up_at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Asks for one delivery again.
pub async fn delivery_resend(
    conn: &mut PgConnection,
    id: WebhookDeliveryId,
    now: DateTime<Utc>,
    give_up_at: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update webhook_deliveries
         set state = 'pending', holds_line = false, tries = 0, next_attempt_at = $2, give_up_at = $3, delivered_at = null,
             updated_at = $2
         where id = $1",
        id.as_uuid(),
        now,
        give_up_at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Asks for everything again that an endpoint was to be told of since a moment and that has ended; returns how many.
pub async fn deliveries_resend(
    conn: &mut PgConnection,
    endpoint: WebhookEndpointId,
    since: DateTime<Utc>,
    with_delivered: bool,
    now: DateTime<Utc>,
    give_up_at: DateTime<Utc>,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "update webhook_deliveries d
         set state = 'pending', holds_line = true, tries = 0, next_attempt_at = $4, give_up_at = $5, delivered_at = null,
             updated_at = $4
         where d.id in (
             select c.id from webhook_deliveries c
             join outbox_events o on o.id = c.event_id
             where c.endpoint_id = $1 and o.created_at >= $2
               and (c.state in ('failed', 'abandoned') or ($3 and c.state = 'delivered'))
             order by c.event_seq
             limit $6
         )",
        endpoint.as_uuid(),
        since,
        with_delivered,
        now,
        give_up_at,
        limit,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Makes the deliveries of events since a moment that an endpoint was never told of, as it is set now; returns how many.
pub async fn deliveries_insert_missing(
    conn: &mut PgConnection,
    endpoint: WebhookEndpointId,
    since: DateTime<Utc>,
    not_this_type: &str,
    now: DateTime<Utc>,
    give_up_at: DateTime<Utc>,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "insert into webhook_deliveries
             (endpoint_id, event_id, event_seq, holds_line, next_attempt_at, give_up_at, created_at, updated_at)
         select e.id, o.id, o.seq, true, $4, $5, $4, $4
         from webhook_endpoints e
         join outbox_events o on o.organization_id = e.organization_id and (e.event_types = '{}' or o.type = any (e.event_types))
         where e.id = $1 and o.created_at >= $2 and o.type <> $3 and o.is_fanned_out
           and not exists (select from webhook_deliveries d where d.endpoint_id = e.id and d.event_id = o.id)
         order by o.seq
         limit $6
         for key share of o skip locked
         on conflict on constraint webhook_deliveries_event_endpoint_key do nothing",
        endpoint.as_uuid(),
        since,
        not_this_type,
        now,
        give_up_at,
        limit,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// One delivery of an endpoint.
pub async fn delivery_find(
    conn: &mut PgConnection,
    endpoint: WebhookEndpointId,
    id: WebhookDeliveryId,
) -> Result<Option<Delivery>, sqlx::Error> {
    sqlx::query_as!(
        Delivery,
        r#"select d.id as "id: WebhookDeliveryId", d.endpoint_id as "endpoint_id: WebhookEndpointId",
                  d.event_id as "event_id: EventId", d.event_seq, o.type as event_type, o.data, o.created_at as event_created_at,
                  d.state as "state: DeliveryState", d.attempts, d.next_attempt_at, d.last_status, d.last_error,
                  d.last_attempt_at, d.delivered_at, d.created_at
           from webhook_deliveries d
           join outbox_events o on o.id = d.event_id
           where d.id = $2 and d.endpoint_id = $1"#,
        endpoint.as_uuid(),
        id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// The delivery of one event to an endpoint.
pub async fn delivery_find_by_event(
    conn: &mut PgConnection,
    endpoint: WebhookEndpointId,
    event: EventId,
) -> Result<Option<WebhookDeliveryId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select id as "id: WebhookDeliveryId" from webhook_deliveries where endpoint_id = $1 and event_id = $2"#,
        endpoint.as_uuid(),
        event.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// An endpoint's deliveries before an event, newest event first.
pub async fn deliveries(
    conn: &mut PgConnection,
    endpoint: WebhookEndpointId,
    state: Option<DeliveryState>,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Delivery>, sqlx::Error> {
    sqlx::query_as!(
        Delivery,
        r#"select d.id as "id: WebhookDeliveryId", d.endpoint_id as "endpoint_id: WebhookEndpointId",
                  d.event_id as "event_id: EventId", d.event_seq, o.type as event_type, o.data, o.created_at as event_created_at,
                  d.state as "state: DeliveryState", d.attempts, d.next_attempt_at, d.last_status, d.last_error,
                  d.last_attempt_at, d.delivered_at, d.created_at
           from webhook_deliveries d
           join outbox_events o on o.id = d.event_id
           where d.endpoint_id = $1 and ($2::text is null or d.state = $2) and ($3::bigint is null or d.event_seq < $3)
           order by d.event_seq desc
           limit $4"#,
        endpoint.as_uuid(),
        state.map(DeliveryState::as_str),
        before,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Forgets deliveries that ended before a moment, with their attempts, in a bounded batch.
pub async fn deliveries_purge(conn: &mut PgConnection, before: DateTime<Utc>, limit: i64) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "delete from webhook_deliveries where id in (
             select id from webhook_deliveries where state <> 'pending' and updated_at < $1 order by updated_at limit $2
         )",
        before,
        limit,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Forgets events from before a moment, in a bounded batch: those that were handed out and have no delivery any more, so none
/// that anybody is still to be told of. One that is being delivered anew at this moment is left alone.
pub async fn events_purge(conn: &mut PgConnection, before: DateTime<Utc>, limit: i64) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "delete from outbox_events where id in (
             select o.id from outbox_events o
             where o.is_fanned_out and o.created_at < $1
               and not exists (select from webhook_deliveries d where d.event_id = o.id)
             order by o.seq
             limit $2
             for update skip locked
         )",
        before,
        limit,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// How many deliveries wait, for a gauge.
pub async fn deliveries_count_pending(conn: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(r#"select count(*) as "count!" from webhook_deliveries where state = 'pending'"#)
        .fetch_one(conn)
        .await
}
