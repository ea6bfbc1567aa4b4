-- A node that heard nothing for a while reads on in the log of changes. Numbers are given in the order in which changes are
-- made, not in which they are committed, so it reads by transaction: from the oldest that was under way when it last looked.

-- Without one: made before this, and so before anybody looked.
alter table store_changes add column xact xid8;
alter table store_changes alter column xact set default pg_current_xact_id();
create index store_changes_xact_idx on store_changes (xact, seq);

-- As before, and with its time: how long it takes until every node knows is measured.
create or replace function stores_announce_change() returns trigger language plpgsql as $$
declare
    change store_changes;
    payload text;
begin
    insert into store_changes (store_id, route_version, hostnames, at)
    values (
        new.id,
        new.route_version,
        array(select hostname from hostnames where store_id = new.id),
        clock_timestamp()
    )
    returning * into change;
    payload := json_build_object(
        'seq', change.seq, 'storeId', change.store_id, 'routeVersion', change.route_version, 'hostnames', change.hostnames,
        'at', extract(epoch from change.at)
    );
    if octet_length(payload) > 7000 then
        payload := json_build_object('seq', change.seq);
    end if;
    perform pg_notify('tenantry_store_changes', payload);
    return null;
end
$$;
