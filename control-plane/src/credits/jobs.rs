//! What happens to credits by itself: lots and holds expire, the chains are sealed, the invariants are looked at. Each takes
//! no input, reads what is due, and makes steps that bear being made twice.

use chrono::Duration;
use kernel::{CreditHoldId, CreditTransactionId, OrganizationId};

use super::{TransactionKind, db, request_hash, verify};
use crate::cx::OpsCx;

/// How much is done in one go; what is left comes with the next.
const BATCH: i64 = 500;
/// A root is sealed so often.
const ROOT_PERIOD: Duration = Duration::hours(24);

/// Books lots and holds whose time is over.
pub async fn expire_due(cx: &OpsCx) -> Result<(), sqlx::Error> {
    let now = cx.clock.now();
    let mut connection = cx.master.acquire().await?;
    for (hold, organization) in db::holds_to_expire(&mut connection, now, BATCH).await? {
        expire_hold(cx, &mut connection, organization, hold).await?;
    }
    for organization in db::accounts_to_expire(&mut connection, now, BATCH).await? {
        db::expire(&mut connection, organization, now).await?;
    }
    Ok(())
}

async fn expire_hold(
    cx: &OpsCx,
    connection: &mut sqlx::PgConnection,
    organization: OrganizationId,
    hold: CreditHoldId,
) -> Result<(), sqlx::Error> {
    let now = cx.clock.now();
    let key = format!("hold-expiry:{hold}");
    let hash = request_hash("hold_expiry", &hold).map_err(|error| sqlx::Error::Protocol(error.to_string()))?;
    let end = db::EndHold {
        id: CreditTransactionId::new(now),
        key: &key,
        hash: &hash,
        ending: TransactionKind::HoldExpiry,
        hold,
        actor: None,
        taken: 0,
        why: None,
    };
    db::hold_end(connection, organization, &end, now).await?;
    Ok(())
}

/// Seals the chains once a day and looks at the invariants as often as it is called.
pub async fn prove(cx: &OpsCx) -> Result<(), sqlx::Error> {
    verify::seal_root(cx, ROOT_PERIOD).await?;
    match verify::verify(cx, None).await {
        Ok(found) => {
            #[expect(clippy::cast_precision_loss, reason = "a count for a gauge")]
            metrics::gauge!("tenantry_credit_violations").set(found.violations.len() as f64);
            for violation in found.violations.iter().take(20) {
                tracing::error!(
                    organization.id = %violation.organization_id,
                    "invariant {} of the credit ledger does not hold at version {:?}: {}",
                    violation.invariant,
                    violation.version,
                    violation.what,
                );
            }
            Ok(())
        }
        Err(super::CreditError::Db(error)) => Err(error),
        Err(error) => Err(sqlx::Error::Protocol(error.to_string())),
    }
}
