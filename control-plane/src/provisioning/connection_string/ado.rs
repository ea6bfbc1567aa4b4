//! What drivers of .NET are given: `Host=…;Database=…;Username=…;Password=…`.

use kernel::Engine;

use super::super::target::{TargetError, invalid};
use super::AT;
use super::parameters::{is_same_name, meaning_of};
use super::parts::Parts;
use super::pdo::is_pdo;
use super::scheme::of_product;

/// Of a name that is none: it is part of a password without quotes, for all that is known.
pub(super) const UNKNOWN: &str = "what stands before an = is no word of a connection that is known here; leave it out, and write a value with a ; in it \"in quotes\"";

/// Words that drivers of one engine have alone, or that everybody writes for it.
const OF_POSTGRES: [&str; 8] = [
    "host",
    "username",
    "searchpath",
    "trustservercertificate",
    "includeerrordetail",
    "commandtimeout",
    "noresetonclose",
    "targetsessionattributes",
];
const OF_MYSQL: [&str; 8] = [
    "uid",
    "pwd",
    "charset",
    "allowuservariables",
    "allowzerodatetime",
    "convertzerodatetime",
    "allowpublickeyretrieval",
    "defaultcommandtimeout",
];

/// Whether it is `Name=…;Name=…` with names that are known.
pub(super) fn is_ado(text: &str) -> bool {
    let is_known = |part: &str| part.split_once('=').is_some_and(|(name, _)| meaning_of(name.trim()).is_some());
    let Some((_, value)) = text.split_once('=').filter(|_| is_known(text)) else { return false };
    let value = value.trim_start();
    // The name in front of another form is the one of a variable.
    let is_url =
        value.split_once("://").is_some_and(|(scheme, _)| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let Some((_, rest)) = value_of(value).filter(|_| !(is_url || is_pdo(value))) else { return false };
    rest.strip_prefix(';').is_some_and(|rest| rest.trim().is_empty() || rest.split(';').any(is_known))
}

pub(super) fn read_ado(text: &str, parts: &mut Parts) -> Result<(), TargetError> {
    let malformed = |detail| Err(invalid(AT, "malformed", detail));
    let (mut is_postgres, mut is_mysql) = (false, false);
    let is_between = |letter: char| letter == ';' || letter.is_whitespace();
    let mut rest = text.trim_start_matches(is_between);
    while !rest.is_empty() {
        let Some((name, value)) = rest.split_once('=').filter(|(name, _)| !name.contains(';')) else {
            return malformed("what stands behind a ; has no =; a value with a ; in it is written \"in quotes\"");
        };
        let Some((value, left)) = value_of(value.trim_start()) else {
            return malformed(
                "a value is in quotes that do not end, or end too soon; a \" of a value \"in quotes\" is written twice",
            );
        };
        rest = left.trim_start_matches(is_between);
        let name = name.trim();
        let is_one_of = |names: &[&str]| names.iter().any(|known| is_same_name(known, name));
        is_postgres |= is_one_of(&OF_POSTGRES);
        is_mysql |= is_one_of(&OF_MYSQL);
        if is_one_of(&["driver", "dsn", "provider"]) {
            let detail = "is for ODBC or OLE DB, which quote in their own way; give the parts one by one";
            return Err(invalid(AT, "odbc", detail));
        }
        let is_server = is_one_of(&["server", "datasource"]);
        let is_named = is_server && value.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("tcp:"));
        if is_named || is_one_of(&["multipleactiveresultsets", "trustedconnection"]) {
            return Err(of_product("SQL Server"));
        }
        // The port may stand behind the host.
        let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
        match value.split_once(':') {
            Some((host, port)) if (is_server || is_same_name(name, "host")) && is_port(port) => {
                parts.take(name, host)?;
                parts.take("port", port)?;
            }
            _ => parts.take(name, &value)?,
        }
    }
    parts.likely = match (is_postgres, is_mysql) {
        (true, false) => Some(Engine::Postgresql),
        (false, true) => Some(Engine::Mysql),
        _ => None,
    };
    Ok(())
}

/// The value that a text begins with, and what follows it from its semicolon on; nothing when its quotes do not end there. In quotes,
/// of either kind, the quote itself stands twice.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quote) = text.chars().next().filter(|letter| ['"', '\''].contains(letter)) else {
        let (value, rest) = text.split_at(text.find(';').unwrap_or(text.len()));
        return Some((value.trim_end().to_owned(), rest));
    };
    let mut value = String::new();
    let mut rest = &text[1..];
    loop {
        let (inner, behind) = rest.split_once(quote)?;
        value.push_str(inner);
        match behind.strip_prefix(quote) {
            Some(behind) => {
                value.push(quote);
                rest = behind;
            }
            None => {
                let behind = behind.trim_start();
                return (behind.is_empty() || behind.starts_with(';')).then_some((value, behind));
            }
        }
    }
}
