"""What is in a PostgreSQL store, for people: counts by group, and the history of a flow."""

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

from choreo.ports import StoreStats
from choreo.stores.postgres.pool import Statement, flush
from choreo.stores.postgres.queries import BEGIN, COMMIT, LIMITS, Queries
from choreo.stores.postgres.values import decode, encode, flow_of

COUNTED_BYTES_MAX = 256 * 1024 * 1024
"""Keys are counted one by one in a table up to this size, about 700,000 of them; beyond, in a sample of so much."""


async def stats(
    connection: psycopg.AsyncConnection[Any],
    queries: Queries,
    limits: Mapping[str, Any],
    schema: str,
    table: str,
) -> dict[str, StoreStats]:
    """By group. In a large table `keys` and `claims` are estimates, from a sample of its pages."""
    begin: list[Statement] = [(BEGIN, {}), (LIMITS, limits)]
    rows = await flush(connection, [*begin, (queries.size, {"schema": schema, "table": table}), (COMMIT, {})])
    size_bytes = rows[2][0][1] if rows[2] else 0
    share = min(1.0, COUNTED_BYTES_MAX / max(size_bytes, 1))
    counting = (queries.count, {"share": share * 100.0})
    rows = await flush(connection, [*begin, counting, (queries.oldest, {}), (COMMIT, {})])
    counts = {bytes(group): (round(done / share), round(open_ / share)) for group, done, open_ in rows[2]}
    rest = {bytes(group): (oldest, progress, outbox) for group, oldest, progress, outbox in rows[3]}
    found = {}
    for group in counts.keys() | rest.keys():
        keys, claims = counts.get(group, (0, 0))
        oldest_ms, progress_ms, outbox = rest.get(group, (None, None, 0))
        found[decode(group)] = StoreStats(keys, claims, outbox, oldest_ms, progress_ms)
    return found


async def history(
    connection: psycopg.AsyncConnection[Any], queries: Queries, limits: Mapping[str, Any], correlation_id: str
) -> Sequence[dict[str, Any]]:
    """Who handled what of one flow, in order of time."""
    wanted = {"flow": flow_of(correlation_id), "correlation_id": encode(correlation_id)}
    begin: list[Statement] = [(BEGIN, {}), (LIMITS, limits)]
    rows = await flush(connection, [*begin, queries.has_spans, (COMMIT, {})])
    query = queries.history[rows[2][0][0]]
    rows = await flush(connection, [*begin, (query, wanted), (COMMIT, {})])
    return [
        {
            "handler": decode(handler),
            "topic": decode(topic),
            "partition": partition,
            "offset": offset,
            "done": int(done),
            "outcome": decode(outcome),
            "attempts": attempts,
            "deliveries": deliveries,
            "duration_s": duration_s,
            "done_ms": done_ms,
        }
        for handler, topic, partition, offset, done, outcome, attempts, deliveries, duration_s, done_ms in rows[2]
    ]
