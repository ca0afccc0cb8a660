"""One connection to one SQLite file, on a thread of its own, and a fair way to wait for the write lock."""

import asyncio
import random
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from choreo.errors import StoreError
from choreo.sqlite.connection import SqliteConnection

_Result = TypeVar("_Result")

BUSY_TIMEOUT_S = 30.0
_FIRST_WAIT_S, _WAIT_MAX_S = 0.0002, 0.01


class Database:
    """A file that several processes share, or `:memory:` for one.

    SQLite's own busy handler sleeps ever longer, so that a writer that waits can starve for a second while
    others come and go; here everybody waits about as long, with jitter.

    Args:
        path: The file; its folder is created. `:memory:` is private to this object.
        inline: Run statements on the caller's thread: no concurrency, and the same order every time. For tests.
    """

    def __init__(self, path: str, *, inline: bool = False) -> None:
        self.path = path
        self._inline = inline or path == ":memory:"
        self._thread = None if self._inline else ThreadPoolExecutor(1, thread_name_prefix="choreo-sqlite")
        self._connection: SqliteConnection | None = None
        self._users = 0
        self.on_write: list[Callable[[], None]] = []
        """Called on the event loop after each committed transaction of this process."""

    async def open(self, schema: str) -> None:
        """Open the file if this is its first user, and create the tables of `schema`.

        Raises:
            StoreError: The file cannot be opened or is no database.
        """
        self._users += 1
        try:
            await self._on_thread(lambda: self._open(schema))
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"the database file {self.path} cannot be opened: {error}; check that its folder can be written to "
                "and that the file is an SQLite database"
            ) from error

    async def read(self, query: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Run `query` outside of any transaction."""
        return await self._on_thread(lambda: self._guarded(query))

    async def write(self, change: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Run `change` in one transaction that holds the write lock; an exception rolls it back.

        Raises:
            StoreError: The lock was not to be had in 30 s, the disk is full, or the file is damaged.
        """
        result = await self._on_thread(lambda: self._guarded(lambda _: self._transaction(change)))
        for notify in self.on_write:
            notify()
        return result

    def read_inline(self, query: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """`read` on the caller's thread, for a database opened `inline`."""
        assert self._inline
        return self._guarded(query)

    def write_inline(self, change: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """`write` on the caller's thread, for a database opened `inline`."""
        assert self._inline
        result = self._guarded(lambda _: self._transaction(change))
        for notify in self.on_write:
            notify()
        return result

    async def close(self) -> None:
        """Close the file when its last user closes it."""
        self._users -= 1
        if self._users > 0:
            return
        await self._on_thread(self._close)
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    async def _on_thread(self, call: Callable[[], _Result]) -> _Result:
        if self._thread is None:
            return call()
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _open(self, schema: str) -> None:
        if self._connection is None:
            if self.path != ":memory:":
                Path(self.path).absolute().parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(
                self.path, timeout=0, isolation_level=None, check_same_thread=False, factory=SqliteConnection
            )
            connection.execute("PRAGMA foreign_keys = ON")
            self._retried(lambda: connection.execute("PRAGMA journal_mode = WAL"))
            # A committed transaction survives a crash of the process; a power cut may take the last ones.
            connection.execute("PRAGMA synchronous = NORMAL")
            self._connection = connection
        # One transaction, since executescript would commit between two processes that create the same tables.
        statements = [part for part in schema.split(";\n") if part.strip()]
        self._transaction(lambda connection: [connection.execute(part) for part in statements])

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _guarded(self, call: Callable[[sqlite3.Connection], _Result]) -> _Result:
        if self._connection is None:
            raise StoreError(f"the database {self.path} is closed")
        try:
            return call(self._connection)
        except sqlite3.Error as error:
            raise StoreError(f"the database {self.path} failed: {error}") from error

    def _transaction(self, change: Callable[[sqlite3.Connection], _Result]) -> _Result:
        connection = self._connection
        assert connection is not None
        self._retried(lambda: connection.execute("BEGIN IMMEDIATE"))
        try:
            result = change(connection)
            self._retried(connection.commit)
        except BaseException:
            connection.rollback()
            raise
        return result

    @staticmethod
    def _retried(call: Callable[[], object]) -> None:
        """Wait for the lock with short, jittered sleeps: on a thread, so that the loop goes on."""
        deadline_s, wait_s = 0.0, _FIRST_WAIT_S
        while True:
            try:
                call()
                return
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
                now_s = time.monotonic()
                deadline_s = deadline_s or now_s + BUSY_TIMEOUT_S
                if not busy or now_s > deadline_s:
                    raise
            time.sleep(random.uniform(wait_s / 2, wait_s))
            wait_s = min(wait_s * 1.5, _WAIT_MAX_S)
