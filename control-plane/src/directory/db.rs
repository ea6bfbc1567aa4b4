//! SQL of routes.

use chrono::{DateTime, NaiveDate, Utc};
use kernel::{Engine, Hostname, ServerId, StoreId, StoreStatus};
use sqlx::PgConnection;
use tenancy::{DatabaseRoute, Route, StoreChange};
use vault::Sealed;

use super::changes::LoggedChange;

struct RouteRow {
    store_id: StoreId,
    status: StoreStatus,
    is_read_only: bool,
    route_version: i64,
    engine: Option<Engine>,
    server_id: Option<ServerId>,
    schema_version: Option<i64>,
    sealed: Option<Vec<u8>>,
    credential_version: Option<i32>,
}

impl TryFrom<RouteRow> for Route {
    type Error = sqlx::Error;

    fn try_from(row: RouteRow) -> Result<Self, sqlx::Error> {
        let database = match (row.engine, row.sealed, row.credential_version) {
            (Some(engine), Some(sealed), Some(credential_version)) => Some(DatabaseRoute {
                engine,
                server: row.server_id,
                schema_version: row.schema_version.unwrap_or_default(),
                sealed: Sealed::from_bytes(sealed).map_err(|error| sqlx::Error::Decode(error.into()))?,
                credential_version,
            }),
            _ => None,
        };
        Ok(Self {
            store_id: row.store_id,
            status: row.status,
            is_read_only: row.is_read_only,
            version: row.route_version,
            database,
        })
    }
}

pub async fn route_by_hostname(conn: &mut PgConnection, hostname: &str) -> Result<Option<Route>, sqlx::Error> {
    let row = sqlx::query_as!(
        RouteRow,
        r#"select s.id as "store_id: StoreId", s.status as "status: StoreStatus", s.is_read_only, s.route_version,
                  d.engine as "engine?: Engine", d.server_id as "server_id?: ServerId", d.schema_version,
                  d.sealed as "sealed?", d.credential_version as "credential_version?"
           from hostnames h
           join stores s on s.id = h.store_id
           left join store_databases d on d.store_id = s.id
           where h.hostname = $1 and s.status <> 'deleted'"#,
        hostname,
    )
    .fetch_optional(conn)
    .await?;
    row.map(TryInto::try_into).transpose()
}

pub async fn route_by_store(conn: &mut PgConnection, store: StoreId) -> Result<Option<Route>, sqlx::Error> {
    let row = sqlx::query_as!(
        RouteRow,
        r#"select s.id as "store_id: StoreId", s.status as "status: StoreStatus", s.is_read_only, s.route_version,
                  d.engine as "engine?: Engine", d.server_id as "server_id?: ServerId", d.schema_version,
                  d.sealed as "sealed?", d.credential_version as "credential_version?"
           from stores s
           left join store_databases d on d.store_id = s.id
           where s.id = $1 and s.status <> 'deleted'"#,
        store.as_uuid(),
    )
    .fetch_optional(conn)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// One entry of the change log.
pub async fn store_change(conn: &mut PgConnection, seq: i64) -> Result<Option<LoggedChange>, sqlx::Error> {
    let row = sqlx::query_as!(
        ChangeRow,
        r#"select seq, store_id as "store_id: StoreId", route_version, hostnames, at from store_changes where seq = $1"#,
        seq
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(Into::into))
}

/// The oldest transaction that is under way, and what time it is at master.
pub async fn change_horizon(conn: &mut PgConnection) -> Result<(i64, DateTime<Utc>), sqlx::Error> {
    let row = sqlx::query!(
        r#"select pg_snapshot_xmin(pg_current_snapshot())::text::int8 as "horizon!", clock_timestamp() as "now!""#
    )
    .fetch_one(conn)
    .await?;
    Ok((row.horizon, row.now))
}

/// Entries of the change log of this transaction and later ones, after entry `after`, in their order.
pub async fn store_changes_since(
    conn: &mut PgConnection,
    horizon: i64,
    after: i64,
    limit: i64,
) -> Result<Vec<LoggedChange>, sqlx::Error> {
    let rows = sqlx::query_as!(
        ChangeRow,
        r#"select seq, store_id as "store_id: StoreId", route_version, hostnames, at from store_changes
           where xact >= $1::int8::text::xid8 and seq > $2
           order by seq
           limit $3"#,
        horizon,
        after,
        limit
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Into::into).collect())
}

struct ChangeRow {
    seq: i64,
    store_id: StoreId,
    route_version: i64,
    hostnames: Vec<String>,
    at: DateTime<Utc>,
}

impl From<ChangeRow> for LoggedChange {
    fn from(row: ChangeRow) -> Self {
        let change = StoreChange {
            store_id: row.store_id,
            route_version: row.route_version,
            hostnames: row.hostnames.iter().filter_map(|name| Hostname::parse(name).ok()).collect(),
        };
        Self { seq: row.seq, change, at: row.at }
    }
}

/// The names of active stores with most of a metric since a day, the first with most.
pub async fn busiest_hostnames(
    conn: &mut PgConnection,
    metric: &str,
    since: NaiveDate,
    limit: i64,
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(
        "select h.hostname from (
             select store_id, sum(quantity) as quantity from usage_metrics
             where metric = $1 and day >= $2 group by store_id order by sum(quantity) desc, store_id limit $3
         ) busy
         join stores s on s.id = busy.store_id and s.status = 'active'
         join hostnames h on h.store_id = busy.store_id and h.is_primary
         order by busy.quantity desc, busy.store_id",
        metric,
        since,
        limit
    )
    .fetch_all(conn)
    .await
}

/// Tells every node, when this is committed, that the database of a store was seen well.
pub async fn store_recovery_tell(conn: &mut PgConnection, store: StoreId) -> Result<(), sqlx::Error> {
    sqlx::query!("select pg_notify('tenantry_store_recoveries', $1::uuid::text)", store.as_uuid())
        .execute(conn)
        .await?;
    Ok(())
}

/// Forgets changes that every node has heard of or has replaced by a full re-read, in a bounded batch.
pub async fn store_changes_purge(conn: &mut PgConnection, before: DateTime<Utc>) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "delete from store_changes where seq in (select seq from store_changes where at < $1 order by at limit 1000)",
        before
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}
