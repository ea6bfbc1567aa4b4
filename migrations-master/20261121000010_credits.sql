-- Credits: one account per organization, lots, holds, and a ledger that is only ever added to.
--
-- Every change of an account is one row of credit_transactions with the entries that it made. Entries of a transaction sum
-- to zero; house accounts (revenue, cash, ...) are entries without a balance row, since a row that everybody updates would
-- be what everybody waits for. A decision, also a refusal, has a version of its account: 1, 2, 3 without a gap, and a hash
-- over itself and the hash before it.
--
-- Keys, transactions and entries carry no foreign keys: they are written by the functions below alone, in one statement, under
-- the account's lock; the checks of credit_violations read whether they belong together. Foreign keys were half of what a spend
-- cost, and their locks on the account's row made claims wait for each other.
--
-- Functions decide under the lock of the account's row, so that one round trip is one decision. A key is claimed before
-- that lock; who repeats it is answered from what was decided, without the lock, for ever.

create table credit_accounts (
    organization_id     uuid        not null constraint credit_accounts_pkey primary key
                                    constraint credit_accounts_organization_fk references organizations (id),
    available           bigint      not null default 0,
    held                bigint      not null default 0,
    -- Lost in refunds and disputes after it was spent; the next purchase repays it first.
    debt                bigint      not null default 0,
    -- Of the last transaction, as are the two below.
    version             bigint      not null default 0,
    chain               bytea       not null default '\x0000000000000000000000000000000000000000000000000000000000000000',
    changed_at          timestamptz not null,
    -- When the next open lot expires.
    next_expiry_at      timestamptz not null default 'infinity',
    -- A balance that falls below it is told once per fall.
    low_balance         bigint,
    -- Whether any budget has to be looked at.
    has_budgets         boolean     not null default false,
    created_at          timestamptz not null,
    constraint credit_accounts_available_check check (available >= 0),
    constraint credit_accounts_held_check check (held >= 0),
    constraint credit_accounts_debt_check check (debt >= 0),
    constraint credit_accounts_low_balance_check check (low_balance > 0),
    constraint credit_accounts_chain_check check (octet_length(chain) = 32)
-- Room for updates in place: every spend changes this row, and nothing that changes is indexed.
) with (fillfactor = 50);

create table credit_keys (
    organization_id  uuid  not null,
    key              text  not null,
    request_hash     bytea not null,
    transaction_id   uuid  not null,
    constraint credit_keys_pkey primary key (organization_id, key),
    constraint credit_keys_key_check check (length(key) between 1 and 300),
    constraint credit_keys_hash_check check (octet_length(request_hash) = 32)
);

create table credit_transactions (
    id               uuid        not null constraint credit_transactions_pkey primary key,
    organization_id  uuid        not null,
    version          bigint      not null,
    kind             text        not null,
    status           text        not null,
    -- Why it was refused.
    reason           text,
    -- What was asked for, in credits.
    amount           bigint      not null,
    key              text        not null,
    request_hash     bytea       not null,
    store_id         uuid,
    actor_user_id    uuid,
    hold_id          uuid,
    service          text,
    quantity         bigint,
    description      text,
    -- Names the thing outside that this is the consequence of: one of a kind makes one transaction.
    external_ref     text,
    -- Facts of the kind, such as the lots that were granted.
    data             jsonb,
    available_after  bigint      not null,
    held_after       bigint      not null,
    debt_after       bigint      not null,
    chain            bytea       not null,
    -- Never before the one of the version before.
    created_at       timestamptz not null,
    constraint credit_transactions_version_key unique (organization_id, version),
    constraint credit_transactions_kind_check check (kind in ('grant', 'purchase', 'spend', 'charge', 'hold', 'capture', 'void',
        'hold_expiry', 'expiry', 'refund', 'dispute_open', 'dispute_won', 'dispute_lost')),
    constraint credit_transactions_status_check check (status in ('accepted', 'rejected')),
    constraint credit_transactions_reason_check check ((status = 'rejected') = (reason is not null)),
    constraint credit_transactions_amount_check check (amount > 0)
);
create unique index credit_transactions_external_ref_key on credit_transactions (kind, external_ref) where external_ref is not null;
create index credit_transactions_created_at_idx on credit_transactions (organization_id, created_at);

create table credit_entries (
    organization_id  uuid        not null,
    version          bigint      not null,
    seq              integer     not null,
    account          text        not null,
    -- Of the account `credits`: the lot; none for debt.
    lot_id           uuid,
    store_id         uuid,
    amount           bigint      not null,
    -- Of the account `credits`: what it is worth after the entry, held credits counted and debt taken off.
    balance_after    bigint,
    created_at       timestamptz not null,
    constraint credit_entries_pkey primary key (organization_id, version, seq),
    constraint credit_entries_account_check check (account in ('credits', 'revenue', 'cash', 'promotion', 'compensation', 'breakage', 'dispute_loss')),
    constraint credit_entries_amount_check check (amount <> 0),
    constraint credit_entries_balance_check check ((account = 'credits') = (balance_after is not null))
);

create table credit_lots (
    id               uuid        not null constraint credit_lots_pkey primary key,
    organization_id  uuid        not null constraint credit_lots_account_fk references credit_accounts (organization_id),
    -- The transaction that granted it.
    version          bigint      not null,
    kind             text        not null,
    purchase_id      uuid,
    priority         smallint    not null,
    unit_cost_minor  bigint      not null default 0,
    currency         text,
    expires_at       timestamptz not null default 'infinity',
    granted          bigint      not null,
    remaining        bigint      not null,
    held             bigint      not null default 0,
    consumed         bigint      not null default 0,
    expired          bigint      not null default 0,
    -- Taken back by refunds and disputes.
    returned         bigint      not null default 0,
    -- Whether anything in it can still be spent or is held.
    is_open          boolean     not null default true,
    created_at       timestamptz not null,
    constraint credit_lots_kind_check check (kind in ('paid', 'promotional', 'compensation')),
    constraint credit_lots_granted_check check (granted > 0),
    constraint credit_lots_parts_check check (remaining >= 0 and held >= 0 and consumed >= 0 and expired >= 0 and returned >= 0),
    constraint credit_lots_sum_check check (granted = remaining + held + consumed + expired + returned),
    constraint credit_lots_open_check check (is_open = (remaining + held > 0)),
    constraint credit_lots_priority_check check (priority between 0 and 100)
) with (fillfactor = 50);
create index credit_lots_open_idx on credit_lots (organization_id, priority, expires_at, id) where is_open;
create index credit_lots_account_idx on credit_lots (organization_id, id);
create index credit_lots_purchase_idx on credit_lots (purchase_id) where purchase_id is not null;

create table credit_holds (
    id               uuid        not null constraint credit_holds_pkey primary key,
    organization_id  uuid        not null constraint credit_holds_account_fk references credit_accounts (organization_id),
    -- What was reserved for: a spend that is to come, or a payment that is disputed.
    kind             text        not null,
    store_id         uuid        constraint credit_holds_store_fk references stores (id),
    actor_user_id    uuid,
    amount           bigint      not null,
    captured         bigint      not null default 0,
    state            text        not null default 'open',
    service          text,
    description      text,
    expires_at       timestamptz not null,
    created_at       timestamptz not null,
    resolved_at      timestamptz,
    constraint credit_holds_kind_check check (kind in ('spend', 'dispute')),
    constraint credit_holds_amount_check check (amount > 0 and captured between 0 and amount),
    constraint credit_holds_state_check check (state in ('open', 'captured', 'voided', 'expired')),
    constraint credit_holds_captured_check check ((state = 'captured') = (captured > 0)),
    constraint credit_holds_resolved_check check ((state = 'open') = (resolved_at is null))
);
create index credit_holds_open_idx on credit_holds (expires_at) where state = 'open';
create index credit_holds_account_idx on credit_holds (organization_id, id);

create table credit_hold_lots (
    hold_id  uuid     not null constraint credit_hold_lots_hold_fk references credit_holds (id),
    seq      integer  not null,
    lot_id   uuid     not null constraint credit_hold_lots_lot_fk references credit_lots (id),
    amount   bigint   not null,
    constraint credit_hold_lots_pkey primary key (hold_id, seq),
    constraint credit_hold_lots_amount_check check (amount > 0)
);

-- What a store, or a person, may spend in a calendar month (UTC).
create table credit_budgets (
    id               uuid        not null constraint credit_budgets_pkey primary key,
    organization_id  uuid        not null constraint credit_budgets_account_fk references credit_accounts (organization_id),
    subject_kind     text        not null,
    subject_id       uuid        not null,
    monthly_amount   bigint      not null,
    -- A hard one refuses, a soft one only tells.
    is_hard          boolean     not null,
    -- Percentages that are told when they are reached.
    alert_percents   smallint[]  not null default '{80,100}',
    created_at       timestamptz not null,
    updated_at       timestamptz not null,
    constraint credit_budgets_subject_key unique (organization_id, subject_kind, subject_id),
    constraint credit_budgets_subject_kind_check check (subject_kind in ('store', 'member')),
    constraint credit_budgets_amount_check check (monthly_amount >= 0)
);

-- What of a budget is spent or held, by month.
create table credit_budget_months (
    budget_id  uuid   not null constraint credit_budget_months_budget_fk references credit_budgets (id) on delete cascade,
    month      date   not null,
    used       bigint not null,
    constraint credit_budget_months_pkey primary key (budget_id, month),
    constraint credit_budget_months_used_check check (used >= 0)
) with (fillfactor = 50);

-- What organizations are told: written by the transaction that makes it true, delivered later.
create table outbox_events (
    id               uuid        not null constraint outbox_events_pkey primary key default gen_random_uuid(),
    seq              bigint      generated always as identity constraint outbox_events_seq_key unique,
    organization_id  uuid        not null constraint outbox_events_organization_fk references organizations (id),
    type             text        not null,
    -- The same thing is told once.
    dedupe_key       text        not null,
    data             jsonb       not null,
    created_at       timestamptz not null,
    constraint outbox_events_dedupe_key unique (organization_id, dedupe_key)
);

create function credit_ledger_refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'the credit ledger is append-only' using errcode = 'insufficient_privilege';
end
$$;
create trigger credit_transactions_append_only before update or delete on credit_transactions
    for each row execute function credit_ledger_refuse_change();
create trigger credit_transactions_no_truncate before truncate on credit_transactions
    for each statement execute function credit_ledger_refuse_change();
create trigger credit_entries_append_only before update or delete on credit_entries
    for each row execute function credit_ledger_refuse_change();
create trigger credit_entries_no_truncate before truncate on credit_entries
    for each statement execute function credit_ledger_refuse_change();
create trigger credit_keys_append_only before update or delete on credit_keys
    for each row execute function credit_ledger_refuse_change();
create trigger credit_keys_no_truncate before truncate on credit_keys
    for each statement execute function credit_ledger_refuse_change();
create trigger credit_lots_no_delete before delete on credit_lots
    for each row execute function credit_ledger_refuse_change();
-- What a lot was granted as stays.
create trigger credit_lots_fixed before update on credit_lots
    for each row when (
        (new.id, new.organization_id, new.version, new.kind, new.purchase_id, new.priority, new.unit_cost_minor, new.currency,
            new.expires_at, new.granted, new.created_at)
        is distinct from
        (old.id, old.organization_id, old.version, old.kind, old.purchase_id, old.priority, old.unit_cost_minor, old.currency,
            old.expires_at, old.granted, old.created_at)
    )
    execute function credit_ledger_refuse_change();

-- Every organization has an account, those that exist and those that come.
insert into credit_accounts (organization_id, changed_at, created_at) select id, created_at, created_at from organizations;
create function organizations_open_credit_account() returns trigger language plpgsql as $$
begin
    insert into credit_accounts (organization_id, changed_at, created_at) values (new.id, new.created_at, new.created_at);
    return null;
end
$$;
create trigger organizations_open_credit_account after insert on organizations
    for each row execute function organizations_open_credit_account();

-- The hash of a transaction: over the one before it and everything that the row and its entries say.
create function credit_digest(previous bytea, t credit_transactions, entries text) returns bytea language sql immutable as $$
    select sha256(previous || convert_to(json_build_array(
        t.id, t.organization_id, t.version, t.kind, t.status, t.reason, t.amount, t.key, encode(t.request_hash, 'hex'),
        t.store_id, t.actor_user_id, t.hold_id, t.service, t.quantity, t.description, t.external_ref, t.data::text,
        t.available_after, t.held_after, t.debt_after, (extract(epoch from t.created_at) * 1000000)::bigint, entries
    )::text, 'UTF8'))
$$;

-- One entry as the hash sees it.
create function credit_entry_text(account text, lot_id uuid, amount bigint) returns text language sql immutable as $$
    select account || ':' || coalesce(lot_id::text, '') || ':' || amount || ';'
$$;

-- The order in which lots are spent, in whole: what was given first by priority, then what would be lost soonest, then what
-- was given before what was paid, then what was cheapest, then the oldest.
create function credit_lot_rank(kind text) returns smallint language sql immutable as $$
    select (case kind when 'promotional' then 0 when 'compensation' then 1 else 2 end)::smallint
$$;

-- Writes one transaction with its entries and moves the account on; the caller holds the account's row. `t` comes without
-- version, balances, hash and moment.
create function credit_post(
    inout account credit_accounts, t credit_transactions, available_delta bigint, held_delta bigint, debt_delta bigint,
    entry_accounts text[], entry_lots uuid[], entry_amounts bigint[], moment timestamptz
) language plpgsql as $$
declare
    entries text := '';
    worth bigint := account.available + account.held - account.debt;
    balances bigint[] := '{}';
begin
    t.organization_id := account.organization_id;
    t.version := account.version + 1;
    t.created_at := greatest(moment, account.changed_at);
    t.available_after := account.available + available_delta;
    t.held_after := account.held + held_delta;
    t.debt_after := account.debt + debt_delta;
    for i in 1 .. cardinality(entry_amounts) loop
        if entry_accounts[i] = 'credits' then
            worth := worth + entry_amounts[i];
            balances[i] := worth;
        else
            balances[i] := null;
        end if;
        entries := entries || credit_entry_text(entry_accounts[i], entry_lots[i], entry_amounts[i]);
    end loop;
    t.chain := credit_digest(account.chain, t, entries);
    insert into credit_transactions select t.*;
    insert into credit_entries (organization_id, version, seq, account, lot_id, store_id, amount, balance_after, created_at)
    select t.organization_id, t.version, seq, e.account, e.lot_id, t.store_id, e.amount, e.balance_after, t.created_at
    from unnest(entry_accounts, entry_lots, entry_amounts, balances) with ordinality e (account, lot_id, amount, balance_after, seq);
    update credit_accounts a
    set available = t.available_after, held = t.held_after, debt = t.debt_after, version = t.version, chain = t.chain,
        changed_at = t.created_at,
        next_expiry_at = coalesce((
            select min(l.expires_at) from credit_lots l where l.organization_id = t.organization_id and l.is_open and l.remaining > 0
        ), 'infinity')
    where a.organization_id = t.organization_id
    returning a.* into account;
end
$$;

-- Claims a key. True when it is the caller's now; false when somebody has it: then what they decided is to be read.
create function credit_claim(organization uuid, claimed_key text, hash bytea, id uuid) returns boolean language plpgsql as $$
begin
    insert into credit_keys (organization_id, key, request_hash, transaction_id)
    values (organization, claimed_key, hash, id) on conflict do nothing;
    return found;
end
$$;

-- Books what has expired; the caller holds the account's row.
create function credit_expire_lots(inout account credit_accounts, moment timestamptz) language plpgsql as $$
declare
    lot record;
    t credit_transactions;
begin
    if account.next_expiry_at > moment then
        return;
    end if;
    for lot in
        select l.id, l.remaining from credit_lots l
        where l.organization_id = account.organization_id and l.is_open and l.remaining > 0 and l.expires_at <= moment
        order by l.expires_at, l.id
    loop
        t := null;
        t.id := gen_random_uuid();
        t.kind := 'expiry';
        t.status := 'accepted';
        t.amount := lot.remaining;
        -- What is released into an expired lot later expires by itself, so the version tells the two apart.
        t.key := 'expiry:' || lot.id || ':' || account.version;
        t.request_hash := sha256(convert_to(t.key, 'UTF8'));
        perform credit_claim(account.organization_id, t.key, t.request_hash, t.id);
        update credit_lots l
        set remaining = 0, expired = l.expired + lot.remaining, is_open = l.held > 0
        where l.id = lot.id;
        account := credit_post(account, t, -lot.remaining, 0, 0,
            array['credits', 'breakage'], array[lot.id, null], array[-lot.remaining, lot.remaining], moment);
    end loop;
    -- The lot that was to expire next may have been spent since.
    update credit_accounts a
    set next_expiry_at = coalesce((
        select min(l.expires_at) from credit_lots l where l.organization_id = a.organization_id and l.is_open and l.remaining > 0
    ), 'infinity')
    where a.organization_id = account.organization_id
    returning a.* into account;
end
$$;

-- The account, locked, with everything booked that has expired. Not `for update`: lots and holds share its key by their foreign
-- keys, and two of them would wait for each other.
create function credit_account_lock(organization uuid, moment timestamptz) returns credit_accounts language plpgsql as $$
declare
    account credit_accounts;
begin
    select a.* into strict account from credit_accounts a where a.organization_id = organization for no key update;
    return credit_expire_lots(account, greatest(moment, account.changed_at));
end
$$;

-- Adds to what a store and a person have used of their budgets in the month, and tells of every threshold that is reached.
create function credit_budget_use(
    account credit_accounts, store uuid, actor uuid, amount bigint, moment timestamptz
) returns void language plpgsql as $$
declare
    budget record;
    after bigint;
    percent smallint;
begin
    for budget in
        select b.id, b.subject_kind, b.subject_id, b.monthly_amount, b.alert_percents
        from credit_budgets b
        where b.organization_id = account.organization_id
          and ((b.subject_kind = 'store' and b.subject_id = store) or (b.subject_kind = 'member' and b.subject_id = actor))
        order by b.id
    loop
        insert into credit_budget_months as m (budget_id, month, used)
        values (budget.id, date_trunc('month', moment at time zone 'UTC')::date, greatest(amount, 0))
        on conflict (budget_id, month) do update set used = greatest(m.used + amount, 0)
        returning used into after;
        if amount > 0 then
            foreach percent in array budget.alert_percents loop
                if after * 100 >= budget.monthly_amount * percent and (after - amount) * 100 < budget.monthly_amount * percent then
                    insert into outbox_events (organization_id, type, dedupe_key, data, created_at)
                    values (account.organization_id, 'credits.budget_reached',
                        'budget:' || budget.id || ':' || percent || ':' || account.version,
                        jsonb_build_object('subjectKind', budget.subject_kind, 'subject', budget.subject_id,
                            'percent', percent, 'monthlyAmount', budget.monthly_amount, 'used', after,
                            'month', to_char(moment at time zone 'UTC', 'YYYY-MM')),
                        moment)
                    on conflict do nothing;
                end if;
            end loop;
        end if;
    end loop;
end
$$;

-- The hard budget that does not allow `amount` more, as a reason; null when none stands in the way.
create function credit_budget_refusal(
    account credit_accounts, store uuid, actor uuid, amount bigint, moment timestamptz
) returns text language sql stable as $$
    select case b.subject_kind when 'store' then 'store-budget-exceeded' else 'member-budget-exceeded' end
    from credit_budgets b
    left join credit_budget_months m on m.budget_id = b.id and m.month = date_trunc('month', moment at time zone 'UTC')::date
    where b.organization_id = account.organization_id and b.is_hard
      and ((b.subject_kind = 'store' and b.subject_id = store) or (b.subject_kind = 'member' and b.subject_id = actor))
      and coalesce(m.used, 0) + amount > b.monthly_amount
    order by b.subject_kind desc
    limit 1
$$;

-- Tells once when the balance falls below the mark.
create function credit_tell_low_balance(before bigint, account credit_accounts) returns void language plpgsql as $$
begin
    if account.low_balance is not null and before >= account.low_balance and account.available < account.low_balance then
        insert into outbox_events (organization_id, type, dedupe_key, data, created_at)
        values (account.organization_id, 'credits.balance_low', 'low:' || account.version,
            jsonb_build_object('available', account.available, 'threshold', account.low_balance), account.changed_at)
        on conflict do nothing;
    end if;
end
$$;

-- Decides spends of one account, in their order, under one lock and in one commit. Who repeats a key gets what was decided
-- then; whether the request was the same is for the caller to compare. Kinds are `spend` or `charge`.
create function credit_spend(
    organization uuid, ids uuid[], keys text[], hashes bytea[], kinds text[], stores uuid[], actors uuid[], amounts bigint[],
    services text[], quantities bigint[], descriptions text[], facts jsonb[], moment timestamptz
) returns table (ordinal bigint, is_new boolean, decided credit_transactions) language plpgsql as $$
-- Few and large expressions: each costs anew in every transaction.
declare
    is_mine boolean[];
    account credit_accounts;
    before bigint;
    lots refcursor;
    -- The lot being spent, and what is left and taken of it.
    lot_id uuid;
    lot_left bigint := 0;
    lot_taken bigint := 0;
    need bigint;
    take bigint;
    worth bigint;
    refusal text;
    entries text;
    seq integer;
    t credit_transactions;
    made credit_transactions[] := '{}';
    made_entries credit_entries[] := '{}';
    l_id uuid[] := '{}';
    l_taken bigint[] := '{}';
begin
    -- In the order of the keys: two batches that share some cannot wait for each other.
    with claimed as (
        insert into credit_keys (organization_id, key, request_hash, transaction_id)
        select organization, u.key, u.hash, u.id from unnest(keys, hashes, ids) u (key, hash, id) order by u.key
        on conflict do nothing
        returning transaction_id
    )
    select array_agg(c.transaction_id is not null order by u.at) into is_mine
    from unnest(ids) with ordinality u (id, at) left join claimed c on c.transaction_id = u.id;

    if true = any (is_mine) then
        select a.* into strict account from credit_accounts a where a.organization_id = organization for no key update;
        moment := greatest(moment, account.changed_at);
        if account.next_expiry_at <= moment then
            account := credit_expire_lots(account, moment);
        end if;
        before := account.available;
        worth := account.available + account.held - account.debt;
        for i in 1 .. cardinality(ids) loop
            continue when not is_mine[i];
            if amounts[i] > account.available then
                refusal := 'insufficient-credits';
            elsif account.has_budgets then
                refusal := credit_budget_refusal(account, stores[i], actors[i], amounts[i], moment);
            else
                refusal := null;
            end if;
            account.version := account.version + 1;
            entries := '';
            if refusal is null then
                account.available := account.available - amounts[i];
                need := amounts[i];
                seq := 0;
                while need > 0 loop
                    if lot_left = 0 then
                        if lot_taken > 0 then
                            l_id := l_id || lot_id;
                            l_taken := l_taken || lot_taken;
                        end if;
                        if lots is null then
                            open lots for
                                select l.id, l.remaining from credit_lots l
                                where l.organization_id = organization and l.is_open and l.remaining > 0
                                order by l.priority, l.expires_at, credit_lot_rank(l.kind), l.unit_cost_minor, l.id;
                        end if;
                        fetch lots into lot_id, lot_left;
                        if not found then
                            raise exception 'the lots of organization % hold less than its account', organization;
                        end if;
                        lot_taken := 0;
                    end if;
                    take := least(need, lot_left);
                    need := need - take;
                    lot_left := lot_left - take;
                    lot_taken := lot_taken + take;
                    worth := worth - take;
                    seq := seq + 1;
                    made_entries := array_append(made_entries, row(
                        organization, account.version, seq, 'credits', lot_id, stores[i], -take, worth, moment)::credit_entries);
                    entries := entries || 'credits:' || lot_id || ':' || -take || ';';
                end loop;
                made_entries := array_append(made_entries, row(
                    organization, account.version, seq + 1, 'revenue', null, stores[i], amounts[i], null, moment)::credit_entries);
                entries := entries || 'revenue::' || amounts[i] || ';';
                if account.has_budgets then
                    perform credit_budget_use(account, stores[i], actors[i], amounts[i], moment);
                end if;
            end if;
            t := row(ids[i], organization, account.version, kinds[i], case when refusal is null then 'accepted' else 'rejected' end,
                refusal, amounts[i], keys[i], hashes[i], stores[i], actors[i], null, services[i], quantities[i], descriptions[i],
                null, facts[i], account.available, account.held, account.debt, null, moment)::credit_transactions;
            t.chain := credit_digest(account.chain, t, entries);
            account.chain := t.chain;
            made := array_append(made, t);
        end loop;
        if lots is not null then
            close lots;
            l_id := l_id || lot_id;
            l_taken := l_taken || lot_taken;
        end if;
        insert into credit_transactions select m.* from unnest(made) m;
        if cardinality(l_id) > 0 then
            insert into credit_entries select m.* from unnest(made_entries) m;
            update credit_lots l
            set remaining = l.remaining - u.taken, consumed = l.consumed + u.taken, is_open = l.remaining - u.taken + l.held > 0
            from unnest(l_id, l_taken) u (id, taken)
            where l.id = u.id;
        end if;
        update credit_accounts a
        set available = account.available, version = account.version, chain = account.chain, changed_at = moment
        where a.organization_id = organization;
        if account.low_balance is not null then
            account.changed_at := moment;
            perform credit_tell_low_balance(before, account);
        end if;
        if true = all (is_mine) then
            return query select n, true, made[n] from generate_series(1, cardinality(made)::bigint) n;
            return;
        end if;
    end if;

    return query
        select u.at, is_mine[u.at], x
        from unnest(keys) with ordinality u (key, at)
        join credit_keys k on k.organization_id = organization and k.key = u.key
        join credit_transactions x on x.id = k.transaction_id
        order by u.at;
end
$$;

-- Grants lots, `purchase` or `grant`. Debt is repaid first, out of the lots of a purchase. The house account stands against
-- it: `cash` for what was paid, `promotion` or `compensation` for what was given.
create function credit_grant(
    organization uuid, id uuid, claimed_key text, hash bytea, granted_kind text, actor uuid, store uuid, why text, reference text,
    lot_ids uuid[], lot_kinds text[], lot_amounts bigint[], lot_priorities smallint[], lot_expiries timestamptz[],
    purchase uuid, lot_costs bigint[], lot_currency text, moment timestamptz
) returns table (is_new boolean, decided credit_transactions) language plpgsql as $$
declare
    account credit_accounts;
    t credit_transactions;
    total bigint := 0;
    repaid bigint;
    repaid_in_all bigint := 0;
    e_account text[] := '{}';
    e_lot uuid[] := '{}';
    e_amount bigint[] := '{}';
    facts jsonb := '[]';
begin
    if credit_claim(organization, claimed_key, hash, id) then
        account := credit_account_lock(organization, moment);
        for i in 1 .. cardinality(lot_ids) loop
            repaid := case when granted_kind = 'purchase' then least(account.debt - repaid_in_all, lot_amounts[i]) else 0 end;
            repaid_in_all := repaid_in_all + repaid;
            total := total + lot_amounts[i];
            insert into credit_lots (id, organization_id, version, kind, purchase_id, priority, unit_cost_minor, currency,
                expires_at, granted, remaining, consumed, is_open, created_at)
            values (lot_ids[i], organization, account.version + 1, lot_kinds[i], purchase, lot_priorities[i], lot_costs[i],
                lot_currency, lot_expiries[i], lot_amounts[i], lot_amounts[i] - repaid, repaid, lot_amounts[i] > repaid,
                greatest(moment, account.changed_at));
            e_account := e_account || 'credits'::text
                || (case lot_kinds[i] when 'paid' then 'cash' when 'promotional' then 'promotion' else 'compensation' end);
            e_lot := e_lot || lot_ids[i] || null::uuid;
            e_amount := e_amount || lot_amounts[i] || -lot_amounts[i];
            if repaid > 0 then
                e_account := e_account || 'credits'::text || 'credits'::text;
                e_lot := e_lot || lot_ids[i] || null::uuid;
                e_amount := e_amount || -repaid || repaid;
            end if;
            facts := facts || jsonb_build_object('id', lot_ids[i], 'kind', lot_kinds[i], 'amount', lot_amounts[i],
                'priority', lot_priorities[i], 'unitCostMinor', lot_costs[i], 'currency', lot_currency, 'purchase', purchase,
                'expiresAt', case when isfinite(lot_expiries[i]) then (extract(epoch from lot_expiries[i]) * 1000000)::bigint end);
        end loop;
        t.id := id;
        t.kind := granted_kind;
        t.status := 'accepted';
        t.amount := total;
        t.key := claimed_key;
        t.request_hash := hash;
        t.store_id := store;
        t.actor_user_id := actor;
        t.description := why;
        t.external_ref := reference;
        t.data := jsonb_build_object('lots', facts);
        account := credit_post(account, t, total - repaid_in_all, 0, -repaid_in_all, e_account, e_lot, e_amount, moment);
    end if;
    return query
        select k.transaction_id = credit_grant.id, x
        from credit_keys k join credit_transactions x on x.id = k.transaction_id
        where k.organization_id = organization and k.key = claimed_key;
end
$$;

-- Takes `amount` out of the open lots in their order (or out of one lot) into a hold, which must exist; returns nothing.
create function credit_hold_take(organization uuid, hold uuid, only_lot uuid, amount bigint) returns void language plpgsql as $$
declare
    lot record;
    need bigint := amount;
    take bigint;
    at integer := 0;
begin
    for lot in
        select l.id, l.remaining from credit_lots l
        where l.organization_id = organization and l.is_open and l.remaining > 0 and (only_lot is null or l.id = only_lot)
        order by l.priority, l.expires_at, credit_lot_rank(l.kind), l.unit_cost_minor, l.id
    loop
        exit when need = 0;
        take := least(need, lot.remaining);
        need := need - take;
        at := at + 1;
        update credit_lots l set remaining = l.remaining - take, held = l.held + take where l.id = lot.id;
        insert into credit_hold_lots (hold_id, seq, lot_id, amount) values (hold, at, lot.id, take);
    end loop;
    if need > 0 then
        raise exception 'the lots of organization % hold less than its account', organization;
    end if;
end
$$;

-- Reserves credits for a spend that is to come. The hold's id is the transaction's.
create function credit_hold(
    organization uuid, id uuid, claimed_key text, hash bytea, store uuid, actor uuid, wanted bigint, wanted_service text,
    why text, until timestamptz, moment timestamptz
) returns table (is_new boolean, decided credit_transactions) language plpgsql as $$
declare
    account credit_accounts;
    t credit_transactions;
    before bigint;
begin
    if credit_claim(organization, claimed_key, hash, id) then
        account := credit_account_lock(organization, moment);
        before := account.available;
        moment := greatest(moment, account.changed_at);
        t.id := id;
        t.kind := 'hold';
        t.amount := wanted;
        t.key := claimed_key;
        t.request_hash := hash;
        t.store_id := store;
        t.actor_user_id := actor;
        t.hold_id := id;
        t.service := wanted_service;
        t.description := why;
        t.data := jsonb_build_object('expiresAt', (extract(epoch from until) * 1000000)::bigint);
        if wanted > account.available then
            t.reason := 'insufficient-credits';
        elsif account.has_budgets then
            t.reason := credit_budget_refusal(account, store, actor, wanted, moment);
        end if;
        if t.reason is not null then
            t.status := 'rejected';
            t.hold_id := null;
            account := credit_post(account, t, 0, 0, 0, '{}', '{}', '{}', moment);
        else
            t.status := 'accepted';
            insert into credit_holds (id, organization_id, kind, store_id, actor_user_id, amount, service, description, expires_at, created_at)
            values (id, organization, 'spend', store, actor, wanted, wanted_service, why, until, moment);
            perform credit_hold_take(organization, id, null, wanted);
            account := credit_post(account, t, -wanted, wanted, 0, '{}', '{}', '{}', moment);
            if account.has_budgets then
                perform credit_budget_use(account, store, actor, wanted, moment);
            end if;
            perform credit_tell_low_balance(before, account);
        end if;
    end if;
    return query
        select k.transaction_id = credit_hold.id, x
        from credit_keys k join credit_transactions x on x.id = k.transaction_id
        where k.organization_id = organization and k.key = claimed_key;
end
$$;

-- Ends an open hold: `capture` takes `taken` of it, in the order in which it was reserved, and gives the rest back; `void`
-- and `hold_expiry` give all of it back. One that is not open any more, a capture after its time or of more than was held
-- is refused, and the refusal kept. The moment an open hold has expired it can only expire.
create function credit_hold_end(
    organization uuid, id uuid, claimed_key text, hash bytea, ending text, hold uuid, actor uuid, taken bigint, why text,
    moment timestamptz
) returns table (is_new boolean, decided credit_transactions) language plpgsql as $$
declare
    account credit_accounts;
    t credit_transactions;
    h credit_holds;
    part record;
    take bigint;
    need bigint;
    e_account text[] := '{}';
    e_lot uuid[] := '{}';
    e_amount bigint[] := '{}';
begin
    if credit_claim(organization, claimed_key, hash, id) then
        account := credit_account_lock(organization, moment);
        moment := greatest(moment, account.changed_at);
        select x.* into strict h from credit_holds x where x.id = hold and x.organization_id = organization and x.kind = 'spend';
        t.id := id;
        t.kind := ending;
        t.status := 'accepted';
        t.amount := case ending when 'capture' then taken else h.amount end;
        t.key := claimed_key;
        t.request_hash := hash;
        t.store_id := h.store_id;
        t.actor_user_id := actor;
        t.hold_id := hold;
        t.service := h.service;
        t.description := coalesce(why, h.description);
        if h.state <> 'open' then
            t.reason := 'hold-' || h.state;
        elsif ending = 'hold_expiry' and h.expires_at > moment then
            t.reason := 'hold-not-expired';
        elsif ending <> 'hold_expiry' and h.expires_at <= moment then
            t.reason := 'hold-expired';
        elsif ending = 'capture' and taken > h.amount then
            t.reason := 'capture-exceeds-hold';
        end if;
        if t.reason is not null then
            t.status := 'rejected';
            account := credit_post(account, t, 0, 0, 0, '{}', '{}', '{}', moment);
        else
            need := case ending when 'capture' then taken else 0 end;
            for part in select p.lot_id, p.amount from credit_hold_lots p where p.hold_id = hold order by p.seq loop
                take := least(need, part.amount);
                need := need - take;
                update credit_lots l
                set held = l.held - part.amount, consumed = l.consumed + take, remaining = l.remaining + part.amount - take,
                    is_open = l.held - part.amount + l.remaining + part.amount - take > 0
                where l.id = part.lot_id;
                if take > 0 then
                    e_account := e_account || 'credits'::text;
                    e_lot := e_lot || part.lot_id;
                    e_amount := e_amount || -take;
                end if;
            end loop;
            take := case ending when 'capture' then taken else 0 end;
            if take > 0 then
                e_account := e_account || 'revenue'::text;
                e_lot := e_lot || null::uuid;
                e_amount := e_amount || take;
            end if;
            update credit_holds x
            set state = case ending when 'capture' then 'captured' when 'void' then 'voided' else 'expired' end,
                captured = take, resolved_at = moment
            where x.id = hold;
            account := credit_post(account, t, h.amount - take, -h.amount, 0, e_account, e_lot, e_amount, moment);
            if account.has_budgets and h.amount > take then
                perform credit_budget_use(account, h.store_id, h.actor_user_id, take - h.amount, h.created_at);
            end if;
            -- What came back into a lot that has expired meanwhile expires now.
            account := credit_expire_lots(account, moment);
        end if;
    end if;
    return query
        select k.transaction_id = credit_hold_end.id, x
        from credit_keys k join credit_transactions x on x.id = k.transaction_id
        where k.organization_id = organization and k.key = claimed_key;
end
$$;

-- Money went back to whoever had paid for the lot: takes back up to `wanted` credits out of what is left in it; the rest,
-- which was spent, becomes debt when `may_owe`, and is left alone otherwise.
create function credit_refund(
    organization uuid, id uuid, claimed_key text, hash bytea, lot uuid, wanted bigint, may_owe boolean, actor uuid, why text,
    reference text, moment timestamptz
) returns table (is_new boolean, decided credit_transactions) language plpgsql as $$
declare
    account credit_accounts;
    t credit_transactions;
    house text;
    took bigint;
    owed bigint;
    e_account text[] := '{}';
    e_lot uuid[] := '{}';
    e_amount bigint[] := '{}';
begin
    if credit_claim(organization, claimed_key, hash, id) then
        account := credit_account_lock(organization, moment);
        select least(l.remaining, wanted), case l.kind when 'paid' then 'cash' when 'promotional' then 'promotion' else 'compensation' end
        into strict took, house
        from credit_lots l where l.id = lot and l.organization_id = organization;
        owed := case when may_owe then wanted - took else 0 end;
        t.id := id;
        t.kind := 'refund';
        t.status := 'accepted';
        t.amount := wanted;
        t.key := claimed_key;
        t.request_hash := hash;
        t.actor_user_id := actor;
        t.description := why;
        t.external_ref := reference;
        t.data := jsonb_build_object('lot', lot, 'takenBack', took, 'owed', owed);
        if took + owed = 0 then
            t.status := 'rejected';
            t.reason := 'nothing-left';
            account := credit_post(account, t, 0, 0, 0, '{}', '{}', '{}', moment);
        else
            if took > 0 then
                update credit_lots l
                set remaining = l.remaining - took, returned = l.returned + took, is_open = l.remaining - took + l.held > 0
                where l.id = lot;
                e_account := e_account || 'credits'::text;
                e_lot := e_lot || lot;
                e_amount := e_amount || -took;
            end if;
            if owed > 0 then
                e_account := e_account || 'credits'::text;
                e_lot := e_lot || null::uuid;
                e_amount := e_amount || -owed;
            end if;
            e_account := e_account || house;
            e_lot := e_lot || null::uuid;
            e_amount := e_amount || took + owed;
            account := credit_post(account, t, -took, 0, owed, e_account, e_lot, e_amount, moment);
        end if;
    end if;
    return query
        select k.transaction_id = credit_refund.id, x
        from credit_keys k join credit_transactions x on x.id = k.transaction_id
        where k.organization_id = organization and k.key = claimed_key;
end
$$;

-- A payment is disputed: what is left of its lot is frozen, in a hold of the dispute's. With nothing left, there is no hold.
create function credit_dispute_open(
    organization uuid, id uuid, claimed_key text, hash bytea, lot uuid, disputed bigint, why text, reference text, moment timestamptz
) returns table (is_new boolean, decided credit_transactions) language plpgsql as $$
declare
    account credit_accounts;
    t credit_transactions;
    frozen bigint;
begin
    if credit_claim(organization, claimed_key, hash, id) then
        account := credit_account_lock(organization, moment);
        moment := greatest(moment, account.changed_at);
        select least(l.remaining, disputed) into strict frozen from credit_lots l where l.id = lot and l.organization_id = organization;
        t.id := id;
        t.kind := 'dispute_open';
        t.status := 'accepted';
        t.amount := disputed;
        t.key := claimed_key;
        t.request_hash := hash;
        t.description := why;
        t.external_ref := reference;
        t.data := jsonb_build_object('lot', lot, 'frozen', frozen);
        if frozen > 0 then
            t.hold_id := id;
            insert into credit_holds (id, organization_id, kind, amount, description, expires_at, created_at)
            values (id, organization, 'dispute', frozen, why, 'infinity', moment);
            perform credit_hold_take(organization, id, lot, frozen);
        end if;
        account := credit_post(account, t, -frozen, frozen, 0, '{}', '{}', '{}', moment);
    end if;
    return query
        select k.transaction_id = credit_dispute_open.id, x
        from credit_keys k join credit_transactions x on x.id = k.transaction_id
        where k.organization_id = organization and k.key = claimed_key;
end
$$;

-- A dispute is decided. Won: what was frozen is free again. Lost: what was frozen is gone, and what of the disputed credits
-- was spent becomes debt. `opening` is the transaction that opened it.
create function credit_dispute_close(
    organization uuid, id uuid, claimed_key text, hash bytea, opening uuid, is_won boolean, reference text, moment timestamptz
) returns table (is_new boolean, decided credit_transactions) language plpgsql as $$
declare
    account credit_accounts;
    t credit_transactions;
    o credit_transactions;
    part record;
    frozen bigint := 0;
    owed bigint := 0;
    e_account text[] := '{}';
    e_lot uuid[] := '{}';
    e_amount bigint[] := '{}';
begin
    if credit_claim(organization, claimed_key, hash, id) then
        account := credit_account_lock(organization, moment);
        moment := greatest(moment, account.changed_at);
        select x.* into strict o from credit_transactions x
        where x.id = opening and x.organization_id = organization and x.kind = 'dispute_open';
        t.id := id;
        t.kind := case when is_won then 'dispute_won' else 'dispute_lost' end;
        t.status := 'accepted';
        t.amount := o.amount;
        t.key := claimed_key;
        t.request_hash := hash;
        t.hold_id := o.hold_id;
        t.description := o.description;
        t.external_ref := reference;
        for part in select p.lot_id, p.amount from credit_hold_lots p where p.hold_id = o.hold_id order by p.seq loop
            frozen := frozen + part.amount;
            update credit_lots l
            set held = l.held - part.amount,
                remaining = l.remaining + case when is_won then part.amount else 0 end,
                returned = l.returned + case when is_won then 0 else part.amount end,
                is_open = l.held - part.amount + l.remaining + case when is_won then part.amount else 0 end > 0
            where l.id = part.lot_id;
            if not is_won then
                e_account := e_account || 'credits'::text;
                e_lot := e_lot || part.lot_id;
                e_amount := e_amount || -part.amount;
            end if;
        end loop;
        if not is_won then
            owed := o.amount - frozen;
            if owed > 0 then
                e_account := e_account || 'credits'::text;
                e_lot := e_lot || null::uuid;
                e_amount := e_amount || -owed;
            end if;
            e_account := e_account || 'dispute_loss'::text;
            e_lot := e_lot || null::uuid;
            e_amount := e_amount || o.amount;
        end if;
        update credit_holds x
        set state = case when is_won then 'voided' else 'captured' end, captured = case when is_won then 0 else x.amount end,
            resolved_at = moment
        where x.id = o.hold_id;
        t.data := jsonb_build_object('opening', opening, 'frozen', frozen, 'owed', owed);
        account := credit_post(account, t, case when is_won then frozen else 0 end, -frozen, owed, e_account, e_lot, e_amount, moment);
        account := credit_expire_lots(account, moment);
    end if;
    return query
        select k.transaction_id = credit_dispute_close.id, x
        from credit_keys k join credit_transactions x on x.id = k.transaction_id
        where k.organization_id = organization and k.key = claimed_key;
end
$$;

-- Books what has expired, for those who have nothing else to do with the account.
create function credit_expire(organization uuid, moment timestamptz) returns void language plpgsql as $$
begin
    perform credit_account_lock(organization, moment);
end
$$;
