//! A statement with its arguments, ready for the engine of the connection that runs it.

use sqlx::SqlStr;
use sqlx::postgres::PgArguments;

/// Whether a statement may be run a second time when its connection turns out to be dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It changes nothing: it is retried once on a fresh connection.
    Read,
    /// It changes something: it is never retried here.
    Write,
}

/// A statement and its arguments for one engine.
pub struct Query {
    pub(crate) kind: Kind,
    pub(crate) statement: Statement,
}

pub(crate) enum Statement {
    Postgres(SqlStr, PgArguments),
}

impl Query {
    /// A statement for PostgreSQL. Use `&'static str` or `AssertSqlSafe` text; a text used again and again should be
    /// static or shared, because it keys the connection's cache of prepared statements.
    pub fn postgres(kind: Kind, sql: impl sqlx::SqlSafeStr, arguments: PgArguments) -> Self {
        Self { kind, statement: Statement::Postgres(sql.into_sql_str(), arguments) }
    }
}

/// A row type that every engine can fill: `#[derive(sqlx::FromRow)]` gives it.
pub trait Row: for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin {}

impl<T> Row for T where T: for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin {}
