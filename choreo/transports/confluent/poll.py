"""The thread on which a librdkafka consumer lives: polls, takes commands, is told of partitions."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, Protocol

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
from choreo.transports.confluent.commands import Commands
from choreo.transports.confluent.grants import Grants
from choreo.transports.confluent.room import Room

log = logging.getLogger(__name__)

POLL_S = 0.02
"""How long a command may wait. The binding lets no other thread at a consumer that is polling (seen in 2.16)."""

BATCH_RECORDS_MAX = 500

REVOKE_S = 240.0
"""Longest drain; below max.poll.interval.ms, after which the group goes on without this member."""

COMMITS_S = 15.0
SEEK_S = 10.0


def _alike(message: Message) -> tuple[str | None, int | None, bool]:
    return message.topic(), message.partition(), message.error() is not None


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

    def assigned(self, granted: Mapping[TopicPartition, int]) -> Coroutine[Any, Any, None]:
        """Partitions with their tokens, of which some may be gone by then. Not waited for."""

    def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> Coroutine[Any, Any, None]:
        """Waited for, up to REVOKE_S."""


class PollThread:
    """Runs `consumer` from `start` until `stop`; every other method may be called from any thread.

    Attributes:
        grants: What is assigned now.
        commands: Run on the thread, between two polls or while `revoked` is waited for.
        room: What may be handed over, and which partitions flow.
        joined: Whether the group has taken it in.
    """

    def __init__(self, consumer: Consumer, topics: Sequence[str], listener: Listener, name: str) -> None:
        self.grants = Grants()
        self.commands = Commands()
        self.room = Room(consumer, self.commands)
        self.joined = False
        self._consumer = consumer
        self._topics = list(topics)
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name=f"choreo-kafka-{name}", daemon=True)

    def start(self) -> None:
        """Join the group."""
        self._thread.start()

    async def stop(self, *, timeout_s: float) -> bool:
        """Give up what is assigned and leave; whether that came to its end."""
        self._stopping = True
        self.room.open()
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    def seek(self, partition: TopicPartition, offset: int, version: int) -> None:
        """From now on batches of it begin at `offset`, and carry `version`."""
        self.commands.call(lambda: self._seek_until_done(partition, offset, version))

    # ---- on the thread

    def _run(self) -> None:
        try:
            self._consumer.subscribe(
                self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            while not self._stopping:
                self.commands.obey()
                self.room.make()
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
            self.commands.end()
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
        self.room.sought(partition, version)

    def _hand_over(self, messages: Iterable[Message]) -> None:
        batches: list[Batch] = []
        errors: list[tuple[KafkaError, TopicPartition | None]] = []
        for (topic, number, failed), group in groupby(messages, _alike):
            partition = TopicPartition(topic or "", -1 if number is None else number)
            version = self.room.versions.get(partition)
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
        self.room.delivered(sum(len(batch.records) for batch in batches))
        self._listener.arrived(batches, errors)

    def _on_assign(self, consumer: Consumer, places: list[Place]) -> None:
        if not places:
            return
        partitions = [partition_of(each) for each in places]
        # Paused, so that nothing is fetched before `seek`. At a number, not at the log's end: that is asked of the
        # broker, and an answer that comes after the seek moves the partition there, past what is in between (2.16).
        consumer.incremental_assign([place(partition, 0) for partition in partitions])
        consumer.pause([place(partition) for partition in partitions])
        granted = self.grants.grant(partitions)
        # Not waited for: the partitions that stay go on meanwhile.
        self._call_soon(lambda: self._listen(granted))

    def _listen(self, granted: Mapping[TopicPartition, int]) -> None:
        task = self._loop.create_task(self._listener.assigned(granted))
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
            self.commands.obey(POLL_S)
        self.room.forget(partitions)
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
            self.commands.obey(POLL_S)
