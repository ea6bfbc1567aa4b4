-- A node that starts looks for the stores that were asked for most in the last days.
create index usage_metrics_day_idx on usage_metrics (day, metric);
