//! Works a run off: step by step, under a lock that dies with the process, telling watchers of every change.

use std::time::Duration;

use kernel::{RunId, StoreStatus};
use sqlx::{Connection as _, PgConnection};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::StepError;
use super::routes::StepErrorView;
use super::steps::{Kept, STEP_TIMEOUT, StepCx};
use super::{RunState, RunWithSteps, StepName, StepState, db};
use crate::audit::{self, Actor, Subject};
use crate::cx::OpsCx;
use crate::http::errors::chain;
use crate::master::{self, MasterError};
use crate::stores;

const HEARTBEAT: Duration = Duration::from_secs(2);
/// A sign of life that takes longer than this is none: another worker takes the run up soon after.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a run is taken up before somebody has to look at it; whoever retries or cancels it gives it as many again.
pub const MAX_ATTEMPTS: i32 = 50;
/// How often a step is tried before the run counts as failed, when it says that waiting may help.
const TRIES: u32 = 4;
/// One slow try may be a database that has to wake up; the second shows whether it was.
const CHECK_RETRY_LIMIT: Duration = Duration::from_secs(5);
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(50);
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Why a run was not worked off; the job is tried again.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("another worker has taken the run up")]
    Superseded,
    #[error("the connection that holds the run's lock does not answer")]
    LockLost,
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
        let beat = db::run_heartbeat(lock, id, cx.clock.now());
        tokio::time::timeout(HEARTBEAT_TIMEOUT, beat).await.map_err(|_| RunError::LockLost)??;
    }
}

/// What comes next in a run.
enum Next {
    /// This step, which is recorded as begun.
    Step(StepName),
    /// Somebody wants it undone.
    Unwind,
    /// Nothing: every step is done, and the run is recorded as succeeded.
    End,
}

async fn advance(cx: &OpsCx, id: RunId) -> Result<(), RunError> {
    let mut tx = cx.master.begin().await?;
    let Some(found) = db::run_find(&mut tx, id).await? else { return Ok(()) };
    // The store before its run, as cancelling locks them.
    stores::db::store_lock(&mut tx, found.run.store_id).await?;
    if !db::run_begin(&mut tx, id, cx.clock.now()).await? {
        return Ok(());
    }
    let Some(found) = db::run_find(&mut tx, id).await? else { return Ok(()) };
    if found.run.attempts > found.run.attempts_limit {
        tx.commit().await?;
        return give_up(cx, &found).await;
    }
    let mut next = begin_next(cx, &mut tx, &found, 0).await?;
    tx.commit().await?;
    tracing::info!(store.id = %found.run.store_id, "took up run {id} of store {} (attempt {})", found.run.store_id, found.run.attempts);
    let mut kept = Kept::default();
    loop {
        next = match next {
            Next::Step(name) => match perform(cx, &found, name, &mut kept).await? {
                Ok(next) => next,
                Err(error) => {
                    report(&found, name, &error);
                    // Whoever cancels is told that the run will be undone, also when it fails in that moment.
                    if finish(cx, &found, RunState::Failed, Cancelling::Yields).await? {
                        return Ok(());
                    }
                    Next::Unwind
                }
            },
            Next::Unwind => {
                drop(kept);
                return unwind(cx, &found).await;
            }
            Next::End => {
                tell_end(&found, RunState::Succeeded);
                return Ok(());
            }
        };
    }
}

/// Whether ending a run yields to somebody who has cancelled it meanwhile.
#[derive(PartialEq, Eq)]
enum Cancelling {
    Yields,
    IsDone,
}

/// Takes the locks of the store and of the run, in the order in which cancelling takes them, and makes sure that this is
/// still the worker of the run: one that was cut off from master and replaced must write nothing more.
async fn fence(tx: &mut PgConnection, found: &RunWithSteps) -> Result<(), RunError> {
    stores::db::store_lock(tx, found.run.store_id).await?;
    if db::run_is_held(tx, found.run.id, found.run.attempts).await? { Ok(()) } else { Err(RunError::Superseded) }
}

/// Ends a run that was taken up again and again to no end, so that somebody looks at it.
async fn give_up(cx: &OpsCx, found: &RunWithSteps) -> Result<(), RunError> {
    let error = StepError::new(
        "gave-up",
        "The run was taken up again and again and never came to an end.",
        "Ask support, or cancel it.",
    );
    if let Some(step) = found.steps.iter().find(|step| step.state != StepState::Succeeded) {
        let mut tx = cx.master.begin().await?;
        fence(&mut tx, found).await?;
        end_step(cx, &mut tx, found, step.name, StepState::Failed, Some(&error)).await?;
        tx.commit().await?;
        report(found, step.name, &error);
    }
    finish(cx, found, RunState::Failed, Cancelling::IsDone).await.map(|_| ())
}

/// Finds the next step from `position` on and records that it begins, or else that the run has ended. It is asked between
/// every two steps, in the transaction that ends the one before: so cancelling takes effect there, and each step costs
/// master one commit.
async fn begin_next(
    cx: &OpsCx,
    tx: &mut PgConnection,
    found: &RunWithSteps,
    position: usize,
) -> Result<Next, RunError> {
    let next = found.steps.iter().skip(position).find(|step| step.state != StepState::Succeeded);
    // Whoever cancels holds these locks: either they come before our question, or they find what we have recorded.
    fence(tx, found).await?;
    if db::run_is_cancelled(tx, found.run.id).await? {
        return Ok(Next::Unwind);
    }
    let Some(step) = next else {
        record_end(cx, tx, found, RunState::Succeeded).await?;
        return Ok(Next::End);
    };
    db::step_begin(tx, found.run.id, step.name, cx.clock.now()).await?;
    step_event(cx, tx, found, step.name, StepState::Running, None).await?;
    Ok(Next::Step(step.name))
}

/// How long a step may have taken before it is not tried again by itself: for what a connection is like, somebody waits.
const fn retry_limit(name: StepName) -> Duration {
    match name {
        StepName::CheckConnection => CHECK_RETRY_LIMIT,
        _ => STEP_TIMEOUT,
    }
}

/// Does one step that was recorded as begun, with a pause and another try while it says that waiting may help.
async fn perform(
    cx: &OpsCx,
    found: &RunWithSteps,
    name: StepName,
    kept: &mut Kept,
) -> Result<Result<Next, StepError>, RunError> {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut tries = 1;
    let outcome = loop {
        match attempt(cx, found, name, kept).await? {
            Err(error) if error.is_transient && tries < TRIES && started.elapsed() < retry_limit(name) => {
                tracing::info!(error = chain(&error), "step {} failed and is tried again", name.as_str());
                tokio::time::sleep(pause + Duration::from_millis(kernel::random::below(200))).await;
                pause *= 2;
                tries += 1;
            }
            outcome => break outcome,
        }
    };
    let result = if outcome.is_ok() { "succeeded" } else { "failed" };
    metrics::counter!("tenantry_provisioning_steps_total", "step" => name.as_str(), "result" => result).increment(1);
    metrics::histogram!("tenantry_provisioning_step_duration_seconds", "step" => name.as_str())
        .record(started.elapsed().as_secs_f64());
    if let Err(error) = &outcome {
        let mut tx = cx.master.begin().await?;
        fence(&mut tx, found).await?;
        end_step(cx, &mut tx, found, name, StepState::Failed, Some(error)).await?;
        tx.commit().await?;
    }
    Ok(outcome)
}

/// Tries a step once. What it writes in master, that it is done, and what comes next are one transaction.
async fn attempt(
    cx: &OpsCx,
    found: &RunWithSteps,
    name: StepName,
    kept: &mut Kept,
) -> Result<Result<Next, StepError>, RunError> {
    // Gone with the attempt when that fails: the next one begins anew.
    let had = std::mem::take(kept);
    let work = async {
        let step = StepCx::load(cx, &found.run).await?.ok_or_else(|| {
            StepError::new("store-gone", "The store or its database is no longer there.", "Connect a database again.")
        })?;
        let had = step.work(name, had).await?;
        Ok((step, had))
    };
    let worked = tokio::time::timeout(STEP_TIMEOUT, work).await.unwrap_or_else(|_| {
        Err(StepError::new(
            "timed-out",
            "The step took too long.",
            "Check the database server for load or locks, then retry.",
        ))
    });
    let (step, had) = match worked {
        Ok(worked) => worked,
        Err(error) => return Ok(Err(error)),
    };
    let mut tx = cx.master.begin().await?;
    fence(&mut tx, found).await?;
    if db::run_is_cancelled(&mut tx, found.run.id).await? {
        // Done outside, so it is to be undone; master is told nothing that a cancelled run would take back: above all, the
        // store is never opened for a moment.
        end_step(cx, &mut tx, found, name, StepState::Succeeded, None).await?;
        tx.commit().await?;
        return Ok(Ok(Next::Unwind));
    }
    let news = match step.record(name, &mut tx).await {
        Ok(news) => news,
        Err(error) => {
            tx.rollback().await?;
            return Ok(Err(error));
        }
    };
    end_step(cx, &mut tx, found, name, StepState::Succeeded, None).await?;
    let position = found.steps.iter().position(|step| step.name == name).map_or(0, |at| at + 1);
    let next = begin_next(cx, &mut tx, found, position).await?;
    tx.commit().await?;
    step.announce(news);
    *kept = had;
    Ok(Ok(next))
}

/// Records what became of a step, and tells watchers.
async fn end_step(
    cx: &OpsCx,
    tx: &mut PgConnection,
    found: &RunWithSteps,
    name: StepName,
    state: StepState,
    error: Option<&StepError>,
) -> Result<(), sqlx::Error> {
    db::step_end(tx, found.run.id, name, &db::StepEnd { state, error }, cx.clock.now()).await?;
    step_event(cx, tx, found, name, state, error).await
}

async fn step_event(
    cx: &OpsCx,
    tx: &mut PgConnection,
    found: &RunWithSteps,
    name: StepName,
    state: StepState,
    error: Option<&StepError>,
) -> Result<(), sqlx::Error> {
    let error = error.map(StepErrorView::from);
    let data = serde_json::json!({ "step": name, "state": state, "error": error });
    db::event_insert(tx, found.run.id, "step", data, cx.clock.now()).await
}

fn report(found: &RunWithSteps, name: StepName, error: &StepError) {
    tracing::warn!(store.id = %found.run.store_id, step = name.as_str(), error = chain(error), "run {} failed", found.run.id);
}

/// Undoes the steps that were begun, last first, and gives the store back as it was.
async fn unwind(cx: &OpsCx, found: &RunWithSteps) -> Result<(), RunError> {
    let run = &found.run;
    let store = stores::db::store_find(&mut *cx.master.acquire().await?, run.store_id).await?;
    if let Some(store) = store.filter(|store| store.status != StoreStatus::Provisioning) {
        // Cancelling asks for this too: what is served is never taken away here.
        tracing::error!(store.id = %store.id, "run {} of store {} is not undone: the store is {}", run.id, store.id, store.status);
        return finish(cx, found, RunState::Failed, Cancelling::IsDone).await.map(|_| ());
    }
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
        let mut tx = cx.master.begin().await?;
        fence(&mut tx, found).await?;
        end_step(cx, &mut tx, found, step.name, state, undone.as_ref().err()).await?;
        tx.commit().await?;
        if let Err(error) = undone {
            report(found, step.name, &error);
            return finish(cx, found, RunState::Failed, Cancelling::IsDone).await.map(|_| ());
        }
    }
    finish(cx, found, RunState::Cancelled, Cancelling::IsDone).await.map(|_| ())
}

/// Ends the run, and with it what master says of the store, in one transaction. False when that yielded to a cancellation:
/// then nothing is changed.
async fn finish(cx: &OpsCx, found: &RunWithSteps, state: RunState, cancelling: Cancelling) -> Result<bool, RunError> {
    let mut tx = cx.master.begin().await?;
    fence(&mut tx, found).await?;
    if cancelling == Cancelling::Yields && db::run_is_cancelled(&mut tx, found.run.id).await? {
        tx.rollback().await?;
        return Ok(false);
    }
    record_end(cx, &mut tx, found, state).await?;
    tx.commit().await?;
    tell_end(found, state);
    Ok(true)
}

async fn record_end(
    cx: &OpsCx,
    tx: &mut PgConnection,
    found: &RunWithSteps,
    state: RunState,
) -> Result<(), sqlx::Error> {
    let (run, now) = (&found.run, cx.clock.now());
    let store = stores::db::store_lock(tx, run.store_id).await?;
    if state == RunState::Cancelled
        && let Some(store) = &store
    {
        db::store_database_delete(tx, store.id).await?;
        if matches!(store.status, StoreStatus::Provisioning | StoreStatus::Active) {
            stores::db::store_set_status(tx, store.id, StoreStatus::PendingDatabase, None, now).await?;
        }
    }
    db::run_finish(tx, run.id, state, now).await?;
    db::event_insert(tx, run.id, state.as_str(), serde_json::json!({ "state": state }), now).await?;
    if let Some(store) = &store {
        let data = serde_json::json!({ "runId": run.id, "state": state });
        let subject = Subject::store(store.organization_id, store.id);
        audit::record(tx, now, Actor::System, "provisioning_finish", subject, data).await?;
    }
    Ok(())
}

fn tell_end(found: &RunWithSteps, state: RunState) {
    let run = &found.run;
    metrics::counter!("tenantry_provisioning_runs_total", "result" => state.as_str()).increment(1);
    tracing::info!(store.id = %run.store_id, "run {} of store {} ended: {}", run.id, run.store_id, state.as_str());
}
