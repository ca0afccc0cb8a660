"""The poller of timers: when it looks, what it sends, what it does when store or broker fail; and within a worker."""

import asyncio
import math
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import pytest

from choreo import Event, Service
from choreo.binding import bind
from choreo.envelope import Envelope, write
from choreo.errors import ConfigurationError, StoreError, TransportError
from choreo.instances import INSTANCES, Instance, Instances, Timer
from choreo.ports import TopicSpec, Transport
from choreo.record import ProducerRecord
from choreo.running import Plan, check_pair
from choreo.runtime.clock import SystemClock
from choreo.runtime.emitting import Emitter
from choreo.runtime.invoking import Invoker
from choreo.runtime.routing import Router
from choreo.runtime.timers import CLAIM_S, SENT_AGAIN_S, TimerPoller
from choreo.runtime.worker import Ports, Worker
from choreo.sqlite.database import Database
from choreo.stores.redis import RedisStore
from choreo.stores.sqlite import SqliteStore
from choreo.telemetry.silent import NoInstrument
from choreo.testing.clock import VirtualClock
from choreo.testing.conformance_desk import Desk
from choreo.testing.conformance_shelf import Shelf
from choreo.transports.embedded import EmbeddedTransport


class Flaky(SqliteStore):
    """A store that fails when told to, and may be looked at."""

    failures = 0
    looks = 0

    async def due(self, processes: Collection[str], *, limit: int, claim_s: float) -> tuple[Sequence[Timer], float]:
        """Count, and perhaps fail."""
        self.looks += 1
        if self.failures:
            self.failures -= 1
            raise StoreError("the store is away")
        return await super().due(processes, limit=limit, claim_s=claim_s)


class Bench:
    """A poller in virtual time on a real store, and what it has sent when."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.begin_s = self.clock.now_s()
        self._database = Database(":memory:")
        self.store = Flaky(self._database, self.clock, with_log=False)
        self.desk = Desk(Shelf(self.store, "group"))
        self.sent: list[tuple[float, str, int]] = []
        self.failures = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        """As a transport does."""
        if self.failures:
            self.failures -= 1
            raise TransportError("the broker is away")
        for record in records:
            self.sent.append((self.clock.now_s() - self.begin_s, record.topic, int(record.value or b"")))

    def start(self, **options: float) -> asyncio.Task[None]:
        """Begin to poll."""
        poller = TimerPoller(
            "svc",
            [self.desk.process],
            self.store,
            cast(Transport, self),
            self.clock,
            lambda timer: ProducerRecord(timer.name, None, b"%d" % timer.number, ()),
            **options,
        )
        self._tasks.append(asyncio.create_task(poller.run()))
        return self._tasks[-1]

    async def set(self, name: str, in_s: float, *, by: Desk | None = None) -> None:
        """A timer that is due in so many seconds."""
        due_ms = int((self.clock.now_s() + in_s) * 1000)
        await (by or self.desk).set_timers(self.desk.timer(name, due_ms))
        await run()

    def another(self) -> Desk:
        """Of another process of the service, on the same file."""
        desk = Desk(Shelf(SqliteStore(self._database, self.clock, with_log=False), "group"))
        desk.process = self.desk.process
        return desk

    async def advance(self, until_s: float) -> None:
        """Move time, stopping wherever something is to happen."""
        await run()
        while (next_s := self.clock.next_s()) is not None and next_s - self.begin_s <= until_s:
            self.clock.move_to(next_s)
            await run()
        self.clock.move_to(self.begin_s + until_s)
        await run()

    async def close(self) -> None:
        """Stop polling."""
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def run() -> None:
    """Let everything go on that can."""
    for _ in range(30):
        await asyncio.sleep(0)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """A bench whose store is open."""
    bench = Bench()
    await bench.store.open()
    yield bench
    await bench.close()
    await bench.store.close()


async def test_a_timer_is_sent_when_it_is_due_and_not_before(bench: Bench) -> None:
    """To the millisecond; the one set later and due earlier first, without a look in between."""
    bench.start(poll_s=math.inf)
    await bench.set("late", 86_400.0)
    await bench.set("soon", 60.0)
    looks = bench.store.looks
    await bench.advance(59.9)
    assert (bench.sent, bench.store.looks) == ([], looks)
    await bench.advance(60.0)
    assert bench.sent == [(60.0, "soon", 1)]
    await bench.advance(86_399.0)
    assert [name for _, name, _ in bench.sent].count("late") == 0
    await bench.advance(86_400.0)
    assert bench.sent[-1] == (86_400.0, "late", 1)


async def test_a_timer_that_stays_is_sent_ever_more_seldom(bench: Bench) -> None:
    """After `again_s`, then each time when it has been due for twice as long; never once it is gone."""
    bench.start(poll_s=math.inf)
    await bench.set("a", 10.0)
    await bench.advance(4_000.0)
    assert [round(at_s) for at_s, _, _ in bench.sent] == [10, 70, 130, 250, 490, 970, 1930, 3850]
    assert bench.sent[1][0] == pytest.approx(10.0 + SENT_AGAIN_S, abs=0.01)
    await bench.desk.handle(lambda instances: instances.cancel_timers(bench.desk.process, "1"))
    await bench.advance(100_000.0)
    assert len(bench.sent) == 8


async def test_timers_of_another_process_are_found_within_a_poll(bench: Bench) -> None:
    """It may have died since it set them."""
    bench.start()
    await bench.advance(100.0)
    await bench.set("a", 0.3, by=bench.another())
    await bench.advance(101.0)
    assert [name for _, name, _ in bench.sent] == ["a"]


async def test_a_timer_set_during_a_look_is_not_missed(bench: Bench) -> None:
    """The look did not see it, and nobody else tells of it."""
    due = bench.store.due

    async def slow(*arguments: Any, **options: Any) -> Any:
        found = await due(*arguments, **options)
        if bench.store.looks == 1:
            await bench.set("a", 5.0)
        return found

    bench.store.due = slow  # type: ignore[method-assign]
    bench.start(poll_s=math.inf)
    await bench.advance(5.0)
    assert bench.sent == [(5.0, "a", 1)]


async def test_a_broker_that_is_away_delays_timers_and_loses_none(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Tried again with growing pauses, each said in the log; found again when their claim has run out."""
    bench.failures = 2
    bench.start(poll_s=1.0)
    await bench.set("a", 1.0)
    await bench.advance(1.0 + 2 * CLAIM_S - 1.0)
    assert bench.sent == []
    await bench.advance(1.0 + 3 * CLAIM_S)
    assert [name for _, name, _ in bench.sent] == ["a"]
    said = [record.getMessage() for record in caplog.records if record.name == "choreo.timers"]
    assert len(said) == 2
    assert said[0] == "svc: timers are late, trying again in 0.5 s: the broker is away"


async def test_a_store_that_is_away_is_asked_ever_more_seldom(bench: Bench) -> None:
    """Ten seconds apart at most, and as before once it is back."""
    await bench.set("a", 0.0)
    bench.store.failures = 10
    bench.start(poll_s=1.0)
    await bench.advance(0.5 + 1 + 2 + 4 + 8 + 4 * 10 - 0.1)
    assert bench.store.looks == 9
    assert bench.sent == []
    await bench.advance(70.0)
    assert [name for _, name, _ in bench.sent] == ["a"]
    looks = bench.store.looks
    await bench.advance(75.0)
    assert bench.store.looks - looks == 5


async def test_more_than_a_round_is_sent_at_once(bench: Bench) -> None:
    """1,200 that are due at the same moment, each once."""
    due_ms = int(bench.clock.now_s() * 1000)
    await bench.desk.set_timers(*(bench.desk.timer(f"{number:04}", due_ms) for number in range(1_200)))
    bench.start()
    await bench.advance(0.1)
    assert sorted(name for _, name, _ in bench.sent) == [f"{number:04}" for number in range(1_200)]


async def test_a_poller_that_is_stopped_is_told_of_no_timer(bench: Bench) -> None:
    """It may be stopped in its sleep, and nothing of it stays."""
    task = bench.start()
    await run()
    assert len(bench.store.on_timer) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.store.on_timer == []
    await run()
    assert [each for each in asyncio.all_tasks() if each is not asyncio.current_task()] == []


# ---- within a worker


class Asked(Event, type="asked", version=1, topic="asks", key="id"):
    """Starts an instance."""

    id: str


class Due(Event, type="due", version=1, topic="svc.timers", key="id"):
    """Wakes one."""

    id: str
    number: int


svc = Service("svc")


@svc.handler(Asked)
def asked(event: Asked, instances: Instances) -> None:
    """A timer that fires three times."""
    instances.save(Instance("approval", event.id, 1, "waiting", b"0"))
    instances.set_timer(Timer("approval", event.id, "remind", "t", instances.now_ms + 50))


@svc.handler(Due)
def due(event: Due, instances: Instances) -> None:
    """Count, and set the next one; those that were fired before find another number."""
    found = instances.load("approval", event.id)
    (timer,) = instances.timers("approval", event.id)
    assert found is not None
    assert timer.number == event.number
    assert instances.now_ms >= timer.due_ms
    instances.save(found._replace(data=b"%d" % (int(found.data) + 1), ended=event.number == 3))
    if event.number == 3:
        instances.cancel_timers("approval", event.id, ["remind"])
    else:
        instances.set_timer(timer._replace(number=event.number + 1, due_ms=timer.due_ms + 50))


HANDLERS = [
    replace(bind(handler), resources={}, transactions=("instances",), transaction=INSTANCES)
    for handler in svc.handlers.values()
]


def wake(timer: Timer) -> ProducerRecord:
    """As a service with processes makes it."""
    event = Due(id=timer.key, number=timer.number)
    id_ = f"{timer.key}/{timer.name}/{timer.token}/{timer.number}"
    return ProducerRecord("svc.timers", timer.key.encode(), event.payload(), write(Envelope(id_, "/svc", "due")))


async def test_a_worker_wakes_instances_and_handles_each_firing_once() -> None:
    """Though everything is sent several times over; and what is set in a firing is fired in its turn."""
    clock, database = SystemClock(), Database(":memory:")
    transport, store = EmbeddedTransport(database, clock), SqliteStore(database, clock, with_log=True)

    class Twice:
        async def send(self, records: Sequence[ProducerRecord]) -> None:
            await transport.send([*records, *records])

    await transport.open()
    await store.open()
    await transport.create_topics([TopicSpec(name, 2) for name in ("asks", "svc.timers", "svc.dlq")])
    poller = TimerPoller("svc", ["approval"], store, cast(Transport, Twice()), clock, wake)
    worker = Worker(
        svc,
        ["asks", "svc.timers"],
        Ports(transport, store, NoInstrument(), clock),
        Router(svc, HANDLERS),
        Emitter(svc, str),
        Invoker({}, (), clock),
        poller,
    )
    await worker.start()
    event = Asked(id="1")
    headers = write(Envelope("one", "/test", "asked"))
    await transport.send([ProducerRecord("asks", b"1", event.payload(), headers)])
    async with asyncio.timeout(10):
        while worker.counts["duplicates"] < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await worker.stop()
    found = await store.instance("approval", "1")
    assert found is not None
    assert (found[0].data, found[0].ended, found[1]) == (b"3", True, [])
    assert worker.counts["dead_letters"] == 0
    assert store.on_timer == []
    await store.close()
    await transport.close()


def test_a_store_without_instances_is_refused_with_what_to_do() -> None:
    """Before anything is consumed; and what it offers to others is not said with words of our own."""
    plan = Plan(svc, HANDLERS, [], (), (), [])
    with pytest.raises(ConfigurationError) as caught:
        check_pair(plan, RedisStore("redis://127.0.0.1"))
    assert str(caught.value) == (
        "svc.asked belongs to a process, whose instances and timers commit together with its events' keys; the store "
        "redis keeps neither. Take a store in PostgreSQL or SQLite"
    )
    check_pair(plan, SqliteStore(Database(":memory:"), SystemClock(), with_log=False))
    other = replace(HANDLERS[0], transaction="psycopg.Connection")
    with pytest.raises(ConfigurationError, match=r"the store sqlite offers sqlite3\.Connection$"):
        check_pair(replace(plan, handlers=[other]), SqliteStore(Database(":memory:"), SystemClock(), with_log=False))
