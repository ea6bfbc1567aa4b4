//! A string that was copied before its gaps were filled.

use secrecy::ExposeSecret as _;

use super::super::target::{TargetError, TargetFields, invalid};
use super::AT;

/// What guides call what is yours: `your_password`, `your-database-name`.
const YOURS: [&str; 8] = ["password", "passwd", "user", "username", "host", "hostname", "database", "databasename"];

/// # Errors
/// When a part is still what a panel or a guide puts in its place.
pub(super) fn refuse_placeholders(fields: &TargetFields) -> Result<(), TargetError> {
    let password = fields.password.as_ref().map_or("", |password| password.expose_secret());
    let user = fields.username.as_deref().unwrap_or_default();
    // Each of the two may be a real one, both are a guide's.
    if matches!(user, "USER" | "USERNAME") && password == "PASSWORD" {
        return Err(placeholder("password"));
    }
    let parts = [
        ("password", password),
        ("host", fields.host.as_deref().unwrap_or_default()),
        ("user", user),
        ("database", fields.database.as_deref().unwrap_or_default()),
    ];
    let is_open = |what: &str, text: &str| is_gap(text) || is_called_so(what, text);
    parts.into_iter().find(|(what, text)| is_open(what, text)).map_or(Ok(()), |(what, _)| Err(placeholder(what)))
}

pub(super) fn placeholder(what: &str) -> TargetError {
    let detail = format!("the {what} is still a placeholder; put the real one in its place");
    invalid(
        AT,
        "placeholder",
        if what == "password" { format!("{detail}, or give the parts one by one") } else { detail },
    )
}

/// Whether a host or a port is what a guide calls it, as in `postgres://USER:PASSWORD@HOST:PORT/DATABASE`. Users, passwords and
/// databases are really called so.
pub(super) fn is_called_so(what: &str, text: &str) -> bool {
    match what {
        "host" => matches!(text, "HOST" | "HOSTNAME"),
        "port" => text == "PORT",
        _ => false,
    }
}

/// Whether a part is `[YOUR-PASSWORD]`, `<password>`, `{password}`, `${PW}`, `$PW`, `your_password`, `****` or `xxxx`.
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
    let is_covered = |cover: char, least| text.chars().count() >= least && text.chars().all(|c| c == cover);
    let is_yours = || {
        let letters = text.to_ascii_lowercase().replace(['-', '_', ' '], "");
        letters.strip_prefix("your").is_some_and(|what| YOURS.iter().any(|known| what.ends_with(known)))
    };
    bracketed.into_iter().filter_map(between).any(is_name)
        || text.strip_prefix('$').is_some_and(is_variable)
        || ['*', '\u{2022}', '\u{25cf}'].into_iter().any(|cover| is_covered(cover, 3))
        || ['x', 'X'].into_iter().any(|cover| is_covered(cover, 4))
        || is_yours()
}
