//! Works a run off: step by step, under a lock that dies with the process, telling watchers of every change.

use std::time::Duration;

use kernel::{RunId, StoreStatus};
use sqlx::{Connection as _, PgConnection};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::steps::{STEP_TIMEOUT, StepCx, StepError};
use super::{RunState, RunWithSteps, StepName, StepState, db};
use crate::audit::{self, Actor, Subject};
use crate::cx::OpsCx;
use crate::http::errors::chain;
use crate::master::{self, MasterError};
use crate::stores;

const HEARTBEAT: Duration = Duration::from_secs(2);
/// How often a step is tried before the run counts as failed, when it says that waiting may help.
const TRIES: u32 = 4;
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(50);
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Why a run was not worked off; the job is tried again.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Master(#[from] MasterError),
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

/// Works the run off until it has finished, unless another process is doing so.
pub async fn work(cx: &OpsCx, id: RunId) -> Result<(), RunError> {
    let mut lock = master::connect(&cx.master_args).await?;
    let worked = async {
        // The last worker may be gone, or done, and its lock not yet: a retry would then lie until the sweeper finds it.
        let mut tries = 1;
        while !db::run_try_lock(&mut lock, id).await? {
            if tries == LOCK_TRIES {
                tracing::debug!(run.id = %id, "run {id} is worked on elsewhere");
                return Ok(());
            }
            tries += 1;
            tokio::time::sleep(LOCK_PAUSE).await;
        }
        let span = tracing::info_span!("provisioning.run", run.id = %id);
        tokio::select! {
            done = advance(cx, id).instrument(span) => done,
            lost = beat(cx, &mut lock, id) => lost,
        }
    }
    .await;
    if let Err(error) = lock.close().await {
        tracing::debug!(error = %error, "closing the run's lock failed");
    }
    worked
}

/// Shows signs of life on the connection that holds the lock; ends only when that connection is lost, and the run with it.
async fn beat(cx: &OpsCx, lock: &mut PgConnection, id: RunId) -> Result<(), RunError> {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        db::run_heartbeat(lock, id, cx.clock.now()).await?;
    }
}

async fn advance(cx: &OpsCx, id: RunId) -> Result<(), RunError> {
    let mut master = cx.master.acquire().await?;
    if !db::run_begin(&mut master, id, cx.clock.now()).await? {
        return Ok(());
    }
    let Some(found) = db::run_find(&mut master, id).await? else { return Ok(()) };
    drop(master);
    tracing::info!(store.id = %found.run.store_id, "took up run {id} of store {} (attempt {})", found.run.store_id, found.run.attempts);

    // Whoever cancels is told that the run will be undone: that is looked at last under the lock that cancelling takes.
    if let Some(end) = forward(cx, &found).await?
        && finish_unless_cancelled(cx, &found, end).await?
    {
        return Ok(());
    }
    unwind(cx, &found).await
}

/// Does what is left to do. Nothing when somebody cancels, which takes effect between two steps.
async fn forward(cx: &OpsCx, found: &RunWithSteps) -> Result<Option<RunState>, RunError> {
    for step in &found.steps {
        if db::run_is_cancelled(&mut *cx.master.acquire().await?, found.run.id).await? {
            return Ok(None);
        }
        if step.state == StepState::Succeeded {
            continue;
        }
        if let Err(error) = perform(cx, found, step.name).await? {
            report(found, step.name, &error);
            return Ok(Some(RunState::Failed));
        }
    }
    Ok(Some(RunState::Succeeded))
}

/// Does one step, with a pause and another try while it says that waiting may help.
async fn perform(cx: &OpsCx, found: &RunWithSteps, name: StepName) -> Result<Result<(), StepError>, RunError> {
    let run = &found.run;
    let mut tx = cx.master.begin().await?;
    db::step_begin(&mut tx, run.id, name, cx.clock.now()).await?;
    step_event(cx, &mut tx, found, name, StepState::Running, None).await?;
    tx.commit().await?;

    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut tries = 1;
    let outcome = loop {
        let attempt = async {
            match StepCx::load(cx, run).await? {
                Some(step) => step.perform(name).await,
                None => Err(StepError::new(
                    "store-gone",
                    "The store or its database is no longer there.",
                    "Connect a database again.",
                )),
            }
        };
        let outcome = tokio::time::timeout(STEP_TIMEOUT, attempt).await.unwrap_or_else(|_| {
            Err(StepError::new(
                "timed-out",
                "The step took too long.",
                "Check the database server for load or locks, then retry.",
            ))
        });
        match outcome {
            Err(error) if error.is_transient && tries < TRIES => {
                tracing::info!(error = chain(&error), "step {} failed and is tried again", name.as_str());
                tokio::time::sleep(pause + Duration::from_millis(kernel::random::below(200))).await;
                pause *= 2;
                tries += 1;
            }
            outcome => break outcome,
        }
    };

    let state = if outcome.is_ok() { StepState::Succeeded } else { StepState::Failed };
    let result = if outcome.is_ok() { "succeeded" } else { "failed" };
    metrics::counter!("tenantry_provisioning_steps_total", "step" => name.as_str(), "result" => result).increment(1);
    metrics::histogram!("tenantry_provisioning_step_duration_seconds", "step" => name.as_str())
        .record(started.elapsed().as_secs_f64());
    let error = outcome.as_ref().err().map(|error| (error.code, error.what.as_str(), error.advice));
    let mut tx = cx.master.begin().await?;
    db::step_end(&mut tx, run.id, name, &db::StepEnd { state, error }, cx.clock.now()).await?;
    step_event(cx, &mut tx, found, name, state, error).await?;
    tx.commit().await?;
    Ok(outcome)
}

async fn step_event(
    cx: &OpsCx,
    tx: &mut PgConnection,
    found: &RunWithSteps,
    name: StepName,
    state: StepState,
    error: Option<(&str, &str, &str)>,
) -> Result<(), sqlx::Error> {
    let error = error.map(|(code, what, advice)| serde_json::json!({ "code": code, "detail": what, "advice": advice }));
    let data = serde_json::json!({ "step": name, "state": state, "error": error });
    db::event_insert(tx, found.run.id, "step", data, cx.clock.now()).await
}

fn report(found: &RunWithSteps, name: StepName, error: &StepError) {
    tracing::warn!(store.id = %found.run.store_id, step = name.as_str(), error = chain(error), "run {} failed", found.run.id);
}

/// Undoes the steps that were begun, last first, and gives the store back as it was.
async fn unwind(cx: &OpsCx, found: &RunWithSteps) -> Result<(), RunError> {
    let run = &found.run;
    let steps =
        db::run_find(&mut *cx.master.acquire().await?, run.id).await?.map(|found| found.steps).unwrap_or_default();
    for step in steps.iter().rev().filter(|step| !matches!(step.state, StepState::Pending | StepState::Undone)) {
        let undone = async {
            match StepCx::load(cx, run).await? {
                Some(cx) => cx.undo(step.name).await,
                None => Ok(()),
            }
        };
        let undone = tokio::time::timeout(STEP_TIMEOUT, undone).await.unwrap_or_else(|_| {
            Err(StepError::new(
                "timed-out",
                "Undoing the step took too long.",
                "Check the database server, then cancel again.",
            ))
        });
        let state = if undone.is_ok() { StepState::Undone } else { StepState::Failed };
        let error = undone.as_ref().err().map(|error| (error.code, error.what.as_str(), error.advice));
        let mut tx = cx.master.begin().await?;
        db::step_end(&mut tx, run.id, step.name, &db::StepEnd { state, error }, cx.clock.now()).await?;
        step_event(cx, &mut tx, found, step.name, state, error).await?;
        tx.commit().await?;
        if let Err(error) = undone {
            report(found, step.name, &error);
            return finish(cx, found, RunState::Failed).await;
        }
    }
    finish(cx, found, RunState::Cancelled).await
}

/// Ends the run, and with it what master says of the store, in one transaction.
async fn finish(cx: &OpsCx, found: &RunWithSteps, state: RunState) -> Result<(), RunError> {
    let mut tx = cx.master.begin().await?;
    let store = stores::db::store_lock(&mut tx, found.run.store_id).await?;
    finish_in(cx, tx, found, store, state).await
}

/// [`finish`], unless somebody has cancelled the run: then nothing is changed.
async fn finish_unless_cancelled(cx: &OpsCx, found: &RunWithSteps, state: RunState) -> Result<bool, RunError> {
    let mut tx = cx.master.begin().await?;
    let store = stores::db::store_lock(&mut tx, found.run.store_id).await?;
    if db::run_is_cancelled(&mut tx, found.run.id).await? {
        tx.rollback().await?;
        return Ok(false);
    }
    finish_in(cx, tx, found, store, state).await?;
    Ok(true)
}

async fn finish_in(
    cx: &OpsCx,
    mut tx: sqlx::Transaction<'_, sqlx::Postgres>,
    found: &RunWithSteps,
    store: Option<stores::Store>,
    state: RunState,
) -> Result<(), RunError> {
    let (run, now) = (&found.run, cx.clock.now());
    if state == RunState::Cancelled
        && let Some(store) = &store
    {
        db::store_database_delete(&mut tx, store.id).await?;
        if matches!(store.status, StoreStatus::Provisioning | StoreStatus::Active) {
            stores::db::store_set_status(&mut tx, store.id, StoreStatus::PendingDatabase, None, now).await?;
        }
    }
    db::run_finish(&mut tx, run.id, state, now).await?;
    db::event_insert(&mut tx, run.id, state.as_str(), serde_json::json!({ "state": state }), now).await?;
    if let Some(store) = &store {
        let data = serde_json::json!({ "runId": run.id, "state": state });
        audit::record(
            &mut tx,
            now,
            Actor::System,
            "provisioning_finish",
            Subject::store(store.organization_id, store.id),
            data,
        )
        .await?;
    }
    tx.commit().await?;
    metrics::counter!("tenantry_provisioning_runs_total", "result" => state.as_str()).increment(1);
    tracing::info!(store.id = %run.store_id, "run {} of store {} ended: {}", run.id, run.store_id, state.as_str());
    Ok(())
}
