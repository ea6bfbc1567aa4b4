#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod connection;
pub mod query;

pub use connection::{Connection, Transaction};
pub use query::Query;
