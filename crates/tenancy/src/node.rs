//! What all pools of a node share.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use vault::KeyRing;

use crate::config::TenancyConfig;
use crate::registry::Stores;
use crate::server::Servers;
use crate::session::Setup;

pub(crate) struct Node {
    pub(crate) config: TenancyConfig,
    pub(crate) keys: Arc<KeyRing>,
    pub(crate) setup: Setup,
    pub(crate) servers: Servers,
    pub(crate) tracker: TaskTracker,
    pub(crate) stores: Stores,
    runtime: Handle,
}

impl Node {
    pub(crate) fn new(keys: Arc<KeyRing>, config: TenancyConfig) -> Self {
        Self {
            setup: Setup::new(&config),
            servers: Servers::new(&config),
            keys,
            config,
            tracker: TaskTracker::new(),
            stores: Stores::new(),
            runtime: Handle::current(),
        }
    }

    /// Runs `task` apart from the request that caused it; shutting down waits for it.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(self.tracker.spawn_on(task, &self.runtime));
    }
}

/// Locks `mutex` even when a holder panicked: every critical section here leaves its counts whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
