//! What the people who run the platform do: find out why a host answers as it does, and what was left behind.

pub mod db;
pub mod routes;

use std::collections::HashSet;

use kernel::{Hostname, ServerId, StoreId, StoreStatus};
use problem::Problem;
use serde::Serialize;
use sqlx::Connection as _;
use tenancy::Explanation;
use utoipa::ToSchema;

use crate::cx::OpsCx;
use crate::http::errors::chain;
use crate::master;
use crate::provisioning::{self, postgres};
use crate::servers;
use crate::stores::{self, Store};

/// Why an ops operation was refused.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    #[error("{0:?} is no hostname")]
    Hostname(String),
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

/// The whole decision about one hostname.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostExplanation {
    /// What was asked.
    pub given: String,
    /// What it is looked up as.
    pub normalized: String,
    /// What a request with this Host gets: `platform`, `served`, `closed`, `not-ready` or `unknown-host`.
    pub decision: &'static str,
    /// What master knows.
    pub store: Option<ExplainedStore>,
    /// What the answering process remembers: route, pool, breaker, last error.
    #[schema(value_type = Option<Object>)]
    pub node: Option<Explanation>,
    /// Whether the store's database answers now, and why not.
    pub database: Option<DatabaseState>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedStore {
    pub id: StoreId,
    pub name: String,
    pub status: StoreStatus,
    pub status_reason: Option<String>,
    /// Whether carts and checkouts are refused because its charges are unpaid.
    pub is_read_only: bool,
    pub route_version: i64,
    pub hostnames: Vec<String>,
    /// `managed` or `brought`, with its schema's version.
    pub database_kind: Option<provisioning::DatabaseKind>,
    pub schema_version: Option<i64>,
    pub wanted_schema_version: Option<i64>,
    /// The step and the code of the last run, when it failed.
    pub last_run_error: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseState {
    pub is_reachable: bool,
    /// A stable code, when it is not.
    pub cause: Option<String>,
    pub connect_ms: u64,
}

/// Explains what a request with this Host header gets, and why.
pub async fn explain_host(cx: &OpsCx, given: &str) -> Result<HostExplanation, OpsError> {
    let platform =
        crate::http::authority::PlatformHosts::new(&cx.hosts).map_err(|_| OpsError::Hostname(given.to_owned()))?;
    let name = Hostname::from_authority(given.trim()).map_err(|_| OpsError::Hostname(given.to_owned()))?;
    let mut explanation = HostExplanation {
        given: given.to_owned(),
        normalized: name.to_string(),
        decision: "unknown-host",
        store: None,
        node: None,
        database: None,
    };
    if platform.is_platform(&name) {
        explanation.decision = "platform";
        return Ok(explanation);
    }
    let mut connection = cx.master.acquire().await?;
    let Some(id) = db::store_of_hostname(&mut connection, name.as_str()).await? else { return Ok(explanation) };
    let Some(store) = stores::db::store_find(&mut connection, id).await? else { return Ok(explanation) };
    explanation.decision = match store.status {
        StoreStatus::Active => "served",
        StoreStatus::PendingDatabase | StoreStatus::Provisioning => "not-ready",
        StoreStatus::Suspended | StoreStatus::Maintenance => "closed",
        StoreStatus::Archived | StoreStatus::Deleted => "unknown-host",
    };
    explanation.store = Some(explain_store(&mut connection, &store).await?);
    let database = provisioning::db::store_database_find(&mut connection, id).await?;
    drop(connection);
    explanation.node = cx.stores.explain(id).await;
    if let Some(database) = database {
        explanation.database = Some(try_database(cx, id, &database).await);
    }
    Ok(explanation)
}

async fn explain_store(connection: &mut sqlx::PgConnection, store: &Store) -> Result<ExplainedStore, sqlx::Error> {
    let database = provisioning::db::store_database_find(connection, store.id).await?;
    let run = provisioning::db::run_latest(connection, store.id).await?;
    let failed = run.as_ref().and_then(|run| run.failed_step());
    Ok(ExplainedStore {
        id: store.id,
        name: store.name.clone(),
        status: store.status,
        status_reason: store.status_reason.clone(),
        is_read_only: crate::charges::db::store_is_read_only(connection, store.id).await?,
        route_version: store.route_version,
        hostnames: crate::hostnames::db::hostnames_of_store(connection, store.id).await?,
        database_kind: database.as_ref().map(|database| database.kind),
        schema_version: database.as_ref().and_then(|database| database.schema_version),
        wanted_schema_version: db::wanted_schema_version(connection, store.id).await?,
        last_run_error: failed
            .map(|step| format!("{}: {}", step.name.as_str(), step.error_code.as_deref().unwrap_or("unknown"))),
    })
}

/// Opens and closes one connection; changes nothing.
async fn try_database(cx: &OpsCx, store: StoreId, database: &provisioning::db::StoreDatabase) -> DatabaseState {
    let started = tokio::time::Instant::now();
    let outcome = match tenancy::Credential::open(&cx.keys, &database.sealed, store, database.credential_version) {
        Err(_) => Err("sealed".to_owned()),
        Ok(credential) => match credential.connect(cx.limits.store_connect_timeout).await {
            Ok(connection) => {
                if let Err(error) = connection.close().await {
                    tracing::debug!(error = %error, "closing a connection failed");
                }
                Ok(())
            }
            Err(error) => Err(error.cause.as_str().to_owned()),
        },
    };
    let connect_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    DatabaseState { is_reachable: outcome.is_ok(), cause: outcome.err(), connect_ms }
}

/// One thing that the doctor looked at.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    pub is_ok: bool,
    pub detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<&'static str>,
}

/// Looks for what is wrong or left behind: in master, on every registered server, and in the job queue. Changes nothing.
pub async fn doctor(cx: &OpsCx) -> Result<Vec<Finding>, OpsError> {
    let mut findings = Vec::new();
    let ok = |check, detail: String| Finding { check, is_ok: true, detail, advice: None };
    match master::check(&cx.master_args).await {
        Ok(()) => findings.push(ok(
            "master",
            format!("reachable, in session mode, at schema version {} or later", master::wanted_version()),
        )),
        Err(error) => {
            findings.push(Finding {
                check: "master",
                is_ok: false,
                detail: chain(&error),
                advice: Some("check MASTER_DB_URL, then run `tenantry migrate master`"),
            });
            return Ok(findings);
        }
    }
    let mut connection = cx.master.acquire().await?;
    for (id, step) in db::runs_failed(&mut connection).await? {
        findings.push(Finding {
            check: "runs",
            is_ok: false,
            detail: format!("the last run of store {id} failed at {step}"),
            advice: Some("see GET /api/stores/{id}/provisioning; retry or cancel it"),
        });
    }
    for id in db::databases_without_purpose(&mut connection).await? {
        findings.push(Finding {
            check: "rows",
            is_ok: false,
            detail: format!("store {id} has a database row but neither serves nor prepares it"),
            advice: Some("cancel its last run, or connect a database again"),
        });
    }
    drop(connection);
    for (store, version) in unsealable(cx).await? {
        findings.push(Finding {
            check: "credentials",
            is_ok: false,
            detail: format!("the credential of store {store} (version {version}) does not open with the keys given"),
            advice: Some("add the key that sealed it to ENCRYPTION_KEYS"),
        });
    }
    for server in servers::list(cx).await.map_err(|error| match error {
        servers::ServerError::Db(error) => OpsError::Db(error),
        other => OpsError::Db(sqlx::Error::Protocol(other.to_string())),
    })? {
        findings.extend(examine_server(cx, &server).await?);
    }
    if findings.iter().all(|finding| finding.is_ok) {
        findings.push(ok("orphans", "no database, role, run or row was left behind".to_owned()));
    }
    Ok(findings)
}

async fn unsealable(cx: &OpsCx) -> Result<Vec<(StoreId, i32)>, OpsError> {
    let rows = db::sealed_credentials(&mut *cx.master.acquire().await?).await?;
    Ok(rows
        .into_iter()
        .filter(|row| tenancy::Credential::open(&cx.keys, &row.sealed, row.store, row.version).is_err())
        .map(|row| (row.store, row.version))
        .collect())
}

async fn examine_server(cx: &OpsCx, server: &servers::Server) -> Result<Vec<Finding>, OpsError> {
    let broken = |detail: String, advice| vec![Finding { check: "server", is_ok: false, detail, advice: Some(advice) }];
    let Ok(credential) = servers::open_credential(cx, server) else {
        return Ok(broken(
            format!("the credential of server {} does not open with the keys given", server.name),
            "add the key that sealed it to ENCRYPTION_KEYS",
        ));
    };
    let mut admin = match credential.connect(cx.limits.store_connect_timeout).await {
        Ok(admin) => admin,
        Err(error) => {
            return Ok(broken(
                format!("server {} cannot be reached: {}", server.name, error.cause.as_str()),
                "check that it runs and lets us in",
            ));
        }
    };
    let found = postgres::names_like_ours(&mut admin).await;
    if let Err(error) = admin.close().await {
        tracing::debug!(error = %error, "closing a connection failed");
    }
    let (databases, roles) = found?;
    let mut connection = cx.master.acquire().await?;
    // Read after the server was: a store that is being created meanwhile is known here before it is there.
    let known = provisioning::db::managed_names(&mut connection, server.id).await?;
    Ok(compare(server.id, &server.name, &databases, &roles, &known))
}

fn compare(
    _id: ServerId,
    server: &str,
    databases: &[String],
    roles: &[String],
    known: &[(String, String)],
) -> Vec<Finding> {
    let known_databases: HashSet<&str> = known.iter().map(|(database, _)| database.as_str()).collect();
    let known_roles: HashSet<&str> = known.iter().map(|(_, role)| role.as_str()).collect();
    let orphan = |kind: &str, name: &String| Finding {
        check: "orphans",
        is_ok: false,
        detail: format!("server {server} has a {kind} {name} that no store has"),
        advice: Some("look at it, and drop it by hand if nobody needs it: we never drop what no store accounts for"),
    };
    let mut findings = vec![Finding {
        check: "server",
        is_ok: true,
        detail: format!("{server} answers; {} stores", known.len()),
        advice: None,
    }];
    findings.extend(
        databases.iter().filter(|name| !known_databases.contains(name.as_str())).map(|name| orphan("database", name)),
    );
    findings.extend(roles.iter().filter(|name| !known_roles.contains(name.as_str())).map(|name| orphan("role", name)));
    findings
}

impl From<OpsError> for Problem {
    fn from(error: OpsError) -> Self {
        match error {
            OpsError::Hostname(_) => Self::invalid().field("host", "hostname", "is no hostname"),
            error @ OpsError::Db(_) => crate::http::errors::unexpected(&error),
        }
    }
}
