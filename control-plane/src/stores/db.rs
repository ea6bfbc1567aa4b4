//! SQL of stores.

use chrono::{DateTime, Utc};
use kernel::{OrganizationId, Slug, StoreId, StoreStatus, UserId};
use sqlx::PgConnection;

use super::{Store, StoreAccess, StoreError};
use crate::identity::MemberRole;

/// The number of stores of an organization, which is locked so that the number stays true until the transaction ends.
pub async fn stores_lock_and_count(conn: &mut PgConnection, organization: OrganizationId) -> Result<i64, sqlx::Error> {
    sqlx::query!("select id from organizations where id = $1 for update", organization.as_uuid())
        .fetch_optional(&mut *conn)
        .await?;
    sqlx::query_scalar!(
        r#"select count(*) as "count!" from stores where organization_id = $1 and status <> 'deleted'"#,
        organization.as_uuid(),
    )
    .fetch_one(conn)
    .await
}

/// Adds a store; false when the slug is in use.
pub async fn store_insert(
    conn: &mut PgConnection,
    id: StoreId,
    organization: OrganizationId,
    name: &str,
    slug: &Slug,
    by: UserId,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    // A violated constraint would abort the transaction that a second try needs.
    let done = sqlx::query!(
        "insert into stores (id, organization_id, name, slug, created_by, created_at, updated_at)
         values ($1, $2, $3, $4, $5, $6, $6)
         on conflict on constraint stores_slug_key do nothing",
        id.as_uuid(),
        organization.as_uuid(),
        name,
        slug.as_str(),
        by.as_uuid(),
        now,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub async fn store_find(conn: &mut PgConnection, id: StoreId) -> Result<Option<Store>, sqlx::Error> {
    sqlx::query_as!(
        Store,
        r#"select s.id as "id: StoreId", s.organization_id as "organization_id: OrganizationId", s.name, s.slug,
                  s.status as "status: StoreStatus", s.status_reason, s.is_read_only,
                  (select min(c.unpaid_since) from store_charges c where c.store_id = s.id and c.state = 'unpaid') as owed_since,
                  h.hostname as "hostname?", s.route_version, s.created_at, s.updated_at
           from stores s
           left join hostnames h on h.store_id = s.id and h.is_primary
           where s.id = $1 and s.status <> 'deleted'"#,
        id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

pub async fn store_id_of_slug(conn: &mut PgConnection, slug: &str) -> Result<Option<StoreId>, sqlx::Error> {
    sqlx::query_scalar!(r#"select id as "id: StoreId" from stores where slug = $1"#, slug).fetch_optional(conn).await
}

/// Notes that something of the store has changed.
pub async fn store_touch(conn: &mut PgConnection, id: StoreId, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    sqlx::query!("update stores set updated_at = $2 where id = $1", id.as_uuid(), now).execute(conn).await?;
    Ok(())
}

pub async fn store_lock(conn: &mut PgConnection, id: StoreId) -> Result<Option<Store>, sqlx::Error> {
    sqlx::query!("select id from stores where id = $1 for update", id.as_uuid()).fetch_optional(&mut *conn).await?;
    store_find(conn, id).await
}

/// A store that `user` is let into by a membership, with the role.
pub async fn store_for_member(
    conn: &mut PgConnection,
    id: StoreId,
    user: UserId,
) -> Result<Option<StoreAccess>, sqlx::Error> {
    let row = sqlx::query!(
        r#"select s.id as "id: StoreId", s.organization_id as "organization_id: OrganizationId", s.name, s.slug,
                  s.status as "status: StoreStatus", s.status_reason, s.is_read_only,
                  (select min(c.unpaid_since) from store_charges c where c.store_id = s.id and c.state = 'unpaid') as owed_since,
                  h.hostname as "hostname?", s.route_version, s.created_at, s.updated_at, m.role as "role: MemberRole"
           from stores s
           join organization_members m on m.organization_id = s.organization_id and m.user_id = $2
           left join hostnames h on h.store_id = s.id and h.is_primary
           where s.id = $1 and s.status <> 'deleted'"#,
        id.as_uuid(),
        user.as_uuid(),
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| StoreAccess {
        role: row.role,
        store: Store {
            id: row.id,
            organization_id: row.organization_id,
            name: row.name,
            slug: row.slug,
            status: row.status,
            status_reason: row.status_reason,
            is_read_only: row.is_read_only,
            owed_since: row.owed_since,
            hostname: row.hostname,
            route_version: row.route_version,
            created_at: row.created_at,
            updated_at: row.updated_at,
        },
    }))
}

/// The stores that `user` is let into, newest first, from `before` on.
pub async fn stores_of_member(
    conn: &mut PgConnection,
    user: UserId,
    organization: Option<OrganizationId>,
    before: Option<StoreId>,
    limit: i64,
) -> Result<Vec<Store>, sqlx::Error> {
    sqlx::query_as!(
        Store,
        r#"select s.id as "id: StoreId", s.organization_id as "organization_id: OrganizationId", s.name, s.slug,
                  s.status as "status: StoreStatus", s.status_reason, s.is_read_only,
                  (select min(c.unpaid_since) from store_charges c where c.store_id = s.id and c.state = 'unpaid') as owed_since,
                  h.hostname as "hostname?", s.route_version, s.created_at, s.updated_at
           from stores s
           join organization_members m on m.organization_id = s.organization_id and m.user_id = $1
           left join hostnames h on h.store_id = s.id and h.is_primary
           where s.status <> 'deleted'
             and ($2::uuid is null or s.organization_id = $2)
             and ($3::uuid is null or s.id < $3)
           order by s.id desc
           limit $4"#,
        user.as_uuid(),
        organization.map(|id| id.as_uuid()),
        before.map(|id| id.as_uuid()),
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Every store, newest first, for ops.
pub async fn stores_all(
    conn: &mut PgConnection,
    status: Option<StoreStatus>,
    before: Option<StoreId>,
    limit: i64,
) -> Result<Vec<Store>, sqlx::Error> {
    sqlx::query_as!(
        Store,
        r#"select s.id as "id: StoreId", s.organization_id as "organization_id: OrganizationId", s.name, s.slug,
                  s.status as "status: StoreStatus", s.status_reason, s.is_read_only,
                  (select min(c.unpaid_since) from store_charges c where c.store_id = s.id and c.state = 'unpaid') as owed_since,
                  h.hostname as "hostname?", s.route_version, s.created_at, s.updated_at
           from stores s
           left join hostnames h on h.store_id = s.id and h.is_primary
           where s.status <> 'deleted'
             and ($1::text is null or s.status = $1)
             and ($2::uuid is null or s.id < $2)
           order by s.id desc
           limit $3"#,
        status.map(StoreStatus::as_str),
        before.map(|id| id.as_uuid()),
        limit,
    )
    .fetch_all(conn)
    .await
}

pub async fn store_rename(
    conn: &mut PgConnection,
    id: StoreId,
    name: &str,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!("update stores set name = $2, updated_at = $3 where id = $1", id.as_uuid(), name, now)
        .execute(conn)
        .await?;
    Ok(())
}

/// Changes the status; the database bumps the route version and announces it in the same transaction.
pub async fn store_set_status(
    conn: &mut PgConnection,
    id: StoreId,
    status: StoreStatus,
    reason: Option<&str>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update stores set status = $2, status_reason = $3, updated_at = $4 where id = $1",
        id.as_uuid(),
        status.as_str(),
        reason,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}
