//! From a sea-query statement to a [`tenancy::Query`] of the connection's engine. Nothing else in this crate knows what an
//! engine's SQL looks like.

use kernel::Engine;
use sea_query::{Expr, ExprTrait as _, MysqlQueryBuilder, PostgresQueryBuilder, SelectStatement};
use sea_query_sqlx::{SqlxBinder, SqlxValues};
use sqlx::mysql::MySqlDatabaseError;
use sqlx::{AssertSqlSafe, Database, IntoArguments, MySql, Postgres};
use std::borrow::Cow;
use std::sync::Arc;
use tenancy::query::{Kind, Row};
use tenancy::{Connection, Query};

/// The statement for `engine`. Its text holds placeholders only, never values.
pub(crate) fn query(kind: Kind, engine: Engine, statement: &impl SqlxBinder) -> Query {
    match engine {
        Engine::Postgresql => {
            let (sql, values) = statement.build_sqlx(PostgresQueryBuilder);
            Query::postgres(kind, AssertSqlSafe(sql), arguments::<Postgres>(values))
        }
        Engine::Mysql => {
            let (sql, values) = statement.build_sqlx(MysqlQueryBuilder);
            Query::mysql(kind, AssertSqlSafe(sql), arguments::<MySql>(values))
        }
        engine => unreachable!("there are no statements for {engine}"),
    }
}

/// The text of a read whose values do not matter: what [`prepared`] takes.
pub(crate) fn text(engine: Engine, statement: &SelectStatement) -> Arc<str> {
    match engine {
        Engine::Postgresql => statement.build(PostgresQueryBuilder).0.into(),
        Engine::Mysql => statement.build(MysqlQueryBuilder).0.into(),
        engine => unreachable!("there are no statements for {engine}"),
    }
}

/// A read whose text was built before, with the values in the order of its placeholders.
pub(crate) fn prepared(engine: Engine, text: Arc<str>, values: sea_query::Values) -> Query {
    match engine {
        Engine::Postgresql => {
            Query::postgres(Kind::Read, AssertSqlSafe(text), arguments::<Postgres>(SqlxValues(values)))
        }
        Engine::Mysql => Query::mysql(Kind::Read, AssertSqlSafe(text), arguments::<MySql>(SqlxValues(values))),
        engine => unreachable!("there are no statements for {engine}"),
    }
}

fn arguments<DB: Database>(values: SqlxValues) -> DB::Arguments
where
    SqlxValues: IntoArguments<DB>,
{
    values.into_arguments()
}

/// A column as the engine writes it out.
pub(crate) fn as_text(engine: Engine, column: &'static str) -> Expr {
    match engine {
        Engine::Postgresql => Expr::col(column).cast_as("text"),
        Engine::Mysql => Expr::col(column).cast_as("char"),
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

/// What a server called its error: PostgreSQL's SQLSTATE, MySQL's number, since its SQLSTATEs say little.
enum Code<'a> {
    Postgres(Cow<'a, str>),
    MySql(u16),
}

fn code(error: &sqlx::Error) -> Option<Code<'_>> {
    let error = error.as_database_error()?;
    match error.try_downcast_ref::<MySqlDatabaseError>() {
        Some(error) => Some(Code::MySql(error.number())),
        None => error.code().map(Code::Postgres),
    }
}

/// Whether a statement gave up waiting for another transaction's lock.
pub(crate) fn is_lock_timeout(error: &sqlx::Error) -> bool {
    match code(error) {
        Some(Code::Postgres(code)) => code == "55P03",
        Some(Code::MySql(number)) => number == 1205,
        None => false,
    }
}

/// Whether a transaction that failed so may be run again from its start: a serialization failure or a deadlock.
pub(crate) fn is_retryable(error: &sqlx::Error) -> bool {
    match code(error) {
        Some(Code::Postgres(code)) => matches!(&*code, "40001" | "40P01"),
        Some(Code::MySql(number)) => matches!(number, 1020 | 1213),
        None => false,
    }
}

/// The name of the constraint that refused a statement. MySQL tells it only in its message, MariaDB in words of its own.
pub(crate) fn constraint(error: &sqlx::Error) -> Option<&str> {
    let error = error.as_database_error()?;
    let Some(mysql) = error.try_downcast_ref::<MySqlDatabaseError>() else { return error.constraint() };
    let message = mysql.message();
    match mysql.number() {
        // Duplicate entry '…' for key 'table.name', or 'name'; the entry may hold anything.
        1062 | 1586 => {
            let key = message.rsplit_once("for key ")?.1.trim_matches('\'');
            Some(key.rsplit_once('.').map_or(key, |(_, name)| name))
        }
        // Check constraint 'name' is violated.
        3819 => message.split('\'').nth(1),
        // CONSTRAINT `name` failed for `database`.`table`.
        4025 => message.split('`').nth(1),
        // Cannot add or update a child row: a foreign key constraint fails (…, CONSTRAINT `name` FOREIGN KEY …)
        1451 | 1452 => message.split_once("CONSTRAINT `")?.1.split('`').next(),
        _ => None,
    }
}

/// How often a transaction is run again after a deadlock or a serialization failure.
pub(crate) const MAX_RETRIES: u32 = 5;
