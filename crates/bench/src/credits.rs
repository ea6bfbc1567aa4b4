//! Spends of credits, with everything that a spend does (key, lots, budgets, entries, chain), beside `pgbench`'s simple-update
//! on the same server: an update of a row, a select and an insert, on rows that seldom meet.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::{Args as _, FromArgMatches as _};
use control_plane::audit::Actor;
use control_plane::config::Config;
use control_plane::credits::batch::{MAX_BATCH, MAX_WAITING, Spend};
use control_plane::credits::{self, GrantTo, LotKind, NewGrant, TransactionKind, TransactionStatus};
use control_plane::cx::{OpsCx, Services};
use devkit::{Postgres, PostgresOptions, Profile, find_binaries};
use kernel::{Clock as _, CreditTransactionId, OrganizationId, SystemClock};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::process::Command;

use crate::figures::{Spread, quantile};
use crate::process;
use crate::report::{Table, say};
use crate::rig::temporary_dir;

const ACCOUNTS: usize = 100;
/// More than all rounds spend.
const PLENTY: i64 = 1_000_000_000;
const BATCHED_TO_UNBATCHED: f64 = 10.0;
const HOT_TO_SIMPLE: f64 = 4.0;
const MANY_TO_SIMPLE: f64 = 0.8;
const LONE_TO_BARE: f64 = 1.3;
const READ_TO_BARE: f64 = 2.0;

/// Measures spends of credits beside pgbench's simple-update.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct CreditOptions {
    /// Interleaved rounds
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// How long each measurement lasts, in seconds
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// How many spend at a time
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32, 128])]
    clients: Vec<usize>,
    /// The folder of the private PostgreSQL, on a disk and not in memory [default: a new one among the temporary files]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Where the results go [default: the terminal only]
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    SimpleUpdate,
    HotUnbatched,
    HotBatched,
    HotBatchedDeep,
    ManyUnbatched,
    ManyBatched,
    ManyBatchedDeep,
}

impl Variant {
    const ALL: [Self; 7] = [
        Self::SimpleUpdate,
        Self::HotUnbatched,
        Self::HotBatched,
        Self::HotBatchedDeep,
        Self::ManyUnbatched,
        Self::ManyBatched,
        Self::ManyBatchedDeep,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::SimpleUpdate => "pgbench simple-update",
            Self::HotUnbatched => "one account, one spend a commit",
            Self::HotBatched => "one account, batched, each client waits for its spend",
            Self::HotBatchedDeep => "one account, batched, 64 in flight per client",
            Self::ManyUnbatched => "100 accounts, one spend a commit",
            Self::ManyBatched => "100 accounts, batched, each client waits for its spend",
            Self::ManyBatchedDeep => "100 accounts, batched, 64 in flight per client",
        }
    }
}

struct Bench {
    cx: OpsCx,
    pgbench: PathBuf,
    url: String,
    accounts: Vec<OrganizationId>,
    length: Duration,
}

pub(crate) async fn measure(options: &CreditOptions) -> anyhow::Result<()> {
    let data_dir = options.data_dir.clone().unwrap_or_else(temporary_dir);
    let mut server = PostgresOptions::new(&data_dir, Profile::Bench);
    server.bin_dir = process::env("PG_BINDIR").map(PathBuf::from);
    let bin_dir = server.bin_dir.clone();
    let postgres = Postgres::start(server).await?;
    let measured = run(&postgres, bin_dir.as_deref(), options).await;
    postgres.stop().await?;
    std::fs::remove_dir_all(&data_dir).with_context(|| format!("removing {}", data_dir.display()))?;
    let text = measured?;
    say(&text);
    match &options.out {
        Some(path) => std::fs::write(path, text).with_context(|| format!("writing {}", path.display())),
        None => Ok(()),
    }
}

async fn run(postgres: &Postgres, bin_dir: Option<&Path>, options: &CreditOptions) -> anyhow::Result<String> {
    let mut admin = PgConnection::connect(&postgres.url("postgres")).await?;
    for database in ["bench_master", "bench_simple"] {
        admin.execute(AssertSqlSafe(format!("create database {database}"))).await?;
    }
    let version: String = sqlx::query_scalar("show server_version").fetch_one(&mut admin).await?;
    admin.close().await?;
    let pgbench = find_binaries(bin_dir)?.program("pgbench");
    let url = postgres.url("bench_simple");
    let made = Command::new(&pgbench).args(["-q", "-i", "-s", "10", &url]).output().await?;
    ensure!(made.status.success(), "pgbench -i failed: {}", String::from_utf8_lossy(&made.stderr));
    let cx = context(&postgres.url("bench_master")).await?;
    let accounts = accounts(&cx).await?;
    let bench = Bench { cx, pgbench, url, accounts, length: Duration::from_secs_f64(options.seconds) };

    // By variant and number of clients, a figure a round.
    let mut figures = vec![vec![Vec::new(); options.clients.len()]; Variant::ALL.len()];
    let (mut lone, mut bare, mut read, mut select) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds {
        for (at, clients) in options.clients.iter().enumerate() {
            for turn in 0..Variant::ALL.len() {
                // Each goes first as often as any other.
                let which = (turn + round) % Variant::ALL.len();
                figures[which][at].push(bench.rate(Variant::ALL[which], *clients).await?);
            }
        }
        let latencies = bench.latencies().await?;
        for (all, one) in [&mut lone, &mut bare, &mut read, &mut select].into_iter().zip(latencies) {
            all.push(one);
        }
        say(&format!("round {} of {}", round + 1, options.rounds));
    }
    let found = credits::verify::verify(&bench.cx, None).await?;
    ensure!(found.violations.is_empty(), "the ledger does not hold after the run: {:?}", found.violations);
    bench.cx.close().await;
    Ok(report(options, &version, &figures, [&lone, &bare, &read, &select]))
}

async fn context(master_url: &str) -> anyhow::Result<OpsCx> {
    let command = Config::augment_args(clap::Command::new("bench"));
    let key = crate::rig::ENCRYPTION_KEY;
    let words = [
        "bench".to_owned(),
        format!("--master-db-url={master_url}"),
        format!("--encryption-key={key}"),
        "--jwt-secret=a-secret-of-the-bench-that-is-long-enough".to_owned(),
        "--master-max-connections=140".to_owned(),
    ];
    let config = Config::from_arg_matches(&command.try_get_matches_from(words)?)?;
    control_plane::master::migrate(&config.master).await?;
    Ok(OpsCx::new(
        config.master,
        &config.keys,
        config.hosts,
        config.limits,
        Services::default(),
        true,
        Arc::new(SystemClock),
    )?)
}

/// Accounts with plenty in them.
async fn accounts(cx: &OpsCx) -> anyhow::Result<Vec<OrganizationId>> {
    let mut accounts = Vec::new();
    for number in 0..=ACCOUNTS {
        let id = OrganizationId::new(SystemClock.now());
        sqlx::query("insert into organizations (id, name, created_at, updated_at) values ($1, $2, now(), now())")
            .bind(id.as_uuid())
            .bind(format!("account {number}"))
            .execute(&cx.master)
            .await?;
        let to = GrantTo::Organization(id);
        let new = NewGrant { to, kind: LotKind::Paid, amount: PLENTY, expires_at: None, reason: "bench".to_owned() };
        credits::grant(cx, Actor::Cli, &new, None).await?;
        accounts.push(id);
    }
    // As `pgbench -i` does with its own tables.
    cx.master.execute("vacuum analyze").await?;
    Ok(accounts)
}

/// How many spends are under way when each client has a whole batch of them: no more than an account lets wait.
fn deep(clients: usize) -> usize {
    (clients * MAX_BATCH).min(MAX_WAITING)
}

fn spend() -> Spend {
    let id = CreditTransactionId::new(SystemClock.now());
    Spend {
        id,
        key: format!("bench:{id}"),
        hash: [7; 32],
        kind: TransactionKind::Spend,
        store: None,
        actor: None,
        amount: 1,
        service: None,
        quantity: None,
        description: Some("twenty product texts".to_owned()),
        facts: None,
    }
}

impl Bench {
    /// How many a second are done by so many clients at once.
    async fn rate(&self, variant: Variant, clients: usize) -> anyhow::Result<f64> {
        match variant {
            Variant::SimpleUpdate => self.simple_update(clients).await,
            Variant::HotUnbatched => self.unbatched(clients, 1).await,
            Variant::ManyUnbatched => self.unbatched(clients, ACCOUNTS).await,
            Variant::HotBatched => self.batched(clients, 1).await,
            Variant::HotBatchedDeep => self.batched(deep(clients), 1).await,
            Variant::ManyBatched => self.batched(clients, ACCOUNTS).await,
            Variant::ManyBatchedDeep => self.batched(deep(clients), ACCOUNTS).await,
        }
    }

    async fn simple_update(&self, clients: usize) -> anyhow::Result<f64> {
        let seconds = self.length.as_secs_f64().ceil().max(1.0).to_string();
        let threads = clients.min(2).to_string();
        let done = Command::new(&self.pgbench)
            .args(["-n", "-N", "-M", "prepared", "-c", &clients.to_string(), "-j", &threads, "-T", &seconds, &self.url])
            .output()
            .await?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        ensure!(done.status.success(), "pgbench failed: {}", String::from_utf8_lossy(&done.stderr));
        let tps = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        tps.with_context(|| format!("pgbench said no tps: {text}"))
    }

    /// Every client has a connection and commits one spend at a time.
    async fn unbatched(&self, clients: usize, accounts: usize) -> anyhow::Result<f64> {
        let begin = Instant::now();
        self.together(clients, accounts, |cx, organization| async move {
            let mut connection = cx.master.acquire().await?;
            let mut done = 0_u64;
            // Opening the connections is not what is measured.
            let until = begin + self.length;
            while Instant::now() < until {
                let decided =
                    credits::db::spend(&mut connection, organization(done), &[spend()], SystemClock.now()).await?;
                ensure!(decided[0].transaction.status == TransactionStatus::Accepted, "a spend was refused");
                done += 1;
            }
            Ok(done)
        })
        .await
    }

    /// Every client waits for its spend, as a request does.
    async fn batched(&self, clients: usize, accounts: usize) -> anyhow::Result<f64> {
        let until = Instant::now() + self.length;
        self.together(clients, accounts, |cx, organization| async move {
            let mut done = 0_u64;
            while Instant::now() < until {
                let decided = cx.credits.spend(&cx, organization(done), spend()).await?;
                ensure!(decided.transaction.status == TransactionStatus::Accepted, "a spend was refused");
                done += 1;
            }
            Ok(done)
        })
        .await
    }

    async fn together<F>(
        &self,
        clients: usize,
        accounts: usize,
        work: impl Fn(OpsCx, Box<dyn Fn(u64) -> OrganizationId + Send>) -> F,
    ) -> anyhow::Result<f64>
    where
        F: Future<Output = anyhow::Result<u64>>,
    {
        let began = Instant::now();
        let mut all = Vec::new();
        for client in 0..clients {
            let ids = self.accounts.clone();
            let choose = move |done: u64| match accounts {
                1 => ids[0],
                _ => ids[1 + (client * 37 + usize::try_from(done).unwrap_or_default() * 13) % ACCOUNTS],
            };
            all.push(work(self.cx.clone(), Box::new(choose)));
        }
        let done: u64 = futures_util::future::try_join_all(all).await?.into_iter().sum();
        Ok(done as f64 / began.elapsed().as_secs_f64())
    }

    /// Medians in microseconds: a lone spend, a bare update, a balance, a bare select.
    async fn latencies(&self) -> anyhow::Result<[f64; 4]> {
        const TIMES: usize = 200;
        let organization = self.accounts[0];
        let mut connection = PgConnection::connect(&self.url).await?;
        let mut times = [const { Vec::new() }; 4];
        for number in 0..TIMES {
            let began = Instant::now();
            self.cx.credits.spend(&self.cx, organization, spend()).await?;
            times[0].push(began.elapsed().as_secs_f64() * 1e6);
            let began = Instant::now();
            sqlx::query("update pgbench_accounts set abalance = abalance + 1 where aid = $1")
                .bind(i32::try_from(number + 1)?)
                .execute(&mut connection)
                .await?;
            times[1].push(began.elapsed().as_secs_f64() * 1e6);
            let began = Instant::now();
            credits::balance(&self.cx, organization).await?;
            times[2].push(began.elapsed().as_secs_f64() * 1e6);
            let began = Instant::now();
            sqlx::query("select abalance from pgbench_accounts where aid = $1")
                .bind(i32::try_from(number + 1)?)
                .fetch_one(&mut connection)
                .await?;
            times[3].push(began.elapsed().as_secs_f64() * 1e6);
        }
        connection.close().await?;
        Ok(times.map(|values| quantile(&values, 0.5)))
    }
}

fn report(options: &CreditOptions, version: &str, figures: &[Vec<Vec<f64>>], latencies: [&Vec<f64>; 4]) -> String {
    let mut head = vec!["a second, median (lowest..highest)".to_owned()];
    head.extend(options.clients.iter().map(|clients| format!("{clients} clients")));
    let mut table = Table::new("Spends", &head.iter().map(String::as_str).collect::<Vec<_>>());
    for (variant, by_clients) in Variant::ALL.iter().zip(figures) {
        let cells = by_clients.iter().map(|values| Spread::range(values).show(0));
        table.row(std::iter::once(variant.name().to_owned()).chain(cells));
    }
    let mut aims = Table::new("Aims", &["what", "ratio: median (lowest..highest)", "aim", ""]);
    let mut aim = |what: String, ratios: Vec<f64>, wanted: f64, at_least: bool| {
        let ratio = Spread::range(&ratios);
        let is_met = if at_least { ratio.median >= wanted } else { ratio.median <= wanted };
        let words = if at_least { "at least" } else { "at most" };
        let verdict = if is_met { "met" } else { "missed" };
        aims.row([what, ratio.show(2), format!("{words} {wanted}"), verdict.to_owned()]);
    };
    let ratios = |of: Variant, to: Variant, at: usize| -> Vec<f64> {
        figures[of as usize][at].iter().zip(&figures[to as usize][at]).map(|(of, to)| of / to).collect()
    };
    for (at, clients) in options.clients.iter().enumerate() {
        if [8, 32].contains(clients) {
            let what = |what: &str| format!("{what}, {clients} clients");
            let unbatched = ratios(Variant::HotBatchedDeep, Variant::HotUnbatched, at);
            aim(
                what("one account, batched (64 in flight per client) to unbatched"),
                unbatched,
                BATCHED_TO_UNBATCHED,
                true,
            );
            let simple = ratios(Variant::HotBatchedDeep, Variant::SimpleUpdate, at);
            aim(what("one account, batched (64 in flight per client) to simple-update"), simple, HOT_TO_SIMPLE, true);
            let many = ratios(Variant::ManyUnbatched, Variant::SimpleUpdate, at);
            aim(what("100 accounts, one spend a commit, to simple-update"), many, MANY_TO_SIMPLE, true);
            let many = ratios(Variant::ManyBatchedDeep, Variant::SimpleUpdate, at);
            aim(what("100 accounts, batched (64 in flight per client) to simple-update"), many, MANY_TO_SIMPLE, true);
        }
    }
    let [lone, bare, read, select] = latencies;
    let each = |of: &[f64], to: &[f64]| of.iter().zip(to).map(|(of, to)| of / to).collect();
    aim("a lone spend to a bare update".to_owned(), each(lone, bare), LONE_TO_BARE, false);
    aim("a balance to a bare select".to_owned(), each(read, select), READ_TO_BARE, false);
    let mut waits = Table::new("Alone", &["what", "µs, median of rounds (lowest..highest)"]);
    for (name, values) in [("spend", lone), ("bare update", bare), ("balance", read), ("bare select", select)] {
        waits.row([name.to_owned(), Spread::range(values).show(0)]);
    }
    let conditions = format!(
        "# Credits\n\nWritten by `cargo xtask bench credits`: {} rounds of {} s each, interleaved; PostgreSQL {version}, fsync and \
         synchronous_commit on, load and server on the same processors. A spend claims its key, takes lots, writes entries and \
         extends the chain. pgbench and the unbatched spends have a connection for each client, and each waits for its commit. A \
         batch is as large as what waits: at most the number of clients when each waits for its spend, up to {MAX_BATCH} when \
         each has {MAX_BATCH} in flight ({MAX_WAITING} in all at most); the aims are read there.",
        options.rounds, options.seconds
    );
    [conditions, aims.text(), table.text(), waits.text()].join("\n\n") + "\n"
}
