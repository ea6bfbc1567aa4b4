//! Hears of changes: every process listens to master, so a suspend on one node, or in the CLI, closes the store on all.
//!
//! A notification names an entry of the change log. A listener that was away cannot know what it missed, so it forgets
//! every cached route when it is back; until then the routes' own lifetime bounds how old they can be.

use std::time::Duration;

use kernel::RunId;
use sqlx::postgres::PgListener;

use super::db;
use crate::cx::Cx;

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
                    tracing::warn!(error = %error, "lost the listener of master; cached routes live by their lifetime until it is back");
                    metrics::gauge!("tenantry_listener_connected").set(0.0);
                }
                tokio::time::sleep(RETRY).await;
            }
        })
        .await;
}

async fn listen(cx: &Cx) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(&cx.master).await?;
    listener.listen_all([STORE_CHANGES, PROVISIONING]).await?;
    cx.stores.forget_all();
    metrics::gauge!("tenantry_listener_connected").set(1.0);
    // `None` means that the connection was lost and what came meanwhile is gone: start over.
    while let Some(notification) = listener.try_recv().await? {
        match notification.channel() {
            STORE_CHANGES => hear_of_change(cx, notification.payload()).await?,
            PROVISIONING => {
                if let Ok(id) = notification.payload().parse() {
                    // Nobody watching is no failure.
                    let _ = cx.run_events.send(RunId::from_uuid(id));
                }
            }
            _ => {}
        }
    }
    Err(sqlx::Error::PoolClosed)
}

async fn hear_of_change(cx: &Cx, payload: &str) -> Result<(), sqlx::Error> {
    let Ok(seq) = payload.parse() else { return Ok(()) };
    match db::store_change(&mut *cx.master.acquire().await?, seq).await? {
        Some(change) => {
            tracing::debug!(store.id = %change.store_id, "route of store {} is now at version {}", change.store_id, change.route_version);
            cx.stores.apply(change);
        }
        // Purged before it was read: forget everything rather than miss it.
        None => cx.stores.forget_all(),
    }
    Ok(())
}
