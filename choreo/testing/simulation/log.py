"""A simulated cluster's log: partitions, transactions and committed offsets, as Kafka keeps them. No time, no faults.

What a broker does in one step is one call here; what can happen between two steps, happens between two calls.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from choreo.ports import TopicSpec
from choreo.record import ProducerRecord, Record, TopicPartition
from choreo.sqlite.log import partition_of, partitions_of


class Fenced(Exception):
    """InitProducerId was called with this transactional id since."""


@dataclass(eq=False, slots=True)
class Transaction:
    """One transaction; None while it is open."""

    committed: bool | None = None
    offsets: dict[tuple[str, TopicPartition], int] = field(default_factory=dict)
    touched: set[TopicPartition] = field(default_factory=set)
    begun_s: float = 0.0


@dataclass(slots=True)
class ProducerState:
    """What the coordinator knows of a transactional id."""

    epoch: int = 0
    open: Transaction | None = None


class Partition:
    """One partition: appended to, never changed."""

    __slots__ = ("entries", "first_open")

    def __init__(self) -> None:
        self.entries: list[tuple[Record, Transaction | None]] = []
        self.first_open = 0

    def stable_end(self) -> int:
        """The last stable offset: of the first record whose transaction is open, else the end."""
        entries, at = self.entries, self.first_open
        while at < len(entries):
            transaction = entries[at][1]
            if transaction is not None and transaction.committed is None:
                break
            at += 1
        self.first_open = at
        return at

    def readable_end(self) -> int:
        """The end, but for aborted records there: nobody is given those, so nobody commits an offset behind them."""
        at = len(self.entries)
        while at and (transaction := self.entries[at - 1][1]) is not None and transaction.committed is False:
            at -= 1
        return at

    def committed(self, offset: int, records_max: int) -> tuple[list[Record], int]:
        """Records from `offset` below the last stable offset, without those of aborted transactions; next offset."""
        found: list[Record] = []
        end = self.stable_end()
        while offset < end and len(found) < records_max:
            record, transaction = self.entries[offset]
            if transaction is None or transaction.committed:
                found.append(record)
            offset += 1
        return found, offset


class SimulatedLog:
    """The state that survives every process."""

    def __init__(self) -> None:
        self.specs: dict[str, TopicSpec] = {}
        self.partitions: dict[TopicPartition, Partition] = {}
        self.offsets: dict[tuple[str, TopicPartition], int] = {}
        self.producers: dict[str, ProducerState] = {}
        self.appended = 0
        self._keyless = 0

    def create(self, topics: Iterable[TopicSpec]) -> None:
        """Topics that are missing."""
        for spec in topics:
            if spec.name not in self.specs:
                self.specs[spec.name] = spec
                for number in range(spec.partitions):
                    self.partitions[TopicPartition(spec.name, number)] = Partition()

    def append(
        self, records: Sequence[ProducerRecord], now_s: float, transaction: Transaction | None = None
    ) -> list[Record]:
        """At the end of their partitions, in order."""
        done = []
        for record in records:
            number = record.partition
            if number is None:
                number = self._partition(record)
            id_ = TopicPartition(record.topic, number)
            entries = self.partitions[id_].entries
            stored = Record(
                record.topic, number, len(entries), record.key, record.value, record.headers, int(now_s * 1000)
            )
            entries.append((stored, transaction))
            if transaction is not None:
                transaction.touched.add(id_)
            done.append(stored)
        self.appended += len(done)
        return done

    def _partition(self, record: ProducerRecord) -> int:
        self._keyless += record.key is None
        return partition_of(record.key, self.specs[record.topic].partitions, self._keyless)

    def ids(self, topics: Iterable[str], key: bytes | None = None) -> list[TopicPartition]:
        """Partitions of topics, in order; with a `key` those it chooses."""
        return partitions_of({name: self.specs[name].partitions for name in topics if name in self.specs}, key)

    def scan(self, topics: Iterable[str], since_ms: int = 0, key: bytes | None = None) -> list[Record]:
        """Committed records, in order of time."""
        found = [
            record
            for id_ in self.ids(topics, key)
            for record in self.partitions[id_].committed(0, 10**9)[0]
            if record.timestamp_ms >= since_ms
        ]
        return sorted(found, key=lambda record: record.timestamp_ms)

    # ---- transactions

    def init_producer(self, transactional_id: str) -> int:
        """A newer epoch than anyone had; what its predecessor had open is aborted."""
        state = self.producers.setdefault(transactional_id, ProducerState())
        self._end(state, committed=False)
        state.epoch += 1
        return state.epoch

    def begin(self, transactional_id: str, epoch: int, now_s: float) -> Transaction:
        """Open a transaction.

        Raises:
            Fenced: Another has taken the id.
        """
        state = self._state(transactional_id, epoch)
        if state.open is None:
            state.open = Transaction(begun_s=now_s)
        return state.open

    def end(self, transactional_id: str, epoch: int) -> Transaction:
        """Commit whatever is open under this epoch, as EndTxn does: it names no transaction (KAFKA-17754).

        Its records and offsets become visible together.

        Raises:
            Fenced: Another has taken the id, or the broker has aborted it.
        """
        state = self._state(transactional_id, epoch)
        if state.open is None:
            raise Fenced(transactional_id)
        return self._end(state, committed=True)

    def time_out(self, now_s: float, timeout_s: float) -> list[str]:
        """Abort what is open for longer, as a broker does; returns the ids."""
        late = []
        for id_, state in self.producers.items():
            if state.open is not None and now_s - state.open.begun_s > timeout_s:
                self._end(state, committed=False)
                state.epoch += 1
                late.append(id_)
        return late

    def open_offset(self, group: str, partition: TopicPartition) -> bool:
        """Whether an open transaction would move the offset: a stable read has to wait for it."""
        return any(
            state.open is not None and (group, partition) in state.open.offsets for state in self.producers.values()
        )

    def _state(self, transactional_id: str, epoch: int) -> ProducerState:
        state = self.producers.get(transactional_id)
        if state is None or state.epoch != epoch:
            raise Fenced(transactional_id)
        return state

    def _end(self, state: ProducerState, *, committed: bool) -> Transaction:
        transaction, state.open = state.open or Transaction(), None
        transaction.committed = committed
        if committed:
            self.offsets.update(transaction.offsets)
        return transaction

    def commit_offsets(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Outside of any transaction."""
        self.offsets.update({(group, id_): offset for id_, offset in offsets.items()})
