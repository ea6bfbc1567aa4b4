//! (b) The first request to a store that the node has had nothing to do with, beside one bare connect and the query.

use std::time::Instant;

use anyhow::Context as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::Options;
use crate::client::Http;
use crate::figures::Spread;
use crate::load::check;
use crate::report::{Report, Table, say};
use crate::rig::Rig;

/// How often the node is asked for another store first.
const WARM_REQUESTS: usize = 300;
const AIM: f64 = 1.5;

pub(crate) async fn run(rig: &mut Rig, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let mut logins = Vec::new();
    for store in &rig.stores {
        logins.push(rig.credential(store).await?.pg_options().options([("search_path", "tenantry")]));
    }
    rig.restart_node().await?;
    let statement = rig.statement(&rig.stores[0]).await?;
    let asks = rig.asks();
    let (mut connects, mut bares, mut colds, mut ratios) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds() {
        rig.restart_node().await?;
        let mut http = Http::connect(rig.node.address).await?;
        for _ in 0..WARM_REQUESTS {
            check(&mut http, &asks[0]).await?;
        }
        let (mut round_bares, mut round_colds) = (Vec::new(), Vec::new());
        for (at, (ask, login)) in asks.iter().zip(&logins).enumerate().skip(1) {
            // Who comes second finds the database's files and catalogue read: both come second half of the time.
            let is_cold_first = (at + round) % 2 == 0;
            for is_cold in [is_cold_first, !is_cold_first] {
                let began = Instant::now();
                if is_cold {
                    check(&mut http, ask).await?;
                    round_colds.push(began.elapsed().as_secs_f64() * 1e3);
                } else {
                    let (connected_ms, connection) = bare(login, &statement, began).await?;
                    connects.push(connected_ms);
                    round_bares.push(began.elapsed().as_secs_f64() * 1e3);
                    connection.close().await?;
                }
            }
        }
        let (bare, cold) = (Spread::quartiles(&round_bares), Spread::quartiles(&round_colds));
        ratios.push(cold.median / bare.median);
        bares.extend(round_bares);
        colds.extend(round_colds);
        say(&format!("cold store: round {} of {}", round + 1, options.rounds()));
    }
    let mut table = Table::new("(b) First request to a cold store", &["what", "times", "ms, median (quartiles)"]);
    let times = bares.len().to_string();
    table.row(["bare connect".to_owned(), times.clone(), Spread::quartiles(&connects).show(2)]);
    table.row(["bare connect and query".to_owned(), times.clone(), Spread::quartiles(&bares).show(2)]);
    table.row(["first request to a cold store".to_owned(), times, Spread::quartiles(&colds).show(2)]);
    report.table(table);
    let ratio = Spread::range(&ratios);
    report.aim(
        "(b) a cold store's first request, to a bare connect and query",
        ratio,
        &format!("at most {AIM:.1}"),
        ratio.median <= AIM,
    );
    Ok(())
}

/// Connects and asks; returns the time that the connecting took, too.
async fn bare(login: &PgConnectOptions, statement: &str, began: Instant) -> anyhow::Result<(f64, PgConnection)> {
    let mut connection = PgConnection::connect_with(login).await?;
    let connected_ms = began.elapsed().as_secs_f64() * 1e3;
    let query = sqlx::query(AssertSqlSafe(statement)).bind(21_i64);
    let rows = connection.fetch_all(query).await.context("the statement of the list")?;
    anyhow::ensure!(!rows.is_empty(), "the list is empty");
    Ok((connected_ms, connection))
}
