//! How often one address may knock at the sign-in routes, and how often one account is tried.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use axum::http::StatusCode;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};
use problem::Problem;
use sha2::{Digest as _, Sha256};

use super::Email;
use crate::http::network::network;

/// One account is tried at most this often a minute from one address ...
const TRIES_PER_ACCOUNT: NonZeroU32 = NonZeroU32::new(10).expect("not zero");
/// ... and this often from all of them together.
const TRIES_ANYWHERE: NonZeroU32 = NonZeroU32::new(100).expect("not zero");
/// Above this many keys, those that are back at full quota are forgotten.
const MAX_KEYS: usize = 50_000;

/// The limits of the sign-in routes. Bounded: keys that have recovered are dropped.
pub struct AuthLimits {
    by_address: DefaultKeyedRateLimiter<IpAddr>,
    by_account: DefaultKeyedRateLimiter<[u8; 32]>,
    by_account_anywhere: DefaultKeyedRateLimiter<[u8; 32]>,
    clock: DefaultClock,
}

impl AuthLimits {
    pub fn new(requests_per_minute: u32) -> Self {
        let per_address = NonZeroU32::new(requests_per_minute).unwrap_or(NonZeroU32::MIN);
        Self {
            by_address: DefaultKeyedRateLimiter::keyed(Quota::per_minute(per_address)),
            by_account: DefaultKeyedRateLimiter::keyed(Quota::per_minute(TRIES_PER_ACCOUNT)),
            by_account_anywhere: DefaultKeyedRateLimiter::keyed(Quota::per_minute(TRIES_ANYWHERE)),
            clock: DefaultClock::default(),
        }
    }

    /// Counts a request of `address`; an IPv6 network of 64 bits counts as one.
    pub fn check_address(&self, address: IpAddr) -> Result<(), Problem> {
        let key = network(address);
        if self.by_address.len() > MAX_KEYS {
            self.by_address.retain_recent();
        }
        self.by_address.check_key(&key).map_err(|until| self.too_many(&until))
    }

    /// Counts a try of the account `email` from `address`, whether the account exists or not. Counted in its one comparable
    /// form, so that no other spelling has a count of its own; and apart for each address, so that a stranger cannot lock
    /// its owner out with a few tries.
    pub fn check_account(&self, email: &str, address: IpAddr) -> Result<(), Problem> {
        if self.by_account.len() > MAX_KEYS {
            self.by_account.retain_recent();
        }
        if self.by_account_anywhere.len() > MAX_KEYS {
            self.by_account_anywhere.retain_recent();
        }
        let account = Email::parse(email).map_or_else(|_| email.to_owned(), |email| email.as_str().to_owned());
        let key = |parts: [&str; 2]| -> [u8; 32] { Sha256::digest(parts.join("\n").as_bytes()).into() };
        let near = key([&account, &network(address).to_string()]);
        self.by_account.check_key(&near).map_err(|until| self.too_many(&until))?;
        self.by_account_anywhere.check_key(&key([&account, ""])).map_err(|until| self.too_many(&until))
    }

    fn too_many(&self, until: &governor::NotUntil<<DefaultClock as governor::clock::Clock>::Instant>) -> Problem {
        let wait = until.wait_time_from(self.clock.now()).max(Duration::from_secs(1));
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", "Too many sign-in requests")
            .detail(format!("Try again in {} s.", wait.as_secs() + 1))
            .retry_after(wait)
    }
}
