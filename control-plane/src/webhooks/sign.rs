//! Signatures as Standard Webhooks has them: HMAC-SHA256 over `id.timestamp.body`, with the bytes that follow `whsec_` in
//! base64. Any library for that standard verifies them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;

const PREFIX: &str = "whsec_";

/// A new secret of 256 random bits.
pub fn generate() -> SecretString {
    format!("{PREFIX}{}", STANDARD.encode(kernel::random::bytes::<32>())).into()
}

/// One signature, `v1,…`; nothing when the secret is none.
pub fn signature(secret: &SecretString, id: &str, timestamp_s: i64, body: &[u8]) -> Option<String> {
    let key = secret.expose_secret().strip_prefix(PREFIX).and_then(|text| STANDARD.decode(text).ok())?;
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).ok()?;
    mac.update(format!("{id}.{timestamp_s}.").as_bytes());
    mac.update(body);
    Some(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
}

#[cfg(test)]
mod tests {
    use super::{generate, signature};
    use secrecy::ExposeSecret as _;

    /// The example of the standard's own libraries.
    #[test]
    fn the_standards_example_is_signed_as_it_says() {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned().into();
        let signed = signature(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed.as_deref(), Some("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="));
    }

    #[test]
    fn secrets_differ_and_something_else_signs_nothing() {
        let (one, two) = (generate(), generate());
        assert_ne!(one.expose_secret(), two.expose_secret());
        assert_ne!(signature(&one, "a", 1, b"x"), signature(&two, "a", 1, b"x"));
        assert_ne!(signature(&one, "a", 1, b"x"), signature(&one, "a", 2, b"x"));
        assert_eq!(signature(&"secret".to_owned().into(), "a", 1, b"x"), None);
        assert_eq!(signature(&"whsec_!".to_owned().into(), "a", 1, b"x"), None);
    }
}
