//! The job queue: `graphile_worker` in master, so a job is queued by the transaction that makes it necessary.
//!
//! Jobs of a process that died are taken up again in seconds: its own recovery gives a dead worker's jobs back, and the
//! sweeper queues every unfinished run that nobody shows a sign of life for.

mod db;

use std::time::{Duration, Instant};

use graphile_worker::{Worker, WorkerBuildError, WorkerOptions};
use serde::Serialize;
use sqlx::PgConnection;

use crate::config::{MasterArgs, reach};
use crate::cx::{Cx, OpsCx};
use crate::http::errors::chain;
use crate::provisioning::jobs::WorkRun;
use crate::telemetry::Complaint;
use crate::{charges, credits, directory, idempotency, identity, provisioning, supabase, visits, webhooks};

const SCHEMA: &str = "graphile_worker";
const HEARTBEAT: Duration = Duration::from_secs(2);
const SWEEP: Duration = Duration::from_secs(3);
/// A run is left lying when its worker was silent for so long.
const STALE: chrono::Duration = chrono::Duration::seconds(8);
const WORKER_RETRY: Duration = Duration::from_secs(1);
/// One that has run for so long was well.
const WORKER_WELL: Duration = Duration::from_secs(60);
const HOUSEKEEPING: Duration = Duration::from_secs(600);
const EXPIRY: Duration = Duration::from_secs(15);
const PROOF: Duration = Duration::from_secs(3600);

/// Why the worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {
    #[error("the job queue cannot be prepared")]
    Build(#[from] WorkerBuildError),
    #[error("webhooks cannot be sent: TLS is not usable")]
    Tls(#[from] rustls::Error),
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

/// What jobs work with, as the queue's library hands it to them.
#[derive(Clone)]
pub struct OpsExtension(pub OpsCx);

impl std::fmt::Debug for OpsExtension {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("OpsExtension")
    }
}

/// Makes the queue's tables; part of migrating master.
pub async fn migrate(args: &MasterArgs) -> Result<(), sqlx::Error> {
    let pool = crate::master::pool(args).map_err(|error| sqlx::Error::Configuration(error.into()))?;
    let made = WorkerOptions::default().schema(SCHEMA).pg_pool(pool.clone()).init().await;
    pool.close().await;
    made.map(|_| ()).map_err(|error| sqlx::Error::Protocol(chain(&error)))
}

/// Queues a job within the caller's transaction. Of one key at most one waits: asking again while it waits changes nothing.
pub async fn add<T: Serialize>(
    tx: &mut PgConnection,
    identifier: &str,
    payload: &T,
    key: &str,
) -> Result<(), sqlx::Error> {
    let payload = serde_json::to_value(payload).map_err(|error| sqlx::Error::Encode(error.into()))?;
    db::job_add(tx, identifier, &payload, key).await
}

/// Starts the worker, the sweeper and the housekeeper of this node.
///
/// # Errors
/// When the queue's tables cannot be reached; then nothing was started.
pub async fn start(cx: &Cx) -> Result<(), JobsError> {
    let sending = &cx.ops().limits.webhooks;
    let outbound = webhooks::outbound::Outbound::new(
        webhooks::outbound::public_roots(),
        reach(sending.allow_private_webhooks),
        sending.webhook_timeout,
    )?;
    let ops = cx.ops().clone();
    let worker = worker_build(cx).await?;
    // Whatever was unfinished when the last process ended; a run that another node works on is left alone by its lock.
    requeue(&ops, chrono::Duration::zero()).await?;
    cx.tasks.spawn(worker_run(cx.clone(), worker));
    cx.tasks.spawn(every(
        ops.clone(),
        SWEEP,
        "requeueing unfinished runs",
        |cx| async move { requeue(&cx, STALE).await },
    ));
    cx.tasks.spawn(every(ops, HOUSEKEEPING, "housekeeping", |cx| async move { keep_house(&cx).await }));
    let ops = cx.ops().clone();
    cx.tasks.spawn(every(ops.clone(), EXPIRY, "booking what has expired", |cx| async move {
        credits::jobs::expire_due(&cx).await
    }));
    let period = ops.limits.charges.charge_poll;
    cx.tasks.spawn(every(ops.clone(), period, "charging stores", |cx| async move {
        charges::reconcile(&cx).await.map_err(|error| match error {
            charges::ChargeError::Db(error) => error,
            other => sqlx::Error::Protocol(chain(&other)),
        })
    }));
    let period = ops.limits.charges.usage_flush;
    cx.tasks.spawn(every(ops.clone(), period, "writing what was counted", |cx| async move {
        charges::usage::flush(&cx).await
    }));
    let period = ops.limits.store_visit_poll;
    cx.tasks.spawn(every(ops.clone(), period, "visiting stores", |cx| async move { visits::round(&cx).await }));
    cx.tasks.spawn(webhooks::deliver::run(ops.clone(), outbound));
    cx.tasks.spawn(every(ops.clone(), PROOF, "proving the credit ledger", |cx| async move {
        credits::jobs::prove(&cx).await
    }));
    if let Some(supabase) = &ops.supabase {
        cx.tasks.spawn(every(ops.clone(), supabase.sweep, "revoking at Supabase", |cx| async move {
            supabase::jobs::revoke(&cx).await
        }));
    }
    if let Some(payments) = &ops.payments {
        cx.tasks.spawn(every(ops.clone(), payments.sweep, "looking for missed payments", |cx| async move {
            credits::purchases::jobs::sweep(&cx).await
        }));
        cx.tasks.spawn(every(ops.clone(), payments.reconcile, "comparing payments", |cx| async move {
            credits::purchases::jobs::reconcile(&cx).await
        }));
        cx.tasks.spawn(every(ops.clone(), payments.top_up, "topping up credits", |cx| async move {
            credits::topups::jobs::top_up(&cx).await
        }));
    }
    Ok(())
}

async fn worker_build(cx: &Cx) -> Result<Worker, WorkerBuildError> {
    let stop = cx.shutdown.clone();
    WorkerOptions::default()
        .schema(SCHEMA)
        .concurrency(cx.config.limits.job_concurrency)
        .poll_interval(Duration::from_secs(1))
        .pg_pool(cx.master.clone())
        .add_extension(OpsExtension(cx.ops().clone()))
        .define_job::<WorkRun>()
        .heartbeat_interval(HEARTBEAT)
        .sweep_interval(SWEEP)
        .sweep_threshold(Duration::from_secs(10))
        .recovery_delay(Duration::from_secs(1))
        .listen_os_shutdown_signals(false)
        .shutdown_signal(Box::pin(async move { stop.cancelled().await }))
        .shutdown_grace_period(cx.config.limits.shutdown_grace)
        .init()
        .await
}

/// Runs the worker until the node shuts down. A worker ends at the first look-up of jobs that fails, so every outage of
/// master, however short, takes a new one.
async fn worker_run(cx: Cx, first: Worker) {
    let (mut built, mut complaint) = (Ok(first), Complaint::default());
    loop {
        let began = Instant::now();
        let ended = match built {
            Ok(worker) => worker.run().await.map_err(|error| chain(&error)),
            Err(error) => Err(chain(&error)),
        };
        if cx.shutdown.is_cancelled() {
            return;
        }
        if began.elapsed() >= WORKER_WELL {
            complaint.end();
        }
        if let Err(error) = ended
            && complaint.is_new(&error)
        {
            tracing::warn!(error, "the job worker ended and is started again");
        }
        if cx.shutdown.run_until_cancelled(tokio::time::sleep(WORKER_RETRY)).await.is_none() {
            return;
        }
        built = worker_build(&cx).await;
    }
}

async fn requeue(cx: &OpsCx, silent_for: chrono::Duration) -> Result<(), sqlx::Error> {
    let mut tx = cx.master.begin().await?;
    for id in provisioning::db::runs_stale(&mut tx, cx.clock.now() - silent_for).await? {
        provisioning::jobs::enqueue(&mut tx, id).await?;
        tracing::info!(run.id = %id, "queued unfinished run {id} again");
    }
    tx.commit().await
}

/// Deletes what has served its time, a bounded batch of each kind.
async fn keep_house(cx: &OpsCx) -> Result<(), sqlx::Error> {
    let now = cx.clock.now();
    let mut master = cx.master.acquire().await?;
    identity::db::refresh_tokens_purge(&mut master, now).await?;
    identity::db::sessions_purge(&mut master, now - chrono::Duration::days(7)).await?;
    idempotency::purge(&mut master, now - chrono::Duration::days(7)).await?;
    webhooks::keep_house(cx).await?;
    charges::keep_house(cx).await?;
    supabase::keep_house(cx).await?;
    directory::db::store_changes_purge(&mut master, now - chrono::Duration::days(1)).await?;
    Ok(())
}

async fn every<F>(cx: OpsCx, period: Duration, what: &'static str, work: impl Fn(OpsCx) -> F)
where
    F: Future<Output = Result<(), sqlx::Error>>,
{
    let shutdown = cx.shutdown.clone();
    shutdown
        .run_until_cancelled(async {
            let mut complaint = Complaint::default();
            loop {
                tokio::time::sleep(period).await;
                let Err(error) = work(cx.clone()).await else {
                    if complaint.end() {
                        tracing::info!("{what} works again");
                    }
                    continue;
                };
                let why = chain(&error);
                if complaint.is_new(&why) {
                    tracing::warn!(error = why, "{what} failed and is tried again");
                }
            }
        })
        .await;
}
