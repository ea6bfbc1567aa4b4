//! SQL that reads holds; what decides on them is the ledger's.

use chrono::{DateTime, Utc};
use kernel::{CreditHoldId, OrganizationId, StoreId};
use sqlx::PgConnection;

use super::{Hold, HoldFilter, HoldState};

/// Reads holds for spends, not those that disputes made, as they stand at `$1`: one whose time is over has expired, whether or
/// not it is booked. The account's clock counts where it is ahead, as it does for who decides.
macro_rules! holds {
    ($which:tt, $($argument:expr),* $(,)?) => {
        sqlx::query_as!(
            Hold,
            r#"select id as "id!: CreditHoldId", organization_id as "organization_id!: OrganizationId",
                      store_id as "store_id: StoreId", amount as "amount!", captured as "captured!", state as "state!: HoldState",
                      service, description, expires_at as "expires_at!", created_at as "created_at!"
               from (
                   select h.id, h.organization_id, h.store_id, h.amount, h.captured, h.service, h.description, h.expires_at,
                          h.created_at,
                          case when h.state = 'open' and h.expires_at <= greatest($1, a.changed_at) then 'expired' else h.state end
                              as state
                   from credit_holds h
                   join credit_accounts a on a.organization_id = h.organization_id
                   where h.kind = 'spend'
               ) h
               "# + $which,
            $($argument),*
        )
    };
}

pub async fn hold_find(
    conn: &mut PgConnection,
    id: CreditHoldId,
    now: DateTime<Utc>,
) -> Result<Option<Hold>, sqlx::Error> {
    holds!("where id = $2", now, id.as_uuid()).fetch_optional(conn).await
}

/// An organization's holds before one of them, newest first.
pub async fn holds(
    conn: &mut PgConnection,
    organization: OrganizationId,
    filter: &HoldFilter,
    before: Option<CreditHoldId>,
    limit: i64,
    now: DateTime<Utc>,
) -> Result<Vec<Hold>, sqlx::Error> {
    holds!(
        "where organization_id = $2
           and ($3::uuid is null or id < $3)
           and ($4::uuid is null or store_id = $4)
           and ($5::text is null or state = $5)
         order by id desc
         limit $6",
        now,
        organization.as_uuid(),
        before.map(|id| id.as_uuid()),
        filter.store.map(|id| id.as_uuid()),
        filter.state.map(HoldState::as_str),
        limit,
    )
    .fetch_all(conn)
    .await
}
