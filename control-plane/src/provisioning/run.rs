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
        if !db::run_try_lock(&mut lock, id).await? {
            tracing::debug!(run.id = %id, "run {id} is worked on elsewhere");
            return Ok(());
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

    if !found.run.is_cancelled {
        for step in &found.steps {
            // Asked before every step, so that cancelling takes effect between two of them.
            if db::run_is_cancelled(&mut *cx.master.acquire().await?, id).await? {
                return unwind(cx, &found).await;
            }
            if step.state == StepState::Succeeded {
                continue;
            }
            if let Err(error) = perform(cx, &found, step.name).await? {
                return fail(cx, &found, step.name, &error).await;
            }
        }
        if !db::run_is_cancelled(&mut *cx.master.acquire().await?, id).await? {
            return finish(cx, &found, RunState::Succeeded).await;
        }
    }
    unwind(cx, &found).await
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

async fn fail(cx: &OpsCx, found: &RunWithSteps, name: StepName, error: &StepError) -> Result<(), RunError> {
    tracing::warn!(store.id = %found.run.store_id, step = name.as_str(), error = chain(error), "run {} failed", found.run.id);
    finish(cx, found, RunState::Failed).await
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
            return fail(cx, found, step.name, &error).await;
        }
    }
    finish(cx, found, RunState::Cancelled).await
}

/// Ends the run, and with it what master says of the store, in one transaction.
async fn finish(cx: &OpsCx, found: &RunWithSteps, state: RunState) -> Result<(), RunError> {
    let (run, now) = (&found.run, cx.clock.now());
    let mut tx = cx.master.begin().await?;
    let store = stores::db::store_lock(&mut tx, run.store_id).await?;
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
