//! A connection as a URL.

use kernel::Engine;
use percent_encoding::percent_decode_str;
use url::Url;

use super::super::target::{TargetError, TargetFields, invalid};
use super::gap::{is_gap, placeholder};
use super::parameters::{is_name, take_parameter};
use super::tls::AskedTls;
use super::{AT, several_hosts, socket};

pub(super) fn read_url(text: &str, asked: &mut AskedTls) -> Result<TargetFields, TargetError> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(invalid(AT, "malformed", "expected postgres://user:password@host:5432/database, or mysql://…"));
    };
    let engine = engine_of(scheme)?;
    check_authority(rest)?;
    // Of the scheme nothing more is needed; the drivers' own would be parsed by rules of their own.
    let url = Url::parse(&format!("db://{rest}")).map_err(|error| {
        let detail = match error {
            url::ParseError::InvalidPort => "the port is no number; a / ? or # of the password is written %2F %3F %23",
            _ => "host or port cannot be read; a / ? or # of the password is written %2F %3F %23",
        };
        invalid(AT, "malformed", detail)
    })?;
    if url.fragment().is_some() {
        return Err(invalid(AT, "malformed", "a # of the password is written %23"));
    }
    let host = url.host_str().unwrap_or_default();
    let mut fields = TargetFields {
        engine,
        host: Some(decode(host.trim_start_matches('[').trim_end_matches(']'), "host")?),
        port: url.port(),
        username: Some(decode(url.username(), "user")?),
        password: Some(decode(url.password().unwrap_or_default(), "password")?.into()),
        database: Some(decode(url.path().strip_prefix('/').unwrap_or_default(), "database")?),
        tls: None,
        ca_pem: None,
    };
    check_escapes(url.query().unwrap_or_default())?;
    for (name, value) in url.query_pairs() {
        take_parameter(&mut fields, asked, &name, &value)?;
    }
    Ok(fields)
}

/// The engine that a scheme names, also as frameworks write it (`postgresql+psycopg`, `mysql2`).
fn engine_of(scheme: &str) -> Result<Engine, TargetError> {
    let scheme = scheme.to_ascii_lowercase();
    match scheme.split_once('+').map_or(scheme.as_str(), |(scheme, _driver)| scheme) {
        "postgres" | "postgresql" | "postgis" => Ok(Engine::Postgresql),
        "mysql" | "mysql2" | "mariadb" => Ok(Engine::Mysql),
        "http" | "https" => Err(invalid(
            AT,
            "scheme",
            "is the address of a page or an API; copy the database's connection string, which begins with postgres:// or mysql://",
        )),
        _ => Err(invalid(AT, "scheme", "the scheme must be postgres:// or mysql://: no other database is supported")),
    }
}

/// What [`Url`] would not name: several hosts, and a socket in place of one.
fn check_authority(rest: &str) -> Result<(), TargetError> {
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
    if place.contains(',') {
        return Err(several_hosts());
    }
    let end = if place.starts_with('[') { place.find(']').map(|at| at + 1) } else { place.find(':') };
    let host = end.map_or(place, |end| &place[..end]);
    if is_gap(host) {
        return Err(placeholder("host"));
    }
    if place.starts_with('/') || place.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("%2f")) {
        return Err(socket());
    }
    Ok(())
}

fn decode(part: &str, what: &str) -> Result<String, TargetError> {
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
        let name = name.to_ascii_lowercase();
        decode(&name, "part behind the ?")?;
        // What is no parameter may be the end of a password.
        decode(value, if is_name(&name) { &name } else { "part behind the ?" })?;
    }
    Ok(())
}
