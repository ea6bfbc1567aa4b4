//! Who sent a webhook: the signature over its bytes, as they came, and the moment of signing.

use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

/// More signatures than this nobody sends.
const MAX_SIGNATURES: usize = 16;

/// What is wrong with a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("the header is not of the form t=…,v1=…")]
    Malformed,
    #[error("no signature fits the body")]
    Mismatch,
    #[error("it was signed too long ago, or will be signed only later")]
    OutOfTime,
}

/// Whether one of the secrets has signed `body`, within `tolerance_s` of `now_s`. Any `v1` may be the right one, while the
/// secret changes; schemes that we do not know count for nothing.
///
/// # Errors
/// What is wrong with it.
pub fn verify(
    header: &str,
    body: &[u8],
    secrets: &[SecretString],
    now_s: i64,
    tolerance_s: i64,
) -> Result<(), SignatureError> {
    let mut moment = None;
    let mut signatures = Vec::new();
    for part in header.split(',') {
        match part.trim().split_once('=') {
            Some(("t", text)) if moment.is_none() => {
                moment = Some(text.parse::<i64>().map_err(|_| SignatureError::Malformed)?);
            }
            Some(("t", _)) | None => return Err(SignatureError::Malformed),
            Some(("v1", text)) if signatures.len() < MAX_SIGNATURES => {
                let mut bytes = [0_u8; 32];
                // One that is no signature fits nothing, and does not spoil the others.
                if hex::decode_to_slice(text, &mut bytes).is_ok() {
                    signatures.push(bytes);
                }
            }
            Some(_) => {}
        }
    }
    let moment = moment.ok_or(SignatureError::Malformed)?;
    let mut fits = subtle::Choice::from(0);
    for secret in secrets {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()).expect("HMAC takes keys of any length");
        mac.update(moment.to_string().as_bytes());
        mac.update(b".");
        mac.update(body);
        let expected = mac.finalize().into_bytes();
        for signature in &signatures {
            fits |= expected.as_slice().ct_eq(signature);
        }
    }
    if !bool::from(fits) {
        return Err(SignatureError::Mismatch);
    }
    if now_s.abs_diff(moment) > tolerance_s.unsigned_abs() {
        return Err(SignatureError::OutOfTime);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_test_secret";

    fn signed(secret: &str, moment: i64, body: &[u8]) -> String {
        devkit::payments::sign(secret, moment, std::str::from_utf8(body).expect("text"))
    }

    fn check(header: &str, body: &[u8], now_s: i64) -> Result<(), SignatureError> {
        verify(header, body, &["whsec_older_secret".into(), SECRET.into()], now_s, 300)
    }

    #[test]
    fn the_signature_is_of_the_bytes_and_of_a_moment_near_now() {
        let body = br#"{"id":"evt_1"}"#;
        let header = signed(SECRET, 1000, body);
        assert_eq!(check(&header, body, 1000), Ok(()));
        assert_eq!((check(&header, body, 1300), check(&header, body, 700)), (Ok(()), Ok(())));
        assert_eq!(check(&header, body, 1301), Err(SignatureError::OutOfTime));
        assert_eq!(check(&header, body, 699), Err(SignatureError::OutOfTime));
        assert_eq!(check(&header, br#"{"id": "evt_1"}"#, 1000), Err(SignatureError::Mismatch));
        assert_eq!(check(&header.replace("t=1000", "t=1001"), body, 1000), Err(SignatureError::Mismatch));
    }

    #[test]
    fn any_v1_of_any_secret_may_fit_and_nothing_else_counts() {
        let body = b"{}";
        let right = signed("whsec_older_secret", 5, body);
        let (_, v1) = right.split_once(",v1=").expect("a signature");
        let wrong = "0".repeat(64);
        assert_eq!(check(&format!("t=5,v1={wrong},v1={v1},v0={wrong}"), body, 5), Ok(()));
        assert_eq!(check(&format!("t=5,v1=zz,v1={v1}"), body, 5), Ok(()));
        assert_eq!(check(&format!("t=5,v0={v1}"), body, 5), Err(SignatureError::Mismatch));
        assert_eq!(check(&format!("t=5,v1={wrong}"), body, 5), Err(SignatureError::Mismatch));
        for malformed in ["", "t=5", "v1=", "nonsense", "t=x,v1=y", "t=5,t=6,v1=y", &format!("v1={v1}")] {
            assert!(check(malformed, body, 5).is_err(), "{malformed}");
        }
    }

    #[test]
    fn a_vector_that_others_sign_the_same() {
        // echo -n '1700000000.{"id":"evt_1","object":"event"}' | openssl dgst -sha256 -hmac whsec_test_secret
        let body = br#"{"id":"evt_1","object":"event"}"#;
        let header = "t=1700000000,v1=0c8670ed117751cc551a20e35839447075c42800ea3cf3e8a2fbda99cd1e6edd";
        assert_eq!(check(header, body, 1_700_000_000), Ok(()));
    }
}
