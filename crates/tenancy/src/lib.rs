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
mod reservation;
pub mod route;
mod server;
mod session;
pub mod stats;
mod tenancy;
mod unknown;
mod versions;

pub use config::{BreakerConfig, DirectoryConfig, TenancyConfig};
pub use connection::{Connection, Transaction};
pub use credential::{APPLICATION_NAME, Credential, TlsMode};
pub use directory::Remembered;
pub use error::{Cause, ConnectError, LeaseError, Particular, ResolveError};
pub use lease::{Lane, Lease};
pub use query::Query;
pub use reach::{AddressError, Reach};
pub use reservation::Reservation;
pub use route::{DatabaseRoute, Directory, DirectoryError, Route, StoreChange};
pub use session::{Session, unbroken};
pub use stats::{Explanation, ServerLoad, Stats, StoreLoad};
pub use tenancy::Tenancy;
pub use versions::RouteNews;
