create table customers (
    id varchar(40) collate "C" not null,
    email varchar(254) collate "C" not null,
    first_name varchar(100),
    last_name varchar(100),
    phone varchar(40),
    password_hash varchar(255),
    accepts_marketing boolean not null,
    version integer not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint customers_pkey primary key (id),
    constraint customers_email_key unique (email),
    constraint customers_email_check check (email = lower(email))
);
