//! A leased connection and a transaction on it.
//!
//! What is known of a connection decides where it goes when it is dropped:
//! - *clean*: every statement was answered to its end, outside a transaction → idle, for the next borrower;
//! - *touched*: it may carry session state, or an open transaction → a task rolls back and resets it, or closes it;
//! - *in flight*: a future was dropped, or gave up, while an answer was on its way → a task waits for the server to end
//!   it, then closes the connection: an answer never reaches anybody but the one who asked;
//! - *dead*: the connection broke, or the server said that it ends → closed.

use std::sync::Arc;
use std::time::Duration;

use kernel::Engine;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::postgres::{PgConnection, PgRow};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::closing::Farewell;
use crate::error::{ConnectError, LeaseError, is_fatal, is_of_the_beginning};
use crate::pool::{Physical, Pool};
use crate::query::{Kind, Query, Row};
use crate::session::{Ping, Session, Sink, unbroken_exchange};

/// How old a session is before it is ended for what it has kept from its beginning. A younger one tells how things are now:
/// then each request would log in anew, for nothing.
const TIRED_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Clean,
    InFlight,
    Dead,
}

/// A connection to one store's database, checked out of its pool until dropped.
pub struct Connection {
    pool: Arc<Pool>,
    physical: Option<Box<Physical>>,
    condition: Condition,
    is_touched: bool,
    in_transaction: bool,
    has_failed: bool,
    is_recovering: bool,
    /// A job's turn, which the next job gets when this is dropped.
    turn: Option<OwnedSemaphorePermit>,
}

impl Connection {
    pub(crate) fn new(pool: Arc<Pool>, physical: Box<Physical>) -> Self {
        Self {
            pool,
            physical: Some(physical),
            condition: Condition::Clean,
            is_touched: false,
            in_transaction: false,
            has_failed: false,
            is_recovering: false,
            turn: None,
        }
    }

    pub(crate) fn keep_turn(&mut self, turn: OwnedSemaphorePermit) {
        self.turn = Some(turn);
    }

    pub(crate) fn into_physical(mut self) -> Option<Box<Physical>> {
        self.physical.take()
    }

    /// The engine that statements must be written for.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.pool.database.engine
    }

    /// The driver's connection, for what [`Query`] cannot say (COPY, several statements at once). Whatever is done to the
    /// session is undone before the next borrower gets it, which costs a round trip.
    pub fn postgres(&mut self) -> Option<&mut PgConnection> {
        let connection = self.physical.as_mut()?.session.postgres()?;
        self.is_touched = true;
        Some(connection)
    }

    /// As [`Connection::postgres`] for MySQL, where nothing undoes what is done to a session: the connection is closed when
    /// it is given back.
    pub fn mysql(&mut self) -> Option<&mut MySqlConnection> {
        let connection = self.physical.as_mut()?.session.mysql()?;
        self.is_touched = true;
        Some(connection)
    }

    /// Closes it when it is given back: its session keeps something that only another one is without.
    pub fn give_up(&mut self) {
        self.condition = Condition::Dead;
    }

    /// All rows.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub async fn fetch_all<T: Row>(&mut self, query: Query) -> Result<Vec<T>, sqlx::Error> {
        let mut all = All { rows: Vec::new(), wrong: None };
        self.run(query, &mut all).await?;
        all.wrong.map_or(Ok(all.rows), Err)
    }

    /// The first row, if any.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub async fn fetch_optional<T: Row>(&mut self, query: Query) -> Result<Option<T>, sqlx::Error> {
        let mut first = First(None);
        self.run(query, &mut first).await?;
        first.0.transpose()
    }

    /// The first row.
    ///
    /// # Errors
    /// Also when there is none.
    pub async fn fetch_one<T: Row>(&mut self, query: Query) -> Result<T, sqlx::Error> {
        self.fetch_optional(query).await?.ok_or(sqlx::Error::RowNotFound)
    }

    /// The number of rows that the statement changed.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub async fn execute(&mut self, query: Query) -> Result<u64, sqlx::Error> {
        let mut changed = Changed(0);
        self.run(query, &mut changed).await?;
        Ok(changed.0)
    }

    /// Runs `query`, a read once more on a fresh connection when this one turns out to be dead.
    async fn run(&mut self, query: Query, sink: &mut impl Sink) -> Result<(), sqlx::Error> {
        let is_repeatable = query.kind == Kind::Read && !self.in_transaction && !self.is_touched;
        let again = is_repeatable.then(|| query.clone());
        let Err(error) = self.run_once(query, sink).await else { return Ok(()) };
        let Some(again) = again.filter(|_| self.condition == Condition::Dead) else { return Err(error) };
        if !self.renew().await {
            return Err(error);
        }
        sink.forget();
        self.run_once(again, sink).await
    }

    async fn run_once(&mut self, query: Query, sink: &mut impl Sink) -> Result<(), sqlx::Error> {
        if self.in_transaction && self.has_failed {
            // PostgreSQL would refuse it as well; MySQL may have ended the transaction, and would make each statement last.
            return Err(sqlx::Error::Protocol(
                "a statement of the transaction has failed: it can only be rolled back".into(),
            ));
        }
        self.is_touched |= query.may_alter_session();
        self.exchange(async |session| session.run(query.statement, sink).await).await
    }

    /// One exchange with the server: in flight from before the first byte until the last is read.
    async fn exchange<T>(
        &mut self,
        ask: impl AsyncFnOnce(&mut Session) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        let config = &self.pool.node.config;
        let limit = config.statement_timeout + config.query_margin;
        let physical = self.physical.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        if self.condition != Condition::Clean {
            return Err(sqlx::Error::PoolClosed);
        }
        self.condition = Condition::InFlight;
        match timeout(limit, unbroken_exchange(ask(&mut physical.session))).await {
            Ok(Ok(answer)) => {
                self.condition = Condition::Clean;
                Ok(answer)
            }
            Ok(Err(error)) => {
                if is_fatal(&error) {
                    self.condition = Condition::Dead;
                    self.pool.suspect_idle();
                } else if is_of_the_beginning(&error) && physical.opened.elapsed() > TIRED_AFTER {
                    self.condition = Condition::Dead;
                } else {
                    self.has_failed |= matches!(error, sqlx::Error::Database(_));
                    let is_settled = physical.session.settle(config.ping_timeout).await;
                    self.condition = if is_settled { Condition::Clean } else { Condition::Dead };
                }
                Err(error)
            }
            // It stays in flight: the server has not ended it.
            Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
        }
    }

    /// Swaps a dead connection for a live one.
    async fn renew(&mut self) -> bool {
        if let Some(dead) = self.physical.take() {
            self.pool.retire(dead, Farewell::Polite);
        }
        let pool = Arc::clone(&self.pool);
        match pool.acquire(false).await {
            Ok(fresh) => {
                self.physical = fresh.into_physical();
                self.condition = Condition::Clean;
                true
            }
            Err(_) => false,
        }
    }

    pub(crate) async fn ping(&mut self) -> Ping {
        let Some(physical) = self.physical.as_mut() else { return Ping::Dead };
        self.condition = Condition::InFlight;
        let ping = physical.session.ping(self.pool.node.config.ping_timeout).await;
        self.condition = if ping == Ping::Alive { Condition::Clean } else { Condition::Dead };
        ping
    }

    pub(crate) async fn begin(mut self) -> Result<Transaction, LeaseError> {
        let mut result = self.exchange(async |session| session.begin().await).await;
        if result.is_err() && self.condition == Condition::Dead && self.renew().await {
            result = self.exchange(async |session| session.begin().await).await;
        }
        match result {
            Ok(()) => {
                self.in_transaction = true;
                Ok(Transaction { connection: self })
            }
            Err(error) => {
                self.condition = Condition::Dead;
                let cause = ConnectError::from(&error).cause;
                Err(LeaseError::Unavailable { cause, retry_after: Duration::from_secs(1) })
            }
        }
    }

    /// Ends the transaction and undoes what was done to the session. Wherever that stops, the connection is closed.
    async fn recover(mut self) {
        if self.in_transaction && self.roll_back().await.is_err() {
            return;
        }
        if self.is_touched {
            self.condition = Condition::InFlight;
            let Some(physical) = self.physical.as_mut() else { return };
            let node = &self.pool.node;
            if physical.session.reset(&node.setup, node.config.close_timeout).await {
                self.condition = Condition::Clean;
                self.is_touched = false;
            }
        }
    }

    async fn roll_back(&mut self) -> Result<(), sqlx::Error> {
        self.exchange(async |session| session.roll_back().await).await?;
        self.in_transaction = false;
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(physical) = self.physical.take() else { return };
        let is_spotless = !self.in_transaction && !self.is_touched;
        match self.condition {
            Condition::Clean if is_spotless => self.pool.release(physical),
            Condition::Clean if !self.is_recovering => {
                let connection = Self {
                    pool: Arc::clone(&self.pool),
                    physical: Some(physical),
                    condition: Condition::Clean,
                    is_touched: self.is_touched,
                    in_transaction: self.in_transaction,
                    has_failed: false,
                    is_recovering: true,
                    turn: self.turn.take(),
                };
                self.pool.node.spawn(connection.recover());
            }
            Condition::Clean | Condition::InFlight => self.pool.retire(physical, Farewell::Drain),
            Condition::Dead => self.pool.retire(physical, Farewell::Polite),
        }
    }
}

/// A transaction: dropped without [`Transaction::commit`] it is rolled back. Reaches the connection's methods by `Deref`.
pub struct Transaction {
    connection: Connection,
}

impl std::ops::Deref for Transaction {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl std::ops::DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

impl Transaction {
    /// Makes it last. A transaction in which a statement failed is rolled back instead, and that is an error: the server
    /// itself would call it a success.
    ///
    /// # Errors
    /// What the server or the connection says; then nothing is known to have lasted.
    pub async fn commit(mut self) -> Result<(), sqlx::Error> {
        let connection = &mut self.connection;
        if connection.is_touched && !connection.has_failed {
            // Statements went by us: where one that failed spoils the transaction, the server says so.
            connection.exchange(async |session| session.check_transaction().await).await?;
        }
        if connection.has_failed {
            connection.roll_back().await?;
            return Err(sqlx::Error::Protocol("the transaction was rolled back: a statement in it had failed".into()));
        }
        match connection.exchange(async |session| session.commit().await).await {
            Ok(()) => {
                connection.in_transaction = false;
                Ok(())
            }
            Err(error) => {
                // A deferred constraint, say. The driver still counts a transaction that the server has ended.
                if connection.condition == Condition::Clean {
                    connection.roll_back().await?;
                }
                Err(error)
            }
        }
    }

    /// Undoes it, and keeps the connection for the next borrower. Where a statement ended the connection, or is not answered,
    /// it is undone with the session: there is nothing to be said, and why is known from that statement.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub async fn rollback(mut self) -> Result<(), sqlx::Error> {
        if self.connection.condition != Condition::Clean {
            return Ok(());
        }
        self.connection.roll_back().await
    }
}

struct All<T> {
    rows: Vec<T>,
    wrong: Option<sqlx::Error>,
}

impl<T> All<T> {
    fn take(&mut self, decode: impl FnOnce() -> Result<T, sqlx::Error>) {
        if self.wrong.is_none() {
            match decode() {
                Ok(row) => self.rows.push(row),
                Err(error) => self.wrong = Some(error),
            }
        }
    }
}

impl<T: Row> Sink for All<T> {
    fn postgres(&mut self, row: PgRow) {
        self.take(|| T::from_row(&row));
    }
    fn mysql(&mut self, row: MySqlRow) {
        self.take(|| T::from_row(&row));
    }
    fn forget(&mut self) {
        self.rows.clear();
        self.wrong = None;
    }
}

struct First<T>(Option<Result<T, sqlx::Error>>);

impl<T: Row> Sink for First<T> {
    fn postgres(&mut self, row: PgRow) {
        self.0.get_or_insert_with(|| T::from_row(&row));
    }
    fn mysql(&mut self, row: MySqlRow) {
        self.0.get_or_insert_with(|| T::from_row(&row));
    }
    fn forget(&mut self) {
        self.0 = None;
    }
}

struct Changed(u64);

impl Sink for Changed {
    fn postgres(&mut self, _row: PgRow) {}
    fn mysql(&mut self, _row: MySqlRow) {}
    fn done(&mut self, changed: u64) {
        self.0 += changed;
    }
    fn forget(&mut self) {
        self.0 = 0;
    }
}
