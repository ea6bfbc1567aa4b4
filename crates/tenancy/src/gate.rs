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

    pub(crate) fn succeeded(&self) {
        lock(&self.store).succeeded();
        if let Some(server) = &self.server {
            lock(server).succeeded();
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
        if let Some(server) = &self.server {
            let mut server = lock(server);
            if error.cause.is_of_server() {
                server.failed_again(error.clone(), now, config, config.server_strikes);
            } else {
                // It answered, if only with a refusal.
                server.succeeded();
            }
        }
        lock(&self.store).failed(error, now, config);
    }
}
