//! SQL of identity.

use chrono::{DateTime, Utc};
use kernel::{OrganizationId, SessionId, StoreId, UserId};
use sqlx::PgConnection;

use super::{IdentityError, Member, MemberRole, Membership, User};

pub async fn user_insert(
    conn: &mut PgConnection,
    user: &User,
    password_hash: &str,
    now: DateTime<Utc>,
) -> Result<(), IdentityError> {
    sqlx::query!(
        "insert into users (id, email, first_name, last_name, password_hash, created_at, updated_at)
         values ($1, $2, $3, $4, $5, $6, $6)",
        user.id.as_uuid(),
        user.email,
        user.first_name,
        user.last_name,
        password_hash,
        now,
    )
    .execute(conn)
    .await
    .map_err(|error| match error.as_database_error().and_then(sqlx::error::DatabaseError::constraint) {
        Some("users_email_key") => IdentityError::EmailTaken,
        _ => error.into(),
    })?;
    Ok(())
}

pub async fn organization_insert(
    conn: &mut PgConnection,
    id: OrganizationId,
    name: &str,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into organizations (id, name, created_at, updated_at) values ($1, $2, $3, $3)",
        id.as_uuid(),
        name,
        now
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn member_insert(
    conn: &mut PgConnection,
    organization: OrganizationId,
    user: UserId,
    role: MemberRole,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into organization_members (organization_id, user_id, role, created_at) values ($1, $2, $3, $4)",
        organization.as_uuid(),
        user.as_uuid(),
        role as MemberRole,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn memberships(conn: &mut PgConnection, user: UserId) -> Result<Vec<Membership>, sqlx::Error> {
    sqlx::query_as!(
        Membership,
        r#"select o.id as "id: OrganizationId", o.name, m.role as "role: MemberRole"
           from organization_members m
           join organizations o on o.id = m.organization_id
           where m.user_id = $1
           order by o.id"#,
        user.as_uuid(),
    )
    .fetch_all(conn)
    .await
}

/// An organization as one of its people sees it.
pub async fn membership_find(
    conn: &mut PgConnection,
    organization: OrganizationId,
    user: UserId,
) -> Result<Option<Membership>, sqlx::Error> {
    sqlx::query_as!(
        Membership,
        r#"select o.id as "id: OrganizationId", o.name, m.role as "role: MemberRole"
           from organization_members m
           join organizations o on o.id = m.organization_id
           where m.organization_id = $1 and m.user_id = $2"#,
        organization.as_uuid(),
        user.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// The people of an organization after one of them, in the order in which they registered.
pub async fn members(
    conn: &mut PgConnection,
    organization: OrganizationId,
    after: Option<UserId>,
    limit: i64,
) -> Result<Vec<Member>, sqlx::Error> {
    sqlx::query_as!(
        Member,
        r#"select u.id as "id: UserId", u.email, u.first_name, u.last_name, m.role as "role: MemberRole"
           from organization_members m
           join users u on u.id = m.user_id
           where m.organization_id = $1 and ($2::uuid is null or m.user_id > $2)
           order by m.user_id
           limit $3"#,
        organization.as_uuid(),
        after.map(|id| id.as_uuid()),
        limit,
    )
    .fetch_all(conn)
    .await
}

pub async fn user_with_password(conn: &mut PgConnection, email: &str) -> Result<Option<(User, String)>, sqlx::Error> {
    let row = sqlx::query!(
        r#"select id as "id: UserId", email, first_name, last_name, platform_role, password_hash
           from users
           where email = $1 and is_active"#,
        email,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| {
        let user = User {
            id: row.id,
            email: row.email,
            first_name: row.first_name,
            last_name: row.last_name,
            platform_role: row.platform_role,
        };
        (user, row.password_hash)
    }))
}

/// The person behind a session that lives.
pub async fn user_of_session(
    conn: &mut PgConnection,
    session: SessionId,
    user: UserId,
    now: DateTime<Utc>,
) -> Result<Option<User>, sqlx::Error> {
    sqlx::query_as!(
        User,
        r#"select u.id as "id: UserId", u.email, u.first_name, u.last_name, u.platform_role
           from sessions s
           join users u on u.id = s.user_id
           where s.id = $1 and s.user_id = $2 and s.revoked_at is null and s.expires_at > $3 and u.is_active"#,
        session.as_uuid(),
        user.as_uuid(),
        now,
    )
    .fetch_optional(conn)
    .await
}

pub async fn user_find(conn: &mut PgConnection, user: UserId) -> Result<Option<User>, sqlx::Error> {
    sqlx::query_as!(
        User,
        r#"select id as "id: UserId", email, first_name, last_name, platform_role from users where id = $1"#,
        user.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// The active people with the platform role, none of whom loses or gets it before the transaction ends.
pub async fn platform_admins_lock(conn: &mut PgConnection) -> Result<Vec<UserId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select id as "id: UserId" from users where platform_role = 'admin' and is_active order by id for update"#
    )
    .fetch_all(conn)
    .await
}

pub async fn user_set_platform_role(
    conn: &mut PgConnection,
    email: &str,
    role: Option<&str>,
    now: DateTime<Utc>,
) -> Result<Option<User>, sqlx::Error> {
    sqlx::query_as!(
        User,
        r#"update users set platform_role = $2, updated_at = $3
           where email = $1
           returning id as "id: UserId", email, first_name, last_name, platform_role"#,
        email,
        role,
        now,
    )
    .fetch_optional(conn)
    .await
}

pub async fn session_insert(
    conn: &mut PgConnection,
    id: SessionId,
    user: UserId,
    store: Option<StoreId>,
    now: DateTime<Utc>,
    expires_at: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into sessions (id, user_id, store_id, created_at, expires_at) values ($1, $2, $3, $4, $5)",
        id.as_uuid(),
        user.as_uuid(),
        store.map(|store| store.as_uuid()),
        now,
        expires_at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn session_extend(
    conn: &mut PgConnection,
    id: SessionId,
    expires_at: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!("update sessions set expires_at = $2 where id = $1", id.as_uuid(), expires_at).execute(conn).await?;
    Ok(())
}

/// Ends a session; one that ended before stays as it is.
pub async fn session_revoke(
    conn: &mut PgConnection,
    id: SessionId,
    reason: &str,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update sessions set revoked_at = $3, revoke_reason = $2 where id = $1 and revoked_at is null",
        id.as_uuid(),
        reason,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn refresh_token_insert(
    conn: &mut PgConnection,
    hash: &[u8],
    session: SessionId,
    now: DateTime<Utc>,
    expires_at: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into refresh_tokens (token_hash, session_id, created_at, expires_at) values ($1, $2, $3, $4)",
        hash,
        session.as_uuid(),
        now,
        expires_at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// A refresh token with its family.
pub struct FoundRefreshToken {
    pub session_id: SessionId,
    pub user_id: UserId,
    pub store_id: Option<StoreId>,
    pub expires_at: DateTime<Utc>,
    pub used_at: Option<DateTime<Utc>>,
    pub session_expires_at: DateTime<Utc>,
    pub is_revoked: bool,
    pub is_active: bool,
}

/// Finds a refresh token and locks its family, so that of two uses at once one is the second.
pub async fn refresh_token_lock(
    conn: &mut PgConnection,
    hash: &[u8],
) -> Result<Option<FoundRefreshToken>, sqlx::Error> {
    let session = sqlx::query_scalar!(
        "select s.id from sessions s join refresh_tokens t on t.session_id = s.id where t.token_hash = $1 for update of s",
        hash,
    )
    .fetch_optional(&mut *conn)
    .await?;
    if session.is_none() {
        return Ok(None);
    }
    // Read after the lock was granted: a statement that waited would still see the token as unused.
    sqlx::query_as!(
        FoundRefreshToken,
        r#"select s.id as "session_id: SessionId", s.user_id as "user_id: UserId", s.store_id as "store_id: StoreId",
                  t.expires_at, t.used_at, s.expires_at as session_expires_at,
                  s.revoked_at is not null as "is_revoked!", u.is_active
           from refresh_tokens t
           join sessions s on s.id = t.session_id
           join users u on u.id = s.user_id
           where t.token_hash = $1"#,
        hash,
    )
    .fetch_optional(conn)
    .await
}

pub async fn refresh_token_use(conn: &mut PgConnection, hash: &[u8], now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    sqlx::query!("update refresh_tokens set used_at = $2 where token_hash = $1 and used_at is null", hash, now)
        .execute(conn)
        .await?;
    Ok(())
}

/// Deletes refresh tokens whose time is over, in a bounded batch: reuse of one is then an unknown token, which is refused too.
pub async fn refresh_tokens_purge(conn: &mut PgConnection, before: DateTime<Utc>) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "delete from refresh_tokens where token_hash in
            (select token_hash from refresh_tokens where expires_at < $1 order by expires_at limit 1000)",
        before,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Deletes sessions that ended more than `keep` ago, in a bounded batch; their tokens go with them.
pub async fn sessions_purge(conn: &mut PgConnection, before: DateTime<Utc>) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "delete from sessions where id in (select id from sessions where expires_at < $1 order by expires_at limit 1000)",
        before,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// The person who created a store: its first member of staff.
pub async fn user_of_store_creator(conn: &mut PgConnection, store: StoreId) -> Result<User, sqlx::Error> {
    sqlx::query_as!(
        User,
        r#"select u.id as "id: UserId", u.email, u.first_name, u.last_name, u.platform_role
           from stores s
           join users u on u.id = s.created_by
           where s.id = $1"#,
        store.as_uuid(),
    )
    .fetch_one(conn)
    .await
}
