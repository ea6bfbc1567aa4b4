create table if not exists product_options (
    id varchar(40) character set ascii collate ascii_bin not null,
    product_id varchar(40) character set ascii collate ascii_bin not null,
    name varchar(255) not null,
    position integer not null,
    constraint product_options_pkey primary key (id),
    constraint product_options_position_key unique (product_id, position),
    constraint product_options_position_check check (position between 1 and 3),
    constraint product_options_product_fk foreign key (product_id) references products (id) on delete cascade
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
