//! Supabase for tests: its management API with the state behind it, the page on which somebody consents, and the two ways to a
//! project's database, over TLS, which is a real PostgreSQL that the test gives.
//!
//! It answers as the real API does where that was recorded, is strict where a client could be careless (codes and refresh tokens
//! are good for once, and one that comes again ends the consent), and goes wrong where the test says.

mod api;
mod ways;
mod world;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use world::{Fault, NewProject};

use world::World;

/// How it is set up.
pub struct TestSupabaseOptions {
    /// The app that may ask for tokens: a UUID, and its secret.
    pub client_id: String,
    /// What only the app knows.
    pub client_secret: String,
    /// What the ways to databases speak TLS with.
    pub tls: TlsAcceptor,
}

/// A running one; dropping it ends it.
pub struct TestSupabase {
    shared: Arc<Shared>,
    url: String,
    /// Where projects' own hosts listen, at 127.0.0.1.
    pub direct_port: u16,
    /// Where the pooler listens in session mode, at 127.0.0.1.
    pub session_port: u16,
}

struct Shared {
    options: TestSupabaseOptions,
    world: Mutex<World>,
    /// Rung when a call hangs.
    hangs: Notify,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        // A test that panicked while it looked has changed nothing by halves.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TestSupabase {
    /// Starts one, on loopback.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(options: TestSupabaseOptions) -> std::io::Result<Self> {
        let [api, direct, session] = [
            TcpListener::bind("127.0.0.1:0").await?,
            TcpListener::bind("127.0.0.1:0").await?,
            TcpListener::bind("127.0.0.1:0").await?,
        ];
        let port = |listener: &TcpListener| listener.local_addr().map(|address: SocketAddr| address.port());
        let (direct_port, session_port) = (port(&direct)?, port(&session)?);
        let url = format!("http://{}", api.local_addr()?);
        let shared = Arc::new(Shared {
            options,
            world: Mutex::new(World::default()),
            hangs: Notify::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let router = api::router(Arc::clone(&shared));
        let stopped = shared.stop.clone().cancelled_owned();
        shared.tasks.spawn(async move {
            if let Err(error) = axum::serve(api, router).with_graceful_shutdown(stopped).await {
                tracing::warn!(%error, "the test Supabase ended");
            }
        });
        for (listener, is_pooler) in [(direct, false), (session, true)] {
            let shared = Arc::clone(&shared);
            let stopped = shared.stop.clone();
            shared.clone().tasks.spawn(async move {
                stopped.run_until_cancelled(ways::listen(listener, shared, is_pooler)).await;
            });
        }
        Ok(Self { shared, url, direct_port, session_port })
    }

    /// Where its API answers.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The app's name.
    #[must_use]
    pub fn client_id(&self) -> &str {
        &self.shared.options.client_id
    }

    /// The app's secret.
    #[must_use]
    pub fn client_secret(&self) -> &str {
        &self.shared.options.client_secret
    }

    /// Makes an organization.
    pub fn add_organization(&self, slug: &str, name: &str) {
        self.shared.world().organizations.push((slug.to_owned(), name.to_owned()));
    }

    /// Makes a project; its reference.
    pub fn add_project(&self, new: NewProject) -> String {
        self.shared.world().add_project(new)
    }

    /// Changes a project's status, as the dashboard does.
    pub fn set_status(&self, project: &str, status: &str) {
        if let Some(project) = self.shared.world().project_mut(project) {
            status.clone_into(&mut project.status);
        }
    }

    /// A project's status.
    #[must_use]
    pub fn status(&self, project: &str) -> Option<String> {
        self.shared.world().project_mut(project).map(|project| project.status.clone())
    }

    /// Moves its clock ahead.
    pub fn advance(&self, by: Duration) {
        self.shared.world().ahead += by;
    }

    /// Whoever consented takes it back in the dashboard.
    pub fn revoke_consents(&self) {
        self.shared.world().revoke_all();
    }

    /// Takes every access token for expired, and leaves the refresh tokens as they are.
    pub fn expire_access_tokens(&self) {
        self.shared.world().access.clear();
    }

    /// Lets the next call whose path holds this text go wrong; further ones queue up behind it.
    pub fn fail_next(&self, path: &str, fault: Fault) {
        self.shared.world().faults.push((path.to_owned(), fault));
    }

    /// Waits until a call hangs that was told to.
    pub async fn hanging(&self) {
        self.shared.hangs.notified().await;
    }

    /// How many calls came whose path holds this text.
    #[must_use]
    pub fn calls(&self, path: &str) -> usize {
        self.shared.world().calls.iter().filter(|called| called.contains(path)).count()
    }

    /// Every statement that was sent to a database through the API.
    #[must_use]
    pub fn queries(&self) -> Vec<String> {
        self.shared.world().queries.clone()
    }

    /// Every secret that it has given out: codes, access and refresh tokens.
    #[must_use]
    pub fn secrets(&self) -> Vec<String> {
        self.shared.world().given.clone()
    }

    /// Every verifier that it was told with a code.
    #[must_use]
    pub fn verifiers(&self) -> Vec<String> {
        self.shared.world().verifiers.clone()
    }

    /// How many consents are good.
    #[must_use]
    pub fn consents(&self) -> usize {
        self.shared.world().grants.iter().filter(|is_good| **is_good).count()
    }

    /// How many sessions were let through to databases: by projects' own hosts, and by the pooler.
    #[must_use]
    pub fn sessions(&self) -> (usize, usize) {
        self.shared.world().sessions
    }
}

impl Drop for TestSupabase {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}
