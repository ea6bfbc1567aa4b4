//! A lease: the only way to a store's database. It keeps the store's pool open and holds no connection itself.

use std::sync::Arc;

use kernel::{Engine, StoreId};

use crate::connection::{Connection, Transaction};
use crate::error::LeaseError;
use crate::pool::Pool;
use crate::route::Route;

/// What connections are for. Work apart from requests, however much of it there is, leaves a store connections for its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Requests, for which somebody waits.
    Web,
    /// Imports, and what is done now and then: at most [`TenancyConfig::max_job_connections_per_store`] of a store's connections.
    ///
    /// [`TenancyConfig::max_job_connections_per_store`]: crate::TenancyConfig::max_job_connections_per_store
    Job,
}

/// A right to connections of one store. Cheap to clone; drop it when the request ends.
pub struct Lease {
    pool: Arc<Pool>,
    route: Arc<Route>,
    is_served: bool,
    lane: Lane,
}

impl Lease {
    pub(crate) fn new(pool: Arc<Pool>, route: Arc<Route>, is_served: bool) -> Self {
        pool.leased();
        Self { pool, route, is_served, lane: Lane::Web }
    }

    /// The same lease for this lane.
    #[must_use]
    pub fn in_lane(mut self, lane: Lane) -> Self {
        self.lane = lane;
        self
    }

    /// The store.
    #[must_use]
    pub fn store_id(&self) -> StoreId {
        self.route.store_id
    }

    /// What statements must be written for.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.pool.database.engine
    }

    /// The route that it was given for.
    #[must_use]
    pub fn route(&self) -> &Arc<Route> {
        &self.route
    }

    /// A connection, for as long as it is kept: one query or a few, not a whole request.
    ///
    /// # Errors
    /// [`LeaseError`], within `acquire_timeout` and the pings that it may take.
    pub async fn acquire(&self) -> Result<Connection, LeaseError> {
        match self.lane {
            Lane::Web => self.pool.acquire(self.is_served).await,
            Lane::Job => self.pool.acquire_for_job(self.is_served).await,
        }
    }

    /// A transaction on a connection of its own.
    ///
    /// # Errors
    /// As [`Lease::acquire`].
    pub async fn begin(&self) -> Result<Transaction, LeaseError> {
        self.acquire().await?.begin().await
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.pool), Arc::clone(&self.route), self.is_served).in_lane(self.lane)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.unleased();
    }
}
