//! HTTP of stores.

use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use kernel::{OrganizationId, StoreId, StoreStatus};
use problem::{Json, Problem, ProblemBody, Query};
use serde::{Deserialize, Serialize};
use tenant_schema::seed::StoreCounts;
use tenant_schema::settings::{StoreSettings, StoreSettingsPatch};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Store, inside};
use crate::cx::Cx;
use crate::http::auth::{MemberOf, OwnerOf, Person};
use crate::idempotency::IdempotencyKey;
use crate::ops::routes::{Page, PageMeta};

pub fn router() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
        .routes(routes!(store_create))
        .routes(routes!(store_list))
        .routes(routes!(store_get, store_update))
}

/// A store, as master knows it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoreView {
    pub id: StoreId,
    pub organization_id: OrganizationId,
    pub name: String,
    pub slug: String,
    pub status: StoreStatus,
    /// Why it is closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_reason: Option<String>,
    /// Whether carts and checkouts are refused because its charges are unpaid. Its pages are served all the same.
    pub is_read_only: bool,
    /// Since when it owes credits; null when it owes nothing. `GET /api/credits/usage` says how many.
    pub credits_owed_since: Option<DateTime<Utc>>,
    /// Where its storefront answers, once it is active.
    pub hostname: Option<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl From<Store> for StoreView {
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
            route_version: _,
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
            created_at,
            updated_at,
        }
    }
}

#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateBody {
    #[schema(example = "Ada's Tea")]
    pub name: String,
    /// 3 to 63 lower-case letters, digits and single hyphens; made from the name when left out.
    #[schema(example = "adas-tea")]
    pub slug: Option<String>,
    /// May be left out by somebody with one organization.
    pub organization_id: Option<OrganizationId>,
}

/// Create a store
///
/// It has a hostname at once, and is served when a database is connected and prepared.
#[utoipa::path(post, path = "/api/stores/create", tag = "stores", operation_id = "store_create", security(("bearer" = [])),
    params(("Idempotency-Key" = Option<String>, Header)), request_body = CreateBody,
    responses((status = 201, body = StoreView), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
        (status = 409, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn store_create(
    Person(by): Person,
    State(cx): State<Cx>,
    key: IdempotencyKey,
    Json(body): Json<CreateBody>,
) -> Result<(StatusCode, Json<StoreView>), Problem> {
    let store = super::create(&cx, by.user.id, &body, key.0.as_deref()).await?;
    Ok((StatusCode::CREATED, Json(store.into())))
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StoreListQuery {
    /// 1 to 100; 25 when left out.
    limit: Option<u8>,
    /// `meta.nextCursor` of the page before.
    cursor: Option<String>,
    organization_id: Option<OrganizationId>,
}

/// Your stores, newest first
#[utoipa::path(get, path = "/api/stores", tag = "stores", operation_id = "store_list", security(("bearer" = [])), params(StoreListQuery),
    responses((status = 200, body = Page<StoreView>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody)))]
async fn store_list(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<StoreListQuery>,
) -> Result<Json<Page<StoreView>>, Problem> {
    let (stores, next_cursor) =
        super::list(&cx, by.user.id, query.organization_id, query.cursor.as_deref(), query.limit).await?;
    Ok(Json(Page { data: stores.into_iter().map(Into::into).collect(), meta: PageMeta { next_cursor } }))
}

/// A store, with what its own database says.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoreDetailView {
    #[serde(flatten)]
    store: StoreView,
    /// Null while the store has no database, or it does not answer.
    settings: Option<StoreSettings>,
    /// Null while the store has no database, or it does not answer.
    counts: Option<StoreCounts>,
    database: DatabaseView,
}

/// The store's database, as far as its owner needs to know.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseView {
    /// `none`, `preparing`, `failed`, `available`, `read-only` (visitors can look, and not buy) or `unavailable`.
    state: &'static str,
    /// When it is `failed`, `read-only` or `unavailable`: why, as a stable code such as `wrong-password`.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    /// The same for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
    /// Statements for an administrator of the database that help, ready to be copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    sql: Option<String>,
}

impl StoreDetailView {
    /// A store with what its own database says now.
    pub async fn read(cx: &Cx, store: Store) -> Self {
        use inside::Inside as I;
        let (state, inside, trouble) = match inside::read(cx, &store).await {
            I::None => ("none", None, None),
            I::Preparing => ("preparing", None, None),
            I::Failed(trouble) => ("failed", None, Some(trouble)),
            I::Unavailable(trouble) => ("unavailable", None, Some(trouble)),
            I::Read { settings, counts, ailing } => {
                let state = if ailing.is_some() { "read-only" } else { "available" };
                (state, Some((*settings, counts)), ailing)
            }
        };
        let database = match trouble {
            None => DatabaseView { state, code: None, detail: None, advice: None, sql: None },
            Some(inside::Trouble { code, detail, advice, sql }) => {
                DatabaseView { state, code: Some(code), detail, advice, sql }
            }
        };
        let (settings, counts) = inside.unzip();
        Self { store: store.into(), settings, counts, database }
    }
}

/// One store
///
/// Master's part, and the settings and counts out of the store's own database. When that does not answer, the rest does.
#[utoipa::path(get, path = "/api/stores/{id}", tag = "stores", operation_id = "store_get", security(("bearer" = [])), params(("id" = StoreId, Path)),
    responses((status = 200, body = StoreDetailView), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn store_get(member: MemberOf<Store>, State(cx): State<Cx>) -> Result<Json<StoreDetailView>, Problem> {
    Ok(Json(StoreDetailView::read(&cx, member.store).await))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateBody {
    name: Option<String>,
    settings: Option<StoreSettingsPatch>,
}

/// Change a store
///
/// What is left out stays. All or nothing of the settings is changed.
#[utoipa::path(patch, path = "/api/stores/{id}", tag = "stores", operation_id = "store_update", security(("bearer" = [])), params(("id" = StoreId, Path)),
    request_body = UpdateBody,
    responses((status = 200, body = StoreDetailView), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody), (status = 422, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn store_update(
    owner: OwnerOf<Store>,
    State(cx): State<Cx>,
    Json(body): Json<UpdateBody>,
) -> Result<Json<StoreDetailView>, Problem> {
    let store = inside::update(&cx, owner.by.user.id, owner.store, body.name, body.settings).await?;
    Ok(Json(StoreDetailView::read(&cx, store).await))
}
