"""Processes that park a key, release it, and are killed at some point of it; or end when nothing is parked any more.

`python -m tests.integration.parked_child` reads jobs as JSON from standard input, and writes how each of them ended.
"""

import asyncio
import json
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import psycopg

from choreo import App, Delayed, Event, RetryPolicy, Service
from choreo.core.messages import Limits
from choreo.parked import ParkedStore
from choreo.running import Running
from choreo.runtime.clock import SystemClock
from choreo.runtime.ordering import Operator, send
from choreo.runtime.parking import Parker
from choreo.runtime.releasing import orders_for
from choreo.testing.crash_child import fork
from choreo.testing.crash_points import CrashPoint, arm

KEYS, BEFORE, AFTER = ("ann", "bob"), 5, 7
"""Numbers below `BEFORE` are there before the first life, those below `AFTER` come when the key is released."""
POISON = ("bob", 1)
ONCE = RetryPolicy(1)
LIFE_S_MAX = 90.0


class Asked(Event, type="kill.asked", version=1, topic="asks", key="who"):
    """Somebody wants tea."""

    who: str
    number: int


class Poured(Event, type="kill.poured", version=1, topic="cups", key="who"):
    """They have it."""

    who: str
    number: int


class Point(NamedTuple):
    """Where to kill it: at the first call of `target` once an event `waits`, or `leaves`, for the `nth` time.

    Or once the key is about to be `released`.
    """

    since: Literal["waits", "leaves", "released"]
    nth: int
    moment: str
    target: str

    def arm(self) -> None:
        """From now on."""
        arm(CrashPoint(self.target, self.moment, self.target))


class Job(TypedDict):
    """One life; `name` is of the service, and of all that is its own. `delayed`: it is released by itself."""

    name: str
    delayed: bool
    point: Point | None
    broker: str
    store: str
    mended: str


class Mended:
    """Whether the service is mended: a file, which no transaction takes away."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def __bool__(self) -> bool:
        return self._path.exists()

    def mend(self) -> None:
        """From now on."""
        self._path.touch()


def app_of(name: str, mended: Mended, *, delayed: bool) -> App:
    """A service that fails at one event until it is mended, with a row for each that it handled."""
    desk = Service(name)
    table = table_of(name)

    @desk.on_start
    def tables(connection: psycopg.Connection) -> None:
        connection.execute(f"CREATE TABLE IF NOT EXISTS {table} (id bigserial, who text, number int)".encode())

    @desk.handler(Asked, retry=Delayed(1, 2, 4, in_place=ONCE) if delayed else ONCE, order="key")
    def pour(asked: Asked, db: psycopg.Connection) -> Poured:
        db.execute(f"INSERT INTO {table} (who, number) VALUES (%s, %s)".encode(), (asked.who, asked.number))
        if (asked.who, asked.number) == POISON and not mended:
            raise ConnectionError
        return Poured(who=asked.who, number=asked.number)

    return App(desk, topics={"asks": f"{name}.asks", "cups": f"{name}.cups"}, name=name)


def table_of(name: str) -> str:
    """Its rows; no key, so that what is done twice is there twice."""
    return f"cup_{name.replace('-', '_')}"


async def _run(job: Job) -> None:
    name, mended = job["name"], Mended(job["mended"])
    app = app_of(name, mended, delayed=job["delayed"])
    point = Point(*job["point"]) if job["point"] else None
    if point is not None and point.since != "released":
        _arm_later(point)
    limits = Limits(flush_units=2, transact_units=2, together_max=1_000, deliveries_max=1_000)
    # So many processes at once would have all the connections that a server of default settings gives.
    store = f"{job['store']}{'&' if '?' in job['store'] else '?'}choreo_connections_max=1"
    running = app.running(broker=job["broker"], store=store, limits=limits, drain_s=5.0)
    async with asyncio.timeout(LIFE_S_MAX), running as services:
        queues: ParkedStore = services.stores[name]  # type: ignore[assignment]
        while not await queues.parked(name) and not mended:  # noqa: ASYNC110 - it is a store that says when
            await asyncio.sleep(0.05)
        mended.mend()
        for who in KEYS:
            for number in range(BEFORE, AFTER):
                await services.publish(Asked(who=who, number=number), id=f"{name}-{who}-{number}")
        if point is not None and point.since == "released":
            point.arm()
        heads = await queues.parked(name)
        while True:
            # What has no reason is on its way already; that it comes is not for an operator to see to.
            failed = [] if job["delayed"] else [head for head in heads if head.reason]
            me, now_s = Operator("me", "mended"), time.time()
            orders = orders_for(app.services[name], f"{name}.replay", failed, "head", me, now_s)
            await send(services.transport, orders.records, SystemClock())
            await asyncio.sleep(0.3)
            await _finished(services, name)
            if not (heads := await queues.parked(name)):
                break


async def _finished(services: Running, name: str) -> None:
    worker = services.workers[name]
    while (  # noqa: ASYNC110 - it is several objects that say when
        len(worker.leases) < len(worker.topics)
        or worker.engine.unfinished()
        or not all(worker.consumer.drained(id_) for id_ in worker.leases)
    ):
        await asyncio.sleep(0.05)


def _arm_later(point: Point) -> None:
    real, calls = getattr(Parker, point.since), 0

    def told(self: Parker, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == point.nth:
            point.arm()
        return real(self, *given)

    setattr(Parker, point.since, told)


def live(job: Job) -> int:
    """Its exit code, if it comes to that."""
    try:
        asyncio.run(_run(job))
    except Exception:
        sys.stderr.write(f"{job['name']}: {traceback.format_exc()}\n")
        return 1
    return 0


if __name__ == "__main__":
    json.dump(fork([partial(live, job) for job in json.load(sys.stdin)]), sys.stdout)
