//! Hears of changes: every process listens to master, so a suspend on one node, or in the CLI, closes the store on all.
//!
//! A notification names an entry of the change log. A listener that was away cannot know what it missed, so it forgets
//! every cached route when it is back; until then the routes' own lifetime bounds how old they can be.

use std::time::Duration;

use kernel::{Hostname, RunId, StoreId};
use serde::Deserialize;
use tenancy::StoreChange;

use super::db;
use crate::cx::Cx;
use crate::http::errors::chain;
use crate::master::{self, MasterError};

const STORE_CHANGES: &str = "tenantry_store_changes";
const PROVISIONING: &str = "tenantry_provisioning";
const RETRY: Duration = Duration::from_secs(1);

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
    let mut listener = master::listen(&cx.master_args, &[STORE_CHANGES, PROVISIONING]).await?;
    cx.stores.forget_all();
    metrics::gauge!("tenantry_listener_connected").set(1.0);
    // `None` means that the connection was lost and what came meanwhile is gone: start over.
    while let Some(notification) = listener.try_recv().await? {
        match notification.channel() {
            STORE_CHANGES => hear_of_change(cx, notification.payload()).await,
            PROVISIONING => {
                if let Ok(id) = notification.payload().parse() {
                    // Nobody watching is no failure.
                    let _ = cx.run_events.send(RunId::from_uuid(id));
                }
            }
            _ => {}
        }
    }
    Err(MasterError::Db(sqlx::Error::PoolClosed))
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
    found.await.unwrap_or_else(|error| {
        tracing::warn!(error = %error, "change {seq} of a route could not be read");
        None
    })
}
