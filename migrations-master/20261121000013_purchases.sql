-- Buying credits at the payment provider (Stripe, or what speaks like it).
--
-- Events come more than once, late and in any order. So an event only teaches facts (this payment succeeded, that refund
-- failed), each kept where learning it again, or before another, changes nothing; and whoever learns one then makes the
-- ledger follow the facts, under the lock of the purchase's row.

-- Who an organization is to the provider.
create table payment_customers (
    organization_id  uuid        not null constraint payment_customers_pkey primary key
                                 constraint payment_customers_organization_fk references organizations (id),
    customer_ref     text        not null constraint payment_customers_ref_key unique,
    created_at       timestamptz not null
);

create table purchases (
    id                uuid        not null constraint purchases_pkey primary key,
    organization_id   uuid        not null constraint purchases_organization_fk references organizations (id),
    -- Who bought; nobody when it was bought by itself.
    user_id           uuid        constraint purchases_user_fk references users (id),
    pack_id           uuid        not null constraint purchases_pack_fk references credit_packs (id),
    pack_version      integer     not null,
    credits           bigint      not null,
    bonus_credits     bigint      not null,
    -- What is to be paid, taxes included.
    amount_minor      bigint      not null,
    -- What of it is tax, as the provider worked it out.
    tax_minor         bigint      not null default 0,
    currency          text        not null,
    state             text        not null,
    is_auto           boolean     not null default false,
    -- Whose the payment must be; fixed before anything is asked of the provider.
    customer_ref      text,
    checkout_session  text        constraint purchases_checkout_session_key unique,
    checkout_url      text,
    payment_intent    text        constraint purchases_payment_intent_key unique,
    charge_ref        text        constraint purchases_charge_key unique,
    -- Why it failed, as a stable code of the provider's.
    failure           text,
    success_url       text,
    cancel_url        text,
    -- The buyer's key, kept for ever, and what they asked for under it.
    request_key       text        not null,
    request_hash      bytea       not null,
    -- The key of our call to the provider, and when it was made first: written before the call.
    idempotency_key   text        not null constraint purchases_idempotency_key_key unique,
    called_at         timestamptz,
    -- The grant, and its lots.
    transaction_id    uuid        constraint purchases_transaction_key unique,
    paid_lot_id       uuid,
    bonus_lot_id      uuid,
    -- What the charge itself says went back in all, which is known before the refunds of it are.
    charge_refunded_minor bigint  not null default 0,
    -- What of the money that went back, and of the credits for it, is booked.
    refunded_minor    bigint      not null default 0,
    refunded_credits  bigint      not null default 0,
    refunded_bonus    bigint      not null default 0,
    -- How often something was booked for refunds: names the bookings.
    refund_steps      integer     not null default 0,
    -- When an unfinished one is looked at next, at the provider.
    next_check_at     timestamptz,
    created_at        timestamptz not null,
    updated_at        timestamptz not null,
    completed_at      timestamptz,
    constraint purchases_request_key unique (organization_id, request_key),
    constraint purchases_state_check check (state in ('created', 'open', 'processing', 'requires_action', 'completed', 'failed', 'expired')),
    constraint purchases_amount_check check (amount_minor > 0 and tax_minor >= 0),
    constraint purchases_credits_check check (credits > 0 and bonus_credits >= 0),
    constraint purchases_refunded_check check (refunded_minor >= 0 and refunded_credits between 0 and credits
        and refunded_bonus between 0 and bonus_credits),
    constraint purchases_completed_check check ((state = 'completed') = (completed_at is not null)
        and (state = 'completed') = (transaction_id is not null) and (state = 'completed') = (paid_lot_id is not null))
);
create index purchases_organization_idx on purchases (organization_id, id);
create index purchases_check_idx on purchases (next_check_at) where next_check_at is not null;
-- One automatic top-up of an organization is under way.
create unique index one_topup_in_flight on purchases (organization_id)
    where is_auto and state in ('created', 'open', 'processing', 'requires_action');

-- Money that went back: asked for by us (then it is here before the provider knows), or made in the provider's dashboard.
create table purchase_refunds (
    id                uuid        not null constraint purchase_refunds_pkey primary key,
    purchase_id       uuid        not null constraint purchase_refunds_purchase_fk references purchases (id),
    refund_ref        text        constraint purchase_refunds_ref_key unique,
    amount_minor      bigint      not null,
    -- A later one is never followed by an earlier one: requested, pending, succeeded, failed.
    state             text        not null,
    reason            text,
    -- What keeps a refusal of the provider apart from a refund that failed later.
    failure           text,
    requested_by      uuid        constraint purchase_refunds_user_fk references users (id),
    request_key       text,
    request_hash      bytea,
    idempotency_key   text        constraint purchase_refunds_idempotency_key_key unique,
    called_at         timestamptz,
    next_check_at     timestamptz,
    created_at        timestamptz not null,
    updated_at        timestamptz not null,
    constraint purchase_refunds_request_key unique (purchase_id, request_key),
    constraint purchase_refunds_amount_check check (amount_minor > 0),
    constraint purchase_refunds_state_check check (state in ('requested', 'pending', 'succeeded', 'failed'))
);
create index purchase_refunds_purchase_idx on purchase_refunds (purchase_id, id);
create index purchase_refunds_check_idx on purchase_refunds (next_check_at) where next_check_at is not null;

create table stripe_disputes (
    id               text        not null constraint stripe_disputes_pkey primary key,
    purchase_id      uuid        not null constraint stripe_disputes_purchase_fk references purchases (id),
    amount_minor     bigint      not null,
    reason           text,
    -- Once it is won or lost it stays so.
    state            text        not null,
    -- What was booked for it.
    opened_credits   bigint,
    opening_id       uuid,
    closing_id       uuid,
    created_at       timestamptz not null,
    updated_at       timestamptz not null,
    constraint stripe_disputes_amount_check check (amount_minor > 0),
    constraint stripe_disputes_state_check check (state in ('open', 'won', 'lost'))
);
create index stripe_disputes_purchase_idx on stripe_disputes (purchase_id, id);

-- Every event that came and was signed, or was found by looking.
create table stripe_events (
    id               text        not null constraint stripe_events_pkey primary key,
    type             text        not null,
    object_id        text,
    payload          bytea       not null,
    -- Over what the event says, without what differs from one delivery to the next.
    payload_sha256   bytea       not null,
    -- `ignored`: of a type, or about an object, that is not ours.
    state            text        not null,
    attempts         integer     not null default 0,
    last_error       text,
    next_attempt_at  timestamptz,
    -- The payment that has to be known before it means anything.
    waits_for        text,
    -- How it came: `webhook`, or `sweep` when it had to be looked for.
    source           text        not null,
    event_created_at timestamptz not null,
    created_at       timestamptz not null,
    processed_at     timestamptz,
    constraint stripe_events_state_check check (state in ('received', 'done', 'ignored', 'failed')),
    constraint stripe_events_source_check check (source in ('webhook', 'sweep')),
    constraint stripe_events_hash_check check (octet_length(payload_sha256) = 32)
);
create index stripe_events_due_idx on stripe_events (next_attempt_at) where state in ('received', 'failed');
create index stripe_events_waiting_idx on stripe_events (waits_for) where waits_for is not null and state = 'received';
create index stripe_events_created_idx on stripe_events (event_created_at);

-- Our side of the provider's account, in minor units: what came in is above zero, what went out below.
create table cash_entries (
    id               uuid        not null constraint cash_entries_pkey primary key default gen_random_uuid(),
    kind             text        not null,
    amount_minor     bigint      not null,
    currency         text        not null,
    -- The provider's object that moved the money; `…:reinstated` and the like where one moves it twice.
    external_ref     text        not null,
    purchase_id      uuid        constraint cash_entries_purchase_fk references purchases (id),
    created_at       timestamptz not null,
    constraint cash_entries_ref_key unique (kind, external_ref),
    constraint cash_entries_kind_check check (kind in ('charge', 'refund', 'dispute', 'fee')),
    constraint cash_entries_amount_check check (amount_minor <> 0)
);
create index cash_entries_created_idx on cash_entries (created_at);

-- What the provider's books were compared with ours, and what differed. A difference is never deleted: a later run finds
-- it again, or does not.
create table recon_runs (
    id               uuid        not null constraint recon_runs_pkey primary key,
    kind             text        not null,
    -- From where to where it looked.
    since            timestamptz not null,
    until            timestamptz not null,
    items            bigint      not null,
    differences      bigint      not null,
    created_at       timestamptz not null,
    constraint recon_runs_kind_check check (kind in ('events', 'balance')),
    constraint recon_runs_counts_check check (items >= 0 and differences >= 0)
);
create index recon_runs_created_idx on recon_runs (kind, created_at);
create table recon_differences (
    id               uuid        not null constraint recon_differences_pkey primary key default gen_random_uuid(),
    -- None for what was seen outside of a run, such as an event that came again with another content.
    run_id           uuid        constraint recon_differences_run_fk references recon_runs (id),
    kind             text        not null,
    external_ref     text        not null,
    -- What each side says.
    theirs           jsonb,
    ours             jsonb,
    created_at       timestamptz not null,
    constraint recon_differences_kind_check check (kind in ('event_missing', 'event_failed', 'event_changed', 'missing_here',
        'missing_there', 'amount_differs', 'currency_differs', 'fee_differs'))
);
create index recon_differences_run_idx on recon_differences (run_id);
create index recon_differences_created_idx on recon_differences (created_at);

create trigger cash_entries_append_only before update or delete on cash_entries
    for each row execute function credit_ledger_refuse_change();
create trigger cash_entries_no_truncate before truncate on cash_entries
    for each statement execute function credit_ledger_refuse_change();
create trigger recon_runs_append_only before update or delete on recon_runs
    for each row execute function credit_ledger_refuse_change();
create trigger recon_runs_no_truncate before truncate on recon_runs
    for each statement execute function credit_ledger_refuse_change();
create trigger recon_differences_append_only before update or delete on recon_differences
    for each row execute function credit_ledger_refuse_change();
create trigger recon_differences_no_truncate before truncate on recon_differences
    for each statement execute function credit_ledger_refuse_change();
create trigger stripe_events_no_delete before delete on stripe_events
    for each row execute function credit_ledger_refuse_change();
-- What came stays as it came.
create trigger stripe_events_fixed before update on stripe_events
    for each row when ((new.id, new.type, new.payload, new.payload_sha256, new.created_at)
        is distinct from (old.id, old.type, old.payload, old.payload_sha256, old.created_at))
    execute function credit_ledger_refuse_change();
-- What was ordered stays what was ordered.
create trigger purchases_fixed before update on purchases
    for each row when (
        (new.id, new.organization_id, new.user_id, new.pack_id, new.pack_version, new.credits, new.bonus_credits,
            new.amount_minor, new.currency, new.is_auto, new.request_key, new.request_hash, new.idempotency_key, new.created_at)
        is distinct from
        (old.id, old.organization_id, old.user_id, old.pack_id, old.pack_version, old.credits, old.bonus_credits,
            old.amount_minor, old.currency, old.is_auto, old.request_key, old.request_hash, old.idempotency_key, old.created_at)
        or (old.state = 'completed' and new.state <> 'completed')
    )
    execute function credit_ledger_refuse_change();
create trigger purchases_no_delete before delete on purchases
    for each row execute function credit_ledger_refuse_change();
