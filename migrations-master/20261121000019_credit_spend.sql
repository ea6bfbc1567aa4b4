-- Spends that cost half as much. What a spend costs beside its rows and its commit is how many statements and expressions
-- the deciding function begins, and what PostgreSQL has to parse for them each time.

-- Nodes are spending meanwhile: rather give up and try again than have all of them wait behind a reader.
set local lock_timeout = '2s';

-- Both call functions that are stable themselves. Declared immutable they could not be inlined, and were parsed and planned
-- at every call.
alter function credit_digest(bytea, credit_transactions, text) stable;
alter function credit_entry_text(text, uuid, bigint) stable;

-- Check constraints of a table are read from their text by every statement that writes to it. Those of the tables that are
-- only added to become a part of what is verified; what moves (accounts, lots, holds, budgets) keeps its own.
alter table credit_keys drop constraint credit_keys_key_check, drop constraint credit_keys_hash_check;
alter table credit_transactions drop constraint credit_transactions_kind_check, drop constraint credit_transactions_status_check,
    drop constraint credit_transactions_reason_check, drop constraint credit_transactions_amount_check;
alter table credit_entries drop constraint credit_entries_account_check, drop constraint credit_entries_amount_check,
    drop constraint credit_entries_balance_check;

-- So are the conditions of triggers; a list of columns costs nothing.
drop trigger credit_lots_fixed on credit_lots;
create trigger credit_lots_fixed before update of id, organization_id, version, kind, purchase_id, priority, unit_cost_minor, currency,
    expires_at, granted, created_at on credit_lots
    for each row execute function credit_ledger_refuse_change();

-- As before, in a language whose functions keep their plans.
create or replace function credit_budget_refusal(
    account credit_accounts, store uuid, actor uuid, amount bigint, moment timestamptz
) returns text language plpgsql stable as $$
begin
    return (
        select case b.subject_kind when 'store' then 'store-budget-exceeded' else 'member-budget-exceeded' end
        from credit_budgets b
        left join credit_budget_months m on m.budget_id = b.id and m.month = date_trunc('month', moment at time zone 'UTC')::date
        where b.organization_id = account.organization_id and b.is_hard
          and ((b.subject_kind = 'store' and b.subject_id = store) or (b.subject_kind = 'member' and b.subject_id = actor))
          and coalesce(m.used, 0) + amount > b.monthly_amount
        order by b.subject_kind desc
        limit 1
    );
end
$$;

-- Decides spends of one account, in their order, under one lock and in one commit; kinds are `spend` or `charge`. Answers
-- what it decided, in no order. What it does not answer had its key decided before, or under the same key in this call:
-- that is to be read by its key, and whether the request was the same is for the caller to compare.
--
-- `credit_spend` did the same and stays for nodes of the release before.
create function credit_spend_many(
    organization uuid, ids uuid[], keys text[], hashes bytea[], kinds text[], stores uuid[], actors uuid[], amounts bigint[],
    services text[], quantities bigint[], descriptions text[], facts jsonb[], moment timestamptz
) returns setof credit_transactions language plpgsql as $$
-- Few and large expressions: each costs anew in every transaction.
declare
    claimed integer;
    -- Which of them are to be decided here; null when all are.
    is_mine boolean[];
    account credit_accounts;
    before bigint;
    lots refcursor;
    -- The lot being spent, as it was, and what is left of it.
    lot credit_lots;
    lot_left bigint := 0;
    need bigint;
    take bigint;
    worth bigint;
    refusal text;
    entries text;
    seq integer;
    t credit_transactions;
    made credit_transactions[] := '{}';
    made_entries credit_entries[] := '{}';
begin
    -- The sum over lots would not notice.
    if (0 < all (amounts) and kinds <@ array['spend', 'charge']) is not true then
        raise exception 'a spend is a positive amount' using errcode = 'check_violation';
    end if;
    -- In the order of the keys: two batches that share some cannot wait for each other.
    insert into credit_keys (organization_id, key, request_hash, transaction_id)
    select organization, u.key, u.hash, u.id from unnest(keys, hashes, ids) u (key, hash, id) order by u.key
    on conflict do nothing;
    get diagnostics claimed = row_count;
    if claimed = 0 then
        return;
    elsif claimed < cardinality(ids) then
        select array_agg(k.transaction_id is not null order by u.at) into is_mine
        from unnest(ids, keys) with ordinality u (id, key, at)
        left join credit_keys k on k.organization_id = organization and k.key = u.key and k.transaction_id = u.id;
    end if;

    select a.* into strict account from credit_accounts a where a.organization_id = organization for no key update;
    moment := greatest(moment, account.changed_at);
    if account.next_expiry_at <= moment then
        account := credit_expire_lots(account, moment);
    end if;
    before := account.available;
    worth := account.available + account.held - account.debt;
    for i in 1 .. cardinality(ids) loop
        continue when claimed < cardinality(ids) and not is_mine[i];
        refusal := null;
        if amounts[i] > account.available then
            refusal := 'insufficient-credits';
        elsif account.has_budgets then
            refusal := credit_budget_refusal(account, stores[i], actors[i], amounts[i], moment);
        end if;
        account.version := account.version + 1;
        entries := '';
        if refusal is null then
            need := amounts[i];
            seq := 0;
            while need > 0 loop
                if lot_left = 0 then
                    if lot.id is not null then
                        update credit_lots l
                        set remaining = 0, consumed = l.consumed + l.remaining, is_open = l.held > 0
                        where l.id = lot.id;
                    end if;
                    if lots is null then
                        open lots for
                            select l.* from credit_lots l
                            where l.organization_id = organization and l.is_open and l.remaining > 0
                            order by l.priority, l.expires_at, credit_lot_rank(l.kind), l.unit_cost_minor, l.id;
                    end if;
                    fetch lots into lot;
                    if not found then
                        raise exception 'the lots of organization % hold less than its account', organization;
                    end if;
                    lot_left := lot.remaining;
                end if;
                take := least(need, lot_left);
                need := need - take;
                lot_left := lot_left - take;
                seq := seq + 1;
                made_entries := array_append(made_entries, row(
                    organization, account.version, seq, 'credits', lot.id, stores[i], -take, worth - amounts[i] + need, moment
                )::credit_entries);
                entries := entries || 'credits:' || lot.id || ':' || -take || ';';
            end loop;
            account.available := account.available - amounts[i];
            worth := worth - amounts[i];
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

    if lot.id is not null then
        close lots;
        update credit_lots l
        set remaining = lot_left, consumed = l.consumed + l.remaining - lot_left, is_open = lot_left + l.held > 0
        where l.id = lot.id;
        insert into credit_entries select m.* from unnest(made_entries) m;
    end if;
    update credit_accounts a
    set available = account.available, version = account.version, chain = account.chain, changed_at = moment
    where a.organization_id = organization;
    if account.low_balance is not null then
        account.changed_at := moment;
        perform credit_tell_low_balance(before, account);
    end if;
    return query insert into credit_transactions select m.* from unnest(made) m returning *;
end
$$;

-- What the constraints above said.
create function credit_row_violations(only_organization uuid default null)
returns table (invariant integer, organization_id uuid, version bigint, what text) language sql stable as $$
    select 4, t.organization_id, t.version, 'no transaction is like this one: ' || t.kind || ' of ' || t.amount || ', ' || t.status
    from credit_transactions t
    where (only_organization is null or t.organization_id = only_organization)
      and (t.amount <= 0 or t.status not in ('accepted', 'rejected') or (t.status = 'rejected') <> (t.reason is not null)
          or t.kind not in ('grant', 'purchase', 'spend', 'charge', 'hold', 'capture', 'void', 'hold_expiry', 'expiry', 'refund',
              'dispute_open', 'dispute_won', 'dispute_lost'))
    union all
    select 10, k.organization_id, t.version, 'no key is like this one: ' || left(k.key, 40)
    from credit_keys k left join credit_transactions t on t.id = k.transaction_id
    where (only_organization is null or k.organization_id = only_organization)
      and (length(k.key) not between 1 and 300 or octet_length(k.request_hash) <> 32)
    union all
    select 4, e.organization_id, e.version, 'no entry is like entry ' || e.seq || ': ' || e.account || ' of ' || e.amount
    from credit_entries e
    where (only_organization is null or e.organization_id = only_organization)
      and (e.amount = 0 or (e.account = 'credits') <> (e.balance_after is not null)
          or e.account not in ('credits', 'revenue', 'cash', 'promotion', 'compensation', 'breakage', 'dispute_loss'))
$$;

alter function credit_violations(uuid) rename to credit_sum_violations;
create function credit_violations(only_organization uuid default null)
returns table (invariant integer, organization_id uuid, version bigint, what text) language sql stable as $$
    select * from credit_sum_violations(only_organization)
    union all
    select * from credit_row_violations(only_organization)
    order by 2, 3 nulls last, 1
$$;
