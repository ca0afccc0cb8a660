"""An outbox in an SQLite file: one host, so the lead is a lock of the file system, which a killed process frees."""

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import orjson

from choreo.errors import ConfigurationError, StoreError
from choreo.outbox.rows import BACKLOG, TAKE, OutboxRow, backlog_of
from choreo.outbox.table import OutboxTable
from choreo.ports import Backlog

T = TypeVar("T")
BUSY_S_MAX = 30.0
POLL_S = 0.1
_WANTED = "topic NOT IN (SELECT value FROM json_each(:without))"


class SqliteRows:
    """As `OutboxRows`; beside the file lies `<file>-relay`, which is locked by whoever leads.

    Args:
        path: The application's database.
        table: The outbox.
    """

    def __init__(self, path: str, table: OutboxTable) -> None:
        self.shown = f"sqlite:{path}"
        self._path = path
        self._table = table
        self._connection: sqlite3.Connection | None = None
        self._lock: int | None = None

    async def open(self) -> None:
        """As the protocol says."""
        if self._table.schema is not None:
            raise ConfigurationError(f"{self.shown} has no schemas: leave schema={self._table.schema!r} out")
        if not os.path.exists(self._path):  # noqa: ASYNC240
            raise ConfigurationError(f"there is no database at {self._path}; give the application's own")
        self._connection = sqlite3.connect(
            self._path, timeout=BUSY_S_MAX, isolation_level=None, check_same_thread=False
        )
        there = await self._on_thread(
            lambda db: db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (self._table.name,)).fetchone()
        )
        if there is None:
            raise ConfigurationError(
                f"{self.shown} has no table {self._table.name}: run the application's migrations, which "
                'outbox.attach(metadata) adds it to, or the statement that outbox.ddl("sqlite") returns'
            )

    async def lead(self) -> bool:
        """As the protocol says."""
        if self._lock is None:
            lock = os.open(f"{self._path}-relay", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                return False
            self._lock = lock
        return True

    async def take(self, *, rows_max: int, bytes_max: int, without: Collection[str]) -> Sequence[OutboxRow]:
        """As the protocol says."""
        query = self._table.fill(TAKE.replace("{wanted}", _WANTED))
        parameters = {"rows_max": rows_max, "bytes_max": bytes_max, "without": orjson.dumps(list(without)).decode()}
        found = await self._on_thread(lambda db: db.execute(query, parameters).fetchall())
        return [OutboxRow(*row) for row in found]

    async def delete(self, positions: Sequence[int]) -> None:
        """As the protocol says."""
        query = self._table.fill("DELETE FROM {table} WHERE position IN (SELECT value FROM json_each(?))")
        gone = orjson.dumps(list(positions)).decode()
        await self._on_thread(lambda db: db.execute(query, (gone,)))

    async def backlog(self) -> Backlog:
        """As the protocol says."""
        query = self._table.fill(BACKLOG)
        rows, oldest_ms = await self._on_thread(lambda db: db.execute(query).fetchone())
        return backlog_of(rows, oldest_ms, time.time())

    async def wait(self, wait_s: float) -> None:
        """As the protocol says: nobody wakes us, and a look costs little."""
        await asyncio.sleep(min(wait_s, POLL_S))

    async def close(self) -> None:
        """As the protocol says."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    async def _on_thread(self, call: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connection
        if connection is None:
            raise StoreError(f"{self.shown} is closed")
        try:
            return await asyncio.to_thread(call, connection)
        except sqlite3.Error as error:
            raise StoreError(f"{self.shown} failed: {error}") from error
