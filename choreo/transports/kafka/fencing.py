"""The transactional producer of one input partition: its id, its start, what ended it.

Private API of aiokafka 0.14.0, as in kafka/client.py, and held by the same contract test.
"""

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any
from urllib.parse import quote

from aiokafka import AIOKafkaProducer, errors
from aiokafka.producer.sender import (
    AddOffsetsToTxnHandler,
    AddPartitionsToTxnHandler,
    EndTxnHandler,
    Sender,
    SendProduceReqHandler,
    TxnOffsetCommitHandler,
)
from aiokafka.protocol.transaction import EndTxnRequest

from choreo.access import Access, lacking
from choreo.errors import ChoreoError, ConfigurationError, TransportError
from choreo.record import TopicPartition
from choreo.transports.kafka.errors import reason
from choreo.transports.kafka.records import RawBatch

log = logging.getLogger(__name__)

NAMESPACE = "choreo"
GROUP_LENGTH_MAX = 150
CONNECT_BACKOFF_S = 0.2
END_TXN_OF_4_0 = 5
SOCKETS = 4
"""Of one producer: leader, transaction and group coordinator, metadata."""

# Not InvalidProducerIdMapping: brokers forget an id that was idle for a week, and nobody else need have taken it.
FENCED = (errors.ProducerFenced, errors.InvalidProducerEpoch)


def transactions_of(namespace: str, group: str) -> str:
    """How the transactional ids of a group begin, which rights are granted on: `namespace.group.`

    The dots of a group are escaped, and what is not plain ASCII: a topic may hold dots, and stands between the first
    one behind the group and the last one. A long group is cut and told by its hash.
    """
    readable = quote(group, safe="", errors="surrogatepass").replace(".", "%2E")
    if len(readable) > GROUP_LENGTH_MAX:  # "%s" is no escape, so no group can be named like it
        digest = hashlib.sha256(group.encode(errors="surrogatepass")).hexdigest()[:32]
        readable = f"{readable[: GROUP_LENGTH_MAX - 40]}%sha256-{digest}"
    return f"{namespace}.{readable}."


def transactional_id(namespace: str, group: str, partition: TopicPartition) -> str:
    """`namespace.group.topic.partition`, no two of them alike, of at most some 420 characters."""
    return f"{transactions_of(namespace, group)}{partition.topic}.{partition.partition}"


class PartitionLimit:
    """How many transactional producers a process holds, and the error that says why there are no more."""

    def __init__(self, partitions_max: int) -> None:
        self._partitions_max = partitions_max
        self._held = 0

    def take(self, count: int) -> None:
        """Count `count` more, or raise ConfigurationError and count none."""
        if self._held + count > self._partitions_max:
            raise ConfigurationError(
                f"{self._held + count} input partitions would need a transactional producer each, of {SOCKETS} "
                f"connections; at most {self._partitions_max} a process are allowed. Spread the group over more "
                "processes, use the confluent transport, which needs one producer for all, or raise "
                "CHOREO_KAFKA_TRANSACTION_PARTITIONS_MAX"
            )
        self._held += count

    def give_back(self, count: int) -> None:
        """Count `count` fewer."""
        self._held -= count


class TransactionalRawBatch(RawBatch):
    """A RawBatch marked as part of a transaction, as aiokafka marks those it builds itself; else it is refused."""

    def __init__(self) -> None:
        super().__init__()
        self._builder._is_transactional = True


class _Once:
    """In front of a handler of aiokafka: a request whose answer was lost ends the producer.

    0.14 repeats it (sender.py:400). The first one may still arrive, after the next transaction of the same epoch has
    begun, and end that one half way (KAFKA-17754), or put its offset back.
    """

    _sender: Any
    _default_backoff: float

    async def do(self: Any, node_id: int) -> bool:
        try:
            answer = await self._sender.client.send(node_id, self.create_request(), group=self.group)
        except errors.NodeNotReadyError:  # it never left
            backoff = self.handle_error()
        else:
            backoff = self.handle_response(answer)
        if (
            backoff is not None
        ):  # 0.14 has 20 ms of its own for the markers of the last transaction (BACKOFF_OVERRIDE)
            await asyncio.sleep(min(backoff, self._default_backoff))
        return backoff is None


class _AddPartitions(_Once, AddPartitionsToTxnHandler):  # type: ignore[misc]  # untyped
    pass


class _AddOffsets(_Once, AddOffsetsToTxnHandler):  # type: ignore[misc]  # untyped
    pass


class _CommitOffsets(_Once, TxnOffsetCommitHandler):  # type: ignore[misc]  # untyped
    pass


class _End(_Once, EndTxnHandler):  # type: ignore[misc]  # untyped
    pass


def _with_globals(function: FunctionType, **names: Any) -> FunctionType:
    """The same code with some of its module's globals replaced, rather than the module patched for everybody."""
    code = function.__code__
    return FunctionType(code, {**function.__globals__, **names}, code.co_name, function.__defaults__)


class _Produce(SendProduceReqHandler):  # type: ignore[misc]  # untyped
    """Says at DEBUG what 0.14 warns of at one in thirty transactions that follow each other closely.

    Kafka 4.1 answers NotEnoughReplicas while the markers of the last one are written. If it goes on, the deadline of
    the commit tells.
    """

    handle_response = _with_globals(SendProduceReqHandler.handle_response, log=SimpleNamespace(warning=log.debug))


HANDLERS: Mapping[str, Mapping[str, Any]] = {
    "_send_produce_req": {"SendProduceReqHandler": _Produce},
    "_do_add_partitions_to_txn": {"AddPartitionsToTxnHandler": _AddPartitions},
    "_do_add_offsets_to_txn": {"AddOffsetsToTxnHandler": _AddOffsets},
    "_do_txn_offset_commit": {"TxnOffsetCommitHandler": _CommitOffsets},
    "_do_txn_commit": {"EndTxnHandler": _End},
}
"""Methods of aiokafka's Sender and the handler each takes from its module's globals."""


def fenced_producer(arguments: dict[str, Any]) -> AIOKafkaProducer:
    """A transactional producer, not started, whose Sender takes its handlers from HANDLERS; see `_Once`."""
    producer = AIOKafkaProducer(**arguments)
    for name, handler in HANDLERS.items():
        function = _with_globals(getattr(Sender, name), **handler)
        setattr(producer._sender, name, MethodType(function, producer._sender))
    accumulator = producer._message_accumulator
    again = accumulator.reenqueue

    def reenqueue(batch: Any) -> None:
        if not batch.future.done():  # 0.14: KeyError, if the sender ended and failed it in the meantime
            again(batch)

    accumulator.reenqueue = reenqueue
    return producer


def epoch_of(producer: AIOKafkaProducer) -> int:
    """Producer id and epoch as one number that grows with each InitProducerId of a transactional id.

    The epoch alone starts anew with another producer id, after 32,766 of them or a week without use. Ids are dealt
    out to brokers in blocks, so a new one may be lower if the coordinator has moved: a lease may show such a number,
    the broker's own fence does not depend on it.
    """
    manager = producer._txn_manager
    return int(manager.producer_id) << 16 | int(manager.producer_epoch)


def older_than_4_0(producer: AIOKafkaProducer) -> bool:
    """Whether one of the brokers it is connected to knows no EndTxn v5, which came with Kafka 4.0."""
    known = [connection._versions.get(EndTxnRequest.API_KEY) for connection in producer.client._conns.values()]
    return any(versions is not None and versions[1] < END_TXN_OF_4_0 for versions in known)


def can_start_again(error: BaseException) -> bool:
    """Whether `start` failed for want of a broker, which may pass; 0.14 wraps some of it in a bare KafkaError."""
    return isinstance(error, errors.KafkaError) and (error.retriable or type(error) is errors.KafkaError)


def cause(producer: AIOKafkaProducer, error: BaseException) -> BaseException:
    """Why its sender ended, if it did: 0.14 hands out "Unexpected error", and copies of it without their cause."""
    task = producer._sender.sender_task
    if task is None or not task.done() or task.cancelled():
        return error
    ended = task.exception()
    return error if ended is None else (ended.__cause__ or ended)


def not_taken(
    partition: TopicPartition, group: str, error: Exception, *, timeout_ms: int, principal: str
) -> ChoreoError:
    """Why a partition could not be fenced, and what to do."""
    match type(error).__name__:
        case "InvalidTransactionTimeout":
            return ConfigurationError(
                f"the broker allows no transaction of {timeout_ms} ms: lower CHOREO_KAFKA_TRANSACTION_TIMEOUT_MS, "
                "or raise its transaction.max.timeout.ms"
            )
        case "TransactionalIdAuthorizationFailed":
            missing = Access("transactional-id", transactions_of(NAMESPACE, group), ("Write",), prefixed=True)
            return TransportError(f"{partition} cannot be taken: {lacking(principal, [missing])}")
    return TransportError(f"{partition} cannot be taken for group {group!r}: {reason(error)}")
