//! What happens to connections by themselves.

use crate::cx::OpsCx;

/// How much is done in one go; what is left comes with the next.
const BATCH: usize = 20;

/// Revokes what could not be revoked when its owner disconnected.
pub async fn revoke(cx: &OpsCx) -> Result<(), sqlx::Error> {
    if cx.supabase.is_none() {
        return Ok(());
    }
    super::revoke::round(cx, BATCH).await
}
