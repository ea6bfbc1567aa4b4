//! What a string says about TLS.

use tenancy::TlsMode;

use super::super::target::{TargetError, invalid};
use super::AT;

/// What a string, and the body beside it, say about TLS: it must be one thing. A bare switch that turns it on never lowers what
/// a mode says.
#[derive(Default)]
pub(super) struct AskedTls {
    pub(super) mode: Option<TlsMode>,
    pub(super) switch: Option<TlsMode>,
    /// Whether the certificate is checked, where that is said by itself.
    pub(super) is_checked: Option<bool>,
    /// Whether it must name the host: where that is said by itself, and where anybody could show one that passes without.
    pub(super) names_host: bool,
}

impl AskedTls {
    pub(super) fn say<T: PartialEq + Copy>(told: &mut Option<T>, what: T) -> Result<(), TargetError> {
        match told.replace(what) {
            Some(before) if before != what => Err(contradictory_tls()),
            _ => Ok(()),
        }
    }

    /// Has the certificate checked, and the host's name in it.
    pub(super) fn check_host(&mut self) -> Result<(), TargetError> {
        self.names_host = true;
        Self::say(&mut self.is_checked, true)
    }

    pub(super) fn settle(self) -> Result<Option<TlsMode>, TargetError> {
        let asked = match (self.mode, self.switch) {
            (Some(TlsMode::Disable), Some(switch)) if switch != TlsMode::Disable => return Err(contradictory_tls()),
            (Some(mode), Some(TlsMode::Disable)) if mode != TlsMode::Disable => return Err(contradictory_tls()),
            (mode, switch) => mode.or(switch),
        };
        match (asked, self.is_checked) {
            // Without TLS there is no certificate to check.
            (Some(TlsMode::Disable), Some(true)) => Err(contradictory_tls()),
            (Some(TlsMode::VerifyCa), _) if self.names_host => Ok(Some(TlsMode::VerifyFull)),
            (None | Some(TlsMode::Require), Some(true)) => Ok(Some(TlsMode::VerifyFull)),
            (Some(TlsMode::VerifyCa | TlsMode::VerifyFull), Some(false)) if self.mode.is_some() => {
                Err(contradictory_tls())
            }
            (None | Some(TlsMode::VerifyCa | TlsMode::VerifyFull), Some(false)) => Ok(Some(TlsMode::Require)),
            (asked, _) => Ok(asked),
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
    of_word(text)
        .unwrap_or_else(|| Err(invalid(AT, "sslmode", "sslmode must be disable, require, verify-ca or verify-full")))
}

/// Whether TLS is switched on, or how much of it, as drivers of JavaScript, Java and Go say it.
pub(super) fn read_switch(value: &str, name: &str) -> Result<TlsMode, TargetError> {
    match value.trim().to_ascii_lowercase().as_str() {
        // Switched on without another word: as where nothing is said, the certificate is checked.
        "true" | "1" | "on" | "yes" => Ok(TlsMode::VerifyFull),
        "skip-verify" => Ok(TlsMode::Require),
        "false" | "0" | "off" | "no" => Ok(TlsMode::Disable),
        _ => of_word(value).or_else(|| of_json(value).map(Ok)).unwrap_or_else(|| {
            Err(invalid(AT, "sslmode", format!("{name} is not understood; write sslmode=verify-full, or require")))
        }),
    }
}

fn of_word(text: &str) -> Option<Result<TlsMode, TargetError>> {
    Some(Ok(match text.trim().to_ascii_lowercase().replace(['-', '_', ' '], "").as_str() {
        "disable" | "disabled" | "none" => TlsMode::Disable,
        "require" | "required" | "noverify" | "trust" => TlsMode::Require,
        "verifyca" => TlsMode::VerifyCa,
        "verifyfull" | "verifyidentity" => TlsMode::VerifyFull,
        "prefer" | "preferred" | "allow" => {
            return Some(Err(invalid(
                AT,
                "sslmode",
                "sslmode must not leave it to chance whether the connection is encrypted; use require or verify-full",
            )));
        }
        _ => return None,
    }))
}

/// What mysql2 is given: `{"rejectUnauthorized":true}`, which is what it does without a word. Older TLS than 1.2 is never spoken.
fn of_json(text: &str) -> Option<TlsMode> {
    let said: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    let mut mode = TlsMode::VerifyFull;
    for (name, value) in said {
        match (name.as_str(), value) {
            ("rejectUnauthorized", serde_json::Value::Bool(is_checked)) => {
                mode = if is_checked { TlsMode::VerifyFull } else { TlsMode::Require };
            }
            ("minVersion", serde_json::Value::String(version)) if version != "TLSv1.3" => {}
            _ => return None,
        }
    }
    Some(mode)
}
