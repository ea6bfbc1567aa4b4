create table if not exists variant_option_values (
    variant_id varchar(40) character set ascii collate ascii_bin not null,
    option_id varchar(40) character set ascii collate ascii_bin not null,
    option_value_id varchar(40) character set ascii collate ascii_bin not null,
    constraint variant_option_values_pkey primary key (variant_id, option_id),
    constraint variant_option_values_variant_fk foreign key (variant_id) references product_variants (id)
        on delete cascade,
    constraint variant_option_values_option_fk foreign key (option_id) references product_options (id) on delete cascade,
    constraint variant_option_values_value_fk foreign key (option_value_id)
        references product_option_values (id)
        on delete cascade,
    index variant_option_values_option_id_idx (option_id),
    index variant_option_values_option_value_id_idx (option_value_id)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
