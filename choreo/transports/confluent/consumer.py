"""One member of a consumer group on librdkafka, as the event loop sees it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

from choreo.errors import TransportError
from choreo.ports import Assignment, Start
from choreo.record import Record, TopicPartition
from choreo.transports.confluent.admin import LATEST, ConfluentAdmin
from choreo.transports.confluent.client import Consumer, KafkaError, made, reason
from choreo.transports.confluent.failures import Failures
from choreo.transports.confluent.flows import Flows
from choreo.transports.confluent.offsets import CommittedOffsets, MemberOffsets
from choreo.transports.confluent.poll import REVOKE_S, Batch, PollThread
from choreo.transports.kafka.errors import out_of_range
from choreo.transports.kafka.security import principal_of

log = logging.getLogger(__name__)

TAKE_OVER_S = 10.0
"""How long `revoked` waits for an `assigned` under way before it is told nevertheless."""

STOP_S = 15.0


class ConfluentConsumer:
    """As `choreo.ports.Consumer`; made by `ConfluentTransport.consumer`, on the loop it is used on.

    An exception out of `Assignment`, and what stops the thread that polls, is raised by the next `fetch`; after that
    the consumer is to be closed and made anew.

    Args:
        arguments: librdkafka's, complete.
        timeout_s: Deadline of one `position` or `commit`.

    Attributes:
        grants: What is assigned now, for whoever commits.
        offsets: The group's, as this member reads and commits them.
        failures: What the next `fetch` will tell of.
    """

    def __init__(
        self,
        group: str,
        topics: Sequence[str],
        assignment: Assignment,
        arguments: Mapping[str, Any],
        *,
        admin: ConfluentAdmin,
        committed: CommittedOffsets,
        timeout_s: float,
    ) -> None:
        self.member = f"{group}-{uuid4()}"
        self.failures = Failures(group, principal_of(arguments), admin)
        self._group = group
        self._assignment = assignment
        self._admin = admin
        self._committed = committed
        self._timeout_s = timeout_s
        consumer: Consumer = made(Consumer, {**arguments, "group.id": group, "error_cb": self.failures.warn})
        self._thread = PollThread(consumer, topics, self, group)
        self.grants = self._thread.grants
        self.offsets = MemberOffsets(group, consumer, self._thread, committed)
        self._flows = Flows(self._thread)
        self._arrived = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._taking: list[asyncio.Task[Any]] = []  # each waits for those before it
        self._looking: set[asyncio.Task[None]] = set()
        self._closed = False
        self._thread.start()

    @property
    def joined(self) -> bool:
        """As the port says, as far as the thread that polls knows by now."""
        return self._thread.joined

    async def fetch(self, *, records_max: int, wait_s: float) -> Sequence[Record]:
        """As the port says."""
        await self._raise_failure()
        if not self._flows.sort():
            self._arrived.clear()
            if not self._flows.waiting() and not self.failures:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._arrived.wait()
            self._flows.sort()
            await self._raise_failure()
        return self._flows.take(records_max)

    async def position(self, partition: TopicPartition, start: Start) -> int:
        """As the port says; a committed offset that the log does not hold is an error too, never a reset."""
        async with self._deadline(f"{partition}: the offset of group {self._group!r} cannot be read"):
            committed = (await self.offsets.committed([partition]))[partition]
            if committed is None:
                return await self._admin.start_offset(partition, start)
            first, end = await self._admin.bounds(partition)
            if not first <= committed <= end:
                raise out_of_range(self._group, partition, committed, first=first, end=end)
            return committed

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """As the port says; nothing happens if the partition is not ours any more."""
        if not self._closed:
            self._flows.seek(partition, offset)

    def drained(self, partition: TopicPartition) -> bool:
        """As the port says: the broker had said that the log ends where `fetch` has come to."""
        return self._flows.drained(partition)

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """As the port says: the high watermarks."""
        async with self._deadline(f"the ends of {len(partitions)} partitions cannot be read"):
            return await self._admin.offsets(partitions, LATEST)

    def pause(self, partition: TopicPartition) -> None:
        """As the port says. A little is still fetched ahead and waits for `resume`."""
        self._flows.pause(partition)

    def resume(self, partition: TopicPartition) -> None:
        """As the port says; before the first `seek` nothing flows."""
        if self._flows.resume(partition):
            self._arrived.set()

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """As the port says; TransportError if one is not ours or the group has moved on."""
        async with self._deadline(f"the offsets of group {self._group!r} cannot be committed"):
            await self.offsets.commit(offsets)

    async def close(self) -> None:
        """As the port says; bounded by what `Assignment.revoked` takes and some 15 s. Its error comes at the end."""
        if self._closed:
            return
        self._closed = True
        for taking in self._taking:  # e.g. one that waits for a store which is down
            taking.cancel()
        if not await self._thread.stop(timeout_s=REVOKE_S + STOP_S if self._flows.partitions() else STOP_S):
            log.warning("group %s was left without waiting for its coordinator", self._group)
        if left := self._flows.partitions():
            await self.revoked(left, lost=True)
        for task in self._looking:
            task.cancel()
        self._committed.close()
        self.failures.raise_end()

    # ---- called on the thread

    def arrived(self, batches: Sequence[Batch], errors: Sequence[tuple[KafkaError, TopicPartition | None]]) -> None:
        """Batches in order a partition; errors that librdkafka does not mend by itself are told by `fetch`."""
        self._flows.put(batches)
        for error, partition in errors:
            self.failures.add(error, partition)
        self._loop.call_soon_threadsafe(self._arrived.set)

    def died(self, error: BaseException) -> None:
        """The thread that polls ends with it."""
        self.failures.ended(error)
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._arrived.set)

    # ---- partitions come and go

    async def assigned(self, granted: Mapping[TopicPartition, int]) -> None:
        """Take them, behind those that are being taken; the others go on meanwhile."""
        task, before = asyncio.current_task(), self._taking[-1:]
        assert task is not None, "a coroutine runs in one"
        self._taking.append(task)
        try:
            if before:
                await asyncio.wait(before)
            # Not what was taken away since, nor what came again: that is told to another call.
            ours = [partition for partition, token in granted.items() if self.grants.token(partition) == token]
            if ours and not self._closed:
                self._flows.begin(ours)
                await self._tell(self._assignment.assigned(ours))
        finally:
            self._taking.remove(task)

    async def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        """Deliver nothing of them, have what was begun finished, then forget them."""
        if self._taking:
            await asyncio.wait(self._taking, timeout=TAKE_OVER_S)
        told = [partition for partition in partitions if self._flows.end(partition)]  # none, if closed as they came
        if lost:
            self.offsets.forget(partitions)
        if told:
            await self._tell(self._assignment.revoked(told, lost=lost))
        if not self._closed:
            looking = self._look_for({topic for topic, _ in partitions})
            self._looking = {each for each in self._looking if not each.done()} | {asyncio.create_task(looking)}
        self.offsets.forget(partitions)

    async def _look_for(self, topics: Iterable[str]) -> None:
        """Have `fetch` tell of those that are no more; under KIP-848 their partitions are just taken away."""
        with suppress(TransportError):
            known = await self._admin.partitions()
            for topic in topics:
                if topic not in known:
                    self.failures.gone(topic)
            self._arrived.set()

    async def _tell(self, telling: Awaitable[None]) -> None:
        try:
            await telling
        except Exception as error:
            self.failures.ended(error)
            self._arrived.set()

    async def _raise_failure(self) -> None:
        if self._closed:
            raise TransportError(f"this member of group {self._group!r} is closed")
        await self.failures.raise_first(self._flows.next_offset)

    @asynccontextmanager
    async def _deadline(self, what: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TransportError:
            raise
        except Exception as error:
            raise TransportError(f"{what}: {reason(error)}") from error
