"""Idempotency keys, leases and outbox in one SQLite file, safe for several processes of one host.

Beside the embedded log in the same file the emits and the committed offset are part of the same transaction, and
there is no outbox. The handler's own rows are part of it in both cases.
"""

import math
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, TypeVar

from choreo.instances import INSTANCES, Count, Instance, Instances, Intervention, Timer
from choreo.parked import Parked
from choreo.ports import (
    Carries,
    Claimed,
    ClaimRequest,
    Clock,
    CommitRequest,
    CommitResult,
    Lease,
    StoreStats,
)
from choreo.record import ProducerRecord, TopicPartition
from choreo.sqlite import leases, log, schema
from choreo.sqlite.connection import SqliteConnection
from choreo.sqlite.database import Database
from choreo.sqlite.schema import SPAN_ROWS
from choreo.stores.sqlite import instances
from choreo.stores.sqlite import parked as queues
from choreo.stores.sqlite.claim import claim
from choreo.stores.sqlite.commit import OUR_CLAIM, Commit
from choreo.stores.sqlite.digests import Digests, forget, known, sort_in

PURGE_KEYS_MAX = 10_000
PURGE_INSTANCES_MAX = 2_000
"""Of one call, so that the write lock is held for a fraction of a second."""

PAGES_KEPT_KB = 32 * 1024
"""Of the file, in memory of each process, as far as they are read: the index of digests is asked at random."""
# `choreo_key_flow` begins with the span of rows. CROSS JOIN keeps SQLite from turning the join around; with both
# aggregates in one SELECT it would read the whole table.
_HISTORY = f"""WITH RECURSIVE span (number, last) AS (
    SELECT (SELECT MIN(id) FROM choreo_key) / {SPAN_ROWS}, (SELECT MAX(id) FROM choreo_key) / {SPAN_ROWS}
    UNION ALL SELECT number + 1, last FROM span WHERE number < last
) SELECT handler, topic, "partition", offset, done, outcome, attempts, deliveries, duration_s, done_ms
FROM span CROSS JOIN choreo_key k ON k.id / {SPAN_ROWS} = span.number AND k.correlation_id = ? ORDER BY done_ms"""

_Due = TypeVar("_Due", Timer, Parked)


class SqliteStore:
    """`IdempotencyStore`, `OperatedStore` and `ParkedStore` on a `Database`.

    Args:
        database: The file; shared with the embedded transport or a service's own.
        clock: Whose time leases are measured by; all processes of one host share it.
        with_log: The embedded log is in the same file, and emits go straight onto it.
        lease_s: How long a lease lives without being renewed, in seconds.
    """

    dedupe_scope: Literal["anywhere", "partition"] = "anywhere"
    transaction_types = frozenset({"sqlite3.Connection", INSTANCES})
    transactions_max = 1

    def __init__(self, database: Database, clock: Clock, *, with_log: bool, lease_s: float = 30.0) -> None:
        self.name = "sqlite"
        self.carries: frozenset[Carries] = (
            frozenset({"offset", "emits", "rows", "parked"}) if with_log else frozenset({"outbox", "rows", "parked"})
        )
        self._db = database
        self._clock = clock
        self._with_log = with_log
        self._lease_s = lease_s
        self._digests = Digests()
        self.on_timer: list[Callable[[float], None]] = []

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

    def _tell(self, due_ms: Sequence[int]) -> None:
        """Timers were set."""
        if due_ms:
            first_s = (min(due_ms) - self._now_ms()) / 1000
            for notify in self.on_timer:
                notify(first_s)

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

    async def purge_ended(self, process: str, group: str, topics: Sequence[str], retention_ms: int) -> int:
        """Delete instances that have long ended, at most PURGE_INSTANCES_MAX of them."""

        def change(db: sqlite3.Connection) -> int:
            progress_ms = leases.progress(db, group, topics)
            if progress_ms is None:
                return 0
            return instances.purge_ended(db, process, progress_ms - retention_ms, PURGE_INSTANCES_MAX)

        return await self._db.write(change)

    async def stats(self) -> Mapping[str, StoreStats]:
        """Counts by group; reads every key."""

        def query(db: sqlite3.Connection) -> dict[str, StoreStats]:
            found: dict[str, StoreStats] = {}
            unsent = dict(db.execute('SELECT "group", COUNT(*) FROM choreo_outbox GROUP BY "group"').fetchall())
            keys = {
                group: counts
                for group, *counts in db.execute(
                    'SELECT "group", SUM(done), SUM(1 - done), MIN(timestamp_ms) FROM choreo_key GROUP BY "group"'
                )
            }
            groups = {row[0] for row in db.execute('SELECT DISTINCT "group" FROM choreo_lease')}
            for group in sorted(groups | set(keys) | set(unsent)):
                done, claims, oldest_ms = keys.get(group, (0, 0, None))
                progress_ms = leases.progress(db, group, None)
                found[group] = StoreStats(done, claims, unsent.get(group, 0), oldest_ms, progress_ms)
            return found

        return await self._db.read(query)

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

    async def history(self, correlation_id: str) -> Sequence[dict[str, Any]]:
        """Who handled what of one flow: handler, coordinates, outcome, attempts, duration_s, in order of time."""

        def query(db: sqlite3.Connection) -> list[dict[str, Any]]:
            cursor = db.execute(_HISTORY, (correlation_id,))
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

        return await self._db.read(query)

    async def due(self, processes: Collection[str], *, limit: int, claim_s: float) -> tuple[Sequence[Timer], float]:
        """Timers to be sent now."""
        now_ms = self._now_ms()
        return await self._taken(
            now_ms,
            lambda db: instances.next_wake_ms(db, processes),
            lambda db: instances.claim_due(db, processes, limit, now_ms, now_ms + int(claim_s * 1000)),
        )

    async def _taken(
        self,
        now_ms: int,
        next_wake_ms: Callable[[sqlite3.Connection], int | None],
        claim_due: Callable[[sqlite3.Connection], list[_Due]],
    ) -> tuple[list[_Due], float]:
        """What is due, and seconds until more is; the write lock is taken only if something is."""

        def take(db: sqlite3.Connection) -> tuple[list[_Due], int | None]:
            return claim_due(db), next_wake_ms(db)

        found: list[_Due] = []
        wake_ms = await self._db.read(next_wake_ms)
        if wake_ms is not None and wake_ms <= now_ms:
            found, wake_ms = await self._db.write(take)
        return found, math.inf if wake_ms is None else max(0, wake_ms - now_ms) / 1000

    async def due_sent(self, timers: Sequence[Timer], *, again_s: float) -> None:
        """They are on the log."""
        if timers:
            await self._db.write(lambda db: instances.note_sent(db, timers, self._now_ms(), int(again_s * 1000)))

    async def overdue(self, processes: Collection[str]) -> int:
        """Timers to be sent now."""
        return await self._db.read(lambda db: instances.overdue(db, processes, self._now_ms()))

    async def timers_of(self, correlation_id: str) -> Sequence[Timer]:
        """Timers of a flow."""
        return await self._db.read(lambda db: instances.timers_of(db, correlation_id))

    async def instances(
        self, process: str, *, state: str | None = None, after: str = "", limit: int = 100
    ) -> Sequence[Instance]:
        """In order of their keys."""
        return await self._db.read(lambda db: instances.instances(db, process, state, after, limit))

    async def instance(self, process: str, key: str) -> tuple[Instance, Sequence[Timer]] | None:
        """One, with its timers."""

        def query(db: sqlite3.Connection) -> tuple[Instance, Sequence[Timer]] | None:
            found = instances.load(db, process, key)
            return None if found is None else (found, instances.timers(db, process, key))

        return await self._db.read(query)

    async def census(self, process: str) -> Sequence[Count]:
        """By version, state and timer; reads every instance."""
        return await self._db.read(lambda db: instances.census(db, process))

    async def intervene(self, change: Callable[[Instances], Sequence[Intervention]]) -> Sequence[Intervention]:
        """Under the write lock, as every commit."""
        due_ms: list[int] = []

        def changed(db: sqlite3.Connection) -> list[Intervention]:
            now_ms = self._now_ms()
            done = [each._replace(at_ms=now_ms) for each in change(instances.SqliteInstances(db, now_ms, due_ms))]
            instances.note(db, done)
            return done

        done = await self._db.write(changed)
        self._tell(due_ms)
        return done

    async def interventions(
        self, process: str = "", key: str = "", *, correlation_id: str = "", since_ms: int | None = None
    ) -> Sequence[Intervention]:
        """Oldest first."""
        return await self._db.read(lambda db: instances.interventions(db, process, key, correlation_id, since_ms))

    async def parked(self, group: str, *, handler: str = "", key: bytes | None = None) -> Sequence[Parked]:
        """The heads of a group's queues."""
        return await self._db.read(lambda db: queues.heads(db, group, handler, key))

    async def parked_keys(self, group: str) -> int:
        """How many queues there are."""
        return await self._db.read(lambda db: queues.count(db, group))

    async def heads_due(self, group: str, *, limit: int, claim_s: float) -> tuple[Sequence[Parked], float]:
        """Heads to be sent now."""
        now_ms = self._now_ms()
        return await self._taken(
            now_ms,
            lambda db: queues.next_wake_ms(db, group),
            lambda db: queues.claim_due(db, group, limit, now_ms, now_ms + int(claim_s * 1000)),
        )

    async def heads_sent(self, heads: Sequence[Parked], *, again_s: float) -> None:
        """They are on the log."""
        if heads:
            await self._db.write(lambda db: queues.note_sent(db, heads, self._now_ms() + int(again_s * 1000)))

    async def keys(self, group: str, digests: Sequence[bytes]) -> Mapping[bytes, bool]:
        """Of these keys those it has: True is done, False is claimed. A digest is of one group."""
        return await self._db.read(lambda db: known(db, digests))

    async def close(self) -> None:
        """Close the file if nobody else uses it."""
        await self._db.close()

    def _now_ms(self) -> int:
        return int(self._clock.now_s() * 1000)


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
