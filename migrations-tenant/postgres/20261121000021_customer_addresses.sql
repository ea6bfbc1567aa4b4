create table customer_addresses (
    id varchar(40) collate "C" not null,
    customer_id varchar(40) collate "C" not null,
    first_name varchar(100),
    last_name varchar(100),
    company varchar(255),
    address1 varchar(255) not null,
    address2 varchar(255),
    city varchar(255) not null,
    region varchar(255),
    postal_code varchar(40),
    country varchar(2) collate "C" not null,
    phone varchar(40),
    is_default_shipping boolean not null,
    is_default_billing boolean not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint customer_addresses_pkey primary key (id),
    constraint customer_addresses_customer_fk foreign key (customer_id) references customers (id) on delete cascade
);
create index customer_addresses_customer_id_idx on customer_addresses (customer_id);
