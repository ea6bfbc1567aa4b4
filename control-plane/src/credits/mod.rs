//! Credits: bought once, spent once, provable to the last unit.
//!
//! An organization has one account. What is in it came as lots and leaves by spends and holds; every decision, also a refusal,
//! is a transaction with a version, entries that sum to zero, and a hash over everything before it. Decisions are made by
//! functions of the master database (`migrations-master/*_credits.sql`), each in one statement under the lock of the
//! account's row; this module says who may ask, what the request was, and what the answer means.
//!
//! An idempotency key is kept for ever, in the namespace of who made it: `user:` for a caller's, others for our own. When the
//! outcome of a statement is unknown because its connection broke, the caller is told to repeat it with the same key.

pub mod batch;
pub mod budgets;
pub mod db;
pub mod holds;
pub mod jobs;
pub mod packs;
pub mod prices;
pub mod purchases;
pub mod review;
pub mod routes;
pub mod statement;
pub mod stripe;
pub mod topups;
pub mod verify;

use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use kernel::{CreditHoldId, CreditLotId, CreditTransactionId, OrganizationId, StoreId, UserId, text};
use problem::Problem;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::audit::{self, Actor, Subject};
use crate::cx::OpsCx;
use crate::http::paging::{PagingError, Window};
use crate::idempotency;
use crate::identity::{self, MemberRole, Principal};
use crate::stores::{self, Store};
use batch::Spend;

/// The most that one transaction moves: far from where sums overflow.
pub const MAX_AMOUNT: i64 = 1_000_000_000_000;
/// A grant that is repeated within it is taken for the same one.
const ALIKE_WITHIN: chrono::Duration = chrono::Duration::minutes(10);

/// What a transaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum TransactionKind {
    Grant,
    Purchase,
    Spend,
    /// A spend that the platform makes by itself: daily or metered.
    Charge,
    Hold,
    Capture,
    Void,
    HoldExpiry,
    Expiry,
    Refund,
    DisputeOpen,
    DisputeWon,
    DisputeLost,
}

impl TransactionKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grant => "grant",
            Self::Purchase => "purchase",
            Self::Spend => "spend",
            Self::Charge => "charge",
            Self::Hold => "hold",
            Self::Capture => "capture",
            Self::Void => "void",
            Self::HoldExpiry => "hold_expiry",
            Self::Expiry => "expiry",
            Self::Refund => "refund",
            Self::DisputeOpen => "dispute_open",
            Self::DisputeWon => "dispute_won",
            Self::DisputeLost => "dispute_lost",
        }
    }
}

/// Whether it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum TransactionStatus {
    Accepted,
    Rejected,
}

impl TransactionStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Rejected => "rejected",
        }
    }
}

/// What a lot is: it says which is spent first, and against what it was booked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum LotKind {
    Paid,
    Promotional,
    Compensation,
}

impl LotKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Paid => "paid",
            Self::Promotional => "promotional",
            Self::Compensation => "compensation",
        }
    }

    /// The priority of a lot that names none: 0 is spent first, 100 last.
    pub const fn default_priority(self) -> i16 {
        match self {
            Self::Promotional => 25,
            Self::Compensation => 30,
            Self::Paid => 50,
        }
    }
}

/// One decision of the ledger.
#[derive(Debug, Clone)]
pub struct Transaction {
    pub id: CreditTransactionId,
    pub organization_id: OrganizationId,
    /// 1, 2, 3 within its account.
    pub version: i64,
    pub kind: TransactionKind,
    pub status: TransactionStatus,
    /// A stable code of why it was refused.
    pub reason: Option<String>,
    /// What was asked for, in credits.
    pub amount: i64,
    pub request_hash: Vec<u8>,
    pub store_id: Option<StoreId>,
    pub actor_user_id: Option<UserId>,
    pub hold_id: Option<CreditHoldId>,
    pub service: Option<String>,
    pub quantity: Option<i64>,
    pub description: Option<String>,
    pub data: Option<serde_json::Value>,
    pub available_after: i64,
    pub held_after: i64,
    pub debt_after: i64,
    pub created_at: DateTime<Utc>,
}

/// A decision, and whether it was made now or before under the same key.
#[derive(Debug, Clone)]
pub struct Decision {
    pub is_new: bool,
    pub transaction: Transaction,
}

impl Decision {
    /// The decision as an answer to the request with this hash.
    ///
    /// # Errors
    /// When the key was used for another request, or the decision was a refusal.
    pub fn answer(self, hash: &[u8]) -> Result<Self, CreditError> {
        if self.transaction.request_hash != hash {
            return Err(CreditError::KeyReused);
        }
        match (self.transaction.status, self.transaction.reason.as_deref()) {
            (TransactionStatus::Accepted, _) => Ok(self),
            (TransactionStatus::Rejected, reason) => {
                let Transaction { amount, available_after, .. } = self.transaction;
                let refused = CreditError::refused(reason.unwrap_or_default(), amount, available_after);
                Err(if self.is_new { refused } else { CreditError::Replayed(Box::new(refused)) })
            }
        }
    }
}

/// What is in an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balance {
    pub organization_id: OrganizationId,
    /// What can be spent now.
    pub available: i64,
    /// What is reserved.
    pub held: i64,
    /// What the next purchase repays first.
    pub debt: i64,
    pub version: i64,
}

/// Credits that were granted together, and what is left of them.
#[derive(Debug, Clone)]
pub struct Lot {
    pub id: CreditLotId,
    pub kind: LotKind,
    pub granted: i64,
    pub remaining: i64,
    pub held: i64,
    pub priority: i16,
    /// Nothing when it does not expire.
    pub expires_at: Option<DateTime<Utc>>,
}

/// A lot that is to be granted.
#[derive(Debug, Clone)]
pub struct NewLot {
    pub kind: LotKind,
    pub amount: i64,
    pub priority: i16,
    pub expires_at: Option<DateTime<Utc>>,
    /// What one credit cost, in minor units of the currency.
    pub unit_cost_minor: i64,
}

/// Why a credit operation was refused.
#[derive(Debug, thiserror::Error)]
pub enum CreditError {
    #[error("{required} credits are needed, and there are fewer")]
    Insufficient { required: i64, available: Option<i64> },
    #[error("the monthly budget of the {of} does not allow {required} more")]
    BudgetExceeded { of: &'static str, required: i64 },
    #[error("the hold is {state}")]
    HoldNotOpen { state: String },
    #[error("more is captured than was held")]
    CaptureExceedsHold,
    #[error("there is no such hold")]
    HoldNotFound,
    #[error("there is no such store")]
    StoreNotFound,
    #[error("there is no such organization")]
    OrganizationNotFound,
    #[error("several organizations to choose from")]
    OrganizationAmbiguous,
    #[error("only owners and admins of the organization may do this")]
    NotManager,
    /// The ledger refused it when it was asked the first time; asked again, it says the same.
    #[error("refused before: {0}")]
    Replayed(Box<Self>),
    #[error("the Idempotency-Key was used for another request")]
    KeyReused,
    #[error("an Idempotency-Key is needed")]
    KeyMissing,
    #[error(
        "the same was granted within the last {} minutes, as {transaction}; if it is meant again, say so by a key or by \
         another reason",
        ALIKE_WITHIN.num_minutes()
    )]
    GrantedBefore { transaction: CreditTransactionId },
    #[error("{detail}")]
    Invalid { pointer: &'static str, code: &'static str, detail: String },
    #[error("a query parameter is not valid: {detail}")]
    Query { name: &'static str, detail: String },
    #[error(transparent)]
    Paging(#[from] PagingError),
    #[error("too many spends of the account wait")]
    Busy,
    #[error("the connection broke before the decision was known")]
    OutcomeUnknown,
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

impl CreditError {
    /// What the ledger's reason for refusing a request means.
    fn refused(reason: &str, required: i64, available: i64) -> Self {
        match reason {
            "insufficient-credits" => Self::Insufficient { required, available: Some(available) },
            "store-budget-exceeded" => Self::BudgetExceeded { of: "store", required },
            "member-budget-exceeded" => Self::BudgetExceeded { of: "member", required },
            "capture-exceeds-hold" => Self::CaptureExceedsHold,
            other => Self::HoldNotOpen { state: other.trim_start_matches("hold-").to_owned() },
        }
    }

    /// As far as somebody may know it: who has a token for one store is not told what the organization has.
    fn told_to(self, by: &Principal) -> Self {
        match self {
            Self::Insufficient { required, .. } if by.token_store.is_some() => {
                Self::Insufficient { required, available: None }
            }
            Self::Replayed(refused) => Self::Replayed(Box::new(refused.told_to(by))),
            other => other,
        }
    }
}

fn invalid(pointer: &'static str, code: &'static str, detail: impl Into<String>) -> CreditError {
    CreditError::Invalid { pointer, code, detail: detail.into() }
}

/// The hash of what was asked for: the operation and its body, as it was understood.
pub fn request_hash<B: Serialize>(operation: &'static str, body: &B) -> Result<[u8; 32], CreditError> {
    let json = serde_json::to_vec(&(operation, body)).map_err(|error| sqlx::Error::Encode(error.into()))?;
    Ok(Sha256::digest(json).into())
}

/// A caller's key, apart from the keys that we make ourselves.
fn user_key(key: Option<&str>) -> Result<String, CreditError> {
    key.map(|key| format!("user:{key}")).ok_or(CreditError::KeyMissing)
}

/// Whole credits that one request may move.
pub fn check_amount(amount: i64, pointer: &'static str) -> Result<i64, CreditError> {
    if (1..=MAX_AMOUNT).contains(&amount) {
        Ok(amount)
    } else {
        Err(invalid(pointer, "range", format!("must be 1 to {MAX_AMOUNT} whole credits")))
    }
}

/// The name that a service or a pack has for programs.
fn check_code(code: &str, pointer: &'static str) -> Result<String, CreditError> {
    let is_code = (2..=63).contains(&code.len())
        && code.starts_with(|first: char| first.is_ascii_lowercase())
        && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if is_code {
        Ok(code.to_owned())
    } else {
        Err(invalid(pointer, "name", "must be a letter and 1 to 62 letters, digits and dashes, all lower-case"))
    }
}

fn check_line(line: Option<&str>, pointer: &'static str, max: usize) -> Result<Option<String>, CreditError> {
    line.map(|line| text::one_line(line, max)).transpose().map_err(|error| invalid(pointer, "text", error.to_string()))
}

/// The store that somebody wants to act for, if they are let into it.
async fn store_of(cx: &OpsCx, by: &Principal, store: StoreId) -> Result<Store, CreditError> {
    // To a token that was made for one store the others do not exist.
    if by.token_store.is_some_and(|only| only != store) {
        return Err(CreditError::StoreNotFound);
    }
    let mut connection = cx.master.acquire().await?;
    let access = stores::db::store_for_member(&mut connection, store, by.user.id).await?;
    Ok(access.ok_or(CreditError::StoreNotFound)?.store)
}

/// The organization that somebody acts for: the one they name, or their only one.
pub async fn organization_of(
    cx: &OpsCx,
    by: UserId,
    wanted: Option<OrganizationId>,
) -> Result<(OrganizationId, MemberRole), CreditError> {
    let memberships = identity::db::memberships(&mut *cx.master.acquire().await?, by).await?;
    let chosen = match (wanted, memberships.as_slice()) {
        (Some(id), all) => {
            all.iter().find(|membership| membership.id == id).ok_or(CreditError::OrganizationNotFound)?
        }
        (None, [only]) => only,
        (None, []) => return Err(CreditError::OrganizationNotFound),
        (None, _) => return Err(CreditError::OrganizationAmbiguous),
    };
    Ok((chosen.id, chosen.role))
}

/// What is in an account, with what has expired booked.
pub async fn balance(cx: &OpsCx, organization: OrganizationId) -> Result<Balance, CreditError> {
    let mut lent = cx.warm.lend().await?;
    let connection = &mut *lent.connection;
    let now = cx.clock.now();
    let (mut balance, next_expiry) =
        db::balance_find(connection, organization).await?.ok_or(CreditError::OrganizationNotFound)?;
    if next_expiry.is_some_and(|at| at <= now) {
        db::expire(connection, organization, now).await?;
        (balance, _) = db::balance_find(connection, organization).await?.ok_or(CreditError::OrganizationNotFound)?;
    }
    cx.warm.keep(lent);
    Ok(balance)
}

/// The lots that still hold something, in the order in which they are spent.
pub async fn lots(cx: &OpsCx, organization: OrganizationId) -> Result<Vec<Lot>, CreditError> {
    Ok(db::lots_open(&mut *cx.master.acquire().await?, organization).await?)
}

/// Spends credits on a store, once per key.
pub async fn spend(
    cx: &OpsCx,
    by: &Principal,
    body: &routes::SpendBody,
    key: Option<&str>,
) -> Result<Decision, CreditError> {
    let key = user_key(key)?;
    let description = check_line(body.description.as_deref(), "/description", 500)?;
    let hash = request_hash("credit_spend", body)?;
    let store = store_of(cx, by, body.store_id).await?;
    let cost = prices::cost(cx, &body.wanted()).await?;
    let spend = Spend {
        id: CreditTransactionId::new(cx.clock.now()),
        key,
        hash,
        kind: TransactionKind::Spend,
        store: Some(store.id),
        actor: Some(by.user.id),
        amount: cost.amount,
        service: cost.service(),
        quantity: cost.quantity,
        description,
        facts: cost.facts(),
    };
    cx.credits.spend(cx, store.organization_id, spend).await?.answer(&hash).map_err(|error| error.told_to(by))
}

/// What an action would cost and leave.
#[derive(Debug)]
pub struct Quote {
    pub cost: prices::Cost,
    pub balance: Balance,
    /// How it would be refused now; nothing when it would be done.
    pub refusal: Option<CreditError>,
}

/// What a spend would cost and leave, without doing it.
pub async fn quote(cx: &OpsCx, by: &Principal, store: StoreId, wanted: &prices::Wanted) -> Result<Quote, CreditError> {
    let store = store_of(cx, by, store).await?;
    let cost = prices::cost(cx, wanted).await?;
    let balance = balance(cx, store.organization_id).await?;
    let reason = if cost.amount > balance.available {
        Some("insufficient-credits".to_owned())
    } else {
        let mut connection = cx.master.acquire().await?;
        let organization = store.organization_id;
        budgets::db::budget_refusal(&mut connection, organization, store.id, by.user.id, cost.amount, cx.clock.now())
            .await?
    };
    let refusal = reason.map(|reason| CreditError::refused(&reason, cost.amount, balance.available));
    Ok(Quote { cost, balance, refusal })
}

/// Whom credits are granted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantTo {
    Organization(OrganizationId),
    /// The organization of this store.
    Store(StoreId),
}

/// Credits that ops give.
#[derive(Debug, Clone)]
pub struct NewGrant {
    pub to: GrantTo,
    pub kind: LotKind,
    pub amount: i64,
    pub expires_at: Option<DateTime<Utc>>,
    pub reason: String,
}

/// What becomes of a grant that is like one just made and has no key that tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alike {
    Granted,
    Refused,
}

/// Grants credits, for a reason that is kept. With a key it is done once.
pub async fn grant(cx: &OpsCx, actor: Actor, new: &NewGrant, key: Option<&str>) -> Result<Decision, CreditError> {
    grant_unless(cx, actor, new, key, Alike::Granted).await
}

/// [`grant`] for people: without a key, the very same grant within [`ALIKE_WITHIN`] is taken for an impatient repetition of
/// the first, and is refused.
pub async fn grant_by_hand(
    cx: &OpsCx,
    actor: Actor,
    new: &NewGrant,
    key: Option<&str>,
) -> Result<Decision, CreditError> {
    let alike = if key.is_some() { Alike::Granted } else { Alike::Refused };
    grant_unless(cx, actor, new, key, alike).await
}

async fn grant_unless(
    cx: &OpsCx,
    actor: Actor,
    new: &NewGrant,
    key: Option<&str>,
    alike: Alike,
) -> Result<Decision, CreditError> {
    let amount = check_amount(new.amount, "/amount")?;
    let reason = text::one_line(&new.reason, 500).map_err(|error| invalid("/reason", "text", error.to_string()))?;
    let now = cx.clock.now();
    if new.expires_at.is_some_and(|at| at <= now) {
        return Err(invalid("/expiresAt", "past", "must be in the future"));
    }
    let mut tx = cx.master.begin().await?;
    let (organization, store) = match new.to {
        GrantTo::Organization(id) => (id, None),
        GrantTo::Store(id) => {
            let store = stores::db::store_find(&mut tx, id).await?.ok_or(CreditError::StoreNotFound)?;
            (store.organization_id, Some(id))
        }
    };
    if db::balance_find(&mut tx, organization).await?.is_none() {
        return Err(CreditError::OrganizationNotFound);
    }
    let id = CreditTransactionId::new(now);
    let key = key.map_or_else(|| format!("grant:{id}"), |key| format!("ops:{key}"));
    let hash = request_hash("credit_grant", &(organization, store, new.kind, amount, new.expires_at, &reason))?;
    let lot = NewLot {
        kind: new.kind,
        amount,
        priority: new.kind.default_priority(),
        expires_at: new.expires_at,
        unit_cost_minor: 0,
    };
    let grant = db::Grant {
        id,
        key: &key,
        hash: &hash,
        kind: TransactionKind::Grant,
        actor: actor.user(),
        store,
        why: Some(&reason),
        reference: None,
        lots: std::slice::from_ref(&lot),
        purchase: None,
        currency: None,
    };
    let decision = db::grant(&mut tx, organization, &grant, now).await?.answer(&hash)?;
    // The account is locked by now: of two that are sent at once, the second sees the first.
    if alike == Alike::Refused
        && let Some(before) = db::grant_alike(&mut tx, &decision.transaction, now - ALIKE_WITHIN).await?
    {
        return Err(CreditError::GrantedBefore { transaction: before });
    }
    if decision.is_new {
        let subject = Subject { organization: Some(organization), store };
        let data = serde_json::json!({ "transactionId": decision.transaction.id, "amount": amount, "reason": reason });
        audit::record(&mut tx, now, actor, "credit_grant", subject, data).await?;
    }
    tx.commit().await?;
    Ok(decision)
}

/// Which transactions a list shows.
#[derive(Debug, Clone, Default)]
pub struct TransactionFilter {
    pub store: Option<StoreId>,
    pub kind: Option<TransactionKind>,
    /// Who spent.
    pub actor: Option<UserId>,
    pub from: Option<DateTime<Utc>>,
    /// Before this moment.
    pub until: Option<DateTime<Utc>>,
}

/// A page of an account's transactions, newest first, and the cursor of the next.
pub async fn transactions(
    cx: &OpsCx,
    organization: OrganizationId,
    filter: &TransactionFilter,
    cursor: Option<&str>,
    limit: Option<u8>,
) -> Result<(Vec<Transaction>, Option<String>), CreditError> {
    let scope = format!("{filter:?}");
    let window = Window::read(&["credit transactions", &organization.to_string(), &scope], cursor, limit)?;
    let mut connection = cx.master.acquire().await?;
    let found = db::transactions(&mut connection, organization, filter, window.after, window.rows()).await?;
    Ok(window.page(found, |transaction: &Transaction| transaction.version))
}

impl From<CreditError> for Problem {
    fn from(error: CreditError) -> Self {
        use StatusCode as S;
        match error {
            CreditError::Insufficient { required, available } => {
                let problem = Self::new(S::PAYMENT_REQUIRED, "insufficient-credits", "There are not enough credits")
                    .member("required", required);
                match available {
                    Some(available) => problem
                        .detail(format!(
                            "{required} are needed, {available} are available. Buy a pack of `packsUrl` by a POST to `purchaseUrl`, then \
                             use a new key."
                        ))
                        .member("available", available)
                        .member("packsUrl", "/api/credits/packs")
                        .member("purchaseUrl", "/api/credits/purchase"),
                    None => problem
                        .detail(format!("{required} are needed. Ask the organization that the store belongs to.")),
                }
            }
            CreditError::BudgetExceeded { of, required } => Self::new(
                S::FORBIDDEN,
                "budget-exceeded",
                "The monthly budget does not allow this",
            )
            .detail(format!(
                "The budget of the {of} has less than {required} left this month. An owner or admin can raise it."
            ))
            .member("budget", of)
            .member("required", required),
            CreditError::HoldNotOpen { state } => Self::new(S::CONFLICT, "hold-not-open", "The hold has ended")
                .detail(format!("It is {state}."))
                .member("state", state),
            CreditError::CaptureExceedsHold => Self::invalid().field("/amount", "range", "is more than was held"),
            CreditError::HoldNotFound | CreditError::OrganizationNotFound => Self::not_found(),
            CreditError::StoreNotFound => Self::not_found().detail("No store of yours has this id."),
            CreditError::OrganizationAmbiguous => {
                crate::http::errors::invalid_query("organizationId", "say which of your organizations is meant")
            }
            CreditError::NotManager => Self::new(S::FORBIDDEN, "forbidden", "Your role does not allow this")
                .detail("Ask an owner or admin of the organization."),
            CreditError::Replayed(refused) => Self::from(*refused).header(idempotency::REPLAYED, "true"),
            CreditError::KeyReused => idempotency::reused(),
            CreditError::KeyMissing => {
                Self::new(S::BAD_REQUEST, "idempotency-key-required", "An Idempotency-Key is needed").field(
                    "Idempotency-Key",
                    "required",
                    "send a new random key with each new request, and the same one when you repeat it",
                )
            }
            CreditError::GrantedBefore { transaction } => {
                Self::new(S::CONFLICT, "granted-before", "The same was granted a moment ago")
                    .detail(format!(
                        "It is {transaction}. If it is meant again, send an Idempotency-Key that is new, or give another reason."
                    ))
                    .member("transactionId", transaction.to_string())
            }
            CreditError::Invalid { pointer, code, detail } => Self::invalid().field(pointer, code, detail),
            CreditError::Query { name, detail } => crate::http::errors::invalid_query(name, detail),
            CreditError::Paging(error) => error.into(),
            CreditError::Busy => {
                Self::new(S::SERVICE_UNAVAILABLE, "credits-busy", "Too many spends of this account at this moment")
                    .detail("Nothing was spent. Repeat it with the same key.")
                    .retry_after(std::time::Duration::from_secs(1))
            }
            CreditError::OutcomeUnknown => {
                Self::new(S::SERVICE_UNAVAILABLE, "outcome-unknown", "It is not known whether it was done")
                    .detail("Repeat it with the same Idempotency-Key: it is done once.")
                    .retry_after(std::time::Duration::from_secs(1))
            }
            error @ CreditError::Db(_) => crate::http::errors::unexpected(&error),
        }
    }
}
