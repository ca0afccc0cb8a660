"""A log in SQLite: topics, partitions, offsets. Functions on a connection, to be composed into one transaction."""

import sqlite3
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache

import orjson
from aiokafka.partitioner import murmur2

from choreo.errors import TransportError
from choreo.ports import TopicSpec
from choreo.record import Headers, ProducerRecord, Record, TopicPartition
from choreo.sqlite import batched

SCHEMA = """
CREATE TABLE IF NOT EXISTS choreo_topic (
    name TEXT PRIMARY KEY, partitions INTEGER NOT NULL, config TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS choreo_log_end (
    topic TEXT, "partition" INTEGER, first INTEGER NOT NULL, next INTEGER NOT NULL, PRIMARY KEY (topic, "partition")
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS choreo_log (
    topic TEXT, "partition" INTEGER, offset INTEGER, key BLOB, value BLOB, headers BLOB NOT NULL,
    timestamp_ms INTEGER NOT NULL, PRIMARY KEY (topic, "partition", offset)
);
CREATE TABLE IF NOT EXISTS choreo_offset (
    "group" TEXT, topic TEXT, "partition" INTEGER, next INTEGER NOT NULL, PRIMARY KEY ("group", topic, "partition")
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS choreo_member (
    "group" TEXT, member TEXT, expires_ms INTEGER NOT NULL, PRIMARY KEY ("group", member)
) WITHOUT ROWID;
"""
_LENGTHS = struct.Struct("<ii")


def partition_of(key: bytes | None, partitions: int, turn: int) -> int:
    """The partition of a key as Java's client chooses it; without a key, partitions in turn."""
    if key is None:
        return turn % partitions
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def partitions_of(counts: Mapping[str, int], key: bytes | None) -> list[TopicPartition]:
    """Every partition of topics with so many, in order; with a `key` the one of each that it chooses."""
    return [
        TopicPartition(topic, n)
        for topic, count in counts.items()
        for n in (range(count) if key is None else (partition_of(key, count, 0),))
    ]


def encode_headers(headers: Headers) -> bytes:
    """Headers as bytes: lengths of key and value (-1: null), then both. Keys keep bytes that are not UTF-8."""
    parts: list[bytes] = []
    for key, value in headers:
        parts += (_before(key, -1), b"") if value is None else (_before(key, len(value)), value)
    return b"".join(parts)


@lru_cache(maxsize=1024)
def _before(key: str, value_bytes: int) -> bytes:
    """What stands before a value: the same for nearly every event of a type."""
    raw = key.encode("utf-8", "surrogateescape")
    return _LENGTHS.pack(len(raw), value_bytes) + raw


def decode_headers(data: bytes) -> Headers:
    """What `encode_headers` wrote."""
    headers, at = [], 0
    while at < len(data):
        key_bytes, value_bytes = _LENGTHS.unpack_from(data, at)
        at += _LENGTHS.size
        key = data[at : at + key_bytes].decode("utf-8", "surrogateescape")
        at += key_bytes
        headers.append((key, None if value_bytes < 0 else data[at : at + value_bytes]))
        at += max(value_bytes, 0)
    return tuple(headers)


def topics(db: sqlite3.Connection) -> dict[str, TopicSpec]:
    """The topics that exist, by name."""
    rows = db.execute("SELECT name, partitions, config FROM choreo_topic ORDER BY name")
    return {
        name: TopicSpec(name, partitions, 1, tuple(orjson.loads(config).items())) for name, partitions, config in rows
    }


def create_topics(db: sqlite3.Connection, specs: Sequence[TopicSpec]) -> None:
    """Create those that are missing."""
    for spec in specs:
        config = orjson.dumps(dict(spec.config)).decode()
        db.execute("INSERT OR IGNORE INTO choreo_topic VALUES (?, ?, ?)", (spec.name, spec.partitions, config))
        for partition in range(spec.partitions):
            db.execute("INSERT OR IGNORE INTO choreo_log_end VALUES (?, ?, 0, 0)", (spec.name, partition))


def widen(db: sqlite3.Connection, counts: Mapping[str, int]) -> None:
    """Give topics more partitions; one that has as many, or more, is left as it is."""
    for topic, partitions in counts.items():
        found = topics(db).get(topic)
        if found is None:
            raise TransportError(f"there is no topic {topic!r}; create it with `choreo topics apply`")
        for partition in range(found.partitions, partitions):
            db.execute("INSERT INTO choreo_log_end VALUES (?, ?, 0, 0)", (topic, partition))
        if partitions > found.partitions:
            db.execute("UPDATE choreo_topic SET partitions = ? WHERE name = ?", (partitions, topic))


def append(db: sqlite3.Connection, records: Sequence[ProducerRecord], now_ms: int) -> None:
    """Append records in order.

    Raises:
        TransportError: A topic or partition does not exist; nothing is appended, if the transaction is rolled back.
    """
    counts: dict[str, int] = {}
    ends: dict[tuple[str, int], int] = {}
    rows = []
    for turn, record in enumerate(records):
        topic = record.topic
        if topic not in counts:
            found = db.execute("SELECT partitions FROM choreo_topic WHERE name = ?", (topic,)).fetchone()
            if found is None:
                raise TransportError(f"there is no topic {topic!r}; create it with `choreo topics apply`")
            counts[topic] = found[0]
        partition = record.partition
        if partition is None:
            partition = partition_of(record.key, counts[topic], now_ms + turn)
        if (topic, partition) not in ends:
            end = db.execute(
                'SELECT next FROM choreo_log_end WHERE topic = ? AND "partition" = ?', (topic, partition)
            ).fetchone()
            if end is None:
                raise TransportError(f"the topic {topic!r} has no partition {partition}")
            ends[topic, partition] = end[0]
        offset = ends[topic, partition]
        ends[topic, partition] = offset + 1
        rows.append((topic, partition, offset, record.key, record.value, encode_headers(record.headers), now_ms))
    batched.insert(db, "INSERT INTO choreo_log VALUES {rows}", "(?, ?, ?, ?, ?, ?, ?)", rows)
    db.executemany(
        'UPDATE choreo_log_end SET next = ? WHERE topic = ? AND "partition" = ?',
        [(end, topic, partition) for (topic, partition), end in ends.items()],
    )


def read(db: sqlite3.Connection, partition: TopicPartition, offset: int, records_max: int) -> list[Record]:
    """Up to `records_max` records of one partition from `offset` on."""
    rows = db.execute(
        'SELECT offset, key, value, headers, timestamp_ms FROM choreo_log WHERE topic = ? AND "partition" = ? '
        "AND offset >= ? ORDER BY offset LIMIT ?",
        (*partition, offset, records_max),
    )
    return [
        Record(*partition, at, key, value, decode_headers(headers), timestamp_ms)
        for at, key, value, headers, timestamp_ms in rows
    ]


def scan(
    db: sqlite3.Connection, names: Sequence[str], since_ms: int, *, header: bytes = b"", key: bytes | None = None
) -> list[Record]:
    """Records of the topics not older than `since_ms` with `header` in their headers, as they were appended.

    With a `key`, of the partition of each topic that it chooses.
    """
    known = topics(db) if key is not None else {}
    only = {*partitions_of({name: known[name].partitions for name in names if name in known}, key)}
    marks = ",".join("?" * len(names))
    rows = db.execute(
        f'SELECT topic, "partition", offset, key, value, headers, timestamp_ms FROM choreo_log '
        f"WHERE topic IN ({marks}) AND timestamp_ms >= ? AND instr(headers, ?) > 0 "
        "ORDER BY rowid",
        (*names, since_ms, header),
    )
    return [
        Record(a, b, c, d, e, decode_headers(f), g)
        for a, b, c, d, e, f, g in rows
        if key is None or TopicPartition(a, b) in only
    ]


def bounds(db: sqlite3.Connection, partition: TopicPartition) -> tuple[int, int]:
    """First offset kept and next to be written."""
    row = db.execute(
        'SELECT first, next FROM choreo_log_end WHERE topic = ? AND "partition" = ?', tuple(partition)
    ).fetchone()
    if row is None:
        raise TransportError(f"there is no partition {partition}")
    return int(row[0]), int(row[1])


def committed(db: sqlite3.Connection, group: str, partition: TopicPartition) -> int | None:
    """The group's next-to-read offset, or None if it never committed."""
    row = db.execute(
        'SELECT next FROM choreo_offset WHERE "group" = ? AND topic = ? AND "partition" = ?', (group, *partition)
    ).fetchone()
    return None if row is None else int(row[0])


def commit_offsets(db: sqlite3.Connection, group: str, offsets: Mapping[TopicPartition, int]) -> None:
    """Remember next-to-read offsets."""
    db.executemany(
        "INSERT OR REPLACE INTO choreo_offset VALUES (?, ?, ?, ?)",
        [(group, *partition, offset) for partition, offset in offsets.items()],
    )


def ends(db: sqlite3.Connection) -> dict[TopicPartition, int]:
    """The next offset to be written, of every partition."""
    rows = db.execute('SELECT topic, "partition", next FROM choreo_log_end')
    return {TopicPartition(topic, partition): end for topic, partition, end in rows}


def unread(db: sqlite3.Connection) -> int:
    """Records at or above their group's committed offset, over all groups that ever committed."""
    row = db.execute(
        "SELECT COALESCE(SUM(e.next - o.next), 0) FROM choreo_offset o JOIN choreo_log_end e "
        'ON e.topic = o.topic AND e."partition" = o."partition"'
    ).fetchone()
    return int(row[0])


def delete_before(db: sqlite3.Connection, topic: str, before_ms: int) -> int:
    """Retention: delete the oldest records, those below the first one that is young enough; returns how many."""
    deleted = 0
    parts = db.execute('SELECT "partition", next FROM choreo_log_end WHERE topic = ?', (topic,)).fetchall()
    for partition, end in parts:
        row = db.execute(
            'SELECT MIN(offset) FROM choreo_log WHERE topic = ? AND "partition" = ? AND timestamp_ms >= ?',
            (topic, partition, before_ms),
        ).fetchone()
        first = end if row[0] is None else row[0]
        deleted += db.execute(
            'DELETE FROM choreo_log WHERE topic = ? AND "partition" = ? AND offset < ?', (topic, partition, first)
        ).rowcount
        db.execute(
            'UPDATE choreo_log_end SET first = MAX(first, ?) WHERE topic = ? AND "partition" = ?',
            (first, topic, partition),
        )
    return deleted
