create table if not exists pages (
    id varchar(40) character set ascii collate ascii_bin not null,
    slug varchar(120) collate utf8mb4_bin not null,
    title varchar(255) not null,
    body_html mediumtext not null,
    status varchar(20) not null,
    published_at datetime(6),
    seo_title varchar(255),
    seo_description varchar(1000),
    created_at datetime(6) not null,
    updated_at datetime(6) not null,
    constraint pages_pkey primary key (id),
    constraint pages_slug_key unique (slug),
    constraint pages_status_check check (status in ('draft', 'active', 'archived'))
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
