"""The port of transactions on the log, which a transport may offer beside its own."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from choreo.record import ProducerRecord, Record, TopicPartition


class LogCommit(NamedTuple):
    """One input partition's part of a transaction on the log: records in order, then its committed offset."""

    records: Sequence[ProducerRecord]
    offset: int | None = None


class Transactions(Protocol):
    """Commits of one consumer group that exist on the log only whole, and only while their partition is ours.

    What is appended here is seen by readers under read_committed. A transport that has it offers
    `transactions(group) -> Transactions`.
    """

    async def fence(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Take each input partition with a newer epoch than anyone had; returns the epochs.

        When it returns no former owner can commit for them any more, and every transaction of theirs has ended.
        Taking again what is ours already ends a transaction of our own whose end is not known.

        Raises:
            TransportError: It could not be taken; try again.
        """

    async def commit(self, parts: Mapping[TopicPartition, LogCommit]) -> Mapping[TopicPartition, Exception | None]:
        """Commit each partition's part, whole or not at all; of several partitions some may fail.

        Returns, for each: None, committed; LeaseLost, a newer owner has it and nothing was written; another
        exception, it is not known whether it was committed: `fence` the partition, then look on the log.
        """

    async def give_up(self, partitions: Sequence[TopicPartition]) -> None:
        """Let go of them; a transaction that is open is never committed."""

    def read(self, partition: TopicPartition, offset: int) -> AsyncIterator[Sequence[Record]]:
        """Committed records of any partition from `offset` (or the first there is) to its end as it is now.

        The end is that of all that was appended: an open transaction is waited for. Ascending, in batches.
        """

    async def close(self) -> None:
        """Disconnect."""
