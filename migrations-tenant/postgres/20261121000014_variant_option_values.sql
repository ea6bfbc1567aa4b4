create table variant_option_values (
    variant_id varchar(40) collate "C" not null,
    option_id varchar(40) collate "C" not null,
    option_value_id varchar(40) collate "C" not null,
    constraint variant_option_values_pkey primary key (variant_id, option_id),
    constraint variant_option_values_variant_fk foreign key (variant_id) references product_variants (id)
        on delete cascade,
    constraint variant_option_values_option_fk foreign key (option_id) references product_options (id) on delete cascade,
    constraint variant_option_values_value_fk foreign key (option_value_id)
        references product_option_values (id)
        on delete cascade
);
create index variant_option_values_option_id_idx on variant_option_values (option_id);
create index variant_option_values_option_value_id_idx on variant_option_values (option_value_id);
