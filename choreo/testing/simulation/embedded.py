"""The embedded pair in a simulation: log, keys, rows and offsets in one SQLite database, all of it choreo's own code.

The world looks at a copy of the log, brought up to date after every transaction.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from choreo.ports import TopicSpec
from choreo.record import ProducerRecord, Record, TopicPartition
from choreo.sqlite import log
from choreo.sqlite.database import Database
from choreo.testing.simulation.cluster import Cluster
from choreo.testing.simulation.database import SimulatedDatabase
from choreo.testing.simulation.log import SimulatedLog, Transaction
from choreo.testing.simulation.process import Process
from choreo.testing.simulation.story import appended

_Result = TypeVar("_Result")


class CopiedLog(SimulatedLog):
    """What is in the database, as the world and its checkers read it."""

    def __init__(self, cluster: Cluster, database: Database) -> None:
        super().__init__()
        self._cluster = cluster
        self._database = database

    def create(self, topics: Iterable[TopicSpec]) -> None:
        """In both."""
        topics = list(topics)
        super().create(topics)
        self._database.write_inline(lambda db: log.create_topics(db, topics))

    def append(
        self, records: Sequence[ProducerRecord], now_s: float, transaction: Transaction | None = None
    ) -> list[Record]:
        """In the database, whence it is copied."""
        self._database.write_inline(lambda db: log.append(db, records, int(now_s * 1000)))
        self.catch_up("stranger")
        return []

    def catch_up(self, who: Process | str) -> None:
        """Copy what a transaction has added, and look at the offsets it has committed."""
        query = 'SELECT "group", topic, "partition", next FROM choreo_offset'
        found = self._database.read_inline(lambda db: db.execute(query).fetchall())
        for id_, partition in self.partitions.items():
            at = len(partition.entries)
            new = self._database.read_inline(lambda db, id_=id_, at=at: log.read(db, id_, at, 1_000_000))  # type: ignore[misc]
            for record in new:
                partition.entries.append((record, None))
                self._cluster.note(who, "appends", appended(record))
            self.appended += len(new)
        for group, topic, number, offset in found:
            where = group, TopicPartition(topic, number)
            if self.offsets.get(where) != offset:
                self.offsets[where] = offset
                self._cluster.offset_committed(who, group, where[1], offset)


class OneFile(SimulatedDatabase):
    """The file, as one process reaches it."""

    async def write(self, change: Callable[[Any], _Result]) -> _Result:
        """As `Database.write`; the world sees at once what it did."""

        def write() -> _Result:
            result = self._shared.write_inline(change)
            copied = self.process.world.cluster.log
            assert isinstance(copied, CopiedLog)
            copied.catch_up(self.process)
            return result

        return await self.process.call("write", write, to="store", writes=True)
