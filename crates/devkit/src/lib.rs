#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod error;
mod folder;
mod mariadb;
pub mod payments;
mod ports;
mod postgres;
mod process;
pub mod supabase;
mod supervise;
pub mod testing;
mod user;

pub use error::ServerError;
pub use mariadb::MariaDb;
pub use postgres::{Binaries, Postgres, PostgresOptions, Profile, find_binaries};
