//! HTTP of automatic top-ups and of the card that pays for them.

use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use chrono::{DateTime, Utc};
use kernel::{CreditPackId, OrganizationId};
use problem::{Json, Problem, ProblemBody, Query};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::cards::{self, Card, Setup};
use super::{Hindrance, NewRule, OffReason, TopUp};
use crate::credits::organization_of;
use crate::credits::purchases::routes::PurchaseView;
use crate::credits::routes::{OrganizationQuery, managed};
use crate::cx::Cx;
use crate::http::auth::Person;
use crate::idempotency::IdempotencyKey;

pub fn router() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
        .routes(routes!(credit_payment_method_setup))
        .routes(routes!(credit_payment_method_get, credit_payment_method_set, credit_payment_method_remove))
        .routes(routes!(credit_top_up_get, credit_top_up_set, credit_top_up_remove))
}

/// The card that an organization pays with by itself. The payment provider keeps it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PaymentMethodView {
    organization_id: OrganizationId,
    /// Its name at the payment provider.
    #[schema(example = "pm_1Q0PsIJvEtkwdCNYMSaVuRz6")]
    payment_method: String,
    /// Null for a moment after a purchase has left it.
    #[schema(example = "visa")]
    brand: Option<String>,
    #[schema(example = "4242")]
    last4: Option<String>,
    expiry_month: Option<i32>,
    expiry_year: Option<i32>,
    set_at: DateTime<Utc>,
}

impl From<Card> for PaymentMethodView {
    fn from(of: Card) -> Self {
        Self {
            organization_id: of.organization_id,
            payment_method: of.method_ref,
            brand: of.brand,
            last4: of.last4,
            expiry_month: of.exp_month,
            expiry_year: of.exp_year,
            set_at: of.set_at,
        }
    }
}

/// What a page needs to take a card down.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SetupView {
    /// The SetupIntent.
    id: String,
    /// Whose card it becomes at the payment provider.
    customer: String,
    /// For the payment provider's own code in the browser of whoever owns the card.
    #[schema(value_type = String)]
    #[serde(serialize_with = "shown_secret")]
    client_secret: SecretString,
}

/// The one place where a client's secret is written for a browser to read.
fn shown_secret<S: serde::Serializer>(secret: &SecretString, to: S) -> Result<S::Ok, S::Error> {
    secret.expose_secret().serialize(to)
}

/// Begin to take a card down
///
/// For a page of your own with the payment provider's form for cards (Stripe Elements): confirm the SetupIntent there with
/// `clientSecret`, then `PUT /api/credits/payment-method` with the payment method that comes of it. Without a page of your own,
/// buy a pack with `saveCard`.
#[utoipa::path(post, path = "/api/credits/payment-method/setup", tag = "credits", operation_id = "credit_payment_method_setup", security(("bearer" = [])),
    params(OrganizationQuery, ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = SetupView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 502, body = ProblemBody),
        (status = 503, body = ProblemBody)))]
async fn credit_payment_method_setup(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<OrganizationQuery>,
    key: IdempotencyKey,
) -> Result<(StatusCode, [(HeaderName, HeaderValue); 1], Json<SetupView>), Problem> {
    let organization = managed(&cx, &by, query.organization_id).await?;
    let Setup { id, customer, client_secret } = cards::setup(&cx, organization, key.0.as_deref()).await?;
    let private = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((StatusCode::CREATED, private, Json(SetupView { id, customer, client_secret })))
}

/// The card
#[utoipa::path(get, path = "/api/credits/payment-method", tag = "credits", operation_id = "credit_payment_method_get", security(("bearer" = [])), params(OrganizationQuery),
    responses((status = 200, body = PaymentMethodView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn credit_payment_method_get(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<OrganizationQuery>,
) -> Result<Json<PaymentMethodView>, Problem> {
    let (organization, _) = organization_of(&cx, by.user.id, query.organization_id).await?;
    Ok(Json(cards::find(&cx, organization).await?.into()))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PaymentMethodBody {
    /// A card of the organization's customer at the payment provider.
    #[schema(example = "pm_1Q0PsIJvEtkwdCNYMSaVuRz6")]
    payment_method: String,
}

/// Set the card
///
/// The payment provider is asked whether it is the organization's; then it takes the place of the one before, which is removed at
/// the payment provider, and what was declined before is forgotten. The same card once more changes nothing.
#[utoipa::path(put, path = "/api/credits/payment-method", tag = "credits", operation_id = "credit_payment_method_set", security(("bearer" = [])), params(OrganizationQuery),
    request_body = PaymentMethodBody,
    responses((status = 200, body = PaymentMethodView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody),
        (status = 422, body = ProblemBody), (status = 502, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn credit_payment_method_set(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<OrganizationQuery>,
    Json(body): Json<PaymentMethodBody>,
) -> Result<Json<PaymentMethodView>, Problem> {
    let organization = managed(&cx, &by, query.organization_id).await?;
    Ok(Json(cards::set(&cx, by.user.id, organization, &body.payment_method).await?.into()))
}

/// Remove the card
///
/// It is removed at the payment provider too, and the automatic top-up is off. A purchase that was not asked for at the payment
/// provider yet is not asked for any more.
#[utoipa::path(delete, path = "/api/credits/payment-method", tag = "credits", operation_id = "credit_payment_method_remove", security(("bearer" = [])), params(OrganizationQuery),
    responses((status = 204), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn credit_payment_method_remove(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<OrganizationQuery>,
) -> Result<StatusCode, Problem> {
    let organization = managed(&cx, &by, query.organization_id).await?;
    cards::remove(&cx, by.user.id, organization).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// When credits are bought by themselves, and how that goes.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TopUpView {
    organization_id: OrganizationId,
    /// Below so many available credits the pack is bought, once; then again while they are still below.
    threshold: i64,
    pack_id: CreditPackId,
    /// The most that a calendar month (UTC) may cost, taxes included, in minor units of `currency`.
    monthly_cap_minor: i64,
    currency: String,
    is_enabled: bool,
    /// Why it is off.
    off_reason: Option<OffReason>,
    /// After three it is off.
    consecutive_declines: i32,
    /// Why the last payment was declined; null when the one after it was paid.
    last_failure: Option<String>,
    /// Nothing is tried before then; null when nothing stands in the way.
    next_attempt_at: Option<DateTime<Utc>>,
    /// What this month's automatic purchases cost, those counted that are under way.
    spent_this_month_minor: i64,
    /// Whether one more would cost more than the month may.
    is_capped: bool,
    /// Why nothing is bought now though it is on, however few credits there are: credits are owed (`debt`: buy a pack, which repays
    /// them, and it goes on), a payment was `declined`, or there is the `monthly_cap` or the `daily_limit` of ten. Null when nothing stands in the way.
    held_back_by: Option<Hindrance>,
    /// The automatic purchase that is under way.
    in_flight: Option<PurchaseView>,
    updated_at: DateTime<Utc>,
}

impl TopUpView {
    fn new(cx: &Cx, of: TopUp) -> Self {
        let TopUp { rule, pack, spent_this_month_minor, is_capped, held_back_by, next_attempt_at, in_flight } = of;
        Self {
            organization_id: rule.organization_id,
            threshold: rule.threshold,
            pack_id: rule.pack_id,
            monthly_cap_minor: rule.monthly_cap_minor,
            currency: pack.currency,
            is_enabled: rule.is_enabled,
            off_reason: rule.off_reason,
            consecutive_declines: rule.consecutive_declines,
            last_failure: rule.last_failure,
            next_attempt_at,
            spent_this_month_minor,
            is_capped,
            held_back_by,
            in_flight: in_flight.map(|purchase| PurchaseView::new(cx, purchase)),
            updated_at: rule.updated_at,
        }
    }
}

/// The automatic top-up
#[utoipa::path(get, path = "/api/credits/top-up", tag = "credits", operation_id = "credit_top_up_get", security(("bearer" = [])), params(OrganizationQuery),
    responses((status = 200, body = TopUpView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn credit_top_up_get(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<OrganizationQuery>,
) -> Result<Json<TopUpView>, Problem> {
    let (organization, _) = organization_of(&cx, by.user.id, query.organization_id).await?;
    Ok(Json(TopUpView::new(&cx, super::find(&cx, organization).await?)))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TopUpBody {
    /// Whole credits.
    #[schema(example = 500, minimum = 1)]
    threshold: i64,
    /// One of `GET /api/credits/packs`; in the currency of the month's automatic purchases, if there are any.
    pack_id: CreditPackId,
    /// In minor units of the pack's currency, taxes included: at least what the pack costs.
    #[schema(example = 50000, minimum = 1)]
    monthly_cap_minor: i64,
    /// True when left out.
    is_enabled: Option<bool>,
}

/// Set the automatic top-up
///
/// When the available credits fall below the threshold, the pack is bought with the organization's card, within the monthly
/// cap and at most ten times a day (UTC), tries that fail counted. A payment that is declined is tried again an hour later, then
/// six hours later; after a third decline in a row the top-up is off. It is off, too, when money of an automatic purchase is given
/// back (`refunded`) or `disputed`, until it is set again; and while credits are owed nothing is bought. Setting it forgets what
/// was declined before. The organization is told by `credits.top_up_failed`, `credits.top_up_needs_authentication`,
/// `credits.top_up_capped` (once a month for the cap, once a day for ten tries) and `credits.top_up_off`.
#[utoipa::path(put, path = "/api/credits/top-up", tag = "credits", operation_id = "credit_top_up_set", security(("bearer" = [])), params(OrganizationQuery),
    request_body = TopUpBody,
    responses((status = 200, body = TopUpView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody),
        (status = 422, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn credit_top_up_set(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<OrganizationQuery>,
    Json(body): Json<TopUpBody>,
) -> Result<Json<TopUpView>, Problem> {
    let organization = managed(&cx, &by, query.organization_id).await?;
    let TopUpBody { threshold, pack_id, monthly_cap_minor, is_enabled } = body;
    let new = NewRule { threshold, pack_id, monthly_cap_minor, is_enabled: is_enabled.unwrap_or(true) };
    Ok(Json(TopUpView::new(&cx, super::set(&cx, by.user.id, organization, &new).await?)))
}

/// Remove the automatic top-up
///
/// A purchase that the payment provider was asked for goes on; one that it could not be asked for yet comes to nothing.
#[utoipa::path(delete, path = "/api/credits/top-up", tag = "credits", operation_id = "credit_top_up_remove", security(("bearer" = [])), params(OrganizationQuery),
    responses((status = 204), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn credit_top_up_remove(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<OrganizationQuery>,
) -> Result<StatusCode, Problem> {
    let organization = managed(&cx, &by, query.organization_id).await?;
    super::remove(&cx, by.user.id, organization).await?;
    Ok(StatusCode::NO_CONTENT)
}
