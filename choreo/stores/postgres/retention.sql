-- When an instance ended, for retention, which takes the oldest. A change within a state does not touch `ended_ms`, so
-- it stays a HOT update; an index on `updated_ms` would leave none of them one. The table is written anew, once.

ALTER TABLE {instance} ADD COLUMN ended_ms bigint GENERATED ALWAYS AS (CASE WHEN ended THEN updated_ms END) STORED;

CREATE INDEX {instance_ended} ON {instance} (process, ended_ms) WHERE ended_ms IS NOT NULL;
