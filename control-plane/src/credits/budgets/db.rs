//! SQL of budgets and of the views on what was spent.

use chrono::{DateTime, Utc};
use kernel::{CreditBudgetId, OrganizationId, StoreId, UserId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Allocation, Budget, BudgetSubject, NewBudget};

/// The reason of the hard budget that does not allow so much more, if one stands in the way.
pub async fn budget_refusal(
    conn: &mut PgConnection,
    organization: OrganizationId,
    store: StoreId,
    actor: UserId,
    amount: i64,
    now: DateTime<Utc>,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select credit_budget_refusal(a, $2, $3, $4, $5) as reason from credit_accounts a where a.organization_id = $1"#,
        organization.as_uuid(),
        store.as_uuid(),
        actor.as_uuid(),
        amount,
        now,
    )
    .fetch_one(conn)
    .await
}

/// The budgets of an organization, and what of the running month is used.
pub async fn budgets(
    conn: &mut PgConnection,
    organization: OrganizationId,
    now: DateTime<Utc>,
) -> Result<Vec<Budget>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select b.id as "id: CreditBudgetId", b.subject_kind, b.subject_id, b.monthly_amount, b.is_hard, b.alert_percents,
                  coalesce(m.used, 0) as "used!"
           from credit_budgets b
           left join credit_budget_months m
             on m.budget_id = b.id and m.month = date_trunc('month', $2::timestamptz at time zone 'UTC')::date
           where b.organization_id = $1
           order by b.subject_kind desc, b.id"#,
        organization.as_uuid(),
        now,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Budget {
            id: row.id,
            subject: match row.subject_kind.as_str() {
                "store" => BudgetSubject::Store(StoreId::from_uuid(row.subject_id)),
                _ => BudgetSubject::Member(UserId::from_uuid(row.subject_id)),
            },
            monthly_amount: row.monthly_amount,
            is_hard: row.is_hard,
            alert_percents: row.alert_percents,
            used: row.used,
        })
        .collect())
}

fn subject(of: BudgetSubject) -> (&'static str, Uuid) {
    match of {
        BudgetSubject::Store(id) => ("store", id.as_uuid()),
        BudgetSubject::Member(id) => ("member", id.as_uuid()),
    }
}

/// Whether the store, or the person, is of the organization.
pub async fn budget_subject_exists(
    conn: &mut PgConnection,
    organization: OrganizationId,
    of: BudgetSubject,
) -> Result<bool, sqlx::Error> {
    let (kind, id) = subject(of);
    sqlx::query_scalar!(
        r#"select case $2 when 'store' then exists (select from stores where id = $3 and organization_id = $1)
                  else exists (select from organization_members where user_id = $3 and organization_id = $1) end as "exists!""#,
        organization.as_uuid(),
        kind,
        id,
    )
    .fetch_one(conn)
    .await
}

/// Sets a budget, or removes it.
pub async fn budget_set(
    conn: &mut PgConnection,
    organization: OrganizationId,
    of: BudgetSubject,
    new: Option<(CreditBudgetId, &NewBudget)>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let (kind, id) = subject(of);
    sqlx::query!(
        r#"select credit_budget_set($1, $2, $3, $4, $5, $6, $7, $8)::text as done"#,
        organization.as_uuid(),
        new.map(|(id, _)| id.as_uuid()),
        kind,
        id,
        new.map(|(_, budget)| budget.monthly_amount),
        new.map(|(_, budget)| budget.is_hard),
        new.map(|(_, budget)| budget.alert_percents.as_slice()),
        now,
    )
    .fetch_one(conn)
    .await?;
    Ok(())
}

pub async fn low_balance(conn: &mut PgConnection, organization: OrganizationId) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar!("select low_balance from credit_accounts where organization_id = $1", organization.as_uuid(),)
        .fetch_one(conn)
        .await
}

pub async fn low_balance_set(
    conn: &mut PgConnection,
    organization: OrganizationId,
    mark: Option<i64>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update credit_accounts set low_balance = $2 where organization_id = $1",
        organization.as_uuid(),
        mark,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// What was spent by month, store and service.
pub async fn allocation(
    conn: &mut PgConnection,
    organization: OrganizationId,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<Vec<Allocation>, sqlx::Error> {
    sqlx::query_as!(
        Allocation,
        r#"select to_char(t.created_at at time zone 'UTC', 'YYYY-MM') as "month!", t.store_id as "store_id: StoreId", t.service,
                  sum(e.amount)::bigint as "credits!", count(*) as "transactions!"
           from credit_transactions t
           join credit_entries e on e.organization_id = t.organization_id and e.version = t.version and e.account = 'revenue'
           where t.organization_id = $1 and t.created_at >= $2 and t.created_at < $3
           group by 1, 2, 3
           order by 1, 2, 3"#,
        organization.as_uuid(),
        from,
        until,
    )
    .fetch_all(conn)
    .await
}
