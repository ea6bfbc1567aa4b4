//! Commands about the payment provider's books and ours.

use clap::Subcommand;

use super::output::{self, Printed};
use super::{Needs, Operation, OpsArgs};
use crate::audit::Actor;
use crate::config::PaymentArgs;
use crate::credits::review::routes::{DifferenceView, ReconciledView};
use crate::credits::review::{self, DifferenceState};
use crate::cx::OpsCx;

#[derive(Subcommand)]
pub(super) enum Payments {
    /// Compare the books now; exit code 3 when something differs
    Reconcile {
        #[command(flatten, next_help_heading = "Payments")]
        payments: Box<PaymentArgs>,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// What differed, newest first
    Differences {
        /// Only those that somebody has noted, or has not
        #[arg(long)]
        state: Option<DifferenceState>,
        /// 1 to 100
        #[arg(long)]
        limit: Option<u8>,
        /// `nextCursor` of the page before
        #[arg(long)]
        cursor: Option<String>,
        #[command(flatten)]
        ops: OpsArgs,
    },
}

impl Operation for Payments {
    fn needs(&self) -> Needs<'_> {
        match self {
            Self::Reconcile { payments, ops } => Needs::of(ops).payments(payments),
            Self::Differences { ops, .. } => Needs::of(ops),
        }
    }

    async fn run(self, cx: &OpsCx) -> Result<Printed, anyhow::Error> {
        match self {
            Self::Reconcile { .. } => {
                let runs = review::reconcile(cx, Actor::Cli).await?;
                let runs: Vec<ReconciledView> = runs.into_iter().map(Into::into).collect();
                output::reconciliation(&runs)
            }
            Self::Differences { state, limit, cursor, .. } => {
                let (found, next) = review::differences(cx, state, cursor.as_deref(), limit).await?;
                let found: Vec<DifferenceView> = found.into_iter().map(Into::into).collect();
                output::differences(&found, next.as_deref())
            }
        }
    }
}
