"""The relay on real servers: what commits is sent, in order a key, whoever dies, stops or cannot be reached."""

import asyncio
import sqlite3
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from choreo import ConfigurationError
from choreo.envelope import read as read_envelope
from choreo.errors import StoreError
from choreo.outbox import Outbox, postgres
from choreo.outbox.postgres import PostgresRows
from choreo.ports import Transport
from deploy.kafka.node import free_ports
from tests.integration.outbox_stage import Counted, counted, fresh_schema, log_at, logged, relay_process, until
from tests.kafka_server import Unavailable
from tests.postgres_server import pgbouncer

WITHIN_S = 60.0


class Shop:
    """An application with an outbox of its own, and a topic of its own."""

    def __init__(self, database: str, broker: str, schema: str | None) -> None:
        self.database, self.broker = database, broker
        self.topic = f"entries-{uuid4().hex[:8]}"
        self.outbox = Outbox("shop", schema=schema, topics={"entries": self.topic})
        self.schema = schema

    @property
    def arguments(self) -> list[str]:
        """Of `choreo relay`."""
        found = ["--database", self.database, "--broker", self.broker]
        return found if self.schema is None else [*found, "--schema", self.schema]

    def write(self, *numbers: int, account: str = "ann") -> None:
        """Commit entries, a transaction each."""
        with psycopg.connect(self.database) as connection:
            for number in numbers:
                self.outbox.add(connection, Counted(account=account, number=number))
                connection.commit()

    def left(self) -> int:
        """Rows in the outbox."""
        with psycopg.connect(self.database) as connection:
            found = connection.execute(self.outbox.table.fill("SELECT count(*) FROM {table}").encode()).fetchone()
        return 0 if found is None else int(found[0])

    async def emptied(self) -> None:
        """Return when nothing is left."""
        await until(lambda: not self.left())


@pytest.fixture
def shop(kafka: str, postgres: str) -> Iterator[Shop]:
    """On Kafka and PostgreSQL."""
    with fresh_schema(postgres) as schema:
        made = Shop(postgres, f"kafka://{kafka}", schema)
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute(made.outbox.ddl().encode())
        yield made


@pytest.fixture
async def log(shop: Shop) -> AsyncIterator[Transport]:
    """With the shop's topic."""
    async with log_at(shop.broker, shop.topic) as transport:
        yield transport


async def numbers(log: Transport, topic: str) -> list[int]:
    """What is on the log."""
    return [each.number for each in counted(await logged(log, topic))]


async def test_rows_are_sent_in_order_and_deleted(shop: Shop, log: Transport) -> None:
    """Those that were there before the relay, and those that wake it: it would look again in half a minute only."""
    shop.write(*range(100))
    async with shop.outbox.relaying(shop.database, shop.broker, poll_s=25.0):
        await shop.emptied()
        await asyncio.sleep(0.2)
        began_s = time.monotonic()
        await asyncio.to_thread(shop.write, *range(100, 200))
        await shop.emptied()
        assert time.monotonic() - began_s < 10.0
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 10.0
    assert await numbers(log, shop.topic) == list(range(200))
    envelopes = [read_envelope(each.headers, each.value or b"")[0] for each in await logged(log, shop.topic)]
    assert {each.source for each in envelopes} == {"/shop"}


async def test_send_that_is_not_noted_is_a_duplicate_with_its_id(
    shop: Shop, log: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a crash between sending and deleting: at least once on the log, once for who drops by id."""
    delete, failures = PostgresRows.delete, [StoreError("gone")]

    async def failing(rows: PostgresRows, positions: list[int]) -> None:
        if failures:
            raise failures.pop()
        await delete(rows, positions)

    monkeypatch.setattr(PostgresRows, "delete", failing)
    shop.write(1, 2, 3)
    async with shop.outbox.relaying(shop.database, shop.broker):
        await shop.emptied()
    assert await numbers(log, shop.topic) == [1, 2, 3, 1, 2, 3]
    ids = [read_envelope(each.headers, each.value or b"")[0].id for each in await logged(log, shop.topic)]
    assert ids[:3] == ids[3:]


async def test_topic_that_is_not_there_holds_up_no_other(shop: Shop, log: Transport) -> None:
    """Its rows stay, and are sent in order once it is there."""
    missing = Outbox("shop", schema=shop.schema, topics={"entries": f"{shop.topic}-later"})
    with psycopg.connect(shop.database) as connection:
        for number in (1, 2):
            missing.add(connection, Counted(account="ann", number=number))
    async with log_at(shop.broker) as transport, shop.outbox.relaying(shop.database, quick(transport)):
        await asyncio.to_thread(shop.write, 7, 8)
        await until(lambda: shop.left() == 2)
        assert await numbers(log, shop.topic) == [7, 8]
        async with log_at(shop.broker, f"{shop.topic}-later"):
            await shop.emptied()
    assert await numbers(log, f"{shop.topic}-later") == [1, 2]


def quick(transport: Transport) -> Transport:
    """A transport that gives a send up after two seconds and not after thirty."""
    send = transport.send

    async def sending(records: object) -> None:
        from choreo.errors import TransportError

        try:
            async with asyncio.timeout(2.0):
                await send(records)  # type: ignore[arg-type]
        except TimeoutError:
            raise TransportError("no such topic") from None

    transport.send = sending  # type: ignore[method-assign]
    return transport


async def test_second_relay_stands_by_and_takes_over(shop: Shop, log: Transport, tmp_path: Path) -> None:
    """Whoever leads is killed without warning; SIGTERM ends the other in an orderly way."""
    first = relay_process(tmp_path, "first", *shop.arguments)
    (port,) = free_ports(1)
    second = relay_process(tmp_path, "second", *shop.arguments, "--health-port", str(port))
    try:
        first.start()
        first.said("relaying")
        second.start()
        second.said("ready")
        assert await asyncio.to_thread(asked, port, "/readyz") == "ok\n"
        shop.write(1, 2, 3)
        await shop.emptied()
        assert not second.has_said("relaying")
        first.kill()
        shop.write(4, 5)
        await shop.emptied()
        second.said("relaying")
        await asyncio.sleep(0.5)
        assert "choreo_outbox_lag_time_seconds" in await asyncio.to_thread(asked, port, "/metrics")
        shop.write(6)
        assert second.stop() == 0
        assert second.has_said("drained")
        assert await numbers(log, shop.topic) == [1, 2, 3, 4, 5, 6][: 6 - shop.left()]
    finally:
        first.close()
        second.close()


def asked(port: int, path: str) -> str:
    """What the endpoint answers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        found: bytes = answer.read()
    return found.decode()


async def test_relay_outlives_its_connection(shop: Shop, log: Transport) -> None:
    """The server ends it, and with it the lead: another is made, and the lead taken again."""
    async with shop.outbox.relaying(shop.database, shop.broker) as relay:
        await asyncio.to_thread(shop.write, 1)
        await shop.emptied()
        with psycopg.connect(shop.database, autocommit=True) as connection:
            query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'choreo relay'"
            assert connection.execute(query).fetchall()
        await asyncio.to_thread(shop.write, 2)
        await shop.emptied()
        assert relay.not_ready() == []
    assert await numbers(log, shop.topic) == [1, 2]


async def test_frozen_leader_loses_the_lead(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does nothing, its connection up: the server ends that, and then it can neither read nor delete."""
    monkeypatch.setattr(postgres, "IDLE_S_MAX", 0.5)
    frozen, other = (PostgresRows(shop.database, shop.outbox.table) for _ in range(2))
    await frozen.open()
    assert await frozen.lead()
    monkeypatch.undo()
    await other.open()
    assert not await other.lead()
    until_s = time.monotonic() + WITHIN_S
    while not await other.lead():
        assert time.monotonic() < until_s
        await asyncio.sleep(0.05)
    with pytest.raises(StoreError):
        await frozen.take(rows_max=1, bytes_max=1, without=())
    await frozen.close()
    await other.close()


async def test_what_cannot_work_is_said_at_the_start(shop: Shop, log: Transport) -> None:
    """A table that is not there, and a pooler that shares sessions out."""
    with pytest.raises(ConfigurationError, match="migrations"):
        async with Outbox("shop", schema="nowhere").relaying(shop.database, shop.broker):
            pass
    try:
        with pgbouncer(shop.database) as bounced, pytest.raises(ConfigurationError, match="PgBouncer"):
            async with shop.outbox.relaying(bounced, shop.broker):
                pass
    except Unavailable as error:
        pytest.skip(str(error))


def rows_in(path: Path) -> int:
    """Rows in an SQLite outbox."""
    with closing(sqlite3.connect(path)) as connection:
        found: int = connection.execute("SELECT count(*) FROM choreo_outbox").fetchone()[0]
    return found


async def test_sqlite_has_one_relay_at_a_time(tmp_path: Path) -> None:
    """On the embedded log; the lock is the first one's until it ends."""
    outbox, path, broker = Outbox("shop"), tmp_path / "shop.db", f"embedded:{tmp_path}/log.db"
    database = f"sqlite:{path}"
    with pytest.raises(ConfigurationError, match="no database"):
        async with outbox.relaying(database, "embedded::memory:"):
            pass
    with closing(sqlite3.connect(path)) as connection:
        with pytest.raises(ConfigurationError, match="migrations"):
            async with outbox.relaying(database, "embedded::memory:"):
                pass
        connection.execute(outbox.ddl("sqlite"))

        def write(*numbers: int) -> None:
            for number in numbers:
                outbox.add(connection, Counted(account="ann", number=number))
            connection.commit()

        async def emptied() -> None:
            await until(lambda: not rows_in(path))

        async with log_at(broker, "entries") as log:
            async with outbox.relaying(database, broker) as first:
                async with outbox.relaying(database, broker) as second:
                    write(*range(1500))
                    await emptied()
                    assert (first.leads, second.leads) == (True, False)
            async with outbox.relaying(database, broker) as third:
                write(1500)
                await emptied()
                assert third.leads
                connection.execute("ALTER TABLE choreo_outbox RENAME TO away")
                await until(third.not_ready)
                assert "no such table" in third.not_ready()[0]
                connection.execute("ALTER TABLE away RENAME TO choreo_outbox")
                await until(lambda: not third.not_ready())
            assert await numbers(log, "entries") == list(range(1501))
