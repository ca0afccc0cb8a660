"""Queues of parked keys in an SQLite file. Functions on a connection; what changes them runs within a commit."""

import sqlite3
from collections.abc import Sequence

from choreo.parked import Leaves, Parked, Waits
from choreo.record import ProducerRecord
from choreo.sqlite import log

_RECORD = "to_topic, key, value, headers"
_PARKED = f"row, handler, {_RECORD}, reason, detail, attempts, correlation_id, parked_ms, wake_ms"
_IS_HEAD = "NOT EXISTS (SELECT 1 FROM choreo_parked b WHERE b.queue = p.queue AND b.seq < p.seq)"


def is_parked(db: sqlite3.Connection, queue: bytes) -> bool:
    """Whether something is in the queue."""
    return db.execute("SELECT 1 FROM choreo_parked WHERE queue = ? LIMIT 1", (queue,)).fetchone() is not None


def wait(db: sqlite3.Connection, group: str, event: Waits, now_ms: int) -> list[ProducerRecord]:
    """Put an event into its queue, or change it there; returns what is to be emitted."""
    alone = not is_parked(db, event.queue)
    record = event.record
    wake_ms = None if event.due_s is None else now_ms + int(event.due_s * 1000)
    db.execute(
        f'INSERT INTO choreo_parked (queue, "group", {_PARKED}) VALUES ({", ".join("?" * 14)}) '
        "ON CONFLICT (row) DO UPDATE SET to_topic = excluded.to_topic, key = excluded.key, value = excluded.value, "
        "headers = excluded.headers, reason = excluded.reason, detail = excluded.detail, "
        "attempts = attempts + excluded.attempts, wake_ms = excluded.wake_ms",
        (
            event.queue,
            group,
            event.row,
            event.handler,
            record.topic,
            record.key,
            record.value,
            log.encode_headers(record.headers),
            event.reason,
            event.detail,
            event.attempts,
            event.correlation_id,
            now_ms,
            wake_ms,
        ),
    )
    return [record] if alone and not event.reason else []


def leave(db: sqlite3.Connection, event: Leaves, *, closes: bool) -> list[ProducerRecord]:
    """Take the head out of its queue; returns what is to be emitted. `closes`: an empty one is closed later."""
    row = db.execute("SELECT seq FROM choreo_parked WHERE row = ?", (event.row,)).fetchone()
    if row is None:
        return []
    next_ = db.execute(
        f"SELECT {_RECORD} FROM choreo_parked WHERE queue = ? AND seq > ? ORDER BY seq LIMIT 1", (event.queue, row[0])
    ).fetchone()
    closing = event.closing if closes else None
    if next_ is None and closing is not None:
        db.execute(
            "UPDATE choreo_parked SET to_topic = ?, key = ?, value = ?, headers = ?, reason = '', detail = '', "
            "wake_ms = NULL WHERE seq = ?",
            (closing.topic, closing.key, closing.value, log.encode_headers(closing.headers), row[0]),
        )
        return [closing]
    db.execute("DELETE FROM choreo_parked WHERE seq = ?", row)
    return [] if next_ is None else [_record(*next_)]


def heads(db: sqlite3.Connection, group: str, handler: str, key: bytes | None) -> list[Parked]:
    """The heads of a group's queues, the longest parked first."""
    rows = db.execute(
        f"SELECT {_PARKED}, (SELECT COUNT(*) - 1 FROM choreo_parked a WHERE a.queue = p.queue) FROM choreo_parked p "
        f"WHERE \"group\" = :group AND (:handler = '' OR handler = :handler) AND (:key IS NULL OR key = :key) "
        f"AND {_IS_HEAD} ORDER BY seq",
        {"group": group, "handler": handler, "key": key},
    )
    return [_parked(row) for row in rows]


def count(db: sqlite3.Connection, group: str) -> int:
    """How many queues a group has."""
    query = 'SELECT COUNT(DISTINCT queue) FROM choreo_parked WHERE "group" = ?'
    return int(db.execute(query, (group,)).fetchone()[0])


def next_wake_ms(db: sqlite3.Connection, group: str) -> int | None:
    """When the next record is to be sent; None if none is."""
    query = f'SELECT MIN(wake_ms) FROM choreo_parked p WHERE "group" = ? AND wake_ms IS NOT NULL AND {_IS_HEAD}'
    found: int | None = db.execute(query, (group,)).fetchone()[0]
    return found


def claim_due(db: sqlite3.Connection, group: str, limit: int, now_ms: int, until_ms: int) -> list[Parked]:
    """Heads to be sent now, which nobody else is to send until `until_ms`."""
    rows = db.execute(
        f'SELECT {_PARKED}, 0 FROM choreo_parked p WHERE "group" = ? AND wake_ms <= ? AND {_IS_HEAD} '
        "ORDER BY wake_ms LIMIT ?",
        (group, now_ms, limit),
    )
    found = [_parked(row) for row in rows]
    note_sent(db, found, until_ms)
    return found


def note_sent(db: sqlite3.Connection, sent: Sequence[Parked], again_ms: int) -> None:
    """These need not be sent again before `again_ms`, as far as they are what they were."""
    db.executemany(
        "UPDATE choreo_parked SET wake_ms = ? WHERE row = ? AND headers = ? AND wake_ms IS NOT NULL",
        [(again_ms, each.row, log.encode_headers(each.record.headers)) for each in sent],
    )


def _record(topic: str, key: bytes | None, value: bytes | None, headers: bytes) -> ProducerRecord:
    return ProducerRecord(topic, key, value, log.decode_headers(headers))


def _parked(row: tuple[object, ...]) -> Parked:
    id_, handler, *record = row[:6]
    return Parked(id_, handler, _record(*record), *row[6:])  # type: ignore[arg-type]
