"""What an SQLite store is asked beside the path of an event: by people, and by who wakes timers and keys."""

import math
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from choreo.instances import Count, Instance, Instances, Intervention, Timer
from choreo.parked import Parked
from choreo.ports import Clock, StoreStats
from choreo.sqlite import leases
from choreo.sqlite.database import Database
from choreo.stores.sqlite import instances, reading
from choreo.stores.sqlite import parked as queues
from choreo.stores.sqlite.digests import known

PURGE_INSTANCES_MAX = 2_000
"""Of one call, so that the write lock is held for a fraction of a second."""
_Due = TypeVar("_Due", Timer, Parked)


class OperatedSqlite:
    """`OperatedStore` and `ParkedStore` on a `Database`, and what people are told of its keys.

    Args:
        database: The file.
        clock: Whose time timers are due by.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._db = database
        self._clock = clock
        self.on_timer: list[Callable[[float], None]] = []

    def _now_ms(self) -> int:
        return int(self._clock.now_s() * 1000)

    def _tell(self, due_ms: Sequence[int]) -> None:
        """Timers were set."""
        if due_ms:
            first_s = (min(due_ms) - self._now_ms()) / 1000
            for notify in self.on_timer:
                notify(first_s)

    # ---- keys

    async def stats(self) -> Mapping[str, StoreStats]:
        """Counts by group; reads every key."""
        return await self._db.read(reading.stats)

    async def history(self, correlation_id: str) -> Sequence[dict[str, Any]]:
        """Who handled what of one flow: handler, coordinates, outcome, attempts, duration_s, in order of time."""
        return await self._db.read(lambda db: reading.history(db, correlation_id))

    async def keys(self, group: str, digests: Sequence[bytes]) -> Mapping[bytes, bool]:
        """Of these keys those it has: True is done, False is claimed. A digest is of one group."""
        return await self._db.read(lambda db: known(db, digests))

    # ---- timers and instances

    async def due(self, processes: Collection[str], *, limit: int, claim_s: float) -> tuple[Sequence[Timer], float]:
        """Timers to be sent now."""
        now_ms = self._now_ms()
        return await self._taken(
            now_ms,
            lambda db: instances.next_wake_ms(db, processes),
            lambda db: instances.claim_due(db, processes, limit, now_ms, now_ms + int(claim_s * 1000)),
        )

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

    async def purge_ended(self, process: str, group: str, topics: Sequence[str], retention_ms: int) -> int:
        """Delete instances that have long ended, at most PURGE_INSTANCES_MAX of them."""

        def change(db: sqlite3.Connection) -> int:
            progress_ms = leases.progress(db, group, topics)
            if progress_ms is None:
                return 0
            return instances.purge_ended(db, process, progress_ms - retention_ms, PURGE_INSTANCES_MAX)

        return await self._db.write(change)

    # ---- parked keys

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
