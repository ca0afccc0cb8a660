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

No record has a delivery report: each would take Python's lock from the event loop once. librdkafka counts those that
failed and refuses to commit; only then is the transaction made again with reports, which tell whose record it was.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

from choreo.errors import LeaseLost, TransportError
from choreo.ports import LogCommit
from choreo.record import Record, TopicPartition
from choreo.transports.confluent.admin import ConfluentAdmin
from choreo.transports.confluent.calling import CallThread, Hung, until
from choreo.transports.confluent.client import (
    STALE,
    TOO_LARGE,
    KafkaError,
    KafkaException,
    Producer,
    error_of,
    made,
    place,
    reason,
)
from choreo.transports.confluent.consumer import ConfluentConsumer
from choreo.transports.confluent.producer import failed_delivery, failure_of, produce
from choreo.transports.confluent.reading import read_range, span
from choreo.transports.confluent.settings import PRODUCER_DEFAULTS, TRANSACTION_BATCHES, TRANSACTION_DEFAULTS
from choreo.transports.kafka.fencing import NAMESPACE, transactions_of
from choreo.transports.kafka.security import principal_of

log = logging.getLogger(__name__)

TRANSACTION_S = 10.0
"""After so long a broker ends a transaction whose producer is gone; readers under read_committed wait for it."""

COMMIT_S = 7.0
"""Deadline of one transaction: we must have given up, and know it, before the broker does."""

ROUNDS_MAX = 6
STALE_WAIT_S = 0.5
READ_STALL_S = 90.0
ABORT_S = 30.0

RENEW_S = 3.0
"""For so long a producer is not suspected of going by a coordinator that is no more."""

CLOSE_S = 5.0
"""For ending a transaction that failed, at the close; after that it is the broker's (TRANSACTION_S, and some)."""


class _Refused(Exception):
    """Nothing was committed, on account of these parts; the others may be tried without them."""

    def __init__(self, parts: Mapping[TopicPartition, Exception]) -> None:
        super().__init__(", ".join(map(str, parts)))
        self.parts = parts


class _Stale(Exception):
    """Nothing was committed: the broker, or the member itself, knows of a newer generation."""


class ConfluentTransactions:
    """As `choreo.ports.Transactions`, of this process's member of the group.

    Any error ends the producer; its successor has the same transactional id, so its start ends what was left open.

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
        self._principal = principal_of(arguments)
        self._member = member
        self._connection = dict(arguments)
        self._timeout_s = timeout_s
        self._admin = admin
        self._arguments = {
            **PRODUCER_DEFAULTS,
            **TRANSACTION_DEFAULTS,
            **arguments,
            "transactional.id": f"{transactions_of(NAMESPACE, group)}{uuid4()}",
            "transaction.timeout.ms": int(TRANSACTION_S * 1000),
            "message.timeout.ms": int(TRANSACTION_S * 1000),
        }
        self._producer: Producer | None = None
        self._made_s = 0.0
        self._disconnects = 0  # of the member, when the producer was made
        self._begun = False  # a transaction whose end is not known
        self._ending: asyncio.Task[None] | None = None
        self._batches = 0  # of TRANSACTION_BATCHES; the next one after a batch was too large
        self._reported = False  # after one failed for its records, until one has succeeded
        self._tokens: dict[TopicPartition, int] = {}
        self._epoch = 0
        self._one = asyncio.Lock()
        self._thread = CallThread(f"choreo-kafka-transactions-{group}")
        self._closed = False

    async def fence(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """As the port says. Epochs grow with the group's generation, and within it with each call."""
        try:
            async with self._one, asyncio.timeout(self._timeout_s):
                member = self._consumer()
                await self._run(self._current, self._timeout_s)  # ends a transaction of ours without a known end
                tokens = {partition: member.grants.token(partition) for partition in partitions}
                _, joined = await asyncio.wrap_future(member.metadata())
                strangers = [str(each) for each in partitions if tokens[each] is None]
                if strangers or not joined.joined:
                    raise TransportError(f"{', '.join(strangers) or 'nothing'} is assigned to this member now")
                await member.committed(partitions)
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
            if self._begun and self._ending is None and not self._closed:
                self._ending = asyncio.create_task(self._end_begun(self._timeout_s))
        in_between = TransportError(f"group {self._group!r} is between two generations; not committed, try again")
        return {partition: results.get(partition, in_between) for partition in parts}

    async def _attempt(self, parts: Mapping[TopicPartition, LogCommit]) -> dict[TopicPartition, Exception | None]:
        """One transaction; what became of the parts that are not to be tried again."""
        try:
            await self._run(self._current, self._timeout_s)
            await self._run(lambda: self._transact(parts), COMMIT_S)
        except _Refused as refused:
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
        if self._ending is not None:
            await asyncio.wait({self._ending}, timeout=CLOSE_S)
        elif self._begun or self._one.locked():  # a commit under way may fail
            await self._end_begun(CLOSE_S)
        self._thread.end(lambda: self._discard(self._producer))

    async def _end_begun(self, within_s: float) -> None:
        """Start a successor of the producer whose transaction failed, which is how a broker comes to abort it."""
        try:
            async with asyncio.timeout(within_s), self._one:
                if self._begun:
                    await self._run(self._current, within_s)
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

    async def _run(self, function: Callable[[], object], within_s: float) -> None:
        """On the thread. After a broker has died `send_offsets_to_transaction` may hang, whatever its timeout (2.16).

        Then thread and producer are left to themselves: the successor's start ends what was begun.
        """
        try:
            await self._thread.run(function, within_s)
        except Hung:
            log.warning("group %s: librdkafka does not come back from a transaction; begun anew", self._group)
            self._thread.end()
            self._thread, self._producer = CallThread(f"choreo-kafka-transactions-{self._group}"), None
            raise

    # ---- on the thread

    def _transact(self, parts: Mapping[TopicPartition, LogCommit]) -> None:
        member = self._consumer()
        until_s, ending = time.monotonic() + COMMIT_S, False
        with member.grants.using(parts):
            producer = self._current()
            try:
                offsets = self._offsets(member, parts)
                asked = member.metadata()  # of a moment before it is looked whether they are ours: see above
                self._begun = True
                producer.begin_transaction()
                self._append(producer, parts, until_s)
                metadata, joined = asked.result(COMMIT_S)
                lost = [each for each in parts if not self._owned(each)]
                if lost:
                    raise _Refused({each: LeaseLost(f"{each} was taken meanwhile") for each in lost})
                if not joined.joined:
                    raise _Stale("no member now")
                if self._suspect():
                    raise _Stale("a broker was lost meanwhile; begun anew")
                places = [place(partition, offset) for partition, offset in offsets.items()]
                until(until_s, lambda left_s: producer.send_offsets_to_transaction(places, metadata, left_s))
                if self._producer is not producer:
                    raise TransportError("given up meanwhile")
                ending = True
                until(until_s, producer.commit_transaction)
                self._begun = self._reported = False
            except KafkaException as error:
                self._discard(producer)
                found = error_of(error)
                if found is not None and found.code() in STALE:
                    raise _Stale(reason(error)) from error
                if found is not None and not self._reported and _certainly_aborted(found, ending):
                    self._reported = True
                    raise _Refused({}) from error
                raise
            except BaseException:
                self._discard(producer)
                raise
            member.known.update(offsets)

    def _offsets(
        self, member: ConfluentConsumer, parts: Mapping[TopicPartition, LogCommit]
    ) -> dict[TopicPartition, int]:
        offsets: dict[TopicPartition, int] = {}
        for partition, part in parts.items():
            offset = part.offset if part.offset is not None else member.known.get(partition)
            if offset is None:
                why = "nothing was ever committed for it; commit its position first: what has no offset is not fenced"
                raise _Refused({partition: TransportError(f"{partition}: {why}")})
            offsets[partition] = offset
        return offsets

    def _append(self, producer: Producer, parts: Mapping[TopicPartition, LogCommit], until_s: float) -> None:
        failed: dict[tuple[TopicPartition, int], KafkaError] = {}
        for partition, part in parts.items():
            for index, record in enumerate(part.records):
                report = _report(failed, (partition, index)) if self._reported else None
                while True:
                    try:
                        produce(producer, record, report)
                        break
                    except BufferError:
                        producer.poll(0.05)
                    except Exception as error:
                        raise _Refused({partition: failure_of(record, index, error, self._principal)}) from error
        left = producer.flush(max(0.1, until_s - time.monotonic()))
        if failed:
            self._refuse(parts, failed)
        if left:
            raise TransportError(
                f"{left} records of a transaction were not acknowledged in time; nothing is committed"
            )

    def _refuse(
        self,
        parts: Mapping[TopicPartition, LogCommit],
        failed: Mapping[tuple[TopicPartition, int], KafkaError],
    ) -> None:
        """Say whose parts are to blame; what failed only because the transaction had, is not."""
        oversized = {key: error for key, error in failed.items() if error.code() in TOO_LARGE}
        if len(oversized) > 1 and self._batches + 1 < len(TRANSACTION_BATCHES):
            log.warning("group %s: a batch was too large; its transactions send smaller ones now", self._group)
            self._batches += 1
            raise _Refused({})
        blamed = oversized or {
            key: error
            for key, error in failed.items()
            if not error.txn_requires_abort()
            and error.code() not in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)
        }
        if not blamed:
            (partition, index), error = next(iter(failed.items()))
            raise failed_delivery(parts[partition].records[index], index, error, self._principal)
        refused: dict[TopicPartition, Exception] = {}
        for (partition, index), error in blamed.items():
            refused.setdefault(
                partition, failed_delivery(parts[partition].records[index], index, error, self._principal)
            )
        raise _Refused(refused)

    def _suspect(self) -> bool:
        """Whether a broker was lost since the producer was made.

        If it coordinated the group, and metadata name it no more, `send_offsets_to_transaction` waits for it for good
        (librdkafka 2.16, its issues 5511, 5456); a producer made after that asks for the coordinator anew.
        """
        return self._lost() != self._disconnects and time.monotonic() > self._made_s + RENEW_S

    def _lost(self) -> int:
        member = self._member()
        return member.disconnects if member is not None else 0

    def _current(self) -> Producer:
        if self._producer is not None and self._suspect():
            self._discard(self._producer)
        if self._producer is None:
            thread = self._thread
            disconnects = self._lost()
            producer: Producer = made(Producer, {**self._arguments, **TRANSACTION_BATCHES[self._batches]})
            until_s = time.monotonic() + self._timeout_s
            until(until_s, producer.init_transactions)
            if thread is not self._thread:
                raise TransportError("given up meanwhile")
            self._producer, self._begun = producer, False
            self._made_s, self._disconnects = time.monotonic(), disconnects
        return self._producer

    def _discard(self, producer: Producer | None) -> None:
        """Never used on after an error; its successor's start ends what it had begun, if its own abort does not."""
        if self._producer is producer:
            self._producer = None
        if producer is not None:
            box = [producer]
            del producer
            threading.Thread(target=_abort_and_drop, args=(box,), daemon=True).start()


def _certainly_aborted(error: KafkaError, ending: bool) -> bool:
    """When it was `ending`, only if librdkafka had counted records that failed: then it asks no broker."""
    return error.txn_requires_abort() and (not ending or error.code() == KafkaError._INCONSISTENT)


def _report(
    failed: dict[tuple[TopicPartition, int], KafkaError], key: tuple[TopicPartition, int]
) -> Callable[[KafkaError | None, Any], None]:
    def report(error: KafkaError | None, _: Any) -> None:
        if error is not None:
            failed[key] = error

    return report


def _abort_and_drop(box: list[Producer]) -> None:
    """Disconnecting may take a while, so on a thread of its own.

    Aborted first: librdkafka 2.16 may die of an assertion (rdkafka_txnmgr.c, `txn_req_cnt > 0`) when a producer is
    destroyed while a request of its transaction is under way, and an abort waits for these.
    """
    with suppress(KafkaException):
        box[0].abort_transaction(ABORT_S)
    box[0].purge(in_queue=True, in_flight=True, blocking=False)
    box.clear()
