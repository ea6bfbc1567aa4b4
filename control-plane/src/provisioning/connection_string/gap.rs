//! A string that was copied before its gaps were filled.

use secrecy::ExposeSecret as _;

use super::super::target::{TargetError, TargetFields, invalid};
use super::AT;

/// # Errors
/// When a part is still what a panel or a guide puts in its place.
pub(super) fn refuse_placeholders(fields: &TargetFields) -> Result<(), TargetError> {
    let password = fields.password.as_ref().map_or("", |password| password.expose_secret());
    let parts = [
        ("password", password),
        ("host", fields.host.as_deref().unwrap_or_default()),
        ("user", fields.username.as_deref().unwrap_or_default()),
        ("database", fields.database.as_deref().unwrap_or_default()),
    ];
    parts.iter().find(|(_, text)| is_gap(text)).map_or(Ok(()), |(what, _)| Err(placeholder(what)))
}

pub(super) fn placeholder(what: &str) -> TargetError {
    let detail = format!("the {what} is still a placeholder; put the real one in its place");
    invalid(
        AT,
        "placeholder",
        if what == "password" { format!("{detail}, or give the parts one by one") } else { detail },
    )
}

/// Whether a part is `[YOUR-PASSWORD]`, `<password>`, `{password}`, `${PW}`, `$PW` or `****`.
pub(super) fn is_gap(text: &str) -> bool {
    let between = |(begin, end): (&str, &str)| text.strip_prefix(begin).and_then(|text| text.strip_suffix(end));
    let bracketed = [("[", "]"), ("<", ">"), ("${{", "}}"), ("${", "}"), ("{{", "}}"), ("{", "}")];
    let is_name = |inner: &str| {
        inner.chars().any(|c| c.is_ascii_alphabetic())
            && inner.chars().all(|c| c.is_ascii_alphanumeric() || "-_. ".contains(c))
    };
    // A password may begin with a dollar; the name of a variable is written in capitals.
    let is_variable = |name: &str| {
        name.len() > 1
            && name.starts_with(|c: char| c.is_ascii_uppercase() || c == '_')
            && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
    };
    let is_covered = |cover: char| text.chars().count() > 2 && text.chars().all(|c| c == cover);
    bracketed.into_iter().filter_map(between).any(is_name)
        || text.strip_prefix('$').is_some_and(is_variable)
        || ['*', '\u{2022}', '\u{25cf}'].into_iter().any(is_covered)
}
