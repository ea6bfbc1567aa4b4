//! A lease: the only way to a store's database. It keeps the store's pool open and holds no connection itself.

use std::sync::Arc;

use kernel::{Engine, StoreId};

use crate::connection::{Connection, Transaction};
use crate::error::LeaseError;
use crate::route::Route;

/// A right to connections of one store. Cheap to clone; drop it when the request ends.
#[derive(Clone)]
pub struct Lease {
    route: Arc<Route>,
}

impl Lease {
    /// The store.
    #[must_use]
    pub fn store_id(&self) -> StoreId {
        self.route.store_id
    }

    /// What statements must be written for.
    #[must_use]
    pub fn engine(&self) -> Engine {
        Engine::Postgresql
    }

    /// The route that it was given for.
    #[must_use]
    pub fn route(&self) -> &Arc<Route> {
        &self.route
    }

    /// A connection, for as long as it is kept: one query or a few, not a whole request.
    ///
    /// # Errors
    /// [`LeaseError`], within `acquire_timeout` or the pings that it may take.
    pub async fn acquire(&self) -> Result<Connection, LeaseError> {
        Err(LeaseError::ShuttingDown)
    }

    /// A transaction on a connection of its own.
    ///
    /// # Errors
    /// As [`Lease::acquire`].
    pub async fn begin(&self) -> Result<Transaction, LeaseError> {
        Err(LeaseError::ShuttingDown)
    }
}
