"""The records of a changelog topic: the keys of one commit in one record, and the tombstone that removes it.

Record key: first offset (8 bytes, big endian) and the digest of its first unit (16). The offset alone would not do:
two handlers of one record may be committed by different flushes, and compaction would keep the later one only.
Value: a header (version, width of a time, number of keys, base of the times), then one block a field, so that a
restore cuts slices and makes no object a key: digests, fingerprints, outcomes, times since the base.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from choreo.errors import ConfigurationError, StoreError
from choreo.record import Record

VERSION = 1
DIGEST_BYTES, FINGERPRINT_BYTES = 16, 8
KEYS_MAX = 10_000
"""Keys a record: 330 kB at most, which every broker's default `max.message.bytes` takes."""

_HEADER = struct.Struct(">BBIq")
_FIRST_OFFSET = struct.Struct(">Q")
_KEY_BYTES = _FIRST_OFFSET.size + DIGEST_BYTES
_WIDTHS = {0: "x", 1: "B", 2: "H", 4: "I", 8: "Q"}
_OUTCOMES = {"handled": 0, "dead_letter": 1}
_OTHER_OUTCOME = 255


class Key(NamedTuple):
    """One handled unit: `digest` 16 bytes, `fingerprint` 8, `timestamp_ms` the log time of its record."""

    digest: bytes
    fingerprint: bytes
    offset: int
    timestamp_ms: int
    outcome: str


class Packed(NamedTuple):
    """What is kept in memory of one record; ordered by the time at which all its keys may go.

    `body`: the digests, then the fingerprints, in the same order.
    """

    newest_ms: int
    first_offset: int
    body: bytes

    @property
    def keys(self) -> int:
        """Number of keys, >= 1."""
        return len(self.body) // (DIGEST_BYTES + FINGERPRINT_BYTES)

    @property
    def record_key(self) -> bytes:
        """The record's key on the log."""
        return _FIRST_OFFSET.pack(self.first_offset) + self.body[:DIGEST_BYTES]


def pack(keys: Sequence[Key]) -> Iterator[tuple[Packed, bytes]]:
    """Each record that the keys of one commit take: what memory keeps of it, and its value."""
    return pack_columns(*zip(*keys, strict=True)) if keys else iter(())


def pack_columns(
    digests: Sequence[bytes],
    fingerprints: Sequence[bytes],
    offsets: Sequence[int],
    times_ms: Sequence[int],
    outcomes: Sequence[str],
) -> Iterator[tuple[Packed, bytes]]:
    """As `pack`, of keys whose fields are given apart."""
    if len(digests) <= KEYS_MAX:
        if digests:
            yield _pack(digests, fingerprints, offsets, times_ms, outcomes)
        return
    for begin in range(0, len(digests), KEYS_MAX):
        part = slice(begin, begin + KEYS_MAX)
        yield _pack(digests[part], fingerprints[part], offsets[part], times_ms[part], outcomes[part])


def _pack(
    digests: Sequence[bytes],
    fingerprints: Sequence[bytes],
    offsets: Sequence[int],
    times_ms: Sequence[int],
    outcomes: Sequence[str],
) -> tuple[Packed, bytes]:
    count = len(digests)
    base_ms, newest_ms = min(times_ms), max(times_ms)
    span = newest_ms - base_ms
    width = next(width for width in _WIDTHS if span < 256**width)
    body = b"".join(digests) + b"".join(fingerprints)
    assert len(body) == count * (DIGEST_BYTES + FINGERPRINT_BYTES), "a digest or fingerprint of a wrong size"
    codes = {each: _OUTCOMES.get(each.partition(":")[0], _OTHER_OUTCOME) for each in set(outcomes)}
    times = struct.pack(f">{count}{_WIDTHS[width]}", *[at_ms - base_ms for at_ms in times_ms]) if width else b""
    value = _HEADER.pack(VERSION, width, count, base_ms) + body + bytes(map(codes.__getitem__, outcomes)) + times
    return Packed(newest_ms, min(offsets), body), value


def first_digest(record: Record) -> bytes:
    """The first unit's digest, out of the record's key; the tombstone has no other.

    Raises:
        StoreError: The record is none of choreo's.
    """
    if record.key is None or len(record.key) != _KEY_BYTES:
        raise _corrupt(record, "its key is not one of choreo's")
    return record.key[_FIRST_OFFSET.size :]


def unpack(record: Record) -> Packed:
    """Read a record that is no tombstone.

    Raises:
        ConfigurationError: A newer version of choreo wrote it.
        StoreError: It is damaged, or none of choreo's.
    """
    digest, value = first_digest(record), record.value or b""
    if value and value[0] > VERSION:
        raise ConfigurationError(
            f"{record.topic}/{record.partition}@{record.offset} is of format {value[0]}, written by a newer choreo, "
            f"and this one reads formats up to {VERSION}: upgrade choreo in every process of the service"
        )
    if len(value) < _HEADER.size:
        raise _corrupt(record, f"it has {len(value)} bytes, fewer than its header")
    version, width, count, base_ms = _HEADER.unpack_from(value)
    if version != VERSION or width not in _WIDTHS or count == 0:
        raise _corrupt(record, f"its header says format {version}, width {width}, {count} keys")
    body_bytes = count * (DIGEST_BYTES + FINGERPRINT_BYTES)
    times_at = _HEADER.size + body_bytes + count
    if len(value) != times_at + width * count:
        raise _corrupt(record, f"it has {len(value)} bytes, and {count} keys take {times_at + width * count}")
    body = value[_HEADER.size : _HEADER.size + body_bytes]
    if body[:DIGEST_BYTES] != digest:
        raise _corrupt(record, "its key names another first unit than its value")
    latest = max(struct.unpack_from(f">{count}{_WIDTHS[width]}", value, times_at)) if width else 0
    first_offset: int = _FIRST_OFFSET.unpack_from(record.key or b"")[0]
    return Packed(base_ms + latest, first_offset, body)


def _corrupt(record: Record, why: str) -> StoreError:
    return StoreError(
        f"{record.topic}/{record.partition}@{record.offset} is no record of idempotency keys: {why}; "
        "find out who writes to this topic, only choreo may; its keys are not known until the record is gone"
    )
