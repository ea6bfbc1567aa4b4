-- One row says that this database is ours and whose it is. A database without it is never written to.
create table if not exists store_identity (
    singleton smallint not null default 1,
    product varchar(20) not null,
    store_id varchar(40) character set ascii collate ascii_bin not null,
    created_at datetime(6) not null,
    constraint store_identity_pkey primary key (singleton),
    constraint store_identity_singleton_check check (singleton = 1),
    constraint store_identity_product_check check (product = 'tenantry')
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
