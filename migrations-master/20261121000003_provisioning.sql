-- Provisioning runs: the durable list of steps that takes a store from pending_database to active.

create table provisioning_runs (
    id            uuid        not null constraint provisioning_runs_pkey primary key,
    store_id      uuid        not null constraint provisioning_runs_store_fk references stores (id),
    kind          text        not null,
    state         text        not null,
    requested_by  uuid,
    -- Whether the seed brings made-up products along.
    with_demo     boolean     not null default false,
    -- Whether the owner's database held nothing of ours when the run first looked: only then may undoing it drop our schema.
    found_empty   boolean,
    -- How often a worker took it up.
    attempts      integer     not null default 0,
    -- The last sign of life of the worker that runs it.
    heartbeat_at  timestamptz,
    is_cancelled  boolean     not null default false,
    created_at    timestamptz not null,
    finished_at   timestamptz,
    constraint provisioning_runs_kind_check check (kind in ('managed', 'brought')),
    constraint provisioning_runs_state_check check (state in ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    constraint provisioning_runs_finished_check check ((state in ('succeeded', 'failed', 'cancelled')) = (finished_at is not null))
);
create index provisioning_runs_store_idx on provisioning_runs (store_id, id);
-- Two connects at once make one run.
create unique index provisioning_runs_unfinished_key on provisioning_runs (store_id) where state in ('queued', 'running');

create table provisioning_steps (
    run_id       uuid        not null constraint provisioning_steps_run_fk references provisioning_runs (id),
    position     smallint    not null,
    name         text        not null,
    state        text        not null default 'pending',
    attempts     integer     not null default 0,
    started_at   timestamptz,
    finished_at  timestamptz,
    -- Why it failed: a stable code, what happened, what to do. Never a secret.
    error_code   text,
    error        text,
    advice       text,
    constraint provisioning_steps_pkey primary key (run_id, position),
    constraint provisioning_steps_name_key unique (run_id, name),
    constraint provisioning_steps_state_check check (state in ('pending', 'running', 'succeeded', 'failed', 'undone'))
);

-- What a watcher of a run is told, in order; its id is the Last-Event-ID of the stream.
create table provisioning_events (
    id      bigint      generated always as identity constraint provisioning_events_pkey primary key,
    run_id  uuid        not null constraint provisioning_events_run_fk references provisioning_runs (id),
    type    text        not null,
    data    jsonb       not null,
    at      timestamptz not null
);
create index provisioning_events_run_idx on provisioning_events (run_id, id);

create function provisioning_events_announce() returns trigger language plpgsql as $$
begin
    perform pg_notify('tenantry_provisioning', new.run_id::text);
    return null;
end
$$;
create trigger provisioning_events_announce after insert on provisioning_events
    for each row execute function provisioning_events_announce();
