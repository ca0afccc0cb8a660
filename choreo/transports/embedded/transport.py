"""The embedded log: topics, consumer groups and offsets in one SQLite file, for one host and no broker."""

from collections.abc import Collection, Mapping, Sequence

from choreo.ports import Assignment, Clock, Consumer, Peer, TopicSpec
from choreo.record import ProducerRecord, Record, TopicPartition
from choreo.sqlite import log
from choreo.sqlite.database import Database
from choreo.transports.embedded.consumer import EmbeddedConsumer
from choreo.transports.embedded.membership import SCHEMA


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
