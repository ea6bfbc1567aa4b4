//! What a server bears in connections, dealt out among the nodes that need it.
//!
//! Each process that has to do with stores, a serving node or a command at work, is a *node* in master and holds an advisory
//! lock there on a connection of its own. For each server it says what it has open and needs, and is told what it may have.
//!
//! - The sum of what nodes may have at a server never passes the server's `max_connections`, also while nodes come, go or die:
//!   a share rises only into what is free, and falls only to what its node says to have open no more ([`divide`]). When ops lower that
//!   number the sum falls to it, as nodes give back, and does not rise before.
//! - A share is its node's until `expires_at`: longer than stores are served without master, so a node that loses master keeps
//!   its shares for as long as it needs them, and gives them up in time before others may have them. Nobody else can tell such
//!   a node from a dead one, whatever they see of it in master.
//! - A node with a folder of its own (`NODE_DATA`) is one node, however often its process is started again: what it was given is kept
//!   there ([`crate::node_data::shares`]) for the next process, which goes on as the same node, with or without master. When it ends,
//!   what it needed last stays its own until its time is over, and the rest goes back.
//! - Another node that ends gives its shares back when its connections are closed. Of one that was killed they are taken back at once by
//!   a process of the same machine, which knows that it has ended ([`place`]), unless it has such a folder; otherwise when its time
//!   is over.
//! - Two things outlast what is said of them, and are bounded by the limits of statements and steps: what a killed node's sessions
//!   were executing at the server, and what is lent (to an import, to a step of provisioning) when a node gives up its shares.
//! - Only in need is anything taken from anybody: then a node is told, gives back, and tells the others.

mod db;
mod divide;
pub mod nodes;
mod place;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::{DateTime, Utc};
use kernel::ServerId;
use serde::{Deserialize, Serialize};
use sqlx::postgres::types::PgInterval;
use sqlx::{Connection as _, PgConnection};
use tenancy::ServerLoad;
use tokio::time::{Instant, sleep_until, timeout};

use self::db::Said;
use self::divide::Claim;
pub use self::place::Place;
use crate::cx::OpsCx;
use crate::http::errors::chain;
use crate::master::{self, MasterError};
use crate::telemetry::Complaint;

/// Rung by notifications: what others need or gave back.
pub const NEWS: &str = "tenantry_server_shares";

/// How often a node says that it lives.
const RENEW: Duration = Duration::from_secs(5);
/// How soon it asks again while it waits for others, or gives back.
const SOON: Duration = Duration::from_millis(100);
/// How soon it asks again when nothing came of asking, or master does not answer.
const CALM: Duration = Duration::from_secs(1);
/// How long one exchange with master may take.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(5);
/// How much sooner a node lets go of its shares than master does, beside what a statement may take to end.
const MARGIN: Duration = Duration::from_secs(10);

/// A server that a node has nothing of is said to be lacking for so long after it was needed last.
const LACK_LASTS: Duration = Duration::from_secs(60);

/// How long a node of a container is silent before the container's next run takes its place; and any, before ops may call it ended.
const SILENT: Duration = Duration::from_secs(15);

/// A node of master. A number may be another node's after an older master was restored, but not since the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeKey {
    pub id: i32,
    pub since: DateTime<Utc>,
}

/// This process in master.
struct Node {
    conn: PgConnection,
    key: NodeKey,
    is_locked: bool,
}

/// Has every node ask anew what it may have at a server, once `conn`'s transaction is committed: the server bears another number.
///
/// # Errors
/// When master fails.
pub async fn tell(conn: &mut PgConnection, server: ServerId) -> Result<(), sqlx::Error> {
    db::tell(conn, server).await
}

/// Keeps this process's shares until its pools are closed. Nothing is asked of master before a server is needed.
pub async fn run(cx: OpsCx) {
    let mut shares = Shares::new(&cx);
    loop {
        // Never broken off: what master was told is this node's, and is given back by whoever knows of it.
        shares.round(&cx).await;
        if cx.pools_closed.run_until_cancelled(shares.wait(&cx)).await.is_none() {
            break;
        }
    }
    shares.leave(&cx).await;
}

struct Shares {
    node: Option<Node>,
    /// Known to master, also while there is no connection to it.
    key: Option<NodeKey>,
    /// Until when the limits that were set are ours.
    until: Instant,
    ttl: Duration,
    /// When it is time for the next round, whatever happens; before the first server is needed there is none.
    next: Option<Instant>,
    /// Not before there is another round, though somebody waits: nothing came of the last one.
    not_before: Instant,
    /// Whether what is kept for the next process is no more than what this one may have.
    is_kept: bool,
    /// Whether the node that is kept may be somebody else's by now: a copy of a disk knows the same.
    is_doubtful: bool,
    /// Of shares that are not renewed.
    complaint: Complaint,
    /// Servers of which this node has nothing, though it needed them just now.
    lacking: HashMap<ServerId, Lack>,
    /// What was needed at most of each server between the last two exchanges before the node was told to end.
    needed: HashMap<ServerId, usize>,
}

/// Nothing of a server that is needed.
struct Lack {
    since: Instant,
    /// When it was needed last.
    needed: Instant,
    /// What was said of it.
    told: Option<&'static str>,
}

impl Shares {
    fn new(cx: &OpsCx) -> Self {
        let now = Instant::now();
        // A node that listens serves without master for so long; every process ends what it was doing.
        let alone = if cx.is_serving { cx.limits.route_max_stale } else { RENEW * 2 };
        let ttl = alone + margin(cx) + MARGIN;
        let new = Self {
            node: None,
            key: None,
            until: now,
            ttl,
            next: None,
            not_before: now,
            is_kept: true,
            complaint: Complaint::default(),
            is_doubtful: false,
            lacking: HashMap::new(),
            needed: HashMap::new(),
        };
        let Some(kept) = cx.node_data.as_ref().and_then(|data| data.load_shares(&cx.place.host, margin(cx))) else {
            return new;
        };
        tracing::info!("node {} goes on, with what it may have open at {} servers", kept.node.id, kept.limits.len());
        for (server, limit) in kept.limits {
            cx.stores.set_server_limit(server, limit);
        }
        let next = (!kept.left.is_zero()).then_some(now);
        Self { key: Some(kept.node), is_doubtful: !kept.is_same_run, until: now + kept.left, next, ..new }
    }

    /// Keeps for the next process what is this one's now, before anything else is said to master.
    fn keep(&mut self, cx: &OpsCx) {
        let Some(data) = &cx.node_data else { return };
        let was_kept = self.is_kept;
        let done = match self.key {
            Some(key) => data.keep_shares(key, &cx.place.host, self.until, margin(cx), &cx.stores.server_loads()),
            None => data.forget_shares(),
        };
        self.is_kept = done.is_ok();
        if let Err(error) = done
            && was_kept
        {
            tracing::error!("too much is kept of shares of database servers, so none are renewed: {error}");
        }
    }

    /// What was dealt out is not ours any more.
    fn give_up(&mut self, cx: &OpsCx) {
        let loads = cx.stores.server_loads();
        if loads.iter().any(|load| load.limit > 0) {
            tracing::warn!("this node has given up its shares of {} database servers", loads.len());
        }
        for load in loads {
            cx.stores.set_server_limit(load.server_id, 0);
        }
        self.keep(cx);
    }

    /// Until there is something to do: a server is needed, others have news, or it is time.
    async fn wait(&mut self, cx: &OpsCx) {
        let (next, began) = (self.next, Instant::now());
        let time = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let is_demand = tokio::select! {
            () = time => return,
            () = cx.share_news.notified(), if self.key.is_some() => false,
            () = cx.stores.server_wanted() => true,
        };
        // Whoever has nothing at all does not wait for the others' sake.
        let is_urgent = cx.stores.server_loads().iter().any(|load| load.limit == 0 && load.waiting > 0);
        let pause = if is_demand && !is_urgent { self.not_before } else { self.not_before.min(began + SOON) };
        sleep_until(pause).await;
    }

    /// Says what is so and does what is told. A failure is tried again soon; when that lasts, everything is given up in time.
    async fn round(&mut self, cx: &OpsCx) {
        let now = Instant::now();
        let (ttl, key, is_doubtful) = (self.ttl, self.key, self.is_doubtful);
        let left = self.until.saturating_duration_since(now);
        // In time also when master is slow to say no.
        if left.is_zero() && key.is_some() {
            self.give_up(cx);
        }
        let loads = cx.stores.server_loads();
        if loads.is_empty() {
            return;
        }
        // What goes when the node ends was needed until then.
        if !cx.shutdown.is_cancelled() {
            self.needed.clear();
        }
        for load in &loads {
            let needed = self.needed.entry(load.server_id).or_default();
            *needed = load.peak.max(*needed);
        }
        if !self.is_kept {
            self.keep(cx);
            if !self.is_kept {
                metrics::gauge!("tenantry_server_shares_renewed").set(0.0);
                self.next = Some(now + CALM);
                return;
            }
        }
        let node = self.node.take();
        let limit = if left.is_zero() { EXCHANGE_LIMIT } else { EXCHANGE_LIMIT.min(left) };
        let mut joined = None;
        let exchange = async {
            let mut node = match node {
                Some(node) => node,
                None => join(cx, key, is_doubtful, ttl).await?,
            };
            joined = Some(node.key);
            let (outcome, without) = exchange(cx, &mut node, &loads, ttl).await?;
            Ok::<_, MasterError>((node, outcome, without))
        };
        let outcome = timeout(limit, exchange).await;
        // Also when nothing more came of it: what master noted of it is this node's.
        if joined.is_some() {
            (self.key, self.is_doubtful) = (joined, false);
        }
        let is_renewed = matches!(outcome, Ok(Ok((_, Outcome::Settled | Outcome::Changed | Outcome::Unsettled, _))));
        metrics::gauge!("tenantry_server_shares_renewed").set(f64::from(u8::from(is_renewed)));
        if is_renewed && self.complaint.end() {
            tracing::info!("shares of database servers are renewed again");
        }
        match outcome {
            Ok(Ok((_, Outcome::Forgotten, _))) => {
                tracing::warn!("the others took this node for dead; it joins anew");
                self.key = None;
                self.give_up(cx);
                self.next = Some(now + SOON);
            }
            Ok(Ok((node, outcome, without))) => {
                cx.stores.forget_server_peaks();
                self.node = Some(node);
                self.until = now + self.ttl - margin(cx);
                self.next = Some(now + if outcome == Outcome::Unsettled { SOON } else { RENEW });
                self.not_before = now + if outcome == Outcome::Settled { CALM } else { SOON };
                self.keep(cx);
                self.note_lack(
                    cx,
                    &without,
                    "all of its connections are other nodes' shares (`tenantry nodes list` says whose)",
                );
            }
            failed => {
                let now = Instant::now();
                let why = match failed {
                    Ok(Err(error)) if !matches!(error, MasterError::TimedOut) => chain(&error),
                    _ => "no answer came in time".to_owned(),
                };
                if self.complaint.is_new(&why) {
                    let left = self.until.saturating_duration_since(now).as_secs();
                    tracing::warn!(
                        error = why,
                        "shares of database servers are not renewed; this node may use what it has for {left} s more"
                    );
                }
                if now >= self.until {
                    self.give_up(cx);
                } else {
                    // Some of what was exchanged may have come about.
                    self.keep(cx);
                }
                self.next = Some(if now < self.until { self.until.min(now + CALM) } else { now + CALM });
                self.not_before = Instant::now() + SOON;
                let without = |load: &&ServerLoad| load.peak > 0 && limit_of(cx, load.server_id) == 0;
                let without: Vec<ServerId> = loads.iter().filter(without).map(|load| load.server_id).collect();
                self.note_lack(cx, &without, "master does not confirm that any of its connections are this node's");
            }
        }
    }

    /// Says of which servers this node has nothing, though they are needed, when that lasts longer than requests wait.
    fn note_lack(&mut self, cx: &OpsCx, without: &[ServerId], why: &'static str) {
        let now = Instant::now();
        for server in without {
            let lack = self.lacking.entry(*server).or_insert(Lack { since: now, needed: now, told: None });
            lack.needed = now;
        }
        let lasts = |needed: Instant| now.saturating_duration_since(needed) < LACK_LASTS;
        self.lacking.retain(|server, lack| limit_of(cx, *server) == 0 && lasts(lack.needed));
        for (server, lack) in &mut self.lacking {
            if now.saturating_duration_since(lack.since) >= cx.limits.store_acquire_timeout
                && lack.told.replace(why) != Some(why)
            {
                tracing::warn!(
                    server.id = %server,
                    "stores at server {server} are answered store-busy here: {why}"
                );
            }
        }
        let count = self.lacking.values().filter(|lack| lack.told.is_some()).count();
        cx.servers_lacking.store(count, Ordering::Relaxed);
        metrics::gauge!("tenantry_servers_without_share").set(u32::try_from(count).map_or(f64::MAX, f64::from));
    }

    /// Gives everything back, when nothing is open any more; otherwise it stays reserved until it is seen that we are gone. What is
    /// kept for the next process stays reserved, as far as it was needed.
    async fn leave(&mut self, cx: &OpsCx) {
        let Some(mut node) = self.node.take() else { return };
        let mut needed = Vec::new();
        if cx.node_data.is_some() {
            for load in cx.stores.server_loads() {
                let needed = self.needed.get(&load.server_id).map_or(load.peak, |needed| load.peak.max(*needed));
                cx.stores.set_server_limit(load.server_id, load.limit.min(needed.max(load.open).max(1)));
            }
            // Written before master is told: the file never says more than master holds.
            self.keep(cx);
            for load in cx.stores.server_loads() {
                let held = said(cx, &load).claim.held;
                needed.push((load.server_id, Claim { held, wanted: held, most: held }));
            }
            if !self.is_kept {
                return;
            }
        }
        let leaving = async {
            if cx.node_data.is_some() {
                if !db::node_renew(&mut node.conn, node.key, interval(self.ttl)).await? {
                    self.key = None;
                }
                for (server, claim) in needed.iter().filter(|_| self.key.is_some()) {
                    let mut tx = node.conn.begin().await?;
                    db::share_renew(&mut tx, node.key.id, Said { server: *server, claim: *claim }).await?;
                    tx.commit().await?;
                }
            } else if cx.stores.server_loads().iter().all(|load| load.open == 0) {
                db::nodes_delete(&mut node.conn, &[node.key.id]).await?;
            }
            node.conn.close().await
        };
        let left = timeout(EXCHANGE_LIMIT, leaving).await;
        if self.key.is_none() {
            // Somebody has given to others what is kept here.
            self.keep(cx);
        }
        match left {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "shares of database servers were not given back"),
            Err(_) => tracing::warn!("shares of database servers were not given back in time"),
        }
    }
}

/// Joins the others, as the node that this was before if there was one.
async fn join(cx: &OpsCx, key: Option<NodeKey>, is_doubtful: bool, ttl: Duration) -> Result<Node, MasterError> {
    let mut conn = master::connect(&cx.master_args).await?;
    db::session_set_up(&mut conn, u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).max(1)).await?;
    if let Some(key) = key {
        let is_locked = db::node_try_lock(&mut conn, key.id).await?;
        // One that was heard of just now, on a connection that lives, is not what this one was before its machine was started anew.
        if is_locked || !is_doubtful || db::node_is_silent(&mut conn, key, interval(SILENT)).await? {
            // The process before this one may have run in another container.
            db::node_move(&mut conn, key, &cx.place).await?;
            return Ok(Node { is_locked, conn, key });
        }
        tracing::warn!("node {} lives elsewhere: NODE_DATA is a copy of its folder, so this is another node", key.id);
    }
    // What is kept for the next process is nobody else's to take back, though this one has ended.
    let is_kept = cx.node_data.is_some();
    let place = if is_kept { Place { process: String::new(), ..cx.place.clone() } } else { cx.place.clone() };
    Ok(Node { key: db::node_insert(&mut conn, &place, interval(ttl)).await?, conn, is_locked: true })
}

/// What came of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Everything is as it was.
    Settled,
    /// Some limit is another.
    Changed,
    /// Something is to be given back yet, by us or by others.
    Unsettled,
    /// The node does not count as one any more: what it has open is not its own.
    Forgotten,
}

/// One exchange about all servers; and those that are needed here and of which others have everything.
async fn exchange(
    cx: &OpsCx,
    node: &mut Node,
    loads: &[ServerLoad],
    ttl: Duration,
) -> Result<(Outcome, Vec<ServerId>), MasterError> {
    let conn = &mut node.conn;
    if !node.is_locked {
        node.is_locked = db::node_try_lock(conn, node.key.id).await?;
    }
    if !db::node_renew(conn, node.key, interval(ttl)).await? {
        return Ok((Outcome::Forgotten, Vec::new()));
    }
    db::nodes_delete_expired(conn, node.key.id).await?;
    let missing = db::nodes_missing_at(conn, &cx.place.host, node.key.id, interval(SILENT)).await?;
    let is_ended = |(id, other, is_silent): (i32, Place, bool)| cx.place.knows_ended(&other, is_silent).then_some(id);
    let ended: Vec<i32> = missing.into_iter().filter_map(is_ended).collect();
    if !ended.is_empty() {
        db::nodes_delete(conn, &ended).await?;
    }
    let (mut outcome, mut without) = (Outcome::Settled, Vec::new());
    for load in loads {
        let mut tx = conn.begin().await?;
        let decision = db::share_renew(&mut tx, node.key.id, said(cx, load)).await?;
        tx.commit().await?;
        // A server that is not registered any more has nothing to give.
        let limit = decision.map_or(0, |decision| usize::try_from(decision.limit).unwrap_or(usize::MAX));
        if limit != load.limit {
            cx.stores.set_server_limit(load.server_id, limit);
            outcome = outcome.max_with(Outcome::Changed);
        }
        if decision.is_some() && limit == 0 && load.peak > 0 {
            without.push(load.server_id);
        }
        if load.open > limit || decision.is_some_and(|decision| decision.waits_for_others) {
            outcome = Outcome::Unsettled;
        }
    }
    Ok((outcome, without))
}

impl Outcome {
    fn max_with(self, other: Self) -> Self {
        if self == Self::Unsettled { self } else { other }
    }
}

fn said(cx: &OpsCx, load: &ServerLoad) -> Said {
    // As the column that it is noted in.
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).min(i32::MAX.unsigned_abs());
    let most = count(cx.limits.node_max_connections);
    let claim = Claim { held: count(load.limit.max(load.open)), wanted: count(load.peak), most };
    Said { server: load.server_id, claim }
}

/// What this node may have open at a server.
fn limit_of(cx: &OpsCx, server: ServerId) -> usize {
    cx.stores.server_loads().iter().find(|of| of.server_id == server).map_or(0, |of| of.limit)
}

/// How much sooner a node gives its shares up than master takes them back.
fn margin(cx: &OpsCx) -> Duration {
    cx.limits.store_statement_timeout + MARGIN
}

fn interval(time: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(time.as_micros()).unwrap_or(i64::MAX / 4) }
}
