//! HTTP of provisioning.

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use kernel::{Engine, RunId, StoreId, text};
use problem::{Json, Problem, ProblemBody, Query};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tenancy::TlsMode;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::credentials::{NewConnection, NewCredentials};
use super::target::{TargetError, TargetFields};
use super::{DatabaseKind, NewDatabase, RunState, RunWithSteps, StepError, StepName, StepState, Target, watch};
use crate::audit::Actor;
use crate::cx::Cx;
use crate::http::auth::{MemberOf, OwnerOf};
use crate::http::authority::ClientAddress;
use crate::stores::Store;
use crate::stores::routes::StoreDetailView;

pub fn router() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
        .routes(routes!(database_connect))
        .routes(routes!(database_credentials_replace))
        .routes(routes!(provisioning_get))
        .routes(routes!(provisioning_watch))
        .routes(routes!(provisioning_retry))
        .routes(routes!(provisioning_cancel))
}

/// The kind of server that holds a store's database. `postgres` is taken for `postgresql`, and `mariadb` for `mysql`, which is what
/// answers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EngineBody {
    /// PostgreSQL.
    #[serde(alias = "postgres")]
    Postgresql,
    /// MySQL or MariaDB.
    #[serde(alias = "mariadb")]
    Mysql,
}

impl From<EngineBody> for Engine {
    fn from(engine: EngineBody) -> Self {
        match engine {
            EngineBody::Postgresql => Self::Postgresql,
            EngineBody::Mysql => Self::Mysql,
        }
    }
}

/// How much of TLS is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TlsModeBody {
    /// None; only where the installation allows it.
    Disable,
    /// Encrypted, to whoever answers.
    Require,
    /// Encrypted, to a holder of a certificate of a trusted authority.
    VerifyCa,
    /// Encrypted, to the host that the certificate names.
    VerifyFull,
}

impl From<TlsModeBody> for TlsMode {
    fn from(mode: TlsModeBody) -> Self {
        match mode {
            TlsModeBody::Disable => Self::Disable,
            TlsModeBody::Require => Self::Require,
            TlsModeBody::VerifyCa => Self::VerifyCa,
            TlsModeBody::VerifyFull => Self::VerifyFull,
        }
    }
}

/// Either `{"managed": true}`, or an engine with a connection string, or an engine with the parts of a connection.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectBody {
    /// Asks for a database of ours.
    #[schema(example = true)]
    managed: Option<bool>,
    /// Where a managed database shall be, as ops named it.
    region: Option<String>,
    /// Of a managed database `postgresql` when left out; a connection string mostly says it itself.
    engine: Option<EngineBody>,
    /// `postgres://user:password@host:5432/database?sslmode=verify-full`, or `mysql://…`; reserved characters percent-encoded. Or
    /// what a driver is given: of JDBC, libpq (`host=… dbname=…`), PDO, ADO.NET or Go, and lines such as `DB_HOST=…` of one file.
    #[schema(value_type = Option<String>, format = Password)]
    connection_string: Option<SecretString>,
    host: Option<String>,
    port: Option<u16>,
    username: Option<String>,
    #[schema(value_type = Option<String>, format = Password)]
    password: Option<SecretString>,
    database: Option<String>,
    /// Left out, here and in the connection string, it is `verify-full`; only a host at a private address, where the
    /// installation allows those and no CA is given, is then spoken to without TLS.
    tls: Option<TlsModeBody>,
    /// The authority that signed the server's certificate, as PEM.
    ca_pem: Option<String>,
    /// Fills the store with made-up products.
    demo_products: Option<bool>,
}

/// Why a body names no database.
pub enum BodyError {
    /// Its members contradict each other, or one is missing.
    Body(Problem),
    /// The connection that it names is not understood.
    Target(TargetError),
}

impl From<TargetError> for BodyError {
    fn from(error: TargetError) -> Self {
        Self::Target(error)
    }
}

impl From<BodyError> for Problem {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Body(problem) => problem,
            BodyError::Target(error) => error.into(),
        }
    }
}

impl ConnectBody {
    /// Whether nothing at all is said.
    pub fn is_empty(&self) -> bool {
        let Self { managed, region, engine, connection_string, host, port, username, password, database, tls, .. } =
            self;
        let has_place = connection_string.is_some() || host.is_some() || port.is_some() || database.is_some();
        let has_login = username.is_some() || password.is_some();
        let has_kind = managed.is_some() || region.is_some() || engine.is_some() || tls.is_some();
        !(has_place || has_login || has_kind || self.ca_pem.is_some() || self.demo_products.is_some())
    }

    /// The database that an owner would bring. A connection that is not understood is no error of the body's.
    ///
    /// # Errors
    /// The problem with the body itself, also when it asks for a managed database.
    pub fn read_brought(self) -> Result<Result<Target, TargetError>, Problem> {
        match self.read() {
            Ok((NewDatabase::Brought(target), _)) => Ok(Ok(target)),
            Ok((NewDatabase::Managed { .. }, _)) => Err(Problem::invalid().field(
                "/managed",
                "contradiction",
                "there is nothing to test of a database that is still to be made; give the connection of yours",
            )),
            Err(BodyError::Target(error)) => Ok(Err(error)),
            Err(BodyError::Body(problem)) => Err(problem),
        }
    }

    fn read(self) -> Result<(NewDatabase, bool), BodyError> {
        let demo = self.demo_products.unwrap_or(false);
        let has_fields = self.host.is_some()
            || self.port.is_some()
            || self.username.is_some()
            || self.password.is_some()
            || self.database.is_some();
        let refused =
            |pointer, detail: &str| Err(BodyError::Body(Problem::invalid().field(pointer, "contradiction", detail)));
        let tls = self.tls.map(Into::into);
        match (self.managed.unwrap_or(false), self.connection_string) {
            (true, None) if !has_fields => {
                let region = self.region.map(|region| text::one_line(&region, 63)).transpose();
                let region =
                    region.map_err(|error| BodyError::Body(Problem::invalid().field("/region", "text", error)))?;
                let engine = self.engine.map_or(Engine::Postgresql, Into::into);
                Ok((NewDatabase::Managed { engine, region }, demo))
            }
            (true, _) => refused("/managed", "a managed database takes no connection of yours"),
            (false, None) if self.engine.is_none() => Err(BodyError::Body(Problem::invalid().field(
                "/engine",
                "required",
                "say {\"managed\": true}, or the engine of your database: postgresql or mysql",
            ))),
            (false, _) if self.region.is_some() => refused("/region", "only a managed database has a region"),
            (false, Some(_)) if has_fields => refused(
                "/connectionString",
                "give the connection string or its parts, not both; what it lacks can be written in it, as \
                     ?user=…&password=…",
            ),
            (false, Some(text)) => {
                let target = Target::from_url(&text, self.engine.map(Into::into), tls, self.ca_pem)?;
                Ok((NewDatabase::Brought(target.for_store()?), demo))
            }
            (false, None) => {
                let Self { engine, host, port, username, password, database, ca_pem, .. } = self;
                let engine = engine.map_or(Engine::Postgresql, Into::into);
                let fields = TargetFields { engine, host, port, username, password, database, tls, ca_pem };
                Ok((NewDatabase::Brought(Target::from_fields(fields)?.for_store()?), demo))
            }
        }
    }
}

/// An engine with a connection string, or with the parts of a connection, as for connecting a database. Or the `password` alone, or with
/// the `username`: the rest stays as it is.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CredentialsBody {
    engine: Option<EngineBody>,
    /// `postgres://user:password@host:5432/database?sslmode=verify-full`, or `mysql://…`; reserved characters percent-encoded. Or
    /// what a driver is given, as for connecting a database.
    #[schema(value_type = Option<String>, format = Password)]
    connection_string: Option<SecretString>,
    host: Option<String>,
    port: Option<u16>,
    username: Option<String>,
    #[schema(value_type = Option<String>, format = Password)]
    password: Option<SecretString>,
    database: Option<String>,
    tls: Option<TlsModeBody>,
    /// The authority that signed the server's certificate, as PEM.
    ca_pem: Option<String>,
    /// Whether a copy may take over though it has fewer rows than the store's database: a backup, which is older.
    allows_fewer_rows: Option<bool>,
}

impl CredentialsBody {
    fn read(self) -> Result<NewCredentials, Problem> {
        let Self {
            engine,
            connection_string,
            host,
            port,
            username,
            password,
            database,
            tls,
            ca_pem,
            allows_fewer_rows,
        } = self;
        let allows_fewer_rows = allows_fewer_rows.unwrap_or_default();
        let names_place = connection_string.is_some() || host.is_some() || port.is_some() || database.is_some();
        let names_way = engine.is_some() || tls.is_some() || ca_pem.is_some();
        let password = match password {
            Some(password) if !(names_place || names_way) => {
                return Ok(NewCredentials {
                    connection: NewConnection::Login { username, password },
                    allows_fewer_rows,
                });
            }
            password => password,
        };
        // A connection string says it itself.
        let engine = engine.or_else(|| connection_string.is_none().then_some(EngineBody::Postgresql));
        let (managed, region, demo_products) = (None, None, None);
        let body = ConnectBody {
            managed,
            region,
            engine,
            connection_string,
            host,
            port,
            username,
            password,
            database,
            tls,
            ca_pem,
            demo_products,
        };
        match body.read()? {
            (NewDatabase::Brought(target), _) => {
                Ok(NewCredentials { connection: NewConnection::Whole(target), allows_fewer_rows })
            }
            (NewDatabase::Managed { .. }, _) => Err(Problem::internal()),
        }
    }
}

/// Why a step failed. The connection's test says the same.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepErrorView {
    code: String,
    detail: String,
    /// What to do.
    advice: String,
    /// What the database's server itself calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    server_code: Option<String>,
    /// Statements for an administrator of the database that help, ready to be copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    sql: Option<String>,
}

impl From<&StepError> for StepErrorView {
    fn from(error: &StepError) -> Self {
        let StepError { code, what, advice, server_code, sql, .. } = error;
        Self {
            code: (*code).to_owned(),
            detail: what.clone(),
            advice: advice.clone().into_owned(),
            server_code: server_code.as_deref().map(str::to_owned),
            sql: sql.as_deref().map(str::to_owned),
        }
    }
}

/// A step of a run.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepView {
    name: StepName,
    state: StepState,
    attempts: i32,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
    error: Option<StepErrorView>,
}

/// A provisioning run.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunView {
    id: RunId,
    store_id: StoreId,
    kind: DatabaseKind,
    state: RunState,
    /// Whether it is being undone, or was.
    is_cancelled: bool,
    attempts: i32,
    created_at: DateTime<Utc>,
    finished_at: Option<DateTime<Utc>>,
    steps: Vec<StepView>,
}

impl From<RunWithSteps> for RunView {
    fn from(RunWithSteps { run, steps }: RunWithSteps) -> Self {
        let steps = steps
            .into_iter()
            .map(|step| StepView {
                name: step.name,
                state: step.state,
                attempts: step.attempts,
                started_at: step.started_at,
                finished_at: step.finished_at,
                error: step.error_code.map(|code| StepErrorView {
                    code,
                    detail: step.error.unwrap_or_default(),
                    advice: step.advice.unwrap_or_default(),
                    server_code: step.server_code,
                    sql: step.sql,
                }),
            })
            .collect();
        Self {
            id: run.id,
            store_id: run.store_id,
            kind: run.kind,
            state: run.state,
            is_cancelled: run.is_cancelled,
            attempts: run.attempts,
            created_at: run.created_at,
            finished_at: run.finished_at,
            steps,
        }
    }
}

/// A run, wrapped as the connecting client expects it.
#[derive(Serialize, ToSchema)]
pub struct RunEnvelope {
    run: RunView,
}

impl From<RunWithSteps> for RunEnvelope {
    fn from(run: RunWithSteps) -> Self {
        Self { run: run.into() }
    }
}

/// Connect a database
///
/// Begins to prepare it and answers at once; watch the run. Connecting the same twice makes one run; connecting anything else
/// while a run prepares the store, or while one is being undone, is a conflict that names that run.
#[utoipa::path(post, path = "/api/stores/{id}/connect-database", tag = "stores", operation_id = "database_connect", security(("bearer" = [])),
    params(("id" = StoreId, Path)), request_body = ConnectBody,
    responses((status = 202, body = RunEnvelope), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody), (status = 429, body = ProblemBody), (status = 422, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn database_connect(
    owner: OwnerOf<Store>,
    Extension(ClientAddress(address)): Extension<ClientAddress>,
    State(cx): State<Cx>,
    Json(body): Json<ConnectBody>,
) -> Result<(StatusCode, Json<RunEnvelope>), Problem> {
    let (wanted, demo) = body.read()?;
    if matches!(wanted, NewDatabase::Brought(_)) {
        cx.database_tests.count_one(owner.by.user.id, address)?;
    }
    let run = super::connect(&cx, Actor::User(owner.by.user.id), owner.store.id, wanted, demo).await?;
    Ok((StatusCode::ACCEPTED, Json(run.into())))
}

/// Give new credentials
///
/// For a database that you brought, when its password, login or address has changed after the store was prepared; before, it is
/// connected again. A new `password` is enough when nothing else has changed. They are tried at once and must lead to a database that holds this store, whose data is not touched. A
/// refusal's `code` says why, as the connection's test does: `wrong-password`, `silent`, `other-database` and so on; beside it
/// stand `advice`, the server's own `serverCode`, and in `sql` what an administrator of the database can run.
///
/// They may lead to another database, too, on the same engine: to a whole copy of the store's, at the same version
/// (`schema-too-old`, `schema-too-new`, `incomplete-copy`), with as many rows of products, orders and customers as there are in
/// the store's unless `allowsFewerRows` says otherwise (`fewer-rows`). The answer comes when the old database is left: requests that were
/// under way in it have ended, or were broken off after some seconds, and what comes later is served out of the new one. We move
/// no data, and leave the old database as it is: make the copy while nobody orders, since what is ordered there afterwards
/// stays there; and take the old login its rights when you have seen the store served, because a node that has just lost its
/// connection to the master database goes on with what it knows for a while. In MySQL, sessions of your own that use the old
/// login in the old database are ended as well.
#[utoipa::path(put, path = "/api/stores/{id}/database/credentials", tag = "stores", operation_id = "database_credentials_replace", security(("bearer" = [])),
    params(("id" = StoreId, Path)), request_body = CredentialsBody,
    responses((status = 200, body = StoreDetailView), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody), (status = 429, body = ProblemBody), (status = 422, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn database_credentials_replace(
    owner: OwnerOf<Store>,
    Extension(ClientAddress(address)): Extension<ClientAddress>,
    State(cx): State<Cx>,
    Json(body): Json<CredentialsBody>,
) -> Result<Json<StoreDetailView>, Problem> {
    let new = body.read()?;
    let _permit = cx.database_tests.admit(owner.by.user.id, address)?;
    let store = super::credentials::replace(&cx, Actor::User(owner.by.user.id), owner.store.id, new).await?;
    Ok(Json(StoreDetailView::read(&cx, store).await))
}

/// The store's last provisioning run
#[utoipa::path(get, path = "/api/stores/{id}/provisioning", tag = "stores", operation_id = "provisioning_get", security(("bearer" = [])),
    params(("id" = StoreId, Path)), responses((status = 200, body = RunEnvelope), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn provisioning_get(member: MemberOf<Store>, State(cx): State<Cx>) -> Result<Json<RunEnvelope>, Problem> {
    let run = super::latest(&cx, member.store.id).await?;
    Ok(Json(run.into()))
}

/// Watch the store's last provisioning run
///
/// Server-sent events `queued`, `step`, `retried`, `cancelling`, and at the end `succeeded`, `failed` or `cancelled`. Resumes
/// after `Last-Event-ID`; 204 when that was the last event of a run that has ended, so that browsers stop reconnecting.
#[utoipa::path(get, path = "/api/stores/{id}/provisioning/events", tag = "stores", operation_id = "provisioning_watch", security(("bearer" = [])),
    params(("id" = StoreId, Path), ("Last-Event-ID" = Option<i64>, Header)),
    responses((status = 200, content_type = "text/event-stream", body = String), (status = 204), (status = 400, body = ProblemBody),
        (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn provisioning_watch(
    member: MemberOf<Store>,
    State(cx): State<Cx>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let after = match headers.get("last-event-id") {
        None => 0,
        Some(value) => value.to_str().ok().and_then(|text| text.trim().parse().ok()).ok_or_else(|| {
            Problem::new(StatusCode::BAD_REQUEST, "invalid-last-event-id", "Last-Event-ID is not valid").field(
                "Last-Event-ID",
                "invalid",
                "send the id of the last event that you have seen",
            )
        })?,
    };
    let run = super::latest(&cx, member.store.id).await?;
    if run.run.state.is_finished() && !watch::has_more(&cx, run.run.id, after).await? {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let stream = watch::stream(cx, run.run.id, after);
    Ok(([("x-accel-buffering", "no"), ("cache-control", "no-store")], stream).into_response())
}

/// Retry the failed run
///
/// Goes on from the step that failed.
#[utoipa::path(post, path = "/api/stores/{id}/provisioning/retry", tag = "stores", operation_id = "provisioning_retry", security(("bearer" = [])),
    params(("id" = StoreId, Path)),
    responses((status = 202, body = RunEnvelope), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody), (status = 429, body = ProblemBody)))]
async fn provisioning_retry(
    owner: OwnerOf<Store>,
    Extension(ClientAddress(address)): Extension<ClientAddress>,
    State(cx): State<Cx>,
) -> Result<(StatusCode, Json<RunEnvelope>), Problem> {
    let RunWithSteps { run, .. } = super::latest(&cx, owner.store.id).await?;
    if run.kind == DatabaseKind::Brought {
        cx.database_tests.count_one(owner.by.user.id, address)?;
    }
    let run = super::retry(&cx, Actor::User(owner.by.user.id), owner.store.id).await?;
    Ok((StatusCode::ACCEPTED, Json(run.into())))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CancelQuery {
    /// Forget the database of a run whose undoing failed.
    abandon: Option<bool>,
}

/// Cancel the run
///
/// Undoes what it has made; the store is then as it was before connecting. When that failed because the database can no longer
/// be reached, `abandon=true` forgets it without touching it.
#[utoipa::path(post, path = "/api/stores/{id}/provisioning/cancel", tag = "stores", operation_id = "provisioning_cancel", security(("bearer" = [])),
    params(("id" = StoreId, Path), CancelQuery),
    responses((status = 202, body = RunEnvelope), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody), (status = 429, body = ProblemBody)))]
async fn provisioning_cancel(
    owner: OwnerOf<Store>,
    Extension(ClientAddress(address)): Extension<ClientAddress>,
    State(cx): State<Cx>,
    Query(query): Query<CancelQuery>,
) -> Result<(StatusCode, Json<RunEnvelope>), Problem> {
    let by = Actor::User(owner.by.user.id);
    let run = if query.abandon.unwrap_or(false) {
        super::abandon(&cx, by, owner.store.id).await?
    } else {
        let RunWithSteps { run, .. } = super::latest(&cx, owner.store.id).await?;
        // What was counted when it was connected is undone once; from then on cancelling is a retry, too.
        if run.kind == DatabaseKind::Brought && run.is_cancelled && run.state == RunState::Failed {
            cx.database_tests.count_one(owner.by.user.id, address)?;
        }
        super::cancel(&cx, by, owner.store.id).await?
    };
    Ok((StatusCode::ACCEPTED, Json(run.into())))
}
