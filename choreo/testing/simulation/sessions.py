"""SQLAlchemy sessions in a simulation: on the service's in-memory SQLite, in the transaction the key commits in.

Imported only where a handler asks for one. A handler may await, in virtual time: its transaction stays open, and the
service's other processes wait. PostgreSQL would let them go on where they touch other rows.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, MetaData, create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_only, greenlet_spawn

from choreo.errors import StoreError
from choreo.ports import Clock, CommitRequest, CommitResult, Transacted
from choreo.sqlite.connection import SqliteConnection
from choreo.sqlite.database import Database
from choreo.stores.sqlite import SqliteStore
from choreo.stores.sqlite.commit import Commit
from choreo.testing.simulation.database import OpenTransaction, SimulatedDatabase
from choreo.testing.simulation.loop import Life

SYNC, ASYNC = "sqlalchemy.orm.session.Session", "sqlalchemy.ext.asyncio.session.AsyncSession"


class _Abandoned(BaseException):
    """The commit's own task is cancelled; no handler's `except` is to take it."""


class AwaitableSqlite(SQLiteDialect_pysqlite):
    """SQLite that may be awaited, and answers at once."""

    is_async = True
    supports_statement_cache = True

    def do_execute(self, cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        """As SQLite does; whoever awaits it has awaited something, which SQLAlchemy checks."""
        await_only(asyncio.sleep(0))
        super().do_execute(cursor, statement, parameters, context)  # type: ignore[no-untyped-call]


registry.register("sqlite.choreo_simulation", __name__, AwaitableSqlite.__name__)


def create_tables(metadata: MetaData, database: Database) -> None:
    """Those of an application whose migrations would have made them."""

    def create(connection: sqlite3.Connection) -> None:
        assert isinstance(connection, SqliteConnection)
        given = OpenTransaction(connection, Life())
        metadata.create_all(create_engine("sqlite://", creator=lambda: given, poolclass=NullPool))

    database.write_inline(create)


class SessionStore(SqliteStore):
    """A database as `SqliteStore` has it, whose handlers may ask for sessions, as they do of PostgreSQL."""

    transaction_types = SqliteStore.transaction_types | {SYNC, ASYNC}

    def __init__(self, database: SimulatedDatabase, clock: Clock) -> None:
        super().__init__(database, clock, with_log=False)
        self._database = database
        self._transaction: OpenTransaction | None = None
        self._engine = AsyncEngine(
            create_engine("sqlite+choreo_simulation://", creator=lambda: self._transaction, poolclass=NullPool)
        )

    async def commit(self, request: CommitRequest) -> CommitResult:
        """See `IdempotencyStore`; with sessions it is as many calls as PostgreSQL's: begin, the handlers', commit."""
        if all(unit.wants not in (SYNC, ASYNC) for unit in request.transacted):
            return await super().commit(request)
        self._transaction = transaction = await self._database.begin()
        try:
            result = await greenlet_spawn(self._run, request, transaction)
            process = self._database.process
            await process.call("write", lambda: transaction.end("COMMIT"), to="store", writes=True)
            return result
        except _Abandoned:
            raise asyncio.CancelledError from None
        except Exception as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"the simulated database failed: {error}") from error
        finally:
            transaction.end("ROLLBACK")

    def _run(self, request: CommitRequest, transaction: Any) -> CommitResult:
        connection = self._engine.sync_engine.connect()
        connection.detach()  # a crashed process does not close it, which a pool would warn of
        connection.begin()  # begins nothing: it makes sessions use savepoints
        joined = [self._joined(unit, connection) for unit in request.transacted]
        request = replace(request, transacted=joined)
        return Commit(transaction, self._digests, request, False, self._now_ms()).run()

    def _joined(self, unit: Transacted, connection: Connection) -> Transacted:
        """The unit, to be invoked by the plain code of a commit with a session instead of the database."""
        call = self._awaiting if unit.wants == ASYNC else self._calling

        def invoke(transaction: Any, given: Any) -> Any:
            return (
                call(unit.invoke, connection, given)
                if unit.wants in (SYNC, ASYNC)
                else unit.invoke(transaction, given)
            )

        return replace(unit, is_async=False, invoke=invoke)

    def _calling(self, invoke: Callable[..., Any], connection: Connection, given: Any) -> Any:
        with Session(connection, join_transaction_mode="create_savepoint", expire_on_commit=False) as session:
            finished = invoke(session, given)
            session.commit()
        return finished

    def _awaiting(self, invoke: Callable[..., Any], connection: Connection, given: Any) -> Any:
        async def called() -> Any:
            bind = AsyncConnection(self._engine, connection)
            session = AsyncSession(bind, join_transaction_mode="create_savepoint", expire_on_commit=False)
            try:
                finished = await invoke(session, given)
                await session.commit()
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise _Abandoned from None
                raise
            finally:
                with suppress(Exception):
                    await session.close()
            return finished

        return await_only(called())
