//! Database servers: where managed store databases are created. Registered by ops, with a credential that is sealed at once.

pub mod db;

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use kernel::{Engine, ServerId, text};
use problem::Problem;
use secrecy::SecretString;
use tenancy::{ConnectError, Credential, Reach, Session};
use tokio::time::timeout;
use vault::{Aad, OpenError, Purpose, Sealed};

use crate::audit::{self, Actor, Subject};
use crate::cx::OpsCx;
use crate::doctor::entry;
use crate::http::errors::chain;
use crate::provisioning::held::Held;
use crate::provisioning::{StepError, Target, TargetError, engine};
use crate::shares;

/// Whether new stores are placed on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum ServerStatus {
    Active,
    Draining,
}

/// A server, without its credential.
#[derive(Debug, Clone)]
pub struct Server {
    pub id: ServerId,
    pub name: String,
    pub engine: Engine,
    pub region: Option<String>,
    pub host: String,
    pub port: i32,
    pub status: ServerStatus,
    pub max_stores: i32,
    pub max_connections: i32,
    pub stores: i64,
    pub created_at: DateTime<Utc>,
    sealed: Sealed,
    credential_version: i32,
}

/// A server to be registered.
pub struct NewServer {
    pub name: String,
    /// Must be that of the URL, when given.
    pub engine: Option<Engine>,
    pub url: SecretString,
    /// The authority that signed the server's certificate, when it is not a public one.
    pub ca_pem: Option<String>,
    pub region: Option<String>,
    pub max_stores: i32,
    pub max_connections: i32,
}

/// Why a server operation was refused.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("there is a server of this name")]
    NameTaken,
    #[error("it is registered already, as server {name}")]
    Registered { name: String },
    #[error("there is no such server")]
    NotFound,
    #[error("{detail}")]
    Invalid { pointer: &'static str, code: &'static str, detail: String },
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("the server cannot be used: {what}")]
    Unusable { code: &'static str, what: String },
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Registers a server, after proving that the login can create databases and roles on it.
pub async fn add(cx: &OpsCx, actor: Actor, new: NewServer) -> Result<Server, ServerError> {
    let invalid = |pointer, detail: String| ServerError::Invalid { pointer, code: "invalid", detail };
    let name = text::one_line(&new.name, 63).map_err(|e| invalid("/name", e.to_string()))?;
    let region = new
        .region
        .as_deref()
        .map(|region| text::one_line(region, 63))
        .transpose()
        .map_err(|e| invalid("/region", e.to_string()))?;
    Limits { max_stores: Some(new.max_stores), max_connections: Some(new.max_connections) }.check()?;
    // Ops choose their servers, which usually are at private addresses; owners' databases are another matter.
    let credential = Target::from_url(&new.url, new.engine, None, new.ca_pem)?.resolve(Reach::Anywhere).await?;
    let system_identifier = prove(cx, &credential).await?;
    let now = cx.clock.now();
    let id = ServerId::new(now);
    let version = 1;
    let server = Server {
        id,
        name,
        engine: credential.engine,
        region,
        host: credential.host.clone(),
        port: i32::from(credential.port),
        status: ServerStatus::Active,
        max_stores: new.max_stores,
        max_connections: new.max_connections,
        stores: 0,
        created_at: now,
        sealed: credential.seal_at(&cx.keys, &Aad::for_server(id, Purpose::ServerCredential, version)),
        credential_version: version,
    };
    let mut apart = HashSet::new();
    let mut tx = loop {
        let mut others = match &system_identifier {
            Some(_) => Vec::new(),
            None => db::servers_all(&mut *cx.master.acquire().await?).await?,
        };
        others.retain(|other| other.engine == server.engine && !apart.contains(&other.id));
        // Asked before master is locked: one that does not answer must keep nobody waiting.
        if let Some(twin) = find_twin(cx, &credential, &others).await?
            && twin.name != server.name
        {
            return Err(ServerError::Registered { name: twin.name.clone() });
        }
        apart.extend(others.iter().map(|other| other.id));
        let mut tx = cx.master.begin().await?;
        let twin = db::server_twin_lock(&mut tx, &server.host, server.port, system_identifier.as_deref()).await?;
        if let Some(name) = twin.filter(|name| *name != server.name) {
            return Err(ServerError::Registered { name });
        }
        let is_asked = |other: &Server| other.engine != server.engine || apart.contains(&other.id);
        if system_identifier.is_some() || db::servers_all(&mut tx).await?.iter().all(is_asked) {
            break tx;
        }
        // Somebody has registered one meanwhile, and it might be this.
        tx.rollback().await?;
    };
    db::server_insert(&mut tx, &server, system_identifier.as_deref(), now).await?;
    audit::record(
        &mut tx,
        now,
        actor,
        "server_add",
        Subject::default(),
        serde_json::json!({ "serverId": id, "name": server.name }),
    )
    .await?;
    tx.commit().await?;
    Ok(server)
}

/// Which of these servers the credential leads to as well, for servers that have no name of their own: two sessions at one server
/// see what the other holds. One that cannot be asked is taken for another, as what leads nowhere.
async fn find_twin<'a>(
    cx: &OpsCx,
    credential: &Credential,
    others: &'a [Server],
) -> Result<Option<&'a Server>, ServerError> {
    if others.is_empty() {
        return Ok(None);
    }
    let connected = credential.connect(Reach::Anywhere, CONNECT_TIMEOUT).await;
    let mut session = connected.map_err(|error| ServerError::unreachable(credential, error))?;
    let mut twin = None;
    for other in others {
        match is_same_server(cx, &mut session, other).await {
            Ok(false) => {}
            Ok(true) => {
                twin = Some(other);
                break;
            }
            Err(why) => {
                tracing::warn!(
                    "server {} could not be asked whether it is the one that is being added: {why}",
                    other.name
                );
            }
        }
    }
    engine::leave(session).await;
    Ok(twin)
}

async fn is_same_server(cx: &OpsCx, session: &mut Session, other: &Server) -> Result<bool, String> {
    let credential = open_credential(cx, other).map_err(|error| error.to_string())?;
    let place = cx.stores.reserve(other.id, CONNECT_TIMEOUT).await.map_err(|error| error.to_string())?;
    let connected = credential.connect(Reach::Anywhere, CONNECT_TIMEOUT).await;
    let mut there = Held::new(connected.map_err(|error| error.cause.as_str().to_owned())?, Some(place));
    let asked = timeout(CONNECT_TIMEOUT, engine::is_same_server(session, &mut there)).await;
    let is_same = asked.map_err(|_| "no answer came in time".to_owned())?;
    there.leave().await;
    is_same.map_err(|error| chain(&error))
}

/// Connects as the administrator and asks whether it may do what provisioning needs, and whether its sessions are its own. Returns
/// what the cluster calls itself.
async fn prove(cx: &OpsCx, credential: &Credential) -> Result<Option<String>, ServerError> {
    let mut session = Box::pin(entry::enter(credential, Reach::Anywhere, cx.clock.now())).await?;
    let seen = look_around(credential, &mut session).await;
    engine::leave(session).await;
    let (facts, may_provision, system_identifier) = seen?;
    facts.check(&credential.into())?;
    if may_provision {
        return Ok(system_identifier);
    }
    Err(ServerError::Unusable { code: "missing-privilege", what: needed_rights(facts.engine).to_owned() })
}

/// What the server is, whether the login may do what provisioning needs, and what the cluster calls itself.
async fn look_around(
    credential: &Credential,
    session: &mut Session,
) -> Result<(engine::Facts, bool, Option<String>), ServerError> {
    // First, since whatever else is asked through a transaction pooler may be answered wrongly.
    let sides = credential.check_session_mode(Reach::Anywhere, CONNECT_TIMEOUT).await;
    sides.map_err(|error| ServerError::unreachable(credential, error))?;
    let facts = engine::facts(session).await?;
    let may_provision = engine::may_provision(session).await?;
    Ok((facts, may_provision, engine::system_identifier(session).await))
}

impl ServerError {
    /// No connection as its administrator came about.
    fn unreachable(credential: &Credential, error: ConnectError) -> Self {
        StepError::connecting(credential, error).into()
    }
}

/// What is told to an owner whose database it were, is told to ops.
impl From<StepError> for ServerError {
    fn from(StepError { code, what, advice, sql, .. }: StepError) -> Self {
        let statement = sql.map_or_else(String::new, |sql| format!("\n{sql}"));
        Self::Unusable { code, what: format!("{code}: {what} {advice}{statement}") }
    }
}

const fn needed_rights(engine: Engine) -> &'static str {
    match engine {
        Engine::Mysql => {
            "the login needs CREATE USER and every right on all databases that a store's login gets, and must be able to grant \
             them: GRANT ALL PRIVILEGES ON *.* TO '<login>'@'<host>' WITH GRANT OPTION"
        }
        _ => "the login needs CREATEDB and CREATEROLE, or SUPERUSER",
    }
}

/// What a server is to bear from now on; what is left out stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    pub max_stores: Option<i32>,
    pub max_connections: Option<i32>,
}

impl Limits {
    fn check(self) -> Result<(), ServerError> {
        for (pointer, limit) in [("/maxStores", self.max_stores), ("/maxConnections", self.max_connections)] {
            if limit.is_some_and(|limit| limit < 1) {
                let detail = "must be at least 1".to_owned();
                return Err(ServerError::Invalid { pointer, code: "invalid", detail });
            }
        }
        Ok(())
    }
}

/// Changes what a server bears. Stores that are there stay. Nodes give back at once what they may have open no more, as their requests
/// end; one that has lost master, when its share is over.
pub async fn update(cx: &OpsCx, actor: Actor, name_or_id: &str, limits: Limits) -> Result<Server, ServerError> {
    limits.check()?;
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let id = db::server_set_limits(&mut tx, name_or_id, limits, now).await?.ok_or(ServerError::NotFound)?;
    let server = db::server_find(&mut tx, id).await?.ok_or(ServerError::NotFound)?;
    let details = serde_json::json!({
        "serverId": id,
        "maxStores": server.max_stores,
        "maxConnections": server.max_connections,
    });
    audit::record(&mut tx, now, actor, "server_update", Subject::default(), details).await?;
    shares::tell(&mut tx, id).await?;
    tx.commit().await?;
    Ok(server)
}

/// Stops placing new stores on a server; those that are there stay.
pub async fn drain(cx: &OpsCx, actor: Actor, name_or_id: &str) -> Result<Server, ServerError> {
    set_status(cx, actor, name_or_id, "server_drain", ServerStatus::Draining).await
}

/// Places new stores on a server again.
pub async fn activate(cx: &OpsCx, actor: Actor, name_or_id: &str) -> Result<Server, ServerError> {
    set_status(cx, actor, name_or_id, "server_activate", ServerStatus::Active).await
}

async fn set_status(
    cx: &OpsCx,
    actor: Actor,
    name_or_id: &str,
    action: &'static str,
    status: ServerStatus,
) -> Result<Server, ServerError> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let id = db::server_set_status(&mut tx, name_or_id, status, now).await?.ok_or(ServerError::NotFound)?;
    audit::record(&mut tx, now, actor, action, Subject::default(), serde_json::json!({ "serverId": id })).await?;
    let server = db::server_find(&mut tx, id).await?.ok_or(ServerError::NotFound)?;
    tx.commit().await?;
    Ok(server)
}

/// Every server.
pub async fn list(cx: &OpsCx) -> Result<Vec<Server>, ServerError> {
    Ok(db::servers_all(&mut *cx.master.acquire().await?).await?)
}

/// What each server says to a new store of `engine` and `region`, for ops: owners are told no more than that there is no room.
pub fn explain_room(servers: &[Server], engine: Option<Engine>, region: Option<&str>) -> String {
    let of = |server: &Server| {
        let Server { name, stores, max_stores, .. } = server;
        if engine.is_some_and(|engine| engine != server.engine) {
            format!("{name} is {}", server.engine)
        } else if region.is_some() && server.region.as_deref() != region {
            format!("{name} is in {}", server.region.as_deref().unwrap_or("no region"))
        } else if server.status == ServerStatus::Draining {
            format!("{name} is draining (`tenantry servers activate {name}` ends that)")
        } else if !server.has_room() {
            format!("{name} is full ({stores} of {max_stores} stores)")
        } else {
            format!("{name} has room ({stores} of {max_stores} stores)")
        }
    };
    if servers.is_empty() {
        return "none is registered (`tenantry servers add`)".to_owned();
    }
    servers.iter().map(of).collect::<Vec<_>>().join("; ")
}

impl Server {
    /// Whether new stores are placed on it.
    pub fn has_room(&self) -> bool {
        self.status == ServerStatus::Active && self.stores < i64::from(self.max_stores)
    }
}

/// The credential of a server's administrator.
pub fn open_credential(cx: &OpsCx, server: &Server) -> Result<Credential, OpenError> {
    let aad = Aad::for_server(server.id, Purpose::ServerCredential, server.credential_version);
    Credential::open_at(&cx.keys, &server.sealed, &aad)
}

impl From<ServerError> for Problem {
    fn from(error: ServerError) -> Self {
        use axum::http::StatusCode as S;
        match error {
            ServerError::NameTaken => Self::new(S::CONFLICT, "server-name-taken", "There is a server of this name")
                .field("/name", "taken", "is in use"),
            error @ ServerError::Registered { .. } => {
                Self::new(S::CONFLICT, "server-registered", "The server is registered already")
                    .detail(format!("{error}. One cluster is one server, whatever address leads to it."))
                    .field("/url", "taken", "leads to a server that is registered")
            }
            ServerError::NotFound => Self::not_found(),
            ServerError::Invalid { pointer, code, detail } => Self::invalid().field(pointer, code, detail),
            ServerError::Target(TargetError::Invalid { pointer, code, detail }) => {
                let pointer = if pointer == "/caPem" { pointer } else { "/url" };
                Self::invalid().field(pointer, code, detail)
            }
            ServerError::Target(TargetError::Unresolvable) => {
                Self::invalid().field("/url", "unresolvable", "the host's name does not resolve; check its spelling")
            }
            ServerError::Target(error @ (TargetError::PrivateAddress | TargetError::PlainRefused)) => error.into(),
            ServerError::Unusable { code, what } => Self::invalid().field("/url", code, what),
            error @ ServerError::Db(_) => crate::http::errors::unexpected(&error),
        }
    }
}
