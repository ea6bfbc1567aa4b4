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

/// Takes off what a string is pasted with: `export DATABASE_URL="…";`, `DATABASE_URL: …`, `psql "…"`, `jdbc:`.
pub(super) fn undress(text: &str) -> Result<&str, TargetError> {
    let mut text = text.trim();
    text = text.strip_prefix("export ").unwrap_or(text).trim_start();
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
    let of_java = OF_JAVA.iter().find_map(|prefix| {
        text.get(..prefix.len()).filter(|start| start.eq_ignore_ascii_case(prefix)).map(|start| &text[start.len()..])
    });
    Ok(of_java.unwrap_or(text))
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
