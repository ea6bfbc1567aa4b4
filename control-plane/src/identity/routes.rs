//! HTTP of identity.

use axum::extract::{FromRequestParts, RawPathParams, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use kernel::{OrganizationId, StoreId, UserId};
use problem::{Json, Problem, ProblemBody, Query};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Member, MemberRole, Membership, NewUser, Principal, Tokens, User};
use crate::cx::Cx;
use crate::http::auth::{Person, RateLimited};
use crate::ops::routes::{Page, PageMeta};
use crate::stores::routes::StoreView;

pub fn router() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
        .routes(routes!(auth_register))
        .routes(routes!(auth_login))
        .routes(routes!(auth_refresh))
        .routes(routes!(auth_logout))
        .routes(routes!(auth_me))
        .routes(routes!(organization_member_list))
}

/// A person.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserView {
    pub id: UserId,
    pub email: String,
    pub first_name: String,
    pub last_name: String,
    /// `admin` for people who run the platform.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform_role: Option<String>,
}

impl From<User> for UserView {
    fn from(user: User) -> Self {
        let User { id, email, first_name, last_name, platform_role } = user;
        Self { id, email, first_name, last_name, platform_role }
    }
}

/// An organization and your role in it.
#[derive(Serialize, ToSchema)]
pub struct OrganizationView {
    pub id: OrganizationId,
    pub name: String,
    pub role: MemberRole,
}

impl From<Membership> for OrganizationView {
    fn from(Membership { id, name, role }: Membership) -> Self {
        Self { id, name, role }
    }
}

/// What to act with.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokensView {
    /// Send it as `Authorization: Bearer …`.
    pub access_token: String,
    /// Good for one use at `/api/auth/refresh`.
    pub refresh_token: String,
    /// Seconds until the access token expires.
    pub expires_in: u64,
}

impl From<Tokens> for TokensView {
    fn from(tokens: Tokens) -> Self {
        Self {
            access_token: tokens.access.expose_secret().to_owned(),
            refresh_token: tokens.refresh.expose_secret().to_owned(),
            expires_in: tokens.expires_in.as_secs(),
        }
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegisterBody {
    #[schema(example = "ada@example.com")]
    email: String,
    #[schema(value_type = String, format = Password, min_length = 8, max_length = 256)]
    password: SecretString,
    #[schema(example = "Ada")]
    first_name: String,
    #[schema(example = "Lovelace")]
    last_name: String,
    /// Creates a first store of this name.
    #[schema(example = "Ada's Tea")]
    store_name: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct RegisteredView {
    user: UserView,
    organization: OrganizationView,
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<StoreView>,
    tokens: TokensView,
}

/// Register
///
/// Creates you, your organization and, when `storeName` is given, your first store, all or nothing, and signs you in.
#[utoipa::path(post, path = "/api/auth/register", tag = "auth", operation_id = "auth_register", request_body = RegisterBody,
    responses((status = 201, body = RegisteredView), (status = 409, body = ProblemBody), (status = 422, body = ProblemBody), (status = 429, body = ProblemBody)))]
async fn auth_register(
    RateLimited(address): RateLimited,
    State(cx): State<Cx>,
    Json(body): Json<RegisterBody>,
) -> Result<(StatusCode, Json<RegisteredView>), Problem> {
    let RegisterBody { email, password, first_name, last_name, store_name } = body;
    let made = super::register(&cx, NewUser { email, password, first_name, last_name, store_name }).await?;
    cx.limits.remember(&made.user.email, address).await;
    let view = RegisteredView {
        user: made.user.into(),
        organization: made.organization.into(),
        store: made.store.map(StoreView::from),
        tokens: made.tokens.into(),
    };
    Ok((StatusCode::CREATED, Json(view)))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoginBody {
    #[schema(example = "ada@example.com")]
    email: String,
    #[schema(value_type = String, format = Password)]
    password: SecretString,
    /// Makes tokens that are good for this store only, and name it where a request does not.
    store_id: Option<StoreId>,
}

#[derive(Serialize, ToSchema)]
pub struct LoggedInView {
    user: UserView,
    organizations: Vec<OrganizationView>,
    tokens: TokensView,
}

/// Log in
#[utoipa::path(post, path = "/api/auth/login", tag = "auth", operation_id = "auth_login", request_body = LoginBody,
    responses((status = 200, body = LoggedInView), (status = 401, body = ProblemBody), (status = 429, body = ProblemBody)))]
async fn auth_login(
    RateLimited(address): RateLimited,
    State(cx): State<Cx>,
    Json(body): Json<LoginBody>,
) -> Result<Json<LoggedInView>, Problem> {
    let tried = cx.limits.check_account(&body.email, address)?;
    let outcome = super::login(&cx, &body.email, body.password, body.store_id).await;
    cx.limits.settle(tried, &outcome).await;
    let done = outcome?;
    Ok(Json(LoggedInView {
        user: done.user.into(),
        organizations: done.organizations.into_iter().map(Into::into).collect(),
        tokens: done.tokens.into(),
    }))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RefreshBody {
    #[schema(value_type = String)]
    refresh_token: SecretString,
}

#[derive(Serialize, ToSchema)]
pub struct RefreshedView {
    tokens: TokensView,
}

/// Trade a refresh token for new tokens
///
/// A refresh token is good for one use. Using one again ends the session.
#[utoipa::path(post, path = "/api/auth/refresh", tag = "auth", operation_id = "auth_refresh", request_body = RefreshBody,
    responses((status = 200, body = RefreshedView), (status = 401, body = ProblemBody), (status = 429, body = ProblemBody)))]
async fn auth_refresh(
    _limit: RateLimited,
    State(cx): State<Cx>,
    Json(body): Json<RefreshBody>,
) -> Result<Json<RefreshedView>, Problem> {
    let tokens = super::refresh(&cx, body.refresh_token.expose_secret()).await?;
    Ok(Json(RefreshedView { tokens: tokens.into() }))
}

/// Log out
///
/// Ends the session at once: neither its access tokens nor its refresh token work any more.
#[utoipa::path(post, path = "/api/auth/logout", tag = "auth", operation_id = "auth_logout", security(("bearer" = [])),
    responses((status = 204), (status = 401, body = ProblemBody)))]
async fn auth_logout(by: Principal, State(cx): State<Cx>) -> Result<StatusCode, Problem> {
    super::logout(&cx, &by).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Yourself, as far as your token may know.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SelfView {
    id: UserId,
    /// What you log in with; left out with a token that is limited to one store.
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<String>,
    first_name: String,
    last_name: String,
    /// `admin` for people who run the platform; left out with a token that is limited to one store.
    #[serde(skip_serializing_if = "Option::is_none")]
    platform_role: Option<String>,
}

impl From<Principal> for SelfView {
    fn from(Principal { user, token_store, .. }: Principal) -> Self {
        let User { id, email, first_name, last_name, platform_role } = user;
        let is_limited = token_store.is_some();
        Self {
            id,
            email: (!is_limited).then_some(email),
            first_name,
            last_name,
            platform_role: platform_role.filter(|_| !is_limited),
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct MeView {
    user: SelfView,
    organizations: Vec<OrganizationView>,
}

/// Who am I
///
/// A token that is limited to one store is told that store's organization, and neither your address nor your platform role.
#[utoipa::path(get, path = "/api/auth/me", tag = "auth", operation_id = "auth_me", security(("bearer" = [])),
    responses((status = 200, body = MeView), (status = 401, body = ProblemBody)))]
async fn auth_me(by: Principal, State(cx): State<Cx>) -> Result<Json<MeView>, Problem> {
    let organizations = super::memberships(&cx, &by).await?;
    Ok(Json(MeView { user: by.into(), organizations: organizations.into_iter().map(Into::into).collect() }))
}

/// The organization that the path names, for somebody who manages it.
pub struct ManagedOrganization(Membership);

impl FromRequestParts<Cx> for ManagedOrganization {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, cx: &Cx) -> Result<Self, Problem> {
        let Person(by) = Person::from_request_parts(parts, cx).await?;
        let params = RawPathParams::from_request_parts(parts, cx).await.map_err(|_| Problem::not_found())?;
        let named = params.iter().find(|(name, _)| *name == "organization").map(|(_, value)| value);
        let id: OrganizationId = named.ok_or_else(Problem::internal)?.parse().map_err(|_| Problem::not_found())?;
        Ok(Self(super::managed(cx, &by, id).await?))
    }
}

/// Somebody of an organization.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberView {
    /// What a budget names them by.
    id: UserId,
    email: String,
    first_name: String,
    last_name: String,
    role: MemberRole,
}

impl From<Member> for MemberView {
    fn from(Member { id, email, first_name, last_name, role }: Member) -> Self {
        Self { id, email, first_name, last_name, role }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct MemberListQuery {
    /// 1 to 100; 25 when left out.
    limit: Option<u8>,
    /// `meta.nextCursor` of the page before.
    cursor: Option<String>,
}

/// The people of an organization
///
/// In the order in which they registered; for its owners and admins.
#[utoipa::path(get, path = "/api/organizations/{organization}/members", tag = "organizations", operation_id = "organization_member_list", security(("bearer" = [])),
    params(("organization" = OrganizationId, Path), MemberListQuery),
    responses((status = 200, body = Page<MemberView>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn organization_member_list(
    ManagedOrganization(of): ManagedOrganization,
    State(cx): State<Cx>,
    Query(query): Query<MemberListQuery>,
) -> Result<Json<Page<MemberView>>, Problem> {
    let (found, next_cursor) = super::members(&cx, of.id, query.cursor.as_deref(), query.limit).await?;
    Ok(Json(Page { data: found.into_iter().map(Into::into).collect(), meta: PageMeta { next_cursor } }))
}
