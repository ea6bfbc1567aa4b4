//! A lease: the only way to a store's database. It keeps the store's pool open and holds no connection itself.

use std::sync::Arc;

use kernel::{Engine, StoreId};

use crate::connection::{Connection, Transaction};
use crate::error::LeaseError;
use crate::pool::Pool;
use crate::route::Route;

/// A right to connections of one store. Cheap to clone; drop it when the request ends.
pub struct Lease {
    pool: Arc<Pool>,
    route: Arc<Route>,
    is_served: bool,
}

impl Lease {
    pub(crate) fn new(pool: Arc<Pool>, route: Arc<Route>, is_served: bool) -> Self {
        pool.leased();
        Self { pool, route, is_served }
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
        self.pool.acquire(self.is_served).await
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
        Self::new(Arc::clone(&self.pool), Arc::clone(&self.route), self.is_served)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.unleased();
    }
}
