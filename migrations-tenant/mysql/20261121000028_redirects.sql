create table if not exists redirects (
    from_path varchar(500) collate utf8mb4_bin not null,
    to_path varchar(2000) not null,
    code smallint not null,
    created_at datetime(6) not null,
    constraint redirects_pkey primary key (from_path),
    constraint redirects_code_check check (code in (301, 302, 307, 308)),
    constraint redirects_from_path_check check (from_path like '/%')
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
