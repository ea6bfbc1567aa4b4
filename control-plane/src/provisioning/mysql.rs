//! What provisioning does on a MySQL or MariaDB server; names are [`Ident`]s, the only literal is a password of our own
//! making.
//!
//! A managed store has a database and a login of its own, both named after its id. MySQL knows no template and no comment on
//! a database: the store's id in its name says whose it is, and the mark of the schema inside says so again.

use kernel::ident::quote_literal;
use kernel::{Engine, Ident, StoreId};
use secrecy::{ExposeSecret as _, SecretString};
use sha1::{Digest as _, Sha1};
use sqlx::mysql::MySqlDatabaseError;
use sqlx::{AssertSqlSafe, Executor as _, MySqlConnection, Row as _};
use tenant_schema::fitness::heeded_grant;

use super::engine::{Facts, MOST_COUNTED, database_in_use};
use super::step_error::StepError;

/// MySQL 8.0.16 is the first to enforce check constraints.
const MIN_MYSQL: (u32, u32, u32) = (8, 0, 16);
/// The oldest long-term release of MariaDB that is still looked after.
const MIN_MARIADB: (u32, u32, u32) = (10, 6, 0);
/// What a store's login needs on its database.
const NEEDED: [&str; 9] = ["SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "DROP", "REFERENCES", "INDEX", "ALTER"];

/// As the limits of a session that provisions in PostgreSQL. MySQL itself limits only what reads.
pub async fn set_limits(connection: &mut MySqlConnection) -> Result<(), sqlx::Error> {
    connection
        .execute(sqlx::raw_sql(
            "set session innodb_lock_wait_timeout = 10, lock_wait_timeout = 10 \
             /*M!100100 , max_statement_time = 60 */ /*!80000 , max_execution_time = 60000 */",
        ))
        .await?;
    Ok(())
}

pub async fn server_side(connection: &mut MySqlConnection) -> Result<i64, sqlx::Error> {
    sqlx::raw_sql("select cast(connection_id() as signed)").fetch_one(connection).await?.try_get(0)
}

/// What there is to know before anything is changed. The version comes first, in the simple protocol: an old server has not
/// even got the functions that the rest is asked with.
pub async fn facts(connection: &mut MySqlConnection) -> Result<Facts, sqlx::Error> {
    let version: String = sqlx::raw_sql("select version()").fetch_one(&mut *connection).await?.try_get(0)?;
    let (name, least) = if version.contains("MariaDB") { ("MariaDB", MIN_MARIADB) } else { ("MySQL", MIN_MYSQL) };
    let (numbers, text) = read_version(&version);
    let facts = Facts {
        engine: Engine::Mysql,
        server: format!("{name} {text}"),
        is_supported: numbers >= least,
        is_read_only: false,
        // Who is set to read only is told; whom it follows only an administrator is.
        is_replica: false,
    };
    if !facts.is_supported {
        return Ok(facts);
    }
    let is_read_only = sqlx::query_scalar("select @@global.read_only = 1 or @@global.innodb_read_only = 1")
        .fetch_one(connection)
        .await?;
    Ok(Facts { is_read_only, ..facts })
}

pub async fn account_host(connection: &mut MySqlConnection) -> Result<String, sqlx::Error> {
    sqlx::query_scalar("select substring_index(current_user(), '@', -1)").fetch_one(connection).await
}

/// What the login needs in its database and has not, of its own or everywhere on the server.
pub async fn missing_rights(connection: &mut MySqlConnection) -> Result<MissingRights, sqlx::Error> {
    let heeded = format!("select {}", heeded_grant());
    let heeded: Option<String> = sqlx::query_scalar(AssertSqlSafe(heeded)).fetch_one(&mut *connection).await?;
    let rights: Vec<(String, Option<String>, String)> = sqlx::query_as(
        "select privilege_type, null, is_grantable from information_schema.user_privileges
         where grantee = concat(
             '''', left(current_user(), char_length(current_user()) - 1 - char_length(substring_index(current_user(), '@', -1))),
             '''@''', substring_index(current_user(), '@', -1), '''')
         union
         select privilege_type, table_schema, is_grantable from information_schema.schema_privileges
         where grantee = concat(
             '''', left(current_user(), char_length(current_user()) - 1 - char_length(substring_index(current_user(), '@', -1))),
             '''@''', substring_index(current_user(), '@', -1), '''') and database() like table_schema",
    )
    .fetch_all(connection)
    .await?;
    let holds = |needed: &str| {
        rights.iter().any(|(right, pattern, _)| right == needed && (pattern.is_none() || *pattern == heeded))
    };
    let missing = NEEDED.into_iter().filter(|needed| !holds(needed)).collect();
    let heeded = heeded.map(|name| {
        let by_it: Vec<_> = rights.iter().filter(|(_, pattern, _)| pattern.as_ref() == Some(&name)).collect();
        let mut held: Vec<String> =
            by_it.iter().map(|(right, ..)| right.clone()).filter(|right| is_right(right)).collect();
        if by_it.iter().any(|(.., is_grantable)| is_grantable == "YES") {
            held.push("GRANT OPTION".to_owned());
        }
        Heeded { name, held }
    });
    Ok(MissingRights { missing, heeded })
}

/// Whether it is one that a grant can give, as its words tell: it is shown as a statement to run.
fn is_right(name: &str) -> bool {
    name != "USAGE" && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b' ')
}

/// What a login lacks on its database.
pub struct MissingRights {
    pub missing: Vec<&'static str>,
    /// The grant on the database that the server heeds, if there is one: of several that fit only the most exact.
    pub heeded: Option<Heeded>,
}

/// A grant on databases.
pub struct Heeded {
    /// What it was made by: `my_shop`, in which the underscore stands for any letter, `my\_shop`, or `ada\_%` for many databases.
    pub name: String,
    /// The rights that it gives.
    pub held: Vec<String>,
}

impl MissingRights {
    /// What a grant has to give for nothing to be missing in this database, and by which name of it if not by its own.
    ///
    /// More is given by the name that is heeded, unless it is one for many databases: some may be other people's. Then it is given by
    /// the database's own name, and with all that was held before, as the server heeds that grant from then on and not the other.
    pub fn to_give(&self, database: &str) -> (String, Option<&str>) {
        match &self.heeded {
            Some(Heeded { name, held }) if !is_name_of(name, database) => {
                let more = held.iter().map(String::as_str).filter(|right| !NEEDED.contains(right));
                let rights: Vec<&str> = NEEDED.into_iter().chain(more).collect();
                (rights.join(", "), None)
            }
            heeded => (self.missing.join(", "), heeded.as_ref().map(|heeded| heeded.name.as_str())),
        }
    }
}

/// Whether a grant by this name was made for this database: panels write its underscores with or without what takes their meaning.
fn is_name_of(pattern: &str, database: &str) -> bool {
    !pattern.contains('%') && pattern.replace('\\', "") == database.replace('\\', "")
}

/// `10.11.14-MariaDB-0+deb12u2` is 10.11.14; some hosts put `5.5.5-` before it.
fn read_version(version: &str) -> ((u32, u32, u32), &str) {
    let text = version.strip_prefix("5.5.5-").unwrap_or(version);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let mut numbers = text[..end].split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    ((next(), next(), next()), &text[..end])
}

/// Whether the login may create databases and logins, and give rights on the one to the other.
pub async fn may_provision(connection: &mut MySqlConnection) -> Result<bool, sqlx::Error> {
    let held: i64 = sqlx::query_scalar(
        "select count(distinct privilege_type) from information_schema.user_privileges
         where grantee = concat(
             '''', left(current_user(), char_length(current_user()) - 1 - char_length(substring_index(current_user(), '@', -1))),
             '''@''', substring_index(current_user(), '@', -1), '''') and is_grantable = 'YES'
           and privilege_type in ('CREATE', 'DROP', 'CREATE USER', 'SELECT', 'INSERT', 'UPDATE', 'DELETE', 'INDEX', 'ALTER',
                                  'REFERENCES')",
    )
    .fetch_one(connection)
    .await?;
    Ok(held == 10)
}

/// MySQL's; MariaDB has none.
pub async fn system_identifier(connection: &mut MySqlConnection) -> Option<String> {
    sqlx::query_scalar("select @@server_uuid").fetch_one(connection).await.ok()
}

/// The lock's name says the database, since a server has one set of them for all of its databases.
pub async fn try_lock(connection: &mut MySqlConnection, key: u64) -> Result<bool, sqlx::Error> {
    let got: i64 = sqlx::query_scalar("select coalesce(get_lock(concat('t', ?, ':', md5(database())), 0), 0)")
        .bind(key)
        .fetch_one(connection)
        .await?;
    Ok(got == 1)
}

pub async fn try_lock_server(connection: &mut MySqlConnection, key: u64) -> Result<bool, sqlx::Error> {
    let got: i64 =
        sqlx::query_scalar("select coalesce(get_lock(concat('s', ?), 0), 0)").bind(key).fetch_one(connection).await?;
    Ok(got == 1)
}

pub async fn is_server_locked(connection: &mut MySqlConnection, key: u64) -> Result<bool, sqlx::Error> {
    let is_free: i64 =
        sqlx::query_scalar("select is_free_lock(concat('s', ?))").bind(key).fetch_one(connection).await?;
    Ok(is_free == 0)
}

pub async fn wait_little(connection: &mut MySqlConnection) -> Result<(), sqlx::Error> {
    connection
        .execute(
            "set lock_wait_timeout = 1, innodb_lock_wait_timeout = 1 \
             /*M!100100 , max_statement_time = 2 */ /*!80000 , max_execution_time = 2000 */",
        )
        .await
        .map(drop)
}

pub async fn count_rows(connection: &mut MySqlConnection, table: &'static str) -> Result<i64, sqlx::Error> {
    let text = format!("select count(*) from (select 1 from {table} limit {MOST_COUNTED}) counted");
    sqlx::query_scalar(AssertSqlSafe(text)).fetch_one(connection).await
}

pub async fn newest_row(connection: &mut MySqlConnection, table: &'static str) -> Result<Option<String>, sqlx::Error> {
    let text = format!("select id from {table} order by id desc limit 1");
    sqlx::query_scalar(AssertSqlSafe(text)).fetch_optional(connection).await
}

pub async fn has_row(connection: &mut MySqlConnection, table: &'static str, id: &str) -> Result<bool, sqlx::Error> {
    let text = format!("select count(*) from {table} where id = ?");
    let found: i64 = sqlx::query_scalar(AssertSqlSafe(text)).bind(id).fetch_one(connection).await?;
    Ok(found > 0)
}

pub async fn sessions_beside(connection: &mut MySqlConnection) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "select cast(id as signed) from information_schema.processlist
         where db = database() and user = (select own.user from information_schema.processlist own where own.id = connection_id())
           and id <> connection_id()",
    )
    .fetch_all(connection)
    .await
}

pub async fn end_session(connection: &mut MySqlConnection, other: i64) -> Result<(), sqlx::Error> {
    match connection.execute(AssertSqlSafe(format!("kill {other}"))).await {
        Err(error) if number(&error) == Some(1094) => Ok(()),
        ended => ended.map(drop),
    }
}

/// The store's database and login with this password: made, or found again.
pub async fn ensure_database(
    admin: &mut MySqlConnection,
    name: &Ident,
    password: &SecretString,
    store: StoreId,
) -> Result<(), StepError> {
    check_holder(admin, name, store).await?;
    let (database, login, pattern) = (quoted(name), account(name), quoted_pattern(name));
    let create = format!("create database if not exists {database} character set utf8mb4 collate utf8mb4_bin");
    admin.execute(AssertSqlSafe(create)).await?;
    ensure_login(admin, &login, password).await?;
    admin.execute(AssertSqlSafe(format!("grant {} on {pattern}.* to {login}", NEEDED.join(", ")))).await?;
    Ok(())
}

/// The login with this password. MySQL leaves a password out when it writes a statement down. MariaDB does not, and so is told
/// what it keeps of one; only where it judges passwords, it takes none that it cannot read, in no form of the statement. To MySQL
/// nothing is gained by it: what it keeps is a choice of the server's, and salted.
async fn ensure_login(admin: &mut MySqlConnection, login: &str, password: &SecretString) -> Result<(), StepError> {
    let unusable = || StepError::new("unexpected", "The made-up password is not usable.", "Retry.");
    let version: String = sqlx::query_scalar("select version()").fetch_one(&mut *admin).await?;
    let identified = if version.contains("MariaDB") && !judges_passwords(admin).await? {
        format!("password '{}'", kept_of(password))
    } else {
        quote_literal(password.expose_secret()).ok_or_else(unusable)?
    };
    // An earlier attempt may have made it with another password.
    for verb in ["create user if not exists", "alter user"] {
        admin.execute(AssertSqlSafe(format!("{verb} {login} identified by {identified}"))).await?;
    }
    Ok(())
}

/// Whether MariaDB has something that judges passwords, and is set to refuse those that it cannot judge.
async fn judges_passwords(admin: &mut MySqlConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select @@global.strict_password_validation = 1 and exists (
             select 1 from information_schema.plugins
             where plugin_type = 'PASSWORD VALIDATION' and plugin_status = 'ACTIVE')",
    )
    .fetch_one(admin)
    .await
}

/// What MariaDB keeps of a password (mysql_native_password): the SHA-1 of its SHA-1. Of one that is as long and random as ours
/// that gives nothing away.
fn kept_of(password: &SecretString) -> String {
    let hash = Sha1::digest(Sha1::digest(password.expose_secret()));
    format!("*{}", hex::encode_upper(hash))
}

/// Drops the database and the login of a store, if what is in it is the store's. Connections of ours are closed first by the
/// caller's route change; others are ended, since nobody else may have any.
pub async fn drop_store_database(admin: &mut MySqlConnection, name: &Ident, store: StoreId) -> Result<(), StepError> {
    check_holder(admin, name, store).await?;
    let (database, login) = (quoted(name), account(name));
    // Without its login nobody comes anew.
    admin.execute(AssertSqlSafe(format!("drop user if exists {login}"))).await?;
    let sessions: Vec<i64> =
        sqlx::query_scalar("select cast(id as signed) from information_schema.processlist where user = ? or db = ?")
            .bind(name.as_str())
            .bind(name.as_str())
            .fetch_all(&mut *admin)
            .await?;
    for session in sessions {
        match admin.execute(AssertSqlSafe(format!("kill {session}"))).await {
            Ok(_) => {}
            // It has gone by itself, or is not ours to end: then the drop waits for it, for as long as a step's locks may.
            Err(error) if matches!(number(&error), Some(1094 | 1095)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    admin.execute(AssertSqlSafe(format!("drop database if exists {database}"))).await?;
    Ok(())
}

fn number(error: &sqlx::Error) -> Option<u16> {
    Some(error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>()?.number())
}

/// Refuses a database of the store's name in which there is something of somebody else's. Every table of ours says that it is
/// one; of a drop that was cut short, any of them may be left.
async fn check_holder(admin: &mut MySqlConnection, name: &Ident, store: StoreId) -> Result<(), StepError> {
    let tables: Vec<(String, String)> = sqlx::query_as(
        "select table_name, coalesce(table_comment, '') from information_schema.tables where table_schema = ?",
    )
    .bind(name.as_str())
    .fetch_all(admin)
    .await?;
    let mark = format!("tenantry {store}");
    let is_ours = |(table, comment): &(String, String)| match table.as_str() {
        "_migrations" => *comment == mark,
        _ => tenant_schema::is_marked_table(comment),
    };
    if tables.iter().all(is_ours) { Ok(()) } else { Err(database_in_use()) }
}

/// Databases and logins whose names are ours to give.
pub async fn names_like_ours(admin: &mut MySqlConnection) -> Result<(Vec<String>, Vec<String>), sqlx::Error> {
    const OURS: &str = "^store_[0-9a-z]{26}$";
    let databases =
        sqlx::query_scalar("select schema_name from information_schema.schemata where schema_name regexp ? order by 1")
            .bind(OURS)
            .fetch_all(&mut *admin)
            .await?;
    let logins = sqlx::query_scalar("select distinct user from mysql.user where user regexp ? order by 1")
        .bind(OURS)
        .fetch_all(admin)
        .await?;
    Ok((databases, logins))
}

/// A name as MySQL quotes it; an [`Ident`] holds no backtick.
fn quoted(name: &Ident) -> String {
    format!("`{}`", name.as_str())
}

/// As a grant takes it, where an underscore stands for any character.
fn quoted_pattern(name: &Ident) -> String {
    format!("`{}`", name.as_str().replace('_', "\\_"))
}

fn account(name: &Ident) -> String {
    format!("'{}'@'%'", name.as_str())
}

#[cfg(test)]
mod tests {
    use super::{Heeded, MIN_MARIADB, MIN_MYSQL, MissingRights, kept_of, read_version};

    #[test]
    fn of_a_password_the_same_is_kept_as_by_the_server_itself() {
        // What `select password('password')` says.
        assert_eq!(kept_of(&"password".to_owned().into()), "*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19");
    }

    #[test]
    fn versions_are_read_as_their_makers_write_them() {
        assert_eq!(read_version("10.11.14-MariaDB-0+deb12u2"), ((10, 11, 14), "10.11.14"));
        assert_eq!(read_version("5.5.5-10.6.20-MariaDB-log"), ((10, 6, 20), "10.6.20"));
        assert_eq!(read_version("8.0.36").0, (8, 0, 36));
        assert!(read_version("8.0.15").0 < MIN_MYSQL && read_version("8.4.0-cloud").0 > MIN_MYSQL);
        assert!(read_version("10.5.29-MariaDB").0 < MIN_MARIADB && read_version("11.4.2-MariaDB").0 > MIN_MARIADB);
    }

    #[test]
    fn rights_are_given_by_no_name_that_stands_for_many_databases() {
        let lacking = |name: &str| {
            let held = ["SELECT", "EXECUTE", "GRANT OPTION"].map(str::to_owned).to_vec();
            MissingRights { missing: vec!["DROP", "ALTER"], heeded: Some(Heeded { name: name.to_owned(), held }) }
        };
        for name in ["my_shop", "my\\_shop"] {
            assert_eq!(lacking(name).to_give("my_shop"), ("DROP, ALTER".to_owned(), Some(name)));
        }
        let whole = "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, REFERENCES, INDEX, ALTER, EXECUTE, GRANT OPTION";
        for name in ["my\\_%", "my_shop%", "%", "my\\_sho_", "__\\_shop"] {
            assert_eq!(lacking(name).to_give("my_shop"), (whole.to_owned(), None), "{name}");
        }
        let new = MissingRights { missing: vec!["DROP"], heeded: None };
        assert_eq!(new.to_give("my_shop"), ("DROP".to_owned(), None));
    }
}
