-- no-transaction
-- The order in which lots are spent, in whole: the next one is found without sorting. The index that it replaces is dropped by
-- a later release.
create index concurrently credit_lots_order_idx
    on credit_lots (organization_id, priority, expires_at, credit_lot_rank(kind), unit_cost_minor, id) where is_open;
