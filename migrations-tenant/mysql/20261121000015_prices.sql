create table if not exists prices (
    id varchar(40) character set ascii collate ascii_bin not null,
    variant_id varchar(40) character set ascii collate ascii_bin not null,
    currency varchar(3) character set ascii collate ascii_bin not null,
    amount_minor bigint not null,
    compare_at_minor bigint,
    min_quantity integer not null,
    constraint prices_pkey primary key (id),
    constraint prices_variant_key unique (variant_id, currency, min_quantity),
    constraint prices_amount_minor_check check (amount_minor >= 0),
    constraint prices_compare_at_minor_check check (compare_at_minor >= 0),
    constraint prices_min_quantity_check check (min_quantity >= 1),
    constraint prices_variant_fk foreign key (variant_id) references product_variants (id) on delete cascade
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
