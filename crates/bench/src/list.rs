//! (a) The product list of 20, beside the limit.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use secrecy::ExposeSecret as _;
use tokio::process::Command;

use crate::Options;
use crate::cell::{self, Cell, ratio, spread};
use crate::client::Http;
use crate::load::Target;
use crate::plain::{Database, Told};
use crate::process::Server;
use crate::report::{Report, Table, say};
use crate::rig::{Rig, Store};

const CONNECTIONS: [usize; 3] = [1, 16, 64];
const WARM: Duration = Duration::from_millis(150);
/// The share of the limit's requests that Tenantry shall reach.
const AIM: f64 = 0.90;

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Tenantry,
    /// One pool, one database.
    Limit,
    /// One pool for each database, found by Host.
    Pools,
}

impl Who {
    const ALL: [Self; 3] = [Self::Limit, Self::Tenantry, Self::Pools];

    const fn name(self) -> &'static str {
        match self {
            Self::Tenantry => "Tenantry",
            Self::Limit => "limit",
            Self::Pools => "plain, a pool for each",
        }
    }
}

struct Services {
    limit: Server,
    pools: Server,
}

pub(crate) async fn run(rig: &mut Rig, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    // As after a deployment: what provisioning and importing left in the process does not count.
    rig.restart_node().await?;
    let statement = rig.statement(&rig.stores[0]).await?;
    let services = Services {
        limit: plain(rig, &rig.stores[..1], &statement, options.pool).await?,
        // As many in all as Tenantry may have, where the stores are fifty.
        pools: plain(rig, &rig.stores, &statement, 4).await?,
    };
    same_bytes(rig, &services).await?;

    let mut cells = vec![Vec::new(); CONNECTIONS.len() * Who::ALL.len()];
    for round in 0..=options.rounds() {
        for (c, connections) in CONNECTIONS.into_iter().enumerate() {
            for turn in 0..Who::ALL.len() {
                // Another one goes first in every round.
                let w = (turn + round) % Who::ALL.len();
                let cell = measure(rig, &services, Who::ALL[w], connections, options.length()).await?;
                // The first round only warms.
                if round > 0 {
                    cells[c * Who::ALL.len() + w].push(cell);
                }
            }
        }
        say(&format!("product list: round {round} of {}", options.rounds()));
    }
    services.limit.stop().await?;
    services.pools.stop().await?;
    let of = |connections: usize, who: Who| -> &[Cell] {
        let c = CONNECTIONS.iter().position(|known| *known == connections).expect("one of them");
        let w = Who::ALL.iter().position(|known| *known == who).expect("ALL holds everyone");
        &cells[c * Who::ALL.len() + w]
    };
    add_tables(report, &of);
    Ok(())
}

async fn plain(rig: &Rig, stores: &[Store], statement: &str, pool: u32) -> anyhow::Result<Server> {
    let mut databases = Vec::new();
    for store in stores {
        let credential = rig.credential(store).await?;
        databases.push(Database {
            engine: credential.engine,
            hostname: store.hostname.clone(),
            store: store.id.to_string(),
            host: credential.host,
            port: credential.port,
            username: credential.username,
            password: credential.password.expose_secret().to_owned(),
            database: credential.database,
        });
    }
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("plain");
    let told = Told { statement: statement.to_owned(), pool, databases };
    Server::start(command, Some(serde_json::to_string(&told)?)).await
}

/// All of them must send the same bytes, or the comparison is none.
async fn same_bytes(rig: &Rig, services: &Services) -> anyhow::Result<()> {
    let ask = &rig.asks()[0].request;
    let mut bodies = Vec::new();
    for address in [rig.node.address, services.limit.address, services.pools.address] {
        bodies.push(Http::connect(address).await?.ask(ask).await?.body.to_vec());
    }
    let show = |body: &[u8]| String::from_utf8_lossy(body).into_owned();
    ensure!(bodies[0] == bodies[1], "the limit answers otherwise:\n{}\n{}", show(&bodies[0]), show(&bodies[1]));
    ensure!(bodies[0] == bodies[2], "the plain pools answer otherwise:\n{}\n{}", show(&bodies[0]), show(&bodies[2]));
    Ok(())
}

async fn measure(
    rig: &Rig,
    services: &Services,
    who: Who,
    connections: usize,
    length: Duration,
) -> anyhow::Result<Cell> {
    let (server, asks) = match who {
        Who::Tenantry => (&rig.node, rig.asks()),
        Who::Limit => (&services.limit, rig.asks().into_iter().take(1).collect()),
        Who::Pools => (&services.pools, rig.asks()),
    };
    let target = Arc::new(Target::round(server.address, asks));
    cell::measure(server, rig.database_process(), &target, connections, WARM, length).await
}

fn add_tables<'c>(report: &mut Report, of: &impl Fn(usize, Who) -> &'c [Cell]) {
    let mut table = Table::new(
        "(a) Product list of 20",
        &["connections", "who", "requests/s", "p50 µs", "p99 µs", "server CPU µs/request", "database CPU µs/request"],
    );
    let mut ratios = Table::new(
        "(a) Ratios, round by round",
        &["connections", "who", "requests/s", "server CPU", "server and database CPU"],
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
        for (who, base) in [(Who::Tenantry, Who::Limit), (Who::Pools, Who::Limit), (Who::Tenantry, Who::Pools)] {
            let ratio = |what: fn(&Cell) -> f64| ratio(of(connections, who), of(connections, base), what);
            let per_second = ratio(|cell| cell.per_second);
            ratios.row([
                connections.to_string(),
                format!("{} : {}", who.name(), base.name()),
                per_second.show(2),
                ratio(|cell| cell.server_us).show(2),
                ratio(|cell| cell.server_us + cell.database_us).show(2),
            ]);
            if who == Who::Tenantry && base == Who::Limit {
                let what = format!("(a) requests/s of the limit, {connections} connections");
                report.aim(&what, per_second, &format!("at least {AIM:.2}"), per_second.median >= AIM);
            }
        }
    }
    report.table(table);
    report.table(ratios);
}
