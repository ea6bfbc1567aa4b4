-- A run that was taken up again and again to no end is given up. Whoever retries or cancels it lets it be taken up anew, while
-- `attempts` itself only grows, since it tells the latest worker from those before it. The default is what runs had before.

alter table provisioning_runs add column attempts_limit integer not null default 50;
