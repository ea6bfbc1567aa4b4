-- Packs of credits that are for sale. A version is never changed once it is here: a new price is a new version, and the old
-- one is retired; what was sold names the version that it was sold as.

create table credit_packs (
    id                  uuid        not null constraint credit_packs_pkey primary key,
    code                text        not null,
    version             integer     not null,
    name                text        not null,
    -- What is paid for.
    credits             bigint      not null,
    -- What is given on top.
    bonus_credits       bigint      not null default 0,
    bonus_expires_days  integer,
    -- What is paid, taxes included, in minor units of the currency.
    price_minor         bigint      not null,
    currency            text        not null,
    tax_code            text        not null,
    created_at          timestamptz not null,
    retired_at          timestamptz,
    constraint credit_packs_code_version_key unique (code, version),
    constraint credit_packs_version_check check (version > 0),
    constraint credit_packs_credits_check check (credits > 0 and bonus_credits >= 0),
    constraint credit_packs_bonus_check check (bonus_expires_days > 0),
    constraint credit_packs_price_check check (price_minor > 0),
    constraint credit_packs_currency_check check (currency ~ '^[A-Z]{3}$')
);

create function credit_packs_refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'a pack is not changed: make a new version' using errcode = 'insufficient_privilege';
end
$$;
-- All but retiring, which is done once.
create trigger credit_packs_fixed before update on credit_packs
    for each row when (
        old.retired_at is not null or
        (new.id, new.code, new.version, new.name, new.credits, new.bonus_credits, new.bonus_expires_days, new.price_minor,
            new.currency, new.tax_code, new.created_at)
        is distinct from
        (old.id, old.code, old.version, old.name, old.credits, old.bonus_credits, old.bonus_expires_days, old.price_minor,
            old.currency, old.tax_code, old.created_at)
    )
    execute function credit_packs_refuse_change();
create trigger credit_packs_no_delete before delete on credit_packs
    for each row execute function credit_packs_refuse_change();

insert into credit_packs (id, code, version, name, credits, bonus_credits, bonus_expires_days, price_minor, currency, tax_code, created_at)
values
    ('019aa000-0000-7000-8000-000000000001', 'starter', 1, 'Starter', 500, 0, null, 2500, 'EUR', 'txcd_10103001', '2026-11-21T00:00:00Z'),
    ('019aa000-0000-7000-8000-000000000002', 'growth', 1, 'Growth', 2500, 250, 180, 11500, 'EUR', 'txcd_10103001', '2026-11-21T00:00:00Z'),
    ('019aa000-0000-7000-8000-000000000003', 'agency', 1, 'Agency', 12000, 2400, 365, 49900, 'EUR', 'txcd_10103001', '2026-11-21T00:00:00Z');
