//! What provisioning does on a PostgreSQL server: the one place of dynamic SQL. Names are [`Ident`]s, the only literals are
//! a password of our own making and ids.
//!
//! A managed store has a database and a login of its own, both named after its id. The database is cloned from a template
//! that holds the schema of one version; the clone and everything in it belong to the store's login, and nobody else but the
//! administrator may connect.

use kernel::ident::quote_literal;
use kernel::{Engine, Ident, StoreId};
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use tenancy::Session;

use super::engine::{Facts, MOST_COUNTED, database_in_use};
use super::held::Held;
use super::scram;
use super::step_error::StepError;

/// PostgreSQL 13.
const MIN_VERSION: i32 = 130_000;
/// Owns what is inside a template, so that one statement re-owns a clone without touching anything else of the server.
const TEMPLATE_OWNER: &str = "tenantry_template";
/// One process at a time builds templates on a server.
const TEMPLATE_LOCK: i64 = 0x7465_6d70_6c61_7465;

/// Sets the limits of a session that provisions; after connecting, since a pooler refuses start-up options.
pub async fn set_limits(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    connection
        .execute("set statement_timeout = '60s'; set lock_timeout = '10s'; set idle_in_transaction_session_timeout = '60s'; set timezone = 'UTC'")
        .await?;
    Ok(())
}

/// The backend that answers, asked in the simple protocol: behind a transaction pooler a prepared probe would itself fail.
pub async fn server_side(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::raw_sql("select pg_backend_pid()::int8").fetch_one(connection).await?.try_get(0)
}

/// What there is to know before anything is changed. In the simple protocol, as it may be asked before a pooler is looked for.
pub async fn facts(connection: &mut PgConnection) -> Result<Facts, sqlx::Error> {
    let row = sqlx::raw_sql(
        "select current_setting('server_version_num')::int4,
                pg_is_in_recovery() or current_setting('transaction_read_only')::bool,
                pg_is_in_recovery()",
    )
    .fetch_one(connection)
    .await?;
    let version: i32 = row.try_get(0)?;
    Ok(Facts {
        engine: Engine::Postgresql,
        server: format!("PostgreSQL {}", version / 10_000),
        is_supported: version >= MIN_VERSION,
        is_read_only: row.try_get(1)?,
        is_replica: row.try_get(2)?,
    })
}

/// Whether the login may create databases and logins.
pub async fn may_provision(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select rolsuper or (rolcreatedb and rolcreaterole) from pg_roles where rolname = current_user")
        .fetch_one(connection)
        .await
}

/// What the cluster calls itself, whichever address leads to it; none where the login may not read it. A physical copy has
/// the name of what it was copied from.
pub async fn system_identifier(connection: &mut PgConnection) -> Option<String> {
    sqlx::query_scalar("select system_identifier::text from pg_control_system()").fetch_one(connection).await.ok()
}

pub async fn try_lock(connection: &mut PgConnection, key: u64) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(key.cast_signed()).fetch_one(connection).await
}

/// Whether anybody holds it, in whichever database of the server.
pub async fn is_locked_by_anybody(connection: &mut PgConnection, key: u64) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select exists (
             select from pg_catalog.pg_locks
             where locktype = 'advisory' and objsubid = 1 and (classid::int8 << 32) | objid::int8 = $1)",
    )
    .bind(key.cast_signed())
    .fetch_one(connection)
    .await
}

pub async fn wait_little(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    connection.execute("set lock_timeout = 200; set statement_timeout = 2000").await.map(drop)
}

pub async fn count_rows(connection: &mut PgConnection, table: &'static str) -> Result<i64, sqlx::Error> {
    let text = format!("select count(*) from (select 1 from tenantry.{table} limit {MOST_COUNTED}) counted");
    sqlx::query_scalar(AssertSqlSafe(text)).fetch_one(connection).await
}

pub async fn newest_row(connection: &mut PgConnection, table: &'static str) -> Result<Option<String>, sqlx::Error> {
    let text = format!("select id from tenantry.{table} order by id desc limit 1");
    sqlx::query_scalar(AssertSqlSafe(text)).fetch_optional(connection).await
}

pub async fn has_row(connection: &mut PgConnection, table: &'static str, id: &str) -> Result<bool, sqlx::Error> {
    let text = format!("select count(*) from tenantry.{table} where id = $1");
    let found: i64 = sqlx::query_scalar(AssertSqlSafe(text)).bind(id).fetch_one(connection).await?;
    Ok(found > 0)
}

pub async fn sessions_beside(connection: &mut PgConnection) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "select pid::int8 from pg_catalog.pg_stat_activity
         where datname = current_database() and usename = current_user and pid <> pg_backend_pid()
           and application_name = $1",
    )
    .bind(tenancy::APPLICATION_NAME)
    .fetch_all(connection)
    .await
}

pub async fn end_session(connection: &mut PgConnection, other: i64) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_terminate_backend($1::int8::int4)").bind(other).execute(connection).await.map(drop)
}

fn template_name() -> Ident {
    Ident::new(format!("tenantry_template_{}", tenant_schema::LATEST_VERSION)).expect("letters, digits and underscores")
}

/// The template of the newest schema version; built when the server has none. `connect` enters a database of that server as
/// `admin` is.
pub async fn ensure_template<F>(admin: &mut PgConnection, connect: impl Fn(Ident) -> F) -> Result<Ident, StepError>
where
    F: Future<Output = Result<Held, StepError>>,
{
    let name = template_name();
    if is_template_ready(admin, &name).await? {
        return Ok(name);
    }
    // A session lock, held by the connection that the step closes in every outcome.
    sqlx::query("select pg_advisory_lock($1)").bind(TEMPLATE_LOCK).execute(&mut *admin).await?;
    let built = build_template(admin, &name, connect).await;
    sqlx::query("select pg_advisory_unlock($1)").bind(TEMPLATE_LOCK).execute(&mut *admin).await?;
    built.map(|()| name)
}

async fn is_template_ready(admin: &mut PgConnection, name: &Ident) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select exists (select from pg_database where datname = $1 and datistemplate)")
        .bind(name.as_str())
        .fetch_one(admin)
        .await
}

async fn build_template<F>(
    admin: &mut PgConnection,
    name: &Ident,
    connect: impl Fn(Ident) -> F,
) -> Result<(), StepError>
where
    F: Future<Output = Result<Held, StepError>>,
{
    if is_template_ready(admin, name).await? {
        return Ok(());
    }
    let owner = Ident::new(TEMPLATE_OWNER).expect("a plain name");
    ensure_group_role(admin, &owner).await?;
    // A build that was killed in the middle leaves a database that is no template yet: ours to drop, by its name.
    admin.execute(AssertSqlSafe(format!("drop database if exists {name}"))).await?;
    admin.execute(AssertSqlSafe(format!("create database {name}"))).await?;
    admin.execute(AssertSqlSafe(format!("revoke connect, temporary on database {name} from public"))).await?;
    admin.execute(AssertSqlSafe(format!("grant create on database {name} to {owner}"))).await?;

    let mut inside = connect(name.clone()).await?;
    let migrated = fill_template(&mut inside, &owner).await;
    // A template must have no connection when it is cloned.
    let closed = inside.close().await;
    migrated?;
    closed?;
    // Being a template is the mark of being whole: it is set last.
    admin
        .execute(AssertSqlSafe(format!("alter database {name} with allow_connections false is_template true")))
        .await?;
    Ok(())
}

/// Puts the schema into a template, as the role that its clones' things are taken over from.
async fn fill_template(inside: &mut Session, owner: &Ident) -> Result<(), StepError> {
    let failed = || {
        StepError::new(
            "template-failed",
            "The schema's template could not be built.",
            "This is on our side; ask support.",
        )
    };
    let conn = inside.postgres().ok_or_else(failed)?;
    conn.execute("revoke create on schema public from public").await?;
    conn.execute(AssertSqlSafe(format!("set role {owner}"))).await?;
    tenant_schema::migrate(inside).await.map_err(|error| failed().because(error))
}

/// A role that owns things and cannot log in, with the administrator as a member.
async fn ensure_group_role(admin: &mut PgConnection, name: &Ident) -> Result<(), sqlx::Error> {
    if !role_exists(admin, name).await? {
        admin.execute(AssertSqlSafe(format!("create role {name} nologin"))).await?;
    }
    join(admin, name).await?;
    Ok(())
}

async fn role_exists(admin: &mut PgConnection, name: &Ident) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select exists (select from pg_roles where rolname = $1)")
        .bind(name.as_str())
        .fetch_one(admin)
        .await
}

/// The store's database: cloned from the template, or found again. One of this name without the store's mark is refused.
pub async fn ensure_clone(
    admin: &mut PgConnection,
    name: &Ident,
    template: &Ident,
    store: StoreId,
) -> Result<(), StepError> {
    match holder_of(admin, name, store).await? {
        Holder::Nobody => {
            admin.execute(AssertSqlSafe(format!("create database {name} template {template}"))).await?;
            Ok(())
        }
        Holder::Store => Ok(()),
        Holder::SomebodyElse => Err(database_in_use()),
    }
}

/// Makes the clone the store's: its login, its mark, who may enter, and who owns what is inside. `inside` is the
/// administrator, connected to the clone, since owners of what is in a database are changed there only. One transaction, and
/// so one wait for the disk.
pub async fn settle_clone(
    inside: &mut PgConnection,
    name: &Ident,
    password: &SecretString,
    store: StoreId,
) -> Result<(), StepError> {
    let mut tx = inside.begin().await?;
    ensure_role(&mut tx, name, password).await?;
    let mark = quote_literal(&mark(store)).expect("an id has no backslash");
    tx.execute(AssertSqlSafe(format!(
        "comment on database {name} is {mark}; revoke all on database {name} from public; \
         grant connect, create, temporary on database {name} to {name}"
    )))
    .await?;
    give_to_role(&mut tx, name).await?;
    Ok(tx.commit().await?)
}

/// The store's login with this password: created, or given the password again when an earlier attempt had created it.
async fn ensure_role(tx: &mut PgConnection, name: &Ident, password: &SecretString) -> Result<(), StepError> {
    let unusable = || StepError::new("unexpected", "The made-up password is not usable.", "Retry.");
    let verifier = scram::verifier(password, kernel::random::bytes()).ok_or_else(unusable)?;
    let literal = quote_literal(&verifier).ok_or_else(unusable)?;
    let verb = if role_exists(tx, name).await? { "alter" } else { "create" };
    let options = "login nosuperuser nocreatedb nocreaterole noreplication noinherit";
    tx.execute(AssertSqlSafe(format!("{verb} role {name} with {options} password {literal}"))).await?;
    Ok(())
}

/// Makes the administrator a member of `role` with all of its rights, unless it is a superuser, who needs none. Since
/// PostgreSQL 16 whoever creates a role is its member without its rights; granting them is a grant of its own.
async fn join(connection: &mut PgConnection, role: &Ident) -> Result<bool, sqlx::Error> {
    let (is_superuser, version): (bool, i32) = sqlx::query_as(
        "select rolsuper, current_setting('server_version_num')::int4 from pg_roles where rolname = current_user",
    )
    .fetch_one(&mut *connection)
    .await?;
    if is_superuser {
        return Ok(false);
    }
    let options = if version >= 160_000 { " with inherit true, set true" } else { "" };
    connection.execute(AssertSqlSafe(format!("grant {role} to current_user{options}"))).await?;
    Ok(true)
}

/// Gives everything inside the database to the store's login.
async fn give_to_role(tx: &mut PgConnection, role: &Ident) -> Result<(), StepError> {
    let owner = Ident::new(TEMPLATE_OWNER).expect("a plain name");
    let has_joined = join(tx, role).await?;
    // A clone carries the grants of its template's owner along.
    tx.execute(AssertSqlSafe(format!(
        "reassign owned by {owner} to {role}; revoke all on database {role} from {owner}"
    )))
    .await?;
    if has_joined {
        tx.execute(AssertSqlSafe(format!("revoke {role} from current_user"))).await?;
    }
    Ok(())
}

/// Drops the database and the login of a store, if they bear its mark. Connections of ours are closed first by the caller's
/// route change; others are ended, since nobody else may have any.
pub async fn drop_store_database(admin: &mut PgConnection, name: &Ident, store: StoreId) -> Result<(), StepError> {
    match holder_of(admin, name, store).await? {
        Holder::Nobody => {}
        Holder::Store => {
            // Ending the store's sessions takes the rights of its login.
            if role_exists(admin, name).await? {
                join(admin, name).await?;
            }
            // The server goes on with what a killed process had asked for: by now it may be gone.
            admin.execute(AssertSqlSafe(format!("drop database if exists {name} with (force)"))).await?;
        }
        Holder::SomebodyElse => return Err(database_in_use()),
    }
    admin.execute(AssertSqlSafe(format!("drop role if exists {name}"))).await?;
    Ok(())
}

/// Whose the database of a store's name is.
enum Holder {
    /// There is none.
    Nobody,
    /// It bears the store's mark, or none yet because its maker was killed between cloning and marking. The name alone holds
    /// the store's id, so nobody else makes one by chance.
    Store,
    SomebodyElse,
}

async fn holder_of(admin: &mut PgConnection, name: &Ident, store: StoreId) -> Result<Holder, sqlx::Error> {
    let found: Option<Option<String>> =
        sqlx::query_scalar("select shobj_description(oid, 'pg_database') from pg_database where datname = $1")
            .bind(name.as_str())
            .fetch_optional(admin)
            .await?;
    Ok(match found {
        None => Holder::Nobody,
        Some(found) if found.as_ref().is_none_or(|found| *found == mark(store)) => Holder::Store,
        Some(_) => Holder::SomebodyElse,
    })
}

fn mark(store: StoreId) -> String {
    format!("tenantry {store}")
}

/// Databases and roles of a server whose names are ours to give: stores' by name, and unfinished templates.
pub async fn names_like_ours(admin: &mut PgConnection) -> Result<(Vec<String>, Vec<String>), sqlx::Error> {
    let databases =
        sqlx::query_scalar("select datname::text from pg_database where datname ~ '^store_[0-9a-z]{26}$' order by 1")
            .fetch_all(&mut *admin)
            .await?;
    let roles =
        sqlx::query_scalar("select rolname::text from pg_roles where rolname ~ '^store_[0-9a-z]{26}$' order by 1")
            .fetch_all(admin)
            .await?;
    Ok((databases, roles))
}
