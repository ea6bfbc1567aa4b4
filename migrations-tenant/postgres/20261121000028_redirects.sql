create table redirects (
    from_path varchar(500) collate "C" not null,
    to_path varchar(2000) not null,
    code smallint not null,
    created_at timestamptz not null,
    constraint redirects_pkey primary key (from_path),
    constraint redirects_code_check check (code in (301, 302, 307, 308)),
    constraint redirects_from_path_check check (from_path like '/%')
);
