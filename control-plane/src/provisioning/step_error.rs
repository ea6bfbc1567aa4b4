//! Why a step failed, in words for whoever waits for it.

use kernel::Engine;
use sqlx::mysql::MySqlDatabaseError;
use tenancy::{Cause, ConnectError};

use super::refusal;

/// Why a step failed: a stable code, what happened, and what to do. Never a secret, and of our own servers no address.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {what}")]
pub struct StepError {
    pub code: &'static str,
    pub what: String,
    pub advice: &'static str,
    /// Whether doing it again in a moment may help without anybody doing anything.
    pub is_transient: bool,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StepError {
    pub fn new(code: &'static str, what: impl Into<String>, advice: &'static str) -> Self {
        Self { code, what: what.into(), advice, is_transient: false, source: None }
    }

    pub(super) fn transient(mut self) -> Self {
        self.is_transient = true;
        self
    }

    pub(super) fn because(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }
}

pub const OURS: &str = "Nothing to do for you: this is on our side. Retry, and if it fails again, ask support.";

/// What the code of a server's error means to whoever waits for the step.
#[derive(Debug, Clone, Copy)]
enum Said {
    MissingPrivilege(Engine),
    DiskFull,
    StatementTimeout,
    /// Somebody else was in the way: locks, deadlocks, a template in use, the same thing made twice at once.
    Busy,
    Unavailable,
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
                1044 | 1142 | 1143 | 1227 | 1370 => Self::MissingPrivilege(Engine::Mysql),
                1021 | 1114 => Self::DiskFull,
                1969 | 3024 => Self::StatementTimeout,
                1007 | 1020 | 1062 | 1205 | 1213 => Self::Busy,
                1040 | 1053 | 1203 | 1226 | 1927 | 4031 => Self::Unavailable,
                _ => Self::Unexpected,
            };
        }
        match said.code().as_deref() {
            Some("42501") => Self::MissingPrivilege(Engine::Postgresql),
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

impl From<sqlx::Error> for StepError {
    fn from(error: sqlx::Error) -> Self {
        let step = match Said::by(&error) {
            Said::MissingPrivilege(engine) => {
                Self::new("missing-privilege", "The login may not do what is needed.", grant_advice(engine))
            }
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
            Said::ConnectionLost => Self::new(
                "connection-lost",
                "The connection to the database broke.",
                "Check the network and the server, then retry.",
            )
            .transient(),
            Said::Unexpected => Self::new("unexpected", "Something failed that should not.", OURS),
        };
        step.because(error)
    }
}

/// What gives a login the rights that it needs.
pub(super) const fn grant_advice(engine: Engine) -> &'static str {
    match engine {
        Engine::Mysql => "Grant it: GRANT ALL PRIVILEGES ON `<database>`.* TO '<login>'@'%';",
        _ => "Grant it: GRANT CREATE ON DATABASE <database> TO <login>;",
    }
}

impl StepError {
    /// Why no connection to a server of this engine came about.
    pub fn connecting(engine: Engine, error: ConnectError) -> Self {
        let (code, what, advice) = match error.cause {
            Cause::Refused => (
                "refused",
                "Nothing listens at this host and port.",
                "Check host and port, and that the server listens on a public address.",
            ),
            Cause::Unreachable => (
                "unreachable",
                "The server cannot be reached.",
                "Check the host's name, and that a firewall lets us in.",
            ),
            Cause::PrivateAddress => (
                "private-address",
                "The host's name leads to a private, loopback or link-local address.",
                "Connect again with a host that is public and resolves.",
            ),
            Cause::Timeout => {
                ("timeout", "The server did not answer in time.", "Check that a firewall lets us in, then retry.")
            }
            Cause::WrongPassword => {
                ("wrong-password", "The server refused the user or the password.", "Connect again with the right ones.")
            }
            Cause::Forbidden => (
                "forbidden",
                "This login may not enter this database.",
                match engine {
                    Engine::Mysql => "Let it in: GRANT ALL PRIVILEGES ON `<database>`.* TO '<login>'@'%';",
                    _ => "Grant it: GRANT CONNECT ON DATABASE <database> TO <login>;",
                },
            ),
            Cause::MissingDatabase => (
                "missing-database",
                "The server has no database of this name.",
                "Create it, or connect again with the right name.",
            ),
            Cause::Tls => (
                "tls",
                "TLS could not be agreed on, or the certificate was not accepted.",
                "Check the certificate's name and date; give its CA, or another TLS mode.",
            ),
            Cause::TooManyConnections => (
                "too-many-connections",
                "The server has no connection left.",
                "Raise its limit or close others, then retry.",
            ),
            Cause::NotReady => {
                ("not-ready", "The server is starting, stopping or recovering.", "Wait for it, then retry.")
            }
            Cause::TransactionPooler => transaction_pooler(),
            Cause::Sealed => ("sealed", "The stored credential does not open.", OURS),
            Cause::Protocol => {
                let what = match engine {
                    Engine::Mysql => "What answered is no MySQL or MariaDB that we can talk to.",
                    _ => "What answered is no PostgreSQL that we can talk to.",
                };
                ("protocol", what, "Check host, port and engine.")
            }
        };
        // The server's own code may say more.
        let refusal = error.code.as_deref().and_then(|code| refusal::of_code(engine, code));
        let mut step = match refusal {
            Some(refusal) => Self::new(refusal.code, refusal.what, refusal.advice),
            None => Self::new(code, what, advice),
        };
        step.is_transient =
            matches!(error.cause, Cause::Unreachable | Cause::Timeout | Cause::TooManyConnections | Cause::NotReady);
        step.because(error)
    }
}

pub const fn transaction_pooler() -> (&'static str, &'static str, &'static str) {
    (
        "transaction-pooler",
        "A pooler in transaction mode stands before the database; it can mix up answers.",
        "Connect to the server itself, or use the pooler's session mode (often the same host at port 5432).",
    )
}
