//! One physical connection of whatever engine: the only place that speaks to a driver about sessions.

use std::sync::Arc;
use std::time::Duration;

use kernel::Engine;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use tokio::time::timeout;

use crate::config::TenancyConfig;
use crate::credential::Credential;
use crate::error::{Cause, ConnectError};

pub(crate) enum Link {
    Postgres(PgConnection),
}

/// What came of asking a connection whether it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ping {
    Alive,
    /// It broke: this one, and perhaps no other.
    Dead,
    /// Nothing came: the server or the way to it hangs, so the others will not answer either.
    Late,
}

/// What names the server's side of a connection: no two connections that are open at once share it, unless a pooler that
/// deals its server connections out by transaction stands in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backend(String);

/// Names the server's side, and lets it be told apart after the server was restarted, too.
const BACKEND: &str = "select pg_backend_pid()::text || '/' || extract(epoch from pg_postmaster_start_time())::text";

/// What names the server's side of `connection`, asked in the simple protocol: prepared statements fail behind a pooler.
pub(crate) async fn backend_of(connection: &mut PgConnection) -> Result<Backend, sqlx::Error> {
    let row = sqlx::raw_sql(BACKEND).fetch_one(connection).await?;
    row.try_get(0).map(Backend)
}

/// The session setup of every engine, written once.
pub(crate) struct Setup {
    postgres: Arc<str>,
    /// Undoes what a borrower may have done to a session, then sets it up again.
    postgres_reset: Arc<str>,
}

impl Setup {
    pub(crate) fn new(config: &TenancyConfig) -> Self {
        let mut session = String::new();
        if !config.search_path.is_empty() {
            let path: Vec<String> = config.search_path.iter().map(ToString::to_string).collect();
            session.push_str(&format!("set search_path = {}; ", path.join(", ")));
        }
        session.push_str(&format!(
            "set statement_timeout = {}; set lock_timeout = {}; set idle_in_transaction_session_timeout = {}; \
             set time zone 'UTC'; {BACKEND}",
            config.statement_timeout.as_millis(),
            config.lock_timeout.as_millis(),
            config.idle_in_transaction_timeout.as_millis(),
        ));
        // `discard all` would also forget the prepared statements that the driver still counts on.
        let reset = format!(
            "set client_min_messages = error; rollback; close all; set session authorization default; reset all; \
             unlisten *; select pg_advisory_unlock_all(); discard plans; discard temp; discard sequences; {session}"
        );
        Self { postgres: session.into(), postgres_reset: reset.into() }
    }
}

impl Link {
    /// Opens a connection and sets its session up, in one round trip after the login, never by start-up options: a pooler
    /// refuses those.
    pub(crate) async fn open(credential: &Credential, setup: &Setup) -> Result<(Self, Backend), ConnectError> {
        match credential.engine {
            Engine::Postgresql => {
                let mut connection = PgConnection::connect_with(&credential.pg_options())
                    .await
                    .map_err(|error| ConnectError::from(&error))?;
                let row = sqlx::raw_sql(AssertSqlSafe(Arc::clone(&setup.postgres))).fetch_one(&mut connection).await;
                match row.and_then(|row| row.try_get::<String, _>(0)) {
                    Ok(backend) => Ok((Self::Postgres(connection), Backend(backend))),
                    Err(error) => {
                        drop(connection.close().await);
                        Err(ConnectError::from(&error))
                    }
                }
            }
            _ => Err(ConnectError::new(Cause::Protocol)),
        }
    }

    /// Whether the server still answers, after everything that it was already asked.
    pub(crate) async fn ping(&mut self, limit: Duration) -> Ping {
        let Self::Postgres(connection) = self;
        match timeout(limit, connection.ping()).await {
            Ok(Ok(())) => Ping::Alive,
            Ok(Err(_)) => Ping::Dead,
            Err(_) => Ping::Late,
        }
    }

    /// Reads what is left of a failed statement's answer.
    pub(crate) async fn settle(&mut self, limit: Duration) -> bool {
        let Self::Postgres(connection) = self;
        matches!(timeout(limit, connection.flush()).await, Ok(Ok(())))
    }

    /// Makes the session as new. When it does not succeed the connection must be closed.
    pub(crate) async fn reset(&mut self, setup: &Setup, limit: Duration) -> bool {
        let Self::Postgres(connection) = self;
        // The driver counts a transaction that somebody forgot: its count cannot be mended from outside.
        if connection.is_in_transaction() {
            return false;
        }
        let reset = sqlx::raw_sql(AssertSqlSafe(Arc::clone(&setup.postgres_reset)));
        matches!(timeout(limit, reset.execute(connection)).await, Ok(Ok(_)))
    }

    /// Says good-bye, within `limit`.
    pub(crate) async fn close(self, limit: Duration) {
        let Self::Postgres(connection) = self;
        drop(timeout(limit, connection.close()).await);
    }
}
