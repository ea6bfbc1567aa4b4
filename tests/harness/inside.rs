//! A store's database of whatever engine, past the product: for what a test looks up or changes there by SQL of its own.

use std::collections::BTreeSet;

use devkit::testing::shared_mariadb;
use kernel::Engine;
use sqlx::mysql::MySqlRow;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, FromRow, MySqlConnection, PgConnection};

use crate::cluster::Cluster;
use crate::wait::eventually;

/// What reads each table, row by row as one text.
const EVERY_ROW: &str = "
    select format('select t::text from %I.%I t', n.nspname, c.relname)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'm') and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')";
const EVERY_ROW_OF_MYSQL: &str = "
    select concat('select concat_ws('','', ', group_concat(
               if(data_type like '%blob' or data_type like '%binary', concat('lower(hex(`', column_name, '`))'),
                  concat('convert(`', column_name, '` using utf8mb4)'))
               order by ordinal_position separator ', '), ') from `', table_name, '`')
    from information_schema.columns where table_schema = database() group by table_name";

/// A connection of the administrator to one store's database, where the store's tables are.
pub enum StoreSql {
    Postgres(PgConnection),
    MySql(MySqlConnection),
}

impl StoreSql {
    /// Opens `database` on the shared server of its engine; for PostgreSQL on `cluster`.
    pub async fn open(engine: Engine, cluster: &Cluster, database: &str) -> Self {
        match engine {
            Engine::Mysql => {
                let connection = shared_mariadb().await.connect(Some(database)).await;
                Self::MySql(connection.unwrap_or_else(|error| panic!("cannot connect to {database}: {error}")))
            }
            _ => Self::of_postgres(cluster.connect(database).await).await,
        }
    }

    /// Connects to no store's database on the shared server of its engine; for PostgreSQL on `cluster`.
    pub async fn server(engine: Engine, cluster: &Cluster) -> Self {
        match engine {
            Engine::Mysql => Self::MySql(shared_mariadb().await.connect(None).await.unwrap()),
            _ => Self::Postgres(cluster.admin().await),
        }
    }

    /// The store's tables are in a schema there.
    pub(crate) async fn of_postgres(mut connection: PgConnection) -> Self {
        connection.execute("set search_path = tenantry").await.unwrap();
        Self::Postgres(connection)
    }

    pub async fn close(self) {
        match self {
            Self::Postgres(connection) => connection.close().await.unwrap(),
            Self::MySql(connection) => connection.close().await.unwrap(),
        }
    }

    /// The one number that this query has.
    pub async fn number(&mut self, sql: &str) -> i64 {
        match self {
            Self::Postgres(connection) => {
                let sql = AssertSqlSafe(format!("select ({sql})::bigint"));
                sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
            }
            Self::MySql(connection) => {
                let sql = AssertSqlSafe(format!("select cast(({sql}) as signed)"));
                sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
            }
        }
    }

    /// Runs one statement or several.
    pub async fn execute(&mut self, sql: &str) {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        match self {
            Self::Postgres(connection) => drop(sql.execute(connection).await.unwrap()),
            Self::MySql(connection) => drop(sql.execute(connection).await.unwrap()),
        }
    }

    /// The first row that this query has, if it has any.
    pub async fn row<T>(&mut self, sql: &str) -> Option<T>
    where
        T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, MySqlRow> + Send + Unpin,
    {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Postgres(connection) => sqlx::query_as(sql).fetch_optional(connection).await.unwrap(),
            Self::MySql(connection) => sqlx::query_as(sql).fetch_optional(connection).await.unwrap(),
        }
    }

    /// Every row of every table of the database, as text, wherever it stands in it. Bytes show as hexadecimal digits.
    pub async fn everything(&mut self) -> String {
        let rows_of_tables = match self {
            Self::Postgres(_) => self.texts(EVERY_ROW).await,
            Self::MySql(connection) => {
                // A list of so many columns is longer than the server puts together by default.
                connection.execute("set session group_concat_max_len = 1000000").await.unwrap();
                self.texts(EVERY_ROW_OF_MYSQL).await
            }
        };
        assert!(rows_of_tables.len() > 5, "{rows_of_tables:?}");
        let mut text = String::new();
        for rows in rows_of_tables {
            text.push_str(&format!("-- {rows}\n{}\n", self.texts(&rows).await.join("\n")));
        }
        text
    }

    /// The one column of text that this query has, row by row.
    pub async fn texts(&mut self, sql: &str) -> Vec<String> {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Postgres(connection) => sqlx::query_scalar(sql).fetch_all(connection).await.unwrap(),
            Self::MySql(connection) => sqlx::query_scalar(sql).fetch_all(connection).await.unwrap(),
        }
    }

    /// Keeps everybody else from this table until [`StoreSql::unlock`].
    pub async fn lock_table(&mut self, table: &str) {
        match self {
            Self::Postgres(_) => {
                self.execute(&format!("begin; lock table tenantry.{table} in access exclusive mode")).await;
            }
            Self::MySql(_) => self.execute(&format!("lock tables {table} write")).await,
        }
    }

    pub async fn unlock(&mut self) {
        match self {
            Self::Postgres(_) => self.execute("rollback").await,
            Self::MySql(_) => self.execute("unlock tables").await,
        }
    }

    /// The server's sessions in this database that are not an administrator's: those of nodes.
    pub async fn sessions(&mut self, database: &str) -> BTreeSet<i64> {
        let ids: Vec<i64> = match self {
            Self::Postgres(connection) => {
                let sql = "select pid::bigint from pg_stat_activity where datname = $1 and usename <> current_user";
                sqlx::query_scalar(sql).bind(database).fetch_all(connection).await.unwrap()
            }
            Self::MySql(connection) => {
                let sql = "select cast(id as signed) from information_schema.processlist
                     where db = ? and user <> substring_index(current_user(), '@', 1)";
                sqlx::query_scalar(sql).bind(database).fetch_all(connection).await.unwrap()
            }
        };
        ids.into_iter().collect()
    }

    /// Ends every session of nodes in this database, and waits until they are gone; returns how many there were.
    pub async fn end_sessions(&mut self, database: &str) -> usize {
        let found = self.sessions(database).await;
        for session in &found {
            match self {
                Self::Postgres(connection) => {
                    let ended = sqlx::query("select pg_terminate_backend($1::int)").bind(session).execute(connection);
                    ended.await.unwrap();
                }
                Self::MySql(connection) => {
                    // It may have gone by itself.
                    let kill = AssertSqlSafe(format!("kill {session}"));
                    drop(connection.execute(kill).await);
                }
            }
        }
        let this = tokio::sync::Mutex::new(self);
        eventually("ended sessions are gone", || async {
            this.lock().await.sessions(database).await.is_disjoint(&found).then_some(())
        })
        .await;
        found.len()
    }

    /// Gives a login another password.
    pub async fn set_password(&mut self, login: &str, password: &str) {
        let statement = match self {
            Self::Postgres(_) => format!("alter role \"{login}\" password '{password}'"),
            Self::MySql(_) => format!("alter user '{login}'@'%' identified by '{password}'"),
        };
        self.execute(&statement).await;
    }

    /// Gives a database another name. MySQL has no statement for it: its tables move, each with what refers to it.
    pub async fn rename_database(&mut self, from: &str, to: &str) {
        if matches!(self, Self::Postgres(_)) {
            return self.execute(&format!("alter database \"{from}\" rename to \"{to}\"")).await;
        }
        let tables = format!("select table_name from information_schema.tables where table_schema = '{from}'");
        let tables = self.texts(&tables).await;
        self.execute(&format!("create database `{to}`")).await;
        let moves: Vec<String> = tables.iter().map(|table| format!("`{from}`.`{table}` to `{to}`.`{table}`")).collect();
        self.execute(&format!("rename table {}", moves.join(", "))).await;
        self.execute(&format!("drop database `{from}`")).await;
    }
}
