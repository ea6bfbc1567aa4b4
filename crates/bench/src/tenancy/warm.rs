//! Warm stores: one query out of many databases, beside plain axum and sqlx.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;

use super::TenancyOptions;
use super::farm::{Farm, Shop};
use super::service::{Told, Way};
use crate::cell::{self, Cell, ratio, spread};
use crate::client::Http;
use crate::load::Target;
use crate::process::Server;
use crate::report::{Report, Table, say};

const CONNECTIONS: [usize; 4] = [1, 16, 64, 256];
/// Long enough for each store to be asked once by one client: what rested for a while is asked whether it lives.
const WARM: Duration = Duration::from_millis(600);
/// Connections of the one pool; 2 to 8 cannot be told apart.
const ONE_POOL: u32 = 8;
/// Connections of each pool where there are many; the connection manager has as many in all.
const EACH_POOL: u32 = 2;
/// The share of one pool's requests that the connection manager shall reach.
const AIM: f64 = 0.95;
const AIM_P99: f64 = 1.2;

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    OnePool,
    Layer,
    Pools,
}

impl Who {
    const ALL: [Self; 3] = [Self::OnePool, Self::Layer, Self::Pools];

    const fn name(self) -> &'static str {
        match self {
            Self::OnePool => "plain, one pool",
            Self::Layer => "tenancy",
            Self::Pools => "plain, a pool for each",
        }
    }
}

pub(super) async fn run(farm: &Farm, options: &TenancyOptions, report: &mut Report) -> anyhow::Result<()> {
    let shops = &farm.shops[..options.stores()];
    let budget = shops.len() * EACH_POOL as usize;
    let services = [
        Told::start(Way::OnePool { most: ONE_POOL }, &shops[..1]).await?,
        Told::start(Way::Layer { budget, resolved: Vec::new() }, shops).await?,
        Told::start(Way::Pools { most: EACH_POOL }, shops).await?,
    ];
    same_bytes(&services, &shops[0]).await?;
    let mut cells = vec![Vec::new(); CONNECTIONS.len() * Who::ALL.len()];
    for round in 0..=options.rounds() {
        for (c, connections) in CONNECTIONS.into_iter().enumerate() {
            for turn in 0..Who::ALL.len() {
                // Another one goes first in every round.
                let w = (turn + round) % Who::ALL.len();
                let asked = if Who::ALL[w] == Who::OnePool { &shops[..1] } else { shops };
                let target = Target::round(services[w].address, asked.iter().map(Shop::ask).collect());
                let target = Arc::new(target);
                let cell =
                    cell::measure(&services[w], farm.process(), &target, connections, WARM, options.length()).await?;
                // The first round only warms.
                if round > 0 {
                    cells[c * Who::ALL.len() + w].push(cell);
                }
            }
        }
        say(&format!("warm stores: round {round} of {}", options.rounds()));
    }
    for service in services {
        service.stop().await?;
    }
    let of = |connections: usize, who: Who| -> &[Cell] {
        let c = CONNECTIONS.iter().position(|known| *known == connections).expect("one of them");
        let w = Who::ALL.iter().position(|known| *known == who).expect("ALL holds everyone");
        &cells[c * Who::ALL.len() + w]
    };
    report.add_condition(&format!(
        "warm: {} databases, one pool of {ONE_POOL} connections beside pools of {EACH_POOL} and a connection manager with \
         {budget} in all, of at most 8 for each store",
        shops.len()
    ));
    add_tables(report, shops.len(), &of);
    Ok(())
}

/// All of them must send the same bytes, or the comparison is none.
async fn same_bytes(services: &[Server], shop: &Shop) -> anyhow::Result<()> {
    let mut bodies = Vec::new();
    for service in services {
        bodies.push(Http::connect(service.address).await?.ask(&shop.ask().request).await?.body.to_vec());
    }
    let show = |body: &[u8]| String::from_utf8_lossy(body).into_owned();
    for body in &bodies[1..] {
        ensure!(*body == bodies[0], "the services answer otherwise:\n{}\n{}", show(&bodies[0]), show(body));
    }
    Ok(())
}

fn add_tables<'c>(report: &mut Report, stores: usize, of: &impl Fn(usize, Who) -> &'c [Cell]) {
    let mut table = Table::new(
        "Warm stores",
        &["connections", "who", "requests/s", "p50 µs", "p99 µs", "server CPU µs/request", "database CPU µs/request"],
    );
    let mut ratios = Table::new(
        "Warm stores, ratios round by round",
        &["connections", "who", "requests/s", "p99", "server CPU", "server and database CPU"],
    );
    for connections in CONNECTIONS {
        for who in Who::ALL {
            let cells = of(connections, who);
            table.row([
                connections.to_string(),
                who.name().to_owned(),
                spread(cells, |cell| cell.per_second).show(0),
                spread(cells, |cell| cell.p50_us).show(0),
                spread(cells, |cell| cell.p99_us).show(0),
                spread(cells, |cell| cell.server_us).show(1),
                spread(cells, |cell| cell.database_us).show(1),
            ]);
        }
        for (who, base) in [(Who::Layer, Who::OnePool), (Who::Pools, Who::OnePool), (Who::Layer, Who::Pools)] {
            let ratio = |what: fn(&Cell) -> f64| ratio(of(connections, who), of(connections, base), what);
            let (per_second, p99) = (ratio(|cell| cell.per_second), ratio(|cell| cell.p99_us));
            ratios.row([
                connections.to_string(),
                format!("{} : {}", who.name(), base.name()),
                per_second.show(2),
                p99.show(2),
                ratio(|cell| cell.server_us).show(2),
                ratio(|cell| cell.server_us + cell.database_us).show(2),
            ]);
            if who == Who::Layer && base == Who::OnePool {
                let of_what = |what: &str| format!("{what}, {stores} databases to one pool, {connections} connections");
                let is_met = per_second.median >= AIM;
                report.aim(&of_what("requests/s"), per_second, &format!("at least {AIM:.2}"), is_met);
                let is_met = p99.median <= AIM_P99;
                report.aim(&of_what("p99"), p99, &format!("at most {AIM_P99:.1}"), is_met);
            }
        }
    }
    report.table(table);
    report.table(ratios);
}
