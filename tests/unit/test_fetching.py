"""How far ahead of its handlers a worker fetches, and how often."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from choreo import App, Service
from choreo.core.messages import Limits
from choreo.ports import CommitRequest
from choreo.record import TopicPartition
from choreo.runtime import fetching
from choreo.runtime.emitting import Emitter
from choreo.runtime.invoking import Invoker
from choreo.runtime.worker import Ports, Worker
from choreo.telemetry.silent import NoInstrument
from choreo.testing.clock import VirtualClock
from tests.unit.test_cost import BATCH, EVENTS, PARTITIONS, OneTopic, OrderPlaced, records

CONCURRENCY = 16


class Counting(OneTopic):
    """One that counts what was fetched of it."""

    fetched = 0

    async def fetch(self, *, records_max: int, wait_s: float) -> Any:
        found = await super().fetch(records_max=records_max, wait_s=wait_s)
        self.fetched += len(found)
        return found


@asynccontextmanager
async def running(topic: Counting, go: asyncio.Event) -> AsyncIterator[Worker]:
    """A worker whose handler waits for `go`."""
    service = Service("payments")

    @service.handler(OrderPlaced)
    async def take(order: OrderPlaced) -> None:
        await go.wait()

    app, port = App(service), cast(Any, topic)
    ports = Ports(port, port, NoInstrument(), VirtualClock(), limits=Limits(concurrency=CONCURRENCY))
    emitter, invoker = Emitter(service, app.topic), Invoker({}, (), ports.clock)
    worker = Worker(service, ["orders"], ports, app.router(service.name), emitter, invoker)
    await worker.start()
    await worker.holder.assigned([TopicPartition("orders", number) for number in range(PARTITIONS)])
    try:
        yield worker
    finally:
        await worker.stop()


async def turns(number: int) -> None:
    """Let the loop go round."""
    for _ in range(number):
        await asyncio.sleep(0)


async def test_no_more_is_fetched_while_as_much_is_ready_as_may_run() -> None:
    """And all of it is, once the handlers go on."""
    topic, go = Counting(records(0)), asyncio.Event()
    async with running(topic, go) as worker:
        await turns(200)
        assert topic.fetched == BATCH
        assert worker.engine.running == CONCURRENCY
        go.set()
        while worker.counts["handled"] < EVENTS:  # noqa: ASYNC110  # nobody tells it
            await asyncio.sleep(0.001)
    assert topic.fetched == EVENTS


async def test_who_waits_for_handlers_still_fetches_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that does not is taken for dead by its group."""
    monkeypatch.setattr(fetching, "FETCH_WAIT_S", 0.001)
    topic, go = Counting(records(0)), asyncio.Event()
    async with running(topic, go):
        async with asyncio.timeout(10):
            while topic.fetched < EVENTS:  # noqa: ASYNC110  # nobody tells it
                await asyncio.sleep(0.001)
        go.set()


class Trickle(Counting):
    """One with a record a fetch, whose commits wait for `landed`."""

    def __init__(self) -> None:
        super().__init__(records(0)[:8])
        self._batches = [[record] for record in self._batches[0]]
        self.landed = asyncio.Event()
        self.flushes = 0

    async def commit(self, request: Any) -> Any:
        if isinstance(request, CommitRequest):
            self.flushes += 1
            await self.landed.wait()
        return await super().commit(request)


async def test_while_a_flush_is_under_way_a_fetch_is_some_time_behind_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the next one comes as soon as the flush has landed."""
    monkeypatch.setattr(fetching, "FETCH_AGAIN_S", 60.0)
    topic, go = Trickle(), asyncio.Event()
    go.set()
    async with running(topic, go) as worker:
        await turns(200)
        assert (topic.flushes, topic.fetched) == (1, 1)
        topic.landed.set()
        async with asyncio.timeout(10):
            while worker.counts["handled"] < 8:  # noqa: ASYNC110  # nobody tells it
                await asyncio.sleep(0.001)


async def test_a_fetch_of_several_partitions_is_one_question_to_the_store() -> None:
    """Else what came first is asked for alone, and all the rest waits for that answer."""

    class Asked(Counting):
        keys: list[int] = []  # noqa: RUF012  # one instance

        async def claim(self, leases: Any, requests: Any) -> Any:
            self.keys.append(len(requests))
            return await super().claim(leases, requests)

    topic, go = Asked(records(0)), asyncio.Event()
    async with running(topic, go):
        await turns(200)
        assert topic.keys == [BATCH]
        go.set()
