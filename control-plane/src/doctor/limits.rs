//! How often somebody may have databases tested, and how many are tested at once: each test calls a place that its asker
//! names.

use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};
use kernel::UserId;
use problem::Problem;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::DoctorArgs;
use crate::http::network::{network, site};

/// So many times what one network may is what all networks of one IPv6 site may.
const NETWORKS_PER_SITE: u32 = 10;
/// Above this many keys, those that are back at full quota are forgotten.
const MAX_KEYS: usize = 50_000;

/// The limits of a node.
pub struct DoctorLimits {
    by_person: DefaultKeyedRateLimiter<UserId>,
    by_network: DefaultKeyedRateLimiter<IpAddr>,
    by_site: DefaultKeyedRateLimiter<IpAddr>,
    places: Arc<Semaphore>,
    clock: DefaultClock,
}

impl DoctorLimits {
    pub fn new(args: &DoctorArgs) -> Self {
        let per_minute = NonZeroU32::new(args.database_tests_per_minute).unwrap_or(NonZeroU32::MIN);
        let per_site = per_minute.saturating_mul(NonZeroU32::new(NETWORKS_PER_SITE).expect("not zero"));
        Self {
            by_person: DefaultKeyedRateLimiter::keyed(Quota::per_minute(per_minute)),
            by_network: DefaultKeyedRateLimiter::keyed(Quota::per_minute(per_minute)),
            by_site: DefaultKeyedRateLimiter::keyed(Quota::per_minute(per_site)),
            places: Arc::new(Semaphore::new(args.database_tests_at_once)),
            clock: DefaultClock::default(),
        }
    }

    /// Lets a test begin; it may go on for as long as the permit is kept.
    ///
    /// # Errors
    /// 429 with `Retry-After` for who asks too often, and 503 while this node has enough to do.
    pub fn admit(&self, person: UserId, address: IpAddr) -> Result<OwnedSemaphorePermit, Problem> {
        self.count_one(person, address)?;
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "Too many databases are being tested at this moment")
                .retry_after(Duration::from_secs(5))
        })
    }

    /// Counts whatever else calls a database that somebody names, for its answer says as much as a test's.
    ///
    /// # Errors
    /// 429 with `Retry-After` for who asks too often.
    pub fn count_one(&self, person: UserId, address: IpAddr) -> Result<(), Problem> {
        self.count(&self.by_person, &person)?;
        self.count(&self.by_network, &network(address))?;
        site(address).map_or(Ok(()), |site| self.count(&self.by_site, &site))
    }

    fn count<K: Hash + Eq + Clone>(&self, limit: &DefaultKeyedRateLimiter<K>, key: &K) -> Result<(), Problem> {
        if limit.len() > MAX_KEYS {
            limit.retain_recent();
        }
        limit.check_key(key).map_err(|until| {
            let wait = until.wait_time_from(self.clock.now()).max(Duration::from_secs(1));
            Problem::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too-many-requests",
                "Too many databases were tested or connected",
            )
            .detail(format!("Try again in {} s.", wait.as_secs() + 1))
            .retry_after(wait)
        })
    }
}
