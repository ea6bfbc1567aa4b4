-- Owners let us into a project of theirs at Supabase: their consents, the tokens that come of them, and what is to be revoked.

-- Somebody went to Supabase to consent. What leads back here is known by its hash alone, and good for once.
create table supabase_authorizations (
    id               uuid        not null constraint supabase_authorizations_pkey primary key,
    -- For which store, and who began: only they can end it.
    store_id         uuid        not null constraint supabase_authorizations_store_fk references stores (id),
    user_id          uuid        not null constraint supabase_authorizations_user_fk references users (id),
    status           text        not null default 'pending',
    state_hash       bytea       not null constraint supabase_authorizations_state_key unique,
    -- Sealed for this row (PKCE); gone when it has ended.
    verifier         bytea,
    -- What the browser that consented was given, and what Supabase gives tokens for, sealed for this row.
    completion_hash  bytea       constraint supabase_authorizations_completion_key unique,
    code             bytea,
    expires_at       timestamptz not null,
    created_at       timestamptz not null,
    constraint supabase_authorizations_status_check
        check (status in ('pending', 'consented', 'denied', 'completed', 'failed', 'replaced')),
    constraint supabase_authorizations_consented_check
        check ((status = 'consented') = (completion_hash is not null) and (status = 'consented') = (code is not null)),
    constraint supabase_authorizations_verifier_check check ((status in ('pending', 'consented')) = (verifier is not null))
);
create index supabase_authorizations_store_idx on supabase_authorizations (store_id, user_id);
create index supabase_authorizations_created_idx on supabase_authorizations (created_at);

-- What a store may do at Supabase. The row stays when it is disconnected, so that its versions only rise.
create table supabase_connections (
    store_id           uuid        not null constraint supabase_connections_pkey primary key
                                   constraint supabase_connections_store_fk references stores (id),
    state              text        not null,
    connected_by       uuid        not null constraint supabase_connections_user_fk references users (id),
    connected_at       timestamptz not null,
    -- Access and refresh token, sealed for the store and this version; every refresh makes the next one.
    tokens             bytea,
    token_version      integer     not null,
    access_expires_at  timestamptz not null,
    -- Whoever refreshes them, and until when nobody else does.
    refresh_claim      bigint,
    refresh_claimed_until timestamptz,
    -- The project that the owner chose, and the password of our login in it, sealed for the store and this version.
    project_ref        text,
    project_name       text,
    role_password      bytea,
    role_version       integer     not null default 0,
    updated_at         timestamptz not null,
    constraint supabase_connections_state_check check (state in ('connected', 'reauthorize', 'disconnected')),
    constraint supabase_connections_tokens_check check ((state = 'connected') = (tokens is not null)),
    constraint supabase_connections_project_check
        check ((project_ref is null) = (project_name is null) and (project_ref is null) = (role_password is null)),
    constraint supabase_connections_claim_check check ((refresh_claim is null) = (refresh_claimed_until is null))
);

-- What was disconnected and is to be revoked at Supabase.
create table supabase_revocations (
    id                 bigint      generated always as identity constraint supabase_revocations_pkey primary key,
    store_id           uuid        not null constraint supabase_revocations_store_fk references stores (id),
    -- As they were in the connection.
    tokens             bytea       not null,
    token_version      integer     not null,
    access_expires_at  timestamptz not null,
    -- The project whose login of ours is to be dropped before; none when it stays.
    project_ref        text,
    attempts           integer     not null default 0,
    next_attempt_at    timestamptz not null,
    created_at         timestamptz not null
);
create index supabase_revocations_due_idx on supabase_revocations (next_attempt_at);
create index supabase_revocations_store_idx on supabase_revocations (store_id);
