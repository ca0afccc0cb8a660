"""The tables of `SqliteStore`, by version, and how an older file comes to the newest."""

import sqlite3

from choreo.errors import ConfigurationError

VERSION = 5
UNREADABLE = -1
"""Stands for the version of a file that has a table for it and no number in it."""
_LEASE = """CREATE TABLE choreo_lease (
    "group" TEXT, topic TEXT, "partition" INTEGER, epoch INTEGER NOT NULL, owner TEXT NOT NULL,
    expires_ms INTEGER NOT NULL, progress_ms INTEGER, PRIMARY KEY ("group", topic, "partition")
) WITHOUT ROWID"""
SPAN_ROWS = 2048
# Rows are appended, so that those of one batch share pages. Digests and correlation ids are random. Digests are found
# as `choreo.stores.sqlite.digests` says; the others by spans of rows, so that new entries share some twenty pages
# whatever the table's size, and who looks for a flow asks each span.
_KEY = (
    """CREATE TABLE choreo_key (
    id INTEGER PRIMARY KEY AUTOINCREMENT, digest BLOB NOT NULL, done INTEGER NOT NULL, fingerprint BLOB NOT NULL,
    "group" TEXT NOT NULL, topic TEXT NOT NULL, "partition" INTEGER NOT NULL, epoch INTEGER NOT NULL,
    deliveries INTEGER NOT NULL, handler TEXT NOT NULL, offset INTEGER NOT NULL, correlation_id TEXT NOT NULL,
    timestamp_ms INTEGER NOT NULL, outcome TEXT NOT NULL, attempts INTEGER NOT NULL, duration_s REAL NOT NULL,
    done_ms INTEGER NOT NULL
)""",
    'CREATE INDEX choreo_key_claimed ON choreo_key ("group", topic, "partition") WHERE done = 0',
    f"CREATE INDEX choreo_key_flow ON choreo_key (id / {SPAN_ROWS}, correlation_id)",
    'CREATE INDEX choreo_key_time ON choreo_key ("group", timestamp_ms)',
    "CREATE TABLE choreo_digest (prefix BLOB, id INTEGER, PRIMARY KEY (prefix, id)) WITHOUT ROWID",
    "CREATE TABLE choreo_run (end INTEGER NOT NULL)",
    "INSERT INTO choreo_run VALUES (0)",
)
# `wake_ms` is when a timer is next to be sent: when it is due, later once that was done. Few timers are due, however
# many wait, and what of those was sent already is not looked at either.
_INSTANCE = (
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
)
# Those that have ended, oldest first: what retention takes. Those in flight are not in it.
_ENDED = ("CREATE INDEX choreo_instance_ended ON choreo_instance (process, updated_ms) WHERE ended = 1",)
# An event keeps its place in its queue, `seq`, whatever becomes of it there. `wake_ms`: as of a timer.
_PARKED = (
    """CREATE TABLE choreo_parked (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, queue BLOB NOT NULL, "group" TEXT NOT NULL, row BLOB NOT NULL UNIQUE,
    handler TEXT NOT NULL, to_topic TEXT NOT NULL, key BLOB, value BLOB, headers BLOB NOT NULL, reason TEXT NOT NULL,
    detail TEXT NOT NULL, attempts INTEGER NOT NULL, correlation_id TEXT NOT NULL, parked_ms INTEGER NOT NULL,
    wake_ms INTEGER
)""",
    "CREATE INDEX choreo_parked_queue ON choreo_parked (queue, seq)",
    'CREATE INDEX choreo_parked_wake ON choreo_parked ("group", wake_ms)',
)
NEW = (
    *_KEY,
    *_INSTANCE,
    *_ENDED,
    *_PARKED,
    _LEASE,
    """CREATE TABLE choreo_outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, "group" TEXT NOT NULL, topic TEXT NOT NULL, "partition" INTEGER NOT NULL,
    to_topic TEXT NOT NULL, key BLOB, value BLOB, headers BLOB NOT NULL
)""",
)
_COLUMNS = (
    'digest, done, fingerprint, "group", topic, "partition", epoch, deliveries, handler, offset, correlation_id, '
    "timestamp_ms, outcome, attempts, duration_s, done_ms"
)
STEPS = {
    1: ("ALTER TABLE choreo_lease ADD COLUMN progress_ms INTEGER",),
    2: (
        *(f"DROP INDEX IF EXISTS choreo_key_{name}" for name in ("claimed", "flow", "time", "digest")),
        "ALTER TABLE choreo_key RENAME TO choreo_key_old",
        *_KEY,
        f"INSERT INTO choreo_key ({_COLUMNS}) SELECT {_COLUMNS} FROM choreo_key_old ORDER BY timestamp_ms",
        "DROP TABLE choreo_key_old",
    ),
    3: _INSTANCE,
    4: (*_ENDED, *_PARKED),
}
"""What leads from a version to the next one."""


def version(db: sqlite3.Connection) -> int:
    """The version of the file's tables, 0 for a file that has none. Files of choreo 0.1 did not state theirs."""
    tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE name LIKE 'choreo_%'")}
    if "choreo_schema" in tables:
        row = db.execute("SELECT MAX(version) FROM choreo_schema").fetchone()
        return row[0] if isinstance(row[0], int) else UNREADABLE
    return 1 if "choreo_key" in tables else 0


def plan(db: sqlite3.Connection, path: str) -> list[str]:
    """The statements that lead to VERSION.

    Raises:
        ConfigurationError: The file is of a newer choreo, or its version cannot be read.
    """
    found = version(db)
    if found == UNREADABLE:
        raise ConfigurationError(
            f"the file {path} does not say which schema version it has: its table choreo_schema holds no number: "
            "give another file, or restore this one"
        )
    if found > VERSION:
        raise ConfigurationError(
            f"the file {path} has schema version {found}, and this choreo knows {VERSION}: run the newer choreo that "
            "made it, or another file"
        )
    if found == VERSION:
        return []
    statements = list(NEW) if found == 0 else [each for step, some in STEPS.items() if step >= found for each in some]
    return [
        *statements,
        "CREATE TABLE IF NOT EXISTS choreo_schema (version INTEGER NOT NULL)",
        "DELETE FROM choreo_schema",
        f"INSERT INTO choreo_schema VALUES ({VERSION})",
    ]


def apply(db: sqlite3.Connection, path: str) -> None:
    """Execute the plan, in the caller's transaction."""
    for statement in plan(db, path):
        db.execute(statement)
