"""Errors that librdkafka reports out of a consumer: which mean nothing, and what the others mean in words."""

from choreo.errors import TransportError
from choreo.record import TopicPartition
from choreo.transports.confluent.admin import ConfluentAdmin
from choreo.transports.confluent.client import GONE, KafkaError, lack, reason
from choreo.transports.kafka.errors import out_of_range

AGAIN = frozenset({KafkaError.STALE_MEMBER_EPOCH, KafkaError.REBALANCE_IN_PROGRESS, KafkaError._WAIT_COORD})
"""Answers to a commit of a member that is about to learn of a newer generation."""

HARMLESS = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._MAX_POLL_EXCEEDED,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
    }
)
"""librdkafka goes on by itself after these."""


_NOT_SUPPORTED = "API version not supported"


async def explained(
    admin: ConfluentAdmin,
    group: str,
    error: KafkaError,
    partition: TopicPartition | None,
    next_offset: int,
    principal: str,
) -> TransportError:
    """The error as one of ours, with what to do; `next_offset`: where the partition was to be read."""
    code = error.code()
    if partition is not None and code in GONE:
        return TransportError(
            f"{partition.topic}: there is no such topic (any more) for group {group!r}; was it deleted? "
            "Create it again, or take it out of the flow"
        )
    if partition is not None and code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        first, end = await admin.bounds(partition)
        return out_of_range(group, partition, next_offset, first=first, end=end)
    hint = ""
    text = error.str()  # a fatal one has its cause in its text only
    if code in (KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE) or _NOT_SUPPORTED in text:
        hint = "; with brokers older than 4.0, or set to classic groups only, set CHOREO_KAFKA_GROUP_PROTOCOL=classic"
    where = f"{partition}: " if partition is not None else ""
    topic = partition.topic if partition is not None else "it reads"
    why = lack(error, principal, "Read", topic, group) or reason(error)
    return TransportError(f"{where}group {group!r} cannot fetch: {why}{hint}")
