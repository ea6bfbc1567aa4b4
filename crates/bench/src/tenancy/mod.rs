//! The connection manager alone: what it costs, over many real databases, beside doing without it.
//!
//! What is measured is a small service on `crates/tenancy`, not the product; only the propagation of changes is the
//! product's, between two processes of it.

mod churn;
mod cold;
mod directory;
mod farm;
mod memory;
mod overhead;
mod propagation;
mod service;
mod warm;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use sqlx::Connection as _;

use self::farm::Farm;
use crate::report::{Report, machine, say};
use crate::rig::temporary_dir;

pub(crate) use self::memory::child as memory;

/// Connections that the administrator and the watchers need beside those of services.
const SPARE: usize = 100;

/// Measures the connection manager alone, beside doing without it.
#[derive(Args, Debug, Clone)]
pub(crate) struct TenancyOptions {
    /// A look instead of a measurement: few databases, few short rounds, nothing written
    #[arg(long)]
    quick: bool,
    /// Interleaved rounds [default: 9]
    #[arg(long)]
    rounds: Option<usize>,
    /// How long each measurement under load lasts [default: 1.5]
    #[arg(long)]
    seconds: Option<f64>,
    /// Databases that are used at a time [default: 500]
    #[arg(long)]
    stores: Option<usize>,
    /// Databases on a server, where their number counts: so many on one, twice as many on another, of 8 MB of disk each
    /// [default: 1000]
    #[arg(long)]
    databases: Option<usize>,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::ALL)]
    parts: Vec<Part>,
    /// Where the results go; what stands there below the line of notes is kept
    #[arg(long, default_value = "crates/bench/RESULTS.md")]
    out: PathBuf,
    /// The folder of the private servers, on a disk and not in memory [default: a new one among the temporary files]
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Overhead,
    Warm,
    Cold,
    Churn,
    Memory,
    Propagation,
}

impl Part {
    const ALL: [Self; 6] = [Self::Overhead, Self::Warm, Self::Cold, Self::Churn, Self::Memory, Self::Propagation];
}

impl TenancyOptions {
    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 2 } else { 9 }).max(1)
    }

    fn length(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.unwrap_or(if self.quick { 0.3 } else { 1.5 }).clamp(0.05, 600.0))
    }

    fn stores(&self) -> usize {
        self.stores.unwrap_or(if self.quick { 40 } else { 500 }).max(20)
    }

    fn databases(&self) -> usize {
        self.databases.unwrap_or(if self.quick { 60 } else { 1000 }).max(20)
    }

    fn wants(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    /// How many databases the first server needs, if any.
    fn first_farm(&self) -> Option<usize> {
        let used = [Part::Warm, Part::Churn, Part::Memory].iter().any(|part| self.wants(*part));
        [(used, self.stores()), (self.wants(Part::Cold), self.databases())]
            .into_iter()
            .filter_map(|(is_needed, count)| is_needed.then_some(count))
            .max()
    }

    /// The options that were given, for whoever wants to run it again.
    fn arguments(&self) -> String {
        let mut text = " tenancy".to_owned();
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                text += &format!(" --{name} {value}");
            }
        };
        add("rounds", self.rounds.map(|rounds| rounds.to_string()));
        add("seconds", self.seconds.map(|seconds| seconds.to_string()));
        add("stores", self.stores.map(|stores| stores.to_string()));
        add("databases", self.databases.map(|databases| databases.to_string()));
        if self.parts != Part::ALL {
            let names = self.parts.iter().map(|part| format!("{part:?}").to_lowercase());
            add("parts", Some(names.collect::<Vec<_>>().join(",")));
        }
        text
    }
}

/// The hidden command that serves, told by its standard input.
pub(crate) fn service() -> anyhow::Result<()> {
    let told = serde_json::from_reader(std::io::stdin())?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(service::serve(told))
}

pub(crate) async fn measure(options: &TenancyOptions) -> anyhow::Result<()> {
    let data_dir = options.data_dir.clone().unwrap_or_else(temporary_dir);
    let mut report = Report::new("The connection manager", options.arguments(), conditions(options));
    if options.wants(Part::Overhead) {
        overhead::run(options, &mut report).await?;
    }
    if let Some(count) = options.first_farm() {
        // A pool for each of the stores, the connection manager with as many, and somebody who connects each time.
        let mut farm = Farm::start(&data_dir.join("one"), count, options.stores() * 4 + SPARE).await?;
        let measured = on_farm(&mut farm, options, &data_dir, &mut report).await;
        let stopped = farm.stop().await;
        measured?;
        stopped?;
    }
    if options.wants(Part::Propagation) {
        propagation::run(options, &data_dir.join("product"), &mut report).await?;
    }
    // Whatever else is in it is not ours.
    let _ = std::fs::remove_dir(&data_dir);
    say(&report.text());
    if options.quick { Ok(()) } else { report.write(&options.out) }
}

async fn on_farm(
    farm: &mut Farm,
    options: &TenancyOptions,
    data_dir: &std::path::Path,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut admin = farm.admin().await?;
    let version: String = sqlx::query_scalar("show server_version").fetch_one(&mut admin).await?;
    admin.close().await?;
    say(&format!("on PostgreSQL {version}"));
    report.add_condition(&format!("PostgreSQL {version}, fsync on, over TCP on loopback"));
    if options.wants(Part::Warm) {
        warm::run(farm, options, report).await?;
    }
    if options.wants(Part::Churn) {
        churn::run(farm, options, report).await?;
    }
    if options.wants(Part::Memory) {
        memory::run(farm, options, report).await?;
    }
    if options.wants(Part::Cold) {
        let twice = Farm::start(&data_dir.join("two"), options.databases() * 2, farm::COLD_BUDGET + SPARE).await?;
        let measured = cold::run([farm, &twice], options, report).await;
        let stopped = twice.stop().await;
        measured?;
        stopped?;
    }
    Ok(())
}

fn conditions(options: &TenancyOptions) -> String {
    format!(
        "{} rounds, each of {:.1} s where there is load, interleaved; {}",
        options.rounds(),
        options.length().as_secs_f64(),
        machine(),
    )
}
