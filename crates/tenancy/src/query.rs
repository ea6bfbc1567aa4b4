//! A statement with its arguments, ready for the engine of the connection that runs it.

use sqlx::SqlStr;
use sqlx::mysql::{MySqlArguments, MySqlRow};
use sqlx::postgres::{PgArguments, PgRow};

/// Whether a statement may be run a second time when its connection turns out to be dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It changes nothing: it is retried once on a fresh connection.
    Read,
    /// It changes something: it is never retried here.
    Write,
}

/// A statement and its arguments for one engine.
#[derive(Clone)]
pub struct Query {
    pub(crate) kind: Kind,
    pub(crate) statement: Statement,
}

#[derive(Clone)]
pub(crate) enum Statement {
    Postgres(SqlStr, PgArguments),
    MySql(SqlStr, MySqlArguments),
}

impl Query {
    /// A statement for PostgreSQL. Use `&'static str` or `AssertSqlSafe` text; a text used again and again should be
    /// static or shared, because it keys the connection's cache of prepared statements.
    pub fn postgres(kind: Kind, sql: impl sqlx::SqlSafeStr, arguments: PgArguments) -> Self {
        Self { kind, statement: Statement::Postgres(sql.into_sql_str(), arguments) }
    }

    /// A statement for MySQL and MariaDB; of its text the same holds as for [`Query::postgres`].
    pub fn mysql(kind: Kind, sql: impl sqlx::SqlSafeStr, arguments: MySqlArguments) -> Self {
        Self { kind, statement: Statement::MySql(sql.into_sql_str(), arguments) }
    }

    /// Whether it may leave something in the session that the next borrower must not meet: anything but plain reading
    /// and writing of rows counts, and the functions that set or lock for the session.
    pub(crate) fn may_alter_session(&self) -> bool {
        const ROWS: [&str; 6] = ["select", "insert", "update", "delete", "with", "values"];
        let (Statement::Postgres(sql, _) | Statement::MySql(sql, _)) = &self.statement;
        let sql = sql.as_str();
        let start = sql.trim_ascii_start();
        let word = start.as_bytes();
        let is_rows = ROWS.iter().any(|known| {
            word.get(..known.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(known.as_bytes()))
                && word.get(known.len()).is_none_or(|next| !next.is_ascii_alphanumeric() && *next != b'_')
        });
        // `select … into temp` stays for the session, too, but `into` is too common in `insert into` to look for.
        let leaves = |text: &str| sql.contains(text);
        !is_rows
            || match &self.statement {
                Statement::Postgres(..) => leaves("set_config") || leaves("advisory_lock"),
                Statement::MySql(..) => leaves("get_lock") || leaves("GET_LOCK") || leaves(":="),
            }
    }
}

/// A row type that every engine can fill: `#[derive(sqlx::FromRow)]` gives it.
pub trait Row: for<'r> sqlx::FromRow<'r, PgRow> + for<'r> sqlx::FromRow<'r, MySqlRow> + Send + Unpin {}

impl<T> Row for T where T: for<'r> sqlx::FromRow<'r, PgRow> + for<'r> sqlx::FromRow<'r, MySqlRow> + Send + Unpin {}

#[cfg(test)]
mod tests {
    use super::{Kind, Query};
    use sqlx::mysql::MySqlArguments;
    use sqlx::postgres::PgArguments;

    #[test]
    fn only_statements_on_rows_are_trusted_to_leave_the_session_alone() {
        let alters = |sql: &'static str| Query::postgres(Kind::Write, sql, PgArguments::default()).may_alter_session();
        for plain in
            ["select 1", "SELECT\t1", " insert into a values (1)", "with x as (select 1) select 2", "values(1)"]
        {
            assert!(!alters(plain), "{plain}");
        }
        for other in [
            "set role x",
            "begin",
            "listen x",
            "selection",
            "",
            "/* a */ select 1",
            "prepare a as select 1",
            "select set_config('a.b', '1', false)",
            "select pg_try_advisory_lock(1)",
            "create temp table a (b int)",
        ] {
            assert!(alters(other), "{other}");
        }
        assert!(!alters("select pg_advisory_xact_lock(1)"));

        let alters = |sql: &'static str| Query::mysql(Kind::Write, sql, MySqlArguments::default()).may_alter_session();
        assert!(!alters("select `key` from settings where `key` = ?"));
        for other in ["set @a = 1", "select @a := 1", "select get_lock('a', 1)", "handler a open", "lock tables a read"]
        {
            assert!(alters(other), "{other}");
        }
    }
}
