//! A store's database in MySQL or MariaDB: the whole database is ours, so it must be empty or ours already.
//!
//! DDL commits by itself there, so what is under way is always visible: the record of a file that was begun says so, and the
//! file, one statement, is run again. `_migrations` is made first and dropped last; its comment is the mark.

use kernel::StoreId;
use kernel::ident::quote_literal;
use sqlx::migrate::{Migration, Migrator};
use sqlx::mysql::MySqlDatabaseError;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, MySqlConnection};

use super::{Claim, SchemaError, SchemaState, is_current};

/// Names the lock that one migrator at a time holds. A server has one set of them for all of its databases.
const LOCK_NAME: &str = "concat('tenantry:', md5(database()))";

pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("../migrations-tenant/mysql");

/// What `create table` of every file begins with.
const CREATE: &str = "create table if not exists ";

pub(super) async fn inspect(conn: &mut MySqlConnection) -> Result<SchemaState, sqlx::Error> {
    let tables: Vec<(String, String)> = sqlx::query_as(
        "select table_name, coalesce(table_comment, '') from information_schema.tables where table_schema = database()",
    )
    .fetch_all(&mut *conn)
    .await?;
    let has = |name: &str| tables.iter().any(|(table, _)| table == name);
    // A table of one of our names that somebody else made is theirs, wherever it stands.
    let is_named_alike = |table: &str| our_tables().any(|ours| ours == table);
    if tables.iter().any(|(table, comment)| is_named_alike(table) && !is_marked_table(comment)) {
        return Ok(SchemaState::Foreign);
    }
    let Some((_, comment)) = tables.iter().find(|(table, _)| table == "_migrations") else {
        let is_empty = tables.is_empty() && !has_programs(conn).await?;
        return Ok(if is_empty { SchemaState::Empty } else { SchemaState::Foreign });
    };
    let marked = super::marked(comment);
    let columns: i64 = sqlx::query_scalar(
        "select count(*) from information_schema.columns
         where table_schema = database() and table_name = '_migrations'
           and column_name in ('version', 'checksum', 'success')",
    )
    .fetch_one(&mut *conn)
    .await?;
    if columns != 3 {
        return Ok(SchemaState::Foreign);
    }
    let version: i64 = sqlx::query_scalar("select coalesce(max(version), 0) from _migrations where success = true")
        .fetch_one(&mut *conn)
        .await?;
    if !has("store_identity") {
        // Begun and not yet at its first table, or dropped up to the last ones.
        let is_ours = |table: &str| table == "_migrations" || is_named_alike(table);
        let is_only_begun = version == 0 && tables.iter().all(|(table, _)| is_ours(table));
        return Ok(if is_only_begun { SchemaState::Ours { store: marked, version } } else { SchemaState::Foreign });
    }
    let identity: Option<String> =
        match sqlx::query_scalar("select store_id from store_identity where product = 'tenantry' and singleton = 1")
            .fetch_optional(&mut *conn)
            .await
        {
            Ok(identity) => identity,
            Err(error) if number(&error) == Some(1054) || matches!(error, sqlx::Error::ColumnDecode { .. }) => {
                return Ok(SchemaState::Foreign);
            }
            Err(error) => return Err(error),
        };
    let store = match identity.map(|text| text.parse::<StoreId>()) {
        None => marked,
        Some(Ok(store)) => Some(store),
        Some(Err(_)) => return Ok(SchemaState::Foreign),
    };
    Ok(super::ours(store, version))
}

pub(super) async fn tables(conn: &mut MySqlConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar("select table_name from information_schema.tables where table_schema = database()")
        .fetch_all(conn)
        .await
}

/// In the words of `parts.txt`; what differs from what our files say of engine and collation is said beside it, and so is no part
/// of ours.
pub(super) async fn parts(conn: &mut MySqlConnection) -> Result<Vec<String>, sqlx::Error> {
    const PARTS: [&str; 5] = [
        "select concat('table ', table_name, if(engine = 'InnoDB', '', concat(' in ', coalesce(engine, 'no engine'))))
         from information_schema.tables
         where table_schema = database() and table_type = 'BASE TABLE' and table_name <> '_migrations'",
        // MariaDB writes json as longtext and says of a column without a default that it is 'NULL', and booleans both write as tinyint.
        "select concat('column ', column_name, ' of ', table_name, ': ',
             case data_type when 'varchar' then concat('text(', character_maximum_length, ')') when 'mediumtext' then 'text'
                 when 'datetime' then 'time' when 'longtext' then 'json' when 'int' then 'integer' when 'tinyint' then 'boolean'
                 else data_type end,
             if(coalesce(collation_name, 'utf8mb4_bin') in ('utf8mb4_bin', 'ascii_bin'), '', concat(' ', collation_name)),
             if(is_nullable = 'NO', ', not null', ''),
             case when extra like '%GENERATED%' and extra not like '%DEFAULT_GENERATED%' then ', generated'
                 when coalesce(column_default, 'NULL') <> 'NULL' then ', with a default' else '' end)
         from information_schema.columns where table_schema = database() and table_name <> '_migrations'",
        "select concat(if(index_name = 'PRIMARY', 'primary key', concat('index ', index_name)), ' of ', table_name, ': ',
             group_concat(coalesce(column_name, '(an expression)') order by seq_in_index separator ', '),
             if(min(non_unique) = 0, ', unique', ''))
         from information_schema.statistics where table_schema = database() and table_name <> '_migrations'
         group by table_name, index_name",
        "select concat('foreign key ', constraint_name, ' of ', table_name, ': ', referenced_table_name,
             case delete_rule when 'CASCADE' then ', on delete cascade' when 'SET NULL' then ', on delete set null' else '' end)
         from information_schema.referential_constraints where constraint_schema = database()",
        // MariaDB makes one for each json column, which bears the column's name.
        "select concat('check ', constraint_name, ' of ', table_name)
         from information_schema.table_constraints
         where table_schema = database() and constraint_type = 'CHECK' and constraint_name like '%\\_check'",
    ];
    let mut found = Vec::new();
    for parts in PARTS {
        let parts: Vec<String> = sqlx::query_scalar(parts).fetch_all(&mut *conn).await?;
        found.extend(parts);
    }
    Ok(found)
}

/// Whether a database without a table holds procedures, functions or events of somebody's.
async fn has_programs(conn: &mut MySqlConnection) -> Result<bool, sqlx::Error> {
    let count: i64 = sqlx::query_scalar(
        "select (select count(*) from information_schema.routines where routine_schema = database())
              + (select count(*) from information_schema.events where event_schema = database())",
    )
    .fetch_one(conn)
    .await?;
    Ok(count > 0)
}

pub(super) async fn migrate_locked(conn: &mut MySqlConnection, store: Option<StoreId>) -> Result<(), SchemaError> {
    let state = inspect(conn).await?;
    match Claim::of(state, store)? {
        Claim::Create => create_record(conn, store).await?,
        Claim::Mark(store) => {
            let mark = quote_literal(&super::mark(store)).expect("an id has no backslash");
            conn.execute(AssertSqlSafe(format!("alter table _migrations comment = {mark}"))).await?;
        }
        Claim::Nothing => {}
    }
    if is_current(state) {
        return Ok(());
    }
    take_up(conn).await?;
    let mut migrator = Migrator { migrations: MIGRATIONS.migrations.clone(), ..Migrator::DEFAULT };
    migrator.set_locking(false);
    migrator.dangerous_set_table_name("_migrations");
    migrator.run_direct(None, &mut *conn, false).await?;
    conn.clear_cached_statements().await?;
    Ok(())
}

/// Makes the table that the migrator keeps its record in, with the mark on it.
async fn create_record(conn: &mut MySqlConnection, store: Option<StoreId>) -> Result<(), sqlx::Error> {
    let mark = store.map_or_else(|| super::MARK.to_owned(), super::mark);
    let mark = quote_literal(&mark).expect("an id has no backslash");
    conn.execute(AssertSqlSafe(format!(
        "create table if not exists _migrations (
            version bigint not null,
            description text not null,
            installed_on timestamp not null default current_timestamp,
            success boolean not null,
            checksum blob not null,
            execution_time bigint not null,
            constraint _migrations_pkey primary key (version)
        ) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment = {mark}"
    )))
    .await?;
    Ok(())
}

/// Runs the file again that was begun and whose end was never recorded: its statement has happened whole or not at all.
async fn take_up(conn: &mut MySqlConnection) -> Result<(), SchemaError> {
    let begun: Option<i64> =
        sqlx::query_scalar("select version from _migrations where success = false order by version limit 1")
            .fetch_optional(&mut *conn)
            .await?;
    let Some(begun) = begun else { return Ok(()) };
    let Some(file) = MIGRATIONS.iter().find(|file| file.version == begun) else {
        return Err(SchemaError::Newer { version: begun });
    };
    match conn.execute(file.sql.clone()).await {
        Ok(_) => {}
        Err(error) if has_happened(&error) => {}
        Err(error) => return Err(error.into()),
    }
    sqlx::query("update _migrations set success = true where version = ?").bind(begun).execute(conn).await?;
    Ok(())
}

/// Whether a statement was refused because it has been done already: a table, column, index or constraint that is there, or
/// one to be dropped that is not.
fn has_happened(error: &sqlx::Error) -> bool {
    matches!(number(error), Some(1050 | 1051 | 1060 | 1061 | 1091 | 1826 | 3822))
}

pub(super) async fn drop_locked(conn: &mut MySqlConnection, store: StoreId) -> Result<bool, SchemaError> {
    let is_ours = matches!(inspect(conn).await?, SchemaState::Ours { store: Some(owner), .. } if owner == store);
    if !is_ours {
        return Ok(false);
    }
    // From here on it is a database that was only begun, by its mark still the store's. What others put beside it stays.
    let mark = quote_literal(&super::mark(store)).expect("an id has no backslash");
    conn.execute(AssertSqlSafe(format!("alter table _migrations comment = {mark}"))).await?;
    conn.execute("delete from _migrations").await?;
    let names: Vec<&str> = our_tables().collect();
    // They refer to one another.
    conn.execute("set foreign_key_checks = 0").await?;
    conn.execute(AssertSqlSafe(format!("drop table if exists {}", names.join(", ")))).await?;
    conn.execute("set foreign_key_checks = 1").await?;
    conn.execute("drop table _migrations").await?;
    Ok(true)
}

/// Whether a table's comment says that we made it: every file's statement puts it there with the table.
#[must_use]
pub fn is_marked_table(comment: &str) -> bool {
    comment == "tenantry" || comment.starts_with("tenantry: ")
}

/// The tables that the files make, the same in both engines.
pub(super) fn our_tables() -> impl Iterator<Item = &'static str> {
    MIGRATIONS.iter().filter_map(made_by)
}

fn made_by(file: &'static Migration) -> Option<&'static str> {
    let statement = file.sql.as_str().lines().find(|line| !line.starts_with("--"))?;
    statement.strip_prefix(CREATE)?.split_whitespace().next()
}

pub(super) async fn try_lock(conn: &mut MySqlConnection) -> Result<bool, sqlx::Error> {
    let text = AssertSqlSafe(format!("select coalesce(get_lock({LOCK_NAME}, 0), 0)"));
    let got: i64 = sqlx::query_scalar(text).fetch_one(conn).await?;
    Ok(got == 1)
}

pub(super) async fn unlock(conn: &mut MySqlConnection) -> Result<(), sqlx::Error> {
    conn.execute(AssertSqlSafe(format!("do release_lock({LOCK_NAME})"))).await.map(drop)
}

fn number(error: &sqlx::Error) -> Option<u16> {
    Some(error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>()?.number())
}

#[cfg(test)]
mod tests {
    use super::{MIGRATIONS, made_by};

    #[test]
    fn every_file_holds_one_statement_that_can_be_run_again() {
        for file in MIGRATIONS.iter() {
            let code: Vec<&str> = file.sql.as_str().lines().filter(|line| !line.starts_with("--")).collect();
            let code = code.join("\n");
            // Outside of quotes, which no text holds an escaped one of but by doubling.
            let outside: String = code.split('\'').step_by(2).collect();
            assert!(outside.trim_end().ends_with(';'), "{}", file.version);
            assert_eq!(outside.matches(';').count(), 1, "{} holds more than one statement", file.version);
            assert!(made_by(file).is_none() || code.contains(" comment 'tenantry"), "{} marks nothing", file.version);
            let is_repeatable =
                made_by(file).is_some() || code.starts_with("alter table") || code.starts_with("create ");
            assert!(is_repeatable, "{} cannot be taken up again", file.version);
        }
    }
}
