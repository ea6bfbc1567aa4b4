//! What a store, or a person, may spend in a calendar month (UTC), and where an organization's credits went.

pub mod db;
pub mod routes;

use chrono::{DateTime, Utc};
use kernel::{CreditBudgetId, OrganizationId, StoreId, UserId};

use super::{CreditError, MAX_AMOUNT, invalid};
use crate::audit::{self, Actor, Subject};
use crate::cx::OpsCx;

/// The most thresholds that a budget tells of.
const MAX_ALERTS: usize = 10;

/// Whose spending is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BudgetSubject {
    Store(StoreId),
    Member(UserId),
}

/// A budget, and how much of it is used this month.
#[derive(Debug, Clone)]
pub struct Budget {
    pub id: CreditBudgetId,
    pub subject: BudgetSubject,
    pub monthly_amount: i64,
    /// A hard one refuses, a soft one only tells.
    pub is_hard: bool,
    pub alert_percents: Vec<i16>,
    pub used: i64,
}

/// A budget that is to hold from now on.
#[derive(Debug, Clone)]
pub struct NewBudget {
    pub subject: BudgetSubject,
    pub monthly_amount: i64,
    pub is_hard: bool,
    pub alert_percents: Vec<i16>,
}

/// The budgets of an organization.
pub async fn list(cx: &OpsCx, organization: OrganizationId) -> Result<Vec<Budget>, CreditError> {
    Ok(db::budgets(&mut *cx.master.acquire().await?, organization, cx.clock.now()).await?)
}

/// Sets the budget of a store or a person; what the month has used already counts.
pub async fn set(
    cx: &OpsCx,
    by: UserId,
    organization: OrganizationId,
    new: &NewBudget,
) -> Result<Vec<Budget>, CreditError> {
    if !(0..=MAX_AMOUNT).contains(&new.monthly_amount) {
        return Err(invalid("/monthlyAmount", "range", format!("must be 0 to {MAX_AMOUNT}")));
    }
    let mut percents = new.alert_percents.clone();
    percents.sort_unstable();
    percents.dedup();
    if percents.len() > MAX_ALERTS || percents.iter().any(|percent| !(1..=1000).contains(percent)) {
        return Err(invalid("/alertPercents", "range", format!("at most {MAX_ALERTS} whole percentages of 1 to 1000")));
    }
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    if !db::budget_subject_exists(&mut tx, organization, new.subject).await? {
        return Err(match new.subject {
            BudgetSubject::Store(_) => invalid("/storeId", "unknown", "is no store of the organization"),
            BudgetSubject::Member(_) => invalid("/userId", "unknown", "is no member of the organization"),
        });
    }
    let budget = NewBudget { alert_percents: percents, ..new.clone() };
    db::budget_set(&mut tx, organization, new.subject, Some((CreditBudgetId::new(now), &budget)), now).await?;
    let data =
        serde_json::json!({ "monthlyAmount": new.monthly_amount, "isHard": new.is_hard, "of": name(new.subject) });
    audit::record(&mut tx, now, Actor::User(by), "credit_budget_set", Subject::organization(organization), data)
        .await?;
    let all = db::budgets(&mut tx, organization, now).await?;
    tx.commit().await?;
    Ok(all)
}

/// Removes a budget; nobody is limited by it from now on.
pub async fn remove(
    cx: &OpsCx,
    by: UserId,
    organization: OrganizationId,
    subject: BudgetSubject,
) -> Result<(), CreditError> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    db::budget_set(&mut tx, organization, subject, None, now).await?;
    let data = serde_json::json!({ "of": name(subject) });
    audit::record(&mut tx, now, Actor::User(by), "credit_budget_remove", Subject::organization(organization), data)
        .await?;
    Ok(tx.commit().await?)
}

fn name(subject: BudgetSubject) -> String {
    match subject {
        BudgetSubject::Store(id) => id.to_string(),
        BudgetSubject::Member(id) => id.to_string(),
    }
}

/// The mark below which a falling balance is told, if there is one.
pub async fn low_balance(cx: &OpsCx, organization: OrganizationId) -> Result<Option<i64>, CreditError> {
    Ok(db::low_balance(&mut *cx.master.acquire().await?, organization).await?)
}

/// Sets the mark below which a falling balance is told; none when it is to be told of no more.
pub async fn set_low_balance(
    cx: &OpsCx,
    by: UserId,
    organization: OrganizationId,
    mark: Option<i64>,
) -> Result<(), CreditError> {
    if mark.is_some_and(|mark| !(1..=MAX_AMOUNT).contains(&mark)) {
        return Err(invalid("/lowBalance", "range", format!("must be 1 to {MAX_AMOUNT}, or null")));
    }
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    db::low_balance_set(&mut tx, organization, mark).await?;
    let data = serde_json::json!({ "lowBalance": mark });
    audit::record(&mut tx, now, Actor::User(by), "credit_alerts_set", Subject::organization(organization), data)
        .await?;
    Ok(tx.commit().await?)
}

/// What was spent of one service on one store in one month.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Allocation {
    /// The calendar month, in UTC.
    #[schema(example = "2026-11")]
    pub month: String,
    pub store_id: Option<StoreId>,
    /// Null for what was spent without a service.
    pub service: Option<String>,
    pub credits: i64,
    pub transactions: i64,
}

/// Where the credits went, month by month, over at most two years.
pub async fn allocation(
    cx: &OpsCx,
    organization: OrganizationId,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<Vec<Allocation>, CreditError> {
    if until <= from || until - from > chrono::Duration::days(750) {
        return Err(CreditError::Query {
            name: "until",
            detail: "must be after `from`, by at most two years".to_owned(),
        });
    }
    Ok(db::allocation(&mut *cx.master.acquire().await?, organization, from, until).await?)
}
