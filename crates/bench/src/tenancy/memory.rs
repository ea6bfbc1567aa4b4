//! What a store takes of a process's memory when it is known, when it has a pool, and when that has a connection; and how
//! long it takes to look one of many up.
//!
//! Each figure is the growth of a child process's own pages (`RssAnon`), which does that one thing and ends.

use std::collections::HashMap;
use std::hint::black_box;
use std::process::Stdio;
use std::sync::{Arc, RwLock};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use kernel::Hostname;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions};
use tenancy::query::Kind;
use tenancy::{DirectoryConfig, Query, Route, Tenancy, TenancyConfig};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::TenancyOptions;
use super::directory::{Known, Made, keys};
use super::farm::{Farm, STATEMENT, Shop};
use super::overhead::lasting;
use super::service::PLAIN_NAME;
use crate::figures::{Spread, quantile};
use crate::report::{Report, Table, say};

/// The hidden command that is measured.
pub(super) const COMMAND: &str = "tenancy-memory";
const KNOWN: u32 = 100_000;
const POOLS: u32 = 10_000;
/// Look-ups of one batch, and how many batches there are.
const BATCH: usize = 1000;
const BATCHES: usize = 400;
/// How long a look-up may take.
const AIM_NS: f64 = 1000.0;

/// What a child does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum What {
    /// Stores known to the connection manager, then pools without a connection.
    Layer,
    /// A map of the same names and routes, then pools of sqlx without a connection.
    Map,
    /// Stores with a pool and one connection, which answered a query.
    LayerOpen,
    /// Pools of sqlx with one connection, which answered a query.
    PoolsOpen,
}

impl What {
    const ALL: [Self; 4] = [Self::Layer, Self::Map, Self::LayerOpen, Self::PoolsOpen];
}

#[derive(Serialize, Deserialize)]
struct Told {
    what: What,
    known: u32,
    pools: u32,
    /// Real databases.
    shops: Vec<Shop>,
}

/// What a child saw.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Seen {
    /// Of a known store.
    known_bytes: f64,
    /// Of a pool, with its connection if it has one.
    pool_bytes: f64,
    /// Of looking one of the known stores up: the middle of the batches.
    lookup_ns: f64,
}

/// Runs in a process of its own.
pub(crate) fn child() -> anyhow::Result<()> {
    let told: Told = serde_json::from_reader(std::io::stdin())?;
    // One thread, and so one arena of memory.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seen = runtime.block_on(async {
        match told.what {
            What::Layer => layer(told.known, told.pools).await,
            What::Map => map(told.known, told.pools),
            What::LayerOpen => layer_open(&told.shops).await,
            What::PoolsOpen => pools_open(&told.shops).await,
        }
    })?;
    say(&serde_json::to_string(&seen)?);
    Ok(())
}

pub(super) async fn run(farm: &Farm, options: &TenancyOptions, report: &mut Report) -> anyhow::Result<()> {
    let (known, pools) = if options.quick { (KNOWN, POOLS / 10) } else { (KNOWN, POOLS) };
    let shops = &farm.shops[..options.stores()];
    let mut seen = vec![Vec::new(); What::ALL.len()];
    for round in 0..options.rounds() {
        for turn in 0..What::ALL.len() {
            let w = (turn + round) % What::ALL.len();
            seen[w].push(measure(&Told { what: What::ALL[w], known, pools, shops: shops.to_vec() }).await?);
        }
        say(&format!("memory: round {} of {}", round + 1, options.rounds()));
    }
    let of = |what: What, figure: fn(&Seen) -> f64| {
        let w = What::ALL.iter().position(|known| *known == what).expect("ALL holds everything");
        Spread::range(&seen[w].iter().map(figure).collect::<Vec<_>>())
    };
    let mut table = Table::new(
        "Memory, as the pages of a process grow",
        &["what", "how many", "bytes each, median (lowest..highest)"],
    );
    let mut row = |what: &str, count: usize, spread: Spread| {
        table.row([what.to_owned(), count.to_string(), spread.show(0)]);
    };
    let (known_count, pool_count) = (known as usize, pools as usize);
    row("tenancy: a known store without a pool", known_count, of(What::Layer, |seen| seen.known_bytes));
    row("plain: the same name and route in a map", known_count, of(What::Map, |seen| seen.known_bytes));
    row("tenancy: a pool without a connection", pool_count, of(What::Layer, |seen| seen.pool_bytes));
    row("sqlx: a pool without a connection", pool_count, of(What::Map, |seen| seen.pool_bytes));
    row("tenancy: a known store, its pool and a connection", shops.len(), of(What::LayerOpen, |seen| seen.pool_bytes));
    row("sqlx: a pool and a connection", shops.len(), of(What::PoolsOpen, |seen| seen.pool_bytes));
    report.table(table);
    let mut table = Table::new(
        &format!("Looking up one of {known} hostnames"),
        &["what", "ns, median of batches: median of rounds (lowest..highest)"],
    );
    let lookup = of(What::Layer, |seen| seen.lookup_ns);
    table.row(["tenancy: the directory".to_owned(), lookup.show(0)]);
    table.row(["plain: a map behind a lock".to_owned(), of(What::Map, |seen| seen.lookup_ns).show(0)]);
    report.table(table);
    let what = format!("ns of looking up one of {known} hostnames");
    report.aim_for(&what, lookup, 0, &format!("below {AIM_NS:.0}"), lookup.median < AIM_NS);
    Ok(())
}

async fn measure(told: &Told) -> anyhow::Result<Seen> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(COMMAND).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().context("no pipe")?;
    stdin.write_all(serde_json::to_string(told)?.as_bytes()).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    ensure!(output.status.success(), "the process that is measured failed: {:?}", told.what);
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Pages of our own, in bytes.
fn pages() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon in /proc")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024.0)
}

fn hosts(count: u32) -> anyhow::Result<Vec<Hostname>> {
    (0..count).map(Made::hostname).collect()
}

/// Which are looked up: drawn before it is measured.
fn draws(count: usize) -> Vec<usize> {
    (0..BATCH * BATCHES).map(|_| kernel::random::below(count as u64) as usize).collect()
}

fn ns_each(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e9 / BATCH as f64
}

async fn layer(known: u32, pools: u32) -> anyhow::Result<Seen> {
    let hosts = hosts(known)?;
    let config = lasting();
    let directory = DirectoryConfig { max_routes: u64::from(known) * 2, ..config.directory };
    let config = TenancyConfig { directory, max_pools: pools as usize, ..config };
    let tenancy = Tenancy::new(Made::new(keys()?), keys()?, config);
    // What is needed once, whoever is known.
    drop(tenancy.resolve_host(&Made::hostname(known)?).await?);
    let before = pages()?;
    for host in &hosts {
        drop(tenancy.resolve_host(host).await?);
    }
    let with_known = pages()?;
    let draws = draws(hosts.len());
    let mut batches = Vec::with_capacity(BATCHES);
    for batch in draws.chunks(BATCH) {
        let began = Instant::now();
        for draw in batch {
            drop(black_box(tenancy.resolve_host(&hosts[*draw]).await?));
        }
        batches.push(ns_each(began));
    }
    let before_pools = pages()?;
    for host in hosts.iter().take(pools as usize) {
        let route = tenancy.resolve_host(host).await?;
        drop(tenancy.lease(&route).await?);
    }
    let with_pools = pages()?;
    ensure!(tenancy.stats().pools == pools as usize, "there are {} pools", tenancy.stats().pools);
    Ok(Seen {
        known_bytes: (with_known - before) / f64::from(known),
        pool_bytes: (with_pools - before_pools) / f64::from(pools),
        lookup_ns: quantile(&batches, 0.5),
    })
}

fn map(known: u32, pools: u32) -> anyhow::Result<Seen> {
    let (hosts, directory) = (hosts(known)?, Made::new(keys()?));
    let before = pages()?;
    let routes: HashMap<Hostname, Arc<Route>> =
        hosts.iter().zip(0..).map(|(host, number)| (host.clone(), Arc::new(directory.route(number)))).collect();
    let with_known = pages()?;
    let routes = RwLock::new(routes);
    let draws = draws(hosts.len());
    let mut batches = Vec::with_capacity(BATCHES);
    for batch in draws.chunks(BATCH) {
        let began = Instant::now();
        for draw in batch {
            let routes = routes.read().ok().context("a lock that nobody broke")?;
            drop(black_box(routes.get(&hosts[*draw]).cloned()));
        }
        batches.push(ns_each(began));
    }
    let before_pools = pages()?;
    let login = |number: u32| PgConnectOptions::new_without_pgpass().database(&format!("store_{number:026}"));
    let open: Vec<PgPool> = (0..pools).map(|number| PgPoolOptions::new().connect_lazy_with(login(number))).collect();
    let with_pools = pages()?;
    drop(black_box(open));
    Ok(Seen {
        known_bytes: (with_known - before) / f64::from(known),
        pool_bytes: (with_pools - before_pools) / f64::from(pools),
        lookup_ns: quantile(&batches, 0.5),
    })
}

async fn layer_open(shops: &[Shop]) -> anyhow::Result<Seen> {
    let keys = keys()?;
    let config = TenancyConfig { max_connections_per_server: shops.len(), ..lasting() };
    let tenancy = Tenancy::new(Known::new(&keys, shops)?, keys, config);
    let hosts = shops.iter().map(|shop| Ok(Hostname::parse(&shop.hostname)?)).collect::<anyhow::Result<Vec<_>>>()?;
    let before = pages()?;
    for host in &hosts {
        let route = tenancy.resolve_host(host).await?;
        let mut connection = tenancy.lease(&route).await?.acquire().await?;
        let query = Query::postgres(Kind::Read, STATEMENT, PgArguments::default());
        let rows: Vec<(i64,)> = connection.fetch_all(query).await?;
        ensure!(rows.len() == 20, "the list is empty");
    }
    let after = pages()?;
    ensure!(tenancy.stats().idle == shops.len(), "there are {} connections", tenancy.stats().idle);
    tenancy.shutdown(std::time::Duration::ZERO).await;
    Ok(Seen { pool_bytes: (after - before) / shops.len() as f64, ..Seen::default() })
}

async fn pools_open(shops: &[Shop]) -> anyhow::Result<Seen> {
    let before = pages()?;
    let mut open = Vec::with_capacity(shops.len());
    for shop in shops {
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(shop.pg_options(PLAIN_NAME));
        let rows: Vec<(i64,)> = sqlx::query_as(STATEMENT).fetch_all(&pool).await?;
        ensure!(rows.len() == 20, "the list is empty");
        open.push(pool);
    }
    let after = pages()?;
    for pool in open {
        pool.close().await;
    }
    Ok(Seen { pool_bytes: (after - before) / shops.len() as f64, ..Seen::default() })
}
