//! What a string says about TLS.

use tenancy::TlsMode;

use super::super::target::{TargetError, invalid};
use super::AT;

/// What a string, and the body beside it, say about TLS: it must be one thing. A bare switch that turns it on never lowers what
/// a mode says.
pub(super) struct AskedTls {
    pub(super) mode: Option<TlsMode>,
    pub(super) switch: Option<TlsMode>,
}

impl AskedTls {
    pub(super) fn say(told: &mut Option<TlsMode>, mode: TlsMode) -> Result<(), TargetError> {
        match told.replace(mode) {
            Some(before) if before != mode => Err(contradictory_tls()),
            _ => Ok(()),
        }
    }

    pub(super) fn settle(self) -> Result<Option<TlsMode>, TargetError> {
        match (self.mode, self.switch) {
            (Some(TlsMode::Disable), Some(switch)) if switch != TlsMode::Disable => Err(contradictory_tls()),
            (Some(mode), Some(TlsMode::Disable)) if mode != TlsMode::Disable => Err(contradictory_tls()),
            (mode, switch) => Ok(mode.or(switch)),
        }
    }
}

fn contradictory_tls() -> TargetError {
    invalid(
        AT,
        "contradiction",
        "says two things about TLS; say once how much of it is wanted, such as sslmode=verify-full",
    )
}

/// How much of TLS, in the words of either engine's clients.
pub(super) fn read_mode(text: &str) -> Result<TlsMode, TargetError> {
    match text.to_ascii_lowercase().replace('_', "-").as_str() {
        "disable" | "disabled" => Ok(TlsMode::Disable),
        "require" | "required" => Ok(TlsMode::Require),
        "verify-ca" => Ok(TlsMode::VerifyCa),
        "verify-full" | "verify-identity" => Ok(TlsMode::VerifyFull),
        "prefer" | "preferred" | "allow" => Err(invalid(
            AT,
            "sslmode",
            "sslmode must not leave it to chance whether the connection is encrypted; use require or verify-full",
        )),
        _ => Err(invalid(AT, "sslmode", "sslmode must be disable, require, verify-ca or verify-full")),
    }
}

pub(super) fn read_switch(value: &str, name: &str) -> Result<TlsMode, TargetError> {
    match value.to_ascii_lowercase().replace(' ', "").as_str() {
        // Switched on without another word: as where nothing is said, the certificate is checked.
        "true" | "1" | "strict" | "verify-full" | "{\"rejectunauthorized\":true}" => Ok(TlsMode::VerifyFull),
        "require" | "accept_invalid_certs" | "{\"rejectunauthorized\":false}" => Ok(TlsMode::Require),
        "false" | "0" | "disable" => Ok(TlsMode::Disable),
        _ => Err(invalid(AT, "sslmode", format!("{name} is not understood; write sslmode=verify-full, or require"))),
    }
}
