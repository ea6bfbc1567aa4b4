//! Routes without a master database: what asking one costs is not the connection manager's.

use std::collections::HashMap;
use std::sync::Arc;

use kernel::{Clock as _, Engine, Hostname, ServerId, StoreId, StoreStatus, SystemClock};
use sqlx::types::Uuid;
use tenancy::{Credential, DatabaseRoute, Directory, DirectoryError, Route};
use vault::KeyRing;

use super::farm::Shop;
use crate::rig::ENCRYPTION_KEY;

/// The keys that credentials are sealed with.
pub(super) fn keys() -> anyhow::Result<Arc<KeyRing>> {
    Ok(Arc::new(KeyRing::single(ENCRYPTION_KEY)?))
}

fn route(keys: &KeyRing, store_id: StoreId, server: ServerId, credential: &Credential) -> Route {
    let database = DatabaseRoute {
        engine: Engine::Postgresql,
        server: Some(server),
        schema_version: 1,
        sealed: credential.seal(keys, store_id, 1),
        credential_version: 1,
    };
    Route { store_id, status: StoreStatus::Active, is_read_only: false, version: 1, database: Some(database) }
}

/// Routes to real databases, all at one server.
pub(super) struct Known(HashMap<Hostname, Route>);

impl Known {
    pub(super) fn new(keys: &KeyRing, shops: &[Shop]) -> anyhow::Result<Self> {
        let server = ServerId::new(SystemClock.now());
        let routes = shops.iter().map(|shop| {
            let store = StoreId::new(SystemClock.now());
            Ok((Hostname::parse(&shop.hostname)?, route(keys, store, server, &shop.credential())))
        });
        Ok(Self(routes.collect::<anyhow::Result<_>>()?))
    }
}

impl Directory for Known {
    async fn find_by_hostname(&self, hostname: &Hostname) -> Result<Option<Route>, DirectoryError> {
        Ok(self.0.get(hostname).cloned())
    }

    async fn find_by_store(&self, store: StoreId) -> Result<Option<Route>, DirectoryError> {
        Ok(self.0.values().find(|route| route.store_id == store).cloned())
    }
}

/// Routes of stores that are nowhere, made when they are asked for: the directory itself takes no memory.
pub(super) struct Made {
    keys: Arc<KeyRing>,
    server: ServerId,
}

impl Made {
    pub(super) fn new(keys: Arc<KeyRing>) -> Self {
        Self { keys, server: ServerId::new(SystemClock.now()) }
    }

    /// The hostname of a store.
    pub(super) fn hostname(number: u32) -> anyhow::Result<Hostname> {
        Ok(Hostname::parse(&format!("shop-{number:06}.stores.localhost"))?)
    }

    fn number(hostname: &Hostname) -> Option<u32> {
        hostname.as_str().strip_prefix("shop-")?.strip_suffix(".stores.localhost")?.parse().ok()
    }

    /// Its route, with as long a credential as a provisioned store has.
    pub(super) fn route(&self, number: u32) -> Route {
        let name = format!("store_{number:026}");
        let credential = Credential {
            engine: Engine::Postgresql,
            host: "127.0.0.1".to_owned(),
            port: 1,
            username: name.clone(),
            password: "a password of 32 bytes, as ours a".to_owned().into(),
            database: name,
            tls: tenancy::TlsMode::Disable,
            ca_pem: None,
        };
        // The first bits differ, as those of a store's id do.
        let id = u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835) | 1;
        route(&self.keys, StoreId::from_uuid(Uuid::from_u128(id)), self.server, &credential)
    }
}

impl Directory for Made {
    async fn find_by_hostname(&self, hostname: &Hostname) -> Result<Option<Route>, DirectoryError> {
        Ok(Self::number(hostname).map(|number| self.route(number)))
    }

    /// It is known by its hostname before, always.
    async fn find_by_store(&self, _store: StoreId) -> Result<Option<Route>, DirectoryError> {
        Ok(None)
    }
}
