//! SQL of nodes and of their shares of database servers. Times are master's own: a node that was stopped for a while must not
//! be believed about how late it is.

use kernel::ServerId;
use sqlx::PgConnection;
use sqlx::postgres::types::PgInterval;

use super::NodeKey;
use super::divide::{Claim, Decision, decide};
use super::nodes::{NodeView, ShareView};
use super::place::Place;

/// Of the two numbers of an advisory lock the first; the second is the node's.
const NODE_LOCK: i32 = 0x6e6f_6465;

/// Sets this connection up: nothing waits for long, and when the way to it breaks without a word, master does not take it for gone
/// before the node's time is over.
pub(super) async fn session_set_up(conn: &mut PgConnection, ttl_s: u32) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "select array[set_config('lock_timeout', '2s', false), set_config('statement_timeout', '4s', false),
                      set_config('tcp_user_timeout', '0', false), set_config('tcp_keepalives_idle', $1, false),
                      set_config('tcp_keepalives_interval', '10', false),
                      set_config('tcp_keepalives_count', '3', false)] as settings",
        ttl_s.to_string(),
    )
    .fetch_one(conn)
    .await?;
    Ok(())
}

/// A new node, whose lock this connection holds from now on, and for as long as it lives.
pub(super) async fn node_insert(
    conn: &mut PgConnection,
    place: &Place,
    ttl: PgInterval,
) -> Result<NodeKey, sqlx::Error> {
    sqlx::query_as!(
        NodeKey,
        r#"with made as (
               insert into nodes (host, process, listen, started_at, renewed_at, expires_at)
               values ($1, $2, $3, clock_timestamp(), clock_timestamp(), clock_timestamp() + $4)
               returning id, started_at
           )
           select id as "id!", started_at as "since!" from made, pg_advisory_lock($5, id)"#,
        place.host,
        place.process,
        place.listen,
        ttl,
        NODE_LOCK,
    )
    .fetch_one(conn)
    .await
}

/// Takes the lock of a node anew, on a connection that follows one that broke. Whether it is taken: master may hold the broken
/// connection for alive for a while, which keeps the lock for the node as well.
pub(super) async fn node_try_lock(conn: &mut PgConnection, id: i32) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(r#"select pg_try_advisory_lock($1, $2) as "is_taken!""#, NODE_LOCK, id).fetch_one(conn).await
}

/// Whether nothing was heard of the node for so long, or there is none.
pub(super) async fn node_is_silent(
    conn: &mut PgConnection,
    node: NodeKey,
    silent_for: PgInterval,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select not exists (
               select from nodes where id = $1 and started_at = $2 and renewed_at >= clock_timestamp() - $3::interval
           ) as "is_silent!""#,
        node.id,
        node.since,
        silent_for,
    )
    .fetch_one(conn)
    .await
}

/// Says where the node runs now.
pub(super) async fn node_move(conn: &mut PgConnection, node: NodeKey, place: &Place) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update nodes set host = $3, listen = $4 where id = $1 and started_at = $2 and (host, listen) is distinct from ($3, $4)",
        node.id,
        node.since,
        place.host,
        place.listen,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Says that the node lives; whether it still counts as one.
pub(super) async fn node_renew(conn: &mut PgConnection, node: NodeKey, ttl: PgInterval) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "update nodes set renewed_at = clock_timestamp(), expires_at = clock_timestamp() + $3
         where id = $1 and started_at = $2",
        node.id,
        node.since,
        ttl
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The other nodes of this machine that are not connected to master now, and whether each has been silent for so long.
pub(super) async fn nodes_missing_at(
    conn: &mut PgConnection,
    host: &str,
    me: i32,
    silent_for: PgInterval,
) -> Result<Vec<(i32, Place, bool)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select id, host, process, listen, renewed_at < clock_timestamp() - $4::interval as "is_silent!" from nodes
           where host = $1 and id <> $2 and pg_try_advisory_xact_lock($3, id)"#,
        host,
        me,
        NODE_LOCK,
        silent_for,
    )
    .fetch_all(conn)
    .await?;
    let place = |host, process, listen| Place { host, process, listen };
    Ok(rows.into_iter().map(|row| (row.id, place(row.host, row.process, row.listen), row.is_silent)).collect())
}

pub(super) async fn nodes_delete(conn: &mut PgConnection, ids: &[i32]) -> Result<(), sqlx::Error> {
    sqlx::query!("delete from nodes where id = any($1)", ids).execute(conn).await?;
    Ok(())
}

/// Forgets nodes whose time is over.
pub(super) async fn nodes_delete_expired(conn: &mut PgConnection, me: i32) -> Result<u64, sqlx::Error> {
    let done =
        sqlx::query!("delete from nodes where id <> $1 and expires_at < clock_timestamp()", me).execute(conn).await?;
    Ok(done.rows_affected())
}

/// Every node with what it has, the oldest first.
pub(super) async fn nodes_all(conn: &mut PgConnection) -> Result<Vec<NodeView>, sqlx::Error> {
    let nodes = sqlx::query!(
        r#"select id, host, process, listen, started_at, renewed_at, expires_at,
                  exists (
                      select from pg_locks l
                      where l.locktype = 'advisory' and l.granted and l.classid = $1::integer::oid and l.objid = n.id::oid
                        and l.objsubid = 2
                        and l.database = (select d.oid from pg_database d where d.datname = current_database())
                  ) as "is_connected!"
           from nodes n
           order by id"#,
        NODE_LOCK,
    )
    .fetch_all(&mut *conn)
    .await?;
    let shares = sqlx::query!(
        r#"select s.node_id, v.id as "server_id: ServerId", v.name, s.connections, s.wanted
           from server_shares s
           join database_servers v on v.id = s.server_id
           order by s.node_id, v.name"#
    )
    .fetch_all(conn)
    .await?;
    let view = |id| {
        let of_node = shares.iter().filter(|share| share.node_id == id);
        let share = of_node.map(|of| ShareView {
            server: of.name.clone(),
            server_id: of.server_id,
            connections: of.connections,
            wanted: of.wanted,
        });
        share.collect()
    };
    Ok(nodes
        .into_iter()
        .map(|node| NodeView {
            id: node.id,
            host: node.host,
            listen: node.listen,
            is_connected: node.is_connected,
            is_kept: node.process.is_empty(),
            started_at: node.started_at,
            renewed_at: node.renewed_at,
            expires_at: node.expires_at,
            shares: view(node.id),
        })
        .collect())
}

/// How many seconds ago the node was last heard of.
pub(super) async fn node_silence(conn: &mut PgConnection, id: i32) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select extract(epoch from clock_timestamp() - renewed_at)::bigint as "seconds!" from nodes where id = $1"#,
        id,
    )
    .fetch_one(conn)
    .await
}

/// Forgets a node of which nothing was heard for so long, and tells the others that there is something to gain. Whether it was
/// silent.
pub(super) async fn node_delete_silent(
    conn: &mut PgConnection,
    id: i32,
    silent_for: PgInterval,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "delete from nodes where id = $1 and renewed_at < clock_timestamp() - $2::interval",
        id,
        silent_for,
    )
    .execute(&mut *conn)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query!("select pg_notify('tenantry_server_shares', '')").execute(conn).await?;
    Ok(true)
}

/// What a node says of a server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said {
    pub(super) server: ServerId,
    pub(super) claim: Claim,
}

/// Decides what a node may have at a server, and notes it; nothing when there is no such server. To be called in a transaction:
/// the server's row is held until it ends. Others are told when they have to give something back, or have something to gain.
pub(super) async fn share_renew(
    conn: &mut PgConnection,
    node: i32,
    said: Said,
) -> Result<Option<Decision>, sqlx::Error> {
    let budget = sqlx::query_scalar!(
        "select max_connections from database_servers where id = $1 for no key update",
        said.server.as_uuid(),
    )
    .fetch_optional(&mut *conn)
    .await?;
    let Some(budget) = budget else { return Ok(None) };
    let rows = sqlx::query!(
        "select node_id, connections, wanted, most from server_shares where server_id = $1 and node_id <> $2 order by node_id",
        said.server.as_uuid(),
        node,
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut claims: Vec<Claim> = rows
        .iter()
        .map(|row| Claim { held: count(row.connections), wanted: count(row.wanted), most: count(row.most) })
        .collect();
    claims.push(said.claim);
    let decision = decide(count(budget), &claims, claims.len() - 1);
    let before = sqlx::query_scalar!(
        r#"with before as (select connections from server_shares where server_id = $1 and node_id = $2),
                noted as (
                    insert into server_shares (server_id, node_id, connections, wanted, most)
                    values ($1, $2, $3, $4, $5)
                    on conflict (server_id, node_id) do update
                    set connections = excluded.connections, wanted = excluded.wanted, most = excluded.most
                )
           select coalesce((select connections from before), 0) as "before!""#,
        said.server.as_uuid(),
        node,
        number(decision.share),
        number(said.claim.wanted),
        number(said.claim.most),
    )
    .fetch_one(&mut *conn)
    .await?;
    if decision.waits_for_others || decision.share < count(before) {
        tell(conn, said.server).await?;
    }
    Ok(Some(decision))
}

/// Has every node ask anew what it may have at a server, when the transaction is committed.
pub(super) async fn tell(conn: &mut PgConnection, server: ServerId) -> Result<(), sqlx::Error> {
    sqlx::query!("select pg_notify('tenantry_server_shares', $1)", server.as_uuid().to_string()).execute(conn).await?;
    Ok(())
}

fn count(number: i32) -> u32 {
    u32::try_from(number).unwrap_or_default()
}

fn number(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
