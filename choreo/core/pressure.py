"""Back-pressure: which partitions are paused, since too much of what was fetched of them is unfinished."""

from collections.abc import Iterable, Iterator

from choreo.core import messages as m
from choreo.core.partition import Partition
from choreo.record import TopicPartition


class Pressure:
    """Pauses a partition that has too much unfinished, and lets it flow again well below that."""

    def __init__(self, limits: m.Limits) -> None:
        self._limits = limits
        self._grown: dict[TopicPartition, Partition] = {}  # may have too much since the last look
        self._paused: dict[TopicPartition, Partition] = {}

    def __len__(self) -> int:
        """How many partitions it keeps an eye on."""
        return len(self._grown) + len(self._paused)

    def grew(self, partitions: Iterable[Partition]) -> None:
        """More of them is unfinished than before."""
        self._grown.update((partition.id, partition) for partition in partitions)

    def forget(self, partition: TopicPartition) -> None:
        """It is not ours any more."""
        self._paused.pop(partition, None)

    def balance(self) -> Iterator[m.Pause | m.Resume]:
        """Pause and resume."""
        for id_, partition in self._grown.items():
            if not partition.paused and partition.over(self._limits):
                partition.paused = True
                self._paused[id_] = partition
                yield m.Pause(id_)
        self._grown.clear()
        for id_, partition in tuple(self._paused.items()):
            if partition.under(self._limits):
                partition.paused = False
                del self._paused[id_]
                yield m.Resume(id_)
