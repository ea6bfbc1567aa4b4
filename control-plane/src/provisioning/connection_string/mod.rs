//! A connection string as owners paste it: out of a hosting panel, an `.env` file, a framework's settings.
//!
//! What is understood is taken, whatever it is dressed in ([`undress`]), as a URL ([`url`]), in PostgreSQL's own words
//! ([`keywords`]), as PHP ([`pdo`]), .NET ([`ado`]) or Go ([`go`]) write it, or as several lines of a file ([`lines`]); what is
//! not is refused by the name of its part. Nothing of the string itself is ever repeated: any part of it may be the password.

mod ado;
mod gap;
mod go;
mod keywords;
mod lines;
mod parameters;
mod parts;
mod pdo;
mod scheme;
mod tls;
mod undress;
mod url;

use kernel::Engine;
use secrecy::{ExposeSecret as _, SecretString};
use tenancy::TlsMode;

use self::ado::{is_ado, read_ado};
use self::gap::{is_gap, placeholder, refuse_placeholders};
use self::go::{is_go, read_go};
use self::keywords::{is_keywords, read_keywords};
use self::lines::{lines_of, read_lines};
use self::parts::Parts;
use self::pdo::{is_pdo, read_pdo};
use self::tls::AskedTls;
use self::undress::{Undressed, undress};
use self::url::read_url;
use super::target::{Target, TargetError, invalid};

pub(super) const AT: &str = "/connectionString";
const MAX_LEN: usize = 4096;

/// Of a string of Java's that has no user.
const JAVA_WITHOUT_USER: &str = "the user is missing, which in Java stands beside the string, as does the password; add \
                                 ?user=…&password=… to it, with & for the ? where it has one, or give the parts one by one";

impl Target {
    /// Reads `postgres://user:password@host:port/database?sslmode=…` or `mysql://…`, or any other form that drivers are given;
    /// mode and CA may come beside it. An `engine` that is given must be the string's, and is needed where the string does not
    /// say it.
    ///
    /// # Errors
    /// [`TargetError`] naming the part that is wrong.
    pub fn from_url(
        text: &SecretString,
        engine: Option<Engine>,
        tls: Option<TlsMode>,
        ca_pem: Option<String>,
    ) -> Result<Self, TargetError> {
        // Editors of Windows begin a file with a mark of its encoding.
        let text = text.expose_secret().trim_start_matches('\u{feff}').trim();
        if text.len() > MAX_LEN {
            return Err(invalid(AT, "too-long", format!("must have at most {MAX_LEN} characters")));
        }
        let mut parts = Parts::new(AskedTls { mode: tls, switch: None, is_checked: None, names_host: false });
        let lines = lines_of(text);
        let unknown = match lines.as_slice() {
            lines @ [_, _, ..] => read_lines(lines, &mut parts)?,
            [line] => read_line(line, &mut parts)?,
            [] => read_line(text, &mut parts)?,
        };
        let mut fields = parts.finish(engine, unknown)?;
        fields.ca_pem = ca_pem;
        refuse_placeholders(&fields)?;
        if fields.host.is_none() {
            return Err(invalid(AT, "host", "names no host"));
        }
        let mut target = Self::from_parts(fields).map_err(|error| match error {
            // That one is given beside the string.
            error @ TargetError::Invalid { pointer: "/caPem", .. } => error,
            error => error.at(AT),
        })?;
        target.is_text = true;
        Ok(target)
    }
}

/// Reads what stands in one line; answers with what its form says of words that are none.
fn read_line(text: &str, parts: &mut Parts) -> Result<&'static str, TargetError> {
    let Undressed { text, is_java } = undress(text)?;
    if text.is_empty() {
        return Err(invalid(AT, "required", "is empty"));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid(AT, "malformed", "must be one line"));
    }
    if is_gap(text) {
        return Err(placeholder("connection string"));
    }
    if is_java {
        parts.without_user = Some(JAVA_WITHOUT_USER);
    }
    if is_ado(text) {
        read_ado(text, parts).map(|()| ado::UNKNOWN)
    } else if is_pdo(text) {
        read_pdo(text, parts).map(|()| ado::UNKNOWN)
    } else if is_keywords(text) {
        parts.engine = Some(Engine::Postgresql);
        read_keywords(text, char::is_whitespace, parts).map(|()| keywords::UNKNOWN)
    } else if is_go(text) {
        read_go(text, parts).map(|()| url::UNKNOWN)
    } else {
        read_url(text, parts).map(|()| url::UNKNOWN)
    }
}

fn several_hosts() -> TargetError {
    invalid(AT, "host", "names several hosts; name one, the primary")
}

fn socket() -> TargetError {
    invalid(AT, "host", "names a socket, which is a place on the database's own machine; name a host")
}

#[cfg(test)]
mod tests;
