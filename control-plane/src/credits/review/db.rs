//! SQL of what ops look at of payments.

use chrono::{DateTime, Utc};
use kernel::{ReconDifferenceId, ReconRunId, UserId};
use sqlx::PgConnection;

use super::{Difference, PaymentEvent, Reconciliation};
use crate::credits::purchases::events::{EventSource, EventState};
use crate::credits::purchases::recon::{DifferenceKind, RunKind};

/// Comparisons, newest first, from before a place on.
pub async fn reconciliations(
    conn: &mut PgConnection,
    before: Option<(DateTime<Utc>, ReconRunId)>,
    limit: i64,
) -> Result<Vec<Reconciliation>, sqlx::Error> {
    let (at, id) = before.unzip();
    sqlx::query_as!(
        Reconciliation,
        r#"select id as "id: ReconRunId", kind as "kind: RunKind", since, until, items, differences, created_at
           from recon_runs
           where $1::timestamptz is null or (created_at, id) < ($1, $2)
           order by created_at desc, id desc
           limit $3"#,
        at,
        id.map(|id| id.as_uuid()),
        limit,
    )
    .fetch_all(conn)
    .await
}

pub async fn reconciliation_find(
    conn: &mut PgConnection,
    id: ReconRunId,
) -> Result<Option<Reconciliation>, sqlx::Error> {
    sqlx::query_as!(
        Reconciliation,
        r#"select id as "id: ReconRunId", kind as "kind: RunKind", since, until, items, differences, created_at
           from recon_runs
           where id = $1"#,
        id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// Differences, each as it was found first, newest first: those that are noted or are not, and those that a run has found.
pub async fn differences(
    conn: &mut PgConnection,
    is_noted: Option<bool>,
    of_run: Option<ReconRunId>,
    before: Option<(DateTime<Utc>, ReconDifferenceId)>,
    limit: i64,
) -> Result<Vec<Difference>, sqlx::Error> {
    let (at, id) = before.unzip();
    sqlx::query_as!(
        Difference,
        r#"select d.id as "id: ReconDifferenceId", d.kind as "kind: DifferenceKind", d.external_ref, d.theirs, d.ours,
                  d.created_at as first_seen_at, s.last_seen_at as "last_seen_at!", s.times as "times!",
                  n.note as "note?", n.noted_by as "noted_by?: UserId", n.noted_at as "noted_at?"
           from recon_differences d
           left join recon_notes n on n.difference_id = d.id
           cross join lateral (
               select max(x.created_at) as last_seen_at, count(*) as times,
                      bool_or((x.created_at, x.id) < (d.created_at, d.id)) as is_repeated, bool_or(x.run_id = $2) as is_of_run
               from recon_differences x
               where x.external_ref = d.external_ref and x.kind = d.kind
                 and x.theirs is not distinct from d.theirs and x.ours is not distinct from d.ours
           ) s
           where not s.is_repeated
             and ($1::boolean is null or (n.difference_id is not null) = $1)
             and ($2::uuid is null or s.is_of_run)
             and ($3::timestamptz is null or (d.created_at, d.id) < ($3, $4))
           order by d.created_at desc, d.id desc
           limit $5"#,
        is_noted,
        of_run.map(|id| id.as_uuid()),
        at,
        id.map(|id| id.as_uuid()),
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Where a difference was found first: what is found again and says the same is the same.
pub async fn difference_first(
    conn: &mut PgConnection,
    id: ReconDifferenceId,
) -> Result<Option<ReconDifferenceId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select x.id as "id: ReconDifferenceId"
           from recon_differences d
           join recon_differences x on x.external_ref = d.external_ref and x.kind = d.kind
             and x.theirs is not distinct from d.theirs and x.ours is not distinct from d.ours
           where d.id = $1
           order by x.created_at, x.id
           limit 1"#,
        id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

pub async fn difference_find(
    conn: &mut PgConnection,
    id: ReconDifferenceId,
) -> Result<Option<Difference>, sqlx::Error> {
    sqlx::query_as!(
        Difference,
        r#"select d.id as "id: ReconDifferenceId", d.kind as "kind: DifferenceKind", d.external_ref, d.theirs, d.ours,
                  d.created_at as first_seen_at, s.last_seen_at as "last_seen_at!", s.times as "times!",
                  n.note as "note?", n.noted_by as "noted_by?: UserId", n.noted_at as "noted_at?"
           from recon_differences d
           left join recon_notes n on n.difference_id = d.id
           cross join lateral (
               select max(x.created_at) as last_seen_at, count(*) as times
               from recon_differences x
               where x.external_ref = d.external_ref and x.kind = d.kind
                 and x.theirs is not distinct from d.theirs and x.ours is not distinct from d.ours
           ) s
           where d.id = $1"#,
        id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// Keeps what somebody said of a difference; false when somebody had before.
pub async fn note_insert(
    conn: &mut PgConnection,
    difference: ReconDifferenceId,
    note: &str,
    by: Option<UserId>,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "insert into recon_notes (difference_id, note, noted_by, noted_at)
         values ($1, $2, $3, $4)
         on conflict on constraint recon_notes_pkey do nothing",
        difference.as_uuid(),
        note,
        by.map(|id| id.as_uuid()),
        now,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Events that stand so, newest first, from before a place on.
pub async fn events(
    conn: &mut PgConnection,
    state: EventState,
    before: Option<&(DateTime<Utc>, String)>,
    limit: i64,
) -> Result<Vec<PaymentEvent>, sqlx::Error> {
    sqlx::query_as!(
        PaymentEvent,
        r#"select id, type as kind, object_id, state as "state: EventState", attempts, last_error, next_attempt_at, waits_for,
                  source as "source: EventSource", event_created_at, created_at, processed_at
           from stripe_events
           where state = $1 and ($2::timestamptz is null or (event_created_at, id) < ($2, $3))
           order by event_created_at desc, id desc
           limit $4"#,
        state.as_str(),
        before.map(|(at, _)| *at),
        before.map(|(_, id)| id.as_str()),
        limit,
    )
    .fetch_all(conn)
    .await
}

pub async fn event_find(conn: &mut PgConnection, id: &str) -> Result<Option<PaymentEvent>, sqlx::Error> {
    sqlx::query_as!(
        PaymentEvent,
        r#"select id, type as kind, object_id, state as "state: EventState", attempts, last_error, next_attempt_at, waits_for,
                  source as "source: EventSource", event_created_at, created_at, processed_at
           from stripe_events
           where id = $1"#,
        id,
    )
    .fetch_optional(conn)
    .await
}
