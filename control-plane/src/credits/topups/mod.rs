//! Automatic top-up: when an organization's credits fall below what it set, a pack is bought with the card that it left.
//!
//! - At most one automatic purchase of an organization is under way, whatever runs at once: the rule's row is locked while one
//!   is written down, and an index refuses a second one. Nothing else is bought before its outcome is known.
//! - It is written down with everything that is asked of the provider before the provider is asked. Whoever takes it up again
//!   looks first whether the payment is there, and asks under the same key, so that there is one charge. What could not be
//!   asked for within a day comes to nothing.
//! - Nobody asks for what is not wanted any more: with a card that is not the organization's now, or for a rule that is off or
//!   gone. What was asked for before is still looked for.
//! - That the provider does not answer says nothing about the card: only what it refuses counts as a decline. After a decline
//!   the rule waits, after [`MAX_DECLINES`] in a row it is off, and the organization is told of each.
//! - When money of an automatic purchase goes back, or is disputed, the rule is off: it would buy what was given back at once
//!   again. An organization that owes credits is not sold any by itself either, so that no debt is paid with a card unasked.
//! - A calendar month (UTC) costs no more than the cap, purchases under way counted. What was written down in a month is asked
//!   for in that month only, and a month in which one currency was paid is not capped in another.
//! - Nobody is charged more than [`MAX_A_DAY`] times on one day, whatever goes round in a circle.

pub mod cards;
pub mod db;
pub mod jobs;
pub mod routes;

use axum::http::StatusCode;
use chrono::{DateTime, Datelike as _, Duration, Months, NaiveDate, NaiveTime, Utc};
use kernel::{CreditPackId, OrganizationId, PurchaseId, UserId};
use problem::Problem;
use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;

use super::packs::{self, Pack};
use super::purchases::db as orders;
use super::purchases::{self, Learned, POINTER, Payments, Purchase, PurchaseError, PurchaseState};
use super::stripe::StripeError;
use super::stripe::objects::{AUTHENTICATION_REQUIRED, PaymentIntent};
use super::{CreditError, check_amount, request_hash};
use crate::audit::{self, Actor, Subject};
use crate::cx::OpsCx;
use crate::webhooks;
use crate::webhooks::events::{TopUpCapped, TopUpDeclined, TopUpFailed, TopUpNeedsAuthentication, TopUpOff};

/// So many payments that are declined in a row switch a rule off.
pub const MAX_DECLINES: i32 = 3;
/// So many automatic purchases of one organization are tried on one day (UTC), those counted that come to nothing.
pub const MAX_A_DAY: i64 = 10;
/// A purchase whose outcome is not known is looked at so soon: long after every call for it has ended.
const RETRY: Duration = Duration::minutes(1);
/// The provider knows a key for a day at least.
const KEY_KEPT: Duration = Duration::hours(24);
/// What it knows nothing of after so long comes to nothing.
const GIVE_UP: Duration = Duration::hours(25);

/// Why a rule is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum OffReason {
    ByManager,
    /// The card was declined again and again.
    Declined,
    CardRemoved,
    /// The pack is not sold any more.
    PackRetired,
    /// Money of an automatic purchase went back.
    Refunded,
    /// Somebody says that they did not buy an automatic purchase.
    Disputed,
}

impl OffReason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ByManager => "by_manager",
            Self::Declined => "declined",
            Self::CardRemoved => "card_removed",
            Self::PackRetired => "pack_retired",
            Self::Refunded => "refunded",
            Self::Disputed => "disputed",
        }
    }
}

/// When an organization's credits are bought by themselves, and how that goes.
#[derive(Debug, Clone)]
pub struct Rule {
    pub organization_id: OrganizationId,
    pub threshold: i64,
    pub pack_id: CreditPackId,
    pub monthly_cap_minor: i64,
    pub is_enabled: bool,
    pub off_reason: Option<OffReason>,
    /// In a row, since it was last set or bought something.
    pub consecutive_declines: i32,
    pub declined_at: Option<DateTime<Utc>>,
    pub last_failure: Option<String>,
    /// The month in which the next pack would have been too much.
    pub capped_month: Option<NaiveDate>,
    /// The day on which enough was tried.
    pub limited_day: Option<NaiveDate>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl Rule {
    /// Until when nothing is tried after a decline.
    fn waits_until(&self, backoffs: [Duration; 2]) -> Option<DateTime<Utc>> {
        let backoff = match self.consecutive_declines {
            0 => return None,
            1 => backoffs[0],
            _ => backoffs[1],
        };
        self.declined_at.map(|at| at + backoff)
    }
}

/// A calendar month in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Month {
    pub first: NaiveDate,
    pub begin: DateTime<Utc>,
    /// When the next one begins.
    pub end: DateTime<Utc>,
}

impl Month {
    /// The month of a moment.
    pub fn of(moment: DateTime<Utc>) -> Self {
        let day = moment.date_naive();
        let first = day.with_day(1).unwrap_or(day);
        let next = first.checked_add_months(Months::new(1)).unwrap_or(NaiveDate::MAX);
        let midnight = |day: NaiveDate| day.and_time(NaiveTime::MIN).and_utc();
        Self { first, begin: midnight(first), end: midnight(next) }
    }
}

/// Why a rule that is on buys nothing now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Hindrance {
    /// Credits are owed: a pack would repay them first, and nobody asked for that.
    Debt,
    /// The last payment was declined a moment ago.
    Declined,
    /// One more pack would cost more than the month may.
    MonthlyCap,
    /// Ten purchases were tried today.
    DailyLimit,
}

/// A rule, and how it stands.
#[derive(Debug)]
pub struct TopUp {
    pub rule: Rule,
    pub pack: Pack,
    /// What this month's automatic purchases cost, those counted that are under way.
    pub spent_this_month_minor: i64,
    pub is_capped: bool,
    pub held_back_by: Option<Hindrance>,
    /// Until when nothing is tried after a decline.
    pub next_attempt_at: Option<DateTime<Utc>>,
    pub in_flight: Option<Purchase>,
}

/// Why something about top-ups or their card was refused.
#[derive(Debug, thiserror::Error)]
pub enum TopUpError {
    #[error("the organization has no card")]
    NoCard,
    #[error("there is no such card of this organization's")]
    CardUnknown,
    #[error("it is no card")]
    NotACard,
    #[error("the card is being removed")]
    CardGoing,
    #[error("a rule needs a card")]
    CardNeeded,
    #[error("the organization has no rule")]
    NoRule,
    #[error("the cap is below the price of the pack, {price_minor}")]
    CapBelowPrice { price_minor: i64 },
    #[error("this month's automatic purchases are in {currency}")]
    OtherCurrency { currency: String },
    #[error(transparent)]
    Purchase(#[from] PurchaseError),
}

impl From<sqlx::Error> for TopUpError {
    fn from(error: sqlx::Error) -> Self {
        Self::Purchase(error.into())
    }
}

impl From<CreditError> for TopUpError {
    fn from(error: CreditError) -> Self {
        Self::Purchase(error.into())
    }
}

impl From<StripeError> for TopUpError {
    fn from(error: StripeError) -> Self {
        Self::Purchase(error.into())
    }
}

/// What came of top-ups, for the metrics.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    Ordered,
    Completed,
    Declined,
    NeedsAuthentication,
    /// The provider's answer is not known yet.
    Unanswered,
    Capped,
    Limited,
    SwitchedOff,
}

impl Outcome {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ordered => "ordered",
            Self::Completed => "completed",
            Self::Declined => "declined",
            Self::NeedsAuthentication => "needs_authentication",
            Self::Unanswered => "unanswered",
            Self::Capped => "capped",
            Self::Limited => "limited",
            Self::SwitchedOff => "switched_off",
        }
    }

    fn count(self) {
        metrics::counter!("tenantry_top_ups_total", "outcome" => self.as_str()).increment(1);
    }
}

/// Where the day (UTC) of a moment begins, and the next one.
fn day_of(moment: DateTime<Utc>) -> [DateTime<Utc>; 2] {
    let begin = moment.date_naive().and_time(NaiveTime::MIN).and_utc();
    [begin, begin + Duration::days(1)]
}

/// A rule that is to hold from now on.
#[derive(Debug, Clone)]
pub struct NewRule {
    pub threshold: i64,
    pub pack_id: CreditPackId,
    pub monthly_cap_minor: i64,
    pub is_enabled: bool,
}

/// Sets the rule of an organization; what was declined before is forgotten.
pub async fn set(cx: &OpsCx, by: UserId, organization: OrganizationId, new: &NewRule) -> Result<TopUp, TopUpError> {
    let threshold = check_amount(new.threshold, "/threshold")?;
    purchases::payments(cx)?;
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let pack = packs::db::pack_find(&mut tx, new.pack_id).await?.filter(|pack| pack.retired_at.is_none());
    let pack = pack.ok_or(PurchaseError::PackNotFound)?;
    if new.monthly_cap_minor < pack.price_minor {
        return Err(TopUpError::CapBelowPrice { price_minor: pack.price_minor });
    }
    db::card_find(&mut tx, organization).await?.ok_or(TopUpError::CardNeeded)?;
    let known = db::rule_lock(&mut tx, organization).await?;
    // One cap cannot be held against two currencies.
    if let Some(currency) = db::month_other_currency(&mut tx, organization, &pack.currency, &Month::of(now)).await? {
        return Err(TopUpError::OtherCurrency { currency });
    }
    let rule = Rule {
        organization_id: organization,
        threshold,
        pack_id: pack.id,
        monthly_cap_minor: new.monthly_cap_minor,
        is_enabled: new.is_enabled,
        off_reason: Some(OffReason::ByManager).filter(|_| !new.is_enabled),
        consecutive_declines: 0,
        declined_at: None,
        last_failure: None,
        capped_month: None,
        limited_day: None,
        created_at: known.map_or(now, |known| known.created_at),
        updated_at: now,
    };
    db::rule_save(&mut tx, &rule).await?;
    let data = json!({
        "threshold": threshold, "packId": pack.id, "monthlyCapMinor": new.monthly_cap_minor, "isEnabled": new.is_enabled,
    });
    let subject = Subject::organization(organization);
    audit::record(&mut tx, now, Actor::User(by), "credit_top_up_set", subject, data).await?;
    tx.commit().await?;
    find(cx, organization).await
}

/// The rule of an organization, and how it stands.
pub async fn find(cx: &OpsCx, organization: OrganizationId) -> Result<TopUp, TopUpError> {
    let now = cx.clock.now();
    let month = Month::of(now);
    let mut connection = cx.master.acquire().await?;
    let rule = db::rule_find(&mut connection, organization).await?.ok_or(TopUpError::NoRule)?;
    let pack = packs::db::pack_find(&mut connection, rule.pack_id).await?.ok_or(sqlx::Error::RowNotFound)?;
    let (spent_this_month_minor, _) = db::month_used(&mut connection, organization, &pack.currency, &month).await?;
    let in_flight = match db::top_up_in_flight(&mut connection, organization).await? {
        Some(id) => orders::purchase_find(&mut connection, id).await?,
        None => None,
    };
    let backoffs = cx.payments.as_ref().map(|payments| payments.top_up_backoffs);
    let after_decline = backoffs.and_then(|backoffs| rule.waits_until(backoffs)).filter(|&until| until > now);
    let after_day = rule.limited_day.filter(|&day| day == now.date_naive()).map(|_| day_of(now)[1]);
    let next_attempt_at = after_decline.max(after_day).filter(|_| rule.is_enabled);
    let is_capped = rule.is_enabled && rule.capped_month == Some(month.first);
    let balance = super::db::balance_find(&mut connection, organization).await?;
    let held_back_by = if !rule.is_enabled {
        None
    } else if balance.is_some_and(|(balance, _)| balance.debt > 0) {
        Some(Hindrance::Debt)
    } else if is_capped {
        Some(Hindrance::MonthlyCap)
    } else if rule.limited_day == Some(now.date_naive()) {
        Some(Hindrance::DailyLimit)
    } else {
        next_attempt_at.map(|_| Hindrance::Declined)
    };
    Ok(TopUp { rule, pack, spent_this_month_minor, is_capped, held_back_by, next_attempt_at, in_flight })
}

/// Removes the rule of an organization. What was asked for goes on.
pub async fn remove(cx: &OpsCx, by: UserId, organization: OrganizationId) -> Result<(), TopUpError> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    if db::rule_remove(&mut tx, organization).await? {
        let subject = Subject::organization(organization);
        audit::record(&mut tx, now, Actor::User(by), "credit_top_up_remove", subject, json!({})).await?;
    }
    Ok(tx.commit().await?)
}

/// Switches a rule off, and tells of it. The caller holds its row, and saw that it was on.
async fn switch_off(
    tx: &mut PgConnection,
    rule: &mut Rule,
    reason: OffReason,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    (rule.is_enabled, rule.off_reason, rule.updated_at) = (false, Some(reason), now);
    db::rule_save(tx, rule).await?;
    let off = TopUpOff {
        reason,
        pack_id: rule.pack_id,
        consecutive_declines: rule.consecutive_declines,
        failure: rule.last_failure.clone(),
    };
    let key = format!("top-up-off:{}:{}", reason.as_str(), now.timestamp_micros());
    webhooks::tell_of(tx, rule.organization_id, &off, &key, now).await?;
    let subject = Subject::organization(rule.organization_id);
    audit::record(tx, now, Actor::System, "credit_top_up_off", subject, webhooks::data_of(&off)?).await?;
    Outcome::SwitchedOff.count();
    Ok(())
}

/// An automatic purchase is paid: what was declined before is forgotten. The caller holds the purchase's row.
pub async fn follow_success(tx: &mut PgConnection, purchase: &Purchase, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    Outcome::Completed.count();
    db::rule_forgive(tx, purchase.organization_id, now).await
}

/// An automatic purchase was declined: the organization is told, and its rule waits, or is off. The caller holds the
/// purchase's row, and has just ended it.
pub async fn follow_failure(tx: &mut PgConnection, purchase: &Purchase, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    let organization = purchase.organization_id;
    let why = purchase.failure.as_deref().unwrap_or("payment_failed");
    let needs_authentication = why == AUTHENTICATION_REQUIRED;
    let outcome = if needs_authentication { Outcome::NeedsAuthentication } else { Outcome::Declined };
    outcome.count();
    let card = db::card_find(tx, organization).await?;
    // What a card did that was replaced since says nothing about the one that took its place.
    let is_of_this_card = card.is_some_and(|card| Some(&card.method_ref) == purchase.payment_method.as_ref());
    let rule = db::rule_lock(tx, organization).await?.filter(|rule| rule.is_enabled && is_of_this_card);
    let rule = match rule {
        Some(mut rule) => {
            rule.consecutive_declines += 1;
            (rule.declined_at, rule.last_failure, rule.updated_at) = (Some(now), Some(why.to_owned()), now);
            db::rule_save(tx, &rule).await?;
            Some(rule)
        }
        None => None,
    };
    let declines = rule.as_ref().map_or(0, |rule| rule.consecutive_declines);
    let declined = TopUpDeclined {
        purchase_id: purchase.id,
        pack_id: purchase.pack_id,
        amount_minor: purchase.amount_minor,
        currency: purchase.currency.clone(),
        failure: why.to_owned(),
        consecutive_declines: declines,
    };
    let key = format!("top-up-failed:{}", purchase.id);
    if needs_authentication {
        webhooks::tell_of(tx, organization, &TopUpNeedsAuthentication { declined }, &key, now).await?;
    } else {
        webhooks::tell_of(tx, organization, &TopUpFailed { declined }, &key, now).await?;
    }
    match rule {
        Some(mut rule) if declines >= MAX_DECLINES => switch_off(tx, &mut rule, OffReason::Declined, now).await,
        _ => Ok(()),
    }
}

/// Money of an automatic purchase went back, or is disputed: nothing more is bought until a manager says so. The caller holds the
/// rows of the purchase and of the account.
pub async fn follow_reversal(
    tx: &mut PgConnection,
    purchase: &Purchase,
    reason: OffReason,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    match db::rule_lock(tx, purchase.organization_id).await? {
        Some(mut rule) if rule.is_enabled => switch_off(tx, &mut rule, reason, now).await,
        _ => Ok(()),
    }
}

/// Writes an automatic purchase down, if the rule wants one now. Of many that ask at once one does.
async fn order(cx: &OpsCx, payments: &Payments, organization: OrganizationId) -> Result<Option<Purchase>, TopUpError> {
    // What has expired is booked before, by itself: under the rule's lock nothing waits for the account's.
    super::balance(cx, organization).await?;
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let Some(mut rule) = db::rule_take(&mut tx, organization).await? else { return Ok(None) };
    // First what is under way, then the balance: what has ended by now is in it.
    if !rule.is_enabled || db::top_up_in_flight(&mut tx, organization).await?.is_some() {
        return Ok(None);
    }
    let pack = packs::db::pack_find(&mut tx, rule.pack_id).await?.ok_or(sqlx::Error::RowNotFound)?;
    let card = db::card_find(&mut tx, organization).await?;
    let impossible = match card {
        _ if pack.retired_at.is_some() => Some(OffReason::PackRetired),
        None => Some(OffReason::CardRemoved),
        Some(_) => None,
    };
    if let Some(reason) = impossible {
        switch_off(&mut tx, &mut rule, reason, now).await?;
        tx.commit().await?;
        cx.outbox_news.notify_one();
        return Ok(None);
    }
    let (balance, _) =
        super::db::balance_find(&mut tx, organization).await?.ok_or(CreditError::OrganizationNotFound)?;
    let is_waiting = rule.waits_until(payments.top_up_backoffs).is_some_and(|until| until > now);
    let month = Month::of(now);
    let is_wanted = balance.available < rule.threshold && balance.debt == 0;
    let has_had_enough = rule.capped_month == Some(month.first) || rule.limited_day == Some(now.date_naive());
    if !is_wanted || is_waiting || has_had_enough {
        return Ok(None);
    }
    let (spent, count) = db::month_used(&mut tx, organization, &pack.currency, &month).await?;
    if spent + pack.price_minor > rule.monthly_cap_minor {
        cap(&mut tx, &mut rule, &pack, spent, &month, now).await?;
        tx.commit().await?;
        cx.outbox_news.notify_one();
        return Ok(None);
    }
    if db::tried_since(&mut tx, organization, day_of(now)[0]).await? >= MAX_A_DAY {
        limit(&mut tx, &mut rule, &pack, now).await?;
        tx.commit().await?;
        cx.outbox_news.notify_one();
        return Ok(None);
    }
    let Some(card) = card else { return Ok(None) };
    let key = format!("topup:{organization}:{}:{}", month.first.format("%Y-%m"), count + 1);
    let hash = request_hash("top_up", &(organization, pack.id, &key))?;
    let purchase = Purchase {
        is_auto: true,
        customer_ref: Some(card.customer_ref),
        payment_method: Some(card.method_ref),
        called_at: Some(now),
        next_check_at: Some(now + RETRY),
        ..Purchase::of_pack(organization, &pack, &hash, now)
    };
    if !orders::purchase_insert(&mut tx, &purchase, &key).await? {
        return Ok(None);
    }
    let data = json!({
        "purchaseId": purchase.id, "packId": pack.id, "amountMinor": pack.price_minor, "currency": pack.currency,
        "available": balance.available, "threshold": rule.threshold,
    });
    let subject = Subject::organization(organization);
    audit::record(&mut tx, now, Actor::System, "purchase_create", subject, data).await?;
    tx.commit().await?;
    Outcome::Ordered.count();
    Ok(Some(purchase))
}

/// Remembers that this month can pay for no further pack, and tells of it once a month.
async fn cap(
    tx: &mut PgConnection,
    rule: &mut Rule,
    pack: &Pack,
    spent_minor: i64,
    month: &Month,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    (rule.capped_month, rule.updated_at) = (Some(month.first), now);
    db::rule_save(tx, rule).await?;
    let capped = TopUpCapped::MonthlyCap {
        pack_id: pack.id,
        price_minor: pack.price_minor,
        spent_minor,
        monthly_cap_minor: rule.monthly_cap_minor,
        currency: pack.currency.clone(),
        until: month.end,
    };
    let key = format!("top-up-capped:{}", month.first.format("%Y-%m"));
    webhooks::tell_of(tx, rule.organization_id, &capped, &key, now).await?;
    Outcome::Capped.count();
    Ok(())
}

/// Remembers that enough was tried today, and tells of it once a day.
async fn limit(tx: &mut PgConnection, rule: &mut Rule, pack: &Pack, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    (rule.limited_day, rule.updated_at) = (Some(now.date_naive()), now);
    db::rule_save(tx, rule).await?;
    let limited = TopUpCapped::DailyLimit { pack_id: pack.id, attempts: MAX_A_DAY, until: day_of(now)[1] };
    let key = format!("top-up-limited:{}", now.date_naive());
    webhooks::tell_of(tx, rule.organization_id, &limited, &key, now).await?;
    Outcome::Limited.count();
    Ok(())
}

/// Buys for an organization, if its rule wants that now.
async fn buy(cx: &OpsCx, payments: &Payments, organization: OrganizationId) -> Result<(), TopUpError> {
    if let Some(purchase) = order(cx, payments, organization).await?
        && is_still_wanted(cx, &purchase).await?
    {
        let learned = ask(cx, payments, &purchase).await?;
        withdraw_if_stuck(cx, payments, learned).await?;
    }
    Ok(())
}

/// Whether a purchase may be asked for that was written down before: the card is still the organization's, the rule on, and
/// the month the one whose cap it was held against.
async fn is_still_wanted(cx: &OpsCx, purchase: &Purchase) -> Result<bool, sqlx::Error> {
    let organization = purchase.organization_id;
    let mut tx = cx.master.begin().await?;
    // Under their locks: whoever is changing them is waited for.
    let card = db::card_lock(&mut tx, organization).await?;
    let rule = db::rule_lock(&mut tx, organization).await?;
    tx.commit().await?;
    let is_of_this_card = card.is_some_and(|card| Some(&card.method_ref) == purchase.payment_method.as_ref());
    let is_of_this_month = Month::of(purchase.created_at) == Month::of(cx.clock.now());
    Ok(is_of_this_card && is_of_this_month && rule.is_some_and(|rule| rule.is_enabled))
}

/// Takes up an automatic purchase whose outcome is not known, unless somebody else is at it.
pub(super) async fn take_up(cx: &OpsCx, payments: &Payments, id: PurchaseId) -> Result<(), PurchaseError> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let mut purchase = orders::purchase_lock(&mut tx, id).await?.ok_or(PurchaseError::NotFound)?;
    if !purchase.state.is_unfinished() || purchase.next_check_at.is_none_or(|at| at > now) {
        return Ok(());
    }
    let is_on_its_way = purchase.state == PurchaseState::Processing;
    purchase.next_check_at = Some(now + if is_on_its_way { purchases::CHECK_PERIOD } else { RETRY });
    orders::purchase_save(&mut tx, &purchase).await?;
    tx.commit().await?;

    // Whatever was asked for before may be there, whether or not its answer was heard.
    let known = match &purchase.payment_intent {
        Some(intent) => match payments.stripe.payment_intent_get(intent).await {
            Err(error) if error.is_missing() => None,
            outcome => Some(outcome?),
        },
        None => intent_find(payments, &purchase).await?,
    };
    let asked_at = purchase.called_at.unwrap_or(purchase.created_at);
    let may_ask = purchase.payment_intent.is_none() && asked_at + KEY_KEPT > now;
    let purchase = match known {
        Some(intent) => purchases::learn(cx, id, &Learned { intent: Some(&intent), ..Learned::default() }).await?,
        None if may_ask && is_still_wanted(cx, &purchase).await? => ask(cx, payments, &purchase).await?,
        None if asked_at + GIVE_UP > now => purchase,
        None => purchases::learn_nothing(cx, id).await?,
    };
    withdraw_if_stuck(cx, payments, purchase).await
}

/// The payment that was made for a purchase, if it was.
async fn intent_find(payments: &Payments, purchase: &Purchase) -> Result<Option<PaymentIntent>, StripeError> {
    let customer = purchase.customer_ref.as_deref().unwrap_or_default();
    let name = purchase.id.to_string();
    let intents = payments.stripe.payment_intents_of(customer).await?;
    Ok(intents.data.into_iter().find(|intent| {
        intent.metadata.as_ref().and_then(|metadata| metadata.get(POINTER)).is_some_and(|id| *id == name)
    }))
}

/// Asks for the payment under the key that was written down. Everything that is said comes out of the purchase, so that it is
/// the same each time.
async fn ask(cx: &OpsCx, payments: &Payments, purchase: &Purchase) -> Result<Purchase, PurchaseError> {
    let form = [
        ("amount", purchase.amount_minor.to_string()),
        ("currency", purchase.currency.to_lowercase()),
        ("customer", purchase.customer_ref.clone().unwrap_or_default()),
        ("payment_method", purchase.payment_method.clone().unwrap_or_default()),
        // Without it, methods that lead the owner to another page are offered too, and refused here.
        ("payment_method_types[]", "card".to_owned()),
        ("off_session", "true".to_owned()),
        ("confirm", "true".to_owned()),
        ("metadata[purchase_id]", purchase.id.to_string()),
    ];
    match payments.stripe.payment_intent_create(&purchase.idempotency_key, &form).await {
        Ok(intent) => purchases::learn(cx, purchase.id, &Learned { intent: Some(&intent), ..Learned::default() }).await,
        Err(StripeError::Declined { code, payment_intent }) => {
            refused(cx, purchase, &code, payment_intent.as_deref()).await
        }
        // The card, or whose it is, is not as it was. That the key was used otherwise says nothing about them.
        Err(StripeError::Refused { status: 400 | 404, code }) if code != "idempotency_error" => {
            refused(cx, purchase, &code, None).await
        }
        Err(error) => {
            Outcome::Unanswered.count();
            tracing::warn!(purchase.id = %purchase.id, "the outcome of top-up {} is not known yet: {error}", purchase.id);
            Err(error.into())
        }
    }
}

async fn refused(cx: &OpsCx, purchase: &Purchase, why: &str, intent: Option<&str>) -> Result<Purchase, PurchaseError> {
    purchases::learn(cx, purchase.id, &Learned { refusal: Some((why, intent)), ..Learned::default() }).await
}

/// Gives a payment up that waits for somebody who is not there, or that nothing came of in a day.
async fn withdraw_if_stuck(cx: &OpsCx, payments: &Payments, purchase: Purchase) -> Result<(), PurchaseError> {
    let is_old = purchase.created_at + GIVE_UP < cx.clock.now();
    let is_stuck = match purchase.state {
        PurchaseState::RequiresAction => true,
        PurchaseState::Created => is_old,
        PurchaseState::Open
        | PurchaseState::Processing
        | PurchaseState::Completed
        | PurchaseState::Failed
        | PurchaseState::Expired => false,
    };
    let Some(intent) = purchase.payment_intent.filter(|_| is_stuck) else { return Ok(()) };
    let intent = match payments.stripe.payment_intent_cancel(&intent, &format!("cancel:{}", purchase.id)).await {
        // It was paid, or given up, meanwhile.
        Err(StripeError::Refused { .. }) => payments.stripe.payment_intent_get(&intent).await?,
        outcome => outcome?,
    };
    purchases::learn(cx, purchase.id, &Learned { intent: Some(&intent), ..Learned::default() }).await?;
    Ok(())
}

impl From<TopUpError> for Problem {
    fn from(error: TopUpError) -> Self {
        use StatusCode as S;
        match error {
            TopUpError::NoCard => Self::not_found().detail("The organization has left no card."),
            TopUpError::NoRule => Self::not_found().detail("The organization has set no automatic top-up."),
            TopUpError::CardUnknown => Self::new(
                S::UNPROCESSABLE_ENTITY,
                "payment-method-unknown",
                "There is no such card of this organization's",
            )
            .field(
                "/paymentMethod",
                "unknown",
                "is none of the organization's customer; take it down by /setup first",
            ),
            TopUpError::NotACard => Self::new(
                S::UNPROCESSABLE_ENTITY,
                "payment-method-not-a-card",
                "Only cards can pay for top-ups",
            )
            .field("/paymentMethod", "kind", "is no card"),
            TopUpError::CardGoing => {
                Self::new(S::CONFLICT, "payment-method-being-removed", "The card is being removed")
                    .detail("It was removed here and goes at the payment provider too. Take it down anew.")
            }
            TopUpError::CardNeeded => Self::new(S::CONFLICT, "payment-method-missing", "A top-up needs a card")
                .detail("Leave one first: PUT /api/credits/payment-method, or buy a pack with `saveCard`."),
            TopUpError::CapBelowPrice { price_minor } => Self::invalid().field(
                "/monthlyCapMinor",
                "range",
                format!("must be {price_minor} or more: the pack costs that much once"),
            ),
            TopUpError::OtherCurrency { currency } => Self::invalid().field(
                "/packId",
                "currency",
                format!("must be sold in {currency} until the month (UTC) ends: automatic purchases of this month are"),
            ),
            TopUpError::Purchase(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, NaiveDate, Utc};

    use super::Month;

    #[test]
    fn a_month_is_of_utc_and_ends_where_the_next_begins() {
        let moment = |text: &str| text.parse::<DateTime<Utc>>().expect("a moment");
        let december = Month::of(moment("2026-12-31T23:59:59.999999Z"));
        assert_eq!(december.first, NaiveDate::from_ymd_opt(2026, 12, 1).expect("a day"));
        assert_eq!((december.begin, december.end), (moment("2026-12-01T00:00:00Z"), moment("2027-01-01T00:00:00Z")));
        assert_eq!(Month::of(december.end).begin, december.end);
        assert_eq!(Month::of(moment("2027-01-01T00:30:00+01:00")), december);
    }
}
