-- Queues of parked keys. An older choreo does not know them and is not disturbed. As in schema.sql, text is bytea.

-- An event keeps its place in its queue, `seq`, whatever becomes of it there. Who changes a queue has its advisory lock,
-- so that `seq` grows in the order of commits. `wake_ms` is when a record is next to be sent without an order.
CREATE TABLE {parked} (
    seq bigint GENERATED ALWAYS AS IDENTITY,
    queue bytea NOT NULL,
    "row" bytea PRIMARY KEY,
    parked_ms bigint NOT NULL,
    wake_ms bigint,
    attempts integer NOT NULL,
    "group" bytea NOT NULL,
    handler bytea NOT NULL,
    reason bytea NOT NULL,
    detail bytea NOT NULL,
    correlation_id bytea NOT NULL,
    to_topic bytea NOT NULL,
    key bytea,
    value bytea,
    headers bytea NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE UNIQUE INDEX {parked_queue} ON {parked} (queue, seq);
CREATE INDEX {parked_wake} ON {parked} ("group", wake_ms);
