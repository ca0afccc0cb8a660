"""Names of the store's Redis keys, and how leases and units are packed for its scripts."""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from urllib.parse import quote

from choreo.ports import ClaimRequest, Lease
from choreo.record import TopicPartition

_UNIT = struct.Struct(">16s8sHHB")


class GroupKeys:
    """The keys of one group, all in one slot of a cluster by the tag in braces.

    Both parts of the tag are percent-encoded: no brace, colon or NUL of a name ends it or makes two groups one.
    """

    def __init__(self, prefix: str, group: str) -> None:
        tag = f"{{{encoded(prefix)}:{encoded(group)}}}"
        self.leases = f"{tag}:leases"
        self.keys = f"{tag}:keys"
        self.claims = f"{tag}:claims"
        self.buckets = f"{tag}:buckets"
        self.all = (self.leases, self.keys, self.claims, self.buckets)

    def bucket(self, name: str) -> str:
        """The list of digests whose log time is in one bucket."""
        return f"{self.buckets}:{name}"


class Bucket(NamedTuple):
    """A span of log time, named by its start and width: processes of different settings do not mix theirs."""

    start_ms: int
    width_ms: int

    @property
    def name(self) -> str:
        """What it is called in Redis."""
        return f"{self.start_ms}+{self.width_ms}"

    @property
    def end_ms(self) -> int:
        """Every log time in it is lower."""
        return self.start_ms + self.width_ms

    @classmethod
    def of(cls, timestamp_ms: int, width_ms: int) -> "Bucket":
        """The one a log time is in."""
        return cls(timestamp_ms // width_ms * width_ms, width_ms)

    @classmethod
    def parsed(cls, name: bytes) -> "Bucket":
        """Back from its name."""
        start_ms, _, width_ms = name.partition(b"+")
        return cls(int(start_ms), int(width_ms))


class LeaseRecord(NamedTuple):
    """What Redis knows of one partition's lease, as far as the client looks at it."""

    topic: str
    progress_ms: int | None


def encoded(name: str) -> str:
    """A name without a character that means something in a key; different names stay different."""
    return quote(name, safe="", errors="surrogatepass")


def field(partition: TopicPartition) -> bytes:
    """A partition's name in the hash of leases; the number goes first, so that a colon in a topic is no harm."""
    return f"{partition.partition}:{partition.topic}".encode(errors="surrogatepass")


def lease_records(flat: Sequence[bytes]) -> list[LeaseRecord]:
    """The leases of a group, from the flat names and values of its hash."""
    records = []
    for name, value in zip(flat[::2], flat[1::2], strict=True):
        if name == b"epoch":
            continue
        topic = name.partition(b":")[2].decode(errors="surrogatepass")
        progress = value.split(b" ", 3)[2]
        records.append(LeaseRecord(topic, None if progress == b"-" else int(progress)))
    return records


def lowest_progress_ms(flat: Sequence[bytes], topics: Sequence[str] | None) -> int | None:
    """Log time the group has come to in these topics, or all; None while it is not known of one partition."""
    found = [(topic, told) for topic, told in lease_records(flat) if topics is None or topic in topics]
    told_ms = [told for _, told in found if told is not None]
    unknown = len(told_ms) < len(found) or bool(set(topics or ()) - {topic for topic, _ in found})
    return None if unknown or not told_ms else min(told_ms)


def token(lease: Lease) -> bytes:
    """Five bytes that a done key keeps of who finished it, to tell a commit repeated from somebody else's."""
    return hashlib.blake2b(b"%d " % lease.epoch + field(lease.partition), digest_size=5).digest()


def packed_units(requests: Iterable[tuple[ClaimRequest, int, int]]) -> bytes:
    """Units for the claim script, each with the number of its lease and of its bucket."""
    parts = []
    for request, lease, bucket in requests:
        # The script goes by fixed widths, and struct would cut or pad without a word.
        assert len(request.digest) == 16, "a digest has 16 bytes"
        assert len(request.fingerprint) == 8, "a fingerprint has 8 bytes"
        parts.append(_UNIT.pack(request.digest, request.fingerprint, lease, bucket, request.solo))
    return b"".join(parts)
