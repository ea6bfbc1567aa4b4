//! The tokens of a store's connection: opened for a call, and refreshed by one at a time, whichever nodes ask.
//!
//! - Whoever refreshes has claimed it in the connection's row before, and the others wait for what comes of it: a refresh token is
//!   good for one use, and a second one would end the consent.
//! - New tokens are kept before anybody uses them. The one who refreshes goes on when the request that needed it is given up.
//! - When the answer is lost, the old refresh token may be used up. It is tried once more by the next caller; when Supabase does not
//!   take it any more, the connection says that its owner has to consent again.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use kernel::StoreId;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;
use vault::{Aad, KeyRing, Purpose, Sealed};
use zeroize::Zeroizing;

use super::client::{ApiError, TokenAnswer};
use super::{Connection, ConnectionState, SupabaseError, db};
use crate::audit::{self, Actor, Subject};
use crate::cx::OpsCx;
use crate::stores;

/// A token that is good for less is refreshed.
const EARLY: TimeDelta = TimeDelta::seconds(60);
/// After so long whoever claimed the refresh has died.
const CLAIM: TimeDelta = TimeDelta::seconds(30);
/// So long it is waited for what somebody else refreshes.
const WAIT: Duration = Duration::from_secs(10);
/// How often new tokens are tried to be kept, and how long after one another.
const KEEP_TRIES: u32 = 10;
const KEEP_PAUSE: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_millis(250);
/// Whatever Supabase says: nothing is good for longer.
const MAX_LIFETIME_S: i64 = 30 * 24 * 3600;

/// What lets us in.
pub(super) struct Tokens {
    pub access: SecretString,
    pub refresh: SecretString,
    pub version: i32,
}

/// The form inside the seal.
#[derive(Serialize)]
struct Written<'a> {
    access: &'a str,
    refresh: &'a str,
}

#[derive(Deserialize)]
struct Read {
    access: SecretString,
    refresh: SecretString,
}

fn place(store: StoreId, version: i32) -> Aad {
    Aad::for_store(store, Purpose::ServiceToken, version)
}

/// Seals tokens for a store, as this version.
pub(super) fn seal(keys: &KeyRing, store: StoreId, version: i32, answer: &TokenAnswer) -> Sealed {
    let written =
        Written { access: answer.access_token.expose_secret(), refresh: answer.refresh_token.expose_secret() };
    // Roomy from the start: growing would leave copies behind. Escaping makes at most six bytes of one.
    let mut bytes = Zeroizing::new(Vec::with_capacity(64 + 6 * (written.access.len() + written.refresh.len())));
    serde_json::to_writer(&mut *bytes, &written).expect("two texts always make JSON");
    keys.seal(&bytes, &place(store, version))
}

/// Opens tokens that were sealed for a store as this version.
///
/// # Errors
/// When they were not.
pub(super) fn open(keys: &KeyRing, store: StoreId, version: i32, sealed: &Sealed) -> Result<Tokens, SupabaseError> {
    let bytes = keys.open(sealed, &place(store, version)).map_err(SupabaseError::Sealed)?;
    let Read { access, refresh } =
        serde_json::from_slice(&bytes).map_err(|_| SupabaseError::Sealed(vault::OpenError::Damaged))?;
    Ok(Tokens { access, refresh, version })
}

/// Until when tokens are good that were given now.
pub(super) fn expiry(now: DateTime<Utc>, answer: &TokenAnswer) -> DateTime<Utc> {
    now + TimeDelta::seconds(answer.expires_in.clamp(0, MAX_LIFETIME_S))
}

/// Calls the API for a store, with tokens that are good: refreshed before when they soon are not, and after when Supabase says
/// that they are not.
pub(super) async fn call<T, F>(cx: &OpsCx, store: StoreId, work: impl Fn(SecretString) -> F) -> Result<T, SupabaseError>
where
    F: Future<Output = Result<T, ApiError>>,
{
    let tokens = fresh(cx, store, None).await?;
    match work(tokens.access).await {
        Err(ApiError::Unauthorized) => {}
        outcome => return Ok(outcome?),
    }
    let renewed = fresh(cx, store, Some(tokens.version)).await?;
    match work(renewed.access).await {
        Err(ApiError::Unauthorized) => {
            lose(cx, store, renewed.version).await?;
            Err(SupabaseError::Reauthorize)
        }
        outcome => Ok(outcome?),
    }
}

/// Tokens that are good for a while, and later than those that Supabase has `rejected`.
async fn fresh(cx: &OpsCx, store: StoreId, rejected: Option<i32>) -> Result<Tokens, SupabaseError> {
    let deadline = Instant::now() + WAIT;
    let mut pause = FIRST_PAUSE;
    loop {
        let known = {
            let mut master = cx.master.acquire().await?;
            db::connection_find(&mut master, store).await?
        };
        let Some(known) = known else { return Err(SupabaseError::NotConnected) };
        let sealed = match (known.state, &known.tokens) {
            (ConnectionState::Connected, Some(sealed)) => sealed,
            (ConnectionState::Reauthorize, _) => return Err(SupabaseError::Reauthorize),
            _ => return Err(SupabaseError::NotConnected),
        };
        let now = cx.clock.now();
        let is_later = rejected.is_none_or(|rejected| known.token_version > rejected);
        if is_later && known.access_expires_at > now + EARLY {
            return open(&cx.keys, store, known.token_version, sealed);
        }
        let claim = i64::from_le_bytes(kernel::random::bytes());
        let is_ours = {
            let mut master = cx.master.acquire().await?;
            db::refresh_claim(&mut master, store, known.token_version, claim, (now, now + CLAIM)).await?
        };
        if is_ours {
            // A task of its own: whoever asked may be gone before Supabase has answered.
            let refreshing = cx.tasks.spawn(refresh(cx.clone(), known, claim));
            return refreshing.await.map_err(|error| SupabaseError::Broken(error.to_string()))?;
        }
        if Instant::now() >= deadline {
            return Err(SupabaseError::Api(ApiError::Unknown {
                why: "somebody else's refresh does not end".to_owned(),
            }));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

async fn refresh(cx: OpsCx, known: Connection, claim: i64) -> Result<Tokens, SupabaseError> {
    let outcome = refresh_claimed(&cx, &known, claim).await;
    if outcome.is_err() {
        // Where it was kept, or the connection was lost, the claim has gone with it.
        db::refresh_release(&mut *cx.master.acquire().await?, known.store_id, claim).await?;
    }
    outcome
}

async fn refresh_claimed(cx: &OpsCx, known: &Connection, claim: i64) -> Result<Tokens, SupabaseError> {
    let supabase = super::configured(cx)?;
    let sealed = known.tokens.as_ref().ok_or(SupabaseError::NotConnected)?;
    let old = open(&cx.keys, known.store_id, known.token_version, sealed)?;
    let answer = match supabase.client.refresh(&old.refresh).await {
        Ok(answer) => answer,
        Err(ApiError::InvalidGrant) => {
            lose(cx, known.store_id, known.token_version).await?;
            return Err(SupabaseError::Reauthorize);
        }
        Err(error) => {
            tracing::warn!(store.id = %known.store_id, "the tokens of {} could not be refreshed: {error}", known.store_id);
            return Err(error.into());
        }
    };
    let now = cx.clock.now();
    let version = known.token_version + 1;
    let sealed = seal(&cx.keys, known.store_id, version, &answer);
    let kept = (&sealed, version, expiry(now, &answer));
    // The old ones are good no more: these must not be lost to a moment's trouble of master.
    let mut tries = KEEP_TRIES;
    let is_kept = loop {
        let keeping = async {
            let mut master = cx.master.acquire().await?;
            db::tokens_replace(&mut master, known.store_id, claim, kept, now).await
        };
        match keeping.await {
            Err(error) if tries > 1 => {
                tracing::warn!(error = %error, "refreshed tokens could not be kept yet");
                tries -= 1;
                tokio::time::sleep(KEEP_PAUSE).await;
            }
            outcome => break outcome?,
        }
    };
    if !is_kept {
        return Err(SupabaseError::NotConnected);
    }
    metrics::counter!("tenantry_supabase_refreshes_total").increment(1);
    Ok(Tokens { access: answer.access_token, refresh: answer.refresh_token, version })
}

/// Notes that a store's owner has to consent again.
async fn lose(cx: &OpsCx, store: StoreId, version: i32) -> Result<(), SupabaseError> {
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    if db::connection_lose(&mut tx, store, version, now).await?
        && let Some(store) = stores::db::store_find(&mut tx, store).await?
    {
        let subject = Subject::store(store.organization_id, store.id);
        audit::record(&mut tx, now, Actor::System, "supabase_consent_lost", subject, json!({})).await?;
        tracing::warn!(store.id = %store.id, "Supabase takes the tokens of {} no more: its owner has to consent again", store.id);
    }
    Ok(tx.commit().await?)
}
