-- `tag_key` is the tag in lower case: what is compared and filtered by.
create table if not exists product_tags (
    product_id varchar(40) character set ascii collate ascii_bin not null,
    tag_key varchar(255) collate utf8mb4_bin not null,
    tag varchar(255) not null,
    constraint product_tags_pkey primary key (product_id, tag_key),
    constraint product_tags_product_fk foreign key (product_id) references products (id) on delete cascade,
    index product_tags_tag_key_idx (tag_key, product_id)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
