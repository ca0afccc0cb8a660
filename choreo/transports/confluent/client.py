"""confluent-kafka (librdkafka): the only module that imports it; its errors in words, its messages as records."""

import logging
import operator
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from choreo.access import Access, Operation, lacking
from choreo.errors import ConfigurationError, TransportError
from choreo.record import Headers, Record, TopicPartition, new

try:
    from confluent_kafka import (
        Consumer,
        IsolationLevel,
        KafkaError,
        KafkaException,
        Message,
        Producer,
        TopicCollection,
        libversion,
    )
    from confluent_kafka import TopicPartition as Place
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.admin._config import ConfigResource, ConfigSource
    from confluent_kafka.admin._listoffsets import OffsetSpec
    from confluent_kafka.cimpl import NewPartitions, NewTopic
except ImportError as error:
    raise ConfigurationError('this transport needs librdkafka: pip install "choreo[confluent]"') from error

__all__ = [
    "AdminClient",
    "ConfigResource",
    "ConfigSource",
    "Consumer",
    "IsolationLevel",
    "KafkaError",
    "KafkaException",
    "Membership",
    "Message",
    "NewPartitions",
    "NewTopic",
    "OffsetSpec",
    "Place",
    "Producer",
    "TopicCollection",
    "error_of",
    "lack",
    "made",
    "membership",
    "partition_of",
    "place",
    "reason",
    "records_of",
]

log = logging.getLogger(__name__)

if libversion()[1] < 0x020C0000:
    raise ConfigurationError(
        f'librdkafka {libversion()[0]} is older than 2.12: pip install --upgrade "choreo[confluent]"'
    )

STALE = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.FENCED_MEMBER_EPOCH,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError._ASSIGNMENT_LOST,
    }
)
"""The group has moved on: the member is no more, or is in a newer generation by now."""

GONE = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)
TOO_LARGE = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})


def error_of(error: BaseException) -> KafkaError | None:
    """librdkafka's error inside of an exception of its Python binding."""
    if isinstance(error, KafkaException) and error.args and isinstance(error.args[0], KafkaError):
        return error.args[0]
    return None


def reason(error: BaseException | KafkaError) -> str:
    """A name, and text only where it comes from the broker, the network or librdkafka itself."""
    found = error if isinstance(error, KafkaError) else error_of(error)
    if found is not None:
        return f"{found.name().lstrip('_')}: {found.str()}"
    if isinstance(error, TransportError):
        return str(error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return type(error).__name__


def lack(error: KafkaError, principal: str, operation: Operation, topic: str, group: str) -> str | None:
    """Who lacks which right, if that is the error; else None. `operation`: what was done with the topic."""
    match error.code():
        case KafkaError.TOPIC_AUTHORIZATION_FAILED:
            return lacking(principal, [Access("topic", topic, (operation,))])
        case KafkaError.GROUP_AUTHORIZATION_FAILED:
            return lacking(principal, [Access("group", group, ("Read",))])
    return None


def made(kind: Any, arguments: dict[str, Any]) -> Any:
    """A client of librdkafka; what it refuses in its configuration is a ConfigurationError.

    Its log goes to `logging`, not to standard error.
    """
    try:
        return kind(arguments, logger=log)
    except KafkaException as error:
        raise ConfigurationError(f"librdkafka takes no such configuration: {reason(error)}") from None


def place(partition: TopicPartition, offset: int | None = None) -> Place:
    """A partition in librdkafka's words."""
    return Place(*partition) if offset is None else Place(*partition, offset)


def partition_of(found: Place) -> TopicPartition:
    """A partition in ours."""
    return TopicPartition(found.topic, found.partition)


_headers_of = operator.methodcaller("headers")
# Not `message.headers()`: for a key that is no UTF-8 2.16 returns a list and leaves an exception set, which CPython
# notices here, and at such a call only now and then.


def records_of(messages: Iterable[Message], partition: TopicPartition) -> list[Record]:
    """Messages of a partition as records. One whose headers cannot be read has none; the log says so."""
    topic, number = partition
    found: list[Record] = []
    for message in messages:
        try:
            headers: Headers = tuple(_headers_of(message) or ())
        except (SystemError, UnicodeDecodeError):  # seen in 2.16: the list cannot be had if one key is no UTF-8
            log.warning("%s@%s: a header key is no UTF-8; read without headers", partition, message.offset())
            headers = ()
        offset, key, value, timestamp = message.offset(), message.key(), message.value(), message.timestamp()
        found.append(new(Record, (topic, number, offset, key, value, headers, timestamp[1])))
    return found


class Membership(NamedTuple):
    """Who commits: `generation` (KIP-848: member epoch), `member`, both as the consumer knows them now."""

    generation: int
    member: str

    @property
    def joined(self) -> bool:
        """Whether brokers can check it. They take a transaction's offsets of generation -1 from anybody."""
        return self.generation > 0 and bool(self.member)


def membership(metadata: bytes) -> Membership:
    """What is in `Consumer.consumer_group_metadata()`: librdkafka's own form, CGMDv2 since 1.5."""
    if not metadata.startswith(b"CGMDv2:"):
        raise TransportError("librdkafka describes its group membership in an unknown form; is it newer than choreo?")
    (generation,) = struct.unpack_from("<i", metadata, 7)
    _, member, _ = metadata[11:].split(b"\0", 2)
    return Membership(generation, member.decode())
