-- `orders_cart_id_key`: a cart makes one order, whatever keys its requests carry.
create table if not exists orders (
    id varchar(40) character set ascii collate ascii_bin not null,
    number bigint not null,
    cart_id varchar(40) character set ascii collate ascii_bin not null,
    token_hash varchar(64) character set ascii collate ascii_bin not null,
    customer_id varchar(40) character set ascii collate ascii_bin,
    email varchar(254) not null,
    currency varchar(3) character set ascii collate ascii_bin not null,
    subtotal_minor bigint not null,
    discount_minor bigint not null,
    shipping_minor bigint not null,
    tax_minor bigint not null,
    total_minor bigint not null,
    tax_included boolean not null,
    tax_rate_basis_points integer not null,
    status varchar(20) not null,
    payment_status varchar(20) not null,
    payment_method varchar(40) not null,
    fulfillment_status varchar(20) not null,
    shipping_method varchar(40) not null,
    shipping_address json not null,
    billing_address json not null,
    placed_at datetime(6) not null,
    cancelled_at datetime(6),
    version integer not null,
    updated_at datetime(6) not null,
    constraint orders_pkey primary key (id),
    constraint orders_number_key unique (number),
    constraint orders_cart_id_key unique (cart_id),
    constraint orders_status_check check (status in ('open', 'completed', 'cancelled')),
    constraint orders_payment_status_check check (payment_status in ('pending', 'paid', 'refunded', 'voided')),
    constraint orders_fulfillment_status_check check (fulfillment_status in ('unfulfilled', 'partial', 'fulfilled')),
    constraint orders_amounts_check check (
        subtotal_minor >= 0 and discount_minor >= 0 and shipping_minor >= 0 and tax_minor >= 0
    ),
    constraint orders_total_minor_check check (
        total_minor = subtotal_minor - discount_minor + shipping_minor
            + case when tax_included then 0 else tax_minor end
    ),
    constraint orders_customer_fk foreign key (customer_id) references customers (id) on delete set null,
    index orders_placed_at_idx (placed_at, id),
    index orders_customer_id_idx (customer_id, placed_at)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin comment 'tenantry';
