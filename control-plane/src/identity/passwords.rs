//! Passwords: Argon2id, off the async threads, a few at a time.

use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordHasher as _, PasswordVerifier as _};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Semaphore;

use super::{Email, IdentityError};

/// How long a request waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);
/// NIST SP 800-63B-4 asks for at least 8 characters and no composition rules; more than the maximum only burns time.
const MIN_CHARS: usize = 8;
const MAX_CHARS: usize = 256;
const TOO_COMMON: &[&str] =
    &["password", "12345678", "123456789", "1234567890", "qwertyui", "qwertyuiop", "11111111", "00000000", "iloveyou"];

/// Hashes and checks passwords, at most `hashers` at one time.
#[derive(Clone)]
pub struct Passwords {
    turns: Arc<Semaphore>,
    /// What an unknown address is checked against, so that it takes as long as a known one.
    decoy: Arc<str>,
}

impl Passwords {
    /// # Errors
    /// When hashing does not work at all.
    pub fn new(hashers: usize) -> Result<Self, IdentityError> {
        let decoy = hash(&SecretString::from(kernel::random::token()))?;
        Ok(Self { turns: Arc::new(Semaphore::new(hashers.max(1))), decoy: decoy.into() })
    }

    /// The PHC string of a new password.
    pub async fn hash(&self, password: SecretString) -> Result<String, IdentityError> {
        self.in_turn(move || hash(&password)).await?
    }

    /// Whether `password` is the one behind `stored`; `None` costs the same and is false.
    pub async fn verify(&self, password: SecretString, stored: Option<String>) -> Result<bool, IdentityError> {
        let is_known = stored.is_some();
        let stored = stored.unwrap_or_else(|| self.decoy.to_string());
        let matches = self
            .in_turn(move || {
                let parsed = PasswordHash::new(&stored).map_err(|_| IdentityError::Hash)?;
                Ok::<_, IdentityError>(
                    Argon2::default().verify_password(password.expose_secret().as_bytes(), &parsed).is_ok(),
                )
            })
            .await??;
        Ok(matches && is_known)
    }

    async fn in_turn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, IdentityError> {
        let turn = tokio::time::timeout(TURN_TIMEOUT, Arc::clone(&self.turns).acquire_owned())
            .await
            .map_err(|_| IdentityError::Busy)?
            .map_err(|_| IdentityError::Busy)?;
        tokio::task::spawn_blocking(move || {
            let outcome = work();
            drop(turn);
            outcome
        })
        .await
        .map_err(|_| IdentityError::Hash)
    }
}

fn hash(password: &SecretString) -> Result<String, IdentityError> {
    let hash = Argon2::default().hash_password(password.expose_secret().as_bytes()).map_err(|_| IdentityError::Hash)?;
    Ok(hash.to_string())
}

/// The rules for a new password.
pub fn check_rules(password: &SecretString, email: Option<&Email>) -> Result<(), IdentityError> {
    let text = password.expose_secret();
    let refused = |code, detail: String| Err(IdentityError::Invalid { pointer: "/password", code, detail });
    let chars = text.chars().count();
    if chars < MIN_CHARS {
        return refused("too-short", format!("must have at least {MIN_CHARS} characters"));
    }
    if chars > MAX_CHARS {
        return refused("too-long", format!("must have at most {MAX_CHARS} characters"));
    }
    let lower = text.to_lowercase();
    if TOO_COMMON.contains(&lower.as_str()) || email.is_some_and(|email| lower == email.as_str()) {
        return refused("too-common", "is among the first that an attacker tries".to_owned());
    }
    Ok(())
}
