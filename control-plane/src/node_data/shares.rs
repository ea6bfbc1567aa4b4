//! What the node may have open at database servers, for the process that follows this one.
//!
//! What is kept is never more than what master holds for the node: it is written after each exchange with master, and when shares are
//! given up, before anything else is said to it. So whoever finds it has the same right as the process that wrote it, which has ended,
//! as the folder is free: within the time that was agreed with master, on the same run of the machine. Later, or after that, it is
//! the same node without any connection. In a copy of the folder it is worth nothing.

use std::io;
use std::time::Duration;

use kernel::ServerId;
use serde::{Deserialize, Serialize};
use tenancy::ServerLoad;
use tokio::time::Instant;

use super::{Mark, Moment, NodeData, SealedFile, read_sealed};
use crate::shares::NodeKey;

const NAME: &str = "shares";

/// A node of master, and what it may have open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptShares {
    pub node: NodeKey,
    /// For how much longer; not at all, when only the node is still this one.
    pub left: Duration,
    pub limits: Vec<(ServerId, usize)>,
    /// Whether the machine has run since, so that nobody else can be this node.
    pub is_same_run: bool,
}

#[derive(Serialize, Deserialize)]
struct Written {
    node: NodeKey,
    host: String,
    folder: Mark,
    written: Moment,
    left_ms: u64,
    /// What was left out of the time that master holds them, for what is executed at its end.
    margin_ms: u64,
    limits: Vec<(ServerId, usize)>,
}

impl NodeData {
    /// What the process before this one was given. `margin` is how much sooner this node gives its shares up than master does.
    pub fn load_shares(&self, host: &str, margin: Duration) -> Option<KeptShares> {
        let read = || Ok::<_, io::Error>((read_sealed::<Written>(self, NAME)?, self.mark()?));
        let (written, folder) = read()
            .inspect_err(|error| {
                tracing::warn!("what was kept of shares of database servers cannot be read: {error}");
            })
            .ok()?;
        let written = written.into_iter().next_back()?;
        let now = self.now();
        let is_same_run = written.written.is_same_run(&now);
        // On the machine as it ran then, the folder that is locked is the one. Afterwards, the disk may be a copy, or hang at another.
        if written.folder != folder || !is_same_run && (written.host != host || host.is_empty()) {
            return None;
        }
        let age = written.written.age(&now).filter(|_| is_same_run);
        let longer = margin.saturating_sub(Duration::from_millis(written.margin_ms));
        let left = age.and_then(|age| Duration::from_millis(written.left_ms).checked_sub(age + longer));
        let left = left.unwrap_or_default();
        let limits = if left.is_zero() { Vec::new() } else { written.limits };
        Some(KeptShares { node: written.node, left, limits, is_same_run })
    }

    /// Keeps what the node may have open until then.
    ///
    /// # Errors
    /// When neither that can be written, nor what was written before be removed: what is found would be too much.
    pub fn keep_shares(
        &self,
        node: NodeKey,
        host: &str,
        until: Instant,
        margin: Duration,
        loads: &[ServerLoad],
    ) -> io::Result<()> {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let written = self.now();
        let write = || {
            let written = Written {
                node,
                host: host.to_owned(),
                folder: self.mark()?,
                written,
                left_ms: ms(until.saturating_duration_since(Instant::now())),
                margin_ms: ms(margin),
                limits: loads.iter().map(|load| (load.server_id, load.limit)).collect(),
            };
            // No other run of the machine believes the limits: it need not be on the disk.
            let mut file = SealedFile::create(self, NAME)?;
            file.append(&self.keys, &written)?;
            file.place(self)
        };
        write().or_else(|error| {
            tracing::debug!("shares of database servers cannot be kept for a restart: {error}");
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
