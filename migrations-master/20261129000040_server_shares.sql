-- What a database server bears in connections is dealt out among the nodes that need it.

-- A process that has connections to database servers: a serving node, or a command at work. It holds an advisory lock in master
-- for as long as it is connected to it.
create table nodes (
    id          integer     generated always as identity constraint nodes_pkey primary key,
    -- Where it runs: the machine or container, which process of it, and where it listens. A process at the same place knows
    -- whether this one still lives.
    host        text        not null,
    process     text        not null,
    listen      text,
    started_at  timestamptz not null,
    -- When it last said that it lives.
    renewed_at  timestamptz not null,
    -- Until when its shares are its own, unless it is known to have ended.
    expires_at  timestamptz not null
);
create index nodes_host_idx on nodes (host);

-- What a node may have open at a server. The sum over all nodes stays within the server's max_connections: whoever changes a
-- share holds the server's row.
create table server_shares (
    server_id    uuid    not null constraint server_shares_server_fk references database_servers (id) on delete cascade,
    node_id      integer not null constraint server_shares_node_fk references nodes (id) on delete cascade,
    connections  integer not null,
    -- What it last said to need, and could use at most.
    wanted       integer not null,
    most         integer not null,
    constraint server_shares_pkey primary key (server_id, node_id),
    constraint server_shares_connections_check check (connections >= 0 and wanted >= 0 and most >= 0)
);
create index server_shares_node_idx on server_shares (node_id);
