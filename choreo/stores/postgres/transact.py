"""Drives the steps of a commit: on a psycopg connection on the event loop, or on a plain one on a thread."""

import asyncio
from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from threading import Event
from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus

from choreo.errors import ConfigurationError, StoreError
from choreo.ports import Finished, Transacted
from choreo.stores.postgres.commit import Ended, Step, TransactionEnded
from choreo.stores.postgres.pool import flush, flush_plain

_ENDED = (
    "the handler ended the transaction its key commits in; nothing of it is kept: leave COMMIT and ROLLBACK to the "
    "store, or use `with connection.transaction()` for a part of the work"
)
_SWALLOWED = (
    "the handler swallowed an SQL error, after which its transaction takes no statement; let the error go, or put "
    "the statement in `with connection.transaction()`"
)


class SqlErrorSwallowed(StoreError):
    """A handler went on after an SQL error that had failed its transaction."""


class CommitAbandoned(StoreError):
    """Nobody waits for this commit any more; it is rolled back."""


_Result = TypeVar("_Result")
AsyncTransaction = Callable[[], AbstractAsyncContextManager[Any]]
"""Makes what an async handler is given, and finishes with it: flushes a session, for one."""
PlainTransaction = Callable[[], AbstractContextManager[Any]]


async def drive(
    connection: psycopg.AsyncConnection[Any],
    steps: Generator[Step, Any, _Result],
    transaction: AsyncTransaction | None = None,
) -> _Result:
    """Do the steps; `transaction` if handlers are to get something else than the connection."""
    try:
        step = next(steps)
        while True:
            if isinstance(step, Transacted):
                step = steps.send(await _invoke(connection, step, transaction))
                continue
            try:
                rows = await flush(connection, step)
            except psycopg.Error as error:
                if connection.closed:
                    raise
                await connection.rollback()
                step = steps.throw(error)
            else:
                step = steps.send(rows)
    except StopIteration as end:
        result: _Result = end.value
        return result


async def _invoke(
    connection: psycopg.AsyncConnection[Any], unit: Transacted, transaction: AsyncTransaction | None
) -> Finished | BaseException | Ended:
    """One unit under a savepoint: its rows, or nothing of them. psycopg refuses its commit() and rollback() there."""
    task = asyncio.current_task()
    assert task is not None
    outcome: Finished | BaseException
    try:
        async with connection.transaction():
            _same_kind(unit, is_async=True)
            if transaction is None:
                outcome = await unit.invoke(connection, connection)
            else:
                async with transaction() as given:
                    outcome = await unit.invoke(given, connection)
            if task.cancelling():
                raise asyncio.CancelledError  # swallowed by the handler; whether to commit is not for it to say
            _check(connection.info.transaction_status)
    except (Exception, asyncio.CancelledError) as error:
        if task.cancelling():
            raise
        outcome = error
    ended = _ended(connection.info.transaction_status, outcome)
    if ended is not None:
        await connection.close()  # who knows what else it did to the session
    return ended or outcome


def drive_plain(
    connection: psycopg.Connection[Any],
    steps: Generator[Step, Any, _Result],
    stop: Event,
    transaction: PlainTransaction | None = None,
) -> _Result:
    """The same on a plain connection, on a thread; it ends after the handler during which `stop` is set."""
    try:
        step = next(steps)
        while True:
            if isinstance(step, Transacted):
                outcome = _invoke_plain(connection, step, transaction)
                if stop.is_set():
                    raise CommitAbandoned("nobody waits for this commit any more; it is rolled back")
                step = steps.send(outcome)
                continue
            try:
                rows = flush_plain(connection, step)
            except psycopg.Error as error:
                if connection.closed:
                    raise
                connection.rollback()
                step = steps.throw(error)
            else:
                step = steps.send(rows)
    except StopIteration as end:
        result: _Result = end.value
        return result


def _invoke_plain(
    connection: psycopg.Connection[Any], unit: Transacted, transaction: PlainTransaction | None
) -> Finished | BaseException | Ended:
    outcome: Finished | BaseException
    try:
        with connection.transaction():
            _same_kind(unit, is_async=False)
            if transaction is None:
                outcome = unit.invoke(connection, connection)
            else:
                with transaction() as given:
                    outcome = unit.invoke(given, connection)
            _check(connection.info.transaction_status)
    except Exception as error:
        outcome = error
    ended = _ended(connection.info.transaction_status, outcome)
    if ended is not None:
        connection.close()
    return ended or outcome


def _same_kind(unit: Transacted, *, is_async: bool) -> None:
    if unit.is_async != is_async:
        kind = "an async function" if is_async else "a plain function"
        raise ConfigurationError(f"{unit.wants} is for {kind}; ask for the other kind of connection or session")


def _check(status: TransactionStatus) -> None:
    """Whether the savepoint can be released."""
    if status == TransactionStatus.INERROR:
        raise SqlErrorSwallowed(_SWALLOWED)
    if status == TransactionStatus.IDLE:
        raise TransactionEnded(_ENDED)


def _ended(status: TransactionStatus, outcome: Finished | BaseException) -> Ended | None:
    """Whether there is still the transaction there was, and if not, by whose fault.

    Raises:
        OperationalError: The connection was lost, which is not the handler's fault.
    """
    if isinstance(outcome, errors.IdleInTransactionSessionTimeout):
        return Ended(outcome)
    if status == TransactionStatus.UNKNOWN:
        lost = outcome if isinstance(outcome, psycopg.Error) else None
        raise psycopg.OperationalError("the connection was lost while a handler ran") from lost
    savepoint_gone = isinstance(outcome, (errors.InvalidSavepointSpecification, errors.NoActiveSqlTransaction))
    if status == TransactionStatus.INTRANS and not savepoint_gone:
        return None
    error = TransactionEnded(_ENDED)
    error.__cause__ = outcome if isinstance(outcome, BaseException) else None
    return Ended(error)
