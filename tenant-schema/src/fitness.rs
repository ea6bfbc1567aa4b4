//! Whether a store can still live on what its database lets it do: a login may get in and yet find its tables gone, its rights
//! taken away, or everything set to read only.

use std::sync::{Arc, LazyLock};

use kernel::Engine;
use sqlx::mysql::MySqlArguments;
use sqlx::postgres::PgArguments;
use sqlx::{AssertSqlSafe, FromRow as _};
use tenancy::query::Kind;
use tenancy::{Connection, Query, Session};

use crate::migrate::{PARTS, oldest_tables};

/// What keeps a store from working in a database that lets it in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ailment {
    /// Its tables are not there, or not all of them.
    TablesMissing,
    /// It may not read its tables.
    Unreadable,
    /// It may read its tables, and not change them.
    Unwritable,
    /// Nobody, or not this login, may change anything there: a replica, or set so.
    ReadOnly,
}

impl Ailment {
    /// What a program tells it by; the same as of a step of provisioning that fails for it.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::TablesMissing => "tables-missing",
            Self::Unreadable | Self::Unwritable => "missing-privilege",
            Self::ReadOnly => "read-only",
        }
    }

    /// Whether visitors can at least look.
    #[must_use]
    pub const fn leaves_readable(self) -> bool {
        match self {
            Self::TablesMissing | Self::Unreadable => false,
            Self::Unwritable | Self::ReadOnly => true,
        }
    }
}

/// What was found, by the names of the columns.
#[derive(sqlx::FromRow)]
struct Found {
    is_read_only: bool,
    has_tables: bool,
    is_readable: bool,
    is_writable: bool,
}

static IN_POSTGRES: LazyLock<Arc<str>> = LazyLock::new(|| {
    let (tables, count) = tables();
    let known = known_tables();
    format!(
        "select current_setting('transaction_read_only') = 'on' as is_read_only, \
                count(c.oid) filter (where c.relname in ({tables})) = {count} as has_tables, \
                coalesce(bool_and(has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')), true) \
                    as is_readable, \
                coalesce(bool_and(has_table_privilege(c.oid, 'insert') and has_table_privilege(c.oid, 'update') \
                                  and has_table_privilege(c.oid, 'delete')), true) as is_writable \
         from pg_catalog.pg_namespace n \
         join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relkind in ('r', 'p') and c.relname in ({known}) \
         where n.nspname = 'tenantry'"
    )
    .into()
});

/// What a role brings, the server does not list: who has one is taken at its word.
static IN_MYSQL: LazyLock<Arc<str>> = LazyLock::new(|| {
    let (tables, count) = tables();
    let (account, heeded) = (ACCOUNT, heeded_grant());
    format!(
        "select @@global.read_only = 1 or @@global.innodb_read_only = 1 as is_read_only, \
                (select count(*) from information_schema.tables \
                 where table_schema = database() and table_name in ({tables})) = {count} as has_tables, \
                held.by_role or held.reading = 1 as is_readable, held.by_role or held.changing = 3 as is_writable \
         from (select coalesce(nullif(current_role(), 'NONE'), '') <> '' as by_role, \
                      count(distinct case when privilege_type = 'SELECT' then 1 end) as reading, \
                      count(distinct case when privilege_type <> 'SELECT' then privilege_type end) as changing \
               from (select privilege_type from information_schema.user_privileges where grantee = {account} \
                     union all \
                     select privilege_type from information_schema.schema_privileges \
                     where grantee = {account} and table_schema = {heeded} \
                    ) given \
               where privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE') \
              ) held"
    )
    .into()
});

/// The account that MySQL took the session's login for, as its lists of rights name it.
const ACCOUNT: &str = "concat('''', left(current_user(), char_length(current_user()) - 1 \
                                         - char_length(substring_index(current_user(), '@', -1))), \
                              '''@''', substring_index(current_user(), '@', -1), '''')";

/// Selects the name of the grant on the session's database that MySQL heeds, if there is one: of several that fit it heeds the
/// most exact, and only that.
///
/// Which one that is, they see differently, and each skips the other's comment. To MySQL it is the one that is longest before
/// its first letter that stands for others; to MariaDB the one that fits the fewest names: none that stands for others, then a few
/// `_`, then a `%` with as much as possible beside it.
#[must_use]
pub fn heeded_grant() -> String {
    format!(
        "(select table_schema \
          from (select distinct table_schema, \
                       replace(replace(replace(table_schema, '\\\\\\\\', 'x'), '\\\\_', 'x'), '\\\\%', 'x') as name \
                from information_schema.schema_privileges \
                where grantee = {ACCOUNT} and database() like table_schema) fitting \
          order by /*M!100100 greatest(if(locate('%', name), 129 - 2 * length(replace(name, '%', '')), 0), \
                                       2 * (length(name) - length(replace(name, '_', '')))), \
                              length(name) - length(replace(name, '%', '')), \
                              length(name) - length(replace(name, '_', '')), \
                              locate('_', replace(name, '%', '_')), */ \
                   /*!80000 coalesce(nullif(locate('_', replace(name, '%', '_')), 0), 1000) desc, name = '%', */ \
                   name \
          limit 1)"
    )
}

/// The names of the tables that every store has, as a statement lists them, and how many they are.
fn tables() -> (String, usize) {
    let names: Vec<String> = oldest_tables().map(|name| format!("'{name}'")).collect();
    (names.join(", "), names.len())
}

/// The names of the tables of every version: beside them there may be somebody else's, which are no matter of the store's.
fn known_tables() -> String {
    let names = PARTS.lines().filter_map(|line| line.split_once(" table "));
    let names: Vec<String> = names.map(|(_, name)| format!("'{name}'")).collect();
    names.join(", ")
}

/// What keeps a store from working here, if anything does. Asks only.
///
/// # Errors
/// What the server or the connection says.
pub async fn ailment(conn: &mut Connection) -> Result<Option<Ailment>, sqlx::Error> {
    let query = match conn.engine() {
        Engine::Mysql => Query::mysql(Kind::Read, AssertSqlSafe(Arc::clone(&IN_MYSQL)), MySqlArguments::default()),
        _ => Query::postgres(Kind::Read, AssertSqlSafe(Arc::clone(&IN_POSTGRES)), PgArguments::default()),
    };
    conn.fetch_one(query).await.map(Found::ailment)
}

/// As [`ailment`], in a session of one's own. In the simple protocol: nobody may have looked for a transaction pooler yet, which
/// would leave a prepared statement to others.
///
/// # Errors
/// What the server or the connection says.
pub async fn ailment_in(session: &mut Session) -> Result<Option<Ailment>, sqlx::Error> {
    let found = match session {
        Session::Postgres(conn) => {
            Found::from_row(&sqlx::raw_sql(AssertSqlSafe(Arc::clone(&IN_POSTGRES))).fetch_one(conn).await?)?
        }
        Session::MySql(conn) => {
            Found::from_row(&sqlx::raw_sql(AssertSqlSafe(Arc::clone(&IN_MYSQL))).fetch_one(conn).await?)?
        }
    };
    Ok(found.ailment())
}

impl Found {
    /// The worst of it.
    fn ailment(self) -> Option<Ailment> {
        let Self { is_read_only, has_tables, is_readable, is_writable } = self;
        match (is_readable, has_tables) {
            // Of tables that it may not touch, MySQL tells nothing.
            (false, _) => Some(Ailment::Unreadable),
            (true, false) => Some(Ailment::TablesMissing),
            (true, true) if !is_writable => Some(Ailment::Unwritable),
            (true, true) => is_read_only.then_some(Ailment::ReadOnly),
        }
    }
}
