#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod address;
pub mod clock;
pub mod cursor;
pub mod hostname;
pub mod ident;
pub mod ids;
pub mod money;
pub mod random;
pub mod slug;
pub mod store;
pub mod text;

pub use clock::{Clock, SystemClock};
pub use cursor::{Cursor, CursorError};
pub use hostname::{Hostname, HostnameError};
pub use ident::{Ident, IdentError};
pub use ids::*;
pub use money::{Currency, Money, MoneyError};
pub use slug::{Slug, SlugError};
pub use store::{Engine, StoreStatus};
