"""Values as the PostgreSQL store keeps them: text as bytes, requests as columns, rows as records. No I/O."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from choreo.ports import ClaimRequest, Lease
from choreo.record import ProducerRecord, TopicPartition
from choreo.sqlite.log import decode_headers, encode_headers

Row = tuple[Any, ...]


def encode(text: str) -> bytes:
    """Any text, with NUL and lone surrogates, which PostgreSQL's own text refuses."""
    return text.encode("utf-8", "surrogatepass")


def decode(data: bytes) -> str:
    """What `encode` wrote."""
    return bytes(data).decode("utf-8", "surrogatepass")


def flow_of(correlation_id: str) -> int:
    """A correlation id in eight bytes, for its index."""
    digest = hashlib.blake2b(encode(correlation_id), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


def lease_columns(leases: Iterable[Lease]) -> dict[str, Any]:
    """Leases as arrays: one element a lease in each."""
    held = list(leases)
    return {
        "groups": [encode(lease.group) for lease in held],
        "topics": [encode(lease.partition.topic) for lease in held],
        "partitions": [lease.partition.partition for lease in held],
        "epochs": [lease.epoch for lease in held],
        "owners": [encode(lease.owner) for lease in held],
    }


def claim_columns(leases: Sequence[Lease], requests: Sequence[tuple[int, ClaimRequest]]) -> dict[str, Any]:
    """Requests, each with its number, as arrays sorted by digest: two claimers lock in the same order."""
    place = {lease.partition: at for at, lease in enumerate(leases, 1)}
    ordered = sorted(requests, key=lambda each: each[1].digest)
    return {
        **lease_columns(leases),
        "numbers": [number for number, _ in ordered],
        "leases": [place[each.partition] for _, each in ordered],
        "digests": [each.digest for _, each in ordered],
        "fingerprints": [each.fingerprint for _, each in ordered],
        "handlers": [encode(each.handler) for _, each in ordered],
        "offsets": [each.offset for _, each in ordered],
        "correlation_ids": [encode(each.correlation_id) for _, each in ordered],
        "flows": [flow_of(each.correlation_id) for _, each in ordered],
        "timestamps": [each.timestamp_ms for _, each in ordered],
        "solos": [each.solo for _, each in ordered],
    }


def emit_columns(emits: Sequence[tuple[bytes, ProducerRecord]]) -> dict[str, Any]:
    """Emits, each with the digest of its unit, as arrays in their order."""
    records = [record for _, record in emits]
    return {
        "emit_digests": [digest for digest, _ in emits],
        "to_topics": [encode(record.topic) for record in records],
        "to_partitions": [record.partition for record in records],
        "keys": [record.key for record in records],
        "values": [record.value for record in records],
        "headers": [encode_headers(record.headers) for record in records],
    }


def emit_of(row: Row) -> tuple[int, ProducerRecord]:
    """An outbox row: id, topic, partition, key, value, headers."""
    id_, topic, partition, key, value, headers = row
    return id_, ProducerRecord(decode(topic), key, value, decode_headers(headers), partition)


def partition_of(topic: bytes, partition: int) -> TopicPartition:
    """A partition out of two columns."""
    return TopicPartition(decode(topic), partition)
