//! A body that has to keep coming: what is done while it comes must not be held up by whoever sends it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

/// How fast a sender has to be.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub bytes_per_s: u32,
    /// How far it may fall behind that, which is also how long it may be silent.
    pub grace: Duration,
}

/// The sender has used up its grace.
#[derive(Debug, thiserror::Error)]
#[error("the body came too slowly")]
pub struct TooSlow;

/// A body that fails with [`TooSlow`] when it falls behind its pace. Only time in which it is waited for counts: a reader may
/// take its time. What is sent ahead of the pace saves up no more than the grace.
pub struct PacedBody {
    body: Body,
    pace: Pace,
    left: Duration,
    /// Since when it is waited for, and until when.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl PacedBody {
    pub fn new(body: Body, pace: Pace) -> Self {
        Self { body, pace, left: pace.grace, waiting: None }
    }
}

impl HttpBody for PacedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
            let left = this.left;
            let (_, over) = this.waiting.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(left))));
            ready!(over.as_mut().poll(context));
            return Poll::Ready(Some(Err(TooSlow.into())));
        };
        if let Some((since, _)) = this.waiting.take() {
            this.left = this.left.saturating_sub(since.elapsed());
        }
        if let Some(Ok(frame)) = &frame {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            let earned = Duration::from_secs_f64(bytes as f64 / f64::from(this.pace.bytes_per_s.max(1)));
            this.left = this.left.saturating_add(earned).min(this.pace.grace);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
