//! The audit trail: who did what to which organization or store. Append-only, written in the transaction that does it,
//! and free of secrets: `data` holds ids and names of things, never their contents.

mod db;

use chrono::{DateTime, Utc};
use kernel::{AuditEventId, OrganizationId, RequestId, StoreId, UserId};
use sqlx::PgConnection;

tokio::task_local! {
    /// The request that is being answered, for the trail and the log only: nothing is decided by it.
    pub static REQUEST_ID: RequestId;
}

/// Who acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// A signed-in person.
    User(UserId),
    /// Whoever has a shell on the machine.
    Cli,
    /// A job.
    System,
}

impl Actor {
    /// The person, when it is one that we know.
    pub const fn user(self) -> Option<UserId> {
        match self {
            Self::User(user) => Some(user),
            Self::Cli | Self::System => None,
        }
    }
}

/// What is acted on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Subject {
    pub organization: Option<OrganizationId>,
    pub store: Option<StoreId>,
}

impl Subject {
    pub fn organization(id: OrganizationId) -> Self {
        Self { organization: Some(id), store: None }
    }

    pub fn store(organization: OrganizationId, store: StoreId) -> Self {
        Self { organization: Some(organization), store: Some(store) }
    }
}

/// Adds an entry to the trail. `action` is the operation's `verb_noun`.
pub async fn record(
    tx: &mut PgConnection,
    now: DateTime<Utc>,
    actor: Actor,
    action: &'static str,
    subject: Subject,
    data: serde_json::Value,
) -> Result<(), sqlx::Error> {
    let request_id = REQUEST_ID.try_with(|id| *id).ok();
    db::audit_event_insert(tx, AuditEventId::new(now), now, actor, action, subject, request_id, data).await
}
