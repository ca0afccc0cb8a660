-- Tables of processes. An older choreo does not know them and is not disturbed. As in schema.sql, text is bytea.

-- `state` is in an index, so a change of state is no HOT update; one that stays in its state is.
CREATE TABLE {instance} (
    process bytea,
    key bytea,
    version integer NOT NULL,
    revision bigint NOT NULL,
    updated_ms bigint NOT NULL,
    ended boolean NOT NULL,
    state bytea NOT NULL,
    correlation_id bytea NOT NULL,
    data bytea NOT NULL,
    deferred bytea NOT NULL,
    PRIMARY KEY (process, key)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);

CREATE INDEX {instance_state} ON {instance} (process, state, key);

-- `wake_ms` is when a timer is next to be sent: when it is due, later once that was done. Few timers are due, however
-- many wait. Rows come and go at the left end of its index, so it is vacuumed by count: dead entries there are read by
-- everybody who asks what is due.
CREATE TABLE {timer} (
    process bytea,
    key bytea,
    name bytea,
    due_ms bigint NOT NULL,
    wake_ms bigint NOT NULL,
    number integer NOT NULL,
    token bytea NOT NULL,
    correlation_id bytea NOT NULL,
    traceparent bytea NOT NULL,
    PRIMARY KEY (process, key, name)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

CREATE INDEX {timer_wake} ON {timer} (process, wake_ms);
