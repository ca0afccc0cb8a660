"""Values as the PostgreSQL store keeps them: text as bytes, requests as columns, rows as records. No I/O."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from choreo.ports import ClaimRequest, Lease
from choreo.record import ProducerRecord, TopicPartition
from choreo.sqlite.log import decode_headers, encode_headers
from choreo.stores.postgres.arrays import Bool, Bytea, Int4, Int8

Row = tuple[Any, ...]
_FLOW = hashlib.blake2b(digest_size=8)


def encode(text: str) -> bytes:
    """Any text, with NUL and lone surrogates, which PostgreSQL's own text refuses."""
    return text.encode("utf-8", "surrogatepass")


def decode(data: bytes) -> str:
    """What `encode` wrote."""
    return bytes(data).decode("utf-8", "surrogatepass")


def flow_of(correlation_id: str) -> int:
    """A correlation id in eight bytes, for its index."""
    return int.from_bytes(_flow(encode(correlation_id)), signed=True)


def _flow(correlation_id: bytes) -> bytes:
    hashed = _FLOW.copy()  # cheaper than one made anew
    hashed.update(correlation_id)
    return hashed.digest()


def encoded(texts: Sequence[str]) -> Bytea:
    """Texts of which most are the same."""
    known = {text: encode(text) for text in set(texts)}
    return Bytea.of([known[text] for text in texts])


def _columns(rows: Sequence[Row], count: int) -> Sequence[Row]:
    """As many, empty ones too where there are no rows."""
    return list(zip(*rows, strict=True)) or [()] * count


def lease_columns(leases: Iterable[Lease]) -> dict[str, Any]:
    """Leases as arrays: one element a lease in each."""
    held = list(leases)
    return {
        "groups": Bytea.of([encode(lease.group) for lease in held]),
        "topics": Bytea.of([encode(lease.partition.topic) for lease in held]),
        "partitions": Int4.of([lease.partition.partition for lease in held]),
        "epochs": Int8.of([lease.epoch for lease in held]),
    }


def claim_columns(leases: Sequence[Lease], requests: Sequence[tuple[int, ClaimRequest]]) -> dict[str, Any]:
    """Requests, each with its number, as arrays sorted by digest: two claimers lock in the same order."""
    place = {lease.partition: at for at, lease in enumerate(leases, 1)}
    ordered = sorted(requests, key=lambda each: each[1].digest)
    numbers = [number for number, _ in ordered]
    columns = _columns([each for _, each in ordered], len(ClaimRequest._fields))
    partitions, digests, fingerprints, handlers, offsets, flows, timestamps_ms, solos, _ = columns
    correlation_ids = [encode(each) for each in flows]
    return {
        **lease_columns(leases),
        "numbers": Int4.of(numbers),
        "leases": Int4.of([place[each] for each in partitions]),
        "digests": Bytea.of(digests),
        "fingerprints": Bytea.of(fingerprints),
        "handlers": encoded(handlers),
        "offsets": Int8.of(offsets),
        "correlation_ids": Bytea.of(correlation_ids),
        "flows": Int8.raw([_flow(each) for each in correlation_ids]),
        "timestamps": Int8.of(timestamps_ms),
        "solos": Bool.of(solos),
    }


def emit_columns(emits: Sequence[tuple[bytes, ProducerRecord]]) -> dict[str, Any]:
    """Emits, each with the digest of its unit, as arrays in their order."""
    digests = [digest for digest, _ in emits]
    columns = _columns([record for _, record in emits], len(ProducerRecord._fields))
    topics, keys, values, headers, partitions = columns
    return {
        "emit_digests": Bytea.of(digests),
        "to_topics": encoded(topics),
        "to_partitions": Int4.nullable(partitions),
        "keys": Bytea.of(keys),
        "values": Bytea.of(values),
        "headers": Bytea.of([encode_headers(each) for each in headers]),
    }


def emit_of(row: Row) -> tuple[int, ProducerRecord]:
    """An outbox row: id, topic, partition, key, value, headers."""
    id_, topic, partition, key, value, headers = row
    return id_, ProducerRecord(decode(topic), key, value, decode_headers(headers), partition)


def partition_of(topic: bytes, partition: int) -> TopicPartition:
    """A partition out of two columns."""
    return TopicPartition(decode(topic), partition)


def told_columns(group: str, topics: Sequence[str], ttl_ms: int) -> dict[str, Any]:
    """What is older than `ttl_ms` before the progress that the group has told of these topics."""
    named = sorted({encode(topic) for topic in topics})
    return {"group": encode(group), "topics": named, "count": len(named), "ttl_ms": ttl_ms}
