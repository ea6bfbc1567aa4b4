//! What Go's driver of MySQL is given: `user:password@tcp(host:3306)/database?parseTime=true`.

use kernel::Engine;

use super::super::target::{TargetError, invalid};
use super::parameters::Meaning;
use super::parts::Parts;
use super::url::{decode, read_query, refuse_stray_at};
use super::{AT, socket};

struct Dsn<'t> {
    login: &'t str,
    net: &'t str,
    address: &'t str,
    rest: &'t str,
    /// Some tools want a scheme in front of it.
    has_scheme: bool,
}

/// As the driver splits it: user and password are as they are, and hold whatever they like.
fn split(text: &str) -> Option<Dsn<'_>> {
    let is_word = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+');
    let (text, has_scheme) = text.strip_prefix("mysql://").map_or((text, false), |text| (text, true));
    // Of any other scheme it is a URL, rather than a user whose password begins with //.
    if text.split_once("://").is_some_and(|(scheme, _)| is_word(scheme)) {
        return None;
    }
    let (place, rest) = text.rsplit_once(")/")?;
    let (front, address) = place.rsplit_once('(')?;
    let (login, net) = front.rsplit_once('@').unwrap_or(("", front));
    is_word(net).then_some(Dsn { login, net, address, rest, has_scheme })
}

pub(super) fn is_go(text: &str) -> bool {
    split(text).is_some()
}

pub(super) fn read_go(text: &str, parts: &mut Parts) -> Result<(), TargetError> {
    let Some(Dsn { login, net, address, rest, has_scheme }) = split(text) else { return Ok(()) };
    parts.engine = Some(Engine::Mysql);
    match net {
        "" | "tcp" | "tcp4" | "tcp6" => {}
        "unix" => return Err(socket()),
        _ => return Err(invalid(AT, "host", "is reached by something else than TCP; write tcp(host:3306)")),
    }
    if has_scheme && login.contains('%') {
        let detail = "tools differ in whether a % is one behind mysql://; leave the scheme out, where it is, or give the parts one by one";
        return Err(invalid(AT, "percent-encoding", detail));
    }
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let (host, port) = match address.strip_prefix('[').and_then(|address| address.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':').unwrap_or(port)),
        None => address.split_once(':').unwrap_or((address, "")),
    };
    let (database, query) = rest.split_once('?').unwrap_or((rest, ""));
    if has_scheme {
        // Then it may as well be a URL, with brackets in its password.
        refuse_stray_at(!login.is_empty(), database, query)?;
    }
    parts.take_part("host", Meaning::Host, host)?;
    parts.take_part("port", Meaning::Port, port)?;
    parts.take_part("user", Meaning::User, user)?;
    parts.take_part("password", Meaning::Password, password)?;
    parts.take_part("database", Meaning::Database, &decode(database, "database")?)?;
    read_query(query, parts)
}
