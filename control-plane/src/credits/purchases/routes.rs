//! HTTP of buying credits.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest as _, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use kernel::{CreditPackId, CreditTransactionId, OrganizationId, PurchaseId, PurchaseRefundId, UserId};
use problem::{Json, Path, Problem, ProblemBody, Query};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::events::{self, EventError, EventSource};
use super::refunds::{self, NewRefund, PurchaseRefund, RefundState};
use super::{Purchase, PurchaseError, PurchaseFilter, PurchaseState, Returned};
use crate::credits::{CreditError, organization_of};
use crate::cx::{Cx, OpsCx};
use crate::http::auth::{Ops, Person};
use crate::idempotency::{self, IdempotencyKey};
use crate::ops::routes::{Page, PageMeta};

const SIGNATURE: &str = "stripe-signature";

pub fn router() -> OpenApiRouter<Cx> {
    OpenApiRouter::new()
        .routes(routes!(credit_purchase_create))
        .routes(routes!(credit_purchase_list))
        .routes(routes!(credit_purchase_get))
        .routes(routes!(credit_purchase_return))
        .routes(routes!(stripe_webhook))
        .routes(routes!(ops_purchase_list))
        .routes(routes!(ops_purchase_refund))
}

#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PurchaseBody {
    /// One of `GET /api/credits/packs`. What it costs is written there, not here.
    pub pack_id: CreditPackId,
    /// May be left out by somebody with one organization.
    pub organization_id: Option<OrganizationId>,
    /// Where the page that follows the payment leads on to.
    #[schema(example = "https://agency.example/credits")]
    pub success_url: Option<String>,
    /// Where whoever goes away from the payment is led.
    pub cancel_url: Option<String>,
    /// Whether the card that is paid with becomes the organization's, for automatic top-ups; false when left out.
    pub save_card: Option<bool>,
}

/// An order of a pack.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PurchaseView {
    pub id: PurchaseId,
    pub organization_id: OrganizationId,
    pub state: PurchaseState,
    /// Who bought; null for what was bought by itself.
    pub user_id: Option<UserId>,
    pub pack_id: CreditPackId,
    pub pack_version: i32,
    pub credits: i64,
    pub bonus_credits: i64,
    /// Taxes included.
    pub amount_minor: i64,
    /// What of it is tax; known once it is paid.
    pub tax_minor: i64,
    pub currency: String,
    /// What went back, and the credits that were taken for it.
    pub refunded_minor: i64,
    pub refunded_credits: i64,
    pub is_automatic: bool,
    /// Whether it was made at a test provider: no money moved.
    pub is_test: bool,
    /// Why it failed, or why the last card did.
    pub failure: Option<String>,
    /// The transaction that granted it.
    pub transaction_id: Option<CreditTransactionId>,
    pub created_at: DateTime<Utc>,
    pub completed_at: Option<DateTime<Utc>>,
}

impl PurchaseView {
    pub fn new(cx: &OpsCx, of: Purchase) -> Self {
        Self {
            id: of.id,
            organization_id: of.organization_id,
            state: of.state,
            user_id: of.user_id,
            pack_id: of.pack_id,
            pack_version: of.pack_version,
            credits: of.credits,
            bonus_credits: of.bonus_credits,
            amount_minor: of.amount_minor,
            tax_minor: of.tax_minor,
            currency: of.currency,
            refunded_minor: of.refunded_minor,
            refunded_credits: of.refunded_credits,
            is_automatic: of.is_auto,
            is_test: cx.payments.as_ref().is_some_and(|payments| payments.stripe.is_test()),
            failure: of.failure,
            transaction_id: of.transaction_id,
            created_at: of.created_at,
            completed_at: of.completed_at,
        }
    }
}

/// An order, and where it is paid.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckoutView {
    purchase: PurchaseView,
    /// Lead the buyer there. Null once nothing is to be paid there any more.
    checkout_url: Option<String>,
}

/// Buy a pack
///
/// Once per `Idempotency-Key`, which is kept for ever: repeating it leads to the same Checkout page. The credits are there
/// as soon as the payment is confirmed.
#[utoipa::path(post, path = "/api/credits/purchase", tag = "credits", operation_id = "credit_purchase_create", security(("bearer" = [])),
    params(("Idempotency-Key" = String, Header)), request_body = PurchaseBody,
    responses((status = 201, body = CheckoutView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 422, body = ProblemBody),
        (status = 502, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn credit_purchase_create(
    Person(by): Person,
    State(cx): State<Cx>,
    key: IdempotencyKey,
    Json(body): Json<PurchaseBody>,
) -> Result<Response, Problem> {
    let (purchase, is_new) = super::purchase_create(&cx, &by, &body, key.0.as_deref()).await?;
    let checkout_url = purchase.checkout_url.clone();
    let view = CheckoutView { purchase: PurchaseView::new(&cx, purchase), checkout_url };
    Ok(answered(StatusCode::CREATED, view, is_new))
}

fn answered<V: Serialize>(status: StatusCode, view: V, is_new: bool) -> Response {
    let mut response = (status, Json(view)).into_response();
    if !is_new {
        response.headers_mut().insert(idempotency::REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PurchaseListQuery {
    /// May be left out by somebody with one organization.
    organization_id: Option<OrganizationId>,
    /// 1 to 100; 25 when left out.
    limit: Option<u8>,
    /// `meta.nextCursor` of the page before.
    cursor: Option<String>,
}

/// Purchases, newest first
#[utoipa::path(get, path = "/api/credits/purchases", tag = "credits", operation_id = "credit_purchase_list", security(("bearer" = [])), params(PurchaseListQuery),
    responses((status = 200, body = Page<PurchaseView>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn credit_purchase_list(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<PurchaseListQuery>,
) -> Result<Json<Page<PurchaseView>>, Problem> {
    let (organization, _) = organization_of(&cx, by.user.id, query.organization_id).await?;
    let (found, next_cursor) = super::purchases(&cx, organization, query.cursor.as_deref(), query.limit).await?;
    let data = found.into_iter().map(|purchase| PurchaseView::new(&cx, purchase)).collect();
    Ok(Json(Page { data, meta: PageMeta { next_cursor } }))
}

/// One purchase
#[utoipa::path(get, path = "/api/credits/purchases/{purchase}", tag = "credits", operation_id = "credit_purchase_get", security(("bearer" = [])),
    params(("purchase" = PurchaseId, Path)),
    responses((status = 200, body = CheckoutView), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
        (status = 404, body = ProblemBody)))]
async fn credit_purchase_get(
    Person(by): Person,
    State(cx): State<Cx>,
    Path(purchase): Path<PurchaseId>,
) -> Result<Json<CheckoutView>, Problem> {
    let purchase = super::purchase_find(&cx, &by, purchase).await?;
    let checkout_url = purchase.checkout_url.clone();
    Ok(Json(CheckoutView { purchase: PurchaseView::new(&cx, purchase), checkout_url }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReturnQuery {
    /// The id of the Checkout Session, which only the buyer and the provider know.
    session_id: String,
}

/// The page after Checkout
///
/// Where the payment provider leads the buyer back to. It asks the provider how the payment stands, so that nobody waits for
/// a webhook.
#[utoipa::path(get, path = "/api/credits/purchases/{purchase}/success", tag = "credits", operation_id = "credit_purchase_return",
    params(("purchase" = PurchaseId, Path), ReturnQuery),
    responses((status = 200, body = String, content_type = "text/html"), (status = 400, body = ProblemBody),
        (status = 404, body = ProblemBody)))]
async fn credit_purchase_return(
    State(cx): State<Cx>,
    Path(purchase): Path<PurchaseId>,
    Query(query): Query<ReturnQuery>,
) -> Result<Response, Problem> {
    let returned = super::purchase_return(&cx, purchase, &query.session_id).await?;
    let is_test = cx.payments.as_ref().is_some_and(|payments| payments.stripe.is_test());
    Ok(page(&returned, is_test))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

fn page(Returned { purchase, repaid }: &Returned, is_test: bool) -> Response {
    let (title, text) = match purchase.state {
        PurchaseState::Completed => {
            let bought = purchase.credits + purchase.bonus_credits;
            let text = match repaid {
                0 => format!("{bought} credits are in your account."),
                repaid => format!(
                    "You have bought {bought} credits. {repaid} of them have repaid what was owed; {} are in your account.",
                    bought - repaid
                ),
            };
            ("Thank you", text)
        }
        PurchaseState::Processing => (
            "Thank you",
            "Your payment is on its way. The credits come with it; there is nothing more to do.".to_owned(),
        ),
        PurchaseState::Created | PurchaseState::Open | PurchaseState::RequiresAction => (
            "Not paid yet",
            "We have not heard of your payment yet. If you have paid, the credits come by themselves.".to_owned(),
        ),
        PurchaseState::Failed | PurchaseState::Expired => {
            ("Not paid", "The payment did not go through, and nothing was charged.".to_owned())
        }
    };
    let test = if is_test { "<p class=\"test\">TEST MODE: no money has moved</p>" } else { "" };
    let on = purchase
        .success_url
        .as_deref()
        .map_or_else(String::new, |url| format!("<p><a href=\"{}\" rel=\"noreferrer\">Continue</a></p>", escape(url)));
    let body = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>body{{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:3rem auto;padding:0 1rem}}\
         .test{{background:#fd3;color:#000;padding:.5rem 1rem;font-weight:700}}</style>{test}<h1>{title}</h1><p>{text}</p>{on}</html>"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    ];
    (StatusCode::OK, headers, body).into_response()
}

/// What a webhook is answered.
#[derive(Serialize, ToSchema)]
pub struct ReceivedView {
    received: bool,
}

/// Events of the payment provider
///
/// Signed by it over the bytes of the body (`Stripe-Signature`). Answered as soon as the event is kept and followed.
#[utoipa::path(post, path = "/api/webhooks/stripe", tag = "credits", operation_id = "stripe_webhook",
    params(("Stripe-Signature" = String, Header)), request_body(content = String, content_type = "application/json; charset=utf-8"),
    responses((status = 200, body = ReceivedView), (status = 400, body = ProblemBody), (status = 409, body = ProblemBody),
        (status = 413, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn stripe_webhook(
    State(cx): State<Cx>,
    headers: HeaderMap,
    request: Request,
) -> Result<Json<ReceivedView>, Problem> {
    let payments = cx.payments.as_ref().ok_or(PurchaseError::NotConfigured)?;
    let refused = |detail: &str| {
        metrics::counter!("tenantry_stripe_webhooks_refused_total").increment(1);
        Problem::new(StatusCode::BAD_REQUEST, "invalid-signature", "The signature of the event is not valid")
            .detail(detail)
    };
    let mut signatures = headers.get_all(SIGNATURE).iter();
    let (Some(signature), None) = (signatures.next(), signatures.next()) else {
        return Err(refused("Send one Stripe-Signature header."));
    };
    let signature = signature.to_str().map_err(|_| refused("The header is not ASCII."))?.to_owned();
    let body = Bytes::from_request(request, &()).await.map_err(|rejected| match rejected {
        BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "The body is larger than this route reads")
        }
        _ => Problem::new(StatusCode::BAD_REQUEST, "body-unreadable", "The body could not be read to its end"),
    })?;
    let now_s = cx.clock.now().timestamp();
    payments.stripe.verify(&signature, &body, now_s).map_err(|error| {
        tracing::warn!("refused a webhook of the payment provider: {error}");
        refused("It must be the provider's, over these very bytes, and not older than five minutes.")
    })?;
    events::ingest(&cx, &body, EventSource::Webhook).await?;
    Ok(Json(ReceivedView { received: true }))
}

impl From<EventError> for Problem {
    fn from(error: EventError) -> Self {
        match error {
            EventError::Malformed(why) => {
                Self::new(StatusCode::BAD_REQUEST, "malformed-event", "The body is no event").detail(why)
            }
            EventError::Changed(_) => {
                Self::new(StatusCode::CONFLICT, "event-changed", "The event came before with another content")
                    .detail("It was not followed, and people were told.")
            }
            EventError::Db(error) => CreditError::Db(error).into(),
        }
    }
}

/// A purchase, as ops see it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OpsPurchaseView {
    #[serde(flatten)]
    pub purchase: PurchaseView,
    /// What the payment provider calls the payment; null before there is one.
    #[schema(example = "pi_3Q0PsIJvEtkwdCNY1SaVuRz6")]
    pub payment_intent: Option<String>,
    /// What it calls the movement of the money; null before it is paid.
    #[schema(example = "ch_3Q0PsIJvEtkwdCNY1SaVuRz6")]
    pub charge: Option<String>,
    /// When the provider is asked again how it stands; null once that is over.
    pub next_check_at: Option<DateTime<Utc>>,
}

impl OpsPurchaseView {
    pub fn new(cx: &OpsCx, mut of: Purchase) -> Self {
        let (payment_intent, charge) = (of.payment_intent.take(), of.charge_ref.take());
        let next_check_at = of.next_check_at;
        Self { purchase: PurchaseView::new(cx, of), payment_intent, charge, next_check_at }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OpsPurchaseListQuery {
    /// Those of every organization when left out.
    organization_id: Option<OrganizationId>,
    /// All when left out.
    state: Option<PurchaseState>,
    /// 1 to 100; 25 when left out.
    limit: Option<u8>,
    /// `meta.nextCursor` of the page before.
    cursor: Option<String>,
}

/// What organizations have bought, newest first
#[utoipa::path(get, path = "/api/ops/credits/purchases", tag = "ops", operation_id = "ops_purchase_list", security(("bearer" = [])),
    params(OpsPurchaseListQuery),
    responses((status = 200, body = Page<OpsPurchaseView>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 404, body = ProblemBody)))]
async fn ops_purchase_list(
    _ops: Ops,
    State(cx): State<Cx>,
    Query(query): Query<OpsPurchaseListQuery>,
) -> Result<Json<Page<OpsPurchaseView>>, Problem> {
    let filter = PurchaseFilter { organization: query.organization_id, state: query.state };
    let (found, next_cursor) = super::purchase_list(&cx, filter, query.cursor.as_deref(), query.limit).await?;
    let data = found.into_iter().map(|purchase| OpsPurchaseView::new(&cx, purchase)).collect();
    Ok(Json(Page { data, meta: PageMeta { next_cursor } }))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RefundBody {
    /// As much as the unspent credits were worth, when left out.
    amount_minor: Option<i64>,
    /// Kept in the audit trail.
    reason: Option<String>,
    /// Whether credits that are spent already may become debt; false when left out.
    allow_debt: Option<bool>,
}

/// Money of a purchase that goes back.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RefundView {
    id: PurchaseRefundId,
    state: RefundState,
    amount_minor: i64,
    reason: Option<String>,
    purchase: PurchaseView,
    created_at: DateTime<Utc>,
}

/// Give money of a purchase back
///
/// Takes the credits for it out of the unspent rest of the purchase, then asks the payment provider, once per
/// `Idempotency-Key`.
#[utoipa::path(post, path = "/api/ops/credits/purchases/{purchase}/refund", tag = "ops", operation_id = "ops_purchase_refund", security(("bearer" = [])),
    params(("purchase" = PurchaseId, Path), ("Idempotency-Key" = String, Header)), request_body = RefundBody,
    responses((status = 201, body = RefundView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody), (status = 422, body = ProblemBody),
        (status = 502, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn ops_purchase_refund(
    ops: Ops,
    State(cx): State<Cx>,
    Path(purchase): Path<PurchaseId>,
    key: IdempotencyKey,
    Json(body): Json<RefundBody>,
) -> Result<Response, Problem> {
    let new =
        NewRefund { amount_minor: body.amount_minor, reason: body.reason, may_owe: body.allow_debt.unwrap_or(false) };
    let (refund, purchase, is_new) =
        refunds::refund_create(&cx, ops.by.user.id, purchase, &new, key.0.as_deref()).await?;
    let PurchaseRefund { id, state, amount_minor, reason, created_at, .. } = refund;
    let view = RefundView { id, state, amount_minor, reason, purchase: PurchaseView::new(&cx, purchase), created_at };
    Ok(answered(StatusCode::CREATED, view, is_new))
}
