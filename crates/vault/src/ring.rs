//! The ring of keys: the first seals, all open.

use std::fmt;

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_PAD_INDIFFERENT};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::aad::Aad;
use crate::sealed::{NONCE_LEN, Sealed, is_kid};

const KEY_LEN: usize = 32;

/// What is wrong with one key. Never says anything of its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Its id breaks the rule.
    #[error("the key id must be 1 to 32 of A-Z, a-z, 0-9, '-', '_' and '.'")]
    Id,
    /// An earlier entry has the same id.
    #[error("the key id was used before")]
    DuplicateId,
    /// It is not base64.
    #[error("the key is not base64")]
    Encoding,
    /// It is not 256 bits long.
    #[error("the key must be base64 of exactly 32 bytes")]
    Length,
    /// It is one byte repeated, which no generator gives.
    #[error("the key is not random; `tenantry keys generate` makes one")]
    Weak,
}

/// Why a text is no key ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyRingError {
    /// It has no entry.
    #[error("the key ring is empty; `tenantry keys generate` makes a key")]
    Empty,
    /// One of its entries is wrong.
    #[error("entry {entry} of the key ring: {reason}")]
    Entry {
        /// Which one, counted from 1.
        entry: usize,
        /// What is wrong.
        reason: KeyError,
    },
}

/// Why a sealed value did not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The ring has no key of that id: the key was dropped too early, or the value comes from another installation.
    #[error("no key of the ring has the id {kid}")]
    UnknownKey {
        /// The id of the key that sealed it.
        kid: String,
    },
    /// It was changed, or belongs to another store, purpose or version: the two cannot be told apart.
    #[error("the sealed value is damaged or belongs elsewhere")]
    Damaged,
}

struct RingKey {
    kid: String,
    cipher: Aes256Gcm,
}

/// The keys that seal and open. Its `Debug` shows the ids only; the keys are wiped when it is dropped.
pub struct KeyRing {
    keys: Vec<RingKey>,
}

impl KeyRing {
    /// The ring in `kid:base64,kid:base64` (`ENCRYPTION_KEYS`): the first entry seals, all open. An entry without `kid:`
    /// has the id that [`KeyRing::single`] gives it, so a key used alone can later stand in a ring.
    ///
    /// # Errors
    /// [`KeyRingError`] says which entry and what is wrong, never the value.
    pub fn parse(ring: &str) -> Result<Self, KeyRingError> {
        if ring.trim().is_empty() {
            return Err(KeyRingError::Empty);
        }
        let mut keys: Vec<RingKey> = Vec::new();
        for (place, text) in ring.split(',').enumerate() {
            let wrong = |reason| KeyRingError::Entry { entry: place + 1, reason };
            let key = parse_key(text.trim()).map_err(wrong)?;
            if keys.iter().any(|known| known.kid == key.kid) {
                return Err(wrong(KeyError::DuplicateId));
            }
            keys.push(key);
        }
        Ok(Self { keys })
    }

    /// A ring of one key (`ENCRYPTION_KEY`). Its id is made from the key: the same key always has the same id.
    ///
    /// # Errors
    /// [`KeyRingError`], never with the value.
    pub fn single(key: &str) -> Result<Self, KeyRingError> {
        let key = key.trim();
        if key.is_empty() {
            return Err(KeyRingError::Empty);
        }
        let wrong = |reason| KeyRingError::Entry { entry: 1, reason };
        let bytes = decode_key(key).map_err(wrong)?;
        Ok(Self { keys: vec![ring_key(derived_kid(&bytes), &bytes)] })
    }

    /// The ids of the keys, the sealing one first.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| key.kid.as_str())
    }

    /// Whether the key that seals today sealed it: if not, seal it again to finish a rotation.
    #[must_use]
    pub fn is_current(&self, sealed: &Sealed) -> bool {
        self.keys[0].kid == sealed.key_id()
    }

    /// Seals `secret` for the place `aad`.
    #[must_use]
    pub fn seal(&self, secret: &[u8], aad: &Aad) -> Sealed {
        let key = &self.keys[0];
        let mut sealed = Sealed::new(&key.kid);
        let nonce: [u8; NONCE_LEN] = kernel::random::bytes();
        let authenticated = aad.bytes(sealed.header());
        let ciphertext = key
            .cipher
            .encrypt(&Nonce::from(nonce), Payload { msg: secret, aad: &authenticated })
            .expect("no secret in memory reaches the 64 GiB that the cipher takes");
        sealed.push(&nonce);
        sealed.push(&ciphertext);
        sealed
    }

    /// Seals a text, see [`KeyRing::seal`].
    #[must_use]
    pub fn seal_text(&self, secret: &SecretString, aad: &Aad) -> Sealed {
        self.seal(secret.expose_secret().as_bytes(), aad)
    }

    /// The secret, when `sealed` is whole and belongs to the place `aad`.
    ///
    /// # Errors
    /// [`OpenError`]; of a damaged value nothing is returned.
    pub fn open(&self, sealed: &Sealed, aad: &Aad) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let kid = sealed.key_id();
        let Some(key) = self.keys.iter().find(|key| key.kid == kid) else {
            return Err(OpenError::UnknownKey { kid: kid.to_owned() });
        };
        let (nonce, ciphertext) = sealed.body();
        let nonce = <[u8; NONCE_LEN]>::try_from(nonce).map_err(|_| OpenError::Damaged)?;
        let authenticated = aad.bytes(sealed.header());
        key.cipher
            .decrypt(&Nonce::from(nonce), Payload { msg: ciphertext, aad: &authenticated })
            .map(Zeroizing::new)
            .map_err(|_| OpenError::Damaged)
    }

    /// The secret text, see [`KeyRing::open`].
    ///
    /// # Errors
    /// [`OpenError`], `Damaged` also when it is no text.
    pub fn open_text(&self, sealed: &Sealed, aad: &Aad) -> Result<SecretString, OpenError> {
        let bytes = self.open(sealed, aad)?;
        std::str::from_utf8(&bytes).map(SecretString::from).map_err(|_| OpenError::Damaged)
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_list().entries(self.key_ids()).finish()
    }
}

/// A new key, as `ENCRYPTION_KEY` takes it.
#[must_use]
pub fn generate_key() -> SecretString {
    let key = Zeroizing::new(kernel::random::bytes::<KEY_LEN>());
    SecretString::from(STANDARD.encode(key.as_slice()))
}

fn parse_key(text: &str) -> Result<RingKey, KeyError> {
    let Some((kid, key)) = text.split_once(':') else {
        let bytes = decode_key(text)?;
        return Ok(ring_key(derived_kid(&bytes), &bytes));
    };
    if !is_kid(kid.trim().as_bytes()) {
        return Err(KeyError::Id);
    }
    Ok(ring_key(kid.trim().to_owned(), &*decode_key(key.trim())?))
}

fn decode_key(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    let bytes = Zeroizing::new(STANDARD_PAD_INDIFFERENT.decode(text).map_err(|_| KeyError::Encoding)?);
    let key = <[u8; KEY_LEN]>::try_from(bytes.as_slice()).map(Zeroizing::new).map_err(|_| KeyError::Length)?;
    if key.iter().all(|byte| *byte == key[0]) {
        return Err(KeyError::Weak);
    }
    Ok(key)
}

fn ring_key(kid: String, bytes: &[u8; KEY_LEN]) -> RingKey {
    RingKey { kid, cipher: Aes256Gcm::new_from_slice(bytes).expect("the key has 32 bytes") }
}

/// Eight hexadecimal digits that tell keys apart and tell nothing of the key: 32 bits of a hash of 256 random ones.
fn derived_kid(bytes: &[u8; KEY_LEN]) -> String {
    let hash = Sha256::new().chain_update(b"tenantry-key-id").chain_update(bytes).finalize();
    hex::encode(&hash[..4])
}
