-- `tag_key` is the tag in lower case: what is compared and filtered by.
create table product_tags (
    product_id varchar(40) collate "C" not null,
    tag_key varchar(255) collate "C" not null,
    tag varchar(255) not null,
    constraint product_tags_pkey primary key (product_id, tag_key),
    constraint product_tags_product_fk foreign key (product_id) references products (id) on delete cascade
);
create index product_tags_tag_key_idx on product_tags (tag_key, product_id);
