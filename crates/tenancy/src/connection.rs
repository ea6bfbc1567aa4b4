//! A leased connection and a transaction on it.

use kernel::Engine;

use crate::query::{Query, Row};

/// A connection to one store's database, checked out of its pool until dropped.
pub struct Connection {}

impl Connection {
    /// The engine that statements must be written for.
    #[must_use]
    pub fn engine(&self) -> Engine {
        Engine::Postgresql
    }
    /// The driver's connection, for what [`Query`] cannot say (COPY, several statements at once). Whatever is done to the
    /// session is undone before the next borrower gets it, which costs a round trip.
    pub fn postgres(&mut self) -> Option<&mut sqlx::PgConnection> {
        None
    }
    /// All rows.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub async fn fetch_all<T: Row>(&mut self, query: Query) -> Result<Vec<T>, sqlx::Error> {
        let _ = query;
        Err(sqlx::Error::PoolClosed)
    }
    /// The first row, if any.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub async fn fetch_optional<T: Row>(&mut self, query: Query) -> Result<Option<T>, sqlx::Error> {
        let _ = query;
        Err(sqlx::Error::PoolClosed)
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
        let _ = query;
        Err(sqlx::Error::PoolClosed)
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
    /// Makes it last.
    ///
    /// # Errors
    /// What the server or the connection says; then nothing is known to have lasted.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        Ok(())
    }
    /// Undoes it, and keeps the connection for the next borrower.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub async fn rollback(self) -> Result<(), sqlx::Error> {
        Ok(())
    }
}
