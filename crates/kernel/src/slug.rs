//! A store's short name, and with the platform domain its first hostname.

use std::fmt;

/// A text that is no slug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SlugError {
    /// Too short, too long, or with other characters.
    #[error("a slug has 3 to 63 characters: lower-case letters, digits and single hyphens inside")]
    Malformed,
    /// A name that the platform keeps for itself.
    #[error("this slug is reserved")]
    Reserved,
}

/// 3 to 63 lower-case letters, digits and single inner hyphens: a DNS label (RFC 1035) that no IDNA label can imitate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "sqlx", derive(sqlx::Type), sqlx(transparent))]
pub struct Slug(String);

/// Labels that a visitor would take for the platform itself, or that mail and web tooling treats specially.
const RESERVED: &[&str] = &[
    "about",
    "abuse",
    "account",
    "accounts",
    "admin",
    "administrator",
    "api",
    "app",
    "apps",
    "assets",
    "auth",
    "autoconfig",
    "autodiscover",
    "billing",
    "blog",
    "broadcasthost",
    "cache",
    "cdn",
    "cms",
    "config",
    "console",
    "contact",
    "control",
    "cpanel",
    "dashboard",
    "database",
    "databases",
    "demo-admin",
    "dev",
    "developer",
    "developers",
    "dns",
    "docs",
    "domain",
    "domains",
    "download",
    "email",
    "example",
    "files",
    "forum",
    "ftp",
    "git",
    "graphql",
    "health",
    "help",
    "hostmaster",
    "hosting",
    "http",
    "https",
    "imap",
    "internal",
    "invalid",
    "isatap",
    "legal",
    "live",
    "local",
    "localdomain",
    "localhost",
    "login",
    "logout",
    "mail",
    "master",
    "media",
    "metrics",
    "mta-sts",
    "mx",
    "mysql",
    "news",
    "noc",
    "noreply",
    "ns",
    "ns1",
    "ns2",
    "ns3",
    "ns4",
    "oauth",
    "ops",
    "owner",
    "panel",
    "payment",
    "payments",
    "platform",
    "pop",
    "pop3",
    "portal",
    "postgres",
    "postgresql",
    "postmaster",
    "preview",
    "private",
    "prod",
    "production",
    "proxy",
    "public",
    "register",
    "root",
    "sales",
    "secure",
    "security",
    "server",
    "shop",
    "shops",
    "signin",
    "signup",
    "smtp",
    "ssl",
    "staff",
    "stage",
    "staging",
    "static",
    "stats",
    "status",
    "store",
    "storefront",
    "stores",
    "support",
    "sys",
    "system",
    "team",
    "tenant",
    "tenantry",
    "tenants",
    "test",
    "testing",
    "tls",
    "usenet",
    "user",
    "users",
    "uucp",
    "webhook",
    "webhooks",
    "webmail",
    "webmaster",
    "wpad",
    "www",
    "www1",
    "www2",
    "xml",
    "xmpp",
];

impl Slug {
    /// Checks `text` as it stands: nothing is trimmed or lower-cased.
    ///
    /// # Errors
    /// [`SlugError`] when it is malformed or reserved.
    pub fn parse(text: &str) -> Result<Self, SlugError> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        let hyphens_inside = !text.starts_with('-') && !text.ends_with('-') && !text.contains("--");
        if !(3..=63).contains(&text.len()) || !is_plain || !hyphens_inside {
            return Err(SlugError::Malformed);
        }
        if RESERVED.contains(&text) {
            return Err(SlugError::Reserved);
        }
        Ok(Self(text.to_owned()))
    }

    /// A slug made from a display name, with `salt` (random, lower-case) appended where the name gives too little or
    /// something reserved. `None` only when `salt` itself is no slug material.
    #[must_use]
    pub fn suggest(name: &str, salt: &str) -> Option<Self> {
        let mut text = String::with_capacity(name.len());
        for c in name.chars() {
            if c.is_ascii_alphanumeric() {
                text.push(c.to_ascii_lowercase());
            } else if !text.is_empty() && !text.ends_with('-') && c != '\'' && c != '’' {
                text.push('-');
            }
            if text.len() >= 40 {
                break;
            }
        }
        let base = text.trim_matches('-');
        Self::parse(base).or_else(|_| Self::parse(format!("{base}-{salt}").trim_matches('-'))).ok()
    }

    /// The same slug with `-salt` appended, cut so that it stays one.
    #[must_use]
    pub fn with_suffix(&self, salt: &str) -> Option<Self> {
        let room = 62_usize.saturating_sub(salt.len());
        let base = self.0.get(..room.min(self.0.len())).unwrap_or(&self.0).trim_end_matches('-');
        Self::parse(&format!("{base}-{salt}")).ok()
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl serde::Serialize for Slug {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{Slug, SlugError};
    use proptest::prelude::{prop_assert, proptest};

    #[test]
    fn malformed_and_reserved_slugs_are_told_apart() {
        for text in ["", "ab", "-tea", "tea-", "te--a", "xn--tea", "Tea", "té", "tea shop", "a.b.c", &"x".repeat(64)] {
            assert_eq!(Slug::parse(text), Err(SlugError::Malformed), "{text}");
        }
        assert_eq!(Slug::parse("admin"), Err(SlugError::Reserved));
        assert!(Slug::parse("tea-house-7").is_ok());
    }

    proptest! {
        #[test]
        fn every_name_gives_a_slug(name in ".{0,80}") {
            prop_assert!(Slug::suggest(&name, "k3x9").is_some(), "{name}");
        }

        #[test]
        fn a_suffix_keeps_it_a_slug(name in "[a-z][a-z0-9]{2,60}") {
            if let Ok(slug) = Slug::parse(&name) {
                prop_assert!(slug.with_suffix("k3x9").is_some());
            }
        }
    }
}
