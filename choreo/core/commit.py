"""What waits to be made durable, and the one flush that is on its way."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from choreo.core.messages import Commit, Limits
from choreo.core.partition import Partition, settle
from choreo.core.units import COMMITTING, Signal, Unit, advance
from choreo.record import TopicPartition


class Flush(NamedTuple):
    """The one commit in flight. One at a time keeps the emits of a lane in order.

    `offsets` is the very mapping of the effect: what is revoked before the runtime begins is not committed.
    """

    number: int
    units: Sequence[Unit]
    offsets: dict[TopicPartition, int]


class Commits:
    """Results waiting for a flush, and the flush in flight."""

    def __init__(self, limits: Limits, partitions: dict[TopicPartition, Partition]) -> None:
        self.flight: Flush | None = None
        self.returned: list[Unit] = []
        self.due_s: float | None = None
        self.after_s = 0.0
        self._limits = limits
        self._partitions = partitions
        self._number = 0

    def units(self) -> Iterator[Unit]:
        """Units that returned and are not durable yet."""
        yield from self.returned
        if self.flight is not None:
            yield from self.flight.units

    def note(self, now_s: float) -> None:
        """Something is to be flushed, at the latest `flush_s` from the first such note."""
        if self.due_s is None:
            self.due_s = now_s + self._limits.flush_s

    def progressed(self, partition: Partition, now_s: float) -> None:
        """More of it may be finished: if its watermark has moved, that is to be committed."""
        if partition.watermark() > partition.committed:
            self.note(now_s)

    def due(self, now_s: float, *, idle: bool) -> bool:
        """Whether results or progress should be flushed now: by number, by time, or since nothing else is at work."""
        if self.due_s is None:
            return False
        return idle or now_s >= self.due_s or len(self.returned) >= self._limits.flush_units

    def begin(self) -> Commit | None:
        """Put all that returned into a flush; None when there turns out to be nothing."""
        units, self.returned, self.due_s = self.returned, [], None
        advance(units, Signal.FLUSH)
        settle(units)
        offsets = {
            id_: watermark
            for id_, partition in self._partitions.items()
            if (watermark := partition.watermark()) > partition.committed
        }
        if not (units or offsets):
            return None
        self._number += 1
        self.flight = Flush(self._number, units, offsets)
        return Commit(self._number, units, offsets)

    def land(self, number: int, refused: frozenset[TopicPartition]) -> Flush:
        """The flush is durable but for `refused`: finish its units; returns it."""
        flush = self._take(number)
        landed = [each for each in flush.units if each.state is COMMITTING]
        if refused:
            landed = [each for each in landed if each.partition not in refused]
        advance(landed, Signal.COMMITTED)
        for unit in landed:
            unit.lane.unflushed -= 1
        for id_, offset in flush.offsets.items():
            partition = self._partitions.get(id_)
            if partition is not None and id_ not in refused:
                partition.committed = max(partition.committed, offset)
                partition.forget_finished()
        return flush

    def fail(self, number: int, now_s: float) -> None:
        """The same values are to be flushed again, after a pause."""
        flush = self._take(number)
        again = [unit for unit in flush.units if unit.state is COMMITTING]
        for unit in again:
            unit.advance(Signal.FAILED)
            self._partitions[unit.partition].unsettle(unit)
        self.returned = again + self.returned
        self.after_s = now_s + self._limits.failure_s
        self.note(now_s)

    def forget(self, partition: TopicPartition) -> None:
        """The partition is gone, its results with it."""
        self.returned = [unit for unit in self.returned if unit.partition != partition]
        if self.flight is not None:  # nor does its answer speak of an assignment to come
            self.flight.offsets.pop(partition, None)

    def _take(self, number: int) -> Flush:
        flush, self.flight = self.flight, None
        assert flush is not None
        assert flush.number == number
        return flush
