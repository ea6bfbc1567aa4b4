//! HTTP of webhooks out. All of it is for owners and admins of the organization.

use axum::extract::{FromRequestParts, RawPathParams, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use chrono::{DateTime, Utc};
use kernel::{EventId, OrganizationId, WebhookDeliveryId, WebhookEndpointId};
use problem::{Json, Path, Problem, ProblemBody, Query};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Attempt, Delivery, DeliveryState, DisabledReason, Endpoint, Shown, WebhookError, db};
use crate::credits;
use crate::cx::{Cx, OpsCx};
use crate::http::auth::Person;
use crate::idempotency::IdempotencyKey;
use crate::identity::Principal;
use crate::ops::routes::{Page, PageMeta};

pub fn router() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
        .routes(routes!(webhook_endpoint_list, webhook_endpoint_create))
        .routes(routes!(webhook_endpoint_get, webhook_endpoint_update, webhook_endpoint_delete))
        .routes(routes!(webhook_secret_rotate))
        .routes(routes!(webhook_test_send))
        .routes(routes!(webhook_resend_since))
        .routes(routes!(webhook_delivery_list))
        .routes(routes!(webhook_delivery_get))
        .routes(routes!(webhook_delivery_resend))
}

/// An endpoint that the path names, for a manager of its organization. To others it does not exist.
pub struct ManagedEndpoint {
    by: Principal,
    endpoint: Endpoint,
}

impl FromRequestParts<Cx> for ManagedEndpoint {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, cx: &Cx) -> Result<Self, Problem> {
        let Person(by) = Person::from_request_parts(parts, cx).await?;
        let params = RawPathParams::from_request_parts(parts, cx).await.map_err(|_| Problem::not_found())?;
        let named = params.iter().find(|(name, _)| *name == "endpoint").map(|(_, value)| value);
        let id: WebhookEndpointId = named.ok_or_else(Problem::internal)?.parse().map_err(|_| Problem::not_found())?;
        let found = async {
            let mut connection = cx.master.acquire().await?;
            let role = db::endpoint_role(&mut connection, id, by.user.id).await?;
            let role = role.ok_or(WebhookError::EndpointNotFound)?;
            if !role.is_manager() {
                return Err(WebhookError::NotManager);
            }
            db::endpoint_find(&mut connection, id).await?.ok_or(WebhookError::EndpointNotFound)
        };
        Ok(Self { endpoint: found.await?, by })
    }
}

/// The organization that a manager names, or their only one.
async fn managed(cx: &OpsCx, by: &Principal, wanted: Option<OrganizationId>) -> Result<OrganizationId, Problem> {
    let (organization, role) = credits::organization_of(cx, by.user.id, wanted).await?;
    if role.is_manager() { Ok(organization) } else { Err(WebhookError::NotManager.into()) }
}

/// Where an organization is told of events.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointView {
    id: WebhookEndpointId,
    organization_id: OrganizationId,
    url: String,
    description: Option<String>,
    /// All of them when there are none.
    event_types: Vec<String>,
    is_enabled: bool,
    disabled_reason: Option<DisabledReason>,
    /// Since when it has taken nothing; null while it does.
    failing_since: Option<DateTime<Utc>>,
    /// Until when the secret before the last rotation signs too.
    previous_secret_until: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl From<Endpoint> for EndpointView {
    fn from(of: Endpoint) -> Self {
        Self {
            id: of.id,
            organization_id: of.organization_id,
            url: of.url,
            description: of.description,
            event_types: of.event_types,
            is_enabled: of.is_enabled,
            disabled_reason: of.disabled_reason,
            failing_since: of.failing_since,
            previous_secret_until: of.previous_until,
            created_at: of.created_at,
            updated_at: of.updated_at,
        }
    }
}

/// An endpoint with the secret that signs what it is sent.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSecretView {
    #[serde(flatten)]
    endpoint: EndpointView,
    /// Shown now and not again: keep it where the receiver reads it. Null in a repeated answer when it was rotated since.
    #[schema(value_type = Option<String>, example = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")]
    #[serde(serialize_with = "shown_secret")]
    secret: Option<SecretString>,
}

/// The one place where a webhook's secret is written for somebody to read.
fn shown_secret<S: serde::Serializer>(secret: &Option<SecretString>, to: S) -> Result<S::Ok, S::Error> {
    secret.as_ref().map(ExposeSecret::expose_secret).serialize(to)
}

impl From<Shown> for EndpointSecretView {
    fn from(of: Shown) -> Self {
        Self { endpoint: of.endpoint.into(), secret: of.secret }
    }
}

#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointCreateBody {
    /// May be left out by somebody with one organization.
    pub organization_id: Option<OrganizationId>,
    /// Reached by HTTPS, at a public address.
    #[schema(example = "https://hooks.example.com/tenantry")]
    pub url: String,
    pub description: Option<String>,
    /// All when left out. Of credits: `credits.balance_low`, `credits.budget_reached`, `credits.purchase_completed`,
    /// `credits.purchase_ended` (it came to nothing), `credits.purchase_refunded`, `credits.dispute_opened`,
    /// `credits.dispute_closed`, `credits.top_up_failed` (the card was declined), `credits.top_up_needs_authentication` (the bank
    /// asks for the card's owner), `credits.top_up_capped`, `credits.top_up_off` (nothing is bought any more: `reason` says
    /// why, `refunded` and `disputed` among others). Of stores: `store.charge_unpaid`, `store.read_only`,
    /// `store.read_only_lifted`. Of webhooks: `webhook.endpoint_disabled`, `webhook.test`. What each of them
    /// says is described under `webhooks`.
    #[schema(example = json!(["credits.balance_low"]))]
    pub event_types: Option<Vec<String>>,
}

/// Register an endpoint
///
/// Events are posted as JSON and signed as [Standard Webhooks](https://www.standardwebhooks.com) has it: `webhook-id`,
/// `webhook-timestamp` and `webhook-signature`, which holds one signature for each secret that counts. An event comes at least
/// once; `webhook-id` tells whether it is new. Any answer of 2xx takes it; 410 disables the endpoint; anything else is tried
/// again for three days. The secret is in this answer only.
#[utoipa::path(post, path = "/api/webhooks/endpoints", tag = "webhooks", operation_id = "webhook_endpoint_create", security(("bearer" = [])),
    params(("Idempotency-Key" = Option<String>, Header)), request_body = EndpointCreateBody,
    responses((status = 201, body = EndpointSecretView), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn webhook_endpoint_create(
    Person(by): Person,
    State(cx): State<Cx>,
    key: IdempotencyKey,
    Json(body): Json<EndpointCreateBody>,
) -> Result<(StatusCode, Json<EndpointSecretView>), Problem> {
    let organization = managed(&cx, &by, body.organization_id).await?;
    let shown = super::endpoint_create(&cx, by.user.id, organization, &body, key.0.as_deref()).await?;
    Ok((StatusCode::CREATED, Json(shown.into())))
}

/// Which organization, for somebody who has several.
#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EndpointListQuery {
    /// May be left out by somebody with one organization.
    organization_id: Option<OrganizationId>,
}

/// Endpoints, newest first
#[utoipa::path(get, path = "/api/webhooks/endpoints", tag = "webhooks", operation_id = "webhook_endpoint_list", security(("bearer" = [])), params(EndpointListQuery),
    responses((status = 200, body = Page<EndpointView>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn webhook_endpoint_list(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<EndpointListQuery>,
) -> Result<Json<Page<EndpointView>>, Problem> {
    let organization = managed(&cx, &by, query.organization_id).await?;
    let found = super::endpoint_list(&cx, organization).await?;
    Ok(Json(Page::whole(found.into_iter().map(Into::into).collect())))
}

/// One endpoint
#[utoipa::path(get, path = "/api/webhooks/endpoints/{endpoint}", tag = "webhooks", operation_id = "webhook_endpoint_get", security(("bearer" = [])),
    params(("endpoint" = WebhookEndpointId, Path)),
    responses((status = 200, body = EndpointView), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
        (status = 404, body = ProblemBody)))]
async fn webhook_endpoint_get(managed: ManagedEndpoint) -> Json<EndpointView> {
    Json(managed.endpoint.into())
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointUpdateBody {
    pub url: Option<String>,
    /// An empty text takes it away.
    pub description: Option<String>,
    /// An empty list means all.
    pub event_types: Option<Vec<String>>,
    /// Disabling ends what waits for it; what happens meanwhile can be asked for when it is enabled again.
    pub is_enabled: Option<bool>,
}

/// Change an endpoint
///
/// What is left out stays.
#[utoipa::path(patch, path = "/api/webhooks/endpoints/{endpoint}", tag = "webhooks", operation_id = "webhook_endpoint_update", security(("bearer" = [])),
    params(("endpoint" = WebhookEndpointId, Path)), request_body = EndpointUpdateBody,
    responses((status = 200, body = EndpointView), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
        (status = 404, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn webhook_endpoint_update(
    managed: ManagedEndpoint,
    State(cx): State<Cx>,
    Json(body): Json<EndpointUpdateBody>,
) -> Result<Json<EndpointView>, Problem> {
    Ok(Json(super::endpoint_update(&cx, managed.by.user.id, managed.endpoint.id, &body).await?.into()))
}

/// Delete an endpoint
#[utoipa::path(delete, path = "/api/webhooks/endpoints/{endpoint}", tag = "webhooks", operation_id = "webhook_endpoint_delete", security(("bearer" = [])),
    params(("endpoint" = WebhookEndpointId, Path)),
    responses((status = 204), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn webhook_endpoint_delete(managed: ManagedEndpoint, State(cx): State<Cx>) -> Result<StatusCode, Problem> {
    super::endpoint_delete(&cx, managed.by.user.id, &managed.endpoint).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretRotateBody {
    /// How long the secret before signs too: 0 to 604,800 (7 days); 86,400 when left out.
    #[schema(example = 86400)]
    pub overlap_seconds: Option<i64>,
}

/// Rotate the secret
///
/// Until the overlap ends, every message carries a signature of each secret. The new one is in this answer only.
#[utoipa::path(post, path = "/api/webhooks/endpoints/{endpoint}/rotate-secret", tag = "webhooks", operation_id = "webhook_secret_rotate", security(("bearer" = [])),
    params(("endpoint" = WebhookEndpointId, Path), ("Idempotency-Key" = Option<String>, Header)), request_body = SecretRotateBody,
    responses((status = 200, body = EndpointSecretView), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
        (status = 404, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn webhook_secret_rotate(
    managed: ManagedEndpoint,
    State(cx): State<Cx>,
    key: IdempotencyKey,
    Json(body): Json<SecretRotateBody>,
) -> Result<Json<EndpointSecretView>, Problem> {
    let (by, id) = (managed.by.user.id, managed.endpoint.id);
    Ok(Json(super::secret_rotate(&cx, by, id, &body, key.0.as_deref()).await?.into()))
}

/// One event on its way to one endpoint.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryView {
    id: WebhookDeliveryId,
    endpoint_id: WebhookEndpointId,
    /// What `webhook-id` says.
    event_id: EventId,
    #[schema(example = "credits.balance_low")]
    event_type: String,
    event_created_at: DateTime<Utc>,
    state: DeliveryState,
    attempts: i32,
    /// Null when it is not tried any more.
    next_attempt_at: Option<DateTime<Utc>>,
    /// The HTTP status of the last attempt, if there was an answer.
    last_status: Option<i32>,
    /// A stable code of what was wrong with it.
    #[schema(example = "timeout")]
    last_error: Option<String>,
    last_attempt_at: Option<DateTime<Utc>>,
    delivered_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
}

impl From<Delivery> for DeliveryView {
    fn from(of: Delivery) -> Self {
        Self {
            id: of.id,
            endpoint_id: of.endpoint_id,
            event_id: of.event_id,
            event_type: of.event_type,
            event_created_at: of.event_created_at,
            state: of.state,
            attempts: of.attempts,
            next_attempt_at: (of.state == DeliveryState::Pending).then_some(of.next_attempt_at),
            last_status: of.last_status,
            last_error: of.last_error,
            last_attempt_at: of.last_attempt_at,
            delivered_at: of.delivered_at,
            created_at: of.created_at,
        }
    }
}

/// Send a test event
///
/// It has the type `webhook.test` and goes to this endpoint alone, whatever types it gets.
#[utoipa::path(post, path = "/api/webhooks/endpoints/{endpoint}/test", tag = "webhooks", operation_id = "webhook_test_send", security(("bearer" = [])),
    params(("endpoint" = WebhookEndpointId, Path), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 202, body = DeliveryView), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
async fn webhook_test_send(
    managed: ManagedEndpoint,
    State(cx): State<Cx>,
    key: IdempotencyKey,
) -> Result<(StatusCode, Json<DeliveryView>), Problem> {
    let delivery = super::test_send(&cx, managed.by.user.id, &managed.endpoint, key.0.as_deref()).await?;
    Ok((StatusCode::ACCEPTED, Json(delivery.into())))
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeliveryListQuery {
    state: Option<DeliveryState>,
    /// 1 to 100; 25 when left out.
    limit: Option<u8>,
    /// `meta.nextCursor` of the page before.
    cursor: Option<String>,
}

/// Deliveries, newest event first
#[utoipa::path(get, path = "/api/webhooks/endpoints/{endpoint}/deliveries", tag = "webhooks", operation_id = "webhook_delivery_list", security(("bearer" = [])),
    params(("endpoint" = WebhookEndpointId, Path), DeliveryListQuery),
    responses((status = 200, body = Page<DeliveryView>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn webhook_delivery_list(
    managed: ManagedEndpoint,
    State(cx): State<Cx>,
    Query(query): Query<DeliveryListQuery>,
) -> Result<Json<Page<DeliveryView>>, Problem> {
    let id = managed.endpoint.id;
    let (found, next_cursor) = super::delivery_list(&cx, id, query.state, query.cursor.as_deref(), query.limit).await?;
    Ok(Json(Page { data: found.into_iter().map(Into::into).collect(), meta: PageMeta { next_cursor } }))
}

/// Which delivery of the endpoint.
#[derive(Deserialize)]
struct DeliveryPath {
    delivery: WebhookDeliveryId,
}

/// One attempt.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttemptView {
    number: i32,
    started_at: DateTime<Utc>,
    duration_ms: i32,
    status: Option<i32>,
    error: Option<String>,
}

impl From<Attempt> for AttemptView {
    fn from(of: Attempt) -> Self {
        let Attempt { number, started_at, duration_ms, status, error } = of;
        Self { number, started_at, duration_ms, status, error }
    }
}

/// A delivery with what was sent and the last attempts.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryDetailView {
    #[serde(flatten)]
    delivery: DeliveryView,
    /// The event's `data`, as it is sent.
    data: serde_json::Value,
    /// The last 20, oldest first.
    attempt_log: Vec<AttemptView>,
}

/// One delivery
#[utoipa::path(get, path = "/api/webhooks/endpoints/{endpoint}/deliveries/{delivery}", tag = "webhooks", operation_id = "webhook_delivery_get", security(("bearer" = [])),
    params(("endpoint" = WebhookEndpointId, Path), ("delivery" = WebhookDeliveryId, Path)),
    responses((status = 200, body = DeliveryDetailView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn webhook_delivery_get(
    managed: ManagedEndpoint,
    State(cx): State<Cx>,
    Path(path): Path<DeliveryPath>,
) -> Result<Json<DeliveryDetailView>, Problem> {
    let (delivery, attempts) = super::delivery_get(&cx, managed.endpoint.id, path.delivery).await?;
    let data = super::printed(delivery.data.clone());
    let attempt_log = attempts.into_iter().map(Into::into).collect();
    Ok(Json(DeliveryDetailView { delivery: delivery.into(), data, attempt_log }))
}

/// Send one event again
///
/// At once, and for three days more. It keeps its `webhook-id`.
#[utoipa::path(post, path = "/api/webhooks/endpoints/{endpoint}/deliveries/{delivery}/resend", tag = "webhooks", operation_id = "webhook_delivery_resend", security(("bearer" = [])),
    params(("endpoint" = WebhookEndpointId, Path), ("delivery" = WebhookDeliveryId, Path)),
    responses((status = 202, body = DeliveryView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
async fn webhook_delivery_resend(
    managed: ManagedEndpoint,
    State(cx): State<Cx>,
    Path(path): Path<DeliveryPath>,
) -> Result<(StatusCode, Json<DeliveryView>), Problem> {
    let delivery = super::delivery_resend(&cx, managed.by.user.id, &managed.endpoint, path.delivery).await?;
    Ok((StatusCode::ACCEPTED, Json(delivery.into())))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResendBody {
    /// Events from this moment on.
    pub since: DateTime<Utc>,
    /// Also those that were taken; only the others when left out.
    pub includes_delivered: Option<bool>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResentView {
    /// How many events are sent again, or for the first time.
    resent: u64,
}

/// Send events again since a moment
///
/// In their order: what was given up, what came while the endpoint was disabled, and what came before it was there.
#[utoipa::path(post, path = "/api/webhooks/endpoints/{endpoint}/resend", tag = "webhooks", operation_id = "webhook_resend_since", security(("bearer" = [])),
    params(("endpoint" = WebhookEndpointId, Path)), request_body = ResendBody,
    responses((status = 202, body = ResentView), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn webhook_resend_since(
    managed: ManagedEndpoint,
    State(cx): State<Cx>,
    Json(body): Json<ResendBody>,
) -> Result<(StatusCode, Json<ResentView>), Problem> {
    let resent = super::resend_since(&cx, managed.by.user.id, &managed.endpoint, &body).await?;
    Ok((StatusCode::ACCEPTED, Json(ResentView { resent })))
}
