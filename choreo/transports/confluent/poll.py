"""The thread on which a librdkafka consumer lives: polls, takes commands, is told of partitions."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from itertools import groupby
from typing import Any, NamedTuple, Protocol, TypeVar

from choreo.errors import TransportError
from choreo.record import Record, TopicPartition
from choreo.transports.confluent.client import (
    Consumer,
    KafkaError,
    Message,
    Place,
    error_of,
    membership,
    partition_of,
    place,
    records_of,
)
from choreo.transports.confluent.grants import Grants

T = TypeVar("T")

log = logging.getLogger(__name__)

POLL_S = 0.02
"""How long a command may wait. The binding lets no other thread at a consumer that is polling (seen in 2.16)."""

BATCH_RECORDS_MAX = 500
RECORDS_HIGH, RECORDS_LOW = 2_000, 500
"""Records handed over and not fetched yet: above the one nothing is polled for, until below the other."""

PATIENCE_S = 0.5
"""After so long without room the partitions are paused and polling goes on, for the group's sake.

Not at once: a pause makes librdkafka drop what it has fetched ahead.
"""

REVOKE_S = 240.0
"""Longest drain; below max.poll.interval.ms, after which the group goes on without this member."""

COMMITS_S = 15.0
SEEK_S = 10.0


def _alike(message: Message) -> tuple[str | None, int | None, bool]:
    return message.topic(), message.partition(), message.error() is not None


def _look_again() -> None:
    """A command for the thread to wake up at."""


class Batch(NamedTuple):
    """What was polled of one partition, in order. `version`: of its last `seek`; `end`: where the log ended."""

    partition: TopicPartition
    version: int
    records: list[Record]
    end: int | None = None


class Listener(Protocol):
    """The event loop's side; the coroutines run there."""

    def arrived(self, batches: Sequence[Batch], errors: Sequence[tuple[KafkaError, TopicPartition | None]]) -> None:
        """Called on the thread."""

    def died(self, error: BaseException) -> None:
        """Called on the thread: it ended, or a partition of it stands still."""

    def assigned(self, partitions: Sequence[TopicPartition]) -> Coroutine[Any, Any, None]:
        """Not waited for."""

    def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> Coroutine[Any, Any, None]:
        """Waited for, up to REVOKE_S."""


class PollThread:
    """Runs `consumer` from `start` until `stop`; every other method may be called from any thread.

    Attributes:
        grants: What is assigned now.
        taken: Records the loop has handed on, of the `delivered` it was given; written by the loop only.
    """

    def __init__(self, consumer: Consumer, topics: Sequence[str], listener: Listener, name: str) -> None:
        self.grants = Grants()
        self.delivered = 0
        self.taken = 0
        self._consumer = consumer
        self._topics = list(topics)
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._full = False  # waits for room
        self._stopping = False
        self._over = False
        self._ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._versions: dict[TopicPartition, int] = {}  # of partitions that were sought
        self._held: set[TopicPartition] = set()
        self._all_held = False
        self.joined = False
        self._thread = threading.Thread(target=self._run, name=f"choreo-kafka-{name}", daemon=True)

    def start(self) -> None:
        """Join the group."""
        self._thread.start()

    async def stop(self, *, timeout_s: float) -> bool:
        """Give up what is assigned and leave; whether that came to its end."""
        self._stopping = True
        self._commands.put(_look_again)
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Run it on the thread, between two polls, or while `revoked` is waited for."""
        future: Future[T] = Future()

        def act() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if self._over:
                    raise TransportError("this member of the group is closed")
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        self._commands.put(act)
        if self._over:
            self._refuse()
        return future

    def seek(self, partition: TopicPartition, offset: int, version: int) -> None:
        """From now on batches of it begin at `offset`, and carry `version`."""
        self.call(lambda: self._seek_until_done(partition, offset, version))

    def hold(self, partition: TopicPartition) -> None:
        """Poll nothing of it until `release`."""

        def act() -> None:
            if partition in self._versions:
                self._held.add(partition)
                self._consumer.pause([place(partition)])

        self.call(act)

    def release(self, partition: TopicPartition) -> None:
        """Poll of it again."""

        def act() -> None:
            self._held.discard(partition)
            self._resume([partition])

        self.call(act)

    def took(self, records: int) -> None:
        """The loop is done with so many (a negative number: it has them again)."""
        self.taken += records
        if self._full and self.delivered - self.taken < RECORDS_LOW:
            self._full = False
            self._commands.put(_look_again)

    # ---- on the thread

    def _run(self) -> None:
        try:
            self._consumer.subscribe(
                self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            while not self._stopping:
                self._obey()
                self._make_room()
                first = self._consumer.poll(POLL_S)
                if not self.joined:  # asked for: KIP-848 tells of no assignment that is empty
                    self.joined = membership(self._consumer.consumer_group_metadata()).joined
                if first is not None:
                    self._hand_over([first, *self._consumer.consume(BATCH_RECORDS_MAX - 1, timeout=0)])
            self._drain()
        except BaseException as error:
            log.exception("the thread of a Kafka consumer ended")
            self._listener.died(error)
        try:
            self._consumer.close()  # tells of what is still assigned
        except BaseException as error:
            self._listener.died(error)
        finally:
            self._over = True
            self._refuse()
            self._call_soon(self._ended.set)

    def _drain(self) -> None:
        """Have the loop finish before librdkafka is told to leave the group.

        From then on it sends no heartbeat (2.16): a drain that took longer than the session would not be let commit.
        """
        partitions = self.grants.partitions()
        if partitions:
            self._tell(partitions, lost=False)

    def _call_soon(self, function: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            log.warning("a Kafka consumer outlived its event loop; close it before the loop ends")

    def _obey(self, wait_s: float = 0.0) -> None:
        try:
            while True:
                self._commands.get(timeout=wait_s)() if wait_s else self._commands.get_nowait()()
                wait_s = 0.0
        except queue.Empty:
            pass

    def _refuse(self) -> None:
        """Nobody obeys any more: each command that is left finds the thread over, and says so."""
        self._obey()

    def _make_room(self) -> None:
        if self._all_held:
            if self.delivered - self.taken < RECORDS_LOW:
                self._all_held = False
                self._resume(list(self._versions))
        elif self.delivered - self.taken >= RECORDS_HIGH:
            self._wait_for_room()

    def _wait_for_room(self) -> None:
        """Obey meanwhile: a commit asks who this member is, and it may be what makes room."""
        until_s = time.monotonic() + PATIENCE_S
        self._full = True  # before the first look: who makes room after it wakes this thread
        while self.delivered - self.taken >= RECORDS_LOW and not self._stopping:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                self._all_held = True
                self._consumer.pause([place(partition) for partition in self._versions])
                break
            self._obey(left_s)
        self._full = False

    def _resume(self, partitions: Sequence[TopicPartition]) -> None:
        free = [each for each in partitions if each in self._versions and each not in self._held]
        if free and not self._all_held:
            self._consumer.resume([place(partition) for partition in free])

    def _seek_until_done(self, partition: TopicPartition, offset: int, version: int) -> None:
        try:
            self._seek(partition, offset, version)
        except Exception as error:
            self._listener.died(error)

    def _seek(self, partition: TopicPartition, offset: int, version: int) -> None:
        until_s = time.monotonic() + SEEK_S
        while self.grants.token(partition) is not None:
            try:
                self._consumer.seek(place(partition, offset))
                break
            except Exception as error:
                found = error_of(error)
                if found is None or found.code() != KafkaError._STATE or time.monotonic() > until_s:
                    raise
            time.sleep(0.005)  # librdkafka has not started it yet
        else:
            return
        self._versions[partition] = version
        self._held.discard(partition)
        self._resume([partition])

    def _hand_over(self, messages: Iterable[Message]) -> None:
        batches: list[Batch] = []
        errors: list[tuple[KafkaError, TopicPartition | None]] = []
        for (topic, number, failed), group in groupby(messages, _alike):
            partition = TopicPartition(topic or "", -1 if number is None else number)
            version = self._versions.get(partition)
            if not failed:
                if version is not None:
                    batches.append(Batch(partition, version, records_of(group, partition)))
                continue
            for message in group:
                error = message.error()
                assert error is not None, "that is what the group has in common"
                if error.code() != KafkaError._PARTITION_EOF:
                    errors.append((error, partition if topic else None))
                elif version is not None:
                    batches.append(Batch(partition, version, [], message.offset()))
        self.delivered += sum(len(batch.records) for batch in batches)
        self._listener.arrived(batches, errors)

    def _on_assign(self, consumer: Consumer, places: list[Place]) -> None:
        if not places:
            return
        partitions = [partition_of(each) for each in places]
        # Paused, so that nothing is fetched before `seek`. At a number, not at the log's end: that is asked of the
        # broker, and an answer that comes after the seek moves the partition there, past what is in between (2.16).
        consumer.incremental_assign([place(partition, 0) for partition in partitions])
        consumer.pause([place(partition) for partition in partitions])
        self.grants.grant(partitions)
        # Not waited for: the partitions that stay go on meanwhile.
        self._call_soon(lambda: self._listen(partitions))

    def _listen(self, partitions: Sequence[TopicPartition]) -> None:
        task = self._loop.create_task(self._listener.assigned(partitions))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_revoke(self, consumer: Consumer, places: list[Place]) -> None:
        self._give_up(consumer, places, lost=False)

    def _on_lost(self, consumer: Consumer, places: list[Place]) -> None:
        self._give_up(consumer, places, lost=True)

    def _give_up(self, consumer: Consumer, places: list[Place], *, lost: bool) -> None:
        partitions = [partition_of(each) for each in places]
        if lost:  # somebody else may have them; a commit under way is refused by the broker
            self.grants.withdraw(partitions)
        self._tell(partitions, lost=lost)  # again, of those that were drained: nothing is done then
        until_s = time.monotonic() + COMMITS_S
        while not self.grants.free(partitions):
            if lost or time.monotonic() > until_s:
                log.warning("%s: given up with a commit under way", ", ".join(map(str, partitions)))
                self.grants.withdraw(partitions)
                break
            self._obey(POLL_S)
        for partition in partitions:
            self._versions.pop(partition, None)
            self._held.discard(partition)
        consumer.incremental_unassign(places)

    def _tell(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        """Wait until the loop has finished with them; its commits need this thread meanwhile."""
        telling = self._listener.revoked(partitions, lost=lost)
        try:
            future = asyncio.run_coroutine_threadsafe(telling, self._loop)
        except RuntimeError:
            telling.close()
            log.warning("a Kafka consumer outlived its event loop; close it before the loop ends")
            return
        until_s = time.monotonic() + REVOKE_S
        while not future.done() and not self._loop.is_closed():
            if time.monotonic() > until_s:
                log.warning("%s: not given up within %g s", ", ".join(map(str, partitions)), REVOKE_S)
                return
            self._obey(POLL_S)
