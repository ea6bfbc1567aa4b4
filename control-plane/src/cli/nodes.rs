//! Commands about nodes: the processes that have connections to database servers.

use clap::Subcommand;

use super::failure::Failure;
use super::output::{self, Printed};
use super::{Needs, Operation, OpsArgs};
use crate::audit::Actor;
use crate::cx::OpsCx;
use crate::shares::nodes;

#[derive(Subcommand)]
pub(super) enum Nodes {
    /// List the nodes, and what each may have open at database servers
    List(OpsArgs),
    /// Give the others what a node has that has ended, before its time is over. Only of a process that has ended for certain: one
    /// that has lost its way to master serves on with what it had, and its servers may then get more connections than they bear
    Forget {
        /// Its number in the list
        node: i32,
        /// Its folder (NODE_DATA) is gone as well: no process will go on with what it says
        #[arg(long)]
        folder_gone: bool,
        #[command(flatten)]
        ops: OpsArgs,
    },
}

impl Operation for Nodes {
    fn needs(&self) -> Needs<'_> {
        let (Self::List(ops) | Self::Forget { ops, .. }) = self;
        Needs::of(ops)
    }

    async fn run(self, cx: &OpsCx) -> Result<Printed, Failure> {
        match self {
            Self::List(_) => output::nodes(&nodes::list(cx).await?),
            Self::Forget { node, folder_gone, .. } => {
                output::node(&nodes::forget(cx, Actor::Cli, node, folder_gone).await?)
            }
        }
    }
}
