//! Listeners: a bound on connections, in all and from one network, a time limit on clients that do not send or do not take,
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
use super::network::network;

const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// What clients of a listener may take.
pub struct ClientLimits {
    /// The most open connections. Over the bound, clients wait in the listener's backlog.
    pub max_connections: usize,
    /// The most from one address, or one IPv6 network. Over the bound, a connection is closed at once.
    pub max_per_address: usize,
    /// Addresses without that bound: everybody comes from them.
    pub proxies: Vec<IpAddr>,
    /// How long a client may take to send the head of a request, which also bounds an idle connection; or to take a piece
    /// of an answer.
    pub timeout: Duration,
}

/// A connection's place among those from its network.
struct NetworkPlace {
    counts: Arc<DashMap<IpAddr, usize>>,
    network: IpAddr,
}

impl NetworkPlace {
    fn take(counts: &Arc<DashMap<IpAddr, usize>>, address: IpAddr, max: usize) -> Option<Self> {
        let network = network(address);
        let mut count = counts.entry(network).or_insert(0);
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Self { counts: Arc::clone(counts), network })
    }
}

impl Drop for NetworkPlace {
    fn drop(&mut self) {
        if let Some(mut count) = self.counts.get_mut(&self.network) {
            *count -= 1;
        }
        self.counts.remove_if(&self.network, |_, count| *count == 0);
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
    let by_network = Arc::new(DashMap::new());
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
        let Some(network_place) = NetworkPlace::take(&by_network, address, max) else {
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
            drop((place, network_place));
        });
    }
    drop(listener);
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!("some requests were still in flight when the grace period ended");
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use dashmap::DashMap;

    use super::NetworkPlace;

    #[test]
    fn every_address_of_an_ipv6_network_takes_of_the_same_places() {
        let counts = Arc::new(DashMap::new());
        let take = |address: &str| NetworkPlace::take(&counts, address.parse::<IpAddr>().expect("an address"), 2);
        let first = take("2001:db8:0:1::1").expect("a free place");
        let _second = take("2001:db8:0:1:ffff::2").expect("a free place");
        assert!(take("2001:db8:0:1::3").is_none(), "a third address of the network is one too many");
        let _neighbour = take("2001:db8:0:2::1").expect("another network has places of its own");
        let _old = [take("192.0.2.1"), take("192.0.2.1"), take("192.0.2.2")].map(|place| place.expect("a free place"));
        assert!(take("::ffff:192.0.2.1").is_none(), "the same address in its IPv6 form is no other");

        drop(first);
        assert!(take("2001:db8:0:1::3").is_some(), "a place is free again");
    }
}
