create table product_media (
    id varchar(40) collate "C" not null,
    product_id varchar(40) collate "C" not null,
    variant_id varchar(40) collate "C",
    url varchar(2000) not null,
    alt varchar(512),
    position integer not null,
    width integer,
    height integer,
    constraint product_media_pkey primary key (id),
    constraint product_media_product_fk foreign key (product_id) references products (id) on delete cascade,
    constraint product_media_variant_fk foreign key (variant_id) references product_variants (id) on delete set null
);
create index product_media_product_id_idx on product_media (product_id, position);
create index product_media_variant_id_idx on product_media (variant_id);
