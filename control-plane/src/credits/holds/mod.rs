//! Credits that are reserved for a spend that is to come: captured, voided, or given back when their time is over.
//!
//! From that moment on a hold has expired, for whoever reads it and for whoever would end it. Its credits come back when that is
//! booked, some seconds later.

pub mod db;
pub mod routes;

use chrono::{DateTime, Utc};
use kernel::{CreditHoldId, CreditTransactionId, OrganizationId, StoreId};
use serde::{Deserialize, Serialize};

use super::{
    CreditError, Decision, TransactionKind, check_amount, check_line, db as ledger, invalid, prices, request_hash,
    store_of, user_key,
};
use crate::cx::OpsCx;
use crate::http::paging::Window;
use crate::identity::Principal;

/// The longest that credits may be held, in seconds.
pub const MAX_HOLD_S: i64 = 30 * 24 * 3600;
const DEFAULT_HOLD_S: i64 = 3600;

/// How a hold stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum HoldState {
    Open,
    Captured,
    Voided,
    /// Its time is over. Its credits are available again some seconds later at most.
    Expired,
}

impl HoldState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Captured => "captured",
            Self::Voided => "voided",
            Self::Expired => "expired",
        }
    }
}

/// Credits that are reserved.
#[derive(Debug, Clone)]
pub struct Hold {
    pub id: CreditHoldId,
    pub organization_id: OrganizationId,
    pub store_id: Option<StoreId>,
    pub amount: i64,
    pub captured: i64,
    pub state: HoldState,
    pub service: Option<String>,
    pub description: Option<String>,
    pub expires_at: DateTime<Utc>,
    pub created_at: DateTime<Utc>,
}

/// Reserves credits for a spend that is to come, once per key.
pub async fn create(
    cx: &OpsCx,
    by: &Principal,
    body: &routes::HoldBody,
    key: Option<&str>,
) -> Result<Decision, CreditError> {
    let key = user_key(key)?;
    let description = check_line(body.description.as_deref(), "/description", 500)?;
    let seconds = body.expires_in_seconds.unwrap_or(DEFAULT_HOLD_S);
    if !(1..=MAX_HOLD_S).contains(&seconds) {
        return Err(invalid("/expiresInSeconds", "range", format!("must be 1 to {MAX_HOLD_S}")));
    }
    let hash = request_hash("credit_hold_create", body)?;
    let store = store_of(cx, by, body.store_id).await?;
    let cost = prices::cost(cx, &body.wanted()).await?;
    let now = cx.clock.now();
    let new = ledger::NewHold {
        id: CreditTransactionId::new(now),
        key: &key,
        hash: &hash,
        store: store.id,
        actor: by.user.id,
        amount: cost.amount,
        service: cost.service(),
        quantity: cost.quantity,
        facts: cost.facts(),
        description: description.as_deref(),
        expires_at: now + chrono::Duration::seconds(seconds),
    };
    let mut connection = cx.master.acquire().await?;
    let decision = ledger::hold(&mut connection, store.organization_id, &new, now).await?;
    decision.answer(&hash).map_err(|error| error.told_to(by))
}

/// A hold that somebody is let at.
pub async fn find(cx: &OpsCx, by: &Principal, id: CreditHoldId) -> Result<Hold, CreditError> {
    let mut connection = cx.master.acquire().await?;
    let hold = db::hold_find(&mut connection, id, cx.clock.now()).await?.ok_or(CreditError::HoldNotFound)?;
    drop(connection);
    let store = hold.store_id.ok_or(CreditError::HoldNotFound)?;
    match store_of(cx, by, store).await {
        Ok(_) => Ok(hold),
        Err(CreditError::StoreNotFound) => Err(CreditError::HoldNotFound),
        Err(error) => Err(error),
    }
}

/// Which holds a list shows.
#[derive(Debug, Clone, Copy, Default)]
pub struct HoldFilter {
    pub store: Option<StoreId>,
    pub state: Option<HoldState>,
}

/// A page of an organization's holds, newest first, and the cursor of the next.
pub async fn list(
    cx: &OpsCx,
    organization: OrganizationId,
    filter: &HoldFilter,
    cursor: Option<&str>,
    limit: Option<u8>,
) -> Result<(Vec<Hold>, Option<String>), CreditError> {
    let window = Window::read(&["credit holds", &organization.to_string(), &format!("{filter:?}")], cursor, limit)?;
    let mut connection = cx.master.acquire().await?;
    let now = cx.clock.now();
    let found = db::holds(&mut connection, organization, filter, window.after, window.rows(), now).await?;
    Ok(window.page(found, |hold: &Hold| hold.id))
}

/// How a hold is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldEnd {
    /// Takes so much, and gives the rest back.
    Capture(i64),
    Void,
}

/// Ends a hold, once per key; a hold is ended once, whatever the keys.
pub async fn end(
    cx: &OpsCx,
    by: &Principal,
    id: CreditHoldId,
    end: HoldEnd,
    key: Option<&str>,
) -> Result<Decision, CreditError> {
    let key = user_key(key)?;
    let hold = find(cx, by, id).await?;
    let (operation, ending, taken) = match end {
        HoldEnd::Capture(amount) => ("credit_hold_capture", TransactionKind::Capture, check_amount(amount, "/amount")?),
        HoldEnd::Void => ("credit_hold_void", TransactionKind::Void, 0),
    };
    let hash = request_hash(operation, &(id, taken))?;
    let now = cx.clock.now();
    let end = ledger::EndHold {
        id: CreditTransactionId::new(now),
        key: &key,
        hash: &hash,
        ending,
        hold: id,
        actor: Some(by.user.id),
        taken,
        why: None,
    };
    let mut connection = cx.master.acquire().await?;
    ledger::hold_end(&mut connection, hold.organization_id, &end, now).await?.answer(&hash)
}
