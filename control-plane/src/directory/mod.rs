//! Routes out of master: what `tenancy` asks when it does not know a hostname, and the listener that tells it of changes.

pub mod changes;
pub mod db;
pub mod listener;
pub mod warm_up;

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
        match self.read_by_hostname(hostname).await {
            Err(error) if is_dead(&error) => self.read_by_hostname(hostname).await,
            first => first,
        }
        .map_err(DirectoryError::new)
    }

    async fn find_by_store(&self, store: StoreId) -> Result<Option<Route>, DirectoryError> {
        match self.read_by_store(store).await {
            Err(error) if is_dead(&error) => self.read_by_store(store).await,
            first => first,
        }
        .map_err(DirectoryError::new)
    }
}

impl MasterDirectory {
    async fn read_by_hostname(&self, hostname: &Hostname) -> Result<Option<Route>, sqlx::Error> {
        db::route_by_hostname(&mut *self.master.acquire().await?, hostname.as_str()).await
    }

    async fn read_by_store(&self, store: StoreId) -> Result<Option<Route>, sqlx::Error> {
        db::route_by_store(&mut *self.master.acquire().await?, store).await
    }
}

/// Whether the connection turned out to be dead, as those of the pool are after master was away: then it is asked once more.
fn is_dead(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code.starts_with("57P")),
        _ => false,
    }
}
