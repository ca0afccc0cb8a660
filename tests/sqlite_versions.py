"""A store's file as older choreos made it: 0.1, before the schema stated its version, and versions 3 and 4."""

import sqlite3
from contextlib import closing
from pathlib import Path

FIRST = (
    """CREATE TABLE choreo_key (
    digest BLOB PRIMARY KEY, done INTEGER NOT NULL, fingerprint BLOB NOT NULL, "group" TEXT NOT NULL,
    topic TEXT NOT NULL, "partition" INTEGER NOT NULL, epoch INTEGER NOT NULL, deliveries INTEGER NOT NULL,
    handler TEXT NOT NULL, offset INTEGER NOT NULL, correlation_id TEXT NOT NULL, timestamp_ms INTEGER NOT NULL,
    outcome TEXT NOT NULL, attempts INTEGER NOT NULL, duration_s REAL NOT NULL, done_ms INTEGER NOT NULL
) WITHOUT ROWID""",
    'CREATE INDEX choreo_key_claimed ON choreo_key ("group", topic, "partition") WHERE done = 0',
    "CREATE INDEX choreo_key_flow ON choreo_key (correlation_id)",
    """CREATE TABLE choreo_outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, "group" TEXT NOT NULL, topic TEXT NOT NULL, "partition" INTEGER NOT NULL,
    to_topic TEXT NOT NULL, key BLOB, value BLOB, headers BLOB NOT NULL
)""",
    """CREATE TABLE choreo_lease (
    "group" TEXT, topic TEXT, "partition" INTEGER, epoch INTEGER NOT NULL, owner TEXT NOT NULL,
    expires_ms INTEGER NOT NULL, PRIMARY KEY ("group", topic, "partition")
) WITHOUT ROWID""",
)
KEY = b"sixteen bytes of"


def make_first(
    path: Path, *, group: str = "kitchen", digest: bytes = KEY, fingerprint: bytes = b"12345678", time_ms: int = 1_000
) -> None:
    """A file with one handled key and one lease of a member that has gone."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in FIRST:
            db.execute(statement)
        db.execute(
            "INSERT INTO choreo_key VALUES (?, 1, ?, ?, 'orders', 0, 7, 1, 'h', 0, 'flow', ?, 'handled', 1, 0.1, 2)",
            (digest, fingerprint, group, time_ms),
        )
        db.execute("INSERT INTO choreo_lease VALUES (?, 'orders', 0, 7, '', 0)", (group,))


THIRD = (
    """CREATE TABLE choreo_key (
    id INTEGER PRIMARY KEY AUTOINCREMENT, digest BLOB NOT NULL, done INTEGER NOT NULL, fingerprint BLOB NOT NULL,
    "group" TEXT NOT NULL, topic TEXT NOT NULL, "partition" INTEGER NOT NULL, epoch INTEGER NOT NULL,
    deliveries INTEGER NOT NULL, handler TEXT NOT NULL, offset INTEGER NOT NULL, correlation_id TEXT NOT NULL,
    timestamp_ms INTEGER NOT NULL, outcome TEXT NOT NULL, attempts INTEGER NOT NULL, duration_s REAL NOT NULL,
    done_ms INTEGER NOT NULL
)""",
    'CREATE INDEX choreo_key_claimed ON choreo_key ("group", topic, "partition") WHERE done = 0',
    "CREATE INDEX choreo_key_flow ON choreo_key (id / 2048, correlation_id)",
    'CREATE INDEX choreo_key_time ON choreo_key ("group", timestamp_ms)',
    "CREATE TABLE choreo_digest (prefix BLOB, id INTEGER, PRIMARY KEY (prefix, id)) WITHOUT ROWID",
    "CREATE TABLE choreo_run (end INTEGER NOT NULL)",
    "INSERT INTO choreo_run VALUES (0)",
    """CREATE TABLE choreo_lease (
    "group" TEXT, topic TEXT, "partition" INTEGER, epoch INTEGER NOT NULL, owner TEXT NOT NULL,
    expires_ms INTEGER NOT NULL, progress_ms INTEGER, PRIMARY KEY ("group", topic, "partition")
) WITHOUT ROWID""",
    FIRST[3],
    "CREATE TABLE choreo_schema (version INTEGER NOT NULL)",
    "INSERT INTO choreo_schema VALUES (3)",
)


def make_third(path: Path) -> None:
    """A file with one handled key, one lease of a member that has gone, and one emit that is not sent."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in THIRD:
            db.execute(statement)
        db.execute(
            "INSERT INTO choreo_key VALUES (1, ?, 1, ?, 'kitchen', 'orders', 0, 7, 1, 'h', 0, 'flow', 1000, "
            "'handled', 1, 0.1, 2)",
            (KEY, b"12345678"),
        )
        db.execute("INSERT INTO choreo_lease VALUES ('kitchen', 'orders', 0, 7, '', 0, 500)")
        db.execute("INSERT INTO choreo_outbox VALUES (1, 'kitchen', 'orders', 0, 'out', NULL, x'31', x'')")


FOURTH = (
    """CREATE TABLE choreo_instance (
    process TEXT, key TEXT, version INTEGER NOT NULL, state TEXT NOT NULL, data BLOB NOT NULL, ended INTEGER NOT NULL,
    deferred BLOB NOT NULL, correlation_id TEXT NOT NULL, revision INTEGER NOT NULL, updated_ms INTEGER NOT NULL,
    PRIMARY KEY (process, key)
)""",
    "CREATE INDEX choreo_instance_state ON choreo_instance (process, state, key)",
    """CREATE TABLE choreo_timer (
    process TEXT, key TEXT, name TEXT, token TEXT NOT NULL, due_ms INTEGER NOT NULL, number INTEGER NOT NULL,
    correlation_id TEXT NOT NULL, traceparent TEXT NOT NULL, wake_ms INTEGER NOT NULL,
    PRIMARY KEY (process, key, name)
) WITHOUT ROWID""",
    "CREATE INDEX choreo_timer_wake ON choreo_timer (process, wake_ms)",
    """CREATE TABLE choreo_intervention (
    id INTEGER PRIMARY KEY, process TEXT NOT NULL, key TEXT NOT NULL, what TEXT NOT NULL, who TEXT NOT NULL,
    why TEXT NOT NULL, correlation_id TEXT NOT NULL, at_ms INTEGER NOT NULL
)""",
    "CREATE INDEX choreo_intervention_instance ON choreo_intervention (process, key)",
    "CREATE INDEX choreo_intervention_flow ON choreo_intervention (correlation_id)",
    "UPDATE choreo_schema SET version = 4",
    "INSERT INTO choreo_instance VALUES ('approval', 'E-1', 1, 'ended', x'7b7d', 1, x'5b5d', 'flow', 3, 1000)",
    "INSERT INTO choreo_instance VALUES ('approval', 'E-2', 1, 'waiting', x'7b7d', 0, x'5b5d', 'flow', 1, 1000)",
)


def make_fourth(path: Path) -> None:
    """The same with an instance that has ended, and one that has not."""
    make_third(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in FOURTH:
            db.execute(statement)
