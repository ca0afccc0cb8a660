"""How many records may wait for the event loop, and which partitions of a consumer are polled meanwhile."""

import time
from collections.abc import Iterable, Sequence

from choreo.record import TopicPartition
from choreo.transports.confluent.client import Consumer, place
from choreo.transports.confluent.commands import Commands

RECORDS_HIGH, RECORDS_LOW = 2_000, 500
"""Records handed over and not fetched yet: above the one nothing is polled for, until below the other."""

PATIENCE_S = 0.5
"""After so long without room the partitions are paused and polling goes on, for the group's sake.

Not at once: a pause makes librdkafka drop what it has fetched ahead.
"""


class Room:
    """Partitions flow from their first seek on, but for those that are held, and for all while there is no room.

    Attributes:
        versions: Of the last seek of each partition that was sought.
    """

    def __init__(self, consumer: Consumer, commands: Commands) -> None:
        self.versions: dict[TopicPartition, int] = {}
        self._consumer = consumer
        self._commands = commands
        self._delivered = 0  # written on the thread only
        self._taken = 0  # written on the loop only
        self._full = False  # it is waited for room
        self._all_held = False
        self._held: set[TopicPartition] = set()
        self._opened = False

    # ---- on the loop

    def took(self, records: int) -> None:
        """The loop is done with so many (a negative number: it has them again)."""
        self._taken += records
        if self._full and self._delivered - self._taken < RECORDS_LOW:
            self._full = False
            self._commands.wake()

    def hold(self, partition: TopicPartition) -> None:
        """Poll nothing of it until `release`."""

        def act() -> None:
            if partition in self.versions:
                self._held.add(partition)
                self._consumer.pause([place(partition)])

        self._commands.call(act)

    def release(self, partition: TopicPartition) -> None:
        """Poll of it again."""

        def act() -> None:
            self._held.discard(partition)
            self._resume([partition])

        self._commands.call(act)

    def open(self) -> None:
        """Wait for room no more: the thread is to come to its end."""
        self._opened = True
        self._commands.wake()

    # ---- on the thread

    def sought(self, partition: TopicPartition, version: int) -> None:
        """Let it flow from where it was sought."""
        self.versions[partition] = version
        self._held.discard(partition)
        self._resume([partition])

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """They are ours no more."""
        for partition in partitions:
            self.versions.pop(partition, None)
            self._held.discard(partition)

    def delivered(self, records: int) -> None:
        """So many more are with the loop."""
        self._delivered += records

    def make(self) -> None:
        """Before a poll: wait until there is room, but not for so long that the group misses this member."""
        if self._all_held:
            if self._delivered - self._taken < RECORDS_LOW:
                self._all_held = False
                self._resume(list(self.versions))
        elif self._delivered - self._taken >= RECORDS_HIGH:
            self._wait()

    def _wait(self) -> None:
        """Obey meanwhile: a commit asks who this member is, and it may be what makes room."""
        until_s = time.monotonic() + PATIENCE_S
        self._full = True  # before the first look: who makes room after it wakes this thread
        while self._delivered - self._taken >= RECORDS_LOW and not self._opened:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                self._all_held = True
                self._consumer.pause([place(partition) for partition in self.versions])
                break
            self._commands.obey(left_s)
        self._full = False

    def _resume(self, partitions: Sequence[TopicPartition]) -> None:
        free = [each for each in partitions if each in self.versions and each not in self._held]
        if free and not self._all_held:
            self._consumer.resume([place(partition) for partition in free])
