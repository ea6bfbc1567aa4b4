#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod cart;
pub mod catalog;
pub mod checkout;
pub mod content;
pub mod credit_copy;
mod field;
pub mod fitness;
pub mod import;
pub mod migrate;
pub mod order;
pub mod seed;
pub mod settings;
mod sql;
mod stored;
pub mod totals;
pub mod upkeep;

pub use field::FieldError;
pub use migrate::{
    LATEST_VERSION, SCHEMA, SchemaError, SchemaState, drop_schema, inspect, is_bare, is_mark, is_marked_table, mark,
    migrate, migrate_for, missing_parts,
};
