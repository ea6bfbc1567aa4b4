//! PostgreSQL's own form of a connection: `host=… dbname=…`.

use super::super::target::{TargetError, invalid};
use super::AT;
use super::parts::Parts;

/// Words of which PostgreSQL's own form of a connection begins with one.
pub(super) const KEYWORDS: [&str; 8] = ["host", "hostaddr", "port", "dbname", "user", "password", "sslmode", "service"];

/// Of a word that is none: it is part of a password without quotes, for all that is known.
pub(super) const UNKNOWN: &str =
    "what stands before an = is no word of a connection; a value with a space in it is written 'in quotes'";

/// Whether it is `host=… dbname=…`.
pub(super) fn is_keywords(text: &str) -> bool {
    text.split_once('=').is_some_and(|(word, _)| KEYWORDS.contains(&word.trim_end()))
}

/// Reads PostgreSQL's own form: words with values, in quotes where they hold what else ends them, a backslash before what is meant
/// as it is.
pub(super) fn read_keywords(text: &str, is_between: fn(char) -> bool, parts: &mut Parts) -> Result<(), TargetError> {
    let malformed = |detail| Err(invalid(AT, "malformed", detail));
    let mut seen = Vec::new();
    let mut rest = text.trim_start_matches(is_between);
    while !rest.is_empty() {
        let Some((word, value)) = rest.split_once('=') else {
            return malformed("what stands at the end has no =; a value with a space in it is written 'in quotes'");
        };
        let word = word.trim_end();
        if word.contains(is_between) {
            return malformed("a value with a space in it is written 'in quotes'");
        }
        let Some((value, left)) = keyword_value(value.trim_start(), is_between) else {
            return malformed("a value is in quotes that do not end; a ' of the password is written \\'");
        };
        rest = left.trim_start_matches(is_between);
        if seen.contains(&word) {
            return malformed("says one of its words twice");
        }
        seen.push(word);
        parts.take(word, &value)?;
    }
    Ok(())
}

/// The value that a text begins with, and what follows it; nothing when its quotes do not end.
fn keyword_value(text: &str, is_between: fn(char) -> bool) -> Option<(String, &str)> {
    let (is_quoted, inner) = match text.strip_prefix('\'') {
        Some(inner) => (true, inner),
        None => (false, text),
    };
    let mut value = String::new();
    let mut letters = inner.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            '\'' if is_quoted => return Some((value, &inner[at + 1..])),
            letter if !is_quoted && is_between(letter) => return Some((value, &inner[at..])),
            letter => value.push(letter),
        }
    }
    (!is_quoted).then_some((value, ""))
}
