//! Names inside dynamic SQL: only a checked, quoted identifier gets there.

use std::fmt;

/// A name that is no identifier we would ever create.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an identifier has 1 to 63 bytes of [A-Za-z0-9_], beginning with a letter or an underscore")]
pub struct IdentError;

/// A database, role, schema or table name, at most 63 bytes (PostgreSQL's limit) of letters, digits and underscores.
///
/// `Display` prints it in double quotes, as PostgreSQL wants it; [`Ident::as_str`] is the bare name for catalog look-ups.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ident(String);

impl Ident {
    /// Checks `name`.
    ///
    /// # Errors
    /// When it is empty, over 63 bytes, or holds anything that would need escaping.
    pub fn new(name: impl Into<String>) -> Result<Self, IdentError> {
        let name = name.into();
        let starts_well = name.bytes().next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_');
        let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if starts_well && is_plain && name.len() <= 63 { Ok(Self(name)) } else { Err(IdentError) }
    }

    /// The bare name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Ident {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "\"{}\"", self.0)
    }
}

/// A text as a standard SQL string literal, for the few statements that take no parameters (`ALTER ROLE … PASSWORD`).
///
/// Only for text without backslashes or NUL: returns `None` otherwise, so no server setting can change its meaning.
#[must_use]
pub fn quote_literal(text: &str) -> Option<String> {
    (!text.contains(['\\', '\0'])).then(|| format!("'{}'", text.replace('\'', "''")))
}

#[cfg(test)]
mod tests {
    use super::{Ident, quote_literal};

    #[test]
    fn hostile_names_are_refused() {
        for name in ["", "a b", "a\"b", "a;drop", "é", "1a", "a-b", &"x".repeat(64)] {
            assert!(Ident::new(name).is_err(), "{name}");
        }
        assert_eq!(Ident::new("store_01").expect("plain").to_string(), "\"store_01\"");
    }

    #[test]
    fn a_literal_cannot_be_left() {
        assert_eq!(quote_literal("a'b").as_deref(), Some("'a''b'"));
        assert_eq!(quote_literal("a\\b"), None);
    }
}
