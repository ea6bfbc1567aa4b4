//! A password as PostgreSQL keeps it (RFC 5803), worked out here: the server is told the verifier and never the password, so
//! neither its log nor its statistics of statements can hold it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

/// PostgreSQL's own default.
const ROUNDS: u32 = 4096;

/// The verifier of `password`, which must be ASCII: then it is its own SASLprep form (RFC 4013).
pub(super) fn verifier(password: &SecretString, salt: [u8; 16]) -> Option<String> {
    let password = password.expose_secret();
    if !password.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let salted = pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password.as_bytes(), &salt, ROUNDS);
    let stored_key = Sha256::digest(sign(&salted, b"Client Key"));
    let server_key = sign(&salted, b"Server Key");
    let [salt, stored_key, server_key] =
        [&salt[..], &stored_key[..], &server_key[..]].map(|bytes| STANDARD.encode(bytes));
    Some(format!("SCRAM-SHA-256${ROUNDS}:{salt}${stored_key}:{server_key}"))
}

fn sign(key: &[u8; 32], text: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::verifier;

    #[test]
    fn it_is_the_verifier_of_rfc_7677() {
        // The example of RFC 7677 §3: password "pencil", salt W22ZaJ0SNY7soEsUEjb6gQ==, 4096 rounds.
        let salt = [91, 109, 153, 104, 157, 18, 53, 142, 236, 160, 75, 20, 18, 54, 250, 129];
        let wanted = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        assert_eq!(verifier(&"pencil".to_owned().into(), salt).as_deref(), Some(wanted));
        assert_eq!(verifier(&"pa\u{df}".to_owned().into(), salt), None);
    }
}
