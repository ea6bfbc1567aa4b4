//! SQL of statements.

use chrono::{DateTime, Utc};
use kernel::{CreditTransactionId, OrganizationId, StoreId};
use sqlx::PgConnection;

use super::{StatementFrame, StatementLine};
use crate::credits::TransactionKind;

/// What frames a statement: what the account was worth before the first and after the last entry of the period.
pub(super) async fn statement_frame(
    conn: &mut PgConnection,
    organization: OrganizationId,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<StatementFrame, sqlx::Error> {
    let row = sqlx::query!(
        r#"with before as (
               select version, available_after + held_after - debt_after as worth from credit_transactions
               where organization_id = $1 and created_at < $2 order by created_at desc, version desc limit 1
           ), last as (
               select version, available_after + held_after - debt_after as worth from credit_transactions
               where organization_id = $1 and created_at < $3 order by created_at desc, version desc limit 1
           )
           select coalesce((select worth from before), 0) as "opening!", coalesce((select worth from last), 0) as "closing!",
                  coalesce((select version from before), 0) + 1 as "first!", coalesce((select version from last), 0) as "last!",
                  (select count(distinct e.version) from credit_entries e
                   where e.organization_id = $1 and e.account = 'credits'
                     and e.version > coalesce((select version from before), 0)
                     and e.version <= coalesce((select version from last), 0)) as "lines!""#,
        organization.as_uuid(),
        from,
        until,
    )
    .fetch_one(conn)
    .await?;
    Ok(StatementFrame {
        organization_id: organization,
        from,
        until,
        opening: row.opening,
        closing: row.closing,
        lines: row.lines,
        first: row.first,
        last: row.last,
    })
}

/// The lines after a version, up to another: transactions that changed what the account is worth.
pub(super) async fn statement_lines(
    conn: &mut PgConnection,
    organization: OrganizationId,
    after: i64,
    last: i64,
    limit: i64,
) -> Result<Vec<StatementLine>, sqlx::Error> {
    sqlx::query_as!(
        StatementLine,
        r#"select t.version, t.created_at as at, t.id as "transaction_id: CreditTransactionId", t.kind as "kind: TransactionKind",
                  t.store_id as "store_id: StoreId", t.service, t.description, e.amount as "amount!",
                  t.available_after + t.held_after - t.debt_after as "balance_after!"
           from credit_transactions t
           cross join lateral (
               select sum(e.amount)::bigint as amount from credit_entries e
               where e.organization_id = t.organization_id and e.version = t.version and e.account = 'credits'
           ) e
           where t.organization_id = $1 and t.version > $2 and t.version <= $3 and e.amount is not null
           order by t.version
           limit $4"#,
        organization.as_uuid(),
        after,
        last,
        limit,
    )
    .fetch_all(conn)
    .await
}
