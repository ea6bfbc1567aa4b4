//! How ids, currencies and states stand in a store's database: as text, the same in every engine.

use kernel::Currency;
use sqlx::error::BoxDynError;
use sqlx::{Database, Decode, MySql, Postgres, Type};

/// A column of text that reads as a `T`: `#[sqlx(try_from = "Stored<ProductId>")]`.
#[derive(Debug)]
pub(crate) struct Stored<T>(pub(crate) T);

/// What can be read from its stored text.
pub(crate) trait FromStored: Sized {
    fn from_stored(text: &str) -> Option<Self>;
}

macro_rules! stored_in {
    ($($database:ty)+) => {$(
        impl<T> Type<$database> for Stored<T> {
            fn type_info() -> <$database as Database>::TypeInfo {
                <str as Type<$database>>::type_info()
            }

            fn compatible(column: &<$database as Database>::TypeInfo) -> bool {
                <str as Type<$database>>::compatible(column)
            }
        }

        impl<'r, T: FromStored> Decode<'r, $database> for Stored<T> {
            fn decode(value: <$database as Database>::ValueRef<'r>) -> Result<Self, BoxDynError> {
                let text = <&str as Decode<'r, $database>>::decode(value)?;
                T::from_stored(text).map(Self).ok_or_else(|| "the stored text is of another kind than its column".into())
            }
        }
    )+};
}

stored_in! { MySql Postgres }

impl FromStored for Currency {
    fn from_stored(text: &str) -> Option<Self> {
        Self::parse(text).ok()
    }
}

impl From<Stored<Self>> for Currency {
    fn from(stored: Stored<Self>) -> Self {
        stored.0
    }
}

macro_rules! stored_ids {
    ($($name:ident)+) => {$(
        impl FromStored for kernel::$name {
            fn from_stored(text: &str) -> Option<Self> {
                text.parse().ok()
            }
        }

        impl From<Stored<Self>> for kernel::$name {
            fn from(stored: Stored<Self>) -> Self {
                stored.0
            }
        }
    )+};
}

stored_ids! {
    StoreId ProductId OptionId OptionValueId VariantId MediaId CategoryId PageId LocationId CartId CartLineId OrderId
    OrderLineId CustomerId
}

/// An enum that is stored, answered, described and filtered by the same words. They come as `tt`: wrapped as `literal`, the
/// description's macro does not see them in serde's attribute.
macro_rules! stored_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:tt,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)+
        }

        impl $name {
            /// The word that the database and the API use.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl $crate::stored::FromStored for $name {
            fn from_stored(text: &str) -> Option<Self> {
                match text {
                    $($text => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        impl From<$crate::stored::Stored<Self>> for $name {
            fn from(stored: $crate::stored::Stored<Self>) -> Self {
                stored.0
            }
        }
    };
}
pub(crate) use stored_enum;
