create table product_options (
    id varchar(40) collate "C" not null,
    product_id varchar(40) collate "C" not null,
    name varchar(255) not null,
    position integer not null,
    constraint product_options_pkey primary key (id),
    constraint product_options_position_key unique (product_id, position),
    constraint product_options_position_check check (position between 1 and 3),
    constraint product_options_product_fk foreign key (product_id) references products (id) on delete cascade
);
