"""An outbox in PostgreSQL: the lead is an advisory lock of the one connection that rows are read and deleted on.

So a relay that has lost the lock can neither read nor delete, and one that is killed frees it at once.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.rows import tuple_row

from choreo.errors import ConfigurationError, StoreError
from choreo.outbox.rows import BACKLOG, TAKE, OutboxRow, backlog_of
from choreo.outbox.table import OutboxTable
from choreo.ports import Backlog
from choreo.stores.postgres.pool import said, shown

T = TypeVar("T")
CALL_S_MAX = 30.0
IDLE_S_MAX = 90.0
"""A relay that is stopped in its tracks, its connection up, loses that and the lead after so long (PostgreSQL 14)."""
# Locks of databases' own tables: two outboxes in one database do not share a lead, whatever the search path.
_LOCK = "SELECT pg_try_advisory_lock((1667788658::bigint << 32) | '{table}'::regclass::oid::bigint)"
_WANTED = "topic <> ALL(:without)"
_PARAMETER = re.compile(r"(?<!:):(\w+)")


class PostgresRows:
    """As `OutboxRows`.

    Args:
        url: `postgresql://user:password@host:port/db`, the server's own address.
        table: The outbox.
    """

    def __init__(self, url: str, table: OutboxTable) -> None:
        self.shown = shown(url)
        self._url = url
        self._table = table
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._leads = False

    async def open(self) -> None:
        """As the protocol says."""
        async with self._told():
            self._connection = connection = await psycopg.AsyncConnection.connect(
                self._url,
                autocommit=True,
                prepare_threshold=None,
                row_factory=tuple_row,
                client_encoding="UTF8",
                connect_timeout=10,
                application_name="choreo relay",
                keepalives_idle=10,
            )
            cursor = await connection.execute("SELECT pg_backend_pid()")
            if await cursor.fetchone() != (connection.info.backend_pid,):
                raise ConfigurationError(
                    f"{self.shown} is a pooler such as PgBouncer: which relay leads is a session's lock, and it "
                    "shares sessions out. Give the relay the server's own address"
                )
            with suppress(errors.UndefinedObject):
                await connection.execute(f"SET idle_session_timeout = {int(IDLE_S_MAX * 1000)}")
            await connection.execute(self._table.fill("SELECT position FROM {table} LIMIT 0").encode())

    async def lead(self) -> bool:
        """As the protocol says."""
        if not self._leads:
            ((self._leads,),) = await self._rows(_LOCK, {})
            if self._leads:  # and not before: who stands by would collect what it is told, and never look
                await self._call(f'LISTEN "{self._table.channel}"', {})
        return self._leads

    async def take(self, *, rows_max: int, bytes_max: int, without: Collection[str]) -> Sequence[OutboxRow]:
        """As the protocol says."""
        async with self._told() as connection:  # what was notified so far is seen now; psycopg would keep it for ever
            async for _ in connection.notifies(timeout=0):
                pass
        parameters = {"rows_max": rows_max, "bytes_max": bytes_max, "without": list(without)}
        found = await self._rows(TAKE.replace("{wanted}", _WANTED), parameters)
        return [OutboxRow(*row) for row in found]

    async def delete(self, positions: Sequence[int]) -> None:
        """As the protocol says."""
        await self._call("DELETE FROM {table} WHERE position = ANY(:positions)", {"positions": list(positions)})

    async def backlog(self) -> Backlog:
        """As the protocol says."""
        ((rows, oldest_ms),) = await self._rows(BACKLOG, {})
        return backlog_of(rows, oldest_ms, time.time())

    async def wait(self, wait_s: float) -> None:
        """As the protocol says."""
        async with self._told() as connection:
            async for _ in connection.notifies(timeout=wait_s, stop_after=1):
                pass

    async def close(self) -> None:
        """As the protocol says."""
        connection, self._connection, self._leads = self._connection, None, False
        if connection is not None:
            with suppress(psycopg.Error, OSError):
                await connection.close()

    async def _rows(self, statement: str, parameters: Mapping[str, Any]) -> list[Any]:
        cursor = await self._call(statement, parameters)
        return await cursor.fetchall()

    async def _call(self, statement: str, parameters: Mapping[str, Any]) -> psycopg.AsyncCursor[Any]:
        query = _PARAMETER.sub(r"%(\1)s", self._table.fill(statement)).encode()
        async with self._told() as connection:
            return await connection.execute(query, parameters)

    @asynccontextmanager
    async def _told(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """The connection; what goes wrong with it, as an error of ours."""
        try:
            async with asyncio.timeout(CALL_S_MAX):
                yield self._connection  # type: ignore[misc]  # `open` makes it before it uses it
        except (errors.UndefinedTable, errors.InvalidSchemaName):
            raise ConfigurationError(
                f"{self.shown} has no table {self._table.fill('{table}')}: run the application's migrations, which "
                "outbox.attach(metadata) adds it to, or the statement that outbox.ddl() returns"
            ) from None
        except (psycopg.Error, OSError, TimeoutError) as error:
            raise StoreError(f"{self.shown} failed: {said(error)}") from error
