//! Routes out of master: what `tenancy` asks when it does not know a hostname, and the listener that tells it of changes.

pub mod db;
pub mod listener;

use kernel::{Hostname, StoreId};
use sqlx::PgPool;
use tenancy::{Directory, DirectoryError, Route};

/// Looks routes up in master.
#[derive(Clone)]
pub struct MasterDirectory {
    master: PgPool,
}

impl MasterDirectory {
    pub fn new(master: PgPool) -> Self {
        Self { master }
    }
}

impl Directory for MasterDirectory {
    async fn find_by_hostname(&self, hostname: &Hostname) -> Result<Option<Route>, DirectoryError> {
        let mut connection = self.master.acquire().await.map_err(DirectoryError::new)?;
        db::route_by_hostname(&mut connection, hostname.as_str()).await.map_err(DirectoryError::new)
    }

    async fn find_by_store(&self, store: StoreId) -> Result<Option<Route>, DirectoryError> {
        let mut connection = self.master.acquire().await.map_err(DirectoryError::new)?;
        db::route_by_store(&mut connection, store).await.map_err(DirectoryError::new)
    }
}
