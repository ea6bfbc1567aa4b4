-- What nodes do by themselves in stores' own databases: they write what the store may still spend into its copy there, and
-- count the orders of days that are over. A row says how far each store is with both. It is visited when there is a difference.

create table store_visits (
    store_id              uuid        not null constraint store_visits_pkey primary key
                                      constraint store_visits_store_fk references stores (id),
    -- The copy as it was last written, and when; null before the first time.
    state                 text,
    spendable             bigint,
    month                 date,
    written_at            timestamptz,
    -- The first day whose orders are not counted yet.
    orders_counted_until  date        not null,
    -- The moment that the last visit speaks of. Later than that of the visit before, whatever the clocks of nodes say, so that
    -- it names the visit, too.
    as_of                 timestamptz,
    -- That of the last visit that succeeded.
    done_as_of            timestamptz,
    -- Visits since the last one that succeeded, and what was in the way.
    failures              integer     not null default 0,
    error                 text,
    -- Nobody begins a visit before. While one is under way: when whoever makes it counts as dead.
    next_visit_at         timestamptz not null,
    constraint store_visits_written_check check (
        (state is null) = (written_at is null) and (state is null) = (month is null) and (state is not null or spendable is null)
    ),
    constraint store_visits_failures_check check (failures >= 0)
) with (fillfactor = 70);

-- Every store has a row from its first active day on, those that exist and those that come. Orders before it are not counted.
insert into store_visits (store_id, orders_counted_until, next_visit_at)
select id, (now() at time zone 'UTC')::date, now() from stores where status = 'active';
create function store_activity_begin_visits() returns trigger language plpgsql as $$
begin
    insert into store_visits (store_id, orders_counted_until, next_visit_at)
    values (new.store_id, (new.started_at at time zone 'UTC')::date, new.started_at)
    on conflict do nothing;
    return null;
end
$$;
create trigger store_activity_begin_visits after insert on store_activity
    for each row execute function store_activity_begin_visits();

-- How far what each process counts has been added to usage_metrics: a process numbers what it sends, and sends the next only
-- when it knows that the one before it was added.
create table usage_flushes (
    node        text        not null constraint usage_flushes_pkey primary key,
    number      bigint      not null,
    flushed_at  timestamptz not null
);
create index usage_flushes_flushed_at_idx on usage_flushes (flushed_at);
