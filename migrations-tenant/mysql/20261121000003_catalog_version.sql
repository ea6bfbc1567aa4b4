-- Bumped by every transaction that changes what a storefront sees; the ETag of every catalogue answer.
create table if not exists catalog_version (
    singleton smallint not null default 1,
    version bigint not null,
    constraint catalog_version_pkey primary key (singleton),
    constraint catalog_version_singleton_check check (singleton = 1)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
