//! Churn: ten times more active stores than the connection manager may have connections, beside the same load with
//! connections for all of them, and with a new connection for each request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinSet;

use super::TenancyOptions;
use super::farm::{Farm, Shop};
use super::service::{CONNECTS_NAME, PLAIN_NAME, Told, Way};
use crate::cell::{self, Cell, ratio, spread};
use crate::figures::Spread;
use crate::load::{Order, Target};
use crate::report::{Report, Table, say};

/// How many active stores there are to a connection of the budget.
const STORES_PER_CONNECTION: usize = 10;
/// How many ask at a time; fewer than the smallest budget that is worth the name.
const CLIENTS: usize = 32;
/// Long enough for the budget to be spent.
const WARM: Duration = Duration::from_millis(500);
/// How often the watcher counts.
const LOOK_EVERY: Duration = Duration::from_millis(10);
const ORDERS: [Order; 2] = [Order::Uniform, Order::Zipf];

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Layer,
    Pools,
    Connects,
}

impl Who {
    const ALL: [Self; 3] = [Self::Layer, Self::Pools, Self::Connects];

    const fn name(self) -> &'static str {
        match self {
            Self::Layer => "tenancy",
            Self::Pools => "plain, a connection for each store",
            Self::Connects => "plain, a connection for each request",
        }
    }

    /// What its connections go by at the server.
    const fn application(self) -> &'static str {
        match self {
            Self::Layer => tenancy::APPLICATION_NAME,
            Self::Pools => PLAIN_NAME,
            Self::Connects => CONNECTS_NAME,
        }
    }
}

/// One measurement, and the most connections that the watcher saw.
#[derive(Clone, Copy)]
struct Turn {
    cell: Cell,
    most: f64,
}

pub(super) async fn run(farm: &Farm, options: &TenancyOptions, report: &mut Report) -> anyhow::Result<()> {
    let shops = &farm.shops[..options.stores()];
    let budget = shops.len() / STORES_PER_CONNECTION;
    let services = [
        Told::start(Way::Layer { budget, resolved: Vec::new() }, shops).await?,
        Told::start(Way::Pools { most: 1 }, shops).await?,
        Told::start(Way::Connects, shops).await?,
    ];
    let mut turns = vec![Vec::new(); ORDERS.len() * Who::ALL.len()];
    for round in 0..=options.rounds() {
        for (o, order) in ORDERS.into_iter().enumerate() {
            for turn in 0..Who::ALL.len() {
                let w = (turn + round) % Who::ALL.len();
                let asks = shops.iter().map(Shop::ask).collect();
                let address = services[w].address;
                let target = Arc::new(Target { address, asks, order, bears_refusals: true });
                let watcher = Watcher::start(farm, Who::ALL[w].application()).await?;
                let cell =
                    cell::measure(&services[w], farm.process(), &target, CLIENTS, WARM, options.length()).await?;
                let turn = Turn { cell, most: watcher.stop().await? };
                // The first round only warms: until its end, each store that has a connection for good has it.
                if round > 0 {
                    turns[o * Who::ALL.len() + w].push(turn);
                }
            }
        }
        say(&format!("churn: round {round} of {}", options.rounds()));
    }
    for service in services {
        service.stop().await?;
    }
    report
        .add_condition(&format!("churn: {} databases, {budget} connections, {CLIENTS} clients at a time", shops.len()));
    let of = |order: Order, who: Who| -> &[Turn] {
        let o = ORDERS.iter().position(|known| *known == order).expect("one of them");
        let w = Who::ALL.iter().position(|known| *known == who).expect("ALL holds everyone");
        &turns[o * Who::ALL.len() + w]
    };
    add_tables(report, budget, &of);
    Ok(())
}

fn add_tables<'t>(report: &mut Report, budget: usize, of: &impl Fn(Order, Who) -> &'t [Turn]) {
    let mut table = Table::new(
        "Churn",
        &[
            "stores are drawn",
            "who",
            "requests/s",
            "p50 µs",
            "p99 µs",
            "server CPU µs/request",
            "database CPU µs/request",
            "errors",
            "most connections",
        ],
    );
    let mut ratios = Table::new(
        "Churn, ratios round by round",
        &["stores are drawn", "who", "requests/s", "p99", "server and database CPU"],
    );
    for order in ORDERS {
        let drawn = if order == Order::Zipf { "by Zipf" } else { "uniformly" };
        let cells = |who: Who| -> Vec<Cell> { of(order, who).iter().map(|turn| turn.cell).collect() };
        for who in Who::ALL {
            let (cells, turns) = (cells(who), of(order, who));
            let errors: f64 = cells.iter().map(|cell| cell.refused).sum();
            let most = turns.iter().map(|turn| turn.most).fold(0.0, f64::max);
            table.row([
                drawn.to_owned(),
                who.name().to_owned(),
                spread(&cells, |cell| cell.per_second).show(0),
                spread(&cells, |cell| cell.p50_us).show(0),
                spread(&cells, |cell| cell.p99_us).show(0),
                spread(&cells, |cell| cell.server_us).show(1),
                spread(&cells, |cell| cell.database_us).show(1),
                format!("{errors:.0}"),
                format!("{most:.0}"),
            ]);
        }
        for base in [Who::Pools, Who::Connects] {
            let (cells, base_cells) = (cells(Who::Layer), cells(base));
            ratios.row([
                drawn.to_owned(),
                format!("{} : {}", Who::Layer.name(), base.name()),
                ratio(&cells, &base_cells, |cell| cell.per_second).show(2),
                ratio(&cells, &base_cells, |cell| cell.p99_us).show(2),
                ratio(&cells, &base_cells, |cell| cell.server_us + cell.database_us).show(2),
            ]);
        }
        let layer = of(order, Who::Layer);
        let refused = Spread::range(&layer.iter().map(|turn| turn.cell.refused).collect::<Vec<_>>());
        let is_met = refused.high == 0.0;
        report.aim_for(&format!("errors a round, stores drawn {drawn}"), refused, 0, "none", is_met);
        let most = Spread::range(&layer.iter().map(|turn| turn.most).collect::<Vec<_>>());
        let is_met = most.high <= budget as f64;
        let what = format!("the most connections a round, stores drawn {drawn}");
        report.aim_for(&what, most, 0, &format!("never above {budget}"), is_met);
    }
    report.table(table);
    report.table(ratios);
}

/// Counts connections at the server until it is stopped.
struct Watcher {
    is_over: Arc<AtomicBool>,
    counting: JoinSet<anyhow::Result<i64>>,
}

impl Watcher {
    async fn start(farm: &Farm, application: &'static str) -> anyhow::Result<Self> {
        let (is_over, mut counting) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        let (mut admin, over) = (farm.admin().await?, Arc::clone(&is_over));
        counting.spawn(async move {
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                most = most.max(count(&mut admin, application).await?);
                tokio::time::sleep(LOOK_EVERY).await;
            }
            admin.close().await?;
            Ok(most)
        });
        Ok(Self { is_over, counting })
    }

    /// The most that there were at any look.
    async fn stop(mut self) -> anyhow::Result<f64> {
        self.is_over.store(true, Ordering::Relaxed);
        let mut most = 0;
        while let Some(done) = self.counting.join_next().await {
            most = done??;
        }
        Ok(most as f64)
    }
}

async fn count(admin: &mut PgConnection, application: &str) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "select count(*) from pg_stat_activity where application_name = $1 and backend_type = 'client backend'",
    )
    .bind(application)
    .fetch_one(admin)
    .await
}
