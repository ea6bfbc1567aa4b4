#![doc = include_str!("../README.md")]

mod cell;
mod client;
mod cold;
mod credits;
mod figures;
mod list;
mod load;
mod mysql;
mod plain;
mod process;
mod provision;
mod report;
mod rig;
mod tenancy;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use kernel::Engine;

use crate::report::{Report, say};
use crate::rig::Rig;

/// Measures Tenantry beside its baselines, in one run, on the same databases.
#[derive(Parser)]
#[command(name = "cargo xtask bench", max_term_width = 110, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Command {
    /// The baseline service; reads what it needs from its input.
    #[command(hide = true)]
    Plain,
    /// A small service of one way to many databases; reads what it needs from its input.
    #[command(hide = true)]
    TenancyService,
    /// What a process takes of memory; reads what it needs from its input.
    #[command(hide = true)]
    TenancyMemory,
    /// Spends of credits beside pgbench's simple-update
    Credits(credits::CreditOptions),
    /// The connection manager alone, over many real databases, beside plain pools and bare connections
    Tenancy(tenancy::TenancyOptions),
}

/// How much is measured.
#[derive(Args, Debug, Clone)]
pub(crate) struct Options {
    /// A look instead of a measurement: few stores, few short rounds, nothing written
    #[arg(long)]
    quick: bool,
    /// Interleaved rounds of the product list [default: 9]
    #[arg(long)]
    rounds: Option<usize>,
    /// How long each measurement of the product list lasts [default: 1.5]
    #[arg(long)]
    seconds: Option<f64>,
    /// Stores; also the rounds of provisioning [default: 50]
    #[arg(long)]
    stores: Option<usize>,
    /// Products of each store
    #[arg(long, default_value_t = 1000)]
    products: usize,
    /// Connections of the plain service's pool
    #[arg(long, default_value_t = 8)]
    pool: u32,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Provision, Part::List, Part::Cold])]
    parts: Vec<Part>,
    /// What the stores' databases are; with mysql, on MariaDB, only the product list is measured
    #[arg(long, value_parser = engine, default_value = "postgresql")]
    engine: Engine,
    /// Where the results go; what stands there below the line of notes is kept [default: crates/bench/RESULTS.md, of mysql
    /// crates/bench/MARIADB.md]
    #[arg(long)]
    out: Option<PathBuf>,
    /// The folder of the private servers, on a disk and not in memory [default: a new one among the temporary files]
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    List,
    Cold,
    Provision,
}

fn engine(text: &str) -> Result<Engine, String> {
    let known = [Engine::Postgresql, Engine::Mysql];
    known.into_iter().find(|engine| engine.as_str() == text).ok_or_else(|| "must be postgresql or mysql".to_owned())
}

impl Options {
    pub(crate) fn out(&self) -> PathBuf {
        let usual = match self.engine {
            Engine::Mysql => "crates/bench/MARIADB.md",
            _ => "crates/bench/RESULTS.md",
        };
        self.out.clone().unwrap_or_else(|| usual.into())
    }

    fn wants(&self, part: Part) -> bool {
        self.parts.contains(&part) && (part == Part::List || self.engine == Engine::Postgresql)
    }

    pub(crate) fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 3 } else { 9 }).max(1)
    }

    pub(crate) fn length(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.unwrap_or(if self.quick { 0.4 } else { 1.5 }).clamp(0.05, 600.0))
    }

    pub(crate) fn stores(&self) -> usize {
        self.stores.unwrap_or(if self.quick { 6 } else { 50 }).max(3)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Command::Plain) => plain::main(),
        Some(Command::Credits(options)) => tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(Into::into)
            .and_then(|runtime| runtime.block_on(credits::measure(&options))),
        Some(Command::TenancyService) => tenancy::service(),
        Some(Command::TenancyMemory) => tenancy::memory(),
        Some(Command::Tenancy(options)) => alone(tenancy::measure(&options)),
        None => alone(measure(&cli.options)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// On one thread, so that the load takes as little as possible from what it measures.
fn alone(measuring: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measuring)
}

async fn measure(options: &Options) -> anyhow::Result<()> {
    let mut rig = Rig::start(options.engine, options.data_dir.as_deref()).await?;
    let measured = parts(&mut rig, options).await;
    let stopped = rig.stop().await;
    let report = measured?;
    stopped?;
    say(&report.text());
    if options.quick { Ok(()) } else { report.write(&options.out()) }
}

async fn parts(rig: &mut Rig, options: &Options) -> anyhow::Result<Report> {
    let arguments = if rig.engine == Engine::Mysql { " --engine mysql" } else { "" };
    let mut report = Report::new("Results", arguments.to_owned(), conditions(rig, options).await?);
    let wants = |part| options.wants(part);
    // Every store is provisioned anyway; this part looks at how long it takes.
    let provisioned = provision::run(rig, options.stores()).await?;
    if wants(Part::Provision) {
        provisioned.add_to(&mut report);
    }
    if wants(Part::List) || wants(Part::Cold) {
        rig.fill_stores(options.products).await?;
    }
    if wants(Part::List) {
        list::run(rig, options, &mut report).await?;
    }
    if wants(Part::Cold) {
        cold::run(rig, options, &mut report).await?;
    }
    Ok(report)
}

async fn conditions(rig: &Rig, options: &Options) -> anyhow::Result<String> {
    Ok(format!(
        "{} stores with {} products each; {} rounds of {:.1} s; {}; {}, fsync on, over TCP on loopback; a pool of {} \
         connections in the limit, of 4 for each store in the plain service with pools, of at most 8 for each store and 200 \
         in all in Tenantry",
        options.stores(),
        options.products,
        options.rounds(),
        options.length().as_secs_f64(),
        report::machine(),
        rig.database_version().await?,
        options.pool,
    ))
}
