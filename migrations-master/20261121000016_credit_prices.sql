-- What services cost, in credits. A price is never changed: a new version takes over from a moment on.

create table credit_prices (
    id           uuid        not null constraint credit_prices_pkey primary key default gen_random_uuid(),
    service      text        not null,
    version      integer     not null,
    name         text        not null,
    -- `credits` for every `per` begun units.
    unit         text        not null,
    credits      bigint      not null,
    per          bigint      not null,
    valid_from   timestamptz not null,
    created_at   timestamptz not null,
    constraint credit_prices_version_key unique (service, version),
    constraint credit_prices_service_check check (service ~ '^[a-z][a-z0-9-]{1,62}$'),
    constraint credit_prices_credits_check check (credits between 1 and 1000000000),
    constraint credit_prices_per_check check (per between 1 and 1000000000)
);
create trigger credit_prices_append_only before update or delete on credit_prices
    for each row execute function credit_ledger_refuse_change();
create trigger credit_prices_no_truncate before truncate on credit_prices
    for each statement execute function credit_ledger_refuse_change();

insert into credit_prices (service, version, name, unit, credits, per, valid_from, created_at) values
    ('product-text', 1, 'Product text', 'product', 2, 1, '2026-01-01', now()),
    ('translation', 1, 'Translation', 'word', 1, 100, '2026-01-01', now()),
    ('image-retouch', 1, 'Image retouching', 'image', 3, 1, '2026-01-01', now()),
    ('seo-audit', 1, 'SEO audit', 'audit', 50, 1, '2026-01-01', now()),
    ('theme-hour', 1, 'Theme work', 'quarter of an hour', 25, 1, '2026-01-01', now()),
    ('support-hour', 1, 'Support', 'quarter of an hour', 20, 1, '2026-01-01', now());

-- Sets or removes what a store or a person may spend in a month, and counts what of the running month is used already. Under
-- the lock of the account, so that no spend slips between.
create function credit_budget_set(
    organization uuid, id uuid, of_kind text, subject uuid, monthly bigint, hard boolean, percents smallint[], moment timestamptz
) returns void language plpgsql as $$
declare
    account credit_accounts;
    budget uuid;
    month timestamptz;
begin
    account := credit_account_lock(organization, moment);
    month := date_trunc('month', moment at time zone 'UTC') at time zone 'UTC';
    if monthly is null then
        delete from credit_budgets b where b.organization_id = organization and b.subject_kind = of_kind and b.subject_id = subject;
    else
        insert into credit_budgets as b (id, organization_id, subject_kind, subject_id, monthly_amount, is_hard, alert_percents, created_at, updated_at)
        values (credit_budget_set.id, organization, of_kind, subject, monthly, hard, percents, moment, moment)
        on conflict on constraint credit_budgets_subject_key do update
            set monthly_amount = monthly, is_hard = hard, alert_percents = percents, updated_at = moment
        returning b.id into budget;
        insert into credit_budget_months as m (budget_id, month, used)
        select budget, (month at time zone 'UTC')::date,
            coalesce((
                select sum(t.amount) from credit_transactions t
                where t.organization_id = organization and t.created_at >= month and t.status = 'accepted' and t.kind in ('spend', 'charge')
                  and case of_kind when 'store' then t.store_id = subject else t.actor_user_id = subject end
            ), 0) + coalesce((
                select sum(case h.state when 'open' then h.amount else h.captured end) from credit_holds h
                where h.organization_id = organization and h.created_at >= month and h.kind = 'spend'
                  and case of_kind when 'store' then h.store_id = subject else h.actor_user_id = subject end
            ), 0)
        on conflict on constraint credit_budget_months_pkey do update set used = excluded.used;
    end if;
    update credit_accounts a
    set has_budgets = exists (select from credit_budgets b where b.organization_id = organization)
    where a.organization_id = organization;
end
$$;
