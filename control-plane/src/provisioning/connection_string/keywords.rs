//! PostgreSQL's own form of a connection: `host=… dbname=…`.

use kernel::Engine;
use secrecy::SecretString;

use super::super::target::{TargetError, TargetFields, invalid};
use super::parameters::{KNOWN, OF_OTHERS};
use super::tls::{AskedTls, read_mode};
use super::{AT, several_hosts, socket};

/// Words of which PostgreSQL's own form of a connection begins with one.
pub(super) const KEYWORDS: [&str; 8] = ["host", "hostaddr", "port", "dbname", "user", "password", "sslmode", "service"];

/// Whether it is `host=… dbname=…`.
pub(super) fn is_keywords(text: &str) -> bool {
    text.split_once('=').is_some_and(|(word, _)| KEYWORDS.contains(&word.trim_end()))
}

/// Reads PostgreSQL's own form: words with values, in quotes where they hold a space, a backslash before what is meant as it is.
pub(super) fn read_keywords(text: &str, asked: &mut AskedTls) -> Result<TargetFields, TargetError> {
    let malformed = |detail| Err(invalid(AT, "malformed", detail));
    let mut fields = TargetFields {
        engine: Engine::Postgresql,
        host: Some(String::new()),
        port: None,
        username: Some(String::new()),
        password: Some(SecretString::default()),
        database: Some(String::new()),
        tls: None,
        ca_pem: None,
    };
    let mut seen = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let Some((word, value)) = rest.split_once('=') else {
            return malformed("what stands at the end has no =; a value with a space in it is written 'in quotes'");
        };
        let word = word.trim_end();
        if word.contains(char::is_whitespace) {
            return malformed("a value with a space in it is written 'in quotes'");
        }
        let Some((value, left)) = keyword_value(value.trim_start()) else {
            return malformed("a value is in quotes that do not end; a ' of the password is written \\'");
        };
        rest = left.trim_start();
        if seen.contains(&word) {
            return malformed("says one of its words twice");
        }
        seen.push(word);
        match word {
            "host" if value.contains(',') => return Err(several_hosts()),
            "host" if value.starts_with(['/', '@']) => return Err(socket()),
            "host" => fields.host = Some(value),
            "port" => match value.parse() {
                Ok(port) => fields.port = Some(port),
                Err(_) => return malformed("the port is no number"),
            },
            "user" => fields.username = Some(value),
            "password" => fields.password = Some(value.into()),
            "dbname" => fields.database = Some(value),
            "sslmode" => AskedTls::say(&mut asked.mode, read_mode(&value)?)?,
            _ if OF_OTHERS.contains(&word) => {}
            _ if KNOWN.contains(&word) => {
                return Err(invalid(AT, "parameter", format!("the parameter {word} is not supported; leave it out")));
            }
            // Part of a password without quotes, for all that is known.
            _ => {
                return Err(invalid(
                    AT,
                    "parameter",
                    "what stands before an = is no word of a connection; a value with a \
                     space in it is written 'in quotes'",
                ));
            }
        }
    }
    Ok(fields)
}

/// The value that a text begins with, and what follows it; nothing when its quotes do not end.
fn keyword_value(text: &str) -> Option<(String, &str)> {
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
            letter if !is_quoted && letter.is_whitespace() => return Some((value, &inner[at..])),
            letter => value.push(letter),
        }
    }
    (!is_quoted).then_some((value, ""))
}
