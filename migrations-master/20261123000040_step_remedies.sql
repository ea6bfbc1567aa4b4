-- What the database's server itself calls the failure of a step, and the statements that help an administrator of it.
set local lock_timeout = '2s';
alter table provisioning_steps
    add column server_code text,
    add column sql         text;
