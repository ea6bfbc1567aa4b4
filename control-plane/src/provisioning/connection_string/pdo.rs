//! What PHP's PDO is given: `mysql:host=…;dbname=…`, `pgsql:host=…;dbname=…`.

use kernel::Engine;

use super::super::target::{TargetError, invalid};
use super::AT;
use super::keywords::read_keywords;
use super::parts::Parts;

/// Of a text without a user.
const WITHOUT_USER: &str = "the user is missing, which in PHP stands beside the string, as does the password; add \
                            ;user=…;password=… to it, or give the parts one by one";

/// The engine of such a text, and what follows its name.
fn split(text: &str) -> Option<(Engine, &str)> {
    let (driver, rest) = text.split_once(':')?;
    let engine = match driver {
        "mysql" => Engine::Mysql,
        "pgsql" => Engine::Postgresql,
        _ => return None,
    };
    let (word, _) = rest.split_once('=')?;
    let word = word.trim();
    let is_word = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_word.then_some((engine, rest))
}

pub(super) fn is_pdo(text: &str) -> bool {
    split(text).is_some()
}

pub(super) fn read_pdo(text: &str, parts: &mut Parts) -> Result<(), TargetError> {
    let Some((engine, rest)) = split(text) else { return Ok(()) };
    parts.engine = Some(engine);
    parts.without_user = Some(WITHOUT_USER);
    match engine {
        Engine::Mysql => read_mysql(rest, parts),
        // It is handed on to PostgreSQL's client, a space in place of each semicolon.
        _ => read_keywords(rest, |letter| letter == ';' || letter.is_whitespace(), parts),
    }
}

/// Values end at a semicolon; two of them are one of the value's.
fn read_mysql(text: &str, parts: &mut Parts) -> Result<(), TargetError> {
    let mut rest = text.trim_start_matches([';', ' ']);
    while !rest.is_empty() {
        let Some((word, value)) = rest.split_once('=').filter(|(word, _)| !word.contains(';')) else {
            return Err(invalid(AT, "malformed", "a ; of a value is written ;;"));
        };
        let mut end = 0;
        loop {
            end += value[end..].find(';').unwrap_or(value.len() - end);
            if !value[end..].starts_with(";;") {
                break;
            }
            end += 2;
        }
        parts.take(word.trim(), &value[..end].replace(";;", ";"))?;
        rest = value[end..].trim_start_matches([';', ' ']);
    }
    Ok(())
}
