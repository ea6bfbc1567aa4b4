//! What a name leads to, and who is asked for it.

use std::future::Future;
use std::sync::Arc;

use kernel::{Engine, Hostname, ServerId, StoreId, StoreStatus};
use vault::Sealed;

/// What is known of a store: enough to serve it, or to refuse, without asking again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The store.
    pub store_id: StoreId,
    /// Where it is in its life; only an active one is served.
    pub status: StoreStatus,
    /// Whether it is served, but takes nothing from its visitors.
    pub is_read_only: bool,
    /// Counts every change of the store that matters here. Of two routes of a store the higher version wins.
    pub version: i64,
    /// Its database, once it has one.
    pub database: Option<DatabaseRoute>,
}

/// How a store's database is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseRoute {
    /// What it speaks.
    pub engine: Engine,
    /// The server that ops registered; none when the owner brought the database.
    pub server: Option<ServerId>,
    /// The version of its schema. A change opens a fresh pool: prepared statements do not survive every migration.
    pub schema_version: i64,
    /// The sealed [`crate::Credential`].
    pub sealed: Sealed,
    /// The version that the credential is sealed for. A change opens a fresh pool.
    pub credential_version: i32,
}

impl Route {
    /// Whether its storefront is served.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.status == StoreStatus::Active
    }
}

/// The directory could not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the directory does not answer")]
pub struct DirectoryError(#[source] Arc<dyn std::error::Error + Send + Sync>);

impl DirectoryError {
    /// With what the directory's own store said.
    pub fn new(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self(Arc::new(source))
    }
}

/// Who knows the routes: master, asked as seldom as possible.
///
/// It must read what was last committed, not a replica: a route older than a change that was already announced is read
/// again. Deleted stores are `Ok(None)`.
pub trait Directory: Send + Sync + 'static {
    /// The route of the store that has this hostname.
    fn find_by_hostname(
        &self,
        hostname: &Hostname,
    ) -> impl Future<Output = Result<Option<Route>, DirectoryError>> + Send;

    /// The route of this store.
    fn find_by_store(&self, store: StoreId) -> impl Future<Output = Result<Option<Route>, DirectoryError>> + Send;
}

/// A store was changed: what LISTEN/NOTIFY or the change log says.
#[derive(Debug, Clone)]
pub struct StoreChange {
    /// Which.
    pub store_id: StoreId,
    /// Its route version since.
    pub route_version: i64,
    /// Hostnames that it gained or lost; also in the news when this node remembers them as unknown.
    pub hostnames: Vec<Hostname>,
}
