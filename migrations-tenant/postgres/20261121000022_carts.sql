-- The token is a bearer secret and only its SHA-256 is kept.
create table carts (
    id varchar(40) collate "C" not null,
    token_hash varchar(64) collate "C" not null,
    customer_id varchar(40) collate "C",
    email varchar(254),
    country varchar(2) collate "C",
    currency varchar(3) collate "C" not null,
    status varchar(20) not null,
    version integer not null,
    expires_at timestamptz not null,
    completed_at timestamptz,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint carts_pkey primary key (id),
    constraint carts_token_hash_key unique (token_hash),
    constraint carts_status_check check (status in ('active', 'completed', 'abandoned')),
    constraint carts_customer_fk foreign key (customer_id) references customers (id) on delete set null
);
create index carts_expires_at_idx on carts (status, expires_at);
create index carts_customer_id_idx on carts (customer_id);
