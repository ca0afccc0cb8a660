"""Leases of input partitions: one row each, with an epoch that fences. Functions on a connection."""

import sqlite3
from collections.abc import Collection, Sequence

from choreo.ports import Lease
from choreo.record import TopicPartition
from choreo.sqlite import batched

_WHERE = '"group" = ? AND topic = ? AND "partition" = ?'
_LOST = """SELECT v.column2, v.column3 FROM (VALUES {rows}) v
    LEFT JOIN choreo_lease l ON l."group" = v.column1 AND l.topic = v.column2 AND l."partition" = v.column3
    WHERE l.epoch IS NOT v.column4"""


def take(db: sqlite3.Connection, group: str, partition: TopicPartition, owner: str, expires_ms: int) -> Lease:
    """Own the partition at once, with a newer epoch than anyone had."""
    row = db.execute(
        "INSERT INTO choreo_lease VALUES (?, ?, ?, 1, ?, ?, NULL) "
        'ON CONFLICT ("group", topic, "partition") DO UPDATE '
        "SET epoch = epoch + 1, owner = excluded.owner, expires_ms = excluded.expires_ms RETURNING epoch",
        (group, *partition, owner, expires_ms),
    ).fetchone()
    return Lease(group, partition, row[0], owner)


def lost(db: sqlite3.Connection, held: Collection[Lease]) -> set[TopicPartition]:
    """Partitions whose lease is not the newest any more. Its age does not matter as long as nobody took over."""
    if not held:
        return set()
    values = [each for lease in held for each in (lease.group, *lease.partition, lease.epoch)]
    return {TopicPartition(*row) for row in db.execute(batched.filled(_LOST, "(?, ?, ?, ?)", len(held)), values)}


def renew(db: sqlite3.Connection, lease: Lease, expires_ms: int, progress_ms: int | None) -> bool:
    """Keep the lease, and note how far the partition has come; False if somebody took over."""
    return bool(
        db.execute(
            "UPDATE choreo_lease SET expires_ms = ?, progress_ms = COALESCE(?, progress_ms) "
            f"WHERE {_WHERE} AND epoch = ?",
            (expires_ms, progress_ms, lease.group, *lease.partition, lease.epoch),
        ).rowcount
    )


def progress(db: sqlite3.Connection, group: str, topics: Sequence[str] | None) -> int | None:
    """Log time the group has come to: of its partition that is furthest behind; None while one's is not known."""
    rows = db.execute('SELECT topic, progress_ms FROM choreo_lease WHERE "group" = ?', (group,)).fetchall()
    found = [progress_ms for topic, progress_ms in rows if topics is None or topic in topics]
    return None if not found or None in found else min(found)


def give_up(db: sqlite3.Connection, lease: Lease) -> None:
    """Let others take the partition without waiting."""
    db.execute(
        f"UPDATE choreo_lease SET owner = '', expires_ms = 0 WHERE {_WHERE} AND epoch = ?",
        (lease.group, *lease.partition, lease.epoch),
    )


def live(db: sqlite3.Connection, group: str, partition: TopicPartition, epoch: int, now_ms: int) -> bool:
    """Whether a claim made under `epoch` still has a living owner."""
    row = db.execute(f"SELECT epoch, expires_ms FROM choreo_lease WHERE {_WHERE}", (group, *partition)).fetchone()
    return row is not None and row[0] == epoch and row[1] > now_ms
