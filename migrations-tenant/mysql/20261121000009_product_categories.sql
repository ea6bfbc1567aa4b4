create table if not exists product_categories (
    product_id varchar(40) character set ascii collate ascii_bin not null,
    category_id varchar(40) character set ascii collate ascii_bin not null,
    position integer not null,
    constraint product_categories_pkey primary key (product_id, category_id),
    constraint product_categories_product_fk foreign key (product_id) references products (id) on delete cascade,
    constraint product_categories_category_fk foreign key (category_id) references categories (id) on delete cascade,
    index product_categories_category_id_idx (category_id, product_id)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
