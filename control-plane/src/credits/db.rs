//! SQL of credits, in master. What decides is a function of the database; here are its arguments and its answers.

use chrono::{DateTime, Utc};
use kernel::{
    CreditBudgetId, CreditHoldId, CreditLotId, CreditPriceId, CreditTransactionId, OrganizationId, StoreId, UserId,
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::batch::Spend;
use super::budgets::{Allocation, Budget, BudgetSubject, NewBudget};
use super::prices::Price;
use super::statement::{StatementFrame, StatementLine};
use super::{
    Balance, Decision, Hold, HoldState, Lot, LotKind, NewLot, Transaction, TransactionFilter, TransactionKind,
    TransactionStatus,
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
    let keys: Vec<String> = spends.iter().map(|spend| spend.key.clone()).collect();
    let hashes: Vec<Vec<u8>> = spends.iter().map(|spend| spend.hash.to_vec()).collect();
    let kinds: Vec<String> = spends.iter().map(|spend| spend.kind.as_str().to_owned()).collect();
    let stores: Vec<Option<Uuid>> = spends.iter().map(|spend| spend.store.map(|id| id.as_uuid())).collect();
    let actors: Vec<Option<Uuid>> = spends.iter().map(|spend| spend.actor.map(|id| id.as_uuid())).collect();
    let amounts: Vec<i64> = spends.iter().map(|spend| spend.amount).collect();
    let services: Vec<Option<String>> = spends.iter().map(|spend| spend.service.clone()).collect();
    let quantities: Vec<Option<i64>> = spends.iter().map(|spend| spend.quantity).collect();
    let descriptions: Vec<Option<String>> = spends.iter().map(|spend| spend.description.clone()).collect();
    let facts: Vec<Option<serde_json::Value>> = spends.iter().map(|spend| spend.facts.clone()).collect();
    let rows = sqlx::query_as!(
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
           from credit_spend($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) s
           order by s.ordinal"#,
        organization.as_uuid(),
        &ids,
        &keys,
        &hashes,
        &kinds,
        &stores as &[Option<Uuid>],
        &actors as &[Option<Uuid>],
        &amounts,
        &services as &[Option<String>],
        &quantities as &[Option<i64>],
        &descriptions as &[Option<String>],
        &facts as &[Option<serde_json::Value>],
        now,
    )
    .fetch_all(conn)
    .await?;
    // A key without its decision would move every answer after it to the wrong asker.
    if rows.len() != spends.len() {
        return Err(sqlx::Error::Protocol(format!("{} spends got {} decisions", spends.len(), rows.len())));
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
    let row = sqlx::query_as!(
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
           from credit_grant($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13,
                    (select array_agg(coalesce(e, 'infinity') order by n) from unnest($14::timestamptz[]) with ordinality u (e, n)),
                    $15, $16, $17, $18) s"#,
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
    pub service: Option<&'a str>,
    pub description: Option<&'a str>,
    pub expires_at: DateTime<Utc>,
}

pub async fn hold(
    conn: &mut PgConnection,
    organization: OrganizationId,
    new: &NewHold<'_>,
    now: DateTime<Utc>,
) -> Result<Decision, sqlx::Error> {
    let row = sqlx::query_as!(
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
           from credit_hold($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) s"#,
        organization.as_uuid(),
        new.id.as_uuid(),
        new.key,
        new.hash.as_slice(),
        new.store.as_uuid(),
        new.actor.as_uuid(),
        new.amount,
        new.service,
        new.description,
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
    let row = sqlx::query_as!(
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
           from credit_hold_end($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) s"#,
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
    let row = sqlx::query_as!(
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
           from credit_refund($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) s"#,
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
    let row = sqlx::query_as!(
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
           from credit_dispute_open($1, $2, $3, $4, $5, $6, $7, $8, $9) s"#,
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
    let row = sqlx::query_as!(
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
           from credit_dispute_close($1, $2, $3, $4, $5, $6, $7, $8) s"#,
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

/// Something that organizations are told.
pub struct OutboxEvent<'a> {
    pub kind: &'a str,
    /// The same thing is told once.
    pub dedupe_key: &'a str,
    pub data: serde_json::Value,
}

pub async fn outbox_insert(
    conn: &mut PgConnection,
    organization: OrganizationId,
    event: &OutboxEvent<'_>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into outbox_events (organization_id, type, dedupe_key, data, created_at)
         values ($1, $2, $3, $4, $5)
         on conflict on constraint outbox_events_dedupe_key do nothing",
        organization.as_uuid(),
        event.kind,
        event.dedupe_key,
        event.data,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// A hold for a spend, not one that a dispute made.
pub async fn hold_find(conn: &mut PgConnection, id: CreditHoldId) -> Result<Option<Hold>, sqlx::Error> {
    sqlx::query_as!(
        Hold,
        r#"select id as "id: CreditHoldId", organization_id as "organization_id: OrganizationId", store_id as "store_id: StoreId",
                  amount, captured, state as "state: HoldState", service, description, expires_at, created_at
           from credit_holds
           where id = $1 and kind = 'spend'"#,
        id.as_uuid(),
    )
    .fetch_optional(conn)
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

/// The prices that hold at a moment, of one service or of all.
pub async fn prices(
    conn: &mut PgConnection,
    service: Option<&str>,
    now: DateTime<Utc>,
) -> Result<Vec<Price>, sqlx::Error> {
    sqlx::query_as!(
        Price,
        r#"select distinct on (service) id as "id: CreditPriceId", service, version, name, unit, credits, per, valid_from
           from credit_prices
           where valid_from <= $2 and ($1::text is null or service = $1)
           order by service, valid_from desc, version desc"#,
        service,
        now,
    )
    .fetch_all(conn)
    .await
}

/// The reason of the hard budget that does not allow so much more, if one stands in the way.
pub async fn budget_refusal(
    conn: &mut PgConnection,
    organization: OrganizationId,
    store: StoreId,
    actor: UserId,
    amount: i64,
    now: DateTime<Utc>,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select credit_budget_refusal(a, $2, $3, $4, $5) as reason from credit_accounts a where a.organization_id = $1"#,
        organization.as_uuid(),
        store.as_uuid(),
        actor.as_uuid(),
        amount,
        now,
    )
    .fetch_one(conn)
    .await
}

/// The budgets of an organization, and what of the running month is used.
pub async fn budgets(
    conn: &mut PgConnection,
    organization: OrganizationId,
    now: DateTime<Utc>,
) -> Result<Vec<Budget>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select b.id as "id: CreditBudgetId", b.subject_kind, b.subject_id, b.monthly_amount, b.is_hard, b.alert_percents,
                  coalesce(m.used, 0) as "used!"
           from credit_budgets b
           left join credit_budget_months m
             on m.budget_id = b.id and m.month = date_trunc('month', $2::timestamptz at time zone 'UTC')::date
           where b.organization_id = $1
           order by b.subject_kind desc, b.id"#,
        organization.as_uuid(),
        now,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Budget {
            id: row.id,
            subject: match row.subject_kind.as_str() {
                "store" => BudgetSubject::Store(StoreId::from_uuid(row.subject_id)),
                _ => BudgetSubject::Member(UserId::from_uuid(row.subject_id)),
            },
            monthly_amount: row.monthly_amount,
            is_hard: row.is_hard,
            alert_percents: row.alert_percents,
            used: row.used,
        })
        .collect())
}

fn subject(of: BudgetSubject) -> (&'static str, Uuid) {
    match of {
        BudgetSubject::Store(id) => ("store", id.as_uuid()),
        BudgetSubject::Member(id) => ("member", id.as_uuid()),
    }
}

/// Whether the store, or the person, is of the organization.
pub async fn budget_subject_exists(
    conn: &mut PgConnection,
    organization: OrganizationId,
    of: BudgetSubject,
) -> Result<bool, sqlx::Error> {
    let (kind, id) = subject(of);
    sqlx::query_scalar!(
        r#"select case $2 when 'store' then exists (select from stores where id = $3 and organization_id = $1)
                  else exists (select from organization_members where user_id = $3 and organization_id = $1) end as "exists!""#,
        organization.as_uuid(),
        kind,
        id,
    )
    .fetch_one(conn)
    .await
}

/// Sets a budget, or removes it.
pub async fn budget_set(
    conn: &mut PgConnection,
    organization: OrganizationId,
    of: BudgetSubject,
    new: Option<(CreditBudgetId, &NewBudget)>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let (kind, id) = subject(of);
    sqlx::query!(
        r#"select credit_budget_set($1, $2, $3, $4, $5, $6, $7, $8)::text as done"#,
        organization.as_uuid(),
        new.map(|(id, _)| id.as_uuid()),
        kind,
        id,
        new.map(|(_, budget)| budget.monthly_amount),
        new.map(|(_, budget)| budget.is_hard),
        new.map(|(_, budget)| budget.alert_percents.as_slice()),
        now,
    )
    .fetch_one(conn)
    .await?;
    Ok(())
}

pub async fn low_balance_set(
    conn: &mut PgConnection,
    organization: OrganizationId,
    mark: Option<i64>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update credit_accounts set low_balance = $2 where organization_id = $1",
        organization.as_uuid(),
        mark,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// What was spent by month, store and service.
pub async fn allocation(
    conn: &mut PgConnection,
    organization: OrganizationId,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<Vec<Allocation>, sqlx::Error> {
    sqlx::query_as!(
        Allocation,
        r#"select to_char(t.created_at at time zone 'UTC', 'YYYY-MM') as "month!", t.store_id as "store_id: StoreId", t.service,
                  sum(e.amount)::bigint as "credits!", count(*) as "transactions!"
           from credit_transactions t
           join credit_entries e on e.organization_id = t.organization_id and e.version = t.version and e.account = 'revenue'
           where t.organization_id = $1 and t.created_at >= $2 and t.created_at < $3
           group by 1, 2, 3
           order by 1, 2, 3"#,
        organization.as_uuid(),
        from,
        until,
    )
    .fetch_all(conn)
    .await
}

/// What frames a statement: what the account was worth before the first and after the last entry of the period.
pub async fn statement_frame(
    conn: &mut PgConnection,
    organization: OrganizationId,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<StatementFrame, sqlx::Error> {
    let row = sqlx::query!(
        r#"with before as (
               select version, available_after + held_after - debt_after as worth from credit_transactions
               where organization_id = $1 and created_at < $2 order by created_at desc, version desc limit 1
           ), last as (
               select version, available_after + held_after - debt_after as worth from credit_transactions
               where organization_id = $1 and created_at < $3 order by created_at desc, version desc limit 1
           )
           select coalesce((select worth from before), 0) as "opening!", coalesce((select worth from last), 0) as "closing!",
                  coalesce((select version from before), 0) + 1 as "first!", coalesce((select version from last), 0) as "last!",
                  (select count(distinct e.version) from credit_entries e
                   where e.organization_id = $1 and e.account = 'credits'
                     and e.version > coalesce((select version from before), 0)
                     and e.version <= coalesce((select version from last), 0)) as "lines!""#,
        organization.as_uuid(),
        from,
        until,
    )
    .fetch_one(conn)
    .await?;
    Ok(StatementFrame {
        organization_id: organization,
        from,
        until,
        opening: row.opening,
        closing: row.closing,
        lines: row.lines,
        first: row.first,
        last: row.last,
    })
}

/// The lines after a version, up to another: transactions that changed what the account is worth.
pub async fn statement_lines(
    conn: &mut PgConnection,
    organization: OrganizationId,
    after: i64,
    last: i64,
    limit: i64,
) -> Result<Vec<StatementLine>, sqlx::Error> {
    sqlx::query_as!(
        StatementLine,
        r#"select t.version, t.created_at as at, t.id as "transaction_id: CreditTransactionId", t.kind as "kind: TransactionKind",
                  t.store_id as "store_id: StoreId", t.service, t.description, e.amount as "amount!",
                  t.available_after + t.held_after - t.debt_after as "balance_after!"
           from credit_transactions t
           cross join lateral (
               select sum(e.amount)::bigint as amount from credit_entries e
               where e.organization_id = t.organization_id and e.version = t.version and e.account = 'credits'
           ) e
           where t.organization_id = $1 and t.version > $2 and t.version <= $3 and e.amount is not null
           order by t.version
           limit $4"#,
        organization.as_uuid(),
        after,
        last,
        limit,
    )
    .fetch_all(conn)
    .await
}
