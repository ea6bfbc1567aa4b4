//! Commands about what organizations have bought and spent, and what that costs.

use chrono::{DateTime, NaiveDate, Utc};
use clap::{Args, Subcommand};
use kernel::OrganizationId;

use super::failure::Failure;
use super::output::{self, Printed};
use super::stores::StoreName;
use super::{Needs, Operation, OpsArgs};
use crate::audit::Actor;
use crate::charges::routes::{PriceView, WaivedView};
use crate::charges::{self, ChargeFilter, NewPrice};
use crate::credits::packs::routes::OpsPackView;
use crate::credits::packs::{self, NewPack};
use crate::credits::routes::{BalanceView, TransactionView};
use crate::credits::{self, GrantTo, LotKind, prices};
use crate::cx::OpsCx;
use crate::stores;

#[derive(Subcommand)]
pub(super) enum Credits {
    /// Give credits to an organization
    Grant {
        #[command(flatten)]
        to: CreditsOf,
        /// Whole credits
        #[arg(long)]
        amount: i64,
        /// Kept in the audit trail and shown on the statement
        #[arg(long)]
        reason: String,
        /// `promotional`, `compensation` or `paid`
        #[arg(long, default_value = "promotional", value_parser = lot_kind)]
        kind: LotKind,
        /// When what is left of them is gone, as 2027-01-31T00:00:00Z; never when left out
        #[arg(long)]
        expires_at: Option<DateTime<Utc>>,
        /// Granting again with the same key grants nothing. Without one, the very same grant is refused within ten minutes
        #[arg(long)]
        key: Option<String>,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// What an organization has, lot by lot
    Balance {
        #[command(flatten)]
        of: CreditsOf,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Waive what a store owes for its days and what was counted of it; what is paid stays paid
    Waive {
        /// Id or slug
        #[arg(long)]
        store: StoreName,
        /// Only what is owed for this day (UTC), as 2027-01-31; for every day when left out
        #[arg(long)]
        day: Option<NaiveDate>,
        /// Only what is owed for this service, such as store-day; for every one when left out
        #[arg(long)]
        service: Option<String>,
        /// Kept in the audit trail and shown to the owner
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Set what a service costs by itself from a day on that has not begun
    Price {
        /// store-day, metric:requests or metric:orders
        service: String,
        /// Credits; 0 ends it
        #[arg(long)]
        amount: i64,
        /// For so many units
        #[arg(long)]
        per: Option<i64>,
        /// As 2027-01-31; tomorrow when left out
        #[arg(long)]
        valid_from: Option<NaiveDate>,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Set what a service costs from a moment on that is not past
    PriceSet {
        /// Such as translation; a new one is a new service
        service: String,
        #[arg(long)]
        name: String,
        /// What is counted
        #[arg(long)]
        unit: String,
        /// Whole credits
        #[arg(long)]
        credits: i64,
        /// For so many units, begun ones in full; 1 when left out
        #[arg(long)]
        per: Option<i64>,
        /// As 2027-01-31T00:00:00Z; now when left out
        #[arg(long)]
        valid_from: Option<DateTime<Utc>>,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Put a new version of a pack on sale, and take the one before off it
    PackSet {
        /// Such as growth; a new one is a new pack
        code: String,
        #[arg(long)]
        name: String,
        /// Whole credits
        #[arg(long)]
        credits: i64,
        /// Given on top; none when left out
        #[arg(long)]
        bonus_credits: Option<i64>,
        /// How long those are good for; they do not expire when left out
        #[arg(long)]
        bonus_expires_days: Option<i32>,
        /// In minor units of the currency, taxes included
        #[arg(long)]
        price_minor: i64,
        /// As EUR
        #[arg(long)]
        currency: String,
        /// What it is for taxes; txcd_10103001 when left out
        #[arg(long)]
        tax_code: Option<String>,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Check every invariant of the ledger and every sealed root; exit code 3 when something does not hold
    Verify {
        /// Only this organization
        #[arg(long)]
        org: Option<OrganizationId>,
        #[command(flatten)]
        ops: OpsArgs,
    },
}

/// Whose credits.
#[derive(Args, Clone)]
#[group(required = true, multiple = false)]
pub(super) struct CreditsOf {
    /// The organization
    #[arg(long)]
    org: Option<OrganizationId>,
    /// The organization of this store: its id or slug
    #[arg(long)]
    store: Option<StoreName>,
}

impl CreditsOf {
    async fn target(self, cx: &OpsCx) -> Result<GrantTo, stores::StoreError> {
        Ok(match (self.org, self.store) {
            (Some(organization), _) => GrantTo::Organization(organization),
            (None, Some(store)) => GrantTo::Store(store.id(cx).await?),
            (None, None) => unreachable!("the argument group needs one of them"),
        })
    }
}

fn lot_kind(text: &str) -> Result<LotKind, String> {
    [LotKind::Promotional, LotKind::Compensation, LotKind::Paid]
        .into_iter()
        .find(|kind| kind.as_str() == text)
        .ok_or_else(|| "expected promotional, compensation or paid".to_owned())
}

impl Operation for Credits {
    fn needs(&self) -> Needs<'_> {
        match self {
            Self::Verify { ops, .. } => Needs::of(ops).key(),
            Self::Grant { ops, .. }
            | Self::Balance { ops, .. }
            | Self::Waive { ops, .. }
            | Self::Price { ops, .. }
            | Self::PriceSet { ops, .. }
            | Self::PackSet { ops, .. } => Needs::of(ops),
        }
    }

    async fn run(self, cx: &OpsCx) -> Result<Printed, Failure> {
        match self {
            Self::Grant { to, amount, reason, kind, expires_at, key, .. } => {
                let new = credits::NewGrant { to: to.target(cx).await?, kind, amount, expires_at, reason };
                let decision = credits::grant_by_hand(cx, Actor::Cli, &new, key.as_deref()).await?;
                output::credit_transaction(&TransactionView::from(decision.transaction), decision.is_new)
            }
            Self::Balance { of, .. } => {
                let organization = match of.target(cx).await? {
                    GrantTo::Organization(id) => id,
                    GrantTo::Store(id) => stores::find(cx, id).await?.organization_id,
                };
                output::credit_balance(&BalanceView::read(cx, organization).await?)
            }
            Self::Waive { store, day, service, reason, .. } => {
                let of = ChargeFilter { store: store.id(cx).await?, day, service };
                let waived = charges::waive(cx, Actor::Cli, &of, &reason).await?;
                output::waived(&WaivedView::new(of.store, waived))
            }
            Self::Price { service, amount, per, valid_from, .. } => {
                let new = NewPrice { service, amount, per, valid_from };
                let price = charges::price_set(cx, Actor::Cli, &new).await?;
                output::charge_price(&PriceView::from(price))
            }
            Self::PriceSet { service, name, unit, credits, per, valid_from, .. } => {
                let new = prices::NewPrice { service, name, unit, credits, per, valid_from };
                let (price, is_new) = prices::price_set(cx, Actor::Cli, &new).await?;
                output::credit_price(&price, is_new)
            }
            Self::PackSet {
                code,
                name,
                credits,
                bonus_credits,
                bonus_expires_days,
                price_minor,
                currency,
                tax_code,
                ..
            } => {
                let new =
                    NewPack { code, name, credits, bonus_credits, bonus_expires_days, price_minor, currency, tax_code };
                let (pack, is_new) = packs::pack_set(cx, Actor::Cli, &new).await?;
                output::credit_pack(&OpsPackView::from(pack), is_new)
            }
            Self::Verify { org, .. } => output::credit_verification(&credits::verify::verify(cx, org).await?),
        }
    }
}
