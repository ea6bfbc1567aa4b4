//! SQL of charges. Who charges an organization holds the row of its account first, then the rows of its charges.

use chrono::{DateTime, NaiveDate, Utc};
use kernel::{CreditTransactionId, OrganizationId, StoreId};
use sqlx::PgConnection;

use super::usage::Batch;
use super::{Arrears, Charge, ChargeFilter, ChargeState, DayUsage, Price};

/// Makes the charges of days that have begun, for activity that is behind, at most `days` of each and `limit` stores at a
/// time. Days that cost nothing get none; days that begin while a store is read-only are waived. A store that somebody changes
/// meanwhile is left for the next time: waiting for it here could be waiting for each other. Returns how many were behind.
pub async fn charges_make(
    conn: &mut PgConnection,
    today: NaiveDate,
    days: i32,
    limit: i64,
    now: DateTime<Utc>,
) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "with behind as (
             select a.id, a.store_id, s.organization_id, s.is_read_only, a.charged_until as first_day,
                    least(coalesce(a.last_day, $1), $1, a.charged_until + $2::integer) as last_day
             from store_activity a
             join stores s on s.id = a.store_id
             where (a.last_day is null or a.charged_until <= a.last_day) and a.charged_until <= $1
             order by a.charged_until, a.id
             limit $3
             for update of a skip locked
             for key share of s skip locked
         ), made as (
             insert into store_charges
                 (store_id, organization_id, day, service, quantity, amount, state, next_attempt_at, created_at, updated_at)
             select b.store_id, b.organization_id, b.first_day + n, 'store-day', 1, p.amount,
                    case when b.is_read_only then 'waived' else 'due' end, $4, $4, $4
             from behind b
             cross join generate_series(0, b.last_day - b.first_day) n
             cross join lateral (
                 select c.amount from charge_prices c
                 where c.service = 'store-day' and c.valid_from <= b.first_day + n
                 order by c.valid_from desc
                 limit 1
             ) p
             where p.amount > 0
             on conflict on constraint store_charges_pkey do nothing
         )
         update store_activity a set charged_until = b.last_day + 1 from behind b where a.id = b.id",
        today,
        days,
        limit,
        now,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Makes the charges of what was counted on days before `before`; returns how many counts were settled.
pub async fn usage_settle(
    conn: &mut PgConnection,
    before: NaiveDate,
    max_amount: i64,
    limit: i64,
    now: DateTime<Utc>,
) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "with counted as (
             select u.store_id, u.day, u.metric, u.quantity from usage_metrics u
             where not u.is_settled and u.day < $1
             order by u.day
             limit $3
             for update skip locked
         ), made as (
             insert into store_charges
                 (store_id, organization_id, day, service, quantity, amount, state, next_attempt_at, created_at, updated_at)
             select c.store_id, s.organization_id, c.day, 'metric:' || c.metric, c.quantity,
                    least(ceil(c.quantity::numeric / p.per) * p.amount, $2::bigint)::bigint, 'due', $4, $4, $4
             from counted c
             join stores s on s.id = c.store_id
             cross join lateral (
                 select x.amount, x.per from charge_prices x
                 where x.service = 'metric:' || c.metric and x.valid_from <= c.day
                 order by x.valid_from desc
                 limit 1
             ) p
             where p.amount > 0 and c.quantity > 0
             on conflict on constraint store_charges_pkey do nothing
         )
         update usage_metrics u set is_settled = true
         from counted c
         where u.store_id = c.store_id and u.day = c.day and u.metric = c.metric",
        before,
        max_amount,
        limit,
        now,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Organizations with something to be charged: what was never asked for, and what is owed and would be covered now.
pub async fn organizations_due(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<OrganizationId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select distinct c.organization_id as "id: OrganizationId"
           from store_charges c
           join credit_accounts a on a.organization_id = c.organization_id
           where c.state in ('due', 'unpaid') and c.next_attempt_at <= $1 and (c.state = 'due' or a.available >= c.amount)
           limit $2"#,
        now,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Locks an organization's account, and returns what it can spend.
pub async fn account_lock(conn: &mut PgConnection, organization: OrganizationId) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar!(
        "select available from credit_accounts where organization_id = $1 for update",
        organization.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// An organization's charges that are to be asked for now, oldest first.
pub async fn charges_lock(
    conn: &mut PgConnection,
    organization: OrganizationId,
    available: i64,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Charge>, sqlx::Error> {
    sqlx::query_as!(
        Charge,
        r#"select store_id as "store_id: StoreId", day, service, quantity, amount, state as "state: ChargeState", attempt,
                  transaction_id as "transaction_id: CreditTransactionId", reason, unpaid_since
           from store_charges
           where organization_id = $1 and state in ('due', 'unpaid') and next_attempt_at <= $3
             and (state = 'due' or amount <= $2)
           order by day, store_id, service
           limit $4
           for update"#,
        organization.as_uuid(),
        available,
        now,
        limit,
    )
    .fetch_all(conn)
    .await
}

pub async fn charge_paid(
    conn: &mut PgConnection,
    charge: &Charge,
    transaction: CreditTransactionId,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update store_charges
         set state = 'charged', transaction_id = $4, reason = null, unpaid_since = null, updated_at = $5
         where store_id = $1 and day = $2 and service = $3",
        charge.store_id.as_uuid(),
        charge.day,
        charge.service,
        transaction.as_uuid(),
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The ledger has refused it, for ever under this key: the next attempt has another one.
pub async fn charge_refused(
    conn: &mut PgConnection,
    charge: &Charge,
    reason: &str,
    next_attempt_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update store_charges
         set state = 'unpaid', attempt = attempt + 1, reason = $4, unpaid_since = coalesce(unpaid_since, $6),
             next_attempt_at = $5, updated_at = $6
         where store_id = $1 and day = $2 and service = $3",
        charge.store_id.as_uuid(),
        charge.day,
        charge.service,
        reason,
        next_attempt_at,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Waives what is not paid of these charges.
pub async fn charges_waive(
    conn: &mut PgConnection,
    of: &ChargeFilter,
    reason: &str,
    now: DateTime<Utc>,
) -> Result<Vec<Charge>, sqlx::Error> {
    sqlx::query_as!(
        Charge,
        r#"update store_charges
           set state = 'waived', reason = $4, unpaid_since = null, updated_at = $5
           where store_id = $1 and state in ('due', 'unpaid')
             and ($2::date is null or day = $2) and ($3::text is null or service = $3)
           returning store_id as "store_id: StoreId", day, service, quantity, amount, state as "state: ChargeState", attempt,
                     transaction_id as "transaction_id: CreditTransactionId", reason, unpaid_since"#,
        of.store.as_uuid(),
        of.day,
        of.service,
        reason,
        now,
    )
    .fetch_all(conn)
    .await
}

/// How these charges stand.
pub async fn charge_states(conn: &mut PgConnection, of: &ChargeFilter) -> Result<Vec<ChargeState>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select distinct state as "state: ChargeState"
           from store_charges
           where store_id = $1 and ($2::date is null or day = $2) and ($3::text is null or service = $3)"#,
        of.store.as_uuid(),
        of.day,
        of.service,
    )
    .fetch_all(conn)
    .await
}

/// What a store owes.
pub async fn arrears(conn: &mut PgConnection, store: StoreId) -> Result<Arrears, sqlx::Error> {
    sqlx::query_as!(
        Arrears,
        r#"select count(*) as "charges!", coalesce(sum(amount), 0)::bigint as "amount!", min(unpaid_since) as since
           from store_charges
           where store_id = $1 and state = 'unpaid'"#,
        store.as_uuid(),
    )
    .fetch_one(conn)
    .await
}

/// Stores that should become read-only, having owed since `cutoff`, and stores that should not be any more.
pub async fn stores_to_turn(
    conn: &mut PgConnection,
    cutoff: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<StoreId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"(select s.id as "id!: StoreId" from stores s
            where s.is_read_only and not exists (select from store_charges c where c.store_id = s.id and c.state = 'unpaid')
            limit $2)
           union all
           (select s.id from stores s
            where not s.is_read_only and s.status = 'active'
              and s.id in (select c.store_id from store_charges c where c.state = 'unpaid' and c.unpaid_since <= $1)
            limit $2)"#,
        cutoff,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Changes whether a store takes orders; the database bumps the route version and announces it in the same transaction.
pub async fn store_set_read_only(
    conn: &mut PgConnection,
    store: StoreId,
    is_read_only: bool,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update stores set is_read_only = $2, updated_at = $3 where id = $1",
        store.as_uuid(),
        is_read_only,
        now
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Claims the key of a count; false when it was counted before.
pub async fn usage_claim(
    conn: &mut PgConnection,
    store: StoreId,
    key: &str,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "insert into usage_adds (store_id, key, created_at) values ($1, $2, $3)
         on conflict on constraint usage_adds_pkey do nothing",
        store.as_uuid(),
        key,
        now,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub async fn usage_add(
    conn: &mut PgConnection,
    store: StoreId,
    day: NaiveDate,
    metric: &str,
    quantity: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into usage_metrics as u (store_id, day, metric, quantity) values ($1, $2, $3, $4)
         on conflict on constraint usage_metrics_pkey do update set quantity = u.quantity + excluded.quantity",
        store.as_uuid(),
        day,
        metric,
        quantity,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Adds what a process has counted of a metric, once for each number of its own: it sends them in their order. Stores that are
/// gone are left out.
pub async fn usage_flush(
    conn: &mut PgConnection,
    node: &str,
    batch: &Batch,
    metric: &str,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "with claimed as (
             insert into usage_flushes as f (node, number, flushed_at) values ($1, $2, $3)
             on conflict on constraint usage_flushes_pkey do update
                 set number = excluded.number, flushed_at = excluded.flushed_at
                 where f.number < excluded.number
             returning node
         )
         insert into usage_metrics as u (store_id, day, metric, quantity)
         select c.store_id, c.day, $4, c.quantity
         from unnest($5::uuid[], $6::date[], $7::bigint[]) c (store_id, day, quantity)
         join stores s on s.id = c.store_id
         where exists (select from claimed)
         order by c.store_id, c.day
         on conflict on constraint usage_metrics_pkey do update set quantity = u.quantity + excluded.quantity",
        node,
        batch.number,
        now,
        metric,
        &batch.stores,
        &batch.days,
        &batch.quantities,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Forgets processes that have added nothing since a moment.
pub async fn usage_flushes_purge(conn: &mut PgConnection, before: DateTime<Utc>) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!("delete from usage_flushes where flushed_at < $1", before).execute(conn).await?;
    Ok(done.rows_affected())
}

/// Forgets keys of counts before a moment, in a bounded batch.
pub async fn usage_adds_purge(conn: &mut PgConnection, before: DateTime<Utc>) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "delete from usage_adds where (store_id, key) in
             (select store_id, key from usage_adds where created_at < $1 order by created_at limit 1000)",
        before,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// A store's charges of days from `from` to before `until`.
pub async fn charges_between(
    conn: &mut PgConnection,
    store: StoreId,
    from: NaiveDate,
    until: NaiveDate,
) -> Result<Vec<Charge>, sqlx::Error> {
    sqlx::query_as!(
        Charge,
        r#"select store_id as "store_id: StoreId", day, service, quantity, amount, state as "state: ChargeState", attempt,
                  transaction_id as "transaction_id: CreditTransactionId", reason, unpaid_since
           from store_charges
           where store_id = $1 and day >= $2 and day < $3
           order by day, service"#,
        store.as_uuid(),
        from,
        until,
    )
    .fetch_all(conn)
    .await
}

/// What was counted of a store on days from `from` to before `until`.
pub async fn usage_between(
    conn: &mut PgConnection,
    store: StoreId,
    from: NaiveDate,
    until: NaiveDate,
) -> Result<Vec<DayUsage>, sqlx::Error> {
    sqlx::query_as!(
        DayUsage,
        "select day, metric, quantity from usage_metrics where store_id = $1 and day >= $2 and day < $3 order by day, metric",
        store.as_uuid(),
        from,
        until,
    )
    .fetch_all(conn)
    .await
}

/// Sets what a service costs from a day that has not begun.
pub async fn price_set(conn: &mut PgConnection, price: &Price, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into charge_prices (service, valid_from, amount, per, created_at) values ($1, $2, $3, $4, $5)
         on conflict on constraint charge_prices_pkey do update
             set amount = excluded.amount, per = excluded.per, created_at = excluded.created_at",
        price.service,
        price.valid_from,
        price.amount,
        price.per,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Every price that was ever set, newest first.
pub async fn prices(conn: &mut PgConnection) -> Result<Vec<Price>, sqlx::Error> {
    sqlx::query_as!(
        Price,
        "select service, valid_from, amount, per from charge_prices order by service, valid_from desc limit 1000",
    )
    .fetch_all(conn)
    .await
}

/// The price of each service that holds on a day, and those that are to come.
pub async fn prices_from(conn: &mut PgConnection, day: NaiveDate) -> Result<Vec<Price>, sqlx::Error> {
    sqlx::query_as!(
        Price,
        "select service, valid_from, amount, per from charge_prices p
         where valid_from > $1
            or (amount > 0 and valid_from = (
                select max(c.valid_from) from charge_prices c where c.service = p.service and c.valid_from <= $1
            ))
         order by service, valid_from
         limit 1000",
        day,
    )
    .fetch_all(conn)
    .await
}
