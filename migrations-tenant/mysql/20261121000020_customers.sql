create table if not exists customers (
    id varchar(40) character set ascii collate ascii_bin not null,
    email varchar(254) collate utf8mb4_bin not null,
    first_name varchar(100),
    last_name varchar(100),
    phone varchar(40),
    password_hash varchar(255),
    accepts_marketing boolean not null,
    version integer not null,
    created_at datetime(6) not null,
    updated_at datetime(6) not null,
    constraint customers_pkey primary key (id),
    constraint customers_email_key unique (email),
    constraint customers_email_check check (email = lower(email))
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
