//! The load: so many connections that ask again as soon as they are answered, each going round the stores.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::task::JoinSet;

use crate::client::{Http, find};
use crate::figures::quantile;

/// Where the marker of a store stands in its answers: in the first product.
const MARKED_WITHIN: usize = 512;

/// Whom to ask and what.
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) asks: Vec<Ask>,
}

/// A request, and what only the right store's answer holds.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) request: Vec<u8>,
    pub(crate) marker: Vec<u8>,
}

/// What was seen while counting.
pub(crate) struct Seen {
    pub(crate) requests: f64,
    pub(crate) seconds: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

const WARMING: u8 = 0;
const COUNTING: u8 = 1;
const ENDED: u8 = 2;

/// Runs `connections` for `warm` and `length`, counting the latter; `between` is called at the begin and the end of it.
pub(crate) async fn run<T>(
    target: &Arc<Target>,
    connections: usize,
    warm: Duration,
    length: Duration,
    between: impl Fn() -> T,
) -> anyhow::Result<(Seen, T, T)> {
    let phase = Arc::new(AtomicU8::new(WARMING));
    let mut tasks = JoinSet::new();
    for connection in 0..connections {
        let http = Http::connect(target.address).await?;
        // Apart from one another, so that not all of them ask the same store at once.
        let first = connection * target.asks.len() / connections;
        tasks.spawn(ask_again(Arc::clone(target), http, first, Arc::clone(&phase)));
    }
    tokio::time::sleep(warm).await;
    let (begun, before) = (Instant::now(), between());
    phase.store(COUNTING, Ordering::Relaxed);
    tokio::time::sleep(length).await;
    phase.store(ENDED, Ordering::Relaxed);
    let (seconds, after) = (begun.elapsed().as_secs_f64(), between());
    let mut times_us = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times_us.extend(done??);
    }
    ensure!(!times_us.is_empty(), "nothing was answered in time");
    let seen = Seen {
        requests: times_us.len() as f64,
        seconds,
        p50_us: quantile(&times_us, 0.5),
        p99_us: quantile(&times_us, 0.99),
    };
    Ok((seen, before, after))
}

async fn ask_again(
    target: Arc<Target>,
    mut http: Http,
    first: usize,
    phase: Arc<AtomicU8>,
) -> anyhow::Result<Vec<f64>> {
    let mut times_us = Vec::with_capacity(16 * 1024);
    for ask in target.asks.iter().cycle().skip(first) {
        let asked = Instant::now();
        check(&mut http, ask).await?;
        match phase.load(Ordering::Relaxed) {
            WARMING => {}
            COUNTING => times_us.push(asked.elapsed().as_secs_f64() * 1e6),
            _ => break,
        }
    }
    Ok(times_us)
}

/// Asks once; the answer must be the store's own.
pub(crate) async fn check(http: &mut Http, ask: &Ask) -> anyhow::Result<()> {
    let answer = http.ask(&ask.request).await?;
    ensure!(answer.status == 200, "answered {}: {}", answer.status, String::from_utf8_lossy(answer.body));
    let begin = answer.body.get(..MARKED_WITHIN).context("the answer is too short")?;
    ensure!(find(begin, &ask.marker).is_some(), "an answer of another store");
    Ok(())
}
