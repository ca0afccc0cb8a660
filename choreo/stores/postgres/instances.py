"""Instances of processes and their timers in PostgreSQL: within a unit's transaction, and looked at from outside."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import psycopg

from choreo.errors import StoreError
from choreo.instances import COUNT_KEYS_MAX, Count, Instance, Intervention, Timer, check_key
from choreo.stores.postgres.pool import Statement, flush_plain
from choreo.stores.postgres.queries import OLD_MS, TOLD
from choreo.stores.postgres.schema import Names
from choreo.stores.postgres.values import Row, decode, encode

_NOW_MS = "(extract(epoch FROM clock_timestamp()) * 1000)::int8"
# The same, when the transaction began: an index can be searched by it.
_BEGUN_MS = "(extract(epoch FROM now()) * 1000)::int8"
_INSTANCE = "process, key, version, state, data, ended, deferred, correlation_id, revision, updated_ms"
_TIMER = "process, key, name, token, due_ms, number, correlation_id, traceparent"
_OF_KEY = "WHERE process = %(process)b AND key = %(key)b"

_LOAD = f"SELECT {_INSTANCE} FROM {{instance}} {_OF_KEY}"
# A row of the same key that is not committed yet is waited for; once it is there, nothing is written.
_INSERT = f"""INSERT INTO {{instance}} ({_INSTANCE})
    VALUES (%(process)b, %(key)b, %(version)s, %(state)b, %(data)b, %(ended)s, %(deferred)b, %(correlation_id)b, 1,
        {_NOW_MS}) ON CONFLICT DO NOTHING RETURNING revision"""
_UPDATE = f"""UPDATE {{instance}} SET version = %(version)s, state = %(state)b, data = %(data)b, ended = %(ended)s,
        deferred = %(deferred)b, correlation_id = %(correlation_id)b, revision = revision + 1, updated_ms = {_NOW_MS}
    {_OF_KEY} AND revision = %(revision)s RETURNING revision"""
_LIST = f"SELECT {_INSTANCE} FROM {{instance}} WHERE process = %(process)b AND key > %(after)b"
_IN_ORDER = "ORDER BY key LIMIT %(limit)s"

_TIMERS = f"SELECT {_TIMER} FROM {{timer}} {_OF_KEY} ORDER BY name"
_SET = f"""INSERT INTO {{timer}} ({_TIMER}, wake_ms)
    VALUES (%(process)b, %(key)b, %(name)b, %(token)b, %(due_ms)s, %(number)s, %(correlation_id)b, %(traceparent)b,
        %(due_ms)s)
    ON CONFLICT (process, key, name) DO UPDATE SET token = excluded.token, due_ms = excluded.due_ms,
        number = excluded.number, correlation_id = excluded.correlation_id, traceparent = excluded.traceparent,
        wake_ms = excluded.wake_ms"""
_CANCEL = f"DELETE FROM {{timer}} {_OF_KEY}"
_CANCEL_NAMED = f"{_CANCEL} AND name = ANY(%(names)b::bytea[])"

# A row that is locked is one that a handler is setting anew or taking away.
_DUE = f"""WITH found AS MATERIALIZED (
    SELECT t.process, t.key, t.name FROM unnest(%(processes)b::bytea[]) AS p (process)
    CROSS JOIN LATERAL (SELECT * FROM {{timer}} t WHERE t.process = p.process AND t.wake_ms <= {_BEGUN_MS}
        ORDER BY t.wake_ms LIMIT %(limit)s FOR UPDATE SKIP LOCKED) t ORDER BY t.wake_ms LIMIT %(limit)s
) UPDATE {{timer}} t SET wake_ms = {_BEGUN_MS} + %(claim_ms)s FROM found f
WHERE t.process = f.process AND t.key = f.key AND t.name = f.name
RETURNING {", ".join(f"t.{column}" for column in _TIMER.split(", "))}"""
_NEXT = f"""SELECT min(t.wake_ms - {_BEGUN_MS}) FROM unnest(%(processes)b::bytea[]) AS p (process)
    CROSS JOIN LATERAL (SELECT wake_ms FROM {{timer}} t WHERE t.process = p.process ORDER BY t.wake_ms LIMIT 1) t"""
_SENT = f"""WITH sent AS MATERIALIZED (
    SELECT t.process, t.key, t.name FROM unnest(%(processes)b::bytea[], %(keys)b::bytea[], %(names)b::bytea[],
        %(tokens)b::bytea[], %(numbers)b::int4[]) AS s (process, key, name, token, number)
    JOIN {{timer}} t USING (process, key, name) WHERE t.token = s.token AND t.number = s.number
    FOR UPDATE OF t SKIP LOCKED
) UPDATE {{timer}} t SET wake_ms = greatest({_BEGUN_MS} + %(again_ms)s, 2 * {_BEGUN_MS} - t.due_ms) FROM sent s
WHERE t.process = s.process AND t.key = s.key AND t.name = s.name"""

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
_INTERVENTION = "process, key, what, who, why, correlation_id, at_ms"
_NOTE = f"""INSERT INTO {{intervention}} ({_INTERVENTION})
    VALUES (%(process)b, %(key)b, %(what)b, %(who)b, %(why)b, %(correlation_id)b, %(at_ms)s)"""
_DONE = f"SELECT {_INTERVENTION} FROM {{intervention}}"
_DONE_OF_FLOW = f"{_DONE} WHERE md5(correlation_id) = md5(%(flow)b) AND correlation_id = %(flow)b ORDER BY id"
_OVERDUE = f"""SELECT count(*) FROM unnest(%(processes)b::bytea[]) AS p (process)
    JOIN {{timer}} t ON t.process = p.process AND t.wake_ms <= {_BEGUN_MS}"""
_OF_FLOW = f"SELECT {_TIMER} FROM {{timer}} WHERE correlation_id = %(correlation_id)b ORDER BY due_ms LIMIT 100"


class InstanceQueries:
    """The statements with a store's own names in them."""

    def __init__(self, names: Names) -> None:
        fill = names.parameterised
        self.now, self.load, self.lock = fill(f"SELECT {_NOW_MS}"), fill(_LOAD), fill(f"{_LOAD} FOR UPDATE")
        self.insert, self.update = fill(_INSERT), fill(_UPDATE)
        self.list, self.list_state = fill(f"{_LIST} {_IN_ORDER}"), fill(f"{_LIST} AND state = %(state)b {_IN_ORDER}")
        self.timers, self.set_timer = fill(_TIMERS), fill(_SET)
        self.cancel, self.cancel_named = fill(_CANCEL), fill(_CANCEL_NAMED)
        self.due, self.next, self.sent = fill(_DUE), fill(_NEXT), fill(_SENT)
        self.census, self.note = fill(_CENSUS), fill(_NOTE)
        self.done, self.done_of_flow = fill(f"{_DONE} {_OF_KEY} ORDER BY id"), fill(_DONE_OF_FLOW)
        self.done_since = fill(f"{_DONE} WHERE at_ms >= %(since_ms)s ORDER BY id")
        self.overdue, self.of_flow = fill(_OVERDUE), fill(_OF_FLOW)
        self.purge = fill(_PURGE)


class PostgresInstances:
    """`Instances` in a transaction on a plain connection.

    What is stored and set goes to the server with the next read, or in the end with `flush`: a round trip less each.

    Args:
        connection: Where it is open.
        queries: With the store's names.
        due_in_s: Is told in how many seconds each timer that is set is due.
    """

    def __init__(self, connection: psycopg.Connection[Any], queries: InstanceQueries, due_in_s: list[float]) -> None:
        self._connection = connection
        self._queries = queries
        self._due_in_s = due_in_s
        self._now_ms: int | None = None
        self._unsent: list[tuple[Statement, Instance | None]] = []

    @property
    def now_ms(self) -> int:
        """The server's clock, when it was first asked; `load` brings it along."""
        if self._now_ms is None:
            (((now_ms,),),) = self.flush((self._queries.now, {}))
            self._now_ms = int(now_ms)
        return self._now_ms

    def load(self, process: str, key: str) -> Instance | None:
        """The instance; its row is locked."""
        check_key(process, key)
        rows, ((now_ms,),) = self.flush((self._queries.lock, _of(process, key)), (self._queries.now, {}))
        self._now_ms = int(now_ms)
        return instance_of(rows[0]) if rows else None

    def save(self, instance: Instance) -> None:
        """Store it, unless it was stored since it was loaded, which may show only in the end."""
        columns = _of(instance.process, instance.key) | {
            "version": instance.version,
            "state": encode(instance.state),
            "data": instance.data,
            "ended": instance.ended,
            "deferred": instance.deferred,
            "correlation_id": encode(instance.correlation_id),
            "revision": instance.revision,
        }
        query = self._queries.update if instance.revision else self._queries.insert
        self._unsent.append(((query, columns), instance))

    def timers(self, process: str, key: str) -> Sequence[Timer]:
        """Its timers, by name."""
        (rows,) = self.flush((self._queries.timers, _of(process, key)))
        return list(map(timer_of, rows))

    def set_timer(self, timer: Timer) -> None:
        """Set it, instead of the one of its name."""
        columns = _of(timer.process, timer.key) | {
            "name": encode(timer.name),
            "token": encode(timer.token),
            "due_ms": timer.due_ms,
            "number": timer.number,
            "correlation_id": encode(timer.correlation_id),
            "traceparent": encode(timer.traceparent),
        }
        self._due_in_s.append((timer.due_ms - self.now_ms) / 1000)
        self._unsent.append(((self._queries.set_timer, columns), None))

    def cancel_timers(self, process: str, key: str, names: Collection[str] | None = None) -> None:
        """Those of these names, or all."""
        statement: Statement = (self._queries.cancel, _of(process, key))
        if names is not None:
            named = {"names": [encode(name) for name in names]}
            statement = (self._queries.cancel_named, _of(process, key) | named)
        self._unsent.append((statement, None))

    def note(self, done: Intervention) -> None:
        """Keep what was done by hand."""
        columns = {name: encode(text) for name, text in done._asdict().items() if name != "at_ms"}
        self._unsent.append(((self._queries.note, columns | {"at_ms": done.at_ms}), None))

    def flush(self, *reads: Statement) -> list[list[Row]]:
        """Send what is unsent, then read.

        Raises:
            StoreError: An instance was stored by somebody else meanwhile.
        """
        unsent, self._unsent = self._unsent, []
        if not unsent and not reads:
            return []
        rows = flush_plain(self._connection, [*(statement for statement, _ in unsent), *reads])
        for (_, instance), stored in zip(unsent, rows, strict=False):
            if instance is not None and not stored:
                raise StoreError(
                    f"an instance of {instance.process} was stored by somebody else since it was loaded at revision "
                    f"{instance.revision}; its event is tried again"
                )
        return rows[len(unsent) :]


def looking(queries: InstanceQueries, process: str, key: str) -> list[Statement]:
    """One instance, and its timers."""
    return [(queries.load, _of(process, key)), (queries.timers, _of(process, key))]


def listing(queries: InstanceQueries, process: str, state: str | None, after: str, limit: int) -> Statement:
    """Instances in order of their keys, above `after`."""
    wanted = {"process": encode(process), "after": encode(after), "limit": limit}
    if state is None:
        return queries.list, wanted
    return queries.list_state, wanted | {"state": encode(state)}


def census(queries: InstanceQueries, process: str) -> Statement:
    """How many there are by version, state and timer; `counts` reads the answer."""
    return queries.census, {"process": encode(process)}


def counts(rows: Iterable[Row]) -> list[Count]:
    """What the census says."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for version, state, ended, timer, number, key in rows:
        group = (version, decode(state), ended, None if timer is None else decode(timer), number)
        found.setdefault(group, []).append(decode(key))
    return [Count(*group, tuple(keys)) for group, keys in found.items()]  # type: ignore[call-arg]


def done_by_hand(
    queries: InstanceQueries, process: str, key: str, correlation_id: str, since_ms: int | None
) -> Statement:
    """Since a time, or else of one flow, or else of one instance."""
    if since_ms is not None:
        return queries.done_since, {"since_ms": since_ms}
    if correlation_id:
        return queries.done_of_flow, {"flow": encode(correlation_id)}
    return queries.done, _of(process, key)


def intervention_of(row: Row) -> Intervention:
    """A row of what was done by hand."""
    process, key, what, who, why, correlation_id, at_ms = row
    return Intervention(
        decode(process), decode(key), decode(what), decode(who), decode(why), decode(correlation_id), at_ms
    )


def overdue(queries: InstanceQueries, processes: Iterable[str]) -> Statement:
    """How many timers are to be sent now."""
    return queries.overdue, {"processes": [encode(process) for process in processes]}


def of_flow(queries: InstanceQueries, correlation_id: str) -> Statement:
    """Timers of a flow, the next one first."""
    return queries.of_flow, {"correlation_id": encode(correlation_id)}


def due(queries: InstanceQueries, processes: Iterable[str], limit: int, claim_s: float) -> list[Statement]:
    """Timers to be sent now, claimed; and how many milliseconds until the next one is to be."""
    named = {"processes": [encode(process) for process in processes]}
    return [(queries.due, named | {"limit": limit, "claim_ms": int(claim_s * 1000)}), (queries.next, named)]


def sent(queries: InstanceQueries, timers: Sequence[Timer], again_s: float) -> Statement:
    """These need not be sent again for a while."""
    ordered = sorted(timers)
    return queries.sent, {
        "processes": [encode(timer.process) for timer in ordered],
        "keys": [encode(timer.key) for timer in ordered],
        "names": [encode(timer.name) for timer in ordered],
        "tokens": [encode(timer.token) for timer in ordered],
        "numbers": [timer.number for timer in ordered],
        "again_ms": int(again_s * 1000),
    }


def instance_of(row: Row) -> Instance:
    """A row of the instances' table."""
    process, key, version, state, data, ended, deferred, correlation_id, revision, updated_ms = row
    return Instance(
        decode(process),
        decode(key),
        version,
        decode(state),
        bytes(data),
        ended,
        bytes(deferred),
        decode(correlation_id),
        revision,
        updated_ms,
    )


def timer_of(row: Row) -> Timer:
    """A row of the timers' table."""
    process, key, name, token, due_ms, number, correlation_id, traceparent = row
    return Timer(
        decode(process),
        decode(key),
        decode(name),
        decode(token),
        due_ms,
        number,
        decode(correlation_id),
        decode(traceparent),
    )


def _of(process: str, key: str) -> dict[str, Any]:
    return {"process": encode(process), "key": encode(key)}
