create table if not exists product_option_values (
    id varchar(40) character set ascii collate ascii_bin not null,
    option_id varchar(40) character set ascii collate ascii_bin not null,
    `value` varchar(255) collate utf8mb4_bin not null,
    position integer not null,
    constraint product_option_values_pkey primary key (id),
    constraint product_option_values_value_key unique (option_id, `value`),
    constraint product_option_values_option_fk foreign key (option_id) references product_options (id) on delete cascade
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
