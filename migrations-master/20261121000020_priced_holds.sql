-- A hold may be for so much of a service: then it says how much, and by which price it was worked out, as a spend does.

-- As the function of the same name without quantity and facts, which stays for nodes of the release before.
create function credit_hold(
    organization uuid, id uuid, claimed_key text, hash bytea, store uuid, actor uuid, wanted bigint, wanted_service text,
    wanted_quantity bigint, why text, facts jsonb, until timestamptz, moment timestamptz
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
        t.quantity := wanted_quantity;
        t.description := why;
        t.data := coalesce(facts, '{}') || jsonb_build_object('expiresAt', (extract(epoch from until) * 1000000)::bigint);
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
