//! HTTP of signing in to Supabase.

use axum::Extension;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use chrono::{DateTime, Utc};
use kernel::StoreId;
use problem::{Json, Path, Problem, ProblemBody, Query};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::client::{ListedProject, ProjectStatus};
use super::oauth::Callback;
use super::projects::{is_active, is_paused};
use super::{Connection, ConnectionState, Projects, page};
use crate::cx::Cx;
use crate::http::auth::{MemberOf, OwnerOf};
use crate::http::authority::ClientAddress;
use crate::provisioning::routes::RunEnvelope;
use crate::stores::Store;

pub fn router() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
        .routes(routes!(supabase_get, supabase_disconnect))
        .routes(routes!(supabase_authorize))
        .routes(routes!(supabase_callback))
        .routes(routes!(supabase_complete))
        .routes(routes!(supabase_project_list))
        .routes(routes!(supabase_project_resume))
        .routes(routes!(supabase_connect))
}

const PRIVATE: [(HeaderName, HeaderValue); 1] = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];

/// Where to send whoever consents.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizeView {
    /// A page of Supabase's, to be opened in the browser of whoever begins. It leads back to this installation.
    #[schema(example = "https://api.supabase.com/v1/oauth/authorize?client_id=…")]
    authorize_url: String,
    /// Until when somebody has to consent.
    expires_at: DateTime<Utc>,
}

/// Sign in to Supabase
///
/// Begins a consent for this store. When it was given, the browser gets a completion code, which only whoever began can use, for
/// this store: `POST /api/stores/{id}/supabase/complete`. Beginning again ends what the same person had begun before.
#[utoipa::path(post, path = "/api/stores/{id}/supabase/authorize", tag = "stores", operation_id = "supabase_authorize", security(("bearer" = [])),
    params(("id" = StoreId, Path)),
    responses((status = 201, body = AuthorizeView), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn supabase_authorize(
    owner: OwnerOf<Store>,
    State(cx): State<Cx>,
) -> Result<(StatusCode, [(HeaderName, HeaderValue); 1], Json<AuthorizeView>), Problem> {
    let begun = super::authorize(&cx, owner.by.user.id, owner.store.id).await?;
    let view = AuthorizeView { authorize_url: begun.url.into(), expires_at: begun.expires_at };
    Ok((StatusCode::CREATED, PRIVATE, Json(view)))
}

/// What Supabase leads a browser back with.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what is read without it: nothing that Supabase adds may be in the way")]
struct CallbackQuery {
    state: Option<String>,
    code: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

/// Where Supabase leads back to
///
/// A page with the completion code, or the way on to the console's page with `storeId` and `completionCode` in the fragment; when
/// the consent was denied, with `error`. Nothing is connected by it.
#[utoipa::path(get, path = "/api/supabase/callback", tag = "stores", operation_id = "supabase_callback", params(CallbackQuery),
    responses((status = 200, body = String, content_type = "text/html"), (status = 303),
        (status = 400, body = String, content_type = "text/html")))]
async fn supabase_callback(State(cx): State<Cx>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let mut came = Callback::default();
    for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let value = Some(value.into_owned());
        match &*name {
            "state" => came.state = value,
            "code" => came.code = value.map(SecretString::from),
            "error" => came.error = value,
            "error_description" => came.error_description = value,
            _ => {}
        }
    }
    let returned = super::callback(&cx, came).await?;
    Ok(page::show(&returned, cx.supabase.as_ref().and_then(|supabase| supabase.return_url.as_ref())))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CompleteBody {
    /// What the browser got that consented.
    #[schema(value_type = String, format = Password)]
    completion_code: SecretString,
}

/// Whether we are let in at Supabase.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SupabaseState {
    None,
    Connected,
    /// Supabase lets us in no more: sign in again. A store that is prepared there is served all the same.
    Reauthorize,
}

/// The project that the owner chose.
#[derive(Serialize, ToSchema)]
pub struct ChosenProjectView {
    #[schema(example = "abcdefghijklmnopqrst")]
    r#ref: String,
    name: String,
}

/// What a store may do at Supabase.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SupabaseView {
    /// Whether this installation has an app at Supabase; without one, nobody can sign in there, and a project is connected by its
    /// connection string.
    is_configured: bool,
    state: SupabaseState,
    /// When somebody signed in.
    since: Option<DateTime<Utc>>,
    project: Option<ChosenProjectView>,
}

impl SupabaseView {
    fn of(cx: &Cx, connection: Option<Connection>) -> Self {
        let is_configured = cx.supabase.is_some();
        let Some(connection) = connection else {
            return Self { is_configured, state: SupabaseState::None, since: None, project: None };
        };
        let state = match connection.state {
            ConnectionState::Connected => SupabaseState::Connected,
            ConnectionState::Reauthorize => SupabaseState::Reauthorize,
            ConnectionState::Disconnected => SupabaseState::None,
        };
        let project = connection.project_ref.zip(connection.project_name);
        let project = project.map(|(r#ref, name)| ChosenProjectView { r#ref, name });
        Self { is_configured, state, since: Some(connection.connected_at), project }
    }
}

/// Complete the consent
///
/// By whoever began it, for the store that they began it for, within ten minutes and once.
#[utoipa::path(post, path = "/api/stores/{id}/supabase/complete", tag = "stores", operation_id = "supabase_complete", security(("bearer" = [])),
    params(("id" = StoreId, Path)), request_body = CompleteBody,
    responses((status = 200, body = SupabaseView), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody), (status = 422, body = ProblemBody),
        (status = 502, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn supabase_complete(
    owner: OwnerOf<Store>,
    State(cx): State<Cx>,
    Json(body): Json<CompleteBody>,
) -> Result<Json<SupabaseView>, Problem> {
    let connection = super::complete(&cx, owner.by.user.id, owner.store.id, &body.completion_code).await?;
    Ok(Json(SupabaseView::of(&cx, Some(connection))))
}

/// The connection to Supabase
#[utoipa::path(get, path = "/api/stores/{id}/supabase", tag = "stores", operation_id = "supabase_get", security(("bearer" = [])),
    params(("id" = StoreId, Path)),
    responses((status = 200, body = SupabaseView), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn supabase_get(member: MemberOf<Store>, State(cx): State<Cx>) -> Result<Json<SupabaseView>, Problem> {
    let connection = super::find(&cx, member.store.id).await?;
    Ok(Json(SupabaseView::of(&cx, connection)))
}

/// How a project is, as Supabase says it.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProjectState {
    Active,
    Paused,
    /// It starts, or is being changed.
    NotReady,
    /// Going, gone or broken.
    Unusable,
}

impl From<ProjectStatus> for ProjectState {
    fn from(status: ProjectStatus) -> Self {
        match status {
            ProjectStatus::ActiveHealthy | ProjectStatus::ActiveUnhealthy => Self::Active,
            ProjectStatus::Inactive | ProjectStatus::Pausing | ProjectStatus::PauseFailed => Self::Paused,
            ProjectStatus::ComingUp
            | ProjectStatus::Restoring
            | ProjectStatus::Upgrading
            | ProjectStatus::Restarting
            | ProjectStatus::Resizing => Self::NotReady,
            ProjectStatus::Unknown
            | ProjectStatus::GoingDown
            | ProjectStatus::InitFailed
            | ProjectStatus::Removed
            | ProjectStatus::RestoreFailed
            | ProjectStatus::New => Self::Unusable,
        }
    }
}

/// A project at Supabase.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProjectView {
    #[schema(example = "abcdefghijklmnopqrst")]
    r#ref: String,
    name: String,
    /// The name of its organization.
    organization: String,
    #[schema(example = "eu-central-1")]
    region: String,
    status: ProjectState,
    /// Resume it before it is connected.
    is_paused: bool,
    can_be_connected: bool,
}

impl From<(ListedProject, String)> for ProjectView {
    fn from((project, organization): (ListedProject, String)) -> Self {
        Self {
            r#ref: project.reference,
            name: project.name,
            organization,
            region: project.region,
            status: project.status.into(),
            is_paused: is_paused(project.status),
            can_be_connected: is_active(project.status),
        }
    }
}

/// The projects of whoever signed in.
#[derive(Serialize, ToSchema)]
pub struct ProjectList {
    data: Vec<ProjectView>,
    meta: ProjectListMeta,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProjectListMeta {
    /// Whether there are no others: of twenty organizations, five hundred projects of each are read.
    is_complete: bool,
}

/// The projects of whoever signed in
#[utoipa::path(get, path = "/api/stores/{id}/supabase/projects", tag = "stores", operation_id = "supabase_project_list", security(("bearer" = [])),
    params(("id" = StoreId, Path)),
    responses((status = 200, body = ProjectList), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody), (status = 502, body = ProblemBody),
        (status = 503, body = ProblemBody)))]
async fn supabase_project_list(owner: OwnerOf<Store>, State(cx): State<Cx>) -> Result<Json<ProjectList>, Problem> {
    let Projects { projects, is_complete } = super::list(&cx, owner.store.id).await?;
    let data = projects.into_iter().map(Into::into).collect();
    Ok(Json(ProjectList { data, meta: ProjectListMeta { is_complete } }))
}

/// Which project; the store is the extractor's.
#[derive(Deserialize)]
struct ProjectPath {
    r#ref: String,
}

/// Resume a paused project
///
/// It takes Supabase some minutes; see the list of projects for how it stands.
#[utoipa::path(post, path = "/api/stores/{id}/supabase/projects/{ref}/resume", tag = "stores", operation_id = "supabase_project_resume", security(("bearer" = [])),
    params(("id" = StoreId, Path), ("ref" = String, Path)),
    responses((status = 202), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody), (status = 502, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn supabase_project_resume(
    owner: OwnerOf<Store>,
    State(cx): State<Cx>,
    Path(path): Path<ProjectPath>,
) -> Result<StatusCode, Problem> {
    super::resume(&cx, owner.by.user.id, owner.store.id, &path.r#ref).await?;
    Ok(StatusCode::ACCEPTED)
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SupabaseConnectBody {
    /// The project that the store is to live in: one of the list.
    #[schema(example = "abcdefghijklmnopqrst")]
    project_ref: String,
    /// Fills the store with made-up products.
    demo_products: Option<bool>,
}

/// Connect a project
///
/// Makes a login of our own with a schema `tenantry` in the project's database, touches nothing else there, and begins to prepare
/// the store; watch the run as after `connect-database`. The project is reached at its own host, or through its pooler in session
/// mode where that host has no address that we can reach.
#[utoipa::path(post, path = "/api/stores/{id}/supabase/connect", tag = "stores", operation_id = "supabase_connect", security(("bearer" = [])),
    params(("id" = StoreId, Path)), request_body = SupabaseConnectBody,
    responses((status = 202, body = RunEnvelope), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody), (status = 422, body = ProblemBody),
        (status = 429, body = ProblemBody), (status = 502, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn supabase_connect(
    owner: OwnerOf<Store>,
    Extension(ClientAddress(address)): Extension<ClientAddress>,
    State(cx): State<Cx>,
    Json(body): Json<SupabaseConnectBody>,
) -> Result<(StatusCode, Json<RunEnvelope>), Problem> {
    cx.database_tests.count_one(owner.by.user.id, address)?;
    let demo = body.demo_products.unwrap_or(false);
    let run = super::connect(&cx, owner.by.user.id, owner.store.id, &body.project_ref, demo).await?;
    Ok((StatusCode::ACCEPTED, Json(run.into())))
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DisconnectQuery {
    /// Takes our access to Supabase away and keeps the login and the schema of the store in the project.
    keep_database: Option<bool>,
}

/// Disconnect from Supabase
///
/// Revokes our access, and drops our login in the project. While the store is prepared or served by that login it is a conflict,
/// unless `keepDatabase=true`. When Supabase does not answer, it is revoked as soon as it does.
#[utoipa::path(delete, path = "/api/stores/{id}/supabase", tag = "stores", operation_id = "supabase_disconnect", security(("bearer" = [])),
    params(("id" = StoreId, Path), DisconnectQuery),
    responses((status = 204), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn supabase_disconnect(
    owner: OwnerOf<Store>,
    State(cx): State<Cx>,
    Query(query): Query<DisconnectQuery>,
) -> Result<StatusCode, Problem> {
    super::disconnect(&cx, owner.by.user.id, owner.store.id, query.keep_database.unwrap_or(false)).await?;
    Ok(StatusCode::NO_CONTENT)
}
