//! A serving node: public and internal listener, the listener of master, and the job worker, until it is told to stop.

use std::net::SocketAddr;
use std::sync::Arc;

use kernel::Clock;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use crate::config::Config;
use crate::cx::Cx;
use crate::http::entry::Entry;
use crate::http::server::ClientLimits;
use crate::http::{internal, server};
use crate::master::{self, MasterError};
use crate::{directory, jobs};

/// The most open connections on the internal listener.
const INTERNAL_CONNECTIONS: usize = 256;

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Master(#[from] MasterError),
    #[error("cannot listen on {address}; {option} says where else")]
    Listen { address: SocketAddr, option: &'static str, source: std::io::Error },
    #[error("the job worker cannot start")]
    Jobs(#[from] jobs::JobsError),
}

/// A node that answers requests.
pub struct Node {
    pub cx: Cx,
    /// Where the public listener is bound; the port is the real one when 0 was asked for.
    pub address: SocketAddr,
    pub internal_address: SocketAddr,
}

impl Node {
    /// Checks master, binds both listeners and starts every task of the node.
    ///
    /// # Errors
    /// When master is not usable or an address is taken.
    pub async fn start(config: Config, clock: Arc<dyn Clock>, metrics: PrometheusHandle) -> Result<Self, ServeError> {
        master::check(&config.master).await?;
        let cx = Cx::new(config, clock)?;
        let bind = |address: SocketAddr, option| async move {
            TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, option, source })
        };
        let public = bind(cx.config.hosts.listen, "--listen (LISTEN)").await?;
        let private = bind(cx.config.hosts.internal_listen, "--internal-listen (INTERNAL_LISTEN)").await?;
        let local = |listener: &TcpListener, wanted| listener.local_addr().unwrap_or(wanted);
        let address = local(&public, cx.config.hosts.listen);
        let internal_address = local(&private, cx.config.hosts.internal_listen);

        jobs::start(&cx).await?;
        cx.tasks.spawn(directory::listener::run(cx.clone()));
        cx.tasks.spawn(directory::warm_up::run(cx.clone()));
        let (limits, shutdown, tasks) = (&cx.config.limits, &cx.shutdown, &cx.tasks);
        let grace = limits.shutdown_grace;
        let entry = Entry::new(cx.clone());
        let clients = ClientLimits {
            max_connections: limits.max_client_connections,
            max_per_address: limits.max_client_connections_per_address,
            proxies: cx.config.hosts.trusted_proxies.clone(),
            timeout: limits.client_timeout,
        };
        tasks.spawn(server::serve(public, entry, clients, shutdown.clone(), grace, tasks.clone()));
        let router = internal::router(cx.clone(), metrics);
        let ours = ClientLimits {
            max_connections: INTERNAL_CONNECTIONS,
            max_per_address: INTERNAL_CONNECTIONS,
            proxies: Vec::new(),
            timeout: limits.client_timeout,
        };
        tasks.spawn(server::serve(private, router, ours, shutdown.clone(), grace, tasks.clone()));
        tracing::info!("listening on http://{address}, internally on http://{internal_address}");
        Ok(Self { cx, address, internal_address })
    }

    /// Refuses new requests, lets those in flight finish, and closes every connection.
    pub async fn stop(self) {
        self.cx.close().await;
    }
}
