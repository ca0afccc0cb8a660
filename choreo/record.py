"""The wire unit, as Kafka has it: what is read from a log and what is handed to it.

Named tuples, since one is built for every record consumed: half the cost of a frozen dataclass.
"""

from typing import NamedTuple

new = tuple.__new__
"""Makes a named tuple of a plain one, as in `new(Record, (...))`. For what is made of every event: `Record(...)` is a
call of Python more."""

Header = tuple[str, bytes | None]
"""A header's key is text; bytes of a key that are no UTF-8 are kept as lone surrogates (`surrogateescape`)."""

Headers = tuple[Header, ...]


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


class Record(NamedTuple):
    """One record of a log, with its coordinates.

    `timestamp_ms` is milliseconds since the epoch, as the producer or the broker wrote it.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int


class ProducerRecord(NamedTuple):
    """One record to append. Without a `partition` the key chooses one, as Java's client does (murmur2)."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    partition: int | None = None


def last_headers(headers: Headers) -> dict[str, bytes | None]:
    """Headers by name. Of duplicates the last one counts, as with `lastHeader` of Kafka's Java client."""
    return dict(headers)
