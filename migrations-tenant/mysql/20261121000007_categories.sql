-- `path` is the chain of handles from the root, each closed by a slash, so that a subtree is one prefix.
create table if not exists categories (
    id varchar(40) character set ascii collate ascii_bin not null,
    parent_id varchar(40) character set ascii collate ascii_bin,
    handle varchar(120) collate utf8mb4_bin not null,
    path varchar(600) collate utf8mb4_bin not null,
    name varchar(255) not null,
    description mediumtext not null,
    position integer not null,
    is_active boolean not null,
    seo_title varchar(255),
    seo_description varchar(1000),
    created_at datetime(6) not null,
    updated_at datetime(6) not null,
    constraint categories_pkey primary key (id),
    constraint categories_handle_key unique (handle),
    constraint categories_path_key unique (path),
    constraint categories_parent_fk foreign key (parent_id) references categories (id),
    constraint categories_parent_check check (parent_id <> id),
    index categories_parent_id_idx (parent_id, position)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
