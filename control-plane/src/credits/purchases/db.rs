//! SQL of purchases, in master.

use chrono::{DateTime, Utc};
use kernel::{
    CreditLotId, CreditPackId, CreditTransactionId, OrganizationId, PurchaseId, PurchaseRefundId, ReconRunId, UserId,
};
use sqlx::PgConnection;

use super::events::{EventSource, EventState, StoredEvent};
use super::recon::{CashEntry, CashKind, Difference, RunKind};
use super::refunds::{PurchaseRefund, RefundState};
use super::{Dispute, DisputeState, Purchase, PurchaseFilter, PurchaseState};

/// Reads purchases, in whole: says which.
macro_rules! purchase {
    ($which:tt, $($argument:expr),* $(,)?) => {
        sqlx::query_as!(
            Purchase,
            r#"select id as "id: PurchaseId", organization_id as "organization_id: OrganizationId", user_id as "user_id: UserId",
                      pack_id as "pack_id: CreditPackId", pack_version, credits, bonus_credits, amount_minor, tax_minor, currency,
                      state as "state: PurchaseState", is_auto, saves_card, payment_method, customer_ref, checkout_session, checkout_url, payment_intent,
                      charge_ref, failure, success_url, cancel_url, request_hash, idempotency_key, called_at,
                      transaction_id as "transaction_id: CreditTransactionId", paid_lot_id as "paid_lot_id: CreditLotId",
                      bonus_lot_id as "bonus_lot_id: CreditLotId", charge_refunded_minor, refunded_minor, refunded_credits,
                      refunded_bonus, refund_steps, next_check_at, created_at, updated_at, completed_at
               from purchases
               "# + $which,
            $($argument),*
        )
    };
}

/// Who an organization is to the provider.
pub async fn customer_find(
    conn: &mut PgConnection,
    organization: OrganizationId,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar!(
        "select customer_ref from payment_customers where organization_id = $1",
        organization.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// Keeps who an organization is to the provider; whoever was first counts. Two who are first at once collide in either key:
/// were one named, PostgreSQL would fail the other.
pub async fn customer_insert(
    conn: &mut PgConnection,
    organization: OrganizationId,
    customer: &str,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into payment_customers (organization_id, customer_ref, created_at)
         values ($1, $2, $3)
         on conflict do nothing",
        organization.as_uuid(),
        customer,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Keeps who an organization is from now on, unless somebody else has done so.
pub async fn customer_replace(
    conn: &mut PgConnection,
    organization: OrganizationId,
    old: &str,
    new: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update payment_customers set customer_ref = $3 where organization_id = $1 and customer_ref = $2",
        organization.as_uuid(),
        old,
        new,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes an order down, unless its key has one already, or it is an automatic one and another is under way.
pub async fn purchase_insert(
    conn: &mut PgConnection,
    purchase: &Purchase,
    request_key: &str,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "insert into purchases (id, organization_id, user_id, pack_id, pack_version, credits, bonus_credits, amount_minor, currency,
            state, is_auto, saves_card, payment_method, customer_ref, called_at, success_url, cancel_url, request_key, request_hash,
            idempotency_key, next_check_at, created_at, updated_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $22)
         on conflict do nothing",
        purchase.id.as_uuid(),
        purchase.organization_id.as_uuid(),
        purchase.user_id.map(|id| id.as_uuid()),
        purchase.pack_id.as_uuid(),
        purchase.pack_version,
        purchase.credits,
        purchase.bonus_credits,
        purchase.amount_minor,
        purchase.currency,
        purchase.state.as_str(),
        purchase.is_auto,
        purchase.saves_card,
        purchase.payment_method,
        purchase.customer_ref,
        purchase.called_at,
        purchase.success_url,
        purchase.cancel_url,
        request_key,
        purchase.request_hash,
        purchase.idempotency_key,
        purchase.next_check_at,
        purchase.created_at,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub async fn purchase_of_key(
    conn: &mut PgConnection,
    organization: OrganizationId,
    request_key: &str,
) -> Result<Option<PurchaseId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select id as "id: PurchaseId" from purchases where organization_id = $1 and request_key = $2"#,
        organization.as_uuid(),
        request_key,
    )
    .fetch_optional(conn)
    .await
}

pub async fn purchase_find(conn: &mut PgConnection, id: PurchaseId) -> Result<Option<Purchase>, sqlx::Error> {
    purchase!(r#"where id = $1"#, id.as_uuid(),).fetch_optional(conn).await
}

/// A purchase that nobody else changes until the transaction ends.
pub async fn purchase_lock(conn: &mut PgConnection, id: PurchaseId) -> Result<Option<Purchase>, sqlx::Error> {
    purchase!(
        r#"where id = $1
           for update"#,
        id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// An organization's purchases before an id, newest first.
pub async fn purchases(
    conn: &mut PgConnection,
    organization: OrganizationId,
    before: Option<PurchaseId>,
    limit: i64,
) -> Result<Vec<Purchase>, sqlx::Error> {
    purchase!(
        r#"where organization_id = $1 and ($2::uuid is null or id < $2)
           order by id desc
           limit $3"#,
        organization.as_uuid(),
        before.map(|id| id.as_uuid()),
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Purchases before an id, newest first: those that a filter lets through.
pub async fn purchase_list(
    conn: &mut PgConnection,
    filter: PurchaseFilter,
    before: Option<PurchaseId>,
    limit: i64,
) -> Result<Vec<Purchase>, sqlx::Error> {
    purchase!(
        r#"where ($1::uuid is null or organization_id = $1)
             and ($2::text is null or state = $2)
             and ($3::uuid is null or id < $3)
           order by id desc
           limit $4"#,
        filter.organization.map(|id| id.as_uuid()),
        filter.state.map(PurchaseState::as_str),
        before.map(|id| id.as_uuid()),
        limit,
    )
    .fetch_all(conn)
    .await
}

/// How much of what a transaction granted repaid a debt.
pub async fn repaid_by(conn: &mut PgConnection, transaction: CreditTransactionId) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select coalesce(sum(e.amount), 0)::bigint as "repaid!"
           from credit_transactions t
           join credit_entries e on e.organization_id = t.organization_id and e.version = t.version
           where t.id = $1 and e.account = 'credits' and e.lot_id is null and e.amount > 0"#,
        transaction.as_uuid(),
    )
    .fetch_one(conn)
    .await
}

/// The purchase that a thing of the provider's belongs to.
pub async fn purchase_of_session(conn: &mut PgConnection, session: &str) -> Result<Option<PurchaseId>, sqlx::Error> {
    sqlx::query_scalar!(r#"select id as "id: PurchaseId" from purchases where checkout_session = $1"#, session)
        .fetch_optional(conn)
        .await
}

pub async fn purchase_of_intent(conn: &mut PgConnection, intent: &str) -> Result<Option<PurchaseId>, sqlx::Error> {
    sqlx::query_scalar!(r#"select id as "id: PurchaseId" from purchases where payment_intent = $1"#, intent)
        .fetch_optional(conn)
        .await
}

/// Writes down everything about a purchase that changes.
pub async fn purchase_save(conn: &mut PgConnection, purchase: &Purchase) -> Result<(), sqlx::Error> {
    let done = sqlx::query!(
        "update purchases
         set state = $2, tax_minor = $3, customer_ref = $4, checkout_session = $5, checkout_url = $6, payment_intent = $7,
             charge_ref = $8, failure = $9, called_at = $10, transaction_id = $11, paid_lot_id = $12, bonus_lot_id = $13,
             charge_refunded_minor = $14, refunded_minor = $15, refunded_credits = $16, refunded_bonus = $17, refund_steps = $18,
             next_check_at = $19, updated_at = $20, completed_at = $21
         where id = $1",
        purchase.id.as_uuid(),
        purchase.state.as_str(),
        purchase.tax_minor,
        purchase.customer_ref,
        purchase.checkout_session,
        purchase.checkout_url,
        purchase.payment_intent,
        purchase.charge_ref,
        purchase.failure,
        purchase.called_at,
        purchase.transaction_id.map(|id| id.as_uuid()),
        purchase.paid_lot_id.map(|id| id.as_uuid()),
        purchase.bonus_lot_id.map(|id| id.as_uuid()),
        purchase.charge_refunded_minor,
        purchase.refunded_minor,
        purchase.refunded_credits,
        purchase.refunded_bonus,
        purchase.refund_steps,
        purchase.next_check_at,
        purchase.updated_at,
        purchase.completed_at,
    )
    .execute(conn)
    .await?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(sqlx::Error::RowNotFound) }
}

/// Unfinished purchases that are to be looked at at the provider.
pub async fn purchases_to_check(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<PurchaseId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select id as "id: PurchaseId" from purchases where next_check_at <= $1 order by next_check_at limit $2"#,
        now,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Writes a refund down, unless the asker's key has one already.
pub async fn refund_insert(
    conn: &mut PgConnection,
    refund: &PurchaseRefund,
    by: Option<UserId>,
    request_key: Option<&str>,
    next_check_at: Option<DateTime<Utc>>,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "insert into purchase_refunds (id, purchase_id, refund_ref, amount_minor, state, reason, failure, requested_by, request_key,
            request_hash, idempotency_key, called_at, next_check_at, created_at, updated_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $14)
         on conflict do nothing",
        refund.id.as_uuid(),
        refund.purchase_id.as_uuid(),
        refund.refund_ref,
        refund.amount_minor,
        refund.state.as_str(),
        refund.reason,
        refund.failure,
        by.map(|id| id.as_uuid()),
        request_key,
        refund.request_hash,
        refund.idempotency_key,
        refund.called_at,
        next_check_at,
        refund.created_at,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// All refunds of a purchase, oldest first.
pub async fn refunds_of(conn: &mut PgConnection, purchase: PurchaseId) -> Result<Vec<PurchaseRefund>, sqlx::Error> {
    sqlx::query_as!(
        PurchaseRefund,
        r#"select id as "id: PurchaseRefundId", purchase_id as "purchase_id: PurchaseId", refund_ref, amount_minor,
                  state as "state: RefundState", reason, failure, request_hash, idempotency_key, called_at, created_at
           from purchase_refunds
           where purchase_id = $1
           order by id"#,
        purchase.as_uuid(),
    )
    .fetch_all(conn)
    .await
}

pub async fn refund_of_key(
    conn: &mut PgConnection,
    purchase: PurchaseId,
    request_key: &str,
) -> Result<Option<PurchaseRefundId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select id as "id: PurchaseRefundId" from purchase_refunds where purchase_id = $1 and request_key = $2"#,
        purchase.as_uuid(),
        request_key,
    )
    .fetch_optional(conn)
    .await
}

/// Writes down how a refund stands; the purchase is locked.
pub async fn refund_save(
    conn: &mut PgConnection,
    refund: &PurchaseRefund,
    next_check_at: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let done = sqlx::query!(
        "update purchase_refunds
         set refund_ref = $2, state = $3, failure = $4, called_at = $5, next_check_at = $6, updated_at = $7
         where id = $1",
        refund.id.as_uuid(),
        refund.refund_ref,
        refund.state.as_str(),
        refund.failure,
        refund.called_at,
        next_check_at,
        now,
    )
    .execute(conn)
    .await?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(sqlx::Error::RowNotFound) }
}

/// Refunds that we asked for and do not know the outcome of.
pub async fn refunds_to_check(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<(PurchaseId, PurchaseRefundId)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select purchase_id as "purchase_id: PurchaseId", id as "id: PurchaseRefundId"
           from purchase_refunds
           where next_check_at <= $1
           order by next_check_at
           limit $2"#,
        now,
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.purchase_id, row.id)).collect())
}

/// Learns of a dispute; one that is closed stays closed.
pub async fn dispute_learn(conn: &mut PgConnection, dispute: &Dispute, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into stripe_disputes as d (id, purchase_id, amount_minor, reason, state, created_at, updated_at)
         values ($1, $2, $3, $4, $5, $6, $6)
         on conflict (id) do update
         set state = case when d.state = 'open' then excluded.state else d.state end, updated_at = excluded.updated_at",
        dispute.id,
        dispute.purchase_id.as_uuid(),
        dispute.amount_minor,
        dispute.reason,
        dispute.state.as_str(),
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// All disputes of a purchase.
pub async fn disputes_of(conn: &mut PgConnection, purchase: PurchaseId) -> Result<Vec<Dispute>, sqlx::Error> {
    sqlx::query_as!(
        Dispute,
        r#"select id, purchase_id as "purchase_id: PurchaseId", amount_minor, reason, state as "state: DisputeState", opened_credits,
                  opening_id as "opening_id: CreditTransactionId", closing_id as "closing_id: CreditTransactionId"
           from stripe_disputes
           where purchase_id = $1
           order by id"#,
        purchase.as_uuid(),
    )
    .fetch_all(conn)
    .await
}

/// Writes down what was booked for a dispute.
pub async fn dispute_save(conn: &mut PgConnection, dispute: &Dispute, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update stripe_disputes set opened_credits = $2, opening_id = $3, closing_id = $4, updated_at = $5 where id = $1",
        dispute.id,
        dispute.opened_credits,
        dispute.opening_id.map(|id| id.as_uuid()),
        dispute.closing_id.map(|id| id.as_uuid()),
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Keeps an event that is new; false when it is known.
pub async fn event_insert(
    conn: &mut PgConnection,
    event: &StoredEvent,
    source: EventSource,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "insert into stripe_events (id, type, object_id, payload, payload_sha256, state, source, next_attempt_at, event_created_at, created_at)
         values ($1, $2, $3, $4, $5, 'received', $6, $8, $7, $8)
         on conflict (id) do nothing",
        event.id,
        event.kind,
        event.object_id,
        event.payload,
        event.payload_sha256,
        source.as_str(),
        event.event_created_at,
        now,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// An event that nobody else works on until the transaction ends; waits for whoever does.
pub async fn event_lock(conn: &mut PgConnection, id: &str) -> Result<Option<StoredEvent>, sqlx::Error> {
    sqlx::query_as!(
        StoredEvent,
        r#"select id, type as kind, object_id, payload, payload_sha256, state as "state: EventState", attempts, event_created_at
           from stripe_events
           where id = $1
           for update"#,
        id,
    )
    .fetch_optional(conn)
    .await
}

/// Writes down how an event stands.
pub async fn event_save(
    conn: &mut PgConnection,
    event: &StoredEvent,
    error: Option<&str>,
    waits_for: Option<&str>,
    next_attempt_at: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update stripe_events
         set state = $2, attempts = $3, last_error = $4, waits_for = $5, next_attempt_at = $6, processed_at = $7
         where id = $1",
        event.id,
        event.state.as_str(),
        event.attempts,
        error,
        waits_for,
        next_attempt_at,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Events that wait for this payment to be known. Whoever works on one already comes upon the payment by themselves.
pub async fn events_waiting_for(conn: &mut PgConnection, intent: &str) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(
        "select id from stripe_events
         where waits_for = $1 and state = 'received'
         order by event_created_at, id
         for update skip locked",
        intent,
    )
    .fetch_all(conn)
    .await
}

/// Events whose time to be tried again has come.
pub async fn events_due(conn: &mut PgConnection, now: DateTime<Utc>, limit: i64) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(
        "select id from stripe_events
         where state in ('received', 'failed') and next_attempt_at <= $1
         order by next_attempt_at
         limit $2",
        now,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// What we know of an event: how it stands and the hash of what it says.
pub async fn event_known(conn: &mut PgConnection, id: &str) -> Result<Option<(EventState, Vec<u8>)>, sqlx::Error> {
    let row =
        sqlx::query!(r#"select state as "state: EventState", payload_sha256 from stripe_events where id = $1"#, id,)
            .fetch_optional(conn)
            .await?;
    Ok(row.map(|row| (row.state, row.payload_sha256)))
}

/// Books a movement of money, once.
pub async fn cash_insert(conn: &mut PgConnection, entry: &CashEntry, now: DateTime<Utc>) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "insert into cash_entries (kind, amount_minor, currency, external_ref, purchase_id, created_at)
         values ($1, $2, $3, $4, $5, $6)
         on conflict on constraint cash_entries_ref_key do nothing",
        entry.kind.as_str(),
        entry.amount_minor,
        entry.currency,
        entry.external_ref,
        entry.purchase_id.map(|id| id.as_uuid()),
        now,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub async fn cash_find(
    conn: &mut PgConnection,
    kind: CashKind,
    external_ref: &str,
) -> Result<Option<CashEntry>, sqlx::Error> {
    sqlx::query_as!(
        CashEntry,
        r#"select kind as "kind: CashKind", amount_minor, currency, external_ref, purchase_id as "purchase_id: PurchaseId"
           from cash_entries
           where kind = $1 and external_ref = $2"#,
        kind.as_str(),
        external_ref,
    )
    .fetch_optional(conn)
    .await
}

/// What was booked in a span of time, fees apart, which come from the provider's books themselves.
pub async fn cash_between(
    conn: &mut PgConnection,
    since: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<Vec<CashEntry>, sqlx::Error> {
    sqlx::query_as!(
        CashEntry,
        r#"select kind as "kind: CashKind", amount_minor, currency, external_ref, purchase_id as "purchase_id: PurchaseId"
           from cash_entries
           where created_at >= $1 and created_at < $2 and kind <> 'fee'
           order by created_at, external_ref"#,
        since,
        until,
    )
    .fetch_all(conn)
    .await
}

/// Until when a kind of comparison has looked.
pub async fn recon_until(conn: &mut PgConnection, kind: RunKind) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    sqlx::query_scalar!(r#"select max(until) as "until" from recon_runs where kind = $1"#, kind.as_str())
        .fetch_one(conn)
        .await
}

pub async fn recon_run_insert(
    conn: &mut PgConnection,
    run: &super::recon::Run,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into recon_runs (id, kind, since, until, items, differences, created_at) values ($1, $2, $3, $4, $5, $6, $7)",
        run.id.as_uuid(),
        run.kind.as_str(),
        run.since,
        run.until,
        run.items,
        i64::try_from(run.differences.len()).unwrap_or(i64::MAX),
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn recon_difference_insert(
    conn: &mut PgConnection,
    run: Option<ReconRunId>,
    difference: &Difference,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into recon_differences (run_id, kind, external_ref, theirs, ours, created_at) values ($1, $2, $3, $4, $5, $6)",
        run.map(|id| id.as_uuid()),
        difference.kind.as_str(),
        difference.external_ref,
        difference.theirs,
        difference.ours,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}
