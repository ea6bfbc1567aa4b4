-- What stores cost by the day: a price per active store and day, and prices of what is counted. Charges are made by a
-- reconciler that takes no input; a row per store, day and service says how far it is with each, so nothing is charged twice.

alter table stores add column is_read_only boolean not null default false;
create index stores_read_only_idx on stores (id) where is_read_only;

-- As before; being read-only is part of a route, too.
create or replace function stores_bump_route_version() returns trigger language plpgsql as $$
begin
    if new.status is distinct from old.status or new.slug is distinct from old.slug
        or new.is_read_only is distinct from old.is_read_only
    then
        new.route_version := old.route_version + 1;
    end if;
    return new;
end
$$;

-- When each store was active. Days are UTC days; one that a store was active in for a moment counts.
create table store_activity (
    id             bigint      generated always as identity constraint store_activity_pkey primary key,
    store_id       uuid        not null constraint store_activity_store_fk references stores (id),
    started_at     timestamptz not null,
    ended_at       timestamptz,
    -- The last day of it; null while it lasts.
    last_day       date,
    -- The first day whose charges are not made yet.
    charged_until  date        not null,
    constraint store_activity_ended_check check ((ended_at is null) = (last_day is null))
);
create unique index store_activity_open_key on store_activity (store_id) where ended_at is null;
create index store_activity_behind_idx on store_activity (charged_until, id) where last_day is null or charged_until <= last_day;

create function stores_note_activity() returns trigger language plpgsql as $$
begin
    if new.status = 'active' then
        insert into store_activity (store_id, started_at, charged_until)
        values (new.id, new.updated_at, (new.updated_at at time zone 'UTC')::date)
        on conflict do nothing;
    else
        update store_activity a
        set ended_at = greatest(a.started_at, new.updated_at),
            last_day = (greatest(a.started_at, new.updated_at) at time zone 'UTC')::date
        where a.store_id = new.id and a.ended_at is null;
    end if;
    return null;
end
$$;
create trigger stores_note_activity after update on stores
    for each row when (new.status is distinct from old.status and 'active' in (new.status, old.status))
    execute function stores_note_activity();
-- Nobody is charged for days before this.
insert into store_activity (store_id, started_at, charged_until)
select id, now(), (now() at time zone 'UTC')::date from stores where status = 'active';

-- What a service costs from a day on: `store-day`, or `metric:` and the name of what is counted. Nothing when there is no row.
create table charge_prices (
    service     text        not null,
    valid_from  date        not null,
    -- Whole credits; 0 is nothing.
    amount      bigint      not null,
    -- For so many units, or what is begun of them.
    per         bigint      not null default 1,
    created_at  timestamptz not null,
    constraint charge_prices_pkey primary key (service, valid_from),
    constraint charge_prices_service_check check (service = 'store-day' or service like 'metric:_%'),
    constraint charge_prices_amount_check check (amount between 0 and 1000000000000),
    constraint charge_prices_per_check check (per between 1 and 1000000000000 and (service <> 'store-day' or per = 1))
);

create table store_charges (
    store_id         uuid        not null constraint store_charges_store_fk references stores (id),
    organization_id  uuid        not null constraint store_charges_account_fk references credit_accounts (organization_id),
    day              date        not null,
    service          text        not null,
    quantity         bigint      not null,
    amount           bigint      not null,
    state            text        not null,
    -- Counts the keys that it was asked for with. A refusal is final for its key.
    attempt          integer     not null default 1,
    -- Of the ledger, once it is charged.
    transaction_id   uuid,
    -- Why it was refused the last time, and since when it is owed.
    reason           text,
    unpaid_since     timestamptz,
    next_attempt_at  timestamptz not null,
    created_at       timestamptz not null,
    updated_at       timestamptz not null,
    constraint store_charges_pkey primary key (store_id, day, service),
    constraint store_charges_state_check check (state in ('due', 'charged', 'waived', 'unpaid')),
    constraint store_charges_amount_check check (amount > 0 and quantity > 0),
    constraint store_charges_transaction_check check ((state = 'charged') = (transaction_id is not null)),
    constraint store_charges_unpaid_check check ((state = 'unpaid') = (unpaid_since is not null and reason is not null))
);
create unique index store_charges_transaction_key on store_charges (transaction_id) where transaction_id is not null;
create index store_charges_open_idx on store_charges (organization_id, day) where state in ('due', 'unpaid');
create index store_charges_unpaid_idx on store_charges (store_id, unpaid_since) where state = 'unpaid';

-- What is counted of a store on a day.
create table usage_metrics (
    store_id    uuid     not null constraint usage_metrics_store_fk references stores (id),
    day         date     not null,
    metric      text     not null,
    quantity    bigint   not null,
    -- Whether its charge is made, if it costs anything.
    is_settled  boolean  not null default false,
    constraint usage_metrics_pkey primary key (store_id, day, metric),
    constraint usage_metrics_quantity_check check (quantity >= 0)
) with (fillfactor = 70);
create index usage_metrics_open_idx on usage_metrics (day) where not is_settled;

-- What was counted already, so that saying it again counts nothing.
create table usage_adds (
    store_id    uuid        not null constraint usage_adds_store_fk references stores (id),
    key         text        not null,
    created_at  timestamptz not null,
    constraint usage_adds_pkey primary key (store_id, key),
    constraint usage_adds_key_check check (length(key) between 1 and 200)
);
create index usage_adds_created_at_idx on usage_adds (created_at);
