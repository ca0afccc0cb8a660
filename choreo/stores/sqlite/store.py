"""Idempotency keys, leases and outbox in one SQLite file, safe for several processes of one host.

Beside the embedded log in the same file the emits and the committed offset are part of the same transaction, and
there is no outbox. The handler's own rows are part of it in both cases.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from choreo.instances import INSTANCES
from choreo.ports import Carries, Claimed, ClaimRequest, Clock, CommitRequest, CommitResult, Lease
from choreo.record import ProducerRecord, TopicPartition
from choreo.sqlite import leases, log, schema
from choreo.sqlite.connection import SqliteConnection
from choreo.sqlite.database import Database
from choreo.stores.sqlite.claim import claim
from choreo.stores.sqlite.commit import OUR_CLAIM, Commit
from choreo.stores.sqlite.digests import Digests, forget, sort_in
from choreo.stores.sqlite.operated import OperatedSqlite

PURGE_KEYS_MAX = 10_000
"""Of one call, so that the write lock is held for a fraction of a second."""
PAGES_KEPT_KB = 32 * 1024
"""Of the file, in memory of each process, as far as they are read: the index of digests is asked at random."""


class SqliteStore(OperatedSqlite):
    """`IdempotencyStore`, `OperatedStore` and `ParkedStore` on a `Database`.

    Args:
        database: The file; shared with the embedded transport or a service's own.
        clock: Whose time leases are measured by, and timers are due by; all processes of one host share it.
        with_log: The embedded log is in the same file, and emits go straight onto it.
        lease_s: How long a lease lives without being renewed, in seconds.
    """

    dedupe_scope: Literal["anywhere", "partition"] = "anywhere"
    transaction_types = frozenset({"sqlite3.Connection", INSTANCES})
    transactions_max = 1

    def __init__(self, database: Database, clock: Clock, *, with_log: bool, lease_s: float = 30.0) -> None:
        super().__init__(database, clock)
        self.name = "sqlite"
        self.carries: frozenset[Carries] = (
            frozenset({"offset", "emits", "rows", "parked"}) if with_log else frozenset({"outbox", "rows", "parked"})
        )
        self._with_log = with_log
        self._lease_s = lease_s
        self._digests = Digests()

    async def open(self) -> None:
        """Open the file; a new one gets choreo's tables at once, since nobody else owns its schema."""
        await self._db.open("")
        self._digests = Digests()  # what was seen by another connection says nothing about this one
        await self._db.read(lambda db: db.execute(f"PRAGMA cache_size = -{PAGES_KEPT_KB}").close())
        if not await self._db.read(schema.version):
            await self.apply()
        if await self._db.read(schema.version) == schema.VERSION:
            while await self._db.write(sort_in):  # else all of an older version's file would be read into memory
                pass

    async def plan(self) -> Sequence[str]:
        """What an older file is without."""
        return await self._db.read(lambda db: schema.plan(db, self._db.path))

    async def apply(self) -> None:
        """Bring the file up to this version."""
        await self._db.write(lambda db: schema.apply(db, self._db.path))

    async def acquire(self, group: str, partitions: Sequence[TopicPartition], owner: str) -> Sequence[Lease]:
        """Take the partitions, each with a newer epoch."""
        until_ms = self._now_ms() + int(self._lease_s * 1000)
        return await self._db.write(
            lambda db: [leases.take(db, group, partition, owner, until_ms) for partition in partitions]
        )

    async def renew(
        self, held: Sequence[Lease], lease_s: float, progress_ms: Mapping[TopicPartition, int] | None = None
    ) -> frozenset[TopicPartition]:
        """Keep the leases; returns those that are lost."""
        until_ms, progress = self._now_ms() + int(lease_s * 1000), progress_ms or {}
        return await self._db.write(
            lambda db: frozenset(
                lease.partition
                for lease in held
                if not leases.renew(db, lease, until_ms, progress.get(lease.partition))
            )
        )

    async def claim(self, held: Sequence[Lease], requests: Sequence[ClaimRequest]) -> Sequence[Claimed]:
        """Claim in one transaction."""
        claimed = await self._db.write(lambda db: claim(db, self._digests, held, requests, self._now_ms()))
        if self._digests.full:
            await self._db.write(sort_in)
        return claimed

    async def commit(self, request: CommitRequest) -> CommitResult:
        """Keys, emits or outbox, offsets and handlers' rows in one transaction."""

        def change(db: sqlite3.Connection) -> tuple[CommitResult, list[int]]:
            assert isinstance(db, SqliteConnection)
            commit = Commit(db, self._digests, request, self._with_log, self._now_ms())
            return commit.run(), commit.timers_due_ms

        result, due_ms = await self._db.write(change)
        self._tell(due_ms)
        return result

    async def pending(self, lease: Lease) -> Sequence[tuple[int, ProducerRecord]]:
        """What a former owner left in the outbox."""
        return await self._db.read(lambda db: _outbox(db, lease))

    async def sent(self, rows: Sequence[int]) -> None:
        """Delete outbox rows that are on the log."""
        if rows:
            await self._db.write(
                lambda db: db.executemany("DELETE FROM choreo_outbox WHERE id BETWEEN ? AND ?", _runs(rows))
            )

    async def release(self, held: Sequence[Lease]) -> None:
        """Give up leases, and claims that were not finished."""

        def change(db: sqlite3.Connection) -> None:
            for lease in held:
                gone = db.execute(
                    f"DELETE FROM choreo_key WHERE done = 0 AND {OUR_CLAIM} RETURNING id, digest",
                    (lease.group, *lease.partition, lease.epoch),
                )
                forget(db, gone.fetchall())
                leases.give_up(db, lease)

        await self._db.write(change)

    async def purge(self, group: str, topics: Sequence[str], ttl_ms: int) -> int:
        """Delete keys that are too old for a duplicate of theirs to come, at most PURGE_KEYS_MAX of them."""

        def change(db: sqlite3.Connection) -> int:
            progress_ms = leases.progress(db, group, topics)
            if progress_ms is None:
                return 0
            gone = db.execute(
                'DELETE FROM choreo_key WHERE id IN (SELECT id FROM choreo_key WHERE "group" = ? '
                "AND timestamp_ms < ? AND done = 1 LIMIT ?) RETURNING id, digest",
                (group, progress_ms - ttl_ms, PURGE_KEYS_MAX),
            ).fetchall()
            forget(db, gone)
            return len(gone)

        return await self._db.write(change)

    async def run(self, function: Callable[[Any], object]) -> None:
        """Run `function(connection)` in a transaction."""

        def guarded(db: sqlite3.Connection) -> None:
            assert isinstance(db, SqliteConnection)
            db.lend()  # `executescript` would commit what came before it
            try:
                function(db)
            finally:
                db.take_back()

        await self._db.write(guarded)

    async def close(self) -> None:
        """Close the file if nobody else uses it."""
        await self._db.close()


def _runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of what stands in a row: a commit's rows do, so that one search finds them all."""
    found: list[tuple[int, int]] = []
    for row in sorted(rows):
        if found and row == found[-1][1] + 1:
            found[-1] = found[-1][0], row
        else:
            found.append((row, row))
    return found


def _outbox(db: sqlite3.Connection, lease: Lease) -> list[tuple[int, ProducerRecord]]:
    rows = db.execute(
        'SELECT id, to_topic, key, value, headers FROM choreo_outbox WHERE "group" = ? AND topic = ? '
        'AND "partition" = ? ORDER BY id',
        (lease.group, *lease.partition),
    )
    return [(row[0], ProducerRecord(row[1], row[2], row[3], log.decode_headers(row[4]))) for row in rows]
