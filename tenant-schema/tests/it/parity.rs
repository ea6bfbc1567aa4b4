//! That both engines hold the same schema: what differs is how a type is written, and nothing else.

use std::collections::BTreeSet;

use kernel::Engine;
use sqlx::AssertSqlSafe;
use tenancy::Session;

use crate::support::Database;

/// The rows of a query as text, one line each.
async fn lines(session: &mut Session, sql: &str) -> BTreeSet<String> {
    let sql = AssertSqlSafe(sql.to_owned());
    let rows: Vec<String> = match session {
        Session::Postgres(conn) => sqlx::query_scalar(sql).fetch_all(conn).await.unwrap(),
        Session::MySql(conn) => sqlx::query_scalar(sql).fetch_all(conn).await.unwrap(),
    };
    rows.into_iter().collect()
}

/// Tables with columns, indexes with columns, foreign keys with what a deletion does, and checks by name.
struct Schema {
    columns: BTreeSet<String>,
    indexes: BTreeSet<String>,
    foreign_keys: BTreeSet<String>,
    checks: BTreeSet<String>,
}

async fn of_postgres(session: &mut Session) -> Schema {
    Schema {
        columns: lines(
            session,
            "select concat_ws(' ', table_name, ordinal_position, column_name,
                case data_type when 'character varying' then 'text' when 'timestamp with time zone' then 'time'
                    when 'jsonb' then 'json' else data_type end,
                character_maximum_length, is_nullable, case is_generated when 'ALWAYS' then 'generated' end)
             from information_schema.columns where table_schema = 'tenantry' and table_name <> '_migrations'",
        )
        .await,
        indexes: lines(
            session,
            "select concat_ws(' ', t.relname, i.relname, case when x.indisunique then 'unique' end,
                (select string_agg(a.attname, ',' order by k.at)
                 from unnest(x.indkey) with ordinality k (number, at)
                 join pg_attribute a on a.attrelid = t.oid and a.attnum = k.number))
             from pg_index x join pg_class i on i.oid = x.indexrelid join pg_class t on t.oid = x.indrelid
             join pg_namespace n on n.oid = t.relnamespace
             where n.nspname = 'tenantry' and t.relname <> '_migrations'",
        )
        .await,
        foreign_keys: lines(
            session,
            "select concat_ws(' ', c.conrelid::regclass::text, c.conname, replace(c.confrelid::regclass::text, 'tenantry.', ''),
                case c.confdeltype when 'c' then 'CASCADE' when 'n' then 'SET NULL' else 'NO ACTION' end)
             from pg_constraint c join pg_namespace n on n.oid = c.connamespace
             where n.nspname = 'tenantry' and c.contype = 'f'",
        )
        .await
        .into_iter()
        .map(|line| line.replace("tenantry.", ""))
        .collect(),
        checks: lines(
            session,
            "select c.conname::text from pg_constraint c join pg_namespace n on n.oid = c.connamespace
             where n.nspname = 'tenantry' and c.contype = 'c'",
        )
        .await,
    }
}

async fn of_mysql(session: &mut Session) -> Schema {
    Schema {
        // MariaDB writes json as longtext, and booleans as tinyint both do.
        columns: lines(
            session,
            "select concat_ws(' ', table_name, ordinal_position, column_name,
                case data_type when 'varchar' then 'text' when 'mediumtext' then 'text' when 'datetime' then 'time'
                    when 'longtext' then 'json' when 'int' then 'integer' when 'tinyint' then 'boolean' else data_type end,
                case when data_type = 'varchar' then character_maximum_length end, is_nullable,
                case when extra like '%GENERATED%' then 'generated' end)
             from information_schema.columns where table_schema = database() and table_name <> '_migrations'",
        )
        .await,
        indexes: lines(
            session,
            "select concat_ws(' ', table_name, case index_name when 'PRIMARY' then concat(table_name, '_pkey') else index_name end,
                case min(non_unique) when 0 then 'unique' end, group_concat(column_name order by seq_in_index))
             from information_schema.statistics where table_schema = database() and table_name <> '_migrations'
             group by table_name, index_name",
        )
        .await,
        foreign_keys: lines(
            session,
            "select concat_ws(' ', table_name, constraint_name, referenced_table_name,
                case delete_rule when 'RESTRICT' then 'NO ACTION' else delete_rule end)
             from information_schema.referential_constraints where constraint_schema = database()",
        )
        .await,
        // A json column has one of the engine's own making, which bears the column's name.
        checks: lines(
            session,
            "select constraint_name from information_schema.table_constraints
             where table_schema = database() and constraint_type = 'CHECK' and constraint_name like '%\\\\_check'",
        )
        .await,
    }
}

fn assert_same(what: &str, postgres: &BTreeSet<String>, mysql: &BTreeSet<String>) {
    let only_postgres: Vec<_> = postgres.difference(mysql).collect();
    let only_mysql: Vec<_> = mysql.difference(postgres).collect();
    assert!(
        only_postgres.is_empty() && only_mysql.is_empty(),
        "{what}: only in PostgreSQL {only_postgres:#?}, only in MySQL {only_mysql:#?}"
    );
    assert!(postgres.len() > 10, "{what}: {postgres:?}");
}

#[tokio::test]
async fn both_engines_hold_the_same_tables_columns_indexes_and_constraints() {
    let (postgres, mysql) = (Database::create(Engine::Postgresql).await, Database::create(Engine::Mysql).await);
    postgres.migrate().await;
    mysql.migrate().await;
    let one = of_postgres(&mut postgres.connect().await).await;
    let other = of_mysql(&mut mysql.connect().await).await;
    assert_same("columns", &one.columns, &other.columns);
    assert_same("indexes", &one.indexes, &other.indexes);
    assert_same("foreign keys", &one.foreign_keys, &other.foreign_keys);
    assert_same("checks", &one.checks, &other.checks);
}

/// Every text is whole UTF-8, and sorts and compares by its bytes, whatever the server's own settings are.
#[tokio::test]
async fn texts_in_mysql_are_whole_and_compared_by_their_bytes() {
    let mysql = Database::create(Engine::Mysql).await;
    mysql.migrate().await;
    let odd = "select count(*) from information_schema.columns where table_schema = database()
        and table_name <> '_migrations' and collation_name is not null
        and collation_name not in ('utf8mb4_bin', 'ascii_bin')";
    assert_eq!(mysql.number(odd).await, 0);
    mysql.execute("insert into counters values ('straße 🫖', 1), ('STRASSE', 2), ('Strasse', 3)").await;
    assert_eq!(mysql.number("select `value` from counters where name = 'straße 🫖'").await, 1);
    assert_eq!(mysql.number("select `value` from counters where name = 'Strasse'").await, 3);
    assert_eq!(mysql.number("select char_length(name) from counters where `value` = 1").await, 8);
}
