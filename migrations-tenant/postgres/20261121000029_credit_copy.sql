-- What the store may still spend, as the platform last said. It never holds what the organization has in all: an organization
-- may be an agency, and this database its client's.
create table credit_copy (
    singleton smallint not null default 1,
    state varchar(20) not null,
    spendable bigint,
    month date not null,
    as_of timestamptz not null,
    copied_at timestamptz not null,
    constraint credit_copy_pkey primary key (singleton),
    constraint credit_copy_singleton_check check (singleton = 1),
    constraint credit_copy_state_check check (state in ('open', 'limited', 'ended')),
    constraint credit_copy_spendable_check check (
        (state = 'open' and (spendable is null or spendable > 0))
        or (state = 'limited' and spendable is null)
        or (state = 'ended' and spendable is not null and spendable = 0)
    )
);
comment on table credit_copy is 'A copy for people and programs that look at this database: what the store may still spend of its organization''s credits. Nothing is ever decided by it: what may be spent is decided by the platform, and a change made here is overwritten. It may be old: as_of says when it was true.';
comment on column credit_copy.state is 'open: the store may spend. limited: less than what is left of its budget. ended: nothing.';
comment on column credit_copy.spendable is 'Credits left of the store''s hard budget of the month; null without such a budget, and while the organization has less.';
comment on column credit_copy.month is 'The first day of the calendar month (UTC) that it speaks of.';
comment on column credit_copy.as_of is 'When it was true on the platform. An older one never replaces a newer one.';
comment on column credit_copy.copied_at is 'When it was written here.';
