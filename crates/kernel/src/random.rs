//! Randomness for ids, nonces and tokens: one source, the operating system's generator.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngExt as _;

/// Fills an array with bytes fit for keys, nonces and tokens.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one site that draws randomness")]
pub fn bytes<const N: usize>() -> [u8; N] {
    rand::rng().random()
}

/// A bearer token of 256 random bits, in the URL-safe base64 alphabet (43 characters).
#[must_use]
pub fn token() -> String {
    URL_SAFE_NO_PAD.encode(bytes::<32>())
}

/// A number in `0..below`, for jitter. Returns 0 when `below` is 0.
#[must_use]
pub fn below(below: u64) -> u64 {
    if below == 0 { 0 } else { u64::from_le_bytes(bytes()) % below }
}
