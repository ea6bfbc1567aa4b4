//! Commands about the payment provider's books and ours.

use clap::Subcommand;
use kernel::{OrganizationId, ReconDifferenceId};

use super::failure::Failure;
use super::output::{self, Printed};
use super::{Needs, Operation, OpsArgs};
use crate::audit::Actor;
use crate::config::PaymentArgs;
use crate::credits::purchases::events::EventState;
use crate::credits::purchases::routes::OpsPurchaseView;
use crate::credits::purchases::{self, PurchaseFilter, PurchaseState};
use crate::credits::review::routes::{DifferenceView, PaymentEventView, ReconciledView};
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
    /// What organizations have bought, newest first
    Purchases {
        /// Only this organization
        #[arg(long)]
        org: Option<OrganizationId>,
        /// Only those that stand so
        #[arg(long, value_enum)]
        state: Option<PurchaseState>,
        /// 1 to 100
        #[arg(long)]
        limit: Option<u8>,
        /// `nextCursor` of the page before
        #[arg(long)]
        cursor: Option<String>,
        #[command(flatten, next_help_heading = "Payments")]
        payments: Box<PaymentArgs>,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Note that a difference was looked at, and why it may stay; once
    Note {
        /// As `payments differences` names it
        difference: ReconDifferenceId,
        /// Why it may stay; kept for ever
        #[arg(long)]
        note: String,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// The payment provider's events, newest first: those that could not be followed, unless others are asked for
    Events {
        #[arg(long, value_enum, default_value_t = EventState::Failed)]
        state: EventState,
        /// 1 to 100
        #[arg(long)]
        limit: Option<u8>,
        /// `nextCursor` of the page before
        #[arg(long)]
        cursor: Option<String>,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Follow an event now, also one that was given up or ignored; one that is done stays as it is
    Retry {
        /// As `payments events` names it
        event: String,
        #[command(flatten)]
        ops: OpsArgs,
    },
}

impl Operation for Payments {
    fn needs(&self) -> Needs<'_> {
        match self {
            // A list of purchases tells whether they were made at a test provider.
            Self::Reconcile { payments, ops } | Self::Purchases { payments, ops, .. } => {
                Needs::of(ops).payments(payments)
            }
            Self::Differences { ops, .. }
            | Self::Note { ops, .. }
            | Self::Events { ops, .. }
            | Self::Retry { ops, .. } => Needs::of(ops),
        }
    }

    async fn run(self, cx: &OpsCx) -> Result<Printed, Failure> {
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
            Self::Purchases { org, state, limit, cursor, .. } => {
                let filter = PurchaseFilter { organization: org, state };
                let (found, next) = purchases::purchase_list(cx, filter, cursor.as_deref(), limit).await?;
                let found: Vec<_> = found.into_iter().map(|purchase| OpsPurchaseView::new(cx, purchase)).collect();
                output::purchases(&found, next.as_deref())
            }
            Self::Note { difference, note, .. } => {
                let noted = review::difference_note(cx, Actor::Cli, difference, &note).await?;
                output::difference(&DifferenceView::from(noted))
            }
            Self::Events { state, limit, cursor, .. } => {
                let (found, next) = review::payment_events(cx, state, cursor.as_deref(), limit).await?;
                let found: Vec<PaymentEventView> = found.into_iter().map(Into::into).collect();
                output::payment_events(&found, next.as_deref())
            }
            Self::Retry { event, .. } => {
                let event = review::payment_event_retry(cx, Actor::Cli, &event).await?;
                output::payment_event(&PaymentEventView::from(event))
            }
        }
    }
}
