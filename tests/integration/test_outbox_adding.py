"""Every kind of connection adds to its own transaction: what commits is in the outbox, what is rolled back is not."""

import asyncio
import gc
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import create_engine, insert, update
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from choreo import ConfigurationError, DeclarationError, Reference
from choreo.envelope import Envelope
from choreo.envelope import read as read_envelope
from choreo.envelope import write as write_envelope
from choreo.outbox import Outbox
from choreo.outbox.rows import OutboxRow, open_rows
from choreo.telemetry.traceparent import parse
from tests.integration.outbox_stage import Counted, fresh_schema

EVENT = Counted(account="ann", number=1)
Add = Callable[[Counted], Awaitable[Reference]]
Adding = Callable[[Outbox, str], Any]
"""A context manager of one transaction, which yields how to add an event to it; an exception rolls it back."""


class Undone(Exception):
    """To roll back."""


@pytest.fixture
def schema(postgres: str) -> Iterator[str]:
    """With the table in it."""
    with fresh_schema(postgres) as name, psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(Outbox("shop", schema=name).ddl().encode())
        yield name


@pytest.fixture
def file(tmp_path: Path) -> str:
    """An application's SQLite database, with the table in it."""
    path = str(tmp_path / "shop.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(Outbox("shop").ddl("sqlite"))
    return path


@asynccontextmanager
async def by_psycopg(outbox: Outbox, url: str) -> AsyncIterator[Add]:
    """A plain connection."""
    with psycopg.connect(url) as connection:

        async def add(event: Counted) -> Reference:
            return outbox.add(connection, event)

        yield add


@asynccontextmanager
async def by_psycopg_block(outbox: Outbox, url: str) -> AsyncIterator[Add]:
    """A connection in autocommit mode, within `transaction()`."""
    with psycopg.connect(url, autocommit=True) as connection, connection.transaction():

        async def add(event: Counted) -> Reference:
            return outbox.add(connection, event)

        yield add


@asynccontextmanager
async def by_psycopg_async(outbox: Outbox, url: str) -> AsyncIterator[Add]:
    """An asynchronous connection."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        yield lambda event: outbox.add(connection, event)


@asynccontextmanager
async def by_asyncpg(outbox: Outbox, url: str) -> AsyncIterator[Add]:
    """A connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            yield lambda event: outbox.add(connection, event)
    finally:
        await connection.close()


@asynccontextmanager
async def by_asyncpg_pool(outbox: Outbox, url: str) -> AsyncIterator[Add]:
    """A connection out of a pool, which is a proxy."""
    async with (
        asyncpg.create_pool(url, min_size=1, max_size=1) as pool,
        pool.acquire() as connection,
        connection.transaction(),
    ):
        yield lambda event: outbox.add(connection, event)


def by_session(driver: str, *, scoped: bool = False) -> Adding:
    """A session of SQLAlchemy."""

    @asynccontextmanager
    async def adding(outbox: Outbox, url: str) -> AsyncIterator[Add]:
        engine = create_engine(driver + url.partition(":")[2])
        session = scoped_session(sessionmaker(engine)) if scoped else Session(engine)

        async def add(event: Counted) -> Reference:
            return outbox.add(session, event)

        try:
            yield add
            session.commit()
        finally:
            session.close()
            engine.dispose()

    return adding


def by_async_session(driver: str, *, scoped: bool = False) -> Adding:
    """An asynchronous session of SQLAlchemy."""

    @asynccontextmanager
    async def adding(outbox: Outbox, url: str) -> AsyncIterator[Add]:
        engine = create_async_engine(driver + url.partition(":")[2])
        session: Any = AsyncSession(engine)
        if scoped:
            session = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
        try:
            yield lambda event: outbox.add(session, event)
            await session.commit()
        finally:
            await session.close()
            await engine.dispose()

    return adding


@asynccontextmanager
async def by_sqlite(outbox: Outbox, url: str) -> AsyncIterator[Add]:
    """sqlite3's connection, which begins a transaction by itself."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:"))) as connection, connection:

        async def add(event: Counted) -> Reference:
            return outbox.add(connection, event)

        yield add


@asynccontextmanager
async def by_sqlite_manual(outbox: Outbox, url: str) -> AsyncIterator[Add]:
    """One in autocommit mode, where the application has begun a transaction."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:"), isolation_level=None)) as connection, connection:
        connection.execute("BEGIN")

        async def add(event: Counted) -> Reference:
            return outbox.add(connection, event)

        yield add


ON_POSTGRES = {
    "psycopg": by_psycopg,
    "psycopg-block": by_psycopg_block,
    "psycopg-async": by_psycopg_async,
    "asyncpg": by_asyncpg,
    "asyncpg-pool": by_asyncpg_pool,
    "session": by_session("postgresql+psycopg:"),
    "session-scoped": by_session("postgresql+psycopg:", scoped=True),
    "session-async-psycopg": by_async_session("postgresql+psycopg:"),
    "session-async-asyncpg": by_async_session("postgresql+asyncpg:"),
    "session-async-scoped": by_async_session("postgresql+asyncpg:", scoped=True),
}
ON_SQLITE = {
    "sqlite3": by_sqlite,
    "sqlite3-manual": by_sqlite_manual,
    "session": by_session("sqlite+pysqlite:///"),
}


async def rows_of(outbox: Outbox, database: str) -> list[OutboxRow]:
    """What a relay would find."""
    rows = open_rows(database, outbox.table)
    await rows.open()
    try:
        return list(await rows.take(rows_max=1000, bytes_max=1_000_000, without=()))
    finally:
        await rows.close()


def said(rows: list[OutboxRow]) -> list[tuple[Counted, Envelope]]:
    """Events and envelopes."""
    return [(Counted.from_payload(row.value), row.envelope()) for row in rows]


async def added_and_undone(outbox: Outbox, database: str, adding: Adding) -> None:
    """One transaction that commits two events, one that is rolled back."""
    async with adding(outbox, database) as add:
        first, second = await add(EVENT), await add(Counted(account="ann", number=2))
    with suppress(Undone):
        async with adding(outbox, database) as add:
            await add(Counted(account="ann", number=3))
            raise Undone
    rows = await rows_of(outbox, database)
    found = said(rows)
    assert [event.number for event, _ in found] == [1, 2]
    assert [envelope.id for _, envelope in found] == [first.id, second.id]
    assert {(row.topic, row.key) for row in rows} == {("shop.entries", b"ann")}
    assert {(each.source, each.type, each.version) for _, each in found} == {("/shop", "entry.counted", 1)}
    assert first.correlation_id == first.id == found[0][1].correlationid


@pytest.mark.parametrize("kind", ON_POSTGRES)
async def test_postgres_row_commits_with_its_transaction(postgres: str, schema: str, kind: str) -> None:
    """Each kind of connection to PostgreSQL."""
    outbox = Outbox("shop", schema=schema, topics={"entries": "shop.entries"})
    await added_and_undone(outbox, postgres, ON_POSTGRES[kind])


@pytest.mark.parametrize("kind", ON_SQLITE)
async def test_sqlite_row_commits_with_its_transaction(file: str, kind: str) -> None:
    """Each kind of connection to SQLite."""
    outbox = Outbox("shop", topics={"entries": "shop.entries"})
    await added_and_undone(outbox, f"sqlite:{file}", ON_SQLITE[kind])
    gc.collect()


async def test_row_carries_ids_and_trace(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's own id and flow, the prefix, and the context of the span that was running."""
    monkeypatch.setenv("CHOREO_TOPIC_PREFIX", "test.")
    outbox = Outbox("shop")
    tracer = TracerProvider().get_tracer("shop")
    with closing(sqlite3.connect(file)) as connection, connection:
        with tracer.start_as_current_span("POST /entries") as span:
            reference = outbox.add(connection, EVENT, id="request-1", correlation_id="party")
        outbox.add(connection, EVENT)
    assert reference == ("request-1", "party", "test.entries")
    (_, with_span), (_, without) = said(await rows_of(outbox, f"sqlite:{file}"))
    own = span.get_span_context()
    assert parse(with_span.traceparent) == (own.trace_id, own.span_id, own.trace_flags)
    assert (with_span.id, with_span.correlationid) == ("request-1", "party")
    assert without.traceparent is None


async def test_adding_outside_of_a_transaction_is_refused(postgres: str, schema: str, file: str) -> None:
    """Else the event would be published though the rest is rolled back."""
    outbox = Outbox("shop", schema=schema)
    with psycopg.connect(postgres, autocommit=True) as plain, pytest.raises(ConfigurationError, match="autocommit"):
        outbox.add(plain, EVENT)
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
        with pytest.raises(ConfigurationError, match="autocommit"):
            await outbox.add(connection, EVENT)
    other = await asyncpg.connect(postgres)
    with pytest.raises(ConfigurationError, match="autocommit"):
        await outbox.add(other, EVENT)
    await other.close()
    with closing(sqlite3.connect(file, isolation_level=None)) as lite:
        with pytest.raises(ConfigurationError, match="autocommit"):
            Outbox("shop").add(lite, EVENT)
    with pytest.raises(ConfigurationError, match="given a str"):
        outbox.add("postgresql://...", EVENT)  # type: ignore[call-overload]
    assert await rows_of(outbox, postgres) == []


def test_what_no_topic_would_take_is_refused(file: str) -> None:
    """At once, where the application can do something about it."""
    with closing(sqlite3.connect(file)) as connection, pytest.raises(DeclarationError, match="reference to the data"):
        Outbox("shop", event_bytes_max=100).add(connection, Counted(account="x" * 100, number=1))
    for name in ("", "x" * 52, 'a"b', "a.b"):
        with pytest.raises(ConfigurationError, match="letters"):
            Outbox("shop", table=name)


class Base(DeclarativeBase):
    """Of the application's models."""


class Account(Base):
    """A row that two transactions write."""

    __tablename__ = "account"
    name: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int]


async def test_row_gets_its_position_behind_the_locks(postgres: str, schema: str) -> None:
    """Two transactions on one row: the one that waits for the other's lock has its event behind the other's."""
    outbox = Outbox("shop", schema=schema)
    engine = create_async_engine("postgresql+asyncpg:" + postgres.partition(":")[2]).execution_options(
        schema_translate_map={None: schema}
    )
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Account).values(name="ann", number=0))
    waiting = asyncio.Event()

    async def second() -> None:
        async with AsyncSession(engine, autoflush=False) as session, session.begin():
            account = await session.get_one(Account, "ann")
            account.number = 2  # not written yet: the session does that when it is flushed
            adding = asyncio.ensure_future(outbox.add(session, Counted(account="ann", number=2)))
            await asyncio.wait({adding}, timeout=0.3)
            waiting.set()
            await adding

    async with AsyncSession(engine) as session, session.begin():
        await session.execute(update(Account).values(number=1))
        task = asyncio.create_task(second())
        await waiting.wait()
        await outbox.add(session, Counted(account="ann", number=1))
    await task
    await engine.dispose()
    assert [event.number for event, _ in said(await rows_of(outbox, postgres))] == [1, 2]


def test_written_headers_are_those_of_a_record(file: str) -> None:
    """What the relay makes of a row is read as any other event."""
    outbox = Outbox("shop")
    with closing(sqlite3.connect(file)) as connection, connection:
        outbox.add(connection, Counted(account="ä\0", number=1), id="ö\0")
    (row,) = asyncio.run(rows_of(outbox, f"sqlite:{file}"))
    assert row.envelope().id == "ö\0"
    assert row.key == "ä\0".encode()
    assert read_envelope(write_envelope(row.envelope()), row.value)[0] == row.envelope()
