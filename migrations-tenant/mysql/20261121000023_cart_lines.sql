-- The texts and the unit price are what the shopper saw when the line was last changed; prices are read anew to be
-- paid. `variant_id` has no foreign key: a variant that goes must not take a shopper's line silently with it.
create table if not exists cart_lines (
    id varchar(40) character set ascii collate ascii_bin not null,
    cart_id varchar(40) character set ascii collate ascii_bin not null,
    variant_id varchar(40) character set ascii collate ascii_bin not null,
    quantity integer not null,
    unit_price_minor bigint not null,
    product_title varchar(255) not null,
    variant_title varchar(800) not null,
    created_at datetime(6) not null,
    updated_at datetime(6) not null,
    constraint cart_lines_pkey primary key (id),
    constraint cart_lines_variant_key unique (cart_id, variant_id),
    constraint cart_lines_quantity_check check (quantity between 1 and 999),
    constraint cart_lines_unit_price_minor_check check (unit_price_minor >= 0),
    constraint cart_lines_cart_fk foreign key (cart_id) references carts (id) on delete cascade
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
