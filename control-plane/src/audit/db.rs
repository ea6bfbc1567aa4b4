//! SQL of the audit trail.

use chrono::{DateTime, Utc};
use kernel::{AuditEventId, RequestId};
use sqlx::PgConnection;

use super::{Actor, Subject};

#[expect(clippy::too_many_arguments, reason = "one argument for each column of the entry")]
pub(super) async fn audit_event_insert(
    conn: &mut PgConnection,
    id: AuditEventId,
    at: DateTime<Utc>,
    actor: Actor,
    action: &str,
    subject: Subject,
    request_id: Option<RequestId>,
    data: serde_json::Value,
) -> Result<(), sqlx::Error> {
    let (kind, user) = match actor {
        Actor::User(user) => ("user", Some(user)),
        Actor::Cli => ("cli", None),
        Actor::System => ("system", None),
    };
    sqlx::query!(
        "insert into audit_events (id, at, action, actor_kind, actor_user_id, organization_id, store_id, request_id, data)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        id.as_uuid(),
        at,
        action,
        kind,
        user.map(|id| id.as_uuid()),
        subject.organization.map(|id| id.as_uuid()),
        subject.store.map(|id| id.as_uuid()),
        request_id.map(|id| id.as_uuid()),
        data,
    )
    .execute(conn)
    .await?;
    Ok(())
}
