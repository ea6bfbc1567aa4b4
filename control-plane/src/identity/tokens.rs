//! Access tokens: short-lived JWTs, HS256, with issuer, audience, key id and an id of their own (RFC 8725).

use chrono::{DateTime, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use kernel::{SessionId, StoreId, TokenId, UserId};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::config::ConfigError;

const ISSUER: &str = "tenantry";
const AUDIENCE: &str = "tenantry-api";
const KIND: &str = "at+jwt";

/// Whom a token speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    pub user: UserId,
    pub session: SessionId,
    pub store: Option<StoreId>,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: UserId,
    sid: SessionId,
    jti: TokenId,
    iat: i64,
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<StoreId>,
}

/// Signs and checks access tokens.
pub struct Signer {
    encoding: EncodingKey,
    decoding: DecodingKey,
    key_id: String,
    lifetime: chrono::Duration,
}

impl Signer {
    /// # Errors
    /// When the secret has fewer than 32 characters.
    pub fn new(secret: &SecretString, lifetime: std::time::Duration) -> Result<Self, ConfigError> {
        let invalid = |why: &str| ConfigError::Invalid { name: "JWT_SECRET", why: why.to_owned() };
        let secret = secret.expose_secret().as_bytes();
        if secret.len() < 32 {
            return Err(invalid("expected at least 32 characters; `tenantry keys generate` makes one"));
        }
        let digest = Sha256::new().chain_update(b"tenantry access token key id").chain_update(secret).finalize();
        Ok(Self {
            encoding: EncodingKey::from_secret(secret),
            decoding: DecodingKey::from_secret(secret),
            key_id: hex::encode(&digest[..4]),
            lifetime: chrono::Duration::from_std(lifetime).map_err(|_| invalid("the lifetime is too long"))?,
        })
    }

    /// A token for `subject`, good from `now` on.
    pub fn sign(&self, subject: &Subject, now: DateTime<Utc>) -> SecretString {
        let mut header = Header::new(Algorithm::HS256);
        header.typ = Some(KIND.to_owned());
        header.kid = Some(self.key_id.clone());
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: subject.user,
            sid: subject.session,
            jti: TokenId::new(now),
            iat: now.timestamp(),
            exp: (now + self.lifetime).timestamp(),
            store: subject.store,
        };
        jsonwebtoken::encode(&header, &claims, &self.encoding).expect("plain claims sign with an HMAC key").into()
    }

    /// Whom `token` speaks for at `now`; `None` when it is not ours, was changed, or has expired.
    pub fn verify(&self, token: &str, now: DateTime<Utc>) -> Option<Subject> {
        let header = jsonwebtoken::decode_header(token).ok()?;
        if header.kid.as_deref() != Some(&self.key_id) || header.typ.as_deref() != Some(KIND) {
            return None;
        }
        let mut rules = Validation::new(Algorithm::HS256);
        rules.set_issuer(&[ISSUER]);
        rules.set_audience(&[AUDIENCE]);
        rules.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        // Expiry is checked below, against our own clock and without the library's minute of leeway.
        rules.validate_exp = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &rules).ok()?.claims;
        (claims.exp > now.timestamp()).then_some(Subject { user: claims.sub, session: claims.sid, store: claims.store })
    }
}

#[cfg(test)]
mod tests {
    use super::{Signer, Subject};
    use chrono::{Duration, Utc};
    use kernel::{Clock as _, SessionId, SystemClock, UserId};
    use secrecy::ExposeSecret as _;

    fn signer(secret: &str) -> Signer {
        Signer::new(&secret.to_owned().into(), std::time::Duration::from_secs(900)).expect("long enough")
    }

    fn subject(now: chrono::DateTime<Utc>) -> Subject {
        Subject { user: UserId::new(now), session: SessionId::new(now), store: None }
    }

    #[test]
    fn a_token_reads_back_until_it_expires() {
        let (signer, now) = (signer(&"s".repeat(32)), SystemClock.now());
        let subject = subject(now);
        let token = signer.sign(&subject, now);
        assert_eq!(signer.verify(token.expose_secret(), now), Some(subject));
        assert_eq!(signer.verify(token.expose_secret(), now + Duration::seconds(900)), None);
    }

    #[test]
    fn foreign_changed_and_unsigned_tokens_are_refused() {
        let (ours, theirs, now) = (signer(&"s".repeat(32)), signer(&"t".repeat(32)), SystemClock.now());
        let token = theirs.sign(&subject(now), now);
        assert_eq!(ours.verify(token.expose_secret(), now), None);
        let token = ours.sign(&subject(now), now);
        let (head, tail) = token.expose_secret().split_at(60);
        assert_eq!(ours.verify(&format!("{head}A{}", &tail[1..]), now), None);
        // {"alg":"none"} with the same claims.
        let claims = token.expose_secret().split('.').nth(1).expect("three parts");
        assert_eq!(ours.verify(&format!("eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0In0.{claims}."), now), None);
        assert_eq!(ours.verify("", now), None);
    }
}
