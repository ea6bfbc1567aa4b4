//! The front door: names to routes, routes to leases.

use std::sync::Arc;
use std::time::Duration;

use kernel::{Hostname, StoreId};
use vault::KeyRing;

use crate::config::TenancyConfig;
use crate::error::{LeaseError, ResolveError};
use crate::lease::Lease;
use crate::route::{Directory, Route, StoreChange};
use crate::stats::{Explanation, Stats};

/// The connection manager of one node. Cheap to clone.
pub struct Tenancy<D> {
    directory: Arc<D>,
}

impl<D> Clone for Tenancy<D> {
    fn clone(&self) -> Self {
        Self { directory: Arc::clone(&self.directory) }
    }
}

impl<D: Directory> Tenancy<D> {
    /// Starts it, with its one reaper task. Call it inside a Tokio runtime, after the metrics recorder was installed.
    #[must_use]
    pub fn new(directory: D, keys: Arc<KeyRing>, config: TenancyConfig) -> Self {
        let _ = (keys, config);
        Self { directory: Arc::new(directory) }
    }

    /// The route of the store that has this hostname, whatever the store's status.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn resolve_host(&self, host: &Hostname) -> Result<Arc<Route>, ResolveError> {
        let found = self.directory.find_by_hostname(host).await.map_err(|_| ResolveError::DirectoryUnavailable)?;
        found.map(Arc::new).ok_or(ResolveError::UnknownHost)
    }

    /// The route of this store, whatever its status.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn resolve_store(&self, store: StoreId) -> Result<Arc<Route>, ResolveError> {
        let found = self.directory.find_by_store(store).await.map_err(|_| ResolveError::DirectoryUnavailable)?;
        found.map(Arc::new).ok_or(ResolveError::UnknownStore)
    }

    /// A lease on a store that is served.
    ///
    /// # Errors
    /// [`LeaseError`]; no database is touched before the first connection is acquired.
    pub async fn lease(&self, route: &Arc<Route>) -> Result<Lease, LeaseError> {
        let _ = route;
        Err(LeaseError::NoDatabase)
    }

    /// A lease on a store whatever its status: for its owner, for provisioning and for ops, never for a storefront.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub async fn lease_unserved(&self, route: &Arc<Route>) -> Result<Lease, LeaseError> {
        let _ = route;
        Err(LeaseError::NoDatabase)
    }

    /// Takes note of a change: routes older than it no longer count, from now on and whatever is under way.
    pub fn apply(&self, change: StoreChange) {
        drop(change);
    }

    /// Takes note that changes may have been missed: every route is read again before it counts, while the directory
    /// answers.
    pub fn forget_all(&self) {}

    /// The whole node in numbers.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// What this node knows of a store.
    pub async fn explain(&self, store: StoreId) -> Option<Explanation> {
        let _ = store;
        None
    }

    /// What this node knows of the store that has this hostname, without asking the directory.
    pub async fn explain_host(&self, host: &Hostname) -> Option<Explanation> {
        let _ = host;
        None
    }

    /// Gives no more leases, waits up to `grace` for those that are out, then closes every connection for real.
    /// Returns the number of connections that were still in use and could not be closed.
    pub async fn shutdown(&self, grace: Duration) -> usize {
        let _ = grace;
        0
    }
}
