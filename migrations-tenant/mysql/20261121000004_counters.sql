create table if not exists counters (
    name varchar(40) collate utf8mb4_bin not null,
    `value` bigint not null,
    constraint counters_pkey primary key (name)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
