//! Stores: created by a member of an organization, named by a slug, served once their database is ready.

pub mod db;
pub mod inside;
pub mod routes;

use chrono::{DateTime, Utc};
use kernel::{Hostname, HostnameId, OrganizationId, Slug, SlugError, StoreId, StoreStatus, UserId, text};
use problem::Problem;
use sqlx::PgConnection;

use crate::audit::{self, Actor, Subject};
use crate::cx::{Cx, OpsCx};
use crate::hostnames::{self, HostnameKind, NewHostname};
use crate::http::paging::{PagingError, Window};
use crate::idempotency::{self, Claim};
use crate::identity::MemberRole;

/// A store, as master knows it.
#[derive(Debug, Clone)]
pub struct Store {
    pub id: StoreId,
    pub organization_id: OrganizationId,
    pub name: String,
    pub slug: String,
    pub status: StoreStatus,
    pub status_reason: Option<String>,
    /// Whether it takes no orders, because its charges are unpaid.
    pub is_read_only: bool,
    /// Since when it owes credits.
    pub owed_since: Option<DateTime<Utc>>,
    pub hostname: Option<String>,
    pub route_version: i64,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// A store, and what the person who asked may do in it.
#[derive(Debug, Clone)]
pub struct StoreAccess {
    pub store: Store,
    pub role: MemberRole,
}

/// A store to be created.
pub struct NewStore {
    pub name: String,
    pub slug: Option<String>,
    pub organization_id: OrganizationId,
}

/// Why a store operation was refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the slug is already in use")]
    SlugTaken,
    #[error("{0}")]
    Slug(SlugError),
    #[error("{detail}")]
    Invalid { pointer: &'static str, code: &'static str, detail: String },
    #[error("not a member of that organization")]
    OrganizationNotFound,
    #[error("only owners and admins of the organization may do this")]
    NotManager,
    #[error("several organizations to choose from")]
    OrganizationAmbiguous,
    #[error("the organization has {max} stores already")]
    TooMany { max: i64 },
    #[error("there is no such store")]
    NotFound,
    #[error("the store is {status}")]
    WrongStatus { status: StoreStatus, wanted: &'static str },
    #[error("the Idempotency-Key was used for another request")]
    KeyReused,
    #[error(transparent)]
    Paging(#[from] PagingError),
    #[error("database error")]
    Db(#[from] sqlx::Error),
}

/// A bound on what one organization can make us keep; ops raise it in a later release by plan.
const MAX_STORES: i64 = 1000;

/// Creates a store in its organization, with its platform hostname, once per idempotency key.
pub async fn create(cx: &Cx, by: UserId, body: &routes::CreateBody, key: Option<&str>) -> Result<Store, StoreError> {
    let now = cx.clock.now();
    let scope = format!("store_create:{by}");
    let mut tx = cx.master.begin().await?;
    if let Some(key) = key {
        match idempotency::claim::<_, StoreId>(&mut tx, &scope, key, body, now).await? {
            Claim::New => {}
            Claim::Done(id) => {
                let access = db::store_for_member(&mut tx, id, by).await?.ok_or(StoreError::NotFound)?;
                return Ok(access.store);
            }
            Claim::Reused => return Err(StoreError::KeyReused),
        }
    }
    let organization_id = choose_organization(&mut tx, by, body.organization_id).await?;
    let new = NewStore { name: body.name.clone(), slug: body.slug.clone(), organization_id };
    let store = create_in(cx, &mut tx, Actor::User(by), by, new).await?;
    if let Some(key) = key {
        idempotency::complete(&mut tx, &scope, key, &store.id).await?;
    }
    tx.commit().await?;
    Ok(store)
}

/// Creates a store inside the caller's transaction. A slug that was asked for must be free; one made from the name gets a
/// suffix when it is taken.
pub async fn create_in(
    cx: &Cx,
    tx: &mut PgConnection,
    actor: Actor,
    by: UserId,
    new: NewStore,
) -> Result<Store, StoreError> {
    let name = check_name(&new.name)?;
    if db::stores_lock_and_count(tx, new.organization_id).await? >= MAX_STORES {
        return Err(StoreError::TooMany { max: MAX_STORES });
    }
    let now = cx.clock.now();
    let id = StoreId::new(now);
    let salt = || {
        kernel::random::bytes::<4>()
            .map(|byte| char::from(b"abcdefghjkmnpqrstuvwxyz23456789"[usize::from(byte) % 31]))
            .iter()
            .collect::<String>()
    };
    let (slug, was_chosen) = match &new.slug {
        Some(text) => (Slug::parse(text).map_err(StoreError::Slug)?, true),
        None => (Slug::suggest(&name, &salt()).ok_or(StoreError::Slug(SlugError::Malformed))?, false),
    };
    let slug = insert_with_free_slug(tx, id, &new, &name, slug, was_chosen, by, now, salt).await?;
    let hostname = hostnames::platform_hostname(&slug, &cx.config.hosts.platform_domain)
        .ok_or(StoreError::Slug(SlugError::Malformed))?;
    let row = NewHostname {
        id: HostnameId::new(now),
        hostname: hostname.clone(),
        kind: HostnameKind::Platform,
        is_primary: true,
    };
    if !hostnames::db::hostname_ensure(tx, id, &row, now).await? {
        return Err(StoreError::SlugTaken);
    }
    let data = serde_json::json!({ "slug": slug });
    audit::record(tx, now, actor, "store_create", Subject::store(new.organization_id, id), data).await?;
    db::store_find(tx, id).await?.ok_or(StoreError::NotFound)
}

#[expect(clippy::too_many_arguments, reason = "the parts of one row, and how to vary its slug")]
async fn insert_with_free_slug(
    tx: &mut PgConnection,
    id: StoreId,
    new: &NewStore,
    name: &str,
    slug: Slug,
    was_chosen: bool,
    by: UserId,
    now: DateTime<Utc>,
    salt: impl Fn() -> String,
) -> Result<Slug, StoreError> {
    const TRIES: usize = 5;
    let mut candidate = slug.clone();
    for _ in 0..TRIES {
        if db::store_insert(tx, id, new.organization_id, name, &candidate, by, now).await? {
            return Ok(candidate);
        }
        if was_chosen {
            return Err(StoreError::SlugTaken);
        }
        candidate = slug.with_suffix(&salt()).ok_or(StoreError::Slug(SlugError::Malformed))?;
    }
    Err(StoreError::SlugTaken)
}

async fn choose_organization(
    tx: &mut PgConnection,
    by: UserId,
    wanted: Option<OrganizationId>,
) -> Result<OrganizationId, StoreError> {
    let memberships = crate::identity::db::memberships(tx, by).await?;
    let chosen = match (wanted, memberships.as_slice()) {
        (Some(id), all) => all.iter().find(|membership| membership.id == id).ok_or(StoreError::OrganizationNotFound)?,
        (None, [only]) => only,
        (None, []) => return Err(StoreError::OrganizationNotFound),
        (None, _) => return Err(StoreError::OrganizationAmbiguous),
    };
    if chosen.role.is_manager() { Ok(chosen.id) } else { Err(StoreError::NotManager) }
}

/// A page of the stores that a person is let into, newest first, and the cursor of the next.
pub async fn list(
    cx: &OpsCx,
    by: UserId,
    organization: Option<OrganizationId>,
    cursor: Option<&str>,
    limit: Option<u8>,
) -> Result<(Vec<Store>, Option<String>), StoreError> {
    let of = organization.map(|id| id.to_string()).unwrap_or_default();
    let window = Window::read(&["stores", &by.to_string(), &of], cursor, limit)?;
    let mut connection = cx.master.acquire().await?;
    let found = db::stores_of_member(&mut connection, by, organization, window.after, window.rows()).await?;
    Ok(window.page(found, |store: &Store| store.id))
}

/// A page of every store, newest first, and the cursor of the next.
pub async fn list_all(
    cx: &OpsCx,
    status: Option<StoreStatus>,
    cursor: Option<&str>,
    limit: Option<u8>,
) -> Result<(Vec<Store>, Option<String>), StoreError> {
    let window = Window::read(&["all stores", status.map_or("", StoreStatus::as_str)], cursor, limit)?;
    let mut connection = cx.master.acquire().await?;
    let found = db::stores_all(&mut connection, status, window.after, window.rows()).await?;
    Ok(window.page(found, |store: &Store| store.id))
}

/// One store, for ops.
pub async fn find(cx: &OpsCx, id: StoreId) -> Result<Store, StoreError> {
    db::store_find(&mut *cx.master.acquire().await?, id).await?.ok_or(StoreError::NotFound)
}

/// One store by its slug, for ops.
pub async fn find_by_slug(cx: &OpsCx, slug: &Slug) -> Result<Store, StoreError> {
    let mut connection = cx.master.acquire().await?;
    let id = db::store_id_of_slug(&mut connection, slug.as_str()).await?.ok_or(StoreError::NotFound)?;
    db::store_find(&mut connection, id).await?.ok_or(StoreError::NotFound)
}

/// Renames a store.
pub async fn rename(cx: &Cx, by: UserId, store: &Store, name: &str) -> Result<Store, StoreError> {
    let name = check_name(name)?;
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    db::store_rename(&mut tx, store.id, &name, now).await?;
    let subject = Subject::store(store.organization_id, store.id);
    audit::record(&mut tx, now, Actor::User(by), "store_rename", subject, serde_json::json!({ "name": name })).await?;
    let store = db::store_find(&mut tx, store.id).await?.ok_or(StoreError::NotFound)?;
    tx.commit().await?;
    Ok(store)
}

/// Closes a store: once the answer is given, no node that hears its notification serves it.
pub async fn suspend(cx: &OpsCx, actor: Actor, id: StoreId, reason: &str) -> Result<Store, StoreError> {
    let reason = text::one_line(reason, 500).map_err(|e| StoreError::Invalid {
        pointer: "/reason",
        code: "text",
        detail: e.to_string(),
    })?;
    let serving = [StoreStatus::Active, StoreStatus::Maintenance];
    set_status(cx, actor, id, "store_suspend", &serving, StoreStatus::Suspended, Some(reason)).await
}

/// Opens a suspended store again.
pub async fn resume(cx: &OpsCx, actor: Actor, id: StoreId) -> Result<Store, StoreError> {
    set_status(cx, actor, id, "store_resume", &[StoreStatus::Suspended], StoreStatus::Active, None).await
}

async fn set_status(
    cx: &OpsCx,
    actor: Actor,
    id: StoreId,
    action: &'static str,
    from: &[StoreStatus],
    to: StoreStatus,
    reason: Option<String>,
) -> Result<Store, StoreError> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let store = db::store_lock(&mut tx, id).await?.ok_or(StoreError::NotFound)?;
    // Said again it changes nothing, but for another reason.
    if store.status == to && store.status_reason == reason {
        return Ok(store);
    }
    if store.status != to && !from.contains(&store.status) {
        let wanted = if to == StoreStatus::Active { "suspended" } else { "active" };
        return Err(StoreError::WrongStatus { status: store.status, wanted });
    }
    db::store_set_status(&mut tx, id, to, reason.as_deref(), now).await?;
    let subject = Subject::store(store.organization_id, id);
    audit::record(&mut tx, now, actor, action, subject, serde_json::json!({ "reason": reason })).await?;
    let store = db::store_find(&mut tx, id).await?.ok_or(StoreError::NotFound)?;
    tx.commit().await?;
    cx.announce(id, store.route_version);
    Ok(store)
}

/// The name as it is kept.
pub fn check_name(name: &str) -> Result<String, StoreError> {
    text::one_line(name, 100).map_err(|e| StoreError::Invalid { pointer: "/name", code: "text", detail: e.to_string() })
}

/// The hostname that a store is reached by, when it is valid.
pub fn primary_hostname(store: &Store) -> Option<Hostname> {
    store.hostname.as_deref().and_then(|name| Hostname::parse(name).ok())
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        use axum::http::StatusCode as S;
        match error {
            StoreError::SlugTaken => Self::new(S::CONFLICT, "slug-taken", "The slug is already in use")
                .detail("Choose another slug, or leave it out and one is made from the name.")
                .field("/slug", "taken", "is already in use"),
            StoreError::Slug(SlugError::Reserved) => Self::invalid().field("/slug", "reserved", SlugError::Reserved),
            StoreError::Slug(SlugError::Malformed) => Self::invalid().field("/slug", "slug", SlugError::Malformed),
            StoreError::Invalid { pointer, code, detail } => Self::invalid().field(pointer, code, detail),
            StoreError::OrganizationNotFound => {
                Self::invalid().field("/organizationId", "unknown", "is no organization of yours")
            }
            StoreError::OrganizationAmbiguous => Self::invalid().field(
                "/organizationId",
                "required",
                "say which of your organizations shall own the store",
            ),
            StoreError::NotManager => Self::new(S::FORBIDDEN, "forbidden", "Your role does not allow this")
                .detail("Ask an owner or admin of the organization."),
            StoreError::TooMany { max } => {
                Self::new(S::CONFLICT, "store-limit-reached", "The organization has as many stores as it may")
                    .detail(format!("The limit is {max} stores."))
            }
            StoreError::NotFound => Self::not_found(),
            StoreError::WrongStatus { status, wanted } => {
                Self::new(S::CONFLICT, "wrong-store-status", "The store's status does not allow this")
                    .detail(format!("The store is {status}; it would have to be {wanted}."))
                    .member("storeStatus", status.as_str())
            }
            StoreError::KeyReused => idempotency::reused(),
            StoreError::Paging(error) => error.into(),
            error @ StoreError::Db(_) => crate::http::errors::unexpected(&error),
        }
    }
}
