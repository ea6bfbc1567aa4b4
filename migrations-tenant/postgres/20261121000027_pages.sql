create table pages (
    id varchar(40) collate "C" not null,
    slug varchar(120) collate "C" not null,
    title varchar(255) not null,
    body_html text not null,
    status varchar(20) not null,
    published_at timestamptz,
    seo_title varchar(255),
    seo_description varchar(1000),
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint pages_pkey primary key (id),
    constraint pages_slug_key unique (slug),
    constraint pages_status_check check (status in ('draft', 'active', 'archived'))
);
