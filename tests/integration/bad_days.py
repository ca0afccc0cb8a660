"""A desk that serves orders, on a log and a store in SQLite files, and what goes wrong with the files."""

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from choreo import App, Event, Service
from choreo.core.retry import RetryPolicy
from choreo.ports import Clock, Transport
from choreo.record import ProducerRecord
from choreo.running import Running, services
from choreo.runtime.clock import SystemClock
from choreo.runtime.emitting import original
from choreo.sqlite.database import Database
from choreo.transports.embedded import EmbeddedTransport

Mode = Literal["one_file", "two_files"]
"""Log and store in one file, with one commit for both; or a store of its own with an outbox, as beside Kafka."""


class Ordered(Event, type="meal.ordered", version=1, topic="orders", key="name"):
    """Somebody wants something."""

    name: str
    note: str = ""


class Served(Event, type="meal.served", version=1, topic="served", key="name"):
    """It is on the table."""

    name: str


class Desk:
    """One service with one handler that writes a row and emits, and a hook in it.

    Attributes:
        before: Called inside the handler, before its row is written.
        asked: Names in the order in which the handler was invoked, rolled back or not.
    """

    def __init__(self, folder: Path, mode: Mode, *, name: str = "desk", attempts_max: int = 3) -> None:
        self.folder, self.mode, self.name = folder, mode, name
        self.before: Callable[[Ordered, sqlite3.Connection], object] = lambda ordered, db: None
        self.asked: list[str] = []
        self.retry = RetryPolicy(attempts_max=attempts_max, base_s=0.01, cap_s=0.05)
        self.service = Service(name, retry=self.retry)
        self.service.on_start(self._tables)
        self.service.handler(Ordered, name="serve")(self._handler())
        self.app = App(self.service)

    def _tables(self, db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE IF NOT EXISTS served (desk TEXT, name TEXT)")

    def _handler(self) -> Callable[[Ordered, sqlite3.Connection], Served]:
        def serve(ordered: Ordered, db: sqlite3.Connection) -> Served:
            self.asked.append(ordered.name)
            self.before(ordered, db)
            db.execute("INSERT INTO served VALUES (?, ?)", (self.name, ordered.name))
            return Served(name=ordered.name)

        return serve

    @property
    def log_path(self) -> Path:
        """The file of the log."""
        return self.folder / "log.db"

    @property
    def store_path(self) -> Path:
        """The file of keys and rows."""
        return self.folder / ("log.db" if self.mode == "one_file" else "store.db")

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncIterator[Running]:
        """The desk at work."""
        async with running(self.app, self.mode, self.log_path, self.store_path, **settings) as found:
            yield found

    def counts(self, found: Running) -> Counter[str]:
        """What the worker counted."""
        return found.workers[self.name].counts

    def rows(self) -> list[str]:
        """Names of the rows that were committed, sorted."""
        return sorted(name for (name,) in query(self.store_path, "SELECT name FROM served"))

    async def emitted(self, found: Running) -> list[str]:
        """Names on the topic of what was served, sorted. From an outbox one may come twice, with the same id."""
        records = await found.transport.scan(["served"], since_ms=0)
        told = [(dict(record.headers)["ce_id"], Served.from_payload(record.value or b"").name) for record in records]
        return sorted(name for _, name in (told if self.mode == "one_file" else set(told)))

    async def all_emitted(self, found: Running, names: list[str], within_s: float = 5.0) -> bool:
        """Whether, a little later, each name is on that topic once."""
        until_s = time.monotonic() + within_s
        while len(await self.emitted(found)) < len(names) and time.monotonic() < until_s:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return await self.emitted(found) == sorted(names)

    async def letters(self, found: Running) -> list[dict[str, str]]:
        """What the dead letters say."""
        records = await found.transport.scan([f"{self.name}.dlq"], since_ms=0)
        return [original(record) for record in records]


@asynccontextmanager
async def running(app: App, mode: Mode, log_path: Path, store_path: Path, **settings: Any) -> AsyncIterator[Running]:
    """An app on the embedded log, its store in the same file or in another."""

    def beside(broker: str, *, clock: Clock | None = None) -> Transport:
        return EmbeddedTransport(Database(broker.removeprefix("beside:")), clock or SystemClock())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "open_transport", beside)
        broker, store = f"embedded:{log_path}", None
        if mode == "two_files":
            broker, store = f"beside:{log_path}", f"sqlite:{store_path}"
        async with app.running(broker=broker, store=store, create_topics=True, **settings) as found:
            yield found


def query(path: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Rows of a file, read or written on a connection of its own."""
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as db:
        return db.execute(sql, values).fetchall()


@contextmanager
def failing(path: Path, *, after: bool = False) -> Iterator[Counter[str]]:
    """Every transaction on the file fails meanwhile; `after`: it is committed, and nobody is told so."""
    transaction, counts = Database._transaction, Counter[str]()

    def broken(self: Database, change: Callable[[sqlite3.Connection], Any]) -> Any:
        if self.path != str(path):
            return transaction(self, change)
        counts["failed"] += 1
        if after:
            transaction(self, change)
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "_transaction", broken)
        yield counts


@contextmanager
def slow(path: Path, delay_s: float) -> Iterator[Counter[str]]:
    """Every transaction on the file takes so long."""
    transaction, counts = Database._transaction, Counter[str]()

    def delayed(self: Database, change: Callable[[sqlite3.Connection], Any]) -> Any:
        if self.path == str(path):
            counts["slow"] += 1
            time.sleep(delay_s)
        return transaction(self, change)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "_transaction", delayed)
        yield counts


async def room(found: Running, service: str, pages: int) -> int:
    """Let the store's file grow to no more than `pages` beyond what it has, or without end for 0."""
    database: Database = found.stores[service]._db  # type: ignore[attr-defined]

    def limit(db: sqlite3.Connection) -> int:
        wanted = db.execute("PRAGMA page_count").fetchone()[0] + pages if pages else 1_073_741_823
        return int(db.execute(f"PRAGMA max_page_count = {wanted}").fetchone()[0])

    return await database.read(limit)


async def until(condition: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait for something that will happen."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def order(
    name: str, *, id: str | None = None, source: str = "/guests", note: str = "", headers: Any = ()
) -> ProducerRecord:
    """A record as a foreign producer may send it."""
    event = Ordered(name=name, note=note)
    own = (("ce_id", id or f"id of {name}"), ("ce_source", source), ("ce_type", "meal.ordered"))
    told = tuple((key, value.encode()) for key, value in (*own, ("ce_specversion", "1.0"), *headers))
    return ProducerRecord("orders", name.encode(), event.payload(), told)
