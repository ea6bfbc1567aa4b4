create table order_events (
    id varchar(40) collate "C" not null,
    order_id varchar(40) collate "C" not null,
    type varchar(40) not null,
    data jsonb not null,
    actor varchar(60) not null,
    created_at timestamptz not null,
    constraint order_events_pkey primary key (id),
    constraint order_events_order_fk foreign key (order_id) references orders (id) on delete cascade
);
create index order_events_order_id_idx on order_events (order_id, created_at);
