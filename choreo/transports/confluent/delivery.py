"""One record: handed to librdkafka, and what became of it, in our words."""

from collections.abc import Sequence
from typing import Any

from choreo.errors import RecordTooLarge, TransportError
from choreo.record import ProducerRecord
from choreo.transports.confluent.client import GONE, TOO_LARGE, KafkaError, Producer, error_of, lack, reason
from choreo.transports.confluent.settings import MESSAGE_BYTES_MAX
from choreo.transports.kafka.producer import size_of

_SENDABLE_MAX = 1_000
_sendable: set[str] = set()
"""Header keys that were found good: a flow has few of them, and every record the same."""


def produce(producer: Producer, record: ProducerRecord, report: Any) -> None:
    """Hand one record to librdkafka; BufferError when its queue is full.

    Raises:
        TransportError: A header key that cannot be sent. With one that is no UTF-8 the binding, 2.16, crashes.
    """
    topic, key, value, headers, partition = record
    for name, _ in headers:
        if name not in _sendable:
            _check(topic, name)
    producer.produce(topic, value, key, -1 if partition is None else partition, report, None, 0, list(headers))


def _check(topic: str, name: str) -> None:
    if "\0" in name or not (name.isascii() or _is_utf8(name)):
        raise TransportError(f"{topic}: librdkafka sends no header key with NUL or what is no UTF-8: {name!a}")
    if len(_sendable) < _SENDABLE_MAX:
        _sendable.add(name)


def failure_of(record: ProducerRecord, index: int, error: Exception, principal: str) -> TransportError:
    """What `produce` raised, as ours."""
    if isinstance(error, TransportError):
        return error
    found = error_of(error)
    if found is None:
        return TransportError(f"{record.topic}: {reason(error)}")
    return failed_delivery(record, index, found, principal)


def failed_delivery(record: ProducerRecord, index: int, error: KafkaError, principal: str) -> TransportError:
    """What a delivery report says, as an error of ours."""
    if error.code() in TOO_LARGE:
        return too_large(record, index)
    if record.partition is not None and error.code() == KafkaError._UNKNOWN_PARTITION:
        return TransportError(f"{record.topic}: there is no partition {record.partition}")
    if error.code() in GONE:
        return TransportError(f"{record.topic}: there is no such topic (any more): {reason(error)}")
    why = lack(error, principal, "Write", record.topic, "") or reason(error)
    return TransportError(f"{record.topic}: {why}")


def too_large(record: ProducerRecord, index: int) -> RecordTooLarge:
    """The topic took it not even alone."""
    return RecordTooLarge(
        f"{record.topic}: a record of about {size_of(record)} bytes is larger than the topic takes; raise its "
        "max.message.bytes or send less",
        index=index,
    )


def refuse_oversized(records: Sequence[ProducerRecord]) -> None:
    """RecordTooLarge before anything is sent, for what no topic of a default broker would be sent."""
    for index, record in enumerate(records):
        size = size_of(record)
        if size > MESSAGE_BYTES_MAX:
            raise RecordTooLarge(
                f"{record.topic}: a record of {size} bytes is larger than the {MESSAGE_BYTES_MAX} that are sent",
                index=index,
            )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
