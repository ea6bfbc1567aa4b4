//! How often one address may knock at the sign-in routes, and how often one account is tried.
//!
//! An account has three bounds. One holds for each network, so that a stranger cannot lock its owner out with a few tries.
//! The others hold for the networks of one site, and for all networks together, so that many of them cannot guess much
//! faster than one; the last counts wrong passwords only. A network that signed in to the account not long ago is let in
//! although others have used those two up, since its own bound is enough for it.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use dashmap::DashMap;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};
use moka::future::Cache;
use moka::policy::EvictionPolicy;
use problem::Problem;
use sha2::{Digest as _, Sha256};

use super::{Email, IdentityError};
use crate::http::network::{network, site};

/// One account is tried at most this often a minute from one network ...
const TRIES_PER_NETWORK: NonZeroU32 = NonZeroU32::new(10).expect("not zero");
/// ... this often from all IPv6 networks of one site ...
const TRIES_PER_SITE: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
/// ... and this often in vain from everywhere together.
const FAILURES_ANYWHERE: u32 = 100;
const WINDOW: Duration = Duration::from_secs(60);
/// A site may make so many times the requests of one network: many of them have more than one person behind them.
const NETWORKS_PER_SITE: u32 = 10;
/// Above this many keys, those that are back at full quota are forgotten.
const MAX_KEYS: usize = 50_000;
/// How long, and of how many, it is known that a network signed in to an account.
const KNOWN_FOR: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const MAX_KNOWN: u64 = 100_000;

/// An account, or an account and a network, without saying which.
type Key = [u8; 32];

/// The limits of the sign-in routes. Bounded: keys that have recovered are dropped.
pub struct AuthLimits {
    by_network: DefaultKeyedRateLimiter<IpAddr>,
    by_site: DefaultKeyedRateLimiter<IpAddr>,
    by_account_and_network: DefaultKeyedRateLimiter<Key>,
    by_account_and_site: DefaultKeyedRateLimiter<Key>,
    failures_by_account: Failures,
    known_networks: Cache<Key, ()>,
    clock: DefaultClock,
}

/// A try of an account that was let in. It counts as a failure until it is settled, so that tries at the same time count.
#[must_use = "a try that is not settled stays counted as a failure"]
pub struct AccountTry {
    account: Key,
    account_and_network: Key,
    is_counted: bool,
}

impl AuthLimits {
    pub fn new(requests_per_minute: u32) -> Self {
        let per_network = NonZeroU32::new(requests_per_minute).unwrap_or(NonZeroU32::MIN);
        let per_site = per_network.saturating_mul(NonZeroU32::new(NETWORKS_PER_SITE).expect("not zero"));
        Self {
            by_network: DefaultKeyedRateLimiter::keyed(Quota::per_minute(per_network)),
            by_site: DefaultKeyedRateLimiter::keyed(Quota::per_minute(per_site)),
            by_account_and_network: DefaultKeyedRateLimiter::keyed(Quota::per_minute(TRIES_PER_NETWORK)),
            by_account_and_site: DefaultKeyedRateLimiter::keyed(Quota::per_minute(TRIES_PER_SITE)),
            failures_by_account: Failures::default(),
            // Who signs in seldom must not be the one that is forgotten, which is what counting uses would do.
            known_networks: Cache::builder()
                .max_capacity(MAX_KNOWN)
                .time_to_live(KNOWN_FOR)
                .eviction_policy(EvictionPolicy::lru())
                .build(),
            clock: DefaultClock::default(),
        }
    }

    /// Counts a request of `address`, at its network and, when it is an IPv6 one, at the site that it belongs to.
    pub fn check_address(&self, address: IpAddr) -> Result<(), Problem> {
        self.check(&self.by_network, &network(address))?;
        site(address).map_or(Ok(()), |site| self.check(&self.by_site, &site))
    }

    /// Counts a try of the account `email` from `address`, whether the account exists or not. Counted in its one comparable
    /// form, so that no other spelling has a count of its own.
    pub fn check_account(&self, email: &str, address: IpAddr) -> Result<AccountTry, Problem> {
        let account = account_of(email);
        let account_and_network = key(&account, Some(network(address)));
        self.check(&self.by_account_and_network, &account_and_network)?;
        let of_site = site(address).map(|site| key(&account, Some(site)));
        let account = key(&account, None);
        let wider = of_site
            .map_or(Ok(()), |of_site| self.check(&self.by_account_and_site, &of_site))
            .and_then(|()| self.failures_by_account.take(account).map_err(too_many));
        let is_counted = match wider {
            Ok(()) => true,
            Err(_) if self.known_networks.contains_key(&account_and_network) => false,
            Err(refused) => return Err(refused),
        };
        Ok(AccountTry { account, account_and_network, is_counted })
    }

    /// Ends a try by what came of it: a wrong password stays counted, and a right one makes the network known.
    pub async fn settle<T>(&self, tried: AccountTry, outcome: &Result<T, IdentityError>) {
        let is_right = match outcome {
            Err(IdentityError::InvalidCredentials) => return,
            // Which store was asked for is looked at after the password.
            Ok(_) | Err(IdentityError::StoreNotFound) => true,
            Err(_) => false,
        };
        if tried.is_counted {
            self.failures_by_account.give_back(tried.account);
        }
        if is_right {
            self.known_networks.insert(tried.account_and_network, ()).await;
        }
    }

    /// Remembers that whoever has the account `email` is at `address`.
    pub async fn remember(&self, email: &str, address: IpAddr) {
        self.known_networks.insert(key(&account_of(email), Some(network(address))), ()).await;
    }

    fn check<K: std::hash::Hash + Eq + Clone>(
        &self,
        limit: &DefaultKeyedRateLimiter<K>,
        key: &K,
    ) -> Result<(), Problem> {
        if limit.len() > MAX_KEYS {
            limit.retain_recent();
        }
        limit.check_key(key).map_err(|until| too_many(until.wait_time_from(self.clock.now())))
    }
}

fn account_of(email: &str) -> String {
    Email::parse(email).map_or_else(|_| email.to_owned(), |email| email.as_str().to_owned())
}

fn key(account: &str, from: Option<IpAddr>) -> Key {
    let from = from.map(|network| network.to_string()).unwrap_or_default();
    Sha256::digest(format!("{account}\n{from}")).into()
}

fn too_many(wait: Duration) -> Problem {
    let wait = wait.max(Duration::from_secs(1));
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", "Too many sign-in requests")
        .detail(format!("Try again in {} s.", wait.as_secs() + 1))
        .retry_after(wait)
}

/// Failed tries of each account, which come back one by one. Unlike with a rate limiter, what was taken can be given back.
#[derive(Default)]
struct Failures {
    /// When all of an account's tries are back.
    recovered_at: DashMap<Key, Instant>,
}

impl Failures {
    const PER_FAILURE: Duration = WINDOW.checked_div(FAILURES_ANYWHERE).expect("not zero");

    /// Takes one, or says how long it is until there is one again.
    fn take(&self, account: Key) -> Result<(), Duration> {
        let now = Instant::now();
        if self.recovered_at.len() > MAX_KEYS {
            self.recovered_at.retain(|_, recovered_at| *recovered_at > now);
        }
        let mut recovered_at = self.recovered_at.entry(account).or_insert(now);
        let later = (*recovered_at).max(now) + Self::PER_FAILURE;
        match later.checked_duration_since(now + WINDOW) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                *recovered_at = later;
                Ok(())
            }
        }
    }

    fn give_back(&self, account: Key) {
        if let Some(mut recovered_at) = self.recovered_at.get_mut(&account) {
            *recovered_at -= Self::PER_FAILURE;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::{AccountTry, AuthLimits, FAILURES_ANYWHERE, IdentityError, Problem};

    const EMAIL: &str = "ada@example.com";

    fn limits() -> AuthLimits {
        AuthLimits::new(1_000_000)
    }

    fn stranger(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    async fn settle(limits: &AuthLimits, tried: Result<AccountTry, Problem>, is_right: bool) {
        let outcome = if is_right { Ok(()) } else { Err(IdentityError::InvalidCredentials) };
        limits.settle(tried.expect("let in"), &outcome).await;
    }

    /// How many of a hundred or so wrong passwords, each from a network of its own, were let in; ends at the first refusal.
    async fn guess(limits: &AuthLimits) -> u32 {
        for number in 0..10 * FAILURES_ANYWHERE {
            match limits.check_account(EMAIL, stranger(number)) {
                Ok(tried) => settle(limits, Ok(tried), false).await,
                Err(refused) => {
                    assert_eq!(refused.code(), "too-many-requests");
                    return number;
                }
            }
        }
        panic!("nobody was refused");
    }

    #[tokio::test]
    async fn many_networks_guess_no_faster_than_the_account_allows() {
        let limits = limits();
        let let_in = guess(&limits).await;
        // Tries come back while a slow machine counts.
        assert!((FAILURES_ANYWHERE..2 * FAILURES_ANYWHERE).contains(&let_in), "{let_in} were let in");
        limits.check_account("eve@example.com", stranger(0)).map(drop).expect("another account is not concerned");
    }

    #[tokio::test]
    async fn right_passwords_are_not_counted() {
        let limits = limits();
        for number in 0..2 * FAILURES_ANYWHERE {
            settle(&limits, limits.check_account(EMAIL, stranger(number)), true).await;
        }
    }

    #[tokio::test]
    async fn tries_at_the_same_time_are_counted_before_they_end() {
        let limits = limits();
        let under_way: Vec<_> = (0..2 * FAILURES_ANYWHERE)
            .filter_map(|number| limits.check_account(EMAIL, stranger(number)).ok())
            .collect();
        assert!(under_way.len() < 2 * FAILURES_ANYWHERE as usize, "{} were let in", under_way.len());
    }

    #[tokio::test]
    async fn a_network_that_signed_in_is_let_in_while_others_guess_and_has_its_own_bound() {
        let limits = limits();
        let home = stranger(1 << 20);
        settle(&limits, limits.check_account(EMAIL, home), true).await;
        guess(&limits).await;
        for _ in 0..9 {
            settle(&limits, limits.check_account(" ADA@example.com", home), false).await;
        }
        assert!(limits.check_account(EMAIL, home).is_err(), "it is no way to guess without end");

        let registered_at = stranger(1 << 21);
        limits.remember(EMAIL, registered_at).await;
        settle(&limits, limits.check_account(EMAIL, registered_at), true).await;
    }

    #[tokio::test]
    async fn a_household_of_many_ipv6_networks_is_bounded_like_one() {
        let limits = limits();
        let mut let_in = 0;
        for network in 0..16_u128 {
            for host in 0..10 {
                let address = IpAddr::V6((0x2001_0db8_0001_0000_u128 << 64 | network << 64 | host).into());
                let_in += u32::from(limits.check_account(EMAIL, address).is_ok());
            }
        }
        assert!((20..FAILURES_ANYWHERE / 2).contains(&let_in), "{let_in} were let in");
        limits.check_account(EMAIL, stranger(0)).map(drop).expect("others still get in");
        let neighbour = IpAddr::V6((0x2001_0db8_0001_ffff_u128 << 64).into());
        assert!(limits.check_account(EMAIL, neighbour).is_err(), "the site's tries are spent");
        limits.remember(EMAIL, neighbour).await;
        limits.check_account(EMAIL, neighbour).map(drop).expect("a network that is known gets in");

        let limits = AuthLimits::new(2);
        let from = |network: u128| IpAddr::V6((0x2001_0db8_0001_0000_u128 << 64 | network << 64).into());
        let let_in = (0..100).filter(|network| limits.check_address(from(*network)).is_ok()).count();
        assert!((20..50).contains(&let_in), "{let_in} requests were let in");
    }
}
