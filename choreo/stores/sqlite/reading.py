"""What is in an SQLite store, for people: counts by group, and the history of a flow. Functions on a connection."""

import sqlite3
from typing import Any

from choreo.ports import StoreStats
from choreo.sqlite import leases
from choreo.sqlite.schema import SPAN_ROWS

# `choreo_key_flow` begins with the span of rows. CROSS JOIN keeps SQLite from turning the join around; with both
# aggregates in one SELECT it would read the whole table.
_HISTORY = f"""WITH RECURSIVE span (number, last) AS (
    SELECT (SELECT MIN(id) FROM choreo_key) / {SPAN_ROWS}, (SELECT MAX(id) FROM choreo_key) / {SPAN_ROWS}
    UNION ALL SELECT number + 1, last FROM span WHERE number < last
) SELECT handler, topic, "partition", offset, done, outcome, attempts, deliveries, duration_s, done_ms
FROM span CROSS JOIN choreo_key k ON k.id / {SPAN_ROWS} = span.number AND k.correlation_id = ? ORDER BY done_ms"""


def stats(db: sqlite3.Connection) -> dict[str, StoreStats]:
    """By group; reads every key."""
    found: dict[str, StoreStats] = {}
    unsent = dict(db.execute('SELECT "group", COUNT(*) FROM choreo_outbox GROUP BY "group"').fetchall())
    keys = {
        group: counts
        for group, *counts in db.execute(
            'SELECT "group", SUM(done), SUM(1 - done), MIN(timestamp_ms) FROM choreo_key GROUP BY "group"'
        )
    }
    groups = {row[0] for row in db.execute('SELECT DISTINCT "group" FROM choreo_lease')}
    for group in sorted(groups | set(keys) | set(unsent)):
        done, claims, oldest_ms = keys.get(group, (0, 0, None))
        progress_ms = leases.progress(db, group, None)
        found[group] = StoreStats(done, claims, unsent.get(group, 0), oldest_ms, progress_ms)
    return found


def history(db: sqlite3.Connection, correlation_id: str) -> list[dict[str, Any]]:
    """Who handled what of one flow, in order of time."""
    cursor = db.execute(_HISTORY, (correlation_id,))
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]
