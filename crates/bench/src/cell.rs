//! One measurement of a service under load, and what is said of many.

use std::sync::Arc;
use std::time::Duration;

use crate::figures::Spread;
use crate::load::{self, Target};
use crate::process::{Server, database_cpu};

/// What was seen of a service in one turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cell {
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) server_us: f64,
    pub(crate) database_us: f64,
    /// Requests that were answered 503, also while it warmed up.
    pub(crate) refused: f64,
}

/// Loads `server`, whose databases are on the server with the process `database`.
pub(crate) async fn measure(
    server: &Server,
    database: u32,
    target: &Arc<Target>,
    connections: usize,
    warm: Duration,
    length: Duration,
) -> anyhow::Result<Cell> {
    let cpu = || (server.cpu(), database_cpu(database));
    let (seen, before, after) = load::run(target, connections, warm, length, cpu).await?;
    let per_request = |before: Duration, after: Duration| (after - before).as_secs_f64() * 1e6 / seen.requests;
    Ok(Cell {
        per_second: seen.requests / seen.seconds,
        p50_us: seen.p50_us,
        p99_us: seen.p99_us,
        server_us: per_request(before.0, after.0),
        database_us: per_request(before.1, after.1),
        refused: seen.refused as f64,
    })
}

/// The middle and the spread of one figure.
pub(crate) fn spread(cells: &[Cell], what: impl Fn(&Cell) -> f64) -> Spread {
    Spread::range(&cells.iter().map(what).collect::<Vec<_>>())
}

/// How one figure compares, round by round.
pub(crate) fn ratio(cells: &[Cell], base: &[Cell], what: impl Fn(&Cell) -> f64) -> Spread {
    Spread::range(&cells.iter().zip(base).map(|(cell, base)| what(cell) / what(base)).collect::<Vec<_>>())
}
