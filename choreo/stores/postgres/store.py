"""Idempotency keys, leases and outbox in PostgreSQL: for any number of processes on any number of hosts.

A handler's own rows commit with its key, on psycopg's connections and on SQLAlchemy's sessions. See docs/postgres.md.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import psycopg

from choreo.errors import ConfigurationError, LeaseLost
from choreo.instances import Count, Instance, Instances, Intervention, Timer
from choreo.parked import Parked, Waits
from choreo.ports import Carries, Claimed, ClaimRequest, CommitRequest, CommitResult, Finished, Lease, StoreStats
from choreo.record import ProducerRecord, TopicPartition
from choreo.stores.postgres import claims, instances, reading
from choreo.stores.postgres import parked as queues
from choreo.stores.postgres import schema as schemas
from choreo.stores.postgres.arrays import Int8
from choreo.stores.postgres.commit import Settings, Undone, plain
from choreo.stores.postgres.inside import TRANSACTION_TYPES, Inside
from choreo.stores.postgres.parked import ParkedQueries
from choreo.stores.postgres.pool import Server, Statement, flush
from choreo.stores.postgres.queries import COMMIT, LOCK, Queries
from choreo.stores.postgres.transact import drive
from choreo.stores.postgres.values import Row, emit_of, encode, lease_columns, partition_of

PURGED_MAX = 10_000
"""Keys deleted in one transaction by `purge`."""
PURGED_INSTANCES_MAX = 2_000
"""Instances deleted in one transaction by `purge_ended`; their rows are larger."""
_Result = TypeVar("_Result")
_Connection = psycopg.AsyncConnection[Any]


class PostgresStore:
    """`IdempotencyStore`, `OperatedStore` and `ParkedStore` on PostgreSQL 13 or newer; PgBouncer in transaction mode.

    Leases are measured by the server's clock; the members' clocks do not matter.

    Args:
        url: `postgresql://user:password@host:port/database`; libpq's parameters may follow.
        schema: The schema choreo's tables are in; several services may share it.
        prefix: Put before the tables' names.
        lease_s: How long a lease lives without being renewed.
        connections_max: Connections at most for the store's own calls and async handlers, and as many again for
            plain handlers and for each kind of SQLAlchemy session, where there are such handlers.
        timeout_s: How long one call may take. One with handlers inside may take `transaction_idle_s` more.
        transaction_idle_s: After so long without a statement the server ends a transaction and frees its locks: the
            longest that a member paused within a handler's commit can hold up the next owner of its partitions.

    Raises:
        ConfigurationError: The URL or a name is nothing PostgreSQL takes.
    """

    name = "postgres"
    carries: frozenset[Carries] = frozenset({"outbox", "rows", "parked"})
    dedupe_scope: Literal["anywhere", "partition"] = "anywhere"
    transaction_types = TRANSACTION_TYPES

    def __init__(
        self,
        url: str,
        *,
        schema: str = "choreo",
        prefix: str = "",
        lease_s: float = 30.0,
        connections_max: int = 8,
        timeout_s: float = 30.0,
        transaction_idle_s: float = 60.0,
    ) -> None:
        if connections_max < 1 or min(lease_s, timeout_s, transaction_idle_s) <= 0:
            raise ConfigurationError("connections_max has to be at least 1, and lease_s and the other times above 0")
        self._names = schemas.Names(schema, prefix)
        self._queries = Queries(self._names)
        self._server = Server(url, connections_max=connections_max, timeout_s=timeout_s, schema=schema)
        self._lease_s = lease_s
        self._inside_s = timeout_s + transaction_idle_s
        # A little less than the client waits, so that it is the server that ends a slow statement, and cleanly.
        limits = {
            "statement_ms": str(max(1, int(timeout_s * 900))),
            "idle_ms": str(max(1, int(transaction_idle_s * 1000))),
        }
        self._settings = Settings(self._queries, ParkedQueries(self._names), limits)
        self._instances = instances.InstanceQueries(self._names)
        self._inside = Inside(self._server, self._settings, self._instances)
        self.on_timer: list[Callable[[float], None]] = []
        self._in_flight = claims.InFlight()
        self.transactions_max = connections_max

    def __repr__(self) -> str:
        return f"PostgresStore({self._server.shown!r}, schema={self._names.schema!r})"

    async def open(self) -> None:
        """Connect. The tables are not looked at: `plan` does."""
        await self._server.open()

    async def plan(self) -> Sequence[str]:
        """The statements that make the tables; none if they are there."""
        return await self._call(lambda connection: schemas.missing(connection, self._names))

    async def apply(self) -> None:
        """Make the tables in one transaction, alone among those who try to."""

        async def make(connection: _Connection) -> None:
            async with connection.transaction():
                await flush(connection, [self._settings.go_on()[0], (LOCK, {"lock": self._names.lock})])
                for statement in await schemas.missing(connection, self._names):
                    await connection.execute(statement.encode())

        await self._call(make)

    async def acquire(self, group: str, partitions: Sequence[TopicPartition], owner: str) -> Sequence[Lease]:
        """Take the partitions; waits for a commit of the former owner that has passed its check."""
        columns = lease_columns(Lease(group, partition, 0, owner) for partition in partitions)
        columns |= {"owner": encode(owner), "lease_s": self._lease_s}
        (_, rows) = await self._flush((self._queries.register, columns), (self._queries.acquire, columns))
        epochs = {partition_of(topic, partition): epoch for topic, partition, epoch in rows}
        return [Lease(group, partition, epochs[partition], owner) for partition in partitions]

    async def renew(
        self, leases: Sequence[Lease], lease_s: float, progress_ms: Mapping[TopicPartition, int] | None = None
    ) -> frozenset[TopicPartition]:
        """Keep the leases; returns those that are lost."""
        told = progress_ms or {}
        columns = lease_columns(leases) | {
            "lease_s": lease_s,
            "progress_ms": [told.get(lease.partition) for lease in leases],
        }
        (rows,) = await self._flush((self._queries.renew, columns))
        kept = {row[0] for row in rows}
        lost = [lease for at, lease in enumerate(leases, 1) if at not in kept]
        self._in_flight.forget(lost)
        return frozenset(lease.partition for lease in lost)

    async def claim(self, leases: Sequence[Lease], requests: Sequence[ClaimRequest]) -> Sequence[Claimed]:
        """Claim in one flush, whatever the number of requests; in two if there are keys that were there before.

        A claim that a crash of the server takes with it was never made: its commit finds none and is refused.
        """
        made = claims.slices(requests)
        self._in_flight.asked(leases, requests)
        inserted = await self._flush(
            *claims.inserting(self._queries, self._settings.parked, leases, requests, made), forgettable=True
        )
        found: list[list[Row]] = []
        if rest := claims.taking(self._queries, leases, made, inserted):
            lost, *found = await self._flush(*rest, forgettable=True)
            if lost:
                lease = leases[lost[0][0] - 1]
                raise LeaseLost(f"a newer owner has {lease.partition} of the group {lease.group}")
        told = claims.answers(requests, made, inserted, found)
        self._in_flight.answered(leases, requests, told)
        return told

    async def commit(self, request: CommitRequest) -> CommitResult:
        """Keys, outbox and handlers' rows in one transaction, fenced by the leases' rows."""
        if not request.transacted:
            result = await self._call(
                lambda connection: drive(connection, plain(self._settings, request)), repeat=False
            )
        else:
            result = await self._commit_inside(request)
        units = [each for each in (*request.finished, *result.transacted) if isinstance(each, Finished)]
        self._tell([each.parking.due_s for each in units if isinstance(each.parking, Waits) and each.parking.due_s])
        self._in_flight.committed(request, result)
        return result

    async def _commit_inside(self, request: CommitRequest) -> CommitResult:
        due_in_s: list[float] = []
        result = await self._server.call(
            lambda: self._inside.commit(request, due_in_s), repeat=False, timeout_s=self._inside_s
        )
        if not isinstance(result, Undone):
            self._tell(due_in_s)
            return result
        lost = result.lost
        rest = await self._call(
            lambda connection: drive(connection, plain(self._settings, request, lost)), repeat=False
        )
        return result.with_rest(request, rest)

    def _tell(self, due_in_s: Sequence[float]) -> None:
        """Timers were set."""
        if due_in_s:
            for notify in self.on_timer:
                notify(min(due_in_s))

    async def pending(self, lease: Lease) -> Sequence[tuple[int, ProducerRecord]]:
        """What was left in the outbox."""
        topic, partition = lease.partition
        wanted = {"group": encode(lease.group), "topic": encode(topic), "partition": partition}
        (rows,) = await self._flush((self._queries.pending, wanted))
        return [emit_of(row) for row in rows]

    async def sent(self, rows: Sequence[int]) -> None:
        """Delete outbox rows that are on the log."""
        if rows:
            await self._flush((self._queries.sent, {"ids": Int8.of(rows)}), forgettable=True)

    async def release(self, leases: Sequence[Lease]) -> None:
        """Give up leases, and claims that were not finished."""
        columns = lease_columns(leases)
        free = columns | self._in_flight.of(leases)
        await self._flush((self._queries.free, free), (self._queries.give_up, columns))
        self._in_flight.forget(leases)

    async def purge(self, group: str, topics: Sequence[str], ttl_ms: int) -> int:
        """Forget up to 10,000 of the group's oldest keys."""
        wanted = _old(group, topics, ttl_ms) | {"rows_max": PURGED_MAX}
        (rows,) = await self._flush((self._queries.purge, wanted))
        return int(rows[0][0])

    async def purge_ended(self, process: str, group: str, topics: Sequence[str], retention_ms: int) -> int:
        """Delete up to 2,000 instances of those that ended first."""
        wanted = _old(group, topics, retention_ms) | {"process": encode(process), "rows_max": PURGED_INSTANCES_MAX}
        (rows,) = await self._flush((self._instances.purge, wanted))
        return int(rows[0][0])

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
        queries, limits = self._queries, self._settings.limits
        return await self._call(lambda connection: reading.keys(connection, queries, limits, digests))

    async def run(self, function: Callable[[Any], object]) -> None:
        """Run `function(connection)` on a thread, in a transaction that no two processes run at once.

        Run once more after a deadlock: tables that it makes are locked by handlers that run elsewhere meanwhile.
        """

        def alone() -> None:
            with self._server.thread_connection() as connection, connection.transaction():
                connection.execute(LOCK, {"lock": self._names.lock})
                function(connection)

        await self._server.call(lambda: asyncio.to_thread(alone), repeat=True, timeout_s=self._inside_s)

    async def due(self, processes: Collection[str], *, limit: int, claim_s: float) -> tuple[Sequence[Timer], float]:
        """Timers to be sent now, but for those that a handler is about to change."""
        wanted = instances.due(self._instances, processes, limit, claim_s)
        # One after the other: who looks with an old snapshot also locks what another has just claimed, and `due_sent`
        # would skip it.
        _, rows, ((next_ms,),) = await self._flush((LOCK, {"lock": self._names.lock ^ 1}), *wanted)
        found = sorted(map(instances.timer_of, rows), key=lambda timer: timer.due_ms)
        return found, math.inf if next_ms is None else max(0, next_ms) / 1000

    async def due_sent(self, timers: Sequence[Timer], *, again_s: float) -> None:
        """They are on the log."""
        if timers:
            await self._flush(instances.sent(self._instances, timers, again_s))

    async def overdue(self, processes: Collection[str]) -> int:
        """Timers to be sent now."""
        (((count,),),) = await self._flush(instances.overdue(self._instances, processes))
        return int(count)

    async def timers_of(self, correlation_id: str) -> Sequence[Timer]:
        """Timers of a flow."""
        (rows,) = await self._flush(instances.of_flow(self._instances, correlation_id))
        return list(map(instances.timer_of, rows))

    async def instances(
        self, process: str, *, state: str | None = None, after: str = "", limit: int = 100
    ) -> Sequence[Instance]:
        """In order of their keys, as bytes of UTF-8."""
        (rows,) = await self._flush(instances.listing(self._instances, process, state, after, limit))
        return list(map(instances.instance_of, rows))

    async def instance(self, process: str, key: str) -> tuple[Instance, Sequence[Timer]] | None:
        """One, with its timers."""
        rows, timers = await self._flush(*instances.looking(self._instances, process, key))
        return (instances.instance_of(rows[0]), list(map(instances.timer_of, timers))) if rows else None

    async def census(self, process: str) -> Sequence[Count]:
        """By version, state and timer; reads every instance of the process."""
        (rows,) = await self._flush(instances.census(self._instances, process))
        return instances.counts(rows)

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
        (rows,) = await self._flush(instances.done_by_hand(self._instances, process, key, correlation_id, since_ms))
        return list(map(instances.intervention_of, rows))

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
        rows, ((next_ms,),) = await self._flush(*queues.due(self._settings.parked, group, limit, claim_s))
        return list(map(queues.parked_of, rows)), math.inf if next_ms is None else max(0, next_ms) / 1000

    async def heads_sent(self, heads: Sequence[Parked], *, again_s: float) -> None:
        """They are on the log."""
        if heads:
            await self._flush(queues.sent(self._settings.parked, heads, again_s))

    async def close(self) -> None:
        """Disconnect."""
        await self._inside.close()
        await self._server.close()

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


def _old(group: str, topics: Sequence[str], ttl_ms: int) -> dict[str, Any]:
    """What is older than `ttl_ms` before the progress of the group."""
    named = sorted({encode(topic) for topic in topics})
    return {"group": encode(group), "topics": named, "count": len(named), "ttl_ms": ttl_ms}
