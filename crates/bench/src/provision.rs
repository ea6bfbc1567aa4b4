//! (c) Provisioning a managed store, beside a bare clone of the same template on the same server.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use kernel::Engine;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::client::Http;
use crate::figures::Spread;
use crate::report::{Report, Table, say};
use crate::rig::{Rig, Store};

const AIM: f64 = 2.0;
/// Words of the event stream that end a run, the good one first.
const ENDS: [&str; 3] = ["event: succeeded", "event: failed", "event: cancelled"];

/// How long everything took.
#[derive(Default)]
pub(crate) struct Provisioned {
    clones_ms: Vec<f64>,
    /// From the 202 to the end of the run, as its event stream tells.
    active_ms: Vec<f64>,
    /// The same, from before the request that is answered 202.
    whole_ms: Vec<f64>,
    /// By step, in their order: its name, when it began after the run was queued, and how long it took.
    steps_ms: Vec<(String, Vec<f64>, Vec<f64>)>,
}

/// Provisions `count` stores, each beside one bare clone.
pub(crate) async fn run(rig: &mut Rig, count: usize) -> anyhow::Result<Provisioned> {
    let mut seen = Provisioned::default();
    if rig.engine == Engine::Mysql {
        // Nothing there is cloned, so there is nothing to compare with.
        for n in 0..count {
            provision(rig, &mut seen, n).await?;
        }
        return Ok(seen);
    }
    let mut admin = rig.admin("postgres").await?;
    // The first store of a server builds the template, which is once for each version of the schema.
    provision(rig, &mut seen, 0).await?;
    seen = Provisioned::default();
    let template: String =
        sqlx::query_scalar("select datname::text from pg_database where datname like 'tenantry_template%'")
            .fetch_one(&mut admin)
            .await?;
    for n in 1..count {
        // Who goes first takes turns, as a checkpoint may come at any time.
        if n % 2 == 0 {
            provision(rig, &mut seen, n).await?;
        }
        let began = Instant::now();
        admin.execute(AssertSqlSafe(format!("create database bare_{n} template {template}"))).await?;
        seen.clones_ms.push(began.elapsed().as_secs_f64() * 1e3);
        if n % 2 == 1 {
            provision(rig, &mut seen, n).await?;
        }
        if n % 10 == 0 {
            say(&format!("provisioning: {n} of {count}"));
        }
    }
    admin.close().await?;
    seen.read_steps(rig).await?;
    Ok(seen)
}

async fn provision(rig: &mut Rig, seen: &mut Provisioned, n: usize) -> anyhow::Result<()> {
    let body = json!({ "managed": true, "engine": rig.engine });
    let (store, active_ms, whole_ms) = open(rig, &format!("shop-{n:05}"), &body).await?;
    seen.active_ms.push(active_ms);
    seen.whole_ms.push(whole_ms);
    rig.stores.push(store);
    Ok(())
}

/// Creates a store, and connects the database that `body` names; how long that took since it was accepted, and since it was
/// asked for, in milliseconds.
pub(crate) async fn open(rig: &Rig, marker: &str, body: &Value) -> anyhow::Result<(Store, f64, f64)> {
    let mut api = Http::connect(rig.node.address).await?;
    let mut watcher = Http::connect(rig.node.address).await?;
    let create = rig.api("POST", "/api/stores/create", Some(json!({ "name": marker, "slug": marker })));
    let store = api.ask(&create).await?.json(201)?;
    let text = |name: &str| store[name].as_str().map(str::to_owned).with_context(|| format!("no {name}"));
    let (id, hostname) = (text("id")?, text("hostname")?);
    let connect = rig.api("POST", &format!("/api/stores/{id}/connect-database"), Some(body.clone()));
    let watch = rig.api("GET", &format!("/api/stores/{id}/provisioning/events"), None);
    let began = Instant::now();
    api.ask(&connect).await?.json(202)?;
    let accepted = Instant::now();
    let end = watcher.read_until(&watch, &ENDS).await?;
    let (active_ms, whole_ms) = (accepted.elapsed().as_secs_f64() * 1e3, began.elapsed().as_secs_f64() * 1e3);
    ensure!(end == 0, "provisioning store {id} ended with {}", ENDS[end]);
    Ok((Store { id: id.parse()?, hostname, marker: marker.to_owned() }, active_ms, whole_ms))
}

impl Provisioned {
    /// When each step began and how long it took, out of master; the first store does not count.
    async fn read_steps(&mut self, rig: &Rig) -> anyhow::Result<()> {
        let mut master = rig.master().await?;
        let rows: Vec<(String, f64, f64)> = sqlx::query_as(
            "select s.name, extract(epoch from s.started_at - r.created_at)::float8 * 1000,
                    extract(epoch from s.finished_at - s.started_at)::float8 * 1000
             from provisioning_steps s
             join provisioning_runs r on r.id = s.run_id
             where r.store_id <> $1
             order by s.position, r.created_at",
        )
        .bind(rig.stores[0].id.as_uuid())
        .fetch_all(&mut master)
        .await?;
        master.close().await?;
        for (name, began, took) in rows {
            match self.steps_ms.last_mut().filter(|(last, ..)| *last == name) {
                Some((_, begins, times)) => {
                    begins.push(began);
                    times.push(took);
                }
                None => self.steps_ms.push((name, vec![began], vec![took])),
            }
        }
        Ok(())
    }

    pub(crate) fn add_to(&self, report: &mut Report) {
        let mut table = Table::new("(c) Provisioning a managed store", &["what", "times", "ms, median (quartiles)"]);
        let mut row = |what: &str, values: &[f64]| {
            table.row([what.to_owned(), values.len().to_string(), Spread::quartiles(values).show(1)]);
        };
        row("bare clone of the template", &self.clones_ms);
        row("from the 202 to active", &self.active_ms);
        row("from before the request to active", &self.whole_ms);
        report.table(table);
        let mut steps = Table::new(
            "(c) Steps, as master has them",
            &["step", "began after queueing, ms, median (quartiles)", "took, ms, median (quartiles)"],
        );
        for (name, begins, times) in &self.steps_ms {
            steps.row([name.clone(), Spread::quartiles(begins).show(1), Spread::quartiles(times).show(1)]);
        }
        report.table(steps);
        let clone = Spread::quartiles(&self.clones_ms).median;
        let ratio = Spread::quartiles(&self.active_ms.iter().map(|ms| ms / clone).collect::<Vec<_>>());
        report.aim("(c) provisioning, to a bare clone", ratio, &format!("at most {AIM:.0}"), ratio.median <= AIM);
    }
}
