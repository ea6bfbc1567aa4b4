-- Exactly one row carries `default_mark = 1`: the place that imports fill and checkouts reserve at.
create table if not exists stock_locations (
    id varchar(40) character set ascii collate ascii_bin not null,
    name varchar(255) not null,
    default_mark smallint,
    created_at datetime(6) not null,
    constraint stock_locations_pkey primary key (id),
    constraint stock_locations_default_mark_key unique (default_mark),
    constraint stock_locations_default_mark_check check (default_mark = 1)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
