//! SQL of credits, in master. What decides is a function of the database; here are its arguments and its answers.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use kernel::{CreditHoldId, CreditLotId, CreditTransactionId, OrganizationId, StoreId, UserId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::batch::Spend;
use super::{
    Balance, Decision, Lot, LotKind, NewLot, Transaction, TransactionFilter, TransactionKind, TransactionStatus,
};

/// A decision as its row says it; named columns of a transaction, and whether it was made by this statement.
struct DecisionRow {
    is_new: bool,
    id: CreditTransactionId,
    organization_id: OrganizationId,
    version: i64,
    kind: TransactionKind,
    status: TransactionStatus,
    reason: Option<String>,
    amount: i64,
    request_hash: Vec<u8>,
    store_id: Option<StoreId>,
    actor_user_id: Option<UserId>,
    hold_id: Option<CreditHoldId>,
    service: Option<String>,
    quantity: Option<i64>,
    description: Option<String>,
    data: Option<serde_json::Value>,
    available_after: i64,
    held_after: i64,
    debt_after: i64,
    created_at: DateTime<Utc>,
}

impl From<DecisionRow> for Decision {
    fn from(row: DecisionRow) -> Self {
        Self {
            is_new: row.is_new,
            transaction: Transaction {
                id: row.id,
                organization_id: row.organization_id,
                version: row.version,
                kind: row.kind,
                status: row.status,
                reason: row.reason,
                amount: row.amount,
                request_hash: row.request_hash,
                store_id: row.store_id,
                actor_user_id: row.actor_user_id,
                hold_id: row.hold_id,
                service: row.service,
                quantity: row.quantity,
                description: row.description,
                data: row.data,
                available_after: row.available_after,
                held_after: row.held_after,
                debt_after: row.debt_after,
                created_at: row.created_at,
            },
        }
    }
}

/// Calls a function that decides, and reads what it decided.
macro_rules! decision {
    ($call:tt, $($argument:expr),* $(,)?) => {
        sqlx::query_as!(
            DecisionRow,
            r#"select s.is_new as "is_new!", (s.decided).id as "id!: CreditTransactionId",
                      (s.decided).organization_id as "organization_id!: OrganizationId", (s.decided).version as "version!",
                      (s.decided).kind as "kind!: TransactionKind", (s.decided).status as "status!: TransactionStatus",
                      (s.decided).reason as reason, (s.decided).amount as "amount!", (s.decided).request_hash as "request_hash!",
                      (s.decided).store_id as "store_id: StoreId", (s.decided).actor_user_id as "actor_user_id: UserId",
                      (s.decided).hold_id as "hold_id: CreditHoldId", (s.decided).service as service,
                      (s.decided).quantity as quantity, (s.decided).description as description, (s.decided).data as data,
                      (s.decided).available_after as "available_after!", (s.decided).held_after as "held_after!",
                      (s.decided).debt_after as "debt_after!", (s.decided).created_at as "created_at!"
               from "# + $call + " s",
            $($argument),*
        )
    };
}

/// What is in an account, and when the next of its lots expires.
pub async fn balance_find(
    conn: &mut PgConnection,
    organization: OrganizationId,
) -> Result<Option<(Balance, Option<DateTime<Utc>>)>, sqlx::Error> {
    let row = sqlx::query!(
        r#"select available, held, debt, version, nullif(next_expiry_at, 'infinity') as next_expiry_at
           from credit_accounts
           where organization_id = $1"#,
        organization.as_uuid(),
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| {
        let balance = Balance {
            organization_id: organization,
            available: row.available,
            held: row.held,
            debt: row.debt,
            version: row.version,
        };
        (balance, row.next_expiry_at)
    }))
}

/// Books what has expired in one account.
pub async fn expire(
    conn: &mut PgConnection,
    organization: OrganizationId,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(r#"select credit_expire($1, $2)::text as "done""#, organization.as_uuid(), now)
        .fetch_one(conn)
        .await?;
    Ok(())
}

/// Accounts with something that has expired and is not booked yet.
pub async fn accounts_to_expire(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<OrganizationId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select organization_id as "id: OrganizationId" from credit_accounts where next_expiry_at <= $1 limit $2"#,
        now,
        limit,
    )
    .fetch_all(conn)
    .await
}

pub async fn lots_open(conn: &mut PgConnection, organization: OrganizationId) -> Result<Vec<Lot>, sqlx::Error> {
    sqlx::query_as!(
        Lot,
        r#"select id as "id: CreditLotId", kind as "kind: LotKind", granted, remaining, held, priority,
                  nullif(expires_at, 'infinity') as expires_at
           from credit_lots
           where organization_id = $1 and is_open
           order by priority, credit_lots.expires_at, credit_lot_rank(kind), unit_cost_minor, id
           limit 1000"#,
        organization.as_uuid(),
    )
    .fetch_all(conn)
    .await
}

/// Decides spends of one account in their order, in one commit. The decisions come in the same order.
pub async fn spend(
    conn: &mut PgConnection,
    organization: OrganizationId,
    spends: &[Spend],
    now: DateTime<Utc>,
) -> Result<Vec<Decision>, sqlx::Error> {
    let ids: Vec<Uuid> = spends.iter().map(|spend| spend.id.as_uuid()).collect();
    let keys: Vec<&str> = spends.iter().map(|spend| spend.key.as_str()).collect();
    let hashes: Vec<&[u8]> = spends.iter().map(|spend| spend.hash.as_slice()).collect();
    let kinds: Vec<&str> = spends.iter().map(|spend| spend.kind.as_str()).collect();
    let stores: Vec<Option<Uuid>> = spends.iter().map(|spend| spend.store.map(|id| id.as_uuid())).collect();
    let actors: Vec<Option<Uuid>> = spends.iter().map(|spend| spend.actor.map(|id| id.as_uuid())).collect();
    let amounts: Vec<i64> = spends.iter().map(|spend| spend.amount).collect();
    let services: Vec<Option<&str>> = spends.iter().map(|spend| spend.service.as_deref()).collect();
    let quantities: Vec<Option<i64>> = spends.iter().map(|spend| spend.quantity).collect();
    let descriptions: Vec<Option<&str>> = spends.iter().map(|spend| spend.description.as_deref()).collect();
    let facts: Vec<Option<&serde_json::Value>> = spends.iter().map(|spend| spend.facts.as_ref()).collect();
    let made = sqlx::query!(
        r#"select s.id as "id!: CreditTransactionId", s.version as "version!", s.status as "status!: TransactionStatus", s.reason,
                  s.available_after as "available_after!", s.held_after as "held_after!", s.debt_after as "debt_after!",
                  s.created_at as "created_at!"
           from credit_spend_many($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) s"#,
        organization.as_uuid(),
        &ids,
        &keys as &[&str],
        &hashes as &[&[u8]],
        &kinds as &[&str],
        &stores as &[Option<Uuid>],
        &actors as &[Option<Uuid>],
        &amounts,
        &services as &[Option<&str>],
        &quantities as &[Option<i64>],
        &descriptions as &[Option<&str>],
        &facts as &[Option<&serde_json::Value>],
        now,
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut decided: HashMap<CreditTransactionId, _> = made.into_iter().map(|row| (row.id, row)).collect();
    let known =
        if decided.len() < spends.len() { decisions_of_keys(conn, organization, &keys).await? } else { Vec::new() };
    let decisions = spends.iter().enumerate().map(|(at, spend)| match decided.remove(&spend.id) {
        Some(row) => Ok(Decision {
            is_new: true,
            transaction: Transaction {
                id: spend.id,
                organization_id: organization,
                version: row.version,
                kind: spend.kind,
                status: row.status,
                reason: row.reason,
                amount: spend.amount,
                request_hash: spend.hash.to_vec(),
                store_id: spend.store,
                actor_user_id: spend.actor,
                hold_id: None,
                service: spend.service.clone(),
                quantity: spend.quantity,
                description: spend.description.clone(),
                data: spend.facts.clone(),
                available_after: row.available_after,
                held_after: row.held_after,
                debt_after: row.debt_after,
                created_at: row.created_at,
            },
        }),
        None => known.get(at).cloned().ok_or(sqlx::Error::RowNotFound),
    });
    decisions.collect()
}

/// What was decided under keys, in their order.
async fn decisions_of_keys(
    conn: &mut PgConnection,
    organization: OrganizationId,
    keys: &[&str],
) -> Result<Vec<Decision>, sqlx::Error> {
    let rows = decision!(
        r#"(select false as is_new, t as decided
            from unnest($2::text[]) with ordinality u (key, at)
            join credit_keys k on k.organization_id = $1 and k.key = u.key
            join credit_transactions t on t.id = k.transaction_id
            order by u.at)"#,
        organization.as_uuid(),
        keys as &[&str],
    )
    .fetch_all(conn)
    .await?;
    // A key without its decision would move every answer after it to the wrong asker.
    if rows.len() != keys.len() {
        return Err(sqlx::Error::Protocol(format!("{} keys have {} decisions", keys.len(), rows.len())));
    }
    Ok(rows.into_iter().map(Into::into).collect())
}

/// What is granted, and on what grounds.
pub struct Grant<'a> {
    pub id: CreditTransactionId,
    pub key: &'a str,
    pub hash: &'a [u8; 32],
    /// `Grant` or `Purchase`; only a purchase repays debt.
    pub kind: TransactionKind,
    pub actor: Option<UserId>,
    pub store: Option<StoreId>,
    pub why: Option<&'a str>,
    /// Names the thing outside that paid for it: one of a kind is granted once.
    pub reference: Option<&'a str>,
    pub lots: &'a [NewLot],
    pub purchase: Option<Uuid>,
    pub currency: Option<&'a str>,
}

pub async fn grant(
    conn: &mut PgConnection,
    organization: OrganizationId,
    grant: &Grant<'_>,
    now: DateTime<Utc>,
) -> Result<Decision, sqlx::Error> {
    let ids: Vec<Uuid> = grant.lots.iter().map(|_| CreditLotId::new(now).as_uuid()).collect();
    let kinds: Vec<String> = grant.lots.iter().map(|lot| lot.kind.as_str().to_owned()).collect();
    let amounts: Vec<i64> = grant.lots.iter().map(|lot| lot.amount).collect();
    let priorities: Vec<i16> = grant.lots.iter().map(|lot| lot.priority).collect();
    let expiries: Vec<Option<DateTime<Utc>>> = grant.lots.iter().map(|lot| lot.expires_at).collect();
    let costs: Vec<i64> = grant.lots.iter().map(|lot| lot.unit_cost_minor).collect();
    let row = decision!(
        r#"credit_grant($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13,
                    (select array_agg(coalesce(e, 'infinity') order by n) from unnest($14::timestamptz[]) with ordinality u (e, n)),
                    $15, $16, $17, $18)"#,
        organization.as_uuid(),
        grant.id.as_uuid(),
        grant.key,
        grant.hash.as_slice(),
        grant.kind.as_str(),
        grant.actor.map(|id| id.as_uuid()),
        grant.store.map(|id| id.as_uuid()),
        grant.why,
        grant.reference,
        &ids,
        &kinds,
        &amounts,
        &priorities,
        &expiries as &[Option<DateTime<Utc>>],
        grant.purchase,
        &costs,
        grant.currency,
        now,
    )
    .fetch_one(conn)
    .await?;
    Ok(row.into())
}

/// What is reserved. Its id becomes the hold's.
pub struct NewHold<'a> {
    pub id: CreditTransactionId,
    pub key: &'a str,
    pub hash: &'a [u8; 32],
    pub store: StoreId,
    pub actor: UserId,
    pub amount: i64,
    pub service: Option<String>,
    pub quantity: Option<i64>,
    /// What else is to be kept, such as the price that was applied.
    pub facts: Option<serde_json::Value>,
    pub description: Option<&'a str>,
    pub expires_at: DateTime<Utc>,
}

pub async fn hold(
    conn: &mut PgConnection,
    organization: OrganizationId,
    new: &NewHold<'_>,
    now: DateTime<Utc>,
) -> Result<Decision, sqlx::Error> {
    let row = decision!(
        r#"credit_hold($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"#,
        organization.as_uuid(),
        new.id.as_uuid(),
        new.key,
        new.hash.as_slice(),
        new.store.as_uuid(),
        new.actor.as_uuid(),
        new.amount,
        new.service.as_deref(),
        new.quantity,
        new.description,
        new.facts.as_ref(),
        new.expires_at,
        now,
    )
    .fetch_one(conn)
    .await?;
    Ok(row.into())
}

/// How a hold is ended: `capture`, `void` or `hold_expiry`.
pub struct EndHold<'a> {
    pub id: CreditTransactionId,
    pub key: &'a str,
    pub hash: &'a [u8; 32],
    pub ending: TransactionKind,
    pub hold: CreditHoldId,
    pub actor: Option<UserId>,
    /// What a capture takes; 0 otherwise.
    pub taken: i64,
    pub why: Option<&'a str>,
}

pub async fn hold_end(
    conn: &mut PgConnection,
    organization: OrganizationId,
    end: &EndHold<'_>,
    now: DateTime<Utc>,
) -> Result<Decision, sqlx::Error> {
    let row = decision!(
        r#"credit_hold_end($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"#,
        organization.as_uuid(),
        end.id.as_uuid(),
        end.key,
        end.hash.as_slice(),
        end.ending.as_str(),
        end.hold.as_uuid(),
        end.actor.map(|id| id.as_uuid()),
        end.taken,
        end.why,
        now,
    )
    .fetch_one(conn)
    .await?;
    Ok(row.into())
}

/// What is taken back because its money went back.
pub struct TakeBack<'a> {
    pub id: CreditTransactionId,
    pub key: &'a str,
    pub hash: &'a [u8; 32],
    pub lot: CreditLotId,
    pub wanted: i64,
    /// Whether what is not in the lot any more becomes debt.
    pub may_owe: bool,
    pub actor: Option<UserId>,
    pub why: Option<&'a str>,
    pub reference: Option<&'a str>,
}

pub async fn refund(
    conn: &mut PgConnection,
    organization: OrganizationId,
    take: &TakeBack<'_>,
    now: DateTime<Utc>,
) -> Result<Decision, sqlx::Error> {
    let row = decision!(
        r#"credit_refund($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"#,
        organization.as_uuid(),
        take.id.as_uuid(),
        take.key,
        take.hash.as_slice(),
        take.lot.as_uuid(),
        take.wanted,
        take.may_owe,
        take.actor.map(|id| id.as_uuid()),
        take.why,
        take.reference,
        now,
    )
    .fetch_one(conn)
    .await?;
    Ok(row.into())
}

/// What is frozen because its payment is disputed.
pub struct OpenDispute<'a> {
    pub id: CreditTransactionId,
    pub key: &'a str,
    pub hash: &'a [u8; 32],
    pub lot: CreditLotId,
    pub disputed: i64,
    pub why: Option<&'a str>,
    pub reference: &'a str,
}

pub async fn dispute_open(
    conn: &mut PgConnection,
    organization: OrganizationId,
    open: &OpenDispute<'_>,
    now: DateTime<Utc>,
) -> Result<Decision, sqlx::Error> {
    let row = decision!(
        r#"credit_dispute_open($1, $2, $3, $4, $5, $6, $7, $8, $9)"#,
        organization.as_uuid(),
        open.id.as_uuid(),
        open.key,
        open.hash.as_slice(),
        open.lot.as_uuid(),
        open.disputed,
        open.why,
        open.reference,
        now,
    )
    .fetch_one(conn)
    .await?;
    Ok(row.into())
}

/// How a dispute ended.
pub struct CloseDispute<'a> {
    pub id: CreditTransactionId,
    pub key: &'a str,
    pub hash: &'a [u8; 32],
    /// The transaction that opened it.
    pub opening: CreditTransactionId,
    pub is_won: bool,
    pub reference: &'a str,
}

pub async fn dispute_close(
    conn: &mut PgConnection,
    organization: OrganizationId,
    close: &CloseDispute<'_>,
    now: DateTime<Utc>,
) -> Result<Decision, sqlx::Error> {
    let row = decision!(
        r#"credit_dispute_close($1, $2, $3, $4, $5, $6, $7, $8)"#,
        organization.as_uuid(),
        close.id.as_uuid(),
        close.key,
        close.hash.as_slice(),
        close.opening.as_uuid(),
        close.is_won,
        close.reference,
        now,
    )
    .fetch_one(conn)
    .await?;
    Ok(row.into())
}

/// A lot of a purchase, and what is left in it.
pub struct PurchasedLot {
    pub id: CreditLotId,
    pub kind: LotKind,
    pub remaining: i64,
}

/// The lots of a purchase, oldest first.
pub async fn lots_of_purchase(conn: &mut PgConnection, purchase: Uuid) -> Result<Vec<PurchasedLot>, sqlx::Error> {
    sqlx::query_as!(
        PurchasedLot,
        r#"select id as "id: CreditLotId", kind as "kind: LotKind", remaining
           from credit_lots
           where purchase_id = $1
           order by version, id"#,
        purchase,
    )
    .fetch_all(conn)
    .await
}

/// Open holds whose time is over, oldest first.
pub async fn holds_to_expire(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<(CreditHoldId, OrganizationId)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select id as "id: CreditHoldId", organization_id as "organization_id: OrganizationId"
           from credit_holds
           where state = 'open' and expires_at <= $1 and kind = 'spend'
           order by expires_at
           limit $2"#,
        now,
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.organization_id)).collect())
}

/// A grant of before that asked for the very same, if there is one since a moment.
pub async fn grant_alike(
    conn: &mut PgConnection,
    grant: &Transaction,
    since: DateTime<Utc>,
) -> Result<Option<CreditTransactionId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select id as "id: CreditTransactionId"
           from credit_transactions
           where organization_id = $1 and created_at > $2 and version < $3
             and kind = 'grant' and status = 'accepted' and request_hash = $4
           order by version desc
           limit 1"#,
        grant.organization_id.as_uuid(),
        since,
        grant.version,
        grant.request_hash,
    )
    .fetch_optional(conn)
    .await
}

/// An account's transactions before a version, newest first.
pub async fn transactions(
    conn: &mut PgConnection,
    organization: OrganizationId,
    filter: &TransactionFilter,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Transaction>, sqlx::Error> {
    sqlx::query_as!(
        Transaction,
        r#"select id as "id: CreditTransactionId", organization_id as "organization_id: OrganizationId", version,
                  kind as "kind: TransactionKind", status as "status: TransactionStatus", reason, amount, request_hash,
                  store_id as "store_id: StoreId", actor_user_id as "actor_user_id: UserId", hold_id as "hold_id: CreditHoldId",
                  service, quantity, description, data, available_after, held_after, debt_after, created_at
           from credit_transactions
           where organization_id = $1
             and ($2::bigint is null or version < $2)
             and ($3::uuid is null or store_id = $3)
             and ($4::text is null or kind = $4)
             and ($5::uuid is null or actor_user_id = $5)
             and ($6::timestamptz is null or created_at >= $6)
             and ($7::timestamptz is null or created_at < $7)
           order by version desc
           limit $8"#,
        organization.as_uuid(),
        before,
        filter.store.map(|id| id.as_uuid()),
        filter.kind.map(TransactionKind::as_str),
        filter.actor.map(|id| id.as_uuid()),
        filter.from,
        filter.until,
        limit,
    )
    .fetch_all(conn)
    .await
}
