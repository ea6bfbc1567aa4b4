//! What the rig does otherwise where the stores are on MariaDB.

use anyhow::{Context as _, ensure};
use devkit::MariaDb;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::rig::OWN_TABLES;

pub(crate) async fn version(server: &MariaDb) -> anyhow::Result<String> {
    let mut admin = server.connect(None).await?;
    let version: String = sqlx::query_scalar("select version()").fetch_one(&mut admin).await?;
    admin.close().await?;
    Ok(format!("MariaDB {}", version.split('-').next().unwrap_or_default()))
}

/// Makes the products of one store those of another one, under that one's marker.
pub(crate) async fn copy_products(server: &MariaDb, from: &str, to: &str, marker: &str) -> anyhow::Result<()> {
    let mut admin = server.connect(None).await?;
    admin.execute("set foreign_key_checks = 0").await?;
    let tables: Vec<String> =
        sqlx::query_scalar("select table_name from information_schema.tables where table_schema = ? order by 1")
            .bind(from)
            .fetch_all(&mut admin)
            .await?;
    for table in tables.iter().filter(|name| !OWN_TABLES.contains(&name.as_str())) {
        let columns: Vec<String> = sqlx::query_scalar(
            "select concat('`', column_name, '`') from information_schema.columns
             where table_schema = ? and table_name = ? and extra not like '%GENERATED%' order by ordinal_position",
        )
        .bind(from)
        .bind(table)
        .fetch_all(&mut admin)
        .await?;
        let columns = columns.join(", ");
        admin.execute(AssertSqlSafe(format!("delete from `{to}`.`{table}`"))).await?;
        let copy = format!("insert into `{to}`.`{table}` ({columns}) select {columns} from `{from}`.`{table}`");
        admin.execute(AssertSqlSafe(copy)).await?;
    }
    sqlx::query(AssertSqlSafe(format!("update `{to}`.products set vendor = ?")))
        .bind(marker)
        .execute(&mut admin)
        .await?;
    admin.execute(AssertSqlSafe(format!("analyze table `{to}`.products"))).await?;
    Ok(admin.close().await?)
}

/// The statement of the list, as the server gets it when `ask` asks for one.
pub(crate) async fn statement(
    server: &MariaDb,
    ask: impl AsyncFnOnce() -> anyhow::Result<Value>,
) -> anyhow::Result<String> {
    let mut admin = server.connect(None).await?;
    admin.execute("set global log_output = 'TABLE', global general_log = 1").await?;
    ask().await?;
    admin.execute("set global general_log = 0").await?;
    let found: Vec<Vec<u8>> = sqlx::query_scalar(
        "select distinct argument from mysql.general_log
         where command_type = 'Prepare' and argument like 'SELECT%products%'",
    )
    .fetch_all(&mut admin)
    .await?;
    admin.execute("truncate table mysql.general_log").await?;
    admin.close().await?;
    ensure!(found.len() == 1, "expected one statement of the list, found {}", found.len());
    let found = found.into_iter().next().context("there is one")?;
    Ok(String::from_utf8(found)?)
}
