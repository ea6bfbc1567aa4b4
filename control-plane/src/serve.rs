//! A serving node: public and internal listener, the listener of master, and the job worker, until it is told to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use kernel::Clock;
use metrics_exporter_prometheus::PrometheusHandle;
use tenancy::RouteNews;
use tokio::net::TcpListener;
use tokio::sync::broadcast::Receiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::cx::Cx;
use crate::http::entry::Entry;
use crate::http::errors::chain;
use crate::http::server::ClientLimits;
use crate::http::{internal, server};
use crate::master::{self, MasterError};
use crate::node_data::routes::Known;
use crate::telemetry::Complaint;
use crate::{directory, jobs, node_data};

/// The most open connections on the internal listener.
const INTERNAL_CONNECTIONS: usize = 256;

/// How long writing down what is known may take when the node ends.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How soon a master that did not answer is asked again.
const JOIN_RETRY: Duration = Duration::from_secs(1);

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Master(#[from] MasterError),
    #[error("the node cannot start without master: {why}")]
    Forgotten { why: String, source: MasterError },
    #[error("cannot listen on {address}; {option} says where else")]
    Listen { address: SocketAddr, option: &'static str, source: std::io::Error },
    #[error("the job worker cannot start")]
    Jobs(#[from] jobs::JobsError),
}

/// A node that answers requests.
pub struct Node {
    pub cx: Cx,
    /// Keeps what is known for the next process, until nothing is heard any more.
    keeping: Keeping,
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
        let asked = Instant::now();
        let outage = match master::check(&config.master).await {
            Ok(()) => None,
            Err(error) if error.is_outage() && config.node_data.is_some() => Some(error),
            Err(error) => return Err(error.into()),
        };
        let cx = Cx::new(config, clock)?;
        let news = cx.stores.news();
        if outage.is_some() {
            cx.stores.note_directory_down(asked);
        }
        let remembered = remember(&cx).await;
        let outage = match (outage, remembered) {
            (None, Ok(_)) => None,
            (None, Err(Nothing::Unreadable(why))) => {
                tracing::warn!("nothing of what was known before the start is of use: {why}");
                None
            }
            (None, Err(Nothing::Useless(why))) => {
                tracing::debug!("nothing of what was known before the start is of use: {why}");
                None
            }
            (Some(error), Ok(remembered)) => Some((error, remembered)),
            (Some(source), Err(why)) => return Err(ServeError::Forgotten { why: why.into_text(), source }),
        };
        let bind = |address: SocketAddr, option| async move {
            TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, option, source })
        };
        let public = bind(cx.config.hosts.listen, "--listen (LISTEN)").await?;
        let private = bind(cx.config.hosts.internal_listen, "--internal-listen (INTERNAL_LISTEN)").await?;
        let local = |listener: &TcpListener, wanted| listener.local_addr().unwrap_or(wanted);
        let address = local(&public, cx.config.hosts.listen);
        let internal_address = local(&private, cx.config.hosts.internal_listen);

        match outage {
            None => jobs::start(&cx).await?,
            Some((error, Remembered { hostnames, until })) => {
                tracing::warn!(
                    error = chain(&error),
                    "master does not answer: {hostnames} hostnames are served as they were known before the restart, until {} at \
                     the longest",
                    until.to_rfc3339_opts(SecondsFormat::Secs, true)
                );
                cx.tasks.spawn(join_master(cx.clone()));
            }
        }
        let keeping = Keeping::start(&cx, news);
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
        Ok(Self { cx, keeping, address, internal_address })
    }

    /// Refuses new requests, lets those in flight finish, and closes every connection.
    pub async fn stop(self) {
        self.cx.close().await;
        self.keeping.end().await;
    }
}

/// What writes down what is known, if the node has a folder for it.
struct Keeping {
    task: TaskTracker,
    end: CancellationToken,
}

impl Keeping {
    fn start(cx: &Cx, news: Receiver<RouteNews>) -> Self {
        let (task, end) = (TaskTracker::new(), CancellationToken::new());
        if let Some(data) = &cx.node_data {
            task.spawn(node_data::routes::run(cx.clone(), Arc::clone(data), news, end.clone()));
        }
        task.close();
        Self { task, end }
    }

    async fn end(self) {
        self.end.cancel();
        if tokio::time::timeout(LAST_WORDS, self.task.wait()).await.is_err() {
            tracing::warn!("what is known of routes was not written to its end");
        }
    }
}

/// What the process before this one knew, as far as it is of use.
struct Remembered {
    hostnames: usize,
    /// When none of it is any more.
    until: DateTime<Utc>,
}

/// Why nothing of what the process before this one knew is of use.
enum Nothing {
    Useless(String),
    /// It was changed or damaged, or sealed with other keys.
    Unreadable(String),
}

impl Nothing {
    fn into_text(self) -> String {
        let (Self::Useless(why) | Self::Unreadable(why)) = self;
        why
    }
}

/// Takes over what the process before this one knew, if that was kept.
async fn remember(cx: &Cx) -> Result<Remembered, Nothing> {
    let useless = |why: &str| Nothing::Useless(why.to_owned());
    let Some(data) = cx.node_data.clone() else { return Err(useless("it has no NODE_DATA")) };
    let read = tokio::task::spawn_blocking(move || data.load_routes()).await.map_err(std::io::Error::other).flatten();
    let Known { remembered, place } = read.map_err(|error| {
        Nothing::Unreadable(format!("what was kept of routes in NODE_DATA cannot be read: {error}"))
    })?;
    // What was announced since is outdated as soon as the log was read.
    if let Some(place) = place {
        cx.log_place.set(place);
    }
    let max_stale = cx.ops().limits.route_max_stale;
    let (known, newest) = (remembered.len(), remembered.iter().map(|one| one.held).max());
    let Some(newest) = newest else { return Err(useless("no hostname is known in NODE_DATA")) };
    let left = max_stale.saturating_sub(newest.elapsed());
    let hostnames = cx.stores.remember(remembered);
    if hostnames == 0 {
        let age = newest.elapsed().as_secs();
        return Err(Nothing::Useless(format!(
            "the {known} hostnames that are known in NODE_DATA were last known to be right {age} s ago, and are served for {} s \
             (ROUTE_MAX_STALE_MS)",
            max_stale.as_secs()
        )));
    }
    let until = cx.clock.now() + TimeDelta::from_std(left).unwrap_or_default();
    Ok(Remembered { hostnames, until })
}

/// Begins what needs master, when that answers again.
async fn join_master(cx: Cx) {
    let joining = async {
        let mut complaint = Complaint::default();
        loop {
            tokio::time::sleep(JOIN_RETRY).await;
            let asked = Instant::now();
            let joined = match master::check(&cx.master_args).await {
                Ok(()) => jobs::start(&cx).await.map_err(ServeError::from),
                Err(error) if error.is_outage() => {
                    cx.stores.note_directory_down(asked);
                    continue;
                }
                Err(error) => Err(error.into()),
            };
            let Err(error) = joined else { break };
            let why = chain(&error).to_string();
            if complaint.is_new(&why) {
                tracing::error!(error = why, "master answers, and the node cannot join it yet");
            }
        }
        tracing::info!("master answers again");
        directory::warm_up::run(cx.clone()).await;
    };
    cx.shutdown.run_until_cancelled(joining).await;
}
