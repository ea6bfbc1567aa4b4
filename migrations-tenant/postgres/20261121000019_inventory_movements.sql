-- The ledger of `stocked`: the sum of a variant's deltas at a location is its level. Variants may go, their history
-- stays.
create table inventory_movements (
    id varchar(40) collate "C" not null,
    variant_id varchar(40) collate "C" not null,
    location_id varchar(40) collate "C" not null,
    delta bigint not null,
    reason varchar(40) not null,
    reference varchar(255),
    created_at timestamptz not null,
    constraint inventory_movements_pkey primary key (id),
    constraint inventory_movements_delta_check check (delta <> 0),
    constraint inventory_movements_reason_check check (
        reason in ('seed', 'import', 'adjustment', 'fulfilment', 'return')
    )
);
create index inventory_movements_variant_id_idx on inventory_movements (variant_id, location_id, created_at);
