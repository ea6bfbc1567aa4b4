-- What PostgreSQL calls the cluster itself, whichever address leads to it; null where the login may not read it, and for
-- servers that were registered before this was noted.
alter table database_servers add column system_identifier text;
create unique index database_servers_system_identifier_key on database_servers (system_identifier)
    where system_identifier is not null;
