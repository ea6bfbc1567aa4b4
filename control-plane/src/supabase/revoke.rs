//! Disconnecting: what we made at Supabase is taken back, at once or as soon as Supabase answers.

use chrono::TimeDelta;
use kernel::{StoreId, UserId};
use serde_json::json;
use sqlx::PgConnection;

use super::client::ApiError;
use super::{ConnectionState, Revocation, SupabaseError, configured, db, role, tokens};
use crate::audit::{self, Actor, Subject};
use crate::cx::OpsCx;
use crate::provisioning;
use crate::stores::{self, Store};

/// What could not be revoked is tried again so late, twice as late the next time, up to so late.
const RETRY: TimeDelta = TimeDelta::seconds(30);
const MAX_RETRY: TimeDelta = TimeDelta::hours(6);
/// So long whoever revokes has it to themselves: longer than its calls of Supabase, four at most, may take together.
pub(super) const CLAIM: TimeDelta = TimeDelta::seconds(120);
/// After so many tries, in about three days, somebody has to look at it.
const MAX_ATTEMPTS: i32 = 20;

/// Takes away what a store may do at Supabase, and our login there unless the store's database is reached by it: while it is, that
/// is refused, or `keeps_database` keeps the login. Once more, it changes nothing.
pub async fn disconnect(cx: &OpsCx, by: UserId, store: StoreId, keeps_database: bool) -> Result<(), SupabaseError> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let store = stores::db::store_lock(&mut tx, store).await?.ok_or(SupabaseError::StoreNotFound)?;
    let known = db::connection_lock(&mut tx, store.id).await?;
    let Some(known) = known.filter(|known| known.state != ConnectionState::Disconnected) else { return Ok(()) };
    if db::refresh_is_claimed(&mut tx, store.id, now).await? {
        // What is refreshed at this moment could not be revoked.
        return Err(ApiError::Unknown { why: "the tokens are being refreshed".to_owned() }.into());
    }
    let is_in_use = is_reached_by(&mut tx, &store).await?;
    if is_in_use && !keeps_database {
        let run = provisioning::db::run_latest(&mut tx, store.id).await?;
        let run = run.filter(|run| !run.run.state.is_finished()).map(|run| run.run.id);
        return Err(SupabaseError::DatabaseInUse { status: store.status, run });
    }
    let project = known.project_ref.as_deref().filter(|_| !is_in_use && !keeps_database);
    let pending = match &known.tokens {
        Some(sealed) => Some(db::revocation_insert(&mut tx, &known, sealed, project, now + CLAIM, now).await?),
        // Supabase lets us in no more: there is nothing that we could do there.
        None => None,
    };
    db::connection_end(&mut tx, store.id, now).await?;
    let subject = Subject::store(store.organization_id, store.id);
    // Without tokens nothing can be done there: then our login stays, for its owner to drop.
    let keeps_login = is_in_use || keeps_database || known.tokens.is_none() && known.project_ref.is_some();
    let data = json!({ "projectRef": known.project_ref, "keptDatabase": keeps_login });
    audit::record(&mut tx, now, Actor::User(by), "supabase_disconnect", subject, data).await?;
    tx.commit().await?;
    if let Some(id) = pending {
        // Not given up with the request: it would be done half.
        let cx = cx.clone();
        let revoking = cx.tasks.spawn({
            let cx = cx.clone();
            async move { attempt(&cx, id).await }
        });
        revoking.await.map_err(|error| SupabaseError::Broken(error.to_string()))??;
    }
    Ok(())
}

/// Whether the store is prepared or served by our login at Supabase.
async fn is_reached_by(conn: &mut PgConnection, store: &Store) -> Result<bool, sqlx::Error> {
    let role = role::name(store.id);
    let database = provisioning::db::store_database_find(conn, store.id).await?;
    Ok(database.is_some_and(|database| {
        let login = database.role_name;
        login.strip_prefix(role.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }))
}

/// Drops our login in a project that the store is not prepared in.
pub(super) async fn unmake(cx: &OpsCx, store: StoreId, project: &str) -> Result<(), SupabaseError> {
    let client = &configured(cx)?.client;
    let statement = role::unmake(store);
    tokens::call(cx, store, |token| client.query(token, project, &statement)).await.map(drop)
}

/// Revokes one that was written down and is claimed; what fails is tried again later, and not for ever.
pub(super) async fn attempt(cx: &OpsCx, id: i64) -> Result<(), SupabaseError> {
    let found = db::revocation_find(&mut *cx.master.acquire().await?, id).await?;
    let Some(mut pending) = found else { return Ok(()) };
    let store = pending.store_id;
    match work(cx, &mut pending).await {
        Ok(()) => end(cx, &pending, "supabase_revoke").await,
        Err(error @ SupabaseError::Db(_)) => Err(error),
        Err(error) if pending.attempts + 1 >= MAX_ATTEMPTS => {
            tracing::error!(store.id = %store, "what {store} had at Supabase could not be revoked, which is given up: {error}");
            end(cx, &pending, "supabase_revoke_abandon").await
        }
        Err(error) => {
            tracing::warn!(store.id = %store, "what {store} had at Supabase could not be revoked yet: {error}");
            let mut wait = (RETRY * 2_i32.pow(pending.attempts.clamp(0, 16).unsigned_abs())).min(MAX_RETRY);
            if let SupabaseError::Api(ApiError::RateLimited { retry_after }) = error {
                wait = wait.max(TimeDelta::from_std(retry_after).unwrap_or(MAX_RETRY));
            }
            let next = cx.clock.now() + wait;
            Ok(db::revocation_delay(&mut *cx.master.acquire().await?, id, next).await?)
        }
    }
}

async fn end(cx: &OpsCx, pending: &Revocation, action: &'static str) -> Result<(), SupabaseError> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    db::revocation_delete(&mut tx, pending.id).await?;
    if let Some(store) = stores::db::store_find(&mut tx, pending.store_id).await? {
        let subject = Subject::store(store.organization_id, store.id);
        // What is still named here was not dropped.
        let data = json!({ "projectRef": pending.project_ref });
        audit::record(&mut tx, now, Actor::System, action, subject, data).await?;
    }
    Ok(tx.commit().await?)
}

async fn work(cx: &OpsCx, pending: &mut Revocation) -> Result<(), SupabaseError> {
    let client = &configured(cx)?.client;
    if let Some(project) = pending.project_ref.clone() {
        match unmake_with(cx, pending, &project).await {
            Ok(()) | Err(SupabaseError::Api(ApiError::NotFound)) => {
                db::revocation_forget_project(&mut *cx.master.acquire().await?, pending.id).await?;
                pending.project_ref = None;
            }
            // We are let in no more: the login stays, and its owner can drop it.
            Err(SupabaseError::Reauthorize | SupabaseError::Api(ApiError::Forbidden)) => {
                tracing::warn!(store.id = %pending.store_id, "our login in a project at Supabase stays: we are let in no more");
            }
            Err(error) => return Err(error),
        }
    }
    let tokens = tokens::open(&cx.keys, pending.store_id, pending.token_version, &pending.tokens)?;
    Ok(client.revoke(&tokens.refresh).await?)
}

/// Drops the login with the tokens that are to be revoked, refreshed when they are not good any more.
async fn unmake_with(cx: &OpsCx, pending: &mut Revocation, project: &str) -> Result<(), SupabaseError> {
    let client = &configured(cx)?.client;
    let statement = role::unmake(pending.store_id);
    let tokens = tokens::open(&cx.keys, pending.store_id, pending.token_version, &pending.tokens)?;
    if pending.access_expires_at > cx.clock.now() {
        match client.query(tokens.access, project, &statement).await {
            Err(ApiError::Unauthorized) => {}
            outcome => return Ok(outcome.map(drop)?),
        }
    }
    let answer = match client.refresh(&tokens.refresh).await {
        Err(ApiError::InvalidGrant) => return Err(SupabaseError::Reauthorize),
        outcome => outcome?,
    };
    pending.token_version += 1;
    pending.tokens = tokens::seal(&cx.keys, pending.store_id, pending.token_version, &answer);
    pending.access_expires_at = tokens::expiry(cx.clock.now(), &answer);
    let kept = (&pending.tokens, pending.token_version, pending.access_expires_at);
    db::revocation_renew(&mut *cx.master.acquire().await?, pending.id, kept).await?;
    match client.query(answer.access_token, project, &statement).await {
        Err(ApiError::Unauthorized) => Err(SupabaseError::Reauthorize),
        outcome => Ok(outcome.map(drop)?),
    }
}

/// Due ones, a few at a time.
pub(super) async fn round(cx: &OpsCx, limit: usize) -> Result<(), sqlx::Error> {
    for _ in 0..limit {
        // One after the other, so that a claim lasts for what is done under it.
        let now = cx.clock.now();
        let due = db::revocations_claim(&mut *cx.master.acquire().await?, now, now + CLAIM, 1).await?;
        let Some(id) = due.into_iter().next() else { return Ok(()) };
        match attempt(cx, id).await {
            Ok(()) => {}
            Err(SupabaseError::Db(error)) => return Err(error),
            Err(error) => tracing::warn!(error = crate::http::errors::chain(&error), "a revocation failed"),
        }
    }
    Ok(())
}
