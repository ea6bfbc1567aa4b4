//! What stores cost by themselves: each day that they are active, and by what is counted of them.
//!
//! A reconciler on every node looks at what should be charged and what is, and makes the difference:
//!
//! - Every UTC day that a store was active in has one charge, made when the day begins, or later when nobody was there to make
//!   it. What is counted is charged when its day is over.
//! - A charge and the row that says so are one commit. Its key names store, day, service and attempt; the attempt goes up only
//!   after the ledger has recorded a refusal, so no charge is made twice and none is lost to an answer that was not heard.
//! - When credits end, the organization is told once, and nothing happens for the days of grace. Then the store is read-only:
//!   its pages are served, carts and checkouts are refused. As soon as what is owed is paid it takes orders again. Days that
//!   begin while it is read-only cost nothing, so that what is owed does not grow beyond reach.
//! - Two things are counted of each store and day, and cost something when ops set a price. [`REQUESTS`] are counted by each
//!   node in memory ([`usage`]): what a node that is killed had not written yet is lost. [`ORDERS`] are counted out of the
//!   store's own database when the day is over ([`crate::visits`]): no crash loses or doubles any.

pub mod db;
pub mod routes;
pub mod usage;

use axum::http::StatusCode;
use chrono::{DateTime, Days, Duration, NaiveDate, Utc};
use kernel::{CreditTransactionId, OrganizationId, StoreId, StoreStatus, text};
use problem::Problem;
use serde::Serialize;

use crate::audit::{self, Actor, Subject};
use crate::credits::batch::{MAX_BATCH, Spend};
use crate::credits::{self, MAX_AMOUNT, TransactionKind, TransactionStatus};
use crate::cx::OpsCx;
use crate::identity::Principal;
use crate::webhooks::events::{ChargeUnpaid, EventData as _, StoreReadOnly, StoreReadOnlyLifted};
use crate::{stores, webhooks};

/// The service that a day of an active store is.
pub const STORE_DAY: &str = "store-day";
/// What the service of something that is counted begins with; its name follows.
const METRIC: &str = "metric:";
/// Counted: requests to the store's hostname that it answered, with anything but an error of ours.
pub const REQUESTS: &str = "requests";
/// Counted: orders that were placed, also those that were cancelled later.
pub const ORDERS: &str = "orders";
/// What is counted, and can cost something.
pub const METRICS: [&str; 2] = [REQUESTS, ORDERS];
/// Credits have ended: a charge was refused, and the days of grace have begun.
pub const UNPAID: &str = ChargeUnpaid::TYPE;
/// The days of grace are over.
pub const READ_ONLY: &str = StoreReadOnly::TYPE;
/// Nothing is owed any more.
pub const READ_ONLY_LIFTED: &str = StoreReadOnlyLifted::TYPE;

/// How much is done in one statement; what is left comes with the next.
const BATCH: i64 = 500;
/// The most days of one store that are made up for in one statement.
const CATCH_UP_DAYS: i32 = 30;
/// The most rounds of one kind in one go, so that nothing starves what comes after it.
const MAX_ROUNDS: usize = 50;
/// What is counted is settled so long after its day: whoever counts at midnight has committed by then.
const SETTLE_AFTER: Duration = Duration::hours(1);
/// How long to wait with what is refused for another reason than credits.
const REFUSED_PAUSE: Duration = Duration::hours(1);
/// So long it is remembered what was counted already.
const KEYS_KEPT: Duration = Duration::days(35);
const MAX_REASON: usize = 500;
const MAX_DAYS: i64 = 366;
const DEFAULT_DAYS: u64 = 30;

/// How a charge stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum ChargeState {
    /// Not asked for yet.
    Due,
    Charged,
    /// Not to be paid: the store was read-only, or ops said so.
    Waived,
    /// Refused, and asked for again.
    Unpaid,
}

/// What one store owes for one service on one day.
#[derive(Debug, Clone)]
pub struct Charge {
    pub store_id: StoreId,
    pub day: NaiveDate,
    pub service: String,
    pub quantity: i64,
    pub amount: i64,
    pub state: ChargeState,
    pub attempt: i32,
    pub transaction_id: Option<CreditTransactionId>,
    pub reason: Option<String>,
    pub unpaid_since: Option<DateTime<Utc>>,
}

/// What a store owes in all.
#[derive(Debug, Clone, Copy)]
pub struct Arrears {
    pub charges: i64,
    pub amount: i64,
    pub since: Option<DateTime<Utc>>,
}

/// What was counted on a day.
#[derive(Debug, Clone)]
pub struct DayUsage {
    pub day: NaiveDate,
    pub metric: String,
    pub quantity: i64,
}

/// What a service costs from a day on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    pub service: String,
    pub valid_from: NaiveDate,
    pub amount: i64,
    pub per: i64,
}

impl Price {
    /// What one of it is.
    pub fn unit(&self) -> &str {
        match self.service.strip_prefix(METRIC) {
            Some(REQUESTS) => "answered request",
            Some(ORDERS) => "placed order",
            Some(metric) => metric,
            None => "day",
        }
    }
}

/// Why an operation on charges was refused.
#[derive(Debug, thiserror::Error)]
pub enum ChargeError {
    #[error("{detail}")]
    Invalid { pointer: &'static str, code: &'static str, detail: String },
    #[error("a query parameter is not valid: {detail}")]
    Query { name: &'static str, detail: String },
    #[error("there is no such store")]
    StoreNotFound,
    #[error("there is no such charge")]
    ChargeNotFound,
    #[error("the charge is paid")]
    Paid,
    #[error(transparent)]
    Credits(#[from] credits::CreditError),
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

fn invalid(pointer: &'static str, code: &'static str, detail: impl Into<String>) -> ChargeError {
    ChargeError::Invalid { pointer, code, detail: detail.into() }
}

/// Makes the difference between what should be charged and what is, and between who should be read-only and who is. Takes no
/// input and may run on any number of nodes at once.
pub async fn reconcile(cx: &OpsCx) -> Result<(), ChargeError> {
    make(cx).await?;
    charge_due(cx).await?;
    turn(cx).await
}

/// Makes the charges that should be there.
async fn make(cx: &OpsCx) -> Result<(), ChargeError> {
    let now = cx.clock.now();
    let mut connection = cx.master.acquire().await?;
    for _ in 0..MAX_ROUNDS {
        if db::charges_make(&mut connection, now.date_naive(), CATCH_UP_DAYS - 1, BATCH, now).await? == 0 {
            break;
        }
    }
    let before = days_over(now);
    for _ in 0..MAX_ROUNDS {
        if db::usage_settle(&mut connection, before, MAX_AMOUNT, BATCH, now).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// The first day that is not over, for what is counted: days before it are.
pub fn days_over(now: DateTime<Utc>) -> NaiveDate {
    (now - SETTLE_AFTER).date_naive()
}

/// Asks the ledger for what is due, organization by organization.
async fn charge_due(cx: &OpsCx) -> Result<(), ChargeError> {
    for _ in 0..MAX_ROUNDS {
        let due = db::organizations_due(&mut *cx.master.acquire().await?, cx.clock.now(), BATCH).await?;
        if due.is_empty() {
            return Ok(());
        }
        for organization in due {
            charge_organization(cx, organization).await?;
        }
    }
    Ok(())
}

/// Charges one organization for what it can pay and what it was never asked for, oldest first, in one commit.
async fn charge_organization(cx: &OpsCx, organization: OrganizationId) -> Result<(), ChargeError> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let Some(available) = db::account_lock(&mut tx, organization).await? else { return Ok(()) };
    let limit = i64::try_from(MAX_BATCH).unwrap_or(i64::MAX);
    let mut charges = db::charges_lock(&mut tx, organization, available, now, limit).await?;
    // What is owed is asked for again only when it is covered, so that refusals do not pile up in the ledger.
    let mut left = available;
    charges.retain(|charge| {
        let is_covered = charge.amount <= left;
        if is_covered {
            left -= charge.amount;
        }
        is_covered || charge.state == ChargeState::Due
    });
    if charges.is_empty() {
        return Ok(());
    }
    let spends = charges.iter().map(|charge| spend(charge, now)).collect::<Result<Vec<_>, _>>()?;
    let decisions = credits::db::spend(&mut tx, organization, &spends, now).await?;
    for (charge, decision) in charges.iter().zip(decisions) {
        let transaction = decision.transaction;
        match transaction.status {
            TransactionStatus::Accepted => db::charge_paid(&mut tx, charge, transaction.id, now).await?,
            TransactionStatus::Rejected => {
                let reason = transaction.reason.unwrap_or_default();
                let owed_before = db::arrears(&mut tx, charge.store_id).await?;
                let pause = if reason == "insufficient-credits" { Duration::zero() } else { REFUSED_PAUSE };
                db::charge_refused(&mut tx, charge, &reason, now + pause, now).await?;
                if owed_before.charges == 0 {
                    tell_unpaid(cx, &mut tx, organization, charge, &reason, now).await?;
                }
            }
        }
    }
    tx.commit().await?;
    cx.outbox_news.notify_one();
    Ok(())
}

fn spend(charge: &Charge, now: DateTime<Utc>) -> Result<Spend, ChargeError> {
    let Charge { store_id, day, service, quantity, amount, attempt, .. } = charge;
    Ok(Spend {
        id: CreditTransactionId::new(now),
        key: format!("charge:{store_id}:{day}:{service}:{attempt}"),
        hash: credits::request_hash("store_charge", &(store_id, day, service, quantity, amount))?,
        kind: TransactionKind::Charge,
        store: Some(*store_id),
        actor: None,
        amount: *amount,
        service: Some(service.clone()),
        quantity: Some(*quantity),
        description: None,
        facts: None,
    })
}

/// Tells that the days of grace have begun; once until everything is paid.
async fn tell_unpaid(
    cx: &OpsCx,
    tx: &mut sqlx::PgConnection,
    organization: OrganizationId,
    charge: &Charge,
    reason: &str,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let Charge { store_id, day, service, amount, .. } = charge;
    let unpaid = ChargeUnpaid {
        store_id: *store_id,
        day: *day,
        service: service.clone(),
        amount: *amount,
        reason: reason.to_owned(),
        read_only_at: now + cx.limits.charges.grace(),
    };
    let key = format!("charge-unpaid:{store_id}:{day}:{service}:{}", charge.attempt);
    webhooks::tell_of(tx, organization, &unpaid, &key, now).await
}

/// Makes stores read-only whose grace is over, and lifts it where everything is paid.
async fn turn(cx: &OpsCx) -> Result<(), ChargeError> {
    let cutoff = cx.clock.now() - cx.limits.charges.grace();
    let found = db::stores_to_turn(&mut *cx.master.acquire().await?, cutoff, BATCH).await?;
    for store in found {
        turn_store(cx, store, cutoff).await?;
    }
    Ok(())
}

async fn turn_store(cx: &OpsCx, id: StoreId, cutoff: DateTime<Utc>) -> Result<(), ChargeError> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let Some(store) = stores::db::store_lock(&mut tx, id).await? else { return Ok(()) };
    // Looked at again under the lock: another node may have been faster, or somebody has paid.
    let arrears = db::arrears(&mut tx, id).await?;
    let is_read_only = store.is_read_only;
    let is_wanted = match arrears.since {
        None => false,
        Some(since) => is_read_only || (since <= cutoff && store.status == StoreStatus::Active),
    };
    if is_wanted == is_read_only {
        return Ok(());
    }
    db::store_set_read_only(&mut tx, id, is_wanted, now).await?;
    let action = if is_wanted { "store_read_only_begin" } else { "store_read_only_end" };
    let data = serde_json::json!({ "storeId": id, "owed": arrears.amount });
    let subject = Subject::store(store.organization_id, id);
    let store = stores::db::store_find(&mut tx, id).await?.ok_or(ChargeError::StoreNotFound)?;
    let key = format!("read-only:{id}:{}", store.route_version);
    let (organization, store_id, owed) = (store.organization_id, id, arrears.amount);
    if is_wanted {
        webhooks::tell_of(&mut tx, organization, &StoreReadOnly { store_id, owed }, &key, now).await?;
    } else {
        webhooks::tell_of(&mut tx, organization, &StoreReadOnlyLifted { store_id, owed }, &key, now).await?;
    }
    audit::record(&mut tx, now, Actor::System, action, subject, data).await?;
    tx.commit().await?;
    cx.announce(id, store.route_version);
    cx.outbox_news.notify_one();
    tracing::info!(store.id = %id, "store {id} is {}", if is_wanted { "read-only: its charges are unpaid" } else { "no more read-only" });
    Ok(())
}

/// What of a store's charges is meant: all of them, those of a day, those of a service.
#[derive(Debug, Clone)]
pub struct ChargeFilter {
    pub store: StoreId,
    pub day: Option<NaiveDate>,
    pub service: Option<String>,
}

/// What was waived, and what is owed after it.
#[derive(Debug)]
pub struct Waived {
    pub charges: Vec<Charge>,
    pub arrears: Arrears,
}

/// Waives what a store owes, for a reason that is kept and that its owner sees. What is paid stays paid. When nothing is owed
/// after it, the reconciler lifts read-only as after a payment.
pub async fn waive(cx: &OpsCx, actor: Actor, of: &ChargeFilter, reason: &str) -> Result<Waived, ChargeError> {
    let reason = text::one_line(reason, MAX_REASON).map_err(|error| invalid("/reason", "text", error.to_string()))?;
    if let Some(service) = &of.service {
        check_service(service)?;
    }
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let store = stores::db::store_find(&mut tx, of.store).await?.ok_or(ChargeError::StoreNotFound)?;
    // First, as whoever charges does: a charge that is being paid is waited for, and then is paid.
    db::account_lock(&mut tx, store.organization_id).await?;
    let mut charges = db::charges_waive(&mut tx, of, &reason, now).await?;
    if charges.is_empty() && of.day.is_some() {
        let states = db::charge_states(&mut tx, of).await?;
        if states.contains(&ChargeState::Charged) {
            return Err(ChargeError::Paid);
        } else if states.is_empty() {
            return Err(ChargeError::ChargeNotFound);
        }
    }
    charges.sort_by(|a, b| (a.day, &a.service).cmp(&(b.day, &b.service)));
    let arrears = db::arrears(&mut tx, of.store).await?;
    if !charges.is_empty() {
        let amount: i64 = charges.iter().map(|charge| charge.amount).sum();
        let waived: Vec<_> = charges.iter().map(|charge| format!("{} {}", charge.day, charge.service)).collect();
        let data = serde_json::json!({ "charges": waived, "amount": amount, "reason": reason });
        let subject = Subject::store(store.organization_id, of.store);
        audit::record(&mut tx, now, actor, "charges_waive", subject, data).await?;
    }
    tx.commit().await?;
    Ok(Waived { charges, arrears })
}

/// Counts something of a store today, once per key. What is counted is charged when the day is over, if it costs anything.
pub async fn usage_add(
    cx: &OpsCx,
    store: StoreId,
    metric: &str,
    quantity: i64,
    key: &str,
) -> Result<bool, ChargeError> {
    let metric = check_metric(metric).ok_or_else(|| invalid("/metric", "name", METRIC_RULE))?;
    let quantity = credits::check_amount(quantity, "/quantity")?;
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let is_new = usage_add_in(&mut tx, store, now.date_naive(), metric, quantity, key, now).await?;
    tx.commit().await?;
    Ok(is_new)
}

/// [`usage_add`] within the caller's transaction, of any day.
pub async fn usage_add_in(
    tx: &mut sqlx::PgConnection,
    store: StoreId,
    day: NaiveDate,
    metric: &str,
    quantity: i64,
    key: &str,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let is_new = db::usage_claim(tx, store, key, now).await?;
    if is_new {
        db::usage_add(tx, store, day, metric, quantity).await?;
    }
    Ok(is_new)
}

const METRIC_RULE: &str = "must be 1 to 40 lower-case letters, digits and dashes";

fn check_metric(name: &str) -> Option<&str> {
    let is_name = (1..=40).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    is_name.then_some(name)
}

/// What a charge can be for.
fn check_service(service: &str) -> Result<(), ChargeError> {
    if service == STORE_DAY || service.strip_prefix(METRIC).and_then(check_metric).is_some() {
        return Ok(());
    }
    Err(invalid("/service", "unknown", "must be store-day, or metric: and the name of what is counted"))
}

/// What a price can be set for: of what nobody counts it would never be asked, and whoever mistyped it would not learn why.
fn check_priced(service: &str) -> Result<(), ChargeError> {
    let is_counted = |metric: &str| METRICS.contains(&metric);
    if service == STORE_DAY || service.strip_prefix("metric:").is_some_and(is_counted) {
        return Ok(());
    }
    let counted = METRICS.map(|metric| format!("metric:{metric}")).join(", ");
    Err(invalid("/service", "unknown", format!("must be one of {STORE_DAY}, {counted}")))
}

/// A price that ops set.
#[derive(Debug, Clone)]
pub struct NewPrice {
    pub service: String,
    pub amount: i64,
    pub per: Option<i64>,
    /// Tomorrow when left out.
    pub valid_from: Option<NaiveDate>,
}

/// Sets what a service costs from a day that has not begun: what a day costs never changes once it is there.
pub async fn price_set(cx: &OpsCx, actor: Actor, new: &NewPrice) -> Result<Price, ChargeError> {
    check_priced(&new.service)?;
    if !(0..=MAX_AMOUNT).contains(&new.amount) {
        return Err(invalid("/amount", "range", format!("must be 0 to {MAX_AMOUNT} whole credits")));
    }
    let per = new.per.unwrap_or(1);
    if !(1..=MAX_AMOUNT).contains(&per) || (new.service == STORE_DAY && per != 1) {
        return Err(invalid("/per", "range", format!("must be 1 to {MAX_AMOUNT}, and 1 for {STORE_DAY}")));
    }
    let now = cx.clock.now();
    let today = now.date_naive();
    let tomorrow = today + Days::new(1);
    let valid_from = new.valid_from.unwrap_or(tomorrow);
    if valid_from <= today || valid_from > today + Days::new(3660) {
        return Err(invalid("/validFrom", "range", format!("must be {tomorrow} or later")));
    }
    let price = Price { service: new.service.clone(), valid_from, amount: new.amount, per };
    let mut tx = cx.master.begin().await?;
    db::price_set(&mut tx, &price, now).await?;
    let data =
        serde_json::json!({ "service": price.service, "amount": price.amount, "per": per, "validFrom": valid_from });
    audit::record(&mut tx, now, actor, "charge_price_set", Subject::default(), data).await?;
    tx.commit().await?;
    Ok(price)
}

/// What is charged for today, and what is announced.
pub async fn prices(cx: &OpsCx) -> Result<Vec<Price>, ChargeError> {
    Ok(db::prices_from(&mut *cx.master.acquire().await?, cx.clock.now().date_naive()).await?)
}

/// Every price that was ever set.
pub async fn price_list(cx: &OpsCx) -> Result<Vec<Price>, ChargeError> {
    Ok(db::prices(&mut *cx.master.acquire().await?).await?)
}

/// What a store was charged for and what was counted of it, day by day.
#[derive(Debug, Clone)]
pub struct Usage {
    pub store: StoreId,
    pub from: NaiveDate,
    pub until: NaiveDate,
    pub charges: Vec<Charge>,
    pub counts: Vec<DayUsage>,
    pub arrears: Arrears,
    pub is_read_only: bool,
    /// When it becomes read-only unless what is owed is paid.
    pub read_only_at: Option<DateTime<Utc>>,
}

/// Reads the usage of a store by days, for somebody who is let into it: from `from` to before `until`, the last 30 days when
/// they are left out.
pub async fn usage(
    cx: &OpsCx,
    by: &Principal,
    store: StoreId,
    from: Option<NaiveDate>,
    until: Option<NaiveDate>,
) -> Result<Usage, ChargeError> {
    let until = until.unwrap_or_else(|| cx.clock.now().date_naive() + Days::new(1));
    let from = match from {
        Some(from) => from,
        None => until.checked_sub_days(Days::new(DEFAULT_DAYS)).unwrap_or(until),
    };
    if from > until || (until - from).num_days() > MAX_DAYS {
        return Err(ChargeError::Query { name: "from", detail: format!("must be up to {MAX_DAYS} days before until") });
    }
    if by.token_store.is_some_and(|only| only != store) {
        return Err(ChargeError::StoreNotFound);
    }
    let mut connection = cx.master.acquire().await?;
    let access = stores::db::store_for_member(&mut connection, store, by.user.id).await?;
    let is_read_only = access.ok_or(ChargeError::StoreNotFound)?.store.is_read_only;
    let charges = db::charges_between(&mut connection, store, from, until).await?;
    let counts = db::usage_between(&mut connection, store, from, until).await?;
    let arrears = db::arrears(&mut connection, store).await?;
    let read_only_at = arrears.since.filter(|_| !is_read_only).map(|since| since + cx.limits.charges.grace());
    Ok(Usage { store, from, until, charges, counts, arrears, is_read_only, read_only_at })
}

/// Forgets what has served its time.
pub async fn keep_house(cx: &OpsCx) -> Result<(), sqlx::Error> {
    let before = cx.clock.now() - KEYS_KEPT;
    let mut connection = cx.master.acquire().await?;
    db::usage_adds_purge(&mut connection, before).await?;
    db::usage_flushes_purge(&mut connection, before).await?;
    Ok(())
}

impl From<ChargeError> for Problem {
    fn from(error: ChargeError) -> Self {
        match error {
            ChargeError::Invalid { pointer, code, detail } => Self::invalid().field(pointer, code, detail),
            ChargeError::Query { name, detail } => crate::http::errors::invalid_query(name, detail),
            ChargeError::StoreNotFound => Self::not_found().detail("No store of yours has this id."),
            ChargeError::ChargeNotFound => Self::not_found().detail("The store has no such charge on that day."),
            ChargeError::Paid => Self::new(StatusCode::CONFLICT, "charge-paid", "The charge is paid").detail(
                "What is paid is not waived. Grant the credits back as compensation: POST /api/ops/credits/grants.",
            ),
            ChargeError::Credits(error) => error.into(),
            error @ ChargeError::Db(_) => crate::http::errors::unexpected(&error),
        }
    }
}
