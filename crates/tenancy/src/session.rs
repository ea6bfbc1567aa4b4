//! One physical connection of whatever engine: the only place that speaks to a driver about sessions.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::{FutureExt as _, TryFutureExt as _, TryStreamExt as _};
use kernel::Engine;
use kernel::address::is_public;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, Either, Executor as _, MySql, Postgres, Row as _};
use sqlx_core::transaction::TransactionManager as _;
use tokio::time::timeout;

use crate::config::TenancyConfig;
use crate::credential::Credential;
use crate::error::{Cause, ConnectError};
use crate::query::Statement;
use crate::reach::{Reach, Way};

type PgManager = <Postgres as sqlx::Database>::TransactionManager;
type MySqlManager = <MySql as sqlx::Database>::TransactionManager;

/// A connection outside every pool and budget, as [`Credential::connect`] opens it: for provisioning and checks. Close it in
/// every outcome.
pub enum Session {
    /// To PostgreSQL.
    Postgres(PgConnection),
    /// To MySQL or MariaDB.
    MySql(MySqlConnection),
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

impl Backend {
    /// That of a connection which is open no longer: no server calls itself so.
    pub(crate) const fn gone() -> Self {
        Self(String::new())
    }
}

/// Names the server's side, and lets it be told apart after the server was restarted, too.
const PG_BACKEND: &str = "select pg_backend_pid()::text || '/' || extract(epoch from pg_postmaster_start_time())::text";

/// As [`PG_BACKEND`]; when it was started, a server of MySQL does not tell everybody, and so a number may come again.
const MYSQL_BACKEND: &str = "select concat_ws('/', @@hostname, @@port, connection_id())";

/// What every session is, whatever the server's own settings are: strict, so that nothing is cut off or made up to fit a
/// column; in UTC; in whole UTF-8; and as far apart from other transactions as PostgreSQL's are by default.
const MYSQL_SESSION: &str = "set session transaction isolation level read committed; \
     set sql_mode = 'STRICT_ALL_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION', \
     time_zone = '+00:00', names utf8mb4 collate utf8mb4_bin";

/// The session setup of every engine, written once.
pub(crate) struct Setup {
    postgres: Arc<str>,
    /// Undoes what a borrower may have done to a session, then sets it up again.
    postgres_reset: Arc<str>,
    mysql: Arc<str>,
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
             set time zone 'UTC'; {PG_BACKEND}",
            config.statement_timeout.as_millis(),
            config.lock_timeout.as_millis(),
            config.idle_in_transaction_timeout.as_millis(),
        ));
        // `discard all` would also forget the prepared statements that the driver still counts on.
        let reset = format!(
            "set client_min_messages = error; rollback; close all; set session authorization default; reset all; \
             unlisten *; select pg_advisory_unlock_all(); discard plans; discard temp; discard sequences; {session}"
        );
        Self { postgres: session.into(), postgres_reset: reset.into(), mysql: Self::mysql(config).into() }
    }

    /// MariaDB limits every statement and an idle transaction, MySQL only what reads; each skips the other's comment. Whole
    /// seconds are the least that both know for a lock.
    fn mysql(config: &TenancyConfig) -> String {
        let whole_seconds = |limit: Duration| limit.as_millis().div_ceil(1000).max(1);
        let lock = whole_seconds(config.lock_timeout);
        format!(
            "{MYSQL_SESSION}, innodb_lock_wait_timeout = {lock}, lock_wait_timeout = {lock}, wait_timeout = {} \
             /*M!100100 , max_statement_time = {}, idle_transaction_timeout = {} */ \
             /*!80000 , max_execution_time = {} */; {MYSQL_BACKEND}",
            // Longer than a pool keeps an idle one; the session of a node that died without a word ends by it.
            whole_seconds(config.idle_timeout + Duration::from_secs(60)),
            config.statement_timeout.as_secs_f64(),
            whole_seconds(config.idle_in_transaction_timeout),
            config.statement_timeout.as_millis(),
        )
    }
}

/// What the driver does with a server that may be anybody's. Of one that breaks the protocol's rules it panics now and then,
/// which is that server's trouble and nobody else's. What is left of the connection is of no use.
///
/// # Errors
/// What `work` says, and `Protocol` when the driver panicked.
pub async fn unbroken<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, ConnectError> {
    // Boxed, as a driver's connecting is large, and lies deep in whatever waits for it.
    unbroken_exchange(Box::pin(work)).await.map_err(|error| ConnectError::from(&error))
}

/// As [`unbroken`], for whoever needs the driver's own words.
pub(crate) async fn unbroken_exchange<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(outcome) => outcome,
        Err(_) => Err(sqlx::Error::Protocol("the server breaks the rules of the protocol".to_owned())),
    }
}

/// How often a login is carried on before it gives way to other tasks. Of the driver's rounds of hashing it does 160 then,
/// which take about a tenth of a millisecond.
const STEPS_OF_A_TURN: u32 = 32;

/// The driver gives way after every five of a login's 4,096 rounds of hashing. In a busy process each time waits for everybody
/// else's turn, 820 times; so what gave way is carried on for some steps first.
async fn in_few_turns<T>(mut work: impl Future<Output = T> + Unpin) -> T {
    poll_fn(|cx| {
        // Polled without being woken, whatever waits for the server goes on waiting.
        for _ in 0..STEPS_OF_A_TURN {
            if let Poll::Ready(outcome) = work.poll_unpin(cx) {
                return Poll::Ready(outcome);
            }
        }
        Poll::Pending
    })
    .await
}

/// What becomes of an answer. Rows that do not decode must not stop the reading: an answer is always read to its end.
pub(crate) trait Sink: Send {
    fn postgres(&mut self, row: PgRow);
    fn mysql(&mut self, row: MySqlRow);
    fn done(&mut self, _changed: u64) {}
    fn forget(&mut self);
}

impl Session {
    /// Opens a connection without a word about the session, to where `reach` allows.
    pub(crate) async fn connect(credential: &Credential, reach: Reach) -> Result<Self, ConnectError> {
        match reach {
            Reach::Anywhere => unbroken(Self::login(credential, None)).await,
            Reach::Private | Reach::Public => {
                let addresses = reach.addresses(&credential.host, credential.port).await?;
                // An address leads where it says. Nearby, the way's copy of every byte would be felt.
                if reach == Reach::Private && credential.host.parse().is_ok_and(|address: IpAddr| !is_public(address)) {
                    return unbroken(Self::login(credential, None)).await;
                }
                Self::connect_at(credential, &addresses).await
            }
        }
    }

    /// Opens a connection to one of `addresses`, whatever the host's name says.
    pub(crate) async fn connect_at(credential: &Credential, addresses: &[SocketAddr]) -> Result<Self, ConnectError> {
        let connecting = async {
            let way = Way::to(addresses, credential.port).await?;
            let (socket, allowance) = (way.socket().to_owned(), way.allowance());
            let carrying = way.carry().map_err(sqlx::Error::Io);
            let entered = tokio::try_join!(Self::login(credential, Some(&socket)), carrying);
            if allowance.is_cut() || (entered.is_ok() && !allowance.end_login()) {
                return Err(sqlx::Error::Protocol("the server says more than a login takes".to_owned()));
            }
            entered.map(|(session, ())| session)
        };
        unbroken(connecting).await
    }

    /// Logs in over `socket`, or to where the host's name leads.
    async fn login(credential: &Credential, socket: Option<&Path>) -> Result<Self, sqlx::Error> {
        match credential.engine {
            Engine::Postgresql => {
                let mut options = credential.pg_options();
                // The driver is told the folder, and finds the port's socket in it.
                if let Some(folder) = socket.and_then(Path::parent) {
                    options = options.socket(folder);
                }
                in_few_turns(PgConnection::connect_with(&options).boxed()).await.map(Self::Postgres)
            }
            Engine::Mysql => {
                let mut options = credential.mysql_options();
                if let Some(socket) = socket {
                    options = options.socket(socket);
                }
                MySqlConnection::connect_with(&options).await.map(Self::MySql)
            }
            engine => Err(sqlx::Error::Configuration(format!("{engine} is not spoken").into())),
        }
    }

    /// Opens a connection for a pool and sets its session up, in one round trip after the login, never by start-up options:
    /// a pooler refuses those.
    pub(crate) async fn open(
        credential: &Credential,
        reach: Reach,
        setup: &Setup,
    ) -> Result<(Self, Backend), ConnectError> {
        let mut session = Self::connect(credential, reach).await?;
        let text = match &session {
            Self::Postgres(_) => &setup.postgres,
            Self::MySql(_) => &setup.mysql,
        };
        match unbroken(session.ask(text)).await {
            Ok(backend) => Ok((session, Backend(backend))),
            Err(error) => {
                session.hang_up().await;
                Err(error)
            }
        }
    }

    /// What a session outside the pools needs as well, so that nothing depends on how the server is set up.
    pub(crate) async fn set_up(&mut self) -> Result<(), sqlx::Error> {
        match self {
            Self::Postgres(_) => Ok(()),
            Self::MySql(connection) => connection.execute(sqlx::raw_sql(MYSQL_SESSION)).await.map(drop),
        }
    }

    /// Sets the session up as a pool with this configuration does, for whoever looks at what comes of it. Not before it is
    /// known to be a session: behind a transaction pooler the settings would be left to others.
    ///
    /// # Errors
    /// What the server says: some setting is not to be had there.
    pub async fn set_up_as_pooled(&mut self, config: &TenancyConfig) -> Result<(), sqlx::Error> {
        let setup = Setup::new(config);
        let text = match self {
            Self::Postgres(_) => &setup.postgres,
            Self::MySql(_) => &setup.mysql,
        };
        self.ask(text).await.map(drop)
    }

    /// Whose rules the statements follow that it is given.
    #[must_use]
    pub fn engine(&self) -> Engine {
        match self {
            Self::Postgres(_) => Engine::Postgresql,
            Self::MySql(_) => Engine::Mysql,
        }
    }

    /// The driver's connection, when it is one to PostgreSQL.
    pub fn postgres(&mut self) -> Option<&mut PgConnection> {
        match self {
            Self::Postgres(connection) => Some(connection),
            Self::MySql(_) => None,
        }
    }

    /// The driver's connection, when it is one to MySQL.
    pub fn mysql(&mut self) -> Option<&mut MySqlConnection> {
        match self {
            Self::MySql(connection) => Some(connection),
            Self::Postgres(_) => None,
        }
    }

    /// Says good-bye to the server.
    ///
    /// # Errors
    /// What the connection says; it is closed nevertheless.
    pub async fn close(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Postgres(connection) => connection.close().await,
            Self::MySql(connection) => connection.close().await,
        }
    }

    async fn hang_up(self) {
        drop(self.close().await);
    }

    /// The last row's one text, in the simple protocol: prepared statements fail behind a pooler.
    async fn ask(&mut self, sql: &Arc<str>) -> Result<String, sqlx::Error> {
        let sql = AssertSqlSafe(Arc::clone(sql));
        match self {
            Self::Postgres(connection) => sqlx::raw_sql(sql).fetch_one(connection).await?.try_get(0),
            Self::MySql(connection) => sqlx::raw_sql(sql).fetch_one(connection).await?.try_get(0),
        }
    }

    /// What names the server's side.
    pub(crate) async fn backend(&mut self) -> Result<Backend, sqlx::Error> {
        let sql = match self {
            Self::Postgres(_) => PG_BACKEND,
            Self::MySql(_) => MYSQL_BACKEND,
        };
        self.ask(&sql.into()).await.map(Backend)
    }

    /// Runs a statement and gives its answer to `sink`, to its end.
    pub(crate) async fn run(&mut self, statement: Statement, sink: &mut impl Sink) -> Result<(), sqlx::Error> {
        match (self, statement) {
            (Self::Postgres(connection), Statement::Postgres(sql, arguments)) => {
                let mut answers = connection.fetch_many(sqlx::query_with(sql, arguments));
                while let Some(answer) = answers.try_next().await? {
                    match answer {
                        Either::Left(done) => sink.done(done.rows_affected()),
                        Either::Right(row) => sink.postgres(row),
                    }
                }
            }
            (Self::MySql(connection), Statement::MySql(sql, arguments)) => {
                let mut answers = connection.fetch_many(sqlx::query_with(sql, arguments));
                while let Some(answer) = answers.try_next().await? {
                    match answer {
                        Either::Left(done) => sink.done(done.rows_affected()),
                        Either::Right(row) => sink.mysql(row),
                    }
                }
            }
            (Self::Postgres(_) | Self::MySql(_), _) => {
                return Err(sqlx::Error::Encode("the statement is of another engine than the connection".into()));
            }
        }
        Ok(())
    }

    pub(crate) async fn begin(&mut self) -> Result<(), sqlx::Error> {
        match self {
            Self::Postgres(connection) => PgManager::begin(connection, None).await,
            Self::MySql(connection) => MySqlManager::begin(connection, None).await,
        }
    }

    pub(crate) async fn commit(&mut self) -> Result<(), sqlx::Error> {
        match self {
            Self::Postgres(connection) => PgManager::commit(connection).await,
            Self::MySql(connection) => MySqlManager::commit(connection).await,
        }
    }

    pub(crate) async fn roll_back(&mut self) -> Result<(), sqlx::Error> {
        match self {
            Self::Postgres(connection) => PgManager::rollback(connection).await,
            Self::MySql(connection) => MySqlManager::rollback(connection).await,
        }
    }

    /// Whether the transaction may still be committed: PostgreSQL refuses anything after a statement that failed. MySQL goes
    /// on, and cannot be asked.
    pub(crate) async fn check_transaction(&mut self) -> Result<(), sqlx::Error> {
        match self {
            Self::Postgres(connection) => connection.execute("select 1").await.map(drop),
            Self::MySql(_) => Ok(()),
        }
    }

    /// Whether the server still answers, after everything that it was already asked.
    pub(crate) async fn ping(&mut self, limit: Duration) -> Ping {
        let ping = async {
            match self {
                Self::Postgres(connection) => connection.ping().await,
                Self::MySql(connection) => connection.ping().await,
            }
        };
        match timeout(limit, ping).await {
            Ok(Ok(())) => Ping::Alive,
            Ok(Err(_)) => Ping::Dead,
            Err(_) => Ping::Late,
        }
    }

    /// Reads what is left of a failed statement's answer.
    pub(crate) async fn settle(&mut self, limit: Duration) -> bool {
        let flush = async {
            match self {
                Self::Postgres(connection) => connection.flush().await,
                Self::MySql(connection) => connection.flush().await,
            }
        };
        matches!(timeout(limit, flush).await, Ok(Ok(())))
    }

    /// Makes the session as new. When it does not succeed the connection must be closed; MySQL has no statement for it.
    pub(crate) async fn reset(&mut self, setup: &Setup, limit: Duration) -> bool {
        let Self::Postgres(connection) = self else { return false };
        // The driver counts a transaction that somebody forgot: its count cannot be mended from outside.
        if connection.is_in_transaction() {
            return false;
        }
        let reset = sqlx::raw_sql(AssertSqlSafe(Arc::clone(&setup.postgres_reset)));
        matches!(timeout(limit, reset.execute(connection)).await, Ok(Ok(_)))
    }

    /// Says good-bye, within `limit`.
    pub(crate) async fn close_within(self, limit: Duration) {
        drop(timeout(limit, self.close()).await);
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_tuple("Session").field(&self.engine()).finish()
    }
}

/// Refuses what is not one session of the server: two that are open at once must not share its side.
pub(crate) async fn check_apart(one: &mut Session, two: &mut Session) -> Result<(), ConnectError> {
    let backends = async { Ok::<_, sqlx::Error>((one.backend().await?, two.backend().await?)) };
    let (first, second) = backends.await.map_err(|error| ConnectError::from(&error))?;
    if first == second { Err(ConnectError::new(Cause::TransactionPooler)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use futures_util::FutureExt as _;

    use super::in_few_turns;

    #[tokio::test]
    async fn what_gives_way_often_takes_few_turns() {
        let login = async {
            for _ in 0..820 {
                tokio::task::yield_now().await;
            }
            "in"
        };
        let (mut login, mut turns) = (Box::pin(in_few_turns(Box::pin(login))), 0);
        let outcome = poll_fn(|cx| {
            turns += 1;
            login.poll_unpin(cx)
        });
        assert_eq!(outcome.await, "in");
        assert_eq!(turns, 820 / 32 + 1);
    }

    #[tokio::test]
    async fn what_waits_for_somebody_else_still_waits() {
        let mut waiting = Box::pin(in_few_turns(std::future::pending::<()>()));
        assert!(poll_fn(|cx| Poll::Ready(waiting.poll_unpin(cx))).await.is_pending());
    }
}
