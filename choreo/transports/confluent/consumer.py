"""One member of a consumer group on librdkafka, as the event loop sees it: flows, positions, commits."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from choreo.errors import TransportError
from choreo.ports import Assignment, Start
from choreo.record import Record, TopicPartition
from choreo.transports.confluent.admin import LATEST, ConfluentAdmin
from choreo.transports.confluent.client import (
    Consumer,
    KafkaError,
    KafkaException,
    Membership,
    error_of,
    made,
    membership,
    place,
    reason,
)
from choreo.transports.confluent.failures import AGAIN, HARMLESS, explained
from choreo.transports.confluent.offsets import CommittedOffsets
from choreo.transports.confluent.poll import REVOKE_S, Batch, PollThread
from choreo.transports.kafka.errors import out_of_range
from choreo.transports.kafka.security import principal_of

log = logging.getLogger(__name__)

HOLD_RECORDS = 500
"""Buffered of a paused partition, above which the broker is asked for no more of it."""

TAKE_OVER_S = 10.0
"""How long `revoked` waits for an `assigned` under way before it is told nevertheless."""

STOP_S = 15.0
AGAIN_S = 0.05


@dataclass(slots=True)
class _Flow:
    """A partition that is ours. `version` counts its seeks, 0 before the first; `ended`: the log was at its end."""

    version: int = 0
    next_offset: int = -1
    paused: bool = False
    held: bool = False
    ended: bool = False
    buffer: deque[Record] = field(default_factory=deque)


class ConfluentConsumer:
    """As `choreo.ports.Consumer`; made by `ConfluentTransport.consumer`, on the loop it is used on.

    An exception out of `Assignment`, and what stops the thread that polls, is raised by the next `fetch`; after that
    the consumer is to be closed and made anew.

    Args:
        arguments: librdkafka's, complete.
        timeout_s: Deadline of one `position` or `commit`.

    Attributes:
        known: Committed offsets as far as this member read or wrote them.
        disconnects: How often a connection to a broker failed.
    """

    def __init__(
        self,
        group: str,
        topics: Sequence[str],
        assignment: Assignment,
        arguments: Mapping[str, Any],
        *,
        admin: ConfluentAdmin,
        offsets: CommittedOffsets,
        timeout_s: float,
    ) -> None:
        self.member = f"{group}-{uuid4()}"
        self.known: dict[TopicPartition, int] = {}
        self.disconnects = 0
        self._group = group
        self._principal = principal_of(arguments)
        self._assignment = assignment
        self._admin = admin
        self._offsets = offsets
        self._timeout_s = timeout_s
        self._failure: BaseException | None = None
        self._consumer: Consumer = made(Consumer, {**arguments, "group.id": group, "error_cb": self._warn})
        self._thread = PollThread(self._consumer, topics, self, group)
        self.grants = self._thread.grants
        self._ours: dict[TopicPartition, _Flow] = {}
        self._inbox: deque[Batch] = deque()
        self._errors: deque[tuple[KafkaError, TopicPartition | None]] = deque()
        self._arrived = asyncio.Event()
        self._committing = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._taking: asyncio.Task[Any] | None = None
        self._looking: set[asyncio.Task[None]] = set()
        self._seeks = 0
        self._closed = False
        self._thread.start()

    @property
    def joined(self) -> bool:
        """As the port says, as far as the thread that polls knows by now."""
        return self._thread.joined

    async def fetch(self, *, records_max: int, wait_s: float) -> Sequence[Record]:
        """As the port says."""
        await self._raise_failure()
        self._sort()
        if not any(flow.buffer and not flow.paused for flow in self._ours.values()):
            self._arrived.clear()
            if not self._inbox and not self._errors and self._failure is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._arrived.wait()
            self._sort()
            await self._raise_failure()
        return self._take(records_max)

    async def position(self, partition: TopicPartition, start: Start) -> int:
        """As the port says; a committed offset that the log does not hold is an error too, never a reset."""
        async with self._deadline(f"{partition}: the offset of group {self._group!r} cannot be read"):
            committed = (await self.committed([partition]))[partition]
            if committed is None:
                return await self._admin.start_offset(partition, start)
            first, end = await self._admin.bounds(partition)
            if not first <= committed <= end:
                raise out_of_range(self._group, partition, committed, first=first, end=end)
            return committed

    async def committed(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int | None]:
        """The group's committed offsets, None if there never was one; waits for a transaction that holds another."""
        offsets = await self._offsets.of(partitions)
        self.known.update({partition: offset for partition, offset in offsets.items() if offset is not None})
        return offsets

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """As the port says; nothing happens if the partition is not ours any more."""
        flow = self._ours.get(partition)
        if flow is None or self._closed:
            return
        if not flow.paused:
            self._thread.took(len(flow.buffer))
        self._seeks += 1
        self._ours[partition] = _Flow(self._seeks, offset)
        self._thread.seek(partition, offset, self._seeks)

    def drained(self, partition: TopicPartition) -> bool:
        """As the port says: the broker had said that the log ends where `fetch` has come to."""
        self._sort()
        flow = self._ours.get(partition)
        return flow is not None and flow.ended and not flow.buffer

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """As the port says: the high watermarks."""
        async with self._deadline(f"the ends of {len(partitions)} partitions cannot be read"):
            return await self._admin.offsets(partitions, LATEST)

    def pause(self, partition: TopicPartition) -> None:
        """As the port says. A little is still fetched ahead and waits for `resume`."""
        flow = self._ours.get(partition)
        if flow is not None and not flow.paused:
            flow.paused = True
            self._thread.took(len(flow.buffer))

    def resume(self, partition: TopicPartition) -> None:
        """As the port says; before the first `seek` nothing flows."""
        flow = self._ours.get(partition)
        if flow is not None and flow.paused:
            flow.paused = False
            self._thread.took(-len(flow.buffer))
            if flow.held:
                flow.held = False
                self._thread.release(partition)
            if flow.buffer:
                self._arrived.set()

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """As the port says; TransportError if one is not ours or the group has moved on."""
        if not offsets:
            return
        what = f"the offsets of group {self._group!r} cannot be committed"
        async with self._deadline(what), self._committing:
            tokens = {partition: self.grants.token(partition) for partition in offsets}
            wanted = dict(offsets)
            # All on one thread, in order: a commit that came late must not undo the one after it. Tried again from
            # here, for the thread may have to take part in a rebalance before it succeeds.
            while not await asyncio.wrap_future(self._thread.call(lambda: self._commit(wanted, tokens))):  # noqa: ASYNC110
                await asyncio.sleep(AGAIN_S)
        self.known.update(offsets)

    def metadata(self) -> "Future[tuple[bytes, Membership]]":
        """Who this member is in the group, for a transaction: as librdkafka wants it, and in the clear."""
        return self._thread.call(self._metadata)

    async def close(self) -> None:
        """As the port says; bounded by what `Assignment.revoked` takes and some 15 s. Its error comes at the end."""
        if self._closed:
            return
        self._closed = True
        if self._taking is not None:  # e.g. one that waits for a store which is down
            self._taking.cancel()
        held = sum(len(flow.buffer) for flow in self._ours.values() if not flow.paused)
        self._thread.took(held)
        if not await self._thread.stop(timeout_s=REVOKE_S + STOP_S if self._ours else STOP_S):
            log.warning("group %s was left without waiting for its coordinator", self._group)
        if self._ours:
            await self.revoked(list(self._ours), lost=True)
        for task in self._looking:
            task.cancel()
        self._offsets.close()
        if isinstance(self._failure, Exception):
            raise TransportError(self._gave_up(self._failure)) from self._failure

    # ---- called on the thread

    def arrived(self, batches: Sequence[Batch], errors: Sequence[tuple[KafkaError, TopicPartition | None]]) -> None:
        """Batches in order a partition; errors that librdkafka does not mend by itself are told by `fetch`."""
        self._inbox.extend(batches)
        for error, partition in errors:
            if error.code() in HARMLESS:
                self._warn(error)
            else:
                self._errors.append((error, partition))
        self._loop.call_soon_threadsafe(self._arrived.set)

    def died(self, error: BaseException) -> None:
        """The thread that polls ends with it."""
        self._failure = error
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._arrived.set)

    def _warn(self, error: KafkaError) -> None:
        if error.code() == KafkaError._TRANSPORT:
            self.disconnects += 1
        if error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL) and not self._errors:
            self._errors.append((error, None))
        log.warning("group %s: %s", self._group, reason(error))

    def _metadata(self) -> tuple[bytes, Membership]:
        found: bytes = self._consumer.consumer_group_metadata()
        return found, membership(found)

    def _commit(self, offsets: Mapping[TopicPartition, int], tokens: Mapping[TopicPartition, int | None]) -> bool:
        """Whether it was done; False if it is worth another try."""
        _, member = self._metadata()
        strangers = [str(each) for each, token in tokens.items() if token is None or self.grants.token(each) != token]
        if strangers:
            raise TransportError(f"{', '.join(strangers)}: not assigned to this member of group {self._group!r}")
        try:
            if not member.joined:  # a broker would take it, if the group is empty
                raise KafkaException(KafkaError(KafkaError.UNKNOWN_MEMBER_ID))
            places = [place(partition, offset) for partition, offset in offsets.items()]
            for found in self._consumer.commit(offsets=places, asynchronous=False):
                if found.error is not None:
                    raise KafkaException(found.error)
        except KafkaException as error:
            told = error_of(error)
            if told is None or not (told.retriable() or told.code() in AGAIN):
                raise
            return False
        return True

    # ---- partitions come and go

    async def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Take them; the others go on meanwhile."""
        before = self._taking
        self._taking = asyncio.current_task()
        if before is not None:
            await asyncio.wait({before})
        if self._closed:
            return
        ours = [partition for partition in partitions if self.grants.token(partition)]
        self._ours.update({partition: _Flow() for partition in ours})
        if ours:
            await self._tell(self._assignment.assigned(ours))
        if self._taking is asyncio.current_task():
            self._taking = None

    async def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        """Deliver nothing of them, have what was begun finished, then forget them."""
        if self._taking is not None:
            await asyncio.wait({self._taking}, timeout=TAKE_OVER_S)
        told = [partition for partition in partitions if partition in self._ours]  # none, if closed as they came
        for partition in partitions:
            flow = self._ours.pop(partition, None)
            if flow is not None and not flow.paused:
                self._thread.took(len(flow.buffer))
            if lost:
                self.known.pop(partition, None)
        if told:
            await self._tell(self._assignment.revoked(told, lost=lost))
        if not self._closed:
            looking = self._look_for({topic for topic, _ in partitions})
            self._looking = {each for each in self._looking if not each.done()} | {asyncio.create_task(looking)}
        for partition in partitions:
            self.known.pop(partition, None)

    async def _look_for(self, topics: Iterable[str]) -> None:
        """Have `fetch` tell of those that are no more; under KIP-848 their partitions are just taken away."""
        with suppress(TransportError):
            known = await self._admin.partitions()
            gone = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
            self._errors.extend((gone, TopicPartition(topic, -1)) for topic in topics if topic not in known)
            self._arrived.set()

    async def _tell(self, telling: Awaitable[None]) -> None:
        try:
            await telling
        except Exception as error:
            self._failure = error
            self._arrived.set()

    # ---- from the inbox to who fetches

    def _sort(self) -> None:
        while self._inbox:
            batch = self._inbox.popleft()
            flow = self._ours.get(batch.partition)
            if flow is None or flow.version != batch.version:
                self._thread.took(len(batch.records))
                continue
            if batch.end is not None:
                flow.ended = batch.end >= flow.next_offset
                continue
            flow.buffer.extend(batch.records)
            flow.next_offset, flow.ended = batch.records[-1].offset + 1, False
            if flow.paused:
                self._thread.took(len(batch.records))
                if len(flow.buffer) >= HOLD_RECORDS and not flow.held:
                    flow.held = True
                    self._thread.hold(batch.partition)

    def _take(self, records_max: int) -> list[Record]:
        taken: list[Record] = []
        for flow in self._ours.values():
            while flow.buffer and not flow.paused and len(taken) < records_max:
                taken.append(flow.buffer.popleft())
        self._thread.took(len(taken))
        return taken

    async def _raise_failure(self) -> None:
        if self._closed:
            raise TransportError(f"this member of group {self._group!r} is closed")
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise TransportError(self._gave_up(failure)) from failure
        if self._errors:
            error, partition = self._errors[0]
            if error.code() != KafkaError._FATAL:  # from which a consumer never recovers: told at each fetch
                self._errors.popleft()
            flow = self._ours.get(partition) if partition is not None else None
            offset = flow.next_offset if flow else -1
            raise await explained(self._admin, self._group, error, partition, offset, self._principal)

    def _gave_up(self, failure: BaseException) -> str:
        return f"{self._group!r} cannot take or give up partitions, or poll: {reason(failure)}"

    @asynccontextmanager
    async def _deadline(self, what: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TransportError:
            raise
        except Exception as error:
            raise TransportError(f"{what}: {reason(error)}") from error
