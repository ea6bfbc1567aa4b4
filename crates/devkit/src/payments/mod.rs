//! A payment provider for tests and for `tenantry dev`: it keeps state, speaks the form-encoded API that we use of Stripe's,
//! shows a Checkout page, and tells of what happened by signed webhooks, with retries and with every mischief that the
//! network has.
//!
//! No money moves here, and everything that it shows says so. It listens on loopback alone.

mod api;
mod form;
mod page;
mod webhooks;
mod world;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use webhooks::{WebhookFaults, sign};
pub use world::{ApiFault, Checkout};

use world::World;

/// The version of the API that it speaks.
pub const API_VERSION: &str = "2025-09-30.clover";
const CLOSE: Duration = Duration::from_secs(5);

/// How a provider is set up.
#[derive(Debug, Clone)]
pub struct TestPaymentsOptions {
    /// Where it listens; loopback only.
    pub listen: SocketAddr,
    /// What callers must know.
    pub secret_key: String,
    /// What it signs webhooks with.
    pub webhook_secret: String,
    /// Where webhooks go; none are sent before it is known.
    pub webhook_url: Option<String>,
}

impl Default for TestPaymentsOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            secret_key: "sk_test_of_the_test_provider".to_owned(),
            webhook_secret: "whsec_of_the_test_provider".to_owned(),
            webhook_url: None,
        }
    }
}

/// Why it does not start.
#[derive(Debug, thiserror::Error)]
pub enum TestPaymentsError {
    /// It must not be reached from outside.
    #[error("the test payment provider listens on loopback only, not on {0}")]
    NotLoopback(SocketAddr),
    /// The address is taken.
    #[error("the test payment provider cannot listen")]
    Listen(#[from] std::io::Error),
}

/// A running provider; dropping it ends it.
#[derive(Debug)]
pub struct TestPayments {
    shared: Arc<Shared>,
    address: SocketAddr,
}

#[derive(Debug)]
struct Shared {
    options: TestPaymentsOptions,
    base_url: String,
    world: Mutex<World>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        // A test that panicked while it looked has changed nothing by halves.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something, and sends the webhooks that it makes necessary.
    fn act<T>(self: &Arc<Self>, work: impl FnOnce(&mut World) -> T) -> T {
        let done = work(&mut self.world());
        webhooks::send_new(self);
        done
    }
}

impl TestPayments {
    /// Starts one.
    ///
    /// # Errors
    /// When the address is taken, or is not loopback.
    pub async fn start(options: TestPaymentsOptions) -> Result<Self, TestPaymentsError> {
        if !options.listen.ip().is_loopback() {
            return Err(TestPaymentsError::NotLoopback(options.listen));
        }
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        let base_url = format!("http://{address}");
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let mut world = World::new(base_url.clone());
        world.webhook_url.clone_from(&options.webhook_url);
        let shared = Arc::new(Shared { options, base_url, world: Mutex::new(world), tasks, stop });
        let router = api::router(Arc::clone(&shared));
        let stopped = shared.stop.clone().cancelled_owned();
        shared.tasks.spawn(async move {
            if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stopped).await {
                tracing::warn!(%error, "the test payment provider ended");
            }
        });
        Ok(Self { shared, address })
    }

    /// Ends it, and whatever it was still sending.
    pub async fn stop(self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(CLOSE, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!("the test payment provider was still answering when it was ended");
        }
    }

    /// Where its API answers.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.shared.base_url
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How it was set up.
    #[must_use]
    pub fn options(&self) -> &TestPaymentsOptions {
        &self.shared.options
    }

    /// Says where webhooks go from now on.
    pub fn set_webhook_url(&self, url: &str) {
        self.shared.world().webhook_url = Some(url.to_owned());
    }

    /// Says what goes wrong with webhooks from now on.
    pub fn set_webhook_faults(&self, faults: WebhookFaults) {
        self.shared.world().webhook_faults = faults;
    }

    /// Lets the next calls of the API that change something go wrong, one for each.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = ApiFault>) {
        self.shared.world().faults.extend(faults);
    }

    /// Moves its clock ahead.
    pub fn advance(&self, by: Duration) {
        self.shared.world().ahead += by;
    }

    /// Does what a button of the Checkout page does.
    ///
    /// # Errors
    /// When the session is not open any more, as the page would say it.
    pub fn checkout(&self, session: &str, action: Checkout) -> Result<(), String> {
        self.shared.act(|world| world.checkout(session, action)).map_err(|error| error.message)
    }

    /// Ends a delayed payment of a completed session.
    ///
    /// # Errors
    /// When there is no such payment.
    pub fn settle(&self, session: &str, is_paid: bool) -> Result<(), String> {
        self.shared.act(|world| world.settle(session, is_paid)).map_err(|error| error.message)
    }

    /// Fills a card's number into the form of a SetupIntent, as its owner does in a browser; the payment method.
    ///
    /// # Errors
    /// When the form was sent before, or the number is none of the test numbers.
    pub fn fill_in(&self, setup_intent: &str, number: &str) -> Result<String, String> {
        self.shared.act(|world| world.setup_intent_fill_in(setup_intent, number)).map_err(|error| error.message)
    }

    /// Says whether it asks for the owner of a card by a status where the owner is not there, as older versions did, instead of
    /// declining the payment.
    pub fn ask_absent_owners(&self, does: bool) {
        self.shared.world().asks_absent_owners = does;
    }

    /// Gives money back, as somebody in the provider's dashboard does; the refund's id.
    ///
    /// # Errors
    /// When there is not so much left to give back.
    pub fn refund(&self, payment_intent: &str, amount: i64) -> Result<String, String> {
        let made =
            self.shared.act(|world| world.refund_create(payment_intent, Some(amount), None, &serde_json::Map::new()));
        made.map(|refund| world::text(&refund["id"]).to_owned()).map_err(|error| error.message)
    }

    /// Lets a refund fail after all.
    ///
    /// # Errors
    /// When there is no such refund.
    pub fn refund_fail(&self, refund: &str) -> Result<(), String> {
        self.shared.act(|world| world.refund_fail(refund)).map(drop).map_err(|error| error.message)
    }

    /// The cardholder disputes a payment, or a part of it; the dispute's id.
    ///
    /// # Errors
    /// When there is no such payment.
    pub fn dispute_open(&self, payment_intent: &str, amount: Option<i64>) -> Result<String, String> {
        self.shared.act(|world| world.dispute_open(payment_intent, amount)).map_err(|error| error.message)
    }

    /// The bank decides.
    ///
    /// # Errors
    /// When there is no such open dispute.
    pub fn dispute_close(&self, dispute: &str, is_won: bool) -> Result<(), String> {
        self.shared.act(|world| world.dispute_close(dispute, is_won)).map(drop).map_err(|error| error.message)
    }

    /// Every event until now, oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        self.shared.world().events.iter().map(|event| event.body.clone()).collect()
    }

    /// How often an event was sent, and whether anybody took it.
    #[must_use]
    pub fn deliveries(&self, event: &str) -> (u32, bool) {
        let world = self.shared.world();
        world
            .events
            .iter()
            .find(|known| known.id() == event)
            .map_or((0, false), |known| (known.attempts, known.is_delivered))
    }

    /// An event's bytes as they are sent now, and the header that signs them.
    #[must_use]
    pub fn signed(&self, event: &Value) -> (String, String) {
        let body = webhooks::body(event);
        let header = sign(&self.shared.options.webhook_secret, self.shared.world().now(), &body);
        (body, header)
    }

    /// The provider's time, in seconds.
    #[must_use]
    pub fn now(&self) -> i64 {
        self.shared.world().now()
    }

    /// The object with this id.
    #[must_use]
    pub fn object(&self, id: &str) -> Option<Value> {
        self.shared.world().find(id).cloned()
    }

    /// All objects of a kind, oldest first: `charge`, `refund`, `balance_transaction`, ...
    #[must_use]
    pub fn objects(&self, kind: &str) -> Vec<Value> {
        self.shared.world().all(kind).cloned().collect()
    }

    /// Changes an object behind everybody's back: no event tells of it.
    pub fn tamper(&self, id: &str, change: impl FnOnce(&mut Value)) {
        if let Some(object) = self.shared.world().find_mut(id) {
            change(object);
        }
    }

    /// Makes an object vanish, and its events with it.
    pub fn forget(&self, id: &str) {
        self.shared.world().forget(id);
    }

    /// Books a movement of money that belongs to nothing; its id.
    pub fn plant_balance_transaction(&self, kind: &str, source: &str, amount: i64, currency: &str) -> String {
        self.shared.world().balance_transaction(kind, kind, source, amount, 0, currency)
    }

    /// How many calls of the API were answered, replays apart.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.shared.world().calls
    }
}

impl Drop for TestPayments {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}
