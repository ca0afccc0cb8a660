"""The simulated cluster: one log, the groups that read it, and who may be told that there is more to read."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from choreo.record import ProducerRecord, Record, TopicPartition
from choreo.testing.simulation.group import SimulatedGroup
from choreo.testing.simulation.log import Fenced, SimulatedLog, Transaction
from choreo.testing.simulation.loop import SimulationLoop
from choreo.testing.simulation.process import Process
from choreo.testing.simulation.story import appended

if TYPE_CHECKING:
    from choreo.testing.simulation.transport import SimulatedConsumer

SESSION_S, ROUND_S, TRANSACTION_S = 6.0, 30.0, 10.0


@dataclass
class Cluster:
    """What processes reach through the network; what they do to it goes into the history.

    Attributes:
        note: Is told of who, which kind of thing, and what.
        check_offset: Says what is wrong with a committed offset; `wrong_offsets` keeps it.
        reached: For each group and partition, the highest offset ever committed.
        two_owners: Partitions that two healthy members had at once.
        newest_owner: Offsets are being committed by one who has just taken the partition over.
    """

    loop: SimulationLoop
    note: Callable[[Process | str, str, str], None]
    log: SimulatedLog = field(default_factory=SimulatedLog)
    groups: dict[str, SimulatedGroup] = field(default_factory=dict)
    readers: list["SimulatedConsumer"] = field(default_factory=list)
    check_offset: Callable[[str, TopicPartition, int], Iterable[str]] = field(init=False)
    wrong_offsets: list[str] = field(default_factory=list)
    reached: dict[tuple[str, TopicPartition], int] = field(default_factory=dict)
    two_owners: list[str] = field(default_factory=list)
    newest_owner: bool = False
    _holders: dict[tuple[str, TopicPartition], Process] = field(default_factory=dict)
    _committers: dict[str, int] = field(default_factory=dict)
    _names: Counter[str] = field(default_factory=Counter)

    # ---- groups

    def group(self, name: str, topics: Sequence[str]) -> SimulatedGroup:
        """The group's coordinator."""
        if name not in self.groups:
            self.groups[name] = SimulatedGroup(name, self.log.ids(topics))
        return self.groups[name]

    def member_name(self, process: Process) -> str:
        """A new name for a member."""
        self._names[process.name] += 1
        return f"{process.name}.{self._names[process.name]}"

    def holds(self, process: Process, group: str, partitions: Iterable[TopicPartition]) -> None:
        """The process takes up these partitions; whoever had them must have let go, unless it could not know."""
        for id_ in partitions:
            other = self._holders.get((group, id_))
            if other is not None and other is not process and other.healthy():
                self.two_owners.append(f"{id_} was given to {process.name} while {other.name} had it")
            self._holders[group, id_] = process

    def lets_go(self, process: Process, group: str, partitions: Iterable[TopicPartition]) -> None:
        """The process has finished with these partitions."""
        for id_ in partitions:
            if self._holders.get((group, id_)) is process:
                del self._holders[group, id_]

    def died(self, process: Process) -> None:
        """The process reads no more."""
        self.readers[:] = [each for each in self.readers if each._process is not process]

    async def coordinate(self) -> None:
        """What brokers do by themselves: put silent members out, end rounds, abort what is open for too long."""
        while True:
            await asyncio.sleep(0.2)
            now_s = self.loop.now_s
            for group in self.groups.values():
                for name in group.check(now_s, SESSION_S, ROUND_S):
                    self.note("broker", "evicted", f"{name} from {group.name}")
            for name in self.log.time_out(now_s, TRANSACTION_S):
                self.note("broker", "aborted", name)
                self.wake()

    # ---- the log

    def append(
        self,
        who: Process | str,
        records: Sequence[ProducerRecord],
        part: tuple[str, int, Transaction] | None = None,
    ) -> list[Record]:
        """Append, if the producer is not fenced."""
        transaction = None
        if part is not None:
            name, epoch, transaction = part
            if self.log.begin(name, epoch, self.loop.now_s) is not transaction:
                raise Fenced(name)
        done = self.log.append(records, self.loop.now_s, transaction)
        for record in done:
            self.note(who, "appends", appended(record))
        if transaction is None:
            self.wake({TopicPartition(record.topic, record.partition) for record in done})
        return done

    def init_producer(self, transactional_id: str) -> int:
        """A newer epoch; what was open is aborted, and readers go on."""
        state = self.log.producers.get(transactional_id)
        if state is not None and state.open is not None:
            self.note("broker", "aborted", transactional_id)
        epoch = self.log.init_producer(transactional_id)
        self.wake()
        return epoch

    def end(self, process: Process, transactional_id: str, epoch: int) -> None:
        """Commit a transaction."""
        transaction = self.log.end(transactional_id, epoch)
        former = self._committers.get(transactional_id, epoch)
        self._committers[transactional_id] = epoch
        self.newest_owner = epoch > former
        for (group, id_), offset in transaction.offsets.items():
            self.offset_committed(process, group, id_, offset)
        self.newest_owner = False
        self.wake(transaction.touched)

    def wake(self, partitions: set[TopicPartition] | None = None) -> None:
        """Something can be read that could not before; of any partition, unless some are named."""
        for reader in self.readers:
            if partitions is None or reader.reads(partitions):
                reader.changed.set()

    # ---- offsets

    def commit_offsets(self, process: Process, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit offsets of a group."""
        self.log.commit_offsets(group, offsets)
        for id_, offset in offsets.items():
            self.offset_committed(process, group, id_, offset)

    def offset_committed(self, process: Process | str, group: str, partition: TopicPartition, offset: int) -> None:
        """An offset was committed, whichever way."""
        self.note(process, "committed", f"{group} {partition}@{offset}")
        self.reached[group, partition] = max(offset, self.reached.get((group, partition), 0))
        self.wrong_offsets += self.check_offset(group, partition, offset)

    def unread(self) -> dict[str, int]:
        """Records that no committed offset was ever behind, by group; a late request may have set one back."""
        found: Counter[str] = Counter()
        for group in self.groups.values():
            for id_ in group.partitions:
                end = self.log.partitions[id_].readable_end()
                found[group.name] += max(0, end - self.reached.get((group.name, id_), 0))
        return {name: count for name, count in found.items() if count}

    def at_rest(self) -> bool:
        """Whether all is read, and no transaction open."""
        return not self.unread() and not any(state.open for state in self.log.producers.values())
