"""Connections of the PostgreSQL store: pools, flushes, a bound on every call, and what a failure is told as."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from threading import Lock
from typing import Any, TypeVar

import psycopg
from psycopg import conninfo, errors
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from choreo.errors import ChoreoError, ConfigurationError, StoreError
from choreo.stores.postgres.values import Row

log = logging.getLogger("choreo.stores.postgres")
_Result = TypeVar("_Result")
Statement = tuple[bytes, Mapping[str, Any]]
"""A statement and its parameters."""

_ASK_AGAIN_S = 1.0
_IDLE_S = 60.0
# The server refuses to go on with this session, though the connection stands: a standby, a server that shuts down.
_SESSION_IS_USELESS = (errors.ReadOnlySqlTransaction, errors.AdminShutdown, errors.CannotConnectNow)
_MISSING = (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName)
_TRY_AGAIN = (psycopg.OperationalError, *_SESSION_IS_USELESS)  # connection errors, deadlocks, no room, shutdowns


class Server:
    """A PostgreSQL server or cluster, as the store reaches it.

    No session state is used, so that a connection may be any of PgBouncer's in transaction mode.

    Args:
        url: `postgresql://user:password@host:port/db`; libpq's parameters may follow.
        connections_max: Connections of each kind: the store's own, those of plain handlers.
        timeout_s: How long one call may take, the wait for a connection included.
        schema: Named in the message when its tables are missing.
    """

    def __init__(self, url: str, *, connections_max: int, timeout_s: float, schema: str) -> None:
        self.shown = shown(url)
        self.timeout_s = timeout_s
        self.connections_max = connections_max
        self.settings: dict[str, Any] = {
            "autocommit": True,  # transactions are begun in the flush that needs them
            "prepare_threshold": None,
            "client_encoding": "UTF8",
            "connect_timeout": max(2, int(timeout_s)),
        }
        self.url = url
        self._schema = schema
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]] | None = None
        self._threads_pool: ConnectionPool[psycopg.Connection[Any]] | None = None
        self._lock = Lock()
        self._abandoned: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Connect once to see that it can be done, and make the pool."""
        try:
            async with asyncio.timeout(self.timeout_s):
                await (await self.connect()).close()
        except (psycopg.Error, OSError, TimeoutError) as error:
            raise StoreError(
                f"{self.shown} cannot be reached: {said(error)}; check that the server runs, the address, the "
                "user's password and pg_hba.conf"
            ) from error
        self._pool = AsyncConnectionPool(self.url, kwargs=self.settings, open=False, **self._limits())
        await self._pool.open()

    async def connect(self) -> psycopg.AsyncConnection[Any]:
        """A connection outside of the pool."""
        return await psycopg.AsyncConnection.connect(self.url, **self.settings)

    async def close(self) -> None:
        """Disconnect, and let go of calls that hang."""
        for task in tuple(self._abandoned):
            task.cancel()
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close(timeout=2.0)
        with self._lock:
            threads_pool, self._threads_pool = self._threads_pool, None
        if threads_pool is not None:
            await asyncio.to_thread(threads_pool.close, 2.0)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """A connection out of the pool; one that is of no more use is closed and replaced."""
        if self._pool is None:
            raise StoreError(f"the store on {self.shown} is closed; open it first")
        pool, until_s = self._pool, time.monotonic() + self.timeout_s
        while True:
            try:
                connection = await pool.getconn(timeout=_ASK_AGAIN_S)  # asking again makes the pool connect again
                break
            except PoolTimeout:
                if time.monotonic() > until_s:
                    raise
        try:
            yield connection
        except _SESSION_IS_USELESS:
            await connection.close()
            raise
        finally:
            await pool.putconn(connection)

    @contextmanager
    def thread_connection(self) -> Iterator[psycopg.Connection[Any]]:
        """The same for a plain function, on its own thread; the pool is made for the first of them."""
        with self._lock:
            if self._pool is None:
                raise StoreError(f"the store on {self.shown} is closed; open it first")
            if self._threads_pool is None:
                self._threads_pool = ConnectionPool(self.url, kwargs=self.settings, open=True, **self._limits())
            pool = self._threads_pool
        until_s = time.monotonic() + self.timeout_s
        while True:
            try:
                connection = pool.getconn(timeout=_ASK_AGAIN_S)
                break
            except PoolTimeout:
                if time.monotonic() > until_s:
                    raise
        try:
            yield connection
        except _SESSION_IS_USELESS:
            connection.close()
            raise
        finally:
            pool.putconn(connection)

    def _limits(self) -> dict[str, Any]:
        # An attempt to connect is not repeated by the pool, whose pauses double: whoever waits asks again.
        return {"min_size": 0, "max_size": self.connections_max, "reconnect_timeout": 0.0, "max_idle": _IDLE_S}

    async def call(
        self, work: Callable[[], Awaitable[_Result]], *, repeat: bool, timeout_s: float | None = None
    ) -> _Result:
        """Do `work` within `timeout_s`; with `repeat` once more if its connection was lost or a deadlock ended it.

        Raises:
            StoreError: It failed or took too long; whether it was done is not known.
        """
        task = asyncio.ensure_future(self._attempt(work, repeat=repeat))
        timeout_s = timeout_s or self.timeout_s
        try:
            done, _ = await asyncio.wait({task}, timeout=timeout_s)
        except asyncio.CancelledError:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await asyncio.wait({task}, timeout=1.0)
            self._abandon(task)
            raise
        if not done:
            task.cancel()  # a server that does not answer does not answer a cancellation either: it is not waited for
            self._abandon(task)
            raise StoreError(
                f"{self.shown} did not answer in {timeout_s:g} s; it is tried again; look for locks "
                "(pg_stat_activity), a full disk, or raise timeout_s"
            )
        return task.result()

    def _abandon(self, task: "asyncio.Task[Any]") -> None:
        def ended(task: "asyncio.Task[Any]") -> None:
            self._abandoned.discard(task)
            if not task.cancelled():
                task.exception()  # nobody else asks for it

        self._abandoned.add(task)
        task.add_done_callback(ended)

    async def _attempt(self, work: Callable[[], Awaitable[_Result]], *, repeat: bool) -> _Result:
        try:
            try:
                return await work()
            except _TRY_AGAIN as error:
                await self._replace_lost()
                if not repeat or isinstance(error, (errors.QueryCanceled, PoolTimeout)):
                    raise
                log.info("%s: once more after: %s", self.shown, said(error))
                return await work()
        except ChoreoError:
            raise
        except (psycopg.Error, OSError) as error:
            raise await self.told(error) from error

    async def _replace_lost(self) -> None:
        # One lost connection of several is seldom alone: the server was restarted.
        if self._pool is not None:
            with suppress(psycopg.Error, OSError):
                await self._pool.check()

    async def told(self, error: BaseException) -> StoreError:
        """A failure as the store's own error: what failed, why, what to do."""
        if isinstance(error, _MISSING):
            return StoreError(
                f"{self.shown} has no tables of choreo in the schema {self._schema!r} ({said(error)}); "
                "run `choreo store apply`"
            )
        if isinstance(error, PoolTimeout):
            reason = await self._unreachable()
            return StoreError(f"{self.shown}: no connection in {self.timeout_s:g} s: {reason}")
        return StoreError(f"{self.shown} failed: {said(error)}; it is tried again; see the server's log")

    async def _unreachable(self) -> str:
        try:
            async with asyncio.timeout(2.0):
                await (await self.connect()).close()
        except (psycopg.Error, OSError, TimeoutError) as error:
            return f"{said(error)}; check that the server runs"
        return f"all {self.connections_max} are at work; raise connections_max"


async def flush(connection: psycopg.AsyncConnection[Any], statements: Sequence[Statement]) -> list[list[Row]]:
    """Run statements in one round trip; returns the rows of each. What is behind an error is not run."""
    cursors = [connection.cursor(binary=True, row_factory=tuple_row) for _ in statements]
    async with connection.pipeline():
        for cursor, (query, parameters) in zip(cursors, statements, strict=True):
            await cursor.execute(query, parameters)
    return [await cursor.fetchall() if cursor.description else [] for cursor in cursors]


def flush_plain(connection: psycopg.Connection[Any], statements: Sequence[Statement]) -> list[list[Row]]:
    """The same on a plain connection."""
    cursors = [connection.cursor(binary=True, row_factory=tuple_row) for _ in statements]
    with connection.pipeline():
        for cursor, (query, parameters) in zip(cursors, statements, strict=True):
            cursor.execute(query, parameters)
    return [cursor.fetchall() if cursor.description else [] for cursor in cursors]


def shown(url: str) -> str:
    """The address without its password.

    Raises:
        ConfigurationError: It is none.
    """
    try:
        parts = conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        parts = {}
    if not url.startswith(("postgresql://", "postgres://")) or not parts or "\0" in url:
        # Not chained: libpq's message quotes the URL, and with it the password.
        raise ConfigurationError("the store's URL is not postgresql://user:password@host:port/database") from None
    user = f"{parts['user']}@" if parts.get("user") else ""
    port = f":{parts['port']}" if parts.get("port") else ""
    return f"postgresql://{user}{parts.get('host') or 'localhost'}{port}/{parts.get('dbname') or ''}"


def said(error: BaseException) -> str:
    """What the server said; not its DETAIL, which quotes values."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return f"{error.diag.message_primary} ({error.sqlstate})"
    return " ".join(str(error).split()) or type(error).__name__
