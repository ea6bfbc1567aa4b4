-- What ops look at of payments.

-- What somebody said of a difference between the books when they had looked at it. A difference itself stays as it was found;
-- one that is found again saying the same is the same one, and its note is kept with the first.
create table recon_notes (
    difference_id  uuid        not null constraint recon_notes_pkey primary key
                               constraint recon_notes_difference_fk references recon_differences (id),
    note           text        not null,
    noted_by       uuid        not null constraint recon_notes_user_fk references users (id),
    noted_at       timestamptz not null
);
create trigger recon_notes_append_only before update or delete on recon_notes
    for each row execute function credit_ledger_refuse_change();
create trigger recon_notes_no_truncate before truncate on recon_notes
    for each statement execute function credit_ledger_refuse_change();

-- The same difference, run after run.
create index recon_differences_ref_idx on recon_differences (external_ref, kind, created_at);
create index recon_runs_time_idx on recon_runs (created_at, id);
create index stripe_events_state_idx on stripe_events (state, event_created_at, id);
