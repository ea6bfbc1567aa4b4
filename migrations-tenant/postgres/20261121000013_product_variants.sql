create table product_variants (
    id varchar(40) collate "C" not null,
    product_id varchar(40) collate "C" not null,
    title varchar(800) not null,
    sku varchar(255) collate "C",
    barcode varchar(255),
    position integer not null,
    weight_grams bigint not null,
    requires_shipping boolean not null,
    is_taxable boolean not null,
    manages_stock boolean not null,
    allows_backorder boolean not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint product_variants_pkey primary key (id),
    constraint product_variants_sku_key unique (sku),
    constraint product_variants_weight_grams_check check (weight_grams >= 0),
    constraint product_variants_product_fk foreign key (product_id) references products (id) on delete cascade
);
create index product_variants_product_id_idx on product_variants (product_id, position);
