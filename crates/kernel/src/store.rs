//! What every layer knows of a store: its status and its engine.

use serde::{Deserialize, Serialize};

/// Where a store is in its life. "Not finished" and "suspended" are different states and never share a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "sqlx", derive(sqlx::Type), sqlx(type_name = "text", rename_all = "snake_case"))]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum StoreStatus {
    /// Created; no database was connected or asked for yet.
    PendingDatabase,
    /// A provisioning run is preparing its database.
    Provisioning,
    /// Its storefront is served.
    Active,
    /// Closed by ops; its storefront answers 503.
    Suspended,
    /// Closed for a while by its owner or by ops; its storefront answers 503.
    Maintenance,
    /// Kept, but out of use.
    Archived,
    /// Gone; only its trail is left.
    Deleted,
}

impl StoreStatus {
    /// The name that the database and the API use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PendingDatabase => "pending_database",
            Self::Provisioning => "provisioning",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Maintenance => "maintenance",
            Self::Archived => "archived",
            Self::Deleted => "deleted",
        }
    }
}

impl std::fmt::Display for StoreStatus {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.as_str())
    }
}

/// The kind of server that holds a store's database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "sqlx", derive(sqlx::Type), sqlx(type_name = "text", rename_all = "snake_case"))]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Engine {
    /// PostgreSQL 13 or later.
    Postgresql,
    /// MySQL 8.0 or MariaDB 10.6, or later: what one of them lacks is not used on the other.
    Mysql,
}

impl Engine {
    /// The name that the database and the API use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Postgresql => "postgresql",
            Self::Mysql => "mysql",
        }
    }
}

impl std::fmt::Display for Engine {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.as_str())
    }
}
