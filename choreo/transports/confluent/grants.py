"""Which partitions are ours at this moment, for whoever commits, on whatever thread."""

import itertools
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from choreo.record import TopicPartition


class Grants:
    """One token an assignment of a partition: it is the same exactly while nobody else can have had the partition.

    Groups fence a member by its generation, not by partition: one from which a partition was taken in good order is
    still a member, and a broker would take its commit. So commits ask here, and a partition is handed back only when
    commits of it are over.
    """

    def __init__(self) -> None:
        self._tokens: dict[TopicPartition, int] = {}
        self._used: Counter[TopicPartition] = Counter()
        self._next = itertools.count(1)
        self._lock = threading.Lock()

    def grant(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """They are ours from now on; their tokens."""
        with self._lock:
            granted = {partition: next(self._next) for partition in partitions}
            self._tokens.update(granted)
            return granted

    def partitions(self) -> list[TopicPartition]:
        """Those that are ours."""
        with self._lock:
            return list(self._tokens)

    def token(self, partition: TopicPartition) -> int | None:
        """None if it is not ours."""
        return self._tokens.get(partition)

    @contextmanager
    def using(self, partitions: Iterable[TopicPartition]) -> Iterator[None]:
        """A commit of them is under way."""
        used = list(partitions)
        with self._lock:
            self._used.update(used)
        try:
            yield
        finally:
            with self._lock:
                self._used.subtract(used)

    def free(self, partitions: Iterable[TopicPartition]) -> bool:
        """Withdraw them if no commit of them is under way; False if one is."""
        wanted = list(partitions)
        with self._lock:
            if any(self._used[partition] > 0 for partition in wanted):
                return False
            self._withdraw(wanted)
            return True

    def withdraw(self, partitions: Iterable[TopicPartition]) -> None:
        """They are ours no more, whatever is under way: its generation is one that brokers refuse by then."""
        with self._lock:
            self._withdraw(partitions)

    def _withdraw(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            self._tokens.pop(partition, None)
