//! Prefixed, time-ordered ids. An id of the wrong kind fails when it is parsed, not when it is used.
//!
//! Inside, an id is a UUID of version 7 (48 bits of milliseconds, then randomness); outside it is its prefix and the 128
//! bits in Crockford's base32, 26 characters that sort like the number: `sto_01JD8Q6X5MFKV9T3R0WZ2H4C7N`.

use std::fmt;

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// A text that is no id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected an id like {prefix}_01JD8Q6X5MFKV9T3R0WZ2H4C7N")]
pub struct IdError {
    /// The prefix that the wanted kind has.
    pub prefix: &'static str,
}

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const ENCODED_LEN: usize = 26;

const NO_DIGIT: u8 = 0xff;

/// What each byte stands for. Store databases keep ids as text, so every row read turns some back into bits.
const DIGITS: [u8; 256] = {
    let mut digits = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 32 {
        digits[ALPHABET[value as usize] as usize] = value;
        value += 1;
    }
    digits
};

/// A new version 7 UUID for the moment `now`.
fn new_uuid(now: DateTime<Utc>) -> Uuid {
    let millis = u64::try_from(now.timestamp_millis()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &crate::random::bytes()).into_uuid()
}

fn encode(uuid: Uuid, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let number = uuid.as_u128();
    let mut text = [0_u8; ENCODED_LEN];
    for (place, slot) in text.iter_mut().enumerate() {
        let shift = 5 * (ENCODED_LEN - 1 - place);
        *slot = ALPHABET[usize::try_from((number >> shift) & 31).expect("five bits fit")];
    }
    out.write_str(std::str::from_utf8(&text).expect("the alphabet is ASCII"))
}

fn decode(text: &str) -> Option<Uuid> {
    let bytes = text.as_bytes();
    // 26 characters hold 130 bits: a first character over 7 would not fit into 128.
    if bytes.len() != ENCODED_LEN || bytes[0] > b'7' {
        return None;
    }
    let mut number: u128 = 0;
    for byte in bytes {
        let digit = DIGITS[usize::from(*byte)];
        if digit == NO_DIGIT {
            return None;
        }
        number = (number << 5) | u128::from(digit);
    }
    Some(Uuid::from_u128(number))
}

/// Declares the id types; the only place that knows the prefixes.
macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident => $prefix:literal,)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[cfg_attr(feature = "sqlx", derive(sqlx::Type), sqlx(transparent))]
        pub struct $name(Uuid);

        impl $name {
            /// What the printed form begins with, before the underscore.
            pub const PREFIX: &'static str = $prefix;

            /// A new id; ids made later sort later.
            #[must_use]
            pub fn new(now: DateTime<Utc>) -> Self {
                Self(new_uuid(now))
            }

            /// The id whose bits are `uuid`.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The bits, as master stores them.
            #[must_use]
            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(concat!($prefix, "_"))?;
                encode(self.0, out)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, out)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                text.strip_prefix(concat!($prefix, "_"))
                    .and_then(decode)
                    .map(Self)
                    .ok_or(IdError { prefix: $prefix })
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
                out.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .pattern(Some(concat!("^", $prefix, "_[0-7][0-9A-HJKMNP-TV-Z]{25}$")))
                    .examples([concat!($prefix, "_01JD8Q6X5MFKV9T3R0WZ2H4C7N")])
                    .into()
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::ToSchema for $name {}
    )+};
}

ids! {
    /// A person who signs in.
    UserId => "usr",
    /// The owner of stores and of one credit account.
    OrganizationId => "org",
    /// A tenant.
    StoreId => "sto",
    /// A PostgreSQL or MySQL server on which we create store databases.
    ServerId => "srv",
    /// The one database of a store.
    DatabaseId => "sdb",
    /// A hostname row of master.
    HostnameId => "hst",
    /// A provisioning run.
    RunId => "run",
    /// A signed-in device: one family of refresh tokens.
    SessionId => "ses",
    /// One access token (`jti`).
    TokenId => "tok",
    /// An entry of the audit trail.
    AuditEventId => "aud",
    /// One HTTP request.
    RequestId => "req",
    /// A decision of the credit ledger.
    CreditTransactionId => "ctx",
    /// Credits that were granted together.
    CreditLotId => "lot",
    /// Credits that are reserved.
    CreditHoldId => "hold",
    /// One version of a service's price in credits.
    CreditPriceId => "cpr",
    /// What a store or a person may spend in a month.
    CreditBudgetId => "cbg",
    /// Something that an organization is told.
    EventId => "evt",
    /// Where an organization wants to be told.
    WebhookEndpointId => "whe",
    /// One event on its way to one endpoint.
    WebhookDeliveryId => "whd",
    /// A pack of credits that is for sale.
    CreditPackId => "pack",
    /// An order of a pack of credits.
    PurchaseId => "pur",
    /// Money of a purchase that went back.
    PurchaseRefundId => "rfd",
    /// A comparison of the payment provider's books with ours.
    ReconRunId => "rec",
    /// Something that two sets of books do not agree on.
    ReconDifferenceId => "dif",
    /// Somebody's going to Supabase and coming back with its consent.
    SupabaseAuthorizationId => "sba",
    /// A product import.
    ImportId => "imp",
    /// A product of a store.
    ProductId => "prod",
    /// An option of a product, such as "Size".
    OptionId => "opt",
    /// A value of a product option, such as "Large".
    OptionValueId => "optv",
    /// A variant of a product: what is bought.
    VariantId => "var",
    /// A price of a variant.
    PriceId => "price",
    /// A picture of a product.
    MediaId => "media",
    /// A category of a store.
    CategoryId => "cat",
    /// A page of a store.
    PageId => "page",
    /// A place that holds stock.
    LocationId => "loc",
    /// A stock movement.
    MovementId => "mov",
    /// A shopper.
    CustomerId => "cus",
    /// An address of a shopper.
    AddressId => "addr",
    /// A shopper's cart.
    CartId => "cart",
    /// A line of a cart.
    CartLineId => "line",
    /// An order.
    OrderId => "ord",
    /// A line of an order.
    OrderLineId => "oline",
    /// Something that happened to an order.
    OrderEventId => "oev",
    /// A member of a store's staff, as the store's own database knows them.
    StaffId => "stf",
}

#[cfg(test)]
mod tests {
    use super::{OrganizationId, StoreId};
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use uuid::Uuid;

    proptest! {
        #[test]
        fn an_id_reads_back_as_itself(bits in any::<u128>()) {
            let id = StoreId::from_uuid(Uuid::from_u128(bits));
            prop_assert_eq!(id.to_string().parse::<StoreId>(), Ok(id));
        }

        #[test]
        fn printed_ids_sort_like_their_bits(a in any::<u128>(), b in any::<u128>()) {
            let (x, y) = (StoreId::from_uuid(Uuid::from_u128(a)), StoreId::from_uuid(Uuid::from_u128(b)));
            prop_assert_eq!(x.cmp(&y), x.to_string().cmp(&y.to_string()));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}") {
            let _ = text.parse::<StoreId>();
        }

        #[test]
        fn one_kind_never_reads_as_another(bits in any::<u128>()) {
            let store = StoreId::from_uuid(Uuid::from_u128(bits)).to_string();
            prop_assert!(store.parse::<OrganizationId>().is_err());
        }
    }

    #[test]
    fn an_overflowing_or_lower_case_id_is_refused() {
        assert!("sto_8ZZZZZZZZZZZZZZZZZZZZZZZZZ".parse::<StoreId>().is_err());
        assert!("sto_01jd8q6x5mfkv9t3r0wz2h4c7n".parse::<StoreId>().is_err());
    }
}
