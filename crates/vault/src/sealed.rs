//! The bytes of a sealed value: `format (1) | length of key id (1) | key id | nonce (12) | ciphertext | tag (16)`.

use std::fmt;

pub(crate) const FORMAT: u8 = 1;
pub(crate) const NONCE_LEN: usize = 12;
pub(crate) const TAG_LEN: usize = 16;
pub(crate) const MAX_KID_LEN: usize = 32;

/// Bytes that are no sealed value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("these bytes are not a sealed value")]
pub struct MalformedError;

/// A secret that only the key ring opens, and only at its place. Safe to store and to copy; shows nothing in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed(Vec<u8>);

impl Sealed {
    /// The sealed value in `bytes`, as [`Sealed::as_bytes`] gave them.
    ///
    /// # Errors
    /// When they cannot be one: another format, a bad key id, or too short for a nonce and a whole tag.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<Self, MalformedError> {
        let bytes = bytes.into();
        let [FORMAT, kid_len, rest @ ..] = bytes.as_slice() else { return Err(MalformedError) };
        let kid_len = usize::from(*kid_len);
        let is_whole = rest.len() >= kid_len + NONCE_LEN + TAG_LEN;
        if !is_whole || !is_kid(&rest[..kid_len]) {
            return Err(MalformedError);
        }
        Ok(Self(bytes))
    }

    /// The bytes to store.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The id of the key that sealed it.
    #[must_use]
    pub fn key_id(&self) -> &str {
        let header = self.header();
        std::str::from_utf8(&header[2..]).expect("a key id was checked to be ASCII")
    }

    pub(crate) fn new(kid: &str) -> Self {
        let mut bytes = vec![FORMAT, u8::try_from(kid.len()).expect("a key id has at most 32 bytes")];
        bytes.extend_from_slice(kid.as_bytes());
        Self(bytes)
    }

    pub(crate) fn header(&self) -> &[u8] {
        &self.0[..2 + usize::from(self.0[1])]
    }

    pub(crate) fn body(&self) -> (&[u8], &[u8]) {
        self.0[self.header().len()..].split_at(NONCE_LEN)
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

/// Whether these are the bytes of a key id: what is safe in an environment variable and in a log.
pub(crate) fn is_kid(bytes: &[u8]) -> bool {
    (1..=MAX_KID_LEN).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

impl fmt::Debug for Sealed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Sealed(..)")
    }
}
