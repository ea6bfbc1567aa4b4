//! Hears of changes: every process listens to master, so a suspend on one node, or in the CLI, closes the store on all.
//!
//! A notification names an entry of the change log. A listener that was away cannot know what it missed, so it forgets
//! every cached route when it is back; until then the routes' own lifetime bounds how old they can be. A network can go
//! without a word, and a listener that only waits would never know: when nothing was heard for a while, it asks for a sign.

use std::time::Duration;

use kernel::{Hostname, RunId, StoreId};
use serde::Deserialize;
use tenancy::StoreChange;

use super::db;
use crate::cx::Cx;
use crate::http::errors::chain;
use crate::master::{self, MasterError};

const STORE_CHANGES: &str = "tenantry_store_changes";
/// Names a store whose database was seen well. Who misses it tries again when the breaker's pause is over.
const STORE_RECOVERIES: &str = "tenantry_store_recoveries";
const PROVISIONING: &str = "tenantry_provisioning";
const RETRY: Duration = Duration::from_secs(1);
/// How long nothing is heard before the connection is asked for a sign of life.
const QUIET: Duration = Duration::from_secs(5);
/// How long reading one change may take, in which nothing else is heard.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Listens until the node shuts down.
pub async fn run(cx: Cx) {
    let shutdown = cx.shutdown.clone();
    shutdown
        .run_until_cancelled(async {
            loop {
                if let Err(error) = listen(&cx).await {
                    tracing::warn!(
                        error = chain(&error),
                        "lost the listener of master; cached routes live by their lifetime until it is back"
                    );
                    metrics::gauge!("tenantry_listener_connected").set(0.0);
                }
                tokio::time::sleep(RETRY).await;
            }
        })
        .await;
}

async fn listen(cx: &Cx) -> Result<(), MasterError> {
    let mut listener = master::listen(&cx.master_args, &[STORE_CHANGES, STORE_RECOVERIES, PROVISIONING]).await?;
    cx.stores.forget_all();
    metrics::gauge!("tenantry_listener_connected").set(1.0);
    loop {
        let Ok(heard) = tokio::time::timeout(QUIET, listener.try_recv()).await else {
            master::prove_alive(&mut listener).await?;
            continue;
        };
        // `None` means that the connection was lost and what came meanwhile is gone: start over.
        let Some(notification) = heard? else { return Err(MasterError::Db(sqlx::Error::PoolClosed)) };
        match notification.channel() {
            STORE_CHANGES => hear_of_change(cx, notification.payload()).await,
            STORE_RECOVERIES => {
                if let Ok(id) = notification.payload().parse() {
                    cx.stores.try_again(StoreId::from_uuid(id));
                }
            }
            PROVISIONING => {
                if let Ok(id) = notification.payload().parse() {
                    // Nobody watching is no failure.
                    let _ = cx.run_events.send(RunId::from_uuid(id));
                }
            }
            _ => {}
        }
    }
}

/// What a notification says; the store and its names are left out when they are too many.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Notice {
    seq: i64,
    store_id: Option<uuid::Uuid>,
    route_version: Option<i64>,
    hostnames: Option<Vec<String>>,
}

async fn hear_of_change(cx: &Cx, payload: &str) {
    // Whoever can connect to master can notify: what we do not understand changes nothing.
    let Ok(notice) = serde_json::from_str::<Notice>(payload) else { return };
    let change = match (notice.store_id, notice.route_version, notice.hostnames) {
        (Some(store), Some(route_version), Some(names)) => Some(StoreChange {
            store_id: StoreId::from_uuid(store),
            route_version,
            hostnames: names.iter().filter_map(|name| Hostname::parse(name).ok()).collect(),
        }),
        _ => read_change(cx, notice.seq).await,
    };
    match change {
        Some(change) => {
            tracing::debug!(store.id = %change.store_id, "route of store {} is now at version {}", change.store_id, change.route_version);
            cx.stores.apply(change);
        }
        // Purged before it was read, or not to be read now: forget everything rather than miss it.
        None => cx.stores.forget_all(),
    }
}

async fn read_change(cx: &Cx, seq: i64) -> Option<StoreChange> {
    let found = async { db::store_change(&mut *cx.master.acquire().await?, seq).await };
    match tokio::time::timeout(READ_TIMEOUT, found).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            tracing::warn!(error = %error, "change {seq} of a route could not be read");
            None
        }
        Err(_) => {
            tracing::warn!("change {seq} of a route could not be read in time");
            None
        }
    }
}
