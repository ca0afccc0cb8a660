"""The SQL of the PostgreSQL store. Requests are arrays: their size does not change the number of statements.

Parameters are as `values.py` names them. A statement that finds something not as it must be fails by a cast, as
`InvalidTextRepresentation`: all of it happens in one flush to the server, where nobody could look at a result before
the COMMIT.
"""

from choreo.stores.postgres.schema import Names

BEGIN = b"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
COMMIT = b"COMMIT"
# SET LOCAL, as a statement with parameters: nothing outlives the transaction, as PgBouncer needs it.
LIMITS = (
    b"SELECT set_config('statement_timeout', %(statement_ms)s, true), "
    b"set_config('idle_in_transaction_session_timeout', %(idle_ms)s, true)"
)
# The client does not wait for the disk. What a server that crashes then forgets is as if it had not been done.
FORGETTABLE = LIMITS + b", set_config('synchronous_commit', 'off', true)"
LOCK_TIMEOUT = b"SELECT set_config('lock_timeout', %(lock_ms)s, true)"
LOCK = b"SELECT pg_advisory_xact_lock(%(lock)s)"
CONSTRAINTS = b"SET CONSTRAINTS ALL IMMEDIATE"
# The server's clock, which goes on within a transaction.
NOW_MS = "(extract(epoch FROM clock_timestamp()) * 1000)::int8"

_HELD = """held AS (
    SELECT * FROM unnest(%(groups)b::bytea[], %(topics)b::bytea[], %(partitions)b::int4[], %(epochs)b::int8[])
    WITH ORDINALITY AS h ("group", topic, "partition", epoch, at))"""
_OURS = """(k."group" = h."group" AND k.topic = h.topic AND k."partition" = h."partition" AND k.epoch = h.epoch)"""
_LOST = f"""WITH {_HELD} SELECT h.at FROM held h LEFT JOIN {{lease}} l USING ("group", topic, "partition")
    WHERE l.epoch IS DISTINCT FROM h.epoch"""
_REQUESTED = f"""{_HELD}, lost AS (
    SELECT FROM held h LEFT JOIN {{lease}} l USING ("group", topic, "partition")
    WHERE l.epoch IS DISTINCT FROM h.epoch
), r AS (
    SELECT * FROM unnest(%(numbers)b::int4[], %(leases)b::int4[], %(digests)b::bytea[], %(fingerprints)b::bytea[],
        %(offsets)b::int8[], %(solos)b::bool[])
    AS r (number, lease, digest, fingerprint, "offset", solo))"""
_LIVE = """EXISTS (SELECT FROM {lease} l WHERE l."group" = k."group" AND l.topic = k.topic
    AND l."partition" = k."partition" AND l.epoch = k.epoch AND l.expires_at > clock_timestamp())"""
_JUST_INSERTED = "k.xmin IS NOT DISTINCT FROM pg_current_xact_id_if_assigned()::xid"

# A conflicting insert of another transaction is waited for, in the order of digests; what is there is not touched.
# Returns the digests that were new, or NULL if all were.
_INSERT = f"""WITH {_HELD}, inserted AS (
    INSERT INTO {{key}} (digest, fingerprint, "group", topic, "partition", epoch, handler, "offset", correlation_id,
        flow, timestamp_ms)
    SELECT r.digest, r.fingerprint, h."group", h.topic, h."partition", h.epoch, r.handler, r."offset",
        r.correlation_id, r.flow, r.timestamp_ms
    FROM unnest(%(leases)b::int4[], %(digests)b::bytea[], %(fingerprints)b::bytea[], %(handlers)b::bytea[],
        %(offsets)b::int8[], %(correlation_ids)b::bytea[], %(flows)b::int8[], %(timestamps)b::int8[])
        AS r (lease, digest, fingerprint, handler, "offset", correlation_id, flow, timestamp_ms)
    JOIN held h ON h.at = r.lease
    WHERE NOT EXISTS (SELECT FROM held h LEFT JOIN {{lease}} l USING ("group", topic, "partition")
        WHERE l.epoch IS DISTINCT FROM h.epoch)
    ORDER BY r.digest ON CONFLICT (digest) DO NOTHING RETURNING digest
) SELECT CASE WHEN count(*) < cardinality(%(digests)b::bytea[]) THEN coalesce(array_agg(digest), '{{}}') END
FROM inserted"""

# The rest: keys that were there. A statement of its own, so that its snapshot has what the insert waited for.
# The first death is counted for the whole batch; after it only a delivery about to run alone is.
_TAKE = f"""WITH {_REQUESTED}, seen AS MATERIALIZED (
    SELECT r.*, k.done, k.fingerprint AS kept, k.deliveries, {_OURS} AS ours
    FROM r JOIN held h ON h.at = r.lease JOIN {{key}} k ON k.digest = r.digest WHERE NOT {_JUST_INSERTED}
), taken AS MATERIALIZED (
    SELECT r.number, r.solo, k.digest, k.deliveries, r.fingerprint, h."group", h.topic, h."partition", h.epoch,
        r."offset"
    FROM seen r JOIN held h ON h.at = r.lease JOIN {{key}} k ON k.digest = r.digest
    WHERE NOT r.done AND NOT k.done AND NOT EXISTS (SELECT FROM lost)
        AND CASE WHEN {_OURS} THEN r.solo ELSE NOT {_LIVE} END
    ORDER BY k.digest FOR NO KEY UPDATE OF k
), changed AS (
    UPDATE {{key}} k SET fingerprint = t.fingerprint, "group" = t."group", topic = t.topic,
        "partition" = t."partition", epoch = t.epoch, "offset" = t."offset",
        deliveries = t.deliveries + CASE WHEN t.solo OR t.deliveries = 1 THEN 1 ELSE 0 END
    FROM taken t WHERE k.digest = t.digest RETURNING t.number, t.deliveries + 1 AS deliveries
)
SELECT number, 'fresh' AS verdict, deliveries, NULL::bytea AS fingerprint FROM changed
UNION ALL
SELECT r.number, CASE WHEN r.done AND r.kept = r.fingerprint THEN 'done' WHEN r.done THEN 'conflict'
    WHEN r.ours THEN 'fresh' ELSE 'busy' END, r.deliveries, r.kept
FROM seen r WHERE NOT EXISTS (SELECT FROM taken t WHERE t.number = r.number)"""

_FINISH = f"""WITH {_HELD}, updated AS (
    UPDATE {{key}} k SET done = true, outcome = u.outcome, attempts = u.attempts, duration_s = u.duration_s,
        done_at = clock_timestamp()
    FROM unnest(%(leases)b::int4[], %(digests)b::bytea[], %(outcomes)b::bytea[], %(attempts)b::int4[],
        %(durations)b::float8[]) AS u (lease, digest, outcome, attempts, duration_s) JOIN held h ON h.at = u.lease
    WHERE k.digest = u.digest AND NOT k.done AND {_OURS}
    RETURNING k.digest, k."group", k.topic, k."partition"
), inserted AS (
    INSERT INTO {{outbox}} ("group", topic, "partition", to_topic, to_partition, key, value, headers)
    SELECT d."group", d.topic, d."partition", e.to_topic, e.to_partition, e.key, e.value, e.headers
    FROM unnest(%(emit_digests)b::bytea[], %(to_topics)b::bytea[], %(to_partitions)b::int4[], %(keys)b::bytea[],
        %(values)b::bytea[], %(headers)b::bytea[]) WITH ORDINALITY
        AS e (digest, to_topic, to_partition, key, value, headers, at)
    JOIN updated d ON d.digest = e.digest ORDER BY e.at RETURNING id
), counted AS (SELECT (SELECT count(*) FROM updated) AS updated, ARRAY(SELECT id FROM inserted) AS ids)
SELECT ids, CASE WHEN updated = %(units)s::int8 THEN 0 ELSE
    ('choreo rolls back: of its claims it has only ' || updated::text)::int END FROM counted"""

# KEY SHARE: other commits and renewals (which change no key column) go on, `acquire` with its FOR UPDATE waits.
_FENCE = f"""WITH {_HELD}, newest AS MATERIALIZED (
    SELECT FROM {{lease}} l JOIN held h USING ("group", topic, "partition") WHERE l.epoch = h.epoch
    FOR KEY SHARE OF l
), counted AS (SELECT (SELECT count(*) FROM newest) AS newest, (SELECT count(*) FROM held) AS held)
SELECT CASE WHEN newest = held THEN 0 ELSE
    ('choreo rolls back: of its leases it has only ' || newest::text)::int END FROM counted"""

_STATES = f"""WITH {_HELD} SELECT k.digest, k.done FROM
    unnest(%(leases)b::int4[], %(digests)b::bytea[]) AS u (lease, digest) JOIN held h ON h.at = u.lease
    JOIN {{key}} k ON k.digest = u.digest WHERE {_OURS}"""

_REGISTER = f"""WITH {_HELD} INSERT INTO {{lease}} ("group", topic, "partition", epoch, owner, expires_at)
    SELECT "group", topic, "partition", 0, '', '-infinity' FROM held ORDER BY 1, 2, 3 ON CONFLICT DO NOTHING"""
_ACQUIRE = f"""WITH {_HELD}, locked AS MATERIALIZED (
    SELECT l."group", l.topic, l."partition", l.epoch FROM {{lease}} l
    WHERE (l."group", l.topic, l."partition") IN (SELECT "group", topic, "partition" FROM held)
    ORDER BY 1, 2, 3 FOR UPDATE)
UPDATE {{lease}} l SET epoch = o.epoch + 1, owner = %(owner)b,
    expires_at = clock_timestamp() + make_interval(secs => %(lease_s)s::float8)
FROM locked o WHERE l."group" = o."group" AND l.topic = o.topic AND l."partition" = o."partition"
RETURNING l.topic, l."partition", l.epoch"""
_RENEW = f"""WITH {_HELD} UPDATE {{lease}} l SET progress_ms = coalesce(p.progress_ms, l.progress_ms),
    expires_at = clock_timestamp() + make_interval(secs => %(lease_s)s::float8)
FROM held h JOIN unnest(%(progress_ms)b::int8[]) WITH ORDINALITY AS p (progress_ms, at) USING (at)
WHERE l."group" = h."group" AND l.topic = h.topic AND l."partition" = h."partition" AND l.epoch = h.epoch
RETURNING h.at"""
_FREE = f"""WITH {_HELD} DELETE FROM {{key}} k USING held h,
    unnest(%(leases)b::int4[], %(digests)b::bytea[]) AS u (lease, digest)
    WHERE h.at = u.lease AND k.digest = u.digest AND NOT k.done AND {_OURS}"""
_GIVE_UP = f"""WITH {_HELD} UPDATE {{lease}} l SET owner = '', expires_at = '-infinity' FROM held h
    WHERE l."group" = h."group" AND l.topic = h.topic AND l."partition" = h."partition" AND l.epoch = h.epoch"""
_PENDING = """SELECT id, to_topic, to_partition, key, value, headers FROM {outbox}
    WHERE "group" = %(group)b AND topic = %(topic)b AND "partition" = %(partition)s ORDER BY id"""
_SENT = "DELETE FROM {outbox} WHERE id = ANY(%(ids)b::int8[])"
_GUARD = "INSERT INTO {guard} (version) VALUES (0) RETURNING id"
_UNGUARD = """WITH gone AS (DELETE FROM {guard} WHERE id = %(guard)s RETURNING id)
SELECT CASE WHEN (SELECT count(*) FROM gone) = 1 THEN 0 ELSE ('choreo rolls back: a handler ended the transaction '
    || now()::text)::int END"""

# The group's progress over `topics`, once all of them have told it: what retention counts from.
TOLD = """told AS (
    SELECT min(progress_ms) AS progress_ms, count(DISTINCT topic) AS topics, count(progress_ms) = count(*) AS all_told
    FROM {lease} WHERE "group" = %(group)b AND topic = ANY(%(topics)b::bytea[]))"""
OLD_MS = "(SELECT progress_ms - %(ttl_ms)s::int8 FROM told WHERE all_told AND topics = %(count)s)"
# A claim still in flight may be of an old record; it is kept while its lease lives.
_PURGE = f"""WITH {TOLD}, gone AS (
    DELETE FROM {{key}} WHERE ctid = ANY(ARRAY(
        SELECT k.ctid FROM {{key}} k WHERE k."group" = %(group)b
        AND k.timestamp_ms < {OLD_MS}
        AND (k.done OR NOT {_LIVE}) ORDER BY k.timestamp_ms LIMIT %(rows_max)s FOR UPDATE SKIP LOCKED)) RETURNING 1
) SELECT count(*) FROM gone"""

_SIZE = """SELECT greatest(c.reltuples::float8, 0), pg_relation_size(c.oid) FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %(schema)s AND c.relname = %(table)s"""
# `share` is text put into the query: the method's argument may not be looked up where rows are.
_COUNT = """SELECT "group", count(*) FILTER (WHERE done), count(*) FILTER (WHERE NOT done)
    FROM {key} TABLESAMPLE SYSTEM (%(share)s) GROUP BY "group" """
_OLDEST = """SELECT g."group", (SELECT min(k.timestamp_ms) FROM {key} k WHERE k."group" = g."group"),
    (SELECT CASE WHEN count(progress_ms) = count(*) THEN min(progress_ms) END FROM {lease} l
        WHERE l."group" = g."group"),
    (SELECT count(*) FROM {outbox} o WHERE o."group" = g."group")
FROM (SELECT DISTINCT "group" FROM {lease}) g"""
_HISTORY = """{spans} SELECT handler, topic, "partition", "offset", done, outcome, attempts, deliveries,
    duration_s::float8, coalesce((extract(epoch FROM done_at) * 1000)::int8, 0) AS done_ms
FROM {found} WHERE flow = %(flow)s::int8 AND correlation_id = %(correlation_id)b ORDER BY done_at NULLS FIRST"""
_SPANS = """WITH RECURSIVE span (number) AS (
    (SELECT timestamp_ms >> 16 FROM {key} ORDER BY timestamp_ms >> 16 LIMIT 1)
    UNION ALL SELECT (SELECT k.timestamp_ms >> 16 FROM {key} k WHERE k.timestamp_ms >> 16 > span.number
        ORDER BY k.timestamp_ms >> 16 LIMIT 1) FROM span WHERE number IS NOT NULL)"""
_HAS_SPANS = "SELECT to_regclass(%(spans)s) IS NOT NULL"

_KEYS = "SELECT digest, done FROM {key} WHERE digest = ANY(%(digests)b::bytea[])"


class Queries:
    """The statements with a store's own names in them."""

    def __init__(self, names: Names) -> None:
        def fill(query: str) -> bytes:
            return names.parameterised(query)

        self.lost, self.insert, self.take = fill(_LOST), fill(_INSERT), fill(_TAKE)
        self.finish, self.fence, self.states = fill(_FINISH), fill(_FENCE), fill(_STATES)
        self.register, self.acquire, self.renew = fill(_REGISTER), fill(_ACQUIRE), fill(_RENEW)
        self.free, self.give_up = fill(_FREE), fill(_GIVE_UP)
        self.pending, self.sent = fill(_PENDING), fill(_SENT)
        self.guard, self.unguard = fill(_GUARD), fill(_UNGUARD)
        self.purge, self.size, self.count = fill(_PURGE), fill(_SIZE), fill(_COUNT)
        self.oldest, self.keys = fill(_OLDEST), fill(_KEYS)
        self.has_spans = fill(_HAS_SPANS), {"spans": names.spans}
        found = "span JOIN {key} ON timestamp_ms >> 16 = number"
        self.history = {
            True: fill(_HISTORY.replace("{spans}", _SPANS).replace("{found}", found)),
            False: fill(_HISTORY.replace("{spans}", "").replace("{found}", "{key}")),
        }
        """By whether there is the index of spans, and not an older choreo's of all flows."""
