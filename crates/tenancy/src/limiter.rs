//! How many distinct unknown names may reach the directory.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::node::lock;

/// A bucket of tokens. A look-up takes one and gives it back when the name turns out to be known, so that only unknown
/// names are limited; that is why this is not a ready-made limiter, none of which takes tokens back.
#[derive(Debug)]
pub(crate) struct Limiter {
    per_second: f64,
    burst: f64,
    bucket: Mutex<(f64, Instant)>,
}

impl Limiter {
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        let burst = f64::from(burst.max(1));
        Self { per_second: f64::from(per_second.max(1)), burst, bucket: Mutex::new((burst, Instant::now())) }
    }

    /// Takes a token, or says when there will be one.
    pub(crate) fn take(&self) -> Result<(), Duration> {
        let mut bucket = lock(&self.bucket);
        let now = Instant::now();
        let gained = now.saturating_duration_since(bucket.1).as_secs_f64() * self.per_second;
        let tokens = (bucket.0 + gained).min(self.burst);
        if tokens < 1.0 {
            *bucket = (tokens, now);
            return Err(Duration::from_secs_f64((1.0 - tokens) / self.per_second));
        }
        *bucket = (tokens - 1.0, now);
        Ok(())
    }

    pub(crate) fn give_back(&self) {
        let mut bucket = lock(&self.bucket);
        bucket.0 = (bucket.0 + 1.0).min(self.burst);
    }
}

#[cfg(test)]
mod tests {
    use super::Limiter;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_a_rate_and_tokens_come_back() {
        let limiter = Limiter::new(10, 3);
        assert!((0..3).all(|_| limiter.take().is_ok()));
        let wait = limiter.take().expect_err("the burst is spent");
        assert!(wait <= Duration::from_millis(100) && wait > Duration::from_millis(90));
        limiter.give_back();
        assert!(limiter.take().is_ok());
        tokio::time::advance(Duration::from_millis(101)).await;
        assert!(limiter.take().is_ok() && limiter.take().is_err());
    }
}
