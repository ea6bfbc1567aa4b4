//! The load: so many connections that ask again as soon as they are answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::task::JoinSet;

use crate::client::{Answer, Http, find};
use crate::figures::quantile;
use crate::report::complain;

/// Where the marker of a store stands in its answers: in the first product.
const MARKED_WITHIN: usize = 512;

/// How many picks of a random order are drawn before they come again.
const PICKS: usize = 8192;

/// Whom to ask and what.
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) asks: Vec<Ask>,
    pub(crate) order: Order,
    /// Whether answers of 503 are counted; otherwise they end the run.
    pub(crate) bears_refusals: bool,
}

/// Which store comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Each connection goes round them.
    Round,
    /// Any, as often as any other.
    Uniform,
    /// The n-th with a weight of 1/n.
    Zipf,
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
    /// Requests that were answered 503, also while it warmed up.
    pub(crate) refused: usize,
}

impl Target {
    /// Everybody is asked in turn, and must answer.
    pub(crate) fn round(address: SocketAddr, asks: Vec<Ask>) -> Self {
        Self { address, asks, order: Order::Round, bears_refusals: false }
    }

    /// What one of the connections asks, over and over.
    fn picks(&self, connection: usize, connections: usize) -> Vec<usize> {
        let count = self.asks.len();
        match self.order {
            // Apart from one another, so that not all of them ask the same store at once.
            Order::Round => {
                let first = connection * count / connections;
                (first..count).chain(0..first).collect()
            }
            Order::Uniform => (0..PICKS).map(|_| kernel::random::below(count as u64) as usize).collect(),
            Order::Zipf => zipf(count),
        }
    }
}

fn zipf(count: usize) -> Vec<usize> {
    /// What a draw is a part of.
    const WHOLE: u64 = 1 << 52;
    let sums: Vec<f64> = (1..=count)
        .scan(0.0, |sum, n| {
            *sum += 1.0 / n as f64;
            Some(*sum)
        })
        .collect();
    let all = sums.last().copied().unwrap_or_default();
    let pick = |drawn: u64| sums.partition_point(|sum| *sum <= drawn as f64 / WHOLE as f64 * all).min(count - 1);
    (0..PICKS).map(|_| pick(kernel::random::below(WHOLE))).collect()
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
        let picks = target.picks(connection, connections);
        tasks.spawn(ask_again(Arc::clone(target), http, picks, Arc::clone(&phase)));
    }
    tokio::time::sleep(warm).await;
    let (begun, before) = (Instant::now(), between());
    phase.store(COUNTING, Ordering::Relaxed);
    tokio::time::sleep(length).await;
    phase.store(ENDED, Ordering::Relaxed);
    let (seconds, after) = (begun.elapsed().as_secs_f64(), between());
    let (mut times_us, mut refused) = (Vec::new(), 0);
    while let Some(done) = tasks.join_next().await {
        let (times, refusals) = done??;
        times_us.extend(times);
        refused += refusals;
    }
    ensure!(!times_us.is_empty(), "nothing was answered in time");
    let seen = Seen {
        requests: times_us.len() as f64,
        seconds,
        p50_us: quantile(&times_us, 0.5),
        p99_us: quantile(&times_us, 0.99),
        refused,
    };
    Ok((seen, before, after))
}

/// The times of what was answered while it counted, and how often it was refused.
async fn ask_again(
    target: Arc<Target>,
    mut http: Http,
    picks: Vec<usize>,
    phase: Arc<AtomicU8>,
) -> anyhow::Result<(Vec<f64>, usize)> {
    let (mut times_us, mut refused) = (Vec::with_capacity(16 * 1024), 0);
    for pick in picks.into_iter().cycle() {
        let asked = Instant::now();
        let answer = http.ask(&target.asks[pick].request).await?;
        if answer.status == 503 && target.bears_refusals {
            if refused == 0 {
                complain(&format!("refused: {}", String::from_utf8_lossy(answer.body)));
            }
            refused += 1;
        } else {
            is_own(&answer, &target.asks[pick])?;
            if phase.load(Ordering::Relaxed) == COUNTING {
                times_us.push(asked.elapsed().as_secs_f64() * 1e6);
            }
        }
        if phase.load(Ordering::Relaxed) == ENDED {
            break;
        }
    }
    Ok((times_us, refused))
}

/// Asks once; the answer must be the store's own.
pub(crate) async fn check(http: &mut Http, ask: &Ask) -> anyhow::Result<()> {
    is_own(&http.ask(&ask.request).await?, ask)
}

fn is_own(answer: &Answer<'_>, ask: &Ask) -> anyhow::Result<()> {
    ensure!(answer.status == 200, "answered {}: {}", answer.status, String::from_utf8_lossy(answer.body));
    let begin = &answer.body[..MARKED_WITHIN.min(answer.body.len())];
    ensure!(find(begin, &ask.marker).is_some(), "an answer of another store");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Order, PICKS, Target};

    fn picks(order: Order, connection: usize) -> Vec<usize> {
        let ask = super::Ask { request: Vec::new(), marker: Vec::new() };
        let address = ([127, 0, 0, 1], 1).into();
        Target { order, ..Target::round(address, vec![ask; 4]) }.picks(connection, 2)
    }

    #[test]
    fn connections_begin_apart_and_the_first_of_zipf_come_most() {
        assert_eq!(picks(Order::Round, 0), [0, 1, 2, 3]);
        assert_eq!(picks(Order::Round, 1), [2, 3, 0, 1]);
        for (order, first) in [(Order::Uniform, 0.25), (Order::Zipf, 0.48)] {
            let picks = picks(order, 0);
            let share = picks.iter().filter(|&&pick| pick == 0).count() as f64 / PICKS as f64;
            assert!((share - first).abs() < 0.05, "{order:?}: {share}");
            assert!(picks.contains(&3) && picks.iter().all(|&pick| pick < 4));
        }
    }
}
