//! What each type of event says, as receivers read it: whoever tells of something fills in its type here, and the API's
//! description is made from the same types.
//!
//! Members are added and never taken away or given another meaning. Two events are told by functions of the ledger
//! ([`BalanceLow`], [`BudgetReached`]): their types are held against what is sent by the tests.

use chrono::{DateTime, NaiveDate, Utc};
use kernel::{CreditPackId, EventId, OrganizationId, PurchaseId, StoreId, UserId, WebhookEndpointId};
use serde::Serialize;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathItem, PathsBuilder};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{KnownFormat, SchemaFormat};
use utoipa::openapi::{Object, ObjectBuilder, OpenApi, Ref, RefOr, Required, ResponseBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::DisabledReason;
use crate::credits::purchases::PurchaseState;
use crate::credits::topups::OffReason;

/// What an event says.
pub trait EventData: Serialize + ToSchema {
    /// The name of its type.
    const TYPE: &'static str;
}

/// The credits that are available have fallen below the mark that is set. Told once, and again when they fall below it after
/// having been above.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = BalanceLowEvent)]
pub struct BalanceLow {
    pub available: i64,
    /// The mark.
    pub threshold: i64,
}

/// Who a budget is for.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BudgetOf {
    Store,
    Member,
}

/// So many percent of a month's budget are used.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = BudgetReachedEvent)]
pub struct BudgetReached {
    pub subject_kind: BudgetOf,
    /// Of a store's budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub store_id: Option<StoreId>,
    /// Of a person's budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub user_id: Option<UserId>,
    pub percent: i32,
    pub monthly_amount: i64,
    /// In this month.
    pub used: i64,
    #[schema(example = "2027-01")]
    pub month: String,
}

/// A pack is paid, and its credits are in the account.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = PurchaseCompletedEvent)]
pub struct PurchaseCompleted {
    pub purchase_id: PurchaseId,
    pub pack_id: CreditPackId,
    pub credits: i64,
    pub bonus_credits: i64,
    /// Taxes included.
    pub amount_minor: i64,
    pub currency: String,
    /// Whether a top-up bought it by itself.
    pub is_automatic: bool,
}

/// A purchase came to nothing.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = PurchaseEndedEvent)]
pub struct PurchaseEnded {
    pub purchase_id: PurchaseId,
    /// `failed` or `expired`.
    pub state: PurchaseState,
    /// Why it failed.
    pub failure: Option<String>,
}

/// Money of a purchase went back, or came again because a refund failed. The amounts are those of the whole purchase until
/// now, not what went back this time: the last event says how it stands.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = PurchaseRefundedEvent)]
pub struct PurchaseRefunded {
    pub purchase_id: PurchaseId,
    /// What went back of it in all.
    pub refunded_minor: i64,
    pub currency: String,
    /// The credits that were taken for that in all, bonus credits apart.
    pub refunded_credits: i64,
}

/// A cardholder says that they did not buy. What is unspent of the purchase cannot be spent while the bank decides.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = DisputeOpenedEvent)]
pub struct DisputeOpened {
    pub purchase_id: PurchaseId,
    pub disputed_minor: i64,
    /// The credits that were bought for it.
    pub disputed_credits: i64,
}

/// The bank has decided. When it is lost the credits are gone, and those that were spent already are owed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = DisputeClosedEvent)]
pub struct DisputeClosed {
    pub purchase_id: PurchaseId,
    pub is_won: bool,
}

/// An automatic purchase that the card did not pay.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = TopUpDeclinedEvent)]
pub struct TopUpDeclined {
    pub purchase_id: PurchaseId,
    pub pack_id: CreditPackId,
    pub amount_minor: i64,
    pub currency: String,
    /// What the payment provider says of it.
    #[schema(example = "card_declined")]
    pub failure: String,
    /// In a row, this one counted; the third switches top-ups off. 0 when the card was replaced since.
    pub consecutive_declines: i32,
}

/// The card was declined.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TopUpFailedEvent)]
pub struct TopUpFailed {
    #[serde(flatten)]
    pub declined: TopUpDeclined,
}

/// The bank asks for the owner of the card: somebody has to buy a pack by hand.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TopUpNeedsAuthenticationEvent)]
pub struct TopUpNeedsAuthentication {
    #[serde(flatten)]
    pub declined: TopUpDeclined,
}

/// Credits would be bought, but may not be before `until`. Told once for each month or day.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[schema(as = TopUpCappedEvent)]
pub enum TopUpCapped {
    /// The next pack would cost more than is left of the month's cap.
    #[serde(rename_all = "camelCase")]
    MonthlyCap {
        pack_id: CreditPackId,
        price_minor: i64,
        spent_minor: i64,
        monthly_cap_minor: i64,
        currency: String,
        until: DateTime<Utc>,
    },
    /// It was tried as often as it may be on one day.
    #[serde(rename_all = "camelCase")]
    DailyLimit { pack_id: CreditPackId, attempts: i64, until: DateTime<Utc> },
}

/// Nothing is bought by itself any more, until somebody switches it on again.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = TopUpOffEvent)]
pub struct TopUpOff {
    pub reason: OffReason,
    pub pack_id: CreditPackId,
    pub consecutive_declines: i32,
    /// Why the card was declined the last time.
    pub failure: Option<String>,
}

/// A store's charge was refused, and the days of grace begin. Told once until all is paid.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ChargeUnpaidEvent)]
pub struct ChargeUnpaid {
    pub store_id: StoreId,
    pub day: NaiveDate,
    #[schema(example = "store-day")]
    pub service: String,
    pub amount: i64,
    #[schema(example = "insufficient-credits")]
    pub reason: String,
    /// When the store becomes read-only unless it is paid.
    pub read_only_at: DateTime<Utc>,
}

/// The days of grace are over: the store takes no carts and no orders.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = StoreReadOnlyEvent)]
pub struct StoreReadOnly {
    pub store_id: StoreId,
    /// In credits.
    pub owed: i64,
}

/// Nothing is owed any more, and the store takes orders again.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = StoreReadOnlyLiftedEvent)]
pub struct StoreReadOnlyLifted {
    pub store_id: StoreId,
    pub owed: i64,
}

/// An endpoint is not told any more; this is told to the others.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = EndpointDisabledEvent)]
pub struct EndpointDisabled {
    pub endpoint_id: WebhookEndpointId,
    pub reason: DisabledReason,
}

/// Somebody has asked for it, to try the endpoint.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = WebhookTestEvent)]
pub struct Test {
    pub endpoint_id: WebhookEndpointId,
}

impl EventData for BalanceLow {
    const TYPE: &'static str = "credits.balance_low";
}
impl EventData for BudgetReached {
    const TYPE: &'static str = "credits.budget_reached";
}
impl EventData for PurchaseCompleted {
    const TYPE: &'static str = "credits.purchase_completed";
}
impl EventData for PurchaseEnded {
    const TYPE: &'static str = "credits.purchase_ended";
}
impl EventData for PurchaseRefunded {
    const TYPE: &'static str = "credits.purchase_refunded";
}
impl EventData for DisputeOpened {
    const TYPE: &'static str = "credits.dispute_opened";
}
impl EventData for DisputeClosed {
    const TYPE: &'static str = "credits.dispute_closed";
}
impl EventData for TopUpFailed {
    const TYPE: &'static str = "credits.top_up_failed";
}
impl EventData for TopUpNeedsAuthentication {
    const TYPE: &'static str = "credits.top_up_needs_authentication";
}
impl EventData for TopUpCapped {
    const TYPE: &'static str = "credits.top_up_capped";
}
impl EventData for TopUpOff {
    const TYPE: &'static str = "credits.top_up_off";
}
impl EventData for ChargeUnpaid {
    const TYPE: &'static str = "store.charge_unpaid";
}
impl EventData for StoreReadOnly {
    const TYPE: &'static str = "store.read_only";
}
impl EventData for StoreReadOnlyLifted {
    const TYPE: &'static str = "store.read_only_lifted";
}
impl EventData for EndpointDisabled {
    const TYPE: &'static str = "webhook.endpoint_disabled";
}
impl EventData for Test {
    const TYPE: &'static str = "webhook.test";
}

/// What organizations can be told of.
pub const EVENT_TYPES: [&str; 16] = [
    BalanceLow::TYPE,
    BudgetReached::TYPE,
    PurchaseCompleted::TYPE,
    PurchaseEnded::TYPE,
    PurchaseRefunded::TYPE,
    DisputeOpened::TYPE,
    DisputeClosed::TYPE,
    TopUpFailed::TYPE,
    TopUpNeedsAuthentication::TYPE,
    TopUpCapped::TYPE,
    TopUpOff::TYPE,
    ChargeUnpaid::TYPE,
    StoreReadOnly::TYPE,
    StoreReadOnlyLifted::TYPE,
    EndpointDisabled::TYPE,
    Test::TYPE,
];

/// Says in the API's description what an endpoint is told: one webhook for each type of event.
pub fn describe(document: &mut OpenApi) {
    let mut described = Described { document, paths: PathsBuilder::new() };
    described.add::<BalanceLow>();
    described.add::<BudgetReached>();
    described.add::<PurchaseCompleted>();
    described.add::<PurchaseEnded>();
    described.add::<PurchaseRefunded>();
    described.add::<DisputeOpened>();
    described.add::<DisputeClosed>();
    described.add::<TopUpFailed>();
    described.add::<TopUpNeedsAuthentication>();
    described.add::<TopUpCapped>();
    described.add::<TopUpOff>();
    described.add::<ChargeUnpaid>();
    described.add::<StoreReadOnly>();
    described.add::<StoreReadOnlyLifted>();
    described.add::<EndpointDisabled>();
    described.add::<Test>();
    let paths = described.paths.build();
    document.webhooks = Some(paths);
}

struct Described<'a> {
    document: &'a mut OpenApi,
    paths: PathsBuilder,
}

impl Described<'_> {
    fn add<E: EventData>(&mut self) {
        let components = self.document.components.get_or_insert_default();
        let mut schemas = Vec::new();
        E::schemas(&mut schemas);
        let (name, schema) = (E::name().into_owned(), E::schema());
        let when = description(&schema).to_owned();
        components.schemas.extend(schemas);
        components.schemas.insert(name.clone(), schema);
        let body = ContentBuilder::new().schema(Some(message(E::TYPE, &name))).build();
        let header = |name: &str, says: &str| {
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Header)
                .required(Required::True)
                .description(Some(says))
                .schema(Some(Object::with_type(Type::String)))
        };
        let operation = OperationBuilder::new()
            .tag("webhooks")
            .summary(Some(E::TYPE))
            .description(Some(when))
            .parameter(header("webhook-id", "The event's id: the same when it is sent again."))
            .parameter(header("webhook-timestamp", "When it was sent, in seconds of Unix time."))
            .parameter(header("webhook-signature", "`v1,` and the signature, for each secret that counts."))
            .request_body(Some(
                RequestBodyBuilder::new().content("application/json", body).required(Some(Required::True)).build(),
            ))
            .response("2XX", ResponseBuilder::new().description("It is taken"))
            .response("410", ResponseBuilder::new().description("It is not wanted any more: the endpoint is disabled"))
            .build();
        let paths = std::mem::take(&mut self.paths);
        self.paths = paths.path(E::TYPE, PathItem::new(HttpMethod::Post, operation));
    }
}

/// The body that is posted.
fn message(kind: &str, data: &str) -> Object {
    let moment = ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .description(Some("When it happened."));
    ObjectBuilder::new()
        .property("id", EventId::schema())
        .required("id")
        .property("type", ObjectBuilder::new().schema_type(Type::String).enum_values(Some([kind])))
        .required("type")
        .property("timestamp", moment)
        .required("timestamp")
        .property("organizationId", OrganizationId::schema())
        .required("organizationId")
        .property("data", Ref::from_schema_name(data))
        .required("data")
        .build()
}

/// What the comment on a type says.
fn description(schema: &RefOr<Schema>) -> &str {
    let said = match schema {
        RefOr::T(Schema::Object(schema)) => &schema.description,
        RefOr::T(Schema::AllOf(schema)) => &schema.description,
        RefOr::T(Schema::OneOf(schema)) => &schema.description,
        _ => &None,
    };
    said.as_deref().unwrap_or_default()
}
