-- Available is `stocked - reserved`. `allows_backorder` repeats the variant's policy, so that reserving is one
-- conditional update of one row and the rule is a constraint.
create table if not exists inventory_levels (
    variant_id varchar(40) character set ascii collate ascii_bin not null,
    location_id varchar(40) character set ascii collate ascii_bin not null,
    stocked bigint not null,
    reserved bigint not null,
    allows_backorder boolean not null,
    updated_at datetime(6) not null,
    constraint inventory_levels_pkey primary key (variant_id, location_id),
    constraint inventory_levels_reserved_check check (reserved >= 0),
    constraint inventory_levels_not_oversold_check check (allows_backorder or stocked >= reserved),
    constraint inventory_levels_variant_fk foreign key (variant_id) references product_variants (id) on delete cascade,
    constraint inventory_levels_location_fk foreign key (location_id) references stock_locations (id),
    index inventory_levels_location_id_idx (location_id)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
