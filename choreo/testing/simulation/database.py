"""A service's SQLite database as one process reaches it: every statement is a call that can go wrong on the way."""

from collections.abc import Callable
from typing import Any, TypeVar

from choreo.sqlite.database import Database
from choreo.testing.simulation.process import Process

_Result = TypeVar("_Result")


class SimulatedDatabase(Database):
    """`shared` through one process; a transaction is one step over there, as it is in a real database."""

    def __init__(self, process: Process, shared: Database) -> None:
        super().__init__(":memory:")
        self._process = process
        self._shared = shared
        self.on_write = shared.on_write

    async def open(self, schema: str) -> None:
        """It is open; tables are created at once."""
        await self._shared.open(schema)

    async def read(self, query: Callable[[Any], _Result]) -> _Result:
        """As `Database.read`."""
        shared = self._shared
        return await self._process.call("read", lambda: shared.read_inline(query), to="store", writes=False)

    async def write(self, change: Callable[[Any], _Result]) -> _Result:
        """As `Database.write`."""
        shared = self._shared
        return await self._process.call("write", lambda: shared.write_inline(change), to="store", writes=True)

    async def close(self) -> None:
        """The others still use it."""
