-- Who exists: people, the organizations that own stores, and the devices that are signed in.

create table users (
    id             uuid        not null constraint users_pkey primary key,
    email          text        not null,
    first_name     text        not null,
    last_name      text        not null,
    password_hash  text        not null,
    -- What a person may do on the platform itself; owning stores needs no platform role.
    platform_role  text,
    is_active      boolean     not null default true,
    created_at     timestamptz not null,
    updated_at     timestamptz not null,
    constraint users_email_key unique (email),
    constraint users_email_lower_check check (email = lower(email)),
    constraint users_platform_role_check check (platform_role in ('admin'))
);

create table organizations (
    id          uuid        not null constraint organizations_pkey primary key,
    name        text        not null,
    created_at  timestamptz not null,
    updated_at  timestamptz not null
);

create table organization_members (
    organization_id  uuid        not null constraint organization_members_organization_fk references organizations (id),
    user_id          uuid        not null constraint organization_members_user_fk references users (id),
    role             text        not null,
    created_at       timestamptz not null,
    constraint organization_members_pkey primary key (organization_id, user_id),
    constraint organization_members_role_check check (role in ('owner', 'admin', 'staff'))
);
create index organization_members_user_idx on organization_members (user_id);

-- One signed-in device: the family of all refresh tokens that descend from one login.
create table sessions (
    id             uuid        not null constraint sessions_pkey primary key,
    user_id        uuid        not null constraint sessions_user_fk references users (id),
    -- The store that this session's tokens name; membership is checked again at every use.
    store_id       uuid,
    created_at     timestamptz not null,
    expires_at     timestamptz not null,
    revoked_at     timestamptz,
    revoke_reason  text,
    constraint sessions_revoke_reason_check check (revoke_reason in ('logout', 'reuse', 'user_disabled')),
    constraint sessions_revoked_check check ((revoked_at is null) = (revoke_reason is null))
);
create index sessions_user_idx on sessions (user_id);
create index sessions_expires_at_idx on sessions (expires_at);

-- Only the hash of a refresh token is known here. A used one stays, so that its second use is recognized.
create table refresh_tokens (
    token_hash  bytea       not null constraint refresh_tokens_pkey primary key,
    session_id  uuid        not null constraint refresh_tokens_session_fk references sessions (id) on delete cascade,
    created_at  timestamptz not null,
    expires_at  timestamptz not null,
    used_at     timestamptz,
    constraint refresh_tokens_hash_check check (octet_length(token_hash) = 32)
);
create index refresh_tokens_session_idx on refresh_tokens (session_id);
create index refresh_tokens_expires_at_idx on refresh_tokens (expires_at);
-- A family has one living token.
create unique index refresh_tokens_living_key on refresh_tokens (session_id) where used_at is null;

-- Answers to requests that carried an Idempotency-Key. The row is claimed in the transaction that does the work.
create table idempotency_keys (
    scope        text        not null,
    key          text        not null,
    fingerprint  bytea       not null,
    response     jsonb,
    created_at   timestamptz not null,
    constraint idempotency_keys_pkey primary key (scope, key),
    constraint idempotency_keys_key_check check (length(key) between 1 and 255)
);
create index idempotency_keys_created_at_idx on idempotency_keys (created_at);

-- Append-only. Never a secret in data.
create table audit_events (
    id               uuid        not null constraint audit_events_pkey primary key,
    at               timestamptz not null,
    action           text        not null,
    actor_kind       text        not null,
    actor_user_id    uuid,
    organization_id  uuid,
    store_id         uuid,
    request_id       uuid,
    data             jsonb       not null default '{}',
    constraint audit_events_actor_kind_check check (actor_kind in ('user', 'cli', 'system'))
);
create index audit_events_store_idx on audit_events (store_id, id) where store_id is not null;
create index audit_events_organization_idx on audit_events (organization_id, id) where organization_id is not null;

create function audit_events_refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'the audit trail is append-only';
end
$$;
create trigger audit_events_append_only before update or delete on audit_events
    for each row execute function audit_events_refuse_change();
