"""What a PostgreSQL store is asked beside the path of an event: by people, and by who wakes timers and keys."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import psycopg

from choreo.instances import Count, Instance, Instances, Intervention, Timer
from choreo.parked import Parked
from choreo.ports import StoreStats
from choreo.stores.postgres import parked as queues
from choreo.stores.postgres import reading
from choreo.stores.postgres.commit import Settings
from choreo.stores.postgres.inside import Inside
from choreo.stores.postgres.instances import instance_of, intervention_of, of_key, timer_of
from choreo.stores.postgres.operated_queries import OperatedQueries
from choreo.stores.postgres.pool import Server, Statement, flush
from choreo.stores.postgres.queries import COMMIT, LOCK
from choreo.stores.postgres.schema import Names
from choreo.stores.postgres.values import Row, decode, encode, told_columns

PURGED_INSTANCES_MAX = 2_000
"""Instances deleted in one transaction by `purge_ended`; their rows are larger than those of keys."""
_Result = TypeVar("_Result")
_Connection = psycopg.AsyncConnection[Any]


class OperatedPostgres:
    """`OperatedStore` and `ParkedStore` on PostgreSQL, and what people are told of its keys.

    Args:
        server: Where the tables are.
        names: The tables'.
        settings: Of its transactions.
        inside: Changes instances.
        inside_s: How long a call may take that has somebody else's function inside, in seconds.
    """

    def __init__(self, server: Server, names: Names, settings: Settings, inside: Inside, inside_s: float) -> None:
        self._server = server
        self._names = names
        self._settings = settings
        self._queries = settings.queries
        self._inside = inside
        self._inside_s = inside_s
        self._operated = OperatedQueries(names)
        self.on_timer: list[Callable[[float], None]] = []

    async def _flush(self, *statements: Statement, forgettable: bool = False) -> list[list[Row]]:
        """One transaction in one round trip; once more if the connection was lost, which is no harm."""
        begin = self._settings.begin(forgettable=forgettable)
        wanted = [*begin, *statements, (COMMIT, {})]
        rows = await self._call(lambda connection: flush(connection, wanted))
        return rows[len(begin) : -1]

    async def _call(self, work: Callable[[_Connection], Awaitable[_Result]], *, repeat: bool = True) -> _Result:
        async def on_connection() -> _Result:
            async with self._server.connection() as connection:
                return await work(connection)

        return await self._server.call(on_connection, repeat=repeat)

    def _tell(self, due_in_s: Sequence[float]) -> None:
        """Timers were set."""
        if due_in_s:
            for notify in self.on_timer:
                notify(min(due_in_s))

    # ---- keys

    async def stats(self) -> Mapping[str, StoreStats]:
        """By group; in a table of more than 256 MB `keys` and `claims` are estimates."""
        queries, limits, names = self._queries, self._settings.limits, self._names
        return await self._call(
            lambda connection: reading.stats(connection, queries, limits, names.schema, names.tables["key"])
        )

    async def history(self, correlation_id: str) -> Sequence[dict[str, Any]]:
        """Who handled what of one flow: handler, coordinates, outcome, attempts, duration_s, in order of time."""
        queries, limits = self._queries, self._settings.limits
        return await self._call(lambda connection: reading.history(connection, queries, limits, correlation_id))

    async def keys(self, group: str, digests: Sequence[bytes]) -> Mapping[bytes, bool]:
        """Of these keys those it has: True is done, False is claimed. A digest is of one group."""
        (rows,) = await self._flush((self._queries.keys, {"digests": list(digests)}))
        return {bytes(digest): done for digest, done in rows}

    # ---- timers and instances

    async def due(self, processes: Collection[str], *, limit: int, claim_s: float) -> tuple[Sequence[Timer], float]:
        """Timers to be sent now, but for those that a handler is about to change."""
        named = _names(processes)
        wanted = named | {"limit": limit, "claim_ms": int(claim_s * 1000)}
        # One after the other: who looks with an old snapshot also locks what another has just claimed, and `due_sent`
        # would skip it.
        lock = (LOCK, {"lock": self._names.lock ^ 1})
        _, rows, next_ms = await self._flush(lock, (self._operated.due, wanted), (self._operated.next, named))
        return sorted(map(timer_of, rows), key=lambda timer: timer.due_ms), _seconds(next_ms)

    async def due_sent(self, timers: Sequence[Timer], *, again_s: float) -> None:
        """They are on the log."""
        if not timers:
            return
        ordered = sorted(timers)
        wanted = {
            "processes": [encode(timer.process) for timer in ordered],
            "keys": [encode(timer.key) for timer in ordered],
            "names": [encode(timer.name) for timer in ordered],
            "tokens": [encode(timer.token) for timer in ordered],
            "numbers": [timer.number for timer in ordered],
            "again_ms": int(again_s * 1000),
        }
        await self._flush((self._operated.sent, wanted))

    async def overdue(self, processes: Collection[str]) -> int:
        """Timers to be sent now."""
        (((count,),),) = await self._flush((self._operated.overdue, _names(processes)))
        return int(count)

    async def timers_of(self, correlation_id: str) -> Sequence[Timer]:
        """Timers of a flow."""
        (rows,) = await self._flush((self._operated.of_flow, {"correlation_id": encode(correlation_id)}))
        return list(map(timer_of, rows))

    async def instances(
        self, process: str, *, state: str | None = None, after: str = "", limit: int = 100
    ) -> Sequence[Instance]:
        """In order of their keys, as bytes of UTF-8."""
        query, wanted = self._operated.list, {"process": encode(process), "after": encode(after), "limit": limit}
        if state is not None:
            query, wanted["state"] = self._operated.list_state, encode(state)
        (rows,) = await self._flush((query, wanted))
        return list(map(instance_of, rows))

    async def instance(self, process: str, key: str) -> tuple[Instance, Sequence[Timer]] | None:
        """One, with its timers."""
        wanted = of_key(process, key)
        rows, timers = await self._flush((self._operated.load, wanted), (self._operated.timers, wanted))
        return (instance_of(rows[0]), list(map(timer_of, timers))) if rows else None

    async def census(self, process: str) -> Sequence[Count]:
        """By version, state and timer; reads every instance of the process."""
        (rows,) = await self._flush((self._operated.census, {"process": encode(process)}))
        found: dict[tuple[Any, ...], list[str]] = {}
        for version, state, ended, timer, number, key in rows:
            group = (version, decode(state), ended, None if timer is None else decode(timer), number)
            found.setdefault(group, []).append(decode(key))
        return [Count(*group, tuple(keys)) for group, keys in found.items()]  # type: ignore[call-arg]

    async def intervene(self, change: Callable[[Instances], Sequence[Intervention]]) -> Sequence[Intervention]:
        """With row locks as a handler's; it is the one to give up where each waits for the other."""
        due_in_s: list[float] = []
        work = partial(self._inside.intervene, change, due_in_s)
        done = await self._server.call(lambda: asyncio.to_thread(work), repeat=False, timeout_s=self._inside_s)
        self._tell(due_in_s)
        return done

    async def interventions(
        self, process: str = "", key: str = "", *, correlation_id: str = "", since_ms: int | None = None
    ) -> Sequence[Intervention]:
        """Oldest first."""
        statement: Statement = (self._operated.done, of_key(process, key))
        if since_ms is not None:
            statement = (self._operated.done_since, {"since_ms": since_ms})
        elif correlation_id:
            statement = (self._operated.done_of_flow, {"flow": encode(correlation_id)})
        (rows,) = await self._flush(statement)
        return list(map(intervention_of, rows))

    async def purge_ended(self, process: str, group: str, topics: Sequence[str], retention_ms: int) -> int:
        """Delete up to 2,000 instances of those that ended first."""
        wanted = told_columns(group, topics, retention_ms)
        wanted |= {"process": encode(process), "rows_max": PURGED_INSTANCES_MAX}
        (rows,) = await self._flush((self._operated.purge, wanted))
        return int(rows[0][0])

    # ---- parked keys

    async def parked(self, group: str, *, handler: str = "", key: bytes | None = None) -> Sequence[Parked]:
        """The heads of a group's queues."""
        (rows,) = await self._flush(queues.heads(self._settings.parked, group, handler, key))
        return list(map(queues.parked_of, rows))

    async def parked_keys(self, group: str) -> int:
        """How many queues there are."""
        (((count,),),) = await self._flush(queues.count(self._settings.parked, group))
        return int(count)

    async def heads_due(self, group: str, *, limit: int, claim_s: float) -> tuple[Sequence[Parked], float]:
        """Heads to be sent now, but for those that a commit is about to change."""
        rows, next_ms = await self._flush(*queues.due(self._settings.parked, group, limit, claim_s))
        return list(map(queues.parked_of, rows)), _seconds(next_ms)

    async def heads_sent(self, heads: Sequence[Parked], *, again_s: float) -> None:
        """They are on the log."""
        if heads:
            await self._flush(queues.sent(self._settings.parked, heads, again_s))


def _names(processes: Collection[str]) -> dict[str, Any]:
    return {"processes": [encode(process) for process in processes]}


def _seconds(rows: Sequence[Row]) -> float:
    """Until the next one is to be sent, out of one row of milliseconds or NULL."""
    ((next_ms,),) = rows
    return math.inf if next_ms is None else max(0, next_ms) / 1000
