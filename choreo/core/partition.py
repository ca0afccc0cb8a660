"""What the engine keeps of one assigned partition: unfinished records, the watermark, and lanes."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from choreo.core.messages import Limits
from choreo.core.units import DROPPED, FINISHED, Delivery, Unit
from choreo.record import TopicPartition


class Lane:
    """Units of one key in one partition, in log order. Order holds within it and nowhere else."""

    __slots__ = ("due_s", "key", "parking", "partition", "queued", "unflushed", "units")

    def __init__(self, key: object, partition: "Partition") -> None:
        self.key = key
        self.partition = partition
        self.units: deque[Unit] = deque()
        self.unflushed = 0  # returned and not yet durable
        self.queued = False
        self.due_s = 0.0  # the last one of it is not claimed before
        self.parking: Unit | None = None  # on its way to the queue of its key, and not durable yet

    def head(self) -> Unit | None:
        """The unit whose turn it is; those found to be duplicates are passed over."""
        units = self.units
        while units:
            head = units[0]
            if head.state is not FINISHED and head.state is not DROPPED:
                return head
            units.popleft()
        return None


class Partition:
    """One assigned partition from its assignment to its revocation."""

    __slots__ = (
        "_delay_ms",
        "_entries",
        "_passed",
        "committed",
        "draining",
        "id",
        "lanes",
        "log_ms",
        "paused",
        "position",
        "unfinished",
        "unfinished_bytes",
    )

    def __init__(self, partition: TopicPartition, offset: int) -> None:
        self.id = partition
        self.lanes: dict[object, Lane] = {}
        self.position = offset
        self.committed = offset
        self.log_ms = 0
        self.paused = False
        self.draining = False
        self.unfinished = 0
        self.unfinished_bytes = 0
        self._delay_ms = 0
        self._entries: deque[Delivery] = deque()  # from the lowest unfinished one on
        self._passed: deque[Delivery] = deque()  # finished ones below it that are not committed yet

    def take_in(self, delivery: Delivery, now_ms: int) -> Sequence[Unit]:
        """Queue the units of one fetched record behind what their lane already has; returns them.

        Log time is the latest timestamp so far. One from the future, set by a producer, does not move it, or it
        would make keys of what is still to come look old.
        """
        units, timestamp_ms = delivery.units, delivery.timestamp_ms
        self.position = delivery.offset + 1
        if self.log_ms < timestamp_ms <= now_ms:
            self.log_ms = timestamp_ms
        if not units:
            return units
        self._delay_ms = int(delivery.delay_s * 1000)
        delivery.timestamp_ms = self.log_ms if timestamp_ms <= now_ms else max(self.log_ms, now_ms)
        delivery.units = ()  # its units know it; the other way round they would be garbage for the collector alone
        self._entries.append(delivery)
        self.unfinished += 1
        self.unfinished_bytes += delivery.payload_bytes
        lanes = self.lanes
        for unit in units:
            key = unit.lane
            lane = lanes.get(key)
            if lane is None:
                lane = lanes[key] = Lane(key, self)
            unit.lane = lane
            unit.entry = delivery
            lane.units.append(unit)
        return units

    def unsettle(self, unit: Unit) -> None:
        """The flush failed: the unit holds the watermark back again."""
        entry = unit.entry
        if entry.remaining == 0:
            self.unfinished += 1
            self.unfinished_bytes += entry.payload_bytes
        entry.remaining += 1
        while self._passed and self._passed[-1].offset >= entry.offset:
            self._entries.appendleft(self._passed.pop())

    def watermark(self) -> int:
        """Offset of the lowest record with an unfinished handler; what may be committed as next to read."""
        entries = self._entries
        while entries and not entries[0].remaining:  # each is looked at once
            self._passed.append(entries.popleft())
        return entries[0].offset if entries else self.position

    def progress_ms(self, drained_ms: int | None) -> int | None:
        """The log time its committed offset has come to, None if unknown; `drained_ms` if all of it is done."""
        for entries in (self._passed, self._entries):
            if entries:
                return entries[0].timestamp_ms
        return drained_ms or self.log_ms or None

    def oldest_ms(self) -> int | None:
        """Since when the lowest record with an unfinished handler is due: its log time, and its delay; None: none."""
        self.watermark()
        return self._entries[0].timestamp_ms + self._delay_ms if self._entries else None

    def forget_finished(self) -> None:
        """Let go of the records below the committed watermark."""
        self.watermark()
        while self._passed and self._passed[0].offset < self.committed:
            self._passed.popleft()

    def units(self) -> Iterator[Unit]:
        """Every unit still queued in a lane."""
        for lane in self.lanes.values():
            yield from lane.units

    def over(self, limits: Limits) -> bool:
        """Whether too much is unfinished to fetch more."""
        return (
            self.unfinished >= limits.unfinished_max
            or self.unfinished_bytes >= limits.unfinished_bytes_max
            or self.position - self.watermark() >= limits.unfinished_span_max
        )

    def under(self, limits: Limits) -> bool:
        """Whether enough is finished to flow again; half the bound, since a pause drops what was prefetched."""
        return (
            self.unfinished <= limits.unfinished_max // 2
            and self.unfinished_bytes <= limits.unfinished_bytes_max // 2
            and self.position - self.watermark() <= limits.unfinished_span_max // 2
        )


def settle(units: Iterable[Unit]) -> None:
    """They no longer hold the watermarks of their partitions back: finished, or in the flush that moves those."""
    for unit in units:
        entry = unit.entry
        entry.remaining -= 1
        if not entry.remaining:
            partition: Partition = unit.lane.partition
            partition.unfinished -= 1
            partition.unfinished_bytes -= entry.payload_bytes
