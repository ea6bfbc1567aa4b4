//! Requests to addresses that strangers name: one POST, to an address that was checked, within one time limit.
//!
//! The name is looked up once, every address it has must be allowed, and the connection goes to one of these: a name that
//! means something else a moment later changes nothing. No redirect is followed, no proxy of the environment is used, and of
//! the answer only its status is kept.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tenancy::{AddressError, Reach};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

/// So many addresses of one name are tried.
const MAX_ADDRESSES: usize = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// The largest head of an answer.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Of a body so much is read, for so long, so that a receiver can end in peace.
const MAX_BODY_BYTES: usize = 64 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(1);
/// The most that a `Retry-After` counts for.
const MAX_RETRY_AFTER_S: u64 = 6 * 3600;

/// Sends requests out.
#[derive(Clone)]
pub struct Outbound {
    tls: TlsConnector,
    reach: Reach,
    timeout: Duration,
}

/// What was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    pub retry_after: Option<Duration>,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("the URL cannot be used")]
    Url,
    #[error("the host's name does not resolve")]
    Unresolvable,
    #[error("the host is at a private, loopback or link-local address")]
    PrivateAddress,
    #[error("nobody answers at the address")]
    Connect,
    #[error("TLS failed, or the certificate is not valid")]
    Tls,
    #[error("the answer broke off or is no HTTP")]
    Http,
    #[error("it took too long")]
    Timeout,
}

impl SendError {
    /// A stable code, for the log of attempts.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Url => "url",
            Self::Unresolvable => "unresolvable",
            Self::PrivateAddress => "private-address",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Timeout => "timeout",
        }
    }
}

/// The authorities that browsers trust.
pub fn public_roots() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}

impl Outbound {
    /// Sends within `timeout`, to hosts whose certificate one of `roots` vouches for.
    ///
    /// # Errors
    /// When the TLS library refuses its own defaults.
    pub fn new(roots: RootCertStore, reach: Reach, timeout: Duration) -> Result<Self, rustls::Error> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), reach, timeout })
    }

    /// Posts `body`.
    ///
    /// # Errors
    /// [`SendError`] when no head of an answer came in time.
    pub async fn post(&self, url: &Url, headers: HeaderMap, body: Bytes) -> Result<Answer, SendError> {
        let request = request(url, headers, body)?;
        let Some(port) = url.port_or_known_default() else { return Err(SendError::Url) };
        let host = host_of(url).ok_or(SendError::Url)?;
        let is_tls = match url.scheme() {
            "https" => true,
            "http" if self.reach != Reach::Public => false,
            _ => return Err(SendError::Url),
        };
        let head = OnceLock::new();
        let exchange = async {
            let addresses = self.reach.addresses(host, port).await.map_err(|error| match error {
                AddressError::Private => SendError::PrivateAddress,
                AddressError::Unresolvable => SendError::Unresolvable,
            })?;
            let stream = connect(&addresses).await?;
            if is_tls {
                let name = ServerName::try_from(host.to_owned()).map_err(|_| SendError::Url)?;
                let stream = self.tls.connect(name, stream).await.map_err(|_| SendError::Tls)?;
                talk(stream, request, &head).await
            } else {
                talk(stream, request, &head).await
            }
        };
        // An answer whose body was still coming is an answer.
        let late = || head.get().copied().ok_or(SendError::Timeout);
        tokio::time::timeout(self.timeout, exchange).await.unwrap_or_else(|_| late())
    }
}

/// The host without the brackets that a URL puts around an IPv6 address.
pub fn host_of(url: &Url) -> Option<&str> {
    let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then_some(host)
}

fn request(url: &Url, headers: HeaderMap, body: Bytes) -> Result<Request<Full<Bytes>>, SendError> {
    let host = url.host_str().ok_or(SendError::Url)?;
    let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::HOST, authority)
        .body(Full::new(body))
        .map_err(|_| SendError::Url)?;
    request.headers_mut().extend(headers);
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, SendError> {
    for address in addresses.iter().take(MAX_ADDRESSES) {
        if let Ok(Ok(stream)) = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            return Ok(stream);
        }
    }
    Err(SendError::Connect)
}

async fn talk<S>(stream: S, request: Request<Full<Bytes>>, head: &OnceLock<Answer>) -> Result<Answer, SendError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| SendError::Http)?;
    let exchange = pin!(async {
        let response = sender.send_request(request).await.map_err(|_| SendError::Http)?;
        let answer = Answer { status: response.status(), retry_after: retry_after(response.headers()) };
        let answer = *head.get_or_init(|| answer);
        // What is said here changes nothing any more, however long it is or takes.
        let read = tokio::time::timeout(BODY_TIMEOUT, read_some(response.into_body()));
        drop(read.await);
        Ok(answer)
    });
    // The connection moves while the exchange waits; when it has ended, the exchange has what there was.
    let driven = pin!(async {
        drop(connection.await);
        std::future::pending::<Infallible>().await
    });
    tokio::select! {
        answer = exchange => answer,
        never = driven => match never {},
    }
}

async fn read_some(mut body: Incoming) {
    let mut left = MAX_BODY_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            return;
        }
    }
}

/// The seconds of a `Retry-After`; one that names a date is left alone.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.min(MAX_RETRY_AFTER_S)))
}
