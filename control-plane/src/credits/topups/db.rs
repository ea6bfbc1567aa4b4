//! SQL of automatic top-ups and of the card that pays for them, in master.

use chrono::{DateTime, NaiveDate, Utc};
use kernel::{CreditPackId, OrganizationId, PurchaseId};
use sqlx::PgConnection;

use super::cards::Card;
use super::{Month, OffReason, Rule};

/// Reads rules, in whole: says which.
macro_rules! rule {
    ($which:tt, $($argument:expr),* $(,)?) => {
        sqlx::query_as!(
            Rule,
            r#"select organization_id as "organization_id: OrganizationId", threshold, pack_id as "pack_id: CreditPackId",
                      monthly_cap_minor, is_enabled, off_reason as "off_reason: OffReason", consecutive_declines, declined_at,
                      last_failure, capped_month, limited_day, created_at, updated_at
               from top_up_rules
               "# + $which,
            $($argument),*
        )
    };
}

/// The card of an organization, if it has one.
pub async fn card_find(conn: &mut PgConnection, organization: OrganizationId) -> Result<Option<Card>, sqlx::Error> {
    sqlx::query_as!(
        Card,
        r#"select organization_id as "organization_id: OrganizationId", method_ref as "method_ref!", customer_ref as "customer_ref!",
                  brand, last4, exp_month, exp_year, is_described, set_at
           from payment_cards
           where organization_id = $1 and method_ref is not null"#,
        organization.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// The card of an organization, which nobody else changes until the transaction ends, nor sets when there is none; waits for
/// whoever does.
pub async fn card_lock(conn: &mut PgConnection, organization: OrganizationId) -> Result<Option<Card>, sqlx::Error> {
    // The first card has no row to wait for. Two who set it at once would collide in either of its keys, and one would fail.
    sqlx::query!("select from payment_customers where organization_id = $1 for no key update", organization.as_uuid())
        .fetch_optional(&mut *conn)
        .await?;
    sqlx::query_as!(
        Card,
        r#"select organization_id as "organization_id: OrganizationId", method_ref as "method_ref!", customer_ref as "customer_ref!",
                  brand, last4, exp_month, exp_year, is_described, set_at
           from payment_cards
           where organization_id = $1 and method_ref is not null
           for update"#,
        organization.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// Makes a card the organization's.
pub async fn card_set(conn: &mut PgConnection, card: &Card, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into payment_cards as c (organization_id, method_ref, customer_ref, brand, last4, exp_month, exp_year, is_described,
            set_at, updated_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         on conflict on constraint payment_cards_pkey do update
         set method_ref = excluded.method_ref, customer_ref = excluded.customer_ref, brand = excluded.brand, last4 = excluded.last4,
             exp_month = excluded.exp_month, exp_year = excluded.exp_year, is_described = excluded.is_described,
             set_at = greatest(c.set_at, excluded.set_at), updated_at = excluded.updated_at",
        card.organization_id.as_uuid(),
        card.method_ref,
        card.customer_ref,
        card.brand,
        card.last4,
        card.exp_month,
        card.exp_year,
        card.is_described,
        card.set_at,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Makes a card the organization's that is known by its reference, unless another one was set, or removed, since.
pub async fn card_keep(conn: &mut PgConnection, card: &Card, now: DateTime<Utc>) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "insert into payment_cards as c (organization_id, method_ref, customer_ref, is_described, set_at, updated_at)
         values ($1, $2, $3, false, $4, $5)
         on conflict on constraint payment_cards_pkey do update
         set method_ref = excluded.method_ref, customer_ref = excluded.customer_ref, brand = null, last4 = null, exp_month = null,
             exp_year = null, is_described = false, set_at = excluded.set_at, updated_at = excluded.updated_at
         where c.set_at < excluded.set_at",
        card.organization_id.as_uuid(),
        card.method_ref,
        card.customer_ref,
        card.set_at,
        now,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Takes the card from an organization. What it was, for whoever was first.
pub async fn card_remove(
    conn: &mut PgConnection,
    organization: OrganizationId,
    now: DateTime<Utc>,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"update payment_cards c
           set method_ref = null, customer_ref = null, brand = null, last4 = null, exp_month = null, exp_year = null,
               is_described = true, set_at = $2, updated_at = $2
           from (select organization_id, method_ref from payment_cards where organization_id = $1 for update) old
           where c.organization_id = old.organization_id and old.method_ref is not null
           returning old.method_ref as "method_ref!""#,
        organization.as_uuid(),
        now,
    )
    .fetch_optional(conn)
    .await
}

/// Writes down what a card is, as long as it is still the organization's.
pub async fn card_describe(conn: &mut PgConnection, card: &Card, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update payment_cards
         set brand = $3, last4 = $4, exp_month = $5, exp_year = $6, is_described = true, updated_at = $7
         where organization_id = $1 and method_ref = $2",
        card.organization_id.as_uuid(),
        card.method_ref,
        card.brand,
        card.last4,
        card.exp_month,
        card.exp_year,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Cards of which only the reference is known.
pub async fn cards_undescribed(conn: &mut PgConnection, limit: i64) -> Result<Vec<Card>, sqlx::Error> {
    sqlx::query_as!(
        Card,
        r#"select organization_id as "organization_id: OrganizationId", method_ref as "method_ref!", customer_ref as "customer_ref!",
                  brand, last4, exp_month, exp_year, is_described, set_at
           from payment_cards
           where not is_described and method_ref is not null
           order by updated_at
           limit $1"#,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// Writes down that a card is to be removed at the provider.
pub async fn removal_insert(
    conn: &mut PgConnection,
    organization: OrganizationId,
    method: &str,
    next_attempt_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into payment_card_removals (method_ref, organization_id, next_attempt_at, created_at)
         values ($1, $2, $3, $4)
         on conflict on constraint payment_card_removals_pkey do nothing",
        method,
        organization.as_uuid(),
        next_attempt_at,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn removal_is_pending(conn: &mut PgConnection, method: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select exists (select 1 from payment_card_removals where method_ref = $1) as "is_pending!""#,
        method,
    )
    .fetch_one(conn)
    .await
}

/// Cards whose removal at the provider is due; nobody else tries them before `next_attempt_at`.
pub async fn removals_claim(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    next_attempt_at: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(
        "update payment_card_removals r
         set next_attempt_at = $2
         from (
             select method_ref from payment_card_removals
             where next_attempt_at <= $1
             order by next_attempt_at
             limit $3
             for update skip locked
         ) due
         where r.method_ref = due.method_ref
         returning r.method_ref",
        now,
        next_attempt_at,
        limit,
    )
    .fetch_all(conn)
    .await
}

pub async fn removal_delete(conn: &mut PgConnection, method: &str) -> Result<(), sqlx::Error> {
    sqlx::query!("delete from payment_card_removals where method_ref = $1", method).execute(conn).await?;
    Ok(())
}

pub async fn rule_find(conn: &mut PgConnection, organization: OrganizationId) -> Result<Option<Rule>, sqlx::Error> {
    rule!(r#"where organization_id = $1"#, organization.as_uuid(),).fetch_optional(conn).await
}

/// A rule that nobody else changes until the transaction ends; waits for whoever does.
pub async fn rule_lock(conn: &mut PgConnection, organization: OrganizationId) -> Result<Option<Rule>, sqlx::Error> {
    rule!(
        r#"where organization_id = $1
           for update"#,
        organization.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// The same, or nothing when somebody else has it.
pub async fn rule_take(conn: &mut PgConnection, organization: OrganizationId) -> Result<Option<Rule>, sqlx::Error> {
    rule!(
        r#"where organization_id = $1
           for update skip locked"#,
        organization.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// Writes a rule as it is from now on.
pub async fn rule_save(conn: &mut PgConnection, rule: &Rule) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into top_up_rules (organization_id, threshold, pack_id, monthly_cap_minor, is_enabled, off_reason, consecutive_declines,
            declined_at, last_failure, capped_month, limited_day, created_at, updated_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
         on conflict on constraint top_up_rules_pkey do update
         set threshold = excluded.threshold, pack_id = excluded.pack_id, monthly_cap_minor = excluded.monthly_cap_minor,
             is_enabled = excluded.is_enabled, off_reason = excluded.off_reason,
             consecutive_declines = excluded.consecutive_declines, declined_at = excluded.declined_at,
             last_failure = excluded.last_failure, capped_month = excluded.capped_month,
             limited_day = excluded.limited_day, updated_at = excluded.updated_at",
        rule.organization_id.as_uuid(),
        rule.threshold,
        rule.pack_id.as_uuid(),
        rule.monthly_cap_minor,
        rule.is_enabled,
        rule.off_reason.map(OffReason::as_str),
        rule.consecutive_declines,
        rule.declined_at,
        rule.last_failure,
        rule.capped_month,
        rule.limited_day,
        rule.created_at,
        rule.updated_at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Forgets that payments were declined: another card pays, or this one has.
pub async fn rule_forgive(
    conn: &mut PgConnection,
    organization: OrganizationId,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update top_up_rules
         set consecutive_declines = 0, declined_at = null, last_failure = null, updated_at = $2
         where organization_id = $1 and is_enabled and declined_at is not null",
        organization.as_uuid(),
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Removes a rule; false when there is none.
pub async fn rule_remove(conn: &mut PgConnection, organization: OrganizationId) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!("delete from top_up_rules where organization_id = $1", organization.as_uuid())
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Organizations whose rule has something to do: the credits are short and none are owed, or the pack is not sold any more, and
/// nothing is under way, waits after a decline, or has had enough this month or this day. `declined_before` is for a first
/// decline, and for further ones.
pub async fn rules_due(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    declined_before: [DateTime<Utc>; 2],
    month: NaiveDate,
    day: NaiveDate,
    limit: i64,
) -> Result<Vec<OrganizationId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select r.organization_id as "id: OrganizationId"
           from top_up_rules r
           join credit_accounts a on a.organization_id = r.organization_id
           join credit_packs k on k.id = r.pack_id
           where r.is_enabled
             and (k.retired_at is not null or (
                 (a.available < r.threshold or a.next_expiry_at <= $1) and a.debt = 0
                 and r.capped_month is distinct from $4 and r.limited_day is distinct from $5
                 and (r.consecutive_declines = 0 or r.declined_at <= case r.consecutive_declines when 1 then $2::timestamptz else $3::timestamptz end)
             ))
             and not exists (
                 select 1 from purchases p
                 where p.organization_id = r.organization_id and p.is_auto
                   and p.state in ('created', 'open', 'processing', 'requires_action')
             )
           order by a.changed_at
           limit $6"#,
        now,
        declined_before[0],
        declined_before[1],
        month,
        day,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// The automatic purchase that is under way.
pub async fn top_up_in_flight(
    conn: &mut PgConnection,
    organization: OrganizationId,
) -> Result<Option<PurchaseId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select id as "id: PurchaseId" from purchases
           where organization_id = $1 and is_auto and state in ('created', 'open', 'processing', 'requires_action')"#,
        organization.as_uuid(),
    )
    .fetch_optional(conn)
    .await
}

/// What automatic purchases of a month cost, those counted that are under way, and how many there were, those counted that
/// came to nothing.
pub async fn month_used(
    conn: &mut PgConnection,
    organization: OrganizationId,
    currency: &str,
    month: &Month,
) -> Result<(i64, i64), sqlx::Error> {
    let row = sqlx::query!(
        r#"select coalesce(sum(amount_minor) filter (where currency = $2 and state not in ('failed', 'expired')), 0)::bigint as "spent!",
                  count(*) as "count!"
           from purchases
           where organization_id = $1 and is_auto and created_at >= $3 and created_at < $4"#,
        organization.as_uuid(),
        currency,
        month.begin,
        month.end,
    )
    .fetch_one(conn)
    .await?;
    Ok((row.spent, row.count))
}

/// How many automatic purchases there were since a moment, those counted that came to nothing.
pub async fn tried_since(
    conn: &mut PgConnection,
    organization: OrganizationId,
    since: DateTime<Utc>,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!" from purchases where organization_id = $1 and is_auto and created_at >= $2"#,
        organization.as_uuid(),
        since,
    )
    .fetch_one(conn)
    .await
}

/// Another currency that automatic purchases of a month cost something in, those counted that are under way.
pub async fn month_other_currency(
    conn: &mut PgConnection,
    organization: OrganizationId,
    currency: &str,
    month: &Month,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar!(
        "select currency from purchases
         where organization_id = $1 and is_auto and created_at >= $3 and created_at < $4
           and currency <> $2 and state not in ('failed', 'expired')
         limit 1",
        organization.as_uuid(),
        currency,
        month.begin,
        month.end,
    )
    .fetch_optional(conn)
    .await
}

/// Automatic purchases under way that are to be looked at.
pub async fn top_ups_to_check(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<PurchaseId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select id as "id: PurchaseId" from purchases
           where next_check_at <= $1 and is_auto and state in ('created', 'open', 'processing', 'requires_action')
           order by next_check_at
           limit $2"#,
        now,
        limit,
    )
    .fetch_all(conn)
    .await
}
