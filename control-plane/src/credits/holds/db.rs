//! SQL that reads holds; what decides on them is the ledger's.

use kernel::{CreditHoldId, OrganizationId, StoreId};
use sqlx::PgConnection;

use super::{Hold, HoldState};

/// A hold for a spend, not one that a dispute made.
pub async fn hold_find(conn: &mut PgConnection, id: CreditHoldId) -> Result<Option<Hold>, sqlx::Error> {
    sqlx::query_as!(
        Hold,
        r#"select id as "id: CreditHoldId", organization_id as "organization_id: OrganizationId", store_id as "store_id: StoreId",
                  amount, captured, state as "state: HoldState", service, description, expires_at, created_at
           from credit_holds
           where id = $1 and kind = 'spend'"#,
        id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}
