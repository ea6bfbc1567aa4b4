//! Spends of one account, many in one commit.
//!
//! An account is one row, and a commit holds it for as long as the disk takes: one after the other, spends wait for each
//! other's commits. Here they wait together: whoever comes while a commit is under way goes into the next one. A lone spend
//! waits for nobody, there is no timer. When a whole batch waits, a second commit is begun: its keys are claimed, and the
//! answers of the one before read, while that one is on its way to the disk. Correctness needs none of this: whoever batches
//! the same account, here or on another node, only meets the others at its row.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use kernel::{CreditTransactionId, OrganizationId, StoreId, UserId};
use tokio::sync::oneshot;

use super::{CreditError, Decision, TransactionKind, db};
use crate::cx::OpsCx;
use crate::http::errors::chain;

/// The most spends in one commit.
pub const MAX_BATCH: usize = 64;
/// The most spends of one account that wait in this process.
pub const MAX_WAITING: usize = 4096;
/// The most commits of one account that are under way in this process. One works while another waits for the disk.
const MAX_WORKERS: usize = 2;

/// A spend that was checked and authorized.
#[derive(Debug, Clone)]
pub struct Spend {
    pub id: CreditTransactionId,
    pub key: String,
    pub hash: [u8; 32],
    /// `Spend` or `Charge`.
    pub kind: TransactionKind,
    pub store: Option<StoreId>,
    pub actor: Option<UserId>,
    pub amount: i64,
    pub service: Option<String>,
    pub quantity: Option<i64>,
    pub description: Option<String>,
    /// What else is to be kept, such as the price that was applied.
    pub facts: Option<serde_json::Value>,
}

struct Waiting {
    spend: Spend,
    reply: oneshot::Sender<Result<Decision, CreditError>>,
}

/// The spends of one account that wait for a commit, and how many work them off.
#[derive(Default)]
struct Line {
    waiting: VecDeque<Waiting>,
    workers: usize,
}

#[derive(Default)]
struct Queue(Mutex<Line>);

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queues of this process: an account has one while something of it is being spent.
#[derive(Default)]
pub struct Batcher {
    queues: DashMap<OrganizationId, Arc<Queue>>,
}

impl Batcher {
    /// Decides a spend, together with those of the same account that come at the same time.
    ///
    /// # Errors
    /// `Busy` when too many wait; `OutcomeUnknown` when the connection broke: repeating it with its key is safe.
    pub async fn spend(&self, cx: &OpsCx, organization: OrganizationId, spend: Spend) -> Result<Decision, CreditError> {
        let (reply, decided) = oneshot::channel();
        let waiting = Waiting { spend, reply };
        // The map's lock is held over both, so that a queue is not left between looking at it and joining it.
        let begun = {
            let queue = self.queues.entry(organization).or_default();
            let mut line = queue.lock();
            if line.waiting.len() >= MAX_WAITING {
                metrics::counter!("tenantry_credit_spends_refused_total").increment(1);
                return Err(CreditError::Busy);
            }
            line.waiting.push_back(waiting);
            let is_needed = line.workers == 0 || (line.workers < MAX_WORKERS && line.waiting.len() >= MAX_BATCH);
            line.workers += usize::from(is_needed);
            is_needed.then(|| Arc::clone(&queue))
        };
        if let Some(queue) = begun {
            let cx = cx.clone();
            cx.clone().tasks.spawn(async move { cx.credits.work_off(&cx, organization, &queue).await });
        }
        // The task answers everybody, or ends with the process.
        decided.await.unwrap_or(Err(CreditError::OutcomeUnknown))
    }

    /// Decides batch after batch until nobody waits.
    async fn work_off(&self, cx: &OpsCx, organization: OrganizationId, queue: &Queue) {
        loop {
            let batch: Vec<Waiting> = {
                let mut line = queue.lock();
                let count = line.waiting.len().min(MAX_BATCH);
                line.waiting.drain(..count).collect()
            };
            if batch.is_empty() {
                if self.leave(organization, queue) {
                    return;
                }
                continue;
            }
            #[expect(clippy::cast_precision_loss, reason = "at most 64")]
            metrics::histogram!("tenantry_credit_batch_size").record(batch.len() as f64);
            decide(cx, organization, batch).await;
        }
    }

    /// Ends a worker, unless somebody has joined meanwhile; the last one takes the queue with it.
    fn leave(&self, organization: OrganizationId, queue: &Queue) -> bool {
        // Whoever joins holds the map's lock for it: either they are seen here, or they begin a worker of their own.
        let Entry::Occupied(place) = self.queues.entry(organization) else { return true };
        let mut line = queue.lock();
        if !line.waiting.is_empty() {
            return false;
        }
        line.workers -= 1;
        let is_last = line.workers == 0;
        drop(line);
        if is_last {
            place.remove();
        }
        true
    }
}

async fn decide(cx: &OpsCx, organization: OrganizationId, batch: Vec<Waiting>) {
    let (spends, replies): (Vec<Spend>, Vec<_>) =
        batch.into_iter().map(|waiting| (waiting.spend, waiting.reply)).unzip();
    match run(cx, organization, &spends).await {
        Ok(decisions) => {
            for (reply, decision) in replies.into_iter().zip(decisions) {
                // Who does not wait any more asks again with the key.
                drop(reply.send(Ok(decision)));
            }
        }
        // One that the database does not take, such as of a store that was just deleted, must not cost the others.
        Err(sqlx::Error::Database(error)) if spends.len() > 1 && !is_outage(&*error) => {
            tracing::debug!("a batch of {} spends is decided one by one: {error}", spends.len());
            for (spend, reply) in spends.iter().zip(replies) {
                let decided = run(cx, organization, std::slice::from_ref(spend)).await;
                let decision = decided.map_err(CreditError::from).map(|mut one| one.remove(0));
                drop(reply.send(decision));
            }
        }
        Err(error) => {
            tracing::warn!(error = chain(&error), "{} spends were not decided", spends.len());
            for reply in replies {
                drop(reply.send(Err(undecided(&error))));
            }
        }
    }
}

async fn run(cx: &OpsCx, organization: OrganizationId, spends: &[Spend]) -> Result<Vec<Decision>, sqlx::Error> {
    let mut lent = cx.warm.lend().await?;
    // After an error it goes to the pool, which looks at it first.
    let decisions = db::spend(&mut lent.connection, organization, spends, cx.clock.now()).await?;
    cx.warm.keep(lent);
    Ok(decisions)
}

fn is_outage(error: &dyn sqlx::error::DatabaseError) -> bool {
    // The server goes, or a time limit has passed: all of them fared alike.
    error.code().is_some_and(|code| code.starts_with("57") || code.starts_with("08") || code == "55P03")
}

/// What those are told whose batch failed: nothing was done, or nobody knows.
fn undecided(error: &sqlx::Error) -> CreditError {
    match error {
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => CreditError::Db(sqlx::Error::PoolTimedOut),
        sqlx::Error::Database(database) if !database.code().is_some_and(|code| code.starts_with("57P")) => {
            CreditError::Busy
        }
        _ => CreditError::OutcomeUnknown,
    }
}
