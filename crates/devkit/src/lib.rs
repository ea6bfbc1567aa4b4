#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod payments;
mod postgres;
mod process;
mod supervise;
pub mod testing;
mod user;

pub use postgres::{Binaries, Postgres, PostgresError, PostgresOptions, Profile, find_binaries};
