//! What the doctor asks of MySQL and MariaDB. Everything here reads.

use sqlx::{Executor as _, MySqlConnection};
use tenancy::Credential;

use super::inside::Limits;
use super::report::Note;
use crate::provisioning::mysql;
use crate::provisioning::remedy::{self, Guest};

/// So many of the things that are not ours are named.
const MAX_NAMES: usize = 5;
/// MySQL's own limit in letters, which a server that is none need not keep.
const MAX_NAME_LEN: usize = 64;

/// Makes the session one that only reads.
pub(super) async fn read_only(conn: &mut MySqlConnection) -> Result<(), sqlx::Error> {
    conn.execute(sqlx::raw_sql("set session transaction read only")).await.map(drop)
}

pub(super) async fn ping(conn: &mut MySqlConnection) -> Result<(), sqlx::Error> {
    conn.execute(sqlx::raw_sql("select 1")).await.map(drop)
}

/// What the session is like after it was set up as a pool's. The engines name the isolation differently, and each skips the
/// other's comment.
pub(super) async fn settings(conn: &mut MySqlConnection) -> Result<Note, sqlx::Error> {
    let (zone, mode, client, connection, results, isolation): (String, String, String, String, String, String) =
        sqlx::query_as(
            "select @@session.time_zone, @@session.sql_mode, @@session.character_set_client,
                    @@session.character_set_connection, @@session.character_set_results,
                    /*M!100100 @@session.tx_isolation */ /*!80000 @@session.transaction_isolation */",
        )
        .fetch_one(conn)
        .await?;
    let is_strict = mode.contains("STRICT_ALL_TABLES");
    let detail = format!(
        "Time zone {zone}, character set {client}, {}, isolation {isolation}.",
        if is_strict { "strict" } else { "not strict" }
    );
    let is_utf8 = [&client, &connection, &results].iter().all(|charset| charset.as_str() == "utf8mb4");
    if is_strict && is_utf8 && zone == "+00:00" && isolation == "READ-COMMITTED" {
        return Ok(Note::passed(detail));
    }
    Ok(Note::failed(
        "session-settings",
        format!("The session did not take the settings that stores need. {detail}"),
        "Connect to the server itself, or have the proxy before it pass settings on.",
    ))
}

/// What the login lacks on this database.
pub(super) async fn privileges(conn: &mut MySqlConnection, credential: &Credential) -> Result<Note, sqlx::Error> {
    let (user, has_role): (String, bool) =
        sqlx::query_as("select current_user(), coalesce(nullif(current_role(), 'NONE'), '') <> ''")
            .fetch_one(&mut *conn)
            .await?;
    let (name, host) = user.rsplit_once('@').unwrap_or((&user, remedy::ANY_HOST));
    let rights = mysql::missing_rights(conn).await?;
    if rights.missing.is_empty() {
        return Ok(Note::passed("The login has every right on this database that a store needs."));
    }
    let list = rights.missing.join(", ");
    let (given, pattern) = rights.to_give(&credential.database);
    let sql = Guest::from(credential).grant(&given, pattern, &remedy::account(name, host));
    if has_role {
        // What a role brings is not listed.
        return Ok(Note::warning(
            "rights-by-role",
            format!("Of its own the login has not: {list}. Whether its role has, the server does not tell."),
            "When preparing the store fails for want of a right, have an administrator run the statement.",
        )
        .sql(sql));
    }
    Ok(Note::failed(
        "missing-privilege",
        format!("The login may not do everything in this database that a store needs. It lacks: {list}."),
        "Have an administrator of the database run the statement.",
    )
    .sql(sql))
}

/// The names of some of the things in the database that are not ours, quoted, and whether there are more.
pub(super) async fn some_of_others(conn: &mut MySqlConnection) -> Result<(Vec<String>, bool), sqlx::Error> {
    // The lists differ in their collation.
    let found: Vec<String> = sqlx::query_scalar(
        "select name from (
             select convert(table_name using utf8mb4) collate utf8mb4_bin as name
             from information_schema.tables
             where table_schema = database() and table_name <> '_migrations'
               and coalesce(table_comment, '') <> 'tenantry' and coalesce(table_comment, '') not like 'tenantry: %'
             union all
             select convert(routine_name using utf8mb4) collate utf8mb4_bin
             from information_schema.routines where routine_schema = database()
             union all
             select convert(event_name using utf8mb4) collate utf8mb4_bin
             from information_schema.events where event_schema = database()) found
         order by name
         limit 6",
    )
    .fetch_all(conn)
    .await?;
    let shown = found.iter().take(MAX_NAMES).map(|name| {
        let name: String = name.chars().filter(|letter| !letter.is_control()).take(MAX_NAME_LEN).collect();
        remedy::mysql_name(&name)
    });
    Ok((shown.collect(), found.len() > MAX_NAMES))
}

pub(super) async fn limits(conn: &mut MySqlConnection) -> Result<Limits, sqlx::Error> {
    let (server, own, in_use, stored_bytes): (i64, i64, i64, i64) = sqlx::query_as(
        "select cast(@@global.max_connections as signed), cast(@@session.max_user_connections as signed),
                (select cast(count(*) as signed) from information_schema.processlist),
                (select cast(coalesce(sum(data_length + index_length), 0) as signed)
                 from information_schema.tables where table_schema = database())",
    )
    .fetch_one(&mut *conn)
    .await?;
    // Who may not see other logins' connections sees their number.
    let connected: Option<(String, String)> =
        sqlx::query_as("show global status like 'Threads_connected'").fetch_optional(conn).await?;
    let connected = connected.and_then(|(_, count)| count.parse().ok());
    Ok(Limits {
        server,
        in_use: connected.unwrap_or(in_use),
        own: (own > 0).then_some(own),
        own_in_use: in_use,
        stored_bytes,
    })
}
