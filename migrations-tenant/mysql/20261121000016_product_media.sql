create table if not exists product_media (
    id varchar(40) character set ascii collate ascii_bin not null,
    product_id varchar(40) character set ascii collate ascii_bin not null,
    variant_id varchar(40) character set ascii collate ascii_bin,
    url varchar(2000) not null,
    alt varchar(512),
    position integer not null,
    width integer,
    height integer,
    constraint product_media_pkey primary key (id),
    constraint product_media_product_fk foreign key (product_id) references products (id) on delete cascade,
    constraint product_media_variant_fk foreign key (variant_id) references product_variants (id) on delete set null,
    index product_media_product_id_idx (product_id, position),
    index product_media_variant_id_idx (variant_id)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
