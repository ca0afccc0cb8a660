"""Errors that librdkafka reports out of a consumer: which mean nothing, and what the others mean in words."""

import logging
from collections import deque
from collections.abc import Callable

from choreo.errors import TransportError
from choreo.record import TopicPartition
from choreo.transports.confluent.admin import ConfluentAdmin
from choreo.transports.confluent.client import GONE, KafkaError, lack, reason
from choreo.transports.kafka.errors import out_of_range

log = logging.getLogger(__name__)

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


class Failures:
    """What went wrong with a member of a group and was not told yet; noted on any thread, told on the loop.

    Attributes:
        disconnects: How often a connection to a broker failed.
    """

    def __init__(self, group: str, principal: str, admin: ConfluentAdmin) -> None:
        self.disconnects = 0
        self._group = group
        self._principal = principal
        self._admin = admin
        self._end: BaseException | None = None
        self._errors: deque[tuple[KafkaError, TopicPartition | None]] = deque()

    def __bool__(self) -> bool:
        return self._end is not None or bool(self._errors)

    def warn(self, error: KafkaError) -> None:
        """Of a connection, as librdkafka says it; what it does not mend by itself is told too."""
        if error.code() == KafkaError._TRANSPORT:
            self.disconnects += 1
        if error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL) and not self._errors:
            self._errors.append((error, None))
        log.warning("group %s: %s", self._group, reason(error))

    def add(self, error: KafkaError, partition: TopicPartition | None) -> None:
        """A poll returned it; what librdkafka mends by itself is only logged."""
        if error.code() in HARMLESS:
            self.warn(error)
        else:
            self._errors.append((error, partition))

    def gone(self, topic: str) -> None:
        """It is no more."""
        self._errors.append((KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART), TopicPartition(topic, -1)))

    def ended(self, error: BaseException) -> None:
        """The thread that polls did, or a partition of it stands still, or `Assignment` raised."""
        self._end = error

    def raise_end(self) -> None:
        """Tell of that, once."""
        if self._end is not None:
            end, self._end = self._end, None
            raise TransportError(
                f"{self._group!r} cannot take or give up partitions, or poll: {reason(end)}"
            ) from end

    async def raise_first(self, next_offset: Callable[[TopicPartition], int]) -> None:
        """Tell of one, if there is one; `next_offset`: where a partition was to be read."""
        self.raise_end()
        if self._errors:
            error, partition = self._errors[0]
            if error.code() != KafkaError._FATAL:  # from which a consumer never recovers: told at each fetch
                self._errors.popleft()
            offset = next_offset(partition) if partition is not None else -1
            raise await explained(self._admin, self._group, error, partition, offset, self._principal)


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
