//! SQL of database servers.

use chrono::{DateTime, Utc};
use kernel::{Engine, ServerId};
use sqlx::PgConnection;
use vault::Sealed;

use super::{Limits, Server, ServerError, ServerStatus};

struct ServerRow {
    id: ServerId,
    name: String,
    engine: Engine,
    region: Option<String>,
    host: String,
    port: i32,
    status: ServerStatus,
    max_stores: i32,
    max_connections: i32,
    stores: i64,
    created_at: DateTime<Utc>,
    sealed: Vec<u8>,
    credential_version: i32,
}

impl TryFrom<ServerRow> for Server {
    type Error = sqlx::Error;

    fn try_from(row: ServerRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.id,
            name: row.name,
            engine: row.engine,
            region: row.region,
            host: row.host,
            port: row.port,
            status: row.status,
            max_stores: row.max_stores,
            max_connections: row.max_connections,
            stores: row.stores,
            created_at: row.created_at,
            sealed: Sealed::from_bytes(row.sealed).map_err(|error| sqlx::Error::Decode(error.into()))?,
            credential_version: row.credential_version,
        })
    }
}

pub async fn server_insert(
    conn: &mut PgConnection,
    server: &Server,
    system_identifier: Option<&str>,
    now: DateTime<Utc>,
) -> Result<(), ServerError> {
    sqlx::query!(
        "insert into database_servers
            (id, name, engine, region, host, port, sealed, credential_version, status, max_stores, max_connections, created_at,
             updated_at, system_identifier)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12, $13)",
        server.id.as_uuid(),
        server.name,
        server.engine as Engine,
        server.region,
        server.host,
        server.port,
        server.sealed.as_bytes(),
        server.credential_version,
        server.status as ServerStatus,
        server.max_stores,
        server.max_connections,
        now,
        system_identifier,
    )
    .execute(conn)
    .await
    .map_err(|error| match error.as_database_error().and_then(sqlx::error::DatabaseError::constraint) {
        Some("database_servers_name_key") => ServerError::NameTaken,
        _ => error.into(),
    })?;
    Ok(())
}

/// The name of the server that is this one: at the same address, or the same cluster at another. No other is registered
/// before the transaction ends.
pub async fn server_twin_lock(
    conn: &mut PgConnection,
    host: &str,
    port: i32,
    system_identifier: Option<&str>,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query!("lock table database_servers in share row exclusive mode").execute(&mut *conn).await?;
    sqlx::query_scalar!(
        "select name from database_servers
         where (lower(host) = lower($1) and port = $2) or system_identifier = $3
         order by id
         limit 1",
        host,
        port,
        system_identifier,
    )
    .fetch_optional(conn)
    .await
}

pub async fn servers_all(conn: &mut PgConnection) -> Result<Vec<Server>, sqlx::Error> {
    let rows = sqlx::query_as!(
        ServerRow,
        r#"select v.id as "id: ServerId", v.name, v.engine as "engine: Engine", v.region, v.host, v.port,
                  v.status as "status: ServerStatus", v.max_stores, v.max_connections,
                  (select count(*) from store_databases d where d.server_id = v.id) as "stores!", v.created_at, v.sealed, v.credential_version
           from database_servers v
           order by v.name"#,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

pub async fn server_find(conn: &mut PgConnection, id: ServerId) -> Result<Option<Server>, sqlx::Error> {
    let row = sqlx::query_as!(
        ServerRow,
        r#"select v.id as "id: ServerId", v.name, v.engine as "engine: Engine", v.region, v.host, v.port,
                  v.status as "status: ServerStatus", v.max_stores, v.max_connections,
                  (select count(*) from store_databases d where d.server_id = v.id) as "stores!", v.created_at, v.sealed, v.credential_version
           from database_servers v
           where v.id = $1"#,
        id.as_uuid(),
    )
    .fetch_optional(conn)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// The active server with the smallest share of its capacity used, which is locked: two placements cannot both take the
/// last place.
pub async fn server_least_filled(
    conn: &mut PgConnection,
    engine: Engine,
    region: Option<&str>,
) -> Result<Option<Server>, sqlx::Error> {
    // Locked first and counted after: a count that began before the lock was granted would be old.
    sqlx::query!(
        "select id from database_servers where engine = $1 and status = 'active' order by id for update",
        engine as Engine
    )
    .fetch_all(&mut *conn)
    .await?;
    let id = sqlx::query_scalar!(
        r#"select v.id as "id: ServerId"
           from database_servers v
           left join lateral (select count(*) as stores from store_databases d where d.server_id = v.id) used on true
           where v.engine = $1 and v.status = 'active' and ($2::text is null or v.region = $2) and used.stores < v.max_stores
           order by used.stores::float8 / v.max_stores, v.id
           limit 1"#,
        engine as Engine,
        region,
    )
    .fetch_optional(&mut *conn)
    .await?;
    match id {
        Some(id) => server_find(conn, id).await,
        None => Ok(None),
    }
}

/// Whether any server is in this region.
pub async fn region_exists(conn: &mut PgConnection, region: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(r#"select exists (select from database_servers where region = $1) as "exists!""#, region)
        .fetch_one(conn)
        .await
}

/// Changes what the server of this name or id bears.
pub async fn server_set_limits(
    conn: &mut PgConnection,
    name_or_id: &str,
    limits: Limits,
    now: DateTime<Utc>,
) -> Result<Option<ServerId>, sqlx::Error> {
    let id = name_or_id.parse::<ServerId>().ok();
    sqlx::query_scalar!(
        r#"update database_servers
           set max_stores = coalesce($3, max_stores), max_connections = coalesce($4, max_connections), updated_at = $5
           where name = $1 or id = $2
           returning id as "id: ServerId""#,
        name_or_id,
        id.map(|id| id.as_uuid()),
        limits.max_stores,
        limits.max_connections,
        now,
    )
    .fetch_optional(conn)
    .await
}

/// Changes the status of the server of this name or id.
pub async fn server_set_status(
    conn: &mut PgConnection,
    name_or_id: &str,
    status: ServerStatus,
    now: DateTime<Utc>,
) -> Result<Option<ServerId>, sqlx::Error> {
    let id = name_or_id.parse::<ServerId>().ok();
    sqlx::query_scalar!(
        r#"update database_servers set status = $3, updated_at = $4 where name = $1 or id = $2 returning id as "id: ServerId""#,
        name_or_id,
        id.map(|id| id.as_uuid()),
        status as ServerStatus,
        now,
    )
    .fetch_optional(conn)
    .await
}
