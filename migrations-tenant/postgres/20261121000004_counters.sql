create table counters (
    name varchar(40) collate "C" not null,
    value bigint not null,
    constraint counters_pkey primary key (name)
);
