-- A difference may be noted by a command, whose caller has a shell and no account here; the audit trail says so.
set local lock_timeout = '2s';
alter table recon_notes alter column noted_by drop not null;
