"""A service's SQLite database as its processes reach it: every statement is a call that can go wrong on the way."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from choreo.errors import StoreError
from choreo.sqlite.connection import SqliteConnection
from choreo.sqlite.database import Database
from choreo.testing.simulation.process import Process

if TYPE_CHECKING:
    from choreo.testing.simulation.loop import Life

_Result = TypeVar("_Result")

POLL_S = 0.01


class Busy(Exception):
    """Somebody's transaction is open."""


class SharedDatabase(Database):
    """In memory; one transaction at a time, which the server ends when its client dies or stands still."""

    def __init__(self) -> None:
        super().__init__(":memory:")
        self._open_transaction: OpenTransaction | None = None

    def begin(self, life: "Life") -> "OpenTransaction":
        """Open one that outlives the call.

        Raises:
            Busy: There is one.
        """
        if self.busy():
            raise Busy
        connection = self._connection
        assert connection is not None
        connection.execute("BEGIN IMMEDIATE")
        self._open_transaction = OpenTransaction(connection, life)
        return self._open_transaction

    def busy(self) -> bool:
        """Whether there is one whose client can go on."""
        open_ = self._open_transaction
        if open_ is not None and (open_.life.dead or open_.life.stopped):
            open_.end("ROLLBACK")
        return open_ is not None and open_.is_open

    def read_inline(self, query: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """As `Database.read_inline`; nothing is seen of a transaction whose client is gone."""
        self.busy()
        return super().read_inline(query)


class OpenTransaction:
    """A transaction, and the connection it is on as its client sees it: of no use once it has ended."""

    def __init__(self, connection: SqliteConnection, life: "Life") -> None:
        self.life = life
        self.is_open = True
        self._connection = connection

    def end(self, statement: str) -> None:
        """`COMMIT` or `ROLLBACK`; nothing if it has ended.

        Raises:
            sqlite3.OperationalError: It is to be committed, and was rolled back meanwhile.
        """
        if not self.is_open:
            if statement == "COMMIT":
                raise sqlite3.OperationalError("the server has closed the connection")
            return
        self.is_open = False
        self._connection.take_back()
        if statement == "COMMIT":
            self._connection.commit()
        else:
            self._connection.rollback()

    def __getattr__(self, name: str) -> Any:
        if not self.is_open:
            raise sqlite3.OperationalError("the server has closed the connection")
        return getattr(self._connection, name)

    def take_back(self) -> None:
        """As `SqliteConnection.take_back`; of one that has ended it is no error."""
        if self.is_open:
            self._connection.take_back()

    def commit(self) -> None:
        """Not for those who are given it."""

    rollback = close = commit

    def create_function(self, *_: object, **__: object) -> None:
        """Of SQLAlchemy's own: it would be made anew with each session."""


class SimulatedDatabase(Database):
    """`shared` through one process; a transaction is one step over there, as it is in a real database."""

    def __init__(self, process: Process, shared: Database) -> None:
        super().__init__(":memory:")
        self.process = process
        self._shared = shared
        self.on_write = shared.on_write

    async def open(self, schema: str) -> None:
        """It is open; tables are created at once."""
        if schema:
            await self._shared.open(schema)

    async def read(self, query: Callable[[Any], _Result]) -> _Result:
        """As `Database.read`."""
        return await self._in_turn("read", lambda: self._shared.read_inline(query), writes=False)

    async def write(self, change: Callable[[Any], _Result]) -> _Result:
        """As `Database.write`."""
        return await self._in_turn("write", lambda: self._shared.write_inline(change), writes=True)

    async def begin(self) -> OpenTransaction:
        """Open a transaction that outlives the call; who gets no answer has lost its connection, and that with it."""
        shared, opened = self._shared, list[OpenTransaction]()
        assert isinstance(shared, SharedDatabase)

        def begin() -> OpenTransaction:
            opened.append(shared.begin(self.process.life))
            return opened[0]

        try:
            return await self._in_turn("begin", begin, writes=False)
        except StoreError:
            for each in opened:
                each.end("ROLLBACK")
            raise

    async def _in_turn(self, what: str, perform: Callable[[], _Result], *, writes: bool) -> _Result:
        shared = self._shared

        def when_free() -> _Result:
            if isinstance(shared, SharedDatabase) and shared.busy():
                raise Busy
            return perform()

        while True:
            with suppress(Busy):
                return await self.process.call(what, when_free, to="store", writes=writes)
            await asyncio.sleep(POLL_S)

    async def close(self) -> None:
        """The others still use it."""
