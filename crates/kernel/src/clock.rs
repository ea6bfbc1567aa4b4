//! Time as an argument: code asks a [`Clock`], so a test can move it.

use chrono::{DateTime, SubsecRound as _, Utc};

/// Where "now" comes from.
pub trait Clock: std::fmt::Debug + Send + Sync + 'static {
    /// The present moment, in UTC and whole microseconds: what a database keeps, so that a moment reads back as it was told.
    fn now(&self) -> DateTime<Utc>;
}

/// The machine's clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one site that reads the machine's clock")]
    fn now(&self) -> DateTime<Utc> {
        Utc::now().trunc_subsecs(6)
    }
}
