create table product_categories (
    product_id varchar(40) collate "C" not null,
    category_id varchar(40) collate "C" not null,
    position integer not null,
    constraint product_categories_pkey primary key (product_id, category_id),
    constraint product_categories_product_fk foreign key (product_id) references products (id) on delete cascade,
    constraint product_categories_category_fk foreign key (category_id) references categories (id) on delete cascade
);
create index product_categories_category_id_idx on product_categories (category_id, product_id);
