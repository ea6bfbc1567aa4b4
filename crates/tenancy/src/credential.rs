//! How a store's database is reached. Sealed at rest, opened in the moment of connecting, wiped after it.

use std::fmt;
use std::time::Duration;

use kernel::{Engine, StoreId};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use tokio::time::timeout;
use vault::{Aad, KeyRing, OpenError, Purpose, Sealed};
use zeroize::Zeroizing;

use crate::error::{Cause, ConnectError};

/// What the server sees us as.
const APPLICATION_NAME: &str = "tenantry";

/// How much of TLS is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// None: only for a server on the same machine or a private net.
    Disable,
    /// Encrypted, to whoever answers.
    Require,
    /// Encrypted, to a holder of a certificate of a trusted authority.
    VerifyCa,
    /// Encrypted, to the host that the certificate names.
    VerifyFull,
}

/// Everything that opens a store's database. Its `Debug` shows the engine only.
#[derive(Clone)]
pub struct Credential {
    /// What it speaks.
    pub engine: Engine,
    /// Where it listens. A path would be taken as a socket directory: refuse what an owner types before it gets here.
    pub host: String,
    /// Where it listens.
    pub port: u16,
    /// The login.
    pub username: String,
    /// Its password.
    pub password: SecretString,
    /// The database on that server.
    pub database: String,
    /// How much of TLS is asked for.
    pub tls: TlsMode,
    /// The authority that signed the server's certificate, when it is not a public one.
    pub ca_pem: Option<String>,
}

/// The form inside the seal. Fields are only ever added, as optional ones: old values must open.
#[derive(Serialize)]
struct Written<'a> {
    engine: Engine,
    host: &'a str,
    port: u16,
    username: &'a str,
    password: &'a str,
    database: &'a str,
    tls: TlsMode,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_pem: Option<&'a str>,
}

#[derive(Deserialize)]
struct Read {
    engine: Engine,
    host: String,
    port: u16,
    username: String,
    password: SecretString,
    database: String,
    tls: TlsMode,
    ca_pem: Option<String>,
}

impl Credential {
    /// Seals it for `store`, as version `version` of its database credential.
    #[must_use]
    pub fn seal(&self, ring: &KeyRing, store: StoreId, version: i32) -> Sealed {
        self.seal_at(ring, &Aad::for_store(store, Purpose::DatabaseCredential, version))
    }

    /// The credential of `store` in `sealed`.
    ///
    /// # Errors
    /// When it was sealed for another place, damaged, or under a key that the ring has not.
    pub fn open(ring: &KeyRing, sealed: &Sealed, store: StoreId, version: i32) -> Result<Self, OpenError> {
        Self::open_at(ring, sealed, &Aad::for_store(store, Purpose::DatabaseCredential, version))
    }

    /// Seals it for any place, such as a database server's row.
    #[must_use]
    pub fn seal_at(&self, ring: &KeyRing, aad: &Aad) -> Sealed {
        let written = Written {
            engine: self.engine,
            host: &self.host,
            port: self.port,
            username: &self.username,
            password: self.password.expose_secret(),
            database: &self.database,
            tls: self.tls,
            ca_pem: self.ca_pem.as_deref(),
        };
        // Roomy from the start: growing would leave copies of the password behind. Escaping makes at most six bytes of one.
        let text_len = self.host.len() + self.username.len() + self.database.len();
        let secret_len = self.password.expose_secret().len() + self.ca_pem.as_ref().map_or(0, String::len);
        let mut bytes = Zeroizing::new(Vec::with_capacity(256 + 6 * (text_len + secret_len)));
        serde_json::to_writer(&mut *bytes, &written).expect("plain fields always make JSON");
        ring.seal(&bytes, aad)
    }

    /// The credential in a value sealed by [`Credential::seal_at`].
    ///
    /// # Errors
    /// As [`Credential::open`].
    pub fn open_at(ring: &KeyRing, sealed: &Sealed, aad: &Aad) -> Result<Self, OpenError> {
        let bytes = ring.open(sealed, aad)?;
        let Read { engine, host, port, username, password, database, tls, ca_pem } =
            serde_json::from_slice(&bytes).map_err(|_| OpenError::Damaged)?;
        Ok(Self { engine, host, port, username, password, database, tls, ca_pem })
    }

    /// For a driver of PostgreSQL. Holds the password in the clear: let it live no longer than the connecting.
    #[must_use]
    pub fn pg_options(&self) -> PgConnectOptions {
        let options = PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port)
            .username(&self.username)
            .password(self.password.expose_secret())
            .database(&self.database)
            .application_name(APPLICATION_NAME)
            // A pooler refuses start-up parameters that it does not know.
            .extra_float_digits(None)
            .ssl_mode(match self.tls {
                TlsMode::Disable => PgSslMode::Disable,
                TlsMode::Require => PgSslMode::Require,
                TlsMode::VerifyCa => PgSslMode::VerifyCa,
                TlsMode::VerifyFull => PgSslMode::VerifyFull,
            });
        match &self.ca_pem {
            Some(pem) => options.ssl_root_cert_from_pem(pem.clone().into_bytes()),
            None => options,
        }
    }

    /// A bare connection outside every pool and budget, for provisioning and checks. Close it in every outcome.
    ///
    /// # Errors
    /// [`ConnectError`], `Timeout` after `limit`.
    pub async fn connect(&self, limit: Duration) -> Result<PgConnection, ConnectError> {
        let options = self.pg_options();
        match timeout(limit, options.connect()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(ConnectError::from(&error)),
            Err(_) => Err(ConnectError::new(Cause::Timeout)),
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Credential").field("engine", &self.engine).finish_non_exhaustive()
    }
}
