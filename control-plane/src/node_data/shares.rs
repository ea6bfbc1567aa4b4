//! What the node may have open at database servers, for the process that follows this one.
//!
//! What is kept is never more than what master holds for the node: it is written after each exchange with master, before anything
//! else is said to it; and removed when the shares are given up. So whoever finds it has the same right as the process that wrote
//! it, which has ended, as the folder is free: within the time that was agreed with master, on the same run of the same machine.

use std::io;
use std::time::Duration;

use kernel::ServerId;
use serde::{Deserialize, Serialize};
use tenancy::ServerLoad;
use tokio::time::Instant;

use super::{Moment, NodeData, SealedFile, read_sealed};
use crate::shares::NodeKey;

const NAME: &str = "shares";
const NEW_NAME: &str = "shares.new";

/// A node of master, and what it may have open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptShares {
    pub node: NodeKey,
    /// For how much longer.
    pub left: Duration,
    pub limits: Vec<(ServerId, usize)>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    node: NodeKey,
    host: String,
    written: Moment,
    left_ms: u64,
    limits: Vec<(ServerId, usize)>,
}

impl NodeData {
    /// What the process before this one was given, if that is still this node's. Nothing of it is found twice.
    pub fn take_shares(&self, host: &str) -> Option<KeptShares> {
        let found = read_sealed::<Written>(&self.keys, &self.path(NAME));
        let written = found.unwrap_or_else(|error| {
            tracing::warn!("what was kept of shares of database servers cannot be read: {error}");
            Vec::new()
        });
        let written = written.into_iter().next_back()?;
        let now = self.now();
        if written.host != host || host.is_empty() || !written.written.is_same_run(&now) {
            return None;
        }
        // Uptime is known to the second.
        let age = written.written.age(&now)? + Duration::from_secs(1);
        let left = Duration::from_millis(written.left_ms).checked_sub(age).filter(|left| !left.is_zero())?;
        Some(KeptShares { node: written.node, left, limits: written.limits })
    }

    /// Keeps what the node may have open until then.
    ///
    /// # Errors
    /// When neither that can be written, nor what was written before be removed: what is found would be too much.
    pub fn keep_shares(&self, node: NodeKey, host: &str, until: Instant, loads: &[ServerLoad]) -> io::Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        let written = Written {
            node,
            host: host.to_owned(),
            written: self.now(),
            left_ms: u64::try_from(left.as_millis()).unwrap_or_default(),
            limits: loads.iter().map(|load| (load.server_id, load.limit)).collect(),
        };
        let write = || {
            let (new, path) = (self.path(NEW_NAME), self.path(NAME));
            // No other run of the machine believes it: it need not be on the disk.
            SealedFile::create(&new)?.append(&self.keys, &written)?;
            std::fs::rename(new, path)
        };
        write().or_else(|error| {
            tracing::warn!("shares of database servers cannot be kept for a restart: {error}");
            self.forget_shares()
        })
    }

    /// The shares are not this node's any more.
    ///
    /// # Errors
    /// When what was written cannot be removed.
    pub fn forget_shares(&self) -> io::Result<()> {
        self.remove(NAME)
    }
}
