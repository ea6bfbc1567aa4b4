//! How a store's database is reached. Sealed at rest, opened in the moment of connecting, wiped after it.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use kernel::{Engine, StoreId};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sqlx::ConnectOptions as _;
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::time::timeout;
use vault::{Aad, KeyRing, OpenError, Purpose, Sealed};
use zeroize::Zeroizing;

use crate::error::{Cause, ConnectError};
use crate::reach::Reach;
use crate::session::{self, Session};

/// What a PostgreSQL server sees us as.
pub const APPLICATION_NAME: &str = "tenantry";

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

    /// Whether the other one leads to the same database by the same login, password and TLS.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let place = |of: &Self| (of.engine, of.host.clone(), of.port, of.database.clone(), of.username.clone());
        place(self) == place(other)
            && self.password.expose_secret() == other.password.expose_secret()
            && self.tls == other.tls
            && self.ca_pem == other.ca_pem
    }

    /// Whether the other one leads to the same database by the same address, with whatever login.
    #[must_use]
    pub fn is_same_place(&self, other: &Self) -> bool {
        let place = |of: &Self| (of.engine, of.host.to_ascii_lowercase(), of.port, of.database.clone());
        place(self) == place(other)
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
            // A slow statement would be logged whole, and some hold a password.
            .disable_statement_logging()
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

    /// For a driver of MySQL and MariaDB; of the password the same holds as for [`Credential::pg_options`]. The session is set
    /// up afterwards, in one statement.
    #[must_use]
    pub fn mysql_options(&self) -> MySqlConnectOptions {
        let options = MySqlConnectOptions::new()
            .host(&self.host)
            .port(self.port)
            .username(&self.username)
            .password(self.password.expose_secret())
            .database(&self.database)
            .pipes_as_concat(false)
            .no_engine_substitution(false)
            .timezone(None)
            .set_names(false)
            // A slow statement would be logged whole, and some hold a password.
            .disable_statement_logging()
            .ssl_mode(match self.tls {
                TlsMode::Disable => MySqlSslMode::Disabled,
                TlsMode::Require => MySqlSslMode::Required,
                TlsMode::VerifyCa => MySqlSslMode::VerifyCa,
                TlsMode::VerifyFull => MySqlSslMode::VerifyIdentity,
            });
        match &self.ca_pem {
            Some(pem) => options.ssl_ca_from_pem(pem.clone().into_bytes()),
            None => options,
        }
    }

    /// A bare connection outside every pool and budget, for provisioning and checks. Close it in every outcome.
    ///
    /// # Errors
    /// [`ConnectError`], `Timeout` after `limit`.
    pub async fn connect(&self, reach: Reach, limit: Duration) -> Result<Session, ConnectError> {
        within(limit, Session::connect(self, reach)).await
    }

    /// As [`Credential::connect`], to one of these addresses, whatever the host's name says.
    ///
    /// # Errors
    /// As [`Credential::connect`].
    pub async fn connect_at(&self, addresses: &[SocketAddr], limit: Duration) -> Result<Session, ConnectError> {
        within(limit, Session::connect_at(self, addresses)).await
    }

    /// Makes sure that a connection is one session of the server, for provisioning: two that are open at once must not
    /// share the server's side, as they do behind a transaction pooler, which mixes up answers.
    ///
    /// # Errors
    /// `TransactionPooler` when they share it, or why they could not be opened within `limit` each.
    pub async fn check_session_mode(&self, reach: Reach, limit: Duration) -> Result<(), ConnectError> {
        let mut one = self.connect(reach, limit).await?;
        let verdict = match self.connect(reach, limit).await {
            Ok(mut two) => {
                let verdict = timeout(limit, session::check_apart(&mut one, &mut two)).await;
                two.close_within(limit).await;
                verdict.unwrap_or(Err(ConnectError::new(Cause::Timeout)))
            }
            Err(error) => Err(error),
        };
        one.close_within(limit).await;
        verdict
    }
}

async fn within(
    limit: Duration,
    connecting: impl Future<Output = Result<Session, ConnectError>>,
) -> Result<Session, ConnectError> {
    let set_up = async {
        let mut session = connecting.await?;
        session::unbroken(session.set_up()).await?;
        Ok(session)
    };
    timeout(limit, set_up).await.unwrap_or(Err(ConnectError::new(Cause::Timeout)))
}

impl fmt::Debug for Credential {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Credential").field("engine", &self.engine).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::{Credential, TlsMode};
    use kernel::{Engine, StoreId};
    use secrecy::{ExposeSecret as _, SecretString};
    use vault::{KeyRing, OpenError};

    fn credential(ca_pem: Option<String>) -> Credential {
        Credential {
            engine: Engine::Postgresql,
            host: "db.example".into(),
            port: 5432,
            username: "tea".into(),
            password: SecretString::from("p\"ä\\ss\u{0}\n"),
            database: "tea".into(),
            tls: TlsMode::VerifyFull,
            ca_pem,
        }
    }

    #[test]
    fn a_credential_opens_as_it_was_sealed_and_for_its_store_only() {
        let ring = KeyRing::single(vault::generate_key().expose_secret()).expect("a key");
        let ids = ["sto_00000000000000000000000001", "sto_00000000000000000000000002"];
        let [store, other] = ids.map(|id| id.parse::<StoreId>().expect("an id"));
        for ca_pem in [None, Some("-----BEGIN".to_owned())] {
            let given = credential(ca_pem);
            let sealed = given.seal(&ring, store, 3);
            let opened = Credential::open(&ring, &sealed, store, 3).expect("it opens");
            assert_eq!(opened.password.expose_secret(), given.password.expose_secret());
            assert_eq!((opened.host, opened.port, opened.username), (given.host, given.port, given.username));
            assert_eq!((opened.database, opened.tls, opened.ca_pem), (given.database, given.tls, given.ca_pem));
            assert_eq!(Credential::open(&ring, &sealed, other, 3).err(), Some(OpenError::Damaged));
            assert_eq!(Credential::open(&ring, &sealed, store, 4).err(), Some(OpenError::Damaged));
        }
    }

    #[test]
    fn debug_shows_neither_the_password_nor_where_it_leads() {
        assert_eq!(format!("{:?}", credential(None)), "Credential { engine: Postgresql, .. }");
    }
}
