"""Idempotency keys on the log itself: in the same Kafka transaction as the emits and the committed offset.

Each input topic of a group has a compacted topic beside it, as wide, whose partition n holds the keys of the input's
partition n. They are looked up in memory, and restored from the log when a partition is assigned. What fences an
owner is the log (`Transactions`), so a lease here is a row in nobody's table: its epoch is the log's.

An event is known again where its key is: in the same input partition, not beyond.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal

from choreo.errors import ConfigurationError, LeaseLost
from choreo.ports import Carries, Claimed, ClaimRequest, CommitRequest, CommitResult, Lease, StoreStats
from choreo.record import ProducerRecord, TopicPartition
from choreo.stores.changelog.commit import bury, commit
from choreo.stores.changelog.holdings import Holdings, TransactionalTransport
from choreo.stores.changelog.partition import HeldPartition, Progress, stats_of

_PARTITION = attrgetter("partition")
PURGE_KEYS_MAX = 10_000
"""Forgotten a call; the event loop stands still for it, some 10 ms."""


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
        self._group = group
        self._holdings = Holdings(transport, group, topic_prefix, progress)

    async def open(self) -> None:
        """Nothing is asked of the log before a partition is acquired."""
        self._holdings.open()

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
        return await self._holdings.take(partitions, owner) if partitions else []

    async def renew(
        self, leases: Sequence[Lease], lease_s: float, progress_ms: Mapping[TopicPartition, int] | None = None
    ) -> frozenset[TopicPartition]:
        """Which leases are known to be lost: this is learnt from a commit that was refused, and needs no renewal."""
        self._holdings.reached(progress_ms or {})
        return frozenset(lease.partition for lease in leases if self._holdings.of(lease) is None)

    async def release(self, leases: Sequence[Lease]) -> None:
        """Give them up, with their keys in memory and their claims."""
        await self._holdings.give_up(leases)

    # ---- units

    async def claim(self, leases: Sequence[Lease], requests: Sequence[ClaimRequest]) -> Sequence[Claimed]:
        """From memory; never busy, since a key is one partition's, and deliveries are not counted."""
        held: dict[TopicPartition, HeldPartition] = {}
        for lease in leases:
            partition = self._holdings.of(lease)
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
        return await commit(self._holdings, request)

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
        for held in [each for each in self._holdings.all() if each.lease.partition.topic in set(topics)]:
            if held.tombstones and not held.committed_since_purge and not held.lock.locked():
                await bury(self._holdings, held)
            held.committed_since_purge = False
            if forgotten < PURGE_KEYS_MAX and self._holdings.has(held):
                forgotten += held.expire(ttl_ms, PURGE_KEYS_MAX - forgotten)
        return forgotten

    async def stats(self) -> Mapping[str, StoreStats]:
        """Of the partitions that are ours, from memory."""
        return {self._group: stats_of(self._holdings.all())}

    async def run(self, function: Callable[[Any], object]) -> None:
        """Refused: there is no database."""
        raise ConfigurationError(
            f"{getattr(function, '__qualname__', function)} wants a database, and the changelog store has none: "
            "give the service a store that carries rows"
        )

    async def close(self) -> None:
        """Disconnect; what is still held is given up."""
        await self._holdings.close()

    def _check(self, group: str) -> None:
        if group != self._group:
            raise ConfigurationError(f"this changelog store is of the group {self._group}, and {group} was asked for")
