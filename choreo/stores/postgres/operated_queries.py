"""The SQL by which instances and timers are woken, looked at and deleted, from outside of any unit's transaction."""

from choreo.instances import COUNT_KEYS_MAX
from choreo.stores.postgres.instances import INSTANCE, INTERVENTION, LOAD, OF_KEY, TIMER, TIMERS
from choreo.stores.postgres.queries import OLD_MS, TOLD
from choreo.stores.postgres.schema import Names

# When the transaction began: an index can be searched by it.
_BEGUN_MS = "(extract(epoch FROM now()) * 1000)::int8"

# A row that is locked is one that a handler is setting anew or taking away.
_DUE = f"""WITH found AS MATERIALIZED (
    SELECT t.process, t.key, t.name FROM unnest(%(processes)b::bytea[]) AS p (process)
    CROSS JOIN LATERAL (SELECT * FROM {{timer}} t WHERE t.process = p.process AND t.wake_ms <= {_BEGUN_MS}
        ORDER BY t.wake_ms LIMIT %(limit)s FOR UPDATE SKIP LOCKED) t ORDER BY t.wake_ms LIMIT %(limit)s
) UPDATE {{timer}} t SET wake_ms = {_BEGUN_MS} + %(claim_ms)s FROM found f
WHERE t.process = f.process AND t.key = f.key AND t.name = f.name
RETURNING {", ".join(f"t.{column}" for column in TIMER.split(", "))}"""
_NEXT = f"""SELECT min(t.wake_ms - {_BEGUN_MS}) FROM unnest(%(processes)b::bytea[]) AS p (process)
    CROSS JOIN LATERAL (SELECT wake_ms FROM {{timer}} t WHERE t.process = p.process ORDER BY t.wake_ms LIMIT 1) t"""
_SENT = f"""WITH sent AS MATERIALIZED (
    SELECT t.process, t.key, t.name FROM unnest(%(processes)b::bytea[], %(keys)b::bytea[], %(names)b::bytea[],
        %(tokens)b::bytea[], %(numbers)b::int4[]) AS s (process, key, name, token, number)
    JOIN {{timer}} t USING (process, key, name) WHERE t.token = s.token AND t.number = s.number
    FOR UPDATE OF t SKIP LOCKED
) UPDATE {{timer}} t SET wake_ms = greatest({_BEGUN_MS} + %(again_ms)s, 2 * {_BEGUN_MS} - t.due_ms) FROM sent s
WHERE t.process = s.process AND t.key = s.key AND t.name = s.name"""
_OVERDUE = f"""SELECT count(*) FROM unnest(%(processes)b::bytea[]) AS p (process)
    JOIN {{timer}} t ON t.process = p.process AND t.wake_ms <= {_BEGUN_MS}"""
_OF_FLOW = f"SELECT {TIMER} FROM {{timer}} WHERE correlation_id = %(correlation_id)b ORDER BY due_ms LIMIT 100"

_LIST = f"SELECT {INSTANCE} FROM {{instance}} WHERE process = %(process)b AND key > %(after)b"
_IN_ORDER = "ORDER BY key LIMIT %(limit)s"
_CENSUS = f"""WITH r AS (
    SELECT version, state, ended, NULL::bytea AS timer, key FROM {{instance}} WHERE process = %(process)b
    UNION ALL SELECT i.version, i.state, i.ended, t.name, t.key FROM {{timer}} t
    JOIN {{instance}} i USING (process, key) WHERE process = %(process)b
), numbered AS (
    SELECT r.*, count(*) OVER (PARTITION BY version, state, ended, timer) AS number,
        row_number() OVER (PARTITION BY version, state, ended, timer ORDER BY key) AS at FROM r
) SELECT version, state, ended, timer, number, key FROM numbered WHERE at <= {COUNT_KEYS_MAX}
ORDER BY version, state, ended, timer NULLS FIRST, at"""
# One that a handler has, or somebody by hand, is locked: it is passed over, and its end is looked at again.
_PURGE = f"""WITH {TOLD}, gone AS (
    DELETE FROM {{instance}} WHERE ctid = ANY(ARRAY(
        SELECT i.ctid FROM {{instance}} i WHERE i.process = %(process)b AND i.ended_ms < {OLD_MS}
        AND NOT EXISTS (SELECT FROM {{timer}} t WHERE t.process = i.process AND t.key = i.key)
        ORDER BY i.ended_ms LIMIT %(rows_max)s FOR UPDATE OF i SKIP LOCKED)) RETURNING 1
) SELECT count(*) FROM gone"""
_DONE = f"SELECT {INTERVENTION} FROM {{intervention}}"
_DONE_OF_FLOW = f"{_DONE} WHERE md5(correlation_id) = md5(%(flow)b) AND correlation_id = %(flow)b ORDER BY id"


class OperatedQueries:
    """The statements with a store's own names in them."""

    def __init__(self, names: Names) -> None:
        fill = names.parameterised
        self.due, self.next, self.sent = fill(_DUE), fill(_NEXT), fill(_SENT)
        self.overdue, self.of_flow = fill(_OVERDUE), fill(_OF_FLOW)
        self.load, self.timers = fill(LOAD), fill(TIMERS)
        self.list, self.list_state = fill(f"{_LIST} {_IN_ORDER}"), fill(f"{_LIST} AND state = %(state)b {_IN_ORDER}")
        self.census, self.purge = fill(_CENSUS), fill(_PURGE)
        self.done, self.done_of_flow = fill(f"{_DONE} {OF_KEY} ORDER BY id"), fill(_DONE_OF_FLOW)
        self.done_since = fill(f"{_DONE} WHERE at_ms >= %(since_ms)s ORDER BY id")
