create table if not exists order_events (
    id varchar(40) character set ascii collate ascii_bin not null,
    order_id varchar(40) character set ascii collate ascii_bin not null,
    type varchar(40) not null,
    data json not null,
    actor varchar(60) not null,
    created_at datetime(6) not null,
    constraint order_events_pkey primary key (id),
    constraint order_events_order_fk foreign key (order_id) references orders (id) on delete cascade,
    index order_events_order_id_idx (order_id, created_at)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
