//! HTTP of ops: what the CLI does, with the platform role.

use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use kernel::{Engine, OrganizationId, ServerId, StoreId, StoreStatus};
use problem::{Json, Path, Problem, ProblemBody, Query};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Finding, HostExplanation};
use crate::audit::Actor;
use crate::cx::Cx;
use crate::http::auth::Ops;
use crate::identity;
use crate::identity::routes::UserView;
use crate::provisioning::routes::EngineBody;
use crate::servers::{self, Limits, NewServer, Server, ServerStatus};
use crate::shares::nodes::{self, NodeView};
use crate::stores::{self, Store};

pub fn router() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
        .routes(routes!(ops_server_list, ops_server_add))
        .routes(routes!(ops_server_update))
        .routes(routes!(ops_server_drain))
        .routes(routes!(ops_server_activate))
        .routes(routes!(ops_node_list))
        .routes(routes!(ops_node_forget))
        .routes(routes!(ops_admin_grant))
        .routes(routes!(ops_admin_revoke))
        .routes(routes!(ops_store_list))
        .routes(routes!(ops_store_get))
        .routes(routes!(ops_store_suspend))
        .routes(routes!(ops_store_resume))
        .routes(routes!(ops_host_explain))
        .routes(routes!(ops_doctor))
}

/// A page of a list.
#[derive(Serialize, ToSchema)]
pub struct Page<T> {
    pub data: Vec<T>,
    pub meta: PageMeta,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PageMeta {
    /// Give it as `cursor` to get the next page; null on the last one.
    pub next_cursor: Option<String>,
}

impl<T> Page<T> {
    pub fn whole(data: Vec<T>) -> Self {
        Self { data, meta: PageMeta { next_cursor: None } }
    }
}

/// A database server, without its credential.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerView {
    pub id: ServerId,
    pub name: String,
    pub engine: Engine,
    pub region: Option<String>,
    pub host: String,
    pub port: i32,
    pub status: ServerStatus,
    /// How many stores are on it.
    pub stores: i64,
    pub max_stores: i32,
    pub max_connections: i32,
    pub created_at: DateTime<Utc>,
}

impl From<Server> for ServerView {
    fn from(server: Server) -> Self {
        Self {
            id: server.id,
            name: server.name,
            engine: server.engine,
            region: server.region,
            host: server.host,
            port: server.port,
            status: server.status,
            stores: server.stores,
            max_stores: server.max_stores,
            max_connections: server.max_connections,
            created_at: server.created_at,
        }
    }
}

/// Database servers
#[utoipa::path(get, path = "/api/ops/servers", tag = "ops", operation_id = "ops_server_list", security(("bearer" = [])),
    responses((status = 200, body = Page<ServerView>), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn ops_server_list(_ops: Ops, State(cx): State<Cx>) -> Result<Json<Page<ServerView>>, Problem> {
    let servers = servers::list(&cx).await?;
    Ok(Json(Page::whole(servers.into_iter().map(Into::into).collect())))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerAddBody {
    #[schema(example = "eu-1")]
    name: String,
    /// Left out, the URL says it.
    engine: Option<EngineBody>,
    /// The administrator's: `postgres://admin:password@host:5432/postgres`, or `mysql://…/mysql`. It is sealed at once. Without an `sslmode`, a
    /// host at a private address is spoken to without TLS, and any other as with `sslmode=verify-full`.
    #[schema(value_type = String, format = Password)]
    url: SecretString,
    /// The authority that signed the server's certificate, when it is not a public one, as PEM.
    ca_pem: Option<String>,
    region: Option<String>,
    #[serde(default = "default_max_stores")]
    max_stores: i32,
    /// Connections of all nodes together.
    #[serde(default = "default_max_connections")]
    max_connections: i32,
}

pub const fn default_max_stores() -> i32 {
    1000
}

pub const fn default_max_connections() -> i32 {
    80
}

/// Register a database server
///
/// Proves first that the login can create databases and roles.
#[utoipa::path(post, path = "/api/ops/servers", tag = "ops", operation_id = "ops_server_add", security(("bearer" = [])), request_body = ServerAddBody,
    responses((status = 201, body = ServerView), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn ops_server_add(
    ops: Ops,
    State(cx): State<Cx>,
    Json(body): Json<ServerAddBody>,
) -> Result<(StatusCode, Json<ServerView>), Problem> {
    let ServerAddBody { name, engine, url, ca_pem, region, max_stores, max_connections } = body;
    let engine = engine.map(Into::into);
    let new = NewServer { name, engine, url, ca_pem, region, max_stores, max_connections };
    let server = servers::add(&cx, Actor::User(ops.by.user.id), new).await?;
    Ok((StatusCode::CREATED, Json(server.into())))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerUpdateBody {
    /// Stores that are there stay, also when there are more.
    max_stores: Option<i32>,
    /// Connections of all nodes together.
    max_connections: Option<i32>,
}

/// Change what a database server bears
///
/// What is left out stays. When fewer connections are left, nodes close what they may have open no more as soon as it is not in use,
/// and one that has lost its way to master at its share's `expiresAt`.
#[utoipa::path(patch, path = "/api/ops/servers/{server}", tag = "ops", operation_id = "ops_server_update", security(("bearer" = [])),
    params(("server" = String, Path, description = "Name or id")), request_body = ServerUpdateBody,
    responses((status = 200, body = ServerView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody),
        (status = 422, body = ProblemBody)))]
async fn ops_server_update(
    ops: Ops,
    State(cx): State<Cx>,
    Path(server): Path<String>,
    Json(body): Json<ServerUpdateBody>,
) -> Result<Json<ServerView>, Problem> {
    let limits = Limits { max_stores: body.max_stores, max_connections: body.max_connections };
    let server = servers::update(&cx, Actor::User(ops.by.user.id), &server, limits).await?;
    Ok(Json(server.into()))
}

/// Stop placing stores on a server
#[utoipa::path(post, path = "/api/ops/servers/{server}/drain", tag = "ops", operation_id = "ops_server_drain", security(("bearer" = [])),
    params(("server" = String, Path, description = "Name or id")),
    responses((status = 200, body = ServerView), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn ops_server_drain(
    ops: Ops,
    State(cx): State<Cx>,
    Path(server): Path<String>,
) -> Result<Json<ServerView>, Problem> {
    let server = servers::drain(&cx, Actor::User(ops.by.user.id), &server).await?;
    Ok(Json(server.into()))
}

/// Place stores on a drained server again
#[utoipa::path(post, path = "/api/ops/servers/{server}/activate", tag = "ops", operation_id = "ops_server_activate", security(("bearer" = [])),
    params(("server" = String, Path, description = "Name or id")),
    responses((status = 200, body = ServerView), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn ops_server_activate(
    ops: Ops,
    State(cx): State<Cx>,
    Path(server): Path<String>,
) -> Result<Json<ServerView>, Problem> {
    let server = servers::activate(&cx, Actor::User(ops.by.user.id), &server).await?;
    Ok(Json(server.into()))
}

/// Nodes, and what each may have open at database servers
///
/// A node is a serving process, or a command at work.
#[utoipa::path(get, path = "/api/ops/nodes", tag = "ops", operation_id = "ops_node_list", security(("bearer" = [])),
    responses((status = 200, body = Page<NodeView>), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn ops_node_list(_ops: Ops, State(cx): State<Cx>) -> Result<Json<Page<NodeView>>, Problem> {
    Ok(Json(Page::whole(nodes::list(&cx).await?)))
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub struct NodeForgetQuery {
    /// That its folder (`NODE_DATA`) is gone as well, so that no process will go on with what it says. Needed of a node that `isKept`.
    folder_gone: Option<bool>,
}

/// Give the others what a node has that has ended
///
/// Without it they wait until `expiresAt`. Only of a process that has ended for certain: one that has lost its way to master serves on
/// with what it had, and its servers may then get more connections than they bear.
#[utoipa::path(post, path = "/api/ops/nodes/{node}/forget", tag = "ops", operation_id = "ops_node_forget", security(("bearer" = [])),
    params(("node" = i32, Path, description = "Its number in the list"), NodeForgetQuery),
    responses((status = 200, body = NodeView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody)))]
async fn ops_node_forget(
    ops: Ops,
    State(cx): State<Cx>,
    Path(node): Path<i32>,
    Query(query): Query<NodeForgetQuery>,
) -> Result<Json<NodeView>, Problem> {
    let is_folder_gone = query.folder_gone.unwrap_or_default();
    Ok(Json(nodes::forget(&cx, Actor::User(ops.by.user.id), node, is_folder_gone).await?))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdminBody {
    /// Of somebody who is registered. In the body, because paths are logged.
    #[schema(example = "ada@example.com")]
    email: String,
}

/// Give somebody the platform role
#[utoipa::path(post, path = "/api/ops/admins/grant", tag = "ops", operation_id = "ops_admin_grant", security(("bearer" = [])), request_body = AdminBody,
    responses((status = 200, body = UserView), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn ops_admin_grant(
    ops: Ops,
    State(cx): State<Cx>,
    Json(body): Json<AdminBody>,
) -> Result<Json<UserView>, Problem> {
    Ok(Json(identity::admin_grant(&cx, Actor::User(ops.by.user.id), &body.email).await?.into()))
}

/// Take the platform role from somebody
///
/// The last one keeps it.
#[utoipa::path(post, path = "/api/ops/admins/revoke", tag = "ops", operation_id = "ops_admin_revoke", security(("bearer" = [])), request_body = AdminBody,
    responses((status = 200, body = UserView), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn ops_admin_revoke(
    ops: Ops,
    State(cx): State<Cx>,
    Json(body): Json<AdminBody>,
) -> Result<Json<UserView>, Problem> {
    Ok(Json(identity::admin_revoke(&cx, Actor::User(ops.by.user.id), &body.email).await?.into()))
}

/// A store, as ops see it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OpsStoreView {
    pub id: StoreId,
    pub organization_id: OrganizationId,
    pub name: String,
    pub slug: String,
    pub status: StoreStatus,
    pub status_reason: Option<String>,
    /// Whether carts and checkouts are refused because its charges are unpaid. Its pages are served all the same.
    pub is_read_only: bool,
    /// Since when it owes credits; null when it owes nothing.
    pub credits_owed_since: Option<DateTime<Utc>>,
    pub hostname: Option<String>,
    pub route_version: i64,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl From<Store> for OpsStoreView {
    fn from(store: Store) -> Self {
        let Store {
            id,
            organization_id,
            name,
            slug,
            status,
            status_reason,
            is_read_only,
            owed_since: credits_owed_since,
            hostname,
            route_version,
            created_at,
            updated_at,
        } = store;
        Self {
            id,
            organization_id,
            name,
            slug,
            status,
            status_reason,
            is_read_only,
            credits_owed_since,
            hostname,
            route_version,
            created_at,
            updated_at,
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OpsStoreListQuery {
    /// 1 to 100.
    limit: Option<u8>,
    cursor: Option<String>,
    status: Option<StoreStatus>,
}

/// Every store, newest first
#[utoipa::path(get, path = "/api/ops/stores", tag = "ops", operation_id = "ops_store_list", security(("bearer" = [])), params(OpsStoreListQuery),
    responses((status = 200, body = Page<OpsStoreView>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn ops_store_list(
    _ops: Ops,
    State(cx): State<Cx>,
    Query(query): Query<OpsStoreListQuery>,
) -> Result<Json<Page<OpsStoreView>>, Problem> {
    let (stores, next_cursor) = stores::list_all(&cx, query.status, query.cursor.as_deref(), query.limit).await?;
    Ok(Json(Page { data: stores.into_iter().map(Into::into).collect(), meta: PageMeta { next_cursor } }))
}

/// One store
#[utoipa::path(get, path = "/api/ops/stores/{store}", tag = "ops", operation_id = "ops_store_get", security(("bearer" = [])),
    params(("store" = StoreId, Path)), responses((status = 200, body = OpsStoreView), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn ops_store_get(
    _ops: Ops,
    State(cx): State<Cx>,
    Path(store): Path<StoreId>,
) -> Result<Json<OpsStoreView>, Problem> {
    Ok(Json(stores::find(&cx, store).await?.into()))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SuspendBody {
    /// Kept in the audit trail and shown to the owner.
    reason: String,
}

/// Suspend a store
///
/// Its storefront answers 503 from then on.
#[utoipa::path(post, path = "/api/ops/stores/{store}/suspend", tag = "ops", operation_id = "ops_store_suspend", security(("bearer" = [])),
    params(("store" = StoreId, Path)), request_body = SuspendBody,
    responses((status = 200, body = OpsStoreView), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
async fn ops_store_suspend(
    ops: Ops,
    State(cx): State<Cx>,
    Path(store): Path<StoreId>,
    Json(body): Json<SuspendBody>,
) -> Result<Json<OpsStoreView>, Problem> {
    Ok(Json(stores::suspend(&cx, Actor::User(ops.by.user.id), store, &body.reason).await?.into()))
}

/// Open a suspended store again
#[utoipa::path(post, path = "/api/ops/stores/{store}/resume", tag = "ops", operation_id = "ops_store_resume", security(("bearer" = [])),
    params(("store" = StoreId, Path)),
    responses((status = 200, body = OpsStoreView), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
async fn ops_store_resume(
    ops: Ops,
    State(cx): State<Cx>,
    Path(store): Path<StoreId>,
) -> Result<Json<OpsStoreView>, Problem> {
    Ok(Json(stores::resume(&cx, Actor::User(ops.by.user.id), store).await?.into()))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ExplainQuery {
    /// As a Host header would name it.
    host: String,
}

/// Why a hostname answers as it does
#[utoipa::path(get, path = "/api/ops/explain/host", tag = "ops", operation_id = "ops_host_explain", security(("bearer" = [])), params(ExplainQuery),
    responses((status = 200, body = HostExplanation), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn ops_host_explain(
    _ops: Ops,
    State(cx): State<Cx>,
    Query(query): Query<ExplainQuery>,
) -> Result<Json<HostExplanation>, Problem> {
    Ok(Json(super::explain_host(&cx, &query.host).await?))
}

/// What is wrong or left behind
#[utoipa::path(get, path = "/api/ops/doctor", tag = "ops", operation_id = "ops_doctor", security(("bearer" = [])),
    responses((status = 200, body = Page<Finding>), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn ops_doctor(_ops: Ops, State(cx): State<Cx>) -> Result<Json<Page<Finding>>, Problem> {
    Ok(Json(Page::whole(super::doctor(&cx).await?)))
}
