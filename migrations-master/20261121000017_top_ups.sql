-- Automatic top-up: the card that an organization pays with while nobody is there, and the rule that says when.
--
-- An automatic purchase is a purchase like every other: written down with everything that the call to the provider says, before
-- the call. Whoever finds it unfinished asks the provider what became of it, and calls again under the same key.

-- The card. It is kept at the provider; here are its reference and what of it may be shown.
create table payment_cards (
    organization_id  uuid        not null constraint payment_cards_pkey primary key
                                 constraint payment_cards_organization_fk references organizations (id),
    -- None once it was removed: the row stays, so that what is learned late of an older payment does not bring it back.
    method_ref       text        constraint payment_cards_method_key unique,
    -- Whose it is at the provider.
    customer_ref     text,
    brand            text,
    last4            text,
    exp_month        integer,
    exp_year         integer,
    -- Whether the provider was asked what it is.
    is_described     boolean     not null,
    -- When it became, or ceased to be, the card.
    set_at           timestamptz not null,
    updated_at       timestamptz not null,
    constraint payment_cards_customer_check check ((method_ref is null) = (customer_ref is null))
);
create index payment_cards_undescribed_idx on payment_cards (updated_at) where not is_described;

-- Cards that were removed here and are to be removed at the provider.
create table payment_card_removals (
    method_ref       text        not null constraint payment_card_removals_pkey primary key,
    organization_id  uuid        not null constraint payment_card_removals_organization_fk references organizations (id),
    next_attempt_at  timestamptz not null,
    created_at       timestamptz not null
);
create index payment_card_removals_due_idx on payment_card_removals (next_attempt_at);

-- When credits are bought by themselves.
create table top_up_rules (
    organization_id      uuid        not null constraint top_up_rules_pkey primary key
                                     constraint top_up_rules_account_fk references credit_accounts (organization_id),
    -- Below so many available credits the pack is bought.
    threshold            bigint      not null,
    pack_id              uuid        not null constraint top_up_rules_pack_fk references credit_packs (id),
    -- The most that is paid for it in a calendar month (UTC), taxes included, in the currency of the pack.
    monthly_cap_minor    bigint      not null,
    is_enabled           boolean     not null,
    -- Why it is off.
    off_reason           text,
    -- In a row, since it was last set or bought something.
    consecutive_declines integer     not null default 0,
    declined_at          timestamptz,
    -- Why the last payment failed, as a stable code of the provider's.
    last_failure         text,
    -- The month in which the next pack would have been too much.
    capped_month         date,
    -- The day (UTC) on which enough was tried.
    limited_day          date,
    created_at           timestamptz not null,
    updated_at           timestamptz not null,
    constraint top_up_rules_threshold_check check (threshold > 0),
    constraint top_up_rules_cap_check check (monthly_cap_minor > 0),
    constraint top_up_rules_off_reason_check check (
        off_reason in ('by_manager', 'declined', 'card_removed', 'pack_retired', 'refunded', 'disputed')
    ),
    constraint top_up_rules_off_check check (is_enabled = (off_reason is null)),
    constraint top_up_rules_declines_check check (consecutive_declines >= 0 and (consecutive_declines = 0 or declined_at is not null))
);
create index top_up_rules_enabled_idx on top_up_rules (organization_id) where is_enabled;

set local lock_timeout = '2s';
-- Whether the card of the payment becomes the organization's, and with which card an automatic one is paid.
alter table purchases
    add column saves_card boolean not null default false,
    add column payment_method text;
create trigger purchases_payment_fixed before update on purchases
    for each row when ((new.saves_card, new.payment_method) is distinct from (old.saves_card, old.payment_method))
    execute function credit_ledger_refuse_change();
