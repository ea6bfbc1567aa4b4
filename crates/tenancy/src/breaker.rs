//! When to stop asking a database, or a server, that does not answer.
//!
//! A breaker belongs to a store or to a server, and outlives the pools. Invariants:
//! - after a failure nobody connects until a jittered pause is over; the pause doubles with each further failure. A server
//!   has failed when several connects in a row have, of whichever stores: one database that hangs is not its server;
//! - then one connect tries (the probe), and everybody else is still refused until it has an answer;
//! - after a refusal that only a change can heal, nobody connects until the route changes or a long pause is over; a password
//!   that was refused is not tried again at all, as servers and poolers lock out whoever goes on trying.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::BreakerConfig;
use crate::error::{Cause, ConnectError, LeaseError};
use crate::stats::{BreakerState, LastError};

#[derive(Debug, Clone, Copy)]
enum State {
    Closed,
    Paused {
        cause: Cause,
        failures: u32,
        until: Instant,
    },
    Probing {
        cause: Cause,
        failures: u32,
        lapses: Instant,
    },
    Latched {
        cause: Cause,
        until: Instant,
    },
    /// Until the route changes, or somebody sees the database well. `told` is when askers are told to come again.
    Barred {
        cause: Cause,
        told: Duration,
    },
}

#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
    /// Failures in a row while it is closed.
    strikes: u32,
    last_error: Option<(ConnectError, Instant)>,
}

impl Breaker {
    pub(crate) const fn new() -> Self {
        Self { state: State::Closed, strikes: 0, last_error: None }
    }

    /// Whether a connect may start now. After a pause the first to ask is the probe; it must report, and is taken for
    /// lost after `probe_limit`.
    pub(crate) fn admit(&mut self, now: Instant, probe_limit: Duration) -> Result<(), LeaseError> {
        let (cause, failures) = match self.state {
            State::Closed => return Ok(()),
            State::Paused { cause, until, .. } | State::Latched { cause, until } if now < until => {
                return Err(refused(cause, until - now));
            }
            State::Probing { cause, lapses, .. } if now < lapses => {
                return Err(refused(cause, lapses - now));
            }
            State::Barred { cause, told } => return Err(refused(cause, told)),
            State::Paused { cause, failures, .. } | State::Probing { cause, failures, .. } => (cause, failures),
            State::Latched { cause, .. } => (cause, 0),
        };
        self.state = State::Probing { cause, failures, lapses: now + probe_limit };
        Ok(())
    }

    /// Whether the database was last seen well, so that more than one connect may be under way.
    pub(crate) const fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Why new requests are refused now, if they are; unlike [`Breaker::admit`] it changes nothing.
    pub(crate) fn refusal(&self, now: Instant) -> Option<LeaseError> {
        match self.state {
            State::Paused { cause, until, .. } | State::Latched { cause, until } if now < until => {
                Some(refused(cause, until - now))
            }
            State::Probing { cause, lapses, .. } if now < lapses => Some(refused(cause, lapses - now)),
            State::Barred { cause, told } => Some(refused(cause, told)),
            _ => None,
        }
    }

    /// A connect succeeded. Whether that counts: after a refusal that only a change can heal, one that had begun before it says
    /// nothing of what is refused.
    pub(crate) fn succeeded(&mut self) -> bool {
        let counts = !matches!(self.state, State::Latched { .. } | State::Barred { .. });
        if counts {
            self.state = State::Closed;
            self.strikes = 0;
        }
        counts
    }

    /// As [`Breaker::failed`], but only the last of `strikes` failures in a row opens it.
    pub(crate) fn failed_again(&mut self, error: ConnectError, now: Instant, config: &BreakerConfig, strikes: u32) {
        self.strikes = self.strikes.saturating_add(1);
        if self.is_closed() && self.strikes < strikes {
            self.last_error = Some((error, now));
        } else {
            self.failed(error, now, config);
        }
    }

    /// The connect came to nothing for a reason of ours: the next may try at once.
    pub(crate) fn abandoned(&mut self, now: Instant) {
        if let State::Probing { cause, failures, .. } = self.state {
            self.state = State::Paused { cause, failures, until: now };
        }
    }

    pub(crate) fn failed(&mut self, error: ConnectError, now: Instant, config: &BreakerConfig) {
        let cause = error.cause;
        let is_barred = error.is_wrong_password();
        self.last_error = Some((error, now));
        if is_barred {
            self.state = State::Barred { cause, told: config.latched_pause };
            return;
        }
        if cause.needs_change() {
            self.state = State::Latched { cause, until: now + config.latched_pause };
            return;
        }
        let failures = match self.state {
            State::Paused { failures, .. } | State::Probing { failures, .. } => failures.saturating_add(1),
            State::Closed | State::Latched { .. } | State::Barred { .. } => 1,
        };
        let doubled = config.first_pause.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16)));
        let pause = jittered(doubled.min(config.longest_pause));
        self.state = State::Paused { cause, failures, until: now + pause };
    }

    /// Somebody saw the database well: whatever pause is left, the next to ask is the probe.
    pub(crate) fn try_again(&mut self, now: Instant) {
        if let State::Paused { cause, .. } | State::Latched { cause, .. } | State::Barred { cause, .. } = self.state {
            self.state = State::Paused { cause, failures: 0, until: now };
        }
    }

    /// The route changed: what was true of the database may be no more.
    pub(crate) fn route_changed(&mut self) {
        self.state = State::Closed;
    }

    /// Whether nothing worth remembering is left.
    pub(crate) fn is_forgettable(&self, now: Instant, keep: Duration) -> bool {
        self.is_closed() && self.last_error.as_ref().is_none_or(|(_, at)| now.saturating_duration_since(*at) > keep)
    }

    pub(crate) fn explain(&self, now: Instant) -> (BreakerState, Option<LastError>) {
        let left = |until: Instant| millis(until.saturating_duration_since(now));
        let state = match self.state {
            State::Closed => BreakerState::Closed,
            State::Paused { cause, until, .. } => BreakerState::Paused { cause, retry_after_ms: left(until) },
            State::Probing { cause, .. } => BreakerState::Probing { cause },
            State::Latched { cause, until } => BreakerState::Latched { cause, retry_after_ms: left(until) },
            State::Barred { cause, .. } => BreakerState::Barred { cause },
        };
        let last_error = self.last_error.as_ref().map(|(error, at)| LastError {
            cause: error.cause,
            code: error.code.clone(),
            ago_ms: millis(now.saturating_duration_since(*at)),
        });
        (state, last_error)
    }
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn refused(cause: Cause, retry_after: Duration) -> LeaseError {
    match cause {
        Cause::Sealed => LeaseError::Sealed,
        _ => LeaseError::Unavailable { cause, retry_after },
    }
}

/// Between half of `time` and all of it.
fn jittered(time: Duration) -> Duration {
    let half = time / 2;
    half + Duration::from_micros(kernel::random::below(u64::try_from(half.as_micros()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::{Breaker, State};
    use crate::config::BreakerConfig;
    use crate::error::{Cause, ConnectError};
    use std::time::Duration;
    use tokio::time::Instant;

    const PROBE: Duration = Duration::from_secs(3);

    fn failed(breaker: &mut Breaker, cause: Cause, now: Instant) -> Duration {
        breaker.failed(ConnectError::new(cause), now, &BreakerConfig::default());
        match breaker.state {
            State::Paused { until, .. } | State::Latched { until, .. } => until - now,
            other => panic!("a failure leaves {other:?}"),
        }
    }

    #[test]
    fn the_pause_doubles_is_jittered_and_bounded() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        for wanted_ms in [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000] {
            let pause = failed(&mut breaker, Cause::Refused, now);
            let wanted = Duration::from_millis(wanted_ms);
            assert!(pause >= wanted / 2 && pause <= wanted, "{pause:?} of {wanted:?}");
        }
    }

    #[test]
    fn after_the_pause_exactly_one_probe_goes() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        let pause = failed(&mut breaker, Cause::Timeout, now);
        assert!(breaker.admit(now, PROBE).is_err());
        assert!(breaker.admit(now + pause, PROBE).is_ok());
        assert!(breaker.admit(now + pause, PROBE).is_err());
        assert!(breaker.refusal(now + pause).is_some());
        assert!(breaker.succeeded());
        assert!(breaker.admit(now + pause, PROBE).is_ok() && breaker.admit(now + pause, PROBE).is_ok());
    }

    #[test]
    fn of_several_failures_in_a_row_the_last_opens_it() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        let fail = |breaker: &mut Breaker| {
            breaker.failed_again(ConnectError::new(Cause::Refused), now, &BreakerConfig::default(), 3);
        };
        fail(&mut breaker);
        fail(&mut breaker);
        breaker.succeeded();
        fail(&mut breaker);
        fail(&mut breaker);
        assert!(breaker.admit(now, PROBE).is_ok() && breaker.explain(now).1.is_some());
        fail(&mut breaker);
        assert!(breaker.admit(now, PROBE).is_err());
    }

    #[test]
    fn a_lost_probe_does_not_close_the_way_for_ever() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        let pause = failed(&mut breaker, Cause::Timeout, now);
        assert!(breaker.admit(now + pause, PROBE).is_ok());
        assert!(breaker.admit(now + pause + PROBE, PROBE).is_ok());
        breaker.abandoned(now + pause + PROBE);
        assert!(breaker.admit(now + pause + PROBE, PROBE).is_ok());
    }

    #[test]
    fn a_password_that_was_refused_is_not_tried_again_until_something_changes() {
        for change in [Breaker::route_changed as fn(&mut Breaker), |breaker| breaker.try_again(Instant::now())] {
            let (mut breaker, now) = (Breaker::new(), Instant::now());
            let refusal = ConnectError { code: Some("28P01".to_owned()), ..ConnectError::new(Cause::WrongPassword) };
            breaker.failed(refusal, now, &BreakerConfig::default());
            let later = now + Duration::from_secs(86_400);
            assert!(breaker.admit(later, PROBE).is_err() && breaker.refusal(later).is_some());
            assert!(!breaker.succeeded(), "a connect that was under way says nothing of the next");
            assert!(breaker.admit(later, PROBE).is_err());
            change(&mut breaker);
            assert!(breaker.admit(later, PROBE).is_ok());
        }
    }

    #[test]
    fn what_was_seen_well_is_tried_by_one_at_once() {
        for cause in [Cause::WrongPassword, Cause::Refused] {
            let (mut breaker, now) = (Breaker::new(), Instant::now());
            failed(&mut breaker, cause, now);
            assert!(breaker.admit(now, PROBE).is_err());
            breaker.try_again(now);
            assert!(breaker.admit(now, PROBE).is_ok(), "the probe");
            breaker.try_again(now);
            assert!(breaker.admit(now, PROBE).is_err(), "and nobody beside it");
        }
    }

    #[test]
    fn a_wrong_password_is_not_tried_again_until_the_route_changes() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        let pause = failed(&mut breaker, Cause::WrongPassword, now);
        assert_eq!(pause, Duration::from_secs(60));
        assert!(breaker.admit(now + pause - Duration::from_millis(1), PROBE).is_err());
        assert!(!breaker.succeeded(), "of a connect that began before");
        assert!(breaker.admit(now, PROBE).is_err());
        breaker.route_changed();
        assert!(breaker.admit(now, PROBE).is_ok());
    }
}
