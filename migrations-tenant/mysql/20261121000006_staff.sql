-- Who works in this store, for its own records. Signing in is master's business: no password hash ever comes here.
create table if not exists staff (
    id varchar(40) character set ascii collate ascii_bin not null,
    user_id varchar(40) character set ascii collate ascii_bin not null,
    email varchar(254) not null,
    first_name varchar(100) not null,
    last_name varchar(100) not null,
    role varchar(20) not null,
    created_at datetime(6) not null,
    updated_at datetime(6) not null,
    constraint staff_pkey primary key (id),
    constraint staff_user_id_key unique (user_id),
    constraint staff_role_check check (role in ('owner', 'admin', 'editor', 'viewer'))
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
