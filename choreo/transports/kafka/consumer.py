"""One member of a consumer group on aiokafka: gated assignment, checked offsets, a fetch that always returns."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.errors import OffsetOutOfRangeError
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.errors import TransportError
from choreo.ports import Assignment, Start
from choreo.record import Record, TopicPartition
from choreo.transports.kafka import client as kafka_client
from choreo.transports.kafka import closing as kafka_closing
from choreo.transports.kafka.errors import denied, out_of_range, reason
from choreo.transports.kafka.flows import Flows
from choreo.transports.kafka.holds import Holds, absent_topics, unreadable
from choreo.transports.kafka.offsets import bounds, end, start_offset
from choreo.transports.kafka.records import BATCH_BYTES_MAX, UnreadableBatch
from choreo.transports.kafka.runs import lenient
from choreo.transports.kafka.security import principal_of
from choreo.transports.kafka.settings import CONSUMER_DEFAULTS

log = logging.getLogger(__name__)

STOP_S = 10.0


class KafkaConsumer:
    """As `choreo.ports.Consumer`; made by `KafkaTransport.consumer`.

    What it relies on: `Assignment` is told before anything is fetched, and nothing flows before `seek`. An exception
    out of `Assignment`, and whatever aiokafka's background died of, is raised by the next `fetch`; after that the
    consumer is to be closed and made anew.

    Args:
        arguments: aiokafka's, over CONSUMER_DEFAULTS.
        timeout_s: Deadline of one `position` or `commit`.
        batch_bytes_max: What one compressed batch may hold; a larger one stops its partition.
    """

    def __init__(
        self,
        group: str,
        assignment: Assignment,
        arguments: Mapping[str, Any],
        *,
        timeout_s: float,
        batch_bytes_max: int = BATCH_BYTES_MAX,
    ) -> None:
        self.member = f"{group}-{uuid4()}"
        self._group = group
        self._principal = principal_of(arguments)
        self._assignment = assignment
        self._timeout_s = timeout_s
        self._batch_bytes_max = batch_bytes_max
        self._topics: tuple[str, ...] = ()
        self._holds = Holds(asyncio.get_running_loop().time)
        options = {**CONSUMER_DEFAULTS, **arguments, "group_id": group}
        self._consumer: AIOKafkaConsumer = kafka_client.gated_consumer(**options)
        self._flows = Flows(self._consumer, self._holds)
        self._leaving: tuple[TopicPartition, ...] = ()  # no longer delivered, still committed
        self._membership = kafka_client.Membership(-1, "")
        self._telling = asyncio.Lock()  # Assignment hears of one thing at a time
        self._committing = asyncio.Lock()  # a commit that is tried again must not undo a later one
        self._failure: Exception | None = None
        self._taking: asyncio.Future[None] | None = None
        self._closing = self._closed = False

    async def join(self, topics: Sequence[str], *, timeout_s: float) -> None:
        """Connect and subscribe; partitions come later, while `fetch` is called or not."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._consumer.start()  # without topics it does not wait for an assignment
            lenient(self._consumer, batch_bytes_max=self._batch_bytes_max)
            self._topics = tuple(topics)
            self._consumer.subscribe(list(topics), listener=_Listener(self))
        except BaseException as error:
            self._closed = True
            await kafka_closing.abandon(self._consumer)
            if isinstance(error, Exception):
                raise TransportError(f"group {self._group!r} cannot be joined: {reason(error)}") from error
            raise

    @property
    def joined(self) -> bool:
        """As the port says."""
        return kafka_client.membership(self._consumer).generation >= 0

    async def fetch(self, *, records_max: int, wait_s: float) -> Sequence[Record]:
        """As the port says. A poll that a rebalance holds up goes on in the background, and into the next fetch.

        TransportError about one partition, or a topic that is gone, is raised at growing intervals; between them the
        other partitions flow.
        """
        self._raise_failure()
        self._flows.ask_again()
        absent = self._holds.absent(kafka_client.absent(self._consumer, self._topics))
        if absent:
            raise absent_topics(self._group, absent)
        if not self._flows.ready():
            try:
                await self._flows.wait(records_max, wait_s)
            except Exception as error:
                raise await self._explained(error) from error
            self._raise_failure()
        return self._flows.take(records_max)

    async def position(self, partition: TopicPartition, start: Start) -> int:
        """As the port says; a committed offset that the log does not hold is an error too, never a reset."""
        async with self._deadline(f"{partition}: the offset of group {self._group!r} cannot be read"):
            committed = await kafka_client.committed(self._consumer, partition)
            if committed is None:
                return await start_offset(self._consumer, partition, start)
            first, last = await bounds(self._consumer, partition)
            if not first <= committed <= last:
                raise out_of_range(self._group, partition, committed, first=first, end=last)
            return committed

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """As the port says; nothing happens if the partition is not ours any more."""
        self._flows.seek(partition, offset)

    def drained(self, partition: TopicPartition) -> bool:
        """As the port says; records of a transaction that is still open are not on the log yet."""
        return self._flows.drained(partition)

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """As the port says: the high watermarks."""
        async with self._deadline(f"the ends of {len(partitions)} partitions cannot be read"):
            found = await asyncio.gather(*(end(self._consumer, partition) for partition in partitions))
            return dict(zip(partitions, found, strict=True))

    def pause(self, partition: TopicPartition) -> None:
        """As the port says. What was fetched ahead waits for `resume`."""
        self._flows.pause(partition)

    def resume(self, partition: TopicPartition) -> None:
        """As the port says; before the first `seek` the gate stays shut."""
        self._flows.resume(partition)

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """As the port says; TransportError if one is not ours or the group has moved on, then nothing is sent."""
        if not offsets:
            return
        async with self._deadline(f"the offsets of group {self._group!r} cannot be committed"), self._committing:
            known = {*self._flows.partitions(), *self._leaving}
            strangers = [str(partition) for partition in offsets if partition not in known]
            if strangers:
                raise TransportError(f"{', '.join(strangers)}: not assigned to this member of group {self._group!r}")
            await kafka_client.commit(self._consumer, self._membership, offsets)

    async def close(self) -> None:
        """As the port says, within some 15 s whatever the broker does. Assignment's error comes at the end."""
        if self._closed:
            return
        self._closing = True
        if self._taking is not None:  # it may try for ever, e.g. while a store is down
            self._taking.cancel()
        try:
            await self._give_up(last=True)
        finally:
            self._closed = True
            if not await kafka_closing.stop(self._consumer, timeout_s=STOP_S):  # never tells the listener (0.14)
                log.warning("group %s was left without waiting for its coordinator", self._group)
            await self._flows.close()

    async def _take_over(self, partitions: Iterable[KafkaPartition]) -> None:
        async with self._telling:
            if self._closing:
                return
            kafka_client.keep_heartbeat(self._consumer)
            self._membership = kafka_client.membership(self._consumer)
            ours = self._flows.begin(partitions)
            if ours:
                self._taking = asyncio.create_task(self._begin(ours))
                try:
                    await self._tell(self._taking)
                except asyncio.CancelledError:
                    if not self._closing:
                        raise
                finally:
                    self._taking = None

    async def _give_up(self, *, last: bool = False) -> None:
        async with self._telling:
            if self._closed or not self._flows.partitions():
                return
            self._leaving = self._flows.end()
            lost = kafka_client.membership(self._consumer) != self._membership  # reset when evicted
            try:
                await self._tell(self._assignment.revoked(self._leaving, lost=lost))
            finally:
                self._leaving = ()
                self._closed = self._closed or last

    async def _begin(self, partitions: Sequence[TopicPartition]) -> None:
        await self._assignment.assigned(partitions)  # begun in here: `close` may end this task before its first step

    async def _tell(self, telling: Awaitable[None]) -> None:
        try:
            await telling
        except Exception as error:
            self._failure = error  # aiokafka logs and forgets it (0.14: group_coordinator.py:421)
            raise

    def _raise_failure(self) -> None:
        if self._closed:
            raise TransportError(f"this member of group {self._group!r} is closed")
        if self._failure is not None:
            failure, self._failure = self._failure, None
            why = self._why(failure)
            raise TransportError(f"{self._group!r} cannot take or give up partitions: {why}") from failure

    def _why(self, error: BaseException) -> str:
        topic = str(error.args[0]) if error.args else ", ".join(self._topics)
        return denied(error, self._principal, "Read", topic, self._group) or reason(error)

    async def _explained(self, error: BaseException) -> BaseException:
        if isinstance(error, UnreadableBatch):
            return unreadable(self._group, error)
        if not isinstance(error, OffsetOutOfRangeError) or not error.args:
            return TransportError(f"group {self._group!r} cannot fetch: {self._why(error)}")
        ((where, offset),) = error.args[0].items()
        partition = TopicPartition(*where)
        async with self._deadline(f"{partition}: offset {offset} is out of range"):
            first, last = await bounds(self._consumer, partition)
        return out_of_range(self._group, partition, offset, first=first, end=last)

    @asynccontextmanager
    async def _deadline(self, what: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TransportError:
            raise
        except Exception as error:
            raise TransportError(f"{what}: {self._why(error)}") from error


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # untyped
    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer

    async def on_partitions_assigned(self, assigned: Iterable[KafkaPartition]) -> None:
        await self._consumer._take_over(assigned)

    async def on_partitions_revoked(self, revoked: Iterable[KafkaPartition]) -> None:
        await self._consumer._give_up()
