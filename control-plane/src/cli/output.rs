//! What commands print: lines for people, or JSON for scripts. The one place that writes to stdout and stderr by itself.

use std::io::Write as _;
use std::process::ExitCode;

use chrono::SecondsFormat;
use kernel::Hostname;
use serde::Serialize;
use serde_json::Value;

use super::failure::{Failure, Options};
use super::json_of;
use crate::catalog::ImportReport;
use crate::charges::routes::{PriceView, WaivedChargeView, WaivedView};
use crate::credits::packs::routes::OpsPackView;
use crate::credits::prices::Price;
use crate::credits::purchases::routes::OpsPurchaseView;
use crate::credits::review::routes::{DifferenceView, PaymentEventView, ReconciledView};
use crate::credits::routes::{BalanceView, TransactionView};
use crate::credits::verify::Verification;
use crate::doctor::{CheckState, Report};
use crate::ops::routes::{OpsStoreView, ServerView};
use crate::ops::{Finding, HostExplanation};
use crate::provisioning::routes::RunView;
use crate::shares::nodes::{NodeView, ShareView};

/// An answer in both forms.
pub(super) struct Printed {
    json: Option<serde_json::Value>,
    lines: Vec<String>,
    /// What the program exits with.
    pub(super) code: u8,
}

/// The code of what was not understood.
const NOT_UNDERSTOOD: &str = "not-understood";
/// Something was found that people have to look at.
const FOUND: u8 = 3;
/// Some of an import's products were refused.
const PARTLY: u8 = 4;

impl Printed {
    pub(super) fn new(json: serde_json::Value) -> Self {
        Self { json: Some(json), lines: Vec::new(), code: 0 }
    }

    /// Text that is the same in both forms.
    pub(super) fn text(text: String) -> Self {
        Self { json: None, lines: vec![text], code: 0 }
    }

    pub(super) fn line(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }
}

pub(super) fn print(json: bool, printed: &Printed) -> Result<(), anyhow::Error> {
    let text = match &printed.json {
        Some(value) if json => serde_json::to_string_pretty(value)?,
        _ => printed.lines.join("\n"),
    };
    match writeln!(std::io::stdout(), "{text}") {
        // A reader that has seen enough is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Says why a command is not begun.
pub fn refuse(json: bool, why: &str) -> ExitCode {
    tell(json, why, || serde_json::json!({ "error": why, "code": NOT_UNDERSTOOD }));
    ExitCode::from(2)
}

/// Says what of the command line was not understood, or gives the help that was asked for.
pub(super) fn misunderstood(json: bool, error: &clap::Error) -> ExitCode {
    if json && error.use_stderr() {
        let text = error.to_string();
        // What follows are tips for a terminal.
        let what = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
        return refuse(json, &what.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    // When even stderr is gone there is nobody left to tell.
    let _ = error.print();
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Says why a command failed.
pub(super) fn failed(json: bool, failure: &Failure, options: &Options) -> ExitCode {
    tell(json, &failure.text(options), || failure.json(options));
    ExitCode::FAILURE
}

fn tell(json: bool, text: &str, value: impl FnOnce() -> serde_json::Value) {
    say(&if json { value().to_string() } else { format!("error: {text}") });
}

fn say(text: &str) {
    // When even stderr is gone there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Rows under a head, in columns as wide as they need to be.
fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> Vec<String> {
    let mut widths = head.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(head)];
    lines.extend(rows.iter().map(|row| line(std::array::from_fn(|at| row[at].as_str()))));
    lines
}

/// A page of a list, and how the next one is asked for.
fn page<T: Serialize>(data: &T, next_cursor: Option<&str>, mut lines: Vec<String>) -> Result<Printed, Failure> {
    lines.extend(next_cursor.map(|cursor| format!("more: --cursor {cursor}")));
    let json = serde_json::json!({ "data": json_of(data)?, "meta": { "nextCursor": next_cursor } });
    Ok(Printed { json: Some(json), lines, code: 0 })
}

pub(super) fn servers(servers: &[ServerView]) -> Result<Printed, Failure> {
    let rows: Vec<[String; 7]> = servers
        .iter()
        .map(|server| {
            [
                server.name.clone(),
                server.engine.to_string(),
                server.region.clone().unwrap_or_default(),
                format!("{}:{}", server.host, server.port),
                format!("{:?}", server.status).to_lowercase(),
                format!("{}/{}", server.stores, server.max_stores),
                server.max_connections.to_string(),
            ]
        })
        .collect();
    let lines = table(["NAME", "ENGINE", "REGION", "ADDRESS", "STATUS", "STORES", "CONNECTIONS"], &rows);
    Ok(Printed { json: Some(serde_json::json!({ "data": json_of(&servers)? })), lines, code: 0 })
}

pub(super) fn server(server: &ServerView) -> Result<Printed, Failure> {
    let mut printed = servers(std::slice::from_ref(server))?;
    printed.json = Some(json_of(server)?);
    Ok(printed)
}

/// A line for each share, and one for each node that has none.
pub(super) fn nodes(nodes: &[NodeView]) -> Result<Printed, Failure> {
    let mut rows = Vec::new();
    for node in nodes {
        let shares: Vec<[String; 3]> = match node.shares.as_slice() {
            [] => vec![["-", "-", "-"].map(str::to_owned)],
            shares => {
                let columns =
                    |of: &ShareView| [of.server.clone(), of.connections.to_string(), of.server_id.to_string()];
                shares.iter().map(columns).collect()
            }
        };
        for [server, connections, server_id] in shares {
            rows.push([
                node.id.to_string(),
                node.host.clone(),
                node.listen.clone().unwrap_or_else(|| "-".to_owned()),
                if node.is_connected { "connected" } else { "not connected" }.to_owned(),
                if node.is_kept { "yes" } else { "-" }.to_owned(),
                node.expires_at.to_rfc3339_opts(SecondsFormat::Secs, true),
                server,
                connections,
                server_id,
            ]);
        }
    }
    let lines = table(
        ["NODE", "HOST", "LISTENS", "MASTER", "NODE_DATA", "EXPIRES", "SERVER", "CONNECTIONS", "SERVER_ID"],
        &rows,
    );
    Ok(Printed { json: Some(serde_json::json!({ "data": json_of(&nodes)? })), lines, code: 0 })
}

pub(super) fn node(node: &NodeView) -> Result<Printed, Failure> {
    let freed = node.shares.iter().map(|of| format!("{} connections of server {}", of.connections, of.server));
    let freed = freed.collect::<Vec<_>>().join(", ");
    let line = if freed.is_empty() { "it had nothing".to_owned() } else { format!("free for the others: {freed}") };
    Ok(Printed::new(json_of(node)?).line(format!("node {} on {} is forgotten; {line}", node.id, node.host)))
}

pub(super) fn stores(stores: &[OpsStoreView], next_cursor: Option<&str>) -> Result<Printed, Failure> {
    let rows: Vec<[String; 4]> = stores
        .iter()
        .map(|store| {
            [
                store.id.to_string(),
                store.status.to_string(),
                store.hostname.clone().unwrap_or_default(),
                store.name.clone(),
            ]
        })
        .collect();
    page(&stores, next_cursor, table(["ID", "STATUS", "HOSTNAME", "NAME"], &rows))
}

pub(super) fn store(store: &OpsStoreView, run: Option<RunView>) -> Result<Printed, Failure> {
    let mut json = json_of(store)?;
    let mut lines = vec![
        format!("{}  {}", store.id, store.name),
        format!(
            "status    {}{}",
            store.status,
            store.status_reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default()
        ),
        format!("hostname  {}", store.hostname.as_deref().unwrap_or("none")),
        format!("created   {}", store.created_at.to_rfc3339()),
    ];
    if let Some(since) = store.credits_owed_since {
        let then = if store.is_read_only { ", and is read-only" } else { "" };
        lines.push(format!("charges   owes credits since {}{then}", since.to_rfc3339()));
    }
    if let Some(run) = run {
        let run = json_of(&run)?;
        lines.push(format!(
            "last run  {} {}",
            run["id"].as_str().unwrap_or_default(),
            run["state"].as_str().unwrap_or_default()
        ));
        for step in run["steps"].as_array().into_iter().flatten() {
            let mut line = format!(
                "  {:<18}{}",
                step["name"].as_str().unwrap_or_default(),
                step["state"].as_str().unwrap_or_default()
            );
            if let Some(error) = step["error"].as_object() {
                let part =
                    |name: &str| error.get(name).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
                line.push_str(&format!("  {}: {} {}", part("code"), part("detail"), part("advice")));
            }
            lines.push(line);
        }
        json["lastRun"] = run;
    }
    Ok(Printed { json: Some(json), lines, code: 0 })
}

pub(super) fn findings(findings: &[Finding]) -> Result<Printed, Failure> {
    let mut lines = Vec::new();
    for finding in findings {
        let mark = if finding.is_ok { "ok  " } else { "FAIL" };
        lines.push(format!("{mark}  {:<12}{}", finding.check, finding.detail));
        if let Some(advice) = finding.advice {
            lines.push(format!("      {:<12}-> {advice}", ""));
        }
    }
    let code = if findings.iter().all(|finding| finding.is_ok) { 0 } else { FOUND };
    Ok(Printed { json: Some(serde_json::json!({ "data": json_of(&findings)? })), lines, code })
}

/// What the doctor found at one database.
pub(super) fn database_report(report: &Report) -> Result<Printed, Failure> {
    let mut lines = Vec::new();
    for check in &report.checks {
        let mark = match check.state {
            CheckState::Passed => "ok  ",
            CheckState::Warning => "warn",
            CheckState::Failed => "FAIL",
            CheckState::Skipped => "-   ",
        };
        let codes = [check.code, check.server_code.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(", ");
        let codes = if codes.is_empty() { codes } else { format!(" ({codes})") };
        let detail = typed(&check.detail);
        lines.push(format!("{mark}  {:<12}{:>6} ms  {detail}{codes}", check.name.as_str(), check.duration_ms));
        lines.extend(check.advice.iter().map(|advice| format!("{:<29}-> {}", "", typed(advice))));
        lines.extend(check.sql.iter().flat_map(|sql| sql.lines()).map(|sql| format!("{:<32}{sql}", "")));
    }
    let code = if report.ok { 0 } else { FOUND };
    Ok(Printed { json: Some(json_of(report)?), lines, code })
}

/// Advice as for who types a command: there a certificate is a file.
pub(super) fn typed(advice: &str) -> String {
    advice.replace("as caPem", "with --ca-file")
}

/// A count in an answer of a node.
fn count(of: &Value, name: &str) -> String {
    of[name].as_u64().unwrap_or_default().to_string()
}

/// The state of a breaker in an answer of a node.
fn breaker(of: &Value) -> String {
    let state = of["state"].as_str().unwrap_or("unknown");
    match (of["cause"].as_str(), of["retry_after_ms"].as_u64()) {
        (Some(cause), Some(ms)) => format!("{state}: {cause}, tried again in {ms} ms"),
        (Some(cause), None) => format!("{state}: {cause}"),
        _ => state.to_owned(),
    }
}

/// What a node tells of its pools.
pub(super) fn pools(seen: Value) -> Printed {
    let node = &seen["node"];
    let rows = |of: &str| seen[of].as_array().cloned().unwrap_or_default();
    let mut lines = vec![format!(
        "{} of {} connections open, {} idle; {} requests wait; {} pools, {} draining; {} leases; {} routes known",
        count(node, "open"),
        count(node, "limit"),
        count(node, "idle"),
        count(node, "waiting"),
        count(node, "pools"),
        count(node, "draining"),
        count(node, "leases"),
        count(node, "routes"),
    )];
    let text = |of: &Value| of.as_str().unwrap_or("-").to_owned();
    let servers: Vec<[String; 5]> = rows("servers")
        .iter()
        .map(|of| {
            [
                text(&of["server_id"]),
                count(of, "open"),
                count(of, "limit"),
                count(of, "waiting"),
                breaker(&of["breaker"]),
            ]
        })
        .collect();
    if !servers.is_empty() {
        lines.push(String::new());
        lines.extend(table(["SERVER", "OPEN", "LIMIT", "WAITING", "BREAKER"], &servers));
    }
    let stores: Vec<[String; 8]> = rows("stores")
        .iter()
        .map(|of| {
            let pool = &of["pool"];
            [
                text(&of["store_id"]),
                text(&of["server_id"]),
                count(pool, "open"),
                count(pool, "idle"),
                count(pool, "opening"),
                count(pool, "waiting"),
                count(pool, "leases"),
                breaker(&of["breaker"]),
            ]
        })
        .collect();
    if !stores.is_empty() {
        lines.push(String::new());
        let head = ["STORE", "SERVER", "OPEN", "IDLE", "OPENING", "WAITING", "LEASES", "BREAKER"];
        lines.extend(table(head, &stores));
    }
    Printed { json: Some(seen), lines, code: 0 }
}

/// What a node knows of a store, in lines.
fn seen_by_node(seen: &Value) -> Vec<String> {
    if seen.is_null() {
        return vec!["node        knows nothing of the store: nobody has asked it".to_owned()];
    }
    let mut lines = Vec::new();
    let route = &seen["route"];
    lines.push(if route.is_null() {
        "node        remembers no route".to_owned()
    } else {
        let outdated = if route["is_outdated"] == true { ", outdated" } else { "" };
        format!("node        route version {}, {} ms old{outdated}", route["version"], count(route, "age_ms"))
    });
    let pool = &seen["pool"];
    lines.push(if pool.is_null() {
        "pool        none".to_owned()
    } else {
        format!(
            "pool        {} open, {} idle, {} opening; {} requests wait; {} leases; {} older pools drain",
            count(pool, "open"),
            count(pool, "idle"),
            count(pool, "opening"),
            count(pool, "waiting"),
            count(pool, "leases"),
            count(seen, "draining"),
        )
    });
    lines.push(format!("breaker     {}", breaker(&seen["breaker"])));
    if !seen["server_breaker"].is_null() {
        lines.push(format!("server      {}", breaker(&seen["server_breaker"])));
    }
    let error = &seen["last_error"];
    if !error.is_null() {
        let code = error["code"].as_str().map(|code| format!(" ({code})")).unwrap_or_default();
        let cause = error["cause"].as_str().unwrap_or("unknown");
        lines.push(format!("last error  {cause}{code}, {} ms ago", count(error, "ago_ms")));
    }
    lines
}

/// What a running node knows of a hostname, while master does not answer.
pub(super) fn explanation_without_master(why: &str, host: &Hostname, seen: &Value) -> Printed {
    let route = &seen["route"];
    let unavailable = "it answers 503 directory-unavailable while it has lost master as well";
    let left = route["stale_for_ms"].as_u64().unwrap_or_default() / 1000;
    let decision = match route["status"].as_str() {
        Some(_) if route["is_overtaken"] == true => {
            format!("the node has heard of a change and not read it yet: {unavailable}")
        }
        Some(_) if left == 0 => format!("what the node knows is too old: {unavailable}"),
        Some("active") if seen["server_limit"] == 0 => {
            "the node has no connection at the store's server: it answers 503 store-busy until master gives it some"
                .to_owned()
        }
        Some("active") => format!("served by the node as it knows it, for {left} s more without master"),
        Some(status) => format!("not served, as the node knows it as {status}, for {left} s more without master"),
        None => format!("the node does not know it: {unavailable}"),
    };
    let mut lines =
        vec![format!("normalized  {host}"), format!("master      {why}"), format!("decision    {decision}")];
    if let Some(store) = seen["store_id"].as_str() {
        lines.push(format!("store       {store}"));
    }
    lines.extend(seen_by_node(seen));
    let json = serde_json::json!({ "normalized": host.as_str(), "master": why, "decision": decision, "node": seen });
    Printed { json: Some(json), lines, code: 0 }
}

/// `seen` is what a node that is running knows of the store, when it answers.
pub(super) fn explanation(
    explanation: &HostExplanation,
    seen: Option<Result<Value, Failure>>,
) -> Result<Printed, Failure> {
    let mut lines = vec![
        format!("given       {}", explanation.given),
        format!("normalized  {}", explanation.normalized),
        match explanation.refusal {
            Some(refusal) => format!("decision    {} ({refusal})", explanation.decision),
            None => format!("decision    {}", explanation.decision),
        },
    ];
    if let Some(store) = &explanation.store {
        lines.push(format!("store       {}  {}  {}", store.id, store.status, store.name));
        if let Some(reason) = &store.status_reason {
            lines.push(format!("reason      {reason}"));
        }
        lines.push(format!("route       version {}, hostnames {}", store.route_version, store.hostnames.join(", ")));
        let version = |version: Option<i64>| version.map_or("none".to_owned(), |version| version.to_string());
        lines.push(format!(
            "schema      {} of wanted {}",
            version(store.schema_version),
            version(store.wanted_schema_version)
        ));
        if let Some(error) = &store.last_run_error {
            lines.push(format!("last run    failed at {error}"));
        }
    }
    if let Some(database) = &explanation.database {
        let state = match (database.is_reachable, database.ailment) {
            (true, None) => "reachable".to_owned(),
            (true, Some(ailment)) => format!("reachable, and the store cannot work there: {ailment}"),
            (false, _) if database.cause.as_deref() == Some("no-share") => {
                "not looked at: all connections to its server are other nodes' shares (`tenantry nodes list`)"
                    .to_owned()
            }
            (false, _) => format!("not reachable: {}", database.cause.as_deref().unwrap_or("unknown")),
        };
        lines.push(format!("database    {state} ({} ms)", database.connect_ms));
    }
    let mut json = json_of(explanation)?;
    match seen {
        Some(Ok(seen)) => {
            lines.extend(seen_by_node(&seen));
            json["node"] = seen;
        }
        Some(Err(failure)) => {
            lines.push(format!("node        {}", failure.why()));
            json["nodeError"] = failure.why().into();
        }
        None => {}
    }
    Ok(Printed { json: Some(json), lines, code: 0 })
}

pub(super) fn import(report: &ImportReport, dry_run: bool) -> Result<Printed, Failure> {
    let json = json_of(report)?;
    let count = |name: &str| json[name].as_u64().unwrap_or_default();
    let verb = if dry_run { "would import" } else { "imported" };
    let mut lines = vec![format!(
        "{verb} {} rows: {} products created, {} updated, {} unchanged, {} failed",
        count("rows"),
        count("productsCreated"),
        count("productsUpdated"),
        count("productsUnchanged"),
        count("productsFailed"),
    )];
    for error in json["errors"].as_array().into_iter().flatten() {
        let part = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        lines.push(format!("line {}, {}: {}", error["line"], part("column"), part("message")));
    }
    let code = if count("productsFailed") > 0 { PARTLY } else { 0 };
    Ok(Printed { json: Some(json), lines, code })
}

/// One decision of the credit ledger.
pub(super) fn credit_transaction(view: &TransactionView, is_new: bool) -> Result<Printed, Failure> {
    let after = view.balance_after.as_ref().map(|after| format!("; {} are available now", after.available));
    let when = if is_new { "" } else { " before, under this key" };
    Ok(Printed::new(json_of(view)?).line(format!(
        "{} of {} credits {}{when}: {}{}",
        view.kind.as_str(),
        view.amount,
        view.status.as_str(),
        view.id,
        after.unwrap_or_default()
    )))
}

/// What an organization has.
pub(super) fn credit_balance(view: &BalanceView) -> Result<Printed, Failure> {
    let amounts = &view.amounts;
    let first = format!(
        "{}: {} available, {} held, {} debt",
        view.organization_id, amounts.available, amounts.held, amounts.debt
    );
    Ok(view.lots.iter().fold(Printed::new(json_of(view)?).line(first), |printed, lot| {
        let expiry = lot.expires_at.map_or_else(|| "never".to_owned(), |at| at.to_rfc3339());
        printed.line(format!(
            "  {} {:<13} {:>12} left of {:<12} held {:<8} expires {expiry}",
            lot.id,
            lot.kind.as_str(),
            lot.remaining,
            lot.granted,
            lot.held
        ))
    }))
}

/// What a store does not have to pay.
pub(super) fn waived(view: &WaivedView) -> Result<Printed, Failure> {
    let line =
        |of: &WaivedChargeView| format!("waived {} credits of {} for {}", of.charge.amount, of.day, of.charge.service);
    let printed = view.waived.iter().fold(Printed::new(json_of(view)?), |printed, of| printed.line(line(of)));
    Ok(printed.line(format!("{} owes {} credits", view.store_id, view.owed)))
}

/// What a service costs.
pub(super) fn charge_price(view: &PriceView) -> Result<Printed, Failure> {
    Ok(Printed::new(json_of(view)?)
        .line(format!("{} costs {} credits for {} from {} on", view.service, view.amount, view.per, view.valid_from)))
}

/// What a service costs, in credits.
pub(super) fn credit_price(price: &Price, is_new: bool) -> Result<Printed, Failure> {
    let Price { service, version, unit, credits, per, valid_from, .. } = price;
    let already = if is_new { "" } else { ", as before" };
    Ok(Printed::new(json_of(price)?).line(format!(
        "{service} (version {version}) costs {credits} credits for {per} {unit} from {} on{already}",
        valid_from.to_rfc3339()
    )))
}

/// A pack that is on sale.
pub(super) fn credit_pack(view: &OpsPackView, is_new: bool) -> Result<Printed, Failure> {
    let pack = &view.pack;
    let already = if is_new { "" } else { ", as before" };
    Ok(Printed::new(json_of(view)?).line(format!(
        "{} (version {}) is on sale: {} credits and {} on top for {} {} in minor units{already}",
        pack.code, pack.version, pack.credits, pack.bonus_credits, pack.price_minor, pack.currency
    )))
}

/// What comparing the books found.
pub(super) fn reconciliation(runs: &[ReconciledView]) -> Result<Printed, Failure> {
    let mut lines = Vec::new();
    for ReconciledView { run, found } in runs {
        let (since, until) = (run.since.to_rfc3339(), run.until.to_rfc3339());
        let kind = run.kind.as_str();
        lines.push(format!("{kind:<8} {} of {} differ, from {since} to before {until}", run.differences, run.items));
        lines.extend(found.iter().map(|difference| format!("FAIL     {}", difference_line(difference))));
    }
    let code = if runs.iter().any(|of| of.run.differences > 0) { FOUND } else { 0 };
    Ok(Printed { json: Some(serde_json::json!({ "data": json_of(&runs)? })), lines, code })
}

/// What the books do not agree on.
pub(super) fn differences(found: &[DifferenceView], next_cursor: Option<&str>) -> Result<Printed, Failure> {
    page(&found, next_cursor, found.iter().map(difference_line).collect())
}

/// One of them.
pub(super) fn difference(of: &DifferenceView) -> Result<Printed, Failure> {
    Ok(Printed::new(json_of(of)?).line(difference_line(of)))
}

fn difference_line(of: &DifferenceView) -> String {
    let side = |says: &Option<serde_json::Value>| says.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    let note = of.note.as_ref().map(|note| format!(" (noted: {note})")).unwrap_or_default();
    let (kind, theirs, ours) = (of.kind.as_str(), side(&of.theirs), side(&of.ours));
    format!("{} {kind} {}: theirs {theirs}, ours {ours}; found {} times{note}", of.id, of.external_ref, of.times)
}

/// What organizations have bought.
pub(super) fn purchases(found: &[OpsPurchaseView], next_cursor: Option<&str>) -> Result<Printed, Failure> {
    let rows: Vec<[String; 7]> = found
        .iter()
        .map(|OpsPurchaseView { purchase, payment_intent, .. }| {
            [
                purchase.id.to_string(),
                purchase.organization_id.to_string(),
                purchase.state.as_str().to_owned(),
                (purchase.credits + purchase.bonus_credits).to_string(),
                format!("{} {}", purchase.amount_minor, purchase.currency),
                purchase.created_at.to_rfc3339_opts(SecondsFormat::Secs, true),
                payment_intent.clone().unwrap_or_default(),
            ]
        })
        .collect();
    page(
        &found,
        next_cursor,
        table(["ID", "ORGANIZATION", "STATE", "CREDITS", "MINOR UNITS", "ORDERED", "PAYMENT"], &rows),
    )
}

/// Events of the payment provider.
pub(super) fn payment_events(found: &[PaymentEventView], next_cursor: Option<&str>) -> Result<Printed, Failure> {
    page(&found, next_cursor, found.iter().map(payment_event_line).collect())
}

/// One of them.
pub(super) fn payment_event(of: &PaymentEventView) -> Result<Printed, Failure> {
    Ok(Printed::new(json_of(of)?).line(payment_event_line(of)))
}

fn payment_event_line(of: &PaymentEventView) -> String {
    let PaymentEventView { id, kind, state, attempts, .. } = of;
    let about = of.object_id.as_deref().map(|id| format!(" of {id}")).unwrap_or_default();
    let why = of.last_error.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    let waits = of.waits_for.as_deref().map(|intent| format!("; waits for {intent}")).unwrap_or_default();
    let next = of.next_attempt_at.map(|at| format!("; tried again at {}", at.to_rfc3339())).unwrap_or_default();
    format!("{id} {kind}{about} is {} after {attempts} attempts{why}{waits}{next}", state.as_str())
}

/// What does not hold of the ledger.
pub(super) fn credit_verification(found: &Verification) -> Result<Printed, Failure> {
    let printed = Printed::new(json_of(found)?);
    if found.violations.is_empty() {
        return Ok(printed.line(format!("every invariant holds; {} sealed roots agree", found.roots_checked)));
    }
    let printed = Printed { code: FOUND, ..printed };
    Ok(found.violations.iter().fold(printed, |printed, violation| {
        let version = violation.version.map_or_else(|| "-".to_owned(), |version| version.to_string());
        printed.line(format!(
            "FAIL {} version {version} invariant {}: {}",
            violation.organization_id, violation.invariant, violation.what
        ))
    }))
}
