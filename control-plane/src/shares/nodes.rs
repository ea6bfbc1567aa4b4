//! What ops see of nodes, and how they take back what one has that has ended.

use axum::http::StatusCode;
use chrono::{DateTime, SecondsFormat, Utc};
use kernel::ServerId;
use problem::Problem;
use serde::Serialize;
use utoipa::ToSchema;

use super::{SILENT, db, interval};
use crate::audit::{self, Actor, Subject};
use crate::cx::OpsCx;

/// A process that has, or may have, connections to database servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    pub id: i32,
    /// The machine's or the container's name.
    pub host: String,
    /// Where it listens, when it serves at an address of its own choice.
    pub listen: Option<String>,
    /// Whether it is connected to master, as far as master can tell. One that is not may serve all the same.
    pub is_connected: bool,
    /// Whether it has a folder of its own (`NODE_DATA`), so that its next process goes on as the same node.
    pub is_kept: bool,
    pub started_at: DateTime<Utc>,
    /// When it last said that it lives.
    pub renewed_at: DateTime<Utc>,
    /// Until when its shares are its own, if it says nothing more.
    pub expires_at: DateTime<Utc>,
    pub shares: Vec<ShareView>,
}

/// What a node may have open at a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShareView {
    /// The server's name, and its id.
    pub server: String,
    #[schema(value_type = String)]
    pub server_id: ServerId,
    /// The most connections that it may have there.
    pub connections: i32,
    /// What it last said to need.
    pub wanted: i32,
}

impl NodeView {
    /// Whether it is known to live and may have connections at the server.
    pub fn may_serve_at(&self, server: Option<ServerId>) -> bool {
        self.is_connected && self.shares.iter().any(|of| Some(of.server_id) == server && of.connections > 0)
    }
}

/// Why an operation on a node was refused.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("there is no such node")]
    NotFound,
    #[error(
        "the node may live: master has heard of it {seconds} s ago. One that has ended can be forgotten when that is {} s",
        SILENT.as_secs()
    )]
    Alive { seconds: i64 },
    #[error(
        "the node has a folder of its own (NODE_DATA): started again while master is down, it would go on with what the folder says. \
         Say that the folder is gone as well (--folder-gone, folderGone=true), or wait for its time to be over"
    )]
    Kept,
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

/// Every node with its shares, the oldest first. Those whose time is over are gone as soon as another one renews its shares.
pub async fn list(cx: &OpsCx) -> Result<Vec<NodeView>, NodeError> {
    Ok(db::nodes_all(&mut *cx.master.acquire().await?).await?)
}

/// Gives the shares of a node to the others before its time is over. Only of a process that has ended for certain: one that has lost
/// its way to master goes on with what it had, and the server may then get more connections than it bears. So does one that is
/// started on the same folder, unless `is_folder_gone`.
pub async fn forget(cx: &OpsCx, actor: Actor, id: i32, is_folder_gone: bool) -> Result<NodeView, NodeError> {
    let mut tx = cx.master.begin().await?;
    let nodes = db::nodes_all(&mut tx).await?;
    let node = nodes.into_iter().find(|node| node.id == id).ok_or(NodeError::NotFound)?;
    if node.is_kept && !is_folder_gone {
        return Err(NodeError::Kept);
    }
    if !db::node_delete_silent(&mut tx, id, interval(SILENT)).await? {
        return Err(NodeError::Alive { seconds: db::node_silence(&mut tx, id).await? });
    }
    let data = serde_json::json!({ "nodeId": id, "host": node.host, "shares": node.shares });
    audit::record(&mut tx, cx.clock.now(), actor, "node_forget", Subject::default(), data).await?;
    tx.commit().await?;
    Ok(node)
}

/// In words, which nodes have the connections of a server.
pub fn explain(nodes: &[NodeView], server: &str) -> String {
    let with_share = nodes.iter().filter_map(|node| {
        let share = node.shares.iter().find(|share| share.server == server && share.connections > 0)?;
        let state = if node.is_connected { "connected" } else { "not connected" };
        let until = node.expires_at.to_rfc3339_opts(SecondsFormat::Secs, true);
        Some(format!("{} of node {} on {} ({state}, its own until {until})", share.connections, node.id, node.host))
    });
    with_share.collect::<Vec<_>>().join(", ")
}

impl From<NodeError> for Problem {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::NotFound => Self::not_found(),
            error @ NodeError::Alive { .. } => {
                Self::new(StatusCode::CONFLICT, "node-alive", "The node may live").detail(format!("{error}."))
            }
            error @ NodeError::Kept => {
                Self::new(StatusCode::CONFLICT, "node-kept", "The node has a folder").detail(format!("{error}."))
            }
            error @ NodeError::Db(_) => crate::http::errors::unexpected(&error),
        }
    }
}
