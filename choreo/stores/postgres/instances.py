"""Instances of processes and their timers in PostgreSQL, within a unit's transaction; what their rows are."""

from collections.abc import Collection, Sequence
from typing import Any

import psycopg

from choreo.instances import Instance, Intervention, Timer, check_key, overtaken
from choreo.stores.postgres.pool import Statement, flush_plain
from choreo.stores.postgres.queries import NOW_MS
from choreo.stores.postgres.schema import Names
from choreo.stores.postgres.values import Row, decode, encode

INSTANCE = "process, key, version, state, data, ended, deferred, correlation_id, revision, updated_ms"
TIMER = "process, key, name, token, due_ms, number, correlation_id, traceparent"
OF_KEY = "WHERE process = %(process)b AND key = %(key)b"

LOAD = f"SELECT {INSTANCE} FROM {{instance}} {OF_KEY}"
# A row of the same key that is not committed yet is waited for; once it is there, nothing is written.
_INSERT = f"""INSERT INTO {{instance}} ({INSTANCE})
    VALUES (%(process)b, %(key)b, %(version)s, %(state)b, %(data)b, %(ended)s, %(deferred)b, %(correlation_id)b, 1,
        {NOW_MS}) ON CONFLICT DO NOTHING RETURNING revision"""
_UPDATE = f"""UPDATE {{instance}} SET version = %(version)s, state = %(state)b, data = %(data)b, ended = %(ended)s,
        deferred = %(deferred)b, correlation_id = %(correlation_id)b, revision = revision + 1, updated_ms = {NOW_MS}
    {OF_KEY} AND revision = %(revision)s RETURNING revision"""
TIMERS = f"SELECT {TIMER} FROM {{timer}} {OF_KEY} ORDER BY name"
_SET = f"""INSERT INTO {{timer}} ({TIMER}, wake_ms)
    VALUES (%(process)b, %(key)b, %(name)b, %(token)b, %(due_ms)s, %(number)s, %(correlation_id)b, %(traceparent)b,
        %(due_ms)s)
    ON CONFLICT (process, key, name) DO UPDATE SET token = excluded.token, due_ms = excluded.due_ms,
        number = excluded.number, correlation_id = excluded.correlation_id, traceparent = excluded.traceparent,
        wake_ms = excluded.wake_ms"""
_CANCEL = f"DELETE FROM {{timer}} {OF_KEY}"
_CANCEL_NAMED = f"{_CANCEL} AND name = ANY(%(names)b::bytea[])"

INTERVENTION = "process, key, what, who, why, correlation_id, at_ms"
_NOTE = f"""INSERT INTO {{intervention}} ({INTERVENTION})
    VALUES (%(process)b, %(key)b, %(what)b, %(who)b, %(why)b, %(correlation_id)b, %(at_ms)s)"""


class InstanceQueries:
    """The statements with a store's own names in them."""

    def __init__(self, names: Names) -> None:
        fill = names.parameterised
        self.now, self.lock = fill(f"SELECT {NOW_MS}"), fill(f"{LOAD} FOR UPDATE")
        self.insert, self.update = fill(_INSERT), fill(_UPDATE)
        self.timers, self.set_timer = fill(TIMERS), fill(_SET)
        self.cancel, self.cancel_named, self.note = fill(_CANCEL), fill(_CANCEL_NAMED), fill(_NOTE)


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
        rows, ((now_ms,),) = self.flush((self._queries.lock, of_key(process, key)), (self._queries.now, {}))
        self._now_ms = int(now_ms)
        return instance_of(rows[0]) if rows else None

    def save(self, instance: Instance) -> None:
        """Store it, unless it was stored since it was loaded, which may show only in the end."""
        columns = of_key(instance.process, instance.key) | {
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
        (rows,) = self.flush((self._queries.timers, of_key(process, key)))
        return list(map(timer_of, rows))

    def set_timer(self, timer: Timer) -> None:
        """Set it, instead of the one of its name."""
        columns = of_key(timer.process, timer.key) | {
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
        statement: Statement = (self._queries.cancel, of_key(process, key))
        if names is not None:
            named = {"names": [encode(name) for name in names]}
            statement = (self._queries.cancel_named, of_key(process, key) | named)
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
                raise overtaken(instance)
        return rows[len(unsent) :]


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


def intervention_of(row: Row) -> Intervention:
    """A row of what was done by hand."""
    process, key, what, who, why, correlation_id, at_ms = row
    return Intervention(
        decode(process), decode(key), decode(what), decode(who), decode(why), decode(correlation_id), at_ms
    )


def of_key(process: str, key: str) -> dict[str, Any]:
    """The parameters of `OF_KEY`."""
    return {"process": encode(process), "key": encode(key)}
