//! Where a sealed value belongs. Every byte of it is authenticated, so a value opens nowhere else.

use kernel::{OrganizationId, ServerId, StoreId, SupabaseAuthorizationId};

/// Whose secret it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Owner {
    /// One store's.
    Store(StoreId),
    /// A database server's, which many stores share.
    Server(ServerId),
    /// An organization's.
    Organization(OrganizationId),
    /// An authorization's that is under way, and so of nobody else's.
    Authorization(SupabaseAuthorizationId),
    /// The installation's own.
    Platform,
}

/// What the secret is for. A value sealed for one purpose does not open for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// How a store's database is reached.
    DatabaseCredential,
    /// How a database server is administered.
    ServerCredential,
    /// A token that an outside service gave us.
    ServiceToken,
    /// A secret that signs what a webhook sends or receives.
    WebhookSecret,
    /// What the credit ledger was at a moment.
    LedgerRoot,
    /// What proves to an outside service that whoever comes back is whoever went (PKCE).
    OauthVerifier,
    /// What an outside service gives tokens for, once.
    OauthCode,
    /// The password of a login of ours in a project of an owner's.
    RolePassword,
    /// What a node keeps on its disk for the process that follows it.
    NodeData,
}

impl Purpose {
    /// The byte that stands for it in the authenticated data: never renumber, never reuse.
    const fn tag(self) -> u8 {
        match self {
            Self::DatabaseCredential => 1,
            Self::ServerCredential => 2,
            Self::ServiceToken => 3,
            Self::WebhookSecret => 4,
            Self::LedgerRoot => 5,
            Self::OauthVerifier => 6,
            Self::OauthCode => 7,
            Self::RolePassword => 8,
            Self::NodeData => 9,
        }
    }
}

/// The place that a sealed value is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Aad {
    /// Whose secret it is.
    pub owner: Owner,
    /// What it is for.
    pub purpose: Purpose,
    /// The version of the secret, counted by its row: an older value put back does not open as the newer one.
    pub version: i32,
}

impl Aad {
    /// A place that belongs to a store.
    #[must_use]
    pub const fn for_store(store: StoreId, purpose: Purpose, version: i32) -> Self {
        Self { owner: Owner::Store(store), purpose, version }
    }

    /// A place that belongs to a database server.
    #[must_use]
    pub const fn for_server(server: ServerId, purpose: Purpose, version: i32) -> Self {
        Self { owner: Owner::Server(server), purpose, version }
    }

    /// A place that belongs to an organization.
    #[must_use]
    pub const fn for_organization(organization: OrganizationId, purpose: Purpose, version: i32) -> Self {
        Self { owner: Owner::Organization(organization), purpose, version }
    }

    /// A place that belongs to an authorization, which has one of each kind.
    #[must_use]
    pub const fn for_authorization(id: SupabaseAuthorizationId, purpose: Purpose) -> Self {
        Self { owner: Owner::Authorization(id), purpose, version: 0 }
    }

    /// A place that belongs to the installation itself.
    #[must_use]
    pub const fn for_platform(purpose: Purpose, version: i32) -> Self {
        Self { owner: Owner::Platform, purpose, version }
    }

    /// The authenticated bytes: a fixed layout, so no two places share one; then the header of the value itself.
    pub(crate) fn bytes(&self, header: &[u8]) -> Vec<u8> {
        const CONTEXT: &[u8] = b"tenantry-vault-1";
        let (kind, id) = match self.owner {
            Owner::Store(id) => (1_u8, *id.as_uuid().as_bytes()),
            Owner::Server(id) => (2, *id.as_uuid().as_bytes()),
            Owner::Organization(id) => (3, *id.as_uuid().as_bytes()),
            Owner::Platform => (4, [0; 16]),
            Owner::Authorization(id) => (5, *id.as_uuid().as_bytes()),
        };
        let mut out = Vec::with_capacity(CONTEXT.len() + 22 + header.len());
        out.extend_from_slice(CONTEXT);
        out.push(kind);
        out.extend_from_slice(&id);
        out.push(self.purpose.tag());
        out.extend_from_slice(&self.version.to_be_bytes());
        out.extend_from_slice(header);
        out
    }
}
