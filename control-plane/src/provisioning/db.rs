//! SQL of provisioning runs, in master.

use chrono::{DateTime, Utc};
use kernel::{DatabaseId, Engine, RunId, ServerId, StoreId, UserId};
use sqlx::PgConnection;
use vault::Sealed;

use super::{DatabaseKind, NewStoreDatabase, Run, RunState, RunWithSteps, Step, StepError, StepName, StepState};

pub async fn store_database_insert(
    conn: &mut PgConnection,
    new: &NewStoreDatabase,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into store_databases
            (id, store_id, engine, kind, server_id, database_name, role_name, sealed, credential_version, created_at, updated_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10)",
        new.id.as_uuid(),
        new.store_id.as_uuid(),
        new.engine as Engine,
        new.kind as DatabaseKind,
        new.server_id.map(|id| id.as_uuid()),
        new.database_name,
        new.role_name,
        new.sealed.as_bytes(),
        new.credential_version,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn store_database_delete(conn: &mut PgConnection, store: StoreId) -> Result<(), sqlx::Error> {
    sqlx::query!("delete from store_databases where store_id = $1", store.as_uuid()).execute(conn).await?;
    Ok(())
}

/// What a store's database row holds.
pub struct StoreDatabase {
    pub id: DatabaseId,
    pub engine: Engine,
    pub kind: DatabaseKind,
    pub server_id: Option<ServerId>,
    pub database_name: String,
    pub role_name: String,
    pub sealed: Sealed,
    pub credential_version: i32,
    pub schema_version: Option<i64>,
}

pub async fn store_database_find(
    conn: &mut PgConnection,
    store: StoreId,
) -> Result<Option<StoreDatabase>, sqlx::Error> {
    let row = sqlx::query!(
        r#"select id as "id: DatabaseId", engine as "engine: Engine", kind as "kind: DatabaseKind", server_id as "server_id: ServerId", database_name, role_name,
                  sealed, credential_version, schema_version
           from store_databases
           where store_id = $1"#,
        store.as_uuid(),
    )
    .fetch_optional(conn)
    .await?;
    row.map(|row| {
        Ok(StoreDatabase {
            id: row.id,
            engine: row.engine,
            kind: row.kind,
            server_id: row.server_id,
            database_name: row.database_name,
            role_name: row.role_name,
            sealed: Sealed::from_bytes(row.sealed).map_err(|error| sqlx::Error::Decode(error.into()))?,
            credential_version: row.credential_version,
            schema_version: row.schema_version,
        })
    })
    .transpose()
}

/// Another credential of the same database, with the names of database and login in it; announces a new route.
pub async fn store_database_set_credential(
    conn: &mut PgConnection,
    store: StoreId,
    (database_name, role_name): (&str, &str),
    sealed: &Sealed,
    version: i32,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update store_databases
         set database_name = $2, role_name = $3, sealed = $4, credential_version = $5, updated_at = $6
         where store_id = $1",
        store.as_uuid(),
        database_name,
        role_name,
        sealed.as_bytes(),
        version,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Notes what version the database's schema has; announces a new route when that is news.
pub async fn store_database_set_schema_version(
    conn: &mut PgConnection,
    store: StoreId,
    version: i64,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update store_databases set schema_version = $2, updated_at = $3 where store_id = $1 and schema_version is distinct from $2",
        store.as_uuid(),
        version,
        now,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "update stores set wanted_schema_version = $2 where id = $1 and wanted_schema_version is distinct from $2",
        store.as_uuid(),
        version
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn run_insert(conn: &mut PgConnection, run: &Run, by: Option<UserId>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into provisioning_runs (id, store_id, kind, state, requested_by, with_demo, attempts_limit, created_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
        run.id.as_uuid(),
        run.store_id.as_uuid(),
        run.kind as DatabaseKind,
        run.state as RunState,
        by.map(|id| id.as_uuid()),
        run.with_demo,
        run.attempts_limit,
        run.created_at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn steps_insert(conn: &mut PgConnection, run: RunId, names: &[StepName]) -> Result<(), sqlx::Error> {
    let names: Vec<String> = names.iter().map(|name| name.as_str().to_owned()).collect();
    sqlx::query!(
        "insert into provisioning_steps (run_id, position, name)
         select $1, position::smallint, name from unnest($2::text[]) with ordinality as steps (name, position)",
        run.as_uuid(),
        &names,
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn run_find(conn: &mut PgConnection, id: RunId) -> Result<Option<RunWithSteps>, sqlx::Error> {
    let run = sqlx::query_as!(
        Run,
        r#"select id as "id: RunId", store_id as "store_id: StoreId", kind as "kind: DatabaseKind", state as "state: RunState",
                  attempts, attempts_limit, is_cancelled, with_demo, created_at, finished_at
           from provisioning_runs
           where id = $1"#,
        id.as_uuid(),
    )
    .fetch_optional(&mut *conn)
    .await?;
    let Some(run) = run else { return Ok(None) };
    let steps = sqlx::query_as!(
        Step,
        r#"select name as "name: StepName", state as "state: StepState", attempts, started_at, finished_at, error_code, error, advice,
                  server_code, sql
           from provisioning_steps
           where run_id = $1
           order by position"#,
        id.as_uuid(),
    )
    .fetch_all(conn)
    .await?;
    Ok(Some(RunWithSteps { run, steps }))
}

pub async fn run_latest(conn: &mut PgConnection, store: StoreId) -> Result<Option<RunWithSteps>, sqlx::Error> {
    let id = sqlx::query_scalar!(
        r#"select id as "id: RunId" from provisioning_runs where store_id = $1 order by created_at desc, id desc limit 1"#,
        store.as_uuid(),
    )
    .fetch_optional(&mut *conn)
    .await?;
    match id {
        Some(id) => run_find(conn, id).await,
        None => Ok(None),
    }
}

/// Marks a run as taken up. False when it has ended meanwhile.
pub async fn run_begin(conn: &mut PgConnection, id: RunId, now: DateTime<Utc>) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "update provisioning_runs set state = 'running', attempts = attempts + 1, heartbeat_at = $2
         where id = $1 and state in ('queued', 'running')",
        id.as_uuid(),
        now,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub async fn run_heartbeat(conn: &mut PgConnection, id: RunId, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    sqlx::query!("update provisioning_runs set heartbeat_at = $2 where id = $1", id.as_uuid(), now)
        .execute(conn)
        .await?;
    Ok(())
}

/// Whether the run is still worked on by the worker that took it up as the `attempts`th; locks it if so.
pub async fn run_is_held(conn: &mut PgConnection, id: RunId, attempts: i32) -> Result<bool, sqlx::Error> {
    let found = sqlx::query_scalar!(
        "select id from provisioning_runs where id = $1 and attempts = $2 and state = 'running' for update",
        id.as_uuid(),
        attempts,
    )
    .fetch_optional(conn)
    .await?;
    Ok(found.is_some())
}

/// Notes whether the owner's database held nothing of ours when the run first looked; later looks change nothing.
pub async fn run_note_found_empty(conn: &mut PgConnection, id: RunId, is_empty: bool) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update provisioning_runs set found_empty = $2 where id = $1 and found_empty is null",
        id.as_uuid(),
        is_empty
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Whether everything of ours in the owner's database was made by this run.
pub async fn run_found_empty(conn: &mut PgConnection, id: RunId) -> Result<bool, sqlx::Error> {
    let found = sqlx::query_scalar!("select found_empty from provisioning_runs where id = $1", id.as_uuid())
        .fetch_optional(conn)
        .await?;
    Ok(found.flatten().unwrap_or(false))
}

/// Whether somebody asked for the run to be undone.
pub async fn run_is_cancelled(conn: &mut PgConnection, id: RunId) -> Result<bool, sqlx::Error> {
    Ok(sqlx::query_scalar!("select is_cancelled from provisioning_runs where id = $1", id.as_uuid())
        .fetch_optional(conn)
        .await?
        .unwrap_or(true))
}

pub async fn run_finish(
    conn: &mut PgConnection,
    id: RunId,
    state: RunState,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update provisioning_runs set state = $2, finished_at = $3, heartbeat_at = null where id = $1",
        id.as_uuid(),
        state as RunState,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Lets a run be taken up again, `more_attempts` times from here.
pub async fn run_requeue(
    conn: &mut PgConnection,
    id: RunId,
    is_cancelled: bool,
    more_attempts: i32,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update provisioning_runs
         set state = case when state = 'running' then 'running' else 'queued' end, is_cancelled = $2, finished_at = null,
             attempts_limit = attempts + $3
         where id = $1",
        id.as_uuid(),
        is_cancelled,
        more_attempts,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Unfinished runs that no worker has shown a sign of life for since `before`.
pub async fn runs_stale(conn: &mut PgConnection, before: DateTime<Utc>) -> Result<Vec<RunId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select id as "id: RunId" from provisioning_runs
           where state in ('queued', 'running') and coalesce(heartbeat_at, created_at) < $1
           order by id
           limit 1000"#,
        before,
    )
    .fetch_all(conn)
    .await
}

pub async fn step_begin(
    conn: &mut PgConnection,
    run: RunId,
    name: StepName,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update provisioning_steps
         set state = 'running', attempts = attempts + 1, started_at = coalesce(started_at, $3), finished_at = null,
             error_code = null, error = null, advice = null, server_code = null, sql = null
         where run_id = $1 and name = $2",
        run.as_uuid(),
        name.as_str(),
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// What became of a step.
pub struct StepEnd<'a> {
    pub state: StepState,
    pub error: Option<&'a StepError>,
}

pub async fn step_end(
    conn: &mut PgConnection,
    run: RunId,
    name: StepName,
    end: &StepEnd<'_>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let error = end.error;
    sqlx::query!(
        "update provisioning_steps
         set state = $3, finished_at = $4, error_code = $5, error = $6, advice = $7, server_code = $8, sql = $9
         where run_id = $1 and name = $2",
        run.as_uuid(),
        name.as_str(),
        end.state as StepState,
        now,
        error.map(|error| error.code),
        error.map(|error| error.what.as_str()),
        error.map(|error| error.advice.as_ref()),
        error.and_then(|error| error.server_code.as_deref()),
        error.and_then(|error| error.sql.as_deref()),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Tells watchers; the notification goes out with the commit.
pub async fn event_insert(
    conn: &mut PgConnection,
    run: RunId,
    kind: &str,
    data: serde_json::Value,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into provisioning_events (run_id, type, data, at) values ($1, $2, $3, $4)",
        run.as_uuid(),
        kind,
        data,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// An entry of a run's event log.
pub struct Event {
    pub id: i64,
    pub kind: String,
    pub data: serde_json::Value,
}

/// What happened to a run after `after`, oldest first, at most 100 entries.
pub async fn events_after(conn: &mut PgConnection, run: RunId, after: i64) -> Result<Vec<Event>, sqlx::Error> {
    sqlx::query_as!(
        Event,
        "select id, type as kind, data from provisioning_events where run_id = $1 and id > $2 order by id limit 100",
        run.as_uuid(),
        after,
    )
    .fetch_all(conn)
    .await
}

/// Tries to become the one worker of a run, for as long as this connection lives.
pub async fn run_try_lock(conn: &mut PgConnection, id: RunId) -> Result<bool, sqlx::Error> {
    // The random end of the id; two runs that share 64 random bits would only wait for one another.
    let (_, key) = id.as_uuid().as_u64_pair();
    sqlx::query_scalar!(r#"select pg_try_advisory_lock($1) as "is_ours!""#, key.cast_signed()).fetch_one(conn).await
}

/// Which of these names are those of some store's database or login, whatever server the store is on.
pub async fn names_in_use(conn: &mut PgConnection, names: &[String]) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select n.name as "name!"
           from unnest($1::text[]) as n (name)
           where exists (select from store_databases d where n.name in (d.database_name, d.role_name))"#,
        names,
    )
    .fetch_all(conn)
    .await
}
