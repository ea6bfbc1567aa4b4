-- `path` is the chain of handles from the root, each closed by a slash, so that a subtree is one prefix.
create table categories (
    id varchar(40) collate "C" not null,
    parent_id varchar(40) collate "C",
    handle varchar(120) collate "C" not null,
    path varchar(600) collate "C" not null,
    name varchar(255) not null,
    description text not null,
    position integer not null,
    is_active boolean not null,
    seo_title varchar(255),
    seo_description varchar(1000),
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint categories_pkey primary key (id),
    constraint categories_handle_key unique (handle),
    constraint categories_path_key unique (path),
    constraint categories_parent_fk foreign key (parent_id) references categories (id),
    constraint categories_parent_check check (parent_id <> id)
);
create index categories_parent_id_idx on categories (parent_id, position);
