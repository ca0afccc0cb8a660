"""Idempotency keys, leases and outbox in PostgreSQL: for any number of processes on any number of hosts.

A handler's own rows commit with its key, on psycopg's connections and on SQLAlchemy's sessions. See docs/postgres.md.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import psycopg

from choreo.errors import ConfigurationError, LeaseLost
from choreo.parked import Waits
from choreo.ports import Carries, Claimed, ClaimRequest, CommitRequest, CommitResult, Finished, Lease
from choreo.record import ProducerRecord, TopicPartition
from choreo.stores.postgres import claims
from choreo.stores.postgres import schema as schemas
from choreo.stores.postgres.arrays import Int8
from choreo.stores.postgres.commit import Settings, Undone, plain
from choreo.stores.postgres.inside import TRANSACTION_TYPES, Inside
from choreo.stores.postgres.instances import InstanceQueries
from choreo.stores.postgres.operated import OperatedPostgres
from choreo.stores.postgres.parked import ParkedQueries
from choreo.stores.postgres.pool import Server, flush
from choreo.stores.postgres.queries import LOCK, Queries
from choreo.stores.postgres.transact import drive
from choreo.stores.postgres.values import Row, emit_of, encode, lease_columns, partition_of, told_columns

PURGED_MAX = 10_000
"""Keys deleted in one transaction by `purge`."""


class PostgresStore(OperatedPostgres):
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
        names = schemas.Names(schema, prefix)
        server = Server(url, connections_max=connections_max, timeout_s=timeout_s, schema=schema)
        # A little less than the client waits, so that it is the server that ends a slow statement, and cleanly.
        limits = {
            "statement_ms": str(max(1, int(timeout_s * 900))),
            "idle_ms": str(max(1, int(transaction_idle_s * 1000))),
        }
        settings = Settings(Queries(names), ParkedQueries(names), limits)
        inside = Inside(server, settings, InstanceQueries(names))
        super().__init__(server, names, settings, inside, timeout_s + transaction_idle_s)
        self._lease_s = lease_s
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

        async def make(connection: psycopg.AsyncConnection[Any]) -> None:
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
        wanted = told_columns(group, topics, ttl_ms) | {"rows_max": PURGED_MAX}
        (rows,) = await self._flush((self._queries.purge, wanted))
        return int(rows[0][0])

    async def run(self, function: Callable[[Any], object]) -> None:
        """Run `function(connection)` on a thread, in a transaction that no two processes run at once.

        Run once more after a deadlock: tables that it makes are locked by handlers that run elsewhere meanwhile.
        """

        def alone() -> None:
            with self._server.thread_connection() as connection, connection.transaction():
                connection.execute(LOCK, {"lock": self._names.lock})
                function(connection)

        await self._server.call(lambda: asyncio.to_thread(alone), repeat=True, timeout_s=self._inside_s)

    async def close(self) -> None:
        """Disconnect."""
        await self._inside.close()
        await self._server.close()
