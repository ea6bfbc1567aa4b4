#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod aad;
mod ring;
mod sealed;
#[cfg(test)]
mod tests;

pub use aad::{Aad, Owner, Purpose};
pub use ring::{KeyError, KeyRing, KeyRingError, OpenError, generate_key};
pub use sealed::{MalformedError, Sealed};
