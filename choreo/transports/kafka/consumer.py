"""One member of a consumer group on aiokafka: gated assignment, checked offsets, a fetch that always returns."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
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
from choreo.transports.kafka.holds import Holds, absent_topics, culprits, unreadable
from choreo.transports.kafka.offsets import bounds, end, start_offset
from choreo.transports.kafka.records import BATCH_BYTES_MAX, UnreadableBatch
from choreo.transports.kafka.runs import lenient
from choreo.transports.kafka.security import principal_of
from choreo.transports.kafka.settings import CONSUMER_DEFAULTS

log = logging.getLogger(__name__)

FETCH_GRACE_S = 0.05
STOP_S = 10.0


@dataclass(slots=True)
class _Flow:
    """A partition that is ours. `next_offset`: what aiokafka reads next; None until `seek`."""

    next_offset: int | None = None
    paused: bool = False
    buffer: deque[Record] = field(default_factory=deque)


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
        self._ours: dict[TopicPartition, _Flow] = {}
        self._leaving: tuple[TopicPartition, ...] = ()  # no longer delivered, still committed
        self._membership = kafka_client.Membership(-1, "")
        self._telling = asyncio.Lock()  # Assignment hears of one thing at a time
        self._committing = asyncio.Lock()  # a commit that is tried again must not undo a later one
        self._poll: asyncio.Task[None] | None = None
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
        self._ask_held_again()
        if not any(flow.buffer and not flow.paused for flow in self._ours.values()):
            if self._poll is None:
                self._poll = asyncio.create_task(self._poll_once(records_max, wait_s))
            # Not awaited itself: cancelled, it would lose the records it was about to return.
            await asyncio.wait({self._poll}, timeout=wait_s + FETCH_GRACE_S)
            if self._poll is not None and self._poll.done():
                poll, self._poll = self._poll, None
                error = None if poll.cancelled() else poll.exception()
                if error is not None:
                    self._hold(culprits(error, self._ours))
                    raise await self._explained(error) from error
            self._raise_failure()
        return self._take(records_max)

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
        flow = self._ours.get(partition)
        if flow is None or not self._assigned(partition):
            return
        flow.buffer.clear()
        self._holds.forget(partition)
        flow.next_offset, flow.paused = offset, False
        self._consumer.seek(KafkaPartition(*partition), offset)
        kafka_client.resume(self._consumer, partition)

    def drained(self, partition: TopicPartition) -> bool:
        """As the port says; records of a transaction that is still open are not on the log yet."""
        flow = self._ours.get(partition)
        if flow is None or flow.next_offset is None or flow.buffer:
            return False
        return kafka_client.at_end(self._consumer, partition)

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """As the port says: the high watermarks."""
        async with self._deadline(f"the ends of {len(partitions)} partitions cannot be read"):
            found = await asyncio.gather(*(end(self._consumer, partition) for partition in partitions))
            return dict(zip(partitions, found, strict=True))

    def pause(self, partition: TopicPartition) -> None:
        """As the port says. What was fetched ahead waits for `resume`."""
        flow = self._ours.get(partition)
        if flow is not None and self._assigned(partition):
            flow.paused = True
            self._consumer.pause(KafkaPartition(*partition))

    def resume(self, partition: TopicPartition) -> None:
        """As the port says; before the first `seek` the gate stays shut."""
        flow = self._ours.get(partition)
        if flow is not None and flow.next_offset is not None and self._assigned(partition):
            flow.paused = False
            if partition not in self._holds:
                kafka_client.resume(self._consumer, partition)

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """As the port says; TransportError if one is not ours or the group has moved on, then nothing is sent."""
        if not offsets:
            return
        async with self._deadline(f"the offsets of group {self._group!r} cannot be committed"), self._committing:
            known = {*self._ours, *self._leaving}
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
            if self._poll is not None:
                self._poll.cancel()
                await asyncio.gather(self._poll, return_exceptions=True)

    async def _take_over(self, partitions: Iterable[KafkaPartition]) -> None:
        async with self._telling:
            if self._closing:
                return
            kafka_client.keep_heartbeat(self._consumer)
            self._membership = kafka_client.membership(self._consumer)
            self._ours = {TopicPartition(*partition): _Flow() for partition in sorted(partitions)}
            self._holds.clear()
            if self._ours:
                self._taking = asyncio.create_task(self._begin(list(self._ours)))
                try:
                    await self._tell(self._taking)
                except asyncio.CancelledError:
                    if not self._closing:
                        raise
                finally:
                    self._taking = None

    async def _give_up(self, *, last: bool = False) -> None:
        async with self._telling:
            if self._closed or not self._ours:
                return
            self._leaving, self._ours = tuple(self._ours), {}
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

    async def _poll_once(self, records_max: int, wait_s: float) -> None:
        try:
            batches = await self._consumer.getmany(timeout_ms=int(wait_s * 1000), max_records=records_max)
        except BaseException:
            # 0.14 drops what it had drained of other partitions, their positions moved on: read it again.
            for partition, flow in self._ours.items():
                if flow.next_offset is not None and self._assigned(partition):
                    self._consumer.seek(KafkaPartition(*partition), flow.next_offset)
            raise
        for partition, records in batches.items():  # in the same step as aiokafka moved its position
            ours = self._ours.get(TopicPartition(*partition))
            if ours is not None and ours.next_offset is not None:
                ours.buffer.extend(records)
                ours.next_offset = records[-1].offset + 1
                self._holds.forget(TopicPartition(*partition))

    def _take(self, records_max: int) -> list[Record]:
        taken: list[Record] = []
        for flow in self._ours.values():
            buffer, room = flow.buffer, records_max - len(taken)
            if flow.paused or not buffer:
                continue
            if len(buffer) <= room:
                taken += buffer
                buffer.clear()
            else:
                taken += [buffer.popleft() for _ in range(room)]
        return taken

    def _hold(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in filter(self._assigned, partitions):
            self._holds.add(partition)
            self._consumer.pause(KafkaPartition(*partition))

    def _ask_held_again(self) -> None:
        for partition in self._holds.due():
            flow = self._ours.get(partition)
            if flow is not None and not flow.paused and self._assigned(partition):
                kafka_client.resume(self._consumer, partition)
        absent = self._holds.absent(kafka_client.absent(self._consumer, self._topics))
        if absent:
            raise absent_topics(self._group, absent)

    def _assigned(self, partition: TopicPartition) -> bool:
        return KafkaPartition(*partition) in self._consumer.assignment()

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
