//! What an owner types, and the addresses that we refuse to call.

use std::net::{IpAddr, SocketAddr};

use kernel::Engine;
use kernel::address::is_public;
use problem::Problem;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use secrecy::{ExposeSecret as _, SecretString};
use tenancy::{AddressError, Credential, Reach, TlsMode};

const PRIVATE_ADDRESS: &str =
    "the host is at a private, loopback or link-local address, which this installation does not connect to";
const UNRESOLVABLE: &str = "the host's name does not resolve; check its spelling";
const PLAIN_REFUSED: &str = "a connection without TLS is not allowed; use require, verify-ca or verify-full";

/// Databases that belong to a server itself. PostgreSQL's `postgres` is anybody's.
const OF_MYSQL: [&str; 4] = ["mysql", "information_schema", "performance_schema", "sys"];
const OF_POSTGRES: [&str; 2] = ["template0", "template1"];

/// A database as it was typed. Whether its host may be called, and with how much of TLS, [`Target::resolve`] says.
pub struct Target {
    pub(crate) engine: Engine,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) username: String,
    pub(crate) password: SecretString,
    pub(crate) database: String,
    pub(crate) tls: Option<TlsMode>,
    ca_pem: Option<String>,
    /// Whether it was typed as one text: then that is the field in which anything about it is wrong.
    pub(super) is_text: bool,
}

/// The parts of a connection, as an owner types them one by one.
pub struct TargetFields {
    pub engine: Engine,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub username: Option<String>,
    pub password: Option<SecretString>,
    pub database: Option<String>,
    pub tls: Option<TlsMode>,
    pub ca_pem: Option<String>,
}

/// What is wrong with what was typed. Never repeats it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("{detail}")]
    Invalid { pointer: &'static str, code: &'static str, detail: String },
    #[error("the host is at a private, loopback or link-local address")]
    PrivateAddress,
    #[error("the host's name does not resolve")]
    Unresolvable,
    #[error("a connection without TLS is not allowed")]
    PlainRefused,
}

pub(super) fn invalid(pointer: &'static str, code: &'static str, detail: impl Into<String>) -> TargetError {
    TargetError::Invalid { pointer, code, detail: detail.into() }
}

impl TargetError {
    /// What a client tells it by.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid { code, .. } => code,
            Self::PrivateAddress => "private-address",
            Self::Unresolvable => "unresolvable",
            Self::PlainRefused => "tls-required",
        }
    }

    /// The same, at the field `pointer`.
    pub(super) fn at(self, pointer: &'static str) -> Self {
        let code = self.code();
        let detail = match self {
            Self::Invalid { detail, .. } => detail,
            Self::PrivateAddress => PRIVATE_ADDRESS.to_owned(),
            Self::Unresolvable => UNRESOLVABLE.to_owned(),
            Self::PlainRefused => PLAIN_REFUSED.to_owned(),
        };
        Self::Invalid { pointer, code, detail }
    }
}

impl Target {
    /// Checks the parts of a connection as somebody typed them one by one. The blanks around them came along when they were
    /// copied.
    ///
    /// # Errors
    /// [`TargetError`] naming the part that is wrong.
    pub fn from_fields(fields: TargetFields) -> Result<Self, TargetError> {
        let trimmed = |text: Option<String>| text.map(|text| text.trim().to_owned());
        Self::from_parts(TargetFields {
            host: trimmed(fields.host),
            username: trimmed(fields.username),
            password: fields.password.map(without_line_break),
            database: trimmed(fields.database),
            ..fields
        })
    }

    /// Checks the parts of a connection, each of which is as it is meant.
    ///
    /// # Errors
    /// [`TargetError`] naming the part that is wrong.
    pub(super) fn from_parts(fields: TargetFields) -> Result<Self, TargetError> {
        let text = |value: Option<String>, pointer, what: &str| {
            let value = value.unwrap_or_default();
            match value.as_str() {
                "" => Err(invalid(pointer, "required", format!("the {what} is missing"))),
                text if text.len() > 255 || text.chars().any(char::is_control) => {
                    Err(invalid(pointer, "malformed", format!("the {what} is not valid")))
                }
                _ => Ok(value),
            }
        };
        let host = text(fields.host, "/host", "host")?;
        // A path would make the driver open a socket in our own file system.
        if !(is_name(&host) || host.parse::<IpAddr>().is_ok()) {
            return Err(invalid("/host", "host", why_no_host(&host)));
        }
        let port = fields.port.unwrap_or(default_port(fields.engine));
        if port == 0 {
            return Err(invalid("/port", "port", "the port must be 1 to 65535"));
        }
        let username = text(fields.username, "/username", "user")?;
        let database = text(fields.database, "/database", "database")?;
        let password = fields.password.unwrap_or_default();
        if password.expose_secret().len() > 1024 || password.expose_secret().contains('\0') {
            return Err(invalid("/password", "malformed", "the password is not valid"));
        }
        let ca_pem = fields.ca_pem.filter(|pem| !pem.trim().is_empty()).map(read_ca).transpose()?;
        if ca_pem.is_some() && fields.tls == Some(TlsMode::Disable) {
            return Err(invalid(
                "/caPem",
                "contradiction",
                "a CA is of no use without TLS; leave it out, or ask for verify-full",
            ));
        }
        let TargetFields { engine, tls, .. } = fields;
        Ok(Self { engine, host, port, username, password, database, tls, ca_pem, is_text: false })
    }

    /// The same for a store to live in: not a database that belongs to the server itself, in which nobody should be given
    /// rights.
    ///
    /// # Errors
    /// [`TargetError::Invalid`].
    pub fn for_store(self) -> Result<Self, TargetError> {
        let is_servers_own = match self.engine {
            // The server's file system may tell capitals apart; for these names nobody has a use in either.
            Engine::Mysql => OF_MYSQL.iter().any(|name| self.database.eq_ignore_ascii_case(name)),
            _ => OF_POSTGRES.contains(&self.database.as_str()),
        };
        if !is_servers_own {
            return Ok(self);
        }
        let pointer = if self.is_text { super::connection_string::AT } else { "/database" };
        Err(invalid(pointer, "system-database", "the database belongs to the server itself; create one for the store"))
    }

    /// Looks up where the host is, refuses one that may not be called, and settles how much of TLS is asked for: without a
    /// word about it, none where every address is a private one, since a certificate is seldom found there, and a checked
    /// certificate everywhere else. Private hosts and plain connections are for installations that allow them.
    ///
    /// # Errors
    /// [`TargetError::PlainRefused`], [`TargetError::PrivateAddress`] or [`TargetError::Unresolvable`].
    pub async fn resolve(self, reach: Reach) -> Result<Credential, TargetError> {
        let is_text = self.is_text;
        let resolved = self.resolve_parts(reach).await;
        resolved.map_err(|error| if is_text { error.at(super::connection_string::AT) } else { error })
    }

    async fn resolve_parts(self, reach: Reach) -> Result<Credential, TargetError> {
        self.check_plain(reach)?;
        // Nothing hangs on the addresses: they are looked up when it is connected.
        if reach == Reach::Anywhere && (self.tls.is_some() || self.ca_pem.is_some()) {
            return Ok(self.settle(&[], reach));
        }
        let addresses = reach.addresses(&self.host, self.port).await?;
        Ok(self.settle(&addresses, reach))
    }

    /// Whether as much of TLS is asked for as the installation wants.
    ///
    /// # Errors
    /// [`TargetError::PlainRefused`].
    pub fn check_plain(&self, reach: Reach) -> Result<(), TargetError> {
        if self.tls == Some(TlsMode::Disable) && reach == Reach::Public {
            Err(TargetError::PlainRefused)
        } else {
            Ok(())
        }
    }

    /// What connects to it, its host being at these addresses.
    pub fn settle(self, addresses: &[SocketAddr], reach: Reach) -> Credential {
        let is_private = || !addresses.iter().any(|address| is_public(address.ip()));
        let tls = if let Some(tls) = self.tls {
            tls
        } else if reach != Reach::Public && self.ca_pem.is_none() && is_private() {
            TlsMode::Disable
        } else {
            TlsMode::VerifyFull
        };
        let Self { engine, host, port, username, password, database, ca_pem, .. } = self;
        Credential { engine, host, port, username, password, database, tls, ca_pem }
    }
}

/// A password without the line break that came along when it was copied. Blanks may be its own.
fn without_line_break(password: SecretString) -> SecretString {
    let text = password.expose_secret();
    match text.strip_suffix("\r\n").or_else(|| text.strip_suffix(['\n', '\r'])) {
        Some(text) => text.into(),
        None => password,
    }
}

/// Whether a server may be called so. Servers inside a network have names with an underscore, which no site has.
fn is_name(host: &str) -> bool {
    kernel::Hostname::parse(&host.replace('_', "x")).is_ok()
}

/// What is wrong with what stands in place of a host.
fn why_no_host(text: &str) -> &'static str {
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if text.contains("://") {
        "the host must be a hostname or an IP address; a whole connection string goes into connectionString"
    } else if text.rsplit_once(':').is_some_and(|(_, port)| is_port(port)) {
        "the host must be a hostname or an IP address; the port goes into port"
    } else {
        "the host must be a hostname or an IP address"
    }
}

/// The certificates of a text, laid out as PEM.
fn read_ca(pem: String) -> Result<String, TargetError> {
    let refused = |code, detail| Err(invalid("/caPem", code, detail));
    if pem.contains("PRIVATE KEY-----") {
        return refused(
            "private-key",
            if pem.contains("BEGIN CERTIFICATE-----") {
                "a private key stands beside the certificate; keep it, and send the certificate alone"
            } else {
                "this is a private key; keep it, and send the certificate"
            },
        );
    }
    if pem.len() <= 64 * 1024 {
        if holds_authorities(&pem) {
            return Ok(pem);
        }
        if let Some(pem) = laid_out(&pem).filter(|pem| holds_authorities(pem)) {
            return Ok(pem);
        }
    }
    refused(
        "malformed",
        "the CA must be one or several certificates as PEM, whole from BEGIN to END CERTIFICATE, at most 64 KiB",
    )
}

/// PEM again of what became one line in a file of settings, a blank or `\n` in place of each break; nothing when a certificate of it
/// does not end.
fn laid_out(pem: &str) -> Option<String> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let pem = pem.replace("\\r", "\n").replace("\\n", "\n");
    let certificates = pem.split(BEGIN).skip(1).map(|text| {
        let (inner, _) = text.split_once(END)?;
        let inner: String = inner.split_whitespace().collect();
        Some(format!("{BEGIN}\n{inner}\n{END}\n"))
    });
    certificates.collect()
}

/// Whether a text is certificates, each of which can be an authority. What stands around them, as `openssl` writes it, is
/// nobody's business.
fn holds_authorities(pem: &str) -> bool {
    let mut authorities = rustls::RootCertStore::empty();
    let is_sound = CertificateDer::pem_slice_iter(pem.as_bytes())
        .all(|certificate| certificate.is_ok_and(|certificate| authorities.add(certificate).is_ok()));
    is_sound && !authorities.is_empty()
}

/// Where servers of an engine listen when nothing else is said.
pub const fn default_port(engine: Engine) -> u16 {
    match engine {
        Engine::Mysql => 3306,
        _ => 5432,
    }
}

impl From<AddressError> for TargetError {
    fn from(error: AddressError) -> Self {
        match error {
            AddressError::Private => Self::PrivateAddress,
            AddressError::Unresolvable => Self::Unresolvable,
        }
    }
}

impl From<TargetError> for Problem {
    fn from(error: TargetError) -> Self {
        match error {
            TargetError::Invalid { pointer, code, detail } => Self::invalid().field(pointer, code, detail),
            error @ TargetError::PrivateAddress => Self::invalid().field("/host", error.code(), PRIVATE_ADDRESS),
            error @ TargetError::Unresolvable => Self::invalid().field("/host", error.code(), UNRESOLVABLE),
            error @ TargetError::PlainRefused => Self::invalid().field("/tls", error.code(), PLAIN_REFUSED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Target, TargetError, TargetFields};
    use kernel::Engine;
    use secrecy::ExposeSecret as _;
    use tenancy::{Reach, TlsMode};

    /// Of an authority that signed nothing.
    const CA: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBcTCCARegAwIBAgIURBnmKwqtDBNTpjD9SlmcaTFTpK4wCgYIKoZIzj0EAwIw\n\
DTELMAkGA1UEAwwCY2EwIBcNMjYxMTMwMDQ0ODI0WhgPMjEyNjExMDYwNDQ4MjRa\n\
MA0xCzAJBgNVBAMMAmNhMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEbB6ZrUEj\n\
eZn8KOF1hCKdGlJrGWUa2DRX+Vvdgorp4Ee+pk+764HQPgz0uuWA3Dm/SYYuizo/\n\
EUT1axPI9W3C3aNTMFEwHQYDVR0OBBYEFBJxXk+tMZcQPxxmunygsY+/5nsfMB8G\n\
A1UdIwQYMBaAFBJxXk+tMZcQPxxmunygsY+/5nsfMA8GA1UdEwEB/wQFMAMBAf8w\n\
CgYIKoZIzj0EAwIDSAAwRQIgHvS32pqe5P09nErAZ59/+RPz7OjcUm/ow/QDQXoT\n\
mLkCIQDgwyE0KmeaFvdr8rN6PDMh2/7+ggLdD6qALO9LhT2uGQ==\n\
-----END CERTIFICATE-----\n";

    fn fields(host: &str) -> TargetFields {
        TargetFields {
            engine: Engine::Postgresql,
            host: Some(host.to_owned()),
            port: None,
            username: Some("a".to_owned()),
            password: None,
            database: Some("d".to_owned()),
            tls: None,
            ca_pem: None,
        }
    }

    fn parse(text: &str) -> Result<Target, TargetError> {
        Target::from_url(&text.to_owned().into(), None, None, None)
    }

    #[test]
    fn what_stands_in_place_of_a_host_is_told_where_it_goes() {
        for (host, says) in [
            ("db.example.com:5432", "the port goes into port"),
            ("[2001:db8::1]:5432", "the port goes into port"),
            ("postgres://a:b@db.example.com/shop", "goes into connectionString"),
            ("jdbc:mysql://db.example.com:3306", "goes into connectionString"),
            ("db example", "must be a hostname"),
            ("db_1/x", "must be a hostname"),
        ] {
            let Err(TargetError::Invalid { pointer: "/host", code: "host", detail }) =
                Target::from_fields(fields(host))
            else {
                panic!("{host}");
            };
            assert!(detail.contains(says) && !detail.contains(host), "{host}: {detail}");
        }
        for host in ["db_1.internal", "_db", "db", "127.0.0.1"] {
            assert_eq!(Target::from_fields(fields(host)).map(|target| target.host).as_deref(), Ok(host));
        }
    }

    #[test]
    fn blanks_around_a_part_that_was_typed_by_itself_came_along() {
        let text = |text: &str| Some(text.to_owned());
        for (password, meant) in
            [(" p \n", " p "), ("p\r\n", "p"), ("p\n\n", "p\n"), ("p\r", "p"), ("\n", ""), ("p ", "p ")]
        {
            let target = Target::from_fields(TargetFields {
                username: text("\ta "),
                password: Some(password.into()),
                database: text("d\n"),
                ca_pem: text(" \n"),
                ..fields(" 127.0.0.1 ")
            })
            .expect("valid");
            assert_eq!((target.host.as_str(), target.username.as_str()), ("127.0.0.1", "a"));
            assert_eq!((target.database.as_str(), target.ca_pem.as_deref()), ("d", None));
            assert_eq!(target.password.expose_secret(), meant);
        }
        let blank = Target::from_fields(TargetFields { username: text(" "), ..fields("db.example.com") });
        assert!(matches!(blank, Err(TargetError::Invalid { pointer: "/username", code: "required", .. })));
        // In a string they are written on purpose.
        assert_eq!(parse("postgres://%20a:b@h.example/d%20").map(|target| target.username).as_deref(), Ok(" a"));
    }

    #[test]
    fn a_ca_is_read_when_it_is_whole_and_a_key_is_none() {
        let ca = |pem: String| {
            let target = Target::from_fields(TargetFields { ca_pem: Some(pem), ..fields("db.example.com") });
            target.map(|target| target.ca_pem.expect("one was given"))
        };
        assert_eq!(ca(CA.to_owned()).as_deref(), Ok(CA));
        let inner = |pem: &str| pem.split_whitespace().collect::<String>();
        for broken in [
            CA.replace('\n', " "),
            CA.replace('\n', "\\n"),
            CA.replace('\n', "\\r\\n"),
            format!("\"{}\"", CA.trim().replace('\n', "\\n")),
            CA.repeat(2).replace('\n', " "),
        ] {
            let read = ca(broken.clone()).unwrap_or_else(|error| panic!("{broken}: {error}"));
            let times = broken.matches("BEGIN").count();
            assert_eq!(inner(&read), inner(CA).repeat(times), "{broken}");
        }
        let half = CA[..CA.len() / 2].replace('\n', " ");
        let key = CA.replace("CERTIFICATE", "EC PRIVATE KEY");
        for (pem, code, says) in [
            (half.clone(), "malformed", "whole from BEGIN"),
            (format!("{} {half}", CA.replace('\n', " ")), "malformed", "whole from BEGIN"),
            (CA.replace("MIIB", "MIIC").replace('\n', " "), "malformed", "whole from BEGIN"),
            (key.clone(), "private-key", "this is a private key; keep it"),
            (key.replace('\n', "\\n"), "private-key", "send the certificate"),
            (format!("{CA}{key}"), "private-key", "the certificate alone"),
        ] {
            let Err(TargetError::Invalid { pointer: "/caPem", code: found, detail }) = ca(pem.clone()) else {
                panic!("{pem}");
            };
            assert!(found == code && detail.contains(says), "{pem}: {found}: {detail}");
        }
    }

    async fn tls(text: &str, reach: Reach) -> Result<TlsMode, &'static str> {
        let target = parse(text).map_err(|error| error.code())?;
        target.resolve(reach).await.map(|credential| credential.tls).map_err(|error| error.code())
    }

    #[tokio::test]
    async fn a_public_host_is_spoken_to_in_the_clear_only_when_that_is_asked_for_and_allowed() {
        // No packet is sent: an address is where it says.
        for host in ["8.8.8.8", "[2606:4700::1111]", "[::ffff:8.8.8.8]"] {
            let [silent, plain] = ["", "?sslmode=disable"].map(|rest| format!("postgres://a:b@{host}/d{rest}"));
            for reach in [Reach::Public, Reach::Anywhere] {
                assert_eq!(tls(&silent, reach).await, Ok(TlsMode::VerifyFull), "{host}");
            }
            assert_eq!(tls(&plain, Reach::Anywhere).await, Ok(TlsMode::Disable), "{host}");
            assert_eq!(tls(&plain, Reach::Public).await, Err("tls-required"), "{host}");
        }
        for host in ["127.0.0.1", "10.1.2.3", "[::1]", "[fd00::1]", "localhost"] {
            let [silent, asked] = ["", "?sslmode=require"].map(|rest| format!("postgres://a:b@{host}/d{rest}"));
            assert_eq!(tls(&silent, Reach::Anywhere).await, Ok(TlsMode::Disable), "{host}");
            assert_eq!(tls(&asked, Reach::Anywhere).await, Ok(TlsMode::Require), "{host}");
            assert_eq!(tls(&silent, Reach::Public).await, Err("private-address"), "{host}");
        }
    }
}
