-- Stores, their hostnames and databases, and the servers that hold the databases we create.

create table database_servers (
    id                  uuid        not null constraint database_servers_pkey primary key,
    name                text        not null,
    engine              text        not null,
    region              text,
    -- Shown to ops; the credential itself is sealed.
    host                text        not null,
    port                integer     not null,
    sealed              bytea       not null,
    credential_version  integer     not null default 1,
    status              text        not null default 'active',
    max_stores          integer     not null,
    max_connections     integer     not null,
    created_at          timestamptz not null,
    updated_at          timestamptz not null,
    constraint database_servers_name_key unique (name),
    constraint database_servers_engine_check check (engine in ('postgresql')),
    constraint database_servers_status_check check (status in ('active', 'draining')),
    constraint database_servers_max_stores_check check (max_stores > 0),
    constraint database_servers_max_connections_check check (max_connections > 0),
    constraint database_servers_port_check check (port between 1 and 65535)
);

create table stores (
    id                     uuid        not null constraint stores_pkey primary key,
    organization_id        uuid        not null constraint stores_organization_fk references organizations (id),
    name                   text        not null,
    slug                   text        not null,
    status                 text        not null default 'pending_database',
    -- Why ops or the owner closed it; says nothing while it is open.
    status_reason          text,
    -- Bumped by every change that a node must see before it serves the store again.
    route_version          bigint      not null default 1,
    wanted_schema_version  bigint,
    created_by             uuid        not null constraint stores_created_by_fk references users (id),
    created_at             timestamptz not null,
    updated_at             timestamptz not null,
    constraint stores_slug_key unique (slug),
    constraint stores_status_check check (status in
        ('pending_database', 'provisioning', 'active', 'suspended', 'maintenance', 'archived', 'deleted'))
);
create index stores_organization_idx on stores (organization_id, id);

create table store_databases (
    id                  uuid        not null constraint store_databases_pkey primary key,
    store_id            uuid        not null constraint store_databases_store_fk references stores (id),
    engine              text        not null,
    kind                text        not null,
    server_id           uuid        constraint store_databases_server_fk references database_servers (id),
    -- Names on the server, ours alone when the database is managed.
    database_name       text        not null,
    role_name           text        not null,
    -- The credential as the owner or we made it, sealed for this store, this purpose and this version.
    sealed              bytea       not null,
    credential_version  integer     not null,
    -- What is there, as the last migration left it; null before the first.
    schema_version      bigint,
    created_at          timestamptz not null,
    updated_at          timestamptz not null,
    constraint store_databases_store_key unique (store_id),
    constraint store_databases_engine_check check (engine in ('postgresql')),
    constraint store_databases_kind_check check (kind in ('managed', 'brought')),
    constraint store_databases_server_check check ((kind = 'managed') = (server_id is not null))
);
create index store_databases_server_idx on store_databases (server_id) where server_id is not null;
create unique index store_databases_managed_name_key on store_databases (server_id, database_name) where server_id is not null;

create table hostnames (
    id          uuid        not null constraint hostnames_pkey primary key,
    store_id    uuid        not null constraint hostnames_store_fk references stores (id),
    hostname    text        not null,
    kind        text        not null,
    is_primary  boolean     not null,
    created_at  timestamptz not null,
    constraint hostnames_hostname_key unique (hostname),
    constraint hostnames_hostname_check check (hostname = lower(hostname) and hostname <> '' and hostname not like '%.'),
    constraint hostnames_kind_check check (kind in ('platform', 'custom'))
);
create index hostnames_store_idx on hostnames (store_id);
create unique index hostnames_primary_key on hostnames (store_id) where is_primary;

-- Every change of a route, in order: a node that missed a notification reads on from the last one it knows.
create table store_changes (
    seq            bigint      generated always as identity constraint store_changes_pkey primary key,
    store_id       uuid        not null,
    route_version  bigint      not null,
    hostnames      text[]      not null,
    at             timestamptz not null default now()
);
create index store_changes_at_idx on store_changes (at);

-- The rule that no writer can forget: what a route is made of cannot change without a new route version, and a new route
-- version cannot be committed without its notification.
create function stores_bump_route_version() returns trigger language plpgsql as $$
begin
    if new.status is distinct from old.status or new.slug is distinct from old.slug then
        new.route_version := old.route_version + 1;
    end if;
    return new;
end
$$;
create trigger stores_bump_route_version before update on stores
    for each row execute function stores_bump_route_version();

-- The notification carries the change itself, so that hearing of it costs no query; only a store with very many hostnames is
-- named by its entry alone (a payload has at most 8,000 bytes).
create function stores_announce_change() returns trigger language plpgsql as $$
declare
    change store_changes;
    payload text;
begin
    insert into store_changes (store_id, route_version, hostnames)
    values (
        new.id,
        new.route_version,
        array(select hostname from hostnames where store_id = new.id)
    )
    returning * into change;
    payload := json_build_object(
        'seq', change.seq, 'storeId', change.store_id, 'routeVersion', change.route_version, 'hostnames', change.hostnames
    );
    if octet_length(payload) > 7000 then
        payload := json_build_object('seq', change.seq);
    end if;
    perform pg_notify('tenantry_store_changes', payload);
    return null;
end
$$;
create trigger stores_announce_change after update on stores
    for each row when (new.route_version is distinct from old.route_version)
    execute function stores_announce_change();

create function store_parts_bump_route_version() returns trigger language plpgsql as $$
begin
    if tg_op in ('INSERT', 'UPDATE') then
        update stores set route_version = route_version + 1 where id = new.store_id;
    end if;
    -- The old owner of a hostname must hear of it too, and of its name, which is no longer in the table.
    if tg_op = 'DELETE' or (tg_op = 'UPDATE' and old.store_id is distinct from new.store_id) then
        update stores set route_version = route_version + 1 where id = old.store_id;
    end if;
    return null;
end
$$;
create trigger hostnames_bump_route_version after insert or update or delete on hostnames
    for each row execute function store_parts_bump_route_version();
create trigger store_databases_bump_route_version after insert or delete on store_databases
    for each row execute function store_parts_bump_route_version();
create trigger store_databases_update_bump_route_version after update on store_databases
    for each row when (
        new.sealed is distinct from old.sealed
        or new.credential_version is distinct from old.credential_version
        or new.schema_version is distinct from old.schema_version
        or new.server_id is distinct from old.server_id
    )
    execute function store_parts_bump_route_version();
