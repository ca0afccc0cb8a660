"""Queues of parked keys in PostgreSQL: what a commit does to them, and looked at from outside."""

from collections.abc import Iterable, Sequence
from typing import Any

from choreo.parked import Leaves, Parked, Waits
from choreo.ports import Lease
from choreo.record import ProducerRecord
from choreo.sqlite.log import decode_headers, encode_headers
from choreo.stores.postgres.pool import Statement
from choreo.stores.postgres.queries import LOCK, NOW_MS
from choreo.stores.postgres.schema import Names
from choreo.stores.postgres.values import Row, decode, emit_of, encode

_RECORD = "to_topic, key, value, headers"
_PARKED = f'"row", handler, {_RECORD}, reason, detail, attempts, correlation_id, parked_ms, wake_ms'
_IS_HEAD = "NOT EXISTS (SELECT FROM {parked} b WHERE b.queue = p.queue AND b.seq < p.seq)"
_EMIT = f"""INSERT INTO {{outbox}} ("group", topic, "partition", {_RECORD})
    SELECT %(group)b, %(topic)b, %(partition)s::int4, {_RECORD}"""
_EMITTED = "SELECT id, to_topic, to_partition, key, value, headers FROM emitted"
_RETURNING = "RETURNING id, to_topic, to_partition, key, value, headers"

# All parts of a statement see the queue as it was before it.
_WAIT = f"""WITH put AS (
    INSERT INTO {{parked}} AS p (queue, "group", {_PARKED})
    VALUES (%(queue)b, %(group)b, %(row)b, %(handler)b, %(to_topic)b, %(key)b, %(value)b, %(headers)b, %(reason)b,
        %(detail)b, %(attempts)s::int4, %(correlation_id)b, {NOW_MS}, {NOW_MS} + %(due_ms)s::int8)
    ON CONFLICT ("row") DO UPDATE SET to_topic = excluded.to_topic, key = excluded.key, value = excluded.value,
        headers = excluded.headers, reason = excluded.reason, detail = excluded.detail,
        attempts = p.attempts + excluded.attempts, wake_ms = excluded.wake_ms
), emitted AS (
    {_EMIT} FROM (SELECT %(to_topic)b::bytea AS to_topic, %(key)b::bytea AS key, %(value)b::bytea AS value,
        %(headers)b::bytea AS headers) r
    WHERE %(reason)b::bytea = '' AND NOT EXISTS (SELECT FROM {{parked}} WHERE queue = %(queue)b) {_RETURNING}
) {_EMITTED}"""
_LEAVE = f"""WITH head AS (
    SELECT seq FROM {{parked}} WHERE "row" = %(row)b
), next AS (
    SELECT {_RECORD} FROM {{parked}} WHERE queue = %(queue)b AND seq > (SELECT seq FROM head) ORDER BY seq LIMIT 1
), gone AS (
    DELETE FROM {{parked}} WHERE "row" = %(row)b AND (%(to_topic)b::bytea IS NULL OR EXISTS (SELECT FROM next))
), closing AS (
    UPDATE {{parked}} SET to_topic = %(to_topic)b, key = %(key)b, value = %(value)b, headers = %(headers)b,
        reason = '', detail = '', wake_ms = NULL
    WHERE "row" = %(row)b AND %(to_topic)b::bytea IS NOT NULL AND NOT EXISTS (SELECT FROM next) RETURNING {_RECORD}
), emitted AS (
    {_EMIT} FROM (SELECT * FROM next UNION ALL SELECT * FROM closing) r {_RETURNING}
) {_EMITTED}"""

_HEADS = f"""SELECT {_PARKED}, (SELECT count(*) - 1 FROM {{parked}} a WHERE a.queue = p.queue) FROM {{parked}} p
    WHERE "group" = %(group)b AND (%(handler)b::bytea = '' OR handler = %(handler)b)
    AND (%(key)b::bytea IS NULL OR key = %(key)b) AND {_IS_HEAD} ORDER BY seq"""
_COUNT = 'SELECT count(DISTINCT queue) FROM {parked} WHERE "group" = %(group)b'
# A row that is locked is one that a commit is about to change.
_DUE = f"""WITH found AS MATERIALIZED (
    SELECT "row" FROM {{parked}} p WHERE "group" = %(group)b AND wake_ms <= {NOW_MS} AND {_IS_HEAD}
    ORDER BY wake_ms LIMIT %(limit)s FOR UPDATE SKIP LOCKED
) UPDATE {{parked}} p SET wake_ms = {NOW_MS} + %(claim_ms)s FROM found f WHERE p."row" = f."row"
RETURNING {", ".join(f"p.{column}" for column in _PARKED.split(", "))}, 0"""
_NEXT = f"""SELECT min(wake_ms) - {NOW_MS} FROM {{parked}} p
    WHERE "group" = %(group)b AND wake_ms IS NOT NULL AND {_IS_HEAD}"""
_SENT = f"""UPDATE {{parked}} p SET wake_ms = {NOW_MS} + %(again_ms)s
    FROM unnest(%(rows)b::bytea[], %(headers)b::bytea[]) AS s ("row", headers)
    WHERE p."row" = s."row" AND p.headers = s.headers AND p.wake_ms IS NOT NULL"""
_OF = "SELECT DISTINCT queue FROM {parked} WHERE queue = ANY(%(queues)b::bytea[])"


class ParkedQueries:
    """The statements with a store's own names in them."""

    def __init__(self, names: Names) -> None:
        fill = names.parameterised
        self.wait, self.leave, self.of = fill(_WAIT), fill(_LEAVE), fill(_OF)
        self.heads, self.count = fill(_HEADS), fill(_COUNT)
        self.due, self.next, self.sent = fill(_DUE), fill(_NEXT), fill(_SENT)


def locks(events: Iterable[Waits | Leaves]) -> list[Statement]:
    """One after the other changes a queue; in the same order, whoever it is."""
    numbers = {int.from_bytes(event.queue[:8], signed=True) for event in events}
    return [(LOCK, {"lock": number}) for number in sorted(numbers)]


def change(queries: ParkedQueries, lease: Lease, event: Waits | Leaves) -> Statement:
    """What a unit does to a queue; `emitted` reads the answer."""
    wanted: dict[str, Any] = {
        "group": encode(lease.group),
        "topic": encode(lease.partition.topic),
        "partition": lease.partition.partition,
        "queue": event.queue,
        "row": event.row,
    }
    if isinstance(event, Leaves):
        return queries.leave, wanted | _columns(event.closing)
    return queries.wait, wanted | _columns(event.record) | {
        "handler": encode(event.handler),
        "reason": encode(event.reason),
        "detail": encode(event.detail),
        "attempts": event.attempts,
        "correlation_id": encode(event.correlation_id),
        "due_ms": None if event.due_s is None else int(event.due_s * 1000),
    }


def emitted(rows: Iterable[Row]) -> list[tuple[int, ProducerRecord]]:
    """What a change put into the outbox."""
    return [emit_of(row) for row in rows]


def heads(queries: ParkedQueries, group: str, handler: str, key: bytes | None) -> Statement:
    """The heads of a group's queues."""
    return queries.heads, {"group": encode(group), "handler": encode(handler), "key": key}


def count(queries: ParkedQueries, group: str) -> Statement:
    """How many queues a group has."""
    return queries.count, {"group": encode(group)}


def due(queries: ParkedQueries, group: str, limit: int, claim_s: float) -> list[Statement]:
    """Heads to be sent now, claimed; and how many milliseconds until the next one is to be."""
    named = {"group": encode(group)}
    return [(queries.due, named | {"limit": limit, "claim_ms": int(claim_s * 1000)}), (queries.next, named)]


def sent(queries: ParkedQueries, found: Sequence[Parked], again_s: float) -> Statement:
    """These need not be sent again for a while, as far as they are what they were."""
    ordered = sorted(found, key=lambda each: each.row)
    return queries.sent, {
        "rows": [each.row for each in ordered],
        "headers": [encode_headers(each.record.headers) for each in ordered],
        "again_ms": int(again_s * 1000),
    }


def parked_of(row: Row) -> Parked:
    """A row of the queues' table, and how many are behind it."""
    id_, handler, topic, key, value, headers, reason, detail, attempts, correlation_id, *rest = row
    return Parked(
        bytes(id_),
        decode(handler),
        ProducerRecord(decode(topic), key, value, decode_headers(headers)),
        decode(reason),
        decode(detail),
        attempts,
        decode(correlation_id),
        *rest,
    )


def _columns(record: ProducerRecord | None) -> dict[str, Any]:
    if record is None:
        return dict.fromkeys(("to_topic", "key", "value", "headers"))
    return {
        "to_topic": encode(record.topic),
        "key": record.key,
        "value": record.value,
        "headers": encode_headers(record.headers),
    }
