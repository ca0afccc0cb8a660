"""Who reads which partition of the embedded log.

Members of a group are processes, or several in one. There is no rebalance protocol: in one transaction each member
looks at who is alive and who owns what and takes what is free; what it has above its share it gives up. That decides
who reads. Who may commit is decided by the lease's epoch, inside the commit.
"""

import asyncio
import sqlite3
import uuid
from collections.abc import Awaitable, Callable, Sequence

from choreo.ports import Assignment, Clock
from choreo.record import TopicPartition
from choreo.sqlite import log
from choreo.sqlite.database import Database

HEARTBEAT_S = 1.0
MEMBER_S = 4.0
"""A member that has not been heard of for so long is dead; a process killed is replaced after as much."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS choreo_owner (
    "group" TEXT, topic TEXT, "partition" INTEGER, member TEXT NOT NULL, PRIMARY KEY ("group", topic, "partition")
) WITHOUT ROWID;
"""
"""Which member reads a partition. Not the lease: that is a store's, whose owner is no member and may be elsewhere."""


class Membership:
    """One member of a group, from its first heartbeat until it leaves.

    Args:
        forget: Called with what was taken from us, or is above our share, before `assignment` is told.

    Attributes:
        member: Unique to this one.
        owned: What is ours, as far as the last heartbeat knew.
        joined: Whether there was one.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        group: str,
        topics: Sequence[str],
        assignment: Assignment,
        forget: Callable[[Sequence[TopicPartition]], None],
    ) -> None:
        self.member = uuid.uuid4().hex
        self.owned: list[TopicPartition] = []
        self.joined = False
        self._db = database
        self._clock = clock
        self._group = group
        self._topics = tuple(topics)
        self._assignment = assignment
        self._forget = forget
        self._next_s = 0.0

    async def beat_when_due(self) -> None:
        """Say that we live; take and give up partitions."""
        if self._clock.now_s() >= self._next_s:
            self._next_s = self._clock.now_s() + HEARTBEAT_S
            await self._balance()

    def held(self, db: sqlite3.Connection) -> set[TopicPartition]:
        """What is ours now; a member that stood still may have lost some of `owned`."""
        return {id_ for id_, member in self._owners(db).items() if member == self.member}

    async def leave(self) -> None:
        """Give up everything."""
        owned, self.owned = self.owned, []
        try:
            if owned:
                await self._alive(self._assignment.revoked(owned, lost=False))
        finally:
            await self._db.write(self._leave)

    async def _balance(self) -> None:
        now_ms = int(self._clock.now_s() * 1000)
        held = tuple(self.owned)
        owners, taken, share = await self._db.write(lambda db: self._heartbeat(db, held, now_ms))
        self.joined = True
        lost = [id_ for id_ in held if owners.get(id_) != self.member]
        if lost:
            self._drop(lost)
            await self._alive(self._assignment.revoked(lost, lost=True))
        surplus = self.owned[share:]
        if surplus:
            self._drop(surplus)
            await self._alive(self._assignment.revoked(surplus, lost=False))
            await self._db.write(lambda db: self._give_back(db, surplus))
        if taken:
            self.owned += taken
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
        # Ours but not held: taken, or given up, in a fetch that was cancelled.
        owners = {
            id_: member
            for id_, member in self._owners(db).items()
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

    def _owners(self, db: sqlite3.Connection) -> dict[TopicPartition, str]:
        found = db.execute('SELECT topic, "partition", member FROM choreo_owner WHERE "group" = ?', (self._group,))
        return {TopicPartition(topic, partition): member for topic, partition, member in found}

    def _drop(self, partitions: Sequence[TopicPartition]) -> None:
        self.owned = [id_ for id_ in self.owned if id_ not in partitions]
        self._forget(partitions)
