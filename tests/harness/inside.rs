//! A store's database of whatever engine, past the product: for what a test looks up or changes there by SQL of its own.

use devkit::testing::shared_mariadb;
use kernel::Engine;
use sqlx::{AssertSqlSafe, Executor as _, MySqlConnection, PgConnection};

use crate::cluster::Cluster;

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
            _ => {
                let mut connection = cluster.connect(database).await;
                connection.execute("set search_path = tenantry").await.unwrap();
                Self::Postgres(connection)
            }
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
}
