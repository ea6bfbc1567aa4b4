-- The ledger of `stocked`: the sum of a variant's deltas at a location is its level. Variants may go, their history
-- stays.
create table if not exists inventory_movements (
    id varchar(40) character set ascii collate ascii_bin not null,
    variant_id varchar(40) character set ascii collate ascii_bin not null,
    location_id varchar(40) character set ascii collate ascii_bin not null,
    delta bigint not null,
    reason varchar(40) not null,
    reference varchar(255),
    created_at datetime(6) not null,
    constraint inventory_movements_pkey primary key (id),
    constraint inventory_movements_delta_check check (delta <> 0),
    constraint inventory_movements_reason_check check (
        reason in ('seed', 'import', 'adjustment', 'fulfilment', 'return')
    ),
    index inventory_movements_variant_id_idx (variant_id, location_id, created_at)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
