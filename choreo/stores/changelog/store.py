"""Idempotency keys on the log itself: in the same Kafka transaction as the emits and the committed offset.

Each input topic of a group has a compacted topic beside it, as wide, whose partition n holds the keys of the input's
partition n. They are looked up in memory, and restored from the log when a partition is assigned. What fences an
owner is the log (`Transactions`), so a lease here is a row in nobody's table: its epoch is the log's.

An event is known again where its key is: in the same input partition, not beyond.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal, Protocol

from choreo.errors import ChoreoError, ConfigurationError, LeaseLost, RecordTooLarge, StoreError
from choreo.ports import (
    Carries,
    Claimed,
    ClaimRequest,
    CommitRequest,
    CommitResult,
    Finished,
    Lease,
    StoreStats,
    Transactions,
    Transport,
)
from choreo.record import ProducerRecord, TopicPartition
from choreo.stores.changelog.partition import (
    HeldPartition,
    Part,
    Progress,
    first_failure,
    stats_of,
    units_by_partition,
)
from choreo.stores.changelog.topics import changelog_topic, check_topics

log = logging.getLogger("choreo.changelog")

_PARTITION = attrgetter("partition")
RESTORES_AT_ONCE_MAX = 4
PURGE_KEYS_MAX = 10_000
"""Forgotten a call; the event loop stands still for it, some 10 ms."""


class TransactionalTransport(Transport, Protocol):
    """A log with transactions that are fenced by input partition."""

    def transactions(self, group: str) -> Transactions:
        """Of one consumer group; closed by whoever asked for them."""


class ChangelogStore:
    """`IdempotencyStore` of one consumer group on its own log.

    Args:
        transport: The log that the service consumes from; open before a partition is acquired.
        group: The only group it is asked for.
        topic_prefix: Put before the names of changelog topics.
        progress: Told how far the restore of a partition has come, every few seconds and at its end.
    """

    name = "changelog"
    carries: frozenset[Carries] = frozenset({"offset", "emits"})
    dedupe_scope: Literal["anywhere", "partition"] = "partition"
    transaction_types: frozenset[str] = frozenset()
    transactions_max = 0

    def __init__(
        self,
        transport: TransactionalTransport,
        group: str,
        *,
        topic_prefix: str = "",
        progress: Progress | None = None,
    ) -> None:
        self._transport = transport
        self._group = group
        self._prefix = topic_prefix
        self._progress = progress
        self._log: Transactions | None = None
        self._held: dict[TopicPartition, HeldPartition] = {}

    async def open(self) -> None:
        """Nothing is asked of the log before a partition is acquired."""
        self._log = self._log or self._transport.transactions(self._group)

    async def plan(self) -> Sequence[str]:
        """Nothing: its topics are made by `choreo topics apply`, from `changelog_specs`."""
        return []

    async def apply(self) -> None:
        """Nothing, as `plan` says."""

    # ---- leases

    async def acquire(self, group: str, partitions: Sequence[TopicPartition], owner: str) -> Sequence[Lease]:
        """Fence the partitions' former owners, and only then restore their keys; offsets are read after it.

        Raises:
            ConfigurationError: A changelog topic is missing or not as wide as its input topic.
        """
        self._check(group)
        if not partitions:
            return []
        names = {name for each in partitions for name in (each.topic, self._place(each).topic)}
        check_topics(group, {each.topic for each in partitions}, await self._transport.topics(names), self._prefix)
        for partition in partitions:
            await self._drop(partition)
        try:
            epochs = await self._transactions.fence(partitions)
            held = [HeldPartition(Lease(group, each, epochs[each], owner), self._place(each)) for each in partitions]
            await self._restore(held)
        except BaseException:
            await self._transactions.give_up(partitions)
            raise
        self._held.update({each.lease.partition: each for each in held})
        return [each.lease for each in held]

    def _place(self, partition: TopicPartition) -> TopicPartition:
        return partition._replace(topic=changelog_topic(self._group, partition.topic, self._prefix))

    async def _restore(self, held: Sequence[HeldPartition]) -> None:
        began_s, slots = time.monotonic(), asyncio.Semaphore(RESTORES_AT_ONCE_MAX)

        async def one(partition: HeldPartition) -> None:
            async with slots:
                await partition.restore(self._transactions, self._progress)

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

    async def renew(
        self, leases: Sequence[Lease], lease_s: float, progress_ms: Mapping[TopicPartition, int] | None = None
    ) -> frozenset[TopicPartition]:
        """Which leases are known to be lost: this is learnt from a commit that was refused, and needs no renewal."""
        for partition, at_ms in (progress_ms or {}).items():
            if partition in self._held:
                self._held[partition].progress_ms = at_ms
        return frozenset(lease.partition for lease in leases if self._of(lease) is None)

    async def release(self, leases: Sequence[Lease]) -> None:
        """Give them up, with their keys in memory and their claims."""
        ours = [lease.partition for lease in leases if self._of(lease) is not None]
        for partition in ours:
            self._held.pop(partition)
        if ours:
            await self._transactions.give_up(ours)

    def _of(self, lease: Lease) -> HeldPartition | None:
        held = self._held.get(lease.partition)
        return held if held is not None and held.lease == lease else None

    # ---- units

    async def claim(self, leases: Sequence[Lease], requests: Sequence[ClaimRequest]) -> Sequence[Claimed]:
        """From memory; never busy, since a key is one partition's, and deliveries are not counted."""
        held: dict[TopicPartition, HeldPartition] = {}
        for lease in leases:
            partition = self._of(lease)
            if partition is None:
                raise LeaseLost(f"{lease.partition} of the group {lease.group} is not ours any more")
            held[lease.partition] = partition
        runs = groupby(requests, key=_PARTITION)
        return [claimed for id_, run in runs for claimed in held[id_].claim(list(run))]

    async def commit(self, request: CommitRequest) -> CommitResult:
        """Emits, packed keys and offsets, one transaction a partition.

        Raises:
            RecordTooLarge: Of its partition nothing was written; `index` counts the emits of `request.finished`.
            ChoreoError: Of some partition it is not known whether it was written; the rest was. The same request
                again finds out first.
        """
        if request.transacted:
            raise ConfigurationError("the changelog store has no transaction for handlers: choose a database")
        units = units_by_partition(request.finished)
        wanted = request.offsets.keys() | units.keys()
        ours = {id_: held for id_ in sorted(wanted) if (held := self._of(request.leases[id_])) is not None}
        refused = wanted - ours.keys()
        async with AsyncExitStack() as stack:
            for held in ours.values():
                await stack.enter_async_context(held.lock)
            failed = await self._resolve([held for id_, held in ours.items() if self._held.get(id_) is held])
            parts: dict[HeldPartition, Part] = {}
            for id_, held in ours.items():
                ours_still = self._held.get(id_) is held  # neither released nor taken anew while we waited
                if ours_still and held.in_doubt:
                    continue
                part = held.part(units.get(id_, ()), request.offsets.get(id_)) if ours_still else None
                if part is None:
                    await self._lose(held)
                    refused.add(id_)
                elif part.records or part.offset is not None:
                    parts[held] = part
            lost, errors = await self._write(parts, request.finished)
        if failed or errors:
            raise first_failure(failed + errors)
        return CommitResult(frozenset(refused | lost), (), [])

    async def _resolve(self, partitions: Iterable[HeldPartition]) -> list[Exception]:
        """Learn what became of commits in doubt; returns why it is not known yet of some."""
        doubtful = [each for each in partitions if each.in_doubt]
        answers = await asyncio.gather(
            *(each.resolve(self._transactions) for each in doubtful), return_exceptions=True
        )
        for answer in answers:
            if answer is not None and not isinstance(answer, ChoreoError):
                raise answer
        released = [each.lease.partition for each in doubtful if self._of(each.lease) is None]
        await self._transactions.give_up(released)  # while they were fenced once more
        return [answer for answer in answers if isinstance(answer, ChoreoError)]

    async def _write(
        self, parts: Mapping[HeldPartition, Part], finished: Sequence[Finished] = ()
    ) -> tuple[set[TopicPartition], list[Exception]]:
        """Commit each part, of these units; returns the partitions that are lost, and what else went wrong."""
        if not parts:
            return set(), []
        for held in parts:
            held.in_doubt = True  # until the log says otherwise, should we be cancelled
        answers = await self._transactions.commit(
            {held.lease.partition: part.log_commit() for held, part in parts.items()}
        )
        lost: set[TopicPartition] = set()
        errors: list[Exception] = []
        for held, part in parts.items():
            error = answers[held.lease.partition]
            if error is None:
                held.in_doubt = False
                held.landed(part)
            elif isinstance(error, LeaseLost):
                await self._lose(held)
                lost.add(held.lease.partition)
            elif isinstance(error, RecordTooLarge):
                place = held.too_large(part, error.index, finished)
                errors.append(place if isinstance(place, StoreError) else RecordTooLarge(str(error), index=place))
            else:
                errors.append(error)
        return lost, errors

    async def _lose(self, held: HeldPartition) -> None:
        """Its lock is held meanwhile, so that who takes the partition anew is not given up with it."""
        partition = held.lease.partition
        if self._held.get(partition) is not held:
            return
        try:
            await self._transactions.give_up([partition])
        except ChoreoError as error:
            log.warning("%s: letting go of it failed: %s", partition, error)
        finally:
            if self._held.get(partition) is held:
                del self._held[partition]

    async def pending(self, lease: Lease) -> Sequence[tuple[int, ProducerRecord]]:
        """None: emits are on the log."""
        return []

    async def sent(self, rows: Sequence[int]) -> None:
        """Nothing is left to be sent."""

    # ---- retention

    async def purge(self, group: str, topics: Sequence[str], ttl_ms: int) -> int:
        """As the port says, of the partitions that are ours, each by its own progress.

        A key is looked for in its own partition only, so the progress of the others says nothing about it.
        Tombstones go with the partition's next commit; if there was none since the last call, by themselves.
        """
        self._check(group)
        forgotten = 0
        for held in [each for each in self._held.values() if each.lease.partition.topic in set(topics)]:
            if held.tombstones and not held.committed_since_purge and not held.lock.locked():
                await self._bury(held)
            held.committed_since_purge = False
            if forgotten < PURGE_KEYS_MAX and self._held.get(held.lease.partition) is held:
                forgotten += held.expire(ttl_ms, PURGE_KEYS_MAX - forgotten)
        return forgotten

    async def _bury(self, held: HeldPartition) -> None:
        async with held.lock:
            if self._held.get(held.lease.partition) is not held:
                return
            failed = await self._resolve([held])
            if not failed:
                failed = (await self._write({held: held.burial()}))[1]
            for error in failed:
                log.warning(
                    "%s: %d tombstones are still to be written: %s", held.changelog, len(held.tombstones), error
                )

    async def stats(self) -> Mapping[str, StoreStats]:
        """Of the partitions that are ours, from memory."""
        return {self._group: stats_of(self._held.values())}

    async def run(self, function: Callable[[Any], object]) -> None:
        """Refused: there is no database."""
        raise ConfigurationError(
            f"{getattr(function, '__qualname__', function)} wants a database, and the changelog store has none: "
            "give the service a store that carries rows"
        )

    async def close(self) -> None:
        """Disconnect; what is still held is given up."""
        self._held.clear()
        if self._log is not None:
            await self._log.close()
            self._log = None

    @property
    def _transactions(self) -> Transactions:
        if self._log is None:
            raise StoreError("the changelog store is not open")
        return self._log

    def _check(self, group: str) -> None:
        if group != self._group:
            raise ConfigurationError(f"this changelog store is of the group {self._group}, and {group} was asked for")
