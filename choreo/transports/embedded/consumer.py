"""Reading the embedded log as one member of a group."""

import asyncio
import sqlite3
from collections.abc import Mapping, Sequence

from choreo.errors import TransportError
from choreo.ports import Assignment, Clock, Start
from choreo.record import Record, TopicPartition
from choreo.sqlite import log
from choreo.sqlite.database import Database
from choreo.transports.embedded.membership import Membership

POLL_S, POLL_S_MAX = 0.025, 0.15
"""How often other processes' writes are looked for: the less often the longer there were none."""
RETENTION_CHECK_S = 60.0


class EmbeddedConsumer:
    """One member of a group; fetching is what keeps it alive."""

    def __init__(
        self, database: Database, clock: Clock, group: str, topics: Sequence[str], assignment: Assignment
    ) -> None:
        self._db = database
        self._clock = clock
        self._group = group
        self._topics = tuple(topics)
        self._membership = Membership(database, clock, group, topics, assignment, self._forget)
        self.member = self._membership.member
        self._position: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._drained: set[TopicPartition] = set()
        self._changed = asyncio.Event()
        self._poll_s = POLL_S
        self._next_retention_s = 0.0
        self._turn = 0

    @property
    def joined(self) -> bool:
        """As the port says."""
        return self._membership.joined

    def wake(self) -> None:
        """Something was written: look again."""
        self._changed.set()

    async def fetch(self, *, records_max: int, wait_s: float) -> Sequence[Record]:
        """Records of owned partitions, the partitions taking turns to be first."""
        await self._membership.beat_when_due()
        if self._clock.now_s() >= self._next_retention_s:
            self._next_retention_s = self._clock.now_s() + RETENTION_CHECK_S
            await self._db.write(self._expire)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + wait_s
        while True:
            self._changed.clear()
            records = await self._read(records_max)
            left_s = until_s - loop.time()
            if records:
                self._poll_s = POLL_S
            if records or left_s <= 0:
                return records
            try:
                async with asyncio.timeout(min(left_s, self._poll_s)):
                    await self._changed.wait()
            except TimeoutError:
                self._poll_s = min(self._poll_s * 1.2, POLL_S_MAX)

    async def _read(self, records_max: int) -> list[Record]:
        flowing = [(id_, at) for id_, at in self._position.items() if id_ not in self._paused]
        if not flowing:
            return []
        self._turn = (self._turn + 1) % len(flowing)
        flowing = flowing[self._turn :] + flowing[: self._turn]

        def query(db):  # type: ignore[no-untyped-def]
            found: list[Record] = []
            at_end: set[TopicPartition] = set()
            for id_, at in flowing:
                room = records_max - len(found)
                if room > 0:
                    read = log.read(db, id_, at, room)
                    found += read
                    if len(read) < room:
                        at_end.add(id_)
            return found, at_end

        records: list[Record]
        records, at_end = await self._db.read(query)
        current = dict(flowing)
        # Not what was paused or moved meanwhile: the records read of it are dropped, and must come again.
        self._drained = {id_ for id_ in at_end if id_ not in self._paused and self._position.get(id_) == current[id_]}
        kept = []
        for record in records:
            id_ = TopicPartition(record.topic, record.partition)
            if self._position.get(id_) == current[id_] and id_ not in self._paused:
                kept.append(record)
        for record in kept:
            self._position[TopicPartition(record.topic, record.partition)] = record.offset + 1
        return kept

    async def position(self, partition: TopicPartition, start: Start) -> int:
        """The committed offset, or where `start` points."""
        offset = await self._db.read(lambda db: log.committed(db, self._group, partition))
        first, end = await self._db.read(lambda db: log.bounds(db, partition))
        if offset is not None:
            if not first <= offset <= end:
                raise TransportError(
                    f"{partition}: the group {self._group} stands at {offset}, and the log holds {first} to {end}: "
                    f"records were deleted before they were handled"
                )
            return offset
        if start == "earliest":
            return first
        if start == "latest":
            return end
        since = await self._db.read(lambda db: log.scan(db, [partition.topic], int(start)))
        return next((record.offset for record in since if record.partition == partition.partition), end)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Fetch from `offset` on."""
        self._position[partition] = offset
        self._paused.discard(partition)
        self.wake()

    def drained(self, partition: TopicPartition) -> bool:
        """Whether the last fetch came to the end of it."""
        return partition in self._drained and partition in self._position

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The next offset to be written of each."""
        found = await self._db.read(log.ends)
        return {id_: found.get(id_, 0) for id_ in partitions}

    def pause(self, partition: TopicPartition) -> None:
        """Fetch nothing of it."""
        self._paused.add(partition)
        self._drained.discard(partition)

    def resume(self, partition: TopicPartition) -> None:
        """Fetch of it again."""
        self._paused.discard(partition)
        self.wake()

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit offsets of partitions that are owned."""
        ours = {id_: offset for id_, offset in offsets.items() if id_ in self._membership.owned}

        def change(db: sqlite3.Connection) -> None:
            # As it is now: a member that stood still has lost them, and would set back what the next one committed.
            held = self._membership.held(db)
            log.commit_offsets(db, self._group, {id_: offset for id_, offset in ours.items() if id_ in held})

        await self._db.write(change)

    async def close(self) -> None:
        """Give up everything and leave. The error of who is told of it comes at the end."""
        self._position = {}
        try:
            await self._membership.leave()
        finally:
            if self.wake in self._db.on_write:
                self._db.on_write.remove(self.wake)

    def _expire(self, db: sqlite3.Connection) -> None:
        """Delete what is older than a topic's `retention.ms`; without that setting everything is kept."""
        for spec in log.topics(db).values():
            retention_ms = int(dict(spec.config).get("retention.ms", -1))
            if retention_ms >= 0 and spec.name in self._topics:
                log.delete_before(db, spec.name, int(self._clock.now_s() * 1000) - retention_ms)

    def _forget(self, partitions: Sequence[TopicPartition]) -> None:
        for id_ in partitions:
            self._position.pop(id_, None)
            self._paused.discard(id_)
