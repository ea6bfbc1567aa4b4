//! A connection as a URL.

use percent_encoding::percent_decode_str;
use url::form_urlencoded;

use super::super::target::{TargetError, invalid};
use super::gap::{is_called_so, is_gap, placeholder};
use super::parameters::{Meaning, meaning_of};
use super::parts::Parts;
use super::scheme::{engine_of, of_other};
use super::{AT, several_hosts, socket};

/// How what would end a part of a URL is written in one.
const RESERVED: &str = "a / ? # or @ of the password is written %2F %3F %23 %40";

/// Of what follows the `?` and is no parameter; a password with a question mark ends there, too.
pub(super) const UNKNOWN: &str =
    "what follows the ? is no parameter that is known here; leave it out, and write a ? of the password as %3F";

pub(super) fn read_url(text: &str, parts: &mut Parts) -> Result<(), TargetError> {
    let Some((scheme, rest)) = text.split_once("://") else {
        let scheme = text.split_once(':').map_or(text, |(scheme, _)| scheme);
        return Err(of_other(scheme).unwrap_or_else(|| {
            invalid(AT, "malformed", "expected postgres://user:password@host:5432/database, or mysql://…")
        }));
    };
    parts.engine = Some(engine_of(scheme)?);
    // Split by hand: a parser of URLs would not say which part it does not understand, and takes no URL without a host, whose host
    // may follow as a parameter.
    if rest.contains('#') {
        return Err(invalid(AT, "malformed", "a # of the password is written %23"));
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, place) = authority.rsplit_once('@').unwrap_or(("", authority));
    refuse_stray_at(authority.contains('@'), database, query)?;
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let (host, port) = read_place(place)?;
    parts.take_part("host", Meaning::Host, &decode(host, "host")?)?;
    parts.take_part("port", Meaning::Port, port)?;
    parts.take_part("user", Meaning::User, &decode(user, "user")?)?;
    parts.take_part("password", Meaning::Password, &decode(password, "password")?)?;
    parts.take_part("database", Meaning::Database, &decode(database, "database")?)?;
    read_query(query, parts)
}

/// The last `@` is the one in front of the host: where one follows what was taken for the host, a piece of the password was taken
/// for it. Behind the `?` of a URL without a login the user may have one, as Azure's do.
pub(super) fn refuse_stray_at(has_login: bool, database: &str, query: &str) -> Result<(), TargetError> {
    if database.contains('@') || (has_login && query.contains('@')) {
        return Err(invalid(AT, "malformed", format!("has an @ behind the host; {RESERVED}, and any other @ is %40")));
    }
    Ok(())
}

/// What stands behind the `?`, also where it was copied out of XML.
pub(super) fn read_query(query: &str, parts: &mut Parts) -> Result<(), TargetError> {
    check_escapes(query)?;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        parts.take(name.strip_prefix("amp;").unwrap_or(&name), &value)?;
    }
    Ok(())
}

/// Host and port, and by their names what they are not: several hosts, a socket, what a panel put in their place.
fn read_place(place: &str) -> Result<(&str, &str), TargetError> {
    if place.contains(',') {
        return Err(several_hosts());
    }
    let (host, behind) = match place.find(']') {
        Some(end) if place.starts_with('[') => place.split_at(end + 1),
        _ => place.find(':').map_or((place, ""), |at| place.split_at(at)),
    };
    if is_gap(host) || is_called_so("host", host) {
        return Err(placeholder("host"));
    }
    if host.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("%2f")) {
        return Err(socket());
    }
    if place.contains(['(', ')']) {
        return Err(invalid(AT, "host", "the host stands in brackets; write host:port without them"));
    }
    let port = match behind.strip_prefix(':') {
        Some(port) => port,
        None if behind.is_empty() => "",
        None => return Err(invalid(AT, "malformed", format!("host or port cannot be read; {RESERVED}"))),
    };
    if is_gap(port) || is_called_so("port", port) {
        return Err(placeholder("port"));
    }
    if port.contains(':') && place.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':') {
        return Err(invalid(AT, "malformed", "an IPv6 address stands in [brackets]"));
    }
    if port.bytes().all(|byte| byte.is_ascii_digit()) {
        Ok((host.trim_start_matches('[').trim_end_matches(']'), port))
    } else {
        Err(invalid(AT, "malformed", format!("the port is no number; {RESERVED}")))
    }
}

pub(super) fn decode(part: &str, what: &str) -> Result<String, TargetError> {
    let is_escape = |rest: &str| rest.len() >= 2 && rest.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit);
    if !part.split('%').skip(1).all(is_escape) {
        return Err(invalid(AT, "percent-encoding", format!("a % of the {what} is written %25")));
    }
    percent_decode_str(part)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| invalid(AT, "percent-encoding", format!("the {what} is not UTF-8 when decoded")))
}

/// Names the parameter whose escapes are none: decoding would leave them as they are.
fn check_escapes(query: &str) -> Result<(), TargetError> {
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        decode(name, "part behind the ?")?;
        // What is no parameter may be the end of a password.
        decode(value, meaning_of(name).map_or("part behind the ?", |(name, _)| name))?;
    }
    Ok(())
}
