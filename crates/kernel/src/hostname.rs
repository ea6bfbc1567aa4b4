//! Hostnames: as a request names them, and as an owner types them. Both become the same lower-case A-label form.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Why a text is no hostname.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostnameError {
    /// There is nothing there.
    #[error("the hostname is empty")]
    Empty,
    /// It breaks the rules of DNS names (RFC 1035, RFC 5891).
    #[error("this is not a valid hostname")]
    Malformed,
    /// It is an address, not a name.
    #[error("an IP address is not a hostname")]
    Address,
}

/// A DNS name of at least one label in its one comparable form: lower-case A-labels, no port, no trailing dot, at most 253
/// bytes, never an IP address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "sqlx", derive(sqlx::Type), sqlx(transparent))]
pub struct Hostname(String);

impl Hostname {
    /// The hostname in the value of a `Host` header or an `:authority`: a port and one trailing dot are dropped, Unicode
    /// becomes A-labels.
    ///
    /// # Errors
    /// [`HostnameError`]; `Address` also for bracketed IPv6, so the caller can tell "no store is named" from "nonsense".
    pub fn from_authority(authority: &str) -> Result<Self, HostnameError> {
        if let Some(rest) = authority.strip_prefix('[') {
            let (address, port) = rest.split_once(']').ok_or(HostnameError::Malformed)?;
            let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
            return match address.parse::<Ipv6Addr>() {
                Ok(_) if is_port => Err(HostnameError::Address),
                _ => Err(HostnameError::Malformed),
            };
        }
        let name = match authority.split_once(':') {
            None => authority,
            Some((name, port)) if is_port(port) => name,
            Some(_) => return Err(HostnameError::Malformed),
        };
        Self::parse(name)
    }

    /// The hostname in `name`, which has no port.
    ///
    /// # Errors
    /// [`HostnameError`] when it is empty, malformed, or an IP address in any notation that browsers accept.
    pub fn parse(name: &str) -> Result<Self, HostnameError> {
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.is_empty() {
            return Err(HostnameError::Empty);
        }
        // The common case, a plain lower-case ASCII name without A-labels, needs no IDNA tables and one allocation.
        let ascii = if is_plain_ascii(name) {
            name.to_owned()
        } else if name.is_ascii() && !name.to_ascii_lowercase().contains("xn--") {
            name.to_ascii_lowercase()
        } else {
            idna::domain_to_ascii_strict(name).map_err(|_| HostnameError::Malformed)?
        };
        let is_well_formed = ascii.len() <= 253 && ascii.split('.').all(is_label);
        if !is_well_formed {
            return Err(HostnameError::Malformed);
        }
        // WHATWG URL: a name whose last label is a number is an IPv4 address to every browser, also `0x7f.1`.
        let last = ascii.rsplit('.').next().unwrap_or(&ascii);
        let is_hex = last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()));
        if is_hex || last.bytes().all(|b| b.is_ascii_digit()) || ascii.parse::<Ipv4Addr>().is_ok() {
            return Err(HostnameError::Address);
        }
        Ok(Self(ascii))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The label in front of `domain`, when this is exactly one label below it.
    #[must_use]
    pub fn label_under(&self, domain: &Self) -> Option<&str> {
        let label = self.0.strip_suffix(domain.as_str())?.strip_suffix('.')?;
        (!label.is_empty() && !label.contains('.')).then_some(label)
    }

    /// Whether this is `domain` or anything below it.
    #[must_use]
    pub fn is_within(&self, domain: &Self) -> bool {
        self == domain || self.0.strip_suffix(domain.as_str()).is_some_and(|rest| rest.ends_with('.'))
    }
}

fn is_port(text: &str) -> bool {
    text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit()) && (text.is_empty() || text.parse::<u16>().is_ok())
}

fn is_plain_ascii(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        && !name.contains("xn--")
}

fn is_label(label: &str) -> bool {
    let is_ldh = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    (1..=63).contains(&label.len()) && is_ldh && !label.starts_with('-') && !label.ends_with('-')
}

impl fmt::Display for Hostname {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::str::FromStr for Hostname {
    type Err = HostnameError;

    fn from_str(text: &str) -> Result<Self, HostnameError> {
        Self::parse(text)
    }
}

impl serde::Serialize for Hostname {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{Hostname, HostnameError};
    use proptest::prelude::{prop_assert_eq, proptest};

    #[test]
    fn case_port_dot_and_unicode_meet_in_one_form() {
        for (given, wanted) in [
            ("Tea.Stores.Localhost:8080", "tea.stores.localhost"),
            ("tea.stores.localhost.", "tea.stores.localhost"),
            ("tea.stores.localhost.:443", "tea.stores.localhost"),
            ("tea.stores.localhost:", "tea.stores.localhost"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("BÜCHER.example", "xn--bcher-kva.example"),
            ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ] {
            assert_eq!(Hostname::from_authority(given).map(|h| h.to_string()), Ok(wanted.to_owned()), "{given}");
        }
    }

    #[test]
    fn nonsense_and_addresses_are_refused() {
        for given in [
            "a..b",
            ".a",
            "-a.b",
            "a-.b",
            "a_b.c",
            "*.b",
            "user@host",
            "a b",
            "a/b",
            "a:b",
            "a:99999",
            "a:1:2",
            "a..",
            "xn--a.b",
            "[::1",
            "[zz]",
            "[::1]x",
            "a\u{0}b",
            "a'; drop table stores;--",
        ] {
            assert_eq!(Hostname::from_authority(given), Err(HostnameError::Malformed), "{given:?}");
        }
        for given in ["127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080", "1.2.3", "0x7f.1", "a.1", "a.0x1f"] {
            assert_eq!(Hostname::from_authority(given), Err(HostnameError::Address), "{given:?}");
        }
        assert_eq!(Hostname::from_authority(""), Err(HostnameError::Empty));
        assert!(Hostname::parse(&format!("{}.example", "a".repeat(64))).is_err());
        assert!(Hostname::parse(&vec!["a".repeat(60); 5].join(".")).is_err());
    }

    #[test]
    fn a_label_counts_only_one_deep() {
        let domain = Hostname::parse("stores.localhost").expect("valid");
        let label = |name: &str| Hostname::parse(name).expect("valid").label_under(&domain).map(str::to_owned);
        assert_eq!(label("tea.stores.localhost").as_deref(), Some("tea"));
        assert_eq!(label("a.tea.stores.localhost"), None);
        assert_eq!(label("stores.localhost"), None);
        assert_eq!(label("teastores.localhost"), None);
    }

    proptest! {
        #[test]
        fn parsing_is_idempotent(text in "\\PC{0,60}") {
            if let Ok(host) = Hostname::from_authority(&text) {
                prop_assert_eq!(Hostname::parse(host.as_str()), Ok(host.clone()));
                prop_assert_eq!(Hostname::from_authority(host.as_str()), Ok(host));
            }
        }

        #[test]
        fn letter_case_never_matters(text in "[a-zA-Z0-9.-]{1,40}") {
            prop_assert_eq!(Hostname::parse(&text), Hostname::parse(&text.to_ascii_uppercase()));
        }
    }
}
