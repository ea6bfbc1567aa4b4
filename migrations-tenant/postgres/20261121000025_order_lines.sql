-- Snapshots: an order reads the same when its products have changed or gone.
create table order_lines (
    id varchar(40) collate "C" not null,
    order_id varchar(40) collate "C" not null,
    position integer not null,
    product_id varchar(40) collate "C" not null,
    variant_id varchar(40) collate "C" not null,
    location_id varchar(40) collate "C",
    sku varchar(255),
    product_title varchar(255) not null,
    variant_title varchar(800) not null,
    options jsonb not null,
    image_url varchar(2000),
    unit_price_minor bigint not null,
    quantity integer not null,
    total_minor bigint not null,
    reserved_quantity integer not null,
    constraint order_lines_pkey primary key (id),
    constraint order_lines_position_key unique (order_id, position),
    constraint order_lines_quantity_check check (quantity between 1 and 999),
    constraint order_lines_total_minor_check check (total_minor = unit_price_minor * quantity),
    constraint order_lines_reserved_quantity_check check (reserved_quantity between 0 and quantity),
    constraint order_lines_order_fk foreign key (order_id) references orders (id) on delete cascade
);
create index order_lines_variant_id_idx on order_lines (variant_id);
