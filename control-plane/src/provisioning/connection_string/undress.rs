//! What a string is pasted with, taken off.

use super::super::target::{TargetError, invalid};
use super::AT;
use super::ado::is_ado;
use super::keywords::{KEYWORDS, is_keywords};
use super::pdo::is_pdo;

/// Programs that a line of a shell begins with, when a connection is copied out of instructions.
const PROGRAMS: [&str; 8] = ["psql", "pg_dump", "pg_restore", "pgcli", "mysql", "mysqldump", "mariadb", "mycli"];

/// What drivers of Java begin their strings with, some with a driver around the driver.
const OF_JAVA: [&str; 4] = ["jdbc:aws-wrapper:", "jdbc:", "r2dbc:pool:", "r2dbc:"];

/// What word processors and chats make of straight quotes.
const CURLY: [char; 8] =
    ['\u{201c}', '\u{201d}', '\u{201e}', '\u{201f}', '\u{2018}', '\u{2019}', '\u{201a}', '\u{201b}'];

pub(super) struct Undressed<'t> {
    pub(super) text: &'t str,
    /// Whether it began as strings of Java's drivers do.
    pub(super) is_java: bool,
}

/// Takes off what a string is pasted with: `export DATABASE_URL="…";`, `DATABASE_URL: …`, `psql "…"`, `jdbc:`.
pub(super) fn undress(text: &str) -> Result<Undressed<'_>, TargetError> {
    let mut text = without_shell(text.trim());
    if let Some((name, value)) = text.split_once('=') {
        let name = name.trim_end();
        if matches!(name, "PGPASSWORD" | "MYSQL_PWD") {
            return Err(shell_line());
        }
        let is_name =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        if is_name && !KEYWORDS.contains(&name) && !is_ado(text) {
            text = value.trim_start();
        }
    }
    text = without_yaml_name(text);
    let closed = text.trim_end_matches([';', ',']).trim_end();
    let inner = unquoted(closed);
    // Where nothing is around it, it may be the end of the password.
    if inner.len() < closed.len() || !(is_keywords(text) || is_ado(text) || is_pdo(text)) {
        text = inner;
    }
    if let Some((program, rest)) = text.split_once(char::is_whitespace)
        && PROGRAMS.contains(&program)
    {
        let rest = rest.trim();
        let inner =
            unquoted(rest.strip_prefix("-d ").or_else(|| rest.strip_prefix("--dbname=")).unwrap_or(rest).trim());
        let is_url = inner.contains("://") && !inner.contains(char::is_whitespace);
        if !is_url && !is_keywords(inner) {
            return Err(shell_line());
        }
        text = inner;
    }
    if text.starts_with(CURLY) {
        return Err(curly());
    }
    let of_java = OF_JAVA.iter().find_map(|prefix| without_start(text, prefix));
    Ok(Undressed { text: of_java.unwrap_or(text), is_java: of_java.is_some() })
}

/// What follows the word with which a shell sets a variable: `export NAME=…`, `set NAME=…`, `$env:NAME = …`.
pub(super) fn without_shell(text: &str) -> &str {
    let of_shell = ["export ", "set ", "$env:"].into_iter().find_map(|word| without_start(text, word));
    of_shell.map_or(text, str::trim_start)
}

fn without_start<'t>(text: &'t str, start: &str) -> Option<&'t str> {
    let found = text.get(..start.len())?;
    found.eq_ignore_ascii_case(start).then(|| &text[start.len()..])
}

/// Whether a value is between quotes that no program takes for quotes.
pub(super) fn is_curly(value: &str) -> bool {
    value.starts_with(CURLY) && value.ends_with(CURLY)
}

pub(super) fn curly() -> TargetError {
    let detail = "stands in typographic quotes, as word processors write them; take them off, or write straight ones";
    invalid(AT, "malformed", detail)
}

fn shell_line() -> TargetError {
    invalid(
        AT,
        "shell-line",
        "is a line for a shell whose options are not read; give only the postgres:// or mysql:// string of it, or host, port, \
         user, password and database one by one",
    )
}

pub(super) fn unquoted(text: &str) -> &str {
    let inner = |quote| text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote));
    ['"', '\'', '`'].into_iter().find_map(inner).map_or(text, str::trim)
}

/// What stands behind the name in a line of YAML or JSON: `DATABASE_URL: …`, `"url": "…"`.
fn without_yaml_name(text: &str) -> &str {
    let Some((name, value)) = text.split_once(':') else { return text };
    let name = unquoted(name.trim());
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    // A scheme is followed by something else.
    if is_name && value.starts_with([' ', '\t', '"', '\'']) { value.trim_start() } else { text }
}
