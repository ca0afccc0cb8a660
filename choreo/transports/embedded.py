"""The embedded log: topics, consumer groups and offsets in one SQLite file, for one host and no broker.

Members of a group are processes, or several in one. There is no rebalance protocol: in one transaction each member
looks at who is alive and who owns what and takes what is free; what it has above its share it gives up. That decides
who reads. Who may commit is decided by the lease's epoch, inside the commit.
"""

import asyncio
import sqlite3
import uuid
from collections.abc import Awaitable, Collection, Mapping, Sequence

from choreo.errors import TransportError
from choreo.ports import Assignment, Clock, Consumer, Peer, Start, TopicSpec
from choreo.record import ProducerRecord, Record, TopicPartition
from choreo.sqlite import log
from choreo.sqlite.database import Database

HEARTBEAT_S = 1.0
MEMBER_S = 4.0
"""A member that has not been heard of for so long is dead; a process killed is replaced after as much."""
POLL_S, POLL_S_MAX = 0.025, 0.15
"""How often other processes' writes are looked for: the less often the longer there were none."""
RETENTION_CHECK_S = 60.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS choreo_owner (
    "group" TEXT, topic TEXT, "partition" INTEGER, member TEXT NOT NULL, PRIMARY KEY ("group", topic, "partition")
) WITHOUT ROWID;
"""
"""Which member reads a partition. Not the lease: that is a store's, whose owner is no member and may be elsewhere."""


class EmbeddedTransport:
    """`Transport` on a `Database`."""

    name = "embedded"
    system = "choreo"
    peer = Peer()

    def __init__(self, database: Database, clock: Clock) -> None:
        self._db = database
        self._clock = clock

    async def open(self) -> None:
        """Open the file and create the log's tables."""
        await self._db.open(log.SCHEMA + SCHEMA)

    async def consumer(self, group: str, topics: Sequence[str], assignment: Assignment) -> Consumer:
        """Join a group."""
        member = EmbeddedConsumer(self._db, self._clock, group, topics, assignment)
        self._db.on_write.append(member.wake)
        return member

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        """Append in one transaction."""
        now_ms = int(self._clock.now_s() * 1000)
        await self._db.write(lambda db: log.append(db, records, now_ms))

    async def topics(self, names: Collection[str] | None = None) -> Mapping[str, TopicSpec]:
        """The topics that exist."""
        found = await self._db.read(log.topics)
        return found if names is None else {name: spec for name, spec in found.items() if name in names}

    async def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        """Create those that are missing."""
        await self._db.write(lambda db: log.create_topics(db, topics))

    async def widen(self, partitions: Mapping[str, int]) -> None:
        """Add partitions; members take them up at their next heartbeat."""
        await self._db.write(lambda db: log.widen(db, partitions))

    async def scan(self, topics: Sequence[str], *, since_ms: int, key: bytes | None = None) -> Sequence[Record]:
        """As the port says."""
        return await self._db.read(lambda db: log.scan(db, topics, since_ms, key=key))

    async def unread(self) -> int:
        """Records not yet finished by some group, over all groups."""
        return await self._db.read(log.unread)

    async def ends(self) -> Mapping[TopicPartition, int]:
        """The next offset to be written, of every partition."""
        return await self._db.read(log.ends)

    async def delete_before(self, topic: str, before_ms: int) -> int:
        """Retention: delete records older than `before_ms`, whole prefixes of partitions; returns how many."""
        return await self._db.write(lambda db: log.delete_before(db, topic, before_ms))

    async def close(self) -> None:
        """Close the file if nobody else uses it."""
        await self._db.close()


class EmbeddedConsumer:
    """One member of a group; fetching is what keeps it alive."""

    def __init__(
        self, database: Database, clock: Clock, group: str, topics: Sequence[str], assignment: Assignment
    ) -> None:
        self.member = uuid.uuid4().hex
        self._db = database
        self._clock = clock
        self._group = group
        self._topics = tuple(topics)
        self._assignment = assignment
        self._owned: list[TopicPartition] = []
        self._position: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._drained: set[TopicPartition] = set()
        self.joined = False
        self._changed = asyncio.Event()
        self._next_heartbeat_s = 0.0
        self._poll_s = POLL_S
        self._next_retention_s = 0.0
        self._turn = 0

    def wake(self) -> None:
        """Something was written: look again."""
        self._changed.set()

    async def fetch(self, *, records_max: int, wait_s: float) -> Sequence[Record]:
        """Records of owned partitions, the partitions taking turns to be first."""
        if self._clock.now_s() >= self._next_heartbeat_s:
            self._next_heartbeat_s = self._clock.now_s() + HEARTBEAT_S
            await self._balance()
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
        ours = {id_: offset for id_, offset in offsets.items() if id_ in self._owned}

        def change(db: sqlite3.Connection) -> None:
            # As it is now: a member that stood still has lost them, and would set back what the next one committed.
            found = db.execute(
                'SELECT topic, "partition", member FROM choreo_owner WHERE "group" = ?', (self._group,)
            )
            held = {TopicPartition(topic, number) for topic, number, member in found if member == self.member}
            log.commit_offsets(db, self._group, {id_: offset for id_, offset in ours.items() if id_ in held})

        await self._db.write(change)

    async def close(self) -> None:
        """Give up everything and leave."""
        owned, self._owned, self._position = self._owned, [], {}
        if owned:
            await self._alive(self._assignment.revoked(owned, lost=False))
        await self._db.write(self._leave)
        if self.wake in self._db.on_write:
            self._db.on_write.remove(self.wake)

    def _expire(self, db: sqlite3.Connection) -> None:
        """Delete what is older than a topic's `retention.ms`; without that setting everything is kept."""
        for spec in log.topics(db).values():
            retention_ms = int(dict(spec.config).get("retention.ms", -1))
            if retention_ms >= 0 and spec.name in self._topics:
                log.delete_before(db, spec.name, int(self._clock.now_s() * 1000) - retention_ms)

    # ---- membership

    async def _balance(self) -> None:
        now_ms = int(self._clock.now_s() * 1000)
        held = tuple(self._owned)
        owners, taken, share = await self._db.write(lambda db: self._heartbeat(db, held, now_ms))
        self.joined = True
        lost = [id_ for id_ in held if owners.get(id_) != self.member]
        if lost:
            self._forget(lost)
            await self._alive(self._assignment.revoked(lost, lost=True))
        surplus = self._owned[share:]
        if surplus:
            self._forget(surplus)
            await self._alive(self._assignment.revoked(surplus, lost=False))
            await self._db.write(lambda db: self._give_back(db, surplus))
        if taken:
            self._owned += taken
            await self._alive(self._assignment.assigned(taken))

    async def _alive(self, telling: Awaitable[None]) -> None:
        """Await what may take as long as a drain, and go on saying that we live."""
        beating = asyncio.create_task(self._beat())
        try:
            await telling
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            until_ms = int((self._clock.now_s() + MEMBER_S) * 1000)
            row = (until_ms, self._group, self.member)
            await self._db.write(
                lambda db, row=row: db.execute(  # type: ignore[misc]
                    'UPDATE choreo_member SET expires_ms = ? WHERE "group" = ? AND member = ?', row
                )
            )

    def _heartbeat(
        self, db: sqlite3.Connection, held: Sequence[TopicPartition], now_ms: int
    ) -> tuple[dict[TopicPartition, str], list[TopicPartition], int]:
        """Say that we live and take what is free, up to our share; returns all owners, what was taken, the share."""
        db.execute('DELETE FROM choreo_member WHERE "group" = ? AND expires_ms <= ?', (self._group, now_ms))
        db.execute(
            "INSERT OR REPLACE INTO choreo_member VALUES (?, ?, ?)",
            (self._group, self.member, now_ms + int(MEMBER_S * 1000)),
        )
        rows = db.execute('SELECT member FROM choreo_member WHERE "group" = ? ORDER BY member', (self._group,))
        members = [row[0] for row in rows]
        found = db.execute('SELECT topic, "partition", member FROM choreo_owner WHERE "group" = ?', (self._group,))
        owners = {TopicPartition(topic, partition): member for topic, partition, member in found}
        # Ours but not held: taken, or given up, in a fetch that was cancelled.
        owners = {
            id_: member
            for id_, member in owners.items()
            if (id_ in held if member == self.member else member in members)
        }
        partitions = self._partitions(db)
        share, more = divmod(len(partitions), len(members))
        share += members.index(self.member) < more
        mine = sum(member == self.member for member in owners.values())
        taken = [id_ for id_ in partitions if id_ not in owners][: max(0, share - mine)]
        owners.update(dict.fromkeys(taken, self.member))
        db.execute('DELETE FROM choreo_owner WHERE "group" = ?', (self._group,))
        db.executemany(
            "INSERT INTO choreo_owner VALUES (?, ?, ?, ?)",
            [(self._group, *id_, member) for id_, member in owners.items()],
        )
        return owners, taken, share

    def _give_back(self, db: sqlite3.Connection, partitions: Sequence[TopicPartition]) -> None:
        db.executemany(
            'DELETE FROM choreo_owner WHERE "group" = ? AND topic = ? AND "partition" = ? AND member = ?',
            [(self._group, *id_, self.member) for id_ in partitions],
        )

    def _leave(self, db: sqlite3.Connection) -> None:
        for table in ("choreo_owner", "choreo_member"):
            db.execute(f'DELETE FROM {table} WHERE "group" = ? AND member = ?', (self._group, self.member))

    def _partitions(self, db: sqlite3.Connection) -> list[TopicPartition]:
        specs = log.topics(db)
        return [
            TopicPartition(topic, partition)
            for topic in self._topics
            if topic in specs
            for partition in range(specs[topic].partitions)
        ]

    def _forget(self, partitions: Sequence[TopicPartition]) -> None:
        self._owned = [id_ for id_ in self._owned if id_ not in partitions]
        for id_ in partitions:
            self._position.pop(id_, None)
            self._paused.discard(id_)
