-- The token is a bearer secret and only its SHA-256 is kept.
create table if not exists carts (
    id varchar(40) character set ascii collate ascii_bin not null,
    token_hash varchar(64) character set ascii collate ascii_bin not null,
    customer_id varchar(40) character set ascii collate ascii_bin,
    email varchar(254),
    country varchar(2) character set ascii collate ascii_bin,
    currency varchar(3) character set ascii collate ascii_bin not null,
    status varchar(20) not null,
    version integer not null,
    expires_at datetime(6) not null,
    completed_at datetime(6),
    created_at datetime(6) not null,
    updated_at datetime(6) not null,
    constraint carts_pkey primary key (id),
    constraint carts_token_hash_key unique (token_hash),
    constraint carts_status_check check (status in ('active', 'completed', 'abandoned')),
    constraint carts_customer_fk foreign key (customer_id) references customers (id) on delete set null,
    index carts_expires_at_idx (status, expires_at),
    index carts_customer_id_idx (customer_id)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
