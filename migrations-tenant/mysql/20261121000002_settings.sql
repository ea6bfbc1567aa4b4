-- One row per top-level field of `StoreSettings`, so that a new field is a new row and not a new column.
create table if not exists settings (
    `key` varchar(60) collate utf8mb4_bin not null,
    `value` json not null,
    updated_at datetime(6) not null,
    constraint settings_pkey primary key (`key`)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
