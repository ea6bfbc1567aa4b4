-- What must hold of every account, as one list of what does not. Tests, a scheduled job and `tenantry credits verify` read
-- it; each row names the first version at which it is seen, where there is one.

-- The chain of one account, computed again: the first version whose hash is not what its row, its entries and the hash
-- before it make. Null when all of it holds.
create function credit_chain_break(organization uuid) returns bigint language plpgsql stable as $$
declare
    previous bytea := '\x0000000000000000000000000000000000000000000000000000000000000000';
    row record;
    expected bigint := 0;
begin
    for row in
        select t, (
            select string_agg(credit_entry_text(e.account, e.lot_id, e.amount), '' order by e.seq)
            from credit_entries e
            where e.organization_id = t.organization_id and e.version = t.version
        ) as entries
        from credit_transactions t
        where t.organization_id = organization
        order by t.version
    loop
        expected := expected + 1;
        if (row.t).version <> expected or (row.t).chain <> credit_digest(previous, row.t, coalesce(row.entries, '')) then
            return expected;
        end if;
        previous := (row.t).chain;
    end loop;
    if previous <> (select a.chain from credit_accounts a where a.organization_id = organization) then
        return expected;
    end if;
    return null;
end
$$;

create function credit_violations(only_organization uuid default null)
returns table (invariant integer, organization_id uuid, version bigint, what text) language sql stable as $$
    with accounts as (
        select * from credit_accounts a where only_organization is null or a.organization_id = only_organization
    ),
    entries as (
        select e.* from credit_entries e join accounts a using (organization_id)
    ),
    transactions as (
        select t.* from credit_transactions t join accounts a using (organization_id)
    ),
    lots as (
        select l.* from credit_lots l join accounts a using (organization_id)
    ),
    holds as (
        select h.* from credit_holds h join accounts a using (organization_id)
    ),
    steps as (
        select t.organization_id, t.version, t.status, t.available_after, t.held_after, t.debt_after, t.created_at,
            t.available_after + t.held_after - t.debt_after as worth,
            lag(t.version, 1, 0::bigint) over w as version_before,
            lag(t.available_after + t.held_after - t.debt_after, 1, 0::bigint) over w as worth_before,
            lag(t.created_at) over w as moment_before,
            coalesce((select sum(e.amount) from credit_entries e
                where e.organization_id = t.organization_id and e.version = t.version and e.account = 'credits'), 0) as moved
        from transactions t
        window w as (partition by t.organization_id order by t.version)
    ),
    in_lots as (
        select l.organization_id, sum(l.remaining) as remaining, sum(l.held) as held from lots l group by l.organization_id
    ),
    in_holds as (
        select p.lot_id, sum(p.amount) as held from credit_hold_lots p join holds h on h.id = p.hold_id
        where h.state = 'open' group by p.lot_id
    )
    -- 1. The entries of a transaction sum to zero.
    select 1, e.organization_id, e.version, 'the entries of the transaction sum to ' || sum(e.amount)
    from entries e group by e.organization_id, e.version having sum(e.amount) <> 0
    union all
    -- 2. An account is worth what its entries say.
    select 2, a.organization_id, a.version,
        'the account is worth ' || (a.available + a.held - a.debt) || ', its entries ' || coalesce(sum(e.amount), 0)
    from accounts a left join entries e on e.organization_id = a.organization_id and e.account = 'credits'
    group by a.organization_id, a.version, a.available, a.held, a.debt
    having a.available + a.held - a.debt <> coalesce(sum(e.amount), 0)
    union all
    -- 3. What is available is in lots, and what is held is in lots and in open holds.
    select 3, a.organization_id, a.version,
        'available ' || a.available || ' and held ' || a.held || ', in lots ' || coalesce(l.remaining, 0) || ' and ' || coalesce(l.held, 0)
    from accounts a left join in_lots l using (organization_id)
    where a.available <> coalesce(l.remaining, 0) or a.held <> coalesce(l.held, 0)
    union all
    select 3, l.organization_id, l.version, 'lot ' || l.id || ' holds ' || l.held || ', its open holds ' || coalesce(h.held, 0)
    from lots l left join in_holds h on h.lot_id = l.id
    where l.held <> coalesce(h.held, 0)
    union all
    select 3, h.organization_id, null, 'hold ' || h.id || ' of ' || h.amount || ' took ' || coalesce(sum(p.amount), 0) || ' out of lots'
    from holds h left join credit_hold_lots p on p.hold_id = h.id
    group by h.organization_id, h.id, h.amount having h.amount <> coalesce(sum(p.amount), 0)
    union all
    -- 4. Versions have no gap, balances move by the entries, moments do not go back, and the account is where they end.
    select 4, s.organization_id, s.version, 'version ' || s.version || ' follows version ' || s.version_before
    from steps s where s.version <> s.version_before + 1
    union all
    select 4, s.organization_id, s.version, 'the balance moves by ' || (s.worth - s.worth_before) || ', the entries by ' || s.moved
    from steps s where s.worth - s.worth_before <> s.moved
    union all
    select 4, s.organization_id, s.version, 'a refusal moved credits' from steps s where s.status = 'rejected' and s.moved <> 0
    union all
    select 4, s.organization_id, s.version, 'it is older than the version before' from steps s where s.created_at < s.moment_before
    union all
    select 4, e.organization_id, e.version, 'the balance of entry ' || e.seq || ' does not follow'
    from (
        select e.organization_id, e.version, e.seq, e.amount, e.balance_after,
            lag(e.balance_after, 1, 0::bigint) over (partition by e.organization_id order by e.version, e.seq) as balance_before
        from entries e where e.account = 'credits'
    ) e where e.balance_after <> e.balance_before + e.amount
    union all
    select 4, a.organization_id, a.version, 'the account differs from its last transaction'
    from accounts a
    left join transactions t on t.organization_id = a.organization_id and t.version = a.version
    where (a.available, a.held, a.debt) is distinct from
            (coalesce(t.available_after, 0), coalesce(t.held_after, 0), coalesce(t.debt_after, 0))
       or a.version <> coalesce((select max(x.version) from credit_transactions x where x.organization_id = a.organization_id), 0)
    union all
    -- 5. The chain holds.
    select 5, a.organization_id, b.version, 'the chain breaks here'
    from accounts a, credit_chain_break(a.organization_id) b (version) where b.version is not null
    union all
    -- 6. A hold is ended once, by at most what was held.
    select 6, h.organization_id, max(t.version), 'hold ' || h.id || ' is ' || h.state || ' and was ended ' || count(t.id) || ' times'
    from holds h
    left join transactions t on t.hold_id = h.id and t.status = 'accepted'
        and t.kind in ('capture', 'void', 'hold_expiry', 'dispute_won', 'dispute_lost')
    group by h.organization_id, h.id, h.state having count(t.id) <> case h.state when 'open' then 0 else 1 end
    union all
    select 6, t.organization_id, t.version, 'hold ' || h.id || ' captured ' || h.captured || ' of ' || h.amount || ', its transaction says ' || t.amount
    from holds h join transactions t on t.hold_id = h.id and t.status = 'accepted' and t.kind = 'capture'
    where h.captured <> t.amount or h.captured > h.amount
    union all
    -- 8. What happened outside has one consequence of a kind here.
    select 8, min(t.organization_id::text)::uuid, min(t.version), t.kind || ' ' || t.external_ref || ' was booked ' || count(*) || ' times'
    from transactions t where t.external_ref is not null and t.status = 'accepted'
    group by t.kind, t.external_ref having count(*) > 1
    union all
    -- 9. A lot is what it was granted as, less what its entries took.
    select 9, l.organization_id, a.version,
        'lot ' || l.id || ' was granted ' || l.granted || ' and has ' || (l.remaining + l.held) || ', its entries leave ' || coalesce(sum(e.amount), 0)
    from lots l join accounts a using (organization_id) left join entries e on e.lot_id = l.id
    group by l.organization_id, a.version, l.id, l.granted, l.remaining, l.held, l.consumed, l.expired, l.returned
    having coalesce(sum(e.amount), 0) <> l.remaining + l.held
        or coalesce(sum(e.amount) filter (where e.amount > 0), 0) <> l.granted
        or l.granted <> l.remaining + l.held + l.consumed + l.expired + l.returned
    union all
    select 9, l.organization_id, l.version, 'lot ' || l.id || ' differs from what was granted'
    from lots l
    left join transactions t on t.organization_id = l.organization_id and t.version = l.version
    where not exists (
        select from jsonb_array_elements(t.data -> 'lots') f
        where f ->> 'id' = l.id::text and f ->> 'kind' = l.kind and (f ->> 'amount')::bigint = l.granted
          and (f ->> 'priority')::smallint = l.priority and (f ->> 'unitCostMinor')::bigint = l.unit_cost_minor
          and (f ->> 'currency') is not distinct from l.currency and (f ->> 'purchase') is not distinct from l.purchase_id::text
          and (f ->> 'expiresAt')::bigint is not distinct from
              case when isfinite(l.expires_at) then (extract(epoch from l.expires_at) * 1000000)::bigint end
    )
    union all
    -- 10. Every decision has its key, and every key its decision.
    select 10, t.organization_id, t.version, 'the key of the transaction is missing or another''s'
    from transactions t
    left join credit_keys k on k.organization_id = t.organization_id and k.key = t.key
    where k.transaction_id is distinct from t.id or k.request_hash is distinct from t.request_hash
    union all
    select 10, k.organization_id, null, 'the key ' || left(k.key, 40) || ' has no decision'
    from credit_keys k join accounts a using (organization_id)
    left join credit_transactions t on t.id = k.transaction_id
    where t.id is null
    order by 2, 3 nulls last, 1
$$;

-- The last hashes of all accounts at a moment, sealed with a key that the database does not have: who changes history, or
-- brings back an older copy, cannot make the seal again.
create table credit_roots (
    id          uuid        not null constraint credit_roots_pkey primary key,
    -- The hash over the heads below, in the order of their organizations.
    root        bytea       not null,
    sealed      bytea       not null,
    accounts    bigint      not null,
    created_at  timestamptz not null
);
create table credit_root_heads (
    root_id          uuid   not null constraint credit_root_heads_root_fk references credit_roots (id) on delete cascade,
    organization_id  uuid   not null,
    version          bigint not null,
    chain            bytea  not null,
    constraint credit_root_heads_pkey primary key (root_id, organization_id)
);
