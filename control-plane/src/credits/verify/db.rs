//! SQL of what must hold of the ledger, and of its sealed roots.

use chrono::{DateTime, Utc};
use kernel::OrganizationId;
use sqlx::PgConnection;
use uuid::Uuid;

/// Something that must hold of an account and does not.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Violation {
    /// 1 to 10, as the migration of the checks numbers them.
    pub invariant: i32,
    pub organization_id: OrganizationId,
    /// The first version at which it is seen.
    pub version: Option<i64>,
    pub what: String,
}

/// Everything that does not hold, of one account or of all, by account and version.
pub async fn violations(
    conn: &mut PgConnection,
    organization: Option<OrganizationId>,
) -> Result<Vec<Violation>, sqlx::Error> {
    sqlx::query_as!(
        Violation,
        r#"select invariant as "invariant!", organization_id as "organization_id!: OrganizationId", version, what as "what!"
           from credit_violations($1)"#,
        organization.map(|id| id.as_uuid()),
    )
    .fetch_all(conn)
    .await
}

pub async fn account_exists(conn: &mut PgConnection, organization: OrganizationId) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select exists (select from credit_accounts where organization_id = $1) as "exists!""#,
        organization.as_uuid(),
    )
    .fetch_one(conn)
    .await
}

/// Where an account's chain ends.
pub struct Head {
    pub organization_id: OrganizationId,
    pub version: i64,
    pub chain: Vec<u8>,
}

/// Where every account's chain ends, in the order of the organizations.
pub async fn heads(conn: &mut PgConnection) -> Result<Vec<Head>, sqlx::Error> {
    sqlx::query_as!(
        Head,
        r#"select organization_id as "organization_id: OrganizationId", version, chain from credit_accounts
           where version > 0
           order by organization_id"#,
    )
    .fetch_all(conn)
    .await
}

/// A sealed root, as it was kept.
pub struct RootRow {
    pub id: Uuid,
    pub root: Vec<u8>,
    pub sealed: Vec<u8>,
    pub created_at: DateTime<Utc>,
}

pub async fn root_insert(conn: &mut PgConnection, root: &RootRow, heads: &[Head]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into credit_roots (id, root, sealed, accounts, created_at) values ($1, $2, $3, $4, $5)",
        root.id,
        root.root,
        root.sealed,
        i64::try_from(heads.len()).unwrap_or(i64::MAX),
        root.created_at,
    )
    .execute(&mut *conn)
    .await?;
    let organizations: Vec<Uuid> = heads.iter().map(|head| head.organization_id.as_uuid()).collect();
    let versions: Vec<i64> = heads.iter().map(|head| head.version).collect();
    let chains: Vec<Vec<u8>> = heads.iter().map(|head| head.chain.clone()).collect();
    sqlx::query!(
        "insert into credit_root_heads (root_id, organization_id, version, chain)
         select $1, u.organization_id, u.version, u.chain
         from unnest($2::uuid[], $3::bigint[], $4::bytea[]) u (organization_id, version, chain)",
        root.id,
        &organizations,
        &versions,
        &chains,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The sealed roots, newest first.
pub async fn roots(conn: &mut PgConnection, limit: i64) -> Result<Vec<RootRow>, sqlx::Error> {
    sqlx::query_as!(
        RootRow,
        "select id, root, sealed, created_at from credit_roots order by created_at desc limit $1",
        limit,
    )
    .fetch_all(conn)
    .await
}

pub async fn root_heads(conn: &mut PgConnection, root: Uuid) -> Result<Vec<Head>, sqlx::Error> {
    sqlx::query_as!(
        Head,
        r#"select organization_id as "organization_id: OrganizationId", version, chain from credit_root_heads
           where root_id = $1
           order by organization_id"#,
        root,
    )
    .fetch_all(conn)
    .await
}

/// The heads of a root that the ledger does not have any more: another hash at that version, or no such version.
pub async fn root_heads_missing(
    conn: &mut PgConnection,
    root: Uuid,
) -> Result<Vec<(OrganizationId, i64)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select h.organization_id as "organization_id: OrganizationId", h.version
           from credit_root_heads h
           left join credit_transactions t on t.organization_id = h.organization_id and t.version = h.version
           where h.root_id = $1 and t.chain is distinct from h.chain
           order by h.organization_id"#,
        root,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.organization_id, row.version)).collect())
}

/// Deletes all but the newest roots.
pub async fn roots_purge(conn: &mut PgConnection, keep: i64) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "delete from credit_roots where id not in (select id from credit_roots order by created_at desc limit $1)",
        keep,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Makes the transaction read one snapshot from its first statement on.
pub async fn snapshot(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!("set transaction isolation level repeatable read, read only").execute(&mut *conn).await?;
    // A verification reads everything that there is.
    sqlx::query!("set local statement_timeout = '30min'").execute(conn).await?;
    Ok(())
}

/// One sealer at a time.
pub async fn roots_lock(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!("lock table credit_roots in share row exclusive mode").execute(conn).await?;
    Ok(())
}
