"""What came of the partitions that are ours, on its way from the thread that polls to who fetches."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from choreo.record import Record, TopicPartition
from choreo.transports.confluent.poll import Batch, PollThread
from choreo.transports.kafka.flows import take

HOLD_RECORDS = 500
"""Buffered of a paused partition, above which the broker is asked for no more of it."""


@dataclass(slots=True)
class _Flow:
    """A partition that is ours. `version` counts its seeks, 0 before the first; `ended`: the log was at its end."""

    version: int = 0
    next_offset: int = -1
    paused: bool = False
    held: bool = False
    ended: bool = False
    buffer: deque[Record] = field(default_factory=deque)


class Flows:
    """One flow a partition. The thread is told at once of records that wait for nobody, or wait again."""

    def __init__(self, thread: PollThread) -> None:
        self._thread = thread
        self._room = thread.room
        self._ours: dict[TopicPartition, _Flow] = {}
        self._inbox: deque[Batch] = deque()
        self._seeks = 0

    def put(self, batches: Iterable[Batch]) -> None:
        """Of a partition in order; from any thread."""
        self._inbox.extend(batches)

    # ---- partitions come and go

    def begin(self, partitions: Iterable[TopicPartition]) -> None:
        """They are ours; nothing flows before `seek`."""
        self._ours.update({partition: _Flow() for partition in partitions})

    def end(self, partition: TopicPartition) -> bool:
        """It is ours no more; False if it was not."""
        flow = self._ours.pop(partition, None)
        if flow is not None and not flow.paused:
            self._room.took(len(flow.buffer))
        return flow is not None

    def partitions(self) -> list[TopicPartition]:
        """Those that are ours."""
        return list(self._ours)

    # ---- where they stand

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Begin anew at `offset`; nothing happens if it is not ours any more."""
        flow = self._ours.get(partition)
        if flow is None:
            return
        if not flow.paused:
            self._room.took(len(flow.buffer))
        self._seeks += 1
        self._ours[partition] = _Flow(self._seeks, offset)
        self._thread.seek(partition, offset, self._seeks)

    def pause(self, partition: TopicPartition) -> None:
        """A little is still fetched ahead and waits for `resume`."""
        flow = self._ours.get(partition)
        if flow is not None and not flow.paused:
            flow.paused = True
            self._room.took(len(flow.buffer))

    def resume(self, partition: TopicPartition) -> bool:
        """Let it flow; whether there is something of it already."""
        flow = self._ours.get(partition)
        if flow is None or not flow.paused:
            return False
        flow.paused = False
        self._room.took(-len(flow.buffer))
        if flow.held:
            flow.held = False
            self._room.release(partition)
        return bool(flow.buffer)

    def drained(self, partition: TopicPartition) -> bool:
        """The broker had said that the log ends where `take` has come to."""
        self.sort()
        flow = self._ours.get(partition)
        return flow is not None and flow.ended and not flow.buffer

    def next_offset(self, partition: TopicPartition) -> int:
        """Where it is read next; -1 if that is not known."""
        flow = self._ours.get(partition)
        return flow.next_offset if flow is not None else -1

    # ---- to who fetches

    def sort(self) -> bool:
        """Give each flow what came of it; whether there is something to take."""
        while self._inbox:
            batch = self._inbox.popleft()
            flow = self._ours.get(batch.partition)
            if flow is None or flow.version != batch.version:
                self._room.took(len(batch.records))
                continue
            if batch.end is not None:
                flow.ended = batch.end >= flow.next_offset
                continue
            flow.buffer.extend(batch.records)
            flow.next_offset, flow.ended = batch.records[-1].offset + 1, False
            if flow.paused:
                self._room.took(len(batch.records))
                if len(flow.buffer) >= HOLD_RECORDS and not flow.held:
                    flow.held = True
                    self._room.hold(batch.partition)
        return any(flow.buffer and not flow.paused for flow in self._ours.values())

    def take(self, records_max: int) -> Sequence[Record]:
        """Those that are next, of flows that are not paused."""
        taken = take(self._ours.values(), records_max)
        self._room.took(len(taken))
        return taken

    def waiting(self) -> bool:
        """Whether something came that was not sorted yet."""
        return bool(self._inbox)
