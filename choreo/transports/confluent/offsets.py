"""What a group has committed and commits, through librdkafka."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from choreo.errors import TransportError
from choreo.record import TopicPartition
from choreo.transports.confluent.admin import AGAIN_S, ONCE_S, ConfluentAdmin, passing
from choreo.transports.confluent.client import (
    Consumer,
    KafkaError,
    KafkaException,
    Membership,
    error_of,
    made,
    membership,
    partition_of,
    place,
)
from choreo.transports.confluent.poll import PollThread
from choreo.transports.confluent.settings import CONSUMER_DEFAULTS

BEHIND = frozenset({KafkaError.STALE_MEMBER_EPOCH, KafkaError.REBALANCE_IN_PROGRESS, KafkaError._WAIT_COORD})
"""Answers to a commit of a member that is about to learn of a newer generation."""


class CommittedOffsets:
    """Asked by a consumer that never joins the group.

    Not by librdkafka's admin client, which ends the process by SIGSEGV if the broker it asks does not coordinate the
    group any more (librdkafka 2.16, its issue 5040). Nor by the member, which is to poll meanwhile.
    """

    def __init__(self, group: str, arguments: Mapping[str, Any], admin: ConfluentAdmin, *, timeout_s: float) -> None:
        self._arguments = {**CONSUMER_DEFAULTS, **arguments, "group.id": group}
        self._admin = admin
        self._timeout_s = timeout_s
        self._consumer: Consumer | None = None
        self._one = asyncio.Lock()

    async def of(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int | None]:
        """Offset by partition, None where there never was one.

        Under `require_stable`: while a transaction holds another offset for one, its end is waited for. An error,
        also one of a partition alone, is never taken for "nothing committed".
        """
        until_s = time.monotonic() + self._timeout_s
        while True:
            try:
                async with self._one:
                    return await self._admin.call(lambda: self._ask(partitions))
            except KafkaException as error:
                if passing(error) is None or time.monotonic() > until_s:
                    raise
            await asyncio.sleep(AGAIN_S)

    def close(self) -> None:
        """Disconnect, in the background."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            self._admin.soon(consumer.close)

    def _ask(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int | None]:
        if self._consumer is None:
            self._consumer = made(Consumer, self._arguments)
        self._consumer.poll(0)  # has its log told; it receives nothing
        # CONSUMER_DEFAULTS' isolation level, read_committed, is what makes it require stable offsets.
        answers = self._consumer.committed([place(each) for each in partitions], min(ONCE_S, self._timeout_s))
        for answer in answers:
            if answer.error is not None:
                raise KafkaException(answer.error)
        return {partition_of(each): None if each.offset < 0 else int(each.offset) for each in answers}


class MemberOffsets:
    """The offsets of a group as one member of it reads and commits them.

    Attributes:
        known: As far as this member read or wrote them.
    """

    def __init__(self, group: str, consumer: Consumer, thread: PollThread, committed: CommittedOffsets) -> None:
        self.known: dict[TopicPartition, int] = {}
        self._group = group
        self._consumer = consumer
        self._thread = thread
        self._committed = committed
        self._one = asyncio.Lock()

    async def committed(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int | None]:
        """As `CommittedOffsets.of`."""
        offsets = await self._committed.of(partitions)
        self.known.update({partition: offset for partition, offset in offsets.items() if offset is not None})
        return offsets

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Without a deadline; TransportError if one is not ours, KafkaException if the group has moved on."""
        if not offsets:
            return
        async with self._one:
            tokens = {partition: self._thread.grants.token(partition) for partition in offsets}
            wanted = dict(offsets)
            # All on one thread, in order: a commit that came late must not undo the one after it. Tried again from
            # here, for the thread may have to take part in a rebalance before it succeeds.
            call = self._thread.commands.call
            while not await asyncio.wrap_future(call(lambda: self._commit(wanted, tokens))):  # noqa: ASYNC110
                await asyncio.sleep(AGAIN_S)
        self.known.update(offsets)

    def metadata(self) -> "Future[tuple[bytes, Membership]]":
        """Who this member is in the group, for a transaction: as librdkafka wants it, and in the clear."""
        return self._thread.commands.call(self._metadata)

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """They are ours no more."""
        for partition in partitions:
            self.known.pop(partition, None)

    # ---- on the thread

    def _metadata(self) -> tuple[bytes, Membership]:
        found: bytes = self._consumer.consumer_group_metadata()
        return found, membership(found)

    def _commit(self, offsets: Mapping[TopicPartition, int], tokens: Mapping[TopicPartition, int | None]) -> bool:
        """Whether it was done; False if it is worth another try."""
        _, member = self._metadata()
        now = self._thread.grants.token
        strangers = [str(each) for each, token in tokens.items() if token is None or now(each) != token]
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
            if told is None or not (told.retriable() or told.code() in BEHIND):
                raise
            return False
        return True
