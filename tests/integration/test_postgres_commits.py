"""Handlers' own rows in PostgreSQL: what they may do on each kind of transaction, and what is undone."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from choreo.ports import CommitRequest, CommitResult, Finished, Lease, Transacted
from choreo.stores.postgres import PostgresStore
from choreo.stores.postgres import turns as postgres_turns
from choreo.stores.postgres.commit import TransactionEnded
from choreo.stores.postgres.transact import SqlErrorSwallowed
from choreo.testing.conformance_shelf import Shelf

ASYNC, PLAIN = "psycopg.AsyncConnection", "psycopg.Connection"
ASYNC_SESSION, SESSION = "sqlalchemy.ext.asyncio.session.AsyncSession", "sqlalchemy.orm.session.Session"
Handler = Callable[[Any], Any]


class Bench:
    """A store, its lease of one partition, a table of unique names, and handlers to be run inside a commit."""

    def __init__(self, store: PostgresStore, url: str) -> None:
        self.store = store
        self.url = url
        self.shelf = Shelf(store, f"group-{uuid4()}")
        self.table = f"row_{uuid4().hex}"
        self.lease: Lease

    async def prepare(self) -> None:
        """Make the table and take the partition."""
        create = f"CREATE TABLE {self.table} (name text UNIQUE, late text UNIQUE DEFERRABLE INITIALLY DEFERRED)"
        await self.store.run(lambda db: db.execute(create))
        self.lease = await self.shelf.lease(self.shelf.p)

    def insert(self, name: str) -> str:
        """A handler's statement."""
        return f"INSERT INTO {self.table} (name) VALUES ('{name}')"

    async def commit(self, *handlers: Handler, wants: str = ASYNC, lanes: str = "") -> CommitResult:
        """One unit a handler, each of a lane of its own unless told."""
        self.keys = [os.urandom(16) for _ in handlers]
        for key in self.keys:
            await self.shelf.claim(self.lease, key)
        return await self.store.commit(self.request(*handlers, wants=wants, lanes=lanes))

    def request(self, *handlers: Handler, wants: str = ASYNC, lanes: str = "") -> CommitRequest:
        """The flush of the units whose keys were claimed last."""
        units = [
            self.unit(handler, self.keys[at], wants, lanes[at : at + 1] or at) for at, handler in enumerate(handlers)
        ]
        return CommitRequest({self.shelf.p: self.lease}, (), {}, units)

    def unit(self, handler: Handler, key: bytes, wants: str, lane: object) -> Transacted:
        """A handler that emits one event."""
        done = Finished(self.shelf.p, 7, key, (self.shelf.emit(1),), "handled")

        async def invoke_async(transaction: Any, connection: Any) -> Finished:
            assert isinstance(connection, psycopg.AsyncConnection)
            await handler(transaction)
            return done

        def invoke(transaction: Any, connection: Any) -> Finished:
            assert isinstance(connection, psycopg.Connection)
            handler(transaction)
            return done

        is_async = wants in (ASYNC, ASYNC_SESSION)
        return Transacted(self.shelf.p, key, lane, wants, is_async, invoke_async if is_async else invoke)

    async def names(self) -> list[str]:
        """What handlers wrote, as everybody else sees it."""
        async with await psycopg.AsyncConnection.connect(self.url) as db:
            return [row[0] for row in await (await db.execute(f"SELECT name FROM {self.table}")).fetchall()]

    async def verdicts(self) -> list[str]:
        """Of the keys claimed last."""
        return [(await self.shelf.claim(self.lease, key)).verdict for key in self.keys]

    def writes(self, name: str, wants: str = ASYNC) -> Handler:
        """A handler that inserts one name."""
        return writer(wants, self.insert(name))


def writer(wants: str, *statements: str) -> Handler:
    """A handler that executes statements on its kind of transaction."""

    async def on_loop(transaction: Any) -> None:
        for statement in statements:
            await transaction.execute(text(statement) if wants == ASYNC_SESSION else statement)

    def on_thread(transaction: Any) -> None:
        for statement in statements:
            transaction.execute(text(statement) if wants == SESSION else statement)

    return on_loop if wants in (ASYNC, ASYNC_SESSION) else on_thread


@asynccontextmanager
async def opened(url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """A store in a schema of its own; a loaded machine hands no unit back."""
    monkeypatch.setattr(postgres_turns, "INVOKING_S_MAX", 10.0)
    store = PostgresStore(url, schema=f"commits {uuid4().hex}", connections_max=2, timeout_s=20.0)
    await store.open()
    await store.apply()
    bench = Bench(store, url)
    await bench.prepare()
    yield bench
    await store.close()


@pytest.fixture
async def bench(postgres: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """What one test plays on."""
    async with opened(postgres, monkeypatch) as bench:
        yield bench


each_kind = pytest.mark.parametrize("wants", [ASYNC, PLAIN, ASYNC_SESSION, SESSION])


@each_kind
async def test_a_unique_violation_undoes_one_event(bench: Bench, wants: str) -> None:
    """The rest of its lane waits, other lanes go on, and on the next try it is the event's own failure again."""
    handlers = [bench.writes(name, wants) for name in ("one", "one", "behind", "other")]
    result = await bench.commit(*handlers, wants=wants, lanes="abbc")
    assert isinstance(result.transacted[1], (psycopg.errors.UniqueViolation, IntegrityError))
    assert [isinstance(each, Finished) for each in result.transacted] == [True, False, False, True]
    assert result.transacted[2] is None
    assert sorted(await bench.names()) == ["one", "other"]
    assert await bench.verdicts() == ["done", "fresh", "fresh", "done"]
    assert len(await bench.store.pending(bench.lease)) == len(result.outbox) == 2


@each_kind
async def test_rows_go_with_a_refusal(bench: Bench, wants: str) -> None:
    """The lease is lost while the handler runs: its row is not there, on whatever kind of transaction."""
    loop = asyncio.get_running_loop()
    taken: list[Lease] = []

    async def take() -> None:
        taken.append(await bench.shelf.lease(bench.shelf.p, "two"))

    async def on_loop(transaction: Any) -> None:
        await bench.writes("late", wants)(transaction)
        await take()

    def on_thread(transaction: Any) -> None:
        bench.writes("late", wants)(transaction)
        asyncio.run_coroutine_threadsafe(take(), loop).result(10)

    handler: Handler = on_loop if wants in (ASYNC, ASYNC_SESSION) else on_thread
    result = await bench.commit(handler, wants=wants)
    assert (set(result.refused), *result.transacted) == ({bench.shelf.p}, None)
    assert (await bench.names(), await bench.store.pending(taken[0])) == ([], [])


@each_kind
async def test_a_transaction_of_the_handlers_own_is_a_savepoint(bench: Bench, wants: str) -> None:
    """A part of its work may be undone by itself; a session may commit() as often as it likes."""

    async def on_loop(transaction: Any) -> None:
        begin = transaction.transaction if wants == ASYNC else transaction.begin_nested
        await bench.writes("kept", wants)(transaction)
        if wants == ASYNC_SESSION:
            await transaction.commit()
        with suppress(ZeroDivisionError):
            async with begin():
                await bench.writes("undone", wants)(transaction)
                raise ZeroDivisionError

    def on_thread(transaction: Any) -> None:
        begin = transaction.transaction if wants == PLAIN else transaction.begin_nested
        bench.writes("kept", wants)(transaction)
        if wants == SESSION:
            transaction.commit()
        with suppress(ZeroDivisionError), begin():
            bench.writes("undone", wants)(transaction)
            raise ZeroDivisionError

    handler: Handler = on_loop if wants in (ASYNC, ASYNC_SESSION) else on_thread

    async def fail_on_loop(transaction: Any) -> None:
        await on_loop(transaction)
        raise KeyError

    def fail_on_thread(transaction: Any) -> None:
        on_thread(transaction)
        raise KeyError

    fails: Handler = fail_on_loop if wants in (ASYNC, ASYNC_SESSION) else fail_on_thread
    result = await bench.commit(fails, handler, wants=wants)
    assert [type(each) for each in result.transacted] == [KeyError, Finished]
    assert await bench.names() == ["kept"], "commit() of a session made something durable, or nothing is"


@each_kind
@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK", "ROLLBACK; BEGIN", "COMMIT; BEGIN"])
async def test_a_handler_that_ends_the_transaction_makes_nothing_durable(
    bench: Bench, wants: str, statement: str
) -> None:
    """It is told, its neighbours are handed back, units finished outside are durable, the store goes on."""
    outside = os.urandom(16)
    await bench.shelf.claim(bench.lease, outside)
    bench.keys = [os.urandom(16) for _ in range(3)]
    for key in bench.keys:
        await bench.shelf.claim(bench.lease, key)
    escape = writer(wants, bench.insert("escaped"), statement)
    request = bench.request(bench.writes("before", wants), escape, bench.writes("after", wants), wants=wants)
    finished = [Finished(bench.shelf.p, 7, outside, (bench.shelf.emit(5),), "handled")]
    result = await bench.store.commit(CommitRequest(request.leases, finished, {}, request.transacted))
    assert isinstance(result.transacted[1], TransactionEnded), result
    assert "COMMIT" in str(result.transacted[1])
    assert (result.transacted[0], result.transacted[2], result.refused) == (None, None, frozenset())
    assert await bench.names() == [], "rows are durable without their keys"
    assert (await bench.shelf.claim(bench.lease, outside)).verdict == "done"
    assert await bench.verdicts() == ["fresh"] * 3
    for _ in range(4):  # whatever connection it gets
        again = await bench.commit(bench.writes(uuid4().hex, wants), wants=wants)
        assert isinstance(again.transacted[0], Finished)


@pytest.mark.parametrize("wants", [ASYNC, PLAIN])
@pytest.mark.parametrize("method", ["commit", "rollback"])
async def test_psycopg_refuses_commit_and_rollback(bench: Bench, wants: str, method: str) -> None:
    """It is the event's own failure; the rest goes on."""

    async def on_loop(transaction: Any) -> None:
        await getattr(transaction, method)()

    handler: Handler = on_loop if wants == ASYNC else lambda transaction: getattr(transaction, method)()
    result = await bench.commit(handler, bench.writes("kept", wants), wants=wants)
    assert [type(each) for each in result.transacted] == [psycopg.ProgrammingError, Finished]
    assert await bench.names() == ["kept"]


async def test_a_swallowed_sql_error_is_told(bench: Bench) -> None:
    """After it PostgreSQL takes no statement; without a word the event would be done with half of its rows."""

    async def swallow(transaction: Any) -> None:
        await bench.writes("half")(transaction)
        with pytest.raises(psycopg.errors.UndefinedTable):
            await transaction.execute("SELECT * FROM nowhere_at_all")

    result = await bench.commit(swallow, bench.writes("kept"))
    assert [type(each) for each in result.transacted] == [SqlErrorSwallowed, Finished]
    assert await bench.names() == ["kept"]


@pytest.mark.parametrize("wait", ["SELECT pg_sleep(30)", "sleep"])
async def test_a_swallowed_cancellation_commits_nothing(bench: Bench, wait: str) -> None:
    """The caller is told that it was cancelled, the row is not there, and the connections are good."""
    began = asyncio.Event()

    async def stubborn(transaction: Any) -> None:
        await bench.writes("stubborn")(transaction)
        began.set()
        try:
            await (asyncio.sleep(30) if wait == "sleep" else transaction.execute(wait))
        except asyncio.CancelledError:
            pass

    task = asyncio.create_task(bench.commit(stubborn, bench.writes("second")))
    await asyncio.wait_for(began.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(3):
        result = await bench.commit(bench.writes(uuid4().hex))
        assert isinstance(result.transacted[0], Finished)
    assert len(await bench.names()) == 3


async def test_run_is_one_transaction(bench: Bench) -> None:
    """What it wrote before it failed is undone, and its own error is raised."""

    def fail(connection: psycopg.Connection[Any]) -> None:
        connection.execute(bench.insert("half").encode())
        raise LookupError

    with pytest.raises(LookupError):
        await bench.store.run(fail)
    assert await bench.names() == []
