-- What was done to instances by hand, in the transaction in which it was done. As in schema.sql, text is bytea.

CREATE TABLE {intervention} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    process bytea NOT NULL,
    key bytea NOT NULL,
    what bytea NOT NULL,
    who bytea NOT NULL,
    why bytea NOT NULL,
    correlation_id bytea NOT NULL,
    at_ms bigint NOT NULL
);

CREATE INDEX {intervention_instance} ON {intervention} (process, key);
-- Correlation ids have any length, and entries of an index have not.
CREATE INDEX {intervention_flow} ON {intervention} (md5(correlation_id));
