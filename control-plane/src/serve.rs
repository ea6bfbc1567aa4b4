//! A serving node: public and internal listener, the listener of master, and the job worker, until it is told to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kernel::Clock;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use crate::config::Config;
use crate::cx::Cx;
use crate::http::entry::Entry;
use crate::http::errors::chain;
use crate::http::server::ClientLimits;
use crate::http::{internal, server};
use crate::master::{self, MasterError};
use crate::{directory, jobs, node_data};

/// The most open connections on the internal listener.
const INTERNAL_CONNECTIONS: usize = 256;

/// How soon a master that did not answer is asked again.
const JOIN_RETRY: Duration = Duration::from_secs(1);

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
    /// Checks master, binds both listeners and starts every task of the node. Without master it serves what the process before
    /// it knew, if that was kept ([`node_data`]), and begins the rest when master answers.
    ///
    /// # Errors
    /// When master is not usable and nothing is known without it, or an address is taken.
    pub async fn start(config: Config, clock: Arc<dyn Clock>, metrics: PrometheusHandle) -> Result<Self, ServeError> {
        let checked = master::check(&config.master).await;
        if let Err(error) = &checked
            && !(error.is_outage() && config.node_data.is_some())
        {
            return Err(checked.expect_err("it was looked at").into());
        }
        let cx = Cx::new(config, clock)?;
        let remembered = remember(&cx).await;
        if let Err(error) = checked {
            if remembered == 0 {
                return Err(error.into());
            }
            tracing::warn!(
                error = chain(&error),
                "master does not answer: {remembered} hostnames are served as they were known before the restart"
            );
            cx.tasks.spawn(join_master(cx.clone()));
        } else {
            jobs::start(&cx).await?;
        }
        let bind = |address: SocketAddr, option| async move {
            TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, option, source })
        };
        let public = bind(cx.config.hosts.listen, "--listen (LISTEN)").await?;
        let private = bind(cx.config.hosts.internal_listen, "--internal-listen (INTERNAL_LISTEN)").await?;
        let local = |listener: &TcpListener, wanted| listener.local_addr().unwrap_or(wanted);
        let address = local(&public, cx.config.hosts.listen);
        let internal_address = local(&private, cx.config.hosts.internal_listen);

        if let Some(data) = &cx.node_data {
            cx.tasks.spawn(node_data::routes::run(cx.clone(), Arc::clone(data)));
        }
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

/// Takes over what the process before this one knew, if that was kept. Of how many hostnames it was of use.
async fn remember(cx: &Cx) -> usize {
    let Some(data) = cx.node_data.clone() else { return 0 };
    match tokio::task::spawn_blocking(move || data.load_routes()).await.map_err(std::io::Error::other).flatten() {
        Ok(remembered) => cx.stores.remember(remembered).await,
        Err(error) => {
            tracing::warn!("what was kept of routes in NODE_DATA cannot be read: {error}");
            0
        }
    }
}

/// Begins what needs master, when that answers again.
async fn join_master(cx: Cx) {
    let joining = async {
        let mut is_told = false;
        loop {
            tokio::time::sleep(JOIN_RETRY).await;
            let joined = match master::check(&cx.master_args).await {
                Ok(()) => jobs::start(&cx).await.map_err(ServeError::from),
                Err(error) if error.is_outage() => continue,
                Err(error) => Err(error.into()),
            };
            match joined {
                Ok(()) => return tracing::info!("master answers again"),
                Err(error) if !is_told => {
                    tracing::error!(error = chain(&error), "master answers, and cannot be used");
                    is_told = true;
                }
                Err(_) => {}
            }
        }
    };
    cx.shutdown.run_until_cancelled(joining).await;
}
