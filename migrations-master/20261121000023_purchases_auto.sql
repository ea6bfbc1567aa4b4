-- no-transaction
-- What an organization bought by itself in a month.
create index concurrently purchases_auto_idx on purchases (organization_id, created_at) where is_auto;
