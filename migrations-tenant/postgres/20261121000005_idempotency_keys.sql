-- `claim_id` tells the transaction that wrote the row from one that only found it, on engines that count a kept row as
-- affected.
create table idempotency_keys (
    scope varchar(120) collate "C" not null,
    key varchar(200) collate "C" not null,
    claim_id varchar(64) collate "C" not null,
    fingerprint varchar(64) collate "C" not null,
    response jsonb,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    constraint idempotency_keys_pkey primary key (scope, key)
);
create index idempotency_keys_expires_at_idx on idempotency_keys (expires_at);
