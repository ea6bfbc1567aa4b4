//! Log lines and metrics: set up once, by the program.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::MakeWriterExt as _;

use crate::config::{LogArgs, LogFormat};

const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Sends log lines to stderr; stdout belongs to what a command answers.
///
/// # Errors
/// When LOG is no filter.
pub fn init_logs(args: &LogArgs) -> Result<(), tracing_subscriber::filter::ParseError> {
    // sqlx names statements, and statements may hold values: only what fails there is worth a line. What a
    // server has to notify of is its own affair: anybody's server could fill our log.
    let filter: EnvFilter =
        format!("{},sqlx=warn,sqlx::postgres::notice=off,graphile_worker=warn", args.log).parse()?;
    let writer = std::io::stderr.with_max_level(tracing::Level::TRACE);
    let mut builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    if !std::io::stderr().is_terminal() {
        builder = builder.with_ansi(false);
    }
    match args.log_format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// What goes on for the same reason is said again after so long.
const REPEAT: Duration = Duration::from_secs(600);

/// What is said of something that goes on failing: once, until it fails for another reason or all is well again, and now and then.
#[derive(Debug, Default)]
pub struct Complaint(Option<(String, Instant)>);

impl Complaint {
    /// Whether that has not been said yet, or long ago.
    pub fn is_new(&mut self, why: &str) -> bool {
        let is_known = self.0.as_ref().is_some_and(|(known, told)| known == why && told.elapsed() < REPEAT);
        if !is_known {
            self.0 = Some((why.to_owned(), Instant::now()));
        }
        !is_known
    }

    /// All is well. Whether it was not until now.
    pub fn end(&mut self) -> bool {
        self.0.take().is_some()
    }
}

/// The recorder behind `/metrics`. One process has one.
///
/// # Errors
/// When there is one already.
pub fn init_metrics() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        .install_recorder()?;
    describe();
    Ok(handle)
}

fn describe() {
    metrics::describe_counter!("tenantry_http_requests_total", "Requests answered, by route and class of status");
    metrics::describe_histogram!(
        "tenantry_http_request_duration_seconds",
        metrics::Unit::Seconds,
        "Time to answer a request, by route"
    );
    metrics::describe_counter!("tenantry_tls_ask_total", "Answers to the question whether a certificate may be had");
    metrics::describe_counter!("tenantry_provisioning_steps_total", "Provisioning steps finished, by step and result");
    metrics::describe_counter!("tenantry_provisioning_runs_total", "Provisioning runs finished, by result");
    metrics::describe_counter!("tenantry_store_visits_total", "Visits of nodes to stores' databases, by result");
    metrics::describe_gauge!("tenantry_store_visits_failing", "Active stores whose last visit failed");
    metrics::describe_gauge!(
        "tenantry_store_copies_left_out",
        "Active stores whose database has no copy of what they may spend before it is migrated"
    );
    metrics::describe_counter!("tenantry_usage_counts_lost_total", "Requests that were not counted for lack of room");
    metrics::describe_counter!("tenantry_change_log_reads_total", "Times that the log of changes was read to its end");
    metrics::describe_histogram!(
        "tenantry_route_change_seconds",
        metrics::Unit::Seconds,
        "From a change of a store's route to when this node obeys it, by the way it was heard of"
    );
    metrics::describe_gauge!("tenantry_node_data_kept", "1 while what the node knows of routes is kept for a restart");
    metrics::describe_gauge!(
        "tenantry_node_data_routes",
        "Hostnames that were written down when it was last done anew"
    );
    metrics::describe_counter!(
        "tenantry_node_data_outdated_total",
        "Stores of which it was written down that what was written before does not count"
    );
    metrics::describe_gauge!("tenantry_listener_connected", "1 while changes of routes are heard from master");
    metrics::describe_gauge!(
        "tenantry_server_connections_open",
        "Physical connections of this node, by database server"
    );
    metrics::describe_gauge!(
        "tenantry_server_connections_limit",
        "The physical connections that this node may have now, by database server"
    );
    metrics::describe_gauge!(
        "tenantry_server_connections_waiting",
        "Connects that wait for their turn, by database server"
    );
    metrics::describe_gauge!(
        "tenantry_server_shares_renewed",
        "1 while master confirms this node's shares of database servers"
    );
    metrics::describe_gauge!(
        "tenantry_servers_without_share",
        "Database servers that are needed here while all of their connections are other nodes'"
    );
    metrics::describe_gauge!("tenantry_master_connections_open", "Open connections to the master database");
    metrics::describe_gauge!("tenantry_master_connections_idle", "Idle connections to the master database");
}
