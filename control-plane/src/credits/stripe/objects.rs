//! The parts that we read of the provider's objects. What is not named here may change as it likes.

use std::collections::HashMap;

use secrecy::SecretString;
use serde::Deserialize;

/// Another object: its id, or all of it where it was expanded.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Reference {
    Id(String),
    Object { id: String },
}

impl Reference {
    pub fn into_id(self) -> String {
        match self {
            Self::Id(id) | Self::Object { id } => id,
        }
    }

    pub fn id(&self) -> &str {
        match self {
            Self::Id(id) | Self::Object { id } => id,
        }
    }
}

/// What we said about an object when we made it.
pub type Metadata = HashMap<String, String>;

#[derive(Debug, Clone, Deserialize)]
pub struct Customer {
    pub id: String,
}

/// A card, or another thing that somebody pays with.
#[derive(Debug, Clone, Deserialize)]
pub struct PaymentMethod {
    pub id: String,
    pub customer: Option<Reference>,
    pub card: Option<Card>,
}

/// What of a card may be shown.
#[derive(Debug, Clone, Deserialize)]
pub struct Card {
    pub brand: Option<String>,
    pub last4: Option<String>,
    pub exp_month: Option<i32>,
    pub exp_year: Option<i32>,
}

/// A card that is being taken down.
#[derive(Deserialize)]
pub struct SetupIntent {
    pub id: String,
    /// With it the owner's browser tells the provider of the card.
    pub client_secret: SecretString,
}

/// A Checkout Session.
#[derive(Debug, Clone, Deserialize)]
pub struct Session {
    pub id: String,
    /// `open`, `complete` or `expired`.
    pub status: Option<String>,
    /// `paid`, `unpaid` or `no_payment_required`.
    pub payment_status: String,
    pub amount_total: Option<i64>,
    pub currency: Option<String>,
    pub customer: Option<Reference>,
    pub payment_intent: Option<Reference>,
    pub client_reference_id: Option<String>,
    #[serde(default)]
    pub metadata: Option<Metadata>,
    pub url: Option<String>,
    pub total_details: Option<TotalDetails>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct TotalDetails {
    pub amount_tax: Option<i64>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct PaymentIntent {
    pub id: String,
    pub status: String,
    pub amount: i64,
    pub amount_received: Option<i64>,
    pub currency: String,
    pub customer: Option<Reference>,
    pub latest_charge: Option<Reference>,
    pub payment_method: Option<Reference>,
    #[serde(default)]
    pub metadata: Option<Metadata>,
    pub last_payment_error: Option<PaymentFailure>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct PaymentFailure {
    pub code: Option<String>,
    pub decline_code: Option<String>,
}

/// The owner of the card has to be there.
pub const AUTHENTICATION_REQUIRED: &str = "authentication_required";

/// Why a payment failed, of the two codes that say it: the wider one, unless the narrower one asks for the owner.
pub fn failure_code(code: Option<String>, decline_code: Option<String>) -> Option<String> {
    match decline_code {
        Some(narrow) if narrow == AUTHENTICATION_REQUIRED => Some(narrow),
        narrow => code.or(narrow),
    }
}

#[derive(Debug, Clone, Deserialize)]
pub struct Charge {
    pub id: String,
    pub amount: i64,
    #[serde(default)]
    pub amount_refunded: i64,
    pub currency: String,
    pub customer: Option<Reference>,
    pub payment_intent: Option<Reference>,
    pub payment_method: Option<Reference>,
    #[serde(default)]
    pub paid: bool,
    #[serde(default)]
    pub metadata: Option<Metadata>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Refund {
    pub id: String,
    pub amount: i64,
    pub currency: String,
    /// `pending`, `requires_action`, `succeeded`, `failed` or `canceled`.
    pub status: Option<String>,
    pub payment_intent: Option<Reference>,
    #[serde(default)]
    pub metadata: Option<Metadata>,
    pub reason: Option<String>,
    pub failure_reason: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Dispute {
    pub id: String,
    pub amount: i64,
    pub currency: String,
    pub payment_intent: Option<Reference>,
    /// `needs_response`, `under_review`, `won`, `lost`, or `warning_…` for what is no dispute yet.
    pub status: String,
    pub reason: Option<String>,
}

/// A movement of money in the account.
#[derive(Debug, Clone, Deserialize)]
pub struct BalanceTransaction {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub reporting_category: Option<String>,
    pub amount: i64,
    #[serde(default)]
    pub fee: i64,
    pub currency: String,
    pub source: Option<Reference>,
}

/// Something that happened.
#[derive(Debug, Clone, Deserialize)]
pub struct Event {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
    /// In seconds.
    pub created: i64,
    pub data: EventData,
}

#[derive(Debug, Clone, Deserialize)]
pub struct EventData {
    pub object: serde_json::Value,
}

/// One page.
#[derive(Debug, Clone, Deserialize)]
pub struct List<T> {
    pub data: Vec<T>,
    #[serde(default)]
    pub has_more: bool,
}

#[cfg(test)]
mod tests {
    use super::failure_code;

    #[test]
    fn a_failure_is_said_by_its_wider_code_unless_the_owner_is_asked_for() {
        let code = |wide: Option<&str>, narrow: Option<&str>| {
            failure_code(wide.map(str::to_owned), narrow.map(str::to_owned)).unwrap_or_default()
        };
        assert_eq!(code(Some("card_declined"), Some("insufficient_funds")), "card_declined");
        assert_eq!(code(Some("card_declined"), Some("authentication_required")), "authentication_required");
        assert_eq!(code(Some("authentication_required"), None), "authentication_required");
        assert_eq!(code(None, Some("generic_decline")), "generic_decline");
        assert_eq!(code(None, None), "");
    }
}
