//! SQL of signing in to Supabase, in master.

use chrono::{DateTime, Utc};
use kernel::{StoreId, SupabaseAuthorizationId, UserId};
use sqlx::PgConnection;
use vault::Sealed;

use super::{Authorization, Connection, ConnectionState, Revocation};

fn sealed(bytes: Option<Vec<u8>>) -> Result<Option<Sealed>, sqlx::Error> {
    bytes.map(Sealed::from_bytes).transpose().map_err(|error| sqlx::Error::Decode(error.into()))
}

pub async fn authorization_insert(
    conn: &mut PgConnection,
    new: &Authorization,
    state_hash: &[u8],
    verifier: &Sealed,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into supabase_authorizations (id, store_id, user_id, state_hash, verifier, expires_at, created_at)
         values ($1, $2, $3, $4, $5, $6, $7)",
        new.id.as_uuid(),
        new.store_id.as_uuid(),
        new.user_id.as_uuid(),
        state_hash,
        verifier.as_bytes(),
        new.expires_at,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Ends what a person had begun for a store before.
pub async fn authorizations_replace(conn: &mut PgConnection, store: StoreId, user: UserId) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update supabase_authorizations set status = 'replaced', verifier = null, completion_hash = null, code = null
         where store_id = $1 and user_id = $2 and status in ('pending', 'consented')",
        store.as_uuid(),
        user.as_uuid(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The authorization that waits for somebody to come back with this state.
pub async fn authorization_lock_pending(
    conn: &mut PgConnection,
    state_hash: &[u8],
    now: DateTime<Utc>,
) -> Result<Option<Authorization>, sqlx::Error> {
    sqlx::query_as!(
        Authorization,
        r#"select id as "id: SupabaseAuthorizationId", store_id as "store_id: StoreId", user_id as "user_id: UserId", expires_at
           from supabase_authorizations
           where state_hash = $1 and status = 'pending' and expires_at > $2
           for update"#,
        state_hash,
        now,
    )
    .fetch_optional(conn)
    .await
}

pub async fn authorization_consent(
    conn: &mut PgConnection,
    id: SupabaseAuthorizationId,
    completion_hash: &[u8],
    code: &Sealed,
    expires_at: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update supabase_authorizations set status = 'consented', completion_hash = $2, code = $3, expires_at = $4 where id = $1",
        id.as_uuid(),
        completion_hash,
        code.as_bytes(),
        expires_at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Takes the consent that this completion code ends, for whoever began it: what is sealed in it, its verifier first. Once.
pub async fn authorization_take_consented(
    conn: &mut PgConnection,
    completion_hash: &[u8],
    store: StoreId,
    user: UserId,
    now: DateTime<Utc>,
) -> Result<Option<(SupabaseAuthorizationId, Sealed, Sealed)>, sqlx::Error> {
    let row = sqlx::query!(
        r#"select id as "id: SupabaseAuthorizationId", verifier as "verifier!", code as "code!"
           from supabase_authorizations
           where completion_hash = $1 and store_id = $2 and user_id = $3 and status = 'consented' and expires_at > $4
           for update"#,
        completion_hash,
        store.as_uuid(),
        user.as_uuid(),
        now,
    )
    .fetch_optional(&mut *conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    authorization_end(conn, row.id, "completed").await?;
    let decode = |bytes| Sealed::from_bytes(bytes).map_err(|error| sqlx::Error::Decode(error.into()));
    Ok(Some((row.id, decode(row.verifier)?, decode(row.code)?)))
}

/// Ends an authorization, and forgets what was sealed in it.
pub async fn authorization_end(
    conn: &mut PgConnection,
    id: SupabaseAuthorizationId,
    status: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update supabase_authorizations set status = $2, verifier = null, completion_hash = null, code = null where id = $1",
        id.as_uuid(),
        status,
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn authorizations_purge(conn: &mut PgConnection, before: DateTime<Utc>) -> Result<(), sqlx::Error> {
    sqlx::query!("delete from supabase_authorizations where created_at < $1", before).execute(conn).await?;
    Ok(())
}

/// Reads a store's connection: says how it is locked.
macro_rules! connection {
    ($how:tt, $store:expr, $conn:expr) => {{
        let row = sqlx::query!(
            r#"select store_id as "store_id: StoreId", state as "state: ConnectionState", connected_at, tokens, token_version,
                      access_expires_at, project_ref, project_name, role_password, role_version
               from supabase_connections
               where store_id = $1 "# + $how,
            $store.as_uuid(),
        )
        .fetch_optional($conn)
        .await?;
        row.map(|row| {
            Ok(Connection {
                store_id: row.store_id,
                state: row.state,
                connected_at: row.connected_at,
                tokens: sealed(row.tokens)?,
                token_version: row.token_version,
                access_expires_at: row.access_expires_at,
                project_ref: row.project_ref,
                project_name: row.project_name,
                role_password: sealed(row.role_password)?,
                role_version: row.role_version,
            })
        })
        .transpose()
    }};
}

pub async fn connection_find(conn: &mut PgConnection, store: StoreId) -> Result<Option<Connection>, sqlx::Error> {
    connection!("", store, conn)
}

pub async fn connection_lock(conn: &mut PgConnection, store: StoreId) -> Result<Option<Connection>, sqlx::Error> {
    connection!("for update", store, conn)
}

/// Keeps the tokens of a consent that was completed.
pub async fn connection_set(
    conn: &mut PgConnection,
    store: StoreId,
    user: UserId,
    (tokens, version, expires_at): (&Sealed, i32, DateTime<Utc>),
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into supabase_connections
            (store_id, state, connected_by, connected_at, tokens, token_version, access_expires_at, updated_at)
         values ($1, 'connected', $2, $3, $4, $5, $6, $3)
         on conflict on constraint supabase_connections_pkey do update
         set state = 'connected', connected_by = $2, connected_at = $3, tokens = $4, token_version = $5, access_expires_at = $6,
             refresh_claim = null, refresh_claimed_until = null, updated_at = $3",
        store.as_uuid(),
        user.as_uuid(),
        now,
        tokens.as_bytes(),
        version,
        expires_at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Makes the caller the one that refreshes these tokens, until then. False when somebody else does, or did.
pub async fn refresh_claim(
    conn: &mut PgConnection,
    store: StoreId,
    version: i32,
    claim: i64,
    (now, until): (DateTime<Utc>, DateTime<Utc>),
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "update supabase_connections set refresh_claim = $3, refresh_claimed_until = $5
         where store_id = $1 and token_version = $2 and state = 'connected'
             and (refresh_claimed_until is null or refresh_claimed_until <= $4)",
        store.as_uuid(),
        version,
        claim,
        now,
        until,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub async fn refresh_release(conn: &mut PgConnection, store: StoreId, claim: i64) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update supabase_connections set refresh_claim = null, refresh_claimed_until = null
         where store_id = $1 and refresh_claim = $2",
        store.as_uuid(),
        claim,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Whether somebody refreshes the tokens at this moment.
pub async fn refresh_is_claimed(
    conn: &mut PgConnection,
    store: StoreId,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select exists (select from supabase_connections where store_id = $1 and refresh_claimed_until > $2) as "claimed!""#,
        store.as_uuid(),
        now,
    )
    .fetch_one(conn)
    .await
}

/// Keeps refreshed tokens as the next version. False when they are nobody's any more.
pub async fn tokens_replace(
    conn: &mut PgConnection,
    store: StoreId,
    claim: i64,
    (tokens, version, expires_at): (&Sealed, i32, DateTime<Utc>),
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "update supabase_connections
         set tokens = $3, token_version = $4, access_expires_at = $5, refresh_claim = null, refresh_claimed_until = null,
             updated_at = $6
         where store_id = $1 and refresh_claim = $2 and token_version = $4 - 1 and state = 'connected'",
        store.as_uuid(),
        claim,
        tokens.as_bytes(),
        version,
        expires_at,
        now,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Ends tokens that are good for nothing any more. False when there are others meanwhile.
pub async fn connection_lose(
    conn: &mut PgConnection,
    store: StoreId,
    version: i32,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "update supabase_connections
         set state = 'reauthorize', tokens = null, refresh_claim = null, refresh_claimed_until = null, updated_at = $3
         where store_id = $1 and token_version = $2 and state = 'connected'",
        store.as_uuid(),
        version,
        now,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Disconnects: tokens and project are forgotten here.
pub async fn connection_end(conn: &mut PgConnection, store: StoreId, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update supabase_connections
         set state = 'disconnected', tokens = null, refresh_claim = null, refresh_claimed_until = null,
             project_ref = null, project_name = null, role_password = null, updated_at = $2
         where store_id = $1",
        store.as_uuid(),
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Keeps which project was chosen, before anything is made in it.
pub async fn project_set(
    conn: &mut PgConnection,
    store: StoreId,
    (reference, name): (&str, &str),
    (password, version): (&Sealed, i32),
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update supabase_connections
         set project_ref = $2, project_name = $3, role_password = $4, role_version = $5, updated_at = $6
         where store_id = $1",
        store.as_uuid(),
        reference,
        name,
        password.as_bytes(),
        version,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes down what is to be revoked, claimed for the caller until then; its id.
pub async fn revocation_insert(
    conn: &mut PgConnection,
    connection: &Connection,
    tokens: &Sealed,
    project: Option<&str>,
    claimed_until: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        "insert into supabase_revocations
            (store_id, tokens, token_version, access_expires_at, project_ref, next_attempt_at, claimed_until, created_at)
         values ($1, $2, $3, $4, $5, $7, $6, $7)
         returning id",
        connection.store_id.as_uuid(),
        tokens.as_bytes(),
        connection.token_version,
        connection.access_expires_at,
        project,
        claimed_until,
        now,
    )
    .fetch_one(conn)
    .await
}

/// Takes up what is due, so that nobody else does before `until`.
pub async fn revocations_claim(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    until: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar!(
        "update supabase_revocations set claimed_until = $2
         where id in (
             select id from supabase_revocations
             where next_attempt_at <= $1 and (claimed_until is null or claimed_until <= $1)
             order by next_attempt_at
             limit $3
             for update skip locked
         )
         returning id",
        now,
        until,
        limit,
    )
    .fetch_all(conn)
    .await
}

pub async fn revocation_find(conn: &mut PgConnection, id: i64) -> Result<Option<Revocation>, sqlx::Error> {
    let row = sqlx::query!(
        r#"select id, store_id as "store_id: StoreId", tokens, token_version, access_expires_at, project_ref, attempts
           from supabase_revocations
           where id = $1"#,
        id,
    )
    .fetch_optional(conn)
    .await?;
    row.map(|row| {
        Ok(Revocation {
            id: row.id,
            store_id: row.store_id,
            tokens: Sealed::from_bytes(row.tokens).map_err(|error| sqlx::Error::Decode(error.into()))?,
            token_version: row.token_version,
            access_expires_at: row.access_expires_at,
            project_ref: row.project_ref,
            attempts: row.attempts,
        })
    })
    .transpose()
}

/// Keeps the tokens that came of refreshing those of a revocation. False when it has ended meanwhile.
pub async fn revocation_renew(
    conn: &mut PgConnection,
    id: i64,
    (tokens, version, expires_at): (&Sealed, i32, DateTime<Utc>),
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "update supabase_revocations set tokens = $2, token_version = $3, access_expires_at = $4 where id = $1",
        id,
        tokens.as_bytes(),
        version,
        expires_at,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Notes that the login is gone, or stays: only the tokens are left.
pub async fn revocation_forget_project(conn: &mut PgConnection, id: i64) -> Result<(), sqlx::Error> {
    sqlx::query!("update supabase_revocations set project_ref = null where id = $1", id).execute(conn).await?;
    Ok(())
}

pub async fn revocation_delay(
    conn: &mut PgConnection,
    id: i64,
    next_attempt_at: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update supabase_revocations set attempts = attempts + 1, next_attempt_at = $2, claimed_until = null where id = $1",
        id,
        next_attempt_at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn revocation_delete(conn: &mut PgConnection, id: i64) -> Result<(), sqlx::Error> {
    sqlx::query!("delete from supabase_revocations where id = $1", id).execute(conn).await?;
    Ok(())
}

/// Lets nobody begin before `until` with what is still to be revoked of a store. True when somebody has begun.
pub async fn revocations_put_off(
    conn: &mut PgConnection,
    store: StoreId,
    (now, until): (DateTime<Utc>, DateTime<Utc>),
) -> Result<bool, sqlx::Error> {
    let claimed = sqlx::query_scalar!(
        r#"update supabase_revocations set next_attempt_at = greatest(next_attempt_at, $3)
           where store_id = $1
           returning coalesce(claimed_until > $2, false) as "claimed!""#,
        store.as_uuid(),
        now,
        until,
    )
    .fetch_all(conn)
    .await?;
    Ok(claimed.contains(&true))
}

/// Gives up what was to be revoked of a store, since its owner has consented again: the versions of its tokens, and the projects
/// that a login of ours was to be dropped in.
pub async fn revocations_drop(
    conn: &mut PgConnection,
    store: StoreId,
) -> Result<Vec<(i32, Option<String>)>, sqlx::Error> {
    let rows = sqlx::query!(
        "delete from supabase_revocations where store_id = $1 returning token_version, project_ref",
        store.as_uuid(),
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.token_version, row.project_ref)).collect())
}
