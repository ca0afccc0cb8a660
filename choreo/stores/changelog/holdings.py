"""Which input partitions are ours: taken by a fence of their log, their keys restored, given up, lost."""

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from choreo.errors import ChoreoError, StoreError
from choreo.ports import Lease, Transactions, Transport
from choreo.record import TopicPartition
from choreo.stores.changelog.partition import HeldPartition, Progress
from choreo.stores.changelog.topics import changelog_topic, check_topics

log = logging.getLogger("choreo.changelog")

RESTORES_AT_ONCE_MAX = 4


class TransactionalTransport(Transport, Protocol):
    """A log with transactions that are fenced by input partition."""

    def transactions(self, group: str) -> Transactions:
        """Of one consumer group; closed by whoever asked for them."""


class Holdings:
    """The partitions of one group that are ours, and the log that fences their owners.

    Args:
        transport: The log; open before a partition is taken.
        group: The consumer group.
        topic_prefix: Put before the names of changelog topics.
        progress: Told how far the restore of a partition has come.
    """

    def __init__(
        self, transport: TransactionalTransport, group: str, topic_prefix: str, progress: Progress | None
    ) -> None:
        self._transport = transport
        self._group = group
        self._prefix = topic_prefix
        self._progress = progress
        self._log: Transactions | None = None
        self._held: dict[TopicPartition, HeldPartition] = {}

    def open(self) -> None:
        """Nothing is asked of the log yet."""
        self._log = self._log or self._transport.transactions(self._group)

    @property
    def transactions(self) -> Transactions:
        """Of the group, on the log.

        Raises:
            StoreError: The store is not open.
        """
        if self._log is None:
            raise StoreError("the changelog store is not open")
        return self._log

    # ---- looking

    def all(self) -> Collection[HeldPartition]:
        """Those that are ours."""
        return self._held.values()

    def of(self, lease: Lease) -> HeldPartition | None:
        """The partition of a lease; None if that is not ours any more."""
        held = self._held.get(lease.partition)
        return held if held is not None and held.lease == lease else None

    def has(self, held: HeldPartition) -> bool:
        """Whether it is ours still: neither let go of nor taken anew meanwhile."""
        return self._held.get(held.lease.partition) is held

    # ---- taking and letting go

    async def take(self, partitions: Sequence[TopicPartition], owner: str) -> list[Lease]:
        """Fence the former owners, and only then restore the keys.

        Raises:
            ConfigurationError: A changelog topic is missing or not as wide as its input topic.
        """
        names = {name for each in partitions for name in (each.topic, self._place(each).topic)}
        known = await self._transport.topics(names)
        check_topics(self._group, {each.topic for each in partitions}, known, self._prefix)
        for partition in partitions:
            await self._drop(partition)
        try:
            epochs = await self.transactions.fence(partitions)
            held = [
                HeldPartition(Lease(self._group, each, epochs[each], owner), self._place(each)) for each in partitions
            ]
            await self._restore(held)
        except BaseException:
            await self.transactions.give_up(partitions)
            raise
        self._held.update({each.lease.partition: each for each in held})
        return [each.lease for each in held]

    def _place(self, partition: TopicPartition) -> TopicPartition:
        return partition._replace(topic=changelog_topic(self._group, partition.topic, self._prefix))

    async def _restore(self, held: Sequence[HeldPartition]) -> None:
        began_s, slots = time.monotonic(), asyncio.Semaphore(RESTORES_AT_ONCE_MAX)

        async def one(partition: HeldPartition) -> None:
            async with slots:
                await partition.restore(self.transactions, self._progress)

        tasks = [asyncio.create_task(one(each)) for each in held]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        keys, took_s = sum(len(each.index) for each in held), time.monotonic() - began_s
        log.info("%s: %d keys of %d partitions restored in %.1f s", self._group, keys, len(held), took_s)

    async def _drop(self, partition: TopicPartition) -> None:
        """Forget a partition once its transaction has ended; its keys are on the log."""
        held = self._held.pop(partition, None)
        if held is not None:
            async with held.lock:
                pass

    def reached(self, progress_ms: Mapping[TopicPartition, int]) -> None:
        """Log time that the committed offsets have come to."""
        for partition, at_ms in progress_ms.items():
            if partition in self._held:
                self._held[partition].progress_ms = at_ms

    async def give_up(self, leases: Sequence[Lease]) -> None:
        """Let go of what is ours of them, with its keys in memory and its claims."""
        ours = [lease.partition for lease in leases if self.of(lease) is not None]
        for partition in ours:
            self._held.pop(partition)
        if ours:
            await self.transactions.give_up(ours)

    async def lose(self, held: HeldPartition) -> None:
        """A newer owner has it. Its lock is held meanwhile, so that who takes it anew is not given up with it."""
        partition = held.lease.partition
        if not self.has(held):
            return
        try:
            await self.transactions.give_up([partition])
        except ChoreoError as error:
            log.warning("%s: letting go of it failed: %s", partition, error)
        finally:
            if self.has(held):
                del self._held[partition]

    async def close(self) -> None:
        """Disconnect; what is still held is given up."""
        self._held.clear()
        if self._log is not None:
            await self._log.close()
            self._log = None
