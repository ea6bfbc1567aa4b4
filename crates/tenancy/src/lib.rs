#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod breaker;
mod budget;
mod closing;
pub mod config;
pub mod connection;
pub mod credential;
mod directory;
pub mod error;
mod gate;
pub mod lease;
mod limiter;
mod meter;
mod node;
mod opening;
mod pool;
pub mod query;
pub mod reach;
mod registry;
pub mod route;
mod server;
mod session;
pub mod stats;
mod tenancy;
mod unknown;

pub use config::{BreakerConfig, DirectoryConfig, TenancyConfig};
pub use connection::{Connection, Transaction};
pub use credential::{APPLICATION_NAME, Credential, TlsMode};
pub use error::{Cause, ConnectError, LeaseError, Particular, ResolveError};
pub use lease::Lease;
pub use query::Query;
pub use reach::{AddressError, Reach};
pub use route::{DatabaseRoute, Directory, DirectoryError, Route, StoreChange};
pub use session::Session;
pub use stats::{Explanation, ServerLoad, Stats};
pub use tenancy::Tenancy;
