//! What provisioning asks of a server, whichever engine it is. Each engine's own SQL is in [`postgres`] and [`mysql`].

use std::time::Duration;

use kernel::{Engine, Ident, StoreId};
use tenancy::Session;
use tenant_schema::fitness::Ailment;
use tokio::time::timeout;

use super::remedy::{self, Guest};
use super::step_error::StepError;
use super::{mysql, postgres};

/// How long a server may take to let us go.
const GOOD_BYE: Duration = Duration::from_secs(1);

/// What a server and a login are like.
pub struct Facts {
    pub engine: Engine,
    /// Its product and version, for people.
    pub server: String,
    /// Whether the version is one that stores can live on.
    pub is_supported: bool,
    pub is_read_only: bool,
    /// Whether that is because it follows another server, as far as it says so.
    pub is_replica: bool,
}

impl Facts {
    /// Whether a store can live on such a server, for this login.
    pub fn check(&self, guest: &Guest<'_>) -> Result<(), StepError> {
        if !self.is_supported {
            let what = format!("The server is {}.", self.server);
            return Err(StepError::new("version-too-old", what, needed_version(self.engine)));
        }
        match (self.is_read_only, self.is_replica, self.engine) {
            (false, ..) => Ok(()),
            (true, true, _) => {
                Err(read_only("The server is a replica that follows another one.", "Connect to the primary server."))
            }
            (true, false, Engine::Mysql) => Err(read_only(
                "The server is set to read only, as replicas are.",
                "Connect to the primary server. Only where SHOW REPLICA STATUS (in MySQL before 8.0.22 SHOW SLAVE STATUS) \
                 shows nothing, and the server is no member of a group, does it follow no other: then have an administrator \
                 run the statements. A replica that is written to parts from its primary.",
            )
            .sql(remedy::MAKE_SERVER_WRITABLE)),
            (true, false, _) => Err(read_only(
                "It begins every transaction of this login in this database read-only.",
                "Have an administrator of the database run the statements. When that does not help, the whole server is set so: \
                 default_transaction_read_only in its configuration.",
            )
            .sql(guest.make_writable())),
        }
    }
}

fn read_only(what: &str, advice: &'static str) -> StepError {
    StepError::new(Ailment::ReadOnly.code(), what, advice)
}

/// The oldest servers that stores can live on.
pub const fn needed_version(engine: Engine) -> &'static str {
    match engine {
        Engine::Mysql => "Use MySQL 8.0.16 or MariaDB 10.6, or later.",
        _ => "Use PostgreSQL 13 or later.",
    }
}

/// Sets the limits of a session that provisions.
pub async fn set_limits(session: &mut Session) -> Result<(), sqlx::Error> {
    match session {
        Session::Postgres(conn) => postgres::set_limits(conn).await,
        Session::MySql(conn) => mysql::set_limits(conn).await,
    }
}

/// Names the server's side of the session: no two that are open at once share it, unless a transaction pooler stands between.
pub async fn server_side(session: &mut Session) -> Result<i64, sqlx::Error> {
    match session {
        Session::Postgres(conn) => postgres::server_side(conn).await,
        Session::MySql(conn) => mysql::server_side(conn).await,
    }
}

/// What there is to know before anything is changed.
pub async fn facts(session: &mut Session) -> Result<Facts, sqlx::Error> {
    match session {
        Session::Postgres(conn) => postgres::facts(conn).await,
        Session::MySql(conn) => mysql::facts(conn).await,
    }
}

/// Whether the login may create databases and logins.
pub async fn may_provision(session: &mut Session) -> Result<bool, sqlx::Error> {
    match session {
        Session::Postgres(conn) => postgres::may_provision(conn).await,
        Session::MySql(conn) => mysql::may_provision(conn).await,
    }
}

/// What the server calls itself, whichever address leads to it; none where it does not say. A physical copy has the name of
/// what it was copied from.
pub async fn system_identifier(session: &mut Session) -> Option<String> {
    match session {
        Session::Postgres(conn) => postgres::system_identifier(conn).await,
        Session::MySql(conn) => mysql::system_identifier(conn).await,
    }
}

/// The host part of the account that the server took the login for; nothing where accounts have none.
pub async fn account_host(session: &mut Session) -> Result<Option<String>, sqlx::Error> {
    match session {
        Session::Postgres(_) => Ok(None),
        Session::MySql(conn) => mysql::account_host(conn).await.map(Some),
    }
}

/// Says good-bye to the server, whatever became of the session, so that no lock outlives it.
pub async fn leave(session: Session) {
    match timeout(GOOD_BYE, session.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error = %error, "closing a connection failed"),
        Err(_) => tracing::debug!("closing a connection took too long"),
    }
}

/// Whether two sessions are at one and the same database, whatever addresses lead there: what the one locks, the other finds
/// locked. Both locks go with their sessions.
pub async fn is_same_database(one: &mut Session, two: &mut Session) -> Result<bool, sqlx::Error> {
    let key = kernel::random::below(1 << 62);
    let is_locked = match one {
        Session::Postgres(conn) => postgres::try_lock(conn, key).await?,
        Session::MySql(conn) => mysql::try_lock(conn, key).await?,
    };
    let is_locked_again = match two {
        Session::Postgres(conn) => postgres::try_lock(conn, key).await?,
        Session::MySql(conn) => mysql::try_lock(conn, key).await?,
    };
    Ok(is_locked && !is_locked_again)
}

/// Whether two sessions are at one and the same server, whatever addresses and databases they were given, as far as the server
/// itself knows: of what the one holds the other is told. What is held goes with its session.
pub async fn is_same_server(one: &mut Session, two: &mut Session) -> Result<bool, sqlx::Error> {
    let key = kernel::random::below(1 << 62);
    match (one, two) {
        (Session::Postgres(one), Session::Postgres(two)) => {
            Ok(postgres::try_lock(one, key).await? && postgres::is_locked_by_anybody(two, key).await?)
        }
        (Session::MySql(one), Session::MySql(two)) => {
            Ok(mysql::try_lock_server(one, key).await? && mysql::is_server_locked(two, key).await?)
        }
        _ => Ok(false),
    }
}

/// Lets a session wait for nobody's locks: in MySQL, which counts in seconds, for one.
pub async fn wait_little(session: &mut Session) -> Result<(), sqlx::Error> {
    match session {
        Session::Postgres(conn) => postgres::wait_little(conn).await,
        Session::MySql(conn) => mysql::wait_little(conn).await,
    }
}

/// No more rows of a table are counted: that many take a fraction of a second.
pub(super) const MOST_COUNTED: i64 = 500_000;

/// How many rows one of the store's tables has, up to [`MOST_COUNTED`].
pub async fn count_rows(session: &mut Session, table: &'static str) -> Result<i64, sqlx::Error> {
    match session {
        Session::Postgres(conn) => postgres::count_rows(conn, table).await,
        Session::MySql(conn) => mysql::count_rows(conn, table).await,
    }
}

/// The id of the newest row of one of the store's tables: ids begin with the time.
pub async fn newest_row(session: &mut Session, table: &'static str) -> Result<Option<String>, sqlx::Error> {
    match session {
        Session::Postgres(conn) => postgres::newest_row(conn, table).await,
        Session::MySql(conn) => mysql::newest_row(conn, table).await,
    }
}

/// Whether one of the store's tables has the row with this id.
pub async fn has_row(session: &mut Session, table: &'static str, id: &str) -> Result<bool, sqlx::Error> {
    match session {
        Session::Postgres(conn) => postgres::has_row(conn, table, id).await,
        Session::MySql(conn) => mysql::has_row(conn, table, id).await,
    }
}

/// The other sessions that the login of this one has in its database: in PostgreSQL those of nodes alone; MySQL does not say
/// whose they are.
pub async fn sessions_beside(session: &mut Session) -> Result<Vec<i64>, sqlx::Error> {
    match session {
        Session::Postgres(conn) => postgres::sessions_beside(conn).await,
        Session::MySql(conn) => mysql::sessions_beside(conn).await,
    }
}

/// Ends another session of the same login; one that has gone by itself is no error.
pub async fn end_session(session: &mut Session, other: i64) -> Result<(), sqlx::Error> {
    match session {
        Session::Postgres(conn) => postgres::end_session(conn, other).await,
        Session::MySql(conn) => mysql::end_session(conn, other).await,
    }
}

/// Drops the database and the login of a store, if they are the store's.
pub async fn drop_store_database(session: &mut Session, name: &Ident, store: StoreId) -> Result<(), StepError> {
    match session {
        Session::Postgres(conn) => postgres::drop_store_database(conn, name, store).await,
        Session::MySql(conn) => mysql::drop_store_database(conn, name, store).await,
    }
}

/// Databases and logins of a server whose names are ours to give.
pub async fn names_like_ours(session: &mut Session) -> Result<(Vec<String>, Vec<String>), sqlx::Error> {
    match session {
        Session::Postgres(conn) => postgres::names_like_ours(conn).await,
        Session::MySql(conn) => mysql::names_like_ours(conn).await,
    }
}

pub(super) fn database_in_use() -> StepError {
    StepError::new(
        "database-in-use",
        "A database of this name exists and is not this store's.",
        "This is on our side; ask support.",
    )
}
