//! Listeners: a bound on connections, in all and from one address, a time limit on clients that do not send or do not take,
//! and a drain that lets requests finish.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use dashmap::DashMap;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::{Service, ServiceExt as _};

use super::authority::Peer;

const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// What clients of a listener may take.
pub struct ClientLimits {
    /// The most open connections. Over the bound, clients wait in the listener's backlog.
    pub max_connections: usize,
    /// The most from one address. Over the bound, a connection is closed at once.
    pub max_per_address: usize,
    /// Addresses without that bound: everybody comes from them.
    pub proxies: Vec<IpAddr>,
    /// How long a client may take to send the head of a request, which also bounds an idle connection; or to take a piece
    /// of an answer.
    pub timeout: Duration,
}

/// A connection's place among those from its address.
struct AddressPlace {
    counts: Arc<DashMap<IpAddr, usize>>,
    address: IpAddr,
}

impl AddressPlace {
    fn take(counts: &Arc<DashMap<IpAddr, usize>>, address: IpAddr, max: usize) -> Option<Self> {
        let mut count = counts.entry(address).or_insert(0);
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Self { counts: Arc::clone(counts), address })
    }
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        if let Some(mut count) = self.counts.get_mut(&self.address) {
            *count -= 1;
        }
        self.counts.remove_if(&self.address, |_, count| *count == 0);
    }
}

/// Serves `service` on `listener` until `shutdown`, then lets what is in flight finish within `grace`.
pub async fn serve<S>(
    listener: TcpListener,
    service: S,
    limits: ClientLimits,
    shutdown: CancellationToken,
    grace: Duration,
    tasks: TaskTracker,
) where
    S: Service<Request<Body>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let places = Arc::new(Semaphore::new(limits.max_connections));
    let by_address = Arc::new(DashMap::new());
    let graceful = GracefulShutdown::new();
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.timeout);
    loop {
        let accepted = shutdown.run_until_cancelled(async {
            let place = Arc::clone(&places).acquire_owned().await.expect("never closed");
            (place, listener.accept().await)
        });
        let Some((place, accepted)) = accepted.await else { break };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = %error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let address = peer.ip().to_canonical();
        let is_proxy = limits.proxies.contains(&address);
        let max = if is_proxy { usize::MAX } else { limits.max_per_address };
        let Some(address_place) = AddressPlace::take(&by_address, address, max) else {
            metrics::counter!("tenantry_client_connections_refused_total").increment(1);
            continue;
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(error = %error, "could not set TCP_NODELAY");
        }
        let service = service.clone().map_request(move |request: Request<hyper::body::Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(Peer(peer.ip()));
            request
        });
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(limits.timeout));
        let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(service));
        let connection = graceful.watch(connection);
        tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %error, "a connection ended early");
            }
            drop((place, address_place));
        });
    }
    drop(listener);
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!("some requests were still in flight when the grace period ended");
    }
}
