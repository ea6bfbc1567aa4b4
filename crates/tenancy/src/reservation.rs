//! The right to a connection that is opened outside every pool.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::budget::Permit;
use crate::node::Node;
use crate::session::Session;

/// The right to one connection to a server, for who opens it outside every pool, as provisioning does. To be dropped after the
/// connection is closed: the permit comes back a moment later, when the server's side is gone as well.
#[must_use = "dropped, it is the right to nothing"]
pub struct Reservation {
    node: Arc<Node>,
    permit: Option<Permit>,
}

impl Reservation {
    pub(crate) const fn new(node: Arc<Node>, permit: Permit) -> Self {
        Self { node, permit: Some(permit) }
    }

    /// Closes the session that it was for, apart from the caller, when nobody has waited for what that was asked last. The
    /// server goes on with it, and counts the session until then: so long the right is kept, but no longer than `limit`.
    pub fn close_after_work(self, mut session: Session, limit: Duration) {
        let node = Arc::clone(&self.node);
        node.spawn(async move {
            session.ping(limit).await;
            session.close_within(self.node.config.close_timeout).await;
            drop(self);
        });
    }

    /// Keeps it for so long, apart from the caller, when the server may still be at work for a connection that is closed.
    pub fn keep_for(self, time: Duration) {
        let node = Arc::clone(&self.node);
        node.spawn(async move {
            sleep(time).await;
            drop(self);
        });
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        let linger = self.node.config.close_linger;
        self.node.spawn(async move {
            sleep(linger).await;
            drop(permit);
        });
    }
}
