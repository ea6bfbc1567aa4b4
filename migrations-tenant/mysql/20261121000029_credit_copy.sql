-- What the store may still spend, as the platform last said. It never holds what the organization has in all: an organization
-- may be an agency, and this database its client's.
create table if not exists credit_copy (
    singleton smallint not null default 1,
    state varchar(20) not null comment 'open: the store may spend. limited: less than what is left of its budget. ended: nothing.',
    spendable bigint comment 'Credits left of the store''s hard budget of the month; null without such a budget, and while the organization has less.',
    month date not null comment 'The first day of the calendar month (UTC) that it speaks of.',
    as_of datetime(6) not null comment 'When it was true on the platform. An older one never replaces a newer one.',
    copied_at datetime(6) not null comment 'When it was written here.',
    constraint credit_copy_pkey primary key (singleton),
    constraint credit_copy_singleton_check check (singleton = 1),
    constraint credit_copy_state_check check (state in ('open', 'limited', 'ended')),
    constraint credit_copy_spendable_check check (
        (state = 'open' and (spendable is null or spendable > 0))
        or (state = 'limited' and spendable is null)
        or (state = 'ended' and spendable is not null and spendable = 0)
    )
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin
    comment 'tenantry: A copy for people and programs that look at this database: what the store may still spend of its organization''s credits. Nothing is ever decided by it: what may be spent is decided by the platform, and a change made here is overwritten. It may be old: as_of says when it was true.';
