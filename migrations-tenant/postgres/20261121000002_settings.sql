-- One row per top-level field of `StoreSettings`, so that a new field is a new row and not a new column.
create table settings (
    key varchar(60) collate "C" not null,
    value jsonb not null,
    updated_at timestamptz not null,
    constraint settings_pkey primary key (key)
);
