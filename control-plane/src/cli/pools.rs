//! What a running node tells its operators.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use reqwest::Url;
use serde_json::Value;

use super::failure::Failure;
use super::output::{self, Printed};
use crate::http::outgoing;

const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How a running node is asked.
#[derive(Args, Clone)]
pub(super) struct NodeArgs {
    /// Where the node answers its operators: its INTERNAL_LISTEN
    #[arg(long, env = "INTERNAL_LISTEN", default_value = "127.0.0.1:8081", value_name = "ADDRESS", value_parser = address)]
    pub(super) node: String,
}

/// Reads an address with its port, also as people copy it out of a log.
fn address(text: &str) -> Result<String, &'static str> {
    let expected = "must be an address with its port, such as 127.0.0.1:8081";
    let bare = text.trim().strip_prefix("http://").unwrap_or(text.trim()).trim_end_matches('/');
    let url = Url::parse(&format!("http://{bare}")).map_err(|_| expected)?;
    let is_address = url.path() == "/" && url.username().is_empty() && url.query().is_none() && bare.contains(':');
    is_address.then(|| bare.to_owned()).ok_or(expected)
}

/// The connections of a node, by server, and its busiest stores.
#[derive(Args)]
pub(super) struct Pools {
    #[command(flatten)]
    node: NodeArgs,
    /// How many stores are shown
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Show it anew every so many seconds, until stopped
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
}

impl Pools {
    pub(super) async fn run(self, json: bool) -> Result<Printed, Failure> {
        loop {
            let printed = output::pools(self.node.get(&format!("/internal/pools?limit={}", self.limit)).await?);
            let Some(pause) = self.watch else { return Ok(printed) };
            if !json {
                // The cursor to the upper left, and everything below it cleared.
                output::print(false, &Printed::text("\x1b[H\x1b[J".to_owned()))?;
            }
            output::print(json, &printed)?;
            tokio::time::sleep(Duration::from_secs(pause)).await;
        }
    }
}

impl NodeArgs {
    /// What the node answers to a question.
    pub(super) async fn get(&self, path: &str) -> Result<Value, Failure> {
        let unreachable = || format!("the node at {} does not answer; name its INTERNAL_LISTEN with --node", self.node);
        let asking = async {
            let client = outgoing::client(ANSWER_LIMIT)?;
            client.get(format!("http://{}{path}", self.node)).timeout(ANSWER_LIMIT).send().await
        };
        let answer = asking.await.with_context(unreachable)?;
        if answer.status() == reqwest::StatusCode::NOT_FOUND {
            let why = "it answers, but not its operators";
            return Err(anyhow::anyhow!("{} is no node's INTERNAL_LISTEN: {why}", self.node).into());
        }
        let bytes = answer.error_for_status().with_context(unreachable)?.bytes().await.with_context(unreachable)?;
        Ok(serde_json::from_slice(&bytes).with_context(unreachable)?)
    }
}
