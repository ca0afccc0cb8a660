"""Dead letters listed, filtered and replayed at a rate by real processes that are killed in the midst of it.

`DLQ_LETTERS`: how many, 300 unless given.
"""

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo import App, Event, Reject, Service
from choreo.opening import open_transport
from choreo.ports import Transport
from choreo.publisher import Publisher
from choreo.record import TopicPartition
from choreo.running import Running
from choreo.runtime.clock import SystemClock
from choreo.runtime.ordering import Operator, partitions_of_replays, send
from choreo.runtime.redriving import Redrive, read
from choreo.sqlite import log as embedded_log
from choreo.telemetry.silent import NoInstrument
from tests.integration.dlq_app import TABLES, Asked, app

ROOT = Path(__file__).parents[2]
TARGET = "tests.integration.dlq_app:app"
LETTERS = int(os.environ.get("DLQ_LETTERS", "300"))
RATE = LETTERS / 4
KEYS = 40
WITHIN_S = 60.0 + LETTERS / 50


class Desk:
    """The two services of `dlq_app` as one process, and the commands of an operator, on one broker."""

    def __init__(self, folder: Path, broker: str) -> None:
        self.folder = folder
        self.broker = broker
        self.mended = folder / "mended"
        self.embedded = broker.startswith("embedded:")
        self.prefix = app.topic("")
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "DLQ_MENDED": str(self.mended),
            "CHOREO_BROKER": broker,
            "CHOREO_TOPIC_PREFIX": self.prefix,
            "CHOREO_KAFKA_SESSION_TIMEOUT_MS": "6000",
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def command(self, *arguments: str) -> list[str]:
        """A command line of choreo."""
        return [sys.executable, "-m", "choreo", *arguments]

    def spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Begin a command; what it says goes to `log`."""
        with open(self.folder / "log", "ab") as output:
            process = subprocess.Popen(
                self.command(*arguments), env=self.environment, cwd=self.folder, stdout=output, stderr=output
            )
        self.processes.append(process)
        return process

    def serve(self) -> subprocess.Popen[bytes]:
        """Begin a process of the services."""
        store = () if self.embedded else ("--store", f"sqlite:{self.folder}/{{service}}.db")
        return self.spawn("run", TARGET, *store)

    async def run(self, *arguments: str) -> Any:
        """A command to its end; what it printed, read as JSON if that was asked for."""
        process = await asyncio.create_subprocess_exec(
            *self.command(*arguments),
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), WITHIN_S)
        assert process.returncode == 0, err.decode()
        return json.loads(out) if "--json" in arguments else out.decode()

    def rows(self, table: str) -> Counter[int]:
        """How often each number is in a table of whichever service has it."""
        service = next(name for name, tables in TABLES.items() if table in tables)
        path = self.broker.partition(":")[2] if self.embedded else f"{self.folder}/{service}.db"
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as db:
                return Counter(number for (number,) in db.execute(f"SELECT number FROM {table}"))
        except sqlite3.OperationalError:  # not there yet
            return Counter()

    async def until(self, what: Any, wanted: int) -> None:
        """Wait until `what()` is as many."""
        until_s = time.monotonic() + WITHIN_S
        while (found := what()) < wanted:
            assert time.monotonic() < until_s, f"{found} of {wanted}\n{self.log()}"
            await asyncio.sleep(0.1)

    def log(self) -> str:
        """The last lines of all that was said."""
        return "\n".join((self.folder / "log").read_text(errors="replace").splitlines()[-30:])

    def end(self) -> None:
        """Leave no process behind."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait(10)


async def publish(desk: Desk) -> None:
    """All events, of some keys in turn."""
    events = [(Asked(number=n, who=f"guest-{n % KEYS}"), f"{desk.prefix}{n}") for n in range(LETTERS)]
    async with transport_of(desk.broker) as transport:
        publisher = Publisher(transport, NoInstrument(), SystemClock(), topic=app.topic)
        for at in range(0, LETTERS, 500):
            await publisher.publish_many(events[at : at + 500])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["embedded", "kafka"])
async def test_replay_killed_in_its_midst_repeats_no_effect(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is killed, the service is killed, two operators do it at once; each event is booked once.

    And nobody else hears of it: neither the other handler of the service, nor the other service.
    """
    monkeypatch.setattr(app, "_prefix", f"dlq-{random.randrange(10**9)}.")
    broker = f"embedded:{tmp_path}/log.db" if kind == "embedded" else f"kafka://{request.getfixturevalue('kafka')}"
    desk, once, times = Desk(tmp_path, broker), dict.fromkeys(range(LETTERS), 1), dict[str, float]()
    try:
        await desk.run("topics", "apply", TARGET)
        await publish(desk)
        service = desk.serve()
        await desk.until(lambda: desk.rows("noted").total(), LETTERS)
        await desk.until(lambda: desk.rows("seen").total(), LETTERS)
        begun_s = time.monotonic()
        while len((found := await desk.run("dlq", "list", TARGET, "--json"))["dead_letters"]) < LETTERS:
            begun_s = time.monotonic()
        times["list"] = time.monotonic() - begun_s
        assert len(found["dead_letters"]) == LETTERS
        assert not desk.rows("booked")
        filtered = ("--handler", "desk.book", "--reason", "rejected", "--type", "dlq.*", "--key", "guest-3")
        mine = (await desk.run("dlq", "list", TARGET, "--json", *filtered))["dead_letters"]
        assert len(mine) == len(range(3, LETTERS, KEYS))
        assert {row["state"] for row in mine} == {"open"}

        desk.mended.touch()
        replay = ("dlq", "replay", TARGET, "--yes", "--rate", str(RATE))
        command = desk.spawn(*replay)
        await desk.until(lambda: desk.rows("booked").total(), LETTERS // 10)
        command.kill()
        assert await asyncio.to_thread(command.wait, 10) == -signal.SIGKILL
        booked = desk.rows("booked").total()
        assert booked < LETTERS, "it was killed too late to show anything"
        both = [asyncio.create_task(desk.run(*replay, "--json")) for _ in range(2)]
        await desk.until(lambda: desk.rows("booked").total(), min(LETTERS, booked + LETTERS // 10))
        service.kill()
        assert await asyncio.to_thread(service.wait, 10) == -signal.SIGKILL
        desk.serve()
        told = await asyncio.gather(*both)
        await desk.until(lambda: desk.rows("heard").total(), LETTERS)
        times["replay"] = max(each["elapsed_s"] for each in told)
        assert sum(each["done"] for each in told) > LETTERS, "the two did not overlap"
        for each in told:
            assert each["elapsed_s"] > 0.8 * (each["done"] - RATE / 10) / RATE - 0.5, "the rate was not kept"

        last = await desk.run("dlq", "replay", TARGET, "--yes", "--json")
        assert (last["done"], last["left_out"]) == (0, {"replayed already": LETTERS})
        await until_read(desk)
        assert {table: desk.rows(table) for table in ("booked", "heard", "noted", "seen")} == dict.fromkeys(
            ("booked", "heard", "noted", "seen"), once
        )
        found = await desk.run("dlq", "list", TARGET, "--json")
        assert Counter(row["state"] for row in found["dead_letters"]) == {"replayed": LETTERS}
        print(f"{kind}: {LETTERS} letters, listed in {times['list']:.1f} s, replayed in {times['replay']:.1f} s")
    finally:
        desk.end()


async def until_read(desk: Desk) -> None:
    """Wait until the service has finished every replay, those that are duplicates too."""
    async with transport_of(desk.broker) as transport:
        topic = app.topic("desk.replay")
        end = max(record.offset for record in await transport.scan([topic], since_ms=0)) + 1
    until_s = time.monotonic() + WITHIN_S
    while (committed := await _committed(desk, topic)) < end:
        assert time.monotonic() < until_s, f"{committed} of {end}\n{desk.log()}"
        await asyncio.sleep(0.2)


async def _committed(desk: Desk, topic: str) -> int:
    if desk.embedded:
        with closing(sqlite3.connect(f"file:{desk.folder}/log.db?mode=ro", uri=True, timeout=30)) as db:
            return embedded_log.committed(db, "desk", TopicPartition(topic, 0)) or 0
    client = AIOKafkaAdminClient(bootstrap_servers=desk.broker.removeprefix("kafka://"))
    await client.start()
    try:
        offsets = await client.list_consumer_group_offsets("desk")
        return int(offsets[KafkaPartition(topic, 0)].offset)
    finally:
        await client.close()


@asynccontextmanager
async def transport_of(broker: str) -> AsyncIterator[Transport]:
    """The log, open."""
    transport = open_transport(broker)
    await transport.open()
    try:
        yield transport
    finally:
        await transport.close()


# ---- every store


class Told(Event, type="dlq.told", version=1, topic="told", key="who"):
    who: str


class Heard(Event, type="dlq.heard", version=1, topic="heard", key="who"):
    who: str


@dataclass
class Ear:
    """A service without rows, for stores that have none; it refuses until it is mended."""

    name: str
    mended: bool = False
    calls: list[str] = field(default_factory=list)

    def app(self) -> App:
        """Topics and group are of this test alone."""
        service = Service(f"ear-{self.name}")

        @service.handler(Told)
        async def listen(told: Told) -> Heard:
            self.calls.append(told.who)
            if not self.mended:
                raise Reject("nothing heard")
            return Heard(who=told.who)

        @service.handler(Told)
        async def other(told: Told) -> None:
            self.calls.append("other")

        return App(service, topics={name: f"{name}-{self.name}" for name in ("told", "heard")})


@pytest.mark.parametrize(
    ("client", "store"),
    [("kafka", "changelog"), ("kafka", "redis"), ("kafka", "postgres"), ("kafka+confluent", "changelog")],
)
async def test_replay_is_handled_once_with_every_store(
    client: str, store: str, request: pytest.FixtureRequest
) -> None:
    """Sent twice as two operators would, also with a key that is null; started anew, it is known still."""
    ear, urls = Ear(uuid4().hex[:8]), {"changelog": "changelog"}
    broker = f"{client}://{request.getfixturevalue('kafka')}"
    url = urls.get(store) or request.getfixturevalue(store)
    app_, guests = ear.app(), [f"guest-{n}" for n in range(10)]
    (service,) = app_.services.values()
    settings: dict[str, Any] = {
        "broker": broker,
        "store": url,
        "create_topics": True,
        "create_replay_topics": True,
        "create_schema": True,
        "partitions": 2,
    }
    async with app_.running(**settings) as running:
        await running.publisher.publish_many([(Told(who=guest), None) for guest in guests])
        await _until(lambda: len(ear.calls) == 20 and running.workers[service.name].counts["dead_letters"] == 10)
        ear.mended, ear.calls = True, []
        for run in ("one", "two"):
            await _order_unseen(app_, running, run)
        await _until(lambda: _replayed(running) >= 20)
        assert Counter(ear.calls) == dict.fromkeys(guests, 1)
    async with app_.running(**settings) as running:
        await _order_unseen(app_, running, "three")
        await _until(lambda: _replayed(running) >= 10)
        assert Counter(ear.calls) == dict.fromkeys(guests, 1)
        heard = await running.transport.scan([app_.topic("heard")], since_ms=0)
        assert len(heard) == 10


async def _order_unseen(app_: App, running: Running, run: str) -> None:
    """Replay all, as somebody who has not seen that others have."""
    services, transport = app_.services, running.transport
    partitions = await partitions_of_replays(transport, list(services.values()), app_.topic)
    reading = replace(
        await read(transport, list(services.values()), app_.topic, since_ms=0), fates={}, sent=frozenset()
    )
    orders = Redrive(services, app_.topic, partitions, Operator(run), time.time()).letters(
        reading, reading.letters, "if-not-done"
    )
    assert len(orders.records) == 10
    await send(transport, orders.records, SystemClock())


def _replayed(running: Running) -> int:
    (worker,) = running.workers.values()
    before = 20 if worker.counts["dead_letters"] else 0
    return worker.counts["handled"] + worker.counts["duplicates"] + worker.counts["dead_letters"] - before


async def _until(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until_s
        await asyncio.sleep(0.05)
