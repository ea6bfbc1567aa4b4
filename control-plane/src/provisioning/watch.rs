//! The event stream of a run: what was missed first, then what happens, until the run has ended.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, StreamExt as _, stream};
use kernel::RunId;
use tokio::sync::broadcast;

use super::{ProvisioningError, db};
use crate::cx::Cx;

/// When nothing was heard for so long, the log is read anyway: a notification may have been lost.
const POLL: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_secs(15);
const RECONNECT: Duration = Duration::from_secs(2);

/// The events of `run` after `last_event_id`.
pub fn stream(cx: Cx, run: RunId, last_event_id: i64) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    // Subscribed before the log is read: what is added in between is heard of.
    let news = cx.run_events.subscribe();
    let start = Watch { cx, run, after: last_event_id, news, has_ended: false, is_first: true };
    let batches = stream::unfold(start, |mut watch| async move {
        if watch.has_ended {
            return None;
        }
        if !watch.is_first {
            watch.wait().await;
        }
        watch.is_first = false;
        let events = watch.read().await;
        Some((stream::iter(events), watch))
    });
    Sse::new(batches.flatten().map(Ok)).keep_alive(KeepAlive::new().interval(HEARTBEAT))
}

/// Whether anything happened to `run` after `last_event_id`.
pub async fn has_more(cx: &Cx, run: RunId, last_event_id: i64) -> Result<bool, ProvisioningError> {
    let mut master = cx.master.acquire().await?;
    Ok(!db::events_after(&mut master, run, last_event_id).await?.is_empty())
}

struct Watch {
    cx: Cx,
    run: RunId,
    after: i64,
    news: broadcast::Receiver<RunId>,
    has_ended: bool,
    is_first: bool,
}

impl Watch {
    /// Returns when the log may have grown, and at the latest after [`POLL`].
    async fn wait(&mut self) {
        let shutdown = self.cx.shutdown.clone();
        let heard = async {
            loop {
                match self.news.recv().await {
                    Ok(run) if run != self.run => {}
                    // Lagging means that something was missed: read the log.
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                    Err(broadcast::error::RecvError::Closed) => std::future::pending::<()>().await,
                }
            }
        };
        if shutdown.run_until_cancelled(tokio::time::timeout(POLL, heard)).await.is_none() {
            self.has_ended = true;
        }
    }

    async fn read(&mut self) -> Vec<Event> {
        if self.has_ended {
            return Vec::new();
        }
        let found = async {
            let mut master = self.cx.master.acquire().await?;
            db::events_after(&mut master, self.run, self.after).await
        };
        let found = match found.await {
            Ok(found) => found,
            Err(error) => {
                // The client comes back with its Last-Event-ID.
                tracing::warn!(error = %error, run.id = %self.run, "could not read the events of run {}", self.run);
                self.has_ended = true;
                return Vec::new();
            }
        };
        let mut events = Vec::with_capacity(found.len());
        for event in found {
            self.after = event.id;
            self.has_ended = matches!(event.kind.as_str(), "succeeded" | "failed" | "cancelled");
            events.push(
                Event::default()
                    .id(event.id.to_string())
                    .event(event.kind)
                    .retry(RECONNECT)
                    .data(event.data.to_string()),
            );
        }
        events
    }
}
