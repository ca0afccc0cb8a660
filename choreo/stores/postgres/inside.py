"""Commits with handlers inside: each kind of handler on the kind of connection it asks for."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from threading import Event
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import IsolationLevel

from choreo.errors import ConfigurationError
from choreo.instances import INSTANCES
from choreo.ports import CommitRequest, CommitResult
from choreo.stores.postgres.commit import Settings, Undone, transact
from choreo.stores.postgres.instances import InstanceQueries, PostgresInstances
from choreo.stores.postgres.pool import Server
from choreo.stores.postgres.transact import AsyncTransaction, PlainTransaction, drive, drive_plain

if TYPE_CHECKING:
    from choreo.stores.postgres.sqlalchemy import Sessions

ASYNC_CONNECTION = "psycopg.AsyncConnection"
PLAIN_CONNECTION = "psycopg.Connection"
ASYNC_SESSION = "sqlalchemy.ext.asyncio.session.AsyncSession"
PLAIN_SESSION = "sqlalchemy.orm.session.Session"
TRANSACTION_TYPES = frozenset({ASYNC_CONNECTION, PLAIN_CONNECTION, ASYNC_SESSION, PLAIN_SESSION, INSTANCES})


class Inside:
    """Runs handlers in the transaction their keys commit in."""

    def __init__(self, server: Server, settings: Settings, instances: InstanceQueries) -> None:
        self._server = server
        self._settings = settings
        self._instances = instances
        self._sessions: Sessions | None = None

    async def commit(self, request: CommitRequest, due_in_s: list[float]) -> CommitResult | Undone:
        """Invoke the units of the first one's kind, and commit. `due_in_s` gets when timers that they set are due."""
        wants = request.transacted[0].wants
        if wants not in TRANSACTION_TYPES:
            raise ConfigurationError(
                f"a handler asks for {wants}, which is none of the PostgreSQL store's: {sorted(TRANSACTION_TYPES)}"
            )
        if wants in (ASYNC_CONNECTION, ASYNC_SESSION):
            opened = self.sessions().connection() if wants == ASYNC_SESSION else self._bare()
            async with opened as (connection, transaction), _begins_itself(connection):
                return await drive(connection, transact(self._settings, request), transaction)
        stop = Event()
        try:
            return await asyncio.to_thread(self._commit_plain, wants, request, stop, due_in_s)
        except asyncio.CancelledError:
            stop.set()  # a thread cannot be cancelled: it rolls back when its handler returns
            raise

    def _commit_plain(
        self, wants: str, request: CommitRequest, stop: Event, due_in_s: list[float]
    ) -> CommitResult | Undone:
        opened: AbstractContextManager[tuple[psycopg.Connection[Any], PlainTransaction | None]]
        if wants == PLAIN_SESSION:
            opened = self.sessions().plain_connection()
        else:
            opened = self._with_instances(due_in_s) if wants == INSTANCES else self._bare_plain()
        with opened as (connection, transaction), _begins_itself_plain(connection):
            return drive_plain(connection, transact(self._settings, request), stop, transaction)

    @asynccontextmanager
    async def _bare(self) -> AsyncIterator[tuple[psycopg.AsyncConnection[Any], AsyncTransaction | None]]:
        async with self._server.connection() as connection:
            yield connection, None

    @contextmanager
    def _bare_plain(self) -> Iterator[tuple[psycopg.Connection[Any], PlainTransaction | None]]:
        with self._server.thread_connection() as connection:
            yield connection, None

    @contextmanager
    def _with_instances(
        self, due_in_s: list[float]
    ) -> Iterator[tuple[psycopg.Connection[Any], PlainTransaction | None]]:
        with self._server.thread_connection() as connection:

            @contextmanager
            def instances() -> Iterator[PostgresInstances]:
                made = PostgresInstances(connection, self._instances, due_in_s)
                yield made
                made.flush()

            yield connection, instances

    def sessions(self) -> "Sessions":
        """SQLAlchemy's side, imported when the first handler asks for a session."""
        if self._sessions is None:
            from choreo.stores.postgres.sqlalchemy import Sessions

            self._sessions = Sessions(self._server)
        return self._sessions

    async def close(self) -> None:
        """Disconnect."""
        if self._sessions is not None:
            await self._sessions.close()


@asynccontextmanager
async def _begins_itself(connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
    """Out of autocommit: what a handler does after a ROLLBACK of its own is in a transaction too."""
    await connection.set_autocommit(False)
    await connection.set_isolation_level(IsolationLevel.READ_COMMITTED)
    try:
        yield
    finally:
        if not connection.closed:
            await connection.rollback()
            await connection.set_isolation_level(None)
            await connection.set_autocommit(True)


@contextmanager
def _begins_itself_plain(connection: psycopg.Connection[Any]) -> Iterator[None]:
    connection.set_autocommit(False)
    connection.set_isolation_level(IsolationLevel.READ_COMMITTED)
    try:
        yield
    finally:
        if not connection.closed:
            connection.rollback()
            connection.set_isolation_level(None)
            connection.set_autocommit(True)
