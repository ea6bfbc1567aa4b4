-- `claim_id` tells the transaction that wrote the row from one that only found it, on engines that count a kept row as
-- affected.
create table if not exists idempotency_keys (
    scope varchar(120) character set ascii collate ascii_bin not null,
    `key` varchar(200) collate utf8mb4_bin not null,
    claim_id varchar(64) character set ascii collate ascii_bin not null,
    fingerprint varchar(64) character set ascii collate ascii_bin not null,
    response json,
    created_at datetime(6) not null,
    expires_at datetime(6) not null,
    constraint idempotency_keys_pkey primary key (scope, `key`),
    index idempotency_keys_expires_at_idx (expires_at)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
