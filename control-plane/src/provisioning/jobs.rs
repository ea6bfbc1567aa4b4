//! The job that works a run off. It carries the run's id and nothing else.

use graphile_worker::{IntoTaskHandlerResult, TaskHandler, WorkerContext};
use kernel::RunId;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::run;
use crate::cx::OpsCx;
use crate::jobs;

/// Works off one run. Safe to run twice and at once: a run has one worker at a time, and every step may be repeated.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkRun {
    run_id: RunId,
}

impl TaskHandler for WorkRun {
    const IDENTIFIER: &'static str = "provisioning_run";

    async fn run(self, cx: WorkerContext) -> impl IntoTaskHandlerResult {
        let Some(ops) = cx.get_ext::<jobs::OpsExtension>() else { return Err("the worker has no context".to_owned()) };
        let cx: OpsCx = ops.0.clone();
        match cx.shutdown.run_until_cancelled(run::work(&cx, self.run_id)).await {
            Some(outcome) => outcome.map_err(|error| crate::http::errors::chain(&error)),
            None => Err("the process is shutting down".to_owned()),
        }
    }
}

/// Queues a run within the transaction that made it, or again when it was left lying.
pub async fn enqueue(tx: &mut PgConnection, id: RunId) -> Result<(), sqlx::Error> {
    jobs::add(tx, WorkRun::IDENTIFIER, &WorkRun { run_id: id }, &format!("provisioning_run:{id}")).await
}
