-- A new consent must not meet the revocation of the one before, which would take both away: until then somebody is at it.
alter table supabase_revocations add column claimed_until timestamptz;
