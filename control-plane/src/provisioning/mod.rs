//! Provisioning: the durable list of steps that takes a store from `pending_database` to `active`.
//!
//! - Connecting commits the sealed credential, the run and its steps in one transaction, and only then answers 202: a
//!   process killed at any line afterwards has everything it needs in master, and no job carries a secret.
//! - One process works on a run at a time: it holds a session lock in master, which dies with it.
//! - Every step may be done twice, and looks at what is there before it acts. What a step made, its undo removes, and
//!   nothing else: a database of ours, and our schema in an owner's, is dropped only when it bears the mark of this store.
//! - A store is served from the last step on, never earlier. A failed run keeps what it has made, unreachable, until it is
//!   retried or cancelled.

mod connection_string;
pub mod credentials;
pub mod db;
pub mod engine;
pub mod held;
pub mod jobs;
pub mod mysql;
pub mod postgres;
mod refusal;
pub mod remedy;
pub mod routes;
pub mod run;
mod scram;
mod step_error;
pub mod steps;
pub mod target;
pub mod watch;

use chrono::{DateTime, Utc};
use kernel::{DatabaseId, Engine, Ident, RunId, ServerId, StoreId, StoreStatus, UserId};
use problem::Problem;
use secrecy::SecretString;
use tenancy::Credential;

use crate::audit::{self, Actor, Subject};
use crate::cx::OpsCx;
use crate::servers;
use crate::stores::{self, Store};

pub use refusal::advice_on_host;
pub use step_error::{OURS, StepError, transaction_pooler};
pub use steps::StepName;
pub use target::{Target, TargetError};

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl RunState {
    /// Whether nothing more will happen by itself.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Where a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    Pending,
    Running,
    Succeeded,
    Failed,
    Undone,
}

/// Whose database it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum DatabaseKind {
    /// Made by us, on a server that ops registered.
    Managed,
    /// Brought by the owner.
    Brought,
}

/// A run.
#[derive(Debug, Clone)]
pub struct Run {
    pub id: RunId,
    pub store_id: StoreId,
    pub kind: DatabaseKind,
    pub state: RunState,
    /// How often a worker took it up in its whole life: the latest worker is known by it, so it never falls.
    pub attempts: i32,
    /// How many of them it may have before somebody looks at it.
    pub attempts_limit: i32,
    pub is_cancelled: bool,
    pub with_demo: bool,
    pub created_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
}

/// A step of a run.
#[derive(Debug, Clone)]
pub struct Step {
    pub name: StepName,
    pub state: StepState,
    pub attempts: i32,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    pub error_code: Option<String>,
    pub error: Option<String>,
    pub advice: Option<String>,
    pub server_code: Option<String>,
    pub sql: Option<String>,
}

/// A run with its steps, in order.
#[derive(Debug, Clone)]
pub struct RunWithSteps {
    pub run: Run,
    pub steps: Vec<Step>,
}

/// What an owner connects.
pub enum NewDatabase {
    /// One of ours, on the least-filled server of its engine, of `region` when given.
    Managed { engine: Engine, region: Option<String> },
    /// The owner's own.
    Brought(Target),
}

/// Why connecting, retrying or cancelling was refused.
#[derive(Debug, thiserror::Error)]
pub enum ProvisioningError {
    #[error("there is no such store")]
    StoreNotFound,
    #[error("the store has a database")]
    AlreadyConnected,
    #[error("the store is {status}")]
    WrongStatus { status: StoreStatus },
    #[error("another run is preparing the store")]
    InProgress { run: RunId },
    #[error("the last run failed")]
    LastRunFailed { run: RunId },
    #[error("the database is ours, and so are its credentials")]
    Managed,
    #[error(transparent)]
    Refused(Box<StepError>),
    /// As `Refused`, of credentials that were typed as one text.
    #[error(transparent)]
    TextRefused(Box<StepError>),
    #[error("the credentials have been changed meanwhile")]
    CredentialsChanged,
    #[error("no server has room")]
    NoCapacity { engine: Engine },
    #[error("no server is in that region")]
    UnknownRegion,
    #[error("the store has no run")]
    NoRun,
    #[error("the run is {}", state.as_str())]
    WrongRunState { state: RunState, wanted: &'static str },
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

impl From<StepError> for ProvisioningError {
    fn from(error: StepError) -> Self {
        Self::Refused(Box::new(error))
    }
}

/// Connects a database: commits what the run needs, queues it, and returns it. Connecting the same twice at once makes one
/// run.
pub async fn connect(
    cx: &OpsCx,
    actor: Actor,
    store: StoreId,
    wanted: NewDatabase,
    with_demo: bool,
) -> Result<RunWithSteps, ProvisioningError> {
    let (brought, engine, region) = match wanted {
        // Resolving a name takes time that no transaction should wait for; the check step does it again.
        NewDatabase::Brought(target) => {
            let credential = target.resolve(cx.owners_reach).await?;
            let engine = credential.engine;
            (Some(credential), engine, None)
        }
        NewDatabase::Managed { engine, region } => (None, engine, region),
    };
    let kind = if brought.is_some() { DatabaseKind::Brought } else { DatabaseKind::Managed };
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    // The lock on the store is what makes two connects one run.
    let store = stores::db::store_lock(&mut tx, store).await?.ok_or(ProvisioningError::StoreNotFound)?;
    match (store.status, db::run_latest(&mut tx, store.id).await?) {
        (StoreStatus::PendingDatabase, _) => {}
        (StoreStatus::Provisioning, Some(latest)) if !latest.run.state.is_finished() => {
            // A run that is being undone connects nothing.
            let is_the_same = !latest.run.is_cancelled
                && latest.run.with_demo == with_demo
                && latest.run.kind == kind
                && is_what_is_connected(cx, &mut tx, store.id, brought.as_ref(), (engine, region.as_deref())).await?;
            return if is_the_same { Ok(latest) } else { Err(ProvisioningError::InProgress { run: latest.run.id }) };
        }
        // A run that failed before it made anything is simply replaced: that is what correcting a password looks like.
        (StoreStatus::Provisioning, Some(latest))
            if latest.run.state == RunState::Failed && !latest.has_made_something() =>
        {
            db::run_finish(&mut tx, latest.run.id, RunState::Cancelled, now).await?;
            db::store_database_delete(&mut tx, store.id).await?;
        }
        (StoreStatus::Provisioning, Some(latest)) if latest.run.state == RunState::Failed => {
            return Err(ProvisioningError::LastRunFailed { run: latest.run.id });
        }
        (StoreStatus::Active | StoreStatus::Maintenance | StoreStatus::Suspended, _) => {
            return Err(ProvisioningError::AlreadyConnected);
        }
        (status, _) => return Err(ProvisioningError::WrongStatus { status }),
    }

    let database = match &brought {
        None => place_managed(cx, &mut tx, &store, engine, region.as_deref()).await?,
        Some(credential) => seal_brought(cx, &store, credential, now),
    };
    db::store_database_insert(&mut tx, &database, now).await?;
    stores::db::store_set_status(&mut tx, store.id, StoreStatus::Provisioning, None, now).await?;
    let run = Run {
        id: RunId::new(now),
        store_id: store.id,
        kind,
        state: RunState::Queued,
        attempts: 0,
        attempts_limit: run::MAX_ATTEMPTS,
        is_cancelled: false,
        with_demo,
        created_at: now,
        finished_at: None,
    };
    let by = if let Actor::User(user) = actor { Some(user) } else { None };
    db::run_insert(&mut tx, &run, by).await?;
    db::steps_insert(&mut tx, run.id, StepName::of(kind)).await?;
    db::event_insert(&mut tx, run.id, "queued", serde_json::json!({ "state": RunState::Queued }), now).await?;
    let data = serde_json::json!({ "runId": run.id, "kind": kind });
    audit::record(&mut tx, now, actor, "database_connect", Subject::store(store.organization_id, store.id), data)
        .await?;
    jobs::enqueue(&mut tx, run.id).await?;
    let made = db::run_latest(&mut tx, store.id).await?.ok_or(ProvisioningError::NoRun)?;
    tx.commit().await?;
    Ok(made)
}

/// Whether a database could be connected to the store now, for whoever makes one ready elsewhere before; the run that is under
/// way, if one is.
pub async fn check_connectable(cx: &OpsCx, store: StoreId) -> Result<Option<RunWithSteps>, ProvisioningError> {
    let mut master = cx.master.acquire().await?;
    let store = stores::db::store_find(&mut master, store).await?.ok_or(ProvisioningError::StoreNotFound)?;
    match (store.status, db::run_latest(&mut master, store.id).await?) {
        (StoreStatus::PendingDatabase, _) => Ok(None),
        (StoreStatus::Provisioning, Some(latest)) if !latest.run.state.is_finished() => {
            if latest.run.is_cancelled {
                return Err(ProvisioningError::InProgress { run: latest.run.id });
            }
            Ok(Some(latest))
        }
        (StoreStatus::Provisioning, Some(latest)) if latest.run.state == RunState::Failed => {
            if latest.has_made_something() {
                return Err(ProvisioningError::LastRunFailed { run: latest.run.id });
            }
            Ok(None)
        }
        (StoreStatus::Active | StoreStatus::Maintenance | StoreStatus::Suspended, _) => {
            Err(ProvisioningError::AlreadyConnected)
        }
        (status, _) => Err(ProvisioningError::WrongStatus { status }),
    }
}

/// What PostgreSQL keeps of a password of our own making: whoever has it cannot log in with it.
pub fn password_verifier(password: &SecretString) -> Option<String> {
    scram::verifier(password, kernel::random::bytes())
}

/// Takes a failed run up again, from the step that failed.
pub async fn retry(cx: &OpsCx, actor: Actor, store: StoreId) -> Result<RunWithSteps, ProvisioningError> {
    restart(cx, actor, store, "provisioning_retry").await
}

/// Ends a run and undoes what it has made. The store is then as it was before connecting.
pub async fn cancel(cx: &OpsCx, actor: Actor, store: StoreId) -> Result<RunWithSteps, ProvisioningError> {
    restart(cx, actor, store, "provisioning_cancel").await
}

async fn restart(
    cx: &OpsCx,
    actor: Actor,
    store: StoreId,
    action: &'static str,
) -> Result<RunWithSteps, ProvisioningError> {
    let now = cx.clock.now();
    let is_cancel = action == "provisioning_cancel";
    let mut tx = cx.master.begin().await?;
    let store = stores::db::store_lock(&mut tx, store).await?.ok_or(ProvisioningError::StoreNotFound)?;
    let latest = db::run_latest(&mut tx, store.id).await?.ok_or(ProvisioningError::NoRun)?;
    if store.status != StoreStatus::Provisioning
        && !matches!(latest.run.state, RunState::Succeeded | RunState::Cancelled)
    {
        return Err(ProvisioningError::WrongStatus { status: store.status });
    }
    let wanted = if is_cancel { "queued, running or failed" } else { "failed" };
    let is_open = matches!(latest.run.state, RunState::Queued | RunState::Running);
    match latest.run.state {
        RunState::Failed => {}
        // Asking for what already happens changes nothing.
        _ if is_open && is_cancel == latest.run.is_cancelled => return Ok(latest),
        _ if is_open && is_cancel => {}
        state => return Err(ProvisioningError::WrongRunState { state, wanted }),
    }
    // An unwinding that failed goes on unwinding: half-undone work is not taken up again.
    let is_cancelled = is_cancel || latest.run.is_cancelled;
    db::run_requeue(&mut tx, latest.run.id, is_cancelled, run::MAX_ATTEMPTS).await?;
    let kind = if is_cancelled { "cancelling" } else { "retried" };
    db::event_insert(&mut tx, latest.run.id, kind, serde_json::json!({ "state": RunState::Queued }), now).await?;
    let data = serde_json::json!({ "runId": latest.run.id });
    audit::record(&mut tx, now, actor, action, Subject::store(store.organization_id, store.id), data).await?;
    jobs::enqueue(&mut tx, latest.run.id).await?;
    let run = db::run_latest(&mut tx, store.id).await?.ok_or(ProvisioningError::NoRun)?;
    tx.commit().await?;
    Ok(run)
}

/// Ends a run whose undoing failed, and forgets the database without touching it: for one that can no longer be reached. The
/// store is then as it was before connecting; what was made there, the doctor or the owner finds.
pub async fn abandon(cx: &OpsCx, actor: Actor, store: StoreId) -> Result<RunWithSteps, ProvisioningError> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let store = stores::db::store_lock(&mut tx, store).await?.ok_or(ProvisioningError::StoreNotFound)?;
    let latest = db::run_latest(&mut tx, store.id).await?.ok_or(ProvisioningError::NoRun)?;
    if store.status != StoreStatus::Provisioning {
        return Err(ProvisioningError::WrongStatus { status: store.status });
    }
    if latest.run.state != RunState::Failed || !latest.run.is_cancelled {
        return Err(ProvisioningError::WrongRunState { state: latest.run.state, wanted: "cancelled, and then failed" });
    }
    db::store_database_delete(&mut tx, store.id).await?;
    stores::db::store_set_status(&mut tx, store.id, StoreStatus::PendingDatabase, None, now).await?;
    db::run_finish(&mut tx, latest.run.id, RunState::Cancelled, now).await?;
    let data = serde_json::json!({ "state": RunState::Cancelled });
    db::event_insert(&mut tx, latest.run.id, RunState::Cancelled.as_str(), data, now).await?;
    let data = serde_json::json!({ "runId": latest.run.id });
    let subject = Subject::store(store.organization_id, store.id);
    audit::record(&mut tx, now, actor, "provisioning_abandon", subject, data).await?;
    let run = db::run_latest(&mut tx, store.id).await?.ok_or(ProvisioningError::NoRun)?;
    tx.commit().await?;
    Ok(run)
}

/// The last run of a store.
pub async fn latest(cx: &OpsCx, store: StoreId) -> Result<RunWithSteps, ProvisioningError> {
    db::run_latest(&mut *cx.master.acquire().await?, store).await?.ok_or(ProvisioningError::NoRun)
}

impl RunWithSteps {
    /// Whether a step left something behind that would have to be undone.
    fn has_made_something(&self) -> bool {
        let makes = |step: &Step| step.name.makes_something() && step.state != StepState::Pending;
        self.steps.iter().any(makes)
    }

    /// The step that stopped the run.
    pub fn failed_step(&self) -> Option<&Step> {
        self.steps.iter().find(|step| step.state == StepState::Failed)
    }
}

/// Whether the run that is under way prepares this very database: neither a corrected password nor another region is to be
/// taken for a repetition.
async fn is_what_is_connected(
    cx: &OpsCx,
    tx: &mut sqlx::PgConnection,
    store: StoreId,
    brought: Option<&Credential>,
    (engine, region): (Engine, Option<&str>),
) -> Result<bool, sqlx::Error> {
    let Some(known) = db::store_database_find(tx, store).await? else { return Ok(false) };
    if let Some(brought) = brought {
        let opened = Credential::open(&cx.keys, &known.sealed, store, known.credential_version);
        return Ok(opened.is_ok_and(|known| known.is_same(brought)));
    }
    if known.engine != engine {
        return Ok(false);
    }
    let (Some(region), Some(server)) = (region, known.server_id) else { return Ok(true) };
    let server = servers::db::server_find(tx, server).await?;
    Ok(server.is_some_and(|server| server.region.as_deref() == Some(region)))
}

/// The database row of a store, sealed.
pub struct NewStoreDatabase {
    pub id: DatabaseId,
    pub store_id: StoreId,
    pub engine: Engine,
    pub kind: DatabaseKind,
    pub server_id: Option<ServerId>,
    pub database_name: String,
    pub role_name: String,
    pub sealed: vault::Sealed,
    pub credential_version: i32,
}

/// The version of a new credential: higher than that of any that the store had before, because each of them raised the route
/// version when it came. So no pool and no seal of a database that was connected and given up fits the next one.
fn credential_version(store: &Store) -> i32 {
    i32::try_from(store.route_version).unwrap_or(i32::MAX)
}

/// Chooses the least-filled server and makes up the credential that the first step will give to the role.
async fn place_managed(
    cx: &OpsCx,
    tx: &mut sqlx::PgConnection,
    store: &Store,
    engine: Engine,
    region: Option<&str>,
) -> Result<NewStoreDatabase, ProvisioningError> {
    if let Some(region) = region
        && !servers::db::region_exists(tx, region).await?
    {
        return Err(ProvisioningError::UnknownRegion);
    }
    let full = ProvisioningError::NoCapacity { engine };
    let Some(server) = servers::db::server_least_filled(tx, engine, region).await? else { return Err(full) };
    let Ok(admin) = servers::open_credential(cx, &server) else { return Err(full) };
    let name = managed_name(store.id);
    let credential = Credential {
        engine,
        host: admin.host,
        port: admin.port,
        username: name.as_str().to_owned(),
        password: SecretString::from(kernel::random::token()),
        database: name.as_str().to_owned(),
        tls: admin.tls,
        ca_pem: admin.ca_pem,
    };
    Ok(NewStoreDatabase {
        id: DatabaseId::new(cx.clock.now()),
        store_id: store.id,
        engine,
        kind: DatabaseKind::Managed,
        server_id: Some(server.id),
        database_name: credential.database.clone(),
        role_name: credential.username.clone(),
        sealed: credential.seal(&cx.keys, store.id, credential_version(store)),
        credential_version: credential_version(store),
    })
}

fn seal_brought(cx: &OpsCx, store: &Store, credential: &Credential, now: DateTime<Utc>) -> NewStoreDatabase {
    NewStoreDatabase {
        id: DatabaseId::new(now),
        store_id: store.id,
        engine: credential.engine,
        kind: DatabaseKind::Brought,
        server_id: None,
        database_name: credential.database.clone(),
        role_name: credential.username.clone(),
        sealed: credential.seal(&cx.keys, store.id, credential_version(store)),
        credential_version: credential_version(store),
    }
}

/// The name of a managed store's database and of its role: `store_` and the id, which no other store can have.
pub fn managed_name(store: StoreId) -> Ident {
    let id = store.to_string().to_ascii_lowercase();
    let bare = id.split_once('_').map_or(id.as_str(), |(_, bare)| bare);
    Ident::new(format!("store_{bare}")).expect("an id is letters and digits")
}

/// Who asked, as the run keeps it.
pub type RequestedBy = Option<UserId>;

/// The part of a connection in which what a refusal is about was typed.
fn part_of(code: &str) -> &'static str {
    match code {
        "wrong-password" | "no-password" | "password-expired" => "/password",
        "forbidden" | "missing-privilege" | "login-refused" | "account-locked" | "login-connection-limit" => {
            "/username"
        }
        "other-database"
        | "old-database-busy"
        | "schema-too-old"
        | "schema-too-new"
        | "incomplete-copy"
        | "fewer-rows"
        | "missing-database"
        | "database-closed"
        | "database-connection-limit" => "/database",
        "tls" | "tls-required" | "no-tls" => "/tls",
        "unknown-authority" | "self-signed" | "ca-unreadable" => "/caPem",
        _ => "/host",
    }
}

/// Why new credentials are not taken; the code is the one that a failed step would have.
fn refused(error: &StepError, is_text: bool) -> Problem {
    use axum::http::StatusCode as S;
    let status = match error.code {
        "other-database" | "old-database-busy" | "schema-too-old" | "schema-too-new" | "incomplete-copy"
        | "fewer-rows" => S::CONFLICT,
        _ => S::UNPROCESSABLE_ENTITY,
    };
    let pointer = match part_of(error.code) {
        // That one is given beside the text.
        part if is_text && part != "/caPem" => connection_string::AT,
        part => part,
    };
    tracing::debug!(code = error.code, error = crate::http::errors::chain(error), "new credentials were refused");
    let problem = Problem::new(status, error.code, "The database cannot be used with these credentials")
        .detail(format!("{} {}", error.what, error.advice))
        .field(pointer, error.code, &error.what)
        .member("advice", error.advice.as_ref());
    let problem = match error.server_code.as_deref() {
        Some(code) => problem.member("serverCode", code),
        None => problem,
    };
    match error.sql.as_deref() {
        Some(sql) => problem.member("sql", sql),
        None => problem,
    }
}

impl From<ProvisioningError> for Problem {
    fn from(error: ProvisioningError) -> Self {
        use axum::http::StatusCode as S;
        let conflict = |code, title: &'static str, detail: &str| Self::new(S::CONFLICT, code, title).detail(detail);
        match error {
            ProvisioningError::StoreNotFound => Self::not_found(),
            ProvisioningError::AlreadyConnected => conflict(
                "already-connected",
                "The store has a database",
                "A store has one database; it is connected and prepared. Another password, login or address of it, or a copy of it \
                 in another place, is given with PUT /api/stores/{id}/database/credentials; POST /api/stores/{id}/database/test \
                 tells what is wrong with it.",
            ),
            ProvisioningError::WrongStatus { status } => conflict(
                "wrong-store-status",
                "The store's status does not allow this",
                &format!("The store is {status}."),
            )
            .member("storeStatus", status.as_str()),
            ProvisioningError::InProgress { run } => conflict(
                "provisioning-in-progress",
                "Another run is preparing the store",
                "Wait for it, or cancel it with POST /api/stores/{id}/provisioning/cancel.",
            )
            .member("runId", run.to_string()),
            ProvisioningError::LastRunFailed { run } => conflict(
                "provisioning-failed",
                "The last run failed after it had made something",
                "Retry it with POST /api/stores/{id}/provisioning/retry, or undo it with .../cancel and connect again. When that fails \
                 because the database cannot be entered any more, .../cancel?abandon=true forgets it without touching it.",
            )
            .member("runId", run.to_string()),
            ProvisioningError::NoCapacity { engine } => {
                Self::new(S::SERVICE_UNAVAILABLE, "no-capacity", "No database server has room for another store")
                    .detail(format!(
                        "None of our servers for {engine} has any. Bring a database of your own, ask for another engine, or try \
                         again later."
                    ))
                    .retry_after(std::time::Duration::from_secs(300))
            }
            ProvisioningError::UnknownRegion => {
                Self::invalid().field("/region", "unknown", "is no region of this installation; leave it out for any")
            }
            ProvisioningError::Managed => conflict(
                "managed-database",
                "The database is a managed one",
                "Its credentials are made and kept by us: there is nothing to change.",
            ),
            ProvisioningError::Refused(error) => refused(&error, false),
            ProvisioningError::TextRefused(error) => refused(&error, true),
            ProvisioningError::CredentialsChanged => conflict(
                "credentials-changed",
                "Somebody else has just given new credentials",
                "Look whether the store is served with them, and send yours again if it is not.",
            ),
            ProvisioningError::NoRun => Self::not_found(),
            ProvisioningError::WrongRunState { state, wanted } => conflict(
                "wrong-run-state",
                "The run's state does not allow this",
                &format!("The run is {}; it would have to be {wanted}.", state.as_str()),
            )
            .member("state", state.as_str()),
            ProvisioningError::Target(error) => error.into(),
            error @ ProvisioningError::Db(_) => crate::http::errors::unexpected(&error),
        }
    }
}
