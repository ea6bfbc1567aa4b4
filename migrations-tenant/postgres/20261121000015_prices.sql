create table prices (
    id varchar(40) collate "C" not null,
    variant_id varchar(40) collate "C" not null,
    currency varchar(3) collate "C" not null,
    amount_minor bigint not null,
    compare_at_minor bigint,
    min_quantity integer not null,
    constraint prices_pkey primary key (id),
    constraint prices_variant_key unique (variant_id, currency, min_quantity),
    constraint prices_amount_minor_check check (amount_minor >= 0),
    constraint prices_compare_at_minor_check check (compare_at_minor >= 0),
    constraint prices_min_quantity_check check (min_quantity >= 1),
    constraint prices_variant_fk foreign key (variant_id) references product_variants (id) on delete cascade
);
