"""The ports of a process on the simulated log: a transport, and members of groups."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from choreo.errors import TransportError
from choreo.ports import Assignment, Consumer, Peer, Start, TopicSpec
from choreo.record import ProducerRecord, Record, TopicPartition
from choreo.testing.simulation.group import SimulatedGroup
from choreo.testing.simulation.process import Process
from choreo.testing.simulation.transactions import SimulatedTransactions

if TYPE_CHECKING:
    from choreo.testing.simulation.world import World

HEARTBEAT_S = 1.0
JOIN_POLL_S = 0.05
LATE_S = 0.5, 5.0


class SimulatedTransport:
    """`Transport` of one process."""

    name = "simulated"
    system = "simulated"
    peer = Peer()

    def __init__(self, process: Process) -> None:
        self._process = process
        self._cluster = process.world.cluster
        self._log = self._cluster.log

    async def open(self) -> None:
        """Nothing to connect to."""

    async def consumer(self, group: str, topics: Sequence[str], assignment: Assignment) -> Consumer:
        """Join a group at the first fetch."""
        return SimulatedConsumer(self._process, self._cluster.group(group, topics), assignment)

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        """Append, each partition's records together; others may be in between and some may fail."""
        append = self._cluster.append
        await self._process.call("send", lambda: append(self._process, records), to="broker", writes=True)

    async def topics(self, names: Collection[str] | None = None) -> Mapping[str, TopicSpec]:
        """The topics that exist."""
        return {name: spec for name, spec in self._log.specs.items() if names is None or name in names}

    async def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        """Create those that are missing."""
        self._log.create(topics)

    async def widen(self, partitions: Mapping[str, int]) -> None:
        """Refused: keys would move."""
        raise TransportError("topics of a simulation keep their partitions")

    async def scan(self, topics: Sequence[str], *, since_ms: int, key: bytes | None = None) -> Sequence[Record]:
        """Every committed record."""
        return self._log.scan(topics, since_ms, key)

    def transactions(self, group: str) -> SimulatedTransactions:
        """Transactions of one group."""
        return SimulatedTransactions(self._process, group)

    async def close(self) -> None:
        """Nothing to disconnect from."""


class SimulatedConsumer:
    """One member of a group."""

    def __init__(self, process: Process, group: SimulatedGroup, assignment: Assignment) -> None:
        self._process = process
        self._world: World = process.world
        self._cluster = process.world.cluster
        self._group = group
        self._assignment = assignment
        self.member = self._cluster.member_name(process)
        self._owned: list[TopicPartition] = []
        self._position: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._late_until_s: dict[TopicPartition, float] = {}
        self._generation = -1
        self._told = "unknown"
        self._closing: list[TopicPartition] = []
        self.changed = asyncio.Event()
        self._cluster.readers.append(self)
        self._beating = asyncio.create_task(self._beat())

    @property
    def joined(self) -> bool:
        """Whether the group has answered."""
        return self._told == "ok"

    async def fetch(self, *, records_max: int, wait_s: float) -> Sequence[Record]:
        """Take part in the group, then wait for records of what flows."""
        if self._told != "ok":
            await self._take_part()
        loop = self._world.loop
        until_s = loop.now_s + wait_s
        while True:
            self.changed.clear()
            if loop.now_s >= self._process.cut_until_s:
                records = self._read(records_max)
                if records:
                    await asyncio.sleep(self._world.dice.between(f"{self._process.name}/fetch~", 0.0005, 0.01))
                    # What was paused, revoked or sought meanwhile is not delivered: it comes again.
                    return self._kept(records)
            if loop.now_s >= until_s or self._told != "ok":
                return ()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(until_s, self._next_late_s())):
                    await self.changed.wait()

    def reads(self, partitions: set[TopicPartition]) -> bool:
        """Whether one of them is among what it fetches."""
        return not partitions.isdisjoint(self._position)

    def _read(self, records_max: int) -> list[Record]:
        found: list[Record] = []
        now_s = self._world.loop.now_s
        for id_, at in self._position.items():
            if id_ in self._paused or self._late_until_s.get(id_, 0.0) > now_s:
                continue
            records, next_ = self._cluster.log.partitions[id_].committed(at, records_max - len(found))
            if not records:
                self._position[id_] = next_  # over what was aborted
                continue
            if self._world.dice.fault(f"{self._process.name}/{id_}", ("delay",)):
                self._late_until_s[id_] = now_s + self._world.dice.between(f"{id_}/late", *LATE_S)
                self._world.note(self._process, "delay", f"{id_}")
                continue
            found += records
        return found

    def _kept(self, records: Sequence[Record]) -> list[Record]:
        kept = []
        for record in records:
            id_ = TopicPartition(record.topic, record.partition)
            at = self._position.get(id_)
            if at is not None and at <= record.offset and id_ not in self._paused:
                kept.append(record)
                self._position[id_] = record.offset + 1
        return kept

    def _next_late_s(self) -> float:
        now_s = self._world.loop.now_s
        return min((at for at in self._late_until_s.values() if at > now_s), default=float("inf"))

    async def position(self, partition: TopicPartition, start: Start) -> int:
        """The committed offset, as it is when the broker is asked, or where `start` points."""
        log = self._cluster.log

        def look() -> int:
            offset = log.offsets.get((self._group.name, partition))
            if offset is not None:
                return offset
            entries = log.partitions[partition].entries
            if start == "earliest":
                return 0
            if start == "latest":
                return len(entries)
            return next((n for n, (record, _) in enumerate(entries) if record.timestamp_ms >= start), len(entries))

        return await self._process.call("position", look, to="broker", writes=False)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Fetch from there and let it flow."""
        if partition in self._owned:
            self._position[partition] = offset
            self._paused.discard(partition)
            self.changed.set()

    def drained(self, partition: TopicPartition) -> bool:
        """Whether there is nothing more of it."""
        at = self._position.get(partition)
        return at is not None and at >= len(self._cluster.log.partitions[partition].entries)

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The length of each."""
        return {id_: len(self._cluster.log.partitions[id_].entries) for id_ in partitions}

    def pause(self, partition: TopicPartition) -> None:
        """Fetch nothing of it."""
        self._paused.add(partition)

    def resume(self, partition: TopicPartition) -> None:
        """Fetch of it again."""
        self._paused.discard(partition)
        self.changed.set()

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit under the generation these were read in."""
        generation = self._generation
        ours = {id_: offset for id_, offset in offsets.items() if id_ in self._owned}

        def commit() -> None:
            if not self._group.current(self.member, generation):
                raise TransportError(f"{self.member} is not in generation {generation} of {self._group.name}")
            self._cluster.commit_offsets(self._process, self._group.name, ours)

        if ours:
            await self._process.call("commit offsets", commit, to="broker", writes=True)

    async def close(self) -> None:
        """Give up what is assigned and leave."""
        owned, self._owned = self._owned, []
        self._closing = owned
        self._position.clear()
        if owned:
            await self._assignment.revoked(owned, lost=False)
            self._cluster.lets_go(self._process, self._group.name, owned)
        self._beating.cancel()
        self._group.leave(self.member, self._world.loop.now_s)
        self._cluster.readers.remove(self)

    # ---- membership

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            loop = self._world.loop
            if loop.now_s >= self._process.cut_until_s:
                told = self._group.heartbeat(self.member, self._generation, loop.now_s)
                if told == "unknown" and self._closing:
                    # It stood still in the middle of its drain, and goes on with that: its leases are what stops it.
                    self._cluster.lets_go(self._process, self._group.name, self._closing)
                if told != "ok" and self._generation >= 0 and told != self._told:
                    self._told = told
                    self.changed.set()

    async def _take_part(self) -> None:
        """Join a round, and again while there is something to give up first."""
        group, loop, cooperative = self._group, self._world.loop, self._world.cooperative
        while True:
            if self._told == "unknown":
                await self._give_up(list(self._owned), lost=True)
            elif not cooperative:
                await self._give_up(list(self._owned), lost=False)
            group.join(self.member, self._owned, loop.now_s)
            self._told = "joining"
            while (member := group.members.get(self.member)) is not None and member.joined:  # noqa: ASYNC110
                await asyncio.sleep(JOIN_POLL_S)
            if member is None or loop.now_s < self._process.cut_until_s:
                await asyncio.sleep(HEARTBEAT_S)
                self._told = "unknown"
                continue
            self._generation, self._told = group.generation, "ok"
            surplus = [id_ for id_ in self._owned if id_ not in member.assigned]
            if surplus:
                await self._give_up(surplus, lost=False)
                self._told = "round"
                continue
            new = [id_ for id_ in member.assigned if id_ not in self._owned]
            self._owned += new
            if new:
                self._world.note(self._process, "assigned", ", ".join(map(str, new)))
                self._cluster.holds(self._process, group.name, new)
                await self._assignment.assigned(new)
            return

    async def _give_up(self, partitions: list[TopicPartition], *, lost: bool) -> None:
        if not partitions:
            return
        self._world.note(self._process, "lost" if lost else "revoked", ", ".join(map(str, partitions)))
        for id_ in partitions:
            self._owned.remove(id_)
            self._position.pop(id_, None)
            self._paused.discard(id_)
        await self._assignment.revoked(partitions, lost=lost)
        self._cluster.lets_go(self._process, self._group.name, partitions)
