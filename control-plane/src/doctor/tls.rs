//! The line of encryption: a handshake of our own, judged as the drivers would, and what the certificate says of itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use kernel::Engine;
use kernel::address::is_public;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tenancy::{Credential, TlsMode};
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::TlsConnector;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::network::Reached;
use super::peer::Peer;
use super::report::{Note, Outcome};
use super::supabase;

/// A certificate that ends within so many days is worth a word.
const SOON_DAYS: i64 = 14;
/// So many of a certificate's names are shown, each of them this long.
const MAX_NAMES: usize = 8;
const MAX_TEXT: usize = 120;

/// Looks at TLS as far as it is asked for.
pub(super) async fn shake(credential: &Credential, reached: Reached, now: DateTime<Utc>) -> Outcome<()> {
    let (Peer::Postgres { offers_tls } | Peer::MySql { offers_tls }) = reached.peer else {
        // It has refused already; the login says why.
        return Ok((Note::skipped("Not looked at, because the server refuses before it speaks of TLS."), ()));
    };
    match (credential.tls, offers_tls) {
        (TlsMode::Disable, offers) => Ok((plain(credential, &reached, offers), ())),
        (_, false) => Err(Note::failed(
            "no-tls",
            "The server offers no TLS, and it is asked for.",
            match credential.engine {
                Engine::Mysql => {
                    "Switch it on: set ssl_cert and ssl_key in the server's configuration, and restart it."
                }
                _ => "Switch it on: ssl = on with ssl_cert_file and ssl_key_file in postgresql.conf, and reload it.",
            },
        )),
        (_, true) => {
            let seen = handshake(credential, reached).await?;
            judge(credential, &seen, now).map(|note| (note, ()))
        }
    }
}

fn plain(credential: &Credential, reached: &Reached, offers_tls: bool) -> Note {
    let is_public = reached.stream.peer_addr().is_ok_and(|address| is_public(address.ip()));
    let offer = if offers_tls { "The server offers TLS." } else { "The server offers none." };
    let detail = format!("Without TLS. {offer}");
    if is_public {
        let advice = match credential.engine {
            Engine::Mysql => "Ask for TLS: ssl-mode=VERIFY_IDENTITY.",
            _ => "Ask for TLS: sslmode=verify-full.",
        };
        return Note::warning("not-encrypted", format!("{detail} Passwords and data go through the open net."), advice);
    }
    Note::passed(detail)
}

/// What a handshake has shown.
struct Seen {
    version: &'static str,
    verdict: Result<(), CertificateError>,
    certificate: Option<Shown>,
}

/// What a certificate says of itself, made fit to be shown.
struct Shown {
    issuer: String,
    signs_itself: bool,
    begins: DateTime<Utc>,
    ends: DateTime<Utc>,
    names: Vec<String>,
}

async fn handshake(credential: &Credential, Reached { mut stream, .. }: Reached) -> Result<Seen, Note> {
    let failed = |what: &str| {
        Note::failed(
            "tls",
            format!("The TLS handshake failed: {what}."),
            "Check that the server speaks TLS 1.2 or later, asks for no certificate of ours, and that no proxy stands between.",
        )
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let witness = Arc::new(Witness::new(Arc::clone(&provider), credential.ca_pem.as_deref())?);
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| failed("no common version"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::<Witness>::clone(&witness))
        .with_no_client_auth();
    let name =
        ServerName::try_from(credential.host.clone()).map_err(|_| failed("the host is no name for a certificate"))?;
    if credential.engine == Engine::Mysql && stream.write_all(&mysql_asks_for_tls()).await.is_err() {
        return Err(failed("the connection broke"));
    }
    let stream = match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => stream,
        Err(error) => return Err(failed(told(&error))),
    };
    let version = match stream.get_ref().1.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
        _ => "TLS 1.3",
    };
    let (verdict, certificate) = witness.said();
    Ok(Seen { version, verdict, certificate })
}

/// The cause in plain words, and nothing of what was received.
fn told(error: &std::io::Error) -> &'static str {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(_)) => "the server refused it",
        Some(rustls::Error::PeerIncompatible(_)) => "there is no version or cipher that both know",
        Some(rustls::Error::InvalidCertificate(_)) => "the certificate cannot be read, or does not fit its key",
        Some(_) => "what came is no TLS",
        None => "the connection broke",
    }
}

/// Protocol 4.1, TLS, and how the login will be asked for; then 16 MB, utf8mb4, and what is left empty.
fn mysql_asks_for_tls() -> Vec<u8> {
    let mut packet = vec![32, 0, 0, 1];
    packet.extend((0x0000_0200_u32 | 0x0000_0800 | 0x0000_8000 | 0x0008_0000).to_le_bytes());
    packet.extend(0x0100_0000_u32.to_le_bytes());
    packet.push(45);
    packet.extend([0; 23]);
    packet
}

/// What is to be thought of a certificate, and the certificate.
type Testimony = (Result<(), CertificateError>, Vec<u8>);

/// Notes the certificate and what is to be thought of it, and lets the handshake go on.
#[derive(Debug)]
struct Witness {
    inner: Arc<WebPkiServerVerifier>,
    seen: Mutex<Option<Testimony>>,
}

impl Witness {
    /// Trusts what the drivers trust: the public authorities, and the one that was given.
    fn new(provider: Arc<CryptoProvider>, ca_pem: Option<&str>) -> Result<Self, Note> {
        let unreadable = || {
            Note::failed(
                "ca-unreadable",
                "The CA that was given cannot be read.",
                "Give it as PEM: from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----, line by line.",
            )
        };
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        for certificate in CertificateDer::pem_slice_iter(ca_pem.unwrap_or_default().as_bytes()) {
            roots.add(certificate.map_err(|_| unreadable())?).map_err(|_| unreadable())?;
        }
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(Self { inner: inner.map_err(|_| unreadable())?, seen: Mutex::new(None) })
    }

    fn said(&self) -> (Result<(), CertificateError>, Option<Shown>) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((verdict, certificate)) = seen else { return (Err(CertificateError::BadEncoding), None) };
        (verdict, Shown::read(&certificate))
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let judged = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let verdict = match judged {
            Ok(_) => Ok(()),
            Err(rustls::Error::InvalidCertificate(wrong)) => Err(wrong),
            Err(_) => Err(CertificateError::BadEncoding),
        };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some((verdict, end_entity.to_vec()));
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl Shown {
    fn read(certificate: &[u8]) -> Option<Self> {
        let inside = Certificate::from_der(certificate).ok()?.tbs_certificate;
        let at = |time: x509_cert::time::Time| {
            DateTime::from_timestamp(i64::try_from(time.to_unix_duration().as_secs()).ok()?, 0)
        };
        let names = inside.get::<SubjectAltName>().ok().flatten().map(|(_, names)| names.0).unwrap_or_default();
        let names = names.iter().filter_map(name_of).map(|name| clean(&name)).collect();
        Some(Self {
            issuer: clean(&inside.issuer.to_string()),
            signs_itself: inside.issuer == inside.subject,
            begins: at(inside.validity.not_before)?,
            ends: at(inside.validity.not_after)?,
            names,
        })
    }

    fn names(&self) -> String {
        match self.names.as_slice() {
            [] => "no host".to_owned(),
            names => {
                let more = if names.len() > MAX_NAMES { ", ..." } else { "" };
                format!("{}{more}", names[..names.len().min(MAX_NAMES)].join(", "))
            }
        }
    }
}

fn name_of(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        GeneralName::IpAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(bytes.as_bytes()).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));
            let v6 = || <[u8; 16]>::try_from(bytes.as_bytes()).map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)));
            v4.or_else(|_| v6()).ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

/// Words of a stranger's, short and in one line.
fn clean(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(MAX_TEXT).collect()
}

/// What is to be said of what was seen, as much of it checked as was asked for.
fn judge(credential: &Credential, seen: &Seen, now: DateTime<Utc>) -> Result<Note, Note> {
    let mode = match credential.tls {
        TlsMode::Disable => "disable",
        TlsMode::Require => "require",
        TlsMode::VerifyCa => "verify-ca",
        TlsMode::VerifyFull => "verify-full",
    };
    let day = |time: DateTime<Utc>| time.format("%Y-%m-%d").to_string();
    let shown = seen.certificate.as_ref().map_or_else(
        || "The certificate cannot be read.".to_owned(),
        |certificate| {
            let Shown { issuer, begins, ends, .. } = certificate;
            let (begins, ends) = (day(*begins), day(*ends));
            format!("Certificate for {}, issued by {issuer}, valid from {begins} to {ends}.", certificate.names())
        },
    );
    let detail = format!("{}, {mode}. {shown}", seen.version);
    let (code, what, advice) = match (&seen.verdict, credential.tls) {
        (Ok(()), _) => {
            let ends = seen.certificate.as_ref().map(|certificate| certificate.ends);
            return Ok(match ends.filter(|ends| *ends - now < chrono::Duration::days(SOON_DAYS)) {
                Some(_) => Note::warning(
                    "certificate-ends-soon",
                    format!("{detail} It ends soon."),
                    "Renew the certificate before that day: after it, nobody who checks it is let in.",
                ),
                None => Note::passed(detail),
            });
        }
        // Nobody asked for the name.
        (
            Err(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }),
            TlsMode::VerifyCa,
        ) => {
            return Ok(Note::passed(format!("{detail} Its name is another one, which verify-ca does not ask for.")));
        }
        (Err(wrong), _) => {
            explain(credential, wrong, seen.certificate.as_ref().is_some_and(|certificate| certificate.signs_itself))
        }
    };
    if credential.tls == TlsMode::Require {
        let detail = format!("{detail} {what} With require, that is not asked for.");
        return Ok(Note::warning(code, detail, advice));
    }
    Err(Note::failed(code, what, advice).particulars(detail))
}

fn explain(
    credential: &Credential,
    wrong: &CertificateError,
    signs_itself: bool,
) -> (&'static str, &'static str, &'static str) {
    match wrong {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            ("certificate-expired", "The server's certificate has expired.", "Give the server a new one.")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
            "certificate-not-yet-valid",
            "The server's certificate is not valid yet.",
            "Give the server one that is valid, and check its clock.",
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            "certificate-name",
            "The server's certificate is for another host.",
            "Connect to a host that the certificate names, or ask for verify-ca, which does not look at the name.",
        ),
        // As `openssl req -x509` makes it: an authority, which is not taken for a server's even when it is given as the CA.
        CertificateError::Other(_) if signs_itself => (
            "self-signed",
            "The server's certificate signs itself as an authority (CA:TRUE). Such a one is not accepted as a server's, even when it \
             is given as caPem.",
            "Make the server one that is no authority (openssl req -x509 ... -addext basicConstraints=critical,CA:FALSE -addext \
             subjectAltName=DNS:...), and give that as caPem. Or sign a certificate for the server with an authority of your own, \
             and give the authority's as caPem. Or ask for require, which encrypts and does not look at the certificate.",
        ),
        // The latter is what comes of an authority of the same name with another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            "unknown-authority",
            "The server's certificate is signed by an authority that is not known.",
            match (supabase::kind_of(&credential.host, credential.port), &credential.ca_pem) {
                (Some(_), _) => {
                    "Give Supabase's own CA as caPem: download it in the project (Database, Settings, SSL configuration)."
                }
                (None, Some(_)) => "The CA that was given did not sign it: give the one that did, as caPem.",
                (None, None) => "Give the CA that signed it, as caPem; the database's host offers it for download.",
            },
        ),
        _ => (
            "certificate-invalid",
            "The server's certificate cannot be accepted.",
            "Give the server a certificate of its own, signed by an authority, with the host among its names.",
        ),
    }
}
