"""What test_crash_points.py kills: one service a process, ended with SIGKILL at CHOREO_CRASH_AT, else when done.

`python -m tests.conformance.crash_child JOBS` imports choreo once and forks a process for each job.
"""

import asyncio
import json
import os
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from choreo import App, Event, Service
from choreo.core.messages import Limits
from choreo.runtime import emitting
from choreo.sqlite import log
from choreo.stores.sqlite import SqliteStore
from choreo.transports import embedded
from choreo.transports.kafka import KafkaTransport
from choreo.transports.kafka_consumer import KafkaConsumer

PARTITIONS = 2
PATIENCE_S = 40.0


class Ordered(Event, type="crash.ordered", version=1, topic="orders", key="customer"):
    """The input."""

    customer: str
    number: int


class Reserved(Event, type="crash.reserved", version=1, topic="reserved", key="customer"):
    """Emitted by the handler that writes a row in the commit."""

    customer: str
    number: int


class Greeted(Event, type="crash.greeted", version=1, topic="greeted", key="customer"):
    """Emitted by the handler that writes nothing."""

    customer: str
    number: int


def create(connection: sqlite3.Connection) -> None:
    """The handler's own table; it has no key, so that what is done twice is there twice."""
    connection.execute("CREATE TABLE IF NOT EXISTS effect (number INTEGER)")


def reserve(ordered: Ordered, connection: sqlite3.Connection) -> Reserved:
    """One row and one emit, in the commit's transaction."""
    connection.execute("INSERT INTO effect VALUES (?)", (ordered.number,))
    return Reserved(customer=ordered.customer, number=ordered.number)


async def greet(ordered: Ordered) -> Greeted:
    """One emit, invoked outside of the commit."""
    return Greeted(customer=ordered.customer, number=ordered.number)


def shop(prefix: str) -> App:
    """The app, in a group and on topics of one job."""
    stock = Service("stock", group=f"{prefix}stock")
    stock.on_start(create)
    stock.handler(Ordered)(reserve)
    stock.handler(Ordered)(greet)
    return App(stock, name="shop")


def crash_points(broker: str) -> dict[str, tuple[Any, str, int]]:
    """By name: what is patched, and at which call it dies; the first ones are of the start, or find nothing done."""
    send: tuple[Any, str, int]
    offset: tuple[Any, str, int]
    if broker.startswith("embedded"):  # sends and offsets are parts of the commit's transaction
        send, offset = (log, "append", 3), (log, "commit_offsets", 3)
    else:
        send, offset = (KafkaTransport, "send", 2), (KafkaConsumer, "commit", 2)
    return {
        "claim": (SqliteStore, "claim", 2),
        "handler": (emitting.Emitter, "emits", 5),
        "store commit": (SqliteStore, "commit", 2),
        "send": send,
        "offset commit": offset,
    }


def arm(broker: str) -> None:
    """Patch the crash point that was asked for, if any."""
    crash_at = os.environ.get("CHOREO_CRASH_AT")
    if not crash_at:
        return
    moment, _, name = crash_at.partition(" ")
    owner, attribute, calls = crash_points(broker)[name]
    setattr(owner, attribute, deadly(getattr(owner, attribute), moment, calls))


def deadly(function: Callable[..., Any], moment: str, calls: int) -> Callable[..., Any]:
    """The function, except that its `calls`-th call is the last thing this process does."""
    count = 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def counted() -> bool:
        nonlocal count
        count += 1
        return count == calls

    async def later(*arguments: Any, **options: Any) -> Any:
        last = counted()
        if last and moment == "before":
            die()
        result = await function(*arguments, **options)
        if last:
            die()
        return result

    def now(*arguments: Any, **options: Any) -> Any:
        last = counted()
        if last and moment == "before":
            die()
        result = function(*arguments, **options)
        if last:
            die()
        return result

    return later if asyncio.iscoroutinefunction(function) else now


async def run(app: App, broker: str, path: str, events: int) -> None:
    """Run until every (event, handler) is done, nothing is left to be sent, and no more; then drain."""
    store = None if broker.startswith("embedded") else f"sqlite:{path}"
    limits = Limits(concurrency=4, flush_units=4, transact_units=4)
    async with asyncio.timeout(PATIENCE_S), app.running(broker=broker, store=store, limits=limits):
        while not done(path, 2 * events):  # noqa: ASYNC110 - it is the file that says when
            await asyncio.sleep(0.05)


def done(path: str, units: int) -> bool:
    """Whether the store says so."""
    connection = sqlite3.connect(path, timeout=10)
    try:
        (finished,) = connection.execute("SELECT COUNT(*) FROM choreo_key WHERE done = 1").fetchone()
        (unsent,) = connection.execute("SELECT COUNT(*) FROM choreo_outbox").fetchone()
    finally:
        connection.close()
    return bool(finished == units and unsent == 0)


class Job(TypedDict):
    """One process; `point` is empty for one that is to end well."""

    point: str
    prefix: str
    broker: str
    path: str
    events: int


def live(job: Job) -> int:
    """The life of one process, and its exit code."""
    os.environ.update(CHOREO_CRASH_AT=job["point"], CHOREO_TOPIC_PREFIX=job["prefix"])
    # A killed member is replaced sooner.
    os.environ["CHOREO_KAFKA_SESSION_TIMEOUT_MS"] = "6000"
    embedded.HEARTBEAT_S, embedded.MEMBER_S = 0.1, 0.8
    try:
        arm(job["broker"])
        asyncio.run(run(shop(job["prefix"]), job["broker"], job["path"], job["events"]))
    except Exception:
        sys.stderr.write(f"{job['prefix']}: {traceback.format_exc()}")
        return 1
    return 0


def fork(jobs: Sequence[Job]) -> list[int]:
    """Run all at once, each in a process of its own; negative exit codes are signals."""
    pids = []
    for job in jobs:
        pid = os.fork()
        if pid == 0:
            os._exit(live(job))
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


if __name__ == "__main__":
    json.dump(fork(json.loads(sys.argv[1])), sys.stdout)
