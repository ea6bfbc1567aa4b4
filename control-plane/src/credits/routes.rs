//! HTTP of credits.

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use kernel::{CreditHoldId, CreditLotId, CreditTransactionId, OrganizationId, StoreId, UserId};
use problem::{Json, Problem, ProblemBody, Query};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::prices::{self, Price, Wanted};
use super::statement::{self, StatementForm, StatementFrame, StatementLine};
use super::verify::Verification;
use super::{
    Balance, CreditError, Decision, GrantTo, Lot, LotKind, NewGrant, Transaction, TransactionFilter, TransactionKind,
    TransactionStatus, budgets, holds,
};
use crate::audit::Actor;
use crate::cx::{Cx, OpsCx};
use crate::http::auth::{Ops, Person};
use crate::http::moment::{moment, moment_or_none};
use crate::idempotency::{self, IdempotencyKey};
use crate::identity::Principal;
use crate::ops::routes::{Page, PageMeta};

pub fn router() -> OpenApiRouter<Cx> {
    budgets::routes::router()
        .merge(holds::routes::router())
        .routes(routes!(credit_balance))
        .routes(routes!(credit_transaction_list))
        .routes(routes!(credit_spend))
        .routes(routes!(credit_quote))
        .routes(routes!(credit_price_list))
        .routes(routes!(credit_statement))
        .routes(routes!(ops_credit_grant))
        .routes(routes!(ops_credit_verify))
}

/// Which organization, for somebody who has several.
#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OrganizationQuery {
    /// May be left out by somebody with one organization.
    pub organization_id: Option<OrganizationId>,
}

/// What an account holds, in whole credits.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AmountsView {
    /// What can be spent now.
    pub available: i64,
    /// What is reserved.
    pub held: i64,
    /// Credits that were spent and whose money went back since, by a refund or a dispute. The next purchase repays it first; until
    /// then what is available can be spent all the same.
    pub debt: i64,
}

impl From<Balance> for AmountsView {
    fn from(balance: Balance) -> Self {
        Self { available: balance.available, held: balance.held, debt: balance.debt }
    }
}

/// Credits that were granted together.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LotView {
    pub id: CreditLotId,
    pub kind: LotKind,
    pub granted: i64,
    pub remaining: i64,
    pub held: i64,
    /// 0 is spent first, 100 last.
    pub priority: i16,
    /// Null when they do not expire.
    pub expires_at: Option<DateTime<Utc>>,
}

impl From<Lot> for LotView {
    fn from(lot: Lot) -> Self {
        let Lot { id, kind, granted, remaining, held, priority, expires_at } = lot;
        Self { id, kind, granted, remaining, held, priority, expires_at }
    }
}

/// An organization's credits.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BalanceView {
    pub organization_id: OrganizationId,
    #[serde(flatten)]
    pub amounts: AmountsView,
    /// What it is made of, in the order in which it is spent.
    pub lots: Vec<LotView>,
}

impl BalanceView {
    /// Reads what an organization has.
    pub async fn read(cx: &OpsCx, organization_id: OrganizationId) -> Result<Self, CreditError> {
        let balance = super::balance(cx, organization_id).await?;
        let lots = super::lots(cx, organization_id).await?;
        Ok(Self { organization_id, amounts: balance.into(), lots: lots.into_iter().map(Into::into).collect() })
    }
}

/// The balance
///
/// A spend never makes debt: it is refused when less is available. Debt comes of refunds and lost disputes alone, when credits
/// that are given back are spent already. It is repaid by the next purchase, before anything of that becomes available; it does
/// not keep anybody from spending what is available.
#[utoipa::path(get, path = "/api/credits/balance", tag = "credits", operation_id = "credit_balance", security(("bearer" = [])), params(OrganizationQuery),
    responses((status = 200, body = BalanceView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn credit_balance(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<OrganizationQuery>,
) -> Result<Json<BalanceView>, Problem> {
    let (organization_id, _) = super::organization_of(&cx, by.user.id, query.organization_id).await?;
    Ok(Json(BalanceView::read(&cx, organization_id).await?))
}

/// One decision: what was asked for, and what came of it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TransactionView {
    pub id: CreditTransactionId,
    /// 1, 2, 3 within the account.
    pub version: i64,
    pub kind: TransactionKind,
    pub status: TransactionStatus,
    /// What the ledger refused it for, such as `insufficient-credits`, `store-budget-exceeded`, `member-budget-exceeded`,
    /// `capture-exceeds-hold`, `hold-expired`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub amount: i64,
    pub store_id: Option<StoreId>,
    /// Who did it; null for what happened by itself.
    pub user_id: Option<UserId>,
    pub hold_id: Option<CreditHoldId>,
    pub service: Option<String>,
    pub quantity: Option<i64>,
    pub description: Option<String>,
    /// Left out for a token that is good for one store: what the organization has is not that store's business.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balance_after: Option<AmountsView>,
    pub created_at: DateTime<Utc>,
}

impl TransactionView {
    /// As far as somebody may see it.
    pub fn seen_by(by: &Principal, of: Transaction) -> Self {
        let whole = Self::from(of);
        let balance_after = whole.balance_after.filter(|_| by.token_store.is_none());
        Self { balance_after, ..whole }
    }
}

impl From<Transaction> for TransactionView {
    fn from(of: Transaction) -> Self {
        Self {
            id: of.id,
            version: of.version,
            kind: of.kind,
            status: of.status,
            reason: of.reason,
            amount: of.amount,
            store_id: of.store_id,
            user_id: of.actor_user_id,
            hold_id: of.hold_id,
            service: of.service,
            quantity: of.quantity,
            description: of.description,
            balance_after: Some(AmountsView {
                available: of.available_after,
                held: of.held_after,
                debt: of.debt_after,
            }),
            created_at: of.created_at,
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TransactionListQuery {
    /// May be left out by somebody with one organization.
    organization_id: Option<OrganizationId>,
    store_id: Option<StoreId>,
    kind: Option<TransactionKind>,
    /// Who did it.
    user_id: Option<UserId>,
    /// From this moment on; a day counts from its midnight (UTC).
    #[serde(default, deserialize_with = "moment_or_none")]
    from: Option<DateTime<Utc>>,
    /// Before this moment.
    #[serde(default, deserialize_with = "moment_or_none")]
    until: Option<DateTime<Utc>>,
    /// 1 to 100; 25 when left out.
    limit: Option<u8>,
    /// `meta.nextCursor` of the page before.
    cursor: Option<String>,
}

/// Transactions, newest first
#[utoipa::path(get, path = "/api/credits/transactions", tag = "credits", operation_id = "credit_transaction_list", security(("bearer" = [])), params(TransactionListQuery),
    responses((status = 200, body = Page<TransactionView>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn credit_transaction_list(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<TransactionListQuery>,
) -> Result<Json<Page<TransactionView>>, Problem> {
    let (organization, _) = super::organization_of(&cx, by.user.id, query.organization_id).await?;
    let filter = TransactionFilter {
        store: query.store_id,
        kind: query.kind,
        actor: query.user_id,
        from: query.from,
        until: query.until,
    };
    let (found, next_cursor) =
        super::transactions(&cx, organization, &filter, query.cursor.as_deref(), query.limit).await?;
    Ok(Json(Page { data: found.into_iter().map(Into::into).collect(), meta: PageMeta { next_cursor } }))
}

#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SpendBody {
    pub store_id: StoreId,
    /// Whole credits, 1 to 1,000,000,000,000; or a service and its quantity.
    #[schema(example = 10, minimum = 1)]
    pub amount: Option<i64>,
    /// One of `GET /api/credits/prices`, instead of an amount.
    pub service: Option<String>,
    /// How many of the price's `unit`, in whole ones.
    #[schema(minimum = 1)]
    pub quantity: Option<i64>,
    /// Shown in the list and on the statement.
    #[schema(example = "Product texts for 20 products")]
    pub description: Option<String>,
}

impl SpendBody {
    /// What is to be paid for.
    pub fn wanted(&self) -> Wanted {
        Wanted { amount: self.amount, service: self.service.clone(), quantity: self.quantity }
    }
}

/// An answer of the ledger; repeated under the same key it says so in a header.
pub fn decided<V: Serialize>(status: StatusCode, decision: Decision, view: impl FnOnce(Transaction) -> V) -> Response {
    let is_replay = !decision.is_new;
    let mut response = (status, Json(view(decision.transaction))).into_response();
    if is_replay {
        response.headers_mut().insert(idempotency::REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

/// Spend credits on a store
///
/// Once per `Idempotency-Key`, which is kept for ever: repeating it answers what was decided then, also a refusal. Anybody who
/// is let into the store may spend, within its budget and their own.
#[utoipa::path(post, path = "/api/credits/spend", tag = "credits", operation_id = "credit_spend", security(("bearer" = [])),
    params(("Idempotency-Key" = String, Header)), request_body = SpendBody,
    responses((status = 201, body = TransactionView), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 402, body = ProblemBody, description = "Not enough credits: `required`, `available`, and where to buy: `packsUrl` lists \
            packs, a POST to `purchaseUrl` buys one"),
        (status = 403, body = ProblemBody), (status = 422, body = ProblemBody), (status = 503, body = ProblemBody)))]
async fn credit_spend(
    by: Principal,
    State(cx): State<Cx>,
    key: IdempotencyKey,
    Json(body): Json<SpendBody>,
) -> Result<Response, Problem> {
    let decision = super::spend(&cx, &by, &body, key.0.as_deref()).await?;
    Ok(decided(StatusCode::CREATED, decision, |of| TransactionView::seen_by(&by, of)))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrantBody {
    /// Either this or `storeId`.
    organization_id: Option<OrganizationId>,
    /// Grants to the organization of this store.
    store_id: Option<StoreId>,
    amount: i64,
    /// `promotional` when left out.
    kind: Option<LotKind>,
    expires_at: Option<DateTime<Utc>>,
    /// Kept in the audit trail and shown on the statement.
    reason: String,
}

/// Grant credits
///
/// Once per `Idempotency-Key`. Without one, the very same grant within ten minutes is refused with `granted-before`, which
/// names the first: it is taken for a request that was sent twice.
#[utoipa::path(post, path = "/api/ops/credits/grants", tag = "ops", operation_id = "ops_credit_grant", security(("bearer" = [])),
    params(("Idempotency-Key" = Option<String>, Header)), request_body = GrantBody,
    responses((status = 201, body = TransactionView), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn ops_credit_grant(
    ops: Ops,
    State(cx): State<Cx>,
    key: IdempotencyKey,
    Json(body): Json<GrantBody>,
) -> Result<Response, Problem> {
    let to = match (body.organization_id, body.store_id) {
        (Some(organization), None) => GrantTo::Organization(organization),
        (None, Some(store)) => GrantTo::Store(store),
        _ => {
            return Err(Problem::invalid().field(
                "/organizationId",
                "required",
                "give either organizationId or storeId",
            ));
        }
    };
    let new = NewGrant {
        to,
        kind: body.kind.unwrap_or(LotKind::Promotional),
        amount: body.amount,
        expires_at: body.expires_at,
        reason: body.reason,
    };
    let decision = super::grant_by_hand(&cx, Actor::User(ops.by.user.id), &new, key.0.as_deref()).await?;
    Ok(decided(StatusCode::CREATED, decision, TransactionView::from))
}

/// Verify the ledger
///
/// Every invariant of every account, and every sealed root.
#[utoipa::path(get, path = "/api/ops/credits/verification", tag = "ops", operation_id = "ops_credit_verify", security(("bearer" = [])), params(OrganizationQuery),
    responses((status = 200, body = Verification), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn ops_credit_verify(
    _ops: Ops,
    State(cx): State<Cx>,
    Query(query): Query<OrganizationQuery>,
) -> Result<Json<Verification>, Problem> {
    Ok(Json(super::verify::verify(&cx, query.organization_id).await?))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QuoteBody {
    store_id: StoreId,
    amount: Option<i64>,
    service: Option<String>,
    quantity: Option<i64>,
}

/// What an action would cost and leave.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuoteView {
    /// What it costs, in credits.
    amount: i64,
    /// The price that it is made by; null for a plain amount.
    price: Option<Price>,
    /// Null for a token that is good for one store.
    available: Option<i64>,
    /// What would be available after it; null when it would be refused, and for a token that is good for one store.
    available_after: Option<i64>,
    /// The `code` that a spend would be refused with now: `insufficient-credits` or `budget-exceeded`; null when it would be done.
    #[schema(example = "budget-exceeded")]
    refusal: Option<&'static str>,
    /// Whose budget does not allow it, `store` or `member`, as the refusal of a spend says it; null when none is in the way.
    #[schema(example = "store")]
    budget: Option<&'static str>,
}

/// Quote an action
///
/// What it costs and what is left after it, without doing it. Prices and balances may change before it is done.
#[utoipa::path(post, path = "/api/credits/quote", tag = "credits", operation_id = "credit_quote", security(("bearer" = [])), request_body = QuoteBody,
    responses((status = 200, body = QuoteView), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody), (status = 422, body = ProblemBody)))]
async fn credit_quote(
    by: Principal,
    State(cx): State<Cx>,
    Json(body): Json<QuoteBody>,
) -> Result<Json<QuoteView>, Problem> {
    let wanted = Wanted { amount: body.amount, service: body.service, quantity: body.quantity };
    let quote = super::quote(&cx, &by, body.store_id, &wanted).await?;
    let amount = quote.cost.amount;
    let available = by.token_store.is_none().then_some(quote.balance.available);
    let available_after = available.filter(|_| quote.refusal.is_none()).map(|available| available - amount);
    let budget = match quote.refusal {
        Some(CreditError::BudgetExceeded { of, .. }) => Some(of),
        _ => None,
    };
    let refusal = quote.refusal.map(|refusal| Problem::from(refusal).code());
    Ok(Json(QuoteView { amount, price: quote.cost.price, available, available_after, refusal, budget }))
}

/// Prices
///
/// What services cost now. A price never changes: a new version takes over.
#[utoipa::path(get, path = "/api/credits/prices", tag = "credits", operation_id = "credit_price_list", security(("bearer" = [])),
    responses((status = 200, body = Page<Price>), (status = 401, body = ProblemBody)))]
async fn credit_price_list(_by: Principal, State(cx): State<Cx>) -> Result<Json<Page<Price>>, Problem> {
    Ok(Json(Page::whole(prices::prices(&cx).await?)))
}

/// The form of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StatementFormat {
    Json,
    Csv,
    /// A page for printing.
    Html,
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StatementQuery {
    /// May be left out by somebody with one organization.
    organization_id: Option<OrganizationId>,
    /// From this moment on; a day counts from its midnight (UTC).
    #[serde(deserialize_with = "moment")]
    from: DateTime<Utc>,
    /// Before this moment.
    #[serde(deserialize_with = "moment")]
    until: DateTime<Utc>,
    /// `json` when left out.
    #[param(inline)]
    format: Option<StatementFormat>,
}

/// A statement: opening balance, entries, closing balance.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StatementView {
    #[serde(flatten)]
    frame: StatementFrame,
    data: Vec<StatementLine>,
}

/// A statement
///
/// Opening balance, every entry, closing balance of a period; as JSON for at most 10,000 entries, as CSV or a printable page for any
/// number.
#[utoipa::path(get, path = "/api/credits/statement", tag = "credits", operation_id = "credit_statement", security(("bearer" = [])), params(StatementQuery),
    responses((status = 200, body = StatementView, description = "Or `text/csv`, or `text/html`"), (status = 400, body = ProblemBody),
        (status = 401, body = ProblemBody), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
async fn credit_statement(
    Person(by): Person,
    State(cx): State<Cx>,
    Query(query): Query<StatementQuery>,
) -> Result<Response, Problem> {
    let (organization, _) = super::organization_of(&cx, by.user.id, query.organization_id).await?;
    let frame = statement::frame(&cx, organization, query.from, query.until).await?;
    let streamed = |form, content_type, name: &str| {
        let disposition = HeaderValue::from_str(name).unwrap_or(HeaderValue::from_static("inline"));
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
            (header::CONTENT_DISPOSITION, disposition),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            // A page of entries runs nothing and loads nothing.
            (
                header::CONTENT_SECURITY_POLICY,
                HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'"),
            ),
        ];
        (headers, statement::stream(&cx, frame, form)).into_response()
    };
    Ok(match query.format.unwrap_or(StatementFormat::Json) {
        StatementFormat::Json => {
            Json(StatementView { frame, data: statement::lines(&cx, &frame).await? }).into_response()
        }
        StatementFormat::Csv => {
            let name = format!("attachment; filename=\"credits-{}.csv\"", query.from.format("%Y-%m-%d"));
            streamed(StatementForm::Csv, "text/csv; charset=utf-8", &name)
        }
        StatementFormat::Html => streamed(StatementForm::Html, "text/html; charset=utf-8", "inline"),
    })
}

/// The organization that somebody manages: owners and admins.
pub async fn managed(cx: &Cx, by: &Principal, wanted: Option<OrganizationId>) -> Result<OrganizationId, Problem> {
    let (organization, role) = super::organization_of(cx, by.user.id, wanted).await?;
    if role.is_manager() { Ok(organization) } else { Err(CreditError::NotManager.into()) }
}
