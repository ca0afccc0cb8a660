-- Tables of the PostgreSQL store, version 1. {names} are filled in quoted; statements end with a semicolon at a line's end.
--
-- Whatever comes from outside (groups, topics, correlation ids) is bytea, UTF-8: text refuses NUL and lone surrogates,
-- and its order depends on the server's locale. To read it: convert_from(correlation_id, 'UTF8').

CREATE TABLE {version} (
    version integer PRIMARY KEY
);

-- One row a key: inserted by a claim, updated once by the commit. No index has a column or a predicate that the commit
-- changes (so none on `done`), hence that update is HOT: no index is touched a second time, and the old row is pruned
-- when its page is next visited, without vacuum. A batch updates most rows of a page before any of the old ones can be
-- pruned, so half a page is left for them: then all updates stay
-- in their page; of batches of 256 at 70% half of them do, at 100% none, and the table is no smaller for it.
-- Vacuum has only what retention deletes: at 10^8 keys the default of 20% would wait for 2 * 10^7 dead rows, 1% is 10^6.
CREATE TABLE {key} (
    digest bytea PRIMARY KEY,
    epoch bigint NOT NULL,
    "offset" bigint NOT NULL,
    flow bigint NOT NULL,
    timestamp_ms bigint NOT NULL,
    done_at timestamptz,
    "partition" integer NOT NULL,
    deliveries integer NOT NULL DEFAULT 1,
    attempts integer NOT NULL DEFAULT 0,
    duration_s real NOT NULL DEFAULT 0,
    done boolean NOT NULL DEFAULT false,
    "group" bytea NOT NULL,
    topic bytea NOT NULL,
    fingerprint bytea NOT NULL,
    handler bytea NOT NULL,
    outcome bytea NOT NULL DEFAULT '',
    correlation_id bytea NOT NULL
) WITH (
    fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 1
);

-- Retention takes the oldest of a group: a range at the left end, whose pages become empty and are used again. Entries
-- of the primary key go at random, and new digests, as random, fill their pages.
CREATE INDEX {key_age} ON {key} ("group", timestamp_ms);

-- `flow` is a hash of the correlation id, which may be longer than an index entry can be. By spans of 65 s of log time, so
-- that the new entries of a batch share a few pages: in an index of all flows, as random as digests, each changed a page
-- of its own, a third of the server's work for an event at 10^7 keys. Older choreos have made that one, called key_flow;
-- a schema that has it keeps it.
CREATE INDEX {key_span} ON {key} ((timestamp_ms >> 16), flow);

-- Updated by every renewal, so there is room for many versions of a row in its page.
CREATE TABLE {lease} (
    "group" bytea,
    topic bytea,
    "partition" integer,
    epoch bigint NOT NULL,
    owner bytea NOT NULL,
    expires_at timestamptz NOT NULL,
    progress_ms bigint,
    PRIMARY KEY ("group", topic, "partition")
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- A queue that is empty most of the time: vacuumed by count, not by share, or its index would grow while it stays empty.
CREATE TABLE {outbox} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    "partition" integer NOT NULL,
    "group" bytea NOT NULL,
    topic bytea NOT NULL,
    to_topic bytea NOT NULL,
    to_partition integer,
    key bytea,
    value bytea,
    headers bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

CREATE INDEX {outbox_input} ON {outbox} ("group", topic, "partition", id);

-- A row of version 0, which does not exist, is here while handlers' own SQL runs: a COMMIT of theirs fails on the
-- deferred constraint, and nothing becomes durable without its keys. The store's own commit deletes the row first.
CREATE TABLE {guard} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    version integer NOT NULL REFERENCES {version} (version) DEFERRABLE INITIALLY DEFERRED
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

INSERT INTO {version} (version) VALUES (1);
