//! How long a change takes to reach another node: two processes of the product on one master; a store is suspended, or gets
//! new credentials, through the public API of one, and is seen so at the other by whoever visits it there. Beside them, a bare
//! notification from one connection to another.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kernel::Engine;
use serde_json::json;
use sqlx::postgres::PgListener;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::task::JoinSet;

use super::TenancyOptions;
use crate::client::{Answer, Http, request};
use crate::figures::{Spread, quantile};
use crate::process::Server;
use crate::provision;
use crate::report::{Report, Table, say};
use crate::rig::{PATH, Rig, Store};

const TIMES: usize = 100;
const QUICK_TIMES: usize = 10;
/// Those that come first, and do not count.
const WARMING: usize = 3;
/// When it is given up.
const LIMIT: Duration = Duration::from_secs(30);
const BROUGHT: &str = "brought";
const CHANNEL: &str = "bench_bare";

/// How long it took, in milliseconds: since it was asked for, and since whoever asked was answered.
#[derive(Default)]
struct Times {
    since_asked: Vec<f64>,
    since_answered: Vec<f64>,
}

impl Times {
    fn note(&mut self, asked: Instant, answered: Instant, seen: Instant) {
        self.since_asked.push((seen - asked).as_secs_f64() * 1e3);
        self.since_answered.push(seen.saturating_duration_since(answered).as_secs_f64() * 1e3);
    }
}

pub(super) async fn run(options: &TenancyOptions, data_dir: &Path, report: &mut Report) -> anyhow::Result<()> {
    let rig = Rig::start(Engine::Postgresql, Some(data_dir)).await?;
    let measured = measure(&rig, options, report).await;
    let stopped = rig.stop().await;
    measured?;
    stopped
}

async fn measure(rig: &Rig, options: &TenancyOptions, report: &mut Report) -> anyhow::Result<()> {
    rig.grant_admin().await?;
    let (suspended, ..) = provision::open(rig, "suspended", &json!({ "managed": true, "demoProducts": true })).await?;
    let mut admin = rig.admin("postgres").await?;
    let password = kernel::random::token();
    admin.execute(AssertSqlSafe(format!("create role {BROUGHT} login password '{password}'"))).await?;
    admin.execute(AssertSqlSafe(format!("create database {BROUGHT} owner {BROUGHT}"))).await?;
    let body = json!({ "connectionString": rig.login_url(BROUGHT, &password, BROUGHT), "demoProducts": true });
    let (rotated, ..) = provision::open(rig, "rotated", &body).await?;

    let other = rig.another_node().await?;
    let mut notified = PgListener::connect(&rig.url("postgres")).await?;
    notified.listen(CHANNEL).await?;
    let (mut suspends, mut rotates, mut bares) = (Times::default(), Times::default(), Times::default());
    let times = if options.quick { QUICK_TIMES } else { TIMES };
    for n in 0..WARMING + times {
        if n == WARMING {
            (suspends, rotates, bares) = (Times::default(), Times::default(), Times::default());
        }
        suspend(rig, &other, &suspended, &mut suspends).await?;
        rotate(rig, &other, &rotated, &mut admin, &mut rotates).await?;
        let asked = Instant::now();
        admin.execute(AssertSqlSafe(format!("notify {CHANNEL}"))).await?;
        let answered = Instant::now();
        notified.recv().await?;
        bares.note(asked, answered, Instant::now());
    }
    say("propagation: measured");
    other.stop().await?;
    admin.close().await?;
    let mut table = Table::new(
        "Changes, from one process to another",
        &["what", "times", "since", "ms, median (quartiles)", "worst"],
    );
    // What the API does before it commits is in the first figure, and not in the second.
    let named = [("suspend", &suspends), ("rotate", &rotates), ("bare notification", &bares)];
    for (name, seen) in named {
        for (since, values) in [("it was asked for", &seen.since_asked), ("that was answered", &seen.since_answered)] {
            table.row([
                name.to_owned(),
                values.len().to_string(),
                since.to_owned(),
                Spread::quartiles(values).show(2),
                format!("{:.2}", quantile(values, 1.0)),
            ]);
        }
    }
    report.table(table);
    Ok(())
}

/// Suspends a store at one node, and asks the other for it until it refuses. It is opened again afterwards.
async fn suspend(rig: &Rig, other: &Server, store: &Store, times: &mut Times) -> anyhow::Result<()> {
    let visit = request("GET", &store.hostname, PATH, "", "");
    until(other, &visit, 200).await?;
    let mut api = Http::connect(rig.node.address).await?;
    let mut visiting = JoinSet::new();
    let (address, again) = (other.address, visit.clone());
    visiting.spawn(async move {
        let mut http = Http::connect(address).await?;
        let begun = Instant::now();
        while begun.elapsed() < LIMIT {
            match http.ask(&again).await? {
                Answer { status: 200, .. } => {}
                Answer { status: 503, .. } => return anyhow::Ok(Instant::now()),
                Answer { status, .. } => anyhow::bail!("a visitor was answered {status}"),
            }
        }
        anyhow::bail!("the other node never heard of it")
    });
    let path = format!("/api/ops/stores/{}", store.id);
    let body = json!({ "reason": "a benchmark" });
    let asked = Instant::now();
    api.ask(&rig.api("POST", &format!("{path}/suspend"), Some(body))).await?.json(200)?;
    let answered = Instant::now();
    let seen = visiting.join_next().await.context("nobody visits")???;
    times.note(asked, answered, seen);
    api.ask(&rig.api("POST", &format!("{path}/resume"), None)).await?.json(200)?;
    until(other, &visit, 200).await
}

/// Gives a store's login another password and tells one node, and asks the other for it until it answers by a connection that
/// it opened since.
async fn rotate(
    rig: &Rig,
    other: &Server,
    store: &Store,
    admin: &mut PgConnection,
    times: &mut Times,
) -> anyhow::Result<()> {
    let visit = request("GET", &store.hostname, PATH, "", "");
    until(other, &visit, 200).await?;
    let known = sessions(admin).await?;
    ensure!(!known.is_empty(), "nobody is in the store's database");
    let password = kernel::random::token();
    admin.execute(AssertSqlSafe(format!("alter role {BROUGHT} password '{password}'"))).await?;
    let url = rig.login_url(BROUGHT, &password, BROUGHT);
    let give = rig.api(
        "PUT",
        &format!("/api/stores/{}/database/credentials", store.id),
        Some(json!({ "connectionString": url })),
    );
    let mut visitor = Http::connect(other.address).await?;
    let mut api = Http::connect(rig.node.address).await?;
    let mut giving = JoinSet::new();
    let asked = Instant::now();
    giving.spawn(async move {
        api.ask(&give).await?.json(200)?;
        anyhow::Ok(Instant::now())
    });
    let seen = loop {
        ensure!(asked.elapsed() < LIMIT, "the other node never heard of it");
        visitor.ask(&visit).await?.json(200)?;
        let seen = Instant::now();
        // The node that was told enters the database as well, but nobody asks it for products.
        if sessions(admin).await?.iter().any(|session| !known.contains(session)) {
            break seen;
        }
    };
    let answered = giving.join_next().await.context("nobody gives")???;
    times.note(asked, answered, seen);
    Ok(())
}

/// Asks until this is answered.
async fn until(server: &Server, ask: &[u8], status: u16) -> anyhow::Result<()> {
    let mut http = Http::connect(server.address).await?;
    let begun = Instant::now();
    while http.ask(ask).await?.status != status {
        ensure!(begun.elapsed() < LIMIT, "{status} is not answered");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// The sessions that asked the brought database for products.
async fn sessions(admin: &mut PgConnection) -> Result<Vec<i32>, sqlx::Error> {
    sqlx::query_scalar("select pid from pg_stat_activity where datname = $1 and query like 'SELECT%products%'")
        .bind(BROUGHT)
        .fetch_all(admin)
        .await
}
