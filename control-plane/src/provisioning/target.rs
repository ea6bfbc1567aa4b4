//! What an owner types, and the addresses that we refuse to call.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kernel::Engine;
use problem::Problem;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use secrecy::{ExposeSecret as _, SecretString};
use tenancy::{Credential, TlsMode};

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);
const PRIVATE_ADDRESS: &str =
    "the host is at a private, loopback or link-local address, which this installation does not connect to";
const UNRESOLVABLE: &str = "the host's name does not resolve; check its spelling";
const PLAIN_REFUSED: &str = "a connection without TLS is not allowed; use require, verify-ca or verify-full";

/// A database as it was typed. Whether its host may be called, and with how much of TLS, [`Target::resolve`] says.
pub struct Target {
    pub(super) engine: Engine,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) username: String,
    pub(super) password: SecretString,
    pub(super) database: String,
    pub(super) tls: Option<TlsMode>,
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
    /// Checks the parts of a connection.
    ///
    /// # Errors
    /// [`TargetError`] naming the part that is wrong.
    pub fn from_fields(fields: TargetFields) -> Result<Self, TargetError> {
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
        let is_name = kernel::Hostname::parse(&host).is_ok() || host.parse::<IpAddr>().is_ok();
        if !is_name {
            return Err(invalid("/host", "host", "the host must be a hostname or an IP address"));
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
        if fields.ca_pem.as_ref().is_some_and(|pem| pem.len() > 64 * 1024 || !holds_authorities(pem)) {
            return Err(invalid(
                "/caPem",
                "malformed",
                "the CA must be one or several certificates as PEM, whole from BEGIN to END CERTIFICATE, at most 64 KiB",
            ));
        }
        let TargetFields { engine, tls, ca_pem, .. } = fields;
        Ok(Self { engine, host, port, username, password, database, tls, ca_pem, is_text: false })
    }

    /// Looks up where the host is, refuses one that may not be called, and settles how much of TLS is asked for: without a
    /// word about it, none where every address is a private one, since a certificate is seldom found there, and a checked
    /// certificate everywhere else. Private hosts and plain connections are for installations that allow them.
    ///
    /// # Errors
    /// [`TargetError::PlainRefused`], and those of [`refuse_private`].
    pub async fn resolve(self, allow_private: bool) -> Result<Credential, TargetError> {
        let is_text = self.is_text;
        let resolved = self.resolve_parts(allow_private).await;
        resolved.map_err(|error| if is_text { error.at(super::connection_string::AT) } else { error })
    }

    async fn resolve_parts(self, allow_private: bool) -> Result<Credential, TargetError> {
        if self.tls == Some(TlsMode::Disable) && !allow_private {
            return Err(TargetError::PlainRefused);
        }
        refuse_private(&self.host, self.port, allow_private).await?;
        let tls = if let Some(tls) = self.tls {
            tls
        } else if allow_private && self.ca_pem.is_none() && is_private(&self.host, self.port).await? {
            TlsMode::Disable
        } else {
            TlsMode::VerifyFull
        };
        let Self { engine, host, port, username, password, database, ca_pem, .. } = self;
        Ok(Credential { engine, host, port, username, password, database, tls, ca_pem })
    }
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
const fn default_port(engine: Engine) -> u16 {
    match engine {
        Engine::Mysql => 3306,
        _ => 5432,
    }
}

/// Resolves `host` and refuses it when any of its addresses is not a public one: we are no way into our own network.
///
/// # Errors
/// [`TargetError::PrivateAddress`] or [`TargetError::Unresolvable`].
pub async fn refuse_private(host: &str, port: u16, allow_private: bool) -> Result<(), TargetError> {
    if allow_private {
        return Ok(());
    }
    resolve(host, port, allow_private).await.map(|_| ())
}

/// The addresses of `host`, every one of them allowed: who connects to one of these connects to what was checked, whatever
/// the name says a moment later.
///
/// # Errors
/// [`TargetError::PrivateAddress`] or [`TargetError::Unresolvable`].
pub async fn resolve(host: &str, port: u16, allow_private: bool) -> Result<Vec<SocketAddr>, TargetError> {
    let addresses = addresses_of(host, port).await?;
    if allow_private || addresses.iter().all(|address| is_public(address.ip())) {
        Ok(addresses)
    } else {
        Err(TargetError::PrivateAddress)
    }
}

/// Whether no address of `host` is of the public internet.
async fn is_private(host: &str, port: u16) -> Result<bool, TargetError> {
    Ok(!addresses_of(host, port).await?.iter().any(|address| is_public(address.ip())))
}

/// Where `host` is: at one address at least.
async fn addresses_of(host: &str, port: u16) -> Result<Vec<SocketAddr>, TargetError> {
    let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, port))).await;
    let Ok(Ok(addresses)) = found else { return Err(TargetError::Unresolvable) };
    let addresses: Vec<SocketAddr> = addresses.collect();
    if addresses.is_empty() { Err(TargetError::Unresolvable) } else { Ok(addresses) }
}

/// Whether `address` is of the public internet (IANA's special-purpose registries; embedded IPv4 counts as IPv4).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            let is_special = v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_documentation()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0 && c == 0)
                || (a == 198 && (18..20).contains(&b));
            !is_special
        }
        IpAddr::V6(v6) => {
            let segments = v6.segments();
            let embedded = match segments {
                // ::ffff:a.b.c.d, ::a.b.c.d and NAT64's 64:ff9b::a.b.c.d.
                [0, 0, 0, 0, 0, 0xffff | 0, high, low] if (high, low) != (0, 0) && (high, low) != (0, 1) => {
                    Some((high, low))
                }
                [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some((high, low)),
                // 6to4 carries its IPv4 in front.
                [0x2002, high, low, ..] => Some((high, low)),
                _ => None,
            };
            if let Some((high, low)) = embedded {
                return is_public(IpAddr::V4(((u32::from(high) << 16) | u32::from(low)).into()));
            }
            // Only 2000::/3 is given out as global unicast; of that, documentation and Teredo are not hosts.
            let is_global = segments[0] & 0xe000 == 0x2000;
            let is_special =
                (segments[0] == 0x2001 && (segments[1] == 0x0db8 || segments[1] == 0)) || segments[0] == 0x3fff;
            is_global && !is_special
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
    use super::{Target, TargetError, is_public};
    use tenancy::TlsMode;

    fn parse(text: &str) -> Result<Target, TargetError> {
        Target::from_url(&text.to_owned().into(), None, None, None)
    }

    async fn tls(text: &str, allow_private: bool) -> Result<TlsMode, &'static str> {
        let target = parse(text).map_err(|error| error.code())?;
        target.resolve(allow_private).await.map(|credential| credential.tls).map_err(|error| error.code())
    }

    #[tokio::test]
    async fn a_public_host_is_spoken_to_in_the_clear_only_when_that_is_asked_for_and_allowed() {
        // No packet is sent: an address is where it says.
        for host in ["8.8.8.8", "[2606:4700::1111]", "[::ffff:8.8.8.8]"] {
            let [silent, plain] = ["", "?sslmode=disable"].map(|rest| format!("postgres://a:b@{host}/d{rest}"));
            for allow_private in [false, true] {
                assert_eq!(tls(&silent, allow_private).await, Ok(TlsMode::VerifyFull), "{host}");
            }
            assert_eq!(tls(&plain, true).await, Ok(TlsMode::Disable), "{host}");
            assert_eq!(tls(&plain, false).await, Err("tls-required"), "{host}");
        }
        for host in ["127.0.0.1", "10.1.2.3", "[::1]", "[fd00::1]", "localhost"] {
            let [silent, asked] = ["", "?sslmode=require"].map(|rest| format!("postgres://a:b@{host}/d{rest}"));
            assert_eq!(tls(&silent, true).await, Ok(TlsMode::Disable), "{host}");
            assert_eq!(tls(&asked, true).await, Ok(TlsMode::Require), "{host}");
            assert_eq!(tls(&silent, false).await, Err("private-address"), "{host}");
        }
    }

    #[test]
    fn only_public_addresses_are_called() {
        for address in ["8.8.8.8", "2606:4700::1111", "64:ff9b::8.8.8.8"] {
            assert!(is_public(address.parse().expect("an address")), "{address}");
        }
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "2002:7f00:1::",
            "2001:db8::1",
            "::127.0.0.1",
        ] {
            assert!(!is_public(address.parse().expect("an address")), "{address}");
        }
    }
}
