//! SQL of visits: what stores' databases should have, held against what they have.

use chrono::{DateTime, NaiveDate, Utc};
use kernel::StoreId;
use sqlx::PgConnection;
use tenant_schema::credit_copy::{CreditState, SINCE_VERSION};

use super::{Visit, Wanted};

/// Claims stores whose copies do not say what they should, or whose orders are to be counted. Those with nothing but orders come
/// after the copies, because after midnight they are all stores, and those that failed come last, so that others do not wait for
/// them. Those that another node has claimed are passed over.
pub async fn visits_claim(conn: &mut PgConnection, wanted: &Wanted, limit: i64) -> Result<Vec<Visit>, sqlx::Error> {
    sqlx::query_as!(
        Visit,
        r#"with due as (
             select v.store_id, d.schema_version >= $6 as has_copy, c.state, c.spendable
             from store_visits v
             join stores s on s.id = v.store_id and s.status = 'active'
             join store_databases d on d.store_id = v.store_id and d.schema_version is not null
             join credit_accounts a on a.organization_id = s.organization_id
             left join credit_budgets b on b.organization_id = s.organization_id and b.subject_kind = 'store'
                 and b.subject_id = s.id and b.is_hard
             left join credit_budget_months m on m.budget_id = b.id and m.month = $2
             cross join lateral (
                 select case when b.id is not null then greatest(b.monthly_amount - coalesce(m.used, 0), 0) end as budget_left
             ) l
             -- Never the smaller of the two: it would be the organization's balance whenever that is smaller.
             cross join lateral (
                 select case
                     when a.available = 0 or l.budget_left = 0 then 'ended'
                     when l.budget_left > a.available then 'limited'
                     else 'open'
                 end as state,
                 case
                     when a.available = 0 or l.budget_left = 0 then 0
                     when l.budget_left <= a.available then l.budget_left
                 end as spendable
             ) c
             cross join lateral (
                 -- The last visit failed, or whoever made it died: nobody knows what it left.
                 select v.as_of is distinct from v.done_as_of
                     or (
                         d.schema_version >= $6
                         and (
                             v.written_at is null or v.written_at <= $4
                             or (v.state, v.spendable, v.month) is distinct from (c.state, c.spendable, $2)
                         )
                     ) as is_different
             ) w
             where v.next_visit_at <= $1 and (w.is_different or v.orders_counted_until < $3)
             order by v.failures > 0, w.is_different desc, v.next_visit_at
             limit $7
             for update of v skip locked
         )
         update store_visits v
         set as_of = greatest($1, v.as_of + interval '1 microsecond'), next_visit_at = $5
         from due
         where v.store_id = due.store_id
         returning v.store_id as "store_id: StoreId", due.has_copy as "has_copy!", due.state as "state!: CreditState",
                   due.spendable, $2::date as "month!", v.as_of as "as_of!", v.orders_counted_until, v.failures"#,
        wanted.now,
        wanted.month,
        wanted.over_until,
        wanted.rewrite_before,
        wanted.claimed_until,
        SINCE_VERSION,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Whether nobody has claimed the store since.
pub async fn visit_is_last(conn: &mut PgConnection, visit: &Visit) -> Result<bool, sqlx::Error> {
    let found = sqlx::query_scalar!(
        r#"select as_of = $2 as "is_last!" from store_visits where store_id = $1 and as_of is not null"#,
        visit.store_id.as_uuid(),
        visit.as_of,
    );
    Ok(found.fetch_optional(conn).await?.unwrap_or_default())
}

/// Writes down what a visit did; false when the store was claimed anew meanwhile, and nothing is written.
pub async fn visit_done(
    conn: &mut PgConnection,
    visit: &Visit,
    written_at: DateTime<Utc>,
    orders_counted_until: NaiveDate,
    next_visit_at: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "update store_visits
         set state = case when $3 then $4 else state end,
             spendable = case when $3 then $5 else spendable end,
             month = case when $3 then $6 else month end,
             written_at = case when $3 then $7 else written_at end,
             done_as_of = as_of, orders_counted_until = $8, next_visit_at = $9, failures = 0, error = null
         where store_id = $1 and as_of = $2",
        visit.store_id.as_uuid(),
        visit.as_of,
        visit.has_copy,
        visit.state.as_str(),
        visit.spendable,
        visit.month,
        written_at,
        orders_counted_until,
        next_visit_at,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Writes down whose orders were counted in a visit whose copy could not be written; false when the store was claimed anew
/// meanwhile.
pub async fn visit_counted(
    conn: &mut PgConnection,
    visit: &Visit,
    orders_counted_until: NaiveDate,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "update store_visits set orders_counted_until = $3 where store_id = $1 and as_of = $2",
        visit.store_id.as_uuid(),
        visit.as_of,
        orders_counted_until,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub async fn visit_failed(
    conn: &mut PgConnection,
    visit: &Visit,
    error: &str,
    next_visit_at: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update store_visits set failures = failures + 1, error = $3, next_visit_at = $4 where store_id = $1 and as_of = $2",
        visit.store_id.as_uuid(),
        visit.as_of,
        error,
        next_visit_at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Active stores that visits do not bring up to date.
#[derive(Debug)]
pub struct Unvisited {
    /// The schema of the database is older than the copy.
    pub without_copy: i64,
    pub failing: i64,
}

pub async fn visits_count(conn: &mut PgConnection) -> Result<Unvisited, sqlx::Error> {
    sqlx::query_as!(
        Unvisited,
        r#"select count(*) filter (where d.schema_version < $1) as "without_copy!",
                  count(*) filter (where v.failures > 0) as "failing!"
           from store_visits v
           join stores s on s.id = v.store_id and s.status = 'active'
           join store_databases d on d.store_id = v.store_id and d.schema_version is not null"#,
        SINCE_VERSION,
    )
    .fetch_one(conn)
    .await
}
