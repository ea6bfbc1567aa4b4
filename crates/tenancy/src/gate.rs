//! What a connect has to pass: the breaker of its store, then that of its server.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::breaker::Breaker;
use crate::config::BreakerConfig;
use crate::error::{ConnectError, LeaseError};
use crate::node::lock;

pub(crate) struct Gate {
    store: Arc<Mutex<Breaker>>,
    server: Option<Arc<Mutex<Breaker>>>,
}

impl Gate {
    pub(crate) const fn new(store: Arc<Mutex<Breaker>>, server: Option<Arc<Mutex<Breaker>>>) -> Self {
        Self { store, server }
    }

    /// Whether a connect may start now; it must report.
    pub(crate) fn admit(&self, now: Instant, probe_limit: Duration) -> Result<(), LeaseError> {
        lock(&self.store).admit(now, probe_limit)?;
        let Some(server) = &self.server else { return Ok(()) };
        let admitted = lock(server).admit(now, probe_limit);
        if admitted.is_err() {
            // It was not even tried.
            lock(&self.store).abandoned(now);
        }
        admitted
    }

    /// Why new requests are refused now, if they are; unlike [`Gate::admit`] it changes nothing.
    pub(crate) fn refusal(&self, now: Instant) -> Option<LeaseError> {
        let of_store = lock(&self.store).refusal(now);
        of_store.or_else(|| lock(self.server.as_ref()?).refusal(now))
    }

    /// Whether the success counts: see [`Breaker::succeeded`].
    pub(crate) fn succeeded(&self) -> bool {
        self.server_answered();
        lock(&self.store).succeeded()
    }

    /// If only with a refusal.
    fn server_answered(&self) {
        if let Some(server) = &self.server {
            // A server is never refused for good, so it always counts.
            lock(server).succeeded();
        }
    }

    /// Somebody saw the database well, and so its server.
    pub(crate) fn try_again(&self, now: Instant) {
        lock(&self.store).try_again(now);
        if let Some(server) = &self.server {
            lock(server).try_again(now);
        }
    }

    /// The connect came to nothing for a reason of ours: the next may try at once.
    pub(crate) fn abandoned(&self, now: Instant) {
        lock(&self.store).abandoned(now);
        if let Some(server) = &self.server {
            lock(server).abandoned(now);
        }
    }

    pub(crate) fn failed(&self, error: ConnectError, now: Instant, config: &BreakerConfig) {
        match &self.server {
            Some(server) if error.cause.is_of_server() => {
                lock(server).failed_again(error.clone(), now, config, config.server_strikes);
            }
            _ => self.server_answered(),
        }
        lock(&self.store).failed(error, now, config);
    }
}
