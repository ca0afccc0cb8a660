"""SQLAlchemy sessions on the connection a key commits on. Imported only when a handler asks for one.

A session works under a savepoint of its own, within the handler's: its commit() makes nothing durable.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from threading import Lock
from typing import Any

import psycopg
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from choreo.errors import StoreError
from choreo.stores.postgres.pool import Server, said
from choreo.stores.postgres.transact import AsyncTransaction, PlainTransaction

_URL = "postgresql+psycopg://"


class Sessions:
    """Connections whose transaction a session can join: an engine of each kind, made for the first that needs it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._async_engine: AsyncEngine | None = None
        self._engine: Engine | None = None
        self._lock = Lock()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[psycopg.AsyncConnection[Any], AsyncTransaction]]:
        """A raw connection, and what makes sessions on it."""
        if self._async_engine is None:
            self._async_engine = create_async_engine(_URL, async_creator=self._server.connect, **self._limits())
        try:
            async with self._async_engine.connect() as outer:
                # psycopg's connection is in autocommit: this begins nothing, it makes sessions use savepoints.
                await outer.begin()
                raw: Any = (await outer.get_raw_connection()).driver_connection

                @asynccontextmanager
                async def session() -> AsyncIterator[AsyncSession]:
                    made = AsyncSession(bind=outer, join_transaction_mode="create_savepoint", expire_on_commit=False)
                    try:
                        yield made
                        await made.commit()  # flushes, and releases its savepoint
                    finally:
                        await made.close()

                try:
                    yield raw, session
                finally:
                    if raw.closed:
                        await outer.invalidate()
        except (DBAPIError, PoolTimeout) as error:
            raise _told(error, self._server) from error

    @contextmanager
    def plain_connection(self) -> Iterator[tuple[psycopg.Connection[Any], PlainTransaction]]:
        """The same for plain functions."""
        with self._lock:
            if self._engine is None:
                self._engine = create_engine(_URL, creator=self._plain, **self._limits())
        try:
            with self._engine.connect() as outer:
                outer.begin()
                raw: Any = outer.connection.driver_connection

                @contextmanager
                def session() -> Iterator[Session]:
                    made = Session(bind=outer, join_transaction_mode="create_savepoint", expire_on_commit=False)
                    try:
                        yield made
                        made.commit()
                    finally:
                        made.close()

                try:
                    yield raw, session
                finally:
                    if raw.closed:
                        outer.invalidate()
        except (DBAPIError, PoolTimeout) as error:
            raise _told(error, self._server) from error

    async def close(self) -> None:
        """Disconnect."""
        if self._async_engine is not None:
            await self._async_engine.dispose()
        if self._engine is not None:
            self._engine.dispose()

    def _plain(self) -> psycopg.Connection[Any]:
        return psycopg.Connection.connect(self._server.url, **self._server.settings)

    def _limits(self) -> dict[str, Any]:
        server = self._server
        return {
            "pool_size": server.connections_max,
            "max_overflow": 0,
            "pool_timeout": server.timeout_s,
            "pool_pre_ping": True,
        }


def _told(error: Exception, server: Server) -> StoreError:
    """A failure outside of any handler: what the server said of it."""
    cause = getattr(error, "orig", None) or error
    return StoreError(f"{server.shown} failed: {said(cause)}; it is tried again; see the server's log")
