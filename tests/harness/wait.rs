//! Waiting without sleeping through it: on a future, or on a condition that is asked again and again, both with a deadline.

use std::time::Duration;

use tokio::time::{Instant, interval, timeout};

/// How long anything in a test may take before it counts as stuck. Generous: the suite runs beside builds.
const DEADLINE: Duration = Duration::from_secs(60);
const PERIOD: Duration = Duration::from_millis(20);

/// The outcome of `work`, which must come in time.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(DEADLINE, work).await.unwrap_or_else(|_| panic!("{what} took more than {DEADLINE:?}"))
}

/// What `ask` answers once it answers anything.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + DEADLINE;
    let mut ticks = interval(PERIOD);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what} did not come true in {DEADLINE:?}");
        ticks.tick().await;
    }
}
