//! Where connections may lead, and the way there.
//!
//! A name that leads to a public address when it is looked at may lead into our own network a moment later. So whoever may
//! not reach every address is connected to the very addresses that were looked at. The drivers take a name, which is
//! also what the certificate must be for, and resolve it themselves; but they speak TLS over a local socket too. The way of
//! such a connection is therefore a socket in a folder that only we may enter, and a task that carries bytes between it and
//! the address. It costs a copy of every byte, which beside the public internet is nothing.
//!
//! The way also counts what the server says, until we are logged in and then to each question: a driver keeps what a server
//! says for as long as it comes. What is merely announced costs no more than what has come already, which takes lines of ours
//! in the drivers (`vendor/README.md`). An address that owners give as such, where private ones are allowed, is reached without
//! a way when it is private: the server is nearby, and only time bounds what it says.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use kernel::address::{is_off_limits, is_public};
use tokio::io::{AsyncRead, AsyncWriteExt as _, ReadBuf, copy};
use tokio::net::{TcpStream, UnixListener, UnixStream, lookup_host, tcp, unix};
use tokio::time::timeout;

/// How long a name may take to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the server may take to say its last after we have.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How much a server may say before we are logged in. The longest of it is a chain of certificates, of some kilobytes.
const LOGIN_LIMIT: usize = 1024 * 1024;
/// How much a server may say to one question after that. The largest answers that are asked for are pages of some megabytes.
const ANSWER_LIMIT: usize = 64 * 1024 * 1024;

/// Where connections may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Wherever the name says: for servers that ops registered.
    Anywhere,
    /// To private and loopback addresses as well, but to no link-local, multicast, unspecified or metadata address: for what
    /// owners bring to installations that allow private databases.
    Private,
    /// To addresses of the public internet only: for what owners bring.
    Public,
}

/// Why a host is not connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// One of its addresses is a private, loopback, link-local or other special one that may not be called.
    #[error("the host is at a private, loopback, link-local or other special address")]
    Private,
    /// No address was found in time.
    #[error("the host's name does not resolve")]
    Unresolvable,
}

impl Reach {
    /// Whether a connection may lead to `address`.
    #[must_use]
    pub fn allows(self, address: IpAddr) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Private => !is_off_limits(address),
            Self::Public => is_public(address) && !is_off_limits(address),
        }
    }

    /// The addresses of `host`, at least one and every one allowed: who connects to one of these connects to what was looked
    /// at, whatever the name says a moment later.
    ///
    /// # Errors
    /// [`AddressError`].
    pub async fn addresses(self, host: &str, port: u16) -> Result<Vec<SocketAddr>, AddressError> {
        let found = timeout(RESOLVE_TIMEOUT, lookup_host((host, port))).await;
        let Ok(Ok(addresses)) = found else { return Err(AddressError::Unresolvable) };
        let addresses: Vec<SocketAddr> = addresses.collect();
        if addresses.is_empty() {
            return Err(AddressError::Unresolvable);
        }
        if addresses.iter().all(|address| self.allows(address.ip())) {
            Ok(addresses)
        } else {
            Err(AddressError::Private)
        }
    }
}

/// What the server may still say, between whoever asks and the way that the answers take.
pub(crate) struct Allowance {
    login: AtomicU8,
    left: AtomicUsize,
}

impl Allowance {
    const LOGIN: u8 = 0;
    const LOGGED_IN: u8 = 1;
    const CUT: u8 = 2;

    fn of_a_login() -> Self {
        Self { login: AtomicU8::new(Self::LOGIN), left: AtomicUsize::new(LOGIN_LIMIT) }
    }

    /// Lets the server say what an answer may take from now on; false when it has said too much before.
    pub(crate) fn end_login(&self) -> bool {
        self.left.store(ANSWER_LIMIT, Ordering::Release);
        self.login.compare_exchange(Self::LOGIN, Self::LOGGED_IN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Whether the server said too much.
    pub(crate) fn is_cut(&self) -> bool {
        self.login.load(Ordering::Acquire) == Self::CUT
    }

    /// A question begins, or goes on.
    fn ask(&self) {
        if self.login.load(Ordering::Acquire) == Self::LOGGED_IN {
            self.left.store(ANSWER_LIMIT, Ordering::Release);
        }
    }

    /// Whether the server may say this, too.
    fn take(&self, said: usize) -> bool {
        let is_enough = |left: usize| left.checked_sub(said);
        let is_allowed = self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, is_enough).is_ok();
        if !is_allowed {
            self.login.store(Self::CUT, Ordering::Release);
        }
        is_allowed
    }
}

/// What the driver asks: each time, the server may say something again.
struct Questions {
    driver: unix::OwnedReadHalf,
    allowance: Arc<Allowance>,
}

impl AsyncRead for Questions {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.driver).poll_read(cx, into))?;
        self.allowance.ask();
        Poll::Ready(Ok(()))
    }
}

/// What the server answers, which fails when it is too much.
struct Answers {
    server: tcp::OwnedReadHalf,
    allowance: Arc<Allowance>,
}

impl AsyncRead for Answers {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.server).poll_read(cx, into))?;
        if self.allowance.take(into.filled().len() - before) {
            return Poll::Ready(Ok(()));
        }
        metrics::counter!("tenantry_answers_cut_total").increment(1);
        Poll::Ready(Err(io::ErrorKind::InvalidData.into()))
    }
}

/// A connection to a checked address, which a driver finds as a socket in the file system.
pub(crate) struct Way {
    server: TcpStream,
    allowance: Arc<Allowance>,
    listener: UnixListener,
    socket: PathBuf,
    _folder: Folder,
}

impl Way {
    /// Connects to the first of `addresses` that answers.
    pub(crate) async fn to(addresses: &[SocketAddr], port: u16) -> io::Result<Self> {
        let server = TcpStream::connect(addresses).await?;
        server.set_nodelay(true)?;
        let (folder, listener, socket) = Self::listen(port).inspect_err(|error| {
            tracing::error!("no way to a database can be made in {}: {error}", std::env::temp_dir().display());
        })?;
        Ok(Self { server, allowance: Arc::new(Allowance::of_a_login()), listener, socket, _folder: folder })
    }

    fn listen(port: u16) -> io::Result<(Folder, UnixListener, PathBuf)> {
        let folder = Folder::make()?;
        let socket = folder.0.join(format!(".s.PGSQL.{port}"));
        let listener = UnixListener::bind(&socket)?;
        Ok((folder, listener, socket))
    }

    /// Where the driver finds it. PostgreSQL's looks for this name in a folder.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// What the server may say on it: of a login until that is ended, and to each question after.
    pub(crate) fn allowance(&self) -> Arc<Allowance> {
        Arc::clone(&self.allowance)
    }

    /// Waits for the driver, and carries bytes from then on until either side ends.
    #[expect(clippy::disallowed_methods, reason = "it ends with the connection, which its owner closes at shutdown")]
    pub(crate) async fn carry(self) -> io::Result<()> {
        let (driver, _) = self.listener.accept().await?;
        tokio::spawn(carry(driver, self.server, self.allowance));
        Ok(())
    }
}

async fn carry(driver: UnixStream, server: TcpStream, allowance: Arc<Allowance>) {
    let (driver, mut to_driver) = driver.into_split();
    let (server, mut to_server) = server.into_split();
    let mut from_driver = Questions { driver, allowance: Arc::clone(&allowance) };
    let mut from_server = Answers { server, allowance };
    // However a direction ends, the other is told by the closing of both sockets: nothing is left to be reported.
    let answers = async { copy(&mut from_server, &mut to_driver).await.is_ok() };
    let questions = async {
        let is_whole = copy(&mut from_driver, &mut to_server).await.is_ok();
        is_whole && to_server.shutdown().await.is_ok()
    };
    tokio::pin!(answers);
    let has_asked = tokio::select! {
        _ = &mut answers => false,
        is_whole = questions => is_whole,
    };
    if has_asked && timeout(LAST_WORDS, answers).await.is_err() {
        tracing::debug!("a database server does not end a connection that we have ended");
    }
}

/// A folder of our own, gone when nobody needs it.
struct Folder(PathBuf);

impl Folder {
    fn make() -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let path = std::env::temp_dir().join(format!("tenantry-{:016x}", u64::from_le_bytes(kernel::random::bytes())));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!("a folder in {} stays behind: {error}", std::env::temp_dir().display());
        }
    }
}
