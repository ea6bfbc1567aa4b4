//! What can go wrong on the way to a store's database, as facts to act on. No message names a host, a user or SQL.

use std::time::Duration;

use kernel::StoreStatus;
use serde::Serialize;
use sqlx::error::DatabaseError;
use sqlx::mysql::MySqlDatabaseError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::reach::AddressError;

/// Why a database could not be reached or used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Nothing listens there.
    Refused,
    /// The name does not resolve, there is no way, or the connection broke.
    Unreachable,
    /// The name leads into a private network, where what an owner brings is not looked for.
    PrivateAddress,
    /// It did not answer in time.
    Timeout,
    /// The login was refused.
    WrongPassword,
    /// The login is right but may not enter this database.
    Forbidden,
    /// The server has no such database.
    MissingDatabase,
    /// TLS could not be agreed on, or the certificate was not accepted.
    Tls,
    /// The server, the database or the login has no connection left.
    TooManyConnections,
    /// The server is starting, stopping or recovering.
    NotReady,
    /// A pooler stands in between that lets us in, and that the server does not let in.
    PoolerServer,
    /// A transaction pooler stands in between; it would mix up answers.
    TransactionPooler,
    /// The sealed credential did not open.
    Sealed,
    /// What answered did not speak as expected.
    Protocol,
}

impl Cause {
    /// The name for answers, logs and metrics: everywhere the same.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::PrivateAddress => "private-address",
            Self::Timeout => "timeout",
            Self::WrongPassword => "wrong-password",
            Self::Forbidden => "forbidden",
            Self::MissingDatabase => "missing-database",
            Self::Tls => "tls",
            Self::TooManyConnections => "too-many-connections",
            Self::NotReady => "not-ready",
            Self::PoolerServer => "pooler-server",
            Self::TransactionPooler => "transaction-pooler",
            Self::Sealed => "sealed",
            Self::Protocol => "protocol",
        }
    }

    /// Whether trying again is useless until the route changes.
    #[must_use]
    pub const fn needs_change(self) -> bool {
        matches!(
            self,
            Self::WrongPassword | Self::Forbidden | Self::MissingDatabase | Self::TransactionPooler | Self::Sealed
        )
    }
}

impl Cause {
    /// Whether it speaks of the whole server, and not of one database or login.
    pub(crate) const fn is_of_server(self) -> bool {
        matches!(self, Self::Refused | Self::Unreachable | Self::Timeout | Self::NotReady)
    }
}

/// Why a connection could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the database could not be reached: {}", cause.as_str())]
pub struct ConnectError {
    /// What kind of trouble it is.
    pub cause: Cause,
    /// What the server itself calls it, when it said anything: PostgreSQL's five characters, MySQL's number. A pooler that
    /// has one of these for everything adds a name of its own: `XX000 EMAXCONNSESSION`.
    pub code: Option<String>,
    /// What the server tells beside its code, when that matters.
    pub particular: Option<Particular>,
}

/// What a refusal tells beside its code, read from what no server translates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Particular {
    /// The login itself may have no more connections, however many the server has left.
    LoginLimit,
    /// The database itself may have no more connections.
    DatabaseLimit,
    /// The host part of the account that MySQL took the login for: `%`, `10.0.0.%`.
    AccountHost(String),
    /// PostgreSQL has no such login, or it is one that may not log in.
    NoLogin,
    /// A pooler refused the user or the password.
    PoolerLogin,
    /// A pooler knows no such database.
    PoolerDatabase,
    /// The server behind a pooler has no such database.
    ServerDatabase,
    /// A pooler has as many clients as it may have, or no connection to the server was free in its time.
    PoolerFull,
    /// A pooler could not get into the server itself.
    PoolerServer,
}

impl ConnectError {
    /// Whether it is the password that was refused. `WrongPassword` is also a login that may not come from here, an account that
    /// is locked, and a pooler that lets nobody in for a while: those may pass without a change of ours.
    pub(crate) fn is_wrong_password(&self) -> bool {
        self.cause == Cause::WrongPassword
            && (matches!(self.code.as_deref(), Some("28P01" | "1045" | "1698" | "XX000 EWRONGPASSWORD"))
                || self.particular == Some(Particular::PoolerLogin))
    }

    /// Trouble of a kind, of which nothing more is known.
    #[must_use]
    pub const fn new(cause: Cause) -> Self {
        Self { cause, code: None, particular: None }
    }
}

impl From<AddressError> for ConnectError {
    fn from(error: AddressError) -> Self {
        Self::new(match error {
            AddressError::Private => Cause::PrivateAddress,
            AddressError::Unresolvable => Cause::Unreachable,
        })
    }
}

impl From<&sqlx::Error> for ConnectError {
    fn from(error: &sqlx::Error) -> Self {
        use std::io::ErrorKind;
        let cause = match error {
            sqlx::Error::Io(io) => match io.kind() {
                ErrorKind::ConnectionRefused | ErrorKind::NotFound => Cause::Refused,
                ErrorKind::TimedOut => Cause::Timeout,
                ErrorKind::InvalidData => Cause::Tls,
                _ => Cause::Unreachable,
            },
            sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => Cause::Tls,
            sqlx::Error::Database(database) => cause_of(database.as_ref()),
            _ => Cause::Protocol,
        };
        let said = match error {
            sqlx::Error::Database(database) => Some(database.as_ref()),
            _ => None,
        };
        Self { cause, code: said.and_then(code_of), particular: said.and_then(particular_of) }
    }
}

fn particular_of(error: &dyn DatabaseError) -> Option<Particular> {
    if let Some(error) = error.try_downcast_ref::<MySqlDatabaseError>() {
        // Only here is the account meant that has the rights; elsewhere it is where the client comes from.
        return (error.number() == 1044).then(|| account_host(error.message()).map(Particular::AccountHost)).flatten();
    }
    let error = error.try_downcast_ref::<PgDatabaseError>()?;
    if error.code() == "08P01" {
        return said_by_pgbouncer(error.message());
    }
    if error.code() == "28000" {
        // A pooler that passes the server's words on leaves out the place in its source.
        let is_of_login = error.routine().is_some_and(|routine| routine.starts_with("InitializeSessionUserId"))
            || is_of_no_login(error.message());
        return is_of_login.then_some(Particular::NoLogin);
    }
    if error.code() != "53300" {
        return None;
    }
    // Messages are translated, and poolers pass them on without the name of the place in the server's source.
    let (message, routine) = (error.message(), error.routine().unwrap_or_default());
    if routine.starts_with("InitializeSessionUserId") || message.starts_with("too many connections for role") {
        Some(Particular::LoginLimit)
    } else if routine == "CheckMyDatabase" || message.starts_with("too many connections for database") {
        Some(Particular::DatabaseLimit)
    } else {
        None
    }
}

/// What PgBouncer means, which has one code for everything and never translates what it says. Its releases say it in different
/// words.
fn said_by_pgbouncer(message: &str) -> Option<Particular> {
    let says = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    // It repeats what the server said of its own login there, with the name, which it leaves out itself: that comes first. The
    // server's words are translated where the server is set so; then they say no more than that there was a refusal.
    if message.contains("database \"") && message.contains("\" does not exist") {
        Some(Particular::ServerDatabase)
    } else if says(&["too many clients already", "remaining connection slots", "too many connections for"]) {
        Some(Particular::PoolerFull)
    } else if is_of_no_login(message)
        || says(&[
            "server login",
            "cannot connect to server",
            "authentication failed for user",
            "no pg_hba.conf entry",
            "pg_hba.conf rejects",
            "permission denied for database",
            "not currently accepting connections",
            "the database system is",
        ])
    {
        Some(Particular::PoolerServer)
    } else if says(&["authentication failed", "no such user"]) {
        Some(Particular::PoolerLogin)
    } else if says(&["no such database"]) {
        Some(Particular::PoolerDatabase)
    } else if says(&["no more connections allowed", "query_wait_timeout"]) {
        Some(Particular::PoolerFull)
    } else {
        None
    }
}

/// Whether PostgreSQL says that there is no such login, or that it may not log in.
fn is_of_no_login(message: &str) -> bool {
    message.contains("is not permitted to log in")
        || (message.contains("role \"") && message.contains("\" does not exist"))
}

/// The host part of the first account that a message names: `'ada'@'10.0.0.%'`.
fn account_host(message: &str) -> Option<String> {
    let (host, _) = message.split_once("'@'")?.1.split_once('\'')?;
    let is_host = !host.is_empty()
        && host.len() <= 255
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".%_:-/".contains(&byte));
    is_host.then(|| host.to_owned())
}

/// What the server itself calls its error: of MySQL's, whose SQLSTATEs say little, the number.
fn code_of(error: &dyn DatabaseError) -> Option<String> {
    match error.try_downcast_ref::<MySqlDatabaseError>() {
        Some(error) => Some(error.number().to_string()),
        None => error.code().map(|code| match pooler_code(error.message()) {
            Some(name) => format!("{code} {name}"),
            None => code.into_owned(),
        }),
    }
}

/// The name that Supabase's pooler gives to its errors, all of which have one SQLSTATE: it stands in parentheses before the
/// message. Releases before these names are known by what they said.
fn pooler_code(message: &str) -> Option<&str> {
    const BEFORE_NAMES: [(&str, &str); 3] = [
        ("Tenant or user not found", "ENOTFOUND"),
        ("Max client connections reached", "EMAXCLIENTCONN"),
        ("MaxClientsInSessionMode", "EMAXCONNSESSION"),
    ];
    if let Some((name, _)) = message.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
        let is_name = name.len() <= 40
            && name.starts_with('E')
            && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
        return is_name.then_some(name);
    }
    BEFORE_NAMES.iter().find(|(said, _)| message.starts_with(said)).map(|(_, name)| *name)
}

/// What a server means when it refuses a connection. The numbers are those of MySQL and MariaDB.
fn cause_of(error: &dyn DatabaseError) -> Cause {
    if let Some(error) = error.try_downcast_ref::<MySqlDatabaseError>() {
        return match error.number() {
            // Also an expired password, and an account that is locked: no other password helps before somebody acts.
            1045 | 1698 | 1820 | 1862 | 3118 | 4151 => Cause::WrongPassword,
            // Not this database, or not from here.
            1044 | 1129 | 1130 | 1142 => Cause::Forbidden,
            1049 => Cause::MissingDatabase,
            1040 | 1203 | 1226 => Cause::TooManyConnections,
            1053 | 1927 | 4031 => Cause::NotReady,
            1205 | 1969 | 3024 => Cause::Timeout,
            3159 => Cause::Tls,
            _ => Cause::Protocol,
        };
    }
    // A pooler's own name says more than the SQLSTATE that it shares with all the others.
    match pooler_code(error.message()) {
        // Also the one of a pooler that has seen too many wrong passwords and lets nobody try again for now.
        Some("EWRONGPASSWORD" | "ECIRCUITBREAKER" | "EAUTHQUERY") => return Cause::WrongPassword,
        Some("EADDRNOTALLOWED" | "EBANNED") => return Cause::Forbidden,
        Some("ENOTFOUND" | "ETENANTNOTFOUND" | "ENOIDENTIFIER") => return Cause::MissingDatabase,
        Some("ESSLREQUIRED") => return Cause::Tls,
        Some("EMAXCONNSESSION" | "EMAXCLIENTCONN" | "EMAXCONN" | "ECHECKOUTTIMEOUT") => {
            return Cause::TooManyConnections;
        }
        Some("EDBHANDLEREXITED") => return Cause::NotReady,
        _ => {}
    }
    match error.code().as_deref().unwrap_or_default() {
        "28P01" | "28000" => Cause::WrongPassword,
        // Also a database that takes no connections at all.
        "42501" | "55000" => Cause::Forbidden,
        "3D000" => Cause::MissingDatabase,
        "53300" => Cause::TooManyConnections,
        "08P01" => match said_by_pgbouncer(error.message()) {
            Some(Particular::PoolerLogin) => Cause::WrongPassword,
            Some(Particular::PoolerDatabase | Particular::ServerDatabase) => Cause::MissingDatabase,
            Some(Particular::PoolerFull) => Cause::TooManyConnections,
            Some(Particular::PoolerServer) => Cause::PoolerServer,
            // It has lost its connection to the server, and opens another one.
            _ if error.message().contains("server conn crashed") => Cause::NotReady,
            _ => Cause::Protocol,
        },
        "57P01" | "57P02" | "57P03" => Cause::NotReady,
        "57014" | "25P03" | "57P05" => Cause::Timeout,
        _ => Cause::Protocol,
    }
}

/// Whether the connection that gave this error is of no more use.
pub(crate) fn is_fatal(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(database) => is_fatal_to_the_session(database.as_ref()),
        // These arise on our side, before or after the exchange.
        sqlx::Error::RowNotFound
        | sqlx::Error::TypeNotFound { .. }
        | sqlx::Error::ColumnIndexOutOfBounds { .. }
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Encode(_)
        | sqlx::Error::Decode(_) => false,
        _ => true,
    }
}

/// Whether the server has ended the session, or will answer this statement with the same error for ever: prepared
/// statements that are gone, or no longer fit after a migration.
fn is_fatal_to_the_session(error: &dyn DatabaseError) -> bool {
    if let Some(error) = error.try_downcast_ref::<PgDatabaseError>() {
        let is_stale = matches!(error.code(), "26000" | "0A000");
        return is_stale || matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic);
    }
    error.try_downcast_ref::<MySqlDatabaseError>().is_none_or(|error| {
        let is_stale = matches!(error.number(), 1243 | 1615);
        // Shut down, killed, left idle for too long, or a packet that did not make sense.
        is_stale || matches!(error.number(), 1053 | 1152..=1161 | 1184 | 1927 | 4031)
    })
}

/// Whether this is about something that a session keeps from its beginning until another one begins, whatever was mended
/// meanwhile: a read-only default, and MySQL's rights on its database.
pub(crate) fn is_of_the_beginning(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    if let Some(error) = error.try_downcast_ref::<PgDatabaseError>() {
        return error.code() == "25006";
    }
    let number = error.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number);
    matches!(number, Some(1044 | 1142 | 1143 | 1792))
}

/// Why a lease or a connection was not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// The store is not served now.
    #[error("the store is {status}")]
    NotServing {
        /// What it is instead of active.
        status: StoreStatus,
    },
    /// The store has no database yet, or no more.
    #[error("the store has no database")]
    NoDatabase,
    /// The store's database does not answer or does not let us in.
    #[error("the store's database is unavailable: {}", cause.as_str())]
    Unavailable {
        /// Why.
        cause: Cause,
        /// When it is worth trying again.
        retry_after: Duration,
    },
    /// All connections that the store may have are in use.
    #[error("the store's connections are all in use")]
    Busy {
        /// When it is worth trying again.
        retry_after: Duration,
    },
    /// The credential does not open under our keys at this place: someone must act.
    #[error("the store's credential does not open")]
    Sealed,
    /// The store was changed since this lease was given: resolve it again.
    #[error("the store was changed since it was leased")]
    Draining,
    /// What the route says is out of date and the directory does not answer.
    #[error("the store's route cannot be confirmed now")]
    DirectoryUnavailable,
    /// This node is going down.
    #[error("this node is shutting down")]
    ShuttingDown,
}

impl LeaseError {
    /// When it is worth trying again, if waiting helps at all.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } | Self::Busy { retry_after } => Some(*retry_after),
            Self::Draining | Self::DirectoryUnavailable | Self::ShuttingDown => Some(Duration::from_secs(1)),
            Self::NotServing { .. } | Self::NoDatabase | Self::Sealed => None,
        }
    }
}

/// Why a name did not lead to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// No store has this hostname.
    #[error("no store has this hostname")]
    UnknownHost,
    /// There is no such store.
    #[error("there is no such store")]
    UnknownStore,
    /// Too many unknown names were asked for; this one was not looked up.
    #[error("too many unknown names were asked for")]
    TooManyUnknown {
        /// When it is worth trying again.
        retry_after: Duration,
    },
    /// The directory does not answer, and what is remembered is too old.
    #[error("the directory does not answer")]
    DirectoryUnavailable,
}

impl ResolveError {
    /// When it is worth trying again, if waiting helps at all.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::UnknownHost | Self::UnknownStore => None,
            Self::TooManyUnknown { retry_after } => Some(*retry_after),
            Self::DirectoryUnavailable => Some(Duration::from_secs(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Particular, account_host, pooler_code, said_by_pgbouncer};

    #[test]
    fn the_account_is_read_in_whatever_language_it_is_named() {
        for (message, host) in [
            ("Access denied for user 'ada'@'%' to database 'shop'", Some("%")),
            ("Benutzer 'ada'@'10.0.0.%' hat keine Zugriffsberechtigung auf Datenbank 'x'@'y'", Some("10.0.0.%")),
            ("Access denied for user ''@'localhost' to database 'shop'", Some("localhost")),
            ("Access denied for user 'ada'@'' to database 'shop'", None),
            ("Access denied for user 'ada'@'; drop' to database", None),
            ("Access denied", None),
        ] {
            assert_eq!(account_host(message).as_deref(), host, "{message}");
        }
    }

    #[test]
    fn what_pgbouncer_says_is_told_apart() {
        for (message, particular) in [
            ("password authentication failed", Some(Particular::PoolerLogin)),
            ("SASL authentication failed", Some(Particular::PoolerLogin)),
            ("no such user: ada", Some(Particular::PoolerLogin)),
            ("no such database: shop", Some(Particular::PoolerDatabase)),
            ("no more connections allowed (max_client_conn)", Some(Particular::PoolerFull)),
            ("query_wait_timeout", Some(Particular::PoolerFull)),
            ("server login has been failing, try again later (server_login_retry)", Some(Particular::PoolerServer)),
            ("password authentication failed for user \"ada\"", Some(Particular::PoolerServer)),
            (
                "server login failed: FATAL password authentication failed for user \"ada\"",
                Some(Particular::PoolerServer),
            ),
            (
                "server login has been failing, cached error: role \"ada\" is not permitted to log in (server_login_retry)",
                Some(Particular::PoolerServer),
            ),
            ("role \"ada\" is not permitted to log in", Some(Particular::PoolerServer)),
            ("role \"ada\" does not exist", Some(Particular::PoolerServer)),
            ("permission denied for database \"shop\"", Some(Particular::PoolerServer)),
            ("the database system is starting up", Some(Particular::PoolerServer)),
            ("database \"shop\" does not exist", Some(Particular::ServerDatabase)),
            ("server login failed: FATAL database \"shop\" does not exist", Some(Particular::ServerDatabase)),
            ("sorry, too many clients already", Some(Particular::PoolerFull)),
            ("too many connections for role \"ada\"", Some(Particular::PoolerFull)),
            ("server conn crashed?", None),
            ("bouncer config error", None),
        ] {
            assert_eq!(said_by_pgbouncer(message), particular, "{message}");
        }
    }

    #[test]
    fn a_poolers_own_name_is_found_and_nothing_else_is_taken_for_one() {
        for (message, name) in [
            ("(EMAXCONNSESSION) max clients reached in session mode", Some("EMAXCONNSESSION")),
            ("(ENOTFOUND) tenant/user postgres.abc not found", Some("ENOTFOUND")),
            ("Tenant or user not found", Some("ENOTFOUND")),
            ("Max client connections reached", Some("EMAXCLIENTCONN")),
            ("(see the log) out of memory", None),
            ("(E", None),
            ("()", None),
            ("could not open file", None),
        ] {
            assert_eq!(pooler_code(message), name, "{message}");
        }
    }
}
