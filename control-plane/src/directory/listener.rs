//! Hears of changes: every process listens to master, so a suspend on one node, or in the CLI, closes the store on all.
//!
//! A notification carries an entry of the change log. What was missed of them, because the way to master was away or for whatever
//! other reason, is read in the log: when the listener is back, now and then while it is there, and every second while it is not.
//! A network can go without a word, and a listener that only waits would never know: when nothing was heard for a while, it asks
//! for a sign.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use kernel::{Hostname, RunId, StoreId};
use serde::Deserialize;
use tenancy::StoreChange;
use tokio::time::Instant;

use super::changes::{LoggedChange, Reader, Way};
use super::db;
use crate::cx::Cx;
use crate::http::errors::chain;
use crate::master::{self, MasterError};
use crate::shares;

const STORE_CHANGES: &str = "tenantry_store_changes";
/// Names a store whose database was seen well. Who may have missed one tries all again.
const STORE_RECOVERIES: &str = "tenantry_store_recoveries";
const PROVISIONING: &str = "tenantry_provisioning";
/// How soon the listener is tried again; until then the log is read.
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
            let (mut reader, mut is_told) = (Reader::default(), false);
            loop {
                if let Err(error) = listen(&cx, &mut reader, &mut is_told).await
                    && !is_told
                {
                    tracing::warn!(
                        error = chain(&error),
                        "lost the listener of master; the log of changes is read until it is back. Without master, storefronts that \
                         are known are served for {} s",
                        cx.ops().limits.route_max_stale.as_secs()
                    );
                    metrics::gauge!("tenantry_listener_connected").set(0.0);
                    is_told = true;
                }
                // When master does not answer at all, cached routes live by their lifetime, and nobody waits for it.
                let asked = Instant::now();
                if let Err(error) = reader.catch_up(&cx).await {
                    cx.stores.note_directory_down(asked);
                    tracing::debug!(error = chain(&error), "the log of changes could not be read");
                }
                tokio::time::sleep(RETRY).await;
            }
        })
        .await;
}

/// `is_told` is whether it was said that nothing is heard.
async fn listen(cx: &Cx, reader: &mut Reader, is_told: &mut bool) -> Result<(), MasterError> {
    let mut listener =
        master::listen(&cx.master_args, &[STORE_CHANGES, STORE_RECOVERIES, PROVISIONING, shares::NEWS]).await?;
    // After it listens: what is committed from now on is heard, what was before is in the log.
    reader.catch_up(cx).await?;
    cx.stores.try_all_again();
    if std::mem::take(is_told) {
        tracing::info!("changes are heard from master again");
    }
    metrics::gauge!("tenantry_listener_connected").set(1.0);
    let mut recheck = Instant::now() + cx.ops().limits.route_recheck.max(RETRY);
    loop {
        let quiet = Instant::now() + QUIET;
        let heard = tokio::time::timeout_at(quiet.min(recheck), listener.try_recv()).await;
        if Instant::now() >= recheck {
            reader.catch_up(cx).await?;
            recheck = Instant::now() + cx.ops().limits.route_recheck.max(RETRY);
        }
        let Ok(heard) = heard else {
            master::prove_alive(&mut listener).await?;
            continue;
        };
        // `None` means that the connection was lost and what came meanwhile is gone: start over.
        let Some(notification) = heard? else { return Err(MasterError::Db(sqlx::Error::PoolClosed)) };
        match notification.channel() {
            STORE_CHANGES => hear_of_change(cx, reader, notification.payload()).await,
            shares::NEWS => cx.share_news.notify_one(),
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
    /// In seconds since 1970, by master's clock.
    at: Option<f64>,
}

async fn hear_of_change(cx: &Cx, reader: &Reader, payload: &str) {
    // Whoever can connect to master can notify: what we do not understand changes nothing.
    let Ok(notice) = serde_json::from_str::<Notice>(payload) else { return };
    let heard = match (notice.store_id, notice.route_version, notice.hostnames) {
        (Some(store), Some(route_version), Some(names)) => {
            let hostnames = names.iter().filter_map(|name| Hostname::parse(name).ok()).collect();
            Some((
                StoreChange { store_id: StoreId::from_uuid(store), route_version, hostnames },
                notice.at.and_then(moment),
            ))
        }
        _ => read_change(cx, notice.seq).await.map(|entry| (entry.change, Some(entry.at))),
    };
    match heard {
        Some((change, at)) => reader.apply(cx, change, at, Way::Notification),
        // Purged before it was read, or not to be read now: forget everything rather than miss it.
        None => cx.stores.forget_all(),
    }
}

fn moment(seconds: f64) -> Option<DateTime<Utc>> {
    let since = Duration::try_from_secs_f64(seconds).ok()?;
    DateTime::UNIX_EPOCH.checked_add_signed(TimeDelta::from_std(since).ok()?)
}

async fn read_change(cx: &Cx, seq: i64) -> Option<LoggedChange> {
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
