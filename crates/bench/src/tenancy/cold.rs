//! Cold stores: from the hostname to the answer of a store of which the service knows nothing, beside a bare connect and
//! query, on a server with so many databases and on one with twice as many.

use std::time::Instant;

use sqlx::{Connection as _, PgConnection};

use super::TenancyOptions;
use super::farm::{COLD_BUDGET, Farm, STATEMENT, Shop};
use super::service::{PLAIN_NAME, Told, Way};
use crate::client::Http;
use crate::figures::Spread;
use crate::load::check;
use crate::process::Server;
use crate::report::{Report, Table, say};

/// How often the service is asked for another store first.
const WARM_REQUESTS: usize = 300;
/// Stores of a server that are entered in one round; fewer than there may be connections, so that none makes room.
const SAMPLES: usize = 100;
const AIM: f64 = 1.3;
const AIM_FLAT: f64 = 1.1;

/// Times of one server, in milliseconds.
#[derive(Default, Clone)]
struct Times {
    connects: Vec<f64>,
    bares: Vec<f64>,
    colds: Vec<f64>,
}

pub(super) async fn run(farms: [&Farm; 2], options: &TenancyOptions, report: &mut Report) -> anyhow::Result<()> {
    let counts = [options.databases(), options.databases() * 2];
    let all_shops = [&farms[0].shops[..counts[0]], &farms[1].shops[..counts[1]]];
    let samples = SAMPLES.min(counts[0] / 4).min(COLD_BUDGET / 2);
    let mut all = [Times::default(), Times::default()];
    // Of each round: cold to bare on each server, and the second server to the first, cold and bare.
    let (mut ratios, mut flat, mut bare_flat) = ([Vec::new(), Vec::new()], Vec::new(), Vec::new());
    for round in 0..options.rounds() {
        // The first store of each is the one that was asked before.
        let sampled = [0, 1].map(|f| sample(counts[f], samples, round));
        let mut services = Vec::new();
        for f in [0, 1] {
            services.push(start(all_shops[f], &sampled[f]).await?);
        }
        let mut https = Vec::new();
        for (f, service) in services.iter().enumerate() {
            let mut http = Http::connect(service.address).await?;
            for _ in 0..WARM_REQUESTS {
                check(&mut http, &all_shops[f][0].ask()).await?;
            }
            https.push(http);
        }
        let mut round_times = [Times::default(), Times::default()];
        for turn in 0..samples {
            for f in [turn % 2, 1 - turn % 2] {
                let shop = &all_shops[f][sampled[f][turn]];
                // Who comes second finds the database's files and catalogue read: both come second half of the time.
                let is_cold_first = (turn / 2 + round) % 2 == 0;
                enter(&mut https[f], shop, is_cold_first, &mut round_times[f]).await?;
            }
        }
        for service in services {
            service.stop().await?;
        }
        let middle = |times: &[f64]| Spread::quartiles(times).median;
        for (f, times) in round_times.iter().enumerate() {
            ratios[f].push(middle(&times.colds) / middle(&times.bares));
        }
        flat.push(middle(&round_times[1].colds) / middle(&round_times[0].colds));
        bare_flat.push(middle(&round_times[1].bares) / middle(&round_times[0].bares));
        for (all, times) in all.iter_mut().zip(round_times) {
            all.connects.extend(times.connects);
            all.bares.extend(times.bares);
            all.colds.extend(times.colds);
        }
        say(&format!("cold stores: round {} of {}", round + 1, options.rounds()));
    }
    let mut table = Table::new("Cold stores", &["databases", "what", "times", "ms, median (quartiles)"]);
    for (count, times) in counts.iter().zip(&all) {
        let mut row = |what: &str, values: &[f64]| {
            let times = values.len().to_string();
            table.row([count.to_string(), what.to_owned(), times, Spread::quartiles(values).show(2)]);
        };
        row("bare connect", &times.connects);
        row("bare connect and query", &times.bares);
        row("first request to a cold store", &times.colds);
    }
    report.table(table);
    for (count, ratios) in counts.iter().zip(&ratios) {
        let (what, ratio) = (format!("a cold store of {count}, to a bare connect and query"), Spread::range(ratios));
        report.aim(&what, ratio, &format!("at most {AIM:.1}"), ratio.median <= AIM);
    }
    let flat = Spread::range(&flat);
    let what = format!("a cold store of {}, to one of {}", counts[1], counts[0]);
    report.aim(&what, flat, &format!("at most {AIM_FLAT:.1}"), flat.median <= AIM_FLAT);
    let mut growth = Table::new("Cold stores, twice as many databases", &["what", "ratio: median (lowest..highest)"]);
    growth.row(["first request to a cold store".to_owned(), flat.show(2)]);
    growth.row(["bare connect and query".to_owned(), Spread::range(&bare_flat).show(2)]);
    report.table(growth);
    Ok(())
}

/// Stores that lie apart, others in each round, and never the first.
fn sample(count: usize, samples: usize, round: usize) -> Vec<usize> {
    let step = (count - 1) / samples;
    (0..samples).map(|n| 1 + n * step + round % step).collect()
}

/// A service that has resolved every store but those of the sample.
async fn start(shops: &[Shop], sampled: &[usize]) -> anyhow::Result<Server> {
    let resolved = shops.iter().enumerate().filter(|(n, _)| !sampled.contains(n));
    let resolved = resolved.map(|(_, shop)| shop.hostname.clone()).collect();
    Told::start(Way::Layer { budget: COLD_BUDGET, resolved }, shops).await
}

async fn enter(http: &mut Http, shop: &Shop, is_cold_first: bool, times: &mut Times) -> anyhow::Result<()> {
    let (ask, login) = (shop.ask(), shop.pg_options(PLAIN_NAME));
    for is_cold in [is_cold_first, !is_cold_first] {
        let began = Instant::now();
        let elapsed_ms = || began.elapsed().as_secs_f64() * 1e3;
        if is_cold {
            check(http, &ask).await?;
            times.colds.push(elapsed_ms());
        } else {
            let mut connection = PgConnection::connect_with(&login).await?;
            times.connects.push(elapsed_ms());
            let rows = sqlx::query(STATEMENT).fetch_all(&mut connection).await?;
            times.bares.push(elapsed_ms());
            anyhow::ensure!(rows.len() == 20, "the list is empty");
            connection.close().await?;
        }
    }
    Ok(())
}
