-- A threshold of a budget is told once a month. Holds count as used and give back what they did not take, so that one threshold
-- can be reached again and again; what was told of it is written down here.

set local lock_timeout = '2s';

-- Told of this budget in this month: this percentage of this amount. Another amount makes other thresholds.
create table credit_budget_alerts (
    budget_id       uuid        not null constraint credit_budget_alerts_budget_fk references credit_budgets (id) on delete cascade,
    month           date        not null,
    percent         smallint    not null,
    monthly_amount  bigint      not null,
    told_at         timestamptz not null,
    constraint credit_budget_alerts_pkey primary key (budget_id, month, percent, monthly_amount)
);

-- What was told of this month and is still in the outbox is not told again.
insert into credit_budget_alerts (budget_id, month, percent, monthly_amount, told_at)
select b.id, to_date(e.data ->> 'month', 'YYYY-MM'), (e.data ->> 'percent')::smallint, (e.data ->> 'monthlyAmount')::bigint, e.created_at
from outbox_events e
join credit_budgets b on b.id::text = split_part(e.dedupe_key, ':', 2)
where e.type = 'credits.budget_reached' and e.data ? 'month' and e.data ? 'percent' and e.data ? 'monthlyAmount'
on conflict do nothing;

-- As before, telling of each threshold once.
create or replace function credit_budget_use(
    account credit_accounts, store uuid, actor uuid, amount bigint, moment timestamptz
) returns void language plpgsql as $$
declare
    budget record;
    this_month date := date_trunc('month', moment at time zone 'UTC')::date;
    after bigint;
    reached smallint;
begin
    for budget in
        select b.id, b.subject_kind, b.subject_id, b.monthly_amount, b.alert_percents
        from credit_budgets b
        where b.organization_id = account.organization_id
          and ((b.subject_kind = 'store' and b.subject_id = store) or (b.subject_kind = 'member' and b.subject_id = actor))
        order by b.id
    loop
        insert into credit_budget_months as m (budget_id, month, used)
        values (budget.id, this_month, greatest(amount, 0))
        on conflict (budget_id, month) do update set used = greatest(m.used + amount, 0)
        returning used into after;
        if amount > 0 then
            foreach reached in array budget.alert_percents loop
                if after * 100 >= budget.monthly_amount * reached and (after - amount) * 100 < budget.monthly_amount * reached then
                    insert into credit_budget_alerts (budget_id, month, percent, monthly_amount, told_at)
                    values (budget.id, this_month, reached, budget.monthly_amount, moment)
                    on conflict do nothing;
                    if found then
                        insert into outbox_events (organization_id, type, dedupe_key, data, created_at)
                        values (account.organization_id, 'credits.budget_reached',
                            'budget:' || budget.id || ':' || reached || ':' || account.version,
                            jsonb_build_object('subjectKind', budget.subject_kind, 'subject', budget.subject_id,
                                'percent', reached, 'monthlyAmount', budget.monthly_amount, 'used', after,
                                'month', to_char(moment at time zone 'UTC', 'YYYY-MM')),
                            moment)
                        on conflict do nothing;
                    end if;
                end if;
            end loop;
        end if;
    end loop;
end
$$;
