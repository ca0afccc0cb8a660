"""How a row is added, by the kind of connection. Imports no driver: who has a connection of one has done so."""

import re
import sqlite3
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from choreo.errors import ConfigurationError
from choreo.outbox.table import Dialect, OutboxTable
from choreo.publisher.stamping import Reference


class Blocking(Protocol):
    """A session of SQLAlchemy, or a connection of psycopg or sqlite3."""

    def commit(self) -> None:
        """Not called."""


class Asynchronous(Protocol):
    """The same, of asyncio."""

    def commit(self) -> Coroutine[Any, Any, None]:
        """Not called."""


class AsyncpgConnection(Protocol):
    """A connection of asyncpg, or a pool's proxy for one."""

    def is_in_transaction(self) -> bool:
        """Whether it is."""


Row = Mapping[str, Any]
"""`topic`, `key`, `value`, `headers` and `created_ms`, in this order."""
Add = Callable[[OutboxTable, Row, Reference, bool], Reference | Coroutine[Any, Any, Reference]]
"""Adds a row, and returns the reference it was given; the flag says whether to notify the relay."""
_PARAMETER = re.compile(r":(\w+)")


def adder(connection: Any) -> Add:
    """What adds to the transaction of `connection`.

    Raises:
        ConfigurationError: It is of no kind that is known, or is in no transaction.
    """
    for module, name, add in _KINDS:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(connection, kind):
            return add(connection)
    raise ConfigurationError(
        f"outbox.add() was given a {type(connection).__qualname__}; it takes a connection of psycopg, asyncpg or "
        "sqlite3, or a session of SQLAlchemy"
    )


def _sqlite(connection: sqlite3.Connection) -> Add:
    # `autocommit` came with Python 3.12; before, `isolation_level` alone says whether a statement begins one.
    begins = connection.isolation_level is not None and getattr(connection, "autocommit", None) is not True
    _require_transaction(begins or connection.in_transaction)

    def add(table: OutboxTable, row: Row, reference: Reference, notify: bool) -> Reference:
        connection.execute(table.insert("sqlite", notify=notify), dict(row))
        return reference

    return add


def _psycopg(connection: Any) -> Add:
    _require_transaction(_psycopg_transaction(connection))

    def add(table: OutboxTable, row: Row, reference: Reference, notify: bool) -> Reference:
        connection.execute(_for_psycopg(table, notify), row)
        return reference

    return add


def _psycopg_async(connection: Any) -> Add:
    _require_transaction(_psycopg_transaction(connection))

    async def add(table: OutboxTable, row: Row, reference: Reference, notify: bool) -> Reference:
        await connection.execute(_for_psycopg(table, notify), row)
        return reference

    return add


def _asyncpg(connection: Any) -> Add:
    _require_transaction(connection.is_in_transaction())

    async def add(table: OutboxTable, row: Row, reference: Reference, notify: bool) -> Reference:
        places = {name: f"${number}" for number, name in enumerate(row, 1)}
        statement = _PARAMETER.sub(lambda found: places[found[1]], table.insert("postgresql", notify=notify))
        await connection.execute(statement, *row.values())
        return reference

    return add


def _session(session: Any) -> Add:
    def add(table: OutboxTable, row: Row, reference: Reference, notify: bool) -> Reference:
        session.flush()  # takes the locks that order this transaction among others before the row gets its position
        session.execute(_for_sqlalchemy(table, session.get_bind().dialect.name, notify), row)
        return reference

    return add


def _async_session(session: Any) -> Add:
    async def add(table: OutboxTable, row: Row, reference: Reference, notify: bool) -> Reference:
        await session.flush()
        await session.execute(_for_sqlalchemy(table, session.get_bind().dialect.name, notify), row)
        return reference

    return add


def _scoped(sessions: Any) -> Add:
    return adder(sessions())


_KINDS: tuple[tuple[str, str, Callable[[Any], Add]], ...] = (
    ("sqlalchemy.orm", "Session", _session),
    ("sqlalchemy.orm", "scoped_session", _scoped),
    ("sqlalchemy.ext.asyncio", "AsyncSession", _async_session),
    ("sqlalchemy.ext.asyncio", "async_scoped_session", _scoped),
    ("psycopg", "Connection", _psycopg),
    ("psycopg", "AsyncConnection", _psycopg_async),
    ("asyncpg", "Connection", _asyncpg),
    ("asyncpg.pool", "PoolConnectionProxy", _asyncpg),
    ("sqlite3", "Connection", _sqlite),
)
"""By module and name of the connection's type."""


def _psycopg_transaction(connection: Any) -> bool:
    idle = connection.info.transaction_status == 0  # psycopg.pq.TransactionStatus.IDLE
    return not (connection.autocommit and idle)


def _for_psycopg(table: OutboxTable, notify: bool) -> bytes:
    return _PARAMETER.sub(r"%(\1)s", table.insert("postgresql", notify=notify)).encode()


def _for_sqlalchemy(table: OutboxTable, dialect: str, notify: bool) -> Any:
    from sqlalchemy import BigInteger, LargeBinary, Text, bindparam, text

    name: Dialect
    if dialect == "postgresql":
        name = "postgresql"
    elif dialect == "sqlite":
        name = "sqlite"
    else:
        raise ConfigurationError(f"the outbox is kept in PostgreSQL or SQLite, and not in {dialect}")
    # asyncpg wants to know the type of each.
    types: dict[str, Any] = {"topic": Text, "key": LargeBinary, "value": LargeBinary, "headers": Text}
    types["created_ms"] = BigInteger
    parameters = [bindparam(each, type_=type_) for each, type_ in types.items()]
    return text(table.insert(name, notify=notify)).bindparams(*parameters)


def _require_transaction(there_is: bool) -> None:
    if not there_is:
        raise ConfigurationError(
            "outbox.add() was given a connection in autocommit mode: the event would be published whatever becomes "
            "of the rest. Begin a transaction first"
        )
