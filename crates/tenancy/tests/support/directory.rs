//! A directory that behaves like master: it can be changed, be down, be slow, and counts who asks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kernel::{Hostname, StoreId, StoreStatus};
use tenancy::{Directory, DirectoryError, Route, StoreChange};
use tokio::sync::Semaphore;

#[derive(Default)]
struct Tables {
    hosts: HashMap<Hostname, StoreId>,
    routes: HashMap<StoreId, Route>,
}

#[derive(Default)]
pub(crate) struct Master {
    tables: Mutex<Tables>,
    pub(crate) calls: AtomicUsize,
    pub(crate) is_down: AtomicBool,
    /// While closed, a look-up that has read its answer waits here before it gives it.
    pub(crate) gate: Gate,
}

pub(crate) struct Gate {
    is_closed: AtomicBool,
    pub(crate) arrived: Semaphore,
    go: Semaphore,
}

impl Default for Gate {
    fn default() -> Self {
        Self { is_closed: AtomicBool::new(false), arrived: Semaphore::new(0), go: Semaphore::new(0) }
    }
}

impl Gate {
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
    }

    /// Lets those who wait pass, and everybody after them.
    pub(crate) fn open(&self) {
        self.is_closed.store(false, Ordering::SeqCst);
        self.go.add_permits(1000);
    }

    async fn pass(&self) {
        if self.is_closed.load(Ordering::SeqCst) {
            self.arrived.add_permits(1);
            self.go.acquire().await.expect("the gate lives").forget();
        }
    }
}

impl Master {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put(&self, host: &Hostname, route: Route) {
        let mut tables = self.tables();
        tables.hosts.insert(host.clone(), route.store_id);
        tables.routes.insert(route.store_id, route);
    }

    /// Changes a store's route, and says what to announce.
    pub(crate) fn change(&self, store: StoreId, change: impl FnOnce(&mut Route)) -> StoreChange {
        let mut tables = self.tables();
        let route = tables.routes.get_mut(&store).expect("the store is known");
        route.version += 1;
        change(route);
        StoreChange { store_id: store, route_version: route.version, hostnames: Vec::new() }
    }

    pub(crate) fn set_status(&self, store: StoreId, status: StoreStatus) -> StoreChange {
        self.change(store, |route| route.status = status)
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    async fn answer(
        &self,
        find: impl FnOnce(&Tables) -> Option<Route> + Send,
    ) -> Result<Option<Route>, DirectoryError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.is_down.load(Ordering::SeqCst) {
            return Err(DirectoryError::new(std::io::Error::other("master is down")));
        }
        let found = find(&self.tables());
        self.gate.pass().await;
        Ok(found)
    }
}

/// What the connection manager asks.
pub(crate) struct Dir(pub(crate) Arc<Master>);

impl Directory for Dir {
    async fn find_by_hostname(&self, hostname: &Hostname) -> Result<Option<Route>, DirectoryError> {
        self.0.answer(|tables| tables.routes.get(tables.hosts.get(hostname)?).cloned()).await
    }

    async fn find_by_store(&self, store: StoreId) -> Result<Option<Route>, DirectoryError> {
        self.0.answer(|tables| tables.routes.get(&store).cloned()).await
    }
}
