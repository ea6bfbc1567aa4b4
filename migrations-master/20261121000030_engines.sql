-- Stores may live on MySQL and MariaDB. A node of the release before reads neither, and answers 503 for such a store: let all
-- nodes run this one before the first server of that engine is registered.
set local lock_timeout = '2s';

alter table database_servers drop constraint database_servers_engine_check,
    add constraint database_servers_engine_check check (engine in ('postgresql', 'mysql'));
alter table store_databases drop constraint store_databases_engine_check,
    add constraint store_databases_engine_check check (engine in ('postgresql', 'mysql'));
