"""Kafka transactions fenced by the group's generation (KIP-447): one producer, one transaction a flush.

Why nobody commits for a partition that is another's:

- A transaction's offsets carry generation and member. A broker refuses those of a member it does not know, or of an
  older generation, before the transaction can end well. So every transaction carries at least one offset; a part
  without one repeats the offset that is committed already.
- Records are all acknowledged before the offsets are sent. Whoever was evicted meanwhile is refused with every record
  of his on the log and uncommitted; nothing of his can follow under a transaction that was let through.
- The generation fences the member, not its single partitions. One taken from a member in good order is guarded by
  `Grants`: the membership is read first, then it is looked whether each partition is still ours. librdkafka rejoins
  only after the partition was handed back, so a membership read before that is one under which it was ours, or one
  that brokers refuse by now. And a partition is handed back only when transactions with it are over.
- What a failed transaction appended holds back every reader of those partitions until it is ended: at once, by a
  successor of its producer, also when nothing else is to be committed and before this process leaves.
- Offsets taken by a broker may still be uncommitted when the partition changes hands. The next owner's `fence` reads
  the committed offset with `require_stable`, which waits until that transaction has ended, either way. Only then
  `read`: it sees what the transaction left. One without offsets may still be open then; it can only be aborted, and
  `read` waits for it, for it reads to the end of all that was appended.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from choreo.errors import LeaseLost, TransportError
from choreo.ports import LogCommit
from choreo.record import Record, TopicPartition
from choreo.transports.confluent.admin import ConfluentAdmin
from choreo.transports.confluent.appending import Appending, Refused
from choreo.transports.confluent.calling import until
from choreo.transports.confluent.client import STALE, KafkaException, error_of, place, reason
from choreo.transports.confluent.consumer import ConfluentConsumer
from choreo.transports.confluent.reading import read_range, span
from choreo.transports.confluent.succession import TRANSACTION_S, Succession
from choreo.transports.kafka.security import principal_of

log = logging.getLogger(__name__)

COMMIT_S = 7.0
"""Deadline of one transaction: we must have given up, and know it, before the broker does (TRANSACTION_S)."""

ROUNDS_MAX = 6
STALE_WAIT_S = 0.5
READ_STALL_S = 90.0

CLOSE_S = 5.0
"""For ending a transaction that failed, at the close; after that it is the broker's (TRANSACTION_S, and some)."""


class _Stale(Exception):
    """Nothing was committed: the broker, or the member itself, knows of a newer generation."""


class ConfluentTransactions:
    """As `choreo.ports.Transactions`, of this process's member of the group.

    Args:
        member: Finds the consumer of the group.
        timeout_s: Deadline of one commit, one fence.
    """

    def __init__(
        self,
        group: str,
        member: Callable[[], ConfluentConsumer | None],
        arguments: Mapping[str, Any],
        *,
        admin: ConfluentAdmin,
        timeout_s: float,
    ) -> None:
        self._group = group
        self._member = member
        self._connection = dict(arguments)
        self._timeout_s = timeout_s
        self._admin = admin
        self._producers = Succession(group, arguments, self._losses, timeout_s=timeout_s)
        self._appending = Appending(group, principal_of(arguments), self._producers)
        self._ending: asyncio.Task[None] | None = None
        self._tokens: dict[TopicPartition, int] = {}
        self._epoch = 0
        self._one = asyncio.Lock()
        self._closed = False

    async def fence(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """As the port says. Epochs grow with the group's generation, and within it with each call."""
        try:
            async with self._one, asyncio.timeout(self._timeout_s):
                member = self._consumer()
                await self._producers.ready()  # ends a transaction of ours without a known end
                tokens = {partition: member.grants.token(partition) for partition in partitions}
                _, joined = await asyncio.wrap_future(member.offsets.metadata())
                strangers = [str(each) for each in partitions if tokens[each] is None]
                if strangers or not joined.joined:
                    raise TransportError(f"{', '.join(strangers) or 'nothing'} is assigned to this member now")
                await member.offsets.committed(partitions)
        except TransportError:
            raise
        except Exception as error:
            raise TransportError(f"group {self._group!r}: partitions cannot be taken: {reason(error)}") from error
        self._epoch = max(self._epoch + 1, joined.generation << 20)
        self._tokens.update({partition: token for partition, token in tokens.items() if token is not None})
        return dict.fromkeys(partitions, self._epoch)

    async def commit(self, parts: Mapping[TopicPartition, LogCommit]) -> Mapping[TopicPartition, Exception | None]:
        """As the port says: one transaction for all; if some of them are why it failed, another for the others."""
        results: dict[TopicPartition, Exception | None] = {}
        pending = dict(parts)
        try:
            async with self._one:
                for _ in range(ROUNDS_MAX):
                    for partition in [each for each in pending if not self._owned(each)]:
                        results[partition] = LeaseLost(f"{partition} is not ours any more; nothing was committed")
                        del pending[partition]
                    if not pending:
                        break
                    done = await self._attempt(pending)
                    results.update(done)
                    pending = {partition: part for partition, part in pending.items() if partition not in done}
        finally:
            if self._producers.begun and self._ending is None and not self._closed:
                self._ending = asyncio.create_task(self._end_begun(self._timeout_s))
        in_between = TransportError(f"group {self._group!r} is between two generations; not committed, try again")
        return {partition: results.get(partition, in_between) for partition in parts}

    async def _attempt(self, parts: Mapping[TopicPartition, LogCommit]) -> dict[TopicPartition, Exception | None]:
        """One transaction; what became of the parts that are not to be tried again."""
        try:
            await self._producers.ready()
            await self._producers.run(lambda: self._transact(parts), COMMIT_S)
        except Refused as refused:
            return dict(refused.parts)
        except _Stale as stale:
            log.info("group %s: not committed: %s", self._group, stale)
            await asyncio.sleep(STALE_WAIT_S)  # until the consumer knows what was taken from it
            return {}
        except TransportError as error:
            return dict.fromkeys(parts, error)
        except Exception as error:
            why = f"group {self._group!r}: it is not known whether it was committed: {reason(error)}"
            return dict.fromkeys(parts, TransportError(why))
        return dict.fromkeys(parts)

    async def give_up(self, partitions: Sequence[TopicPartition]) -> None:
        """As the port says; a commit under way ends first."""
        async with self._one:
            for partition in partitions:
                self._tokens.pop(partition, None)

    async def read(self, partition: TopicPartition, offset: int) -> AsyncIterator[Sequence[Record]]:
        """As the port says."""
        wanted = await span(self._admin, partition, offset)
        batches = read_range(self._connection, self._admin, {partition: wanted}, stall_s=READ_STALL_S)
        async for records in batches:
            yield records

    async def close(self) -> None:
        """As the port says; what is open is never committed."""
        self._closed = True
        if (ending := self._ending) is not None:
            await asyncio.wait({ending}, timeout=CLOSE_S)
            ending.cancel()
        elif self._producers.begun or self._one.locked():  # a commit under way may fail
            await self._end_begun(CLOSE_S)
        self._producers.end()

    async def _end_begun(self, within_s: float) -> None:
        """Start a successor of the producer whose transaction failed, which is how a broker comes to abort it."""
        try:
            async with asyncio.timeout(within_s), self._one:
                if self._producers.begun:
                    await self._producers.ready(within_s)
        except Exception as error:
            what = "a transaction that failed holds back readers until the broker ends it"
            log.warning("group %s: %s, within %g s: %s", self._group, what, 2 * TRANSACTION_S, reason(error))
        finally:
            self._ending = None

    # ---- on the loop

    def _consumer(self) -> ConfluentConsumer:
        member = self._member()
        if member is None or self._closed:
            raise TransportError(f"this process has no member in group {self._group!r}, whose transactions these are")
        return member

    def _owned(self, partition: TopicPartition) -> bool:
        member = self._member()
        token = self._tokens.get(partition)
        return member is not None and token is not None and member.grants.token(partition) == token

    def _losses(self) -> int:
        member = self._member()
        return member.failures.disconnects if member is not None else 0

    # ---- on the thread

    def _transact(self, parts: Mapping[TopicPartition, LogCommit]) -> None:
        member = self._consumer()
        until_s, ending = time.monotonic() + COMMIT_S, False
        with member.grants.using(parts):
            producer = self._producers.current()
            try:
                offsets = self._offsets(member, parts)
                asked = member.offsets.metadata()  # of a moment before it is looked whether they are ours: see above
                self._producers.begin(producer)
                self._appending.append(producer, parts, until_s)
                metadata, joined = asked.result(COMMIT_S)
                lost = [each for each in parts if not self._owned(each)]
                if lost:
                    raise Refused({each: LeaseLost(f"{each} was taken meanwhile") for each in lost})
                if not joined.joined:
                    raise _Stale("no member now")
                if self._producers.suspect():
                    raise _Stale("a broker was lost meanwhile; begun anew")
                places = [place(partition, offset) for partition, offset in offsets.items()]
                until(until_s, lambda left_s: producer.send_offsets_to_transaction(places, metadata, left_s))
                self._producers.check(producer)
                ending = True
                until(until_s, producer.commit_transaction)
            except KafkaException as error:
                self._producers.discard(producer)
                found = error_of(error)
                if found is not None and found.code() in STALE:
                    raise _Stale(reason(error)) from error
                if found is not None and self._appending.ask(found, ending=ending):
                    raise Refused({}) from error
                raise
            except BaseException:
                self._producers.discard(producer)
                raise
            self._producers.ended(producer)
            self._appending.committed()
            member.offsets.known.update(offsets)

    def _offsets(
        self, member: ConfluentConsumer, parts: Mapping[TopicPartition, LogCommit]
    ) -> dict[TopicPartition, int]:
        offsets: dict[TopicPartition, int] = {}
        for partition, part in parts.items():
            offset = part.offset if part.offset is not None else member.offsets.known.get(partition)
            if offset is None:
                why = "nothing was ever committed for it; commit its position first: what has no offset is not fenced"
                raise Refused({partition: TransportError(f"{partition}: {why}")})
            offsets[partition] = offset
        return offsets
