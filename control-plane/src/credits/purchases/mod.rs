//! Buying credits: an order is written down, paid at the provider, and granted once, whoever notices first that it is paid.
//!
//! What the provider says (webhooks, answers, pages of a list) only teaches facts about a purchase; [`books`] makes the
//! ledger follow them under the lock of the purchase's row. So a webhook, its copy, the success page and the sweep may race,
//! come late or in another order: the end is the same. Amount, currency and customer of what was paid must be those of the
//! order that we wrote down; nothing that a client sends names a price.

pub mod books;
pub mod db;
pub mod events;
pub mod jobs;
pub mod recon;
pub mod refunds;
pub mod routes;

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use kernel::{CreditLotId, CreditPackId, CreditTransactionId, OrganizationId, PurchaseId, UserId};
use problem::Problem;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use url::Url;

use super::packs::{self, Pack};
use super::stripe::objects::{PaymentIntent, Reference, Session};
use super::stripe::{Stripe, StripeError};
use super::{CreditError, organization_of, request_hash, user_key};
use crate::audit::{self, Actor, Subject};
use crate::config::{ConfigError, HostArgs, PaymentArgs};
use crate::cx::OpsCx;
use crate::http::outgoing::is_https_or_loopback;
use crate::http::paging::Window;
use crate::identity::Principal;
use books::Fault;

/// Under this name our id is in the provider's objects.
pub const POINTER: &str = "purchase_id";
/// Where Stripe puts the id of the session into the address of the success page.
const SESSION_PLACE: &str = "{CHECKOUT_SESSION_ID}";
/// An unfinished purchase is looked at at the provider so often.
pub(super) const CHECK_PERIOD: chrono::Duration = chrono::Duration::hours(1);
const MAX_URL: usize = 2000;

/// The provider, and how it leads back to us.
pub struct Payments {
    pub stripe: Stripe,
    public_url: Url,
    /// How often what was missed is looked for.
    pub sweep: Duration,
    /// How often the books are compared.
    pub reconcile: Duration,
    /// Held while somebody has them compared besides.
    pub comparing: Arc<Semaphore>,
    /// How often it is looked at who runs out of credits.
    pub top_up: Duration,
    /// How long an automatic top-up waits after a decline, and after one more.
    pub top_up_backoffs: [chrono::Duration; 2],
}

impl Payments {
    /// What is configured; nothing when nothing is to be sold.
    ///
    /// # Errors
    /// A sentence that names the variable, never its value.
    pub fn new(args: &PaymentArgs, hosts: &HostArgs) -> Result<Option<Self>, ConfigError> {
        let Some(stripe) = Stripe::new(args)? else { return Ok(None) };
        let wait = |name, wait: Duration| {
            chrono::Duration::from_std(wait).map_err(|_| ConfigError::Invalid { name, why: "is too long".to_owned() })
        };
        Ok(Some(Self {
            stripe,
            public_url: hosts.public_url()?,
            sweep: args.payment_sweep,
            reconcile: args.payment_reconcile,
            comparing: Arc::new(Semaphore::new(1)),
            top_up: args.top_up_poll,
            top_up_backoffs: [
                wait("TOP_UP_FIRST_BACKOFF_S", args.top_up_first_backoff)?,
                wait("TOP_UP_SECOND_BACKOFF_S", args.top_up_second_backoff)?,
            ],
        }))
    }

    fn success_page(&self, purchase: PurchaseId) -> String {
        let base = self.public_url.as_str().trim_end_matches('/');
        format!("{base}/api/credits/purchases/{purchase}/success?session_id={SESSION_PLACE}")
    }
}

/// How a purchase stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema, clap::ValueEnum)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum PurchaseState {
    /// Written down; the provider may not know of it.
    Created,
    /// Its Checkout page is open.
    Open,
    /// Paid by a method whose money comes later.
    Processing,
    /// The owner of the card has to authenticate.
    RequiresAction,
    /// Paid, and granted.
    Completed,
    Failed,
    Expired,
}

impl PurchaseState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Open => "open",
            Self::Processing => "processing",
            Self::RequiresAction => "requires_action",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Expired => "expired",
        }
    }

    /// Whether it may still become anything without money having come.
    pub const fn is_unfinished(self) -> bool {
        matches!(self, Self::Created | Self::Open | Self::Processing | Self::RequiresAction)
    }
}

/// An order of a pack.
#[derive(Debug, Clone)]
pub struct Purchase {
    pub id: PurchaseId,
    pub organization_id: OrganizationId,
    pub user_id: Option<UserId>,
    pub pack_id: CreditPackId,
    pub pack_version: i32,
    pub credits: i64,
    pub bonus_credits: i64,
    pub amount_minor: i64,
    pub tax_minor: i64,
    pub currency: String,
    pub state: PurchaseState,
    pub is_auto: bool,
    /// Whether the card that it is paid with becomes the organization's.
    pub saves_card: bool,
    /// The card that an automatic one is paid with.
    pub payment_method: Option<String>,
    pub customer_ref: Option<String>,
    pub checkout_session: Option<String>,
    pub checkout_url: Option<String>,
    pub payment_intent: Option<String>,
    pub charge_ref: Option<String>,
    pub failure: Option<String>,
    pub success_url: Option<String>,
    pub cancel_url: Option<String>,
    pub request_hash: Vec<u8>,
    pub idempotency_key: String,
    pub called_at: Option<DateTime<Utc>>,
    pub transaction_id: Option<CreditTransactionId>,
    pub paid_lot_id: Option<CreditLotId>,
    pub bonus_lot_id: Option<CreditLotId>,
    pub charge_refunded_minor: i64,
    pub refunded_minor: i64,
    pub refunded_credits: i64,
    pub refunded_bonus: i64,
    pub refund_steps: i32,
    pub next_check_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub completed_at: Option<DateTime<Utc>>,
}

impl Purchase {
    /// An order of a pack as it is before anybody was asked for anything. What was asked for says its hash.
    pub(super) fn of_pack(
        organization_id: OrganizationId,
        pack: &Pack,
        request_hash: &[u8],
        now: DateTime<Utc>,
    ) -> Self {
        let id = PurchaseId::new(now);
        Self {
            id,
            organization_id,
            user_id: None,
            pack_id: pack.id,
            pack_version: pack.version,
            credits: pack.credits,
            bonus_credits: pack.bonus_credits,
            amount_minor: pack.price_minor,
            tax_minor: 0,
            currency: pack.currency.clone(),
            state: PurchaseState::Created,
            is_auto: false,
            saves_card: false,
            payment_method: None,
            customer_ref: None,
            checkout_session: None,
            checkout_url: None,
            payment_intent: None,
            charge_ref: None,
            failure: None,
            success_url: None,
            cancel_url: None,
            request_hash: request_hash.to_vec(),
            idempotency_key: format!("purchase:{id}"),
            called_at: None,
            transaction_id: None,
            paid_lot_id: None,
            bonus_lot_id: None,
            charge_refunded_minor: 0,
            refunded_minor: 0,
            refunded_credits: 0,
            refunded_bonus: 0,
            refund_steps: 0,
            next_check_at: Some(now + CHECK_PERIOD),
            created_at: now,
            updated_at: now,
            completed_at: None,
        }
    }
}

/// How a dispute stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum DisputeState {
    Open,
    Won,
    Lost,
}

impl DisputeState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Won => "won",
            Self::Lost => "lost",
        }
    }
}

/// A cardholder says that they did not buy.
#[derive(Debug, Clone)]
pub struct Dispute {
    pub id: String,
    pub purchase_id: PurchaseId,
    pub amount_minor: i64,
    pub reason: Option<String>,
    pub state: DisputeState,
    pub opened_credits: Option<i64>,
    pub opening_id: Option<CreditTransactionId>,
    pub closing_id: Option<CreditTransactionId>,
}

/// Why buying, or giving money back, was refused.
#[derive(Debug, thiserror::Error)]
pub enum PurchaseError {
    #[error("no payment provider is configured")]
    NotConfigured,
    #[error("there is no such purchase")]
    NotFound,
    #[error("there is no such pack on sale")]
    PackNotFound,
    #[error("the purchase is {}", state.as_str())]
    NotPaid { state: PurchaseState },
    #[error("the payment is disputed")]
    Disputed,
    #[error("the payment was lost to a dispute")]
    DisputeLost,
    #[error("{unspent} credits of it are unspent, {wanted} would be taken back")]
    ExceedsUnspent { unspent: i64, wanted: i64, refundable_minor: i64 },
    #[error("{left_minor} of the money is left to be given back")]
    ExceedsPaid { left_minor: i64 },
    #[error("the payment provider did not do it")]
    Provider(#[from] StripeError),
    #[error("what the payment provider says does not fit the purchase")]
    Books(#[source] Fault),
    #[error(transparent)]
    Credits(#[from] CreditError),
}

impl From<sqlx::Error> for PurchaseError {
    fn from(error: sqlx::Error) -> Self {
        Self::Credits(CreditError::Db(error))
    }
}

impl From<Fault> for PurchaseError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Db(error) => Self::from(error),
            fault @ Fault::Mismatch(_) => Self::Books(fault),
        }
    }
}

pub(super) fn payments(cx: &OpsCx) -> Result<&Payments, PurchaseError> {
    cx.payments.as_ref().ok_or(PurchaseError::NotConfigured)
}

/// Where a buyer is led after Checkout: a page that nobody on the way can read.
fn check_url(url: Option<&str>, pointer: &'static str) -> Result<Option<String>, CreditError> {
    let refused = |detail: &str| super::invalid(pointer, "url", detail);
    let Some(given) = url else { return Ok(None) };
    if given.len() > MAX_URL {
        return Err(refused("must be at most 2000 characters"));
    }
    let url = Url::parse(given).map_err(|_| refused("must be an absolute URL"))?;
    if !is_https_or_loopback(&url) || !url.username().is_empty() || url.password().is_some() {
        return Err(refused("must be an https URL without a user; http only at localhost"));
    }
    Ok(Some(url.into()))
}

/// Orders a pack, once per key, and opens its Checkout page. True when the order is new.
pub async fn purchase_create(
    cx: &OpsCx,
    by: &Principal,
    body: &routes::PurchaseBody,
    key: Option<&str>,
) -> Result<(Purchase, bool), PurchaseError> {
    let key = user_key(key)?;
    let success_url = check_url(body.success_url.as_deref(), "/successUrl")?;
    let cancel_url = check_url(body.cancel_url.as_deref(), "/cancelUrl")?;
    let (organization_id, role) = organization_of(cx, by.user.id, body.organization_id).await?;
    if !role.is_manager() {
        return Err(CreditError::NotManager.into());
    }
    let payments = payments(cx)?;
    let asked = (organization_id, body.pack_id, &success_url, &cancel_url);
    let saves_card = body.save_card.unwrap_or(false);
    // Keys outlive releases: what is asked for as ever has the hash that it ever had.
    let hash = if saves_card {
        request_hash("purchase_create", &(asked, "save_card"))
    } else {
        request_hash("purchase_create", &asked)
    }?;
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    if let Some(known) = db::purchase_of_key(&mut tx, organization_id, &key).await? {
        tx.commit().await?;
        return purchase_repeat(cx, payments, known, &hash).await;
    }
    let pack = packs::db::pack_find(&mut tx, body.pack_id).await?;
    let pack = pack.filter(|pack| pack.retired_at.is_none()).ok_or(PurchaseError::PackNotFound)?;
    let order = Purchase::of_pack(organization_id, &pack, &hash, now);
    let purchase = Purchase { user_id: Some(by.user.id), saves_card, success_url, cancel_url, ..order };
    let id = purchase.id;
    if !db::purchase_insert(&mut tx, &purchase, &key).await? {
        // Somebody else was first with the same key.
        tx.commit().await?;
        let known = db::purchase_of_key(&mut *cx.master.acquire().await?, organization_id, &key).await?;
        return purchase_repeat(cx, payments, known.ok_or(sqlx::Error::RowNotFound)?, &hash).await;
    }
    let data = serde_json::json!({ "purchaseId": id, "packId": pack.id, "amountMinor": pack.price_minor, "currency": pack.currency });
    let actor = Actor::User(by.user.id);
    audit::record(&mut tx, now, actor, "purchase_create", Subject::organization(organization_id), data).await?;
    tx.commit().await?;
    Ok((checkout_open(cx, payments, id).await?, true))
}

async fn purchase_repeat(
    cx: &OpsCx,
    payments: &Payments,
    id: PurchaseId,
    hash: &[u8],
) -> Result<(Purchase, bool), PurchaseError> {
    let purchase = find(cx, id).await?;
    if purchase.request_hash != hash {
        return Err(CreditError::KeyReused.into());
    }
    Ok((checkout_open(cx, payments, id).await?, false))
}

pub(super) async fn find(cx: &OpsCx, id: PurchaseId) -> Result<Purchase, PurchaseError> {
    db::purchase_find(&mut *cx.master.acquire().await?, id).await?.ok_or(PurchaseError::NotFound)
}

/// Opens the Checkout page of an order that has none. Whatever becomes of the call, repeating it leads to the same page.
async fn checkout_open(cx: &OpsCx, payments: &Payments, id: PurchaseId) -> Result<Purchase, PurchaseError> {
    let purchase = find(cx, id).await?;
    if purchase.state != PurchaseState::Created || purchase.is_auto {
        return Ok(purchase);
    }
    let customer = customer_of(cx, payments, purchase.organization_id).await?;
    let mut tx = cx.master.begin().await?;
    let mut purchase = db::purchase_lock(&mut tx, id).await?.ok_or(PurchaseError::NotFound)?;
    let was_called = purchase.called_at.is_some();
    let customer = purchase.customer_ref.get_or_insert(customer).clone();
    purchase.called_at.get_or_insert(cx.clock.now());
    let pack = packs::db::pack_find(&mut tx, purchase.pack_id).await?.ok_or(PurchaseError::PackNotFound)?;
    db::purchase_save(&mut tx, &purchase).await?;
    tx.commit().await?;

    // Once a call was made its outcome may be there, also after the provider has forgotten the key.
    let known = if was_called { session_find(payments, &customer, id).await? } else { None };
    let session = match known {
        Some(session) => session,
        None => session_create(cx, payments, &mut purchase, &pack, customer).await?,
    };
    learn(cx, id, &Learned { session: Some(&session), ..Learned::default() }).await
}

async fn session_create(
    cx: &OpsCx,
    payments: &Payments,
    purchase: &mut Purchase,
    pack: &Pack,
    customer: String,
) -> Result<Session, PurchaseError> {
    let form = session_form(payments, purchase, pack, &customer);
    match payments.stripe.session_create(&purchase.idempotency_key, &form).await {
        Err(StripeError::Refused { code, .. }) if code == "resource_missing" => {}
        outcome => return Ok(outcome?),
    }
    let new = customer_renew(cx, payments, purchase.organization_id, &customer).await?;
    let mut tx = cx.master.begin().await?;
    *purchase = db::purchase_lock(&mut tx, purchase.id).await?.ok_or(PurchaseError::NotFound)?;
    if purchase.checkout_session.is_none() {
        purchase.customer_ref = Some(new.clone());
        db::purchase_save(&mut tx, purchase).await?;
    }
    tx.commit().await?;
    let form = session_form(payments, purchase, pack, &new);
    Ok(payments.stripe.session_create(&purchase.idempotency_key, &form).await?)
}

/// The session that was made for a purchase, if it was.
async fn session_find(payments: &Payments, customer: &str, id: PurchaseId) -> Result<Option<Session>, StripeError> {
    let name = id.to_string();
    let sessions = payments.stripe.sessions_of(customer).await?;
    Ok(sessions.data.into_iter().find(|session| session.client_reference_id.as_deref() == Some(&name)))
}

fn session_form(payments: &Payments, purchase: &Purchase, pack: &Pack, customer: &str) -> Vec<(&'static str, String)> {
    let id = purchase.id.to_string();
    let name = match purchase.bonus_credits {
        0 => format!("{}: {} credits", pack.name, purchase.credits),
        bonus => format!("{}: {} credits and {bonus} on top", pack.name, purchase.credits),
    };
    let mut form = vec![
        ("mode", "payment".to_owned()),
        ("customer", customer.to_owned()),
        ("client_reference_id", id.clone()),
        ("success_url", payments.success_page(purchase.id)),
        ("metadata[purchase_id]", id.clone()),
        ("payment_intent_data[metadata][purchase_id]", id),
        ("line_items[0][quantity]", "1".to_owned()),
        ("line_items[0][price_data][currency]", purchase.currency.to_lowercase()),
        ("line_items[0][price_data][unit_amount]", purchase.amount_minor.to_string()),
        ("line_items[0][price_data][tax_behavior]", "inclusive".to_owned()),
        ("line_items[0][price_data][product_data][name]", name),
        ("line_items[0][price_data][product_data][tax_code]", pack.tax_code.clone()),
    ];
    form.extend(purchase.cancel_url.clone().map(|url| ("cancel_url", url)));
    if purchase.saves_card {
        form.push(("payment_intent_data[setup_future_usage]", "off_session".to_owned()));
        // Nothing else is charged while nobody is there.
        form.push(("payment_method_types[0]", "card".to_owned()));
    }
    form
}

/// Who an organization is to the provider.
pub(super) async fn customer_of(
    cx: &OpsCx,
    payments: &Payments,
    organization: OrganizationId,
) -> Result<String, PurchaseError> {
    if let Some(known) = db::customer_find(&mut *cx.master.acquire().await?, organization).await? {
        return Ok(known);
    }
    let made = customer_make(payments, organization, "").await?;
    let mut connection = cx.master.acquire().await?;
    db::customer_insert(&mut connection, organization, &made, cx.clock.now()).await?;
    Ok(db::customer_find(&mut connection, organization).await?.ok_or(sqlx::Error::RowNotFound)?)
}

/// Somebody has deleted the customer there: the organization becomes a new one, once.
pub(super) async fn customer_renew(
    cx: &OpsCx,
    payments: &Payments,
    organization: OrganizationId,
    old: &str,
) -> Result<String, PurchaseError> {
    let new = customer_make(payments, organization, &format!(":{old}")).await?;
    db::customer_replace(&mut *cx.master.acquire().await?, organization, old, &new).await?;
    Ok(new)
}

async fn customer_make(payments: &Payments, organization: OrganizationId, suffix: &str) -> Result<String, StripeError> {
    let form = [("metadata[organization_id]", organization.to_string())];
    Ok(payments.stripe.customer_create(&format!("customer:{organization}{suffix}"), &form).await?.id)
}

/// What the provider answered about a purchase.
#[derive(Default)]
pub(super) struct Learned<'a> {
    pub session: Option<&'a Session>,
    pub intent: Option<&'a PaymentIntent>,
    /// Why it was refused, and the payment that was.
    pub refusal: Option<(&'a str, Option<&'a str>)>,
}

/// Makes a purchase follow what was learned, and what had waited for that.
pub(super) async fn learn(cx: &OpsCx, id: PurchaseId, learned: &Learned<'_>) -> Result<Purchase, PurchaseError> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let mut purchase = db::purchase_lock(&mut tx, id).await?.ok_or(PurchaseError::NotFound)?;
    if let Some(session) = learned.session {
        books::learn_session(&mut tx, &mut purchase, session, now).await?;
    }
    if let Some(intent) = learned.intent {
        books::learn_intent(&mut tx, &mut purchase, intent, now).await?;
    }
    if let Some((why, intent)) = learned.refusal {
        books::learn_refusal(&mut tx, &mut purchase, why, intent, now).await?;
    }
    let intent = purchase.payment_intent.clone();
    events::apply_waiting(&mut tx, intent.as_deref(), now).await?;
    let purchase = db::purchase_find(&mut tx, id).await?.ok_or(PurchaseError::NotFound)?;
    tx.commit().await?;
    Ok(purchase)
}

/// Ends a purchase that the provider has never heard of.
pub(super) async fn learn_nothing(cx: &OpsCx, id: PurchaseId) -> Result<Purchase, PurchaseError> {
    let mut tx = cx.master.begin().await?;
    let mut purchase = db::purchase_lock(&mut tx, id).await?.ok_or(PurchaseError::NotFound)?;
    books::learn_nothing(&mut tx, &mut purchase, cx.clock.now()).await?;
    tx.commit().await?;
    Ok(purchase)
}

/// Asks the provider how an unfinished purchase stands, and follows.
async fn check(cx: &OpsCx, payments: &Payments, id: PurchaseId) -> Result<Purchase, PurchaseError> {
    let purchase = find(cx, id).await?;
    let session = match (&purchase.checkout_session, &purchase.customer_ref) {
        (Some(session), _) => Some(payments.stripe.session_get(session).await?),
        (None, Some(customer)) => session_find(payments, customer, id).await?,
        _ => None,
    };
    let paid_by = session.as_ref().and_then(|session| session.payment_intent.as_ref()).map(Reference::id);
    let intent = match paid_by.or(purchase.payment_intent.as_deref()) {
        Some(intent) => Some(payments.stripe.payment_intent_get(intent).await?),
        None => None,
    };
    learn(cx, id, &Learned { session: session.as_ref(), intent: intent.as_ref(), refusal: None }).await
}

/// A purchase of an organization that somebody belongs to.
pub async fn purchase_find(cx: &OpsCx, by: &Principal, id: PurchaseId) -> Result<Purchase, PurchaseError> {
    let purchase = find(cx, id).await?;
    match organization_of(cx, by.user.id, Some(purchase.organization_id)).await {
        Ok(_) => Ok(purchase),
        Err(CreditError::OrganizationNotFound) => Err(PurchaseError::NotFound),
        Err(error) => Err(error.into()),
    }
}

/// A page of an organization's purchases, newest first, and the cursor of the next.
pub async fn purchases(
    cx: &OpsCx,
    organization: OrganizationId,
    cursor: Option<&str>,
    limit: Option<u8>,
) -> Result<(Vec<Purchase>, Option<String>), PurchaseError> {
    let window = Window::read(&["purchases", &organization.to_string()], cursor, limit).map_err(CreditError::from)?;
    let mut connection = cx.master.acquire().await?;
    let found = db::purchases(&mut connection, organization, window.after, window.rows()).await?;
    Ok(window.page(found, |purchase: &Purchase| purchase.id))
}

/// Which purchases ops look at.
#[derive(Debug, Clone, Copy, Default)]
pub struct PurchaseFilter {
    /// Those of every organization when left out.
    pub organization: Option<OrganizationId>,
    pub state: Option<PurchaseState>,
}

/// A page of the purchases that a filter lets through, newest first, and the cursor of the next.
pub async fn purchase_list(
    cx: &OpsCx,
    filter: PurchaseFilter,
    cursor: Option<&str>,
    limit: Option<u8>,
) -> Result<(Vec<Purchase>, Option<String>), PurchaseError> {
    let window = Window::read(&["purchases", &format!("{filter:?}")], cursor, limit).map_err(CreditError::from)?;
    let mut connection = cx.master.acquire().await?;
    if let Some(organization) = filter.organization
        && super::db::balance_find(&mut connection, organization).await?.is_none()
    {
        return Err(CreditError::OrganizationNotFound.into());
    }
    let found = db::purchase_list(&mut connection, filter, window.after, window.rows()).await?;
    Ok(window.page(found, |purchase: &Purchase| purchase.id))
}

/// What a buyer sees who comes back from Checkout.
#[derive(Debug)]
pub struct Returned {
    pub purchase: Purchase,
    /// How many of the credits repaid what the organization owed.
    pub repaid: i64,
}

/// Somebody comes back from Checkout: whoever knows the session's id sees what became of it, and the purchase follows at
/// once, whether or not a webhook was first. When the provider cannot be asked, what we know is shown.
pub async fn purchase_return(cx: &OpsCx, id: PurchaseId, session: &str) -> Result<Returned, PurchaseError> {
    let purchase = purchase_followed(cx, id, session).await?;
    let repaid = match purchase.transaction_id {
        Some(transaction) => db::repaid_by(&mut *cx.master.acquire().await?, transaction).await?,
        None => 0,
    };
    Ok(Returned { purchase, repaid })
}

async fn purchase_followed(cx: &OpsCx, id: PurchaseId, session: &str) -> Result<Purchase, PurchaseError> {
    let purchase = find(cx, id).await?;
    if purchase.checkout_session.as_deref() != Some(session) {
        return Err(PurchaseError::NotFound);
    }
    if !purchase.state.is_unfinished() {
        return Ok(purchase);
    }
    match check(cx, payments(cx)?, id).await {
        Ok(purchase) => Ok(purchase),
        Err(PurchaseError::Provider(error)) => {
            tracing::warn!(purchase.id = %id, "cannot ask how purchase {id} stands: {error}");
            Ok(purchase)
        }
        Err(error) => Err(error),
    }
}

impl From<PurchaseError> for Problem {
    fn from(error: PurchaseError) -> Self {
        use StatusCode as S;
        match error {
            PurchaseError::NotConfigured => {
                Self::new(S::SERVICE_UNAVAILABLE, "payments-not-configured", "Nothing can be bought here yet")
                    .detail("The platform has no payment provider. Ask the people who run it.")
                    .retry_after(Duration::from_secs(3600))
            }
            PurchaseError::NotFound => Self::not_found(),
            PurchaseError::PackNotFound => {
                Self::invalid().field("/packId", "unknown", "is no pack on sale; GET /api/credits/packs lists them")
            }
            PurchaseError::NotPaid { state } => Self::new(S::CONFLICT, "purchase-not-paid", "The purchase is not paid")
                .detail(format!("It is {}.", state.as_str()))
                .member("state", state.as_str()),
            PurchaseError::Disputed => Self::new(S::CONFLICT, "purchase-disputed", "The payment is disputed")
                .detail("No money can be given back while the bank decides. It can once the dispute is won."),
            PurchaseError::DisputeLost => {
                Self::new(S::CONFLICT, "purchase-dispute-lost", "The payment was lost to a dispute")
                    .detail("The bank has given the money back already. Nothing more of this purchase can be given back.")
            }
            PurchaseError::ExceedsUnspent { unspent, wanted, refundable_minor } => {
                Self::new(S::CONFLICT, "refund-exceeds-unspent", "The credits are spent already")
                    .detail(format!(
                        "{unspent} credits of it are unspent, {wanted} would be taken back. Give back {refundable_minor} or less, or say `allowDebt`."
                    ))
                    .member("unspent", unspent)
                    .member("refundableMinor", refundable_minor)
            }
            PurchaseError::ExceedsPaid { left_minor } => {
                Self::new(S::CONFLICT, "refund-exceeds-paid", "More would be given back than was paid")
                    .detail(format!("{left_minor} is left, in minor units."))
                    .member("leftMinor", left_minor)
            }
            PurchaseError::Provider(StripeError::Unknown { why }) => {
                tracing::warn!("the payment provider does not answer: {why}");
                Self::new(S::SERVICE_UNAVAILABLE, "payment-provider-unavailable", "The payment provider does not answer")
                    .detail("Repeat it with the same Idempotency-Key: it is done once.")
                    .retry_after(Duration::from_secs(5))
            }
            PurchaseError::Provider(error) => {
                tracing::error!("a call of the payment provider failed: {error}");
                Self::new(S::BAD_GATEWAY, "payment-provider-refused", "The payment provider refused")
                    .detail("Nothing was paid and nothing was given back. Ask the people who run the platform.")
            }
            error @ PurchaseError::Books(_) => {
                tracing::error!(error = crate::http::errors::chain(&error), "a payment does not fit its purchase");
                Self::new(S::CONFLICT, "payment-mismatch", "The payment does not fit the purchase")
                    .detail("It was not granted. The people who run the platform see it.")
            }
            PurchaseError::Credits(error) => error.into(),
        }
    }
}
