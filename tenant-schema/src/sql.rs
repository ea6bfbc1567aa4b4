//! From a sea-query statement to a [`tenancy::Query`] of the connection's engine. Nothing else in this crate knows what an
//! engine's SQL looks like.

use kernel::Engine;
use sea_query::{PostgresQueryBuilder, SelectStatement};
use sea_query_sqlx::{SqlxBinder, SqlxValues};
use sqlx::{AssertSqlSafe, IntoArguments as _};
use std::sync::Arc;
use tenancy::query::{Kind, Row};
use tenancy::{Connection, Query};

/// The statement for `engine`. Its text holds placeholders only, never values.
pub(crate) fn query(kind: Kind, engine: Engine, statement: &impl SqlxBinder) -> Query {
    match engine {
        Engine::Postgresql => {
            let (sql, values) = statement.build_sqlx(PostgresQueryBuilder);
            Query::postgres(kind, AssertSqlSafe(sql), values.into_arguments())
        }
        engine => unreachable!("there are no statements for {engine}"),
    }
}

/// The text of a read whose values do not matter: what [`prepared`] takes.
pub(crate) fn text(engine: Engine, statement: &SelectStatement) -> Arc<str> {
    match engine {
        Engine::Postgresql => statement.build(PostgresQueryBuilder).0.into(),
        engine => unreachable!("there are no statements for {engine}"),
    }
}

/// A read whose text was built before, with the values in the order of its placeholders.
pub(crate) fn prepared(engine: Engine, text: Arc<str>, values: sea_query::Values) -> Query {
    match engine {
        Engine::Postgresql => Query::postgres(Kind::Read, AssertSqlSafe(text), SqlxValues(values).into_arguments()),
        engine => unreachable!("there are no statements for {engine}"),
    }
}

/// All rows of a read.
pub(crate) async fn all<T: Row>(conn: &mut Connection, statement: &SelectStatement) -> Result<Vec<T>, sqlx::Error> {
    conn.fetch_all(query(Kind::Read, conn.engine(), statement)).await
}

/// The first row of a read, if any.
pub(crate) async fn optional<T: Row>(
    conn: &mut Connection,
    statement: &SelectStatement,
) -> Result<Option<T>, sqlx::Error> {
    conn.fetch_optional(query(Kind::Read, conn.engine(), statement)).await
}

/// The one row of a read.
pub(crate) async fn one<T: Row>(conn: &mut Connection, statement: &SelectStatement) -> Result<T, sqlx::Error> {
    conn.fetch_one(query(Kind::Read, conn.engine(), statement)).await
}

/// Rows of a statement that locks or changes what it returns, so that it must not run twice.
pub(crate) async fn optional_once<T: Row>(
    conn: &mut Connection,
    statement: &impl SqlxBinder,
) -> Result<Option<T>, sqlx::Error> {
    conn.fetch_optional(query(Kind::Write, conn.engine(), statement)).await
}

/// Runs a statement that changes something; the number of rows that it changed.
pub(crate) async fn run(conn: &mut Connection, statement: &impl SqlxBinder) -> Result<u64, sqlx::Error> {
    conn.execute(query(Kind::Write, conn.engine(), statement)).await
}

/// Whether a statement gave up waiting for another transaction's lock.
pub(crate) fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref() == Some("55P03")
}

/// Whether a transaction that failed so may be run again from its start: a serialization failure or a deadlock.
pub(crate) fn is_retryable(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    matches!(code.as_deref(), Some("40001" | "40P01"))
}

/// The name of the constraint that refused a statement.
pub(crate) fn constraint(error: &sqlx::Error) -> Option<&str> {
    error.as_database_error().and_then(sqlx::error::DatabaseError::constraint)
}

/// How often a transaction is run again after a deadlock or a serialization failure.
pub(crate) const MAX_RETRIES: u32 = 5;
