-- The columns from `title_sort` to `is_available` repeat what prices, pictures and stock say, so that a list is one
-- indexed read. Whoever changes those tables refreshes them in the same transaction.
create table products (
    id varchar(40) collate "C" not null,
    handle varchar(255) collate "C" not null,
    title varchar(255) not null,
    subtitle varchar(255),
    description_html text not null,
    vendor varchar(255),
    product_type varchar(255),
    status varchar(20) not null,
    published_at timestamptz,
    seo_title varchar(255),
    seo_description varchar(1000),
    currency varchar(3) collate "C" not null,
    title_sort varchar(255) collate "C" not null,
    vendor_key varchar(255) collate "C",
    search_text varchar(2000) collate "C" not null,
    price_min_minor bigint,
    price_max_minor bigint,
    compare_at_minor bigint,
    image_url varchar(2000),
    image_alt varchar(512),
    is_available boolean not null,
    version integer not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    deleted_at timestamptz,
    is_listed boolean generated always as (
        status = 'active' and published_at is not null and deleted_at is null and price_min_minor is not null
    ) stored,
    constraint products_pkey primary key (id),
    constraint products_handle_key unique (handle),
    constraint products_status_check check (status in ('draft', 'active', 'archived')),
    constraint products_price_min_minor_check check (price_min_minor >= 0),
    constraint products_price_max_minor_check check (price_max_minor >= price_min_minor)
);
create index products_newest_idx on products (is_listed, published_at, id);
create index products_title_idx on products (is_listed, title_sort, id);
create index products_price_idx on products (is_listed, price_min_minor, id);
create index products_vendor_idx on products (is_listed, vendor_key, published_at, id);
