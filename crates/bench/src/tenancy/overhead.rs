//! What the layer alone costs, without a database: a hostname resolved, a lease taken and dropped, beside the same out of a
//! plain map of pools.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kernel::Hostname;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tenancy::{DirectoryConfig, Tenancy, TenancyConfig};
use tokio::runtime::Handle;

use super::TenancyOptions;
use super::directory::{Made, keys};
use crate::figures::Spread;
use crate::report::{Report, Table, say};

const STORES: u32 = 500;
/// How many leases a thread takes in one turn.
const TIMES: usize = 400_000;
const QUICK_TIMES: usize = 40_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// Out of a map of pools by hostname.
    Map,
    /// Resolved, leased and dropped.
    Lease,
    /// The same, every time of one store.
    OneStore,
    /// The same, out of the text of a Host header.
    Parsed,
}

impl What {
    const ALL: [Self; 4] = [Self::Map, Self::Lease, Self::OneStore, Self::Parsed];

    const fn name(self) -> &'static str {
        match self {
            Self::Map => "plain: a pool out of a map by hostname",
            Self::Lease => "tenancy: a lease, resolved by hostname",
            Self::OneStore => "tenancy: the same, always of one store",
            Self::Parsed => "tenancy: the same, out of a Host header",
        }
    }
}

struct Bench {
    hosts: Vec<Hostname>,
    pools: HashMap<Hostname, PgPool>,
    tenancy: Tenancy<Made>,
    runtime: Handle,
}

pub(super) async fn run(options: &TenancyOptions, report: &mut Report) -> anyhow::Result<()> {
    let hosts = (0..STORES).map(Made::hostname).collect::<anyhow::Result<Vec<_>>>()?;
    // Nobody connects anywhere.
    let pool = || PgPoolOptions::new().connect_lazy_with(PgConnectOptions::new_without_pgpass());
    let pools = hosts.iter().map(|host| (host.clone(), pool())).collect();
    let tenancy = Tenancy::new(Made::new(keys()?), keys()?, lasting());
    for host in &hosts {
        let route = tenancy.resolve_host(host).await?;
        drop(tenancy.lease(&route).await?);
    }
    let bench = Arc::new(Bench { hosts, pools, tenancy, runtime: Handle::current() });
    let times = if options.quick { QUICK_TIMES } else { TIMES };
    let counts = [1, 2];
    let mut seen = vec![Vec::new(); counts.len() * What::ALL.len()];
    for round in 0..=options.rounds() {
        for (c, threads) in counts.into_iter().enumerate() {
            for turn in 0..What::ALL.len() {
                let w = (turn + round) % What::ALL.len();
                let ns = bench.turn(What::ALL[w], threads, times)?;
                if round > 0 {
                    seen[c * What::ALL.len() + w].push(ns);
                }
            }
        }
    }
    say("overhead: measured");
    bench.tenancy.shutdown(Duration::ZERO).await;
    let mut table =
        Table::new("The layer alone", &["threads", "what", "ns for each thread, median of rounds (lowest..highest)"]);
    for (c, threads) in counts.into_iter().enumerate() {
        for (w, what) in What::ALL.into_iter().enumerate() {
            let spread = Spread::range(&seen[c * What::ALL.len() + w]);
            table.row([threads.to_string(), what.name().to_owned(), spread.show(0)]);
        }
    }
    report.table(table);
    Ok(())
}

/// Routes that are not read again while it is measured.
pub(super) fn lasting() -> TenancyConfig {
    let hour = Duration::from_secs(3600);
    let directory = DirectoryConfig { refresh: hour, max_stale: hour, ..DirectoryConfig::default() };
    TenancyConfig { directory, ..TenancyConfig::default() }
}

impl Bench {
    /// How long one took, in nanoseconds, when so many threads took so many each.
    fn turn(&self, what: What, threads: usize, times: usize) -> anyhow::Result<f64> {
        let took = std::thread::scope(|scope| {
            let work = |thread: usize| scope.spawn(move || self.work(what, thread, times));
            let works: Vec<_> = (0..threads).map(work).collect();
            works.into_iter().map(|work| work.join().ok().context("a thread died")?).collect::<anyhow::Result<Vec<_>>>()
        })?;
        let all: Duration = took.iter().sum();
        Ok(all.as_secs_f64() * 1e9 / (threads * times) as f64)
    }

    fn work(&self, what: What, thread: usize, times: usize) -> anyhow::Result<Duration> {
        let count = self.hosts.len();
        // Not in the order in which they were made, and apart from one another.
        let at = |n: usize| (n * 7 + thread * count / 2) % count;
        let began = Instant::now();
        match what {
            What::Map => {
                for n in 0..times {
                    drop(black_box(self.pools.get(&self.hosts[at(n)]).cloned()));
                }
            }
            What::Lease => self.runtime.block_on(self.leases(times, |n| &self.hosts[at(n)]))?,
            What::OneStore => self.runtime.block_on(self.leases(times, |_| &self.hosts[0]))?,
            What::Parsed => {
                let host = |n: usize| Hostname::from_authority(self.hosts[at(n)].as_str()).expect("it is one");
                self.runtime.block_on(self.leases(times, host))?;
            }
        }
        Ok(began.elapsed())
    }

    async fn leases<H: Borrow<Hostname>>(&self, times: usize, host: impl Fn(usize) -> H) -> anyhow::Result<()> {
        for n in 0..times {
            let route = self.tenancy.resolve_host(host(n).borrow()).await?;
            drop(black_box(self.tenancy.lease(&route).await?));
        }
        Ok(())
    }
}
