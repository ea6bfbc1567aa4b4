#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod config;
pub mod connection;
pub mod credential;
pub mod error;
pub mod lease;
pub mod query;
pub mod route;
pub mod stats;
pub mod tenancy;

pub use config::{BreakerConfig, DirectoryConfig, TenancyConfig};
pub use connection::{Connection, Transaction};
pub use credential::{Credential, TlsMode};
pub use error::{Cause, ConnectError, LeaseError, ResolveError};
pub use lease::Lease;
pub use query::Query;
pub use route::{DatabaseRoute, Directory, DirectoryError, Route, StoreChange};
pub use stats::{Explanation, Stats};
pub use tenancy::Tenancy;
