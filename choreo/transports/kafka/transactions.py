"""Transactions on Kafka that are sound on aiokafka: a producer an input partition, discarded with what went wrong.

Its TxnOffsetCommit names no member and no generation, so brokers take the commit of a member that lost its partition.
What stops that member is the transactional id, one an input partition: InitProducerId of the next owner fences it and
ends its transaction. So whoever takes a partition calls `fence`, then reads offset and log, then handles.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.errors import LeaseLost, RecordTooLarge, TransportError
from choreo.ports import LogCommit
from choreo.record import ProducerRecord, Record, TopicPartition
from choreo.transports.kafka.batches import Filled, deliver, fill
from choreo.transports.kafka.errors import denied, reason
from choreo.transports.kafka.fencing import FENCED, PartitionLimit, TransactionalRawBatch, cause
from choreo.transports.kafka.producer import TOO_LARGE, partition_of, too_large
from choreo.transports.kafka.producers import Fenced, FencedProducers
from choreo.transports.kafka.reading import read_to_end
from choreo.transports.kafka.security import principal_of
from choreo.transports.kafka.settings import TRANSACTION_DEFAULTS, KafkaTransactionSettings


class KafkaTransactions:
    """As `choreo.ports.Transactions`; made by `KafkaTransport.transactions`.

    A partition is committed for from `fence` until its first commit that fails; then its producer is gone, and
    whatever it had begun is ended by the next `fence` of that partition, here or elsewhere.

    Args:
        arguments: aiokafka's for producers, over TRANSACTION_DEFAULTS.
        read_arguments: aiokafka's of connection and security.
        limit: Shared by all groups of a process.
        ask_s: Deadline of one `fence`.
    """

    def __init__(
        self,
        group: str,
        arguments: Mapping[str, Any],
        read_arguments: Mapping[str, Any],
        *,
        settings: KafkaTransactionSettings,
        limit: PartitionLimit,
        ask_s: float,
    ) -> None:
        self._group = group
        self._arguments = {**TRANSACTION_DEFAULTS, "partitioner": partition_of, **arguments}
        self._read_arguments = read_arguments
        self._settings, self._ask_s = settings, ask_s
        self._producers = FencedProducers(
            group, self._arguments, timeout_ms=settings.timeout_ms, limit=limit, ask_s=ask_s
        )

    def __repr__(self) -> str:
        return f"KafkaTransactions({self._group!r}, {len(self._producers.fenced)} partitions)"

    async def fence(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """As the port says. Some may be taken although one could not be; ConfigurationError if too many."""
        return await self._producers.fence(partitions)

    async def commit(self, parts: Mapping[TopicPartition, LogCommit]) -> Mapping[TopicPartition, Exception | None]:
        """As the port says, within `commit_s`; RecordTooLarge with its index if one record alone is the reason.

        After any failure but a RecordTooLarge found before anything was sent, the partition is to be fenced anew.
        LeaseLost is also what a broker's own end of a transaction looks like, after a pause longer than its timeout.
        """
        results = await asyncio.gather(*(self._commit(partition, part) for partition, part in parts.items()))
        return dict(zip(parts, results, strict=True))

    async def give_up(self, partitions: Sequence[TopicPartition]) -> None:
        """As the port says."""
        await self._producers.give_up(partitions)

    def read(self, partition: TopicPartition, offset: int) -> AsyncIterator[Sequence[Record]]:
        """As the port says; TransportError if nothing moves for longer than an open transaction may last."""
        return read_to_end(
            self._read_arguments, partition, offset, open_s=self._ask_s, stall_s=self._settings.stall_s
        )

    async def close(self) -> None:
        """As the port says, within some 5 s. A reading that is going on ends by itself."""
        await self._producers.close()

    async def _commit(self, partition: TopicPartition, part: LogCommit) -> Exception | None:
        fenced = self._producers.fenced.get(partition)
        if fenced is None:
            return self._lease_lost(partition) if partition in self._producers.lost else self._not_fenced(partition)
        if not part.records and part.offset is None:
            return None
        try:
            async with asyncio.timeout(self._settings.commit_s):
                try:
                    filled = await self._filled(fenced.producer, part.records)
                except RecordTooLarge as error:  # nothing was begun
                    return error
                await self._transact(fenced, partition, part, filled)
        except BaseException as error:  # cancelled too: what it had begun must not be committed later
            ours, why = self._producers.fenced.get(partition) is fenced, cause(fenced.producer, error)
            if ours:
                self._producers.discard(partition, lost=isinstance(why, FENCED))
            if not isinstance(error, Exception):
                raise
            if not ours:  # no stranger fenced it
                return TransportError(f"{partition} was given up, or fenced anew, while a commit was under way")
            return self._outcome(partition, why)
        return None

    async def _filled(self, producer: AIOKafkaProducer, records: Sequence[ProducerRecord]) -> list[Filled]:
        bytes_max = self._arguments["max_request_size"]
        return await fill(producer, records, bytes_max=bytes_max, raw=TransactionalRawBatch)

    async def _transact(
        self, fenced: Fenced, partition: TopicPartition, part: LogCommit, filled: Sequence[Filled]
    ) -> None:
        producer = fenced.producer
        await producer.begin_transaction()
        offset = None
        if part.offset is not None:  # beside the records, to save its two round trips
            found = {KafkaPartition(*partition): part.offset}
            offset = asyncio.ensure_future(producer.send_offsets_to_transaction(found, self._group))
        try:
            # Every one awaited: 0.14 commits over a batch that failed.
            failed = await deliver(producer, part.records, filled)
            if failed:
                raise self._explained(fenced, partition, part.records, failed)
            if offset is not None:
                await offset
        finally:
            if offset is not None and not offset.cancel() and not offset.cancelled():
                offset.exception()  # seen
        await producer.commit_transaction()

    def _explained(
        self,
        fenced: Fenced,
        partition: TopicPartition,
        records: Sequence[ProducerRecord],
        failed: Mapping[int, Exception],
    ) -> Exception:
        """Which of the failures to tell of.

        A batch that is too large is not sent again in smaller ones before the caller fences: a producer made anew
        here would fence an owner that has taken the partition meanwhile, and commit what that one has committed.
        """
        size = fenced.batch_size
        oversized = [index for index, error in failed.items() if isinstance(error, TOO_LARGE)]
        for index in oversized:
            record = records[index]
            if len(oversized) == 1 or size == 1 or len(record.key or b"") + len(record.value or b"") > size:
                self._producers.resize(partition, None)
                return too_large(record, index, failed[index])  # it was alone in its batch
        if not oversized:
            return next(
                (error for error in failed.values() if isinstance(error, FENCED)), next(iter(failed.values()))
            )
        smaller = max(size // 8, 1)
        self._producers.resize(partition, smaller)
        topic = records[oversized[0]].topic
        return TransportError(
            f"{topic} takes no batch of {size} bytes; fence and commit again: they will be of {smaller}"
        )

    def _outcome(self, partition: TopicPartition, error: BaseException) -> Exception:
        if isinstance(error, FENCED):
            return self._lease_lost(partition)
        if isinstance(error, TransportError):
            return error
        if isinstance(error, TimeoutError):
            why = f"no end within {self._settings.commit_s:g} s"
        else:
            topic = str(error.args[0]) if error.args else "that it writes"
            why = denied(error, principal_of(self._arguments), "Write", topic, self._group) or reason(error)
        return TransportError(
            f"{partition}: a commit for group {self._group!r} failed ({why}); fence it to know more"
        )

    def _lease_lost(self, partition: TopicPartition) -> LeaseLost:
        return LeaseLost(
            f"a newer owner has {partition} of group {self._group!r}, or the broker ended its transaction"
        )

    def _not_fenced(self, partition: TopicPartition) -> TransportError:
        return TransportError(f"{partition} is not held for group {self._group!r}: fence it first")
