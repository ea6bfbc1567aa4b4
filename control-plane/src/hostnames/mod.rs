//! Hostnames: what resolves to a store. Every store has a platform hostname from the start.

pub mod db;

use kernel::{Hostname, HostnameId, Slug};

/// Where a hostname comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum HostnameKind {
    /// `<slug>.<PLATFORM_DOMAIN>`.
    Platform,
    /// The owner's own.
    Custom,
}

/// The platform hostname of `slug`: a slug is a DNS label, so only the length of the whole can be wrong.
pub fn platform_hostname(slug: &Slug, domain: &Hostname) -> Option<Hostname> {
    Hostname::parse(&format!("{slug}.{domain}")).ok()
}

/// A hostname to be added.
pub struct NewHostname {
    pub id: HostnameId,
    pub hostname: Hostname,
    pub kind: HostnameKind,
    pub is_primary: bool,
}
