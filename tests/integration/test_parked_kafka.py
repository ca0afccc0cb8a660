"""Parked keys on a real Kafka and PostgreSQL: a poison key, two members, and a release while events keep coming."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from choreo import App, Delayed, Event, RetryPolicy, Service
from choreo import envelope as cloudevents
from choreo.parked import Parked, ParkedStore
from choreo.running import Running
from choreo.runtime.clock import SystemClock
from choreo.runtime.ordering import Operator, send
from choreo.runtime.releasing import orders_for, replay_of
from choreo.service import Retry
from tests.integration.bare_client import waited

KEYS = ("ann", "bob", "eve")
FIRST, MORE = 6, 30
POISON = ("bob", 2)


class Asked(Event, type="parked.asked", version=1, topic="asks", key="who"):
    who: str
    number: int


class Poured(Event, type="parked.poured", version=1, topic="cups", key="who"):
    who: str
    number: int


class Desk:
    """A service that fails at one event as long as it is broken, with a row for each it handled."""

    def __init__(self, prefix: str, retry: Retry) -> None:
        self.prefix = prefix
        self.broken = True
        self.failed: list[float] = []
        self.service = service = Service("desk", group=f"{prefix}desk")

        @service.on_start
        def table(connection: psycopg.Connection) -> None:
            connection.execute("CREATE TABLE IF NOT EXISTS cup (id bigserial, who text, number int)")

        @service.handler(Asked, retry=retry, order="key")
        def pour(asked: Asked, db: psycopg.Connection) -> Poured:
            db.execute("INSERT INTO cup (who, number) VALUES (%s, %s)", (asked.who, asked.number))
            if (asked.who, asked.number) == POISON and self.broken:
                self.failed.append(time.monotonic())
                raise ConnectionError
            return Poured(who=asked.who, number=asked.number)

        self.app = App(service)

    @asynccontextmanager
    async def two(self, kafka: str, store: str) -> AsyncIterator[Running]:
        """Two members of its group; the first of them."""
        here = partial(self.app.running, broker=f"kafka://{kafka}", store=store)
        async with here(create_topics=True, create_schema=True, partitions=3) as one, here():
            yield one

    async def heads(self, running: Running) -> Sequence[Parked]:
        """Of the queues in its store."""
        queues: ParkedStore = running.stores["desk"]  # type: ignore[assignment]
        return await queues.parked(self.service.group)

    async def waiting(self, running: Running) -> list[tuple[str, str, int, int, int]]:
        """Of each queue: key, why, attempts, releases, how many wait behind."""
        return [
            ((each.record.key or b"").decode(), each.reason, each.attempts, replay_of(each).tries, each.behind)
            for each in await self.heads(running)
        ]

    async def replays(self, running: Running) -> int:
        """How many records there are on its topic of replays."""
        return len(await running.transport.scan([f"{self.prefix}desk.replay"], since_ms=0))

    async def poured(self, running: Running) -> dict[str, list[int]]:
        """Numbers by key, as they are on the log; copies of one event once."""
        found: dict[str, list[int]] = defaultdict(list)
        ids = set()
        for record in await running.transport.scan([f"{self.prefix}cups"], since_ms=0):
            envelope = cloudevents.read(record.headers, record.value or b"")[0]
            if envelope.id not in ids:
                ids.add(envelope.id)
                cup = Poured.from_payload(record.value or b"")
                found[cup.who].append(cup.number)
        return dict(found)


@asynccontextmanager
async def database(postgres: str) -> AsyncIterator[str]:
    """The URL of a store in a database of its own."""
    name = f"parked_{uuid4().hex}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    url, _, query = postgres.partition("?")
    yield f"{url.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")


async def until(look: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    """Look until that is what there is."""
    found = None
    try:
        async with asyncio.timeout(60):
            while True:
                found = await look()
                if found == wanted:
                    return
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"{found} is not {wanted}") from None


async def release(desk: Desk, running: Running) -> int:
    """What `choreo dlq release` does; how many there were."""
    heads = await desk.heads(running)
    orders = orders_for(
        desk.service, f"{desk.prefix}desk.replay", heads, "head", Operator("me", "mended"), time.time()
    )
    await send(running.transport, orders.records, SystemClock())
    return len(orders.records)


async def test_poison_key_is_parked_and_released_in_order(
    kafka: str, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other keys flow; those of the key wait through a restart and a release too early, each in its place."""
    prefix = f"parked-{uuid4()}-"
    monkeypatch.setenv("CHOREO_TOPIC_PREFIX", prefix)
    desk = Desk(prefix, RetryPolicy(2, base_s=0.01, cap_s=0.05))
    every = list(range(FIRST + MORE))
    async with database(postgres) as store:
        async with desk.two(kafka, store) as running:
            for number in range(FIRST):
                for who in KEYS:
                    await running.publish(Asked(who=who, number=number))
            first = every[:FIRST]
            await until(lambda: desk.poured(running), {"ann": first, "bob": first[: POISON[1]], "eve": first})
            await until(lambda: desk.waiting(running), [("bob", "handler_failed", 2, 0, 3)])
        async with desk.two(kafka, store) as running:  # others have it now
            assert await release(desk, running) == 1  # too early: it fails again, and keeps its place
            await until(lambda: desk.waiting(running), [("bob", "handler_failed", 4, 1, 3)])
            desk.broken = False

            async def more() -> None:
                for number in range(FIRST, FIRST + MORE):
                    for who in KEYS:
                        await running.publish(Asked(who=who, number=number))

            publishing = asyncio.create_task(more())
            await asyncio.sleep(0.1)
            await release(desk, running)
            await publishing
            await until(lambda: desk.poured(running), dict.fromkeys(KEYS, every))
            await until(lambda: desk.waiting(running), [])
            replays = await desk.replays(running)
            await running.publish(Asked(who="bob", number=99))  # its key flows again, as any
            await until(lambda: desk.poured(running), dict.fromkeys(KEYS, every) | {"bob": [*every, 99]})
            assert await desk.replays(running) == replays
            assert await running.transport.scan([f"{prefix}desk.dlq"], since_ms=0) == []
        with psycopg.connect(store) as connection:
            rows = connection.execute("SELECT number FROM cup WHERE who = 'bob' ORDER BY id").fetchall()
        assert [number for (number,) in rows] == [*every, 99]


async def test_delayed_key_is_tried_again_in_its_place(
    kafka: str, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no delay topic, and nothing overtakes: it waits in its queue until it is due, and others behind it."""
    prefix = f"parked-{uuid4()}-"
    monkeypatch.setenv("CHOREO_TOPIC_PREFIX", prefix)
    desk = Desk(prefix, Delayed(1, 2))
    async with database(postgres) as store, desk.two(kafka, store) as running:
        for number in range(FIRST):
            await running.publish(Asked(who="bob", number=number))
        await waited(lambda: len(desk.failed) == 2, within_s=30)
        assert desk.failed[1] - desk.failed[0] >= 0.9
        desk.broken = False
        await until(lambda: desk.poured(running), {"bob": list(range(FIRST))})
        await until(lambda: desk.waiting(running), [])
        assert not [name for name in await running.transport.topics() if name.startswith(f"{prefix}desk.retry")]
