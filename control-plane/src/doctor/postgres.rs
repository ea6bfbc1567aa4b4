//! What the doctor asks of PostgreSQL. Everything here reads.

use sqlx::{Executor as _, PgConnection, Row as _};
use tenancy::Credential;
use tenant_schema::SchemaState;

use super::inside::{Limits, Seen};
use super::report::Note;
use crate::provisioning::remedy::Guest;

pub(super) const BY_ADMINISTRATOR: &str = "Have an administrator of the database run the statement.";

/// Makes the session one that only reads.
pub(super) async fn read_only(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    conn.execute(sqlx::raw_sql("set session characteristics as transaction read only")).await.map(drop)
}

pub(super) async fn ping(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    conn.execute(sqlx::raw_sql("select 1")).await.map(drop)
}

/// What the session is like after it was set up as a pool's.
pub(super) async fn settings(conn: &mut PgConnection) -> Result<Note, sqlx::Error> {
    let row = sqlx::raw_sql(
        "select current_setting('TimeZone'), current_setting('client_encoding'), current_setting('server_encoding'),
                current_setting('statement_timeout'), current_setting('lock_timeout'),
                current_setting('transaction_isolation')",
    )
    .fetch_one(conn)
    .await?;
    let text = |at: usize| row.try_get::<String, _>(at);
    let (zone, client, server) = (text(0)?, text(1)?, text(2)?);
    let (statement, lock, isolation) = (text(3)?, text(4)?, text(5)?);
    let detail = format!(
        "Time zone {zone}, client encoding {client}, database encoding {server}, statement_timeout {statement}, \
         lock_timeout {lock}, isolation {isolation}."
    );
    if zone != "UTC" || client != "UTF8" || statement == "0" {
        return Ok(Note::failed(
            "session-settings",
            format!("The session did not take the settings that stores need. {detail}"),
            "Connect to the server itself, or have the pooler pass settings on.",
        ));
    }
    if server != "UTF8" {
        return Ok(Note::warning(
            "database-encoding",
            format!("{detail} Texts with letters that this encoding has not are refused."),
            "Use a database that was created with ENCODING 'UTF8'.",
        ));
    }
    Ok(Note::passed(detail))
}

/// What the login lacks: to make the schema, or to act for whoever owns the one that is there.
pub(super) async fn privileges(
    conn: &mut PgConnection,
    credential: &Credential,
    seen: Seen,
) -> Result<Note, sqlx::Error> {
    let row = sqlx::query(
        "select has_database_privilege(d.oid, 'create'),
                (select pg_has_role(current_user, n.nspowner, 'usage') from pg_namespace n where n.nspname = 'tenantry'),
                (select bool_and(pg_has_role(current_user, c.relowner, 'usage'))
                 from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 where n.nspname = 'tenantry' and c.relkind in ('r', 'S'))
         from pg_database d where d.datname = current_database()",
    )
    .fetch_one(conn)
    .await?;
    let may_create: bool = row.try_get(0)?;
    let (owns_schema, owns_tables): (Option<bool>, Option<bool>) = (row.try_get(1)?, row.try_get(2)?);
    let guest = Guest::from(credential);
    let missing = |what: &str, sql: String| Note::failed("missing-privilege", what, BY_ADMINISTRATOR).sql(sql);
    let Some(owns_schema) = owns_schema else {
        return Ok(if may_create {
            Note::passed("The login may create a schema in this database.")
        } else {
            missing("The login may not create a schema in this database: CREATE is missing.", guest.grant_create())
        });
    };
    // Somebody else's schema is no matter of rights.
    if matches!(seen, Seen::Held(SchemaState::Foreign)) {
        return Ok(Note::skipped("Not looked at, because the schema tenantry is not ours."));
    }
    if !owns_schema || owns_tables == Some(false) {
        return Ok(missing(
            "The schema tenantry, or what is in it, belongs to another login, for which this one may not act.",
            guest.hand_over(),
        ));
    }
    Ok(Note::passed("The login may act for the owner of the schema tenantry and of everything in it."))
}

pub(super) async fn limits(conn: &mut PgConnection) -> Result<Limits, sqlx::Error> {
    let row = sqlx::query(
        "select current_setting('max_connections')::int8 - current_setting('superuser_reserved_connections')::int8,
                (select coalesce(sum(numbackends), 0)::int8 from pg_stat_database),
                (select least(nullif(r.rolconnlimit, -1), nullif(d.datconnlimit, -1))::int8
                 from pg_roles r, pg_database d where r.rolname = current_user and d.datname = current_database()),
                (select count(*) from pg_stat_activity
                 where usename = current_user and (datname = current_database() or datname is null)),
                pg_database_size(current_database())",
    )
    .fetch_one(conn)
    .await?;
    Ok(Limits {
        server: row.try_get(0)?,
        in_use: row.try_get(1)?,
        own: row.try_get(2)?,
        own_in_use: row.try_get(3)?,
        stored_bytes: row.try_get(4)?,
    })
}
