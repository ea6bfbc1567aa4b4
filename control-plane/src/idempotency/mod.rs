//! `Idempotency-Key`: a request that creates is done once, however often it is sent.
//!
//! The key is claimed in the transaction that does the work, so there is no state "in flight" to be cleaned up: a second
//! request waits on the row until the first one has committed, then repeats its answer, or has rolled back, then does the
//! work itself.

mod db;

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use chrono::{DateTime, Utc};
use problem::Problem;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;

pub use db::purge;

/// The name of the header.
pub const HEADER: &str = "idempotency-key";
/// The header of an answer that repeats what was decided before.
pub const REPLAYED: &str = "idempotent-replayed";

/// The request's key, when it has one.
#[derive(Debug, Clone)]
pub struct IdempotencyKey(pub Option<String>);

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let refused =
            |detail: &str| {
                Problem::new(StatusCode::BAD_REQUEST, "invalid-idempotency-key", "The Idempotency-Key is not valid")
                    .field("Idempotency-Key", "invalid", detail)
            };
        let mut values = parts.headers.get_all(HEADER).iter();
        let Some(value) = values.next() else { return Ok(Self(None)) };
        if values.next().is_some() {
            return Err(refused("give one key"));
        }
        let text = value.to_str().map_err(|_| refused("use visible ASCII characters"))?.trim();
        // The draft standard writes a quoted string; a bare one is what most clients send.
        let key = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
        if key.is_empty() || key.len() > 255 || !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(refused("use 1 to 255 visible ASCII characters"));
        }
        Ok(Self(Some(key.to_owned())))
    }
}

/// What claiming a key found.
pub enum Claim<T> {
    /// Nobody had it: do the work, then [`complete`] it in the same transaction.
    New,
    /// The work was done before; this was its answer.
    Done(T),
    /// The key was used for another request.
    Reused,
}

/// Claims `key` within `scope` (who and which operation) for the request that `body` describes.
pub async fn claim<B: Serialize, T: DeserializeOwned>(
    tx: &mut PgConnection,
    scope: &str,
    key: &str,
    body: &B,
    now: DateTime<Utc>,
) -> Result<Claim<T>, sqlx::Error> {
    let json = serde_json::to_vec(body).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let fingerprint: [u8; 32] = Sha256::digest(json).into();
    if db::insert(tx, scope, key, &fingerprint, now).await? {
        return Ok(Claim::New);
    }
    let Some((known, response)) = db::find(tx, scope, key).await? else { return Ok(Claim::Reused) };
    if known != fingerprint {
        return Ok(Claim::Reused);
    }
    match response.map(serde_json::from_value) {
        Some(Ok(answer)) => Ok(Claim::Done(answer)),
        Some(Err(error)) => Err(sqlx::Error::Decode(error.into())),
        None => Ok(Claim::Reused),
    }
}

/// Keeps the answer of the work that a claimed key stands for.
pub async fn complete<T: Serialize>(
    tx: &mut PgConnection,
    scope: &str,
    key: &str,
    answer: &T,
) -> Result<(), sqlx::Error> {
    let json = serde_json::to_value(answer).map_err(|error| sqlx::Error::Encode(error.into()))?;
    db::complete(tx, scope, key, json).await
}

/// 422 for a key that was used with another body.
pub fn reused() -> Problem {
    Problem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "idempotency-key-reused",
        "The Idempotency-Key was used for another request",
    )
    .detail("Use a new key for a new request.")
}
