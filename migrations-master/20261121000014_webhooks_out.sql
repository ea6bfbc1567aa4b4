-- Webhooks out: what organizations are told is sent to the endpoints that they registered.
--
-- An event of the outbox is fanned out once, in the order of `seq`, to one delivery per endpoint; a delivery is attempted
-- until it succeeds or its time is over. Who attempts it holds it by a lease, and names the number of the attempt when it
-- writes down what came of it: of two that think they hold it, one is not heard.

alter table outbox_events add column is_fanned_out boolean not null default false;
create index outbox_events_waiting_idx on outbox_events (seq) where not is_fanned_out;
create index outbox_events_organization_idx on outbox_events (organization_id, seq);

-- Every secret has a version of its own, over all endpoints, so that what is sealed opens for no other endpoint.
create sequence webhook_secret_versions as integer;

create table webhook_endpoints (
    id                       uuid        not null constraint webhook_endpoints_pkey primary key,
    organization_id          uuid        not null constraint webhook_endpoints_organization_fk references organizations (id),
    url                      text        not null,
    description              text,
    -- Which types of events it gets; all when there are none.
    event_types              text[]      not null default '{}',
    -- The secret, sealed for the organization, webhooks and the version.
    sealed                   bytea       not null,
    secret_version           integer     not null,
    -- The secret before it, which signs too until then.
    previous_sealed          bytea,
    previous_secret_version  integer,
    previous_until           timestamptz,
    is_enabled               boolean     not null default true,
    disabled_reason          text,
    -- Since when no attempt has succeeded; null while the last one did.
    failing_since            timestamptz,
    created_at               timestamptz not null,
    updated_at               timestamptz not null,
    constraint webhook_endpoints_url_check check (length(url) between 1 and 2048),
    constraint webhook_endpoints_event_types_check check (cardinality(event_types) <= 50),
    constraint webhook_endpoints_previous_check check (
        (previous_sealed is null) = (previous_secret_version is null) and (previous_sealed is null) = (previous_until is null)
    ),
    constraint webhook_endpoints_disabled_reason_check check (disabled_reason in ('by_owner', 'gone', 'failing')),
    constraint webhook_endpoints_disabled_check check (is_enabled = (disabled_reason is null))
);
create index webhook_endpoints_organization_idx on webhook_endpoints (organization_id, id);

create table webhook_deliveries (
    id               uuid        not null constraint webhook_deliveries_pkey primary key default gen_random_uuid(),
    endpoint_id      uuid        not null constraint webhook_deliveries_endpoint_fk references webhook_endpoints (id) on delete cascade,
    event_id         uuid        not null constraint webhook_deliveries_event_fk references outbox_events (id),
    -- Of the event: the order in which an endpoint is told.
    event_seq        bigint      not null,
    state            text        not null default 'pending',
    -- Whether those behind it wait for it. One that fails again and again lets them pass.
    holds_line       boolean     not null,
    -- All that were ever begun; the number of the last one is what its outcome is written down under.
    attempts         integer     not null default 0,
    -- Those since it was last asked for: what the back-off is counted by.
    tries            integer     not null default 0,
    next_attempt_at  timestamptz not null,
    -- The last attempt is made then.
    give_up_at       timestamptz not null,
    -- Somebody attempts it until then, or is dead.
    leased_until     timestamptz,
    last_status      integer,
    -- A stable code, never a word of what the endpoint said.
    last_error       text,
    last_attempt_at  timestamptz,
    delivered_at     timestamptz,
    created_at       timestamptz not null,
    updated_at       timestamptz not null,
    constraint webhook_deliveries_event_endpoint_key unique (endpoint_id, event_id),
    constraint webhook_deliveries_state_check check (state in ('pending', 'delivered', 'failed', 'abandoned')),
    constraint webhook_deliveries_delivered_check check ((state = 'delivered') = (delivered_at is not null)),
    constraint webhook_deliveries_attempts_check check (attempts >= tries and tries >= 0)
);
create index webhook_deliveries_due_idx on webhook_deliveries (next_attempt_at) where state = 'pending';
create index webhook_deliveries_line_idx on webhook_deliveries (endpoint_id, event_seq) where state = 'pending';
create index webhook_deliveries_list_idx on webhook_deliveries (endpoint_id, event_seq);
create index webhook_deliveries_event_idx on webhook_deliveries (event_id);
create index webhook_deliveries_ended_idx on webhook_deliveries (updated_at) where state <> 'pending';

-- The last attempts of each delivery.
create table webhook_attempts (
    delivery_id  uuid        not null constraint webhook_attempts_delivery_fk references webhook_deliveries (id) on delete cascade,
    number       integer     not null,
    started_at   timestamptz not null,
    duration_ms  integer     not null,
    status       integer,
    error        text,
    constraint webhook_attempts_pkey primary key (delivery_id, number)
);
