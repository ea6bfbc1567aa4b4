//! The right to a connection that is opened outside every pool.

use std::sync::Arc;

use tokio::time::sleep;

use crate::budget::Permit;
use crate::node::Node;

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
