//! Why a step failed, in words for whoever waits for it.

use std::borrow::Cow;

use kernel::Engine;
use sqlx::mysql::MySqlDatabaseError;
use tenancy::{Cause, ConnectError};
use tenant_schema::fitness::Ailment;

use super::refusal::{self, Refusal};
use super::remedy::Guest;

/// Why a step failed: a stable code, what happened, and what to do. Never a secret, and of our own servers no address.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {what}")]
pub struct StepError {
    pub code: &'static str,
    pub what: String,
    pub advice: Cow<'static, str>,
    /// What the server itself calls it.
    pub server_code: Option<Box<str>>,
    /// Statements for an administrator of the database that help, ready to be copied.
    pub sql: Option<Box<str>>,
    /// Whether doing it again in a moment may help without anybody doing anything.
    pub is_transient: bool,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StepError {
    pub fn new(code: &'static str, what: impl Into<String>, advice: impl Into<Cow<'static, str>>) -> Self {
        let (what, advice) = (what.into(), advice.into());
        Self { code, what, advice, server_code: None, sql: None, is_transient: false, source: None }
    }

    pub fn sql(self, sql: impl Into<Box<str>>) -> Self {
        Self { sql: Some(sql.into()), ..self }
    }

    /// The same of a server of ours: nobody else can do anything about it, and how it names things is not told.
    pub(super) fn on_our_side(self) -> Self {
        Self { advice: OURS.into(), sql: None, ..self }
    }

    pub fn transient(mut self) -> Self {
        self.is_transient = true;
        self
    }

    pub(super) fn because(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }
}

const PRIVILEGES_TELL: &str =
    "Give it what it lacks: the connection's test names it in its line privileges, with the statement.";
pub const OURS: &str = "Nothing to do for you: this is on our side. Retry, and if it fails again, ask support.";

/// What the code of a server's error means to whoever waits for the step.
#[derive(Debug)]
enum Said {
    MissingPrivilege,
    /// The login is right, and may do nothing but set a new password.
    PasswordExpired,
    /// Tables of the store's are not there.
    TablesMissing,
    ReadOnly,
    DiskFull,
    StatementTimeout,
    /// Somebody else was in the way: locks, deadlocks, a template in use, the same thing made twice at once.
    Busy,
    Unavailable,
    /// A pooler had let us in, and has no connection to the server for us: as it is told to whoever knocks.
    ByPooler(Refusal, ConnectError),
    /// The login has had what it may have in an hour, or at once.
    UsedUp,
    ConnectionLost,
    Unexpected,
}

impl Said {
    fn by(error: &sqlx::Error) -> Self {
        let Some(said) = error.as_database_error() else {
            let is_io = matches!(error, sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_));
            return if is_io { Self::ConnectionLost } else { Self::Unexpected };
        };
        if let Some(mysql) = said.try_downcast_ref::<MySqlDatabaseError>() {
            return match mysql.number() {
                1044 | 1142 | 1143 | 1227 | 1370 => Self::MissingPrivilege,
                1049 | 1146 => Self::TablesMissing,
                1290 | 1792 | 1836 => Self::ReadOnly,
                1820 | 1862 => Self::PasswordExpired,
                1021 | 1114 => Self::DiskFull,
                1969 | 3024 => Self::StatementTimeout,
                1007 | 1020 | 1062 | 1205 | 1213 => Self::Busy,
                1203 | 1226 => Self::UsedUp,
                1040 | 1053 | 1927 | 4031 => Self::Unavailable,
                _ => Self::Unexpected,
            };
        }
        let knocked = ConnectError::from(error);
        if let Some(refusal) = refusal::of_pooler(&knocked) {
            return Self::ByPooler(refusal, knocked);
        }
        match said.code().as_deref() {
            Some("42501") => Self::MissingPrivilege,
            Some("3F000" | "42P01") => Self::TablesMissing,
            Some("25006") => Self::ReadOnly,
            Some("53100") => Self::DiskFull,
            Some("57014") => Self::StatementTimeout,
            Some("55P03" | "55006" | "40001" | "40P01" | "42P04" | "42710" | "23505") => Self::Busy,
            Some(code) if code.starts_with("08") || code.starts_with("57") || code.starts_with("53") => {
                Self::Unavailable
            }
            _ => Self::Unexpected,
        }
    }
}

/// Whether a statement ended because it had to wait.
pub(super) fn is_waiting(error: &sqlx::Error) -> bool {
    matches!(Said::by(error), Said::Busy | Said::StatementTimeout)
}

/// Whether the server, or the way to it, is gone or on its way.
pub(super) fn is_lost(error: &sqlx::Error) -> bool {
    matches!(Said::by(error), Said::Unavailable | Said::ByPooler(..) | Said::UsedUp | Said::ConnectionLost)
}

impl From<sqlx::Error> for StepError {
    fn from(error: sqlx::Error) -> Self {
        let step = match Said::by(&error) {
            Said::MissingPrivilege => {
                Self::new(Ailment::Unwritable.code(), "The login may not do what is needed.", PRIVILEGES_TELL)
            }
            Said::PasswordExpired => Self::new(
                "password-expired",
                "The login's password has expired, and it may do nothing before it has a new one.",
                "Give it one: ALTER USER '<login>'@'<host>' IDENTIFIED BY '<a new password>'; then connect with that.",
            ),
            Said::TablesMissing => Self::ailing(Ailment::TablesMissing),
            Said::ReadOnly => Self::ailing(Ailment::ReadOnly),
            Said::DiskFull => Self::new("disk-full", "The database server's disk is full.", "Make room, then retry."),
            Said::StatementTimeout => {
                Self::new("statement-timeout", "The database took too long.", "Look for load or locks, then retry.")
                    .transient()
            }
            Said::Busy => Self::new(
                "busy",
                "The database server was busy with something that stands in the way.",
                "Retry in a moment.",
            )
            .transient(),
            Said::Unavailable => Self::new(
                "database-unavailable",
                "The database server is not available.",
                "Check that it runs and has connections left, then retry.",
            )
            .transient(),
            Said::ByPooler(refusal, knocked) => Self::refused(refusal, knocked),
            Said::UsedUp => Self::new(
                "login-connection-limit",
                "The login has used up what it may have: connections at once, or connections, queries or changes in an hour.",
                "Take its limits off: ALTER USER ... WITH MAX_QUERIES_PER_HOUR 0 MAX_UPDATES_PER_HOUR 0 MAX_CONNECTIONS_PER_HOUR 0 \
                 MAX_USER_CONNECTIONS 0; then retry.",
            )
            .transient(),
            Said::ConnectionLost => Self::new(
                "connection-lost",
                "The connection to the database broke.",
                "Check the network and the server, then retry.",
            )
            .transient(),
            Said::Unexpected => Self::new("unexpected", "Something failed that should not.", OURS),
        };
        Self { server_code: server_code(&error).map(Into::into), ..step }.because(error)
    }
}

/// What the server itself calls its error, as it is called when it refuses a connection.
fn server_code(error: &sqlx::Error) -> Option<String> {
    ConnectError::from(error).code
}

impl StepError {
    /// Why a store cannot work, or not sell, in a database that lets it in.
    pub fn ailing(ailment: Ailment) -> Self {
        let (what, advice) = match ailment {
            Ailment::TablesMissing => (
                "Tables of the store are not there any more.",
                "Bring them back: from a backup into this database; or into another one, and give that one's credentials.",
            ),
            Ailment::Unreadable => ("The login may not read the store's tables.", PRIVILEGES_TELL),
            Ailment::Unwritable => ("The login may read the store's tables, and not change them.", PRIVILEGES_TELL),
            Ailment::ReadOnly => (
                "The database can only be read: it follows another server, or is set so.",
                "The connection's test tells which in its line server, and the statement when there is one. Of a replica, \
                 give the credentials of its primary.",
            ),
        };
        Self::new(ailment.code(), what, advice)
    }

    /// Why the store's tables could not be made in a database that its owner brought: what is set up there may refuse it.
    pub fn migrating(error: sqlx::Error) -> Self {
        match Said::by(&error) {
            Said::Unexpected | Said::TablesMissing if error.as_database_error().is_some() => Self {
                server_code: server_code(&error).map(Into::into),
                ..Self::new(
                    "migration-failed",
                    "The database refused a statement that makes the store's tables.",
                    "Its log says why, by the server's code: something that is set up there, such as a trigger on statements that \
                     change the schema, may refuse it. Mend that, then retry.",
                )
            }
            .because(error),
            _ => error.into(),
        }
    }

    /// Why no connection came about, for whoever knocked.
    pub fn connecting<'a>(guest: impl Into<Guest<'a>>, error: ConnectError) -> Self {
        Self {
            server_code: error.code.clone().map(Into::into),
            ..Self::refused(refusal::of(&guest.into(), &error), error)
        }
    }

    /// As [`StepError::connecting`], when it was a pooler that has no connection to the server.
    pub fn by_pooler<'a>(guest: impl Into<Guest<'a>>, error: ConnectError) -> Option<Self> {
        refusal::of_pooler(&error)?;
        Some(Self::connecting(guest, error))
    }

    /// As [`StepError::connecting`], when the kind of trouble is all that is known.
    pub fn of_cause(engine: Engine, cause: Cause) -> Self {
        Self::refused(refusal::of_cause(engine, cause), ConnectError::new(cause))
    }

    fn refused(Refusal { code, what, advice, sql }: Refusal, error: ConnectError) -> Self {
        let is_transient =
            matches!(error.cause, Cause::Unreachable | Cause::Timeout | Cause::TooManyConnections | Cause::NotReady);
        Self { sql: sql.map(Into::into), is_transient, ..Self::new(code, what, advice) }.because(error)
    }
}

pub const fn transaction_pooler() -> (&'static str, &'static str, &'static str) {
    (
        "transaction-pooler",
        "A pooler in transaction mode stands before the database; it can mix up answers.",
        "Connect to the server itself, or use the pooler's session mode (often the same host at port 5432).",
    )
}
