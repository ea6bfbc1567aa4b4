//! The card that an organization pays with while nobody is there. The provider keeps it; we keep its reference and what of it
//! may be shown, and ask the provider whose it is before we take it. One that is replaced is removed there: nobody can be charged
//! with it any more.

use chrono::{DateTime, Utc};
use kernel::{OrganizationId, UserId};
use secrecy::SecretString;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;

use super::{OffReason, TopUpError, db};
use crate::audit::{self, Actor, Subject};
use crate::credits::purchases::{self, Payments, Purchase};
use crate::credits::stripe::StripeError;
use crate::credits::stripe::objects::{self, PaymentMethod, Reference};
use crate::cx::OpsCx;

/// Removing a card at the provider is tried again so late.
const REMOVAL_RETRY: chrono::Duration = chrono::Duration::minutes(5);
const MAX_METHOD: usize = 255;

/// A card of an organization's.
#[derive(Debug, Clone)]
pub struct Card {
    pub organization_id: OrganizationId,
    /// Its name at the provider, and whose it is there.
    pub method_ref: String,
    pub customer_ref: String,
    pub brand: Option<String>,
    pub last4: Option<String>,
    pub exp_month: Option<i32>,
    pub exp_year: Option<i32>,
    /// Whether the provider was asked what it is.
    pub is_described: bool,
    pub set_at: DateTime<Utc>,
}

impl Card {
    fn describe(&mut self, card: Option<objects::Card>) {
        if let Some(objects::Card { brand, last4, exp_month, exp_year }) = card {
            (self.brand, self.last4, self.exp_month, self.exp_year) = (brand, last4, exp_month, exp_year);
        }
        self.is_described = true;
    }
}

/// What a page of an organization's own needs to take a card down at the provider.
pub struct Setup {
    pub id: String,
    pub customer: String,
    pub client_secret: SecretString,
}

/// Begins to take a card down; with a key, once. It becomes the organization's with [`set`].
pub async fn setup(cx: &OpsCx, organization: OrganizationId, key: Option<&str>) -> Result<Setup, TopUpError> {
    let payments = purchases::payments(cx)?;
    let key = key.map_or_else(|| hex::encode(kernel::random::bytes::<16>()), |key| hex::encode(Sha256::digest(key)));
    let customer = purchases::customer_of(cx, payments, organization).await?;
    match setup_make(payments, customer.clone(), &key).await {
        Err(StripeError::Refused { code, .. }) if code == "resource_missing" => {}
        outcome => return Ok(outcome?),
    }
    let customer = purchases::customer_renew(cx, payments, organization, &customer).await?;
    Ok(setup_make(payments, customer, &key).await?)
}

async fn setup_make(payments: &Payments, customer: String, key: &str) -> Result<Setup, StripeError> {
    let form = [
        ("customer", customer.clone()),
        ("usage", "off_session".to_owned()),
        ("payment_method_types[]", "card".to_owned()),
    ];
    let made = payments.stripe.setup_intent_create(&format!("setup:{customer}:{key}"), &form).await?;
    Ok(Setup { id: made.id, customer, client_secret: made.client_secret })
}

/// The card of an organization.
pub async fn find(cx: &OpsCx, organization: OrganizationId) -> Result<Card, TopUpError> {
    db::card_find(&mut *cx.master.acquire().await?, organization).await?.ok_or(TopUpError::NoCard)
}

/// Makes a card the organization's, after the provider has said that it is its customer's. That one is not known and that it is
/// somebody else's is the same answer.
pub async fn set(cx: &OpsCx, by: UserId, organization: OrganizationId, method: &str) -> Result<Card, TopUpError> {
    let is_name = method.len() <= MAX_METHOD
        && method.starts_with("pm_")
        && method.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !is_name {
        return Err(TopUpError::CardUnknown);
    }
    let payments = purchases::payments(cx)?;
    let customer = purchases::db::customer_find(&mut *cx.master.acquire().await?, organization).await?;
    let customer = customer.ok_or(TopUpError::CardUnknown)?;
    if db::removal_is_pending(&mut *cx.master.acquire().await?, method).await? {
        return Err(TopUpError::CardGoing);
    }
    let theirs = match payments.stripe.payment_method_get(method).await {
        Err(error) if error.is_missing() => return Err(TopUpError::CardUnknown),
        outcome => outcome?,
    };
    if theirs.id != method || theirs.customer.as_ref().map(Reference::id) != Some(customer.as_str()) {
        return Err(TopUpError::CardUnknown);
    }
    if theirs.card.is_none() {
        return Err(TopUpError::NotACard);
    }
    let now = cx.clock.now();
    let mut card = named(organization, method, &customer, now);
    card.describe(theirs.card);
    let mut tx = cx.master.begin().await?;
    let old = db::card_lock(&mut tx, organization).await?.map(|old| old.method_ref);
    // Once more, now that nobody can replace it or take it away.
    if db::removal_is_pending(&mut tx, method).await? {
        return Err(TopUpError::CardGoing);
    }
    db::card_set(&mut tx, &card, now).await?;
    let replaced = follow_change(&mut tx, &card, old, now + REMOVAL_RETRY, now).await?;
    let data = json!({ "paymentMethod": method });
    let subject = Subject::organization(organization);
    audit::record(&mut tx, now, Actor::User(by), "credit_payment_method_set", subject, data).await?;
    tx.commit().await?;
    if let Some(replaced) = replaced {
        removal_do(cx, payments, &replaced).await?;
    }
    Ok(card)
}

/// When another card was there before, that one is to be removed at the provider, and what was declined is forgotten. The same
/// card once more is still the one that was declined. The card that is to be removed.
async fn follow_change(
    tx: &mut PgConnection,
    card: &Card,
    old: Option<String>,
    removed_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Option<String>, sqlx::Error> {
    if old.as_ref() == Some(&card.method_ref) {
        return Ok(None);
    }
    if let Some(old) = &old {
        db::removal_insert(tx, card.organization_id, old, removed_at, now).await?;
    }
    db::rule_forgive(tx, card.organization_id, now).await?;
    Ok(old)
}

fn named(organization_id: OrganizationId, method: &str, customer: &str, set_at: DateTime<Utc>) -> Card {
    Card {
        organization_id,
        method_ref: method.to_owned(),
        customer_ref: customer.to_owned(),
        brand: None,
        last4: None,
        exp_month: None,
        exp_year: None,
        is_described: false,
        set_at,
    }
}

/// Keeps the card that a purchase was paid with, as the buyer wished; what it is, is asked later. Once it was replaced or
/// removed, learning of the purchase again does not bring it back.
pub async fn keep(
    tx: &mut PgConnection,
    purchase: &Purchase,
    method: &str,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let (Some(customer), Some(paid_at)) = (&purchase.customer_ref, purchase.completed_at) else { return Ok(()) };
    let card = named(purchase.organization_id, method, customer, paid_at);
    let old = db::card_lock(tx, purchase.organization_id).await?.map(|old| old.method_ref);
    if !db::card_keep(tx, &card, now).await? {
        return Ok(());
    }
    follow_change(tx, &card, old, now, now).await?;
    let data = json!({ "paymentMethod": method, "purchaseId": purchase.id });
    let subject = Subject::organization(purchase.organization_id);
    audit::record(tx, now, Actor::System, "credit_payment_method_set", subject, data).await
}

/// Takes the card from an organization, here at once, and at the provider as soon as it answers. Nothing is bought by itself
/// any more.
pub async fn remove(cx: &OpsCx, by: UserId, organization: OrganizationId) -> Result<(), TopUpError> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let Some(method) = remove_in(&mut tx, Actor::User(by), organization, now).await? else { return Ok(()) };
    tx.commit().await?;
    cx.outbox_news.notify_one();
    if let Some(payments) = &cx.payments {
        removal_do(cx, payments, &method).await?;
    }
    Ok(())
}

async fn remove_in(
    tx: &mut PgConnection,
    by: Actor,
    organization: OrganizationId,
    now: DateTime<Utc>,
) -> Result<Option<String>, sqlx::Error> {
    let Some(method) = db::card_remove(tx, organization, now).await? else { return Ok(None) };
    db::removal_insert(tx, organization, &method, now + REMOVAL_RETRY, now).await?;
    if let Some(mut rule) = db::rule_lock(tx, organization).await?
        && rule.is_enabled
    {
        super::switch_off(tx, &mut rule, OffReason::CardRemoved, now).await?;
    }
    let data = json!({ "paymentMethod": method });
    let subject = Subject::organization(organization);
    audit::record(tx, now, by, "credit_payment_method_remove", subject, data).await?;
    Ok(Some(method))
}

/// Takes from an organization what turned out to be no card, unless another one has taken its place.
async fn drop_no_card(cx: &OpsCx, payments: &Payments, no_card: &Card) -> Result<(), sqlx::Error> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let known = db::card_lock(&mut tx, no_card.organization_id).await?;
    if known.is_none_or(|known| known.method_ref != no_card.method_ref) {
        return Ok(());
    }
    let method = remove_in(&mut tx, Actor::System, no_card.organization_id, now).await?;
    tx.commit().await?;
    cx.outbox_news.notify_one();
    match method {
        Some(method) => removal_do(cx, payments, &method).await,
        None => Ok(()),
    }
}

/// Removes at the provider what was removed here.
pub async fn removals_do(cx: &OpsCx, payments: &Payments, limit: i64) -> Result<(), sqlx::Error> {
    let now = cx.clock.now();
    let due = db::removals_claim(&mut *cx.master.acquire().await?, now, now + REMOVAL_RETRY, limit).await?;
    for method in due {
        removal_do(cx, payments, &method).await?;
    }
    Ok(())
}

async fn removal_do(cx: &OpsCx, payments: &Payments, method: &str) -> Result<(), sqlx::Error> {
    match payments.stripe.payment_method_detach(method, &format!("detach:{method}")).await {
        Ok(_) => {}
        // It belongs to nobody there, or is not there.
        Err(StripeError::Refused { status: 400 | 404, .. }) => {}
        Err(error) => {
            tracing::warn!("a card could not be removed at the payment provider yet: {error}");
            return Ok(());
        }
    }
    db::removal_delete(&mut *cx.master.acquire().await?, method).await
}

/// Asks what the cards are of which only the reference is known. What is none, such as a bank account that somebody paid from,
/// is charged by nobody later, and does not stay.
pub async fn describe(cx: &OpsCx, payments: &Payments, limit: i64) -> Result<(), sqlx::Error> {
    let unknown = db::cards_undescribed(&mut *cx.master.acquire().await?, limit).await?;
    for mut card in unknown {
        let theirs = match payments.stripe.payment_method_get(&card.method_ref).await {
            Ok(PaymentMethod { card: None, .. }) => {
                drop_no_card(cx, payments, &card).await?;
                continue;
            }
            Ok(theirs) => theirs.card,
            // The next payment with it says what is wrong with it.
            Err(StripeError::Refused { status: 404, .. } | StripeError::Malformed { .. }) => None,
            Err(error) => {
                tracing::warn!("cannot ask what a card is: {error}");
                return Ok(());
            }
        };
        card.describe(theirs);
        db::card_describe(&mut *cx.master.acquire().await?, &card, cx.clock.now()).await?;
    }
    Ok(())
}
