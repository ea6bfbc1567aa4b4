//! What the people who run the platform do: find out why a host answers as it does, and what was left behind.

pub mod db;
pub mod routes;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chrono::SecondsFormat;
use futures_util::StreamExt as _;
use kernel::{Hostname, ServerId, StoreId, StoreStatus};
use problem::Problem;
use serde::Serialize;
use tenancy::{Cause, Credential, Explanation, Reach, Reservation, unbroken};
use tenant_schema::fitness::{self, Ailment};
use tokio::time::{Instant, timeout};
use utoipa::ToSchema;

use crate::cx::OpsCx;
use crate::doctor::connections_taken;
use crate::http::errors::chain;
use crate::master;
use crate::provisioning::held::Held;
use crate::provisioning::{self, engine};
use crate::servers;
use crate::shares;
use crate::shares::nodes::{NodeError, NodeView};
use crate::stores::{self, Store};

/// Why an ops operation was refused.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    #[error("{0:?} is no hostname")]
    Hostname(String),
    #[error(transparent)]
    Nodes(#[from] NodeError),
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
    /// What a request with this Host gets: `platform`, `served`, `unavailable`, `closed`, `not-ready` or `unknown-host`.
    pub decision: &'static str,
    /// The status and the code of the refusal, when it is refused, such as `503 store-suspended`.
    pub refusal: Option<&'static str>,
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
    /// A stable code, when it lets us in and the store cannot work there: `tables-missing`, `missing-privilege`, `read-only`.
    pub ailment: Option<&'static str>,
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
        refusal: Some("421 unknown-host"),
        store: None,
        node: None,
        database: None,
    };
    if platform.is_platform(&name) {
        (explanation.decision, explanation.refusal) = ("platform", None);
        return Ok(explanation);
    }
    let mut connection = cx.master.acquire().await?;
    let Some(id) = db::store_of_hostname(&mut connection, name.as_str()).await? else { return Ok(explanation) };
    let Some(store) = stores::db::store_find(&mut connection, id).await? else { return Ok(explanation) };
    (explanation.decision, explanation.refusal) = match store.status {
        StoreStatus::Active => ("served", None),
        StoreStatus::PendingDatabase | StoreStatus::Provisioning => ("not-ready", Some("503 store-not-ready")),
        StoreStatus::Suspended => ("closed", Some("503 store-suspended")),
        StoreStatus::Maintenance => ("closed", Some("503 store-in-maintenance")),
        StoreStatus::Archived | StoreStatus::Deleted => ("unknown-host", Some("421 unknown-host")),
    };
    explanation.store = Some(explain_store(&mut connection, &store).await?);
    let database = provisioning::db::store_database_find(&mut connection, id).await?;
    drop(connection);
    explanation.node = cx.stores.explain(id);
    if let Some(database) = database {
        let (state, is_readable) = try_database(cx, id, &database).await;
        if !is_readable && store.status == StoreStatus::Active {
            (explanation.decision, explanation.refusal) = ("unavailable", Some("503 store-database-unavailable"));
        }
        // That this process was not let in by the others says nothing of those who are.
        if state.cause.as_deref() == Some(Unseen::NoShare.as_str())
            && store.status == StoreStatus::Active
            && !shares::nodes::list(cx).await?.iter().any(|node| node.may_serve_at(database.server_id))
        {
            (explanation.decision, explanation.refusal) = ("unavailable", Some("503 store-busy"));
        }
        explanation.database = Some(state);
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
        is_read_only: store.is_read_only,
        route_version: store.route_version,
        hostnames: crate::hostnames::db::hostnames_of_store(connection, store.id).await?,
        database_kind: database.as_ref().map(|database| database.kind),
        schema_version: database.as_ref().and_then(|database| database.schema_version),
        wanted_schema_version: db::wanted_schema_version(connection, store.id).await?,
        last_run_error: failed
            .map(|step| format!("{}: {}", step.name.as_str(), step.error_code.as_deref().unwrap_or("unknown"))),
    })
}

/// Opens and closes one connection; changes nothing. Also whether visitors can at least look.
async fn try_database(cx: &OpsCx, store: StoreId, database: &provisioning::db::StoreDatabase) -> (DatabaseState, bool) {
    let started = Instant::now();
    let outcome = match tenancy::Credential::open(&cx.keys, &database.sealed, store, database.credential_version) {
        Err(_) => Err(Cause::Sealed.into()),
        Ok(credential) => try_connect(cx, &credential, database.server_id).await,
    };
    let connect_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let is_readable = match outcome {
        Ok(ailment) => ailment.is_none_or(Ailment::leaves_readable),
        Err(unseen) => unseen == Unseen::NoShare,
    };
    let (cause, ailment) = match outcome {
        Ok(ailment) => (None, ailment),
        Err(unseen) => (Some(unseen.as_str().to_owned()), None),
    };
    (
        DatabaseState { is_reachable: cause.is_none(), cause, ailment: ailment.map(Ailment::code), connect_ms },
        is_readable,
    )
}

/// Why nothing is known of a database or a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unseen {
    Cause(Cause),
    /// No connection to the server was to be had: as a rule, as all of them are other nodes' shares.
    NoShare,
}

impl Unseen {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Cause(cause) => cause.as_str(),
            Self::NoShare => "no-share",
        }
    }
}

impl From<Cause> for Unseen {
    fn from(cause: Cause) -> Self {
        Self::Cause(cause)
    }
}

/// What keeps the store from working in its database, if anything does. `server` is where it is, if that is one of ours.
async fn try_connect(cx: &OpsCx, credential: &Credential, server: Option<ServerId>) -> Result<Option<Ailment>, Unseen> {
    let reach = if server.is_some() { Reach::Anywhere } else { cx.owners_reach };
    let limit = cx.limits.store_connect_timeout;
    let place = reserve(cx, server).await?;
    let session = credential.connect(reach, limit).await.map_err(|error| error.cause)?;
    let mut held = Held::new(session, place);
    let found = timeout(limit, unbroken(fitness::ailment_in(&mut held))).await;
    match found {
        Ok(outcome) => {
            held.leave().await;
            outcome.map_err(|error| error.cause.into())
        }
        // The server goes on with it: dropped, what is held waits for that.
        Err(_) => Err(Cause::Timeout.into()),
    }
}

/// A place among what we may have open at a server of ours.
async fn reserve(cx: &OpsCx, server: Option<ServerId>) -> Result<Option<Reservation>, Unseen> {
    let Some(server) = server else { return Ok(None) };
    let reserved = cx.stores.reserve(server, cx.limits.store_connect_timeout).await;
    reserved.map(Some).map_err(|_| Unseen::NoShare)
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
                advice: Some(match error.is_outage() {
                    true => "see that its server runs, and that MASTER_DB_URL leads there",
                    false => "check MASTER_DB_URL, then run `tenantry migrate master`",
                }),
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
    let sealed = db::sealed_credentials(&mut connection).await?;
    let servers = servers::db::servers_all(&mut connection).await?;
    drop(connection);
    if !servers.is_empty() && !servers.iter().any(servers::Server::has_room) {
        findings.push(Finding {
            check: "capacity",
            is_ok: false,
            detail: format!("no server takes new stores: {}", servers::explain_room(&servers, None, None)),
            advice: Some("activate a server that is draining, or add one"),
        });
    }
    let nodes = shares::nodes::list(cx).await?;
    for node in nodes.iter().filter(|node| !node.is_connected && node.shares.iter().any(|of| of.connections > 0)) {
        let held = node.shares.iter().map(|of| format!("{} connections of server {}", of.connections, of.server));
        let held = held.collect::<Vec<_>>().join(", ");
        let until = node.expires_at.to_rfc3339_opts(SecondsFormat::Secs, true);
        findings.push(ok(
            "shares",
            format!("node {} on {} is not connected to master and has {held} until {until}", node.id, node.host),
        ));
    }
    let mut examined = Vec::new();
    for server in servers {
        let seen = examine_server(cx, &server, &nodes).await?;
        examined.push((server, seen));
    }
    findings.extend(twins(&examined));
    let unseen: HashSet<ServerId> =
        examined.iter().filter(|(_, seen)| !seen.is_seen).map(|(server, _)| server.id).collect();
    findings.extend(examined.into_iter().flat_map(|(_, seen)| seen.findings));
    findings.extend(examine_databases(cx, sealed, &unseen).await);
    if findings.iter().all(|finding| finding.is_ok) {
        findings.push(ok("orphans", "no database, role, run or row was left behind".to_owned()));
    }
    Ok(findings)
}

/// How many stores' databases are tried at one time, for how long in all, and how many of those that do not answer are named.
const DATABASES_AT_ONCE: usize = 8;
const DATABASES_TIME: Duration = Duration::from_secs(8);
const DATABASES_SHOWN: usize = 20;
/// How long a server of ours may take to list what it holds.
const SERVER_TIME: Duration = Duration::from_secs(10);

/// Tries the databases of stores that were prepared, each with one connection. What is on a server that could not be looked at
/// is told by that server's finding.
async fn examine_databases(cx: &OpsCx, rows: Vec<db::SealedRow>, unseen: &HashSet<ServerId>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (mut known, mut hidden) = (Vec::new(), 0);
    for db::SealedRow { store, server, is_prepared, version, sealed } in rows {
        match Credential::open(&cx.keys, &sealed, store, version) {
            Ok(_) if !is_prepared => {}
            Ok(_) if server.is_some_and(|id| unseen.contains(&id)) => hidden += 1,
            Ok(credential) => known.push((store, credential, server)),
            Err(_) => findings.push(Finding {
                check: "credentials",
                is_ok: false,
                detail: format!(
                    "the credential of store {store} (version {version}) does not open with the keys given"
                ),
                advice: Some("add the key that sealed it to ENCRYPTION_KEYS"),
            }),
        }
    }
    let (total, mut tried, mut unwell) = (known.len(), 0, Vec::new());
    let tries = known
        .into_iter()
        .map(|(store, credential, server)| async move { (store, try_connect(cx, &credential, server).await) });
    let mut tries = futures_util::stream::iter(tries).buffer_unordered(DATABASES_AT_ONCE);
    let deadline = Instant::now() + DATABASES_TIME;
    while let Ok(Some((store, outcome))) = tokio::time::timeout_at(deadline, tries.next()).await {
        tried += 1;
        unwell.extend(match outcome {
            Ok(None) => None,
            Ok(Some(ailment)) => Some((store, Ok(ailment))),
            Err(cause) => Some((store, Err(cause))),
        });
    }
    let shown = unwell.iter().take(DATABASES_SHOWN).map(|(store, trouble)| match trouble {
        Ok(ailment) => Finding {
            check: "databases",
            is_ok: false,
            detail: format!("the database of store {store} lets us in, and it cannot work there: {}", ailment.code()),
            advice: Some("`tenantry doctor database --store ID` says more, with the statement that helps"),
        },
        Err(Unseen::NoShare) => Finding {
            check: "databases",
            is_ok: false,
            detail: format!(
                "the database of store {store} was not looked at: no connection to its server was to be had"
            ),
            advice: Some("see `tenantry nodes list` for whose they are"),
        },
        Err(Unseen::Cause(cause)) => Finding {
            check: "databases",
            is_ok: false,
            detail: format!("the database of store {store} cannot be reached: {}", cause.as_str()),
            advice: Some(
                "see what its server says; the owner of a brought database gives new credentials with PUT \
                 /api/stores/{id}/database/credentials",
            ),
        },
    });
    findings.extend(shown);
    if unwell.len() > DATABASES_SHOWN {
        findings.push(Finding {
            check: "databases",
            is_ok: false,
            detail: format!("{} more databases cannot be reached, or not used", unwell.len() - DATABASES_SHOWN),
            advice: Some("mend those above, then look again"),
        });
    }
    let mut rest = String::new();
    if tried < total {
        rest.push_str(&format!("; {} were not tried for want of time", total - tried));
    }
    if hidden > 0 {
        rest.push_str(&format!("; {hidden} are on servers that could not be looked at, and were not tried"));
    }
    findings.push(Finding {
        check: "databases",
        is_ok: unwell.is_empty(),
        detail: format!("{} of {tried} stores' databases are well{rest}", tried - unwell.len()),
        advice: (!unwell.is_empty()).then_some("mend those that are named above"),
    });
    findings
}

/// What was seen of a server.
struct SeenServer {
    is_seen: bool,
    system_identifier: Option<String>,
    findings: Vec<Finding>,
}

async fn examine_server(cx: &OpsCx, server: &servers::Server, nodes: &[NodeView]) -> Result<SeenServer, OpsError> {
    let unseen = |check, detail: String, advice| SeenServer {
        is_seen: false,
        system_identifier: None,
        findings: vec![Finding { check, is_ok: false, detail, advice: Some(advice) }],
    };
    let broken = |detail, advice| unseen("server", detail, advice);
    let Ok(credential) = servers::open_credential(cx, server) else {
        return Ok(broken(
            format!("the credential of server {} does not open with the keys given", server.name),
            "add the key that sealed it to ENCRYPTION_KEYS",
        ));
    };
    let entered = async {
        let place = reserve(cx, Some(server.id)).await?;
        let connected = credential.connect(Reach::Anywhere, cx.limits.store_connect_timeout).await;
        connected.map(|admin| (place, admin)).map_err(|error| Unseen::from(error.cause))
    };
    let mut admin = match entered.await {
        Ok((place, admin)) => Held::new(admin, place),
        Err(Unseen::NoShare) => {
            return Ok(unseen(
                "shares",
                format!(
                    "server {} was not looked at: of the {} connections that all nodes may have there this command got none; {}",
                    server.name,
                    server.max_connections,
                    shares::nodes::explain(nodes, &server.name)
                ),
                "see `tenantry nodes list`; `tenantry nodes forget NODE` gives the others what one has that has ended, with --folder-gone if its NODE_DATA is gone",
            ));
        }
        Err(Unseen::Cause(cause)) => {
            return Ok(broken(
                format!("server {} cannot be reached: {}", server.name, cause.as_str()),
                "check that it runs and lets us in",
            ));
        }
    };
    let asked = async {
        let found = engine::names_like_ours(&mut admin).await;
        let taken = connections_taken(&mut admin).await;
        (found, taken, engine::system_identifier(&mut admin).await)
    };
    let Ok((found, taken, system_identifier)) = timeout(SERVER_TIME, asked).await else {
        return Ok(broken(
            format!("server {} does not say in time what it holds", server.name),
            "look for load and locks on it",
        ));
    };
    admin.leave().await;
    let ((databases, roles), taken) = (found?, taken?);
    let mut connection = cx.master.acquire().await?;
    // Read after the server was: a store that is being created meanwhile is known here before it is there. And over all
    // stores: a server that is registered under two names holds the databases of both.
    let names = [databases.as_slice(), &roles].concat();
    let in_use = provisioning::db::names_in_use(&mut connection, &names).await?;
    let mut findings = compare(server, &databases, &roles, &in_use.into_iter().collect());
    if taken < i64::from(server.max_connections) {
        findings.push(Finding {
            check: "limits",
            is_ok: false,
            detail: format!(
                "server {} takes {taken} connections from everybody together, fewer than the {} that nodes may open there",
                server.name, server.max_connections
            ),
            advice: Some(
                "lower the latter with `tenantry servers update SERVER --max-connections N`, and leave some to others; or have \
                 the server take more",
            ),
        });
    }
    Ok(SeenServer { is_seen: true, system_identifier, findings })
}

/// Servers that are one PostgreSQL under two names, from before adding one was refused.
fn twins(examined: &[(servers::Server, SeenServer)]) -> Vec<Finding> {
    let mut seen: HashMap<&str, &str> = HashMap::new();
    let mut findings = Vec::new();
    for (server, SeenServer { system_identifier, .. }) in examined {
        let Some(identifier) = system_identifier else { continue };
        if let Some(first) = seen.insert(identifier, &server.name) {
            findings.push(Finding {
                check: "server",
                is_ok: false,
                detail: format!(
                    "servers {first} and {} are one PostgreSQL, or one is a copy of the other",
                    server.name
                ),
                advice: Some("if they are one, drain one of the two: they share their room and connections"),
            });
        }
    }
    findings
}

fn compare(server: &servers::Server, databases: &[String], roles: &[String], in_use: &HashSet<String>) -> Vec<Finding> {
    let name_of = &server.name;
    let orphan = |kind: &str, name: &String| Finding {
        check: "orphans",
        is_ok: false,
        detail: format!("server {name_of} has a {kind} {name} that no store of this installation has"),
        advice: Some(
            "look at it: another installation that shares the server may have it; drop it by hand if nobody needs it, as we \
             never drop what no store accounts for",
        ),
    };
    let mut findings = vec![Finding {
        check: "server",
        is_ok: true,
        detail: format!("{name_of} answers; {} stores", server.stores),
        advice: None,
    }];
    findings.extend(databases.iter().filter(|name| !in_use.contains(*name)).map(|name| orphan("database", name)));
    findings.extend(roles.iter().filter(|name| !in_use.contains(*name)).map(|name| orphan("role", name)));
    findings
}

impl From<OpsError> for Problem {
    fn from(error: OpsError) -> Self {
        match error {
            OpsError::Hostname(_) => Self::invalid().field("host", "hostname", "is no hostname"),
            OpsError::Nodes(error) => error.into(),
            error @ OpsError::Db(_) => crate::http::errors::unexpected(&error),
        }
    }
}
