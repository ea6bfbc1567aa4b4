//! The consent: begun by a person for a store, given in some browser, completed by whoever began.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use kernel::{StoreId, SupabaseAuthorizationId, UserId};
use reqwest::Url;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use vault::{Aad, Purpose};

use super::client::ApiError;
use super::{Authorization, Connection, ConnectionState, SupabaseError, configured, db, revoke, tokens};
use crate::audit::{self, Actor, Subject};
use crate::cx::OpsCx;
use crate::stores;

/// So long somebody has to consent, and then to complete it.
const LIFETIME: TimeDelta = TimeDelta::minutes(10);
/// The longest code that is kept; Supabase's are far shorter.
const MAX_CODE: usize = 2048;
/// What of somebody else's words is shown.
const MAX_SHOWN: usize = 200;

/// Where to send whoever consents.
pub struct Begun {
    pub url: Url,
    pub expires_at: DateTime<Utc>,
}

/// What a browser comes back with.
#[derive(Default)]
pub struct Callback {
    pub state: Option<String>,
    pub code: Option<SecretString>,
    pub error: Option<String>,
    pub error_description: Option<String>,
}

/// What it is told.
pub enum Returned {
    /// Nothing that was begun leads here, or not any more.
    Unknown,
    /// Nothing was given.
    Denied { store: StoreId, said: String },
    /// To be completed by whoever began.
    Consented { store: StoreId, completion_code: SecretString },
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn verifier_place(id: SupabaseAuthorizationId) -> Aad {
    Aad::for_authorization(id, Purpose::OauthVerifier)
}

fn code_place(id: SupabaseAuthorizationId) -> Aad {
    Aad::for_authorization(id, Purpose::OauthCode)
}

fn is_connected(connection: Option<&Connection>) -> bool {
    connection.is_some_and(|connection| connection.state == ConnectionState::Connected)
}

/// Begins: what the same person had begun for the store before leads nowhere any more.
pub async fn authorize(cx: &OpsCx, by: UserId, store: StoreId) -> Result<Begun, SupabaseError> {
    let supabase = configured(cx)?;
    let now = cx.clock.now();
    let (state, verifier) = (kernel::random::token(), SecretString::from(kernel::random::token()));
    let challenge = URL_SAFE_NO_PAD.encode(hash(verifier.expose_secret()));
    let new = Authorization {
        id: SupabaseAuthorizationId::new(now),
        store_id: store,
        user_id: by,
        expires_at: now + LIFETIME,
    };
    let sealed = cx.keys.seal_text(&verifier, &verifier_place(new.id));
    let mut tx = cx.master.begin().await?;
    let store = stores::db::store_lock(&mut tx, store).await?.ok_or(SupabaseError::StoreNotFound)?;
    if is_connected(db::connection_lock(&mut tx, store.id).await?.as_ref()) {
        return Err(SupabaseError::AlreadyConnected);
    }
    db::authorizations_replace(&mut tx, store.id, by).await?;
    db::authorization_insert(&mut tx, &new, &hash(&state), &sealed, now).await?;
    let subject = Subject::store(store.organization_id, store.id);
    let data = json!({ "authorizationId": new.id });
    audit::record(&mut tx, now, Actor::User(by), "supabase_authorize", subject, data).await?;
    tx.commit().await?;
    let url = supabase.client.authorize_url(&state, &challenge, &supabase.redirect);
    Ok(Begun { url, expires_at: new.expires_at })
}

/// Takes what a browser comes back with. Whoever it is, nothing is connected by it.
pub async fn callback(cx: &OpsCx, came: Callback) -> Result<Returned, SupabaseError> {
    let Some(state) = came.state.filter(|state| state.len() <= MAX_CODE) else { return Ok(Returned::Unknown) };
    let code = came.code.filter(|code| (1..=MAX_CODE).contains(&code.expose_secret().len()));
    if came.error.is_none() && code.is_none() {
        return Ok(Returned::Unknown);
    }
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let begun = db::authorization_lock_pending(&mut tx, &hash(&state), now).await?;
    let Some(Authorization { id, store_id, user_id, .. }) = begun else { return Ok(Returned::Unknown) };
    let Some(store) = stores::db::store_find(&mut tx, store_id).await? else { return Ok(Returned::Unknown) };
    let subject = Subject::store(store.organization_id, store.id);
    let data = json!({ "authorizationId": id, "begunBy": user_id });
    let returned = match (came.error, code) {
        (None, Some(code)) => {
            let completion_code = SecretString::from(kernel::random::token());
            let sealed = cx.keys.seal_text(&code, &code_place(id));
            let hash = hash(completion_code.expose_secret());
            db::authorization_consent(&mut tx, id, &hash, &sealed, now + LIFETIME).await?;
            audit::record(&mut tx, now, Actor::System, "supabase_consent", subject, data).await?;
            Returned::Consented { store: store.id, completion_code }
        }
        (error, _) => {
            db::authorization_end(&mut tx, id, "denied").await?;
            audit::record(&mut tx, now, Actor::System, "supabase_deny", subject, data).await?;
            let said = came.error_description.or(error).unwrap_or_default();
            Returned::Denied { store: store.id, said: said.chars().take(MAX_SHOWN).collect() }
        }
    };
    tx.commit().await?;
    Ok(returned)
}

/// Completes a consent: exchanges what came of it for tokens, and keeps them.
pub async fn complete(
    cx: &OpsCx,
    by: UserId,
    store: StoreId,
    completion_code: &SecretString,
) -> Result<Connection, SupabaseError> {
    configured(cx)?;
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    stores::db::store_lock(&mut tx, store).await?.ok_or(SupabaseError::StoreNotFound)?;
    if is_connected(db::connection_lock(&mut tx, store).await?.as_ref()) {
        return Err(SupabaseError::AlreadyConnected);
    }
    // What is being revoked would take what is about to be given with it; what is not being revoked yet waits.
    if db::revocations_put_off(&mut tx, store, (now, now + revoke::CLAIM)).await? {
        return Err(SupabaseError::BeingRevoked);
    }
    let hash = hash(completion_code.expose_secret());
    let taken = db::authorization_take_consented(&mut tx, &hash, store, by, now).await?;
    let (id, verifier, code) = taken.ok_or(SupabaseError::InvalidCompletion)?;
    // Taken before it is used: nobody uses it a second time, whatever comes of it.
    tx.commit().await?;
    let verifier = cx.keys.open_text(&verifier, &verifier_place(id)).map_err(SupabaseError::Sealed)?;
    let code = cx.keys.open_text(&code, &code_place(id)).map_err(SupabaseError::Sealed)?;
    // A task of its own: tokens that were given are kept, whoever has stopped waiting for them.
    let exchanging = cx.tasks.spawn(exchange(cx.clone(), by, store, id, code, verifier));
    exchanging.await.map_err(|error| SupabaseError::Broken(error.to_string()))??;
    let connection = db::connection_find(&mut *cx.master.acquire().await?, store).await?;
    connection.ok_or(SupabaseError::NotConnected)
}

async fn exchange(
    cx: OpsCx,
    by: UserId,
    store: StoreId,
    id: SupabaseAuthorizationId,
    code: SecretString,
    verifier: SecretString,
) -> Result<(), SupabaseError> {
    let supabase = configured(&cx)?;
    let answer = match supabase.client.code_exchange(&code, &verifier, &supabase.redirect).await {
        Ok(answer) => answer,
        Err(error) => {
            db::authorization_end(&mut *cx.master.acquire().await?, id, "failed").await?;
            tracing::warn!(store.id = %store, "Supabase gave {store} no tokens: {error}");
            return Err(match error {
                ApiError::InvalidGrant => SupabaseError::ConsentRefused,
                error => error.into(),
            });
        }
    };
    let now = cx.clock.now();
    let mut tx = cx.master.begin().await?;
    let found = stores::db::store_lock(&mut tx, store).await?;
    let known = db::connection_lock(&mut tx, store).await?;
    let (Some(found), false) = (found, is_connected(known.as_ref())) else {
        tx.rollback().await?;
        // Another consent was quicker. To revoke this one could end that one as well, where one person gave both.
        return Err(SupabaseError::AlreadyConnected);
    };
    if db::revocations_put_off(&mut tx, store, (now, now)).await? {
        tx.rollback().await?;
        // Another consent was quicker, and has been taken back since; this one goes with it.
        return Err(SupabaseError::BeingRevoked);
    }
    // What was still to be revoked of an earlier consent would take this one away with it.
    let dropped = db::revocations_drop(&mut tx, store).await?;
    for (_, project) in &dropped {
        tracing::warn!(store.id = %store, "what {store} had at Supabase before is not revoked any more: it is connected anew");
        let subject = Subject::store(found.organization_id, store);
        // A login of ours in this project stays, for its owner to drop.
        let data = json!({ "projectRef": project });
        audit::record(&mut tx, now, Actor::System, "supabase_revoke_abandon", subject, data).await?;
    }
    let version = dropped.into_iter().map(|(version, _)| version).max().unwrap_or(0);
    let version = known.map_or(0, |known| known.token_version).max(version) + 1;
    let sealed = tokens::seal(&cx.keys, store, version, &answer);
    db::connection_set(&mut tx, store, by, (&sealed, version, tokens::expiry(now, &answer)), now).await?;
    let subject = Subject::store(found.organization_id, store);
    let data = json!({ "authorizationId": id });
    audit::record(&mut tx, now, Actor::User(by), "supabase_complete", subject, data).await?;
    Ok(tx.commit().await?)
}
